//! Tests of this crate from outside; `cargo test -p stead-node --test it engine::` selects a module.

mod agent;
mod common;
mod disks;
mod engine;
mod namespace;
mod network;
mod qemu;
mod support;
