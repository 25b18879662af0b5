//! Disks of a node: formatted only when blank, kept over reboots, left unchanged when they have other content.

use crate::common::{Disk, Layers, Node, agent::Trust, command, run, skip};
use rustix::process::Signal;
use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::Path,
};
use stead_model::agent::{DiskOutcome, NodePhase};
use stead_testkit::host::LoopDisk;

const MKFS: &str = "mkfs.ext4";
/// Number of mount(2), as in /proc/PID/syscall.
#[cfg(target_arch = "x86_64")]
const MOUNT_CALL: u32 = 165;
#[cfg(not(target_arch = "x86_64"))]
const MOUNT_CALL: u32 = 40;

fn rule(name: &str, label: &str) -> String {
    format!(
        r#"{{"name":"{name}","match":{{"serial":"{name}"}},"filesystem":"ext4","label":"{label}",
            "mount":"/var/lib/{name}","binds":{{"sub":"/srv/{name}"}}}}"#
    )
}

fn write_at(file: &Path, offset: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

/// Digest of the file: loop devices have a page cache of their own.
fn digest(file: &Path) -> String {
    run("sha256sum", &[file.to_str().unwrap()]).split(' ').next().unwrap().to_owned()
}

#[test]
fn a_blank_disk_is_formatted_once_and_keeps_what_is_written() {
    if skip("a_blank_disk_is_formatted_once_and_keeps_what_is_written", &[MKFS, "losetup"]) {
        return;
    }
    let layers = Layers::new().with_program(MKFS);
    let disk = Disk::blank(64);
    let script = r#"["/bin/sh","-c","echo boot >> /srv/data/boots; cat /var/lib/data/sub/boots"]"#;
    let spec = format!(
        r#""system":{{"disks":[{}],"onboot":[{{"name":"count","command":{script}}}]}}"#,
        rule("data", "mine")
    );
    for (boot, word) in [(1, "formatted"), (2, "found")] {
        let mut node = Node::boot(&layers, &spec, &[("data", &disk)]);
        node.wait_for("] running");
        assert!(node.console().contains(&format!("disk data {word}")), "{}", node.console());
        assert!(!node.console().contains("state is lost"), "{}", node.console());
        assert_eq!(node.log("onboot-count").matches("boot\n").count(), boot, "{}", node.console());
        node.shut_down();
    }
    assert!(command("e2fsck", &["-fn", disk.device.to_str().unwrap()]).status().unwrap().success());
}

#[test]
fn other_content_of_a_disk_is_left_unchanged() {
    if skip("other_content_of_a_disk_is_left_unchanged", &[MKFS, "losetup"]) {
        return;
    }
    let layers = Layers::new().with_program(MKFS);
    let ext4 = |label: &'static str| {
        move |file: &Path| {
            run(MKFS, &["-q", "-F", "-L", label, file.to_str().unwrap()]);
        }
    };
    let mine = ext4("mine");
    let disks = [
        ("foreign", Disk::prepared(16, ext4("theirs")), "labelled \"theirs\""),
        // The root directory's inode, the group descriptors and more are gone, but not the superblock.
        (
            "damaged",
            Disk::prepared(16, move |f| {
                mine(f);
                write_at(f, 2048, &[0xa5; 300_000]);
            }),
            "cannot be mounted",
        ),
        // s_state says that errors were found.
        (
            "errors",
            Disk::prepared(16, move |f| {
                ext4("mine")(f);
                write_at(f, 1024 + 0x3a, &[2]);
            }),
            "recorded errors",
        ),
        ("table", Disk::prepared(16, |f| write_at(f, 510, &[0x55, 0xaa])), "a partition table"),
        ("tail", Disk::prepared(16, |f| write_at(f, (16 << 20) - 512, b"EFI PART")), "data at its end"),
        ("data", Disk::prepared(16, |f| write_at(f, 3_000_000, b"x")), "unknown data"),
    ];
    let before: Vec<String> = disks.iter().map(|(_, d, _)| digest(&d.file)).collect();
    let rules: Vec<String> = disks.iter().map(|(n, _, _)| rule(n, "mine")).collect();
    let attached: Vec<(&str, &Disk)> = disks.iter().map(|(n, d, _)| (*n, d)).collect();
    let spec = format!(r#""system":{{"disks":[{}]}}"#, rules.join(","));
    let node = Node::boot(&layers, &spec, &attached);
    node.wait_for("] running");
    for (name, _, why) in &disks {
        let console = node.console();
        let warning =
            console.lines().find(|l| l.contains(&format!("warning: disk {name}: "))).unwrap_or_default();
        assert!(
            warning.contains(why) && warning.contains("left unchanged"),
            "{name}: no {why:?} in\n{console}"
        );
    }
    node.shut_down();
    run("sync", &[]);
    for ((name, disk, _), before) in disks.iter().zip(before) {
        assert_eq!(digest(&disk.file), before, "{name} was written to");
    }
}

#[test]
fn an_interrupted_format_is_repeated() {
    if skip("an_interrupted_format_is_repeated", &[MKFS, "losetup"]) {
        return;
    }
    let layers = Layers::new().with_program(MKFS);
    // As a power failure leaves it: the mark, and a filesystem without its beginning or its end.
    let disk = Disk::prepared(16, |f| {
        run(MKFS, &["-q", "-F", "-L", "mine", f.to_str().unwrap()]);
        write_at(f, 8192, &[0xa5; 100_000]);
        write_at(f, (16 << 20) - 4096, &stead_node::disks::probe::mark("mine"));
    });
    let spec = format!(r#""system":{{"disks":[{}]}}"#, rule("data", "mine"));
    for word in ["formatted", "found"] {
        let node = Node::boot(&layers, &spec, &[("data", &disk)]);
        node.wait_for("] running");
        assert!(node.console().contains(&format!("disk data {word}")), "{}", node.console());
        node.shut_down();
    }
    assert!(command("e2fsck", &["-fn", disk.device.to_str().unwrap()]).status().unwrap().success());
}

#[test]
fn the_first_blank_disk_is_taken_unless_one_has_the_label() {
    if skip("the_first_blank_disk_is_taken_unless_one_has_the_label", &[MKFS, "losetup"]) {
        return;
    }
    let layers = Layers::new().with_program(MKFS);
    let (foreign, blank, spare) =
        (Disk::prepared(16, |f| write_at(f, 0, b"x")), Disk::blank(16), Disk::blank(16));
    let spec = r#""system":{"disks":[{"name":"any","match":{"label_or_first_blank":"any"},"filesystem":"ext4",
        "label":"any","mount":"/srv/any"}]}"#;
    let node = Node::boot(&layers, spec, &[("a", &foreign), ("b", &blank), ("c", &spare)]);
    node.wait_for("] running");
    assert!(node.console().contains("disk any formatted"), "{}", node.console());
    node.shut_down();
    // The same disk again, although another blank one now comes first.
    let node = Node::boot(&layers, spec, &[("a", &spare), ("b", &blank)]);
    node.wait_for("] running");
    assert!(node.console().contains("disk any found"), "{}", node.console());
    node.shut_down();
    let label = run("blkid", &["-p", "-s", "LABEL", "-o", "value", blank.device.to_str().unwrap()]);
    assert_eq!(label.trim(), "any");
    assert!(!command("blkid", &["-p", spare.device.to_str().unwrap()]).status().unwrap().success());
}

