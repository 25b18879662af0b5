//! TLS of the agent API: TLS 1.3 only, with certificates of the cluster's CA on both sides.
//!
//! Both ends are Stead's, so older versions are not needed. Sessions are not resumed, so an expired certificate is
//! refused at its next connection.

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{net::SocketAddr, sync::Arc};
use stead_model::{NodeName, node::AgentSpec};

/// Our certificate and key, and the CA that we trust, as PEM.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The cluster's CA.
    pub ca_pem: String,
    /// Our certificate.
    pub certificate_pem: String,
    /// Our key. A secret.
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl Identity {
    /// The form that a node spec contains.
    pub fn into_agent_spec(self, listen: SocketAddr) -> AgentSpec {
        let Self { ca_pem, certificate_pem, key_pem } = self;
        AgentSpec { listen, ca_pem, certificate_pem, key_pem }
    }
}

impl From<&AgentSpec> for Identity {
    fn from(spec: &AgentSpec) -> Self {
        Self {
            ca_pem: spec.ca_pem.clone(),
            certificate_pem: spec.certificate_pem.clone(),
            key_pem: spec.key_pem.clone(),
        }
    }
}

/// An identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A text is not PEM, or is PEM of something else.
    #[error("{what} is not valid PEM")]
    Pem {
        /// `the CA certificate`, `the certificate`, `the key`.
        what: &'static str,
        /// What the parser says.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The CA certificate cannot be a root of trust.
    #[error("the CA certificate is unusable")]
    Ca(#[source] rustls::Error),
    /// The verifier of client certificates cannot be built.
    #[error("the CA certificate cannot be used to verify clients")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// Certificate and key are unusable or do not belong together.
    #[error("certificate and key are unusable")]
    Certificate(#[source] rustls::Error),
    /// The node's name cannot be in a certificate.
    #[error("{0:?} is not a valid server name")]
    Name(String),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct Parsed {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn parse(identity: &Identity) -> Result<Parsed, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(identity.ca_pem.as_bytes()).map_err(pem("the CA certificate"))?;
    roots.add(ca).map_err(TlsError::Ca)?;
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem("the certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(pem("the key"))?;
    Ok(Parsed { roots: Arc::new(roots), chain, key })
}

/// For the node: a client must present a certificate signed by the CA, valid now, with the client key usage.
///
/// # Errors
/// The identity is unusable.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let Parsed { roots, chain, key } = parse(identity)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For the client: trusts only certificates signed by the CA, with the server key usage and the name asked for.
///
/// # Errors
/// The identity is unusable.
pub fn client_config(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let Parsed { roots, chain, key } = parse(identity)?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(TlsError::Verifier)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Certificate)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name a node's certificate must carry.
///
/// # Errors
/// [`TlsError::Name`], which cannot happen: a [`NodeName`] is a DNS label.
pub fn server_name(node: &NodeName) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(node.as_str().to_owned()).map_err(|_| TlsError::Name(node.to_string()))
}
