//! Chooses the next test: the longest of those that fit now.

use super::rules::{Rule, Tier};
use std::collections::BTreeSet;

/// The machine's resources.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// CPUs: at most this many tests that compute run at once.
    pub processors: usize,
    /// Memory that the tests' engines and machines may use together, in MiB.
    pub memory_mib: u64,
}

impl Limits {
    /// The limits of this machine: half of the memory free now; builds and mounts need the rest.
    pub fn here() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let free_kib = memory
            .lines()
            .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Self { processors, memory_mib: free_kib.unwrap_or(4 << 20) / 1024 / 2 }
    }

    /// The most tests of a tier at once.
    fn of(self, tier: Tier) -> usize {
        match tier {
            Tier::Unit | Tier::Files => self.processors,
            // They mostly wait for the kernel and programs.
            Tier::Host | Tier::Engine => 2,
            // An emulated machine keeps one or two CPUs busy.
            Tier::Emulated => 1,
        }
    }

    /// The most tests at once: one more than CPUs, because tests of machines often wait.
    fn all(self) -> usize {
        self.processors + 1
    }
}

/// The waiting and the running tests.
#[derive(Debug)]
pub struct Queue {
    rules: Vec<Rule>,
    /// Longest last.
    waiting: Vec<usize>,
    running: BTreeSet<usize>,
    limits: Limits,
}

impl Queue {
    /// A queue of all tests, by their rules.
    pub fn new(rules: Vec<Rule>, limits: Limits) -> Self {
        let mut waiting: Vec<usize> = (0..rules.len()).collect();
        // Emulated tests run one after the other: started late, they would delay the end.
        let key = |n: &usize| (rules[*n].tier == Tier::Emulated, rules[*n].expected_s);
        waiting.sort_by(|a, b| key(a).0.cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1)).then(b.cmp(a)));
        Self { rules, waiting, running: BTreeSet::new(), limits }
    }

    /// Takes the next test that fits now.
    pub fn next(&mut self) -> Option<usize> {
        let at = self.waiting.iter().rposition(|n| self.fits(&self.rules[*n]))?;
        let n = self.waiting.remove(at);
        self.running.insert(n);
        Some(n)
    }

    /// Notes that a test has ended.
    pub fn ended(&mut self, n: usize) {
        self.running.remove(&n);
    }

    /// The running tests.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        self.running.iter().copied()
    }

    fn fits(&self, rule: &Rule) -> bool {
        let running = || self.running.iter().map(|n| &self.rules[*n]);
        if self.running.is_empty() {
            return true;
        }
        let same_tier = running().filter(|r| r.tier == rule.tier).count();
        let memory: u64 = running().map(|r| r.memory_mib).sum();
        self.running.len() < self.limits.all()
            && same_tier < self.limits.of(rule.tier)
            && (rule.memory_mib == 0 || memory + rule.memory_mib <= self.limits.memory_mib)
            && rule.alone.is_none_or(|what| running().all(|r| r.alone != Some(what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::rules;

    const LIMITS: Limits = Limits { processors: 2, memory_mib: 4096 };

    fn rule(tier: Tier, expected_s: f64, memory_mib: u64, alone: Option<&'static str>) -> Rule {
        Rule { tier, expected_s, memory_mib, alone, ..rules::of("") }
    }

    #[test]
    fn the_longest_that_fits_is_next() {
        let mut q = Queue::new(
            vec![
                rule(Tier::Unit, 1.0, 0, None),
                rule(Tier::Emulated, 5.0, 1024, None),
                rule(Tier::Unit, 9.0, 0, None),
                rule(Tier::Emulated, 50.0, 1024, None),
                rule(Tier::Unit, 3.0, 0, None),
            ],
            LIMITS,
        );
        assert_eq!([q.next(), q.next(), q.next(), q.next()], [Some(3), Some(2), Some(4), None]);
        q.ended(2);
        assert_eq!([q.next(), q.next()], [Some(0), None]);
        q.ended(3);
        assert_eq!([q.next(), q.next()], [Some(1), None]);
    }

    #[test]
    fn memory_and_exclusive_resources_are_respected() {
        let mut q = Queue::new(
            vec![
                rule(Tier::Engine, 9.0, 3000, Some("loops")),
                rule(Tier::Host, 8.0, 0, Some("loops")),
                rule(Tier::Engine, 7.0, 2000, None),
            ],
            LIMITS,
        );
        assert_eq!([q.next(), q.next()], [Some(0), None]);
        q.ended(0);
        assert_eq!([q.next(), q.next()], [Some(1), Some(2)]);
    }

    #[test]
    fn a_test_that_needs_more_than_the_machine_has_runs_alone() {
        let mut q = Queue::new(
            vec![rule(Tier::Engine, 9.0, 30_000, None), rule(Tier::Engine, 1.0, 30_000, None)],
            LIMITS,
        );
        assert_eq!([q.next(), q.next()], [Some(0), None]);
        q.ended(0);
        assert_eq!(q.next(), Some(1));
    }
}
