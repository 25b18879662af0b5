//! The same client for programs that are not async: it runs its own runtime on the calling thread.
//!
//! ```no_run
//! use stead_incus::{Dialect, Endpoint, blocking::Client};
//! # fn main() -> Result<(), stead_incus::Error> {
//! let client = Client::new(Dialect::Incus, Endpoint::Unix("/var/lib/incus/unix.socket".into()))?;
//! for member in client.block(async |c| c.members().await)? {
//!     println!("{} {}", member.server_name, member.status);
//! }
//! # Ok(())
//! # }
//! ```

use crate::{Dialect, Endpoint, Error, Request, types::OperationStatus};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A client that blocks. Connections are kept between calls.
#[derive(Debug)]
pub struct Client {
    // Declared before the runtime, so that it is dropped first: its connections need the runtime to close.
    client: crate::Client,
    runtime: Runtime,
}

impl Client {
    /// As [`crate::Client::new`].
    ///
    /// # Errors
    /// The identity is unusable, or the runtime cannot be started.
    pub fn new(dialect: Dialect, endpoint: Endpoint) -> Result<Self, Error> {
        Ok(Self { runtime: runtime()?, client: crate::Client::new(dialect, endpoint)? })
    }
    /// As [`crate::Client::discover`].
    ///
    /// # Errors
    /// As [`crate::Client::discover`] and [`Self::new`].
    pub fn discover(endpoint: Endpoint) -> Result<Self, Error> {
        let runtime = runtime()?;
        let client = runtime.block_on(crate::Client::discover(endpoint))?;
        Ok(Self { runtime, client })
    }
    /// Runs a future of the async client to its end.
    pub fn block<T>(&self, work: impl AsyncFnOnce(&crate::Client) -> T) -> T {
        self.runtime.block_on(work(&self.client))
    }
    /// As [`crate::Client::fetch`].
    ///
    /// # Errors
    /// As [`crate::Client::fetch`].
    pub fn fetch<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        self.block(async |c| c.fetch(request).await)
    }
    /// As [`crate::Client::run`].
    ///
    /// # Errors
    /// As [`crate::Client::run`].
    pub fn run(&self, request: &Request, timeout: Duration) -> Result<Option<OperationStatus>, Error> {
        self.block(async |c| c.run(request, timeout).await)
    }
}

fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread().enable_all().build().map_err(|source| Error::Runtime { source })
}
