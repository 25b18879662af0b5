//! Waiting until a node is well, and what is said when it will not be.

use crate::{ClusterError, Layout, bring::Work, desired::DesiredNode, files, status::word};
use std::time::{Duration, Instant};
use stead_agent::client::Client;
use stead_machine::{MachinePhase, MachineSpec, supervise};
use stead_model::agent::{NodeStatus, ServiceState};

/// Pause between two looks at a node that is starting: small against the second that a start takes.
const POLL: Duration = Duration::from_millis(15);
/// Pause when the agent does not even listen yet.
const POLL_UNREACHABLE: Duration = Duration::from_millis(10);
/// Lines of console and service logs shown for a node that failed.
const TAIL_LINES: usize = 15;

/// A service without a readiness check counts as up once it has lived this long: what ends at once was never up.
const SETTLED_MS: u64 = 250;

/// Whether no service of the node has only just been started.
pub(crate) fn settled(s: &NodeStatus) -> bool {
    let last = |event: String| s.timeline.iter().rev().find(|t| t.event == event).map_or(0, |t| t.at_ms);
    s.services.iter().filter(|x| x.state == ServiceState::Ready).all(|x| {
        let started = last(format!("service {} started", x.name));
        // One with a check has passed it.
        started < last(format!("service {} ready", x.name)) || started + SETTLED_MS <= s.uptime_ms
    })
}

/// Polls a node's agent until `well`, or says why it will not be.
pub(crate) async fn wait_for(
    work: &Work,
    desired: &DesiredNode,
    agent: &Client,
    deadline: Instant,
    what: &str,
    well: impl Fn(&NodeStatus) -> bool,
) -> Result<NodeStatus, ClusterError> {
    let machine = &desired.machine;
    let fail = |why: String, last: Option<&String>, logs: &[(String, String)]| {
        Err(failed(&work.layout, machine, why, last, logs))
    };
    let mut last = None;
    let mut agent_seen = false;
    loop {
        let pause = match agent.status().await {
            Ok(s) => {
                if !agent_seen {
                    agent_seen = true;
                    work.events.node(&machine.name, "agent", took(&s));
                }
                if well(&s) {
                    return Ok(s);
                }
                match outlook(&s) {
                    Outlook::Rescue(why) => return fail(format!("is in rescue: {why}"), None, &[]),
                    Outlook::Failed { service, why } => {
                        let log = agent_log(agent, &service).await;
                        let why = format!("service {service} failed for good: {why}");
                        return fail(why, None, &[(format!("{service}.log"), log)]);
                    }
                    Outlook::Waits(why) => last = Some(why),
                }
                POLL
            }
            Err(e) => {
                if agent_seen {
                    last = Some(crate::error::chain(&e));
                }
                POLL_UNREACHABLE
            }
        };
        let gone = match supervise::observe(&machine.dir) {
            None => Some("its machine ended".to_owned()),
            Some(s) => s.error.filter(|_| s.phase == MachinePhase::Failed),
        };
        if let Some(why) = gone {
            return fail(format!("{why} before {what}"), last.as_ref(), &[]);
        }
        if Instant::now() > deadline {
            let last = last.unwrap_or_else(|| "its agent never answered".to_owned());
            return fail(format!("timed out waiting for {what}"), Some(&last), &[]);
        }
        tokio::time::sleep(pause).await;
    }
}

/// What a node that is not well yet says of its way there.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    /// It could not boot.
    Rescue(String),
    /// A service of it will not run.
    Failed { service: String, why: String },
    /// For what it waits.
    Waits(String),
}

fn outlook(s: &NodeStatus) -> Outlook {
    if let Some(why) = &s.rescue {
        return Outlook::Rescue(why.clone());
    }
    if let Some(x) = s.services.iter().find(|x| x.state == ServiceState::Failed) {
        let why = x.last_exit.as_deref().unwrap_or("it says no more").to_owned();
        return Outlook::Failed { service: x.name.clone(), why };
    }
    let engine = s.engine.iter().map(|e| {
        let detail = e.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
        format!("engine is {}{detail}", word(&e.state))
    });
    let unready =
        |x: &&stead_model::agent::ServiceStatus| !matches!(x.state, ServiceState::Ready | ServiceState::Done);
    let services = s.services.iter().filter(unready).map(|x| {
        let exit = x.last_exit.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
        format!("service {} is {}{exit}", x.name, word(&x.state))
    });
    Outlook::Waits(engine.chain(services).collect::<Vec<_>>().join("; "))
}

