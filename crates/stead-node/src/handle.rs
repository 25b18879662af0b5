//! State shared by the parts of a running node: its status for the agent, and the request to stop.

use crate::{log::Log, reaper::Reaper};
use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use stead_model::agent::{DiskStatus, EventKind, NodePhase, NodeStatus, ServiceStatus, TimelineEvent};
use stead_model::node::NodeSpec;
use tokio::sync::watch;

/// How many of the newest events the timeline keeps: a service that restarts for ever must not fill memory.
const MAX_TIMELINE: usize = 500;
/// How many of the oldest warnings are kept: the first fault usually explains the others.
const MAX_WARNINGS: usize = 500;

/// How the node is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Power off, with this deadline for services.
    Shutdown(Duration),
    /// Reboot, with this deadline for services.
    Reboot(Duration),
}

/// A node's shared state. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spec: NodeSpec,
    started: Instant,
    boot_id: String,
    log_dir: PathBuf,
    log: Log,
    reaper: Reaper,
    stop: watch::Sender<Option<Stop>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: NodePhase,
    timeline: VecDeque<TimelineEvent>,
    services: Vec<ServiceStatus>,
    disks: Vec<DiskStatus>,
    warnings: Vec<String>,
    rescue: Option<String>,
    has_run: bool,
}

impl State {
    fn remember(&mut self, event: TimelineEvent) {
        while self.timeline.len() >= MAX_TIMELINE {
            self.timeline.pop_front();
        }
        self.timeline.push_back(event);
    }
}

