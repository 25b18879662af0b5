//! Clients of the engines of test clusters, and their checks.

pub mod copies;
pub mod real;

use crate::common::World;
use serde_json::Value;
use std::fs;
use stead_incus::{Client, Dialect, Endpoint, Identity, requests::instances::StateAction, tls};
use stead_testkit::wait::SOON;

/// Over HTTPS, with the certificate and address that `stead env` gives the stock client.
pub fn client(w: &World, cluster: &str) -> Client {
    w.ok(&["env", cluster]);
    let dir = w.state.join("clusters").join(cluster).join("client");
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let config: Value = serde_json::from_str(&read("config.yml")).unwrap();
    let remote = &config["remotes"][cluster];
    let dialect = match remote["protocol"].as_str().unwrap() {
        "lxd" => Dialect::Lxd,
        _ => Dialect::Incus,
    };
    let certificate = tls::certificate_from_pem(&read(&format!("servercerts/{cluster}.crt"))).unwrap();
    let endpoint = Endpoint::Https {
        address: remote["addr"].as_str().unwrap().trim_start_matches("https://").to_owned(),
        fingerprint: tls::fingerprint(&certificate),
        identity: Some(Identity { certificate_pem: read("client.crt"), key_pem: read("client.key") }),
    };
    Client::new(dialect, endpoint).unwrap()
}

/// Over the unix socket, reached through the root of the node's first process.
pub fn unix_client(w: &World, cluster: &str, node: &str, dialect: Dialect) -> Client {
    let file = w.state.join("clusters").join(cluster).join("nodes").join(node).join("state.json");
    let state: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let socket = format!("/proc/{}/root{}", state["machine_pid"], dialect.facts().node_socket());
    Client::new(dialect, Endpoint::Unix(socket.into())).unwrap()
}

/// Removes every instance, whatever it does.
pub async fn remove_all(client: &Client) {
    for instance in client.instances().await.unwrap_or_default() {
        let (project, name) = (instance.project.as_str(), instance.name.as_str());
        let _ = client.set_instance_state(project, name, StateAction::Kill, SOON).await;
        let _ = client.delete_instance(project, name).await;
    }
}
