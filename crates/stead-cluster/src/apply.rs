//! `up` and `scale`: prepare, observe, plan, and do what the plan says.
//!
//! Every node is brought along by a task of its own; they meet where the engine demands it: joins go one after the
//! other, through a member that is online, and restarts of members go one at a time.

use crate::{
    ClusterError, Events, Host, Plan, Record,
    bring::{self, Work},
    claim,
    desired::Desired,
    dial, down, files,
    plan::{EngineStep, NetworkAction, NodeAction},
    prepare::{Prepared, prepare},
    status::word,
    wait::failed,
};
use futures_util::future::join_all;
use serde::Serialize;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};
use stead_model::{ClusterName, ClusterSpec, NodeName, agent::EngineState, cluster::Nodes};
use tokio::sync::{Mutex, watch};

/// Every member answers and is online within this after the last of them joined. A change of the database's leader, which
/// joins and removals bring about, takes a second or two; a first heartbeat that was missed ten.
const STEADY_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at that.
const STEADY_POLL: Duration = Duration::from_millis(50);

/// What `up` is asked for.
#[derive(Debug, Clone)]
pub struct UpRequest {
    /// The cluster file.
    pub spec: ClusterSpec,
    /// Directory its relative paths are meant from.
    pub base_dir: PathBuf,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct UpReport {
    /// The plan that was carried out.
    pub plan: Plan,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What is to be done for this request; nothing but the image store's layer cache is touched.
///
/// # Errors
/// The request cannot be carried out, or the state cannot be read.
pub async fn dry_run(host: &Host, request: UpRequest, events: &Events) -> Result<Plan, ClusterError> {
    Ok(prepare(host, request, events).await?.plan)
}

/// Makes the cluster what the request says, from whatever is there.
///
/// # Errors
/// The first thing of each node that went wrong; what is up stays up, and `up` again goes on from there.
pub async fn up(host: &Host, request: UpRequest, events: &Events) -> Result<UpReport, ClusterError> {
    let began = Instant::now();
    let layout = host.layout(&request.spec.name);
    let _lock = layout.take_lock()?;
    // First what an interrupted command began to end, so that the plan is not built on what is on its way down.
    down::finish_ends(&layout).await?;
    let prepared = prepare(host, request, events).await?;
    let plan = prepared.plan.clone();
    apply(host, prepared, events).await?;
    Ok(UpReport { plan, seconds: began.elapsed().as_secs_f64() })
}

/// Changes the number of nodes and brings the cluster there.
///
/// # Errors
/// As [`up`]; or the nodes are listed by name and more are asked for.
pub async fn scale(
    host: &Host,
    cluster: &ClusterName,
    count: u32,
    events: &Events,
) -> Result<UpReport, ClusterError> {
    let record = Record::require(&host.layout(cluster))?;
    let mut spec = record.spec;
    spec.nodes = match spec.nodes {
        Nodes::Count(_) => Nodes::Count(count),
        Nodes::List(mut list) if (count as usize) <= list.len() => {
            list.truncate(count as usize);
            Nodes::List(list)
        }
        Nodes::List(list) => {
            return Err(ClusterError::Refused(format!(
                "cluster {cluster} lists its {} nodes by name, so {count} cannot be made by number: add them to its file and run `stead up FILE`",
                list.len()
            )));
        }
    };
    spec.check().map_err(|(key, why)| ClusterError::Refused(format!("{key}: {why}")))?;
    up(host, UpRequest { spec, base_dir: record.base_dir }, events).await
}

/// Carries the plan out.
async fn apply(host: &Host, p: Prepared, events: &Events) -> Result<(), ClusterError> {
    let Prepared { layout, mut record, desired, plan, ca, operator, identities, backend_why } = p;
    for w in &plan.warnings {
        events.warning(w);
    }
    if plan.nodes.iter().any(|n| n.engine == EngineStep::Initialise) {
        record.members.clear();
        record.leaving.clear();
    }
    claim::take(&layout)?;
    record.save(&layout)?;
    files::private_dir(&layout.pki())?;
    files::write(&layout.pki().join("ca.pem"), ca.certificate_pem().as_bytes())?;
    files::write(&layout.pki().join("ca.key"), ca.key_pem().as_bytes())?;
    files::write_json(&layout.pki().join("operator.json"), &operator)?;
    for (name, identity) in &identities {
        files::private_dir(&layout.node(name))?;
        files::write_json(&layout.node(name).join("identity.json"), identity)?;
    }
    files::private_dir(&layout.network())?;
    if plan.network != NetworkAction::Keep {
        events.step("network");
        let (exe, spec) = (host.exe.clone(), desired.network.clone());
        blocking(move || stead_machine::network::up(&exe, &spec))
            .await?
            .map_err(|e| ClusterError::Network { cluster: record.spec.name.clone(), source: Box::new(e) })?;
    }
    let started = plan.nodes.iter().filter(|n| n.action != NodeAction::Keep).count();
    if started > 0 {
        events.step(format!("nodes ({started} to start; {backend_why})"));
    }

    let engine = record.engine;
    let work = Arc::new(Work {
        exe: host.exe.clone(),
        netns: desired.network.netns(),
        layout,
        record: Mutex::new(record),
        operator,
        events: events.clone(),
        seed: watch::Sender::new(None),
        joining: Mutex::new(()),
        restarting: Mutex::new(()),
        engine,
        agents: desired.nodes.iter().map(|d| (d.machine.name.clone(), d.agent)).collect(),
        hopes: AtomicUsize::new(plan.nodes.len()),
    });
    let members: BTreeSet<NodeName> = work.record.lock().await.members.clone();
    let tasks: Vec<_> = plan
        .nodes
        .iter()
        .zip(&desired.nodes)
        .map(|(plan, desired)| tokio::spawn(bring::bring(Arc::clone(&work), plan.clone(), desired.clone())))
        .collect();
    let mut errors = Vec::new();
    for task in tasks {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => errors.push(e),
            Err(source) => errors.push(ClusterError::Task { task: "bring a node up", source }),
        }
    }
    if errors.is_empty() {
        for removal in &plan.removals {
            if let Err(e) = bring::remove(&work, removal, &desired, &members).await {
                errors.push(e);
            }
        }
    }
    if errors.is_empty() && !engine.is_none() {
        errors.extend(steady(&work, &desired).await.err());
    }
    ClusterError::all(errors)
}

/// Waits until all members at once say that they are online, each asked now: a cluster whose database is just changing its
/// leader, or a member that had its last look before a removal, is not what `up` promises.
async fn steady(work: &Work, desired: &Desired) -> Result<(), ClusterError> {
    let agents: Vec<_> = desired
        .nodes
        .iter()
        .map(|d| {
            let node = &d.machine.name;
            dial::agent(&work.operator, &work.netns, node, d.agent).map_err(|e| ClusterError::Agent {
                action: "prepare a connection",
                node: node.clone(),
                source: Box::new(e),
            })
        })
        .collect::<Result<_, _>>()?;
    let deadline = Instant::now() + STEADY_PATIENCE;
    loop {
        let looks = join_all(agents.iter().map(|agent| agent.engine())).await;
        let not_yet = looks.iter().zip(&desired.nodes).find_map(|(look, d)| {
            let why = match look {
                Ok(e) if matches!(e.state, EngineState::Online | EngineState::Evacuated) => return None,
                Ok(e) => format!(
                    "engine {}{}",
                    word(&e.state),
                    e.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default()
                ),
                Err(e) => crate::error::chain(e),
            };
            Some((&d.machine, why))
        });
        let Some((machine, why)) = not_yet else { return Ok(()) };
        if Instant::now() > deadline {
            let why = format!("was online and is not any more: {why}");
            return Err(failed(&work.layout, machine, why, None, &[]));
        }
        tokio::time::sleep(STEADY_POLL).await;
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|source| ClusterError::Task { task: "do one step of the plan", source })
}
