//! A minimal system container that starts, runs commands and stops on request: busybox under a shell script.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Metadata and root of an image for [`stead_incus::Client::upload_image`].
#[derive(Debug, Clone)]
pub struct TinyImage {
    /// A tar with `metadata.yaml`.
    pub metadata: PathBuf,
    /// A tar of the root.
    pub rootfs: PathBuf,
}

/// Path of busybox in Debian's package `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// An init that ends on SIGPWR, by which the engines ask a container to shut down.
const INIT: &str =
    "#!/bin/sh\ntrap 'exit 0' PWR TERM\necho tiny > /dev/console\nwhile true; do sleep 1 & wait $!; done\n";

/// The commands in the image: all that tests run.
const APPLETS: &[&str] = &[
    "sh", "sleep", "cat", "echo", "ls", "id", "pwd", "env", "stty", "true", "false", "wc", "head", "kill",
    "stat",
];

/// Creates the two files in `directory`. `flavour` is written into the image, so that images differ.
///
/// # Errors
/// busybox is not installed, or the files cannot be written.
pub fn tiny(directory: &Path, flavour: &str) -> io::Result<TinyImage> {
    let metadata = directory.join(format!("{flavour}-metadata.tar"));
    let rootfs = directory.join(format!("{flavour}-rootfs.tar"));
    let mut tar = tar::Builder::new(fs::File::create(&metadata)?);
    let yaml = format!(
        "architecture: x86_64\ncreation_date: 1735689600\nproperties:\n  description: {flavour}\n  os: Busybox\n"
    );
    file(&mut tar, "metadata.yaml", 0o644, yaml.as_bytes())?;
    tar.into_inner()?.sync_all()?;

    let mut tar = tar::Builder::new(fs::File::create(&rootfs)?);
    for name in ["bin", "sbin", "dev", "proc", "sys", "tmp", "etc", "root", "run"] {
        let mut header = header(0o755, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, name, io::empty())?;
    }
    file(&mut tar, "bin/busybox", 0o755, &fs::read(BUSYBOX)?)?;
    for name in APPLETS {
        let mut header = header(0o777, 0);
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox")?;
    }
    file(&mut tar, "sbin/init", 0o755, INIT.as_bytes())?;
    file(
        &mut tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    )?;
    file(&mut tar, "etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n")?;
    file(&mut tar, "etc/flavour", 0o644, flavour.as_bytes())?;
    tar.into_inner()?.sync_all()?;
    Ok(TinyImage { metadata, rootfs })
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_735_689_600);
    header
}
fn file(tar: &mut tar::Builder<fs::File>, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(mode, contents.len() as u64), path, contents)
}
