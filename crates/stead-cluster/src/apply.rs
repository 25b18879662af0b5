//! `up` and `scale`: prepare, observe, plan, and do what the plan says.
//!
//! Every node is brought along by a task of its own; they meet where the engine demands it: joins go one after the
//! other, through a member that is online, and restarts of members go one at a time.

use crate::{
    ClusterError, Events, Host, Layout, Plan, Record,
    desired::{self, Desired, DesiredNode, Inputs},
    dial, down, files,
    observe::{self, Observed},
    plan::{self, EngineStep, NetworkAction, NodeAction, NodePlan, Removal},
};
use futures_util::future::join_all;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use stead_agent::{Identity, client::Client, pki::ClusterCa};
use stead_machine::{MachineSpec, supervise};
use stead_model::{
    Bytes, ClusterSpec, Digest, EngineKind, Manifest, NodeName, NodeSpec,
    agent::{
        EngineState, JoinRequest, JoinTokenRequest, NodePhase, NodeStatus, RemoveMemberRequest, StopRequest,
    },
    cluster::{Backend, Nodes},
    node::EngineRole,
    recipe::OverlaySource,
};
use tokio::sync::{Mutex, watch};

/// Pause between two looks at a node that is starting: small against the second that a start takes.
const POLL: Duration = Duration::from_millis(15);
/// Pause when the agent does not even listen yet.
const POLL_UNREACHABLE: Duration = Duration::from_millis(10);
/// How long a namespace node may take to run. It takes half a second; a loaded host takes longer.
const NAMESPACE_DEADLINE: Duration = Duration::from_secs(120);
/// How long an emulated machine may take (measured: 40 s to the engine on two cores).
const QEMU_DEADLINE: Duration = Duration::from_secs(600);
/// Lines of console and service logs shown for a node that failed.
const TAIL_LINES: usize = 15;

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

