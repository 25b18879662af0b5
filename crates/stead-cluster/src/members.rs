//! Members of the engine's cluster, through the agents: joining, restoring, removing, waiting until they are online.
//!
//! Owns how each of these works with given members. Does not choose the members: the plan does. A member that turns out
//! to be unusable is a [`Setback::Moved`], and the plan is made again.

use crate::{
    ClusterError, Events,
    execute::Setback,
    files,
    health::{self, is_online, word},
    wait::{Watch, failed},
};
use futures_util::future::join_all;
use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use stead_agent::{Client, ClientError};
use stead_machine::{MachineSpec, supervise};
use stead_model::{
    EngineKind, NodeName, NodeSpec,
    agent::{
        EngineState, JoinRequest, JoinTokenRequest, NodeStatus, RemoveMemberRequest, RestoreMemberRequest,
    },
};

/// How often a node tries to join before `up` gives up.
const JOIN_TRIES: u32 = 3;
/// How often a member is asked to restore another: the database's leader may just be changing.
const RESTORE_TRIES: u32 = 3;
/// How long a member may be without a leader of the database: an election takes one to a few seconds.
const ELECTION_PATIENCE: Duration = Duration::from_secs(15);
/// How long an agent on this host may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long after the last join all members may take to be online. A change of the database's leader, caused by joins
/// and removals, takes a second or two; a missed first heartbeat takes ten.
const STEADY_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at an engine.
const POLL: Duration = Duration::from_millis(50);

/// A node and a client of its agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub(crate) machine: &'a MachineSpec,
    pub(crate) agent: &'a Client,
}

impl<'a> Peer<'a> {
    fn name(&self) -> &'a NodeName {
        &self.machine.name
    }
    fn failed(&self, action: &'static str) -> impl FnOnce(ClientError) -> ClusterError + use<> {
        let node = self.name().clone();
        move |e| ClusterError::Agent { action, node, source: Box::new(e) }
    }
}

