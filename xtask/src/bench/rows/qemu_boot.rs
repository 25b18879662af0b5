//! Power-on to agent ready in QEMU, against a busybox init on the same kernel, and against a Debian with systemd and
//! the same packages. Both get the machine, CPUs, memory and kernel parameters of Stead's own running QEMU; busybox
//! also gets its drives, network card and random number generator, so that only what follows the kernel differs.

use crate::bench::{
    Bench,
    measure::{median, output},
    row::{Row, Skip},
    rows::cpio,
    stead::{needs_program, needs_root},
};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use stead_model::{Recipe, recipe::Base};

/// Limit on the ratio to an init that does nothing.
const BUSYBOX_GOAL: f64 = 1.5;
/// Limit on the ratio to systemd: a node must not be slower than the system it replaces.
const SYSTEMD_GOAL: f64 = 1.0;
const IMAGE: &str = "base";
const CLUSTER_NAME: &str = "bench-qemu";
const CLUSTER: &str = "image: base\nnodes: 1\nmachine: { backend: qemu }\nengine: none\n";
/// Printed on the console by the compared systems once they are up.
const READY: &str = "STEAD-BENCH-READY";
/// Under emulation a full systemd takes half a minute, on a loaded machine several times that.
const PATIENCE: Duration = Duration::from_secs(300);
/// The last message of a kernel that panics.
const PANIC: &str = "Kernel panic - not syncing";
/// How often a system whose kernel panics is booted again.
const RETRIES: usize = 2;
/// Size of the replacement for the node spec's drive, which ends with the machine.
const SPEC_DRIVE_BYTES: u64 = 64 << 10;
/// Free space in the Debian's filesystem.
const SLACK_BYTES: u64 = 256 << 20;
/// Ticks per second in /proc/PID/stat: always 100 in user space.
const TICKS_PER_SECOND: f64 = 100.0;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    needs_root()?;
    for program in ["qemu-system-x86_64", "mmdebstrap", "mkfs.ext4", "busybox"] {
        needs_program(program)?;
    }
    bench.image(IMAGE)?;
    let vmlinux = bench
        .artifacts(IMAGE)?
        .into_iter()
        .find_map(|(what, path)| (what == "vmlinux").then_some(path))
        .with_context(|| format!("image {IMAGE} has no vmlinux"))?;
    let work = tempfile::tempdir()?;
    let initrd = work.path().join("busybox.cpio");
    fs::write(&initrd, busybox_initrd()?)?;
    let spec_drive = work.path().join("spec.tar");
    fs::File::create(&spec_drive)?.set_len(SPEC_DRIVE_BYTES)?;
    let debian = Debian::build(bench, work.path())?;

    let (mut ours, mut busybox, mut systemd) = (Vec::new(), Vec::new(), Vec::new());
    let runs = bench.slow_runs();
    for run in 0..runs {
        let cluster = bench.cluster(CLUSTER_NAME, CLUSTER)?;
        cluster.up()?;
        let machine = Qemu::running(CLUSTER_NAME, &spec_drive)?;
        ours.push(machine.age_s);
        cluster.check_healthy(1)?;
        cluster.down()?;
        busybox.push(machine.boot(&vmlinux, &initrd, &machine.devices, "")?);
        let drive = format!("file={},if=virtio,format=raw", debian.disk.display());
        let drive = ["-drive".to_owned(), drive];
        systemd.push(machine.boot(&vmlinux, &debian.initrd, &drive, "root=/dev/vda rw")?);
        eprintln!(
            "bench:   run {} of {runs}: {:.2}, busybox {:.2}, systemd {:.2}",
            run + 1,
            ours[run],
            busybox[run],
            systemd[run]
        );
    }
    let ours = median(ours);
    Ok(vec![
        Row::against(
            "qemu power-on to agent ready, against busybox",
            "s",
            ours,
            median(busybox),
            BUSYBOX_GOAL,
        ),
        Row::against(
            "qemu power-on to agent ready, against systemd",
            "s",
            ours,
            median(systemd),
            SYSTEMD_GOAL,
        ),
    ])
}

/// The QEMU of Stead's machine: the options to give to the others, and how long it has been running.
#[derive(Debug)]
struct Qemu {
    program: String,
    options: Vec<String>,
    devices: Vec<String>,
    parameters: String,
    age_s: f64,
}

