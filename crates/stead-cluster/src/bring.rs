//! Bringing one node along: start or restart its machine, wait for its agent, join its engine, or remove it.

use crate::{
    ClusterError, Events, Layout, Record,
    apply::blocking,
    desired::{Desired, DesiredNode},
    dial,
    down::{self, STOP_PATIENCE, STOP_SECONDS},
    files,
    plan::{EngineStep, NodeAction, NodePlan, Removal},
    wait::{self, failed, took, wait_for},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use stead_agent::{Identity, client::Client};
use stead_machine::{backend, supervise};
use stead_model::{
    EngineKind, NodeName, NodeSpec,
    agent::{
        EngineState, EngineStatus, JoinRequest, JoinTokenRequest, NodePhase, NodeStatus, RemoveMemberRequest,
        RestoreMemberRequest, StopRequest,
    },
    node::EngineRole,
};
use tokio::sync::{Mutex, watch};

/// How often a node tries to join before `up` gives up on it.
const JOIN_TRIES: u32 = 3;

/// What the tasks of one `up` share.
pub(crate) struct Work {
    pub(crate) exe: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) record: Mutex<Record>,
    pub(crate) operator: Identity,
    pub(crate) netns: String,
    pub(crate) events: Events,
    /// A member that is online: joins go through it. Closed (all senders gone) when there can be none any more.
    pub(crate) seed: watch::Sender<Option<Seed>>,
    /// Joins go one after the other: the engines' databases take one new member at a time.
    pub(crate) joining: Mutex<()>,
    /// Restarts of engine members go one at a time: two could lose the quorum.
    pub(crate) restarting: Mutex<()>,
    pub(crate) engine: EngineKind,
    /// Where the agents of the nodes that should be are.
    pub(crate) agents: BTreeMap<NodeName, SocketAddr>,
    /// Nodes that may yet become the member that others join through: neither failed nor waiting for one themselves.
    pub(crate) hopes: AtomicUsize,
}

impl Work {
    /// One node less can become the first member. With the last hope gone, whoever waits is told that it is in vain.
    fn give_up_hope(&self) {
        if self.hopes.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.seed.send_if_modified(|s| s.is_none() && s.replace(NO_SEED).is_none());
        }
    }
}

/// Stands for "there will be no member to join through".
const NO_SEED: Seed = None;
/// A member to join through and where its agent is.
type Seed = Option<(NodeName, SocketAddr)>;

/// Brings one node where the plan wants it.
pub(crate) async fn bring(work: Arc<Work>, plan: NodePlan, desired: DesiredNode) -> Result<(), ClusterError> {
    let name = plan.name.clone();
    let result = bring_inner(&work, &plan, &desired).await;
    if let Err(e) = &result {
        work.events.node(&name, "failed", crate::error::chain(e));
        if plan.engine == EngineStep::Initialise {
            work.seed.send_if_modified(|s| s.is_none() && s.replace(NO_SEED).is_none());
        }
        work.give_up_hope();
    }
    result
}

async fn bring_inner(work: &Work, plan: &NodePlan, desired: &DesiredNode) -> Result<(), ClusterError> {
    let name = &plan.name;
    let mut spec = desired.spec.clone();
    if plan.engine == EngineStep::Initialise
        && let Some(e) = &mut spec.engine
    {
        e.role = EngineRole::Init;
    }
    let _one_at_a_time = match &plan.action {
        NodeAction::Restart { why } => {
            let guard = match plan.engine {
                EngineStep::Member => Some(work.restarting.lock().await),
                _ => None,
            };
            work.events.node(name, "stopping", why.join(", "));
            if desired.keeps_state || plan.engine == EngineStep::Member {
                stop_machine(work, desired, STOP_SECONDS).await?;
            } else {
                // It begins anew: nothing of it is wanted any more.
                down::kill_machine(&desired.machine.dir, name).await?;
            }
            start_machine(work, desired, &spec).await?;
            guard
        }
        NodeAction::Start => {
            // It may be on its way down.
            down::stop_machine(&desired.machine.dir, name, Duration::from_secs(u64::from(STOP_SECONDS)))
                .await?;
            start_machine(work, desired, &spec).await?;
            None
        }
        NodeAction::Keep => {
            // What it takes at its next boot, such as a renewed certificate.
            files::write_json(&desired.machine.spec_dir.join("node.json"), &spec)?;
            None
        }
    };
    let agent = dial::agent(&work.operator, &work.netns, name, desired.agent).map_err(|e| {
        ClusterError::Agent { action: "prepare a connection", node: name.clone(), source: Box::new(e) }
    })?;
    let deadline = Instant::now() + backend::patience(&desired.machine).running;

    let status = wait_for(work, desired, &agent, deadline, "its services to run", |s| {
        (matches!(s.phase, NodePhase::Running) && wait::settled(s))
            || (plan.engine != EngineStep::None && engine_answers(s))
    })
    .await?;
    if plan.engine == EngineStep::None {
        work.events.node(name, "running", took(&status));
        return Ok(());
    }
    work.events.node(name, "engine", took(&status));
    join_engine(work, plan, desired, &agent, status, deadline).await?;
    Ok(())
}