/// Everything `up` needs, prepared.
struct Prepared {
    layout: Layout,
    record: Record,
    desired: Desired,
    observed: Observed,
    plan: Plan,
    ca: ClusterCa,
    operator: Identity,
    identities: BTreeMap<NodeName, Identity>,
    /// Why the backend is what it is.
    backend_why: String,
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
    cluster: &stead_model::ClusterName,
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

async fn prepare(host: &Host, request: UpRequest, events: &Events) -> Result<Prepared, ClusterError> {
    let UpRequest { spec, base_dir } = request;
    let layout = host.layout(&spec.name);
    let store = host.store()?;
    let (digest, manifest) = store.manifest(&spec.image).map_err(ClusterError::image)?;
    let engine = spec.engine_kind().unwrap_or(manifest.engine);
    if !engine.is_none() && engine != manifest.engine {
        return Err(ClusterError::Refused(format!(
            "cluster {} asks for {engine}, but image {} carries {}",
            spec.name, spec.image, manifest.engine
        )));
    }
    let old = Record::load(&layout)?;
    let record = Record {
        schema: 1,
        members: old.as_ref().map(|r| r.members.clone()).unwrap_or_default(),
        spec,
        base_dir,
        image: digest,
        engine,
    };
    let overlays = overlay_layers(&store, &record, events).await?;
    let facts = tokio::task::spawn_blocking(stead_machine::doctor::observe)
        .await
        .map_err(|e| ClusterError::Refused(e.to_string()))?;
    let choice = stead_machine::backend::choose(&facts);
    let (ca, operator, identities) = load_pki(&layout, &record)?;
    let desired = desired::desired(&Inputs {
        layout: &layout,
        record: &record,
        manifest: &manifest,
        blobs: store.blob_dir(),
        overlays: &overlays,
        identities: &identities,
        auto: choice.backend,
        host_memory: Bytes(facts.memory_bytes),
    })?;
    let observed = observe::observe(&layout, Some(&operator)).await?;
    let plan = plan::plan(&record, &desired, &observed);
    Ok(Prepared {
        layout,
        record,
        desired,
        observed,
        plan,
        ca,
        operator,
        identities,
        backend_why: choice.why,
    })
}

/// Builds (or finds in the cache) the boot overlays of all nodes, each one once, in parallel.
async fn overlay_layers(
    store: &stead_image::Store,
    record: &Record,
    events: &Events,
) -> Result<BTreeMap<NodeName, Vec<Digest>>, ClusterError> {
    let nodes = record.spec.resolve();
    let mut wanted: Vec<&OverlaySource> = Vec::new();
    for o in nodes.iter().flat_map(|n| &n.overlays) {
        if !wanted.contains(&o) {
            wanted.push(o);
        }
    }
    if !wanted.is_empty() {
        events.step(format!("overlays ({})", wanted.len()));
    }
    let builds = wanted.iter().map(|o| {
        let (store, base, options) = (store.clone(), record.base_dir.clone(), o.options());
        tokio::task::spawn_blocking(move || stead_image::overlay::build_layer(&store, &options, &base))
    });
    let mut layers = Vec::new();
    for built in join_all(builds).await {
        let layer = built.map_err(|e| ClusterError::Refused(e.to_string()))?.map_err(ClusterError::image)?;
        layers.push(layer.artifact.digest);
    }
    let digest_of = |o: &OverlaySource| wanted.iter().position(|w| *w == o).map(|i| layers[i].clone());
    Ok(nodes.iter().map(|n| (n.name.clone(), n.overlays.iter().filter_map(digest_of).collect())).collect())
}

/// The CA, the operator's identity and every node's, from the files or (not yet written) made now.
fn load_pki(
    layout: &Layout,
    record: &Record,
) -> Result<(ClusterCa, Identity, BTreeMap<NodeName, Identity>), ClusterError> {
    let cluster = layout.cluster();
    let pki =
        |e: stead_agent::pki::PkiError| ClusterError::Pki { cluster: cluster.clone(), source: Box::new(e) };
    let now = SystemTime::now().into();
    let ca = match (read_text(&layout.pki().join("ca.pem"))?, read_text(&layout.pki().join("ca.key"))?) {
        (Some(certificate), Some(key)) => ClusterCa::from_pem(cluster, &certificate, &key).map_err(pki)?,
        _ => ClusterCa::create(cluster, now).map_err(pki)?,
    };
    let usable = |i: &Identity| i.ca_pem == ca.certificate_pem() && stead_agent::pki::is_fresh(i, now);
    let kept = |path: &Path| files::read_json::<Identity>(path).ok().flatten().filter(usable);
    let operator = match kept(&layout.pki().join("operator.json")) {
        Some(i) => i,
        None => ca.issue_client("operator", now).map_err(pki)?,
    };
    let mut identities = BTreeMap::new();
    for node in record.spec.resolve() {
        let identity = match kept(&layout.node(&node.name).join("identity.json")) {
            Some(i) => i,
            None => {
                let addresses: Vec<IpAddr> =
                    node.nics.iter().flat_map(|n| n.addresses.iter().map(|a| a.addr())).collect();
                ca.issue_node(&node.name, &addresses, now).map_err(pki)?
            }
        };
        identities.insert(node.name, identity);
    }
    Ok((ca, operator, identities))
}

/// The operator's identity of a cluster that is there.
///
/// # Errors
/// It was never written: the first `up` was cut short.
pub fn operator_identity(layout: &Layout) -> Result<Identity, ClusterError> {
    files::read_json(&layout.pki().join("operator.json"))?.ok_or_else(|| {
        ClusterError::Refused(format!(
            "cluster {} was never brought up completely: run `stead up` again",
            layout.cluster()
        ))
    })
}

fn read_text(path: &Path) -> Result<Option<String>, ClusterError> {
    match std::fs::read_to_string(path) {
        Ok(t) => Ok(Some(t)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ClusterError::file("read", path)(e)),
    }
}

/// What the tasks of one `up` share.
struct Work {
    exe: PathBuf,
    layout: Layout,
    record: Mutex<Record>,
    operator: Identity,
    netns: String,
    events: Events,
    /// A member that is online: joins go through it. Closed (all senders gone) when there can be none any more.
    seed: watch::Sender<Option<(NodeName, std::net::SocketAddr)>>,
    /// Joins go one after the other: the engines' databases take one new member at a time.
    joining: Mutex<()>,
    /// Restarts of engine members go one at a time: two could lose the quorum.
    restarting: Mutex<()>,
    engine: EngineKind,
}

async fn apply(host: &Host, p: Prepared, events: &Events) -> Result<(), ClusterError> {
    let Prepared { layout, mut record, desired, observed, plan, ca, operator, identities, backend_why } = p;
    for w in &plan.warnings {
        events.warning(w);
    }
    if plan.nodes.iter().any(|n| n.engine == EngineStep::Initialise) {
        record.members.clear();
    }
    record.save(&layout)?;
    files::private_dir(&layout.pki())?;
    files::write_atomically(&layout.pki().join("ca.pem"), ca.certificate_pem().as_bytes())?;
    files::write_atomically(&layout.pki().join("ca.key"), ca.key_pem().as_bytes())?;
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
    });
    let members: BTreeSet<NodeName> = work.record.lock().await.members.clone();
    let tasks: Vec<_> = plan
        .nodes
        .iter()
        .zip(&desired.nodes)
        .map(|(plan, desired)| tokio::spawn(bring(Arc::clone(&work), plan.clone(), desired.clone())))
        .collect();
    let mut errors = Vec::new();
    for task in tasks {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => errors.push(e),
            Err(e) => errors.push(ClusterError::Refused(format!("a node's task ended: {e}"))),
        }
    }
    if errors.is_empty() {
        for removal in &plan.removals {
            if let Err(e) = remove(&work, removal, &desired, &observed, &members).await {
                errors.push(e);
            }
        }
    }
    ClusterError::all(errors)
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, ClusterError> {
    tokio::task::spawn_blocking(f).await.map_err(|e| ClusterError::Refused(format!("a worker ended: {e}")))
}

