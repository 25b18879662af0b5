//! The agent protocol: what both ends of the agent API share, its client, (feature `pki`) the per-cluster certificate
//! authority, and (feature `files`) the tars that files travel in.
//!
//! Owns the transport (TLS both ways, HTTP/1.1, the frames of `exec`). Does not own the messages, which are in
//! `stead_model::agent`, nor the server, which is in `stead-node`.

pub mod client;
mod error;
pub mod exec;
#[cfg(feature = "files")]
pub mod files;
pub mod frame;
#[cfg(feature = "pki")]
pub mod pki;
pub mod query;
pub mod tls;

pub use client::{Chunks, Client, Dial, DirectDialer, Timeouts};
pub use error::ClientError;
pub use exec::{Event, ExecInput, ExecOutput, ExecSession};
pub use tls::Identity;
