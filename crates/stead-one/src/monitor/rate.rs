//! CPU usage as a rate between two readings.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};
use stead_incus::types::Instance;

/// Oldest usable reading: an older one would average over too long a time.
const MAX_AGE: Duration = Duration::from_secs(900);
/// Shortest interval: closer readings are only noise.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// CPU time of every running instance at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Readings {
    /// Nanoseconds since the host was booted.
    at_ns: u64,
    /// Nanoseconds by instance.
    used_ns: BTreeMap<String, u64>,
}

impl Readings {
    /// The readings of instances that were just listed.
    pub fn of(instances: &[Instance]) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let used = instances.iter().filter_map(|i| {
            let used = i.state.as_ref()?.cpu.usage_ns;
            (i.status == "Running").then_some(())?;
            Some((i.name.clone(), u64::try_from(used).ok()?))
        });
        Self { at_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64, used_ns: used.collect() }
    }
    /// Loads the last readings; `None` if the file is unusable.
    pub fn load(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }
    /// Saves them for the next call.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        // Two probes may run at once.
        let beside = file.with_extension(format!("{}", std::process::id()));
        fs::write(&beside, serde_json::to_vec(self)?)?;
        fs::rename(beside, file)
    }
    /// Whether these give a meaningful rate for every instance of `now`.
    pub fn serves(&self, now: &Self) -> bool {
        let age = Duration::from_nanos(now.at_ns.saturating_sub(self.at_ns));
        (MIN_INTERVAL..=MAX_AGE).contains(&age) && now.used_ns.keys().all(|n| self.used_ns.contains_key(n))
    }
}

/// Percent of one core that an instance used between two readings; after a restart, only the usage since then counts.
pub(super) fn percent(before: &Readings, now: &Readings, name: &str) -> Option<f64> {
    let used = *now.used_ns.get(name)?;
    let earlier = before.used_ns.get(name).copied().filter(|e| *e <= used).unwrap_or(0);
    let time = now.at_ns.checked_sub(before.at_ns).filter(|t| *t > 0)?;
    Some((used - earlier) as f64 * 100.0 / time as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(at_s: u64, used: &[(&str, u64)]) -> Readings {
        Readings {
            at_ns: at_s * 1_000_000_000,
            used_ns: used.iter().map(|(n, s)| ((*n).to_owned(), s * 1_000_000_000)).collect(),
        }
    }

    #[test]
    fn rates() {
        let (before, now) = (readings(10, &[("a", 5), ("b", 50)]), readings(20, &[("a", 25), ("b", 1)]));
        assert_eq!(percent(&before, &now, "a"), Some(200.0));
        assert_eq!(percent(&before, &now, "b"), Some(10.0));
        assert_eq!(percent(&before, &now, "c"), None);
        assert!(before.serves(&now));
        assert!(!before.serves(&readings(20, &[("c", 0)])));
        assert!(!before.serves(&readings(10, &[])));
        assert!(!before.serves(&readings(5000, &[])));
    }
}
