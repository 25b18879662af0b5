//! `stead one check`: whether a host meets the driver's requirements.
//!
//! Owns the checks and their fixes. Changes nothing.

use crate::{
    context::Context,
    engine::{Engine, EngineError},
    lxdrc::Lxdrc,
};
use serde::Serialize;
use std::{fs, path::Path};

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is missing.
    Good,
    /// Some VMs cannot run here.
    Limited,
    /// No VM can run here.
    Bad,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Subject of the check.
    pub name: &'static str,
    /// The outcome.
    pub verdict: Verdict,
    /// What was found, and what fixes it.
    pub text: String,
}

fn finding(name: &'static str, good: bool, otherwise: Verdict, yes: &str, no: &str) -> Finding {
    let verdict = if good { Verdict::Good } else { otherwise };
    Finding { name, verdict, text: (if good { yes } else { no }).to_owned() }
}

/// Checks the host.
pub async fn check(context: &Context, rc: &Lxdrc) -> Vec<Finding> {
    use Verdict::{Bad, Limited};
    let has = |programs: &[&str]| programs.iter().all(|p| stead_os::command::find(p).is_some());
    let mut found = Vec::new();
    match Engine::connect(context.driver(), rc).await {
        Ok(engine) => {
            let text =
                format!("{} answers, state in {}", engine.client.dialect(), engine.directory.display());
            found.push(Finding { name: "engine", verdict: Verdict::Good, text });
            found.push(match engine.client.storage_pools().await.map_err(EngineError::from) {
                Ok(pools) => finding(
                    "storage pool",
                    pools.iter().any(|p| p.driver == "dir" && rc.storage_pool.as_ref().is_none_or(|n| *n == p.name)),
                    Bad,
                    "a pool with the driver dir exists",
                    "no usable pool with the driver dir: create one with `incus storage create one dir` or `lxc storage create one dir`",
                ),
                Err(error) => Finding { name: "storage pool", verdict: Bad, text: stead_os::chain(&error) },
            });
            found.push(finding(
                "shifted mounts",
                engine.shifts,
                Limited,
                "the kernel shifts the owners of disks for unprivileged instances",
                "the engine cannot shift owners: root in an unprivileged instance has no rights on its other disks",
            ));
        }
        Err(_) if !rustix::process::geteuid().is_root() => {
            let text = "not checked, because this needs root: run this check as root".to_owned();
            found.push(Finding { name: "engine", verdict: Limited, text });
        }
        Err(error) => found.push(Finding { name: "engine", verdict: Bad, text: stead_os::chain(&error) }),
    }
    found.push(finding(
        "datastores",
        rc.datastore_location.is_dir(),
        Bad,
        &format!("{} exists", rc.datastore_location.display()),
        &format!(
            "{} does not exist: mount it, or set :datastore_location: in lxdrc",
            rc.datastore_location.display()
        ),
    ));
    found.push(finding(
        "loop devices",
        Path::new("/dev/loop-control").exists() && has(&["blkid", "partx"]),
        Bad,
        "blkid and partx are installed, /dev/loop-control exists; losetup and kpartx are not needed",
        "needs /dev/loop-control (modprobe loop) and blkid, partx (Debian: util-linux)",
    ));
    for (name, programs, package) in [
        ("ext4", &["mkfs.ext4", "e2fsck", "tune2fs", "resize2fs"][..], "e2fsprogs"),
        ("xfs", &["mkfs.xfs", "xfs_admin", "xfs_growfs"][..], "xfsprogs"),
        ("btrfs", &["mkfs.btrfs", "btrfstune", "btrfs"][..], "btrfs-progs"),
    ] {
        let no = format!("disks with {name} need {} (Debian: {package})", programs.join(", "));
        found.push(finding(name, has(programs), Limited, "its programs are installed", &no));
    }
    let nbd = Path::new("/sys/block/nbd0").exists() && has(&["qemu-nbd"]);
    let export = Path::new("/dev/fuse").exists() && has(&["qemu-storage-daemon"]);
    found.push(finding(
        "qcow2",
        nbd || export,
        Limited,
        if nbd { "by qemu-nbd" } else { "by qemu-storage-daemon and FUSE" },
        "images need qemu-nbd (Debian: qemu-utils) and the nbd module, or qemu-storage-daemon (qemu-system-common) and /dev/fuse",
    ));
    found.push(finding(
        "ceph",
        has(&["rbd-nbd"]),
        Limited,
        "by rbd-nbd",
        "Ceph images need rbd-nbd (Debian: rbd-nbd)",
    ));
    let iso = fs::read_to_string("/proc/filesystems").is_ok_and(|t| t.contains("iso9660"));
    let modular =
        Path::new("/lib/modules").join(rustix::system::uname().release().to_string_lossy().as_ref());
    found.push(finding(
        "context disk",
        iso || modular.join("kernel/fs/isofs").exists(),
        Bad,
        "the kernel reads ISO 9660",
        "the kernel lacks ISO 9660 (isofs): VMs with a CONTEXT cannot be deployed",
    ));
    found.push(finding(
        "monitoring",
        has(&["ruby", "ps", "lspci"]),
        Limited,
        "what OpenNebula's client and probes call is there",
        "OpenNebula's client needs ruby, ps and lspci (packages ruby, procps, pciutils): without them the host has no monitoring",
    ));
    found.push(sudo(context));
    found
}

/// Scripts run as oneadmin, but mounting needs root.
fn sudo(context: &Context) -> Finding {
    let rule = sudoers(&context.program);
    // The rule covers the program with these arguments, not the program alone.
    let called = [context.program.as_os_str(), "one".as_ref(), "run".as_ref(), "poll".as_ref()];
    let ask = ["sudo", "-n", "-l", "--"];
    let no = |why: &str| format!("{why}: put into /etc/sudoers.d/stead-one: {rule}");
    if context.user.is_some() {
        return finding("sudo", true, Verdict::Bad, "this was called by sudo", "");
    }
    if !rustix::process::geteuid().is_root() {
        let allowed = stead_os::Program::new(ask[0]).args(&ask[1..]).args(called).run().is_ok();
        let no = no("this user may not run the driver as root");
        return finding("sudo", allowed, Verdict::Bad, "this user may run the driver as root", &no);
    }
    // Root may anything: what counts is whether oneadmin may.
    let asked = stead_os::Program::new("runuser").args(["-u", ONEADMIN, "--"]).args(ask).args(called).run();
    match asked {
        Ok(_) => finding("sudo", true, Verdict::Bad, "oneadmin may run the driver as root", ""),
        Err(error) => {
            let no = no(&format!("oneadmin may not run the driver as root ({})", stead_os::chain(&error)));
            finding("sudo", false, Verdict::Bad, "", &no)
        }
    }
}

/// The user that OpenNebula is on its hosts.
const ONEADMIN: &str = "oneadmin";

/// The rule that oneadmin needs.
pub fn sudoers(program: &Path) -> String {
    format!("oneadmin ALL=(root) NOPASSWD: {} one run *", program.display())
}
