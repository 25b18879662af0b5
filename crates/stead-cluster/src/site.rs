//! A cluster on this host: observes it, and executes single steps through its machines, agents and network.

use crate::{
    ClusterError, Events, Host, Layout, Plan, Record,
    blocking::blocking,
    claim,
    desired::{Desired, DesiredNode},
    dial,
    execute::{Setback, World},
    files, health,
    identities::Pki,
    machines,
    members::{self, Peer},
    observe::{self, Observed},
    plan::{Action, StopHow},
    prepare::Prepared,
    starts::Starts,
    wait::Watch,
};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
    path::PathBuf,
    thread::available_parallelism,
};
use stead_agent::Client;
use stead_model::{EngineKind, NodeName, NodeSpec, agent::NodeStatus, node::EngineRole};
use tokio::sync::Mutex;

/// The cluster of one command.
pub(crate) struct Site {
    exe: PathBuf,
    layout: Layout,
    engine: EngineKind,
    record: Mutex<Record>,
    pki: Pki,
    desired: Desired,
    events: Events,
    /// The reason for the choice of the backend.
    backend_why: String,
    /// Agents of the wanted nodes, with their connections, which are kept until the machine is restarted.
    agents: Mutex<BTreeMap<NodeName, Client>>,
    starts: Starts,
}

impl Site {
    /// The site of prepared inputs; changes nothing yet.
    pub(crate) fn new(host: &Host, prepared: Prepared, events: &Events) -> Self {
        let Prepared { layout, record, desired, pki, backend_why } = prepared;
        Self {
            exe: host.exe.clone(),
            engine: record.engine,
            record: Mutex::new(record),
            events: events.clone(),
            agents: Mutex::default(),
            starts: Starts::new(available_parallelism().map_or(1, NonZero::get)),
            layout,
            pki,
            desired,
            backend_why,
        }
    }

    fn desired(&self, node: &NodeName) -> Result<&DesiredNode, ClusterError> {
        self.desired.nodes.iter().find(|d| &d.machine.name == node).ok_or_else(|| ClusterError::NoNode {
            cluster: self.layout.cluster().clone(),
            node: node.to_string(),
            have: self.desired.nodes.iter().map(|d| d.machine.name.to_string()).collect(),
        })
    }

    /// A client of a node's agent, with its connections.
    async fn agent(&self, node: &NodeName) -> Result<Client, ClusterError> {
        if let Some(agent) = self.agents.lock().await.get(node) {
            return Ok(agent.clone());
        }
        let address = self.desired(node)?.agent;
        let agent =
            dial::agent(&self.pki.operator, &self.desired.network.netns(), node, address).map_err(|e| {
                ClusterError::Agent {
                    action: "prepare a connection",
                    node: node.clone(),
                    source: Box::new(e),
                }
            })?;
        self.agents.lock().await.insert(node.clone(), agent.clone());
        Ok(agent)
    }

    /// The spec that a node boots with.
    fn spec(&self, node: &DesiredNode, initialises: bool) -> NodeSpec {
        let mut spec = node.spec.clone();
        if initialises && let Some(e) = &mut spec.engine {
            e.role = EngineRole::Init;
        }
        spec
    }

    async fn start(&self, node: &NodeName, initialises: bool) -> Result<(), ClusterError> {
        let desired = self.desired(node)?;
        if !self.engine.is_none() {
            self.starts.begin(node).await;
        }
        self.events.node(node, "starting", desired.machine.backend.to_string());
        self.agents.lock().await.remove(node);
        let spec = self.spec(desired, initialises);
        let started = machines::start(self.exe.clone(), desired.machine.clone(), &spec).await;
        if started.is_err() {
            self.starts.end(node);
        }
        started
    }

    async fn stop(&self, node: &NodeName, how: StopHow, why: &[String]) -> Result<(), ClusterError> {
        self.events.node(node, "stopping", why.join(", "));
        let dir = self.layout.node(node);
        match how {
            StopHow::Kill => machines::kill(&dir, node).await,
            StopHow::Clean => {
                // An unwanted node is ended by its supervisor's signal.
                let agent = self.agent(node).await.ok();
                machines::stop(&dir, node, agent.as_ref()).await
            }
        }
    }

    /// Records the member, and sets its spec so that it never initialises a cluster again.
    async fn remember(&self, node: &NodeName, status: &NodeStatus) -> Result<(), ClusterError> {
        let mut record = self.record.lock().await;
        let new = record.members.insert(node.clone());
        if record.leaving.remove(node).is_some() || new {
            record.save(&self.layout)?;
        }
        let desired = self.desired(node)?;
        files::write_json(&desired.machine.spec_dir.join("node.json"), &desired.spec)?;
        self.events.node(node, "online", health::uptime(status));
        Ok(())
    }

    async fn remove(&self, node: &NodeName, through: &NodeName, force: bool) -> Result<(), Setback> {
        let what = if force { "removing by force" } else { "evacuating" };
        self.events.node(node, "stopping", format!("{what}, through {through}"));
        {
            let mut record = self.record.lock().await;
            record.leaving.insert(node.clone(), through.clone());
            record.save(&self.layout)?;
        }
        let agent = self.agent(through).await?;
        let through = Peer { machine: &self.desired(through)?.machine, agent: &agent };
        members::remove(node, &self.layout.node_spec_dir(node), through, force).await?;
        let mut record = self.record.lock().await;
        record.members.remove(node);
        record.leaving.remove(node);
        Ok(record.save(&self.layout)?)
    }

