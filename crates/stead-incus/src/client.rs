//! Sends requests and opens their answers.

use crate::{
    Dialect, Error, Request,
    envelope::{self, Envelope},
    requests::{self, cluster::Join, cluster::MemberAction, instances::NewInstance},
    token::{JoinToken, TrustToken},
    transport::{Answer, Endpoint, Transport},
    types::{
        Certificate, Cluster, Image, ImageAlias, Instance, Member, Network, OperationStatus, Profile,
        Project, Server, StoragePool,
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{path::Path, time::Duration};

/// How long ordinary background work may take: forming a cluster, making a pool, starting an instance.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Evacuating moves data.
pub const EVACUATE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    dialect: Dialect,
}

/// Work the server has begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// What began it, for errors.
    pub request: String,
    /// `/1.0/operations/<uuid>`.
    pub path: String,
    /// How it was when it began.
    pub begun: Value,
}

impl Client {
    /// Connects with the first request.
    ///
    /// # Errors
    /// The identity for HTTPS is unusable.
    pub fn new(dialect: Dialect, endpoint: Endpoint) -> Result<Self, Error> {
        Ok(Self { transport: Transport::new(endpoint)?, dialect })
    }
    /// Which engine it talks to.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }
    /// Where it sends to.
    pub fn endpoint(&self) -> &Endpoint {
        self.transport.endpoint()
    }

    /// Sends and opens the envelope.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::Api`] when the server refuses.
    pub async fn send(&self, request: &Request) -> Result<(Envelope, Option<String>), Error> {
        let Answer { status, etag, body } = self.transport.send(request).await?;
        match envelope::parse(&body) {
            Ok(Envelope::Error { code, message }) => {
                let code = if code == 0 { status.as_u16() } else { code };
                Err(Error::Api { request: request.to_string(), code, message })
            }
            Ok(envelope) => Ok((envelope, etag)),
            Err(source) if status.is_success() => {
                Err(Error::Envelope { request: request.to_string(), source })
            }
            Err(_) => Err(Error::Api {
                request: request.to_string(),
                code: status.as_u16(),
                message: status.canonical_reason().unwrap_or("no reason given").to_owned(),
            }),
        }
    }

