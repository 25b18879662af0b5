//! Handlers of requests.

use super::{
    addresses::Addresses,
    answer::{self, Answer, Body, Refusal},
    exec, files, logs,
    route::{Route, RouteError, route},
};
use crate::{
    engine::{Engine, EngineError},
    handle::{Handle, Stop},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{Request, Response, StatusCode, body::Body as _, body::Incoming, header};
use serde::de::DeserializeOwned;
use std::{collections::BTreeSet, io, sync::Arc, time::Duration};
use stead_model::agent::{
    AccessRequest, JoinRequest, JoinTokenRequest, NodeStatus, PROTOCOL, PROTOCOL_HEADER, RemoveMemberRequest,
    RestoreMemberRequest, StopRequest,
};
use tokio::{sync::Semaphore, time::timeout};

/// Longest JSON request, in bytes. A join token has a few KiB.
const MAX_JSON: usize = 64 * 1024;
/// Time limit for receiving a JSON request.
const JSON_TIME: Duration = Duration::from_secs(10);
/// Commands at once; each holds a process and at most about 200 KiB of buffers.
const MAX_EXECS: usize = 32;
/// File transfers at once; each holds a thread.
const MAX_TRANSFERS: usize = 4;
/// Longest grace period for services, one day: a longer one is a mistake.
const MAX_DEADLINE_S: u32 = 86_400;
/// Name of the node's own log.
const NODE_LOG: &str = "node";

/// State shared by the handlers.
pub struct Api {
    handle: Handle,
    engine: Option<Arc<dyn Engine>>,
    addresses: Addresses,
    execs: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
}

impl Api {
    pub fn new(handle: Handle, engine: Option<Arc<dyn Engine>>) -> Self {
        Self {
            handle,
            engine,
            addresses: Addresses::default(),
            execs: Arc::new(Semaphore::new(MAX_EXECS)),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
        }
    }

    /// Answers any request.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().path_and_query().map_or("/", |t| t.as_str());
        let answer = match route(request.method().as_str(), target) {
            _ if let Some(refusal) = other_protocol(&request) => Err(refusal),
            Ok(route) => self.fulfil(route, request).await,
            Err(error) => {
                let mut refusal = match &error {
                    RouteError::NotFound => Refusal::new(StatusCode::NOT_FOUND, error.to_string()),
                    RouteError::Method { .. } => {
                        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, error.to_string())
                    }
                    RouteError::Query { .. } => Refusal::new(StatusCode::BAD_REQUEST, error.to_string()),
                };
                if let RouteError::Method { allowed } = error {
                    refusal.allow = Some(allowed);
                }
                Err(refusal)
            }
        };
        let mut response = answer.unwrap_or_else(Refusal::into_response);
        response.headers_mut().insert(PROTOCOL_HEADER, header::HeaderValue::from(PROTOCOL));
        response
    }

    async fn fulfil(&self, route: Route, request: Request<Incoming>) -> Answer {
        match route {
            Route::Status => answer::json(&self.status().await),
            Route::Logs { service, tail, follow } => self.logs(&service, tail, follow).await,
            Route::Exec => self.exec(request),
            Route::GetFiles { path } => files::get(path, &self.transfers).await,
            Route::PutFiles { path } => files::put(path, request.into_body(), &self.transfers).await,
            Route::Engine => answer::json(&self.engine()?.status_now().await),
            Route::JoinToken => {
                let message: JoinTokenRequest = json(request).await?;
                let engine = self.engine()?;
                answer::json(&whole(async move { engine.join_token(&message).await }).await?)
            }
            Route::Join => {
                let message: JoinRequest = json(request).await?;
                let engine = self.engine()?;
                answer::json(&whole(async move { engine.join(&message).await }).await?)
            }
            Route::Access => {
                let message: AccessRequest = json(request).await?;
                let engine = self.engine()?;
                answer::json(&whole(async move { engine.access(&message).await }).await?)
            }
            Route::RemoveMember => {
                let message: RemoveMemberRequest = json(request).await?;
                let engine = self.engine()?;
                whole(async move { engine.remove(&message).await }).await?;
                Ok(answer::empty(StatusCode::NO_CONTENT))
            }
            Route::RestoreMember => {
                let message: RestoreMemberRequest = json(request).await?;
                let engine = self.engine()?;
                whole(async move { engine.restore(&message).await }).await?;
                Ok(answer::empty(StatusCode::NO_CONTENT))
            }
            Route::Instances => {
                let engine = self.engine()?;
                answer::json(&engine.workloads().await.map_err(refused_by_engine)?)
            }
            Route::Reboot => self.stop(json(request).await?, Stop::Reboot),
            Route::Shutdown => self.stop(json(request).await?, Stop::Shutdown),
        }
    }

    async fn status(&self) -> NodeStatus {
        let mut status = self.handle.status();
        status.engine = self.engine.as_ref().map(|e| e.status());
        match self.addresses.read().await {
            Ok(addresses) => status.addresses = addresses,
            Err(e) => status.warnings.push(format!("cannot read addresses: {e}")),
        }
        status
    }

    fn engine(&self) -> Result<Arc<dyn Engine>, Refusal> {
        self.engine.clone().ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "this node has no engine"))
    }

    fn stop(&self, request: StopRequest, how: fn(Duration) -> Stop) -> Answer {
        if request.deadline_s > MAX_DEADLINE_S {
            let why = format!("deadline_s {} is longer than a day", request.deadline_s);
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        self.handle.request_stop(how(Duration::from_secs(request.deadline_s.into())));
        Ok(answer::empty(StatusCode::ACCEPTED))
    }

    async fn logs(&self, service: &str, tail: Option<u64>, follow: bool) -> Answer {
        // Only known names become file names.
        let names = self.log_names().await;
        if !names.contains(service) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no service {service:?}"))
                .hint(format!("logs: {}", names.join(", "))));
        }
        let (dir, service) = (self.handle.log_dir().to_owned(), service.to_owned());
        let reader = blocking(move || logs::Reader::open(&dir, &service, tail)).await.map_err(|e| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the log: {e}"))
        })?;
        Ok(answer::stream("text/plain; charset=utf-8", logs::stream(reader, follow)))
    }

    /// Every service of the node, and every log from an earlier boot.
    async fn log_names(&self) -> BTreeSet<String> {
        let dir = self.handle.log_dir().to_owned();
        let files = blocking(move || {
            let names = std::fs::read_dir(dir)?.flatten().filter_map(|e| e.file_name().into_string().ok());
            Ok(names.filter_map(|n| n.strip_suffix(".log").map(str::to_owned)).collect::<Vec<_>>())
        });
        let services = self.handle.status().services.into_iter().map(|s| s.name);
        let mut names: BTreeSet<String> = services.chain(files.await.unwrap_or_default()).collect();
        names.retain(|n| !n.contains('/'));
        names.insert(NODE_LOG.to_owned());
        names
    }

    fn exec(&self, mut request: Request<Incoming>) -> Answer {
        let upgrade = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok());
        if !upgrade.is_some_and(|u| u.eq_ignore_ascii_case("stead-exec")) {
            return Err(Refusal::new(
                StatusCode::UPGRADE_REQUIRED,
                "exec requires the header Upgrade: stead-exec",
            ));
        }
        let Ok(permit) = Arc::clone(&self.execs).try_acquire_owned() else {
            let why = format!("{MAX_EXECS} commands are already running");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        };
        let upgraded = hyper::upgrade::on(&mut request);
        let reaper = self.handle.reaper().clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Ok(upgraded) = upgraded.await {
                exec::serve(upgraded, reaper).await;
            }
        });
        let mut response = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("stead-exec"));
        Ok(response)
    }
}

