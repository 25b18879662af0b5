//! Disks on real loop devices, with real filesystems, partitions and images.

use std::{
    fs,
    os::unix::fs::symlink,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
};
use stead_one::{
    disks::{Mapper, Place, journal::Journal},
    document::{self, Vm},
    ids::DiskId,
};
use stead_testkit::host::{LoopDisk, Scratch, assert_no_traces, lacks_root_or_programs, run, skipped};

fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what)
}

/// A datastore and a run directory of their own.
struct Datastores {
    dir: Scratch,
    place: Place,
}

impl Datastores {
    fn new(test: &str, programs: &[&str]) -> Option<Self> {
        if lacks_root_or_programs(test, programs) {
            return None;
        }
        if !Path::new("/dev/loop-control").exists() {
            skipped(test, "no loop devices here");
            return None;
        }
        // On a real filesystem: FUSE and loop devices want one.
        let dir = Scratch::new("stead-one");
        fs::create_dir_all(dir.join("ds/0/7")).unwrap();
        fs::create_dir_all(dir.join("ds/1")).unwrap();
        let place = Place { run: dir.join("run"), datastores: dir.join("ds") };
        Some(Self { dir, place })
    }
    fn disk(&self, id: u32) -> PathBuf {
        self.dir.join(format!("ds/0/7/disk.{id}"))
    }
    fn at(&self, id: u32) -> PathBuf {
        self.dir.join(format!("run/one-7/disk.{id}"))
    }
    fn mapper(&self, vm: &Vm) -> Mapper<'_> {
        Mapper::open(&self.place, &vm.name, "ext4").unwrap()
    }
    /// Nothing on the host comes from here any more.
    #[track_caller]
    fn clean(&self) {
        assert_no_traces(self.dir.to_str().unwrap());
    }
}
impl Drop for Datastores {
    fn drop(&mut self) {
        if let Ok(mut mapper) = Mapper::open(&self.place, &"one-7".parse().unwrap(), "ext4") {
            let _ = mapper.unmap_all();
        }
    }
}

fn vm(disks: &str) -> Vm {
    let text = format!(
        "<VM><ID>7</ID><TEMPLATE>{disks}</TEMPLATE><HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><DS_ID>0</DS_ID></HISTORY></HISTORY_RECORDS></VM>"
    );
    document::read(&text).unwrap().0
}

/// CAP_SYS_RESOURCE, which ext4 asks for when it is grown in use.
fn may_exceed_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 24) != 0
}

/// A file of this size with this filesystem and a file in it.
fn image(w: &Datastores, path: &Path, filesystem: &str, size_mib: u64) {
    fs::File::create(path).unwrap().set_len(size_mib << 20).unwrap();
    let path = path.to_str().unwrap();
    let quiet = if filesystem.starts_with("ext") { "-qF" } else { "-q" };
    run(&format!("mkfs.{filesystem}"), &[quiet, path]);
    let at = w.dir.join("making");
    fs::create_dir_all(at.join("x")).unwrap();
    // In a mount namespace of its own: namespaces that other tests make meanwhile would take a mount of this one along, and
    // the filesystem would be written once more when they end.
    let script = "mount -o loop \"$0\" \"$1\" && printf kept >\"$1/inside\" && umount \"$1\"";
    run("unshare", &["--mount", "sh", "-c", script, path, at.to_str().unwrap()]);
}

fn uuid(path: &Path) -> String {
    run("blkid", &["-p", "-o", "value", "-s", "UUID", path.to_str().unwrap()])
}

