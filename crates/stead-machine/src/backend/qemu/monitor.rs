//! What a supervisor needs of QEMU's machine protocol: the power button, and the reason of QEMU's end.
//!
//! Does not own the protocol (`stead_os::qmp`).

use std::{path::PathBuf, sync::Arc, time::Duration};
use stead_os::{
    chain,
    qmp::{Event, Qmp, QmpError, SystemPowerdown},
};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

/// QEMU listens within milliseconds of its start; the rest is for an overloaded host.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// QEMU answers at once; the rest is for an overloaded host.
const PRESS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest has before its power button is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(2);
/// Everything QEMU has sent is read within this after its end.
const REASON_PATIENCE: Duration = Duration::from_secs(2);

/// Why a guest ended, as far as it makes a difference (`ShutdownCause` of QEMU's QAPI schema).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The guest asked for a reset.
    Reset,
    /// The guest powered off.
    PowerOff,
    /// The host ended it.
    Host,
    /// The guest's kernel panicked.
    Panic,
}

impl Reason {
    fn of(event: &Event) -> Option<Self> {
        if event.name != "SHUTDOWN" {
            return None;
        }
        Some(match event.data.get("reason").and_then(|r| r.as_str()).unwrap_or_default() {
            "guest-reset" | "subsystem-reset" => Self::Reset,
            "guest-panic" => Self::Panic,
            "guest-shutdown" => Self::PowerOff,
            _ => Self::Host,
        })
    }
}

/// A connection to one QEMU, kept by a task until QEMU is gone.
#[derive(Debug)]
pub(super) struct Monitor {
    button: Arc<Notify>,
    watch: JoinHandle<Option<Reason>>,
}

impl Monitor {
    /// Connects to the socket as soon as it is there.
    pub(super) fn start(socket: PathBuf) -> Self {
        let button = Arc::new(Notify::new());
        let watch = tokio::spawn(watch(socket, Arc::clone(&button)));
        Self { button, watch }
    }

    /// Presses the power button, again and again until QEMU ends: a guest's kernel forgets a press when nothing listens
    /// to it yet.
    pub(super) fn press_power_button(&self) {
        self.button.notify_one();
    }

    /// Why it ended, if it has reported that. To be called once, after its end.
    pub(super) async fn reason(&mut self) -> Option<Reason> {
        timeout(REASON_PATIENCE, &mut self.watch).await.ok()?.ok()?
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

async fn watch(socket: PathBuf, button: Arc<Notify>) -> Option<Reason> {
    let qmp = match Qmp::connect(&socket, CONNECT_PATIENCE).await {
        Ok(qmp) => qmp,
        Err(e) => {
            eprintln!("stead: {}", chain(&e));
            return None;
        }
    };
    let mut reason = None;
    let mut pressed = false;
    let mut press = tokio::time::interval(PRESS_AGAIN);
    loop {
        tokio::select! {
            event = qmp.event() => match event {
                // The first event has the reason; those after it are consequences.
                Some(event) => reason = reason.or(Reason::of(&event)),
                None => return reason,
            },
            () = button.notified(), if !pressed => {
                pressed = true;
                press.reset_immediately();
            }
            _ = press.tick(), if pressed => match qmp.execute(&SystemPowerdown {}, PRESS_PATIENCE).await {
                // A QEMU that is gone needs no button.
                Ok(_) | Err(QmpError::Closed { .. }) => {}
                Err(e) => eprintln!("stead: {}", chain(&e)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    fn shutdown(reason: &str) -> Event {
        Event { name: "SHUTDOWN".into(), data: json!({"guest": true, "reason": reason}) }
    }

    #[test]
    fn reasons_are_understood() {
        assert_eq!(Reason::of(&shutdown("guest-reset")), Some(Reason::Reset));
        assert_eq!(Reason::of(&shutdown("guest-shutdown")), Some(Reason::PowerOff));
        assert_eq!(Reason::of(&shutdown("guest-panic")), Some(Reason::Panic));
        assert_eq!(Reason::of(&shutdown("host-qmp-quit")), Some(Reason::Host));
        assert_eq!(Reason::of(&Event { name: "STOP".into(), data: Value::Null }), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn presses_until_the_guest_ends_and_keeps_the_first_reason() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("q");
        let mut monitor = Monitor::start(socket.clone());
        // Before QEMU listens.
        monitor.press_power_button();
        let listener = UnixListener::bind(socket).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (reading, mut writing) = stream.into_split();
        writing.write_all(b"{\"QMP\": {\"version\": {}}}\n").await.unwrap();
        let mut lines = BufReader::new(reading).lines();
        for wanted in ["qmp_capabilities", "system_powerdown", "system_powerdown"] {
            let line = lines.next_line().await.unwrap().unwrap();
            let command: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(command["execute"], wanted);
            let answer = json!({"return": {}, "id": command["id"]});
            writing.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        for reason in ["guest-shutdown", "host-qmp-quit"] {
            let event = json!({"event": "SHUTDOWN", "data": {"reason": reason}});
            writing.write_all(format!("{event}\n").as_bytes()).await.unwrap();
        }
        drop((lines, writing));
        assert_eq!(monitor.reason().await, Some(Reason::PowerOff));
    }
}
