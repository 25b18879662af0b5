//! OpenNebula's documents: the `<VM>` that `deploy` gets and the `<VMM_DRIVER_ACTION_DATA>` that the others get.
//!
//! Owns reading XML into types; everything that becomes a path or a name is checked here, once. Does not own what an
//! instance makes of it ([`crate::instance`], [`crate::disks`]).

mod device;
mod vm;
mod xml;

pub use device::{Context, Disk, DiskKind, DiskLimits, Graphics, ImageFormat, Nic, Pci, Role};
pub use vm::{Vm, read};

/// A hardware address in the form the engines take.
///
/// # Errors
/// It is none.
pub fn hardware_address(text: &str) -> Result<String, IdError> {
    device::mac(text.to_owned())
}

use crate::ids::IdError;

/// A document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not well-formed, or with what a document of OpenNebula never has: a DTD, or more nodes than any VM.
    #[error("the document is not usable XML")]
    Xml(#[source] roxmltree::Error),
    /// Another document.
    #[error("the document is <{0}>, not <VM> or <VMM_DRIVER_ACTION_DATA>")]
    Root(String),
    /// An element that must be there is not.
    #[error("the document has no {0}")]
    Missing(&'static str),
    /// An element's text is not what it has to be.
    #[error(transparent)]
    Value(#[from] IdError),
    /// Two elements that should say the same.
    #[error("the document is of two VMs: {0}")]
    TwoVms(String),
    /// Two devices of one number.
    #[error("the document has {0} twice")]
    Twice(String),
}
