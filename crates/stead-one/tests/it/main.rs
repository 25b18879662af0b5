//! The driver from outside: documents, disks of this host, hostile input, monitoring.
//!
//! `cargo test -p stead-one --test it disks::` selects a module.

mod disks;
mod golden;
mod hostile;
mod monitor;
