//! A cluster in memory: machines that run or not, an engine cluster with members and voters, and failures that happen
//! when a step begins.

use super::text;
use crate::{
    ClusterError, Events, Plan,
    desired::Desired,
    event::Event,
    execute::{Setback, World, converge},
    fixtures::{machine_state, name, status, want},
    observe::{Observed, ObservedNode},
    plan::{Action, StopHow},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};
use stead_machine::{MachinePhase, MachineSpec, network::HostNetworkSpec};
use stead_model::{EngineKind, NodeName, NodeSpec, agent::EngineState, node::EngineRole};

/// How many turns of others a wait may take before it times out.
const PATIENCE: u32 = 200;

/// A node of the town.
#[derive(Clone)]
struct House {
    machine: MachineSpec,
    spec: NodeSpec,
    keeps_state: bool,
    runs: bool,
    /// The number of the engine cluster whose state it has.
    state: Option<u32>,
}

/// State of the town.
#[derive(Clone, Default)]
struct Facts {
    network: Option<HostNetworkSpec>,
    network_runs: bool,
    houses: BTreeMap<NodeName, House>,
    /// The record.
    members: BTreeSet<NodeName>,
    leaving: BTreeMap<NodeName, NodeName>,
    /// The engine cluster: its number, members and voters.
    cluster: u32,
    registry: BTreeSet<NodeName>,
    voters: BTreeSet<NodeName>,
    evacuated: BTreeSet<NodeName>,
    /// Whether the executed plan forms a new engine cluster.
    anew: bool,
    /// Moments at which a cluster lost its quorum.
    outages: Vec<String>,
}

type Trigger = (String, Box<dyn FnOnce(&mut Town)>);

/// The town, and its future events.
pub(super) struct Town {
    engine: EngineKind,
    facts: RefCell<Facts>,
    desired: Desired,
    triggers: RefCell<Vec<Trigger>>,
}

impl Facts {
    fn is_there(&self, node: &NodeName) -> bool {
        self.houses.get(node).is_some_and(|h| h.runs && h.state == Some(self.cluster))
    }
    fn quorum(&self) -> bool {
        let there = self.voters.iter().filter(|v| self.is_there(v)).count();
        !self.voters.is_empty() && there * 2 > self.voters.len()
    }
    fn engine(&self, node: &NodeName) -> EngineState {
        let Some(house) = self.houses.get(node) else { return EngineState::Starting };
        match house.state {
            None => EngineState::Waiting,
            Some(n) if n == self.cluster && self.registry.contains(node) && self.quorum() => {
                match self.evacuated.contains(node) {
                    true => EngineState::Evacuated,
                    false => EngineState::Online,
                }
            }
            Some(_) => EngineState::Offline,
        }
    }
    fn online(&self, node: &NodeName) -> bool {
        let runs = self.houses.get(node).is_some_and(|h| h.runs);
        runs && matches!(self.engine(node), EngineState::Online | EngineState::Evacuated)
    }
    /// The engines have three voters, or one while there are fewer than three members.
    fn choose_voters(&mut self) {
        let count = if self.registry.len() < 3 { 1 } else { 3 };
        self.voters.retain(|v| self.registry.contains(v));
        let there: Vec<NodeName> = self.registry.iter().filter(|m| self.is_there(m)).cloned().collect();
        for node in there {
            if self.voters.len() < count {
                self.voters.insert(node);
            }
        }
        while self.voters.len() > count {
            self.voters.pop_last();
        }
    }
    fn ends(&mut self, node: &NodeName) {
        if let Some(house) = self.houses.get_mut(node) {
            house.runs = false;
            if !house.keeps_state {
                house.state = None;
            }
        }
    }
    /// Another member becomes a voter instead of this one, which is told to end.
    fn hands_over(&mut self, node: &NodeName) {
        let other =
            self.registry.iter().find(|m| *m != node && self.is_there(m) && !self.voters.contains(*m));
        if let Some(other) = other.cloned()
            && self.voters.remove(node)
        {
            self.voters.insert(other);
        }
    }
    fn leaves(&mut self, node: &NodeName) {
        self.registry.remove(node);
        self.evacuated.remove(node);
        self.choose_voters();
        if let Some(house) = self.houses.get_mut(node) {
            house.state = None;
        }
    }
}

