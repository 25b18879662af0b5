//! The error of a command, and how it is printed.
//!
//! Owns the text for people, the object for programs, and the exit code. Does not own which errors are bad input or
//! what their remedies are: each says so itself ([`stead_model::Failure`]).

use crate::output::Output;
use serde::Serialize;
use std::fmt::Display;
use stead_model::{Failure, FailureKind};

/// The hint of every failure that has none of its own and is Stead's fault.
const DEFECT: &str = "this is a defect of stead: please report it with the command and this message";

/// Result of a verb.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a verb ended early.
#[derive(Debug)]
pub enum Error {
    /// It failed.
    Failed {
        /// What was being done, outermost first.
        doing: Vec<String>,
        /// Decided by whoever knows more than the error itself, as with a file that the user named.
        kind: Option<FailureKind>,
        /// The error.
        source: Box<dyn Failure + Send + Sync>,
    },
    /// Whoever read standard output has gone: there is nobody left to work for, and nothing to report.
    ReaderGone,
}

impl<E: Failure + Send + Sync + 'static> From<E> for Error {
    fn from(source: E) -> Self {
        Self::Failed { doing: Vec::new(), kind: None, source: Box::new(source) }
    }
}

/// An error that is only words, for what no crate below has a type for.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Words {
    kind: FailureKind,
    text: String,
    hint: Option<String>,
}
impl Failure for Words {
    fn failure_kind(&self) -> FailureKind {
        self.kind
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

impl Error {
    fn words(kind: FailureKind, text: impl Into<String>, hint: Option<String>) -> Self {
        Words { kind, text: text.into(), hint }.into()
    }
    /// The request cannot be meant.
    pub fn bad_input(text: impl Into<String>) -> Self {
        Self::words(FailureKind::BadInput, text, None)
    }
    /// As [`Error::bad_input`], and what to do instead.
    pub fn bad_input_hint(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::words(FailureKind::BadInput, text, Some(hint.into()))
    }
    /// It could not be done.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::words(FailureKind::Failed, text, None)
    }
    /// As [`Error::failed`], and what to do about it.
    pub fn failed_hint(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::words(FailureKind::Failed, text, Some(hint.into()))
    }
    /// The user stopped it.
    pub fn interrupted(text: impl Into<String>) -> Self {
        Self::words(FailureKind::Interrupted, text, None)
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// The context, a lowercase fragment.
    fn context(self, doing: impl Display) -> Result<T>;
    /// As [`Doing::context`], for what the user named: the failure is bad input.
    fn named_by_user(self, doing: impl Display) -> Result<T>;
}
impl<T, E: Into<Error>> Doing<T> for std::result::Result<T, E> {
    fn context(self, what: impl Display) -> Result<T> {
        self.map_err(|e| match e.into() {
            Error::Failed { mut doing, kind, source } => {
                doing.insert(0, what.to_string());
                Error::Failed { doing, kind, source }
            }
            gone => gone,
        })
    }
    fn named_by_user(self, what: impl Display) -> Result<T> {
        self.context(what).map_err(|e| match e {
            Error::Failed { doing, source, .. } => {
                Error::Failed { doing, kind: Some(FailureKind::BadInput), source }
            }
            gone => gone,
        })
    }
}

/// An error as programs read it: the value of `error` in one line on standard error.
#[derive(Debug, Serialize)]
struct Report {
    kind: FailureKind,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    exit_code: u8,
}

impl Report {
    fn of(error: &Error) -> Option<Self> {
        let Error::Failed { doing, kind, source } = error else { return None };
        let kind = kind.unwrap_or_else(|| source.failure_kind());
        let hint = source.hint().or_else(|| (kind == FailureKind::Internal).then(|| DEFECT.to_owned()));
        let chain = stead_os::chain(&**source);
        let parts: Vec<&str> = doing.iter().map(String::as_str).chain([chain.trim_end()]).collect();
        let message = parts.join(": ");
        Some(Self { kind, message, hint, exit_code: kind.exit_code() })
    }

    fn print(&self, output: &Output, json: bool) -> u8 {
        if json {
            output.note(serde_json::json!({ "error": self }));
        } else {
            output.note(format_args!("error: {}", self.message));
            if let Some(hint) = &self.hint {
                output.note(format_args!("hint: {hint}"));
            }
        }
        self.exit_code
    }
}

/// Prints an error with its causes and its hint, and gives the exit code.
pub fn report(error: &Error, output: &Output, json: bool) -> u8 {
    Report::of(error).map_or(0, |report| report.print(output, json))
}

/// Prints, as programs read it, what the parser of arguments says in `text`.
pub fn report_usage(text: &str, output: &Output) -> u8 {
    let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim()).to_owned();
    let kind = FailureKind::BadInput;
    Report { kind, message, hint: None, exit_code: kind.exit_code() }.print(output, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Output;
    use std::io;
    use stead_agent::ClientError;
    use stead_cluster::ClusterError;
    use stead_fleet::{
        facts::FactsError, journal::JournalError, newcomers::NewcomersError, plan::PlanError,
        rebalance::RebalanceError, remote::RemoteError, scriptlet::ScriptletError,
    };
    use stead_image::ImageError;
    use stead_incus::Error as EngineError;
    use stead_model::{ClusterName, ImageName, NodeName, RemoteName, agent::ErrorBody};

    fn cluster() -> ClusterName {
        "demo".parse().unwrap()
    }
    fn node() -> NodeName {
        "node1".parse().unwrap()
    }
    fn remote() -> RemoteName {
        RemoteName::new("lab").unwrap()
    }
    fn image() -> ImageName {
        "base".parse().unwrap()
    }
    fn no_entry() -> io::Error {
        io::Error::from_raw_os_error(2)
    }
    fn agent(code: u16, error: &str, hint: Option<&str>) -> ClusterError {
        let body = ErrorBody { error: error.into(), hint: hint.map(str::to_owned) };
        let source = Box::new(ClientError::Status { operation: "read logs", node: node(), code, body });
        ClusterError::Agent { action: "read logs", node: node(), source }
    }
    fn unreachable() -> ClusterError {
        ClusterError::Agent {
            action: "reboot",
            node: node(),
            source: Box::new(ClientError::Unreachable {
                operation: "reboot",
                node: node(),
                address: "10.0.0.2:7443".parse().unwrap(),
                source: io::ErrorKind::TimedOut.into(),
            }),
        }
    }
    fn engine(code: u16) -> Box<EngineError> {
        Box::new(EngineError::Api { request: "GET /1.0/x".into(), code, message: "no".into() })
    }
    fn broken_off() -> tokio::task::JoinError {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let task = tokio::spawn(std::future::pending::<()>());
            task.abort();
            task.await.unwrap_err()
        })
    }