    /// Executes the steps that wait for a node to be healthy.
    async fn bring(&self, node: &NodeName, action: &Action) -> Result<(), Setback> {
        let machine = &self.desired(node)?.machine;
        let agent = self.agent(node).await?;
        let quiet = Events::none();
        let watch = |events| Watch::new(machine, &agent, events);
        match action {
            Action::AwaitServices { .. } => {
                let status = watch(&self.events).until("its services to run", health::runs).await?;
                self.events.node(node, "running", health::uptime(&status));
            }
            Action::AwaitAgent { .. } => {
                let well = |s: &NodeStatus| health::runs(s) || health::engine_answers(s);
                let status = watch(&self.events).until("its services to run", well).await;
                self.starts.end(node);
                self.events.node(node, "engine", health::uptime(&status?));
            }
            Action::Initialise { .. } => {
                let status = members::initialise(&watch(&quiet)).await?;
                self.remember(node, &status).await?;
            }
            Action::AwaitMember { .. } => {
                let status = members::await_member(&watch(&quiet)).await?;
                self.remember(node, &status).await?;
            }
            Action::Readmit { through, .. } => {
                self.events.node(node, "engine", "its removal was interrupted: it is restored");
                let (way, machine) = (self.agent(through).await?, &self.desired(through)?.machine);
                members::readmit(&watch(&quiet), Peer { machine, agent: &way }).await?;
            }
            Action::Join { through, anew, .. } => {
                let (way, machine) = (self.agent(through).await?, &self.desired(through)?.machine);
                let through = Peer { machine, agent: &way };
                let status = members::join(&watch(&quiet), self.engine, through, *anew, &self.events).await?;
                self.remember(node, &status).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn steady(&self, nodes: &[NodeName]) -> Result<(), ClusterError> {
        let mut agents = Vec::new();
        for node in nodes {
            agents.push((&self.desired(node)?.machine, self.agent(node).await?));
        }
        let quiet = Events::none();
        let watches: Vec<Watch<'_>> =
            agents.iter().map(|(machine, agent)| Watch::new(machine, agent, &quiet)).collect();
        let all = join_all(watches.iter().map(members::well)).await;
        ClusterError::all(all.into_iter().filter_map(Result::err).collect())?;
        let peers: Vec<Peer<'_>> = agents.iter().map(|(machine, agent)| Peer { machine, agent }).collect();
        members::steady(&peers).await
    }

    async fn act(&self, action: &Action) -> Result<(), Setback> {
        match action {
            Action::Network { .. } => {
                self.events.step("network");
                let (exe, spec) = (self.exe.clone(), self.desired.network.clone());
                let cluster = self.layout.cluster().clone();
                blocking("make the network", move || stead_machine::network::up(&exe, &spec))
                    .await?
                    .map_err(|e| ClusterError::Network { cluster, source: Box::new(e) })?;
            }
            Action::Stop { node, how, why } => self.stop(node, *how, why).await?,
            Action::Start { node, initialises } => self.start(node, *initialises).await?,
            Action::AwaitServices { node }
            | Action::AwaitAgent { node }
            | Action::Initialise { node }
            | Action::AwaitMember { node }
            | Action::Readmit { node, .. }
            | Action::Join { node, .. } => self.bring(node, action).await?,
            Action::Evacuate { node, through } => self.remove(node, through, false).await?,
            Action::Remove { node, through } => self.remove(node, through, true).await?,
            Action::Delete { node } => {
                machines::delete(&self.layout.node(node), node).await?;
                self.events.node(node, "stopped", "deleted");
            }
            Action::AwaitSteady { nodes } => self.steady(nodes).await?,
        }
        Ok(())
    }
}

impl World for Site {
    async fn look(&mut self) -> Result<Observed, ClusterError> {
        observe::settled(&self.layout, &*self.record.lock().await, &self.pki.operator, &self.events).await
    }

    async fn begin(&mut self, plan: &Plan) -> Result<(), ClusterError> {
        let initialises = plan.initialises();
        self.starts.reset();
        {
            let mut record = self.record.lock().await;
            if initialises.is_some() {
                record.members.clear();
                record.leaving.clear();
            }
            claim::take(&self.layout)?;
            record.save(&self.layout)?;
        }
        self.pki.save(&self.layout)?;
        files::private_dir(&self.layout.network())?;
        let started: BTreeSet<&NodeName> = plan.started().collect();
        for node in self.desired.nodes.iter().filter(|d| !started.contains(&d.machine.name)) {
            // Changes for its next boot, such as a renewed certificate.
            let spec = self.spec(node, initialises == Some(&node.machine.name));
            files::write_json(&node.machine.spec_dir.join("node.json"), &spec)?;
        }
        if !started.is_empty() {
            self.events.step(format!("nodes ({} to start; {})", started.len(), self.backend_why));
        }
        Ok(())
    }

    async fn perform(&self, action: &Action) -> Result<(), Setback> {
        let result = self.act(action).await;
        if let Err(Setback::Moved(_)) = &result {
            // The steps that would end starts are not begun any more.
            self.starts.open();
        }
        if let (Err(setback), Some(node)) = (&result, action.node()) {
            let why = match setback {
                Setback::Moved(why) => why.clone(),
                Setback::Failed(e) => crate::error::chain(e),
            };
            self.events.node(node, "failed", why);
        }
        result
    }
}
