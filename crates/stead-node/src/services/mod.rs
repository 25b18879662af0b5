//! Supervised services.
//!
//! ```text
//!            dependencies ready          ready check holds
//!  Waiting ───────────────────> Starting ────────────────> Ready
//!     ^                            │ ends                    │ ends
//!     │                            v                         v
//!     │            pause       ┌─────────── restart policy ───────────┐
//!     └─(again: Starting)──── Backoff                 Done (exit 0) / Failed
//!                          on stop, from anywhere: Stopped
//! ```
//! One task per service. A service starts once each service in its `after` has been ready once, and is stopped once
//! each service that comes after it has stopped. The end of a service never ends the node.

pub mod ready;

use crate::{
    cgroups::{Group, Tree},
    command::{KILL_GRACE, base_command, wait_bounded},
    handle::Handle,
    log::Log,
    reaper::{Exit, Running},
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit, setsid};
use std::{
    collections::HashMap,
    io,
    os::unix::process::CommandExt,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use stead_model::{
    agent::{EventKind, NodePhase, ServiceState, ServiceStatus},
    recipe::{Onboot, Restart, Service},
};
use stead_os::cgroup::Entrance;
use tokio::sync::watch;

/// First pause before a service is restarted.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a service that always fails is started twice a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A run of this length counts as good, and the next pause is the first again.
const GOOD_RUN: Duration = Duration::from_secs(60);
/// Seconds between the stop signal and SIGKILL, unless the service sets another value.
const STOP_TIMEOUT_S: u32 = 20;
/// Time limit of an onboot command in seconds, unless it sets another value.
const ONBOOT_TIMEOUT_S: u32 = 60;

/// The next pause after one of `last`.
pub fn next_pause(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < GOOD_RUN => (last * 2).min(LONGEST_PAUSE),
        _ => FIRST_PAUSE,
    }
}

/// A signal by its name as in kill(1), with or without `SIG`.
pub fn signal_of(name: &str) -> Option<Signal> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let known = [
        ("TERM", Signal::TERM),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("HUP", Signal::HUP),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("PWR", Signal::POWER),
        ("WINCH", Signal::WINCH),
        ("CONT", Signal::CONT),
    ];
    known.iter().find(|(n, _)| *n == name).map(|(_, s)| *s)
}

/// Whether a service with this exit is restarted.
pub fn restarts(policy: Restart, exit: Option<Exit>) -> bool {
    match policy {
        Restart::Always => true,
        Restart::OnFailure => exit.is_none_or(|e| !e.success()),
        Restart::Never => false,
    }
}

/// Makes the process start in its own session and cgroups, with this limit of open files.
fn isolate(command: &mut Command, cgroups: Entrance, nofile: Option<u64>) {
    // SAFETY: between fork and exec only write(2), getrlimit(2), setrlimit(2) and setsid(2) are called, on descriptors
    // opened before; all are async-signal-safe, nothing allocates, and errors are returned as numbers.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            cgroups.enter()?;
            if let Some(limit) = nofile {
                // Raising the hard limit needs CAP_SYS_RESOURCE, which a node in a container may lack: then it gets
                // the highest limit allowed.
                if setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).is_err()
                {
                    let hard = getrlimit(Resource::Nofile).maximum;
                    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
                }
            }
            Ok(())
        });
    }
}

/// A command whose output goes to a log.
fn logged(command: &mut Command, log: &Log) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    tokio::spawn(log.clone().copy_from(reader.into()));
    Ok(())
}

/// Runs onboot commands one after the other. A failure becomes a warning, and the next command runs.
pub async fn run_onboot(steps: &[Onboot], handle: &Handle, tree: &Tree) {
    for step in steps {
        let log = Log::new(
            handle.log_dir().join(format!("onboot-{}.log", file_name(&step.name))),
            handle.started(),
        );
        let timeout = Duration::from_secs(u64::from(step.timeout_s.unwrap_or(ONBOOT_TIMEOUT_S)));
        let mut command = base_command(&step.command, &step.environment);
        let group = tree.group("onboot").unwrap_or_default();
        isolate(&mut command, group.entrance(), None);
        let outcome = match logged(&mut command, &log).and_then(|()| handle.reaper().spawn(&mut command)) {
            Ok(running) => {
                drop(command);
                match wait_bounded(running, timeout).await {
                    Some(exit) if exit.success() => Ok(()),
                    Some(exit) => Err(exit.to_string()),
                    None => Err(format!("took longer than {} s", timeout.as_secs())),
                }
            }
            Err(e) => Err(format!("cannot start: {e}")),
        };
        match outcome {
            Ok(()) => handle.note(EventKind::OnbootDone, format!("onboot {} done", step.name)),
            Err(why) => handle.warn(format!("onboot {} failed: {why}", step.name)),
        }
    }
}