#[test]
fn whole_filesystems_get_their_own_identity_and_grow() {
    for filesystem in ["ext4", "xfs", "btrfs"] {
        let test = format!("whole_filesystems_get_their_own_identity_and_grow/{filesystem}");
        let Some(w) = Datastores::new(&test, &[&format!("mkfs.{filesystem}"), "partx"]) else { return };
        // XFS is not made smaller than 300 MiB.
        let (small, large) = (320, 400);
        image(&w, &w.disk(0), filesystem, small);
        let before = uuid(&w.disk(0));
        fs::File::options().write(true).open(w.disk(0)).unwrap().set_len(large << 20).unwrap();
        let vm = vm(&format!(
            "<DISK><DISK_ID>0</DISK_ID><SIZE>{large}</SIZE><ORIGINAL_SIZE>{small}</ORIGINAL_SIZE><DRIVER>raw</DRIVER></DISK>"
        ));
        let mut mapper = w.mapper(&vm);
        let mapped = mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap();
        assert_eq!(mapped.filesystem, filesystem);
        assert_eq!(fs::read_to_string(w.at(0).join("inside")).unwrap(), "kept");
        let space = rustix::fs::statvfs(w.at(0)).unwrap();
        assert!(
            space.f_blocks * space.f_frsize > (small << 20),
            "{filesystem} has not grown: {} MiB",
            (space.f_blocks * space.f_frsize) >> 20
        );
        // Grown once more, in use.
        if filesystem == "ext4" && !may_exceed_limits() {
            println!(
                "SKIP {test}, grown in use: the kernel wants CAP_SYS_RESOURCE for it, which is not given here"
            );
            mapper.unmap_all().unwrap();
            w.clean();
            continue;
        }
        fs::File::options().write(true).open(w.disk(0)).unwrap().set_len(480 << 20).unwrap();
        wait(mapper.grow(DiskId(0), &w.at(0), 480)).unwrap();
        let space = rustix::fs::statvfs(w.at(0)).unwrap();
        assert!(space.f_blocks * space.f_frsize > (large << 20), "{filesystem} has not grown in use");
        mapper.unmap_all().unwrap();
        w.clean();
        assert_ne!(uuid(&w.disk(0)), before, "{filesystem} kept its UUID");
        assert!(!w.at(0).exists());
    }
}

#[test]
fn two_clones_are_mounted_side_by_side() {
    for filesystem in ["ext4", "xfs", "btrfs"] {
        let Some(w) =
            Datastores::new("two_clones_are_mounted_side_by_side", &[&format!("mkfs.{filesystem}")])
        else {
            return;
        };
        image(&w, &w.disk(0), filesystem, 320);
        fs::copy(w.disk(0), w.disk(1)).unwrap();
        let vm = vm("<DISK><DISK_ID>0</DISK_ID></DISK><DISK><DISK_ID>1</DISK_ID></DISK>");
        let mut mapper = w.mapper(&vm);
        for disk in &vm.disks {
            mapper.map(&vm, disk, &w.at(disk.id.0)).unwrap();
        }
        fs::write(w.at(0).join("only-on-0"), "").unwrap();
        assert!(!w.at(1).join("only-on-0").exists(), "{filesystem}: both are one");
        mapper.unmap_all().unwrap();
        w.clean();
    }
}

#[test]
fn volatile_disks_are_formatted_once() {
    let Some(w) = Datastores::new("volatile_disks_are_formatted_once", &["mkfs.ext4", "mkfs.xfs"]) else {
        return;
    };
    for id in [1, 2] {
        fs::File::create(w.disk(id)).unwrap().set_len(320 << 20).unwrap();
    }
    let vm = vm("<DISK><DISK_ID>1</DISK_ID><TYPE>fs</TYPE></DISK>\
                 <DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><FS>xfs</FS></DISK>");
    for round in 0..2 {
        let mut mapper = w.mapper(&vm);
        let kinds: Vec<String> =
            vm.disks.iter().map(|d| mapper.map(&vm, d, &w.at(d.id.0)).unwrap().filesystem).collect();
        assert_eq!(kinds, ["ext4", "xfs"]);
        let file = w.at(1).join("round");
        if round == 1 {
            assert_eq!(fs::read_to_string(&file).unwrap(), "0");
        }
        fs::write(&file, round.to_string()).unwrap();
        mapper.unmap_all().unwrap();
        w.clean();
    }
}

