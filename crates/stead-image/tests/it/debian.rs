//! The builder against the real mirror: needs root, mmdebstrap and a mirror that answers.

use std::{fs, path::Path, process::Command};
use stead_image::{BuildRequest, ImageError, Store, build, bzimage, cpio, digest};
use stead_model::Failure;

/// Whether a test cannot run here; prints the reason.
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

/// Builds the whole image twice, in two stores, with packages that generate keys when installed: every bit is the same,
/// the kernel has a PVH entry, the initrd has modules in a valid order, and the layers contain them.
#[test]
fn a_debian_image_has_no_secrets_and_is_bit_identical_when_built_twice() {
    const TEST: &str = "a_debian_image_has_no_secrets_and_is_bit_identical_when_built_twice";
    if cannot_run(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let yaml = "name: d\nbase: {debian: {suite: trixie, packages: [kmod, openssh-server, ssl-cert]}}\n\
        kernel: {package: linux-image-cloud-amd64, initrd_modules: [xfs]}\n";
    let request = recipe(dir.path(), yaml);
    let one = Store::open(&dir.path().join("one")).unwrap();
    let two = Store::open(&dir.path().join("two")).unwrap();
    let first = match on_build_host(|| build(&one, &request, &mut |_| ())) {
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
    assert_eq!(first.warnings, Vec::<String>::new());
    let layer = |n: usize| one.blob(&first.manifest.layers[n].artifact.digest);
    nothing_of_the_build_host(&layer(0), &layer(2), dir.path());

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

/// Host name during the builds: a name that does not occur by chance.
const BUILD_HOST: &str = "stead-test-builder";

/// Runs `f` with this host name.
#[allow(unsafe_code)]
fn on_build_host<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a new UTS namespace takes no file descriptors away, and this thread only runs `f`.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUTS) }.unwrap();
            rustix::system::sethostname(BUILD_HOST.as_bytes()).unwrap();
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The base has no keys and no trace of the build host; the steps in the files' layer generate the keys.
fn nothing_of_the_build_host(base: &Path, files: &Path, dir: &Path) {
    let unpack = |layer: &Path, to: &Path| {
        let status =
            Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(to).arg(layer).status();
        assert!(status.unwrap().success());
    };
    let (root, declared) = (dir.join("root"), dir.join("declared"));
    unpack(base, &root);
    unpack(files, &declared);
    let keys = || -> Vec<String> {
        let names = |dir: &str| fs::read_dir(root.join(dir)).unwrap().map(|e| e.unwrap().file_name());
        let all = names("etc/ssh").chain(names("etc/ssl/private")).chain(names("etc/ssl/certs"));
        let mut all: Vec<String> = all.filter_map(|n| n.into_string().ok()).collect();
        all.retain(|n| n.starts_with("ssh_host_") || n.contains("snakeoil"));
        all.sort();
        all
    };
    assert_eq!(keys(), Vec::<String>::new());
    let found = Command::new("grep").args(["-rlF", "--", BUILD_HOST]).arg(&root).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "files that name the build host");

    let json = fs::read_to_string(declared.join("usr/lib/stead/system.json")).unwrap();
    let system: stead_model::recipe::SystemSpec = serde_json::from_str(&json).unwrap();
    let steps: Vec<&str> = system.onboot.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(steps, ["ssh-host-keys", "snakeoil-certificate"]);
    // These programs need nothing else of a running system.
    let null = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    rustix::fs::mknodat(rustix::fs::CWD, root.join("dev/null"), null.0, 0o666.into(), null.1).unwrap();
    // The second run is a boot that finds the keys: nothing changes.
    let contents = |names: &[String]| -> Vec<Vec<u8>> {
        let read = |n: &String| {
            ["etc/ssh", "etc/ssl/private", "etc/ssl/certs"]
                .iter()
                .find_map(|d| fs::read(root.join(d).join(n)).ok())
        };
        names.iter().map(|n| read(n).unwrap()).collect()
    };
    let mut before = Vec::new();
    for _ in 0..2 {
        for step in &system.onboot {
            let out = Command::new("chroot").arg(&root).args(&step.command).output().unwrap();
            assert!(out.status.success(), "{}: {}", step.name, String::from_utf8_lossy(&out.stderr));
        }
        let made = keys();
        for key in
            ["ssh_host_ed25519_key", "ssh_host_rsa_key", "ssl-cert-snakeoil.key", "ssl-cert-snakeoil.pem"]
        {
            assert!(made.iter().any(|m| m == key), "{key} is not in {made:?}");
        }
        let now = contents(&made);
        assert!(before.is_empty() || before == now, "existing keys were regenerated");
        before = now;
    }
}

#[test]
fn mistakes_and_dead_mirrors_are_distinguished() {
    const TEST: &str = "mistakes_and_dead_mirrors_are_distinguished";
    if cannot_run(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let fails = |yaml: &str| build(&store, &recipe(dir.path(), yaml), &mut |_| ()).unwrap_err();

    // Nothing listens on port 9 of this host.
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
        // stead-node is a finished step; the base is not.
        assert!(sub == "blobs/sha256" && left.len() <= 1 || left.is_empty(), "{sub}: {left:?}");
    }
}
