//! `stead exec` and `stead shell`.

use crate::{cli, output::BadInput};
use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::{
    collections::BTreeMap,
    io::{Write, stdin, stdout},
    process::ExitCode,
};
use stead_agent::{Event, ExecInput};
use stead_cluster::{ClusterError, Host, Record, remote};
use stead_model::agent::{ExecRequest, Size};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

pub async fn exec(host: &Host, args: cli::Exec) -> Result<ExitCode> {
    let mut environment = BTreeMap::new();
    for pair in &args.environment {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| BadInput(format!("--env {pair:?} is not NAME=VALUE")))?;
        environment.insert(name.to_owned(), value.to_owned());
    }
    let tty = args.tty || (!args.no_tty && isatty(stdin()) && isatty(stdout()));
    let request =
        ExecRequest { command: args.command, environment, cwd: args.cwd, tty: tty.then(terminal_size) };
    run(host, &args.cluster, &args.node, request).await
}

pub async fn shell(host: &Host, args: cli::Shell) -> Result<ExitCode> {
    let record = Record::require(&host.layout(&args.cluster))?;
    let first = record.spec.node_names().first().map(ToString::to_string).unwrap_or_default();
    let tty = isatty(stdin()) && isatty(stdout());
    let environment =
        std::env::var("TERM").map(|t| BTreeMap::from([("TERM".to_owned(), t)])).unwrap_or_default();
    let request = ExecRequest {
        // Every Debian has bash; an image without it has sh.
        command: ["/bin/sh", "-c", "exec bash -l 2>/dev/null || exec sh -l"].map(str::to_owned).to_vec(),
        environment,
        cwd: None,
        tty: tty.then(terminal_size),
    };
    run(host, &args.cluster, args.node.as_deref().unwrap_or(&first), request).await
}

fn terminal_size() -> Size {
    tcgetwinsize(stdout())
        .map_or(Size { rows: 24, columns: 80 }, |w| Size { rows: w.ws_row, columns: w.ws_col })
}

/// Puts the terminal back as it was.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("set the terminal raw")?;
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

async fn run(
    host: &Host,
    cluster: &stead_model::ClusterName,
    node: &str,
    request: ExecRequest,
) -> Result<ExitCode> {
    let client = remote::connect(host, cluster, node)?;
    let name = remote::require_node(host, cluster, node)?;
    let agent_error =
        |e| ClusterError::Agent { action: "run a command", node: name.clone(), source: Box::new(e) };
    let tty = request.tty.is_some();
    let session = client.exec(&request).await.map_err(agent_error)?;
    let (input, mut output) = session.split();
    let _raw = if tty && isatty(stdin()) { Some(Raw::enter()?) } else { None };
    let speaker = tokio::spawn(speak(input, tty));
    let code = loop {
        match output.next().await.context("lost the connection to the node")? {
            Some(Event::Stdout(bytes)) => {
                let mut out = stdout().lock();
                if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                    break 141; // 128 + SIGPIPE: our reader is gone, the command is ended by the dropped session
                }
            }
            Some(Event::Stderr(bytes)) => {
                let mut err = std::io::stderr().lock();
                let _ = err.write_all(&bytes).and_then(|()| err.flush());
            }
            Some(Event::Exit(exit)) => {
                if let Some(why) = exit.error {
                    eprintln!("stead: {why}");
                }
                break exit.code;
            }
            None => break 255,
        }
    };
    speaker.abort();
    drop(_raw);
    // A blocked read of stdin keeps the runtime from ending; there is nothing left to do.
    std::process::exit(code)
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
