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
    Context as Caller, check, console,
    install::{self, Change},
    lxdrc,
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
    Uninstall(Uninstall),
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
}

#[derive(Debug, Args)]
struct Uninstall {
    /// OpenNebula's remotes.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    remotes: PathBuf,
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
    /// The socket of the ssh agent that OpenNebula forwards, which sudo drops from the environment.
    #[arg(long, value_name = "SOCKET")]
    ssh_agent: Option<PathBuf>,
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
    let (name, arguments) = (script.name.to_owned(), arguments.to_vec());
    let call = Call { script: Some(path), ssh_agent: None, name, arguments };
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
                let call = Call { script: None, ssh_agent: None, name, arguments: words.collect() };
                run_script(context, &app.output, call)
            }
            Verb::Console { directory } => {
                console::serve(&context.absolute(&directory)).context("cannot run the console")?;
                Ok(Exit::SUCCESS)
            }
            Verb::Install(args) => {
                let remotes = remotes(context, &args.remotes)?;
                let program = args.program.unwrap_or_else(|| context.exe.clone());
                let steps = install::plan(&program, &install::look(&remotes)?);
                let changed = install::install(&remotes, &steps)?;
                let lines = changed.iter().map(|change| match change {
                    Change::Installed(path) => format!("installed {}\n", path.display()),
                    Change::SetAside { from, to } => {
                        format!("set aside {} (now {})\n", from.display(), to.display())
                    }
                });
                list(app, lines.collect(), "everything is installed already")
            }
            Verb::Uninstall(args) => {
                let removed = install::uninstall(&remotes(context, &args.remotes)?)?;
                let lines = removed.iter().map(|path| format!("removed {}\n", path.display()));
                list(app, lines.collect(), "nothing of the driver is installed")
            }
            Verb::Check(args) => check_host(app, &args),
        }
    }
}

fn list(app: &App, mut text: String, nothing: &str) -> Result<Exit> {
    if text.is_empty() {
        text = format!("{nothing}\n");
    }
    app.output.print(text)?;
    Ok(Exit::SUCCESS)
}

/// A directory that does not exist is a mistyped one: OpenNebula makes its remotes.
fn remotes(context: &Context, given: &Path) -> Result<PathBuf> {
    let remotes = context.absolute(given);
    match remotes.is_dir() {
        true => Ok(remotes),
        false => Err(Error::bad_input(format!("there is no directory {}", given.display()))),
    }
}

fn caller(context: &Context, script_path: Option<PathBuf>) -> Caller {
    Caller {
        script_path,
        program: context.exe.clone(),
        run: PathBuf::from(RUN),
        sys: PathBuf::from("/sys"),
        user: context.sudo_user.clone(),
        ssh_agent: context.ssh_agent.clone(),
    }
}

fn run_script(context: &Context, output: &Output, call: Call) -> Result<Exit> {
    let mut caller = caller(context, call.script.map(|path| context.absolute(&path)));
    caller.ssh_agent = call.ssh_agent.or(caller.ssh_agent);
    let script = Script::find(&call.name);
    let needs_root = !script.is_some_and(|s| s.on_frontend);
    if needs_root && !context.is_root {
        let error = Command::new("sudo").args(by_sudo(&caller, &call.name, &call.arguments)).exec();
        // OpenNebula reads this one, too.
        Log::new(script.map_or("stead one", |s| s.name), output.err()).failure(&NoSudo(error));
        return Ok(Exit::FAILURE);
    }
    // What is not text is none of the protocol's words: it is refused as what it looks like.
    let arguments: Vec<String> = call.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let ending = scripts::run_named(&call.name, &arguments, &caller, io::stdin(), output.out(), output.err());
    Ok(Exit(ending.code()))
}

/// The arguments of sudo: the same call by root. What sudo drops from the environment goes along as options.
fn by_sudo(caller: &Caller, name: &str, arguments: &[OsString]) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["-n".into(), "--".into(), caller.program.clone().into()];
    words.extend(["one", "run"].map(OsString::from));
    for (option, path) in [("--script", &caller.script_path), ("--ssh-agent", &caller.ssh_agent)] {
        words.extend(path.iter().flat_map(|path| [OsString::from(option), path.clone().into()]));
    }
    words.push(name.into());
    words.extend(arguments.iter().cloned());
    words
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ssh_agent_gets_through_sudo() {
        let caller = Caller {
            script_path: Some("/var/tmp/one/vmm/incus/migrate".into()),
            program: "/usr/local/bin/stead".into(),
            run: RUN.into(),
            sys: "/sys".into(),
            user: None,
            ssh_agent: Some("/tmp/ssh-x/agent.7".into()),
        };
        let words = by_sudo(&caller, "migrate", &["one-7".into(), "host2".into()]);
        insta::assert_snapshot!(
            words.join(" ".as_ref()).to_string_lossy(),
            @"-n -- /usr/local/bin/stead one run --script /var/tmp/one/vmm/incus/migrate --ssh-agent /tmp/ssh-x/agent.7 migrate one-7 host2"
        );
    }
}
