//! Hardware resources of a member: `GET /1.0/resources`, with the fields that placement uses.

use super::nullable;
use serde::Deserialize;

/// Hardware resources of a member.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Resources {
    /// Processors.
    #[serde(default)]
    pub cpu: Cpu,
    /// Memory.
    #[serde(default)]
    pub memory: Memory,
    /// Its load; none from servers without `resources_load`.
    #[serde(default)]
    pub load: Option<Load>,
    /// Kind and maker of the machine.
    #[serde(default)]
    pub system: System,
}

/// Part of [`Resources`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Architecture.
    pub architecture: String,
    /// Number of hardware threads.
    pub total: u64,
    /// Sockets.
    #[serde(deserialize_with = "nullable")]
    pub sockets: Vec<CpuSocket>,
}

/// Part of [`Cpu`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct CpuSocket {
    /// Model.
    pub name: String,
    /// Maker.
    pub vendor: String,
    /// Cores.
    #[serde(deserialize_with = "nullable")]
    pub cores: Vec<CpuCore>,
}

/// Part of [`CpuSocket`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct CpuCore {
    /// Number of the core in its socket.
    pub core: u64,
    /// Threads.
    #[serde(deserialize_with = "nullable")]
    pub threads: Vec<CpuThread>,
}

/// Part of [`CpuCore`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct CpuThread {
    /// Id, as used in `limits.cpu`.
    pub id: i64,
    /// NUMA node it is on.
    pub numa_node: u64,
    /// Whether it is online.
    pub online: bool,
    /// Whether it is isolated from the scheduler.
    pub isolated: bool,
}

/// Part of [`Resources`]; bytes.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Total memory.
    pub total: u64,
    /// Memory in use, without caches.
    pub used: u64,
    /// Memory in huge pages.
    pub hugepages_total: u64,
    /// Memory in huge pages that are in use.
    pub hugepages_used: u64,
    /// By NUMA node.
    #[serde(deserialize_with = "nullable")]
    pub nodes: Vec<MemoryNode>,
}

/// Part of [`Memory`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct MemoryNode {
    /// Number of the NUMA node.
    pub numa_node: u64,
    /// Total memory in bytes.
    pub total: u64,
    /// Memory in use, in bytes.
    pub used: u64,
}

/// Part of [`Resources`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Load average over one minute.
    #[serde(rename = "Average1Min")]
    pub average_1_min: f64,
    /// Load average over five minutes.
    #[serde(rename = "Average5Min")]
    pub average_5_min: f64,
    /// Load average over ten minutes.
    #[serde(rename = "Average10Min")]
    pub average_10_min: f64,
    /// Number of processes.
    #[serde(rename = "Processes")]
    pub processes: i64,
}

/// Part of [`Resources`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct System {
    /// UUID.
    pub uuid: String,
    /// Maker.
    pub vendor: String,
    /// Product.
    pub product: String,
    /// `physical`, `virtual-machine`, `container`.
    #[serde(rename = "type")]
    pub kind: String,
}
