//! The lines that OpenNebula reads.

use crate::{
    engine::{Driver, kept_document},
    ids::{InstanceName, VmId},
    instance::{DOCUMENT_KEY, Shown},
};
use base64::Engine as _;
use std::{collections::BTreeSet, fmt::Write as _};
use stead_incus::types::{Config, Instance};

/// OpenNebula's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Stopped.
    Poweroff,
    /// The engine reports an error.
    Failure,
    /// Between states.
    Unknown,
}

impl State {
    fn of(status: &str) -> Self {
        match status {
            "Running" => Self::Running,
            "Frozen" => Self::Paused,
            "Stopped" => Self::Poweroff,
            "Error" => Self::Failure,
            _ => Self::Unknown,
        }
    }
    /// In status probes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Poweroff => "POWEROFF",
            Self::Failure => "FAILURE",
            Self::Unknown => "UNKNOWN",
        }
    }
    /// In `poll`.
    pub fn letter(self) -> char {
        match self {
            Self::Running => 'a',
            Self::Paused => 'p',
            Self::Poweroff => 'd',
            Self::Failure => 'e',
            Self::Unknown => '-',
        }
    }
}

/// An instance as monitoring sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its VM; `None`: OpenNebula did not create it.
    pub vm: Option<VmId>,
    /// Its state.
    pub state: State,
    /// Whether it is reported.
    pub shown: Shown,
    /// Memory in use.
    pub memory_kib: u64,
    /// Bytes received, of all interfaces but loopback.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Percent of one core.
    pub cpu_percent: Option<f64>,
    /// Its architecture.
    pub architecture: String,
    /// Its settings, with those of its profiles.
    pub config: Config,
}

impl Seen {
    /// From the engine's answer.
    pub fn of(instance: &Instance) -> Self {
        let name: Option<InstanceName> = instance.name.parse().ok();
        // Only an exact name or the kept document makes it ours: `one-7-copy` belongs to others.
        let by_document = || {
            instance.config.get(DOCUMENT_KEY).filter(|d| !d.is_empty())?;
            Some(kept_document(instance, name.as_ref()?).ok()??.0.id)
        };
        let vm = name.as_ref().and_then(InstanceName::vm).or_else(by_document);
        let state = instance.state.as_ref();
        let sum = |pick: fn(&stead_incus::types::Traffic) -> i64| {
            let interfaces = state.iter().flat_map(|s| &s.network).filter(|(n, _)| n.as_str() != "lo");
            interfaces.map(|(_, n)| u64::try_from(pick(&n.counters)).unwrap_or(0)).sum()
        };
        Self {
            vm,
            state: State::of(&instance.status),
            shown: Shown::of(&instance.config),
            memory_kib: state.map_or(0, |s| u64::try_from(s.memory.usage).unwrap_or(0) / 1024),
            received: sum(|t| t.bytes_received),
            sent: sum(|t| t.bytes_sent),
            cpu_percent: None,
            architecture: instance.architecture.clone(),
            config: instance.expanded_config.clone(),
            name: instance.name.clone(),
        }
    }
    /// Whether its processes are there.
    pub fn runs(&self) -> bool {
        matches!(self.state, State::Running | State::Paused)
    }
    fn id(&self) -> String {
        self.vm.map_or_else(|| "-1".to_owned(), |vm| vm.to_string())
    }
    fn cpu(&self) -> String {
        format!("{:.2}", self.cpu_percent.unwrap_or(0.0))
    }
}

/// Text for use between quotes: quotes and characters that could end the line are removed.
pub(super) fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect()
}

