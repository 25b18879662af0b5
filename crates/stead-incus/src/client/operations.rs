//! Operations (background work of the server): waiting for them through lost connections.

use super::{Client, refused, shape};
use crate::{
    Error, Request, Scope,
    envelope::{self, Envelope},
    requests::operations,
    types::{OperationStatus, Outcome},
};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, time::Duration};
use tokio::time::Instant;

/// Longest wait in a single request. A connection whose other end has vanished (a member lost power) is noticed within
/// this time.
const SLICE: Duration = Duration::from_secs(20);
/// Pause before an unreachable server is asked again: it may be starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// An operation the server has begun.
#[derive(Clone, PartialEq)]
pub struct Operation {
    /// Request that began it, for errors.
    pub request: String,
    /// `/1.0/operations/<uuid>`.
    pub path: String,
    /// Its state when it began; null if not known.
    pub begun: Value,
}

/// Leaves out the state, which may hold secrets.
impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("request", &self.request)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Result of one request for an operation.
enum Look {
    At(Box<OperationStatus>),
    /// The server does not know the operation.
    Gone,
    /// The server could not be asked.
    Silence,
}

impl Operation {
    /// An operation known from another source: a journal, an event.
    pub fn known(request: impl Into<String>, path: impl Into<String>) -> Self {
        Self { request: request.into(), path: path.into(), begun: Value::Null }
    }
}

impl Client {
    /// Operations of every member, including those that ended in the last five seconds.
    pub async fn operations(&self, scope: Scope<'_>) -> Result<Vec<OperationStatus>, Error> {
        let by_status: Option<BTreeMap<String, Option<Vec<OperationStatus>>>> =
            self.fetch(&operations::list(scope)).await?;
        Ok(by_status.into_iter().flatten().flat_map(|(_, list)| list.unwrap_or_default()).collect())
    }
    /// Current state of an operation.
    pub async fn operation(&self, operation: &Operation) -> Result<OperationStatus, Error> {
        self.fetch(&operations::get(&operation.path)).await
    }
    /// Cancels an operation, if it can be cancelled.
    pub async fn cancel(&self, operation: &Operation) -> Result<(), Error> {
        self.send(&operations::cancel(&operation.path)).await.map(drop)
    }

    /// Waits until an operation has succeeded. A lost connection or a restart of the server does not end the wait.
    ///
    /// # Errors
    /// [`Error::Operation`] when it failed or was cancelled. [`Error::Timeout`] when it still runs or the server does
    /// not answer; a connection error is not returned, because it would read as if the operation had never begun.
    /// [`Error::OutcomeUnknown`] when the server does not know it, or no longer does: look at what it worked on.
    pub async fn wait(&self, operation: &Operation, timeout: Duration) -> Result<OperationStatus, Error> {
        self.watch(operation, timeout, SLICE, |_| ()).await
    }

    /// As [`Self::wait`]; calls `report` with the operation's state at least once per `every` while it runs.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub async fn watch(
        &self,
        operation: &Operation,
        timeout: Duration,
        every: Duration,
        mut report: impl FnMut(&OperationStatus),
    ) -> Result<OperationStatus, Error> {
        let deadline = Instant::now() + timeout;
        let mut interrupted = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.look(operation, every.min(SLICE).min(left)).await? {
                Look::At(status) => match status.outcome() {
                    Outcome::Success => return Ok(*status),
                    Outcome::Failure | Outcome::Cancelled => {
                        return Err(Error::Operation {
                            request: operation.request.clone(),
                            code: status.status_code,
                            message: status.err,
                        });
                    }
                    Outcome::Running => report(&status),
                },
                Look::Gone => {
                    return Err(Error::OutcomeUnknown {
                        request: operation.request.clone(),
                        operation: operation.path.clone(),
                        interrupted,
                    });
                }
                Look::Silence => {
                    interrupted = true;
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { request: operation.request.clone(), after: timeout });
            }
        }
    }

    /// Waits at the server for at most `slice`. Servers differ in the answer: LXD and later Incus send the operation's
    /// state. Incus 6.0 up to 6.0.5 send, with status 200, the operation's error or, when the time is up, an error about
    /// that; in this case the operation's state is fetched.
    async fn look(&self, operation: &Operation, slice: Duration) -> Result<Look, Error> {
        let wait = operations::wait(&operation.path, slice);
        let answer = match self.transport().send(&wait).await {
            Ok(answer) => answer,
            Err(e) if e.is_silence() => return Ok(Look::Silence),
            Err(e) => return Err(e),
        };
        let ended_with = match (answer.status.as_u16(), envelope::parse(&answer.body)) {
            (200, Ok(Envelope::Sync(status))) => return Ok(Look::At(Box::new(shape(&wait, status)?))),
            (200, Ok(Envelope::Error { message, .. })) => message,
            // Truncated: the server went away during the wait.
            (200, Err(_)) => return Ok(Look::Silence),
            (404, _) => return Ok(Look::Gone),
            // The server is starting or stopping, or cannot reach the member the operation runs on.
            (500..=599, _) => return Ok(Look::Silence),
            _ => return Err(refused(&wait, &answer)),
        };
        let get = operations::get(&operation.path);
        match self.fetch::<OperationStatus>(&get).await {
            Ok(status) => Ok(Look::At(Box::new(status))),
            // The server forgot it between the two requests; the first answer says how it ended.
            Err(e) if e.is_not_found() => {
                Err(Error::Operation { request: operation.request.clone(), code: 400, message: ended_with })
            }
            Err(e) if e.is_silence() => Ok(Look::Silence),
            Err(e) => Err(e),
        }
    }

    /// Connects to one of an operation's websockets.
    pub(crate) async fn operation_websocket(
        &self,
        operation: &Operation,
        secret: &str,
    ) -> Result<crate::transport::WebSocket, Error> {
        let request = operations::websocket(&operation.path, secret);
        self.websocket(&request, &operation.request).await
    }
    /// Connects to a websocket; errors name `shown` instead of the request, whose query may hold a secret.
    pub(crate) async fn websocket(
        &self,
        request: &Request,
        shown: &str,
    ) -> Result<crate::transport::WebSocket, Error> {
        self.check(request).await?;
        match self.transport().websocket(request).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(answer)) => Err(match refused(request, &answer) {
                Error::Api { code, message, .. } => {
                    Error::Api { request: format!("websocket of {shown}"), code, message }
                }
                other => other,
            }),
            Err(Error::WebSocket { source, .. }) => {
                Err(Error::WebSocket { request: format!("websocket of {shown}"), source })
            }
            Err(Error::Timeout { after, .. }) => {
                Err(Error::Timeout { request: format!("websocket of {shown}"), after })
            }
            Err(e) => Err(e),
        }
    }
}