#[test]
fn what_is_not_blank_is_never_formatted() {
    let Some(w) = Datastores::new("what_is_not_blank_is_never_formatted", &["blkid"]) else { return };
    let mut bytes = vec![0; 32 << 20];
    bytes[5000] = 1;
    fs::write(w.disk(1), &bytes).unwrap();
    fs::write(w.disk(2), vec![0; 32 << 20]).unwrap();
    let vm = vm("<DISK><DISK_ID>1</DISK_ID><TYPE>fs</TYPE></DISK><DISK><DISK_ID>2</DISK_ID></DISK>");
    let mut mapper = w.mapper(&vm);
    for disk in &vm.disks {
        mapper.map(&vm, disk, &w.at(disk.id.0)).unwrap_err();
    }
    assert_eq!(fs::read(w.disk(1)).unwrap(), bytes);
    w.clean();
}

#[test]
fn read_only_disks_are_not_written() {
    let Some(w) = Datastores::new("read_only_disks_are_not_written", &["mkfs.ext4"]) else { return };
    image(&w, &w.dir.join("ds/1/image"), "ext4", 32);
    symlink(w.dir.join("ds/1/image"), w.disk(0)).unwrap();
    let before = fs::read(w.disk(0)).unwrap();
    let vm = vm(
        "<DISK><DISK_ID>0</DISK_ID><DATASTORE_ID>1</DATASTORE_ID><SOURCE>/ds/1/image</SOURCE><READONLY>YES</READONLY><SIZE>9</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE></DISK>",
    );
    let mut mapper = w.mapper(&vm);
    mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap();
    assert!(fs::write(w.at(0).join("new"), "").is_err());
    mapper.unmap_all().unwrap();
    w.clean();
    assert!(before == fs::read(w.disk(0)).unwrap(), "the image was changed");
}

/// A DOS table with swap, data and root, and a GPT one; entries of fstab by LABEL, UUID and PARTUUID.
fn partitioned(w: &Datastores, path: &Path, table: &str) {
    fs::File::create(path).unwrap().set_len(128 << 20).unwrap();
    let script = format!(
        "label: {table}\nstart=1MiB, size=8MiB, type=swap\nstart=10MiB, size=20MiB\nstart=32MiB, size=50MiB\nstart=84MiB, size=20MiB\n"
    );
    let mut child =
        Command::new("sfdisk").arg("-q").arg(path).stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let text = path.to_str().unwrap();
    let rows = run("partx", &["--raw", "--noheadings", "--output", "START,SECTORS,UUID", text]);
    let parts: Vec<(u64, u64, String)> = rows
        .lines()
        .map(|l| {
            let f: Vec<&str> = l.split(' ').collect();
            (f[0].parse().unwrap(), f[1].parse().unwrap(), f[2].to_owned())
        })
        .collect();
    let device = |n: usize| {
        let (start, sectors, _) = &parts[n];
        let offset = format!("--offset={}", start * 512);
        let size = format!("--sizelimit={}", sectors * 512);
        run("losetup", &["--find", "--show", &offset, &size, text]).trim().to_owned()
    };
    let at = w.dir.join("making");
    fs::create_dir_all(&at).unwrap();
    let devices: Vec<String> = (0..4).map(device).collect();
    run("mkswap", &[&devices[0]]);
    run("mkfs.ext4", &["-qF", "-L", "data", &devices[1]]);
    run("mkfs.ext4", &["-qF", &devices[2]]);
    run("mkfs.ext4", &["-qF", &devices[3]]);
    let id = run("blkid", &["-p", "-o", "value", "-s", "UUID", &devices[3]]);
    run("mount", &[&devices[2], at.to_str().unwrap()]);
    for directory in ["etc", "srv/data", "var/log", "real"] {
        fs::create_dir_all(at.join(directory)).unwrap();
    }
    // A link that would lead to the host's /etc if it were followed out of the image.
    symlink("/real", at.join("link")).unwrap();
    let fstab = format!(
        "UUID=none / ext4 defaults 0 1\nLABEL=data /srv/data ext4 defaults 0 2\nUUID={} /link ext4 defaults 0 2\nPARTUUID={} /var/log ext4 defaults 0 2\nLABEL=gone /etc ext4 nofail 0 0\n",
        id.trim(),
        parts[1].2
    );
    fs::write(at.join("etc/fstab"), fstab).unwrap();
    run("umount", &[at.to_str().unwrap()]);
    for (n, name) in [(1, "of-data"), (3, "of-fourth")] {
        run("mount", &[&devices[n], at.to_str().unwrap()]);
        fs::write(at.join(name), "").unwrap();
        run("umount", &[at.to_str().unwrap()]);
    }
    for device in devices {
        run("losetup", &["--detach", &device]);
    }
}