impl Town {
    pub(super) fn new(engine: EngineKind) -> Self {
        let desired = want("nodes: 1", 1, engine);
        Self { engine, facts: RefCell::default(), desired, triggers: RefCell::default() }
    }
    /// Sets the desired state from this file.
    pub(super) fn file(&mut self, yaml: &str, layer: u8) {
        self.desired = want(yaml, layer, self.engine);
    }
    pub(super) fn desired(&self) -> &Desired {
        &self.desired
    }
    /// Runs `up`; returns the plans and their results.
    pub(super) fn up(&mut self, yaml: &str, layer: u8) -> String {
        self.file(yaml, layer);
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let result = self.converge(&Events::to(sender));
        let mut out = String::new();
        let mut said = Vec::new();
        while let Ok(Event::Warning { text }) = receiver.try_recv() {
            said.push(text);
        }
        let mut again = said.iter().filter(|t| t.starts_with("planned again"));
        match result {
            Ok((first, later)) => {
                out.push_str(&first.to_string());
                for plan in later {
                    out.push_str(&format!("{}\n{plan}", again.next().map_or("", String::as_str)));
                }
            }
            Err(e) => {
                for text in &said {
                    out.push_str(&format!("{text}\n"));
                }
                out.push_str(&format!("error: {}\n", crate::error::chain(&e)));
            }
        }
        out + &self.state()
    }
    pub(super) fn converge(&mut self, events: &Events) -> Result<(Plan, Vec<Plan>), ClusterError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let desired = self.desired.clone();
        runtime.block_on(converge(self, &desired, events))
    }
    /// Every node and its state.
    pub(super) fn state(&self) -> String {
        let f = self.facts.borrow();
        let nodes = f.houses.iter().map(|(node, h)| match (h.runs, self.engine) {
            (false, _) => format!("{node} down"),
            (true, EngineKind::None) => format!("{node} runs"),
            (true, _) => format!("{node} {}", crate::health::word(&f.engine(node))),
        });
        let nodes = nodes.collect::<Vec<_>>().join(", ");
        format!("-> {}\n", if nodes.is_empty() { "nothing is there" } else { &nodes })
    }
    pub(super) fn observed(&self) -> Observed {
        let f = self.facts.borrow();
        let nodes = f.houses.iter().map(|(node, h)| {
            let engine = (!self.engine.is_none()).then(|| (f.engine(node), Some(format!("{:?}", h.state))));
            let seen = ObservedNode {
                running: h.runs.then(|| machine_state(MachinePhase::Running)),
                machine: Some(h.machine.clone()),
                spec: Some(h.spec.clone()),
                status: h.runs.then(|| status(node, engine)),
                unlinked: false,
                other_version: None,
            };
            (node.clone(), seen)
        });
        Observed {
            network: f.network.clone(),
            network_runs: f.network_runs,
            members: f.members.clone(),
            leaving: f.leaving.clone(),
            nodes: nodes.collect(),
        }
    }
    /// Every existing node.
    pub(super) fn nodes(&self) -> Vec<NodeName> {
        self.facts.borrow().houses.keys().cloned().collect()
    }
    /// Whether a majority of the voters is running.
    pub(super) fn has_quorum(&self) -> bool {
        self.facts.borrow().quorum()
    }
    /// Whether a member has a vote.
    pub(super) fn votes(&self, node: &NodeName) -> bool {
        self.facts.borrow().voters.contains(node)
    }
    /// Whether a member could be asked to remove another.
    pub(super) fn may_remove(&self, node: &NodeName, through: &NodeName) -> bool {
        let f = self.facts.borrow();
        node != through && f.members.contains(node) && f.online(node) && f.online(through)
    }
    /// Whether all wanted nodes run and are online members.
    pub(super) fn is_well(&self) -> bool {
        let f = self.facts.borrow();
        let names: BTreeSet<&NodeName> = self.desired.nodes.iter().map(|d| &d.machine.name).collect();
        let houses: BTreeSet<&NodeName> = f.houses.keys().collect();
        let well = |n: &&NodeName| {
            f.houses.get(*n).is_some_and(|h| h.runs) && (self.engine.is_none() || f.online(n))
        };
        names == houses && names.iter().all(well)
    }
    /// Moments at which the cluster lost its quorum, since the last call.
    pub(super) fn outages(&self) -> Vec<String> {
        std::mem::take(&mut self.facts.borrow_mut().outages)
    }

    // Events.

    /// Sets an event for when the step with this text begins.
    pub(super) fn when(&mut self, step: &str, happens: impl FnOnce(&mut Town) + 'static) {
        self.triggers.get_mut().push((step.to_owned(), Box::new(happens)));
    }
    pub(super) fn crash(&mut self, node: &str) {
        self.facts.get_mut().ends(&name(node));
    }
    pub(super) fn reboot(&mut self) {
        let f = self.facts.get_mut();
        for node in f.houses.keys().cloned().collect::<Vec<_>>() {
            f.ends(&node);
        }
        f.network_runs = false;
    }
    pub(super) fn lose_disk(&mut self, node: &str) {
        self.facts.get_mut().houses.get_mut(&name(node)).unwrap().state = None;
    }
    /// The engine removes the member.
    pub(super) fn expel(&mut self, node: &str) {
        self.facts.get_mut().leaves(&name(node));
    }
    /// A command that has begun to remove a member is killed; `removed`: the engine completes the removal.
    pub(super) fn cut_removal_short(&mut self, node: &str, through: &str, removed: bool) {
        let f = self.facts.get_mut();
        f.leaving.insert(name(node), name(through));
        f.evacuated.insert(name(node));
        if removed {
            f.leaves(&name(node));
        }
    }

    /// Begins a step and triggers its events.
    fn begins(&self, action: &Action) {
        let text = text(action);
        let mut triggers = self.triggers.borrow_mut();
        if let Some(at) = triggers.iter().position(|(step, _)| *step == text) {
            let (_, happens) = triggers.remove(at);
            drop(triggers);
            let mut town = Town {
                engine: self.engine,
                facts: RefCell::new(self.facts.take()),
                desired: self.desired.clone(),
                triggers: RefCell::default(),
            };
            happens(&mut town);
            self.facts.replace(town.facts.into_inner());
        }
    }
    /// Waits until something is true.
    async fn until(&self, node: &NodeName, what: &str, is: impl Fn(&Facts) -> bool) -> Result<(), Setback> {
        for _ in 0..PATIENCE {
            if !self.facts.borrow().houses.get(node).is_some_and(|h| h.runs) {
                return Err(Setback::Failed(failure(
                    node,
                    &format!("its machine ended while waiting for {what}"),
                )));
            }
            if is(&self.facts.borrow()) {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
        Err(Setback::Failed(failure(node, &format!("timed out waiting for {what}"))))
    }
    fn remember(&self, node: &NodeName) {
        let mut f = self.facts.borrow_mut();
        f.members.insert(node.clone());
        f.leaving.remove(node);
    }
    /// Refuses an unusable member.
    fn goes_through(&self, node: &NodeName, through: &NodeName) -> Result<(), Setback> {
        match self.facts.borrow().online(through) {
            true => Ok(()),
            false => Err(Setback::Moved(format!("{node} cannot go through {through}: it is not online"))),
        }
    }
    async fn act(&self, action: &Action) -> Result<(), Setback> {
        match action {
            Action::Network { .. } => {
                let mut f = self.facts.borrow_mut();
                f.network = Some(self.desired.network.clone());
                f.network_runs = true;
            }
            Action::Stop { node, how, .. } => {
                let mut f = self.facts.borrow_mut();
                if *how == StopHow::Clean {
                    f.hands_over(node);
                }
                f.ends(node);
            }
            Action::Start { node, initialises } => {
                let want = self.desired.nodes.iter().find(|d| &d.machine.name == node).unwrap();
                let mut f = self.facts.borrow_mut();
                let old = f.houses.get(node);
                assert!(!old.is_some_and(|h| h.runs), "{node} is started a second time");
                let mut spec = want.spec.clone();
                let state =
                    old.filter(|h| h.keeps_state).and_then(|h| h.state).filter(|_| want.data_disk.is_some());
                if *initialises {
                    spec.engine.as_mut().unwrap().role = EngineRole::Init;
                    assert!(state.is_none(), "{node} initialises over what it has");
                    f.cluster += 1;
                    f.registry = BTreeSet::from([node.clone()]);
                    f.voters = f.registry.clone();
                    f.evacuated.clear();
                }
                let house = House {
                    machine: want.machine.clone(),
                    spec,
                    keeps_state: want.data_disk.is_some(),
                    runs: true,
                    state: if *initialises { Some(f.cluster) } else { state },
                };
                f.houses.insert(node.clone(), house);
            }
            Action::AwaitServices { node } | Action::AwaitAgent { node } => {
                self.until(node, "its services to run", |_| true).await?;
            }
            Action::Initialise { node } => {
                self.until(node, "its engine to be online", |f| f.online(node)).await?;
                let mut f = self.facts.borrow_mut();
                f.houses.get_mut(node).unwrap().spec.engine.as_mut().unwrap().role = EngineRole::Join;
                f.members.insert(node.clone());
            }
            Action::AwaitMember { node } => {
                let waits = |f: &Facts| f.engine(node) == EngineState::Waiting;
                self.until(node, "its engine to be online", |f| f.online(node) || waits(f)).await?;
                if waits(&self.facts.borrow()) {
                    return Err(Setback::Moved(format!("{node} is no longer a member")));
                }
                self.remember(node);
            }
            Action::Readmit { node, through } => {
                if node != through {
                    self.goes_through(node, through)?;
                }
                self.facts.borrow_mut().evacuated.remove(node);
            }
            Action::Join { node, through, anew } => {
                self.until(node, "its engine", |_| true).await?;
                if self.facts.borrow().engine(node) == EngineState::Waiting {
                    self.goes_through(node, through)?;
                    let mut f = self.facts.borrow_mut();
                    if f.registry.contains(node) {
                        assert!(*anew, "{node} is still a member");
                        f.leaves(node);
                    }
                    f.registry.insert(node.clone());
                    let cluster = f.cluster;
                    f.houses.get_mut(node).unwrap().state = Some(cluster);
                    f.choose_voters();
                }
                self.until(node, "its engine to be online", |f| f.online(node)).await?;
                self.remember(node);
            }
            Action::Evacuate { node, through } | Action::Remove { node, through } => {
                self.facts.borrow_mut().leaving.insert(node.clone(), through.clone());
                self.goes_through(node, through)?;
                let mut f = self.facts.borrow_mut();
                f.leaves(node);
                f.members.remove(node);
                f.leaving.remove(node);
            }
            Action::Delete { node } => {
                let house = self.facts.borrow_mut().houses.remove(node);
                assert!(!house.is_some_and(|h| h.runs), "{node} is deleted while it runs");
            }
            Action::AwaitSteady { nodes } => {
                for node in nodes {
                    self.until(node, "all members to be online", |f| f.online(node)).await?;
                }
            }
        }
        Ok(())
    }
}

fn failure(node: &NodeName, why: &str) -> ClusterError {
    ClusterError::Node { node: node.clone(), why: why.to_owned(), tail: String::new() }
}

impl World for Town {
    async fn look(&mut self) -> Result<Observed, ClusterError> {
        Ok(self.observed())
    }
    async fn begin(&mut self, plan: &Plan) -> Result<(), ClusterError> {
        let f = self.facts.get_mut();
        f.anew = plan.initialises().is_some();
        if f.anew {
            f.members.clear();
            f.leaving.clear();
        }
        Ok(())
    }
    async fn perform(&self, action: &Action) -> Result<(), Setback> {
        self.begins(action);
        // A single member cannot be restarted otherwise.
        let had = {
            let f = self.facts.borrow();
            f.quorum() && f.registry.len() > 1 && !f.anew
        };
        // Others go on meanwhile.
        tokio::task::yield_now().await;
        let cluster = self.facts.borrow().cluster;
        let result = self.act(action).await;
        let mut f = self.facts.borrow_mut();
        if had && f.cluster == cluster && !f.quorum() {
            f.outages.push(text(action));
        }
        result
    }
}
