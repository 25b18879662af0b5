//! The scripts and their argument vectors: what `one_vmm_exec` and the probes' runner call.
//!
//! Owns which script takes which arguments and which of them reads stdin. Does not own what a script does.
//! Source: `one_vmm_exec.rb` of OpenNebula 5.8 to 7.x, which appends `<vmid> <host>` to the arguments of each action.

use crate::ids::{DiskId, IdError, InstanceName, SnapshotId, SnapshotName, VmId};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

macro_rules! scripts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal ($($argument:literal)*) $stdin:ident;)*) => {
        /// A script of `vmm/<driver>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Script {
            $($(#[$doc])* $variant,)*
        }
        impl Script {
            /// All of them, as they are installed.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// Its file's name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
            /// Its arguments before `<vmid> <host>`.
            pub fn arguments(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($argument,)*],)* }
            }
            /// Whether it reads stdin. One that need not must not: 5.8 sends some of them nothing, and reading would
            /// swallow the commands that come down the same ssh connection.
            pub fn reads_stdin(self) -> bool {
                match self { $(Self::$variant => scripts!(@$stdin),)* }
            }
        }
    };
    (@reads) => { true };
    (@ignores) => { false };
}

scripts! {
    /// Makes the instance and starts it.
    Deploy = "deploy" ("deployment file" "host") reads;
    /// Stops it cleanly and frees what it has on the host.
    Shutdown = "shutdown" ("deploy id" "host") ignores;
    /// As `shutdown`, without asking.
    Cancel = "cancel" ("deploy id" "host") ignores;
    /// Restarts it cleanly.
    Reboot = "reboot" ("deploy id" "host") ignores;
    /// Restarts it without asking.
    Reset = "reset" ("deploy id" "host") ignores;
    /// Stops it with its state kept.
    Save = "save" ("deploy id" "checkpoint file" "host") ignores;
    /// Goes on from what `save` kept.
    Restore = "restore" ("checkpoint file" "host" "deploy id") reads;
    /// Moves it to another host.
    Migrate = "migrate" ("deploy id" "destination host" "host") reads;
    /// As `migrate`, called on the frontend.
    MigrateLocal = "migrate_local" ("deploy id" "destination host" "host") reads;
    /// Adds a disk.
    AttachDisk = "attach_disk" ("deploy id" "path" "target" "index" "document") reads;
    /// Takes a disk away.
    DetachDisk = "detach_disk" ("deploy id" "path" "target" "index") reads;
    /// Adds a network interface.
    AttachNic = "attach_nic" ("deploy id" "MAC" "bridge" "model" "VN_MAD" "target") reads;
    /// Takes a network interface away.
    DetachNic = "detach_nic" ("deploy id" "MAC") reads;
    /// Takes the context disk away before it is made anew.
    Prereconfigure = "prereconfigure" ("deploy id" "context target") reads;
    /// Puts the new context disk in.
    Reconfigure = "reconfigure" ("deploy id" "context target" "context path") reads;
    /// Makes a snapshot.
    SnapshotCreate = "snapshot_create" ("deploy id" "snapshot id") ignores;
    /// Goes back to a snapshot.
    SnapshotRevert = "snapshot_revert" ("deploy id" "snapshot name") ignores;
    /// Deletes a snapshot.
    SnapshotDelete = "snapshot_delete" ("deploy id" "snapshot name") ignores;
    /// Grows a disk.
    ResizeDisk = "resize_disk" ("deploy id" "disk id" "size in MB" "document" "host") reads;
    /// Changes CPU and memory.
    Resize = "resize" ("deploy id") reads;
    /// Tells how instances are (5.8, 5.10).
    Poll = "poll" ("deploy id" "host") ignores;
}

impl FromStr for Script {
    type Err = CallError;
    fn from_str(name: &str) -> Result<Self, CallError> {
        let known = Self::ALL.iter().copied().find(|s| s.name() == name);
        known.ok_or_else(|| CallError::Script(name.chars().take(80).collect()))
    }
}
impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A call that is not one of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No such script.
    #[error("there is no script {0:?}")]
    Script(String),
    /// Too few or too many arguments.
    #[error("{script} takes {} arguments ({}, vm id, host), not {found}", .script.arguments().len() + 2, .script.arguments().join(", "))]
    Count {
        /// Which.
        script: Script,
        /// How many were given.
        found: usize,
    },
    /// An argument is not what it has to be.
    #[error(transparent)]
    Argument(#[from] IdError),
    /// A path that leaves its place, or cannot be one.
    #[error("{what} is {found:?}, not an absolute path without ..")]
    Path {
        /// Which argument.
        what: &'static str,
        /// What it was.
        found: String,
    },
}

