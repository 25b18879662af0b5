//! Whether an instance runs, as far as a move has to restore it.
//!
//! Owns what the engine's status and last power state mean for that. Does not start or stop anything.

use serde::{Deserialize, Serialize};
use stead_incus::types::{Instance, Member};

/// The state of an instance that a move restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It is stopped, and stays so.
    Stopped,
    /// It runs, or an evacuation stopped it and it runs again when it has left the evacuated member.
    Running,
    /// Its processes are paused.
    Frozen,
}

/// Where an engine keeps whether an instance ran when its host was shut down or evacuated.
const LAST_POWER: &str = "volatile.last_state.power";

impl Power {
    /// Of an instance on a member.
    pub fn of(instance: &Instance, member: Option<&Member>) -> Self {
        match instance.status.as_str() {
            "Frozen" => Self::Frozen,
            _ if may_run(instance) => Self::Running,
            _ if was_stopped_by_evacuation(instance, member) => Self::Running,
            _ => Self::Stopped,
        }
    }
}

/// Whether an instance has processes: it runs, is frozen, or is on its way to either.
pub fn is_running(instance: &Instance) -> bool {
    !matches!(instance.status.as_str(), "Stopped" | "Error" | "")
}

/// Whether an instance may have processes: a daemon that has just been started says `Error` of one that runs.
pub fn may_run(instance: &Instance) -> bool {
    instance.status != "Stopped"
}

/// Whether the evacuation of its member stopped an instance. A stop by anybody else sets its last power state to STOPPED
/// (cmd/incusd/api_cluster_evacuation.go and lxd/api_cluster.go start only these when the member is restored).
pub fn was_stopped_by_evacuation(instance: &Instance, member: Option<&Member>) -> bool {
    instance.status == "Stopped"
        && instance.config.get(LAST_POWER).is_some_and(|p| p == "RUNNING")
        && member.is_some_and(is_evacuated)
}

/// Whether a member's instances have been moved or stopped on purpose.
pub fn is_evacuated(member: &Member) -> bool {
    matches!(member.status.as_str(), "Evacuated" | "Evacuating" | "Restoring")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_evacuation_stopped_is_meant_to_run() {
        let member = |status: &str| Member { status: status.into(), ..Member::default() };
        let instance = |status: &str, last: &str| Instance {
            status: status.into(),
            config: [(LAST_POWER.to_owned(), last.to_owned())].into(),
            ..Instance::default()
        };
        let (online, evacuated) = (member("Online"), member("Evacuated"));
        for (status, last, on, power) in [
            ("Stopped", "RUNNING", &evacuated, Power::Running),
            ("Stopped", "STOPPED", &evacuated, Power::Stopped),
            ("Stopped", "RUNNING", &online, Power::Stopped),
            ("Frozen", "RUNNING", &online, Power::Frozen),
            ("Running", "RUNNING", &online, Power::Running),
            ("Error", "RUNNING", &online, Power::Running),
        ] {
            assert_eq!(Power::of(&instance(status, last), Some(on)), power, "{status} {last} {}", on.status);
        }
    }
}
