//! One file a verb: from what was typed to the library and back to the screen.

mod cp;
mod down;
mod env;
mod exec;
mod fleet;
mod generate;
mod image;
mod logs;
pub mod one;
mod reboot;
mod status;
mod supervise;
mod up;

use crate::cli::{Cli, Verb};
use anyhow::{Context, Result};
use std::{future::Future, path::Path, process::ExitCode};
use stead_cluster::Host;

/// Does what was typed.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let exe = std::env::current_exe().context("find this program's own path")?;
    let state_dir =
        std::path::absolute(&cli.state_dir).context("make the state directory's path absolute")?;
    let host = Host { state_dir, exe };
    match cli.verb {
        Verb::Image(verb) => image::run(&host, verb),
        Verb::Up(args) => wait(up::up(&host, args)),
        Verb::Scale(args) => wait(up::scale(&host, args)),
        Verb::Down(args) => wait(down::down(&host, args)),
        Verb::Status(args) => wait(status::status(&host, args)),
        Verb::Ls(args) => wait(status::ls(&host, args)),
        Verb::Exec(args) => wait(exec::exec(&host, args)),
        Verb::Shell(args) => wait(exec::shell(&host, args)),
        Verb::Logs(args) => wait(logs::logs(&host, args)),
        Verb::Console(args) => wait(logs::console(&host, args)),
        Verb::Cp(args) => wait(cp::cp(&host, args)),
        Verb::Reboot(args) => wait(reboot::reboot(&host, args)),
        Verb::Env(args) => wait(env::env(&host, args)),
        Verb::One(verb) => one::one(verb),
        Verb::Fleet(verb) => wait(fleet::fleet(&host, verb)),
        Verb::Doctor(args) => generate::doctor(&args),
        Verb::Schema(args) => generate::schema(&args),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Man(args) => generate::man(&args),
        Verb::Machine(args) => supervise::machine(&args),
        Verb::Network(args) => supervise::network(&args),
    }
}

/// Runs a future to its end. One thread: everything here waits, nothing computes.
fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(future)
}

/// Reads a text file that the user named, or stdin for `-`.
fn read_text(path: &Path) -> Result<(String, String)> {
    let name = path.display().to_string();
    let bytes = if name == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).context("read stdin")?;
        bytes
    } else {
        std::fs::read(path).map_err(|e| crate::output::BadInput(format!("read {name}: {e}")))?
    };
    let text =
        String::from_utf8(bytes).map_err(|_| crate::output::BadInput(format!("{name} is not UTF-8 text")))?;
    Ok((name, text))
}
