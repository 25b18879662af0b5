//! What is packed and unpacked is what there was, or is named.

use super::{
    pack::{Packer, Source},
    unpack::{Target, Top, UnpackError, is_tree},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

fn packed(path: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    Source::find(path.into()).unwrap().pack(&mut tar).unwrap();
    tar
}

fn unpacked(tar: &[u8], into: &Path, top: Top<'_>) -> Result<(), UnpackError> {
    Target::open(into.into())?.unpack(&mut &*tar, top)
}

#[test]
fn special_files_are_copied_or_named_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("a")).unwrap();
    let _socket = UnixListener::bind(tree.join("a/socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("a/fifo"), rustix::fs::Mode::from_raw_mode(0o620))
        .unwrap();
    fs::set_permissions(tree.join("a/fifo"), fs::Permissions::from_mode(0o620)).unwrap();
    let device = rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("a/device"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o600),
        rustix::fs::makedev(1, 3),
    );
    fs::write(tree.join("z"), "last").unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let Err(UnpackError::Skipped { named, count }) = unpacked(&packed(&tree), &to, Top::Kept) else {
        panic!("nothing was left out");
    };
    assert!(named.contains(&"tree/a/socket: is a socket".to_owned()), "{named:?}");
    assert_eq!(count, if device.is_ok() { 2 } else { 1 }, "{named:?}");
    assert_eq!(device.is_ok(), named.contains(&"tree/a/device: is a device node".to_owned()));
    let fifo = fs::symlink_metadata(to.join("tree/a/fifo")).unwrap();
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o777 == 0o620);
    assert_eq!(fs::read_to_string(to.join("tree/z")).unwrap(), "last");
}

/// Their sizes are 0 or a page, whatever they hold.
#[test]
fn files_of_the_kernel_arrive_whole() {
    for file in ["/proc/version", "/sys/devices/virtual/net/lo/mtu", "/proc/sys/kernel/ostype"] {
        let dir = tempfile::tempdir().unwrap();
        unpacked(&packed(Path::new(file)), dir.path(), Top::Renamed(OsStr::new("copy"))).unwrap();
        assert_eq!(fs::read(dir.path().join("copy")).unwrap(), fs::read(file).unwrap(), "{file}");
    }
}

/// Changes the file when its header has been written.
struct Meddler<'a> {
    tar: Vec<u8>,
    file: &'a Path,
    length: u64,
}

impl Write for Meddler<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        File::options().write(true).open(self.file)?.set_len(self.length)?;
        self.tar.extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_grows_or_shrinks_does_not_break_the_stream() {
    for length in [0, 1000, 300_000, 3_000_000] {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let file = tree.join("living");
        fs::write(&file, vec![b'x'; 200_000]).unwrap();
        let mut meddler = Meddler { tar: Vec::new(), file: &file, length };
        let mut packer = Packer::new(&mut meddler);
        packer.add(&Source::find(file.clone()).unwrap(), OsStr::new("living")).unwrap();
        packer.add(&Source::find("/proc/version".into()).unwrap(), OsStr::new("after")).unwrap();
        packer.finish().unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        unpacked(&meddler.tar, &to, Top::Kept).unwrap();
        let copy = fs::read(to.join("living")).unwrap();
        assert_eq!(copy.len(), 200_000, "{length}");
        assert!(copy.iter().all(|b| [b'x', 0].contains(b)));
        assert_eq!(fs::read(to.join("after")).unwrap(), fs::read("/proc/version").unwrap());
    }
}

#[test]
fn holes_travel_as_zeros_and_are_holes_again() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = dir.path().join("sparse");
    let mut file = File::create(&sparse).unwrap();
    file.set_len(8 << 20).unwrap();
    io::Seek::seek(&mut file, io::SeekFrom::Start(5 << 20)).unwrap();
    file.write_all(b"here").unwrap();
    let tar = packed(&sparse);
    for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
        assert_eq!(entry.unwrap().header().entry_type(), tar::EntryType::Regular);
    }
    unpacked(&tar, dir.path(), Top::Renamed(OsStr::new("copy"))).unwrap();
    let (was, is) = (fs::metadata(&sparse).unwrap(), fs::metadata(dir.path().join("copy")).unwrap());
    assert_eq!(was.len(), is.len());
    assert!(is.blocks() * 512 < 1 << 20, "{} blocks", is.blocks());
    assert_eq!(fs::read(&sparse).unwrap(), fs::read(dir.path().join("copy")).unwrap());
}

#[test]
fn sparse_members_of_others_are_refused_by_name() {
    let mut tar = tar::Builder::new(Vec::new());
    let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n";
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(records.len() as u64);
    header.set_path("pax").unwrap();
    header.set_cksum();
    tar.append(&header, &records[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(512);
    header.set_mode(0o644);
    header.set_path("GNUSparseFile.0/disk").unwrap();
    header.set_cksum();
    tar.append(&header, &[b'1'; 512][..]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = unpacked(&tar.into_inner().unwrap(), dir.path(), Top::Kept).unwrap_err().to_string();
    assert!(error.contains("GNUSparseFile.0/disk") && error.contains("sparse"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_tree_keeps_its_links_modes_and_times_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/file"), "x").unwrap();
    symlink("closed/file", tree.join("link.txt")).unwrap();
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let old = fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000));
    File::open(tree.join("closed")).unwrap().set_times(old).unwrap();
    let tar = packed(&tree);
    assert!(is_tree(&mut tar.as_slice()).unwrap());
    for (top, at) in [(Top::Kept, "tree"), (Top::Renamed(OsStr::new("new")), "new"), (Top::Removed, "")] {
        let to = tempfile::tempdir().unwrap();
        unpacked(&tar, to.path(), top).unwrap();
        let copy = to.path().join(at);
        assert_eq!(fs::read_to_string(copy.join("closed/file")).unwrap(), "x");
        assert_eq!(fs::read_link(copy.join("link.txt")).unwrap(), Path::new("closed/file"));
        let closed = fs::metadata(copy.join("closed")).unwrap();
        assert_eq!((closed.mode() & 0o777, closed.mtime()), (0o555, 1_000_000), "{at}");
        fs::set_permissions(copy.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let nameless = packed(&tree.join("closed/.."));
    for (top, at) in [(Top::Kept, ""), (Top::Renamed(OsStr::new("new")), "new"), (Top::Removed, "")] {
        let to = tempfile::tempdir().unwrap();
        unpacked(&nameless, to.path(), top).unwrap();
        let copy = to.path().join(at);
        assert_eq!(fs::read_to_string(copy.join("closed/file")).unwrap(), "x", "{top:?}");
        assert_eq!(fs::read_link(copy.join("link.txt")).unwrap(), Path::new("closed/file"));
        fs::set_permissions(copy.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let link = packed(&tree.join("link.txt"));
    assert!(!is_tree(&mut link.as_slice()).unwrap());
    let to = tempfile::tempdir().unwrap();
    unpacked(&link, to.path(), Top::Kept).unwrap();
    assert!(
        fs::symlink_metadata(to.path().join("link.txt")).unwrap().is_symlink(),
        "a link keeps its own name"
    );
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}