/// What is asked for, by arguments alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The rest is in the document on stdin.
    Deploy,
    /// Also `cancel`, which is forced.
    Stop {
        /// The instance.
        name: InstanceName,
        /// Without asking it.
        force: bool,
    },
    /// Also `reset`, which is forced.
    Restart {
        /// The instance.
        name: InstanceName,
        /// Without asking it.
        force: bool,
    },
    /// `save`.
    Save {
        /// The instance.
        name: InstanceName,
        /// Where the state is written.
        checkpoint: PathBuf,
    },
    /// `restore`.
    Restore {
        /// The instance.
        name: InstanceName,
        /// What `save` wrote.
        checkpoint: PathBuf,
    },
    /// `migrate` and `migrate_local`.
    Migrate {
        /// The instance.
        name: InstanceName,
        /// To which host.
        destination: HostName,
        /// From which host.
        from: HostName,
        /// Called on the frontend.
        local: bool,
    },
    /// The disk is the one of the document that has ATTACH=YES.
    AttachDisk {
        /// The instance.
        name: InstanceName,
    },
    /// As [`Ask::AttachDisk`].
    DetachDisk {
        /// The instance.
        name: InstanceName,
    },
    /// The interface of the document with this MAC.
    AttachNic {
        /// The instance.
        name: InstanceName,
        /// As the document writes it.
        mac: String,
    },
    /// As [`Ask::AttachNic`].
    DetachNic {
        /// The instance.
        name: InstanceName,
        /// As the document writes it.
        mac: String,
    },
    /// `prereconfigure`.
    DropContext {
        /// The instance.
        name: InstanceName,
    },
    /// `reconfigure`; without a path there is no context and nothing to do.
    PutContext {
        /// The instance.
        name: InstanceName,
        /// Whether there is a context disk.
        present: bool,
    },
    /// `snapshot_create`.
    SnapshotCreate {
        /// The instance.
        name: InstanceName,
        /// OpenNebula's number for it.
        id: SnapshotId,
    },
    /// `snapshot_revert`.
    SnapshotRevert {
        /// The instance.
        name: InstanceName,
        /// As `snapshot_create` printed it.
        snapshot: SnapshotName,
    },
    /// `snapshot_delete`.
    SnapshotDelete {
        /// The instance.
        name: InstanceName,
        /// As `snapshot_create` printed it.
        snapshot: SnapshotName,
    },
    /// `resize_disk`.
    ResizeDisk {
        /// The instance.
        name: InstanceName,
        /// Which disk.
        disk: DiskId,
        /// New size in units of 2^20 bytes.
        size_mib: u64,
    },
    /// CPU, VCPU and MEMORY are in the document.
    Resize {
        /// The instance.
        name: InstanceName,
    },
    /// One instance.
    Poll {
        /// The instance.
        name: InstanceName,
    },
    /// `poll -t`: all of the host.
    PollAll,
}

/// A host as OpenNebula names it, safe as an argument of `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for HostName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = (1..=253).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_'))
            && !text.starts_with('-');
        if allowed {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::new("the host", text, "a host's name or address"))
        }
    }
}
impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A call, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub ask: Ask,
    /// The VM; absent for `poll -t`.
    pub vm: Option<VmId>,
}

