//! What can be typed. Here: the options of every verb, and the list of verbs; each verb's own arguments are in its file.

use crate::{
    Context, Output, Terminals,
    error::{self, Result},
    verbs,
};
use clap::{CommandFactory, FromArgMatches, Parser, ValueHint, error::ErrorKind};
use std::{ffi::OsString, future::Future, path::PathBuf};
use stead_cluster::Host;

/// Where images and clusters are kept when nobody says otherwise.
const STATE_DIR: &str = "/var/lib/stead";

/// A verb: its arguments, and what it does with them.
pub trait Run: Sized {
    /// Does it.
    fn run(self, app: &App) -> Result<Exit>;
}

/// The exit code of a verb that was carried out. Failures have their own: [`stead_model::FailureKind::exit_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    pub const SUCCESS: Self = Self(0);
    /// The answer is no: a check failed, something was left undone.
    pub const FAILURE: Self = Self(1);

    /// Success if it holds.
    pub fn success_if(it_holds: bool) -> Self {
        if it_holds { Self::SUCCESS } else { Self::FAILURE }
    }
}

/// Lists verbs: the enum of them and the call of the one that was typed. A verb is a type with clap's `Args` and [`Run`].
macro_rules! verb_list {
    ($($verb:ident($arguments:ty)),+ $(,)?) => {
        #[derive(Debug, clap::Subcommand)]
        pub enum Verb { $($verb($arguments),)+ }

        impl $crate::cli::Run for Verb {
            fn run(self, app: &$crate::cli::App) -> $crate::error::Result<$crate::cli::Exit> {
                match self { $(Self::$verb(verb) => verb.run(app),)+ }
            }
        }
    };
}
pub(crate) use verb_list;

// In the order of the help. How to add one: docs/extending.md.
verb_list! {
    Image(verbs::image::Image),
    Up(verbs::up::Up),
    Down(verbs::down::Down),
    Status(verbs::status::Status),
    Ls(verbs::ls::Ls),
    Exec(verbs::exec::Exec),
    Shell(verbs::shell::Shell),
    Logs(verbs::logs::Logs),
    Cp(verbs::cp::Cp),
    Console(verbs::console::Console),
    Reboot(verbs::reboot::Reboot),
    Scale(verbs::scale::Scale),
    Env(verbs::env::Env),
    Fleet(verbs::fleet::Fleet),
    One(verbs::one::One),
    Doctor(verbs::doctor::Doctor),
    Schema(verbs::schema::Schema),
    Completions(verbs::completions::Completions),
    Man(verbs::man::Man),
    Machine(verbs::machine::Machine),
    Network(verbs::network::Network),
}

/// Small immutable Linux nodes, and clusters of them, by one command.
///
/// A recipe becomes an image (`stead image build`), an image boots as machines in namespaces or QEMU, machines become
/// a cluster with a real Incus or LXD on it (`stead up`).
#[derive(Debug, Parser)]
#[command(name = "stead", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Where images and clusters are kept [default: $STEAD_STATE_DIR, else /var/lib/stead]
    #[arg(long, global = true, display_order = 900, value_hint = ValueHint::DirPath, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

/// Everything a verb works with besides its arguments.
#[derive(Debug)]
pub struct App {
    pub context: Context,
    pub output: Output,
    pub host: Host,
}

impl App {
    /// Runs a future to its end. One thread: everything here waits, nothing computes.
    pub fn wait<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        runtime()?.block_on(future)
    }

    /// As [`App::wait`], without waiting for what the future leaves behind: a read of standard input may never end.
    pub fn wait_and_leave<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime = runtime()?;
        let result = runtime.block_on(future);
        runtime.shutdown_background();
        result
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    use error::Doing;
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Parses and runs; gives the exit code.
pub fn run(arguments: &[OsString], context: Context, output: Output) -> u8 {
    let mut command = Cli::command();
    if let Some(columns) = context.columns {
        command = command.term_width(columns);
    }
    let matches = command.try_get_matches_from(arguments);
    let parsed = matches.and_then(|mut m| {
        let json = wants_json(&m);
        Cli::from_arg_matches_mut(&mut m).map(|cli| (cli, json))
    });
    let (cli, json) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, arguments, context.terminals, &output),
    };
    let state_dir = cli.state_dir.as_ref().or(context.state_dir.as_ref());
    let state_dir = context.absolute(state_dir.map_or(STATE_DIR.as_ref(), PathBuf::as_path));
    let app = App { host: Host { state_dir, exe: context.exe.clone() }, context, output };
    match cli.verb.run(&app) {
        Ok(exit) => exit.0,
        Err(error) => error::report(&error, &app.output, json),
    }
}

/// Whether the verb that was typed has the flag `--json`, and it was given.
fn wants_json(matches: &clap::ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, verb)) => wants_json(verb),
        None => matches.try_get_one::<bool>("json").ok().flatten().is_some_and(|json| *json),
    }
}

/// Prints what the parser says: help and versions on standard output, complaints on standard error.
fn usage(error: &clap::Error, arguments: &[OsString], terminals: Terminals, output: &Output) -> u8 {
    let text = error.render();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let text = if terminals.stdout { text.ansi().to_string() } else { text.to_string() };
        return output.print(text).map_or(1, |()| 0);
    }
    // What comes after `--` is another program's.
    if arguments.iter().take_while(|a| *a != "--").any(|a| a == "--json") {
        return error::report_usage(&in_our_words(&text.to_string()), output);
    }
    let text = if terminals.stderr { text.ansi().to_string() } else { text.to_string() };
    output.note(in_our_words(&text).trim_end());
    2
}

/// Rust's messages about numbers, which the parser quotes, in the words of a user.
fn in_our_words(text: &str) -> String {
    [
        ("invalid digit found in string", "not a whole number"),
        ("cannot parse integer from empty string", "empty, not a whole number"),
        ("number too large to fit in target type", "too large"),
        ("number too small to fit in target type", "too small"),
        ("invalid float literal", "not a number"),
        ("cannot parse float from empty string", "empty, not a number"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_are_refused_in_our_words() {
        let refused = |count: &str| {
            let error = Cli::command().try_get_matches_from(["stead", "scale", "demo", count]).unwrap_err();
            in_our_words(&error.render().to_string()).lines().next().unwrap_or_default().to_owned()
        };
        for (count, why) in [
            ("many", "not a whole number"),
            ("", "empty, not a whole number"),
            ("1.5", "not a whole number"),
            ("99999999999999999999", "too large"),
        ] {
            assert_eq!(refused(count), format!("error: invalid value '{count}' for '<COUNT>': {why}"));
        }
    }
}
