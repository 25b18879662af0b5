//! Sends requests and parses their answers.
//!
//! Every method fails as [`Client::send`] does, and methods that wait for an operation also as [`Client::wait`]. Methods
//! document only their additional errors.

mod cluster;
mod files;
mod images;
mod instances;
mod migration;
mod operations;
mod server;
mod storage;

pub use files::{FileKind, FileStat};
pub use images::OnServer;
pub use instances::Moved;
pub use operations::Operation;

use crate::{
    Dialect, ETag, Error, Feature, Request, Tagged,
    envelope::{self, Envelope},
    requests,
    transport::{Answer, Endpoint, Transport},
    types::{OperationStatus, Server},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// Time limit of ordinary operations: forming a cluster, creating a pool, starting an instance.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(120);
/// Time limit of what moves data: copies, moves, evacuation.
pub use crate::request::TRANSFER_TIMEOUT;

/// A client of one server, or of a cluster through one of its members. Clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    dialect: Dialect,
    /// The cached answer to `GET /1.0`, with the count of lost connections when it was fetched.
    server: Mutex<Option<(u64, Arc<Server>)>>,
}

impl Client {
    /// Makes a client; it connects with the first request.
    ///
    /// # Errors
    /// The identity for HTTPS is unusable.
    pub fn new(dialect: Dialect, endpoint: Endpoint) -> Result<Self, Error> {
        let transport = Transport::new(endpoint)?;
        Ok(Self { inner: Arc::new(Inner { transport, dialect, server: Mutex::new(None) }) })
    }
    /// Connects and detects which engine answers.
    ///
    /// # Errors
    /// As [`Self::send`], and as [`Self::new`].
    pub async fn discover(endpoint: Endpoint) -> Result<Self, Error> {
        let asking = Self::new(Dialect::Incus, endpoint.clone())?;
        let server = asking.server_info().await?;
        let dialect = match server.environment.server.as_str() {
            "lxd" => Dialect::Lxd,
            "incus" => Dialect::Incus,
            // Untrusted clients do not get the server's name. Incus renamed this extension when it forked.
            _ if server.has("dev_incus_events") => Dialect::Incus,
            _ => Dialect::Lxd,
        };
        if dialect == Dialect::Incus { Ok(asking) } else { Self::new(dialect, endpoint) }
    }
    /// The engine it talks to.
    pub fn dialect(&self) -> Dialect {
        self.inner.dialect
    }
    /// The endpoint it sends to.
    pub fn endpoint(&self) -> &Endpoint {
        self.inner.transport.endpoint()
    }
    pub(crate) fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    /// Sends a request and parses the envelope of the answer; returns it with its ETag.
    ///
    /// # Errors
    /// Any error of the transport: no connection, a broken one, no answer in time, an answer that is too long.
    /// [`Error::Extension`] and [`Error::Never`] when the server lacks a feature the request needs. [`Error::Api`] when
    /// the server refuses, [`Error::Changed`] when it refuses because the object no longer matches the ETag.
    pub async fn send(&self, request: &Request) -> Result<(Envelope, Option<ETag>), Error> {
        self.check(request).await?;
        let answer = self.inner.transport.send(request).await?;
        let etag = answer.header(http::header::ETAG).map(ETag::new);
        Ok((open(request, &answer)?, etag))
    }
    /// Fails if the server lacks a feature the request needs.
    pub(crate) async fn check(&self, request: &Request) -> Result<(), Error> {
        for feature in request.needed() {
            self.require(*feature).await?;
        }
        Ok(())
    }

