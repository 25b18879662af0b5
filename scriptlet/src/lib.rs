//! Nothing: `tests/scriptlet.rs` is all of this package.
