//! The scripts that `one_vmm_exec` calls: a script is one type in a file here, and one row of [`SCRIPTS`].
//!
//! Owns the table, from which everything else about the scripts follows (what is installed, what `stead one` offers,
//! what is read of stdin), and the way from a call to its answer. Each file owns the order of things on this host: what
//! is mapped, made, started, and what is undone when something fails. Does not own how an instance is described
//! ([`crate::instance`]), how a disk is mapped ([`crate::disks`]) or what the engine is asked ([`crate::engine`]).

mod call;
mod context_disk;
mod deploy;
mod error;
mod hotplug;
mod migrate;
mod peer;
mod poll;
mod resize;
mod restart;
mod save;
mod snapshot;
mod stop;
mod words;

pub use error::ScriptError;
pub use words::{CallError, Words};

use crate::{
    context::Context,
    document, lxdrc,
    monitor::{self, Probe},
    payload,
    say::{Ending, Log},
};
use call::{Call, Job};
pub(crate) use call::{at_work, sweep};
use std::{
    fmt::{self, Write as _},
    io::{Read, Write},
    pin::Pin,
};

/// How a script uses standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// Leaves it alone. 5.8 sends these scripts nothing, and reading would swallow the commands that come down the same
    /// ssh connection.
    Ignored,
    /// Reads the VM's document from it.
    Document,
    /// Passes it on unchanged.
    Passed,
}

/// A script of `vmm/<driver>`.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// Its file's name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its arguments before `<vmid> <host>`.
    pub arguments: &'static [&'static str],
    /// What it does with stdin.
    pub stdin: Stdin,
    /// Whether it runs on the frontend, where nothing is mounted, instead of on the VM's host as root.
    pub on_frontend: bool,
    parse: fn(&Words<'_>) -> Parsed,
    /// Its action without arguments, or with only `-t`.
    all: Option<fn(bool) -> Box<dyn Work>>,
}

impl Script {
    const fn new(
        name: &'static str,
        about: &'static str,
        arguments: &'static [&'static str],
        stdin: Stdin,
        parse: fn(&Words<'_>) -> Parsed,
    ) -> Self {
        Self { name, about, arguments, stdin, on_frontend: false, parse, all: None }
    }
    const fn on_frontend(mut self) -> Self {
        self.on_frontend = true;
        self
    }
    const fn or_all(mut self, all: fn(bool) -> Box<dyn Work>) -> Self {
        self.all = Some(all);
        self
    }

    /// The script with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SCRIPTS.iter().find(|s| s.name == name)
    }

    /// Reads arguments, without the script's own name.
    fn read(&self, arguments: &[&str]) -> Result<(Option<crate::ids::VmId>, Box<dyn Work>), CallError> {
        if let Some(all) = self.all
            && matches!(arguments, [] | ["-t"])
        {
            return Ok((None, all(!arguments.is_empty())));
        }
        let words = Words::of(self, arguments)?;
        Ok((Some(words.vm()?), (self.parse)(&words)?))
    }

    /// Checks arguments for this script; returns a description of their meaning.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn describe(&self, arguments: &[&str]) -> Result<String, CallError> {
        self.read(arguments).map(|(vm, work)| match vm {
            Some(vm) => format!("VM {vm}: {work:?}"),
            None => format!("{work:?}"),
        })
    }
}

