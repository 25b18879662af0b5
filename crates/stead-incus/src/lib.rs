//! A typed client for the REST API of Incus and LXD. It talks to a server, or to a cluster through one of its members.
//!
//! Owns requests as pure values ([`Request`], built in [`requests`]), the envelope around every answer ([`envelope`]),
//! the transports (unix socket, HTTPS with pinned certificate), operations, events, commands, copies between servers,
//! tokens, and the differences between the engines ([`Dialect`] and [`Feature`]). Does not decide what to ask for:
//! `stead-node` bootstraps, the fleet does day-2 work.
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
//! Rules of the whole crate:
//! - A `PUT` of an object needs the [`ETag`] of the version it replaces. If the object has changed since, the error is
//!   [`Error::Changed`].
//! - A request lists the features it needs ([`Request::needed`]). It is not sent to a server that lacks one; the error
//!   names the missing API extension.
//! - The client never repeats a request that changes something. Waiting for an operation survives lost connections and
//!   restarts; when the server no longer knows the operation, the error is [`Error::OutcomeUnknown`].
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
pub use events::{Delivery, EventFilter, Events};
pub use exec::{Exec, ExecDone};
pub use feature::Feature;
pub use request::{Body, ETag, Part, Request, Source, Tagged};
pub use requests::Scope;
pub use token::{JoinToken, TrustToken};
pub use transport::{Endpoint, Identity};
