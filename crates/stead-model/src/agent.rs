//! Messages of the agent API: HTTPS (HTTP/1.1) with mutual TLS on [`crate::node::AGENT_PORT`], JSON bodies. Requests and
//! answers carry [`PROTOCOL`] in the header [`PROTOCOL_HEADER`].
//!
//! | method and path | request | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`NodeStatus`] |
//! | `GET /v1/logs?service=NAME&tail=N&follow=BOOL` | | text, streamed; `service=node` (default) is the node's own log |
//! | `POST /v1/exec` with `Upgrade: stead-exec` | frames, see [`ExecRequest`] | frames |
//! | `GET /v1/files?path=P` | | a tar of the file or tree, top entry named by P's last part |
//! | `PUT /v1/files?path=P` | a tar, unpacked in directory P | 204 |
//! | `GET /v1/engine` | | [`EngineStatus`], asked of the engine now and not as last seen |
//! | `POST /v1/engine/join-token` | [`JoinTokenRequest`] | [`Token`] |
//! | `POST /v1/engine/join` | [`JoinRequest`] | [`EngineStatus`] once joined |
//! | `POST /v1/engine/access` | [`AccessRequest`] | [`Access`]: what the engine's stock client needs |
//! | `POST /v1/engine/remove` | [`RemoveMemberRequest`] | 204: evacuated (unless forced) and removed |
//! | `POST /v1/engine/restore` | [`RestoreMemberRequest`] | 204: no longer evacuated; one that is not there is fine |
//! | `GET /v1/engine/instances` | | `[`[`InstanceStatus`]`]` of the whole cluster |
//! | `POST /v1/reboot`, `POST /v1/shutdown` | [`StopRequest`] | 202; then services stop in order |
//!
//! Errors are any 4xx/5xx with an [`ErrorBody`].

use crate::{
    cluster::EngineKind,
    names::{ClusterName, NodeName},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// Version of this protocol. It grows with every change that the other side would misread; what each number changed is
/// listed in `docs/agent-api.md`.
pub const PROTOCOL: u32 = 2;
/// Header of requests and answers that carries the sender's [`PROTOCOL`].
pub const PROTOCOL_HEADER: &str = "stead-agent-protocol";
/// The protocol of agents that do not name theirs.
pub const FIRST_PROTOCOL: u32 = 1;

/// Body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What failed, a lowercase fragment with its causes.
    pub error: String,
    /// How to fix it, when that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodePhase {
    /// Mounting, loading, configuring.
    Booting,
    /// Services are being started.
    Starting,
    /// All services are ready.
    Running,
    /// A service is failing; the node itself is well.
    Degraded,
    /// The boot could not be completed; see [`NodeStatus::rescue`].
    Rescue,
    /// Shutting down or rebooting.
    Stopping,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// Cluster.
    pub cluster: String,
    /// How far it is.
    pub phase: NodePhase,
    /// New at each boot (from the kernel in a VM, random in a namespace).
    pub boot_id: String,
    /// Milliseconds since the node's init began.
    pub uptime_ms: u64,
    /// What happened when, in order; the newest 500 events.
    pub timeline: Vec<TimelineEvent>,
    /// Every service.
    pub services: Vec<ServiceStatus>,
    /// Every disk rule's outcome.
    pub disks: Vec<DiskStatus>,
    /// What the operator should know: state lost at reboot, a damaged disk, a sysctl refused.
    pub warnings: Vec<String>,
    /// Why it is in rescue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue: Option<String>,
    /// The engine, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineStatus>,
    /// Addresses on its interfaces, without link-local ones.
    pub addresses: Vec<String>,
    /// `uname -r`.
    pub kernel: String,
    /// Resident memory of the agent itself, bytes.
    pub agent_rss_bytes: u64,
    /// Version of the agent.
    pub version: String,
}

/// A service without a readiness check counts as up once it has lived this long: what ends at once was never up.
const SETTLED_MS: u64 = 250;

impl NodeStatus {
    /// Whether every service that is ready has shown it: by passing its readiness check, or by living for a while.
    pub fn settled(&self) -> bool {
        let ready = |s: &&ServiceStatus| s.state == ServiceState::Ready;
        self.services.iter().filter(ready).all(|s| s.checked || s.since_ms + SETTLED_MS <= self.uptime_ms)
    }
}

/// One event of a node's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// Milliseconds since the node's init began.
    pub at_ms: u64,
    /// What kind of event; programs read this, never the text.
    pub kind: EventKind,
    /// The event for a person, e.g. `root mounted`, `service incusd ready`.
    pub event: String,
}

