//! Rules of supervision that need no process; the others are tested in `tests/` of this crate.

use super::*;

#[test]
fn pauses_double_up_to_a_bound_and_begin_again_after_a_good_run() {
    let short = Duration::from_millis(1);
    let mut pause = next_pause(None, short);
    assert_eq!(pause, FIRST_PAUSE);
    for expected_ms in [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
        pause = next_pause(Some(pause), short);
        assert_eq!(pause.as_millis(), expected_ms);
    }
    assert_eq!(next_pause(Some(pause), GOOD_RUN), FIRST_PAUSE);
}

#[test]
fn policies() {
    let (well, badly) = (Some(Exit::Code(0)), Some(Exit::Signal(11)));
    for (policy, after_well, after_bad, unstarted) in [
        (Restart::Always, true, true, true),
        (Restart::OnFailure, false, true, true),
        (Restart::Never, false, false, false),
    ] {
        assert_eq!(
            (restarts(policy, well), restarts(policy, badly), restarts(policy, None)),
            (after_well, after_bad, unstarted),
            "{policy:?}"
        );
    }
}

#[test]
fn phases() {
    use ServiceState::{Backoff, Done, Ready, Starting, Waiting};
    let of = |states: &[(ServiceState, u32)]| phase_of(states.iter().copied());
    assert_eq!(of(&[]), NodePhase::Running);
    assert_eq!(of(&[(Ready, 0), (Done, 0)]), NodePhase::Running);
    assert_eq!(of(&[(Ready, 0), (Waiting, 0)]), NodePhase::Starting);
    assert_eq!(of(&[(Waiting, 0), (Backoff, 0)]), NodePhase::Degraded);
    assert_eq!(of(&[(Starting, 1)]), NodePhase::Degraded, "it has ended once");
    assert_eq!(of(&[(Ready, 3)]), NodePhase::Running, "it has recovered");
}

#[test]
fn signals_by_name() {
    assert_eq!(signal_of("PWR"), Some(Signal::POWER));
    assert_eq!(signal_of("SIGTERM"), Some(Signal::TERM));
    assert_eq!(signal_of("term"), None);
}

#[test]
fn names_of_steps_become_safe_file_names() {
    assert_eq!(file_name("../a b"), ".._a_b");
}
