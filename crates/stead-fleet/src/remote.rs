//! Clusters reached over the network: a file for each, and how one comes to trust this host.
//!
//! Owns the files (the key of this host's certificate is in them: mode 0600), the certificate that is made for a cluster,
//! and the steps from a one-time token to a cluster that answers. Does not own what the cluster is used for.

use futures_util::{StreamExt, stream::FuturesUnordered};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use stead_files::Durability;
use stead_incus::{Client, Endpoint, Error, Identity, TrustToken, requests, tls, token::TokenError};
use stead_model::{Failure, FailureKind, RemoteName};
use stead_os::{PathContext, PathError, chain};
use time::OffsetDateTime;

/// As long as the certificates that the stock clients make for themselves.
const VALIDITY: time::Duration = time::Duration::days(3650);
/// The validity begins this long before now: the server's clock may be behind.
const CLOCK_SKEW: time::Duration = time::Duration::days(1);
/// How long one of several addresses may take to answer.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an address is waited for before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// The port engines listen on by default.
const PORT: u16 = 8443;

/// How to reach a cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// `address:port` of members, in the order in which they are tried.
    pub addresses: Vec<String>,
    /// SHA-256 of the only certificate that is accepted, hexadecimal.
    pub fingerprint: String,
    /// Certificate of this host for the cluster, PEM.
    pub certificate_pem: String,
    /// Its key, PEM. A secret.
    pub key_pem: String,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("addresses", &self.addresses)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// Why a cluster cannot be reached, or does not trust this host.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Its file cannot be read or written.
    #[error(transparent)]
    File(#[from] PathError),
    /// No remote has that name.
    #[error("there is no remote {0}")]
    Unknown(RemoteName),
    /// The name is taken.
    #[error("there is a remote {0} already")]
    Exists(RemoteName),
    /// The text is not a token.
    #[error("this is not a trust token")]
    Token(#[source] TokenError),
    /// A token without an address, and none was named.
    #[error("the token names no address of the server")]
    NoAddress,
    /// A key or certificate could not be made.
    #[error("cannot make a certificate for this client")]
    Certificate(#[source] rcgen::Error),
    /// None of its addresses answers as expected.
    #[error("cannot reach the cluster{}", besides(.others))]
    Unreachable {
        /// The errors of the other addresses.
        others: Vec<String>,
        /// The error of the first address.
        #[source]
        source: Box<Error>,
    },
    /// A request failed.
    #[error("cannot {what}")]
    Ask {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// The server accepted the token, but does not trust this client.
    #[error("the server accepted the token but does not trust this client")]
    StillUntrusted,
}

impl Failure for RemoteError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Unknown(_) | Self::Exists(_) | Self::Token(_) | Self::NoAddress => FailureKind::BadInput,
            _ => FailureKind::Failed,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(name) => Some(format!(
                "`stead fleet remotes` lists those there are; `stead fleet trust {name}` makes it from a trust token"
            )),
            Self::Exists(name) => Some(format!("`stead fleet forget {name}` removes it")),
            Self::Token(_) => {
                Some("`incus config trust add NAME` or `lxc config trust add --name NAME` prints one".into())
            }
            Self::NoAddress => Some("name one with --address".into()),
            Self::File(error) if error.kind() == io::ErrorKind::InvalidData => Some(format!(
                "another version of stead may have written it; `stead fleet trust` makes it anew once {} is deleted",
                error.path.display()
            )),
            _ => None,
        }
    }
}

fn besides(others: &[String]) -> String {
    others.iter().map(|o| format!(" ({o})")).collect()
}

fn asking(what: &'static str) -> impl Fn(Error) -> RemoteError {
    move |e| RemoteError::Ask { what, source: Box::new(e) }
}

/// The remotes of this host.
#[derive(Debug, Clone)]
pub struct Remotes {
    directory: PathBuf,
}

impl Remotes {
    /// In a directory, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, name: &RemoteName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`RemoteError::Unknown`]; it cannot be read.
    pub fn get(&self, name: &RemoteName) -> Result<Remote, RemoteError> {
        let path = self.path(name);
        stead_files::read_json(&path).at("read", &path)?.ok_or_else(|| RemoteError::Unknown(name.clone()))
    }

    /// Checks that the name is free.
    ///
    /// # Errors
    /// [`RemoteError::Exists`].
    pub fn vacant(&self, name: &RemoteName) -> Result<(), RemoteError> {
        if self.path(name).exists() { Err(RemoteError::Exists(name.clone())) } else { Ok(()) }
    }