/// How long after its power-on this was.
pub(crate) fn took(status: &NodeStatus) -> String {
    format!("{:.1} s", status.uptime_ms as f64 / 1000.0)
}

/// The end of a service's log, or nothing.
async fn agent_log(agent: &Client, service: &str) -> String {
    let mut text = Vec::new();
    if let Ok(mut chunks) = agent.logs(Some(service), Some(TAIL_LINES as u64), false).await {
        while let Ok(Some(chunk)) = chunks.next_chunk().await {
            text.extend_from_slice(&chunk);
        }
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// The error of a node that did not get as far as it should, with the ends of its logs.
pub(crate) fn failed(
    layout: &Layout,
    machine: &MachineSpec,
    why: String,
    last: Option<&String>,
    logs: &[(String, String)],
) -> ClusterError {
    let dir = layout.node(&machine.name);
    let mut tail = String::new();
    let files =
        ["supervisor.log", "console.log"].map(|f| (f.to_owned(), files::tail(&dir.join(f), TAIL_LINES)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::{
        EngineKind,
        agent::{EngineState, EngineStatus, NodePhase, ServiceStatus, TimelineEvent},
    };

    fn status() -> NodeStatus {
        let service = |name: &str, state, last_exit: Option<&str>| ServiceStatus {
            name: name.into(),
            state,
            pid: None,
            restarts: 0,
            last_exit: last_exit.map(str::to_owned),
        };
        NodeStatus {
            name: "node1".parse().unwrap(),
            cluster: "demo".into(),
            phase: NodePhase::Starting,
            boot_id: "b".into(),
            uptime_ms: 1240,
            timeline: vec![],
            services: vec![
                service("ntp", ServiceState::Ready, None),
                service("incusd", ServiceState::Backoff, Some("exit 1")),
                service("web", ServiceState::Waiting, None),
            ],
            disks: vec![],
            warnings: vec![],
            rescue: None,
            engine: Some(EngineStatus {
                kind: EngineKind::Incus,
                state: EngineState::Starting,
                version: None,
                detail: Some("the engine does not run".into()),
                certificate: None,
            }),
            addresses: vec![],
            kernel: String::new(),
            agent_rss_bytes: 0,
            version: String::new(),
        }
    }

    #[test]
    fn a_node_says_for_what_it_waits() {
        let mut s = status();
        let why = "engine is starting (the engine does not run); service incusd is backoff (exit 1); service web is waiting";
        assert_eq!(outlook(&s), Outlook::Waits(why.into()));
        assert_eq!(took(&s), "1.2 s");
        s.services.retain(|x| x.name == "ntp");
        s.engine = None;
        assert_eq!(outlook(&s), Outlook::Waits(String::new()));
    }

    #[test]
    fn services_that_were_only_just_started_are_not_yet_up() {
        let mut s = status();
        let event = |at_ms, event: &str| TimelineEvent { at_ms, event: event.into() };
        s.services.retain(|x| x.name == "ntp");
        s.timeline = vec![event(900, "service ntp started"), event(950, "service web started")];
        assert!(settled(&s));
        s.timeline.push(event(1200, "service ntp started"));
        assert!(!settled(&s));
        s.uptime_ms = 1449;
        assert!(!settled(&s));
        s.uptime_ms = 1450;
        assert!(settled(&s));
        // One that has shown that it works need not wait.
        s.uptime_ms = 1240;
        s.timeline.push(event(1230, "service ntp ready"));
        assert!(settled(&s));
        // The timeline has a bound; what is not in it any more was long ago.
        s.timeline.clear();
        assert!(settled(&s));
    }

    #[test]
    fn what_will_not_be_well_is_told_at_once() {
        let mut s = status();
        s.services[2].state = ServiceState::Failed;
        assert_eq!(outlook(&s), Outlook::Failed { service: "web".into(), why: "it says no more".into() });
        s.rescue = Some("no root".into());
        assert_eq!(outlook(&s), Outlook::Rescue("no root".into()));
    }
}
