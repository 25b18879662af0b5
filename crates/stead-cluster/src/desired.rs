//! The desired state: network and machines, from record, image and identities, with nothing left to choose. Pure.

use crate::{ClusterError, Layout, Record};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};
use stead_agent::Identity;
use stead_machine::{
    MachineSpec, backend,
    host::HostFacts,
    network::{BridgeSpec, HostEntry, HostNetworkSpec, PublishTarget},
    spec::{MachineDisk, MachineNic},
};
use stead_model::{
    Digest, EngineKind, Manifest, NodeName,
    cluster::{Backend, DiskRole, Publish, ResolvedNode},
    manifest::Artifact,
    node::{
        AGENT_PORT, AgentSpec, ENGINE_PORT, EngineRole, EngineSpec, Interface, NetworkSpec, NodeSpec,
        RootUpper, Route,
    },
    recipe::SystemSpec,
};

/// The desired state of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The host network.
    pub network: HostNetworkSpec,
    /// The engine on all nodes.
    pub engine: EngineKind,
    /// Every node, in order.
    pub nodes: Vec<DesiredNode>,
}

/// The desired state of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DesiredNode {
    /// Its machine.
    pub machine: MachineSpec,
    /// Its node spec. The engine's role is always `Join` here; the plan decides which node initialises.
    pub spec: NodeSpec,
    /// Address of its agent.
    pub agent: SocketAddr,
    /// The disk on which the engine's state survives a restart; without one it is lost.
    pub data_disk: Option<String>,
}

/// Inputs of [`desired`].
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Paths.
    pub layout: &'a Layout,
    /// The record.
    pub record: &'a Record,
    /// Its image.
    pub manifest: &'a Manifest,
    /// The store's blob directory: files are named by the digest's hexadecimal digits.
    pub blobs: PathBuf,
    /// Boot overlay layers of each node, in order.
    pub overlays: &'a BTreeMap<NodeName, Vec<Digest>>,
    /// Certificates of each node.
    pub identities: &'a BTreeMap<NodeName, Identity>,
    /// The host.
    pub host: &'a HostFacts,
    /// The backend that `auto` means on it.
    pub auto: Backend,
}

/// Computes the desired state.
///
/// # Errors
/// [`ClusterError::Refused`] when the image cannot run as requested (no kernel for qemu, no such engine).
pub fn desired(inputs: &Inputs<'_>) -> Result<Desired, ClusterError> {
    let spec = &inputs.record.spec;
    let refused = |why: String| Err(ClusterError::Refused(why));
    let Some(boot) = &inputs.manifest.boot else {
        return refused(format!(
            "image {} is for instances, not for nodes: it cannot boot",
            inputs.manifest.name
        ));
    };
    let resolved = spec.resolve();
    let blob = |a: &Artifact| inputs.blobs.join(a.digest.hex());
    let engine = inputs.record.engine;
    let mut nodes = Vec::with_capacity(resolved.len());
    for node in &resolved {
        let backend = node.backend.or(inputs.auto);
        let profile = backend::profile(backend);
        if profile.needs_kernel && (boot.vmlinux.is_none() || boot.initrd.is_none()) {
            return refused(format!(
                "node {}: image {} has no kernel, and {backend} machines boot one; add a kernel to the recipe, or use a backend that needs none: {}",
                node.name,
                inputs.manifest.name,
                backends_without_kernel()
            ));
        }
        let layers = inputs
            .manifest
            .layers
            .iter()
            .map(|l| inputs.blobs.join(l.artifact.digest.hex()))
            .chain(inputs.overlays.get(&node.name).into_iter().flatten().map(|d| inputs.blobs.join(d.hex())))
            .collect();
        let dir = inputs.layout.node(&node.name);
        let machine = MachineSpec {
            cluster: spec.name.clone(),
            name: node.name.clone(),
            backend,
            accelerator: backend::accelerator(backend, inputs.host),
            cpus: node.cpus.or(profile.cpus),
            memory: node.memory.map(|m| m.of(inputs.host.memory)).or(profile.memory),
            vmlinux: boot.vmlinux.as_ref().map(blob),
            initrd: boot.initrd.as_ref().map(blob),
            stead_node: blob(&boot.stead_node),
            layers,
            layers_dir: inputs.layout.layers(),
            spec_dir: inputs.layout.node_spec_dir(&node.name),
            disks: node
                .disks
                .iter()
                .map(|d| MachineDisk {
                    serial: d.name.clone(),
                    path: dir.join("disks").join(format!("{}.raw", d.name)),
                    size: d.size,
                })
                .collect(),
            nics: node
                .nics
                .iter()
                .map(|n| MachineNic {
                    name: n.name.clone(),
                    bridge: n.network.clone(),
                    mac: n.mac,
                    mtu: n.mtu,
                })
                .collect(),
            netns: format!("stead-{}", spec.name),
            stop_timeout_s: engine.stop_seconds(),
            dir,
        };
        let Some(identity) = inputs.identities.get(&node.name) else {
            return refused(format!("node {} has no certificate", node.name));
        };
        nodes.push(DesiredNode {
            machine,
            spec: node_spec(inputs, node, engine, identity),
            agent: SocketAddr::new(first_address(node), AGENT_PORT),
            data_disk: node.disks.iter().find(|d| d.role == DiskRole::Data).map(|d| d.name.clone()),
        });
    }
    Ok(Desired { network: host_network(inputs, &resolved), engine, nodes })
}

