//! Loop devices, mounts, cgroups and QEMU's storage daemon on this host. What cannot run here says `SKIP`.

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use stead_os::{
    LoopDevice, Program, cgroup, command,
    loops::{self, Options},
    mountinfo,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a test cannot run here; prints `SKIP` with the reason if so.
fn skip(name: &str, programs: &[&str]) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "needs root".to_owned()
    } else if let Some(missing) = programs.iter().find(|p| command::find(p).is_none()) {
        format!("there is no {missing}")
    } else {
        return false;
    };
    println!("SKIP {name}: {reason}");
    true
}

fn skip_loops(name: &str, programs: &[&str]) -> bool {
    let missing = !Path::new(loops::CONTROL).exists();
    if missing {
        println!("SKIP {name}: there is no {}", loops::CONTROL);
    }
    missing || skip(name, programs)
}

/// A mount that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

#[test]
fn mounts_of_any_name_are_found() {
    if skip("mounts_of_any_name_are_found", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let names: [&[u8]; 5] = [b"a b", b"c\td\ne", b"back\\slash\\040", b"#hash", b"\xff\xfe - "];
    let mut made = Vec::new();
    for name in names {
        let at = top.join(OsStr::from_bytes(name));
        fs::create_dir(&at).unwrap();
        mount(OsStr::from_bytes(name), &at, "tmpfs", MountFlags::NODEV | MountFlags::RDONLY, c"size=64k")
            .unwrap();
        made.push(Mounted(at));
    }
    let mounts = mountinfo::read().unwrap();
    for at in made.iter().map(|m| &m.0) {
        let found =
            mounts.iter().find(|m| m.at == *at).unwrap_or_else(|| panic!("{at:?} is not in the table"));
        assert_eq!(found.source.as_os_str(), at.file_name().unwrap());
        assert!(found.filesystem == "tmpfs" && found.is_read_only(), "{found:?}");
        assert!(found.options.iter().any(|o| o == "nodev") && found.root == Path::new("/"), "{found:?}");
        assert_eq!(mountinfo::holding(&mounts, &at.join("x/y")), Some(found));
    }
}

#[test]
fn a_window_of_a_file_is_a_device_that_is_found_by_its_file() {
    if skip_loops("a_window_of_a_file_is_a_device_that_is_found_by_its_file", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, link, other) = (dir.path().join("a b"), dir.path().join("link"), dir.path().join("other"));
    fs::write(&file, [vec![1; 4096], vec![2; 4096], vec![3; 4096]].concat()).unwrap();
    fs::hard_link(&file, &link).unwrap();
    fs::write(&other, vec![9; 4096]).unwrap();
    let window = Options { offset_bytes: 4096, limit_bytes: 4096, ..Default::default() };
    let device = LoopDevice::attach(&file, &window).unwrap();
    assert_eq!(fs::read(device.path()).unwrap(), vec![2; 4096]);
    let whole = Options { read_only: true, autoclear: true, direct_io: true, ..Default::default() };
    let second = LoopDevice::attach(&file, &whole).unwrap();
    assert_eq!(fs::read(second.path()).unwrap().len(), 12288);
    let denied = fs::OpenOptions::new().write(true).open(second.path()).and_then(|mut f| f.write_all(b"x"));
    assert!(denied.is_err(), "a read-only device was written to");

    let mut found = loops::find(&link).unwrap();
    assert_eq!(loops::find(&other).unwrap(), []);
    found.sort_by_key(|a| a.offset_bytes);
    assert_eq!(found, [second.attached().unwrap(), device.attached().unwrap()]);
    assert_eq!((found[1].offset_bytes, found[1].limit_bytes), (4096, 4096));
    assert!(found[0].read_only && found[0].autoclear && !found[1].read_only && !found[1].autoclear);
    assert!(!found[1].direct_io);

    // One device detaches by itself; the other stays until it is released.
    drop(second);
    let path = device.path().to_owned();
    drop(device);
    assert_eq!(loops::find(&file).unwrap().len(), 1);
    loops::detach(&path, PATIENCE).unwrap();
    assert_eq!(loops::find(&file).unwrap(), []);
    loops::detach(&path, PATIENCE).unwrap();
}

#[test]
fn a_device_in_use_is_waited_for_and_detaches_after_its_last_use() {
    if skip_loops("a_device_in_use_is_waited_for_and_detaches_after_its_last_use", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::write(&file, vec![0; 4096]).unwrap();
    let device = LoopDevice::attach(&file, &Options::default()).unwrap();
    let path = device.path().to_owned();
    let error = loops::detach(&path, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error:?}");
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || loops::detach(&path, PATIENCE)
    });
    drop(device);
    waiting.join().unwrap().unwrap();
    assert_eq!(loops::find(&file).unwrap(), []);
}

