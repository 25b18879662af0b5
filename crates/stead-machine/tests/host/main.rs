//! Machines and networks on this host's kernel, with the real tools. Needs root.
//!
//! This program is its own `stead`: started with `machine run FILE` or `network run FILE` it is the supervisor under
//! test, so it has a `main` of its own, which otherwise does as cargo's harness.

mod machine;
mod network;
mod vm;
mod world;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;

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
    let mut arguments = Arguments::from_args();
    // One after the other unless asked otherwise, as their needs are the host's.
    arguments.test_threads.get_or_insert(1);
    let tests = network::TESTS.iter().chain(machine::TESTS).chain(vm::TESTS);
    let trials = tests.map(|(name, test)| Trial::test(*name, || run(name, *test))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a test; a panic is its failure.
fn run(name: &str, test: fn() -> Outcome) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP {name}: needs root");
    } else if let Outcome::Skipped(why) = test() {
        println!("SKIP {name}: {why}");
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(file).expect("spec file")).expect("spec")
}

fn supervise<E: std::error::Error + 'static>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("stead: {}", stead_os::chain(&e));
            ExitCode::FAILURE
        }
    }
}