    /// Sends and reads the answer as `T`; with its ETag.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Shape`].
    pub async fn fetch_tagged<T: DeserializeOwned>(
        &self,
        request: &Request,
    ) -> Result<(T, Option<String>), Error> {
        let (envelope, etag) = self.send(request).await?;
        let metadata = match envelope {
            Envelope::Sync(m) | Envelope::Async { metadata: m, .. } => m,
            Envelope::Error { .. } => Value::Null,
        };
        Ok((shape(request, metadata)?, etag))
    }
    /// Sends and reads the answer as `T`.
    ///
    /// # Errors
    /// As [`Self::fetch_tagged`].
    pub async fn fetch<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        Ok(self.fetch_tagged(request).await?.0)
    }
    /// Sends and reads a list; Go writes an empty one as `null`.
    async fn list<T: DeserializeOwned>(&self, request: &Request) -> Result<Vec<T>, Error> {
        Ok(self.fetch::<Option<Vec<T>>>(request).await?.unwrap_or_default())
    }
    /// Sends; the operation when one began.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn begin(&self, request: &Request) -> Result<Option<Operation>, Error> {
        Ok(match self.send(request).await?.0 {
            Envelope::Async { operation, metadata } => {
                Some(Operation { request: request.to_string(), path: operation, begun: metadata })
            }
            _ => None,
        })
    }
    /// Sends, and waits for the operation if one begins.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::wait`].
    pub async fn run(&self, request: &Request, timeout: Duration) -> Result<Option<OperationStatus>, Error> {
        match self.begin(request).await? {
            Some(operation) => self.wait(&operation, timeout).await.map(Some),
            None => Ok(None),
        }
    }
    /// Waits until an operation has succeeded.
    ///
    /// # Errors
    /// [`Error::Operation`] when it failed or was cancelled; [`Error::Timeout`] when it still runs.
    pub async fn wait(&self, operation: &Operation, timeout: Duration) -> Result<OperationStatus, Error> {
        let status: OperationStatus =
            self.fetch(&requests::operations::wait(&operation.path, timeout)).await?;
        match status.status_code {
            200 => Ok(status),
            400.. => Err(Error::Operation {
                request: operation.request.clone(),
                code: status.status_code,
                message: status.err,
            }),
            _ => Err(Error::Timeout { request: operation.request.clone(), after: timeout }),
        }
    }
    /// Cancels an operation, if it can be.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn cancel(&self, operation: &Operation) -> Result<(), Error> {
        self.send(&requests::operations::cancel(&operation.path)).await.map(drop)
    }

    /// What the server is and can do; with the ETag of its settings.
    ///
    /// # Errors
    /// As [`Self::fetch_tagged`].
    pub async fn server(&self) -> Result<(Server, Option<String>), Error> {
        self.fetch_tagged(&requests::server::get()).await
    }
    /// [`Error::Extension`] unless the server has `extension`.
    ///
    /// # Errors
    /// As said, and as [`Self::server`].
    pub async fn require(&self, feature: &'static str, extension: &'static str) -> Result<(), Error> {
        if self.server().await?.0.has(extension) {
            Ok(())
        } else {
            Err(Error::Extension { feature, extension })
        }
    }

    /// Whether clustered, and which settings a joining member gives.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        self.fetch(&requests::cluster::get()).await
    }
    /// Members.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        self.list(&requests::cluster::members()).await
    }
    /// Makes this server the first member of a new cluster.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn bootstrap_cluster(&self, server_name: &str) -> Result<(), Error> {
        self.run(&requests::cluster::bootstrap(server_name), OPERATION_TIMEOUT).await.map(drop)
    }
    /// Joins a cluster.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn join_cluster(&self, join: &Join<'_>) -> Result<(), Error> {
        self.run(&requests::cluster::join(self.dialect, join), OPERATION_TIMEOUT).await.map(drop)
    }
    /// A one-time token with which `member` may join.
    ///
    /// # Errors
    /// As [`Self::fetch`].
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
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn set_member_state(&self, name: &str, action: MemberAction) -> Result<(), Error> {
        self.run(&requests::cluster::set_member_state(name, action), EVACUATE_TIMEOUT).await.map(drop)
    }
    /// Removes a member.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn remove_member(&self, name: &str, force: bool) -> Result<(), Error> {
        let request = requests::cluster::remove_member(name, force).within(OPERATION_TIMEOUT);
        self.run(&request, OPERATION_TIMEOUT).await.map(drop)
    }

    /// Storage pools.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn storage_pools(&self) -> Result<Vec<StoragePool>, Error> {
        self.list(&requests::storage::pools()).await
    }
    /// Networks of a project.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn networks(&self, project: &str) -> Result<Vec<Network>, Error> {
        self.list(&requests::networks::list(project)).await
    }
    /// Projects.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn projects(&self) -> Result<Vec<Project>, Error> {
        self.list(&requests::projects::list()).await
    }
    /// Profiles of a project.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn profiles(&self, project: &str) -> Result<Vec<Profile>, Error> {
        self.list(&requests::profiles::list(project)).await
    }
    /// One profile; with its ETag.
    ///
    /// # Errors
    /// As [`Self::fetch_tagged`].
    pub async fn profile(&self, project: &str, name: &str) -> Result<(Profile, Option<String>), Error> {
        self.fetch_tagged(&requests::profiles::get(project, name)).await
    }

    /// A one-time token with which a client may add its certificate under `name`.
    ///
    /// # Errors
    /// As [`Self::fetch`].
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
    /// Adds the certificate this client connects with (HTTPS) by a token.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn add_own_certificate(&self, name: &str, token: &str) -> Result<(), Error> {
        self.send(&requests::certificates::add_own(self.dialect, name, token)).await.map(drop)
    }
    /// Trusted certificates.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn certificates(&self) -> Result<Vec<Certificate>, Error> {
        self.list(&requests::certificates::list()).await
    }

    /// Instances of all projects with their states.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn instances(&self) -> Result<Vec<Instance>, Error> {
        self.list(&requests::instances::list_all()).await
    }
    /// Makes an instance, and waits for it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn create_instance(
        &self,
        project: &str,
        target: Option<&str>,
        instance: &NewInstance,
    ) -> Result<(), Error> {
        self.run(&requests::instances::create(project, target, instance), OPERATION_TIMEOUT).await.map(drop)
    }
    /// Starts or stops an instance, and waits for it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn set_instance_state(
        &self,
        project: &str,
        name: &str,
        action: requests::instances::StateAction,
        timeout_s: u32,
    ) -> Result<(), Error> {
        let request = requests::instances::set_state(project, name, action, timeout_s);
        let patience = OPERATION_TIMEOUT.max(Duration::from_secs(u64::from(timeout_s) + 10));
        self.run(&request, patience).await.map(drop)
    }
    /// Deletes a stopped instance, and waits for it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn delete_instance(&self, project: &str, name: &str) -> Result<(), Error> {
        self.run(&requests::instances::delete(project, name), OPERATION_TIMEOUT).await.map(drop)
    }

    /// Images of a project.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn images(&self, project: &str) -> Result<Vec<Image>, Error> {
        self.list(&requests::images::list(project)).await
    }
    /// Uploads a unified image (`rootfs` absent) or a split one; its fingerprint. An image that is there already is
    /// found, not refused.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn upload_image(
        &self,
        project: &str,
        file: &Path,
        rootfs: Option<&Path>,
    ) -> Result<String, Error> {
        let request = match rootfs {
            Some(rootfs) => requests::images::upload_split(project, file, rootfs),
            None => requests::images::upload_unified(project, file),
        };
        let done = self.run(&request, request.timeout).await?;
        let metadata = done.map(|d| d.metadata).unwrap_or_default();
        #[derive(serde::Deserialize)]
        struct Uploaded {
            fingerprint: String,
        }
        Ok(shape::<Uploaded>(&request, metadata)?.fingerprint)
    }
    /// Lets `name` stand for the image, whatever it stood for.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn set_image_alias(&self, project: &str, name: &str, fingerprint: &str) -> Result<(), Error> {
        match self.fetch::<ImageAlias>(&requests::images::alias(project, name)).await {
            Ok(alias) if alias.target == fingerprint => Ok(()),
            Ok(_) => self.send(&requests::images::update_alias(project, name, fingerprint)).await.map(drop),
            Err(e) if e.is_not_found() => {
                self.send(&requests::images::create_alias(project, name, fingerprint)).await.map(drop)
            }
            Err(e) => Err(e),
        }
    }
}

/// How Go writes a time that was never set; the engines' own tools send it on.
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

fn shape<T: DeserializeOwned>(request: &Request, value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|source| Error::Shape { request: request.to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_an_empty_list() {
        let r = Request::get("/1.0/storage-pools");
        assert_eq!(shape::<Option<Vec<StoragePool>>>(&r, Value::Null).unwrap(), None);
        let pool = serde_json::json!([{ "name": "p", "driver": "dir", "config": null, "used_by": null }]);
        assert_eq!(shape::<Vec<StoragePool>>(&r, pool).unwrap()[0].used_by, Vec::<String>::new());
    }
}