/// Every script: the files that are installed, in the order of OpenNebula's documentation.
pub const SCRIPTS: &[Script] = &[
    Script::new(
        "deploy",
        "make the instance and start it",
        &["deployment file", "host"],
        Stdin::Document,
        deploy::parse,
    ),
    Script::new(
        "shutdown",
        "stop it cleanly and free what it has on the host",
        &["deploy id", "host"],
        Stdin::Ignored,
        |w| stop::parse(w, false),
    ),
    Script::new(
        "cancel",
        "as shutdown, without asking the instance",
        &["deploy id", "host"],
        Stdin::Ignored,
        |w| stop::parse(w, true),
    ),
    Script::new("reboot", "restart it cleanly", &["deploy id", "host"], Stdin::Ignored, |w| {
        restart::parse(w, false)
    }),
    Script::new(
        "reset",
        "as reboot, without asking the instance",
        &["deploy id", "host"],
        Stdin::Ignored,
        |w| restart::parse(w, true),
    ),
    Script::new(
        "save",
        "stop it and keep its state",
        &["deploy id", "checkpoint file", "host"],
        Stdin::Ignored,
        save::parse_save,
    ),
    Script::new(
        "restore",
        "go on from what save kept",
        &["checkpoint file", "host", "deploy id"],
        Stdin::Document,
        save::parse_restore,
    ),
    Script::new(
        "migrate",
        "move it to another host",
        &["deploy id", "destination host", "host"],
        Stdin::Document,
        migrate::parse,
    ),
    Script::new(
        "migrate_local",
        "as migrate, called on the frontend",
        &["deploy id", "destination host", "host"],
        Stdin::Passed,
        migrate::parse_local,
    )
    .on_frontend(),
    Script::new(
        "ready",
        "whether this host could take it over (called by another host)",
        &["deploy id", "host"],
        Stdin::Document,
        peer::parse_ready,
    ),
    Script::new(
        "release",
        "free it on this host, stopped, for another host (called by that)",
        &["deploy id", "host"],
        Stdin::Ignored,
        peer::parse_release,
    ),
    Script::new(
        "attach_disk",
        "add a disk",
        &["deploy id", "path", "target", "index", "document"],
        Stdin::Document,
        hotplug::parse_attach_disk,
    ),
    Script::new(
        "detach_disk",
        "take a disk away",
        &["deploy id", "path", "target", "index"],
        Stdin::Document,
        hotplug::parse_detach_disk,
    ),
    Script::new(
        "attach_nic",
        "add a network interface",
        &["deploy id", "MAC", "bridge", "model", "VN_MAD", "target"],
        Stdin::Document,
        hotplug::parse_attach_nic,
    ),
    Script::new(
        "detach_nic",
        "take a network interface away",
        &["deploy id", "MAC"],
        Stdin::Document,
        hotplug::parse_detach_nic,
    ),
    Script::new(
        "prereconfigure",
        "take the context disk out before it is made anew",
        &["deploy id", "context target"],
        Stdin::Document,
        context_disk::parse_drop,
    ),
    Script::new(
        "reconfigure",
        "put the new context disk in",
        &["deploy id", "context target", "context path"],
        Stdin::Document,
        context_disk::parse_put,
    ),
    Script::new(
        "snapshot_create",
        "make a snapshot",
        &["deploy id", "snapshot id"],
        Stdin::Ignored,
        snapshot::parse_create,
    ),
    Script::new(
        "snapshot_revert",
        "go back to a snapshot",
        &["deploy id", "snapshot name"],
        Stdin::Ignored,
        snapshot::parse_revert,
    ),
    Script::new(
        "snapshot_delete",
        "delete a snapshot",
        &["deploy id", "snapshot name"],
        Stdin::Ignored,
        snapshot::parse_delete,
    ),
    Script::new(
        "resize_disk",
        "grow a disk",
        &["deploy id", "disk id", "size in MB", "document", "host"],
        Stdin::Document,
        resize::parse_disk,
    ),
    Script::new("resize", "change CPU and memory", &["deploy id"], Stdin::Document, resize::parse),
    Script::new(
        "poll",
        "print how instances are (5.8, 5.10)",
        &["deploy id", "host"],
        Stdin::Ignored,
        poll::parse,
    )
    .or_all(poll::all),
];

/// The answer of a script: its output, often empty.
type Answer = Result<String, ScriptError>;
/// A running script.
type Running<'c> = Pin<Box<dyn Future<Output = Answer> + 'c>>;
/// Parsed arguments.
type Parsed = Result<Box<dyn Work>, CallError>;

/// A script with parsed arguments: each script has its own type.
trait Work: fmt::Debug {
    /// Runs it.
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c>;
}

/// The answer of a script that prints nothing.
fn nothing((): ()) -> String {
    String::new()
}

/// Whether there is a script or a probe with this name.
pub fn is_known(name: &str) -> bool {
    Script::find(name).is_some() || Probe::find(name).is_some()
}