fn pack(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// The line of `poll <id>`.
pub fn poll_line(seen: &Seen) -> String {
    let mut line = format!("STATE={}", seen.state.letter());
    if seen.state == State::Running {
        let _ = write!(
            line,
            " MEMORY={} NETRX={} NETTX={} CPU={}",
            seen.memory_kib,
            seen.received,
            seen.sent,
            seen.cpu()
        );
    }
    line
}

/// `poll -t`, and `poll` without templates of wild instances.
pub(super) fn poll_all(seen: &[Seen], driver: Driver, templates: bool) -> String {
    let mut out = String::from("VM_POLL=YES");
    for s in seen.iter().filter(|s| s.shown == Shown::Yes) {
        let _ = write!(out, "\nVM=[ ID={}, DEPLOY_ID={}, ", s.id(), s.name);
        if s.vm.is_none() && templates {
            let template = pack(&import_template(s, driver));
            let _ = write!(out, "VM_NAME={}, IMPORT_TEMPLATE=\"{template}\", ", s.name);
        }
        let _ = write!(out, "POLL=\"{}\" ]", poll_line(s));
    }
    out
}

/// The status probe: all states. That an instance is missing is only to be concluded while no script is `at_work` on one
/// that does not run, for what it works on is missing too. OpenNebula misses nothing that it has saved.
pub fn status(seen: &[Seen], at_work: &BTreeSet<String>) -> String {
    let mut out = String::new();
    let runs = |name: &String| seen.iter().any(|s| s.name == *name && s.runs());
    if !seen.iter().any(|s| s.shown == Shown::Busy) && at_work.iter().all(runs) {
        out.push_str("SYNC_STATE=yes\nMISSING_STATE=POWEROFF\n");
    }
    for s in seen.iter().filter(|s| s.shown == Shown::Yes) {
        let (id, name, state) = (s.id(), &s.name, s.state.word());
        let _ = writeln!(out, "VM = [ ID=\"{id}\", DEPLOY_ID=\"{name}\", STATE=\"{state}\" ]");
    }
    out
}

/// The monitor probe: usage of running instances.
pub(super) fn monitor_lines(seen: &[Seen]) -> String {
    let mut out = String::new();
    for s in seen.iter().filter(|s| s.state == State::Running && s.shown == Shown::Yes) {
        let monitor = format!(
            "MEMORY=\"{}\"\nNETRX=\"{}\"\nNETTX=\"{}\"\nCPU=\"{}\"\n",
            s.memory_kib,
            s.received,
            s.sent,
            s.cpu()
        );
        let _ = writeln!(out, "VM = [ ID={}, DEPLOY_ID={}, MONITOR=\"{}\" ]", s.id(), s.name, pack(&monitor));
    }
    out
}

/// Instances that OpenNebula did not create, with templates to import them.
pub(super) fn wild_lines(seen: &[Seen], driver: Driver) -> String {
    let mut out = String::new();
    for s in seen.iter().filter(|s| s.vm.is_none()) {
        let template = pack(&import_template(s, driver));
        let _ = writeln!(
            out,
            "VM = [ ID=-1, DEPLOY_ID={0}, VM_NAME={0}, IMPORT_TEMPLATE=\"{template}\" ]",
            s.name
        );
    }
    out
}

/// A template with which OpenNebula imports an instance. Without a limit OpenNebula still wants a number: those are
/// what its own driver wrote.
pub fn import_template(seen: &Seen, driver: Driver) -> String {
    let setting = |key: &str| seen.config.get(key).map(String::as_str).filter(|v| !v.is_empty());
    let cpu = setting("limits.cpu.allowance").and_then(allowance).unwrap_or(0.5);
    let vcpu = setting("limits.cpu").and_then(count_cpus).unwrap_or(1);
    let memory_mib = setting("limits.memory").and_then(memory_mib).unwrap_or(512);
    format!(
        "NAME=\"{name}\"\nCPU={cpu}\nVCPU={vcpu}\nMEMORY={memory_mib}\nHYPERVISOR=\"{hypervisor}\"\nIMPORT_VM_ID=\"{name}\"\nIMPORT_STATE=\"{state}\"\nDEPLOY_ID=\"{name}\"\nOS=[ARCH=\"{arch}\"]\n",
        name = quoted(&seen.name),
        hypervisor = driver.name(),
        state = seen.state.word(),
        arch = quoted(&seen.architecture),
    )
}

/// `50%`, or `25ms/100ms`.
fn allowance(text: &str) -> Option<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().ok()? / 100.0,
        None => {
            let (part, whole) = text.split_once('/')?;
            let ms = |t: &str| t.trim().strip_suffix("ms")?.parse::<f64>().ok();
            ms(part)? / ms(whole)?
        }
    };
    (share > 0.0 && share.is_finite()).then_some((share * 100.0).round() / 100.0)
}

/// Number of CPUs in a limit: `4` is a count, `0-3` and `0,2` are lists.
fn count_cpus(text: &str) -> Option<u32> {
    if let Ok(count) = text.parse::<u32>() {
        return (count > 0).then_some(count);
    }
    let mut count = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        count += last.checked_sub(first)?.checked_add(1)?;
    }
    Some(count)
}