    /// Writes one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, name: &RemoteName, remote: &Remote) -> Result<(), RemoteError> {
        let path = self.path(name);
        stead_files::private_dir(&self.directory).at("make directory", &self.directory)?;
        Ok(stead_files::write_json(&path, remote, Durability::Durable).at("write", &path)?)
    }

    /// Removes one.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &RemoteName) -> Result<(), RemoteError> {
        let path = self.path(name);
        Ok(fs::remove_file(&path).at("remove", &path)?)
    }

    /// The names of all.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn names(&self) -> Result<Vec<RemoteName>, RemoteError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at("read", &self.directory)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.at("read", &self.directory)?.file_name();
            let stem = Path::new(&file).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            // What is being written has another name.
            names.extend(RemoteName::new(stem).ok().filter(|n| self.path(n).file_name() == Some(&*file)));
        }
        names.sort();
        Ok(names)
    }
}

impl Remote {
    /// A client of it, by the first of its addresses that answers. They are tried in their order, each soon after the one
    /// before it: a member that is off does not keep the others waiting.
    ///
    /// # Errors
    /// [`RemoteError::Unreachable`].
    pub async fn connect(&self) -> Result<Client, RemoteError> {
        let mut tries: FuturesUnordered<_> = self
            .addresses
            .iter()
            .enumerate()
            .map(|(n, address)| async move {
                tokio::time::sleep(STAGGER * u32::try_from(n).unwrap_or(u32::MAX)).await;
                (n, self.connect_to(address).await)
            })
            .collect();
        let mut failed = BTreeMap::new();
        while let Some((n, tried)) = tries.next().await {
            match tried {
                Ok(client) => return Ok(client),
                Err(e) => failed.insert(n, e),
            };
        }
        let mut failed = failed.into_values();
        let source = Box::new(failed.next().ok_or(RemoteError::NoAddress)?);
        let others = failed.map(|e| chain(&e)).collect();
        Err(RemoteError::Unreachable { others, source })
    }

    async fn connect_to(&self, address: &str) -> Result<Client, Error> {
        let endpoint = Endpoint::Https {
            address: address.to_owned(),
            fingerprint: self.fingerprint.clone(),
            identity: Some(Identity {
                certificate_pem: self.certificate_pem.clone(),
                key_pem: self.key_pem.clone(),
            }),
        };
        match tokio::time::timeout(ADDRESS_TIMEOUT, Client::discover(endpoint)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(e)) => Err(self.another(address).await.unwrap_or(e)),
            Err(_) => {
                Err(Error::Connect { endpoint: address.to_owned(), source: io::ErrorKind::TimedOut.into() })
            }
        }
    }

    /// Whether another server is at an address: TLS itself only reports that the certificate was refused.
    async fn another(&self, address: &str) -> Option<Error> {
        let shown = tls::fetch_certificate(address, ADDRESS_TIMEOUT).await.ok()?;
        let (expected, found) = (self.fingerprint.clone(), tls::fingerprint(&shown));
        let endpoint = format!("https://{address}");
        (found != expected).then_some(Error::Fingerprint { endpoint, expected, found })
    }

    /// SHA-256 of this host's certificate, by which the cluster identifies it.
    ///
    /// # Errors
    /// It is not a certificate.
    pub fn own_fingerprint(&self) -> Result<String, RemoteError> {
        let der = tls::certificate_from_pem(&self.certificate_pem)
            .map_err(asking("read the certificate of this client"))?;
        Ok(tls::fingerprint(&der))
    }

    /// Makes the cluster stop trusting this host.
    ///
    /// # Errors
    /// It cannot be reached, or refuses.
    pub async fn renounce(&self) -> Result<(), RemoteError> {
        let own = self.own_fingerprint()?;
        let client = self.connect().await?;
        match client.send(&requests::certificates::delete(&own)).await {
            // It has been removed already.
            Err(e) if e.is_not_found() => Ok(()),
            other => {
                other.map(drop).map_err(asking("remove the certificate of this client from the cluster"))
            }
        }
    }
}