    /// Sends a request and parses the answer as `T`; returns it with its ETag.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Shape`]; [`Error::NoETag`].
    pub async fn fetch_tagged<T: DeserializeOwned>(&self, request: &Request) -> Result<Tagged<T>, Error> {
        let (envelope, etag) = self.send(request).await?;
        let etag = etag.ok_or_else(|| Error::NoETag { request: request.to_string() })?;
        Ok(Tagged { value: shape(request, contents(envelope))?, etag })
    }
    /// Sends a request and parses the answer as `T`.
    ///
    /// # Errors
    /// As [`Self::send`]; [`Error::Shape`].
    pub async fn fetch<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        shape(request, contents(self.send(request).await?.0))
    }
    /// Sends a request and parses the answer as a list; Go writes an empty list as `null`.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn list<T: DeserializeOwned>(&self, request: &Request) -> Result<Vec<T>, Error> {
        Ok(self.fetch::<Option<Vec<T>>>(request).await?.unwrap_or_default())
    }
    /// Sends a request; returns the operation if it began one.
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
    /// Sends a request that always begins an operation; returns the operation and its first state.
    pub(crate) async fn begin_operation(
        &self,
        request: &Request,
    ) -> Result<(Operation, OperationStatus), Error> {
        let (operation, metadata) = match self.send(request).await?.0 {
            Envelope::Async { operation, metadata } => (operation, metadata),
            _ => {
                let source = envelope::EnvelopeError::NoOperation;
                return Err(Error::Envelope { request: request.to_string(), source });
            }
        };
        let status = shape(request, metadata.clone())?;
        Ok((Operation { request: request.to_string(), path: operation, begun: metadata }, status))
    }
    /// Sends a request and waits for the operation if it begins one.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::wait`].
    pub async fn run(&self, request: &Request, timeout: Duration) -> Result<Option<OperationStatus>, Error> {
        match self.begin(request).await? {
            Some(operation) => self.wait(&operation, timeout).await.map(Some),
            None => Ok(None),
        }
    }

    /// Sends a request whose answer is not an envelope; returns the raw answer.
    pub(crate) async fn raw(&self, request: &Request) -> Result<Answer, Error> {
        self.check(request).await?;
        let answer = self.inner.transport.send(request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(refused(request, &answer)) }
    }

    /// The server's version, extensions and environment. Fetched once, and again after a lost connection: the server
    /// may have been upgraded.
    pub async fn server_info(&self) -> Result<Arc<Server>, Error> {
        let losses = self.inner.transport.losses();
        let mut kept = self.inner.server.lock().await;
        if let Some((then, server)) = &*kept
            && *then == losses
        {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(self.fetch_unchecked(&requests::server::get()).await?);
        *kept = Some((self.inner.transport.losses(), Arc::clone(&server)));
        Ok(server)
    }
    pub(crate) async fn forget_server_info(&self) {
        *self.inner.server.lock().await = None;
    }
    /// As [`Self::fetch`], without the check for needed features, which itself fetches the server's extensions.
    async fn fetch_unchecked<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Error> {
        let answer = self.inner.transport.send(request).await?;
        shape(request, contents(open(request, &answer)?))
    }
    /// Whether the server has this feature.
    pub async fn has(&self, feature: Feature) -> Result<bool, Error> {
        match feature.extension(self.inner.dialect) {
            Some(extension) => Ok(self.server_info().await?.has(extension)),
            None => Ok(false),
        }
    }
    /// Fails unless the server has this feature.
    ///
    /// # Errors
    /// [`Error::Extension`], [`Error::Never`].
    pub async fn require(&self, feature: Feature) -> Result<(), Error> {
        let Some(extension) = feature.extension(self.inner.dialect) else {
            return Err(Error::Never { feature, dialect: self.inner.dialect });
        };
        if self.server_info().await?.has(extension) {
            Ok(())
        } else {
            Err(Error::Extension { feature, extension, endpoint: self.endpoint().to_string() })
        }
    }
}

/// Nobody can connect to the server of `client`.
fn silent(client: &Client) -> Error {
    Error::Refused { subject: client.endpoint().to_string(), why: "does not listen on the network" }
}

fn contents(envelope: Envelope) -> Value {
    match envelope {
        Envelope::Sync(metadata) | Envelope::Async { metadata, .. } => metadata,
        Envelope::Error { .. } => Value::Null,
    }
}

fn open(request: &Request, answer: &Answer) -> Result<Envelope, Error> {
    match envelope::parse(&answer.body) {
        Ok(Envelope::Error { .. }) => Err(refused(request, answer)),
        Ok(envelope) => Ok(envelope),
        Err(source) if answer.status.is_success() => {
            Err(Error::Envelope { request: request.to_string(), source })
        }
        Err(_) => Err(refused(request, answer)),
    }
}

/// Turns an unsuccessful answer into an error.
pub(crate) fn refused(request: &Request, answer: &Answer) -> Error {
    let (code, message) = match envelope::parse(&answer.body) {
        Ok(Envelope::Error { code, message }) if code != 0 => (code, message),
        Ok(Envelope::Error { message, .. }) => (answer.status.as_u16(), message),
        _ => {
            (answer.status.as_u16(), answer.status.canonical_reason().unwrap_or("no reason given").to_owned())
        }
    };
    match code {
        412 => Error::Changed { request: request.to_string() },
        _ => Error::Api { request: request.to_string(), code, message },
    }
}

pub(crate) fn shape<T: DeserializeOwned>(request: &Request, value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|source| Error::Shape { request: request.to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StoragePool;

    #[test]
    fn null_is_an_empty_list() {
        let r = Request::get("/1.0/storage-pools");
        assert_eq!(shape::<Option<Vec<StoragePool>>>(&r, Value::Null).unwrap(), None);
        let pool = serde_json::json!([{ "name": "p", "driver": "dir", "config": null, "used_by": null }]);
        assert_eq!(shape::<Vec<StoragePool>>(&r, pool).unwrap()[0].used_by, Vec::<String>::new());
    }

    #[test]
    fn a_failed_precondition_is_told_apart() {
        let answer = |code: u16| Answer {
            status: http::StatusCode::from_u16(code).unwrap(),
            headers: http::HeaderMap::new(),
            body: format!(r#"{{"type":"error","error":"E","error_code":{code}}}"#).into(),
        };
        let r = Request::get("/1.0/x");
        assert!(matches!(refused(&r, &answer(412)), Error::Changed { .. }));
        assert!(refused(&r, &answer(404)).is_not_found());
        // A proxy or a panicking server answers without an envelope.
        let bare = Answer { body: "<html>".into(), ..answer(502) };
        assert_eq!(refused(&r, &bare).to_string(), "GET /1.0/x was refused (502): Bad Gateway");
    }
}