fn backends_without_kernel() -> String {
    let names = backend::ALL.iter().filter(|b| !backend::profile(**b).needs_kernel).map(ToString::to_string);
    names.collect::<Vec<_>>().join(", ")
}

fn first_address(node: &ResolvedNode) -> IpAddr {
    node.nics.first().and_then(|n| n.addresses.first()).map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpNet::addr)
}

fn node_spec(inputs: &Inputs<'_>, node: &ResolvedNode, engine: EngineKind, identity: &Identity) -> NodeSpec {
    let spec = &inputs.record.spec;
    let facts = engine.facts();
    let mut interfaces = Vec::new();
    let mut nameservers = Vec::new();
    for (i, nic) in node.nics.iter().enumerate() {
        let Some(network) = spec.networks.iter().find(|n| n.name == nic.network) else { continue };
        let gateways: Vec<IpAddr> = network.addresses(1).iter().map(IpNet::addr).collect();
        nameservers.extend(&gateways);
        let routes = gateways
            .iter()
            .filter(|_| network.nat)
            .filter_map(|g| {
                let to = if g.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                Some(Route { to: to.parse().ok()?, via: Some(*g) })
            })
            .collect();
        let mut physical = Interface {
            name: nic.name.clone(),
            mac: Some(nic.mac),
            bridge_ports: None,
            mtu: Some(nic.mtu),
            addresses: Vec::new(),
            dhcp: false,
            accept_ra: false,
            routes: Vec::new(),
        };
        let bridge = facts.and_then(|f| f.bridge).filter(|_| i == 0);
        if let Some(bridge) = bridge {
            interfaces.push(physical);
            interfaces.push(Interface {
                name: bridge.to_owned(),
                mac: None,
                bridge_ports: Some(vec![nic.name.clone()]),
                mtu: Some(nic.mtu),
                addresses: nic.addresses.clone(),
                dhcp: false,
                accept_ra: false,
                routes,
            });
        } else {
            physical.addresses.clone_from(&nic.addresses);
            physical.routes = routes;
            interfaces.push(physical);
        }
    }
    let disk_of = |role| node.disks.iter().find(|d| d.role == role).map(|d| d.name.clone());
    NodeSpec {
        schema: 1,
        cluster: spec.name.clone(),
        name: node.name.clone(),
        network: NetworkSpec {
            interfaces,
            nameservers,
            search: vec![spec.name.to_string()],
            hosts: BTreeMap::new(),
        },
        system: SystemSpec {
            sysctl: spec.sysctl.clone(),
            services: spec.services.clone(),
            ..SystemSpec::default()
        },
        root: match disk_of(DiskRole::Data) {
            Some(serial) if node.persistent_root => RootUpper::Disk(serial),
            _ => RootUpper::Tmpfs,
        },
        engine: facts.map(|facts| EngineSpec {
            kind: facts.kind,
            role: EngineRole::Join,
            address: SocketAddr::new(first_address(node), ENGINE_PORT),
            bridge: facts.bridge.unwrap_or_default().to_owned(),
            storage_disk: disk_of(DiskRole::Storage),
            preseed: spec.preseed(),
        }),
        agent: Some(AgentSpec {
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), AGENT_PORT),
            ca_pem: identity.ca_pem.clone(),
            certificate_pem: identity.certificate_pem.clone(),
            key_pem: identity.key_pem.clone(),
        }),
    }
}

fn host_network(inputs: &Inputs<'_>, nodes: &[ResolvedNode]) -> HostNetworkSpec {
    let spec = &inputs.record.spec;
    let bridges = spec
        .networks
        .iter()
        .map(|n| BridgeSpec {
            name: n.name.clone(),
            addresses: n.addresses(1),
            mtu: n.mtu.unwrap_or(1500),
            dhcp: n.dhcp,
            nat: n.nat,
            hosts: nodes
                .iter()
                .filter_map(|node| {
                    let nic = node.nics.iter().find(|nic| nic.network == n.name)?;
                    Some(HostEntry {
                        name: node.name.clone(),
                        mac: nic.mac,
                        addresses: nic.addresses.iter().map(IpNet::addr).collect(),
                    })
                })
                .collect(),
        })
        .collect();
    let target = |p: &Publish| {
        let node = nodes.iter().find(|n| n.name == p.node)?;
        Some(PublishTarget { publish: p.clone(), target: SocketAddr::new(first_address(node), p.port) })
    };
    HostNetworkSpec {
        cluster: spec.name.clone(),
        dir: inputs.layout.network(),
        bridges,
        publish: engine_publish(inputs.record, nodes)
            .iter()
            .chain(&spec.publish)
            .filter_map(target)
            .collect(),
    }
}

/// The engine's API of the first node is published on a free loopback port, for the stock client; always the first
/// entry of the network's published ports.
fn engine_publish(record: &Record, nodes: &[ResolvedNode]) -> Option<Publish> {
    let first = nodes.first().filter(|_| !record.engine.is_none())?;
    Some(Publish {
        listen: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0),
        node: first.name.clone(),
        port: ENGINE_PORT,
    })
}