/// What kind of event an entry of the timeline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A stage of the boot is done.
    Boot,
    /// Interfaces are configured, or a lease was obtained.
    Network,
    /// A disk rule has its outcome.
    Disk,
    /// The agent listens, or there is none.
    Agent,
    /// An onboot command succeeded.
    OnbootDone,
    /// A service was started, for the first time or again.
    ServiceStarted,
    /// A service passed its readiness check.
    ServiceReady,
    /// A service ended without being asked to, or could not be started.
    ServiceEnded,
    /// A service was stopped because the node stops.
    ServiceStopped,
    /// Every service is ready for the first time.
    Running,
    /// The engine's bootstrap or membership went a step further.
    Engine,
    /// The boot cannot be completed.
    Rescue,
    /// The node stops: somebody asked for it, or its services have stopped.
    Stop,
}

/// State of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// Waits for others.
    Waiting,
    /// Runs, not yet ready.
    Starting,
    /// Runs and is ready.
    Ready,
    /// Ended; will be started again after a pause.
    Backoff,
    /// Ended and stays so, by its restart policy (exit 0).
    Done,
    /// Ended and stays so, with failure.
    Failed,
    /// Stopped on request.
    Stopped,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: ServiceState,
    /// When it came into this state, or was last started in it: milliseconds since the node's init began, as
    /// [`NodeStatus::uptime_ms`].
    pub since_ms: u64,
    /// Whether this run has passed a readiness check. A service without one is [`ServiceState::Ready`] as soon as it
    /// is started, which proves nothing.
    pub checked: bool,
    /// Process id in the node, when it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last, e.g. `exit 1`, `signal KILL`, `cannot start: …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
}

/// Outcome of a disk rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// The rule.
    pub name: String,
    /// The device, when one matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What came of it.
    pub outcome: DiskOutcome,
    /// Details for a person.
    pub detail: String,
}

/// What came of a disk rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskOutcome {
    /// It was blank and has been formatted (and mounted when asked).
    Formatted,
    /// It had its filesystem and was mounted (or found).
    Found,
    /// It carries something else or something damaged: left alone.
    Refused,
    /// No device matched.
    Missing,
}

/// How far an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineState {
    /// Its API does not answer yet.
    Starting,
    /// It answers and waits for a join token.
    Waiting,
    /// Being initialised or joining.
    Forming,
    /// A member, and the cluster says it is online.
    Online,
    /// A member, but the cluster cannot be asked or says it is offline.
    Offline,
    /// Evacuated.
    Evacuated,
    /// Bootstrap failed; it is tried again.
    Failed,
}

/// The engine on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// Which.
    pub kind: EngineKind,
    /// How far.
    pub state: EngineState,
    /// Its version, once it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// PEM of the cluster's (or server's) certificate, once it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Whether it leads the cluster's database, as it said last: its stop hands the lead over, which takes time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leads: bool,
    /// It failed for a reason that no further try changes: what it is asked to be cannot be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// An instance as the engine lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// Cluster member it is on.
    pub node: String,
    /// The engine's word: `Running`, `Stopped`, …
    pub state: String,
    /// Global addresses of its interfaces.
    pub addresses: Vec<String>,
}

/// Asks a member for a one-time token with which `member` may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRequest {
    /// The new member's name.
    pub member: NodeName,
    /// Where its engine answers: a member that was renamed in the engine is found by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// Asks for all that the engine's stock client needs, and has the engine trust the client's certificate. The client's key
/// stays where it is: beside the files of the answer the client keeps its own certificate as [`CLIENT_CERTIFICATE`] and its
/// key as [`CLIENT_KEY`], and files of the answer may refer to these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequest {
    /// What the client calls the cluster.
    pub cluster: ClusterName,
    /// Where the client reaches the engine's API.
    pub address: SocketAddr,
    /// The client's directory for all of this, absolute.
    pub directory: PathBuf,
    /// Name of the client in the engine's trust store.
    pub client: String,
    /// The client's certificate, PEM.
    pub certificate_pem: String,
}

/// Name of the file with the client's own certificate, beside those of an [`Access`].
pub const CLIENT_CERTIFICATE: &str = "client.crt";
/// Name of the file with the client's own key.
pub const CLIENT_KEY: &str = "client.key";

/// What the engine's stock client needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Environment variables of the client.
    pub environment: BTreeMap<String, String>,
    /// Files in the client's directory.
    pub files: Vec<AccessFile>,
}

