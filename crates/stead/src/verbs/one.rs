//! `stead one`: the way into the OpenNebula driver.

use crate::{
    Context, Output,
    cli::{App, Exit, Run},
    error::{Doing, Error, Result, report},
    output,
};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};
use stead_one::{
    Context as Caller, check, console, install, lxdrc,
    say::Log,
    scripts::{self, Script},
};

/// What is mounted and running; gone after a reboot, as that is.
const RUN: &str = "/run/stead-one";

/// The OpenNebula driver: install it, check a host, run its scripts.
#[derive(Debug, Args)]
#[command(after_help = scripts::help())]
pub struct One {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install the driver's scripts and probes in OpenNebula's remotes. Run it again at any time.
    ///
    /// Example: stead one install --remotes /var/lib/one/remotes --program /usr/local/bin/stead
    Install(Install),
    /// Remove the scripts and probes, and restore what was there before.
    Uninstall(Install),
    /// Check whether this host has what the driver needs.
    Check(Check),
    /// Run one script, as OpenNebula calls it; `stead one NAME ARGUMENTS…` is the same.
    Run(Call),
    /// A script by its name.
    #[command(external_subcommand)]
    Named(Vec<OsString>),
    /// Supervise the console of one VM (started by its deploy).
    #[command(hide = true)]
    Console {
        /// The directory of its files.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Install {
    /// OpenNebula's remotes: /var/lib/one/remotes on the frontend, /var/tmp/one on a host.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    remotes: PathBuf,
    /// Where this program is on the hosts [default: the same path as here]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    program: Option<PathBuf>,
    /// Lay the probes out as OpenNebula 5.8 and 5.10 do.
    #[arg(long)]
    old: bool,
}

#[derive(Debug, Args)]
struct Check {
    /// Where OpenNebula's remotes are on this host.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/one", value_hint = ValueHint::DirPath)]
    remotes: PathBuf,
    /// The driver.
    #[arg(long, value_enum, default_value = "lxd")]
    driver: Driver,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Driver {
    Lxd,
    Incus,
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Self::Lxd => "lxd",
            Self::Incus => "incus",
        }
    }
}

#[derive(Debug, Args)]
struct Call {
    /// The path it was called by, which determines the driver and its configuration.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Its name: deploy, shutdown, …, or a probe's.
    name: String,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The script that this program was called as, by a link with its name.
pub fn called_as(argument: &Path) -> Option<&'static Script> {
    Script::find(argument.file_name()?.to_str()?)
}

/// Runs a script under whose name this program was called; gives the exit code.
pub fn run_as(
    script: &Script,
    path: PathBuf,
    arguments: &[OsString],
    context: Context,
    output: Output,
) -> u8 {
    let call = Call { script: Some(path), name: script.name.to_owned(), arguments: arguments.to_vec() };
    run_script(&context, &output, call).map_or_else(|e| report(&e, &output, false), |exit| exit.0)
}

impl Run for One {
    fn run(self, app: &App) -> Result<Exit> {
        let context = &app.context;
        match self.verb {
            Verb::Run(call) => run_script(context, &app.output, call),
            Verb::Named(words) => {
                let mut words = words.into_iter();
                let name = words.next().unwrap_or_default().to_string_lossy().into_owned();
                if !scripts::is_known(&name) {
                    return Err(Error::bad_input_hint(
                        format!("there is no script {name:?}"),
                        "see `stead one --help`",
                    ));
                }
                run_script(context, &app.output, Call { script: None, name, arguments: words.collect() })
            }
            Verb::Console { directory } => {
                console::serve(&context.absolute(&directory)).context("cannot run the console")?;
                Ok(Exit::SUCCESS)
            }
            Verb::Install(args) => {
                let remotes = remotes(context, &args)?;
                let changed = install::install(&remotes, &plan(context, &args))?;
                list(app, &changed, "installed", "everything is installed already")
            }
            Verb::Uninstall(args) => {
                let mut steps = plan(context, &args);
                steps.extend(install::plan(&program(context, &args), !args.old));
                let removed = install::uninstall(&remotes(context, &args)?, &steps)?;
                list(app, &removed, "removed", "nothing of the driver is installed")
            }
            Verb::Check(args) => check_host(app, &args),
        }
    }
}

