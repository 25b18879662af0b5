//! Runs blocking work: mounts (which may replay a journal), looks at devices, files synced to a disk. The node's only
//! async thread answers the agent API meanwhile.
//!
//! Each piece of work gets its own thread. The runtime's pool is not used: it cannot be shut down while a mount hangs
//! on a dead disk, and panics when no thread can be created.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tokio::sync::oneshot;

/// Runs `work` on its own thread and returns its result. A panic is passed to the caller. If no thread can be created,
/// the work runs here: late answers are better than none. Work whose caller has gone is still finished.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (give, made) = oneshot::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    let thread = thread::Builder::new().name("stead-work".into()).spawn(move || {
        if let Some(work) = take(&theirs) {
            let _ = give.send(catch_unwind(AssertUnwindSafe(work)));
        }
    });
    if thread.is_err()
        && let Some(work) = take(&work)
    {
        return work();
    }
    match made.await {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        // Unreachable: the thread always sends a result before it ends.
        Err(_) => std::future::pending().await,
    }
}

fn take<W>(work: &Mutex<Option<W>>) -> Option<W> {
    work.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn others_go_on_while_it_blocks() {
        let (release, held) = mpsc::channel::<u32>();
        let work = blocking(move || held.recv().unwrap());
        // On a runtime with one thread, this is only reached while the work blocks elsewhere.
        let others = async { release.send(7).unwrap() };
        assert_eq!(tokio::join!(work, others).0, 7);
    }

    #[tokio::test]
    async fn its_panic_is_the_callers() {
        let task = tokio::spawn(blocking(|| -> u32 { panic!("on purpose") }));
        assert!(task.await.unwrap_err().is_panic());
    }
}
