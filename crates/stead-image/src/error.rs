//! Errors between a recipe and the store. Owns their messages and hints; the command line prints the chain.

use crate::{bzimage::BzImageError, tarball::TarError};
use std::{io, path::PathBuf};
use stead_model::{Bytes, Failure, FailureKind, ImageName, SpecError};

/// An operation of this crate failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The recipe cannot be parsed.
    #[error("cannot parse the recipe")]
    Recipe(#[source] SpecError),
    /// Something that the recipe or the caller names is missing or invalid.
    #[error("{subject}: {why}")]
    Input {
        /// The path or key.
        subject: String,
        /// What is wrong with it.
        why: String,
    },
    /// A tar or OCI layer was refused.
    #[error("{archive} refused")]
    Archive {
        /// The archive.
        archive: String,
        /// The entry and why.
        #[source]
        source: TarError,
    },
    /// The kernel cannot be read.
    #[error("cannot read kernel {path}")]
    Kernel {
        /// The kernel file.
        path: String,
        /// Why.
        #[source]
        source: BzImageError,
    },
    /// The store has no such image.
    #[error("there is no image {name}")]
    NoImage {
        /// Its name.
        name: ImageName,
    },
    /// A file operation failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried, a verb.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A program that the build needs is not installed.
    #[error("program {tool} is not installed")]
    ToolMissing {
        /// Its name.
        tool: String,
        /// Debian package that has it.
        package: String,
    },
    /// A program failed.
    #[error("{tool} failed ({status}){}", tail(.stderr))]
    ToolFailed {
        /// Its name.
        tool: String,
        /// Exit code or signal.
        status: String,
        /// The last lines it wrote on standard error.
        stderr: String,
    },
    /// A program is older than what is to be built with it.
    #[error("{tool} {found} is too old: {by} needs {needed}")]
    ToolTooOld {
        /// Its name.
        tool: String,
        /// Its version.
        found: String,
        /// The version that is needed.
        needed: String,
        /// What needs it.
        by: String,
    },
    /// Something that the recipe names by its address was not downloaded.
    #[error("{url} cannot be downloaded: {detail}")]
    Download {
        /// The address.
        url: String,
        /// The downloading program's words.
        detail: String,
        /// The server answered that it does not have it.
        missing: bool,
    },
    /// Go modules cannot be downloaded.
    #[error("the Go module proxy cannot be reached: {detail}")]
    GoProxy {
        /// Go's words.
        detail: String,
    },
    /// A Go package was not built.
    #[error("Go package {package} cannot be built{}", tail(.detail))]
    GoBuild {
        /// The package.
        package: String,
        /// Go's words about the first package that failed.
        detail: String,
    },
    /// A package of the recipe does not exist.
    #[error("no package {package} in Debian {suite}")]
    NoPackage {
        /// The package.
        package: String,
        /// The suite, with the mirror if one is named.
        suite: String,
    },
    /// The mirror does not have the suite.
    #[error("the mirror has no suite {suite}{}", tail(.detail))]
    NoSuite {
        /// The suite.
        suite: String,
        /// The package manager's message.
        detail: String,
    },
    /// The mirror does not answer.
    #[error("the Debian mirror cannot be reached: {detail}")]
    Mirror {
        /// The package manager's message.
        detail: String,
    },
    /// Too little space.
    #[error("{path} has {free} free, the build needs about {needed}")]
    Space {
        /// Where.
        path: PathBuf,
        /// Free space.
        free: Bytes,
        /// Space needed.
        needed: Bytes,
    },
    /// The build needs root.
    #[error("building {what} needs root: {why}")]
    Privilege {
        /// What is built.
        what: String,
        /// Why.
        why: String,
    },
    /// A file of the store is missing or has wrong contents.
    #[error("the store is damaged: {what}")]
    Damaged {
        /// Which file and how.
        what: String,
    },
}

fn tail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// Result of this crate.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// Bad input is a mistake in the recipe, the overlay or the name, rather than a fault of this host.
impl Failure for ImageError {
    fn failure_kind(&self) -> FailureKind {
        if self.input_is_at_fault() { FailureKind::BadInput } else { FailureKind::Failed }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoImage { name } => Some(format!(
                "`stead image ls` lists the images that are built; `stead image build images/{name}.yaml` builds this one"
            )),
            Self::ToolMissing { package, .. } => Some(format!("install it: apt-get install {package}")),
            Self::ToolTooOld { tool, needed, .. } => Some(format!(
                "install {tool} {needed} or newer (Debian: golang-go of a newer suite or its backports) and put it first in \
                 PATH"
            )),
            Self::GoProxy { .. } => Some(
                "set GOPROXY to one that is reachable, as `go env -w` does, or build where the modules are in Go's cache"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

impl ImageError {
    fn input_is_at_fault(&self) -> bool {
        // A read error without a system error number is about the archive's bytes.
        if let Self::Archive { source: TarError::Read(e), .. } = self {
            return e.raw_os_error().is_none();
        }
        matches!(
            self,
            Self::Recipe(_)
                | Self::Input { .. }
                | Self::Archive {
                    source: TarError::Refused { .. } | TarError::Broken { .. } | TarError::TooLarge { .. },
                    ..
                }
                | Self::Download { missing: true, .. }
                | Self::GoBuild { .. }
                | Self::NoPackage { .. }
                | Self::NoSuite { .. }
                | Self::NoImage { .. }
        )
    }

    pub(crate) fn input(subject: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Input { subject: subject.into(), why: why.into() }
    }
}

/// Adds operation and path to an [`io::Error`].
pub(crate) trait IoContext<T> {
    fn at(self, operation: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}
impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, operation: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|e| ImageError::Io { operation, path: path.into(), source: e.into() })
    }
}
