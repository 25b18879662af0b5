//! Machines and networks on this host's kernel, with the real tools. Needs root.
//!
//! This program is its own `stead`: started with `machine run FILE` or `network run FILE` it is the supervisor under
//! test.

mod machine;
mod network;
mod vm;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

/// A test's outcome when it does not fail.
pub enum Outcome {
    /// It passed.
    Passed,
    /// It could not run here, for this reason.
    Skipped(String),
}

type Test = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["machine", "run", file] => return supervise(stead_machine::supervise::run(read(file))),
        ["network", "run", file] => return supervise(stead_machine::network::run(read(file))),
        _ => {}
    }
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let tests: Vec<Test> = network::TESTS.iter().chain(machine::TESTS).chain(vm::TESTS).copied().collect();
    let mut failed = 0;
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        if !rustix::process::geteuid().is_root() {
            println!("SKIP {name}: needs root");
            continue;
        }
        let begun = std::time::Instant::now();
        match catch_unwind(AssertUnwindSafe(test)) {
            Ok(Outcome::Passed) => println!("test {name} ... ok ({:.2} s)", begun.elapsed().as_secs_f64()),
            Ok(Outcome::Skipped(why)) => println!("SKIP {name}: {why}"),
            Err(_) => {
                failed += 1;
                println!("test {name} ... FAILED");
            }
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(file).expect("spec file")).expect("spec")
}

fn supervise<E: std::error::Error>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprint!("stead: {e}");
            let mut source = e.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}
