//! QEMU machines, emulated where there is no KVM, with a real kernel out of an image store.
//!
//! `STEAD_TEST_STORE` names the store; it must hold the image `base`.

use crate::{
    Outcome, Test,
    network::Up,
    world::{alive, eventually, exe, sh, traces, within},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use stead_machine::{
    MachinePhase, MachineSpec, backend,
    spec::{MachineDisk, MachineNic},
    supervise,
};
use stead_model::{Bytes, Digest, Manifest, cluster::Backend};

pub const TESTS: &[Test] = &[("vm::life", life), ("vm::a_node_of_an_image", a_node_of_an_image)];

/// Emulated, on a machine that does much else at the same time.
const BOOT: Duration = Duration::from_secs(180);

/// A shell on the serial console; it says what disks it has first.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
echo \"pci $(/bin/busybox cat /sys/bus/pci/devices/*/device | /bin/busybox sort | /bin/busybox uniq -c | /bin/busybox tr '\\n' ' ')\"
echo the shell is up
exec /bin/busybox sh
";

struct Image {
    manifest: Manifest,
    blobs: PathBuf,
}

impl Image {
    fn base() -> Result<Self, String> {
        let store = std::env::var_os("STEAD_TEST_STORE").ok_or("STEAD_TEST_STORE names no image store")?;
        let store = PathBuf::from(store);
        if Command::new("qemu-system-x86_64").arg("-version").stdout(Stdio::null()).status().is_err() {
            return Err("qemu-system-x86_64 is not installed".into());
        }
        let digest = fs::read_to_string(store.join("images/base")).map_err(|e| format!("image base: {e}"))?;
        let digest: Digest = digest.trim().parse()?;
        let blobs = store.join("blobs/sha256");
        let manifest = fs::read(blobs.join(digest.hex())).map_err(|e| format!("manifest of base: {e}"))?;
        Ok(Self { manifest: serde_json::from_slice(&manifest).map_err(|e| e.to_string())?, blobs })
    }
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }
}

fn spec(up: &Up, image: &Image) -> MachineSpec {
    let dir = up.0.dir.join("node1");
    let spec_dir = dir.join("spec");
    fs::create_dir_all(&spec_dir).unwrap();
    fs::write(
        spec_dir.join("node.json"),
        r#"{"schema":1,"cluster":"c","name":"node1","network":{"interfaces":[
            {"name":"eth0","mac":"02:00:00:00:00:01","addresses":["10.88.0.2/24","fd88::2/64"]}]}}"#,
    )
    .unwrap();
    let boot = image.manifest.boot.as_ref().expect("an image that boots");
    MachineSpec {
        cluster: up.0.cluster.clone(),
        name: "node1".parse().unwrap(),
        backend: Backend::Qemu,
        accelerator: backend::accelerator(Backend::Qemu, &stead_machine::doctor::observe()),
        dir: dir.clone(),
        cpus: Some(1),
        memory: Some(Bytes::mib(512)),
        vmlinux: Some(image.blob(&boot.vmlinux.as_ref().expect("a kernel").digest)),
        initrd: Some(image.blob(&boot.initrd.as_ref().expect("an initrd").digest)),
        stead_node: image.blob(&boot.stead_node.digest),
        layers: image.manifest.layers.iter().map(|l| image.blob(&l.artifact.digest)).collect(),
        layers_dir: up.0.dir.join("layers"),
        spec_dir,
        disks: vec![MachineDisk { serial: "data".into(), path: dir.join("data.img"), size: Bytes::mib(256) }],
        nics: vec![MachineNic {
            name: "eth0".into(),
            bridge: "lan".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
        }],
        netns: up.netns(),
        stop_timeout_s: 2,
    }
}

/// An initrd with nothing but a shell.
fn shell_initrd(dir: &Path) -> PathBuf {
    let tree = dir.join("initrd-tree");
    for sub in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(sub)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox");
    fs::write(tree.join("init"), INIT).unwrap();
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    let out = dir.join("initrd");
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&tree)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .expect("busybox cpio");
    let names = ".\nbin\nproc\nsys\ndev\nbin/busybox\ninit\n";
    cpio.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    assert!(cpio.wait().unwrap().success());
    out
}

fn console(spec: &MachineSpec) -> String {
    String::from_utf8_lossy(&fs::read(spec.dir.join("console.log")).unwrap_or_default()).into_owned()
}

fn shells(spec: &MachineSpec) -> usize {
    console(spec).matches("the shell is up").count()
}

