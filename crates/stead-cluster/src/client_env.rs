//! Access for the engine's stock client. The agent makes the engine trust the operator's certificate and returns the
//! environment and files that the client needs; this module writes them, for any engine.

use crate::{ClusterError, Host, Record, files, identities, remote};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};
use stead_incus::{Client, Dialect, Endpoint, Identity, tls};
use stead_machine::network::HostNetworkSpec;
use stead_model::{
    ClusterName, EngineFacts, NodeName,
    agent::{Access, AccessFile, AccessRequest, CLIENT_CERTIFICATE, CLIENT_KEY},
};

/// The stock client's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientEnv {
    /// The client's environment variables, whose paths are all below [`Self::dir`].
    pub environment: BTreeMap<String, String>,
    /// The directory with its files.
    pub dir: PathBuf,
    /// URL of the engine, `https://127.0.0.1:PORT`.
    pub url: String,
}

/// Access to a cluster's engine, which trusts the operator.
struct Way {
    access: Access,
    operator: stead_agent::Identity,
    /// Address on this host at which the engine's API is published.
    address: SocketAddr,
    /// The node of that engine.
    node: NodeName,
    agent: stead_agent::Client,
}

async fn way(host: &Host, cluster: &ClusterName, record: &Record) -> Result<Way, ClusterError> {
    let layout = host.layout(cluster);
    if record.engine.is_none() {
        return Err(ClusterError::Refused(format!(
            "cluster {cluster} has no engine, so there is nothing for a client to connect to"
        )));
    }
    let network: Option<HostNetworkSpec> = files::read_json(&layout.network().join("network.json"))?;
    let address = network
        .as_ref()
        .and_then(stead_machine::network::observe)
        .and_then(|s| s.listening.first().copied())
        .ok_or_else(|| ClusterError::NotUp(format!("cluster {cluster} is not up")))?;
    let operator = identities::operator(&layout)?;
    // The engine's API of the first node is published: see `desired`.
    let node = record
        .spec
        .node_names()
        .into_iter()
        .next()
        .ok_or_else(|| ClusterError::NoCluster(cluster.clone()))?;
    let agent = remote::connect(host, cluster, node.as_str())?;
    let request = AccessRequest {
        cluster: cluster.clone(),
        address,
        directory: layout.client(),
        client: format!("stead-operator-{cluster}"),
        certificate_pem: operator.certificate_pem.clone(),
    };
    let access = agent.access(&request).await.map_err(|e| ClusterError::Agent {
        action: "get access to the engine",
        node: node.clone(),
        source: Box::new(e),
    })?;
    Ok(Way { access, operator, address, node, agent })
}

/// A client of a cluster's Incus or LXD. Makes the engine trust the operator's certificate.
///
/// # Errors
/// The cluster has no engine with that API, is not up, or its engine does not answer.
pub async fn engine_client(host: &Host, cluster: &ClusterName) -> Result<Client, ClusterError> {
    let record = Record::require(&host.layout(cluster))?;
    let Way { operator, address, node, agent, .. } = way(host, cluster, &record).await?;
    let dialect = Dialect::of(record.engine).ok_or_else(|| {
        ClusterError::Refused(format!(
            "cluster {cluster} runs {}, which is neither Incus nor LXD",
            record.engine
        ))
    })?;
    let engine_error = |action: &'static str| {
        let cluster = cluster.clone();
        move |e: stead_incus::Error| ClusterError::Engine { action, cluster, source: Box::new(e) }
    };
    let status = agent.engine().await.map_err(|e| ClusterError::Agent {
        action: "ask for the engine's certificate",
        node: node.clone(),
        source: Box::new(e),
    })?;
    let certificate = status.certificate.ok_or_else(|| {
        ClusterError::NotUp(
            format!("the engine on {node} does not answer yet ({:?})", status.state).to_lowercase(),
        )
    })?;
    let der = tls::certificate_from_pem(&certificate).map_err(engine_error("read the certificate"))?;
    let identity = Identity { certificate_pem: operator.certificate_pem, key_pem: operator.key_pem };
    Client::new(
        dialect,
        Endpoint::Https {
            address: address.to_string(),
            fingerprint: tls::fingerprint(&der),
            identity: Some(identity),
        },
    )
    .map_err(engine_error("prepare a connection to the engine"))
}

