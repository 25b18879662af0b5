//! Recipe to build plan to content-addressed image store.
//!
//! [`plan::plan`] looks and says what would be done, [`build::build`] does it, [`store::Store`] keeps the results.
//! [`overlay::build_layer`] makes the layer of one overlay, for clusters that put overlays over an image at boot.
//!
//! The way of an image: every tree (a bootstrapped Debian, a tar, OCI layers, a directory, a script's output) is a stream of
//! checked entries ([`tarball`]) that goes into mksquashfs; nothing untrusted is ever unpacked on the builder's disk. The
//! library reads neither environment nor home: everything comes in as arguments.

pub mod build;
pub mod bzimage;
pub mod compression;
pub mod cpio;
pub mod debian;
pub mod digest;
pub mod error;
pub mod files;
pub mod initrd;
pub mod inputs;
pub mod instance;
pub mod kernel;
pub mod members;
pub mod merge;
pub mod modules;
pub mod oci;
pub mod overlay;
pub mod plan;
pub mod secrets;
pub mod source;
pub mod space;
pub mod squashfs;
pub mod store;
pub mod tarball;
pub mod tools;

pub use build::{BuildOutcome, Progress, StepReport, build};
pub use error::{ImageError, Result};
pub use plan::{BuildPlan, BuildRequest, PlanStep, plan};
pub use store::{GcReport, ImageSummary, Store, VerifyReport};