/// Scripts and probes with what they do, one a line, for `stead one --help`.
pub fn help() -> String {
    let mut text = "Scripts, as OpenNebula calls them:\n".to_owned();
    let scripts = SCRIPTS.iter().map(|s| (s.name, s.about));
    let probes = Probe::ALL.iter().map(|(_, dir, name)| (*name, *dir));
    for (name, about) in scripts {
        let _ = writeln!(text, "  {name:<16} {about}");
    }
    text.push_str("Probes, and the directories they are installed in:\n");
    for (name, directory) in probes {
        let _ = writeln!(text, "  {name:<16} {directory}");
    }
    text
}

/// Runs what an installed script calls: a script of the protocol or a probe, by its name.
pub fn run_named(
    name: &str,
    arguments: &[String],
    context: &Context,
    stdin: impl Read,
    stdout: impl Write,
    stderr: impl Write,
) -> Ending {
    if let Some(probe) = Probe::find(name) {
        return run_probe(probe, probe.name(), context, stdout, stderr);
    }
    match Script::find(name) {
        Some(script) => run(script, arguments, context, stdin, stdout, stderr),
        None => {
            let error = CallError::Script(name.chars().take(80).collect());
            Log::new("stead one", stderr).failure(&error);
            Ending::Failure
        }
    }
}

fn wait<T, E: Into<ScriptError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, ScriptError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ScriptError::Runtime)?.block_on(work).map_err(Into::into)
}

/// Runs a probe. It does not read stdin, where OpenNebula sends its own configuration.
fn run_probe(
    probe: Probe,
    name: &'static str,
    context: &Context,
    mut stdout: impl Write,
    stderr: impl Write,
) -> Ending {
    let mut log = Log::new(name, stderr);
    let result = lxdrc::load(&context.lxdrc())
        .map_err(ScriptError::from)
        .and_then(|(rc, _)| wait(monitor::probe(probe, context, &rc, &mut log)));
    match result {
        Ok(text) if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok() => {
            Ending::Success
        }
        Ok(_) => Ending::Failure,
        Err(error) => {
            log.error(stead_os::chain(&error));
            Ending::Failure
        }
    }
}

/// Runs a script to its end.
pub fn run(
    script: &Script,
    arguments: &[String],
    context: &Context,
    stdin: impl Read,
    mut stdout: impl Write,
    stderr: impl Write,
) -> Ending {
    let mut log = Log::new(script.name, stderr);
    match answer(script, arguments, context, stdin, &mut log) {
        Ok(answer) => {
            if !answer.is_empty() && writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err() {
                log.error("the answer could not be written");
                return Ending::Failure;
            }
            Ending::Success
        }
        Err(error) => {
            log.failure(&error);
            Ending::Failure
        }
    }
}