    /// Each error with its exit code and what the user sees.
    #[test]
    fn exit_codes_and_hints() {
        let several = |errors: Vec<ClusterError>| ClusterError::Several(errors);
        let refused = || ClusterError::Refused("node node1: image base has no kernel".into());
        let not_token = stead_incus::TrustToken::decode("c2VjcmV0").unwrap_err();
        let stopped = || Error::failed_hint("node node1 did not come back", "see its console");
        let errors: Vec<Error> = vec![
            // Bad input.
            "No".parse::<ClusterName>().unwrap_err().into(),
            stead_model::ClusterSpec::from_yaml("c.yaml", "name: demo\nnods: 1\n").unwrap_err().into(),
            Err::<(), _>(no_entry()).named_by_user("cannot read c.yaml").unwrap_err(),
            ClusterError::NoCluster(cluster()).into(),
            ClusterError::NoNode { cluster: cluster(), node: "x".into(), have: vec!["node1".into()] }.into(),
            ClusterError::NameTaken { cluster: cluster(), state_dir: "/srv".into() }.into(),
            refused().into(),
            ClusterError::from(ImageError::NoImage { name: image() }).into(),
            agent(404, "there is no service x", Some("logs: node, ntp")).into(),
            several(vec![refused(), refused()]).into(),
            ImageError::NoPackage { package: "x".into(), suite: "trixie".into() }.into(),
            RemoteError::Unknown(remote()).into(),
            RemoteError::Exists(remote()).into(),
            RemoteError::Token(not_token).into(),
            RemoteError::NoAddress.into(),
            FactsError::NotClustered("/run/incus".into()).into(),
            NewcomersError::NoProfile { project: "default".into(), profile: "big".into() }.into(),
            Error::bad_input("one of the two paths must be on a node"),
            // Failed.
            Error::from(no_entry()),
            ClusterError::Busy(cluster()).into(),
            ClusterError::NotUp("cluster demo is not up".into()).into(),
            ClusterError::Machine { action: "start", node: node(), source: "no such device".into() }.into(),
            ClusterError::Node { node: node(), why: "no answer".into(), tail: "last line".into() }.into(),
            ClusterError::Engine { action: "reach the engine", cluster: cluster(), source: engine(500) }
                .into(),
            agent(500, "cannot read the log", None).into(),
            unreachable().into(),
            several(vec![refused(), unreachable()]).into(),
            ImageError::ToolMissing { tool: "mksquashfs".into(), package: "squashfs-tools".into() }.into(),
            ImageError::ToolTooOld {
                tool: "go".into(),
                found: "1.24.4".into(),
                needed: "1.26.8".into(),
                by: "kubernetes/go.mod".into(),
            }
            .into(),
            ImageError::Mirror { detail: "timed out".into() }.into(),
            ImageError::GoProxy { detail: "connection refused".into() }.into(),
            FactsError::Untrusted("10.0.0.1:8443".into()).into(),
            JournalError::Busy("/var/lib/stead/fleet/f00.journal".into()).into(),
            ScriptletError::Foreign.into(),
            RebalanceError::Unfinished(vec!["c1".into()]).into(),
            stopped(),
            Err::<(), _>(stopped()).context("cannot reboot").unwrap_err(),
            // Internal.
            ClusterError::Task { task: "bring a node up", source: broken_off() }.into(),
            PlanError::Refused(vec!["c1 is moved twice".into()]).into(),
            // Interrupted.
            Error::interrupted("interrupted"),
        ];
        let mut table = String::new();
        for error in &errors {
            let (output, read) = Output::captured();
            let code = report(error, &output, false);
            table.push_str(&format!("exit {code}\n{}\n", read.stderr()));
            let (output, read) = Output::captured();
            assert_eq!(report(error, &output, true), code);
            let json: serde_json::Value = serde_json::from_str(&read.stderr()).unwrap();
            assert_eq!(json["error"]["exit_code"], code);
        }
        insta::assert_snapshot!("errors", table);
    }
}