#[test]
fn partitions_are_mounted_as_their_fstab_says() {
    for table in ["dos", "gpt"] {
        let Some(w) = Datastores::new("partitions_are_mounted_as_their_fstab_says", &["sfdisk", "mkfs.ext4"])
        else {
            return;
        };
        partitioned(&w, &w.disk(0), table);
        let vm = vm("<DISK><DISK_ID>0</DISK_ID></DISK>");
        let mut mapper = w.mapper(&vm);
        mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap();
        assert!(w.at(0).join("srv/data/of-data").exists(), "{table}: LABEL");
        assert!(w.at(0).join("real/of-fourth").exists(), "{table}: UUID, through a link");
        assert!(w.at(0).join("var/log/of-data").exists(), "{table}: PARTUUID");
        fs::write(w.at(0).join("written"), "").unwrap();
        assert_eq!(mapper.notes.len(), 1, "{:?}", mapper.notes);
        let refused = wait(mapper.grow(DiskId(0), &w.at(0), 500)).unwrap_err();
        assert!(refused.to_string().contains("partitions"), "{refused}");
        mapper.unmap_all().unwrap();
        w.clean();
    }
}

#[test]
fn qcow2_images_with_backing_files() {
    let Some(w) =
        Datastores::new("qcow2_images_with_backing_files", &["qemu-img", "qemu-storage-daemon", "mkfs.xfs"])
    else {
        return;
    };
    if !Path::new("/dev/fuse").exists() {
        skipped("qcow2_images_with_backing_files", "no FUSE here");
        return;
    }
    let base = w.dir.join("ds/1/base");
    image(&w, &base, "xfs", 320);
    let backing = fs::read(&base).unwrap();
    let disk = w.disk(0);
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.to_str().unwrap(), disk.to_str().unwrap()],
    );
    let vm = vm(
        "<DISK><DISK_ID>0</DISK_ID><DATASTORE_ID>1</DATASTORE_ID><SOURCE>/ds/1/base</SOURCE><DRIVER>qcow2</DRIVER><CACHE>writeback</CACHE></DISK>",
    );
    for round in 0..2 {
        let mut mapper = w.mapper(&vm);
        mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap();
        assert_eq!(fs::read_to_string(w.at(0).join("inside")).unwrap(), "kept");
        assert_eq!(w.at(0).join("written").exists(), round == 1);
        fs::write(w.at(0).join("written"), "").unwrap();
        if round == 1 {
            wait(mapper.grow(DiskId(0), &w.at(0), 400)).unwrap();
            let space = rustix::fs::statvfs(w.at(0)).unwrap();
            assert!(space.f_blocks * space.f_frsize > (330 << 20), "the image has not grown in use");
        }
        mapper.unmap_all().unwrap();
        w.clean();
    }
    assert!(backing == fs::read(&base).unwrap(), "the backing file was changed");
    // The same, but backed by what is not the VM's: a file of the host, and another image of the datastore.
    let other = w.dir.join("ds/1/other");
    fs::copy(&base, &other).unwrap();
    for backing in ["/etc/hostname", other.to_str().unwrap()] {
        let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, disk.to_str().unwrap()];
        run("qemu-img", &rebase);
        let mut mapper = w.mapper(&vm);
        let error = mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap_err();
        assert!(error.to_string().contains("neither the VM's nor its image's"), "{error}");
        w.clean();
    }
}