/// Makes a file name from an onboot step's name, which may contain any character.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// Progress of one service, for the others.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// It has been ready once, or exited with success.
    ready: bool,
    /// It is stopped and will not be restarted.
    stopped: bool,
}

/// The supervised services.
#[derive(Debug)]
pub struct Supervisor {
    stop: watch::Sender<Option<Instant>>,
    progress: Vec<watch::Receiver<Progress>>,
}

/// State shared by the tasks.
#[derive(Debug)]
struct Shared {
    handle: Handle,
    tree: Tree,
    states: Mutex<HashMap<String, (ServiceState, u32)>>,
}

impl Supervisor {
    /// Starts services, each once those in its `after` are ready. `services` has passed
    /// [`stead_model::recipe::SystemSpec::check`]: the names in `after` exist and there is no cycle.
    pub fn start(services: Vec<Service>, handle: &Handle, tree: &Tree) -> Self {
        let (stop, _) = watch::channel(None);
        let channels: Vec<_> = services.iter().map(|_| watch::channel(Progress::default())).collect();
        let receiver =
            |name: &str| services.iter().position(|s| s.name == name).map(|i| channels[i].1.clone());
        let shared = Arc::new(Shared {
            handle: handle.clone(),
            tree: tree.clone(),
            states: Mutex::new(
                services.iter().map(|s| (s.name.clone(), (ServiceState::Waiting, 0))).collect(),
            ),
        });
        shared.tell_phase();
        let progress = channels.iter().map(|(_, r)| r.clone()).collect();
        let needs: Vec<Vec<_>> =
            services.iter().map(|s| s.after.iter().filter_map(|a| receiver(a)).collect()).collect();
        let dependents: Vec<Vec<_>> = services
            .iter()
            .map(|s| {
                services
                    .iter()
                    .filter(|o| o.after.contains(&s.name))
                    .filter_map(|o| receiver(&o.name))
                    .collect()
            })
            .collect();
        let parts = services.into_iter().zip(channels).zip(needs).zip(dependents);
        for (((service, (progress, _)), needs), dependents) in parts {
            let path = handle.log_dir().join(format!("{}.log", service.name));
            let task = Task {
                log: Log::new(path, handle.started()),
                status: ServiceStatus {
                    name: service.name.clone(),
                    state: ServiceState::Waiting,
                    since_ms: handle.uptime_ms(),
                    checked: false,
                    pid: None,
                    restarts: 0,
                    last_exit: None,
                },
                service,
                shared: Arc::clone(&shared),
                progress,
                needs,
                dependents,
                stop: stop.subscribe(),
            };
            tokio::spawn(task.run());
        }
        Self { stop, progress }
    }

    /// Stops all, each after those that come after it, and returns when all have stopped. Those still running at
    /// `deadline` are killed.
    pub async fn stop(&mut self, deadline: Instant) {
        self.stop.send_replace(Some(deadline));
        let all = async {
            for progress in &mut self.progress {
                // An error means that the task has ended, and the service with it.
                let _ = progress.wait_for(|p| p.stopped).await;
            }
        };
        let _ = tokio::time::timeout_at((deadline + KILL_GRACE * 2).into(), all).await;
    }
}

impl Shared {
    fn tell(&self, status: &ServiceStatus) {
        self.handle.set_service(status.clone());
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(status.name.clone(), (status.state, status.restarts));
        self.tell_phase();
    }

    fn tell_phase(&self) {
        let phase = {
            let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
            phase_of(states.values().copied())
        };
        if phase == NodePhase::Running && self.handle.first_running() {
            self.handle.note(EventKind::Running, "running");
        }
        self.handle.set_phase(phase);
    }
}

