//! A client of QEMU's machine protocol (QMP), which qemu-storage-daemon speaks too.
//!
//! Lines of JSON over a Unix socket: a greeting, `qmp_capabilities`, then commands, answers and events. Owns the
//! protocol and the few commands that Stead uses; the reader interprets the events.
//!
//! The crate `qapi` is not used: for the two commands here, its build script would generate Rust from all 25,000 lines
//! of QEMU's schema.

use crate::PathError;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

/// Pause between attempts to connect: QEMU creates its socket within milliseconds of its start.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Longest line read, in bytes: no answer to one of Stead's commands is longer.
const MAX_LINE_BYTES: usize = 1 << 20;
/// How many events are kept for a slow or late reader; older ones are dropped.
const MAX_EVENTS: usize = 256;

/// A conversation with QEMU failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection cannot be made.
    #[error(transparent)]
    Connect(#[from] PathError),
    /// The peer does not speak the protocol, or did not answer in time.
    #[error("QEMU sent no greeting: {0}")]
    Greeting(&'static str),
    /// The connection ended before the answer.
    #[error("the connection to QEMU ended before it answered {command}")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// There was no answer in time. The command may still be carried out.
    #[error("QEMU did not answer {command} within {} s", after.as_secs_f32())]
    TimedOut {
        /// The command.
        command: &'static str,
        /// The time it had.
        after: Duration,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {refusal}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's reason.
        refusal: Refusal,
    },
    /// The answer does not have the command's type.
    #[error("QEMU's answer to {command} cannot be parsed")]
    Answer {
        /// The command.
        command: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

/// QEMU's reason for refusing a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{desc} ({class})")]
pub struct Refusal {
    /// `GenericError`, `CommandNotFound`, `DeviceNotActive`, `DeviceNotFound` or `KVMMissingCap`.
    pub class: String,
    /// The reason, for people.
    pub desc: String,
}

/// A command and the type of its answer.
pub trait Command: Serialize {
    /// Its name in the protocol. The command serialises to its arguments, an object.
    const NAME: &'static str;
    /// The type of its answer.
    type Answer: DeserializeOwned;
}

/// The empty answer of a command that returns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Done {}

/// Presses the power button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SystemPowerdown {}

impl Command for SystemPowerdown {
    const NAME: &'static str = "system_powerdown";
    type Answer = Done;
}

/// Changes the size of a block device's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockResize {
    /// Name of the block node.
    pub node_name: String,
    /// Its new size in bytes.
    pub size: u64,
}

impl Command for BlockResize {
    const NAME: &'static str = "block_resize";
    type Answer = Done;
}

/// Ends the negotiation; QEMU accepts no other command before it.
#[derive(Debug, Serialize)]
struct Capabilities {}

impl Command for Capabilities {
    const NAME: &'static str = "qmp_capabilities";
    type Answer = Done;
}

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `SHUTDOWN`, `GUEST_PANICKED`, ...
    pub name: String,
    /// Its data: an object, or null.
    pub data: Value,
}

/// A line from QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first line of a connection.
    Greeting,
    /// An answer to the command of this id.
    Answer {
        /// The command's id; `None` when QEMU could not read it.
        id: Option<u64>,
        /// The answer, or the refusal.
        result: Result<Value, Refusal>,
    },
    /// An event.
    Event(Event),
    /// Something unknown, which is ignored as the protocol demands.
    Unknown,
}

/// Parses a line.
pub fn parse(line: &[u8]) -> Message {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "QMP")]
        greeting: Option<Value>,
        id: Option<Value>,
        event: Option<String>,
        #[serde(default)]
        data: Value,
        #[serde(default, rename = "return", deserialize_with = "present")]
        answer: Option<Value>,
        error: Option<Refusal>,
    }
    /// `null` is a value here.
    fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
        Value::deserialize(d).map(Some)
    }
    let Ok(line) = serde_json::from_slice::<Line>(line) else { return Message::Unknown };
    let id = line.id.as_ref().and_then(Value::as_u64);
    match (line.event, line.error, line.answer) {
        (Some(name), _, _) => Message::Event(Event { name, data: line.data }),
        (None, Some(refusal), _) => Message::Answer { id, result: Err(refusal) },
        (None, None, Some(answer)) => Message::Answer { id, result: Ok(answer) },
        (None, None, None) if line.greeting.is_some() => Message::Greeting,
        (None, None, None) => Message::Unknown,
    }
}

