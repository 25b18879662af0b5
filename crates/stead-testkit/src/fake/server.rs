//! The fake's socket: connections, envelopes, waiting, events.

use super::{
    Fault, Shared,
    operations::ended,
    routes::{self, Asked, Reply},
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use stead_incus::Dialect;
use tokio::net::{UnixListener, UnixStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

pub(super) async fn listen(listener: UnixListener, shared: Arc<Shared>) {
    let mut life = shared.life.subscribe();
    let born = *life.borrow_and_update();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                tokio::spawn(serve(stream, Arc::clone(&shared), born));
            }
            () = over(&mut life, born) => return,
        }
    }
}

/// Returns when the server stops.
async fn over(life: &mut tokio::sync::watch::Receiver<u64>, born: u64) {
    let _ = life.wait_for(|now| *now != born).await;
}

async fn serve(stream: UnixStream, shared: Arc<Shared>, born: u64) {
    let mut life = shared.life.subscribe();
    let service = service_fn(|request| answer(request, Arc::clone(&shared), born));
    // An error of the service drops the connection without an answer.
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        _ = connection => {}
        () = over(&mut life, born) => {}
    }
}

type Answer = http::Response<Full<Bytes>>;

async fn answer(
    request: http::Request<Incoming>,
    shared: Arc<Shared>,
    born: u64,
) -> Result<Answer, io::Error> {
    let dropped = || io::Error::other("dropped by an injected fault");
    let target = request.uri().path_and_query().map_or("", |p| p.as_str()).to_owned();
    let line = format!("{} {target}", request.method());
    shared.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line.clone());
    let mut drop_after = false;
    match shared.faults.for_request(&line) {
        Some(Fault::Drop { after_acting: false, .. }) => return Err(dropped()),
        Some(Fault::Drop { after_acting: true, .. }) => drop_after = true,
        Some(Fault::Refuse { code, message, .. }) => return Ok(refusal(code, &message, code)),
        _ => {}
    }
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let asked = Asked::new(&parts, body);
    let reply = routes::answer(&shared, &asked);
    if drop_after {
        return Err(dropped());
    }
    Ok(match reply {
        Reply::Done(metadata) => envelope(metadata, None),
        Reply::Tagged(metadata, etag) => envelope(metadata, Some(etag)),
        Reply::Begun(operation) => begun(&operation),
        Reply::Refused(code, message) => refusal(code, &message, code),
        Reply::Bytes(bytes) => with_body(200, "application/octet-stream", bytes),
        Reply::Wait { id, timeout } => wait(&shared, &id, timeout).await,
        Reply::Events { kinds, project } => match (upgrade, parts.headers.get("sec-websocket-key")) {
            (Some(upgrade), Some(key)) => {
                let accept = derive_accept_key(key.as_bytes());
                let listener = shared.events.subscribe();
                tokio::spawn(tell(upgrade, listener, kinds, project, shared, born));
                http::Response::builder()
                    .status(101)
                    .header("connection", "Upgrade")
                    .header("upgrade", "websocket")
                    .header("sec-websocket-accept", accept)
                    .body(Full::default())
                    .map_err(io::Error::other)?
            }
            _ => refusal(400, "websocket: the client is not using the websocket protocol", 400),
        },
    })
}

fn with_body(status: u16, kind: &str, body: Bytes) -> Answer {
    let mut response = http::Response::new(Full::new(body));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    }
    response
}
fn json_body(status: u16, body: &Value) -> Answer {
    with_body(status, "application/json", Bytes::from(body.to_string() + "\n"))
}
fn envelope(metadata: Value, etag: Option<String>) -> Answer {
    let mut answer = json_body(
        200,
        &json!({
            "type": "sync", "status": "Success", "status_code": 200, "operation": "", "error_code": 0,
            "error": "", "metadata": metadata,
        }),
    );
    if let Some(etag) = etag.and_then(|e| e.parse().ok()) {
        answer.headers_mut().insert(http::header::ETAG, etag);
    }
    answer
}
fn begun(operation: &Value) -> Answer {
    let path = format!("/1.0/operations/{}", operation["id"].as_str().unwrap_or_default());
    json_body(
        202,
        &json!({
            "type": "async", "status": "Operation created", "status_code": 100, "operation": path,
            "error_code": 0, "error": "", "metadata": operation,
        }),
    )
}
fn refusal(code: u16, message: &str, status: u16) -> Answer {
    json_body(
        status,
        &json!({
            "type": "error", "status": "", "status_code": 0, "operation": "", "error_code": code,
            "error": message, "metadata": null,
        }),
    )
}

/// Incus 6.0.4 sends the HTTP status at once, and an error when the operation failed or the time is up; LXD 5.0 sends
/// the operation in its present state.
async fn wait(shared: &Shared, id: &str, timeout: Option<Duration>) -> Answer {
    let (dialect, state) = {
        let inner = shared.lock();
        (inner.world.dialect, inner.operations.get(id).map(|o| o.state.subscribe()))
    };
    let Some(mut state) = state else { return refusal(404, "Operation not found", 404) };
    let end = async {
        match timeout {
            Some(limit) => tokio::time::timeout(limit, state.wait_for(ended)).await.is_ok(),
            None => state.wait_for(ended).await.is_ok(),
        }
    };
    let in_time = end.await;
    let operation = state.borrow().clone();
    match (dialect, operation["err"].as_str()) {
        (Dialect::Incus, _) if !in_time => refusal(500, "context deadline exceeded", 200),
        (Dialect::Incus, Some(why)) if !why.is_empty() => refusal(500, why, 200),
        _ => envelope(operation, None),
    }
}

async fn tell(
    upgrade: hyper::upgrade::OnUpgrade,
    mut listener: tokio::sync::broadcast::Receiver<Value>,
    kinds: Vec<String>,
    project: Option<String>,
    shared: Arc<Shared>,
    born: u64,
) -> Result<(), Infallible> {
    let Ok(upgraded) = upgrade.await else { return Ok(()) };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let mut life = shared.life.subscribe();
    loop {
        tokio::select! {
            event = listener.recv() => {
                let Ok(event) = event else { return Ok(()) };
                let kind = event["type"].as_str().unwrap_or_default();
                let wanted = kinds.is_empty() || kinds.iter().any(|k| k == kind);
                let here = project.as_deref().is_none_or(|p| event["project"] == p);
                if wanted && here && socket.send(Message::text(event.to_string())).await.is_err() {
                    return Ok(());
                }
            }
            message = socket.next() => {
                if !matches!(message, Some(Ok(_))) {
                    return Ok(());
                }
            }
            () = over(&mut life, born) => return Ok(()),
        }
    }
}
