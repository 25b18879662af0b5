//! The command line, and real clusters made by it.

mod base_cluster;
mod cli;
mod client;
mod common;
mod engine;
mod engines;
mod fleet;
mod fleet_unharmed;
mod kill;
mod one;
mod qemu;
mod surroundings;
