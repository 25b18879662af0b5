//! Builds images from recipes into a content-addressed store.
//!
//! [`plan::plan`] observes and returns the steps of a build, [`build::build`] runs them, [`store::Store`] keeps the
//! results. [`overlay::build_layer`] makes the layer of one overlay, for clusters that apply overlays at boot.
//!
//! Every tree (a bootstrapped Debian, a tar, OCI layers, a directory, a script's output) is a stream of checked entries
//! ([`tarball`]) that goes into mksquashfs; nothing untrusted is ever unpacked on the builder's disk. The library reads
//! neither the environment nor the home directory: everything comes in as arguments.

pub mod build;
pub mod bzimage;
pub mod compression;
pub mod container;
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
pub mod programs;
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