impl Qemu {
    /// Finds the QEMU of a cluster, right after `up` reported its agent ready.
    fn running(cluster: &str, spec_drive: &Path) -> Result<Self> {
        let uptime = fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
        let now: f64 =
            uptime.split(' ').next().unwrap_or_default().parse().context("/proc/uptime has no number")?;
        for entry in fs::read_dir("/proc").context("cannot list /proc")?.flatten() {
            // Processes come and go.
            let Ok(bytes) = fs::read(entry.path().join("cmdline")) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let argv: Vec<&str> = text.split_terminator('\0').collect();
            let is_qemu = argv.first().is_some_and(|a| a.contains("qemu-system"));
            if !is_qemu || !argv.iter().any(|a| a.contains(cluster)) {
                continue;
            }
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            return Ok(Self { age_s: now - started_s(&stat)?, ..Self::of_argv(&argv, spec_drive)? });
        }
        bail!("no QEMU of cluster {cluster} is running")
    }

    fn of_argv(argv: &[&str], spec_drive: &Path) -> Result<Self> {
        let value =
            |option: &str| argv.iter().position(|a| *a == option).and_then(|i| argv.get(i + 1).copied());
        let options = ["-machine", "-accel", "-cpu", "-smp", "-m"]
            .into_iter()
            .filter_map(|option| Some([option.to_owned(), value(option)?.to_owned()]))
            .flatten()
            .collect();
        let devices = argv
            .windows(2)
            .filter(|pair| ["-object", "-blockdev", "-netdev", "-device"].contains(&pair[0]))
            .flat_map(|pair| [pair[0].to_owned(), stand_in(pair[1], spec_drive)])
            .collect();
        // The paths of init and console differ; the other parameters make the kernel boot fast.
        let parameters = value("-append")
            .unwrap_or_default()
            .split_whitespace()
            .filter(|p| {
                !["console=", "root=", "init=", "rdinit=", "stead"].iter().any(|own| p.starts_with(own))
            })
            .collect::<Vec<_>>()
            .join(" ");
        let program = (*argv.first().context("an empty command line")?).to_owned();
        Ok(Self { program, options, devices, parameters, age_s: 0.0 })
    }

    /// Seconds from starting QEMU until its system reports that it is up. A kernel that panics is booted again: under
    /// emulation with several CPUs one in some dozens does, and that is not compared here.
    fn boot(&self, kernel: &Path, initrd: &Path, more: &[String], parameters: &str) -> Result<f64> {
        let mut last = self.boot_once(kernel, initrd, more, parameters);
        for _ in 0..RETRIES {
            match &last {
                Err(e) if e.to_string().contains(PANIC) => eprintln!("bench:   again: {e}"),
                _ => break,
            }
            last = self.boot_once(kernel, initrd, more, parameters);
        }
        last
    }

    fn boot_once(&self, kernel: &Path, initrd: &Path, more: &[String], parameters: &str) -> Result<f64> {
        let began = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.options)
            .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(more)
            .args(["-append", &format!("{} console=ttyS0 panic=-1 {parameters}", self.parameters)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program))?;
        let console = BufReader::new(child.stdout.take().context("the console is piped")?);
        let (say, hear) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut last = Vec::new();
            for line in console.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if line.contains(READY) {
                    let _ = say.send(Instant::now());
                }
                last.push(line);
            }
            last.split_off(last.len().saturating_sub(60)).join("\n")
        });
        let ready = hear.recv_timeout(PATIENCE);
        let _ = child.kill();
        let _ = child.wait();
        let console = reader.join().unwrap_or_default();
        match ready {
            Ok(at) => Ok((at - began).as_secs_f64()),
            Err(_) => bail!(
                "{} with {} did not come up; its console ends with:\n{console}",
                self.program,
                initrd.display()
            ),
        }
    }
}

/// The value of a device's option, with the parts of the ended machine (its tap, its spec drive) replaced.
fn stand_in(value: &str, spec_drive: &Path) -> String {
    if let Some(tap) = value.strip_prefix("tap,") {
        let id = tap.split(',').find(|o| o.starts_with("id=")).unwrap_or_default();
        return format!("user,restrict=on,{id}");
    }
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(mut drive) if drive["filename"].as_str().is_some_and(|f| f.ends_with("/spec.tar")) => {
            drive["filename"] = spec_drive.to_string_lossy().into();
            drive.to_string()
        }
        _ => value.to_owned(),
    }
}

