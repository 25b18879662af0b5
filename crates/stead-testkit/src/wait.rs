//! Waiting for a condition. Tests assert that it comes true, never how long it takes.

use std::time::{Duration, Instant};

/// A minute: many times longer than anything takes on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);
/// For emulated virtual machines, which compete for processors with everything else.
pub const EMULATED: Duration = Duration::from_secs(240);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks until there is an answer, and returns it.
///
/// # Panics
/// No answer within `patience`; the message contains `what`.
#[track_caller]
pub fn answer<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits until it holds, for `patience` at most.
///
/// # Panics
/// It did not hold in time; the message contains `what`.
#[track_caller]
pub fn within(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    answer(patience, what, || holds().then_some(()));
}

/// Waits until it holds, for a minute.
///
/// # Panics
/// It did not hold in time; the message contains `what`.
#[track_caller]
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(SOON, what, holds);
}

/// As [`eventually`], for asynchronous tests.
///
/// # Panics
/// It did not hold in time; the message contains `what`.
pub async fn eventually_async(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named() {
        let mut looks = 0;
        eventually("the third look", || {
            looks += 1;
            looks == 3
        });
        assert_eq!(answer(SOON, "an answer", || Some(7)), 7);
        let never = || within(Duration::from_millis(20), "the moon is blue", || false);
        let panic = std::panic::catch_unwind(never).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "not within 20ms: the moon is blue");
    }
}
