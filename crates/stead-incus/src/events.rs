//! What a server tells as it happens, over a websocket that is opened anew when it breaks.
//!
//! Events are told only to who listens, so the order matters: subscribe, then list, then act. After a break something
//! may have been missed; [`Told::Reconnected`] says so, and the answer to it is to list again.
//!
//! ```no_run
//! # async fn example(client: stead_incus::Client) -> Result<(), stead_incus::Error> {
//! use stead_incus::{EventFilter, Told};
//! let mut events = client.events(EventFilter::lifecycle()).await?;
//! let mut instances = client.instances().await?;
//! loop {
//!     match events.next().await? {
//!         Told::Event(event) => println!("{:?}", event.lifecycle().map(|l| l.action)),
//!         Told::Reconnected => instances = client.instances().await?,
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

/// The servers send a ping every ten seconds; three of them missing is a server that is gone.
const SILENCE: Duration = Duration::from_secs(35);
/// Pause between attempts to reach a server that does not answer; it may be starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// What to listen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// Of one project; none: of all.
    pub project: Option<String>,
    /// Kinds; none: all that the client may see.
    pub kinds: Vec<EventKind>,
    /// How long a server that cannot be reached is tried before [`Events::next`] fails.
    pub patience: Duration,
}

impl EventFilter {
    /// Of all projects; a restart of the server (five minutes at most) is waited for.
    pub fn of(kinds: impl Into<Vec<EventKind>>) -> Self {
        Self { project: None, kinds: kinds.into(), patience: Duration::from_secs(300) }
    }
    /// What is made, changed and removed, in all projects.
    pub fn lifecycle() -> Self {
        Self::of([EventKind::Lifecycle])
    }

    /// The request that begins the listening.
    pub fn request(&self) -> Request {
        let kinds: Vec<&str> = self.kinds.iter().filter_map(|k| k.as_str()).collect();
        let request = match &self.project {
            Some(project) => Request::get("/1.0/events").query("project", project),
            None => Request::get("/1.0/events").query("all-projects", "true"),
        };
        if kinds.is_empty() { request } else { request.query("type", &kinds.join(",")) }
    }
}

/// What [`Events::next`] tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// Something happened.
    Event(Box<Event>),
    /// The connection broke and is whole again: whatever happened meanwhile was not told. List again.
    Reconnected,
}

/// A subscription.
#[derive(Debug)]
pub struct Events {
    client: Client,
    request: Request,
    patience: Duration,
    socket: Option<WebSocket>,
}

impl Client {
    /// Subscribes: events from now on are told.
    pub async fn events(&self, filter: EventFilter) -> Result<Events, Error> {
        let request = filter.request();
        let socket = self.websocket(&request, "events").await?;
        Ok(Events { client: self.clone(), request, patience: filter.patience, socket: Some(socket) })
    }
}

impl Events {
    /// The next event, or that some may have been missed. May be dropped while it waits, and called again.
    ///
    /// # Errors
    /// The server could not be reached for as long as the filter's patience, or refuses. [`Error::Shape`] for an event
    /// that cannot be read; the ones after it can.
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            let Some(socket) = &mut self.socket else {
                self.reconnect().await?;
                return Ok(Told::Reconnected);
            };
            match timeout(SILENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => return self.read(text.as_bytes()),
                Ok(Some(Ok(Message::Binary(bytes)))) => return self.read(&bytes),
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => self.socket = None,
                // The answer to a ping is sent by the library when it is asked for the next message.
                Ok(Some(Ok(_))) => {}
            }
        }
    }

    fn read(&self, json: &[u8]) -> Result<Told, Error> {
        parse(json)
            .map(|event| Told::Event(Box::new(event)))
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

/// A server that stops or starts: nothing answers, or it says that it is not ready.
fn may_pass(error: &Error) -> bool {
    error.is_silence()
        || matches!(error, Error::WebSocket { .. })
        || error.code().is_some_and(|code| code >= 500)
}

/// Reads one event.
///
/// # Errors
/// It is none.
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