#[test]
fn a_root_on_the_data_disk_is_kept() {
    if skip("a_root_on_the_data_disk_is_kept", &[MKFS, "losetup"]) {
        return;
    }
    let layers = Layers::new().with_program(MKFS);
    let disk = Disk::blank(64);
    let spec = r#""root":{"disk":"data"},"engine":{"kind":"incus","role":"init","address":"127.0.0.1:8443","bridge":"br0"},
        "system":{"onboot":[{"name":"count","command":["/bin/sh","-c","echo boot >> /root/boots; cat /root/boots; echo engine >> /var/lib/incus/x; cat /var/lib/incus/x"]}]}"#;
    for boots in [1, 2] {
        let mut node = Node::boot(&layers, spec, &[("data", &disk)]);
        node.wait_for("onboot count done");
        let log = node.log("onboot-count");
        // The log itself is kept too, so the second boot's lines come after the first's.
        assert_eq!(log.matches(" boot\n").count(), boots * (boots + 1) / 2, "{log}");
        assert_eq!(log.matches(" engine\n").count(), boots * (boots + 1) / 2, "{log}");
        assert!(!node.console().contains("state is lost"), "{}", node.console());
        assert_eq!(node.console().contains("was blank and has been formatted"), boots == 1);
        node.signal(Signal::TERM);
        let (_, console) = node.wait();
        assert!(console.contains("services stopped"), "{console}");
    }
    assert!(command("e2fsck", &["-fn", disk.device.to_str().unwrap()]).status().unwrap().success());
}

