//! A typed client for the REST API of Incus and LXD.
//!
//! Owns requests as pure values ([`Request`], built in [`requests`]), the envelope every answer comes in
//! ([`envelope`]), the transports (unix socket, HTTPS with pinned certificate), operations, tokens, and the few places
//! where the two engines differ ([`Dialect`]). Does not own what to ask for: bootstrap is `stead-node`'s, day-2 work
//! is the fleet's.

pub mod blocking;
pub mod client;
pub mod dialect;
pub mod envelope;
pub mod error;
pub mod events;
pub mod exec;
pub mod feature;
pub mod metrics;
pub mod request;
pub mod requests;
pub mod tls;
pub mod token;
pub mod transport;
pub mod types;

pub use client::{Client, Operation};
pub use dialect::Dialect;
pub use envelope::Envelope;
pub use error::Error;
pub use events::{EventFilter, Events, Told};
pub use exec::{Exec, ExecDone};
pub use feature::Feature;
pub use request::{Body, ETag, Part, Request, Source, Tagged};
pub use requests::Scope;
pub use token::{JoinToken, TrustToken};
pub use transport::{Endpoint, Identity};