/// The refusal of a request of another protocol version. A request without the header was made by hand and is accepted.
fn other_protocol(request: &Request<Incoming>) -> Option<Refusal> {
    let theirs = request.headers().get(PROTOCOL_HEADER)?.to_str().unwrap_or("?");
    if theirs.parse() == Ok(PROTOCOL) {
        return None;
    }
    let why = format!("this agent speaks protocol version {PROTOCOL}, the request has version {theirs}");
    Some(Refusal::new(StatusCode::BAD_REQUEST, why).hint("use the stead that built this node's image"))
}

/// Reads a JSON request, bounded in size and time.
async fn json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let too_long = || {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request is longer than {MAX_JSON} bytes"))
    };
    let body = request.into_body();
    if body.size_hint().lower() > MAX_JSON as u64 {
        return Err(too_long());
    }
    let bytes = match timeout(JSON_TIME, Limited::new(body, MAX_JSON).collect()).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_long()),
        Ok(Err(error)) => {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("cannot read the request: {error}")));
        }
        Err(_) => {
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time"));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, format!("the request is malformed: {e}")))
}

/// Runs an engine action to its end even if the client goes away: half a join is worse than one without an observer.
async fn whole<T: Send + 'static>(
    action: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::spawn(action).await {
        Ok(result) => result.map_err(refused_by_engine),
        Err(e) => Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the engine action failed unexpectedly: {e}"),
        )),
    }
}

fn refused_by_engine(error: EngineError) -> Refusal {
    Refusal::new(StatusCode::BAD_GATEWAY, crate::chain(&error))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{sync::oneshot, time::sleep};

    #[tokio::test]
    async fn an_engine_action_ends_even_if_its_client_goes_away() {
        let (done, seen) = oneshot::channel();
        let action = whole(async move {
            sleep(Duration::from_millis(50)).await;
            let _ = done.send(());
            Ok(())
        });
        assert!(timeout(Duration::from_millis(5), action).await.is_err());
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn an_engine_action_that_panics_is_answered() {
        let refusal = whole::<()>(async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
