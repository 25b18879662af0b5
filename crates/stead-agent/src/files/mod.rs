//! Files between a client and a node: what both ends do with the tars that they travel in.
//!
//! Owns how a tree becomes a tar, and how a tar is unpacked without touching anything outside its target. Does not own
//! the transport.

pub mod pack;
pub mod unpack;

/// Key of the pax record by which a packer says what it left out: `PATH: REASON`. Other readers of tars pass over it.
const SKIPPED: &str = "STEAD.skipped";

#[cfg(test)]
mod tests;
