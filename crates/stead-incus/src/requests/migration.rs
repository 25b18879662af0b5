//! Copies between servers that do not know each other. One side offers an operation with secrets, the other connects to
//! its websockets; with a relay, the client connects to both.

use super::instances::{NewInstance, path};
use crate::{Feature, Request};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Who connects to whom in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The target connects to the source.
    #[default]
    Pull,
    /// The source connects to the target.
    Push,
    /// The client connects to both and relays the data.
    Relay,
}

/// The websockets of the other side.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// `https://address:port/1.0/operations/UUID`.
    pub operation: String,
    /// Its certificate, PEM.
    pub certificate: String,
    /// Secrets by websocket name.
    pub secrets: BTreeMap<String, String>,
}

/// Options of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyOptions {
    /// Include the running processes.
    pub live: bool,
    /// Leave out its snapshots.
    pub instance_only: bool,
    /// Bring an earlier copy up to date.
    pub refresh: bool,
    /// Do not fail when files vanish during the copy.
    pub allow_inconsistent: bool,
}

impl CopyOptions {
    fn needs(self, request: Request) -> Request {
        request
            .needs_if(self.instance_only, Feature::InstanceOnly)
            .needs_if(self.refresh, Feature::RefreshCopy)
            .needs_if(self.allow_inconsistent, Feature::InconsistentCopy)
    }
}

/// Asks the source to send an instance: to whoever connects (`to` is none), or to `to`.
pub fn send(project: &str, name: &str, options: CopyOptions, to: Option<&Peer>) -> Request {
    let mut body = json!({
        "name": name,
        "migration": true,
        "live": options.live,
        "instance_only": options.instance_only,
        "allow_inconsistent": options.allow_inconsistent,
    });
    if let Some(peer) = to {
        body["target"] = json!({
            "operation": peer.operation,
            "certificate": peer.certificate,
            "secrets": peer.secrets,
        });
    }
    let request = Request::post(path(name, ""), &body).query("project", project);
    options.needs(request.needs_if(to.is_some(), Feature::PushTarget))
}

/// Asks the target to receive an instance: from `from` (pull), or from whoever connects (push, relay). `base_image` is the
/// fingerprint of the image the instance was created from, if known: less data is sent if the target has it.
pub fn receive(
    project: &str,
    target: Option<&str>,
    instance: &NewInstance,
    architecture: &str,
    base_image: Option<&str>,
    options: CopyOptions,
    from: Option<&Peer>,
) -> Request {
    let mut source = json!({
        "type": "migration",
        "mode": if from.is_some() { "pull" } else { "push" },
        "live": options.live,
        "instance_only": options.instance_only,
        "refresh": options.refresh,
        "allow_inconsistent": options.allow_inconsistent,
    });
    if let Some(fingerprint) = base_image {
        source["base-image"] = fingerprint.into();
    }
    if let Some(peer) = from {
        source["operation"] = peer.operation.as_str().into();
        source["certificate"] = peer.certificate.as_str().into();
        source["secrets"] = json!(peer.secrets);
    }
    let mut body = instance.body(source);
    body.insert("architecture".into(), architecture.into());
    let request = Request::post("/1.0/instances", &Value::Object(body))
        .query("project", project)
        .query_if("target", target)
        .needs_if(from.is_none(), Feature::PushMigration);
    options.needs(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::shown;

    fn peer() -> Peer {
        Peer {
            operation: "https://10.0.0.1:8443/1.0/operations/u".into(),
            certificate: "PEM".into(),
            secrets: BTreeMap::from([("control".into(), "s".into())]),
        }
    }

    #[test]
    fn pull() {
        assert_eq!(
            shown(&send("default", "c1", CopyOptions::default(), None)),
            r#"POST /1.0/instances/c1?project=default {"name":"c1","migration":true,"live":false,"instance_only":false,"allow_inconsistent":false}"#
        );
        let r = receive(
            "p",
            None,
            &NewInstance { name: "c2".into(), ..NewInstance::default() },
            "x86_64",
            Some("f00"),
            CopyOptions { refresh: true, ..CopyOptions::default() },
            Some(&peer()),
        );
        assert_eq!(
            shown(&r),
            r#"POST /1.0/instances?project=p {"name":"c2","type":"container","source":{"type":"migration","mode":"pull","live":false,"instance_only":false,"refresh":true,"allow_inconsistent":false,"base-image":"f00","operation":"https://10.0.0.1:8443/1.0/operations/u","certificate":"PEM","secrets":{"control":"s"}},"config":{},"devices":{},"profiles":["default"],"architecture":"x86_64"}"#
        );
        assert_eq!(r.needed(), [Feature::RefreshCopy]);
    }

    #[test]
    fn push_names_the_target() {
        let r = send("default", "c1", CopyOptions::default(), Some(&peer()));
        assert!(shown(&r).contains(r#""target":{"operation":"https://10.0.0.1:8443/1.0/operations/u""#));
        assert_eq!(r.needed(), [Feature::PushTarget]);
    }
}
