//! Clusters for tests, as values.

use crate::{
    Layout, Record,
    desired::{Desired, Inputs, desired},
    observe::{Observed, ObservedNode},
};
use std::{collections::BTreeMap, path::Path};
use stead_agent::Identity;
use stead_machine::{MachinePhase, MachineState, host::HostFacts};
use stead_model::{
    Artifact, Bytes, ClusterSpec, Digest, EngineKind, Manifest, NodeName,
    agent::{EngineState, EngineStatus, NodePhase, NodeStatus},
    cluster::Backend,
    manifest::{Boot, FlatArtifact, Layer},
    recipe::RecipeKind,
};

/// Disks that keep a node's state.
pub(crate) const DATA: &str = "machine: {disks: [{name: data, size: 1GiB, role: data}]}";

fn digest(n: u8) -> Digest {
    Digest::from_bytes(&[n; 32])
}

fn manifest(layer: u8, engine: EngineKind) -> Manifest {
    let artifact = |n| Artifact { digest: digest(n), size: Bytes(1) };
    Manifest {
        schema: 1,
        name: "incus-node".parse().unwrap(),
        kind: RecipeKind::Node,
        architecture: "amd64".into(),
        recipe: digest(0),
        engine,
        layers: vec![Layer {
            name: "base".into(),
            artifact: FlatArtifact { digest: digest(layer), size: Bytes(1) },
            inputs: digest(0),
        }],
        boot: Some(Boot {
            kernel_release: Some("6.12".into()),
            vmlinux: Some(artifact(1)),
            bzimage: None,
            initrd: Some(artifact(2)),
            stead_node: artifact(3),
        }),
        instance: None,
        container: None,
        packages: BTreeMap::new(),
    }
}

/// The desired state for a cluster file, given without name and image, and an image whose root layer has this number.
pub(crate) fn want(yaml: &str, layer: u8, engine: EngineKind) -> Desired {
    let spec = ClusterSpec::from_yaml("c", &format!("name: demo\nimage: incus-node\n{yaml}")).unwrap();
    let identity = Identity { ca_pem: "ca".into(), certificate_pem: "c".into(), key_pem: "k".into() };
    let record = Record {
        schema: 1,
        base_dir: "/".into(),
        image: digest(9),
        engine,
        members: Default::default(),
        leaving: BTreeMap::new(),
        spec,
    };
    desired(&Inputs {
        layout: &Layout::new(Path::new("/s"), &record.spec.name),
        record: &record,
        manifest: &manifest(layer, engine),
        blobs: "/b".into(),
        overlays: &BTreeMap::new(),
        identities: &record.spec.node_names().into_iter().map(|n| (n, identity.clone())).collect(),
        host: &HostFacts { memory: Bytes::gib(8), ..HostFacts::default() },
        auto: Backend::Namespace,
    })
    .unwrap()
}

pub(crate) fn name(node: &str) -> NodeName {
    node.parse().unwrap()
}

/// What a supervisor reports of a machine in this phase.
pub(crate) fn machine_state(phase: MachinePhase) -> MachineState {
    MachineState { supervisor_pid: 1, machine_pid: Some(2), boots: 1, phase, error: None }
}

/// An agent's status; `engine`: its state and the certificate of its cluster.
pub(crate) fn status(node: &NodeName, engine: Option<(EngineState, Option<String>)>) -> NodeStatus {
    NodeStatus {
        name: node.clone(),
        cluster: "demo".into(),
        phase: NodePhase::Running,
        boot_id: "b".into(),
        uptime_ms: 1,
        timeline: vec![],
        services: vec![],
        disks: vec![],
        warnings: vec![],
        rescue: None,
        engine: engine.map(|(state, certificate)| EngineStatus {
            kind: EngineKind::Incus,
            state,
            version: None,
            detail: None,
            certificate,
            leads: false,
            refused: false,
        }),
        addresses: vec![],
        kernel: String::new(),
        agent_rss_bytes: 0,
        version: String::new(),
    }
}

/// The observed state after `desired` was applied, with every engine in this state.
pub(crate) fn as_applied(desired: &Desired, engine: EngineState, members: &[&str]) -> Observed {
    Observed {
        network: Some(desired.network.clone()),
        network_runs: true,
        members: members.iter().map(|m| name(m)).collect(),
        leaving: BTreeMap::new(),
        nodes: desired
            .nodes
            .iter()
            .map(|d| {
                let node = ObservedNode {
                    running: Some(machine_state(MachinePhase::Running)),
                    machine: Some(d.machine.clone()),
                    spec: Some(d.spec.clone()),
                    status: Some(status(&d.machine.name, Some((engine, None)))),
                    unlinked: false,
                    other_version: None,
                };
                (d.machine.name.clone(), node)
            })
            .collect(),
    }
}