/// Reads the arguments of `script`, without its own name.
///
/// # Errors
/// [`CallError`].
pub fn parse<S: AsRef<str>>(script: Script, arguments: &[S]) -> Result<Call, CallError> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    if script == Script::Poll && matches!(arguments[..], [] | ["-t"]) {
        return Ok(Call { ask: Ask::PollAll, vm: None });
    }
    let own = script.arguments().len();
    if arguments.len() != own + 2 {
        return Err(CallError::Count { script, found: arguments.len() });
    }
    let vm: VmId = arguments[own].parse()?;
    // Only what is used of them is looked at: the bridge, the model and the index repeat what the document says.
    let name = |at: usize| arguments[at].parse::<InstanceName>();
    let ask = match script {
        Script::Deploy => Ask::Deploy,
        Script::Shutdown => Ask::Stop { name: name(0)?, force: false },
        Script::Cancel => Ask::Stop { name: name(0)?, force: true },
        Script::Reboot => Ask::Restart { name: name(0)?, force: false },
        Script::Reset => Ask::Restart { name: name(0)?, force: true },
        Script::Save => Ask::Save { name: name(0)?, checkpoint: path("the checkpoint file", arguments[1])? },
        Script::Restore => {
            Ask::Restore { name: name(2)?, checkpoint: path("the checkpoint file", arguments[0])? }
        }
        Script::Migrate | Script::MigrateLocal => Ask::Migrate {
            name: name(0)?,
            destination: arguments[1].parse()?,
            from: arguments[2].parse()?,
            local: script == Script::MigrateLocal,
        },
        Script::AttachDisk => Ask::AttachDisk { name: name(0)? },
        Script::DetachDisk => Ask::DetachDisk { name: name(0)? },
        Script::AttachNic => Ask::AttachNic { name: name(0)?, mac: arguments[1].to_owned() },
        Script::DetachNic => Ask::DetachNic { name: name(0)?, mac: arguments[1].to_owned() },
        Script::Prereconfigure => Ask::DropContext { name: name(0)? },
        Script::Reconfigure => Ask::PutContext { name: name(0)?, present: !arguments[2].is_empty() },
        Script::SnapshotCreate => Ask::SnapshotCreate { name: name(0)?, id: arguments[1].parse()? },
        Script::SnapshotRevert => Ask::SnapshotRevert { name: name(0)?, snapshot: arguments[1].parse()? },
        Script::SnapshotDelete => Ask::SnapshotDelete { name: name(0)?, snapshot: arguments[1].parse()? },
        Script::ResizeDisk => Ask::ResizeDisk {
            name: name(0)?,
            disk: arguments[1].parse()?,
            size_mib: arguments[2]
                .parse()
                .map_err(|_| IdError::new("the disk's size", arguments[2], "a number of megabytes"))?,
        },
        Script::Resize => Ask::Resize { name: name(0)? },
        Script::Poll => Ask::Poll { name: name(0)? },
    };
    Ok(Call { ask, vm: Some(vm) })
}