/// Brings one node where the plan wants it.
async fn bring(work: Arc<Work>, plan: NodePlan, desired: DesiredNode) -> Result<(), ClusterError> {
    let name = plan.name.clone();
    let result = bring_inner(&work, &plan, &desired).await;
    if let Err(e) = &result {
        work.events.node(&name, "failed", crate::error::chain(e));
        // Whoever waits for this node to be the first member waits in vain.
        if plan.engine == EngineStep::Initialise {
            work.seed.send_replace(Some((name, std::net::SocketAddr::from(([0, 0, 0, 0], 0)))));
        }
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
            stop_machine(work, desired, STOP_SECONDS).await?;
            start_machine(work, desired, &spec).await?;
            guard
        }
        NodeAction::Start => {
            start_machine(work, desired, &spec).await?;
            None
        }
        NodeAction::Keep => None,
    };
    let agent = dial::agent(&work.operator, &work.netns, name, desired.agent).map_err(|e| {
        ClusterError::Agent { action: "prepare a connection", node: name.clone(), source: Box::new(e) }
    })?;
    let deadline = Instant::now()
        + if desired.machine.backend == Backend::Qemu { QEMU_DEADLINE } else { NAMESPACE_DEADLINE };

    let status = wait_for(work, desired, &agent, deadline, "its services to run", |s| {
        matches!(s.phase, NodePhase::Running) || (plan.engine != EngineStep::None && engine_answers(s))
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

/// Seconds a machine gets to stop before a restart.
const STOP_SECONDS: u32 = 60;

fn took(status: &NodeStatus) -> String {
    format!("{:.1} s", status.uptime_ms as f64 / 1000.0)
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
        let _ = agent.shutdown(&StopRequest { deadline_s: seconds }).await;
    }
    down::stop_machine(
        &desired.machine.dir,
        &desired.machine.name,
        Duration::from_secs(u64::from(seconds) + 5),
    )
    .await
}

/// Polls a node's agent until `well`, or says why it will not be.
async fn wait_for(
    work: &Work,
    desired: &DesiredNode,
    agent: &Client,
    deadline: Instant,
    what: &str,
    well: impl Fn(&NodeStatus) -> bool,
) -> Result<NodeStatus, ClusterError> {
    let machine = &desired.machine;
    let name = &machine.name;
    let mut last = String::from("its agent never answered");
    let mut agent_seen = false;
    loop {
        let pause = match agent.status().await {
            Ok(s) => {
                if !agent_seen {
                    agent_seen = true;
                    work.events.node(name, "agent", took(&s));
                }
                if well(&s) {
                    return Ok(s);
                }
                if let Some(why) = &s.rescue {
                    return Err(failed(work, machine, format!("is in rescue: {why}"), None));
                }
                let services: Vec<String> = s
                    .services
                    .iter()
                    .filter(|x| {
                        !matches!(
                            x.state,
                            stead_model::agent::ServiceState::Ready | stead_model::agent::ServiceState::Done
                        )
                    })
                    .map(|x| match &x.last_exit {
                        Some(e) => format!("service {} is {:?} ({e})", x.name, x.state).to_lowercase(),
                        None => format!("service {} is {:?}", x.name, x.state).to_lowercase(),
                    })
                    .collect();
                last = match &s.engine {
                    Some(e) => format!(
                        "engine {:?}{}; {}",
                        e.state,
                        e.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default(),
                        services.join(", ")
                    ),
                    None => services.join(", "),
                };
                POLL
            }
            Err(e) => {
                if agent_seen {
                    last = crate::error::chain(&e);
                }
                POLL_UNREACHABLE
            }
        };
        let gone = match supervise::observe(&machine.dir) {
            None => Some("its machine ended".to_owned()),
            Some(s) => s.error.filter(|_| s.phase == "failed"),
        };
        if let Some(why) = gone {
            return Err(failed(work, machine, format!("{why} before {what}"), agent_seen.then_some(&last)));
        }
        if Instant::now() > deadline {
            return Err(failed(work, machine, format!("timed out waiting for {what}"), Some(&last)));
        }
        tokio::time::sleep(pause).await;
    }
}

fn failed(work: &Work, machine: &MachineSpec, why: String, last: Option<&String>) -> ClusterError {
    let dir = work.layout.node(&machine.name);
    let mut tail = String::new();
    for file in ["supervisor.log", "console.log"] {
        let text = files::tail(&dir.join(file), TAIL_LINES);
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
    if !settled(&status) {
        status = wait_for(work, desired, agent, deadline, "its engine", settled).await?;
    }
    if state(&status) == Some(EngineState::Waiting) {
        // Only a cluster that exists can be joined: wait for a member that is online.
        let mut seeds = work.seed.subscribe();
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
        .filter(|(_, address)| address.port() != 0);
        let Some((seed_name, seed_address)) = seed else {
            return Err(failed(
                work,
                &desired.machine,
                "has no member to join through: no other node came online".into(),
                None,
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
        let was_member = work.record.lock().await.members.contains(name);
        if was_member {
            work.events.warning(format!(
                "{name} lost its {} state: its old membership is removed and it joins anew",
                work.engine
            ));
            let request = RemoveMemberRequest { member: name.clone(), force: true };
            seed.remove_member(&request).await.map_err(|e| ClusterError::Agent {
                action: "remove the old membership",
                node: seed_name.clone(),
                source: Box::new(e),
            })?;
        }
        let token = seed.join_token(&JoinTokenRequest { member: name.clone() }).await.map_err(|e| {
            ClusterError::Agent { action: "get a join token", node: seed_name.clone(), source: Box::new(e) }
        })?;
        agent.join(&JoinRequest { token }).await.map_err(|e| ClusterError::Agent {
            action: "join the engine's cluster",
            node: name.clone(),
            source: Box::new(e),
        })?;
    }
    remember_member(work, desired).await?;
    work.seed.send_if_modified(|s| s.is_none() && s.replace((name.clone(), desired.agent)).is_none());
    let status = wait_for(work, desired, agent, deadline, "its engine to be online", |s| {
        s.engine.as_ref().is_some_and(|e| matches!(e.state, EngineState::Online | EngineState::Evacuated))
            && s.phase == NodePhase::Running
    })
    .await?;
    work.events.node(name, "online", took(&status));
    Ok(())
}

/// The record knows the member, and its spec will never again have it initialise a cluster.
async fn remember_member(work: &Work, desired: &DesiredNode) -> Result<(), ClusterError> {
    let mut record = work.record.lock().await;
    if record.members.insert(desired.machine.name.clone()) {
        record.save(&work.layout)?;
    }
    files::write_json(&desired.machine.spec_dir.join("node.json"), &desired.spec)?;
    Ok(())
}

/// Evacuates, removes from the engine, stops and deletes a node.
async fn remove(
    work: &Work,
    removal: &Removal,
    desired: &Desired,
    observed: &Observed,
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
        record.save(&work.layout)?;
    }
    work.events.node(name, "stopping", "");
    if let Some(machine) = observed.nodes.get(name).and_then(|o| o.machine.as_ref()) {
        let address = observed.nodes.get(name).and_then(|o| observe::agent_address(o.spec.as_ref()?));
        if let Some(address) = address
            && let Ok(agent) = dial::agent(&work.operator, &machine.netns, name, address)
        {
            let _ = agent.shutdown(&StopRequest { deadline_s: STOP_SECONDS }).await;
        }
    }
    down::stop_machine(&work.layout.node(name), name, Duration::from_secs(u64::from(STOP_SECONDS) + 5))
        .await?;
    down::delete_node(&work.layout, name).await?;
    work.events.node(name, "stopped", "deleted");
    Ok(())
}

/// Checks that a manifest can be a node at all; for verbs that only need the image.
///
/// # Errors
/// It is an instance image.
pub fn bootable(manifest: &Manifest) -> Result<(), ClusterError> {
    match manifest.boot {
        Some(_) => Ok(()),
        None => {
            Err(ClusterError::Refused(format!("image {} is for instances, not for nodes", manifest.name)))
        }
    }
}
