//! The same images in QEMU, under emulation, which is slow, so one machine at a time.

use crate::common::World;
use serde_json::Value;
use stead_testkit::{host::lacks_programs, wait};

const QEMU: &str = "qemu-system-x86_64";

#[test]
fn a_data_disk_in_qemu_outlives_a_reboot() {
    let test = "a_data_disk_in_qemu_outlives_a_reboot";
    let Some(w) = World::new(test, &["base"]) else { return };
    if lacks_programs(test, &[QEMU]) {
        return;
    }
    let base = w.file(
        "t-qbase",
        "name: t-qbase\nimage: base\nnodes: 1\nmachine: {backend: qemu, cpus: 1, memory: 512MiB, persistent_root: true, disks: [{name: data, size: 256MiB, role: data}]}\n",
    );
    w.ok(&["up", &base]);
    w.exec("t-qbase", "node1", &["sh", "-c", "echo kept > /root/file"]);
    w.ok(&["reboot", "t-qbase", "node1"]);
    assert_eq!(w.exec("t-qbase", "node1", &["cat", "/root/file"]), "kept\n");
    w.down("t-qbase");
}

#[test]
fn an_engine_in_qemu_runs_instances() {
    let test = "an_engine_in_qemu_runs_instances";
    let Some(w) = World::new(test, &["incus-node", "debian-12"]) else { return };
    if lacks_programs(test, &[QEMU, "incus"]) {
        return;
    }
    let incus = w.file(
        "t-qemu",
        "name: t-qemu\nimage: incus-node\nnodes: 1\nengine: incus\nmachine: {backend: qemu, cpus: 2, memory: 2GiB, disks: [{name: data, size: 4GiB, role: data}]}\n",
    );
    w.ok(&["up", &incus]);
    assert_eq!(w.status("t-qemu")["nodes"][0]["engine"]["state"], "online");
    let shown: Value = serde_json::from_str(&w.ok(&["image", "show", "debian-12", "--json"])).unwrap();
    let run = |args: &[&str]| {
        let said = w.client("t-qemu", args).unwrap();
        assert!(said.code == 0, "client {args:?}: {}\n{}", said.stdout, said.stderr);
    };
    let path = |key: &str| shown["paths"][key].as_str().unwrap().to_owned();
    run(&["image", "import", &path("metadata"), &path("rootfs"), "--alias", "debian-12"]);
    run(&["launch", "debian-12", "c1"]);
    wait::within(wait::EMULATED, "the instance has an address of the LAN", || {
        let s = w.status("t-qemu");
        s["instances"][0]["addresses"]
            .as_array()
            .is_some_and(|a| a.iter().any(|a| a.as_str().is_some_and(|a| a.starts_with("10.88.0."))))
    });
    w.down("t-qemu");
}
