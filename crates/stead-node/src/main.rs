//! PID 1 and agent: the command line.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};
use stead_model::NodeSpec;
use stead_node::{
    boot::first,
    handle::say,
    run,
    state::{BootState, Mode},
};

const USAGE: &str = "usage: stead-node check FILE | namespace FILE | run | --version
As PID 1 without any of these: the init of a VM.";

fn main() -> ExitCode {
    if is_init() {
        stead_os::origin::become_known();
    }
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--version" | "-V"] => {
            println!("stead-node {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["check", file] => check(file),
        ["namespace", file] if is_init() => live(Mode::Namespace, || first::namespace(Path::new(file))),
        ["run"] if is_init() => live(Mode::Namespace, second),
        // The kernel passes unknown words of its command line to init.
        _ if is_init() => live(Mode::Vm, first::vm),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        ["namespace", _] | ["run"] => {
            eprintln!("stead-node: only PID 1 can be a node's init");
            ExitCode::from(2)
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn is_init() -> bool {
    std::process::id() == 1
}

/// Checks a node spec and prints the result.
fn check(file: &str) -> ExitCode {
    let result = std::fs::read_to_string(file)
        .map_err(|e| format!("{file}: {e}"))
        .and_then(|text| NodeSpec::from_json(file, &text).map_err(|e| e.to_string()));
    match result {
        Ok(spec) => {
            println!("{file}: {} of {}", spec.name, spec.cluster);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

/// Loads the state that the first stage left.
fn second() -> BootState {
    BootState::take().unwrap_or_else(|e| {
        let mut state = BootState::new(Mode::Namespace);
        state.rescue = Some(format!("cannot read the state of the first stage: {e}"));
        state
    })
}

/// PID 1 must not end: the kernel would panic, or the namespace would end silently. A panic of ours leads to rescue
/// and, if that panics too, to waiting.
fn live(mode: Mode, stage: impl FnOnce() -> BootState) -> ExitCode {
    let mut state = catch_unwind(AssertUnwindSafe(stage)).unwrap_or_else(|_| {
        let mut state = BootState::new(mode);
        state.rescue = Some("the boot panicked; see the console for where".into());
        state
    });
    for _ in 0..3 {
        let mut after = state.clone();
        match catch_unwind(AssertUnwindSafe(|| run::node(state))) {
            Ok(Ok(())) => say(format_args!("the kernel did not stop the machine")),
            Ok(Err(e)) => say(format_args!("{e}")),
            Err(_) => after.rescue = Some("the agent panicked; see the console for where".into()),
        }
        thread::sleep(Duration::from_secs(1));
        state = after;
    }
    say(format_args!("giving up; waiting to be reset"));
    loop {
        thread::park();
    }
}
