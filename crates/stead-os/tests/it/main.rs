//! Tests of this crate from outside; `cargo test -p stead-os --test it host::` selects a module.

mod host;