/// Sizes as the engines read them, in units of 2^20 bytes: `2GiB` is 2048, `512MB` is 488.
fn memory_mib(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        // A share of the host's memory: how much that is depends on the host.
        _ => return None,
    };
    let mib = number.checked_mul(unit)? >> 20;
    (mib > 0).then_some(mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instances() -> Vec<Seen> {
        let text = include_str!("../../tests/instances.json");
        let instances: Vec<Instance> = serde_json::from_str(text).unwrap();
        let mut seen: Vec<Seen> = instances.iter().map(Seen::of).collect();
        seen[0].cpu_percent = Some(12.345);
        seen
    }

    #[test]
    fn what_is_told() {
        let seen = instances();
        insta::assert_snapshot!(status(&seen[..3], &BTreeSet::new()), @r#"
        SYNC_STATE=yes
        MISSING_STATE=POWEROFF
        VM = [ ID="7", DEPLOY_ID="one-7", STATE="RUNNING" ]
        VM = [ ID="8", DEPLOY_ID="one-8", STATE="POWEROFF" ]
        VM = [ ID="-1", DEPLOY_ID="one-8-copy", STATE="PAUSED" ]
        "#);
        insta::assert_snapshot!(poll_all(&seen[..2], Driver::Lxd, true), @r#"
        VM_POLL=YES
        VM=[ ID=7, DEPLOY_ID=one-7, POLL="STATE=a MEMORY=2048 NETRX=300 NETTX=30 CPU=12.35" ]
        VM=[ ID=8, DEPLOY_ID=one-8, POLL="STATE=d" ]
        "#);
        let monitor = monitor_lines(&seen);
        let packed = monitor.split('"').nth(1).unwrap();
        let unpacked = base64::engine::general_purpose::STANDARD.decode(packed).unwrap();
        insta::assert_snapshot!(String::from_utf8(unpacked).unwrap(), @r#"
        MEMORY="2048"
        NETRX="300"
        NETTX="30"
        CPU="12.35"
        "#);
        insta::assert_snapshot!(import_template(&seen[2], Driver::Lxd), @r#"
        NAME="one-8-copy"
        CPU=1.5
        VCPU=4
        MEMORY=2048
        HYPERVISOR="lxd"
        IMPORT_VM_ID="one-8-copy"
        IMPORT_STATE="PAUSED"
        DEPLOY_ID="one-8-copy"
        OS=[ARCH="x86_64"]
        "#);
    }

    #[test]
    fn hidden_ones_are_not_told_and_nothing_is_missing_then() {
        let seen = instances();
        assert_eq!(seen[3].shown, Shown::Busy);
        let nobody = BTreeSet::new();
        let lines = status(&seen, &nobody);
        assert!(!lines.contains("SYNC_STATE") && !lines.contains("one-9\""), "{lines}");
        // One that was saved is not told either, but may stay so for months.
        let mut seen = seen;
        seen[3].shown = Shown::Saved;
        let lines = status(&seen, &nobody);
        assert!(lines.contains("SYNC_STATE") && !lines.contains("one-9\""), "{lines}");
        // A script that works on one that runs hides nothing; the instance of one that deploys may not be there yet.
        assert_eq!(status(&seen, &["one-7".to_owned()].into()), lines);
        for elsewhere in ["one-8", "one-99"] {
            assert!(!status(&seen, &[elsewhere.to_owned()].into()).contains("SYNC_STATE"), "{elsewhere}");
        }
    }

    #[test]
    fn whose_an_instance_is() {
        let seen = instances();
        let vms: Vec<Option<u32>> = seen.iter().map(|s| s.vm.map(|v| v.0)).collect();
        // one-8-copy is nobody's though it begins so; `web` was imported as VM 42 and carries its document.
        assert_eq!(vms, [Some(7), Some(8), None, Some(9), Some(42)]);
    }

    #[test]
    fn sizes() {
        assert_eq!(memory_mib("2GiB"), Some(2048));
        assert_eq!(memory_mib("512MB"), Some(488));
        assert_eq!(memory_mib("1073741824"), Some(1024));
        assert_eq!(memory_mib("50%"), None);
        assert_eq!(allowance("25ms/100ms"), Some(0.25));
        assert_eq!(allowance("150%"), Some(1.5));
        assert_eq!(count_cpus("0-1,5"), Some(3));
        assert_eq!(count_cpus("3-1"), None);
    }
}