impl Handle {
    /// `started`: when the node's init began. `log_dir` has `<service>.log` and `node.log`.
    pub fn new(spec: NodeSpec, started: Instant, boot_id: String, log_dir: PathBuf, reaper: Reaper) -> Self {
        let log = Log::new(log_dir.join("node.log"), started);
        Self(Arc::new(Inner {
            spec,
            started,
            boot_id,
            log_dir,
            log,
            reaper,
            stop: watch::Sender::new(None),
            state: Mutex::new(State {
                phase: NodePhase::Booting,
                timeline: VecDeque::new(),
                services: Vec::new(),
                disks: Vec::new(),
                warnings: Vec::new(),
                rescue: None,
                has_run: false,
            }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The spec it booted with (the name `unnamed` and no agent when it booted without).
    pub fn spec(&self) -> &NodeSpec {
        &self.0.spec
    }
    /// Starts processes; see [`Reaper`].
    pub fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }
    /// Where logs are: `<service>.log`, rotated to `<service>.log.1`; the node's own is `node.log`.
    pub fn log_dir(&self) -> &std::path::Path {
        &self.0.log_dir
    }
    /// When the node's init began.
    pub fn started(&self) -> Instant {
        self.0.started
    }
    /// Returns `true` on its first call, when all services are ready for the first time.
    pub fn first_running(&self) -> bool {
        !std::mem::replace(&mut self.state().has_run, true)
    }
    /// Time since the node's init began, in milliseconds.
    pub fn uptime_ms(&self) -> u64 {
        self.0.started.elapsed().as_millis() as u64
    }
    /// Notes an event in the timeline, on the console, and in `node.log`.
    pub fn note(&self, kind: EventKind, event: impl Into<String>) {
        let event = TimelineEvent { at_ms: self.uptime_ms(), kind, event: event.into() };
        say(format_args!("[{:>6} ms] {}", event.at_ms, event.event));
        self.0.log.line(event.event.as_bytes());
        self.state().remember(event);
    }
    /// Adds an event of an earlier stage, which is already on the console.
    pub fn note_before(&self, event: TimelineEvent) {
        self.0.log.line(format!("[{} ms] {}", event.at_ms, event.event).as_bytes());
        self.state().remember(event);
    }
    /// Adds a warning of an earlier stage, which is already on the console.
    pub fn warn_before(&self, warning: String) {
        self.0.log.line(format!("warning: {warning}").as_bytes());
        self.state().warnings.push(warning);
    }
    /// Adds a warning for the operator, also on the console and in `node.log`.
    pub fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        let mut state = self.state();
        if state.warnings.contains(&warning) || state.warnings.len() >= MAX_WARNINGS {
            return;
        }
        say(format_args!("warning: {warning}"));
        self.0.log.line(format!("warning: {warning}").as_bytes());
        state.warnings.push(warning);
    }
    /// Sets the phase. A node that is stopping or in rescue stays so.
    pub fn set_phase(&self, phase: NodePhase) {
        let mut state = self.state();
        if state.phase != NodePhase::Stopping
            && (state.phase != NodePhase::Rescue || phase == NodePhase::Stopping)
        {
            state.phase = phase;
        }
    }
    /// The boot could not be completed.
    pub fn enter_rescue(&self, why: impl Into<String>) {
        let why = why.into();
        self.note(EventKind::Rescue, format!("rescue: {why}"));
        let mut state = self.state();
        state.phase = NodePhase::Rescue;
        state.rescue.get_or_insert(why);
    }
    /// Replaces or adds the status of one service.
    pub fn set_service(&self, service: ServiceStatus) {
        let mut state = self.state();
        match state.services.iter_mut().find(|s| s.name == service.name) {
            Some(s) => *s = service,
            None => state.services.push(service),
        }
    }
    /// Adds a disk rule's outcome.
    pub fn add_disk(&self, disk: DiskStatus) {
        self.state().disks.push(disk);
    }
    /// Asks the node to stop. The first request counts.
    pub fn request_stop(&self, stop: Stop) {
        self.0.stop.send_if_modified(|s| s.is_none() && s.replace(stop).is_none());
    }
    /// Resolves once the node was asked to stop.
    pub async fn stop_requested(&self) -> Stop {
        let mut receiver = self.0.stop.subscribe();
        loop {
            if let Some(stop) = *receiver.borrow_and_update() {
                return stop;
            }
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
    /// Everything for `GET /v1/status`; the caller fills in `engine` and `addresses`.
    pub fn status(&self) -> NodeStatus {
        let state = self.state();
        NodeStatus {
            name: self.0.spec.name.clone(),
            cluster: self.0.spec.cluster.to_string(),
            phase: state.phase,
            boot_id: self.0.boot_id.clone(),
            uptime_ms: self.uptime_ms(),
            timeline: state.timeline.iter().cloned().collect(),
            services: state.services.clone(),
            disks: state.disks.clone(),
            warnings: state.warnings.clone(),
            rescue: state.rescue.clone(),
            engine: None,
            addresses: Vec::new(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            agent_rss_bytes: resident_bytes().unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Writes a line to the console. Unlike `eprintln!` it does not panic when the console is gone.
pub fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("stead-node: {line}\n").as_bytes());
}

/// Resident memory of this process, from /proc/self/statm (second field, pages; proc(5)).
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_timeline_keeps_the_newest_events() {
        let spec = serde_json::from_str(r#"{"schema":1,"cluster":"c","name":"n1"}"#).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let reaper = Reaper::start(false).unwrap();
        let handle = Handle::new(spec, Instant::now(), "b".into(), dir.path().to_owned(), reaper);
        let event = |kind, text: String| TimelineEvent { at_ms: 0, kind, event: text };
        handle.note_before(event(EventKind::Boot, "init began".into()));
        for n in 0..MAX_TIMELINE + 2 {
            handle.note_before(event(EventKind::ServiceStarted, format!("start {n}")));
        }
        handle.note(EventKind::ServiceStarted, format!("start {}", MAX_TIMELINE + 2));
        let timeline = handle.status().timeline;
        assert_eq!(timeline.len(), MAX_TIMELINE);
        assert_eq!(timeline[0].event, "start 3");
        assert_eq!(timeline[MAX_TIMELINE - 1].event, format!("start {}", MAX_TIMELINE + 2));
        assert!(timeline.iter().all(|e| e.kind == EventKind::ServiceStarted));
    }
}