/// A connection to one QEMU. A task of the runtime reads it until QEMU closes it or this is dropped.
#[derive(Debug)]
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    shared: Arc<Shared>,
    reader: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// An event came, or the connection ended.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Commands that wait for their answer, by id; emptied when the connection ends.
    waiting: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>,
    next_id: u64,
    events: VecDeque<Event>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects to the socket once it exists and negotiates, all within `patience`.
    ///
    /// # Errors
    /// The socket's directory does not exist, nothing listens in time, or the listener is not QEMU.
    pub async fn connect(socket: &Path, patience: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + patience;
        let stream = open(socket, deadline).await.map_err(PathError::new("connect to", socket))?;
        let (reading, writing) = stream.into_split();
        let mut lines = BufReader::new(reading);
        match timeout_at(deadline, greeting(&mut lines)).await {
            Ok(greeted) => greeted?,
            Err(_) => return Err(QmpError::Greeting("the time limit passed")),
        }
        let shared = Arc::new(Shared::default());
        let reader = tokio::spawn(read(lines, Arc::clone(&shared))).abort_handle();
        let qmp = Self { writer: tokio::sync::Mutex::new(writing), shared, reader };
        qmp.execute(&Capabilities {}, deadline.saturating_duration_since(Instant::now())).await?;
        Ok(qmp)
    }

    /// Sends a command and waits at most `patience` for its answer. Several may be in progress at once.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn execute<C: Command>(&self, command: &C, patience: Duration) -> Result<C::Answer, QmpError> {
        let answer = match timeout(patience, self.ask(command)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(QmpError::TimedOut { command: C::NAME, after: patience }),
        };
        serde_json::from_value(answer).map_err(|source| QmpError::Answer { command: C::NAME, source })
    }

    async fn ask<C: Command>(&self, command: &C) -> Result<Value, QmpError> {
        let closed = || QmpError::Closed { command: C::NAME };
        let (id, answer) = {
            let mut state = self.shared.lock();
            if state.ended {
                return Err(closed());
            }
            let (sender, answer) = oneshot::channel();
            let id = state.next_id;
            state.next_id += 1;
            state.waiting.insert(id, sender);
            (id, answer)
        };
        // Also when the caller drops this future.
        let _forget = Forget { shared: &self.shared, id };
        let mut line = json!({ "execute": C::NAME, "arguments": command, "id": id }).to_string();
        line.push('\n');
        self.writer.lock().await.write_all(line.as_bytes()).await.map_err(|_| closed())?;
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => Err(QmpError::Refused { command: C::NAME, refusal }),
            Err(_) => Err(closed()),
        }
    }

    /// The oldest event not taken yet; `None` once the connection has ended and all events are taken. Cancel-safe.
    pub async fn event(&self) -> Option<Event> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let mut state = self.shared.lock();
                if let Some(event) = state.events.pop_front() {
                    return Some(event);
                }
                if state.ended {
                    return None;
                }
            }
            changed.await;
        }
    }
}

/// Removes a command from the waiting ones when dropped.
struct Forget<'s> {
    shared: &'s Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.id);
    }
}

async fn open(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let name = socket.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = socket.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A socket's path is limited to 107 bytes; through the directory's descriptor it is always short enough.
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() >= deadline => return Err(e),
            Err(_) => sleep(CONNECT_PAUSE).await,
        }
    }
}

async fn greeting(lines: &mut BufReader<OwnedReadHalf>) -> Result<(), QmpError> {
    let mut line = Vec::new();
    match read_line(lines, &mut line).await {
        Ok(true) if parse(&line) == Message::Greeting => Ok(()),
        Ok(true) => Err(QmpError::Greeting("the first line is something else")),
        Ok(false) | Err(_) => Err(QmpError::Greeting("the connection ended")),
    }
}