fn answer(
    script: &Script,
    arguments: &[String],
    context: &Context,
    stdin: impl Read,
    log: &mut Log<'_>,
) -> Answer {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (vm, work) = script.read(&arguments)?;
    let mut call = Call { context, log, vm, passed: String::new(), document: None };
    match script.stdin {
        Stdin::Ignored => {}
        Stdin::Passed => call.passed = payload::read(stdin)?,
        Stdin::Document => {
            let read = document::read(&payload::read(stdin)?)?;
            if let Some(called) = vm.filter(|called| read.0.id != *called) {
                let (called, document) = (format!("VM {called}"), format!("VM {}", read.0.id));
                return Err(ScriptError::OtherVm { called, document });
            }
            call.document = Some(read);
        }
    }
    wait(work.run(call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn describe(line: &str) -> Result<String, CallError> {
        let mut words: Vec<&str> = line.split(' ').map(|w| if w == "''" { "" } else { w }).collect();
        let name = words.remove(0);
        let script = Script::find(name).ok_or_else(|| CallError::Script(name.to_owned()))?;
        script.describe(&words)
    }

    /// Each script as one_vmm_exec calls it.
    const CALLS: &[&str] = &[
        "deploy /var/lib/one//datastores/0/7/deployment.0 host1 7 host1",
        "shutdown one-7 host1 7 host1",
        "cancel one-7 host1 7 host1",
        "reboot one-7 host1 7 host1",
        "reset one-7 host1 7 host1",
        "save one-7 /var/lib/one//datastores/0/7/checkpoint host1 7 host1",
        "restore /var/lib/one//datastores/0/7/checkpoint host1 one-7 7 host1",
        "migrate one-7 host2 host1 7 host1",
        "migrate_local one-7 host2 host1 7 host1",
        "ready one-7 host2 7 host2",
        "release one-7 host1 7 host1",
        "attach_disk one-7 /var/lib/one//datastores/0/7/disk.3 vdd 3 PFZNLz4= 7 host1",
        "detach_disk one-7 /var/lib/one//datastores/0/7/disk.3 vdd 3 7 host1",
        "attach_nic one-7 02:00:c0:a8:00:01 br0 - fw one-7-1 7 host1",
        "detach_nic one-7 02:00:c0:a8:00:01 7 host1",
        "prereconfigure one-7 hda 7 host1",
        "prereconfigure one-7 '' 7 host1",
        "reconfigure one-7 hda /var/lib/one//datastores/0/7/disk.1 7 host1",
        "reconfigure one-7 '' '' 7 host1",
        "snapshot_create one-7 0 7 host1",
        "snapshot_revert one-7 snap-0 7 host1",
        "snapshot_delete one-7 snap-0 7 host1",
        "resize_disk one-7 2 4096 PFZNLz4= host1 7 host1",
        "resize one-7 7 host1",
        "poll one-7 host1 7 host1",
        "poll -t",
        "poll",
    ];

    #[test]
    fn every_row_is_called_as_one_vmm_exec_does() {
        let means: Vec<String> =
            CALLS.iter().map(|line| describe(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
        insta::assert_snapshot!(means.join("\n"));
        let called: BTreeSet<&str> = CALLS.iter().filter_map(|line| line.split(' ').next()).collect();
        let rows: BTreeSet<&str> = SCRIPTS.iter().map(|s| s.name).collect();
        assert_eq!(called, rows, "each row has an example");
        assert_eq!(rows.len(), SCRIPTS.len(), "a name stands in two rows");
        assert!(rows.iter().all(|name| Probe::find(name).is_none()), "a probe has the name of a script");
    }

    #[test]
    fn calls_outside_the_protocol_are_refused() {
        for bad in [
            "deploy",
            "deploy x host 7",
            "shutdown one-7 host1 7 host1 more",
            "shutdown ../x host1 7 host1",
            "shutdown one-7 host1 seven host1",
            "save one-7 relative host1 7 host1",
            "save one-7 /var/../etc/shadow host1 7 host1",
            "migrate one-7 -oProxyCommand=x host1 7 host1",
            "migrate one-7 a;b host1 7 host1",
            "snapshot_revert one-7 ../other 7 host1",
            "resize_disk one-7 0 -1 x host1 7 host1",
            "resize_disk one-7 0/.. 1 x host1 7 host1",
            "format one-7",
        ] {
            assert!(describe(bad).is_err(), "{bad}");
        }
        insta::assert_snapshot!(
            describe("shutdown one-7").unwrap_err(),
            @"shutdown takes 4 arguments (deploy id, host, vm id, host), not 1"
        );
    }

    #[test]
    fn scripts_that_5_8_sends_nothing_read_nothing() {
        for name in ["poll", "reboot", "reset", "snapshot_create", "snapshot_revert", "snapshot_delete"] {
            assert_eq!(Script::find(name).unwrap().stdin, Stdin::Ignored, "{name}");
        }
        assert_eq!(Script::find("deploy").unwrap().stdin, Stdin::Document);
        let elsewhere: Vec<&str> = SCRIPTS.iter().filter(|s| s.on_frontend).map(|s| s.name).collect();
        assert_eq!(elsewhere, ["migrate_local"]);
    }

    #[test]
    fn help_is_the_table() {
        insta::assert_snapshot!(help());
    }

    /// The page is what a new contributor goes by.
    #[test]
    fn the_page_tells_where_a_script_goes() {
        let page = include_str!("../../../../docs/extending.md");
        let (_, part) = page.split_once("\n## A script\n").expect("the page has the heading");
        let part = part.split("\n## ").next().unwrap_or_default();
        for place in ["crates/stead-one/src/scripts/", "SCRIPTS", "CALLS", "Work"] {
            assert!(part.contains(place), "docs/extending.md does not name {place}");
        }
    }

    proptest! {
        #[test]
        fn any_arguments_are_answered(which in 0..SCRIPTS.len(), arguments: Vec<String>) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _ = SCRIPTS[which].describe(&arguments);
        }
    }
}
