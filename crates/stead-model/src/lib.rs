//! Stead's data types. Serde only: nothing in this crate opens a file, a socket or a clock.
//!
//! Owns the shape of everything that crosses a boundary: the recipe, the image manifest, the cluster file, the
//! node spec, the messages of the agent API, and the table of engines. Does not act on them.

pub mod agent;
pub mod cluster;
pub mod engine;
pub mod failure;
pub mod go;
pub mod manifest;
pub mod names;
pub mod node;
pub mod preseed;
pub mod programs;
pub mod recipe;
pub mod sizes;
pub mod text;

pub use cluster::{ClusterSpec, EngineKind};
pub use engine::EngineFacts;
pub use failure::{Failure, FailureKind};
pub use go::GoVersion;
pub use manifest::{Artifact, Digest, Manifest};
pub use names::{ClusterName, ImageName, MacAddress, NodeName, RemoteName};
pub use node::NodeSpec;
pub use recipe::Recipe;
pub use sizes::{Bytes, Memory};
pub use text::SpecError;
