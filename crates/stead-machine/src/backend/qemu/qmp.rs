//! A client of QEMU's machine protocol, as far as one machine's supervisor needs it: power button, and why it ended.
//!
//! One line of JSON each way. Greeting, `qmp_capabilities`, then commands and events as they come.

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::json;
use std::{io, os::fd::AsRawFd, path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
};

/// QEMU makes its socket within milliseconds of its start.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Long enough for a host that has far too much to do.
const CONNECT_TRIES: u32 = 1000;
/// No event or answer that matters here is longer, bytes.
const MAX_LINE: usize = 1 << 20;

/// Why a guest ended, in QEMU's words (`ShutdownCause` of its QAPI schema), as far as they make a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The guest wished for a reset.
    Reset,
    /// The guest powered off.
    PowerOff,
    /// The host ended it.
    Host,
    /// The guest's kernel is said to have panicked.
    Panic,
}

/// What a line from QEMU means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Greeting,
    Shutdown(Reason),
    Refused(String),
    Other,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<serde_json::Value>,
    event: Option<String>,
    #[serde(default)]
    data: serde_json::Value,
    error: Option<serde_json::Value>,
}

fn parse(line: &str) -> Message {
    let Ok(line) = serde_json::from_str::<Line>(line) else { return Message::Other };
    if line.greeting.is_some() {
        return Message::Greeting;
    }
    if let Some(error) = line.error {
        return Message::Refused(error.to_string());
    }
    if line.event.as_deref() != Some("SHUTDOWN") {
        return Message::Other;
    }
    Message::Shutdown(match line.data.get("reason").and_then(|r| r.as_str()).unwrap_or_default() {
        "guest-reset" | "subsystem-reset" => Reason::Reset,
        "guest-panic" => Reason::Panic,
        "guest-shutdown" => Reason::PowerOff,
        _ => Reason::Host,
    })
}

/// A connection to one QEMU, kept by a task until QEMU is gone.
#[derive(Debug)]
pub(crate) struct Qmp {
    commands: mpsc::UnboundedSender<&'static str>,
    watch: JoinHandle<io::Result<Option<Reason>>>,
}

impl Qmp {
    /// Connects to the socket `name` in `dir`, as soon as it is there.
    pub(crate) fn connect(dir: &Path, name: &'static str) -> io::Result<Self> {
        // A socket's path may have 107 bytes; by the directory's descriptor it is short wherever it is.
        let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (commands, wanted) = mpsc::unbounded_channel();
        let watch = tokio::spawn(async move {
            let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
            let mut tries = 0;
            let stream = loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => break stream,
                    Err(e) if tries == CONNECT_TRIES => return Err(e),
                    Err(_) => tokio::time::sleep(CONNECT_PAUSE).await,
                }
                tries += 1;
            };
            converse(stream, wanted).await
        });
        Ok(Self { commands, watch })
    }

    /// Its power button.
    pub(crate) fn power_button(&self) -> PowerButton {
        PowerButton(self.commands.clone())
    }

    /// Why it ended: asked after QEMU has, when all it said is there to be read.
    pub(crate) async fn reason(&mut self) -> Option<Reason> {
        match tokio::time::timeout(Duration::from_secs(2), &mut self.watch).await {
            Ok(Ok(Ok(reason))) => reason,
            _ => None,
        }
    }
}

/// The power button of one guest.
#[derive(Debug)]
pub(crate) struct PowerButton(mpsc::UnboundedSender<&'static str>);

impl PowerButton {
    /// Presses it; false when QEMU is gone.
    pub(crate) fn press(&self) -> bool {
        self.0.send("system_powerdown").is_ok()
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

async fn converse(
    stream: UnixStream,
    mut wanted: mpsc::UnboundedReceiver<&'static str>,
) -> io::Result<Option<Reason>> {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading);
    let mut reason = None;
    let mut ready = false;
    let mut line = Vec::new();
    loop {
        tokio::select! {
            // Cancel safe: what was read of a line stays in `line`.
            read = lines.read_until(b'\n', &mut line) => {
                match read {
                    Ok(0) | Err(_) => return Ok(reason),
                    Ok(_) if line.len() > MAX_LINE => return Ok(reason),
                    Ok(_) => {}
                }
                match parse(&String::from_utf8_lossy(&line)) {
                    Message::Greeting => {
                        say(&mut writing, "qmp_capabilities").await?;
                        ready = true;
                    }
                    // The first says why; what follows are consequences.
                    Message::Shutdown(why) => reason = reason.or(Some(why)),
                    Message::Refused(why) => eprintln!("stead: qemu refuses a command: {why}"),
                    Message::Other => {}
                }
                line.clear();
            }
            command = wanted.recv(), if ready => match command {
                Some(command) => say(&mut writing, command).await?,
                None => ready = false,
            },
        }
    }
}

async fn say(to: &mut (impl AsyncWriteExt + Unpin), command: &str) -> io::Result<()> {
    to.write_all(format!("{}\n", json!({ "execute": command })).as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[test]
    fn lines_are_understood() {
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(parse(event), Message::Shutdown(Reason::Reset));
        assert_eq!(
            parse(&event.replace("guest-reset", "guest-shutdown")),
            Message::Shutdown(Reason::PowerOff)
        );
        assert_eq!(parse(&event.replace("guest-reset", "host-qmp-quit")), Message::Shutdown(Reason::Host));
        assert_eq!(parse(r#"{"QMP": {"version": {}, "capabilities": []}}"#), Message::Greeting);
        assert_eq!(parse(r#"{"return": {}}"#), Message::Other);
        assert!(matches!(parse(r#"{"error": {"class": "X", "desc": "no"}}"#), Message::Refused(_)));
        assert_eq!(parse("{"), Message::Other);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn negotiates_before_it_commands_and_keeps_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("q")).unwrap();
        let mut qmp = Qmp::connect(dir.path(), "q").unwrap();
        assert!(qmp.power_button().press());
        let (stream, _) = listener.accept().await.unwrap();
        let (reading, mut writing) = stream.into_split();
        let mut lines = BufReader::new(reading).lines();
        // Greeting in two parts, as a socket may deliver it.
        writing.write_all(br#"{"QMP": {"version"#).await.unwrap();
        tokio::task::yield_now().await;
        writing.write_all(b"\": {}}}\n").await.unwrap();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"{"execute":"qmp_capabilities"}"#);
        assert_eq!(lines.next_line().await.unwrap().unwrap(), r#"{"execute":"system_powerdown"}"#);
        writing
            .write_all(
                b"{\"return\":{}}\n{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-shutdown\"}}\n",
            )
            .await
            .unwrap();
        drop((lines, writing));
        assert_eq!(qmp.reason().await, Some(Reason::PowerOff));
        assert!(!qmp.power_button().press());
    }
}
