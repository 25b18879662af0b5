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
    /// How it is started.
    pub backend: Backend,
    /// What runs its instructions; `None` when it shares the host's kernel. An older version wrote none.
    pub accelerator: Option<Accelerator>,
    /// The machine's own directory, 0700: `machine.json`, `lock`, `state.json`, `console.log`, `supervisor.log`,
    /// `qmp.sock`.
    pub dir: PathBuf,
    /// CPUs: virtual ones, or a quota of CPU time.
    pub cpus: Option<u32>,
    /// Memory: its RAM, or the limit of its cgroup.
    pub memory: Option<Bytes>,
    /// Uncompressed kernel, for backends that need one.
    pub vmlinux: Option<PathBuf>,
    /// Initrd, beside the kernel.
    pub initrd: Option<PathBuf>,
    /// Static `stead-node`, for machines without an initrd of their own.
    pub stead_node: PathBuf,
    /// Root layers (squashfs files), lowest first, boot overlays last.
    pub layers: Vec<PathBuf>,
    /// Where layers are mounted on the host, once for all machines of the cluster: `<cluster dir>/layers`. For machines
    /// on the host's kernel.
    pub layers_dir: PathBuf,
    /// Directory with `node.json` (0600); a VM gets it as a drive.
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

impl MachineSpec {
    /// Whether its instructions are translated one by one: then everything in it takes many times as long.
    pub fn is_emulated(&self) -> bool {
        self.accelerator == Some(Accelerator::Tcg)
    }
}

/// How the instructions of a machine with a kernel of its own are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By emulation (QEMU's tiny code generator).
    Tcg,
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
    /// Its process runs.
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
    /// Process id of the guest (the node's init, or QEMU), once started.
    pub machine_pid: Option<i32>,
    /// How often it was booted by this supervisor.
    pub boots: u32,
    /// How far its life is.
    pub phase: MachinePhase,
    /// Why it failed.
    pub error: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An emulated machine with two layers, a disk and an interface.
    pub(crate) fn spec() -> MachineSpec {
        MachineSpec {
            cluster: "demo".parse().unwrap(),
            name: "node1".parse().unwrap(),
            backend: Backend::Qemu,
            accelerator: Some(Accelerator::Tcg),
            dir: "/s/demo/node1".into(),
            cpus: None,
            memory: Some(Bytes::mib(1536)),
            vmlinux: Some("/store/vmlinux".into()),
            initrd: Some("/store/initrd".into()),
            stead_node: "/store/stead-node".into(),
            layers: vec!["/store/a".into(), "/store/b, \"c\"".into()],
            layers_dir: "/s/demo/layers".into(),
            spec_dir: "/s/demo/node1/spec".into(),
            disks: vec![MachineDisk {
                serial: "data".into(),
                path: "/s/demo/node1/data.img".into(),
                size: Bytes::gib(4),
            }],
            nics: vec![MachineNic {
                name: "eth0".into(),
                bridge: "lan".into(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                mtu: 1500,
            }],
            netns: "stead-demo".into(),
            stop_timeout_s: 30,
        }
    }

    #[test]
    fn a_spec_without_an_accelerator_is_still_read() {
        let mut json = serde_json::to_value(spec()).unwrap();
        assert_eq!(json["accelerator"], "tcg");
        assert_eq!(serde_json::from_value::<MachineSpec>(json.clone()).unwrap(), spec());
        json.as_object_mut().unwrap().remove("accelerator");
        let old: MachineSpec = serde_json::from_value(json).unwrap();
        assert_eq!(old, MachineSpec { accelerator: None, ..spec() });
    }
}