/// Start of a process, in seconds since boot: field 22 of its stat, counted after the name, which may contain anything.
fn started_s(stat: &str) -> Result<f64> {
    let (_, rest) = stat.rsplit_once(')').context("a stat without a name")?;
    let ticks: f64 = rest.split_whitespace().nth(19).context("a truncated stat")?.parse()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// An initrd with only busybox, whose init mounts what every init mounts and reports that it is up.
fn busybox_initrd() -> Result<Vec<u8>> {
    const INIT: &str = "#!/bin/busybox sh\n\
        /bin/busybox mount -t proc proc /proc\n\
        /bin/busybox mount -t sysfs sysfs /sys\n\
        /bin/busybox mount -t devtmpfs dev /dev\n\
        /bin/busybox ip link set lo up\n\
        echo STEAD-BENCH-READY\n\
        while :; do /bin/busybox sleep 3600; done\n";
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let busybox = fs::read(busybox.ok_or_else(|| anyhow!(Skip("busybox is not installed".to_owned())))?)?;
    let mut archive = cpio::Archive::default();
    for dir in ["bin", "dev", "proc", "sys"] {
        archive.directory(dir);
    }
    archive.console("dev/console");
    archive.program("bin/busybox", &busybox);
    archive.program("init", INIT.as_bytes());
    Ok(archive.finish())
}

/// A Debian with the image's packages, systemd, and the image's kernel package for its modules and initrd.
#[derive(Debug)]
struct Debian {
    disk: PathBuf,
    initrd: PathBuf,
}

impl Debian {
    fn build(bench: &Bench, work: &Path) -> Result<Self> {
        let file = bench.recipe(IMAGE);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let recipe = Recipe::from_yaml(&file.to_string_lossy(), &text)?;
        let (Base::Debian(debian), Some(kernel)) = (&recipe.base, recipe.kernel.and_then(|k| k.package))
        else {
            return Err(anyhow!(Skip(format!("{IMAGE} has no Debian base or no kernel package"))));
        };
        let mut packages = debian.packages.clone();
        packages.extend([kernel, "systemd-sysv".to_owned(), "initramfs-tools".to_owned(), "udev".to_owned()]);
        let tree = work.join("debian");
        output(
            Command::new("mmdebstrap")
                .args(["--mode=root", "--variant=essential", "--skip=check/qemu", "--quiet"])
                .arg(format!("--include={}", packages.join(",")))
                .arg(&debian.suite)
                .arg(&tree)
                .args(&debian.mirror),
        )?;
        let unit = tree.join("etc/systemd/system/bench-ready.service");
        fs::write(
            &unit,
            format!(
                "[Unit]\nAfter=network.target\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo {READY} >/dev/console'\n"
            ),
        )?;
        let wants = tree.join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants)?;
        symlink("../bench-ready.service", wants.join("bench-ready.service"))?;
        let initrd = fs::read_dir(tree.join("boot"))?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("initrd.img-")))
            .context("the Debian has no initrd in /boot")?;
        let kept = work.join("debian.initrd");
        fs::copy(&initrd, &kept)?;
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o600))?;

        let used = output(Command::new("du").args(["--summarize", "--block-size=1"]).arg(&tree))?;
        let used: u64 =
            used.split_whitespace().next().unwrap_or_default().parse().context("du printed no number")?;
        let disk = work.join("debian.raw");
        fs::File::create(&disk)?.set_len(used + used / 4 + SLACK_BYTES)?;
        output(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&disk))?;
        fs::remove_dir_all(&tree)?;
        Ok(Self { disk, initrd: kept })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_get_the_same_machine() {
        let argv = [
            "/usr/bin/qemu-system-x86_64",
            "-name",
            "x",
            "-machine",
            "pc,accel=tcg",
            "-m",
            "2048",
            "-blockdev",
            r#"{"driver":"file","filename":"/c/spec.tar"}"#,
            "-device",
            "virtio-blk-pci,drive=spec",
            "-netdev",
            "tap,id=net0,fd=7",
            "-append",
            "console=hvc0 mitigations=off rdinit=/init nokaslr",
        ];
        let q = Qemu::of_argv(&argv, Path::new("/empty")).unwrap();
        assert_eq!(q.options, ["-machine", "pc,accel=tcg", "-m", "2048"]);
        let drive = r#"{"driver":"file","filename":"/empty"}"#;
        let network = "user,restrict=on,id=net0";
        assert_eq!(
            q.devices,
            ["-blockdev", drive, "-device", "virtio-blk-pci,drive=spec", "-netdev", network]
        );
        assert_eq!(q.parameters, "mitigations=off nokaslr");
    }

    #[test]
    fn reads_when_a_process_started() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 12345 20";
        assert_eq!(started_s(stat).unwrap(), 123.45);
    }
}
