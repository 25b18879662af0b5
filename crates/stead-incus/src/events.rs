//! Events of a server, over a websocket that is reopened when it breaks.
//!
//! A server sends events only to current subscribers, so the order matters: subscribe, then list, then act. Events may
//! be lost while the connection is broken; [`Delivery::Reconnected`] reports this, and the caller must list again.
//!
//! ```no_run
//! # async fn example(client: stead_incus::Client) -> Result<(), stead_incus::Error> {
//! use stead_incus::{EventFilter, Delivery};
//! let mut events = client.events(EventFilter::lifecycle()).await?;
//! let mut instances = client.instances().await?;
//! loop {
//!     match events.next().await? {
//!         Delivery::Event(event) => println!("{:?}", event.lifecycle().map(|l| l.action)),
//!         Delivery::Reconnected => instances = client.instances().await?,
//!     }
//! #   drop(instances); return Ok(());
//! }
//! # }
//! ```

use crate::{
    Client, Error, Request,
    transport::WebSocket,
    types::{Event, EventKind},
};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

/// The servers send a ping every ten seconds; after three missing pings the server counts as gone.
const SILENCE: Duration = Duration::from_secs(35);
/// Pause between attempts to reach a server that does not answer: it may be starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// The events to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// Project whose events are sent; none for all projects.
    pub project: Option<String>,
    /// Kinds of events; empty for all that the client may see.
    pub kinds: Vec<EventKind>,
    /// How long [`Events::next`] tries to reach an unreachable server before it fails.
    pub patience: Duration,
}

impl EventFilter {
    /// Events of all projects. [`Events::next`] waits up to five minutes for a server that restarts.
    pub fn of(kinds: impl Into<Vec<EventKind>>) -> Self {
        Self { project: None, kinds: kinds.into(), patience: Duration::from_secs(300) }
    }
    /// Lifecycle events (objects created, changed and deleted) of all projects.
    pub fn lifecycle() -> Self {
        Self::of([EventKind::Lifecycle])
    }

    /// The request that opens the subscription.
    pub fn request(&self) -> Request {
        let kinds: Vec<&str> = self.kinds.iter().filter_map(|k| k.as_str()).collect();
        let request = match &self.project {
            Some(project) => Request::get("/1.0/events").query("project", project),
            None => Request::get("/1.0/events").query("all-projects", "true"),
        };
        if kinds.is_empty() { request } else { request.query("type", &kinds.join(",")) }
    }
}

/// What [`Events::next`] returns.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// The next event.
    Event(Box<Event>),
    /// The connection broke and was reopened. Events in between are lost: list again.
    Reconnected,
}

/// A subscription to events.
#[derive(Debug)]
pub struct Events {
    client: Client,
    request: Request,
    patience: Duration,
    socket: Option<WebSocket>,
}

impl Client {
    /// Subscribes to events from now on.
    pub async fn events(&self, filter: EventFilter) -> Result<Events, Error> {
        let request = filter.request();
        let socket = self.websocket(&request, "events").await?;
        Ok(Events { client: self.clone(), request, patience: filter.patience, socket: Some(socket) })
    }
}

impl Events {
    /// The next event, or a notice that some may have been missed. Cancel-safe.
    ///
    /// # Errors
    /// The server was unreachable for as long as the filter's patience, or it refused. [`Error::Shape`] for an event
    /// that cannot be parsed; later events can still be read.
    pub async fn next(&mut self) -> Result<Delivery, Error> {
        loop {
            let Some(socket) = &mut self.socket else {
                self.reconnect().await?;
                return Ok(Delivery::Reconnected);
            };
            match timeout(SILENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => return self.read(text.as_bytes()),
                Ok(Some(Ok(Message::Binary(bytes)))) => return self.read(&bytes),
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => self.socket = None,
                // The library answers a ping when it is asked for the next message.
                Ok(Some(Ok(_))) => {}
            }
        }
    }

    fn read(&self, json: &[u8]) -> Result<Delivery, Error> {
        parse(json)
            .map(|event| Delivery::Event(Box::new(event)))
            .map_err(|source| Error::Shape { request: self.request.to_string(), source })
    }

    async fn reconnect(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.client.websocket(&self.request, "events").await {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return Ok(());
                }
                Err(e) if Instant::now() < deadline && may_pass(&e) => sleep(RECONNECT_PAUSE).await,
                Err(e) => return Err(e),
            }
        }
    }
}

/// Whether the error is temporary: the server is stopping or starting, so it does not answer or says it is not ready.
fn may_pass(error: &Error) -> bool {
    error.is_silence()
        || matches!(error, Error::WebSocket { .. })
        || error.code().is_some_and(|code| code >= 500)
}

/// Parses one event.
///
/// # Errors
/// The JSON is not an event.
pub fn parse(json: &[u8]) -> Result<Event, serde_json::Error> {
    serde_json::from_slice(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Outcome;

    #[test]
    fn requests() {
        assert_eq!(
            EventFilter::of([EventKind::Lifecycle, EventKind::Operation]).request().path(),
            "/1.0/events?all-projects=true&type=lifecycle%2Coperation"
        );
        let one = EventFilter { project: Some("p".into()), ..EventFilter::of([]) };
        assert_eq!(one.request().path(), "/1.0/events?project=p");
    }

    #[test]
    fn events_of_every_kind_are_read() {
        let event = parse(
            br#"{"type":"operation","timestamp":"2026-01-01T00:00:00Z","metadata":{"id":"u","class":"task","status_code":103},"location":"node1","project":"default"}"#,
        )
        .unwrap();
        assert_eq!(event.operation().unwrap().outcome(), Outcome::Running);
        assert_eq!(event.lifecycle(), None);
        let event = parse(
            br#"{"type":"lifecycle","metadata":{"action":"instance-started","source":"/1.0/instances/c1"}}"#,
        )
        .unwrap();
        assert_eq!(event.lifecycle().unwrap().action, "instance-started");
        assert_eq!(parse(br#"{"type":"of-tomorrow"}"#).unwrap().kind, EventKind::Other);
        assert!(parse(b"[]").is_err());
    }
}