fn list(app: &App, paths: &[PathBuf], what: &str, nothing: &str) -> Result<Exit> {
    let mut text: String = paths.iter().map(|p| format!("{what} {}\n", p.display())).collect();
    if text.is_empty() {
        text = format!("{nothing}\n");
    }
    app.output.print(text)?;
    Ok(Exit::SUCCESS)
}

/// A directory that does not exist is a mistyped one: OpenNebula makes its remotes.
fn remotes(context: &Context, args: &Install) -> Result<PathBuf> {
    let remotes = context.absolute(&args.remotes);
    match remotes.is_dir() {
        true => Ok(remotes),
        false => Err(Error::bad_input(format!("there is no directory {}", args.remotes.display()))),
    }
}

fn program(context: &Context, args: &Install) -> PathBuf {
    args.program.clone().unwrap_or_else(|| context.exe.clone())
}

fn plan(context: &Context, args: &Install) -> Vec<install::Step> {
    install::plan(&program(context, args), args.old)
}

fn caller(context: &Context, script_path: Option<PathBuf>) -> Caller {
    Caller {
        script_path,
        program: context.exe.clone(),
        run: PathBuf::from(RUN),
        sys: PathBuf::from("/sys"),
        user: context.sudo_user.clone(),
    }
}

fn run_script(context: &Context, output: &Output, call: Call) -> Result<Exit> {
    let caller = caller(context, call.script.map(|path| context.absolute(&path)));
    let script = Script::find(&call.name);
    let needs_root = !script.is_some_and(|s| s.on_frontend);
    if needs_root && !context.is_root {
        let mut command = Command::new("sudo");
        command.args(["-n", "--"]).arg(&caller.program).args(["one", "run"]);
        if let Some(path) = &caller.script_path {
            command.arg("--script").arg(path);
        }
        let error = command.arg(&call.name).args(&call.arguments).exec();
        // OpenNebula reads this one, too.
        Log::new(script.map_or("stead one", |s| s.name), output.err()).failure(&NoSudo(error));
        return Ok(Exit::FAILURE);
    }
    // What is not text is none of the protocol's words: it is refused as what it looks like.
    let arguments: Vec<String> = call.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let ending = scripts::run_named(&call.name, &arguments, &caller, io::stdin(), output.out(), output.err());
    Ok(Exit(ending.code()))
}

/// The scripts need root, and there is no way to it.
#[derive(Debug, thiserror::Error)]
#[error("cannot run sudo")]
struct NoSudo(#[source] io::Error);

fn check_host(app: &App, args: &Check) -> Result<Exit> {
    let remotes = app.context.absolute(&args.remotes);
    let script = remotes.join("vmm").join(args.driver.name()).join("deploy");
    let caller = caller(&app.context, Some(script));
    let (rc, unknown) = lxdrc::load(&caller.lxdrc())?;
    for key in unknown {
        app.output.note(format_args!("note: {}: unknown key {key}", caller.lxdrc().display()));
    }
    let found = app.wait(async { Ok(check::check(&caller, &rc).await) })?;
    if args.json {
        app.output.json(&found)?;
    } else {
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|f| {
                let verdict = match f.verdict {
                    check::Verdict::Good => "good",
                    check::Verdict::Limited => "limited",
                    check::Verdict::Bad => "bad",
                };
                vec![f.name.to_owned(), verdict.to_owned(), f.text.clone()]
            })
            .collect();
        app.output.print(output::table(&["WHAT", "IS", ""], &rows))?;
    }
    Ok(Exit::success_if(found.iter().all(|f| f.verdict != check::Verdict::Bad)))
}
