//! OpenNebula's documents: the `<VM>` for `deploy` and the `<VMM_DRIVER_ACTION_DATA>` for the other scripts.
//!
//! Owns parsing XML into types; every path and name is validated here, once. Does not own its use for instances
//! ([`crate::instance`], [`crate::disks`]).

mod device;
mod vm;
mod xml;

pub use device::{Context, Disk, DiskKind, DiskLimits, Graphics, ImageFormat, Nic, Pci, Role};
pub use vm::{Vm, read};

/// A hardware address in the form that the engines accept.
///
/// # Errors
/// It is not one.
pub fn hardware_address(text: &str) -> Result<String, IdError> {
    device::mac(text.to_owned())
}

use crate::ids::IdError;

/// A document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is not well-formed, or has something that OpenNebula's documents never have: a DTD, or more nodes than any
    /// VM.
    #[error("the document is not usable XML")]
    Xml(#[source] roxmltree::Error),
    /// It is another kind of document.
    #[error("the document is <{0}>, not <VM> or <VMM_DRIVER_ACTION_DATA>")]
    Root(String),
    /// A required element is missing.
    #[error("the document has no {0}")]
    Missing(&'static str),
    /// An element's text is invalid.
    #[error(transparent)]
    Value(#[from] IdError),
    /// Two elements contradict each other.
    #[error("the document describes two VMs: {0}")]
    TwoVms(String),
    /// Two devices have the same number.
    #[error("the document has {0} twice")]
    Twice(String),
}