#[test]
fn a_device_takes_over_the_size_of_its_file() {
    if skip_loops("a_device_takes_over_the_size_of_its_file", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::write(&file, vec![0; 4096]).unwrap();
    let device = LoopDevice::attach(&file, &Options { autoclear: true, ..Default::default() }).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 20).unwrap();
    loops::refresh_size(device.path()).unwrap();
    assert_eq!(fs::read(device.path()).unwrap().len(), 1 << 20);
    drop(device);
}

#[test]
fn partitions_are_found_when_asked_for() {
    if skip_loops("partitions_are_found_when_asked_for", &["sfdisk", "partx"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let table = dir.path().join("table");
    fs::write(&table, "label: dos\nstart=2048, size=2048\nstart=4096, size=4096\n").unwrap();
    let mut sfdisk = Command::new("sfdisk");
    let done = sfdisk.arg("-q").arg(&file).stdin(fs::File::open(&table).unwrap()).status().unwrap();
    assert!(done.success());
    let plain = LoopDevice::attach(&file, &Options { autoclear: true, ..Default::default() }).unwrap();
    assert_eq!(loops::partitions(plain.path()).unwrap(), []);
    let options = Options { autoclear: true, partition_scan: true, ..Default::default() };
    let scanned = LoopDevice::attach(&file, &options).unwrap();
    let asked = |device: &LoopDevice| {
        let sys = Path::new("/sys/block").join(device.path().file_name().unwrap());
        fs::read_to_string(sys.join("loop/partscan")).unwrap().trim().to_owned()
    };
    assert_eq!((&*asked(&plain), &*asked(&scanned)), ("0", "1"));
    if loops::partitions(scanned.path()).unwrap().is_empty() {
        // A kernel built without support for partition tables gets the partitions by ioctl.
        Program::new("partx").arg("--add").arg(scanned.path()).run().unwrap();
    }
    let found = loops::partitions(scanned.path()).unwrap();
    let numbers: Vec<_> = found.iter().map(|p| (p.number, p.offset_bytes, p.size_bytes)).collect();
    assert_eq!(numbers, [(1, 1 << 20, 1 << 20), (2, 2 << 20, 2 << 20)]);
    assert_eq!(found[1].device.to_str(), Some(&*format!("{}p2", scanned.path().display())));
}

#[test]
fn a_program_and_its_children_are_in_their_group_from_the_start() {
    if skip("a_program_and_its_children_are_in_their_group_from_the_start", &[]) {
        return;
    }
    // A version 1 cpuset accepts no process before it is configured.
    let usable = |h: &cgroup::Hierarchy| !h.read_only && !h.has_v1("cpuset");
    let here: Vec<_> = cgroup::hierarchies(&mountinfo::read().unwrap()).into_iter().filter(usable).collect();
    if here.is_empty() {
        return println!(
            "SKIP a_program_and_its_children_are_in_their_group_from_the_start: there is no writable cgroup"
        );
    }
    struct Groups(Vec<PathBuf>);
    impl Drop for Groups {
        fn drop(&mut self) {
            for group in &self.0 {
                for _ in 0..500 {
                    cgroup::signal_below(group, rustix::process::Signal::KILL);
                    match fs::remove_dir(group) {
                        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                            std::thread::sleep(Duration::from_millis(10));
                        }
                        _ => break,
                    }
                }
            }
        }
    }
    let name = format!("stead-os-test-{}", std::process::id());
    let groups = Groups(here.iter().map(|h| h.root.join(&name)).collect());
    for group in &groups.0 {
        fs::create_dir(group).unwrap();
    }
    let entrance = cgroup::Entrance::open(&groups.0).unwrap();
    // The program's child prints its groups.
    let shell = Program::new("sh").args(["-c", "(cat /proc/self/cgroup)"]);
    let out = shell.run_with(|command| entrance.before_exec(command)).unwrap().text();
    let inside = out.lines().filter(|l| l.ends_with(&format!("/{name}"))).count();
    assert_eq!(inside, groups.0.len(), "{out}");

    // All processes of a group can be found and killed.
    let entrance = cgroup::Entrance::open(&groups.0).unwrap();
    let shell = Program::new("sh").args(["-c", "sleep 1000 & sleep 1000 & echo started"]);
    shell.run_with(|command| entrance.before_exec(command)).unwrap();
    for group in &groups.0 {
        assert_eq!(cgroup::processes_below(group).len(), 2, "{}", group.display());
    }
    cgroup::signal_below(&groups.0[0], rustix::process::Signal::KILL);
    while !groups.0.iter().all(|group| cgroup::processes_below(group).is_empty()) {
        std::thread::sleep(Duration::from_millis(5));
    }

    // A group that does not exist is an error before the child starts.
    let gone = groups.0.iter().map(|g| g.join("gone"));
    assert_eq!(cgroup::Entrance::open(gone).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[cfg(feature = "qmp")]
#[tokio::test(flavor = "current_thread")]
async fn a_real_daemon_grows_an_image() {
    use stead_os::qmp::{BlockResize, Qmp, QmpError, SystemPowerdown};
    let name = "a_real_daemon_grows_an_image";
    if let Some(missing) = ["qemu-storage-daemon", "qemu-img"].iter().find(|p| command::find(p).is_none()) {
        return println!("SKIP {name}: there is no {missing}");
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let show = image.to_str().unwrap();
    Program::new("qemu-img").args(["create", "-q", "-f", "qcow2", show, "1M"]).run().unwrap();
    let socket = dir.path().join("qmp");
    let mut daemon = tokio::process::Command::new("qemu-storage-daemon")
        .args(["--blockdev", &format!("driver=file,node-name=file,filename={show}")])
        .args(["--blockdev", "driver=qcow2,node-name=disk,file=file"])
        .args(["--chardev", &format!("socket,id=qmp,server=on,wait=off,path={}", socket.display())])
        .args(["--monitor", "chardev=qmp"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let qmp = Qmp::connect(&socket, PATIENCE).await.unwrap();
    let grow = |node: &str| BlockResize { node_name: node.into(), size: 2 << 20 };
    qmp.execute(&grow("disk"), PATIENCE).await.unwrap();
    let refused = qmp.execute(&grow("none"), PATIENCE).await.unwrap_err();
    assert!(matches!(&refused, QmpError::Refused { refusal, .. } if !refusal.desc.is_empty()), "{refused:?}");
    // A storage daemon has no power button.
    let unknown = qmp.execute(&SystemPowerdown {}, PATIENCE).await.unwrap_err();
    assert!(
        matches!(&unknown, QmpError::Refused { refusal, .. } if refusal.class == "CommandNotFound"),
        "{unknown:?}"
    );
    daemon.kill().await.unwrap();
    assert_eq!(qmp.event().await, None);
    let info = Program::new("qemu-img").args(["info", "--output=json", show]).run().unwrap().text();
    assert!(info.contains("\"virtual-size\": 2097152"), "{info}");
}
