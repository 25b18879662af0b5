//! A node as `/init` of a VM: real kernel, real drives, under emulation.
//!
//! Needs an image store with an image that has a kernel and e2fsprogs: its path in `STEAD_TEST_STORE`, the image's name
//! in `STEAD_TEST_IMAGE` (`incus-node` when absent). The store's kernel, initrd and layers are used, with the
//! `stead-node` under test as `/init`.

use crate::common::{command, find};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};
use stead_model::{Manifest, node::VmBoot};
use stead_testkit::{host::skipped, wait};
use tempfile::TempDir;

struct Image {
    blobs: PathBuf,
    manifest: Manifest,
}

impl Image {
    fn find(test: &str) -> Option<Self> {
        let skip = |why: &str| {
            skipped(test, why);
            None
        };
        if find("qemu-system-x86_64").is_none() {
            return skip("needs qemu-system-x86_64");
        }
        let Some(store) = env::var_os("STEAD_TEST_STORE").map(PathBuf::from) else {
            return skip("STEAD_TEST_STORE names no image store");
        };
        let name = env::var("STEAD_TEST_IMAGE").unwrap_or_else(|_| "incus-node".into());
        let Ok(digest) = fs::read_to_string(store.join("images").join(&name)) else {
            return skip(&format!("the store has no image {name}"));
        };
        let blobs = store.join("blobs/sha256");
        let digest = digest.trim().trim_start_matches("sha256:");
        let manifest: Manifest = serde_json::from_slice(&fs::read(blobs.join(digest)).unwrap()).unwrap();
        Some(Self { blobs, manifest })
    }
    fn blob(&self, digest: &stead_model::Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }
}

/// One file of a newc cpio (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel).
fn cpio_entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for field in [1, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
        out.extend(format!("{field:08X}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(data);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

struct Vm {
    child: Child,
    console: PathBuf,
}

impl Vm {
    fn boot(image: &Image, dir: &TempDir, spec: &str, layers: u32, disks: &[(&str, &Path)]) -> Self {
        let boot = image.manifest.boot.as_ref().unwrap();
        let mut initrd = fs::read(image.blob(&boot.initrd.as_ref().unwrap().digest)).unwrap();
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        let init = fs::read(env!("CARGO_BIN_EXE_stead-node")).unwrap();
        // A later archive's files replace an earlier one's.
        initrd.extend(cpio_entry("init", 0o100_755, &init));
        initrd.extend(cpio_entry("TRAILER!!!", 0, &[]));
        let initrd_file = dir.path().join("initrd");
        fs::write(&initrd_file, initrd).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let boot_file = serde_json::to_string(&VmBoot { layers }).unwrap();
        for (name, text) in [("node.json", spec), (VmBoot::FILE, &boot_file)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        let spec_file = dir.path().join("spec.tar");
        fs::write(&spec_file, tar.into_inner().unwrap()).unwrap();
        let console = dir.path().join("console");
        let _ = fs::remove_file(&console);
        let mut arguments: Vec<String> = [
            "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-nic", "none", "-append",
            "console=ttyS0 quiet no_timer_check tsc=reliable mitigations=off nokaslr cryptomgr.notests init_on_alloc=0",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(["-serial".into(), format!("file:{}", console.display())]);
        arguments.extend(["-initrd".into(), initrd_file.display().to_string()]);
        let vmlinux = image.blob(&boot.vmlinux.as_ref().unwrap().digest);
        arguments.extend(["-kernel".into(), vmlinux.display().to_string()]);
        let mut drive = |serial: &str, file: &Path, read_only: bool| {
            let read_only = if read_only { "on" } else { "off" };
            arguments.push("-drive".into());
            arguments
                .push(format!("if=none,format=raw,id={serial},readonly={read_only},file={}", file.display()));
            arguments.push("-device".into());
            arguments.push(format!("virtio-blk-pci,drive={serial},serial={serial}"));
        };
        for (n, layer) in (0..).zip(&image.manifest.layers) {
            drive(&VmBoot::layer_serial(n), &image.blob(&layer.artifact.digest), true);
        }
        drive(VmBoot::SPEC_SERIAL, &spec_file, true);
        for (serial, file) in disks {
            drive(serial, file, false);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let child = command("qemu-system-x86_64", &arguments).stdout(Stdio::null()).spawn().unwrap();
        Self { child, console }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn wait_for(&self, text: &str) {
        wait::within(wait::EMULATED, text, || self.console().contains(text));
    }

    fn wait_for_end(&mut self) -> String {
        wait::within(wait::EMULATED, "it powers off", || self.child.try_wait().unwrap().is_some());
        self.console()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- console\n{}", self.console());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_vm_boots_from_drives_and_keeps_its_data_disk() {
    let Some(image) = Image::find("a_vm_boots_from_drives_and_keeps_its_data_disk") else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("data");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    // The last service powers the node off, as the agent would.
    let spec = r#"{"schema":1,"cluster":"c","name":"vm1","root":{"disk":"data"},"system":{"engine":"none",
        "onboot":[{"name":"count","command":["/bin/sh","-c","echo x >> /root/boots; echo boots $(wc -l < /root/boots) > /dev/console"]}],
        "services":[{"name":"off","restart":"never","command":["/bin/sh","-c","kill -TERM 1"]}]}}"#;
    for boots in [1, 2] {
        let layers = image.manifest.layers.len() as u32;
        let console = Vm::boot(&image, &dir, spec, layers, &[("data", &disk)]).wait_for_end();
        for event in ["modules loaded", "drives found", "root mounted", "network up", "services stopped"] {
            assert!(console.contains(event), "no {event:?} in\n{console}");
        }
        assert!(console.contains(&format!("boots {boots}")), "{console}");
        assert!(!console.contains("Kernel panic"), "{console}");
        assert!(command("e2fsck", &["-fn", disk.to_str().unwrap()]).output().unwrap().status.success());
    }
}

#[test]
fn a_vm_without_its_layers_reports_it() {
    let Some(image) = Image::find("a_vm_without_its_layers_reports_it") else { return };
    let dir = tempfile::tempdir().unwrap();
    let layers = image.manifest.layers.len() as u32 + 1;
    let vm = Vm::boot(&image, &dir, r#"{"schema":1,"cluster":"c","name":"vm1"}"#, layers, &[]);
    vm.wait_for("RESCUE: ");
    let console = vm.console();
    assert!(console.contains(&format!("no drive with serial layer{} after 10 s", layers - 1)), "{console}");
    assert!(!console.contains("Kernel panic"), "{console}");
}