/// Why a member cannot be gone through, if so: its machine has ended, its agent does not answer, or its engine is not
/// online and does not become so.
async fn useless(peer: Peer<'_>) -> Option<String> {
    let began = Instant::now();
    loop {
        if supervise::observe(&peer.machine.dir).is_none() {
            return Some("its machine ended".into());
        }
        let (why, patience) = match peer.agent.engine().await {
            Ok(e) if is_online(e.state) => return None,
            Ok(e) if e.state == EngineState::Waiting => return Some("it is no longer a member".into()),
            Ok(e) => (format!("its engine is {}", word(&e.state)), ELECTION_PATIENCE),
            Err(e) => (crate::error::chain(&e), ANSWER_PATIENCE),
        };
        if began.elapsed() >= patience {
            return Some(why);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Where the engine of a node answers, by the spec it was last given.
fn engine_address(spec_dir: &Path) -> Option<SocketAddr> {
    let spec: Option<NodeSpec> = files::read_json(&spec_dir.join("node.json")).unwrap_or_default();
    spec?.engine.map(|engine| engine.address)
}

/// Turns an error into a setback: either the member gone through is unusable, or the action itself failed.
async fn setback(node: &NodeName, through: Peer<'_>, error: ClusterError) -> Setback {
    match useless(through).await {
        Some(why) => Setback::Moved(format!("{node} cannot go through {}: {why}", through.name())),
        None => Setback::Failed(error),
    }
}

/// Whether the engine has settled, according to this status.
fn at_rest(s: &NodeStatus) -> bool {
    health::engine(s).is_some_and(|e| is_online(e) || e == EngineState::Waiting)
}

/// Waits until the engine of a node has settled, and returns its present state: the agent's last observation may be
/// older than the effect of an interrupted command.
async fn rest(watch: &Watch<'_>) -> Result<EngineState, ClusterError> {
    loop {
        watch.until("its engine", at_rest).await?;
        if let Ok(engine) = watch.agent.engine().await
            && (is_online(engine.state) || engine.state == EngineState::Waiting)
        {
            return Ok(engine.state);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until a member is online and all services of its node run.
///
/// # Errors
/// They do not.
pub(crate) async fn well(watch: &Watch<'_>) -> Result<NodeStatus, ClusterError> {
    let well = |s: &NodeStatus| health::engine(s).is_some_and(is_online) && health::is_running(s);
    watch.until("its engine to be online", well).await
}

/// Waits until a member is online. Others can then join through it, even while its node still starts services.
async fn online(watch: &Watch<'_>) -> Result<NodeStatus, ClusterError> {
    watch.until("its engine to be online", |s| health::engine(s).is_some_and(is_online)).await
}

/// Waits until a node that should be a member without joining is online.
///
/// # Errors
/// [`Setback::Moved`] when it is no longer a member; otherwise it does not come online.
pub(crate) async fn await_member(watch: &Watch<'_>) -> Result<NodeStatus, Setback> {
    if rest(watch).await? == EngineState::Waiting {
        return Err(Setback::Moved(format!("{} is no longer a member", watch.machine.name)));
    }
    Ok(well(watch).await?)
}

/// Waits until a node that initialises the cluster is its first, online member.
///
/// # Errors
/// It does not become one.
pub(crate) async fn initialise(watch: &Watch<'_>) -> Result<NodeStatus, ClusterError> {
    online(watch).await
}

/// Makes a node join. Does nothing if it is already a member.
///
/// # Errors
/// [`Setback::Moved`] when the member it goes through is unusable; otherwise three attempts to join failed.
pub(crate) async fn join(
    watch: &Watch<'_>,
    engine: EngineKind,
    through: Peer<'_>,
    anew: bool,
    events: &Events,
) -> Result<NodeStatus, Setback> {
    let name = &watch.machine.name;
    let node = Peer { machine: watch.machine, agent: watch.agent };
    if rest(watch).await? == EngineState::Waiting {
        events.node(name, "joining", format!("through {}", through.name()));
        let mut clean = anew;
        for attempt in 1.. {
            let Err(error) = join_once(node, engine, through, clean, events).await else { break };
            if let Some(why) = useless(through).await {
                return Err(Setback::Moved(format!("{name} cannot join through {}: {why}", through.name())));
            }
            // A token works once: an interrupted join (the daemon died, the machine was rebooted) needs another, once
            // the node has cleaned up.
            if attempt == JOIN_TRIES {
                return Err(Setback::Failed(error));
            }
            if rest(watch).await? != EngineState::Waiting {
                break;
            }
            events.warning(format!("{name}: {}; trying again", crate::error::chain(&error)));
            clean = true;
        }
    }
    Ok(online(watch).await?)
}

/// Joins with a new token. `clean`: first removes this node's old membership from the cluster. This is also done when
/// no token can be had otherwise: this node's engine is in no cluster, so the membership is obsolete.
async fn join_once(
    node: Peer<'_>,
    engine: EngineKind,
    through: Peer<'_>,
    clean: bool,
    events: &Events,
) -> Result<(), ClusterError> {
    let name = node.name();
    let address = engine_address(&node.machine.spec_dir);
    let asked = JoinTokenRequest { member: name.clone(), address };
    let token = if clean { None } else { through.agent.join_token(&asked).await.ok() };
    let token = match token {
        Some(token) => token,
        None => {
            events.warning(format!("{name}: its old membership of {engine} is removed before it joins"));
            let request = RemoveMemberRequest { member: name.clone(), address, force: true };
            let removed = through.agent.remove_member(&request).await;
            removed.map_err(through.failed("remove the old membership"))?;
            let token = through.agent.join_token(&asked).await;
            token.map_err(through.failed("get a join token"))?
        }
    };
    let joined = node.agent.join(&JoinRequest { token }).await;
    joined.map(drop).map_err(node.failed("join the engine's cluster"))
}

/// Undoes the interrupted removal of a member; see [`crate::plan::Action::Readmit`]. If the member turns out to be
/// removed, the step that waits for it notices.
///
/// # Errors
/// [`Setback::Moved`] when the node it goes through is unusable; otherwise it refuses.
pub(crate) async fn readmit(watch: &Watch<'_>, through: Peer<'_>) -> Result<(), Setback> {
    let address = engine_address(&watch.machine.spec_dir);
    let request = RestoreMemberRequest { member: watch.machine.name.clone(), address };
    if through.name() == &watch.machine.name {
        if rest(watch).await? == EngineState::Waiting {
            // It was removed, so there is nothing to restore.
            return Ok(());
        }
        let restored = watch.agent.restore_member(&request).await;
        return Ok(restored.map_err(through.failed("restore the member"))?);
    }
    for attempt in 1.. {
        let Err(e) = through.agent.restore_member(&request).await else { break };
        let error = through.failed("restore the member")(e);
        match setback(&watch.machine.name, through, error).await {
            Setback::Failed(_) if attempt < RESTORE_TRIES => {}
            setback => return Err(setback),
        }
    }
    Ok(())
}

/// Evacuates (unless forced) and removes a member.
///
/// # Errors
/// [`Setback::Moved`] when the member it goes through is unusable; otherwise the engine refuses.
pub(crate) async fn remove(
    node: &NodeName,
    spec_dir: &Path,
    through: Peer<'_>,
    force: bool,
) -> Result<(), Setback> {
    let request = RemoveMemberRequest { member: node.clone(), address: engine_address(spec_dir), force };
    match through.agent.remove_member(&request).await {
        Ok(()) => Ok(()),
        Err(e) => {
            let error = through.failed("remove a member")(e);
            Err(setback(node, through, error).await)
        }
    }
}

/// Waits until all members report at once that they are online, each asked for its present state: `up` does not succeed
/// while the database's leader changes, or with a status from before a removal.
///
/// # Errors
/// A member is not online.
pub(crate) async fn steady(peers: &[Peer<'_>]) -> Result<(), ClusterError> {
    let deadline = Instant::now() + STEADY_PATIENCE;
    loop {
        let looks = join_all(peers.iter().map(|p| p.agent.engine())).await;
        let not_yet = looks.iter().zip(peers).find_map(|(look, peer)| {
            let why = match look {
                Ok(e) if is_online(e.state) => return None,
                Ok(e) => format!(
                    "engine {}{}",
                    word(&e.state),
                    e.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default()
                ),
                Err(e) => crate::error::chain(e),
            };
            Some((peer.machine, why))
        });
        let Some((machine, why)) = not_yet else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(failed(machine, format!("was online and is no longer: {why}"), None, &[]));
        }
        tokio::time::sleep(POLL).await;
    }
}
