//! The per-cluster certificate authority: ECDSA P-256, made at `up`, kept by the operator, never on a node.
//!
//! Does not own files: PEM in and out, the clock as an argument.

use crate::tls::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::net::IpAddr;
use stead_model::{ClusterName, NodeName};
use time::Duration;

pub use time::OffsetDateTime;

/// The CA outlives any cluster made for work; a new cluster gets a new one.
pub const CA_VALIDITY: Duration = Duration::days(3650);
/// Leaves are issued anew at each `up` that finds them older than half of this.
pub const LEAF_VALIDITY: Duration = Duration::days(730);
/// Certificates begin this long before they are made: a node's clock may be behind.
pub const CLOCK_SKEW: Duration = Duration::hours(24);

/// A certificate or key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key could not be made.
    #[error("cannot make a key for {subject}")]
    Generate {
        /// Whose.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be signed.
    #[error("cannot sign the certificate of {subject}")]
    Sign {
        /// Whose.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// Certificate and key of the CA do not belong together.
    #[error("certificate and key of the cluster's CA do not belong together")]
    Mismatch(#[source] rustls::Error),
    /// The CA's PEM is unusable.
    #[error("cannot read the {what} of the cluster's CA")]
    Read {
        /// `key`, `certificate`.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// A cluster's certificate authority, with its key.
pub struct ClusterCa {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    cluster: ClusterName,
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCa").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterCa {
    /// Makes a new one.
    ///
    /// # Errors
    /// The random source failed.
    pub fn create(cluster: &ClusterName, now: OffsetDateTime) -> Result<Self, PkiError> {
        let subject = format!("Stead cluster {cluster}");
        let key = key(&subject)?;
        let mut params = params(&subject, now, CA_VALIDITY);
        // Signs leaves only, no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(|source| PkiError::Sign { subject, source })?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
            cluster: cluster.clone(),
        })
    }

    /// Takes up one made before.
    ///
    /// # Errors
    /// [`PkiError::Read`], [`PkiError::Mismatch`].
    pub fn from_pem(cluster: &ClusterName, certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(|source| PkiError::Read { what: "key", source })?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| {
            PkiError::Read { what: "certificate", source: rcgen::Error::CouldNotParseCertificate }
        })?;
        let key_der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(vec![certificate], key_der, &provider).map_err(PkiError::Mismatch)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)
            .map_err(|source| PkiError::Read { what: "certificate", source })?;
        Ok(Self { certificate_pem: certificate_pem.to_owned(), issuer, cluster: cluster.clone() })
    }

    /// Its certificate, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }
    /// Its key, as PEM (PKCS #8). A secret: file mode 0600.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A server's identity for a node: names `<node>` and `<node>.<cluster>`, and its addresses.
    ///
    /// # Errors
    /// The random source failed.
    pub fn issue_node(
        &self,
        node: &NodeName,
        addresses: &[IpAddr],
        now: OffsetDateTime,
    ) -> Result<Identity, PkiError> {
        let qualified = format!("{node}.{}", self.cluster);
        let mut names = Vec::new();
        for name in [node.as_str(), &qualified] {
            let name = Ia5String::try_from(name)
                .map_err(|source| PkiError::Sign { subject: qualified.clone(), source })?;
            names.push(SanType::DnsName(name));
        }
        names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.issue(&qualified, names, ExtendedKeyUsagePurpose::ServerAuth, now)
    }

    /// A client's identity; `name` is for people only.
    ///
    /// # Errors
    /// The random source failed.
    pub fn issue_client(&self, name: &str, now: OffsetDateTime) -> Result<Identity, PkiError> {
        self.issue(name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth, now)
    }

    fn issue(
        &self,
        subject: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        now: OffsetDateTime,
    ) -> Result<Identity, PkiError> {
        let key = key(subject)?;
        let mut params = params(subject, now, LEAF_VALIDITY);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(|source| PkiError::Sign { subject: subject.to_owned(), source })?;
        Ok(Identity {
            ca_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn key(subject: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| PkiError::Generate { subject: subject.to_owned(), source })
}

fn params(subject: &str, now: OffsetDateTime, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + validity;
    params
}