/// One file of an [`Access`]. Its content may be a secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessFile {
    /// Path below the client's directory.
    pub name: String,
    /// Mode bits; nobody but the owner gets any.
    pub mode: u32,
    /// Content.
    #[serde(with = "bytes_as_base64")]
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for AccessFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessFile")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Bytes in JSON.
mod bytes_as_base64 {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

/// A one-time token. A secret: never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// As the engine gives it (base64 JSON).
    pub token: String,
}
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Has this node join the engine's cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// From another member's `join-token`.
    pub token: Token,
}

/// Removes a member from the engine's cluster. Ask another member than the one that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMemberRequest {
    /// Who goes.
    pub member: NodeName,
    /// Where its engine answers: a member that was renamed in the engine is found by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Do not evacuate, and remove it though it does not answer.
    #[serde(default)]
    pub force: bool,
}

/// Takes back a member whose removal was begun: once what this node does about it has ended, one that is only evacuated is
/// restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreMemberRequest {
    /// Who stays.
    pub member: NodeName,
    /// Where its engine answers: a member that was renamed in the engine is found by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// Shutdown or reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Services get this long, all together, before they are killed.
    pub deadline_s: u32,
}

/// First frame of an exec stream, client to node.
///
/// Frames both ways: one byte kind, four bytes big-endian length (at most 64 KiB), payload. Kinds: 0 request (this,
/// JSON), 1 stdin, 2 stdout, 3 stderr, 4 stdin closed (client) , 5 resize ([`Size`], JSON), 6 signal (number, one byte),
/// 7 exit ([`ExecExit`], JSON, last frame from the node).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Argument vector; no shell.
    pub command: Vec<String>,
    /// Added to a minimal environment.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Working directory; `/root` or `/` when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// With a terminal of this size; stderr then comes as stdout.
    #[serde(default)]
    pub tty: Option<Size>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExit {
    /// Exit code; 128 + signal when a signal ended it; 127 not found, 126 not executable.
    pub code: i32,
    /// Why it could not be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(service: ServiceStatus, uptime_ms: u64) -> NodeStatus {
        NodeStatus {
            name: "node1".parse().unwrap(),
            cluster: "demo".into(),
            phase: NodePhase::Running,
            boot_id: "b".into(),
            uptime_ms,
            timeline: vec![],
            services: vec![service],
            disks: vec![],
            warnings: vec![],
            rescue: None,
            engine: None,
            addresses: vec![],
            kernel: String::new(),
            agent_rss_bytes: 0,
            version: String::new(),
        }
    }

    fn ready(since_ms: u64) -> ServiceStatus {
        ServiceStatus {
            name: "ntp".into(),
            state: ServiceState::Ready,
            since_ms,
            checked: false,
            pid: None,
            restarts: 0,
            last_exit: None,
        }
    }

    #[test]
    fn a_service_that_was_only_just_started_is_not_yet_up() {
        assert!(!status(ready(1200), 1240).settled());
        assert!(!status(ready(1200), 1449).settled());
        assert!(status(ready(1200), 1450).settled());
        let checked = ServiceStatus { checked: true, ..ready(1200) };
        assert!(status(checked, 1200).settled(), "it has passed its readiness check");
        let waiting = ServiceStatus { state: ServiceState::Waiting, ..ready(1200) };
        assert!(status(waiting, 1240).settled(), "the phase tells of those that are not ready");
    }

    #[test]
    fn a_service_that_ends_again_and_again_is_never_up() {
        // More starts than the timeline has room for.
        for run in 0..1000 {
            let service = ServiceStatus { restarts: run, ..ready(u64::from(run) * 300) };
            for age in [0, 100, 199] {
                assert!(!status(service.clone(), service.since_ms + age).settled(), "run {run}");
            }
        }
    }

    #[test]
    fn files_of_a_client_travel_whole_and_are_not_shown() {
        let file = AccessFile { name: "a/key".into(), mode: 0o600, bytes: vec![0, 159, b's', b'3'] };
        let json = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<AccessFile>(&json).unwrap(), file);
        assert_eq!(format!("{file:?}"), r#"AccessFile { name: "a/key", mode: 384, .. }"#);
        assert!(serde_json::from_str::<AccessFile>(r#"{"name":"a","mode":384,"bytes":"%"}"#).is_err());
    }

    #[test]
    fn kinds_of_events_have_words() {
        let event =
            TimelineEvent { at_ms: 7, kind: EventKind::ServiceStarted, event: "service a started".into() };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"at_ms":7,"kind":"service-started","event":"service a started"}"#);
        assert_eq!(serde_json::from_str::<TimelineEvent>(&json).unwrap(), event);
    }
}
