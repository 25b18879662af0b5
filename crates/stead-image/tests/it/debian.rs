//! The builder against the real mirror: needs root, mmdebstrap and a mirror that answers.

use std::{fs, path::Path, process::Command};
use stead_image::{BuildRequest, ImageError, Store, build, bzimage, cpio, digest};
use stead_model::Failure;

/// Says why a test cannot run here.
fn cannot_run(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP {test}: not root");
        return true;
    }
    for tool in ["mmdebstrap", "mksquashfs", "depmod", "dpkg-deb"] {
        if Command::new(tool).arg("--version").output().is_err() {
            println!("SKIP {test}: {tool} is not installed");
            return true;
        }
    }
    false
}

fn recipe(dir: &Path, yaml: &str) -> BuildRequest {
    fs::write(dir.join("r.yaml"), yaml).unwrap();
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    fs::write(dir.join("stead-node"), elf).unwrap();
    BuildRequest::new(dir.join("r.yaml"), dir.join("stead-node"))
}

/// The whole chain, twice, into two stores: every bit the same; and what comes out is a kernel that boots by PVH, an initrd
/// with modules in an order that works, and layers that hold them.
#[test]
fn a_debian_image_is_bit_identical_when_built_twice() {
    const TEST: &str = "a_debian_image_is_bit_identical_when_built_twice";
    if cannot_run(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let yaml = "name: d\nbase: {debian: {suite: trixie, packages: [kmod]}}\n\
        kernel: {package: linux-image-cloud-amd64, initrd_modules: [xfs]}\n";
    let request = recipe(dir.path(), yaml);
    let one = Store::open(&dir.path().join("one")).unwrap();
    let two = Store::open(&dir.path().join("two")).unwrap();
    let first = match build(&one, &request, &mut |_| ()) {
        Err(e @ ImageError::Mirror { .. }) => {
            println!("SKIP {TEST}: {e}");
            return;
        }
        other => other.unwrap(),
    };
    let second = build(&two, &request, &mut |_| ()).unwrap();
    assert_eq!(first.manifest, second.manifest);
    assert_eq!(first.digest, second.digest);
    assert_eq!(one.verify(&first.name).unwrap().bad, Vec::<String>::new());

    let boot = first.manifest.boot.unwrap();
    let vmlinux = fs::read(one.blob(&boot.vmlinux.unwrap().digest)).unwrap();
    assert!(bzimage::pvh_entry(&vmlinux).unwrap().is_some());
    let bz = fs::read(one.blob(&boot.bzimage.unwrap().digest)).unwrap();
    assert_eq!(digest::of_bytes(&bzimage::vmlinux(&bz).unwrap()), digest::of_bytes(&vmlinux));

    let initrd = fs::read(one.blob(&boot.initrd.unwrap().digest)).unwrap();
    let archive = cpio::Archive::from_bytes(&initrd).unwrap();
    let file = |path: &str| match &archive.entries()[path].node {
        cpio::Node::File(bytes) => bytes.clone(),
        other => panic!("{path} is {other:?}"),
    };
    let order = String::from_utf8(file("modules.order.stead")).unwrap();
    let at = |module: &str| order.lines().position(|l| l.contains(&format!("/{module}.ko")));
    assert!(at("virtio_blk").is_some() && at("squashfs").is_some() && at("overlay").is_some(), "{order}");
    assert!(at("failover") < at("net_failover") && at("net_failover") < at("virtio_net"), "{order}");
    assert!(at("xfs").is_some(), "{order}");
    for path in order.lines() {
        assert!(file(&path[1..]).starts_with(b"\x7fELF"), "{path}");
    }
    let release = boot.kernel_release.unwrap();
    assert!(order.lines().all(|l| l.starts_with(&format!("/lib/modules/{release}/"))));
    assert!(first.manifest.packages.keys().any(|p| p.contains(&release)), "{release}");
    assert!(first.manifest.packages.contains_key("kmod"));
    assert!(!first.manifest.packages.contains_key("initramfs-tools"));
}

#[test]
fn mistakes_and_dead_mirrors_are_told_apart() {
    const TEST: &str = "mistakes_and_dead_mirrors_are_told_apart";
    if cannot_run(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let fails = |yaml: &str| build(&store, &recipe(dir.path(), yaml), &mut |_| ()).unwrap_err();

    // Port 9 of this host: nobody listens.
    let e = fails("name: d\nbase: {debian: {suite: trixie, mirror: \"http://127.0.0.1:9/debian\"}}\n");
    assert!(matches!(e, ImageError::Mirror { .. }) && !e.is_bad_input(), "{e}");

    let e = fails("name: d\nbase: {debian: {suite: trixie, packages: [stead-no-such-package]}}\n");
    if let ImageError::Mirror { .. } = e {
        println!("SKIP {TEST}: {e}");
        return;
    }
    assert!(e.is_bad_input(), "{e}");
    assert_eq!(e.to_string(), "no package stead-no-such-package in Debian trixie");

    let e = fails("name: d\nbase: {debian: {suite: stead-no-such-suite}}\n");
    assert!(e.is_bad_input() && e.to_string().contains("stead-no-such-suite"), "{e}");

    for sub in ["images", "blobs/sha256", "tmp"] {
        let left: Vec<_> =
            fs::read_dir(store.dir().join(sub)).unwrap().map(|e| e.unwrap().file_name()).collect();
        // The files layer and stead-node are finished steps; nothing of a base is.
        assert!(sub == "blobs/sha256" && left.len() <= 2 || left.is_empty(), "{sub}: {left:?}");
    }
}
