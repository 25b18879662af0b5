//! QEMU's argument vector, as a value made from the machine's spec and what the host can do.
//!
//! Pure: no file is opened here and no descriptor made.

use crate::{MachineError, MachineSpec, host::Tool, spec::Accelerator};
use serde_json::json;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};
use stead_model::{Bytes, cluster::Backend, node::VmBoot};

/// Memory of a machine when none is asked for: incusd, its database and two small instances fit.
pub(crate) const MEMORY: Bytes = Bytes::gib(2);
/// CPUs of a machine when none are asked for.
pub(crate) const CPUS: u32 = 2;
/// QEMU itself.
pub(crate) const PROGRAM: Tool = Tool { name: "qemu-system-x86_64", package: "qemu-system-x86" };
/// The `pc` machine has 32 slots on its PCI bus; the chipset takes four, and the random number generator one.
const MAX_DEVICES: usize = 27;

/// What the invocation depends on besides the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whether the kernel can carry packets of taps by itself, between itself and a guest that KVM runs.
    pub vhost: bool,
    /// Descriptors of the taps, one a NIC, open in QEMU.
    pub taps: Vec<i32>,
    /// Descriptor that QEMU writes the log of the serial console to.
    pub console_log: i32,
}

/// The program, its arguments, and the files it needs made before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub program: Tool,
    pub argv: Vec<OsString>,
    /// Its working directory. Sockets are named relative to it, as their paths must be short.
    pub cwd: PathBuf,
    /// The drive with the node's spec.
    pub spec_drive: PathBuf,
}

/// The drive with the node's spec, in the machine's directory.
pub(crate) const SPEC_DRIVE: &str = "spec.tar";
/// QMP's socket in the machine's directory.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
/// The serial console's socket in the machine's directory.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";

