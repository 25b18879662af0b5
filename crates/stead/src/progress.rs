//! The live display: a line a node on a terminal, nothing otherwise but warnings.

use crate::cli::App;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{collections::BTreeMap, io, time::Duration};
use stead_cluster::{Event, Events};
use stead_model::NodeName;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

/// Waits until the user, the terminal that goes or the system that stops ends the command: SIGINT, SIGHUP or SIGTERM. One
/// that the caller has ignored (nohup) stays ignored.
///
/// # Errors
/// Signals cannot be watched.
pub async fn interrupted() -> io::Result<()> {
    let ignored = ignored_signals();
    let ends = [SignalKind::interrupt(), SignalKind::hangup(), SignalKind::terminate()];
    let mut watched = Vec::new();
    for kind in ends {
        if ignored & (1 << (kind.as_raw_value() - 1)) == 0 {
            watched.push(signal(kind)?);
        }
    }
    let mut any: FuturesUnordered<_> = watched.iter_mut().map(|s| s.recv()).collect();
    if any.next().await.is_none() {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// The signals that this process ignores, as a mask: signal 1 is the lowest bit.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Shows events until all their senders are gone.
pub struct Display {
    task: JoinHandle<()>,
}

/// Starts the display.
pub fn start(app: &App) -> (Events, Display) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let (live, output) = (app.context.terminals.stderr, app.output.clone());
    let task = tokio::spawn(async move {
        let mut screen = Screen::new();
        while let Some(event) = receiver.recv().await {
            if live {
                screen.show(event);
            } else if let Event::Warning { text } = event {
                output.note(format_args!("warning: {text}"));
            }
        }
        screen.end();
    });
    (Events::to(sender), Display { task })
}

impl Display {
    /// Waits until everything was shown.
    pub async fn end(self, events: Events) {
        drop(events);
        // Tasks that failed may keep a sender a moment longer; the display must not keep the user.
        let _ = tokio::time::timeout(Duration::from_millis(200), self.task).await;
    }
}

struct Screen {
    bars: MultiProgress,
    step: Option<ProgressBar>,
    nodes: BTreeMap<NodeName, ProgressBar>,
}

/// A template is a constant of this program; a wrong one shows the plain default.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Screen {
    fn new() -> Self {
        Self { bars: MultiProgress::new(), step: None, nodes: BTreeMap::new() }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Step { text } => {
                if let Some(old) = self.step.take() {
                    old.finish();
                }
                let bar = self.bars.add(ProgressBar::new_spinner().with_style(style("{spinner} {msg}")));
                bar.enable_steady_tick(Duration::from_millis(100));
                bar.set_message(text);
                self.step = Some(bar);
            }
            Event::Node { node, phase, detail } => {
                let bars = &self.bars;
                let bar = self.nodes.entry(node.clone()).or_insert_with(|| {
                    let bar = bars.add(
                        ProgressBar::new_spinner()
                            .with_style(style("  {spinner} {prefix:<16} {msg} {elapsed:>5}")),
                    );
                    bar.set_prefix(node.to_string());
                    bar.enable_steady_tick(Duration::from_millis(100));
                    bar
                });
                let message = format!("{phase:<9} {detail}");
                if matches!(phase, "online" | "running" | "stopped" | "failed") {
                    bar.finish_with_message(message);
                } else {
                    bar.set_message(message);
                }
            }
            Event::Warning { text } => {
                let _ = self.bars.println(format!("warning: {text}"));
            }
        }
    }

    fn end(self) {
        for bar in self.step.iter().chain(self.nodes.values()) {
            bar.finish();
        }
    }
}
