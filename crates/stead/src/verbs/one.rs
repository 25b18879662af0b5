//! `stead one`: the door to the OpenNebula driver.

use crate::{cli, output};
use anyhow::{Context, Result};
use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};
use stead_one::{act, act::Surroundings, check, console, install, lxdrc, say::Log, script::Script};

/// What is mounted and running; gone after a reboot, as that is.
const RUN: &str = "/run/stead-one";

/// The script that this program was called as, by a link with its name.
pub fn called_as(argument: &Path) -> Option<Script> {
    argument.file_name()?.to_str()?.parse().ok()
}

/// Runs a script under whose name this program was called.
pub fn run_as(script: Script, path: PathBuf, arguments: Vec<OsString>) -> ExitCode {
    match run_script(cli::OneRun { script: Some(path), name: script.name().to_owned(), arguments }) {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}

pub fn one(verb: cli::OneVerb) -> Result<ExitCode> {
    match verb {
        cli::OneVerb::Run(args) => run_script(args),
        cli::OneVerb::Named(words) => {
            let mut words = words.into_iter();
            let name = words.next().unwrap_or_default().to_string_lossy().into_owned();
            if !act::is_known(&name) {
                return Err(
                    output::BadInput(format!("there is no script {name:?}; see `stead one --help`")).into()
                );
            }
            run_script(cli::OneRun { script: None, name, arguments: words.collect() })
        }
        cli::OneVerb::Console { directory } => {
            console::serve(&directory).context("run the console")?;
            Ok(ExitCode::SUCCESS)
        }
        cli::OneVerb::Install(args) => {
            let changed = install::install(&args.remotes, &plan(&args)?)?;
            told(&changed, "installed", "everything is installed already")
        }
        cli::OneVerb::Uninstall(args) => {
            let mut steps = plan(&args)?;
            steps.extend(install::plan(&program(&args)?, !args.old));
            let removed = install::uninstall(&args.remotes, &steps)?;
            told(&removed, "removed", "nothing of it is installed")
        }
        cli::OneVerb::Check(args) => check_host(args),
    }
}

fn told(paths: &[PathBuf], what: &str, nothing: &str) -> Result<ExitCode> {
    let mut text: String = paths.iter().map(|p| format!("{what} {}\n", p.display())).collect();
    if text.is_empty() {
        text = format!("{nothing}\n");
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn program(args: &cli::OneInstall) -> Result<PathBuf> {
    match &args.program {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().context("find this program's own path"),
    }
}

fn plan(args: &cli::OneInstall) -> Result<Vec<install::Step>> {
    Ok(install::plan(&program(args)?, args.old))
}

fn surroundings(script_path: Option<PathBuf>) -> Result<Surroundings> {
    Ok(Surroundings {
        script_path,
        program: std::env::current_exe().context("find this program's own path")?,
        run: PathBuf::from(RUN),
        sys: PathBuf::from("/sys"),
        user: std::env::var("SUDO_USER").ok().filter(|u| u != "root"),
    })
}

fn run_script(args: cli::OneRun) -> Result<ExitCode> {
    let script = args.script.map(std::path::absolute).transpose().context("find the script's path")?;
    let surroundings = surroundings(script)?;
    // On the frontend itself nothing is mounted.
    let needs_root = args.name != Script::MigrateLocal.name();
    if needs_root && !rustix::process::geteuid().is_root() {
        let mut command = Command::new("sudo");
        command.args(["-n", "--"]).arg(&surroundings.program).args(["one", "run"]);
        if let Some(script) = &surroundings.script_path {
            command.arg("--script").arg(script);
        }
        let error = command.arg(&args.name).args(&args.arguments).exec();
        // OpenNebula reads this one, too.
        let script = args.name.parse().map_or("stead one", Script::name);
        let failed = anyhow::Error::new(error).context("cannot run sudo");
        Log::new(script, io::stderr()).failure(failed.as_ref());
        return Ok(ExitCode::FAILURE);
    }
    // What is not text is none of the protocol's words: it is refused as what it looks like.
    let arguments: Vec<String> = args.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let ending =
        act::run_named(&args.name, &arguments, &surroundings, io::stdin(), io::stdout(), io::stderr());
    Ok(ExitCode::from(ending.code()))
}

fn check_host(args: cli::OneCheck) -> Result<ExitCode> {
    let script = args.remotes.join("vmm").join(args.driver.name()).join("deploy");
    let surroundings = surroundings(Some(script))?;
    let (rc, unknown) = lxdrc::load(&surroundings.lxdrc()).map_err(|e| output::BadInput(e.to_string()))?;
    for key in unknown {
        eprintln!("note: {}: key {key} is not known", surroundings.lxdrc().display());
    }
    let found = super::wait(async { Ok(check::check(&surroundings, &rc).await) })?;
    if args.json {
        output::json(&found)?;
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
        output::print(&output::table(&["WHAT", "IS", ""], &rows))?;
    }
    let bad = found.iter().any(|f| f.verdict == check::Verdict::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