fn engine_answers(s: &NodeStatus) -> bool {
    s.engine.as_ref().is_some_and(|e| e.state != EngineState::Starting)
}

async fn start_machine(work: &Work, desired: &DesiredNode, spec: &NodeSpec) -> Result<(), ClusterError> {
    let machine = &desired.machine;
    work.events.node(&machine.name, "starting", machine.backend.to_string());
    files::private_dir(&machine.spec_dir)?;
    files::private_dir(&machine.dir.join("disks"))?;
    files::write_json(&machine.spec_dir.join("node.json"), spec)?;
    let (exe, machine) = (work.exe.clone(), machine.clone());
    let name = machine.name.clone();
    blocking(move || supervise::spawn(&exe, &machine)).await?.map(|_| ()).map_err(|e| ClusterError::Machine {
        action: "start",
        node: name,
        source: Box::new(e),
    })
}

async fn stop_machine(work: &Work, desired: &DesiredNode, seconds: u32) -> Result<(), ClusterError> {
    // The agent stops services in order; where it does not answer, the supervisor's signal must do.
    if let Ok(agent) = dial::agent(&work.operator, &work.netns, &desired.machine.name, desired.agent) {
        down::announce_end(&desired.machine.dir, &desired.machine.name)?;
        let _ = agent.shutdown(&StopRequest { deadline_s: seconds }).await;
    }
    down::stop_machine(
        &desired.machine.dir,
        &desired.machine.name,
        Duration::from_secs(u64::from(seconds) + 5),
    )
    .await
}

/// From an engine that answers to a member that is online.
async fn join_engine(
    work: &Work,
    plan: &NodePlan,
    desired: &DesiredNode,
    agent: &Client,
    mut status: NodeStatus,
    deadline: Instant,
) -> Result<(), ClusterError> {
    let name = &plan.name;
    let settled = |s: &NodeStatus| {
        s.engine.as_ref().is_some_and(|e| {
            matches!(e.state, EngineState::Online | EngineState::Evacuated | EngineState::Waiting)
        })
    };
    let state = |s: &NodeStatus| s.engine.as_ref().map(|e| e.state);
    if plan.engine == EngineStep::Readmit {
        if !settled(&status) {
            wait_for(work, desired, agent, deadline, "its engine", settled).await?;
        }
        readmit(work, name, agent).await?;
    }
    loop {
        if !settled(&status) {
            status = wait_for(work, desired, agent, deadline, "its engine", settled).await?;
        }
        // Asked now: what was seen last may be from before an end that an interrupted command has brought about.
        match agent.engine().await {
            Ok(engine) => {
                status.engine = Some(engine);
                if settled(&status) {
                    break;
                }
            }
            Err(_) => status.engine = None,
        }
    }
    if state(&status) == Some(EngineState::Waiting) {
        // Only a cluster that exists can be joined: wait for a member that is online.
        let mut seeds = work.seed.subscribe();
        work.give_up_hope();
        let seed = tokio::time::timeout_at(deadline.into(), async {
            loop {
                if let Some(seed) = seeds.borrow_and_update().clone() {
                    return Some(seed);
                }
                if seeds.changed().await.is_err() {
                    return None;
                }
            }
        })
        .await
        .ok()
        .flatten()
        .flatten();
        let Some((seed_name, seed_address)) = seed else {
            return Err(failed(
                &work.layout,
                &desired.machine,
                "has no member to join through: no other node came online".into(),
                None,
                &[],
            ));
        };
        let seed = dial::agent(&work.operator, &work.netns, &seed_name, seed_address).map_err(|e| {
            ClusterError::Agent {
                action: "prepare a connection",
                node: seed_name.clone(),
                source: Box::new(e),
            }
        })?;
        let _turn = work.joining.lock().await;
        work.events.node(name, "joining", format!("through {seed_name}"));
        let mut clean = work.record.lock().await.members.contains(name);
        for attempt in 1.. {
            let result = join_once(work, name, (&seed_name, &seed), agent, clean).await;
            let Err(error) = result else { break };
            // A token works once: a join that broke off (the daemon died, the machine was rebooted) needs another, once
            // the node has put away what it had begun.
            if attempt == JOIN_TRIES {
                return Err(error);
            }
            let again =
                wait_for(work, desired, agent, deadline, "its engine after a failed join", settled).await?;
            if state(&again) != Some(EngineState::Waiting) {
                break;
            }
            work.events.warning(format!("{name}: {}; trying again", crate::error::chain(&error)));
            clean = true;
        }
    }
    remember_member(work, desired).await?;
    work.seed.send_if_modified(|s| s.is_none() && s.replace(Some((name.clone(), desired.agent))).is_none());
    let status = wait_for(work, desired, agent, deadline, "its engine to be online", |s| {
        s.engine.as_ref().is_some_and(|e| matches!(e.state, EngineState::Online | EngineState::Evacuated))
            && s.phase == NodePhase::Running
    })
    .await?;
    work.events.node(name, "online", took(&status));
    Ok(())
}