/// Makes the engine trust the operator's certificate and writes the stock client's files.
///
/// # Errors
/// The cluster has no engine, is not up, its engine does not answer, or the node asks for more than a client's files.
pub async fn client_env(host: &Host, cluster: &ClusterName) -> Result<ClientEnv, ClusterError> {
    let layout = host.layout(cluster);
    let Way { access, operator, address, node, .. } = way(host, cluster, &Record::require(&layout)?).await?;
    let dir = layout.client();
    check(&access, &dir)
        .map_err(|why| ClusterError::Refused(format!("the client configuration from {node} {why}")))?;
    let own = |name: &str, text: &str| AccessFile { name: name.into(), mode: 0o600, bytes: text.into() };
    let own = [own(CLIENT_CERTIFICATE, &operator.certificate_pem), own(CLIENT_KEY, &operator.key_pem)];
    for file in own.iter().chain(&access.files) {
        write(&dir, file)?;
    }
    Ok(ClientEnv { environment: access.environment, dir, url: format!("https://{address}") })
}

/// Checks the files and variables that a node sends: no file outside the client's directory, and no variable except
/// those that point engines' clients to their configuration.
fn check(access: &Access, dir: &Path) -> Result<(), String> {
    for file in &access.files {
        let plain = Path::new(&file.name).components().all(|c| matches!(c, Component::Normal(_)));
        if file.name.is_empty() || !plain || [CLIENT_CERTIFICATE, CLIENT_KEY].contains(&file.name.as_str()) {
            return Err(format!("has a file with the invalid name {:?}", file.name));
        }
    }
    for (name, value) in &access.environment {
        if !EngineFacts::all().any(|f| f.client_variable == name) {
            return Err(format!("sets the variable {name:?}, which is not allowed"));
        }
        let inside = Path::new(value).strip_prefix(dir);
        if !inside.is_ok_and(|i| i.components().all(|c| matches!(c, Component::Normal(_)))) {
            return Err(format!("sets {name} to {value:?}, outside {}", dir.display()));
        }
    }
    Ok(())
}

/// Writes a file for its owner only, whatever its mode says.
fn write(dir: &Path, file: &AccessFile) -> Result<(), ClusterError> {
    let path = dir.join(&file.name);
    files::private_dir(path.parent().unwrap_or(dir))?;
    files::write(&path, &file.bytes)?;
    let mode = std::fs::Permissions::from_mode(file.mode & 0o700);
    std::fs::set_permissions(&path, mode).map_err(ClusterError::file("change the mode of", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(variable: &str, value: &str, file: &str) -> Access {
        Access {
            environment: BTreeMap::from([(variable.to_owned(), value.to_owned())]),
            files: vec![AccessFile { name: file.into(), mode: 0o644, bytes: b"x".to_vec() }],
        }
    }

    #[test]
    fn a_node_only_sets_and_writes_what_a_client_needs() {
        let dir = Path::new("/s/client");
        for (variable, value) in [("INCUS_CONF", "/s/client"), ("LXD_CONF", "/s/client/a/b")] {
            assert_eq!(check(&access(variable, value, "servercerts/demo.crt"), dir), Ok(()));
        }
        for (variable, value, file) in [
            ("PATH", "/s/client", "a"),
            ("INCUS_CONF", "/etc", "a"),
            ("INCUS_CONF", "/s/client/../../etc", "a"),
            ("INCUS_CONF", "/s/client", "../a"),
            ("INCUS_CONF", "/s/client", "/etc/passwd"),
            ("INCUS_CONF", "/s/client", ""),
            ("INCUS_CONF", "/s/client", "client.key"),
        ] {
            assert!(check(&access(variable, value, file), dir).is_err(), "{variable} {value} {file}");
        }
    }

    #[test]
    fn written_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let [file] = <[AccessFile; 1]>::try_from(access("INCUS_CONF", "", "a/b").files).unwrap();
        write(dir.path(), &file).unwrap();
        let path = dir.path().join("a/b");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }
}