/// Makes a new certificate and has a cluster trust it by a token. `addresses` replace those of the token, which may not be
/// reachable from here. The server must show the certificate that the token names, wherever it is reached.
///
/// # Errors
/// [`RemoteError`]. A token works once: after an error of the server another one is needed.
pub async fn trust(token: &str, addresses: &[String], now: SystemTime) -> Result<Remote, RemoteError> {
    let token_text = token.trim();
    let token = TrustToken::decode(token_text).map_err(RemoteError::Token)?;
    let given = if addresses.is_empty() { &token.addresses } else { addresses };
    let (certificate_pem, key_pem) =
        certificate(&token.client_name, now.into()).map_err(RemoteError::Certificate)?;
    let mut remote = Remote {
        addresses: given.iter().map(|a| with_port(a)).collect(),
        fingerprint: token.fingerprint.clone(),
        certificate_pem,
        key_pem,
    };
    let client = remote.connect().await?;
    client
        .add_own_certificate(&token.client_name, token_text)
        .await
        .map_err(asking("hand the token to the server"))?;
    if client.server_info().await.map_err(asking("ask the server whether it trusts this client"))?.auth
        != "trusted"
    {
        return Err(RemoteError::StillUntrusted);
    }
    // Another member can be asked when the first is away.
    for member in client.members().await.map_err(asking("ask for the cluster's members"))? {
        let address = with_port(member.url.trim_start_matches("https://"));
        if !remote.addresses.contains(&address) {
            remote.addresses.push(address);
        }
    }
    Ok(remote)
}

/// `address:port`, with the engines' own port by default.
fn with_port(address: &str) -> String {
    if address.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{address}]:{PORT}");
    }
    let bare = address.ends_with(']') || !address.contains(':');
    if bare { format!("{address}:{PORT}") } else { address.to_owned() }
}

/// A self-signed certificate and its key.
fn certificate(name: &str, now: OffsetDateTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + VALIDITY;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn remote() -> Remote {
        let (certificate_pem, key_pem) = certificate("me", SystemTime::now().into()).unwrap();
        Remote { addresses: vec!["10.0.0.1:8443".into()], fingerprint: "ab".into(), certificate_pem, key_pem }
    }

    #[test]
    fn remotes_are_kept_in_private() {
        let dir = tempfile::tempdir().unwrap();
        let remotes = Remotes::new(dir.path().join("remotes"));
        let name = RemoteName::new("lab").unwrap();
        assert_eq!(remotes.names().unwrap(), []);
        assert!(matches!(remotes.get(&name), Err(RemoteError::Unknown(_))));
        remotes.vacant(&name).unwrap();
        let remote = remote();
        remotes.put(&name, &remote).unwrap();
        assert_eq!(remotes.get(&name).unwrap(), remote);
        assert!(matches!(remotes.vacant(&name), Err(RemoteError::Exists(_))));
        assert_eq!(remotes.names().unwrap(), std::slice::from_ref(&name));
        let later = Remotes::new(dir.path().join("later"));
        later.put(&name, &remote).unwrap();
        let text =
            fs::read_to_string(later.path(&name)).unwrap().replace("\"fingerprint\"", "\"thumbprint\"");
        fs::write(later.path(&name), text).unwrap();
        let error = later.get(&name).unwrap_err();
        assert!(chain(&error).contains("unknown field `thumbprint`"), "{}", chain(&error));
        assert!(error.hint().unwrap().contains("another version"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dir.path().join("remotes")), 0o700);
        assert_eq!(mode(dir.path().join("remotes/lab.json")), 0o600);
        remotes.remove(&name).unwrap();
        assert_eq!(remotes.names().unwrap(), []);
        assert!(!format!("{remote:?}").contains("PRIVATE"));
    }

    #[test]
    fn addresses_get_a_port() {
        for (given, want) in [
            ("10.0.0.1", "10.0.0.1:8443"),
            ("10.0.0.1:443", "10.0.0.1:443"),
            ("fd00::1", "[fd00::1]:8443"),
            ("[fd00::1]", "[fd00::1]:8443"),
            ("[fd00::1]:443", "[fd00::1]:443"),
            ("lab.example", "lab.example:8443"),
        ] {
            assert_eq!(with_port(given), want);
        }
    }

    #[tokio::test]
    async fn what_is_no_token_is_said_without_showing_it() {
        let error = trust("c2VjcmV0", &[], SystemTime::now()).await.unwrap_err();
        assert!(matches!(error, RemoteError::Token(_)));
        assert!(!chain(&error).contains("c2VjcmV0"));
    }
}
