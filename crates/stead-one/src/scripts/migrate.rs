//! migrate: to another host that has the same datastores, or another member of the cluster.
//!
//! The disks are OpenNebula's, so they are not moved but mapped over there: the instance is saved here and restored on
//! the other host, by its own `restore` script, over the connection that OpenNebula's hosts have among each other. An
//! instance that was imported has its root in the engine's pool: the engine moves it, within its cluster.

use super::{Call, Job, Parsed, Running, ScriptError, Words, Work, nothing};
use crate::{
    console,
    context::Context,
    disks::DiskError,
    document::Vm,
    engine::{EngineError, PROJECT},
    ids::{HostName, InstanceName},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};
use stead_incus::{
    Feature,
    requests::instances::{Move, StateAction},
};
use stead_os::{CommandError, Program};

/// As much of what the other host says goes into an error.
const TAIL_CHARS: usize = 1000;

/// `migrate`.
#[derive(Debug)]
struct Migrate {
    name: InstanceName,
    destination: HostName,
}

/// Reads the arguments of [`Migrate`].
pub(super) fn parse(words: &Words<'_>) -> Parsed {
    Ok(Box::new(Migrate { name: words.instance(0)?, destination: words.read(1)? }))
}

impl Work for Migrate {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(call.on(self.name.clone(), async move |job| {
            let (vm, document) = job.document()?;
            job.migrate(&vm, &document, &self.destination).await.map(nothing)
        }))
    }
}

/// `migrate_local`: on the frontend there is no engine, so the VM's host does it.
#[derive(Debug)]
struct MigrateLocal {
    name: InstanceName,
    destination: HostName,
    from: HostName,
}

/// Reads the arguments of [`MigrateLocal`].
pub(super) fn parse_local(words: &Words<'_>) -> Parsed {
    Ok(Box::new(MigrateLocal { name: words.instance(0)?, destination: words.read(1)?, from: words.read(2)? }))
}

impl Work for MigrateLocal {
    fn run<'c, 'l: 'c>(self: Box<Self>, call: Call<'c, 'l>) -> Running<'c> {
        Box::pin(async move {
            let vm = call.vm.map(|v| v.to_string()).unwrap_or_default();
            let (name, from) = (self.name.to_string(), self.from.to_string());
            let arguments = [name, self.destination.to_string(), from.clone(), vm, from];
            over_there(call.context, &self.from, "migrate", &arguments, &call.passed).map(nothing)
        })
    }
}

impl Job<'_, '_> {
    pub(super) async fn migrate(
        &mut self,
        vm: &Vm,
        document: &str,
        destination: &HostName,
    ) -> Result<(), ScriptError> {
        if vm.is_imported() {
            return self.move_imported(destination).await;
        }
        let snapshots = self.engine.client.snapshots(PROJECT, self.name.as_str()).await;
        if !snapshots.map_err(EngineError::from)?.is_empty() {
            return Err(ScriptError::Snapshots(self.name.clone()));
        }
        let directory = self.place.vm(vm.id, vm.datastore)?;
        let checkpoint = directory.join("checkpoint");
        self.save(&checkpoint).await?;
        let arguments = [
            path_word(&checkpoint)?,
            destination.to_string(),
            self.name.to_string(),
            vm.id.to_string(),
            destination.to_string(),
        ];
        let taken = over_there(self.context, destination, "restore", &arguments, document);
        if let Err(error) = taken {
            self.log.error(format_args!("{destination} did not take the VM over; it is started here again"));
            self.restore(&checkpoint, vm.clone(), document.to_owned()).await?;
            let _ = std::fs::remove_file(&checkpoint);
            return Err(error);
        }
        let _ = std::fs::remove_file(&checkpoint);
        Ok(())
    }

    async fn move_imported(&mut self, destination: &HostName) -> Result<(), ScriptError> {
        let refused =
            |why: &str| ScriptError::Refused(format!("instance {} cannot be migrated: {why}", self.name));
        if self.engine.member.is_none() {
            return Err(refused("it was imported, and its engine is not clustered"));
        }
        let client = &self.engine.client;
        let members = client.members().await.map_err(EngineError::from)?;
        let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let member = members
            .iter()
            .find(|m| m.server_name == destination.as_str())
            .or_else(|| members.iter().find(|m| short(&m.server_name) == short(destination.as_str())))
            .map(|m| m.server_name.clone())
            .ok_or_else(|| refused(&format!("{destination} is no member of its cluster")))?;
        let running = self.instance().await?.status == "Running";
        let by_copies = running && client.has(Feature::RefreshMigration).await.map_err(EngineError::from)?;
        if running && !by_copies {
            self.engine.set_state(&self.name, StateAction::Stop).await?;
        }
        console::end(self.place, &self.name);
        let to = Move { refresh: by_copies, ..Move::to(member) };
        let moved = client.move_instance(PROJECT, self.name.as_str(), &to).await;
        let started = match running && !by_copies {
            true => self.engine.set_state(&self.name, StateAction::Start).await,
            false => Ok(()),
        };
        moved.map_err(EngineError::from)?;
        Ok(started?)
    }
}

/// A path as a word of the other host's shell, which ssh cannot do without.
fn path_word(path: &Path) -> Result<String, ScriptError> {
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
    line.extend(["ssh", "-o", "BatchMode=yes", "--", host.as_str()].map(str::to_owned));
    line.push(path_word(&script)?);
    line.extend(arguments.iter().cloned());
    Ok(line)
}

fn over_there(
    context: &Context,
    host: &HostName,
    script: &str,
    arguments: &[String],
    document: &str,
) -> Result<(), ScriptError> {
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
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let skip = said.chars().count().saturating_sub(TAIL_CHARS);
    let said = said.chars().skip(skip).collect::<String>().trim().replace('\n', " | ");
    Err(ScriptError::Elsewhere { host: host.to_string(), said })
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
        };
        let line = command_line(&context, &"host2".parse().unwrap(), "restore", &["a".into()]).unwrap();
        insta::assert_snapshot!(line.join(" "), @"runuser -u oneadmin -- ssh -o BatchMode=yes -- host2 /var/tmp/one/vmm/incus/restore a");
        for bad in ["/a b", "/a;b", "/$(x)", "/a'b"] {
            assert!(path_word(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
