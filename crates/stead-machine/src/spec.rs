//! What a machine is made of, as a value: everything its supervisor needs, with nothing left to choose.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use stead_model::{Bytes, ClusterName, MacAddress, NodeName, cluster::Backend};

/// One machine. Written as `<dir>/machine.json`; every path is absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Cluster it belongs to.
    pub cluster: ClusterName,
    /// Its name.
    pub name: NodeName,
    /// `namespace` or `qemu`; never `auto` here.
    pub backend: Backend,
    /// The machine's own directory, 0700: `machine.json`, `lock`, `state.json`, `console.log`, `supervisor.log`,
    /// `qmp.sock`.
    pub dir: PathBuf,
    /// CPUs (qemu: virtual CPUs; namespace: quota of CPU time).
    pub cpus: Option<u32>,
    /// Memory (qemu: its RAM; namespace: cgroup limit).
    pub memory: Option<Bytes>,
    /// Uncompressed kernel, for qemu.
    pub vmlinux: Option<PathBuf>,
    /// Initrd, for qemu.
    pub initrd: Option<PathBuf>,
    /// Static `stead-node`, for namespace.
    pub stead_node: PathBuf,
    /// Root layers (squashfs files), lowest first, boot overlays last.
    pub layers: Vec<PathBuf>,
    /// Where layers are mounted on the host, once for all namespace machines of the cluster: `<cluster dir>/layers`.
    pub layers_dir: PathBuf,
    /// Directory with `node.json` (0600), packed as a tar drive for qemu.
    pub spec_dir: PathBuf,
    /// Disks. The files are made sparse by the supervisor when missing, and never truncated or formatted.
    pub disks: Vec<MachineDisk>,
    /// Interfaces, in order.
    pub nics: Vec<MachineNic>,
    /// Name of the cluster's network namespace (see [`crate::network::HostNetworkSpec::netns`]).
    pub netns: String,
    /// Seconds a clean shutdown may take before the machine is killed.
    pub stop_timeout_s: u32,
}

/// A disk of a machine: a raw file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDisk {
    /// Serial the node sees.
    pub serial: String,
    /// Raw file.
    pub path: PathBuf,
    /// Size it is made with.
    pub size: Bytes,
}

/// An interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineNic {
    /// Name in the node: `eth0`, …
    pub name: String,
    /// Bridge in the cluster's network namespace.
    pub bridge: String,
    /// Hardware address.
    pub mac: MacAddress,
    /// MTU.
    pub mtu: u16,
}

/// How far a machine's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachinePhase {
    /// Being prepared, or booted again.
    Starting,
    /// Its init or QEMU runs.
    Running,
    /// It ends, or has ended and is being cleared away: nobody may build on it any more.
    Stopping,
    /// It has ended as it should.
    Stopped,
    /// It could not be started, crashed, or could not be cleared away.
    Failed,
}

/// What the supervisor says of its machine in `<dir>/state.json`. Believe it only while the lock is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// The supervisor's process id (SIGTERM: clean stop; SIGQUIT: kill at once).
    pub supervisor_pid: i32,
    /// Process id of the node's init or of QEMU, once started.
    pub machine_pid: Option<i32>,
    /// How often it was booted by this supervisor.
    pub boots: u32,
    /// How far its life is.
    pub phase: MachinePhase,
    /// Why it failed.
    pub error: Option<String>,
}