/// Makes the invocation.
pub(crate) fn invocation(spec: &MachineSpec, facts: &Facts) -> Result<Invocation, MachineError> {
    let refuse = |why: String| MachineError::Spec { name: spec.name.clone(), backend: Backend::Qemu, why };
    let kernel = spec.vmlinux.as_ref().ok_or_else(|| refuse("its image has no kernel".to_owned()))?;
    let initrd = spec.initrd.as_ref().ok_or_else(|| refuse("its image has no initrd".to_owned()))?;
    let Some(accelerator) = spec.accelerator else {
        let why = "its spec names no accelerator, as those of older versions: run `stead up` again";
        return Err(refuse(why.to_owned()));
    };
    let devices = spec.layers.len() + 1 + spec.disks.len() + spec.nics.len();
    if devices > MAX_DEVICES {
        return Err(refuse(format!(
            "{} layers, {} disks and {} interfaces are more than the {MAX_DEVICES} devices it has room for",
            spec.layers.len(),
            spec.disks.len(),
            spec.nics.len()
        )));
    }
    let spec_drive = spec.dir.join(SPEC_DRIVE);
    let mut argv = Argv::default();
    argv.pair("-name", format!("stead:{}/{}", spec.cluster, spec.name));
    // Only what is named here: no default devices, no configuration of the host.
    argv.words(&["-nodefaults", "-no-user-config", "-display", "none"]);
    argv.words(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    match accelerator {
        Accelerator::Kvm => argv.words(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg => argv.words(&["-accel", "tcg,thread=multi", "-cpu", "max"]),
    }
    argv.words(&["-machine", "pc,usb=off,vmport=off,dump-guest-core=off"]);
    argv.pair("-smp", spec.cpus.unwrap_or(CPUS).to_string());
    argv.pair("-m", format!("{}M", spec.memory.unwrap_or(MEMORY).0 >> 20));
    argv.pair("-kernel", kernel);
    argv.pair("-initrd", initrd);
    argv.pair("-append", kernel_command_line(accelerator));
    // A reset ends QEMU, and the supervisor starts it again with kernel and spec read anew.
    argv.words(&["-no-reboot"]);
    argv.pair("-qmp", format!("unix:{QMP_SOCKET},server=on,wait=off"));
    argv.pair(
        "-chardev",
        format!(
            "socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile=/proc/self/fd/{},logappend=on",
            facts.console_log
        ),
    );
    argv.words(&["-serial", "chardev:console"]);
    argv.words(&["-object", "rng-random,id=random,filename=/dev/urandom"]);
    argv.words(&["-device", "virtio-rng-pci,rng=random"]);
    for (n, layer) in (0..).zip(&spec.layers) {
        argv.drive(&VmBoot::layer_serial(n), layer, Access::ReadOnly);
    }
    argv.drive(VmBoot::SPEC_SERIAL, &spec_drive, Access::ReadOnly);
    for disk in &spec.disks {
        argv.drive(&disk.serial, &disk.path, Access::ReadWrite);
    }
    for (i, (nic, tap)) in spec.nics.iter().zip(&facts.taps).enumerate() {
        let vhost = if facts.vhost && accelerator == Accelerator::Kvm { ",vhost=on" } else { "" };
        argv.pair("-netdev", format!("tap,id=net{i},fd={tap}{vhost}"));
        // No ROM: nothing boots from it.
        argv.pair("-device", format!("virtio-net-pci,netdev=net{i},mac={},romfile=", nic.mac));
    }
    Ok(Invocation { program: PROGRAM, argv: argv.0, cwd: spec.dir.clone(), spec_drive })
}

/// No secret goes here: any process of the guest can read it.
fn kernel_command_line(accelerator: Accelerator) -> String {
    // A kernel that panics reboots at once; the supervisor slows a loop down.
    let mut line = "console=ttyS0 quiet panic=-1".to_owned();
    if accelerator == Accelerator::Tcg {
        // Under emulation mitigations protect nothing, clocks are the host's, and every instruction costs. Never under
        // KVM, where these would weaken the guest.
        line.push_str(
            " no_timer_check tsc=reliable mitigations=off nokaslr cryptomgr.notests init_on_alloc=0",
        );
    }
    line
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Debug, Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }
    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
    /// A raw file as a virtio disk whose serial is its name. In JSON, where a path may hold any character.
    fn drive(&mut self, serial: &str, path: &Path, access: Access) {
        let read_only = access == Access::ReadOnly;
        // Trimmed blocks go back to the host.
        let discard = if read_only { "ignore" } else { "unmap" };
        let file = json!({
            "driver": "file",
            "filename": path.to_string_lossy(),
            "node-name": format!("file-{serial}"),
            "read-only": read_only,
            "discard": discard,
        });
        let format = json!({
            "driver": "raw",
            "node-name": format!("disk-{serial}"),
            "read-only": read_only,
            "discard": discard,
            "file": format!("file-{serial}"),
        });
        self.pair("-blockdev", file.to_string());
        self.pair("-blockdev", format.to_string());
        // Flushes of the guest reach the disk; between them the host may keep its writes in memory.
        let cache = if read_only { "" } else { ",write-cache=on" };
        self.pair("-device", format!("virtio-blk-pci,drive=disk-{serial},serial={serial}{cache}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    fn with(accelerator: Accelerator) -> MachineSpec {
        MachineSpec { accelerator: Some(accelerator), ..spec() }
    }

    fn facts() -> Facts {
        Facts { vhost: true, taps: vec![7], console_log: 9 }
    }

    fn lines(i: &Invocation) -> String {
        let mut out = i.program.name.to_owned();
        for arg in &i.argv {
            let arg = arg.to_str().unwrap();
            out.push_str(if arg.starts_with('-') { "\n" } else { " " });
            out.push_str(arg);
        }
        out
    }

    #[test]
    fn emulated() {
        let made = invocation(&with(Accelerator::Tcg), &facts()).unwrap();
        assert_eq!(made.cwd, Path::new("/s/demo/node1"));
        insta::assert_snapshot!(lines(&made), @r#"
        qemu-system-x86_64
        -name stead:demo/node1
        -nodefaults
        -no-user-config
        -display none
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
        -accel tcg,thread=multi
        -cpu max
        -machine pc,usb=off,vmport=off,dump-guest-core=off
        -smp 2
        -m 1536M
        -kernel /store/vmlinux
        -initrd /store/initrd
        -append console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable mitigations=off nokaslr cryptomgr.notests init_on_alloc=0
        -no-reboot
        -qmp unix:qmp.sock,server=on,wait=off
        -chardev socket,id=console,path=console.sock,server=on,wait=off,logfile=/proc/self/fd/9,logappend=on
        -serial chardev:console
        -object rng-random,id=random,filename=/dev/urandom
        -device virtio-rng-pci,rng=random
        -blockdev {"driver":"file","filename":"/store/a","node-name":"file-layer0","read-only":true,"discard":"ignore"}
        -blockdev {"driver":"raw","node-name":"disk-layer0","read-only":true,"discard":"ignore","file":"file-layer0"}
        -device virtio-blk-pci,drive=disk-layer0,serial=layer0
        -blockdev {"driver":"file","filename":"/store/b, \"c\"","node-name":"file-layer1","read-only":true,"discard":"ignore"}
        -blockdev {"driver":"raw","node-name":"disk-layer1","read-only":true,"discard":"ignore","file":"file-layer1"}
        -device virtio-blk-pci,drive=disk-layer1,serial=layer1
        -blockdev {"driver":"file","filename":"/s/demo/node1/spec.tar","node-name":"file-spec","read-only":true,"discard":"ignore"}
        -blockdev {"driver":"raw","node-name":"disk-spec","read-only":true,"discard":"ignore","file":"file-spec"}
        -device virtio-blk-pci,drive=disk-spec,serial=spec
        -blockdev {"driver":"file","filename":"/s/demo/node1/data.img","node-name":"file-data","read-only":false,"discard":"unmap"}
        -blockdev {"driver":"raw","node-name":"disk-data","read-only":false,"discard":"unmap","file":"file-data"}
        -device virtio-blk-pci,drive=disk-data,serial=data,write-cache=on
        -netdev tap,id=net0,fd=7
        -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,romfile=
        "#);
    }

    #[test]
    fn kvm_differs_only_where_it_may() {
        let tcg = lines(&invocation(&with(Accelerator::Tcg), &facts()).unwrap());
        let kvm = lines(&invocation(&with(Accelerator::Kvm), &facts()).unwrap());
        let differing: Vec<(&str, &str)> = tcg.lines().zip(kvm.lines()).filter(|(a, b)| a != b).collect();
        let of_kvm: Vec<&str> = differing.iter().map(|(_, k)| *k).collect();
        assert_eq!(
            of_kvm,
            [
                "-accel kvm",
                "-cpu host",
                "-append console=ttyS0 quiet panic=-1",
                "-netdev tap,id=net0,fd=7,vhost=on"
            ]
        );
        assert!(!kvm.contains("mitigations"), "mitigations were weakened where they count");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: fn(&mut MachineSpec)| {
            let mut s = spec();
            change(&mut s);
            invocation(&s, &facts()).unwrap_err().to_string()
        };
        assert!(refused(|s| s.layers = vec!["/l".into(); 30]).contains("room for"));
        assert!(refused(|s| s.vmlinux = None).contains("no kernel"));
        assert!(refused(|s| s.initrd = None).contains("no initrd"));
        assert!(refused(|s| s.accelerator = None).contains("run `stead up` again"));
    }
}