/// Takes back a member whose removal was cut short: the node through which it was removed may still be at it, and knows
/// when that has ended; where that node is no more, nobody is.
async fn readmit(work: &Work, name: &NodeName, agent: &Client) -> Result<(), ClusterError> {
    work.events.node(name, "engine", "its removal was cut short: it is taken back");
    let request = RestoreMemberRequest { member: name.clone() };
    let through = work.record.lock().await.leaving.get(name).cloned();
    if let Some(address) = through.and_then(|t| work.agents.get(&t).map(|a| (t, *a)))
        && let Ok(through) = dial::agent(&work.operator, &work.netns, &address.0, address.1)
        && through.restore_member(&request).await.is_ok()
    {
        return Ok(());
    }
    match agent.engine().await {
        // It was removed.
        Ok(EngineStatus { state: EngineState::Waiting, .. }) => Ok(()),
        _ => agent.restore_member(&request).await.map_err(|e| ClusterError::Agent {
            action: "take back the member",
            node: name.clone(),
            source: Box::new(e),
        }),
    }
}

/// Joins by a fresh token. `clean`: what the cluster still knows of this node is removed before, as it also is when no
/// token is given otherwise: this node's engine says that it is in no cluster, so that is of the past.
async fn join_once(
    work: &Work,
    name: &NodeName,
    (seed_name, seed): (&NodeName, &Client),
    agent: &Client,
    clean: bool,
) -> Result<(), ClusterError> {
    let error = |action: &'static str, node: &NodeName| {
        let node = node.clone();
        move |e| ClusterError::Agent { action, node, source: Box::new(e) }
    };
    let asked = JoinTokenRequest { member: name.clone() };
    let token = if clean { None } else { seed.join_token(&asked).await.ok() };
    let token = match token {
        Some(token) => token,
        None => {
            let engine = work.engine;
            work.events
                .warning(format!("{name}: what {engine} still knows of it is removed before it joins"));
            let request = RemoveMemberRequest { member: name.clone(), force: true };
            seed.remove_member(&request).await.map_err(error("remove the old membership", seed_name))?;
            seed.join_token(&asked).await.map_err(error("get a join token", seed_name))?
        }
    };
    let joined = agent.join(&JoinRequest { token }).await;
    joined.map(drop).map_err(error("join the engine's cluster", name))
}

/// The record knows the member, and its spec will never again have it initialise a cluster.
async fn remember_member(work: &Work, desired: &DesiredNode) -> Result<(), ClusterError> {
    let mut record = work.record.lock().await;
    let new = record.members.insert(desired.machine.name.clone());
    if record.leaving.remove(&desired.machine.name).is_some() || new {
        record.save(&work.layout)?;
    }
    files::write_json(&desired.machine.spec_dir.join("node.json"), &desired.spec)?;
    Ok(())
}

/// Evacuates, removes from the engine, stops and deletes a node.
pub(crate) async fn remove(
    work: &Work,
    removal: &Removal,
    desired: &Desired,
    members: &BTreeSet<NodeName>,
) -> Result<(), ClusterError> {
    let name = &removal.name;
    if removal.member {
        let through = desired.nodes.iter().find(|d| members.contains(&d.machine.name)).ok_or_else(|| {
            ClusterError::Refused(format!(
                "{name} is the last member of the engine's cluster: `stead down` takes it down"
            ))
        })?;
        work.events.node(name, "stopping", format!("evacuating, through {}", through.machine.name));
        {
            let mut record = work.record.lock().await;
            record.leaving.insert(name.clone(), through.machine.name.clone());
            record.save(&work.layout)?;
        }
        let agent =
            dial::agent(&work.operator, &work.netns, &through.machine.name, through.agent).map_err(|e| {
                ClusterError::Agent {
                    action: "prepare a connection",
                    node: through.machine.name.clone(),
                    source: Box::new(e),
                }
            })?;
        agent
            .remove_member(&RemoveMemberRequest { member: name.clone(), force: removal.force })
            .await
            .map_err(|e| ClusterError::Agent {
                action: "remove a member",
                node: name.clone(),
                source: Box::new(e),
            })?;
        let mut record = work.record.lock().await;
        record.members.remove(name);
        record.leaving.remove(name);
        record.save(&work.layout)?;
    }
    work.events.node(name, "stopping", "");
    let dir = work.layout.node(name);
    if work.engine.is_none() {
        // Its services may have something to take leave of.
        down::stop_machine(&dir, name, STOP_PATIENCE).await?;
    } else {
        // All that counted was the engine's, which has let it go, and which may not hear of a clean end while it resets
        // itself.
        down::kill_machine(&dir, name).await?;
    }
    down::delete_node(&work.layout, name).await?;
    work.events.node(name, "stopped", "deleted");
    Ok(())
}
