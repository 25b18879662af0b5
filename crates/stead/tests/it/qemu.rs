//! The same images in QEMU, under emulation, which is slow, so one machine at a time.

use crate::common::{World, eventually};
use serde_json::Value;
use std::{process::Command, time::Duration};

fn qemu_is_here(test: &str) -> bool {
    let here = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    if !here {
        println!("SKIP {test}: qemu-system-x86_64 is not installed");
    }
    here
}

#[test]
fn base_and_incus_boot_in_qemu() {
    let test = "base_and_incus_boot_in_qemu";
    let Some(w) = World::new(test, &["base", "incus-node", "debian-12"]) else { return };
    if !qemu_is_here(test) {
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

    let incus = w.file(
        "t-qemu",
        "name: t-qemu\nimage: incus-node\nnodes: 1\nengine: incus\nmachine: {backend: qemu, cpus: 2, memory: 2GiB, disks: [{name: data, size: 4GiB, role: data}]}\n",
    );
    w.ok(&["up", &incus]);
    assert_eq!(w.status("t-qemu")["nodes"][0]["engine"]["state"], "online");
    let shown: Value = serde_json::from_str(&w.ok(&["image", "show", "debian-12", "--json"])).unwrap();
    let run = |args: &[&str]| {
        let said = w.client("t-qemu", args)?;
        assert!(said.code == 0, "client {args:?}: {}\n{}", said.stdout, said.stderr);
        Some(())
    };
    let path = |key: &str| shown["paths"][key].as_str().unwrap().to_owned();
    if run(&["image", "import", &path("metadata"), &path("rootfs"), "--alias", "debian-12"]).is_none() {
        println!("SKIP {test}: the stock client is not installed");
        return;
    }
    run(&["launch", "debian-12", "c1"]);
    eventually("the instance has an address of the LAN", Duration::from_secs(240), || {
        let s = w.status("t-qemu");
        s["instances"][0]["addresses"]
            .as_array()
            .is_some_and(|a| a.iter().any(|a| a.as_str().is_some_and(|a| a.starts_with("10.88.0."))))
    });
    w.down("t-qemu");
}