#[test]
fn a_disk_that_a_guest_made_look_like_qcow2_stays_raw() {
    let Some(w) = Datastores::new("a_disk_that_a_guest_made_look_like_qcow2_stays_raw", &["qemu-img"]) else {
        return;
    };
    let disk = w.disk(0);
    run("qemu-img", &["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "16M"]);
    let vm = vm("<DISK><DISK_ID>0</DISK_ID><DRIVER>raw</DRIVER></DISK>");
    let error = w.mapper(&vm).map(&vm, &vm.disks[0], &w.at(0)).unwrap_err();
    assert!(error.to_string().contains("cannot be mounted"), "{error}");
    w.clean();
}

/// A volume as the LVM transfer driver leaves it: a link in the VM's directory to a block device.
#[test]
fn block_devices_behind_a_link() {
    let Some(w) = Datastores::new("block_devices_behind_a_link", &["mkfs.ext4", "losetup"]) else { return };
    let file = w.dir.join("volume");
    image(&w, &file, "ext4", 32);
    // It stands for a volume, which is not the driver's to remove.
    let volume = LoopDisk::of(&file);
    symlink(&volume.device, w.disk(0)).unwrap();
    let vm = vm("<DISK><DISK_ID>0</DISK_ID><DISK_TYPE>BLOCK</DISK_TYPE><DRIVER>raw</DRIVER></DISK>");
    let mut mapper = w.mapper(&vm);
    mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap();
    assert_eq!(fs::read_to_string(w.at(0).join("inside")).unwrap(), "kept");
    mapper.unmap_all().unwrap();
}

/// The process ends before each step in turn; what it left is undone by the next, and mapping works then.
#[test]
fn a_crash_before_any_step_leaves_nothing() {
    let programs = ["sfdisk", "mkfs.ext4", "qemu-img", "qemu-storage-daemon"];
    let Some(w) = Datastores::new("a_crash_before_any_step_leaves_nothing", &programs) else { return };
    partitioned(&w, &w.dir.join("ds/1/base"), "gpt");
    let disk = w.disk(0);
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", w.dir.join("ds/1/base").to_str().unwrap(), disk.to_str().unwrap()],
    );
    fs::File::create(w.disk(1)).unwrap().set_len(32 << 20).unwrap();
    let vm = vm("<DISK><DISK_ID>0</DISK_ID><DRIVER>qcow2</DRIVER></DISK>\
                 <DISK><DISK_ID>1</DISK_ID><TYPE>fs</TYPE></DISK>");
    let mut steps = 0;
    for crash_at in 0.. {
        // A panic stands for the crash: nothing of the mapper runs after it but what the kernel would do too.
        let mut done = 0;
        let crashed = catch_unwind(AssertUnwindSafe(|| {
            let mut mapper = w.mapper(&vm).observed(|_, _| {
                assert!(done < crash_at, "crash");
                done += 1;
            });
            for disk in &vm.disks {
                mapper.map(&vm, disk, &w.at(disk.id.0)).unwrap();
            }
        }))
        .is_err();
        let mut mapper = w.mapper(&vm);
        mapper.unmap_all().unwrap();
        w.clean();
        assert!(Journal::open(&w.dir.join("run/one-7")).unwrap().entries().is_empty());
        if !crashed {
            steps = done;
            break;
        }
    }
    assert!(steps > 12, "only {steps} steps");
    println!("crashed before each of {steps} steps");
}

#[test]
fn a_failed_disk_is_undone_at_once() {
    let Some(w) = Datastores::new("a_failed_disk_is_undone_at_once", &["mkfs.ext4"]) else { return };
    image(&w, &w.disk(0), "ext4", 32);
    // The mountpoint cannot be made: something is in its place.
    fs::create_dir_all(w.dir.join("run/one-7")).unwrap();
    fs::write(w.at(0), "in the way").unwrap();
    let vm = vm("<DISK><DISK_ID>0</DISK_ID></DISK>");
    let mut mapper = w.mapper(&vm);
    mapper.map(&vm, &vm.disks[0], &w.at(0)).unwrap_err();
    assert!(mapper.is_empty());
    w.clean();
}
