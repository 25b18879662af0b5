//! The per-cluster certificate authority: ECDSA P-256, created by `up`, kept on the host and never on a node.
//!
//! Does not own files or the clock: PEM comes in and goes out as text, the time is an argument.

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

/// Longer than any cluster is expected to live; each new cluster gets a new CA.
pub const CA_VALIDITY: Duration = Duration::days(3650);
/// `up` renews a leaf certificate once [`renewal_due`] says so.
pub const LEAF_VALIDITY: Duration = Duration::days(730);
/// Certificates are valid from this long before they are issued: a node's clock may be slow.
pub const CLOCK_SKEW: Duration = Duration::hours(24);

/// A certificate or key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key could not be made.
    #[error("cannot make a key for {subject}")]
    Generate {
        /// Name of its owner.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be signed.
    #[error("cannot sign the certificate of {subject}")]
    Sign {
        /// Name of its owner.
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
    /// Creates a new CA.
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

    /// Loads an existing CA.
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

    /// A client's identity; `name` only informs people.
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

/// Whether a certificate should be renewed: half of its validity is over, or it is not valid yet, or it cannot be read.
pub fn renewal_due(certificate_pem: &str, now: OffsetDateTime) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else { return true };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return true };
    let validity = certificate.validity();
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = now.unix_timestamp();
    now < begin || now > begin + (end - begin) / 2
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

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn at() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn certificates_say_what_they_are_for() {
        let cluster = ClusterName::new("demo").unwrap();
        let ca = ClusterCa::create(&cluster, at()).unwrap();
        let node =
            ca.issue_node(&NodeName::new("n1").unwrap(), &["10.0.0.1".parse().unwrap()], at()).unwrap();
        let client = ca.issue_client("admin", at()).unwrap();

        let authority = der(ca.certificate_pem());
        let authority = parse_x509_certificate(&authority).unwrap().1;
        let constraints = authority.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = authority.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && !usage.digital_signature());
        assert_eq!(authority.validity().not_after.timestamp(), at().unix_timestamp() + 3650 * 86_400);
        assert_eq!(authority.validity().not_before.timestamp(), at().unix_timestamp() - 86_400);

        for (identity, server) in [(&node, true), (&client, false)] {
            let leaf = der(&identity.certificate_pem);
            let leaf = parse_x509_certificate(&leaf).unwrap().1;
            leaf.verify_signature(Some(authority.public_key())).unwrap();
            assert!(!leaf.basic_constraints().unwrap().is_some_and(|c| c.value.ca));
            let usage = leaf.key_usage().unwrap().unwrap().value;
            assert!(usage.digital_signature() && !usage.key_cert_sign());
            let extended = leaf.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((extended.server_auth, extended.client_auth), (server, !server));
            assert!(!extended.any);
            assert_eq!(leaf.validity().not_after.timestamp(), at().unix_timestamp() + 730 * 86_400);
        }
        let leaf = der(&node.certificate_pem);
        let leaf = parse_x509_certificate(&leaf).unwrap().1;
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert_eq!(
            names,
            [
                GeneralName::DNSName("n1"),
                GeneralName::DNSName("n1.demo"),
                GeneralName::IPAddress(&[10, 0, 0, 1])
            ]
        );
        assert_ne!(node.key_pem, client.key_pem);
        assert!(!format!("{ca:?} {node:?}").contains("PRIVATE"));
    }

    #[test]
    fn renewal_is_due_at_half_time() {
        let ca = ClusterCa::create(&ClusterName::new("demo").unwrap(), at()).unwrap();
        let leaf = ca.issue_client("x", at()).unwrap().certificate_pem;
        for (days, due) in [(-2, true), (0, false), (364, false), (366, true), (800, true)] {
            assert_eq!(renewal_due(&leaf, at() + Duration::days(days)), due, "{days}");
        }
        assert!(!renewal_due(ca.certificate_pem(), at() + Duration::days(1000)));
        assert!(renewal_due("nonsense", at()));
    }
}