/// Types a line on the serial console, again every second until it has had its effect: a shell that is just starting
/// throws away what was typed before.
fn type_until(spec: &MachineSpec, line: &str, what: &str, done: impl Fn() -> bool) {
    let mut typed: Option<Instant> = None;
    within(BOOT, what, || {
        if typed.is_none_or(|t| t.elapsed() > Duration::from_secs(1)) {
            typed = Some(Instant::now());
            // Gone when the guest is: then it had its effect.
            if let Ok(mut console) = UnixStream::connect(spec.dir.join("console.sock")) {
                let _ = console.write_all(format!("{line}\n").as_bytes());
                let _ = console.set_read_timeout(Some(Duration::from_millis(200)));
                let _ = console.read(&mut [0; 1024]);
            }
        }
        done()
    });
}

fn gone(spec: &MachineSpec) {
    eventually(&format!("the supervisor's end; its console: {}", console(spec)), || {
        supervise::observe(&spec.dir).is_none()
    });
    let dir = spec.dir.display().to_string();
    // The lock is free a moment before the process is gone.
    eventually("everything of the machine to be gone", || traces(&dir).is_empty());
    let links = sh(&spec.netns, &["ip", "-br", "link", "show", "type", "tun"]);
    assert_eq!(links, "", "a tap was left behind");
}

fn life() -> Outcome {
    let image = match Image::base() {
        Ok(image) => image,
        Err(why) => return Outcome::Skipped(why),
    };
    let up = Up::new("tst-v", |_| {});
    let mut s = spec(&up, &image);
    s.initrd = Some(shell_initrd(&up.0.dir));
    supervise::spawn(&exe(), &s).expect("spawn");
    within(BOOT, "the guest's shell", || shells(&s) == 1);
    // Virtio over PCI: a drive for each layer, the spec and the disk (1001), a NIC (1000), random numbers (1005).
    let drives = s.layers.len() + 2;
    let seen = console(&s);
    assert!(
        seen.contains(&format!("{drives} 0x1001")) && seen.contains("1 0x1000") && seen.contains("1 0x1005"),
        "{seen}"
    );
    let first = supervise::observe(&s.dir).unwrap();
    // A reset from inside starts a new QEMU under the same supervisor.
    let pid = first.machine_pid;
    type_until(&s, "/bin/busybox reboot -f", "the reboot", || {
        supervise::observe(&s.dir).is_some_and(|x| x.machine_pid != pid)
    });
    within(BOOT, "the second boot", || shells(&s) == 2);
    eventually("the state of the second boot", || supervise::observe(&s.dir).is_some_and(|x| x.boots == 2));
    let second = supervise::observe(&s.dir).unwrap();
    assert_eq!(second.supervisor_pid, first.supervisor_pid);
    assert_ne!(second.machine_pid, first.machine_pid);
    // Power off from inside.
    type_until(&s, "/bin/busybox poweroff -f", "power off", || supervise::observe(&s.dir).is_none());
    gone(&s);
    assert_eq!(supervise::last_state(&s.dir).unwrap().phase, MachinePhase::Stopped);
    // A shell has no ear for the power button: it is killed after its time.
    supervise::spawn(&exe(), &s).expect("spawn again");
    within(BOOT, "the third boot", || shells(&s) == 3);
    supervise::stop(&s.dir, Duration::from_secs(20)).expect("stop");
    gone(&s);
    // A killed supervisor takes QEMU with it.
    let pid = supervise::spawn(&exe(), &s).expect("spawn once more");
    let qemu = || supervise::observe(&s.dir)?.machine_pid;
    eventually("a running QEMU", || qemu().is_some());
    let qemu = qemu().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    eventually("QEMU to follow its supervisor", || !alive(qemu));
    supervise::cleanup(&s).expect("cleanup");
    gone(&s);
    up.down();
    Outcome::Passed
}

fn a_node_of_an_image() -> Outcome {
    let image = match Image::base() {
        Ok(image) => image,
        Err(why) => return Outcome::Skipped(why),
    };
    let up = Up::new("tst-w", |_| {});
    let mut s = spec(&up, &image);
    s.stop_timeout_s = 20;
    supervise::spawn(&exe(), &s).expect("spawn");
    let answers = |address: &str| {
        crate::world::in_netns(&up.netns(), &["ping", "-c1", "-W1", address]).status.success()
    };
    within(BOOT, "the node to answer over IPv4", || answers("10.88.0.2"));
    eventually("the node to answer over IPv6", || answers("fd88::2"));
    supervise::stop(&s.dir, Duration::from_secs(30)).expect("stop");
    gone(&s);
    let initrd = fs::read(s.initrd.as_ref().unwrap()).unwrap();
    if !initrd.windows(8).any(|w| w == b"evdev.ko") {
        return Outcome::Skipped(
            "it answers; but its initrd has no evdev module to hear the power button".into(),
        );
    }
    let said = console(&s);
    assert!(said.contains("power button") && said.contains("services stopped"), "{said}");
    up.down();
    Outcome::Passed
}
