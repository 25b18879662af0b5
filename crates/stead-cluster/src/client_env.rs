//! The stock client's way in: configuration for `incus` or `lxc`, whose certificate the engine trusts by a one-time
//! token.

use crate::{ClusterError, Host, Record, files, identities, remote};
use serde::Serialize;
use std::path::PathBuf;
use stead_incus::{Client, Dialect, Endpoint, Identity, tls};
use stead_machine::network::HostNetworkSpec;
use stead_model::{ClusterName, EngineKind, agent::TrustTokenRequest};

/// What the stock client needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientEnv {
    /// The variable that names the configuration directory: `INCUS_CONF` or `LXD_CONF`.
    pub variable: &'static str,
    /// That directory.
    pub dir: PathBuf,
    /// Where the engine is, `https://127.0.0.1:PORT`.
    pub url: String,
}

/// A connection to a cluster's engine, as the operator.
struct Connection {
    client: Client,
    engine: EngineKind,
    variable: &'static str,
    operator: stead_agent::Identity,
    /// The engine's, PEM.
    certificate: String,
    /// `127.0.0.1:PORT`.
    address: String,
}

/// A client of a cluster's engine, which is had to trust the operator's certificate unless it does already.
///
/// # Errors
/// The cluster has no engine, is not up, or its engine does not answer.
pub async fn engine_client(host: &Host, cluster: &ClusterName) -> Result<Client, ClusterError> {
    Ok(connect(host, cluster).await?.client)
}

async fn connect(host: &Host, cluster: &ClusterName) -> Result<Connection, ClusterError> {
    let layout = host.layout(cluster);
    let record = Record::require(&layout)?;
    let (Some(facts), Some(dialect)) = (record.engine.facts(), Dialect::of(record.engine)) else {
        return Err(ClusterError::Refused(format!(
            "cluster {cluster} has no engine, so there is nothing for a client"
        )));
    };
    let variable = facts.client_variable;
    let engine_error = |action: &'static str| {
        let cluster = cluster.clone();
        move |e: stead_incus::Error| ClusterError::Engine { action, cluster, source: Box::new(e) }
    };
    let network: Option<HostNetworkSpec> = files::read_json(&layout.network().join("network.json"))?;
    let address = network
        .as_ref()
        .and_then(stead_machine::network::observe)
        .and_then(|s| s.listening.first().copied())
        .ok_or_else(|| ClusterError::Refused(format!("cluster {cluster} is not up: run `stead up` first")))?;
    let operator = identities::operator(&layout)?;
    // The engine's API of the first node is what is published: see `desired`.
    let node = record
        .spec
        .node_names()
        .into_iter()
        .next()
        .ok_or_else(|| ClusterError::NoCluster(cluster.clone()))?;
    let agent = remote::connect(host, cluster, node.as_str())?;
    let ask = |action: &'static str| {
        let node = node.clone();
        move |e| ClusterError::Agent { action, node, source: Box::new(e) }
    };
    let status = agent.engine().await.map_err(ask("ask for the engine's certificate"))?;
    let certificate = status.certificate.ok_or_else(|| {
        ClusterError::Refused(
            format!("the engine on {node} does not answer yet ({:?})", status.state).to_lowercase(),
        )
    })?;
    let der = tls::certificate_from_pem(&certificate).map_err(engine_error("read the certificate"))?;
    let client = Client::new(
        dialect,
        Endpoint::Https {
            address: address.to_string(),
            fingerprint: tls::fingerprint(&der),
            identity: Some(Identity {
                certificate_pem: operator.certificate_pem.clone(),
                key_pem: operator.key_pem.clone(),
            }),
        },
    )
    .map_err(engine_error("prepare a connection to the engine"))?;
    let server = client.server_info().await.map_err(engine_error("reach the engine"))?;
    if server.auth != "trusted" {
        let name = format!("stead-operator-{cluster}");
        let token = agent
            .trust_token(&TrustTokenRequest { client: name.clone() })
            .await
            .map_err(ask("get a trust token"))?;
        client
            .add_own_certificate(&name, &token.token)
            .await
            .map_err(engine_error("add the client certificate"))?;
    }
    let address = address.to_string();
    Ok(Connection { client, engine: record.engine, variable, operator, certificate, address })
}

/// Writes the stock client's configuration and has the engine trust its certificate, unless it does already.
///
/// # Errors
/// The cluster has no engine, is not up, or its engine does not answer.
pub async fn client_env(host: &Host, cluster: &ClusterName) -> Result<ClientEnv, ClusterError> {
    let Connection { engine, variable, operator, certificate, address, .. } = connect(host, cluster).await?;
    let dir = host.layout(cluster).client();
    let url = format!("https://{address}");
    files::private_dir(&dir.join("servercerts"))?;
    files::write(&dir.join("client.crt"), operator.certificate_pem.as_bytes())?;
    files::write(&dir.join("client.key"), operator.key_pem.as_bytes())?;
    files::write(&dir.join(format!("servercerts/{cluster}.crt")), certificate.as_bytes())?;
    let config = serde_json::json!({
        "default-remote": cluster,
        "remotes": { cluster.as_str(): {
            "addr": url, "auth_type": "tls", "project": "default", "protocol": engine, "public": false
        } },
        "aliases": {},
    });
    // JSON is YAML; the clients rewrite the file in their own style when asked to change it.
    files::write_json(&dir.join("config.yml"), &config)?;
    Ok(ClientEnv { variable, dir, url })
}
