//! The cluster, its members and groups; tokens.

use super::{Client, OPERATION_TIMEOUT, TRANSFER_TIMEOUT, shape};
use crate::{
    Error, Request, Tagged,
    requests::{self, cluster::Join, cluster::MemberAction},
    tls,
    token::{JoinToken, TrustToken},
    types::{Certificate, Cluster, ClusterGroup, Member, MemberState, OperationStatus},
};
use serde_json::Value;

impl Client {
    /// Whether the server is clustered, and the settings a joining member must give.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        self.fetch(&requests::cluster::get()).await
    }
    /// All members.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        self.list(&requests::cluster::members()).await
    }
    /// One member.
    pub async fn member(&self, name: &str) -> Result<Tagged<Member>, Error> {
        self.fetch_tagged(&requests::cluster::member(name)).await
    }
    /// Load, memory and pools of a member.
    pub async fn member_state(&self, name: &str) -> Result<MemberState, Error> {
        self.fetch(&requests::cluster::member_state(name)).await
    }
    /// Makes this server the first member of a new cluster.
    pub async fn bootstrap_cluster(&self, server_name: &str) -> Result<(), Error> {
        self.run(&requests::cluster::bootstrap(server_name), OPERATION_TIMEOUT).await.map(drop)
    }
    /// Joins a cluster.
    pub async fn join_cluster(&self, join: &Join<'_>) -> Result<(), Error> {
        self.run(&requests::cluster::join(self.dialect(), join), OPERATION_TIMEOUT).await.map(drop)
    }
    /// A one-time token with which `member` may join.
    pub async fn join_token(&self, member: &str) -> Result<JoinToken, Error> {
        let request = requests::cluster::join_token(member);
        let operation: OperationStatus = self.fetch(&request).await?;
        token_from(&request, &operation.metadata, |m| JoinToken {
            server_name: m.server_name.unwrap_or_else(|| member.to_owned()),
            fingerprint: m.fingerprint,
            addresses: m.addresses,
            secret: m.secret,
            expires_at: m.expires_at.unwrap_or_else(|| GO_ZERO_TIME.to_owned()),
        })
    }
    /// Evacuates or restores a member, and waits for it.
    pub async fn set_member_state(&self, name: &str, action: MemberAction) -> Result<(), Error> {
        self.run(&requests::cluster::set_member_state(name, action), TRANSFER_TIMEOUT).await.map(drop)
    }
    /// Removes a member.
    pub async fn remove_member(&self, name: &str, force: bool) -> Result<(), Error> {
        let request = requests::cluster::remove_member(name, force).within(OPERATION_TIMEOUT);
        self.run(&request, OPERATION_TIMEOUT).await.map(drop)
    }
    /// Groups of members.
    pub async fn cluster_groups(&self) -> Result<Vec<ClusterGroup>, Error> {
        self.list(&requests::cluster::groups()).await
    }
    /// One group.
    pub async fn cluster_group(&self, name: &str) -> Result<Tagged<ClusterGroup>, Error> {
        self.fetch_tagged(&requests::cluster::group(name)).await
    }

    /// A one-time token with which a client may add its certificate under `name`.
    pub async fn trust_token(&self, name: &str) -> Result<TrustToken, Error> {
        let request = requests::certificates::trust_token(name);
        let operation: OperationStatus = self.fetch(&request).await?;
        token_from(&request, &operation.metadata, |m| TrustToken {
            client_name: name.to_owned(),
            fingerprint: m.fingerprint,
            addresses: m.addresses,
            secret: m.secret,
            expires_at: m.expires_at,
        })
    }
    /// Adds the certificate this client connects with (HTTPS), authorised by a token.
    pub async fn add_own_certificate(&self, name: &str, token: &str) -> Result<(), Error> {
        self.send(&requests::certificates::add_own(self.dialect(), name, token)).await?;
        // An untrusted client gets a shorter answer, which may be cached.
        self.forget_server_info().await;
        Ok(())
    }
    /// Has the server trust a client's certificate (DER) under `name`, unless it does already.
    pub async fn trust_certificate(&self, name: &str, der: &[u8]) -> Result<(), Error> {
        let fingerprint = tls::fingerprint(der);
        if self.certificates().await?.iter().any(|c| c.fingerprint == fingerprint) {
            return Ok(());
        }
        self.send(&requests::certificates::add(name, der)).await?;
        Ok(())
    }
    /// Trusted certificates.
    pub async fn certificates(&self) -> Result<Vec<Certificate>, Error> {
        self.list(&requests::certificates::list()).await
    }
}

/// Go's zero time; the engines' own tools pass it on in tokens.
const GO_ZERO_TIME: &str = "0001-01-01T00:00:00Z";

#[derive(serde::Deserialize)]
struct TokenMetadata {
    #[serde(rename = "serverName")]
    server_name: Option<String>,
    fingerprint: String,
    addresses: Vec<String>,
    secret: String,
    #[serde(rename = "expiresAt")]
    expires_at: Option<String>,
}

fn token_from<T>(
    request: &Request,
    metadata: &Value,
    make: impl FnOnce(TokenMetadata) -> T,
) -> Result<T, Error> {
    shape(request, metadata.clone()).map(make)
}