async fn read(mut lines: BufReader<OwnedReadHalf>, shared: Arc<Shared>) {
    let mut line = Vec::new();
    while matches!(read_line(&mut lines, &mut line).await, Ok(true)) {
        match parse(&line) {
            Message::Event(event) => {
                let mut state = shared.lock();
                if state.events.len() == MAX_EVENTS {
                    state.events.pop_front();
                }
                state.events.push_back(event);
                drop(state);
                shared.changed.notify_waiters();
            }
            Message::Answer { id: Some(id), result } => {
                if let Some(waiting) = shared.lock().waiting.remove(&id) {
                    let _ = waiting.send(result);
                }
            }
            Message::Answer { id: None, .. } | Message::Greeting | Message::Unknown => {}
        }
    }
    // The writing half is still open: QEMU must not wait for a client that no longer reads.
    let stream: &UnixStream = lines.get_ref().as_ref();
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
    let mut state = shared.lock();
    state.ended = true;
    state.waiting.clear();
    drop(state);
    shared.changed.notify_waiters();
}

/// Reads a line without its terminator; `false` at the end of the connection. A line that is too long is an error.
async fn read_line(from: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    loop {
        let bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let end = bytes.iter().position(|b| *b == b'\n');
        line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        let taken = end.map_or(bytes.len(), |end| end + 1);
        from.consume(taken);
        if line.len() > MAX_LINE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::UnixListener;

    const PATIENCE: Duration = Duration::from_secs(60);
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"]}}"#;

    #[test]
    fn lines_are_understood() {
        assert_eq!(parse(GREETING.as_bytes()), Message::Greeting);
        let event =
            br#"{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"reason": "guest-reset"}}"#;
        let data = json!({"reason": "guest-reset"});
        assert_eq!(parse(event), Message::Event(Event { name: "SHUTDOWN".into(), data }));
        assert_eq!(
            parse(br#"{"event": "STOP"}"#),
            Message::Event(Event { name: "STOP".into(), data: Value::Null })
        );
        let answer = |id, value| Message::Answer { id, result: Ok(value) };
        assert_eq!(parse(br#"{"return": {}, "id": 3}"#), answer(Some(3), json!({})));
        assert_eq!(parse(br#"{"return": null}"#), answer(None, Value::Null));
        let refusal = Refusal { class: "GenericError".into(), desc: "no".into() };
        assert_eq!(refusal.to_string(), "no (GenericError)");
        assert_eq!(
            parse(br#"{"error": {"class": "GenericError", "desc": "no"}, "id": 4}"#),
            Message::Answer { id: Some(4), result: Err(refusal) }
        );
        for strange in ["{", "", "[]", "{}", r#"{"error": 1}"#, r#"{"id": 1}"#] {
            assert_eq!(parse(strange.as_bytes()), Message::Unknown, "{strange}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line: Vec<u8>) { let _ = parse(&line); }
    }

    /// A QEMU whose answers the test writes.
    struct Peer {
        lines: BufReader<OwnedReadHalf>,
        writer: OwnedWriteHalf,
    }

    impl Peer {
        async fn says(&mut self, text: &str) {
            self.writer.write_all(text.as_bytes()).await.unwrap();
        }
        async fn hears(&mut self) -> Value {
            let mut line = Vec::new();
            assert!(read_line(&mut self.lines, &mut line).await.unwrap(), "the client is gone");
            serde_json::from_slice(&line).unwrap()
        }
    }

    /// A client and its peer, after the negotiation.
    async fn pair() -> (Qmp, Peer, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        // Longer than a socket's address may be.
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = dir.path().join("link");
        std::os::unix::fs::symlink(&deep, &short).unwrap();
        let (socket, bound) = (deep.join("qmp"), short.join("qmp"));
        let connecting = tokio::spawn(async move { Qmp::connect(&socket, PATIENCE).await });
        // The client starts first, as it does when QEMU has just been started.
        tokio::task::yield_now().await;
        let listener = UnixListener::bind(bound).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (reading, writer) = stream.into_split();
        let mut peer = Peer { lines: BufReader::new(reading), writer };
        // In two pieces, as a socket may deliver it.
        let (first, second) = GREETING.split_at(11);
        peer.says(first).await;
        tokio::task::yield_now().await;
        peer.says(&format!("{second}\r\n")).await;
        assert_eq!(peer.hears().await, json!({"execute": "qmp_capabilities", "arguments": {}, "id": 0}));
        peer.says("{\"return\": {}, \"id\": 0}\n").await;
        (connecting.await.unwrap().unwrap(), peer, dir)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn answers_find_their_commands_and_events_are_kept() {
        let (qmp, mut peer, _dir) = pair().await;
        let grow = BlockResize { node_name: "disk".into(), size: 1 << 30 };
        let (refused, pressed, ()) =
            tokio::join!(qmp.execute(&grow, PATIENCE), qmp.execute(&SystemPowerdown {}, PATIENCE), async {
                let first = peer.hears().await;
                assert_eq!(first["arguments"], json!({"node-name": "disk", "size": 1 << 30}));
                let second = peer.hears().await;
                assert_eq!(second["execute"], "system_powerdown");
                peer.says("{\"event\": \"POWERDOWN\"}\n{\"new in\": \"QEMU 99\"}\n").await;
                peer.says(&format!("{}\n", json!({"return": {}, "id": second["id"]}))).await;
                let error = json!({"class": "DeviceNotFound", "desc": "there is no disk"});
                peer.says(&format!("{}\n", json!({"error": error, "id": first["id"]}))).await;
            });
        assert_eq!(pressed.unwrap(), Done {});
        assert_eq!(
            refused.unwrap_err().to_string(),
            "QEMU refused block_resize: there is no disk (DeviceNotFound)"
        );
        assert_eq!(qmp.event().await.unwrap().name, "POWERDOWN");
        peer.says("{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n").await;
        drop(peer);
        // Events from before the end are still there; then there are no more.
        assert_eq!(qmp.event().await.unwrap().data["reason"], "guest-shutdown");
        assert_eq!(qmp.event().await, None);
        let error = qmp.execute(&SystemPowerdown {}, PATIENCE).await.unwrap_err();
        assert_eq!(error.to_string(), "the connection to QEMU ended before it answered system_powerdown");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn late_answers_and_lost_connections_are_errors_and_a_late_answer_is_dropped() {
        let (qmp, mut peer, _dir) = pair().await;
        let late = qmp.execute(&SystemPowerdown {}, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(late, QmpError::TimedOut { command: "system_powerdown", .. }), "{late:?}");
        let asked = peer.hears().await;
        let (answer, ()) = tokio::join!(qmp.execute(&SystemPowerdown {}, PATIENCE), async {
            let again = peer.hears().await;
            let error = json!({"class": "GenericError", "desc": "late"});
            peer.says(&format!("{}\n", json!({"error": error, "id": asked["id"]}))).await;
            peer.says(&format!("{}\n", json!({"return": {}, "id": again["id"]}))).await;
        });
        assert_eq!(answer.unwrap(), Done {});
        let (closed, ()) = tokio::join!(qmp.execute(&SystemPowerdown {}, PATIENCE), async {
            peer.hears().await;
            drop(peer);
        });
        assert!(matches!(closed, Err(QmpError::Closed { .. })), "{closed:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_the_newest_events_are_kept_and_endless_lines_end_the_connection() {
        let (qmp, mut peer, _dir) = pair().await;
        for n in 0..MAX_EVENTS + 10 {
            peer.says(&format!("{{\"event\": \"E{n}\"}}\n")).await;
        }
        // The answer follows the events, so they have been read by then.
        let (done, ()) = tokio::join!(qmp.execute(&SystemPowerdown {}, PATIENCE), async {
            let id = peer.hears().await["id"].clone();
            peer.says(&format!("{}\n", json!({"return": {}, "id": id}))).await;
        });
        done.unwrap();
        assert_eq!(qmp.event().await.unwrap().name, "E10");
        let endless = async {
            let piece = vec![b' '; 64 << 10];
            while peer.writer.write_all(&piece).await.is_ok() {}
        };
        let events = async { while qmp.event().await.is_some() {} };
        tokio::join!(endless, events);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_peer_that_is_not_qemu_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let error = Qmp::connect(&socket, Duration::ZERO).await.unwrap_err();
        let expected =
            format!("cannot connect to {}: No such file or directory (os error 2)", socket.display());
        assert_eq!(crate::chain(&error), expected);
        for (says, why) in
            [("HTTP/1.1 400\n", "the first line is something else"), ("{\"QMP\"", "the connection ended")]
        {
            let listener = UnixListener::bind(&socket).unwrap();
            let (answer, ()) = tokio::join!(Qmp::connect(&socket, PATIENCE), async {
                listener.accept().await.unwrap().0.write_all(says.as_bytes()).await.unwrap();
            });
            assert_eq!(answer.unwrap_err().to_string(), format!("QEMU sent no greeting: {why}"));
            std::fs::remove_file(&socket).unwrap();
        }
        let _silent = UnixListener::bind(&socket).unwrap();
        let error = Qmp::connect(&socket, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU sent no greeting: the time limit passed");
    }
}
