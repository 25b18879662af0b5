//! Waits until a node is healthy, and makes the error when it never will be.

use crate::{
    ClusterError, Events, files,
    health::{Outlook, outlook, uptime},
};
use std::time::{Duration, Instant};
use stead_agent::client::Client;
use stead_machine::{MachinePhase, MachineSpec, backend, supervise};
use stead_model::agent::NodeStatus;

/// Pause between two looks at a starting node: small compared with the second that a start takes.
const POLL: Duration = Duration::from_millis(15);
/// Pause while the agent does not listen yet.
const POLL_UNREACHABLE: Duration = Duration::from_millis(10);
/// What an engine refuses for so long it refuses for good: its node tries again every second, and the cause may just have been
/// removed.
const REFUSED_FOR: Duration = Duration::from_secs(4);
/// Lines of console and service logs shown for a node that failed.
const TAIL_LINES: usize = 15;

/// A node that is being waited for.
pub(crate) struct Watch<'a> {
    pub(crate) machine: &'a MachineSpec,
    pub(crate) agent: &'a Client,
    /// Where the agent's first answer is reported; discarded if it was reported before.
    pub(crate) events: &'a Events,
    deadline: Instant,
}

impl<'a> Watch<'a> {
    /// Waits as long, from now, as a machine of its backend may take.
    pub(crate) fn new(machine: &'a MachineSpec, agent: &'a Client, events: &'a Events) -> Self {
        let deadline = Instant::now() + backend::patience(machine).running;
        Self { machine, agent, events, deadline }
    }

    /// Polls its agent until `well` holds; `what` names the condition.
    ///
    /// # Errors
    /// [`ClusterError::Node`]: its machine ended, it is in rescue, its engine or a service failed for good, or the
    /// time limit passed;
    /// [`ClusterError::Agent`]: its agent speaks another version of the protocol.
    pub(crate) async fn until(
        &self,
        what: &str,
        well: impl Fn(&NodeStatus) -> bool,
    ) -> Result<NodeStatus, ClusterError> {
        let mut last = None;
        let mut agent_seen = false;
        let mut refused: Option<Instant> = None;
        loop {
            let pause = match self.agent.status().await {
                Ok(s) => {
                    if !agent_seen {
                        agent_seen = true;
                        self.events.node(&self.machine.name, "agent", uptime(&s));
                    }
                    if well(&s) {
                        return Ok(s);
                    }
                    match outlook(&s) {
                        Outlook::Rescue(why) => return self.fail(format!("is in rescue: {why}"), None, &[]),
                        Outlook::Refused(why)
                            if refused.get_or_insert_with(Instant::now).elapsed() > REFUSED_FOR =>
                        {
                            return self.fail(format!("its engine cannot be set up: {why}"), None, &[]);
                        }
                        Outlook::Refused(why) => last = Some(why),
                        Outlook::Failed { service, why } => {
                            let log = agent_log(self.agent, &service).await;
                            let why = format!("service {service} failed for good: {why}");
                            return self.fail(why, None, &[(format!("{service}.log"), log)]);
                        }
                        Outlook::Waits(why) => last = Some(why),
                    }
                    POLL
                }
                Err(e) if e.is_version() => {
                    let node = self.machine.name.clone();
                    return Err(ClusterError::Agent { action: "read status", node, source: Box::new(e) });
                }
                Err(e) => {
                    if agent_seen {
                        last = Some(crate::error::chain(&e));
                    }
                    POLL_UNREACHABLE
                }
            };
            let gone = match supervise::observe(&self.machine.dir) {
                None => Some("its machine ended".to_owned()),
                Some(s) => s.error.filter(|_| s.phase == MachinePhase::Failed),
            };
            if let Some(why) = gone {
                return self.fail(format!("{why} while waiting for {what}"), last.as_ref(), &[]);
            }
            if Instant::now() > self.deadline {
                let last = last.unwrap_or_else(|| "its agent never answered".to_owned());
                return self.fail(format!("timed out waiting for {what}"), Some(&last), &[]);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn fail<T>(
        &self,
        why: String,
        last: Option<&String>,
        logs: &[(String, String)],
    ) -> Result<T, ClusterError> {
        Err(failed(self.machine, why, last, logs))
    }
}

/// The end of a service's log, or an empty text.
async fn agent_log(agent: &Client, service: &str) -> String {
    let mut text = Vec::new();
    if let Ok(mut chunks) = agent.logs(Some(service), Some(TAIL_LINES as u64), false).await {
        while let Ok(Some(chunk)) = chunks.next_chunk().await {
            text.extend_from_slice(&chunk);
        }
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// The error of a node that did not reach its desired state, with the ends of its logs.
pub(crate) fn failed(
    machine: &MachineSpec,
    why: String,
    last: Option<&String>,
    logs: &[(String, String)],
) -> ClusterError {
    let mut tail = String::new();
    let files = ["supervisor.log", "console.log"]
        .map(|f| (f.to_owned(), files::tail(&machine.dir.join(f), TAIL_LINES)));
    for (file, text) in files.iter().chain(logs) {
        if !text.is_empty() {
            tail.push_str(&format!("--- end of {file}\n{text}\n"));
        }
    }
    let why = match last {
        Some(l) if !l.is_empty() => format!("{why}; last: {l}"),
        _ => why,
    };
    ClusterError::Node { node: machine.name.clone(), why, tail }
}
