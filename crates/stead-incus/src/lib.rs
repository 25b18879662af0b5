//! A typed client for the REST API of Incus and LXD: their servers and clusters, through one member.
//!
//! Owns requests as pure values ([`Request`], built in [`requests`]), the envelope every answer comes in
//! ([`envelope`]), the transports (unix socket, HTTPS with pinned certificate), operations, events, commands, copies
//! between servers, tokens, and where the engines differ: [`Dialect`] and [`Feature`]. Does not own what to ask for:
//! bootstrap is `stead-node`'s, day-2 work is the fleet's.
//!
//! ```no_run
//! use std::time::Duration;
//! use stead_incus::{
//!     Client, Endpoint,
//!     requests::instances::{Move, NewInstance, StateAction},
//! };
//! # async fn example() -> Result<(), stead_incus::Error> {
//! let client = Client::discover(Endpoint::Unix("/var/lib/incus/unix.socket".into())).await?;
//! client.create_instance("default", Some("node1"), &NewInstance::of_image("web", "debian-12")).await?;
//! client.move_instance("default", "web", &Move::to("node2")).await?;
//! client.set_instance_state("default", "web", StateAction::Start, Duration::from_secs(30)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! What holds for all of it:
//! - A `PUT` of an object wants the [`ETag`] of what it replaces; when the object has changed since, the error is
//!   [`Error::Changed`].
//! - A request says what the server must be able to do ([`Request::needed`]); one that cannot is not asked, and the
//!   error names the API extension it lacks.
//! - Nothing that changes something is sent twice by itself. Waiting for an operation goes on through lost connections
//!   and restarts; when the server no longer knows the operation, the error is [`Error::OutcomeUnknown`].
//! - Answers are bounded in length and time, and every error names its request.

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
