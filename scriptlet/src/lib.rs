//! Empty: the package consists of `tests/scriptlet.rs`.
