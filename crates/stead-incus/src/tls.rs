//! TLS as the engines use it: self-signed certificates, trusted by their fingerprint and not by an issuer.

use crate::error::Error;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpStream;

/// SHA-256 of a certificate (DER), lowercase hexadecimal, as the engines write fingerprints.
pub fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect()
}

/// The first certificate of a PEM text.
///
/// # Errors
/// [`Error::Tls`] when there is none.
pub fn certificate_from_pem(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| Error::Tls { what: "the certificate's PEM", source: Box::new(e) })
}

/// A certificate as PEM, 64 characters per line.
pub fn certificate_to_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// Which server certificate is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Accept {
    Fingerprint(String),
    /// Any certificate: the caller only wants to see it.
    Any,
}

#[derive(Debug)]
struct Pinned {
    accept: Accept,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.accept {
            Accept::Any => Ok(ServerCertVerified::assertion()),
            Accept::Fingerprint(expected) if *expected == fingerprint(end_entity) => {
                Ok(ServerCertVerified::assertion())
            }
            Accept::Fingerprint(_) => Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::ApplicationVerificationFailure,
            )),
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn config(accept: Accept, identity: Option<(&str, &str)>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = |what, source| Error::Tls { what, source };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| tls("TLS", Box::new(e)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { accept, provider }));
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = vec![certificate_from_pem(certificate)?];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|e| tls("the client key's PEM", Box::new(e)))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| tls("the client certificate", Box::new(e)))
        }
    }
}

/// Accepts only the server certificate with this fingerprint; presents `identity`, a certificate and its key (PEM).
pub(crate) fn pinned(
    server_fingerprint: &str,
    identity: Option<(&str, &str)>,
) -> Result<ClientConfig, Error> {
    config(Accept::Fingerprint(server_fingerprint.to_ascii_lowercase()), identity)
}

/// Fetches a server's certificate without verifying it: compare its [`fingerprint`] with one from a trusted source.
///
/// # Errors
/// The connection or the TLS handshake failed, or there was no certificate within `timeout`.
pub async fn fetch_certificate(address: &str, timeout: Duration) -> Result<CertificateDer<'static>, Error> {
    let failed = |source| Error::Connect { endpoint: address.to_owned(), source };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config(Accept::Any, None)?));
    let handshake = async {
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        connector.connect(server_name(address), stream).await.map_err(failed)
    };
    let stream = tokio::time::timeout(timeout, handshake)
        .await
        .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))??;
    let (_, session) = stream.get_ref();
    session
        .peer_certificates()
        .and_then(|c| c.first())
        .map(|c| c.clone().into_owned())
        .ok_or_else(|| failed(std::io::Error::other("the server shows no certificate")))
}

/// For SNI only: the verifier looks at the certificate, not at names.
pub(crate) fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(h, _)| h).trim_matches(['[', ']']);
    ServerName::try_from(host.to_owned())
        .unwrap_or(ServerName::IpAddress(rustls_pki_types::IpAddr::from(std::net::Ipv4Addr::LOCALHOST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trips() {
        let der: Vec<u8> = (0..=255).collect();
        let pem = certificate_to_pem(&der);
        assert!(pem.lines().all(|l| l.len() <= 64));
        assert_eq!(certificate_from_pem(&pem).unwrap().as_ref(), der);
        assert!(certificate_from_pem("none").is_err());
    }

    #[test]
    fn fingerprints_are_sha256() {
        assert_eq!(fingerprint(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn names_for_sni() {
        assert!(matches!(server_name("[fd00::1]:8443"), ServerName::IpAddress(_)));
        assert!(matches!(server_name("10.0.0.1:8443"), ServerName::IpAddress(_)));
        assert!(matches!(server_name("node1.demo:8443"), ServerName::DnsName(_)));
    }
}
