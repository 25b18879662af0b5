//! Access for the stock client (`incus`, `lxc`): trust in its certificate, and a configuration with one remote.

use super::{IncusError, engine};
use serde_json::json;
use std::collections::BTreeMap;
use stead_incus::{Client, tls};
use stead_model::agent::{Access, AccessFile, AccessRequest};

/// Mode of files that only the client's owner may read.
const PRIVATE: u32 = 0o600;

/// Makes the engine trust the client's certificate, if it does not yet, and returns how the client finds the engine.
///
/// # Errors
/// The certificate is invalid, or the engine refuses or does not answer.
pub async fn give(client: &Client, request: &AccessRequest) -> Result<Access, IncusError> {
    let der = tls::certificate_from_pem(&request.certificate_pem)
        .map_err(engine("read the client's certificate"))?;
    client.trust_certificate(&request.client, &der).await.map_err(engine("trust the client"))?;
    let server = client.server().await.map_err(engine("read the engine's certificate"))?.value;
    Ok(configuration(client.dialect(), request, &server.environment.certificate))
}

/// The client has its certificate and key in the same directory, under the names that the stock client expects.
fn configuration(dialect: stead_incus::Dialect, request: &AccessRequest, certificate: &str) -> Access {
    let facts = dialect.facts();
    let name = request.cluster.as_str();
    let config = json!({
        "default-remote": name,
        "remotes": { name: {
            "addr": format!("https://{}", request.address),
            "auth_type": "tls",
            "project": "default",
            "protocol": facts.kind,
            "public": false,
        } },
        "aliases": {},
    });
    let file = |name: String, bytes: Vec<u8>| AccessFile { name, mode: PRIVATE, bytes };
    Access {
        environment: BTreeMap::from([(
            facts.client_variable.to_owned(),
            request.directory.to_string_lossy().into_owned(),
        )]),
        files: vec![
            file(format!("servercerts/{name}.crt"), certificate.as_bytes().to_vec()),
            // JSON is YAML; the clients rewrite the file in their own style when they change it.
            file("config.yml".to_owned(), format!("{config:#}\n").into_bytes()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_incus::Dialect;

    #[test]
    fn a_configuration_with_one_remote() {
        let request = AccessRequest {
            cluster: "demo".parse().unwrap(),
            address: "127.0.0.1:4711".parse().unwrap(),
            directory: "/s/clusters/demo/client".into(),
            client: "stead-operator-demo".into(),
            certificate_pem: "c".into(),
        };
        let access = configuration(Dialect::Lxd, &request, "server's");
        assert_eq!(access.environment["LXD_CONF"], "/s/clusters/demo/client");
        let [certificate, config] = access.files.as_slice() else { panic!("{access:?}") };
        assert_eq!((certificate.name.as_str(), certificate.mode), ("servercerts/demo.crt", 0o600));
        assert_eq!((certificate.bytes.as_slice(), config.name.as_str()), (&b"server's"[..], "config.yml"));
        let config: serde_json::Value = serde_json::from_slice(&config.bytes).unwrap();
        assert_eq!(config["default-remote"], "demo");
        assert_eq!(config["remotes"]["demo"]["addr"], "https://127.0.0.1:4711");
        assert_eq!(config["remotes"]["demo"]["protocol"], "lxd");
        assert_eq!(
            configuration(Dialect::Incus, &request, "").environment["INCUS_CONF"],
            "/s/clusters/demo/client"
        );
    }
}
