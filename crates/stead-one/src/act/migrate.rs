//! migrate: to another host that has the same datastores, or another member of the cluster.
//!
//! The disks are OpenNebula's, so they are not moved but mapped over there: the instance is saved here and restored on
//! the other host, by its own `restore` script, over the connection that OpenNebula's hosts have among each other. An
//! instance that was imported has its root in the engine's pool: the engine moves it, within its cluster.

use super::{ActError, Job, Surroundings};
use crate::{
    console,
    disks::DiskError,
    document::Vm,
    engine::{EngineError, PROJECT},
    ids::{InstanceName, VmId},
    script::HostName,
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

impl Job<'_, '_> {
    pub(super) async fn migrate(
        &mut self,
        vm: &Vm,
        document: &str,
        destination: &HostName,
    ) -> Result<(), ActError> {
        if vm.is_imported() {
            return self.move_imported(destination).await;
        }
        let snapshots = self.engine.client.snapshots(PROJECT, self.name.as_str()).await;
        if !snapshots.map_err(EngineError::from)?.is_empty() {
            return Err(ActError::Snapshots(self.name.clone()));
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
        let taken = over_there(self.surroundings, destination, "restore", &arguments, document);
        if let Err(error) = taken {
            self.log.error(format_args!("{destination} did not take it over: it is started here again"));
            self.restore(&checkpoint, Some(vm.clone()), Some(document.to_owned())).await?;
            let _ = std::fs::remove_file(&checkpoint);
            return Err(error);
        }
        let _ = std::fs::remove_file(&checkpoint);
        Ok(())
    }

    async fn move_imported(&mut self, destination: &HostName) -> Result<(), ActError> {
        let refused =
            |why: &str| ActError::Refused(format!("instance {} cannot be migrated: {why}", self.name));
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

/// `migrate_local`: has the VM's host do it.
pub(super) fn ask(
    surroundings: &Surroundings,
    from: &HostName,
    destination: &HostName,
    name: &InstanceName,
    vm: Option<VmId>,
    document: &str,
) -> Result<String, ActError> {
    let vm = vm.map(|v| v.to_string()).unwrap_or_default();
    let arguments = [name.to_string(), destination.to_string(), from.to_string(), vm, from.to_string()];
    over_there(surroundings, from, "migrate", &arguments, document).map(|()| String::new())
}

/// A path as a word of the other host's shell, which ssh cannot do without.
fn path_word(path: &Path) -> Result<String, ActError> {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        Ok(text)
    } else {
        Err(ActError::Refused(format!("{text:?} cannot be told to another host: it has odd characters")))
    }
}

/// The command that calls a script on another host, as the user that OpenNebula is there.
fn command_line(
    surroundings: &Surroundings,
    host: &HostName,
    script: &str,
    arguments: &[String],
) -> Result<Vec<String>, ActError> {
    let scripts = surroundings.remotes().join("vmm").join(surroundings.driver().name());
    let script: PathBuf = scripts.join(script);
    let mut line = Vec::new();
    if let Some(user) = &surroundings.user {
        line.extend(["runuser", "-u", user.as_str(), "--"].map(str::to_owned));
    }
    line.extend(["ssh", "-o", "BatchMode=yes", "--", host.as_str()].map(str::to_owned));
    line.push(path_word(&script)?);
    line.extend(arguments.iter().cloned());
    Ok(line)
}

fn over_there(
    surroundings: &Surroundings,
    host: &HostName,
    script: &str,
    arguments: &[String],
    document: &str,
) -> Result<(), ActError> {
    let line = command_line(surroundings, host, script, arguments)?;
    let failed = |source| {
        let error = CommandError::Io { operation: "run", program: line[0].clone(), source };
        ActError::Disk(DiskError::Tool(error))
    };
    let mut command =
        Program::new(&line[0]).args(&line[1..]).command().map_err(|e| ActError::Disk(e.into()))?;
    if let Some(home) = std::env::var_os("HOME").filter(|_| surroundings.user.is_none()) {
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
    Err(ActError::Elsewhere { host: host.to_string(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_hosts_shell_gets_plain_words() {
        let surroundings = Surroundings {
            script_path: Some("/var/tmp/one/vmm/incus/migrate".into()),
            program: "/usr/bin/stead".into(),
            run: "/run/stead-one".into(),
            sys: "/sys".into(),
            user: Some("oneadmin".into()),
        };
        let line = command_line(&surroundings, &"host2".parse().unwrap(), "restore", &["a".into()]).unwrap();
        insta::assert_snapshot!(line.join(" "), @"runuser -u oneadmin -- ssh -o BatchMode=yes -- host2 /var/tmp/one/vmm/incus/restore a");
        for bad in ["/a b", "/a;b", "/$(x)", "/a'b"] {
            assert!(path_word(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
