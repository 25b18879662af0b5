//! What one host has another do: a script of this driver, called by ssh as OpenNebula's user.
//!
//! Owns the command line, what is reported of a failure, and the two scripts that only other hosts call. Does not own
//! migration.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    console,
    context::Context,
    disks::DiskError,
    document::{DiskKind, Vm},
    engine,
    ids::{HostName, InstanceName, VmId},
    instance,
    say::{FAILURE_BEGINS, FAILURE_ENDS},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use stead_incus::types::Instance;
use stead_os::{CommandError, Program};

/// ssh itself failed: no connection, or no key that the host takes.
const SSH_FAILED: i32 = 255;
/// A host that is up answers within this; ssh alone would wait for minutes.
const CONNECT_TIMEOUT: &str = "ConnectTimeout=15";
/// The engine has put down an instance whose guest powered itself off within this.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// How often is looked whether it has.
const GLANCE: Duration = Duration::from_millis(200);
/// As much of what the other host says goes into an error.
const TAIL_CHARS: usize = 1000;

/// A path as a word of the other host's shell, which ssh cannot do without.
pub(super) fn path_word(path: &Path) -> Result<String, ScriptError> {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        Ok(text)
    } else {
        Err(ScriptError::Refused(format!(
            "path {text:?} cannot be passed to another host: only letters, digits and ./_- can"
        )))
    }
}

/// The command that calls a script on another host, as the user that OpenNebula is there.
fn command_line(
    context: &Context,
    host: &HostName,
    script: &str,
    arguments: &[String],
) -> Result<Vec<String>, ScriptError> {
    let scripts = context.remotes().join("vmm").join(context.driver().name());
    let script: PathBuf = scripts.join(script);
    let mut line = Vec::new();
    if let Some(user) = &context.user {
        line.extend(["runuser", "-u", user.as_str(), "--"].map(str::to_owned));
    }
    line.extend(
        ["ssh", "-o", "BatchMode=yes", "-o", CONNECT_TIMEOUT, "--", host.as_str()].map(str::to_owned),
    );
    line.push(path_word(&script)?);
    line.extend(arguments.iter().cloned());
    Ok(line)
}

/// How a script on another host ended.
pub(super) enum Peer {
    /// It succeeded.
    Done,
    /// ssh did not reach the host.
    Unreachable(String),
    /// It failed, and said this.
    Failed(String),
}

/// Runs a script on another host.
///
/// # Errors
/// ssh cannot be run.
pub(super) fn over_there(
    context: &Context,
    host: &HostName,
    script: &str,
    arguments: &[String],
    document: &str,
) -> Result<Peer, ScriptError> {
    let line = command_line(context, host, script, arguments)?;
    let failed = |source| {
        let error = CommandError::Io { operation: "run", program: line[0].clone(), source };
        ScriptError::Disk(DiskError::Tool(error))
    };
    let mut command =
        Program::new(&line[0]).args(&line[1..]).command().map_err(|e| ScriptError::Disk(e.into()))?;
    if let Some(home) = std::env::var_os("HOME").filter(|_| context.user.is_none()) {
        command.env("HOME", home);
    }
    if let Some(agent) = &context.ssh_agent {
        command.env("SSH_AUTH_SOCK", agent);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A host that cannot be reached reads nothing; what it says tells why.
        let _ = stdin.write_all(document.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(Peer::Done);
    }
    let said = said(&String::from_utf8_lossy(&output.stderr));
    Ok(match output.status.code() {
        Some(SSH_FAILED) => Peer::Unreachable(said),
        _ => Peer::Failed(said),
    })
}

/// Why a script of the other host failed: its message, or the end of all that it said.
fn said(stderr: &str) -> String {
    let message = stderr.split_once(FAILURE_BEGINS).and_then(|(_, rest)| rest.split_once(FAILURE_ENDS));
    let text = message.map_or(stderr, |(message, _)| message).trim();
    let skip = text.chars().count().saturating_sub(TAIL_CHARS);
    text.chars().skip(skip).collect::<String>().replace('\n', " | ")
}

/// `ready`: whether this host could take over a VM that runs on another one. Nothing is changed.
#[derive(Debug)]
struct Ready {
    name: InstanceName,
}

/// Reads the arguments of [`Ready`].
pub(super) fn parse_ready(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Ready { name: words.instance(0)? }))
}

impl Work for Ready {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.wherever(self.name.clone(), async move |job| {
            let (vm, document) = job.document()?;
            job.ready(&vm, &document).await.map(nothing)
        }))
    }
}

/// `release`: a stopped instance of this host goes, with its mounts, for another host of the cluster is to have the VM.
#[derive(Debug)]
struct Release {
    name: InstanceName,
}

