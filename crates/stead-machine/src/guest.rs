//! A machine that has been started, as its supervisor sees it.

use futures_util::future::LocalBoxFuture;

/// How a boot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The guest powered off.
    PowerOff,
    /// The guest wants to be booted again.
    Reboot,
    /// Anything else, and why.
    Crashed(String),
}

/// One boot of a machine: the process that runs it.
pub(crate) trait Guest {
    /// Process id, as the host knows it.
    fn pid(&self) -> i32;
    /// Waits for its end; may be dropped and called again until it has answered.
    fn exit(&mut self) -> LocalBoxFuture<'_, Exit>;
    /// Asks it to shut down cleanly. Called once; whoever may miss the request is asked again by the implementation.
    fn ask_to_end(&self);
    /// Ends it at once.
    fn kill(&self);
}