/// The node's phase from its services' states and restarts.
fn phase_of(states: impl Iterator<Item = (ServiceState, u32)>) -> NodePhase {
    let mut phase = NodePhase::Running;
    for (state, restarts) in states {
        match state {
            ServiceState::Ready | ServiceState::Done | ServiceState::Stopped => {}
            ServiceState::Failed | ServiceState::Backoff => return NodePhase::Degraded,
            ServiceState::Starting if restarts > 0 => return NodePhase::Degraded,
            ServiceState::Waiting | ServiceState::Starting => phase = NodePhase::Starting,
        }
    }
    phase
}

struct Task {
    service: Service,
    shared: Arc<Shared>,
    log: Log,
    status: ServiceStatus,
    progress: watch::Sender<Progress>,
    needs: Vec<watch::Receiver<Progress>>,
    dependents: Vec<watch::Receiver<Progress>>,
    stop: watch::Receiver<Option<Instant>>,
}

/// The end of one run of a service.
enum Ended {
    /// By itself; `None` when it could not be started.
    Itself(Option<Exit>, String),
    /// The node is stopping, with this deadline.
    Stopping(Option<Running>, Group, Instant),
}

impl Task {
    async fn run(mut self) {
        self.tell(ServiceState::Waiting, None);
        if let Some(deadline) = self.wait_for_needs().await {
            return self.stopped(None, Group::default(), deadline).await;
        }
        let mut pause = None;
        loop {
            let began = Instant::now();
            let (exit, why) = match self.run_once().await {
                Ended::Stopping(running, group, deadline) => {
                    return self.stopped(running, group, deadline).await;
                }
                Ended::Itself(exit, why) => (exit, why),
            };
            self.status.last_exit = Some(why.clone());
            if !restarts(self.service.restart, exit) {
                let well = exit.is_some_and(Exit::success);
                self.note(EventKind::ServiceEnded, &format!("ended: {why}"));
                self.tell(if well { ServiceState::Done } else { ServiceState::Failed }, None);
                if well {
                    self.progress.send_modify(|p| p.ready = true);
                }
                let deadline = stop_wanted(&mut self.stop).await;
                return self.stopped(None, Group::default(), deadline).await;
            }
            let wait = next_pause(pause, began.elapsed());
            pause = Some(wait);
            let again = wait.as_millis();
            self.log.line(format!("stead-node: {why}; starting again in {again} ms").as_bytes());
            self.note(EventKind::ServiceEnded, &format!("ended: {why}"));
            self.tell(ServiceState::Backoff, None);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                deadline = stop_wanted(&mut self.stop) => {
                    return self.stopped(None, Group::default(), deadline).await;
                }
            }
            self.status.restarts = self.status.restarts.saturating_add(1);
        }
    }

    /// Resolves when all services in `after` are ready, or with the deadline if the node stops first.
    async fn wait_for_needs(&mut self) -> Option<Instant> {
        let needs = &mut self.needs;
        let ready = async {
            for need in needs {
                if need.wait_for(|p| p.ready).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            deadline = stop_wanted(&mut self.stop) => Some(deadline),
            () = ready => None,
        }
    }

    fn spawn(&self) -> io::Result<(Running, Group)> {
        let name = self.service.cgroup.clone().unwrap_or_else(|| format!("services/{}", self.service.name));
        let group = match self.shared.tree.group(&name) {
            Ok(group) => group,
            Err(e) => {
                self.shared.handle.warn(format!("service {}: {}", self.service.name, crate::chain(&e)));
                Group::default()
            }
        };
        let mut command = base_command(&self.service.command, &self.service.environment);
        isolate(&mut command, group.entrance(), self.service.nofile);
        logged(&mut command, &self.log)?;
        let running = self.shared.handle.reaper().spawn(&mut command)?;
        Ok((running, group))
    }

    async fn run_once(&mut self) -> Ended {
        let (mut running, group) = match self.spawn() {
            Ok(started) => started,
            Err(e) => {
                let why = format!("cannot start: {e}");
                self.log.line(format!("stead-node: {}: {why}", self.service.command[0]).as_bytes());
                return Ended::Itself(None, why);
            }
        };
        let pid = Some(running.pid.as_raw_nonzero().get().unsigned_abs());
        self.note(EventKind::ServiceStarted, "started");
        self.tell(ServiceState::Starting, pid);
        if let Some(readiness) = &self.service.ready {
            tokio::select! {
                biased;
                exit = &mut running.exit => return self.ended(exit.ok(), &group),
                deadline = stop_wanted(&mut self.stop) => return Ended::Stopping(Some(running), group, deadline),
                () = ready::wait(readiness, self.shared.handle.reaper()) => {}
            }
        }
        if self.service.ready.is_some() {
            self.status.checked = true;
            self.note(EventKind::ServiceReady, "ready");
        }
        self.tell(ServiceState::Ready, pid);
        self.progress.send_modify(|p| p.ready = true);
        tokio::select! {
            biased;
            exit = &mut running.exit => self.ended(exit.ok(), &group),
            deadline = stop_wanted(&mut self.stop) => Ended::Stopping(Some(running), group, deadline),
        }
    }

    /// The main process has ended: its leftover processes would obstruct the next run.
    fn ended(&self, exit: Option<Exit>, group: &Group) -> Ended {
        if !self.service.stop_main_only {
            group.kill();
        }
        Ended::Itself(exit, exit.map_or_else(|| "lost".to_owned(), |e| e.to_string()))
    }

    /// Stops the process, if one runs, after all services that come after it; then the task ends.
    async fn stopped(mut self, running: Option<Running>, group: Group, deadline: Instant) {
        let dependents = &mut self.dependents;
        let all = async {
            for dependent in dependents {
                let _ = dependent.wait_for(|p| p.stopped).await;
            }
        };
        let _ = tokio::time::timeout_at(deadline.into(), all).await;
        if let Some(mut running) = running {
            let name = self.service.stop_signal.as_deref().unwrap_or("TERM");
            let signal = signal_of(name).unwrap_or(Signal::TERM);
            let timeout =
                Duration::from_secs(u64::from(self.service.stop_timeout_s.unwrap_or(STOP_TIMEOUT_S)));
            let until = (Instant::now() + timeout).min(deadline);
            self.signal(running.pid, &group, signal);
            let exit = match tokio::time::timeout_at(until.into(), &mut running.exit).await {
                Ok(exit) => exit.ok(),
                Err(_) => {
                    self.log.line(b"stead-node: did not stop in time; killed");
                    let _ = kill_process(running.pid, Signal::KILL);
                    tokio::time::timeout(KILL_GRACE, &mut running.exit).await.ok().and_then(Result::ok)
                }
            };
            if !self.service.stop_main_only {
                group.kill();
            }
            self.status.last_exit = exit.map(|e| e.to_string());
            self.note(EventKind::ServiceStopped, "stopped");
        }
        if !matches!(self.status.state, ServiceState::Done | ServiceState::Failed) {
            self.tell(ServiceState::Stopped, None);
        }
        self.progress.send_modify(|p| p.stopped = true);
    }

    fn signal(&self, main: Pid, group: &Group, signal: Signal) {
        let _ = kill_process(main, signal);
        if !self.service.stop_main_only {
            for pid in group.processes().into_iter().filter(|p| *p != main) {
                let _ = kill_process(pid, signal);
            }
        }
    }

    fn note(&self, kind: EventKind, what: &str) {
        self.shared.handle.note(kind, format!("service {} {what}", self.service.name));
    }

    /// Sets the state. Every call is a change, so it also sets `since_ms`.
    fn tell(&mut self, state: ServiceState, pid: Option<u32>) {
        // A readiness check is valid for one run.
        self.status.checked &= state == ServiceState::Ready;
        self.status.state = state;
        self.status.since_ms = self.shared.handle.uptime_ms();
        self.status.pid = pid;
        self.shared.tell(&self.status);
    }
}

/// Resolves with the deadline once the node is asked to stop.
async fn stop_wanted(stop: &mut watch::Receiver<Option<Instant>>) -> Instant {
    loop {
        if let Some(deadline) = *stop.borrow_and_update() {
            return deadline;
        }
        if stop.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests;