/// Reads the arguments of [`Release`].
pub(super) fn parse_release(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Release { name: words.instance(0)? }))
}

impl Work for Release {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| job.release().await.map(nothing)))
    }
}

impl Job<'_, '_> {
    /// Checks what a restore would find out only when the VM is stopped already.
    async fn ready(&mut self, vm: &Vm, document: &str) -> Result<(), ScriptError> {
        let mut facts = self.engine.facts(self.rc, vm).await?;
        let directory = self.place.vm(vm.id, vm.datastore)?;
        facts.mountpoints = self.others(vm).into_iter().collect();
        // What the host has at a PCI address is looked at when the VM comes.
        let without = Vm { pci: Vec::new(), ..vm.clone() };
        instance::wanted(&without, document, &facts)?;
        for disk in vm.disks.iter().filter(|d| matches!(d.kind, DiskKind::File | DiskKind::Block)) {
            self.place.source(&directory, disk)?;
        }
        let missing = |bridge: &&String| !self.context.sys.join("class/net").join(bridge).exists();
        match vm.nics.iter().filter_map(|n| n.bridge.as_ref()).find(missing) {
            Some(bridge) => Err(ScriptError::Refused(format!("there is no bridge {bridge} on this host"))),
            None => Ok(()),
        }
    }

    async fn release(&mut self) -> Result<(), ScriptError> {
        let Some(instance) = self.find().await? else {
            self.mapper()?.unmap_all()?;
            self.remove_directory();
            return Ok(());
        };
        let kept = engine::kept_document(&instance, &self.name)?.filter(|(vm, _)| !vm.is_imported());
        let Some((vm, _)) = kept else { return Err(ScriptError::Foreign(self.name.clone())) };
        if instance.status != "Stopped" {
            return Err(ScriptError::Running(self.name.clone()));
        }
        console::end(self.place, &self.name);
        self.put_away(Some(&vm)).await
    }

    /// Refuses an instance of another member that is anything but stopped. One whose guest has just powered itself off is
    /// reported as running until the engine has put it down.
    pub(super) async fn require_stopped_elsewhere(&self, instance: &Instance) -> Result<(), ScriptError> {
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut status = instance.status.clone();
        while status != "Stopped" {
            if Instant::now() > deadline {
                let (name, member) = (self.name.clone(), instance.location.clone());
                return Err(ScriptError::RunsElsewhere { name, member, status: status.to_lowercase() });
            }
            tokio::time::sleep(GLANCE).await;
            status = self.instance().await?.status;
        }
        Ok(())
    }

    /// Has the member that holds a stopped instance put it away: what is mounted into it is mounted there, and an engine
    /// that is asked to delete it from here would delete what is on the disk.
    pub(super) async fn release_elsewhere(&mut self, vm: VmId, member: &str) -> Result<(), ScriptError> {
        self.log.info(format_args!("instance {} is stopped on member {member}: released there", self.name));
        let mut said = String::new();
        for host in self.engine.names_of(member).await? {
            let host: HostName = host.parse()?;
            let words = [self.name.to_string(), host.to_string(), vm.to_string(), host.to_string()];
            match over_there(self.context, &host, "release", &words, "")? {
                Peer::Done => return Ok(()),
                Peer::Failed(why) => {
                    said = why;
                    break;
                }
                Peer::Unreachable(why) => said = why,
            }
        }
        let script = self.context.remotes().join("vmm").join(self.context.driver().name()).join("release");
        let command = format!("{} {} {member} {vm} {member}", script.display(), self.name);
        Err(ScriptError::NotReleased { name: self.name.clone(), member: member.to_owned(), said, command })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_hosts_shell_gets_plain_words() {
        let context = Context {
            script_path: Some("/var/tmp/one/vmm/incus/migrate".into()),
            program: "/usr/bin/stead".into(),
            run: "/run/stead-one".into(),
            sys: "/sys".into(),
            user: Some("oneadmin".into()),
            ssh_agent: None,
        };
        let line = command_line(&context, &"host2".parse().unwrap(), "restore", &["a".into()]).unwrap();
        insta::assert_snapshot!(line.join(" "), @"runuser -u oneadmin -- ssh -o BatchMode=yes -o ConnectTimeout=15 -- host2 /var/tmp/one/vmm/incus/restore a");
        assert_eq!(said("INFO: restore: x\nERROR MESSAGE --8<------\nno\nERROR MESSAGE ------>8--\n"), "no");
        assert_eq!(said("ssh: connect to host x: refused\n"), "ssh: connect to host x: refused");
        for bad in ["/a b", "/a;b", "/$(x)", "/a'b"] {
            assert!(path_word(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