#[test]
fn a_root_whose_disk_is_foreign_ends_in_rescue() {
    if skip("a_root_whose_disk_is_foreign_ends_in_rescue", &[MKFS, "losetup"]) {
        return;
    }
    let layers = Layers::new().with_program(MKFS);
    let disk = Disk::prepared(16, |f| write_at(f, 4086, b"SWAPSPACE2"));
    let before = digest(&disk.file);
    let node = Node::boot(&layers, r#""root":{"disk":"data"}"#, &[("data", &disk)]);
    node.wait_for("RESCUE: ");
    assert!(
        node.console().contains("contains swap, not ext4 labelled \"stead-data\"; left unchanged"),
        "{}",
        node.console()
    );
    node.shut_down();
    assert_eq!(digest(&disk.file), before);
}

/// A filesystem in a file, with a disk's file on it. While it is frozen (fsfreeze(8)), writes to the disk block.
struct Host {
    dir: tempfile::TempDir,
    /// The disk, once it is attached.
    device: Option<LoopDisk>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("stead-node-host-").tempdir().unwrap();
        let host = Self { dir, device: None };
        fs::File::create(host.path("outer")).unwrap().set_len(128 << 20).unwrap();
        run(MKFS, &["-q", &host.path("outer")]);
        for folder in ["on", "in"] {
            fs::create_dir(host.path(folder)).unwrap();
        }
        run("mount", &["-o", "loop", &host.path("outer"), &host.path("on")]);
        host
    }
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
    /// A disk whose last user was killed: its filesystem has a journal to replay.
    fn attach_disk_of_a_killed_node(&mut self, label: &str) {
        let (disk, inside) = (self.path("on/disk"), self.path("in"));
        fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        run(MKFS, &["-q", "-L", label, &disk]);
        run("mount", &["-o", "loop", &disk, &inside]);
        fs::create_dir(self.path("in/sub")).unwrap();
        fs::write(self.path("in/sub/kept"), "kept").unwrap();
        run("sync", &["-f", &inside]);
        // A copy while it is mounted.
        fs::copy(&disk, self.path("copy")).unwrap();
        run("umount", &[&inside]);
        fs::copy(self.path("copy"), &disk).unwrap();
        run("sync", &["-f", &self.path("on")]);
        self.device = Some(LoopDisk::of(Path::new(&disk)));
    }
    fn freeze(&self) {
        run("fsfreeze", &["--freeze", &self.path("on")]);
    }
    fn thaw(&self) {
        run("fsfreeze", &["--unfreeze", &self.path("on")]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Each of these fails when there is nothing to undo.
        let _ = command("fsfreeze", &["--unfreeze", &self.path("on")]).output();
        for inner in ["in", "on"] {
            if inner == "on" {
                self.device = None;
            }
            let _ = command("umount", &[&self.path(inner)]).output();
        }
    }
}

#[tokio::test]
async fn the_agent_answers_while_a_mount_replays_a_journal() {
    if skip("the_agent_answers_while_a_mount_replays_a_journal", &[MKFS, "losetup", "fsfreeze"]) {
        return;
    }
    let layers = Layers::new();
    let mut host = Host::new();
    host.attach_disk_of_a_killed_node("mine");
    let disk = host.device.as_ref().unwrap().device.clone();
    let trust = Trust::new();
    let spec = format!(r#"{},"system":{{"disks":[{}]}}"#, trust.spec(), rule("data", "mine"));
    host.freeze();
    // Declared after the host and so dropped before it: a failure here leaves no mount behind.
    let mut node = Node::boot_with_devices(&layers, &spec, &[("data", &disk)]);
    node.wait_for("agent listening");
    let agent = trust.client(&mut node);
    // The mount is in progress when one of init's threads waits for the disk, uninterruptibly, in mount(2).
    let init = node.init().as_raw_nonzero();
    node.wait_until("a thread that mounts", || {
        let tasks = fs::read_dir(format!("/proc/{init}/task")).unwrap().flatten();
        tasks.into_iter().any(|t| {
            let syscall = fs::read_to_string(t.path().join("syscall")).unwrap_or_default();
            syscall.split(' ').next().is_some_and(|n| n.parse() == Ok(MOUNT_CALL))
        })
    });
    for _ in 0..20 {
        let status = agent.status().await.unwrap();
        assert_eq!((status.phase, status.disks.len()), (NodePhase::Booting, 0), "{status:?}");
    }
    host.thaw();
    node.wait_for("] running");
    let status = agent.status().await.unwrap();
    assert_eq!(status.disks[0].outcome, DiskOutcome::Found, "{status:?}");
    assert_eq!(node.read("/srv/data/kept"), "kept");
    node.shut_down();
}
