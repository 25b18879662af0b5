//! `stead exec`, and what it shares with `stead shell`: a command on a node, with its streams, signals and exit code.

use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Result},
    output::Stream,
};
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{Write, stdin, stdout};
use stead_agent::{Event, ExecInput};
use stead_cluster::{ClusterError, remote};
use stead_model::{
    ClusterName,
    agent::{ExecRequest, Size},
};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// 128 + SIGPIPE: nobody reads what the command prints.
const READER_GONE: i32 = 141;
/// The connection ended without an exit code.
const NO_EXIT_CODE: i32 = 255;

/// Run a command on a node; its exit code is passed through.
///
/// Example: stead exec demo node1 -- incus list
#[derive(Debug, Args)]
pub struct Exec {
    /// The cluster.
    cluster: ClusterName,
    /// The node.
    node: String,
    /// Give the command a terminal (the default when stdin and stdout are terminals).
    #[arg(long, short, overrides_with = "no_tty")]
    tty: bool,
    /// Give the command no terminal.
    #[arg(long, short = 'T', overrides_with = "tty")]
    no_tty: bool,
    /// Set a variable; may be repeated.
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = super::pair)]
    environment: Vec<(String, String)>,
    /// Working directory on the node.
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Run for Exec {
    fn run(self, app: &App) -> Result<Exit> {
        let tty = self.tty || (!self.no_tty && is_interactive(app));
        let request = ExecRequest {
            command: self.command,
            environment: self.environment.into_iter().collect(),
            cwd: self.cwd,
            tty: tty.then(terminal_size),
        };
        on_node(app, &self.cluster, &self.node, &request)
    }
}

/// Whether a person types and reads here.
pub fn is_interactive(app: &App) -> bool {
    app.context.terminals.stdin && app.context.terminals.stdout
}

/// The terminal's size, or the usual one.
pub fn terminal_size() -> Size {
    tcgetwinsize(stdout())
        .map_or(Size { rows: 24, columns: 80 }, |w| Size { rows: w.ws_row, columns: w.ws_col })
}

/// Runs a command on a node to its end.
pub fn on_node(app: &App, cluster: &ClusterName, node: &str, request: &ExecRequest) -> Result<Exit> {
    let code = app.wait_and_leave(session(app, cluster, node, request))?;
    // As the kernel passes it to who waits.
    Ok(Exit((code & 0xff) as u8))
}

/// Puts the terminal back as it was.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(stdin())
            .map_err(std::io::Error::from)
            .context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)
            .map_err(std::io::Error::from)
            .context("cannot set the terminal raw")?;
        Ok(Self(before))
    }
}
impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Signals that are passed on to a command without a terminal.
const PASSED_ON: [(SignalKind, u8); 3] =
    [(SignalKind::interrupt(), 2), (SignalKind::terminate(), 15), (SignalKind::hangup(), 1)];

async fn session(app: &App, cluster: &ClusterName, node: &str, request: &ExecRequest) -> Result<i32> {
    let client = remote::connect(&app.host, cluster, node)?;
    let name = remote::require_node(&app.host, cluster, node)?;
    let agent_error =
        |e| ClusterError::Agent { action: "run a command", node: name.clone(), source: Box::new(e) };
    let tty = request.tty.is_some();
    let session = client.exec(request).await.map_err(agent_error)?;
    let (input, mut events) = session.split();
    let _raw = if tty && app.context.terminals.stdin { Some(Raw::enter()?) } else { None };
    let speaker = tokio::spawn(speak(input, tty));
    let write = |mut to: Stream, bytes: &[u8]| to.write_all(bytes).and_then(|()| to.flush());
    let code = loop {
        match events.next().await.context("lost the connection to the node")? {
            Some(Event::Stdout(bytes)) => {
                // The command is ended by the dropped session.
                if write(app.output.out(), &bytes).is_err() {
                    break READER_GONE;
                }
            }
            Some(Event::Stderr(bytes)) => {
                let _ = write(app.output.err(), &bytes);
            }
            Some(Event::Exit(exit)) => {
                if let Some(why) = exit.error {
                    app.output.note(format_args!("stead: {why}"));
                }
                break exit.code;
            }
            None => break NO_EXIT_CODE,
        }
    };
    speaker.abort();
    Ok(code)
}

enum Spoken {
    Data(Vec<u8>),
    End,
    Resize,
    Signal(u8),
}

/// Passes on what the user types, resizes and signals.
async fn speak(mut input: ExecInput, tty: bool) {
    let (sender, mut spoken) = mpsc::channel::<Spoken>(4);
    let typed = sender.clone();
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let message = match stdin.read(&mut buffer).await {
                Ok(n) if n > 0 => Spoken::Data(buffer[..n].to_vec()),
                _ => Spoken::End,
            };
            let end = matches!(message, Spoken::End);
            if typed.send(message).await.is_err() || end {
                break;
            }
        }
    });
    if tty && let Ok(mut resized) = signal(SignalKind::window_change()) {
        let sender = sender.clone();
        tokio::spawn(async move {
            while resized.recv().await.is_some() && sender.send(Spoken::Resize).await.is_ok() {}
        });
    }
    for (kind, number) in PASSED_ON {
        if let Ok(mut signals) = signal(kind) {
            let sender = sender.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && sender.send(Spoken::Signal(number)).await.is_ok() {}
            });
        }
    }
    while let Some(message) = spoken.recv().await {
        let sent = match message {
            Spoken::Data(bytes) => input.stdin(bytes).await,
            Spoken::End => input.close_stdin().await,
            Spoken::Resize => input.resize(terminal_size()).await,
            Spoken::Signal(number) => input.signal(number).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