/// An absolute path that stays where it says. Double slashes are OpenNebula's habit and harmless.
pub(crate) fn path(what: &'static str, text: &str) -> Result<PathBuf, CallError> {
    let climbs = Path::new(text).components().any(|c| matches!(c, std::path::Component::ParentDir));
    if !text.starts_with('/') || climbs || text.chars().any(char::is_control) || text.len() > 4000 {
        return Err(CallError::Path { what, found: text.chars().take(80).collect() });
    }
    // Collects the components again: no `//`, no `/./`.
    Ok(Path::new(text).components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call(line: &str) -> Result<Call, CallError> {
        let mut words: Vec<&str> = line.split(' ').map(|w| if w == "''" { "" } else { w }).collect();
        parse(words.remove(0).parse()?, &words)
    }
    fn one7() -> InstanceName {
        InstanceName::of(VmId(7))
    }

    #[test]
    fn every_script_as_one_vmm_exec_calls_it() {
        let name = one7();
        let mac = "02:00:c0:a8:00:01".to_owned();
        let checkpoint = PathBuf::from("/var/lib/one/datastores/0/7/checkpoint");
        let (host1, host2): (HostName, HostName) = ("host1".parse().unwrap(), "host2".parse().unwrap());
        let calls = [
            ("deploy /var/lib/one//datastores/0/7/deployment.0 host1 7 host1", Ask::Deploy),
            ("shutdown one-7 host1 7 host1", Ask::Stop { name: name.clone(), force: false }),
            ("cancel one-7 host1 7 host1", Ask::Stop { name: name.clone(), force: true }),
            ("reboot one-7 host1 7 host1", Ask::Restart { name: name.clone(), force: false }),
            ("reset one-7 host1 7 host1", Ask::Restart { name: name.clone(), force: true }),
            (
                "save one-7 /var/lib/one//datastores/0/7/checkpoint host1 7 host1",
                Ask::Save { name: name.clone(), checkpoint: checkpoint.clone() },
            ),
            (
                "restore /var/lib/one//datastores/0/7/checkpoint host1 one-7 7 host1",
                Ask::Restore { name: name.clone(), checkpoint },
            ),
            (
                "migrate one-7 host2 host1 7 host1",
                Ask::Migrate {
                    name: name.clone(),
                    destination: host2.clone(),
                    from: host1.clone(),
                    local: false,
                },
            ),
            (
                "migrate_local one-7 host2 host1 7 host1",
                Ask::Migrate { name: name.clone(), destination: host2, from: host1, local: true },
            ),
            (
                "attach_disk one-7 /var/lib/one//datastores/0/7/disk.3 vdd 3 PFZNLz4= 7 host1",
                Ask::AttachDisk { name: name.clone() },
            ),
            (
                "detach_disk one-7 /var/lib/one//datastores/0/7/disk.3 vdd 3 7 host1",
                Ask::DetachDisk { name: name.clone() },
            ),
            (
                "attach_nic one-7 02:00:c0:a8:00:01 br0 - fw one-7-1 7 host1",
                Ask::AttachNic { name: name.clone(), mac: mac.clone() },
            ),
            ("detach_nic one-7 02:00:c0:a8:00:01 7 host1", Ask::DetachNic { name: name.clone(), mac }),
            ("prereconfigure one-7 hda 7 host1", Ask::DropContext { name: name.clone() }),
            ("prereconfigure one-7 '' 7 host1", Ask::DropContext { name: name.clone() }),
            (
                "reconfigure one-7 hda /var/lib/one//datastores/0/7/disk.1 7 host1",
                Ask::PutContext { name: name.clone(), present: true },
            ),
            ("reconfigure one-7 '' '' 7 host1", Ask::PutContext { name: name.clone(), present: false }),
            (
                "snapshot_create one-7 0 7 host1",
                Ask::SnapshotCreate { name: name.clone(), id: SnapshotId(0) },
            ),
            (
                "snapshot_revert one-7 snap-0 7 host1",
                Ask::SnapshotRevert { name: name.clone(), snapshot: SnapshotName::of(SnapshotId(0)) },
            ),
            (
                "snapshot_delete one-7 snap-0 7 host1",
                Ask::SnapshotDelete { name: name.clone(), snapshot: SnapshotName::of(SnapshotId(0)) },
            ),
            (
                "resize_disk one-7 2 4096 PFZNLz4= host1 7 host1",
                Ask::ResizeDisk { name: name.clone(), disk: DiskId(2), size_mib: 4096 },
            ),
            ("resize one-7 7 host1", Ask::Resize { name: name.clone() }),
            ("poll one-7 host1 7 host1", Ask::Poll { name }),
        ];
        for (line, ask) in &calls {
            assert_eq!(call(line), Ok(Call { ask: ask.clone(), vm: Some(VmId(7)) }), "{line}");
        }
        let called: std::collections::BTreeSet<&str> =
            calls.iter().filter_map(|(line, _)| line.split(' ').next()).collect();
        assert_eq!(called.len(), Script::ALL.len(), "a script has no example");
        assert_eq!(call("poll -t"), Ok(Call { ask: Ask::PollAll, vm: None }));
        assert_eq!(call("poll"), Ok(Call { ask: Ask::PollAll, vm: None }));
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
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
            assert!(call(bad).is_err(), "{bad}");
        }
        insta::assert_snapshot!(
            call("shutdown one-7").unwrap_err(),
            @"shutdown takes 4 arguments (deploy id, host, vm id, host), not 1"
        );
    }

    #[test]
    fn scripts_that_5_8_sends_nothing_read_nothing() {
        for script in ["poll", "reboot", "reset", "snapshot_create", "snapshot_revert", "snapshot_delete"] {
            assert!(!script.parse::<Script>().unwrap().reads_stdin(), "{script}");
        }
        assert!(Script::Deploy.reads_stdin());
    }

    proptest! {
        #[test]
        fn any_arguments_are_answered(which in 0..Script::ALL.len(), arguments: Vec<String>) {
            let _ = parse(Script::ALL[which], &arguments);
        }
    }
}
