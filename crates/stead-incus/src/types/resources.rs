//! What a member has: `GET /1.0/resources`, as far as placement looks at it.

use super::nullable;
use serde::Deserialize;

/// What a member has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Resources {
    /// Processors.
    #[serde(default)]
    pub cpu: Cpu,
    /// Memory.
    #[serde(default)]
    pub memory: Memory,
    /// How busy it is; servers without `resources_load` do not say.
    #[serde(default)]
    pub load: Option<Load>,
    /// What kind of machine it is.
    #[serde(default)]
    pub system: System,
}

/// Part of [`Resources`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Architecture.
    pub architecture: String,
    /// Threads in all.
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
    /// Number.
    pub core: u64,
    /// Threads.
    #[serde(deserialize_with = "nullable")]
    pub threads: Vec<CpuThread>,
}

/// Part of [`CpuCore`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct CpuThread {
    /// As `limits.cpu` counts.
    pub id: i64,
    /// Node it is on.
    pub numa_node: u64,
    /// In use.
    pub online: bool,
    /// Kept from the scheduler.
    pub isolated: bool,
}

/// Part of [`Resources`]; bytes, and numbers of huge pages.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// In use, caches left out.
    pub used: u64,
    /// Bytes in huge pages.
    pub hugepages_total: u64,
    /// Bytes of those in use.
    pub hugepages_used: u64,
    /// By NUMA node.
    #[serde(deserialize_with = "nullable")]
    pub nodes: Vec<MemoryNode>,
}

/// Part of [`Memory`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct MemoryNode {
    /// Number.
    pub numa_node: u64,
    /// Bytes.
    pub total: u64,
    /// Bytes.
    pub used: u64,
}

/// Part of [`Resources`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Over one minute.
    #[serde(rename = "Average1Min")]
    pub average_1_min: f64,
    /// Over five minutes.
    #[serde(rename = "Average5Min")]
    pub average_5_min: f64,
    /// Over ten minutes.
    #[serde(rename = "Average10Min")]
    pub average_10_min: f64,
    /// Processes.
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
