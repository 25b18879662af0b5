//! The health of a node, from its agent's status. Pure.

use serde::Serialize;
use stead_model::agent::{EngineState, NodePhase, NodeStatus, ServiceState, ServiceStatus};

/// The serialised form of a value, such as `online`.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Whether all services run.
pub(crate) fn is_running(s: &NodeStatus) -> bool {
    s.phase == NodePhase::Running
}

/// Whether all services run and have settled.
pub(crate) fn runs(s: &NodeStatus) -> bool {
    is_running(s) && s.settled()
}

/// State of its engine.
pub(crate) fn engine(s: &NodeStatus) -> Option<EngineState> {
    s.engine.as_ref().map(|e| e.state)
}

/// Whether its engine answers.
pub(crate) fn engine_answers(s: &NodeStatus) -> bool {
    engine(s).is_some_and(|e| e != EngineState::Starting)
}

/// Whether the engine is an online member (or was evacuated).
pub(crate) fn is_online(state: EngineState) -> bool {
    matches!(state, EngineState::Online | EngineState::Evacuated)
}

/// Prospects of a node that is not healthy yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// It could not boot.
    Rescue(String),
    /// Its engine refused its configuration for good.
    Refused(String),
    /// A service failed for good.
    Failed { service: String, why: String },
    /// It waits for something.
    Waits(String),
}

/// The prospects of a node that is not healthy yet.
pub(crate) fn outlook(s: &NodeStatus) -> Outlook {
    if let Some(why) = &s.rescue {
        return Outlook::Rescue(why.clone());
    }
    if let Some(x) = s.services.iter().find(|x| x.state == ServiceState::Failed) {
        let why = x.last_exit.as_deref().unwrap_or("no reason known").to_owned();
        return Outlook::Failed { service: x.name.clone(), why };
    }
    if let Some(e) = s.engine.as_ref().filter(|e| e.refused) {
        return Outlook::Refused(e.detail.clone().unwrap_or_else(|| "no reason known".to_owned()));
    }
    let engine = s.engine.iter().map(|e| {
        let detail = e.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
        format!("engine is {}{detail}", word(&e.state))
    });
    let unready = |x: &&ServiceStatus| !matches!(x.state, ServiceState::Ready | ServiceState::Done);
    let services = s.services.iter().filter(unready).map(|x| {
        let exit = x.last_exit.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
        format!("service {} is {}{exit}", x.name, word(&x.state))
    });
    Outlook::Waits(engine.chain(services).collect::<Vec<_>>().join("; "))
}

/// Time since its power-on, as text.
pub(crate) fn uptime(status: &NodeStatus) -> String {
    format!("{:.1} s", status.uptime_ms as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::{
        EngineKind,
        agent::{EngineState, EngineStatus, NodePhase, ServiceStatus},
    };

    fn status() -> NodeStatus {
        let service = |name: &str, state, last_exit: Option<&str>| ServiceStatus {
            name: name.into(),
            state,
            since_ms: 900,
            checked: false,
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
                detail: Some("the engine is not running".into()),
                certificate: None,
                leads: false,
                refused: false,
            }),
            addresses: vec![],
            kernel: String::new(),
            agent_rss_bytes: 0,
            version: String::new(),
        }
    }

    #[test]
    fn a_waiting_node_gives_the_reasons() {
        let mut s = status();
        let why = "engine is starting (the engine is not running); service incusd is backoff (exit 1); service web is waiting";
        assert_eq!(outlook(&s), Outlook::Waits(why.into()));
        assert_eq!(uptime(&s), "1.2 s");
        s.services.retain(|x| x.name == "ntp");
        s.engine = None;
        assert_eq!(outlook(&s), Outlook::Waits(String::new()));
    }

    #[test]
    fn a_final_failure_is_reported_at_once() {
        let mut s = status();
        let refused = s.engine.as_mut().unwrap();
        (refused.refused, refused.detail) = (true, Some("cannot create the pool: no such driver".into()));
        assert_eq!(outlook(&s), Outlook::Refused("cannot create the pool: no such driver".into()));
        s.services[2].state = ServiceState::Failed;
        assert_eq!(outlook(&s), Outlook::Failed { service: "web".into(), why: "no reason known".into() });
        s.rescue = Some("no root".into());
        assert_eq!(outlook(&s), Outlook::Rescue("no root".into()));
    }
}
