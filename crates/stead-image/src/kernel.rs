//! The kernel of a node image: the package is downloaded and opened without being installed (no initramfs tools), its ELF
//! kernel is unpacked, and its modules become a separate layer.

use crate::{
    bzimage, debian,
    error::{ImageError, IoContext, Result},
    source, squashfs,
    store::{Scratch, Store},
    tarball::{Entry, Kind, TarError, TarPolicy, Tree, walk},
    tools::{APT_CACHE, APT_GET, DEPMOD, DPKG_DEB, Invocation, Tool},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Stdio,
};
use stead_model::{Artifact, Digest, recipe::Debian};

/// The largest file of a kernel package that is held in memory, in bytes: bzImage, configuration.
const MAX_BOOT_FILE_BYTES: u64 = 256 << 20;

/// The parts of an image that come from its kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelParts {
    /// As `uname -r` prints it. Empty for a kernel without modules whose release is unknown.
    pub release: String,
    /// Uncompressed ELF kernel with a PVH entry.
    pub vmlinux: Artifact,
    /// The compressed kernel, if the input was compressed.
    pub bzimage: Option<Artifact>,
    /// The modules' layer, if it has modules.
    pub modules: Option<Artifact>,
    /// The real package and its version.
    pub package: Option<(String, String)>,
}

impl KernelParts {
    /// Digests of all its blobs.
    pub fn blobs(&self) -> Vec<Digest> {
        [Some(&self.vmlinux), self.bzimage.as_ref(), self.modules.as_ref()]
            .into_iter()
            .flatten()
            .map(|a| a.digest.clone())
            .collect()
    }
}

/// Where an image has its kernel's modules: `/lib` is a link into `/usr`.
pub const MODULES_DIR: &str = "usr/lib/modules";

/// Downloads and opens a kernel package, or the one that a metapackage depends on.
pub(crate) fn from_package(
    store: &Store,
    scratch: &Scratch,
    package: &str,
    debian: &Debian,
    mut note: impl FnMut(&str),
) -> Result<KernelParts> {
    let view = scratch.path("apt");
    let tmp = scratch.path("apt-tmp");
    fs::create_dir(&tmp).at("make", &tmp)?;
    note("querying the archive");
    debian::run_view(&debian::apt_view(debian, &view, &tmp)?, debian)?;
    let config = scratch.path("apt.conf");
    fs::write(&config, apt_config(&view)).at("write", &config)?;
    let apt = |tool: Tool, args: &[&str], cwd: &Path| {
        Invocation::new(tool, args.iter().copied()).env("APT_CONFIG", config.as_os_str()).cwd(cwd).output()
    };
    let show = |name: &str| -> Result<String> {
        let shown = apt(APT_CACHE, &["show", "--no-all-versions", name], scratch.dir());
        let text = shown.map(|out| String::from_utf8_lossy(&out).into_owned());
        match text {
            Ok(text) if text.contains("Package:") => Ok(text),
            Ok(_) | Err(ImageError::ToolFailed { .. }) => {
                Err(ImageError::NoPackage { package: name.to_owned(), suite: debian.suite.clone() })
            }
            Err(e) => Err(e),
        }
    };
    let mut control = show(package)?;
    let real = real_package(&control).unwrap_or_else(|| package.to_owned());
    if real != package {
        control = show(&real)?;
    }
    let version = field(&control, "Version").unwrap_or_default().to_owned();
    note(&format!("downloading {real}"));
    let downloads = scratch.path("deb");
    fs::create_dir(&downloads).at("make", &downloads)?;
    apt(APT_GET, &["download", "-q", &real], &downloads).map_err(|e| debian::explain(e, debian))?;
    let deb = only_file(&downloads)?;
    note("unpacking");
    let mut child = Invocation::new(DPKG_DEB, [std::ffi::OsStr::new("--fsys-tarfile"), deb.as_os_str()])
        .spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
    let modules = scratch.path("modules");
    let opened = open_package(child.stdout.take().expect("piped"), &modules);
    let status = child.wait().at("wait for", DPKG_DEB.name)?;
    let opened = opened.map_err(|source| ImageError::Archive { archive: real.clone(), source })?;
    crate::tools::check(DPKG_DEB.name, status, b"")?;
    let Some((release, image)) = opened.image else {
        return Err(ImageError::input(
            "kernel.package",
            format!("{package} depends on {real}, which has no /boot/vmlinuz"),
        ));
    };
    note("packing modules");
    let layer = modules_layer(store, scratch, &modules, &release, opened.config)?;
    let (vmlinux, bzimage) = kernel_blobs(store, &real, &image)?;
    Ok(KernelParts { release, vmlinux, bzimage, modules: layer, package: Some((real, version)) })
}

/// A kernel given as a file, with its modules, if any, below `modules/lib/modules/<release>`.
pub(crate) fn from_path(
    store: &Store,
    scratch: &Scratch,
    path: &Path,
    modules: Option<&Path>,
) -> Result<KernelParts> {
    let image = fs::read(path).at("read", path)?;
    let (vmlinux, bzimage) = kernel_blobs(store, &path.display().to_string(), &image)?;
    let mut parts = KernelParts { release: String::new(), vmlinux, bzimage, modules: None, package: None };
    let Some(modules) = modules else { return Ok(parts) };
    let dir = modules.join("lib/modules");
    let mut releases: Vec<String> = fs::read_dir(&dir)
        .at("list", &dir)?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| dir.join(n).is_dir())
        .collect();
    releases.sort();
    let [release] = &releases[..] else {
        return Err(ImageError::input(
            dir.display().to_string(),
            format!("contains {} kernel releases, not one", releases.len()),
        ));
    };
    let target = scratch.path("modules/lib/modules");
    fs::create_dir_all(&target).at("make", &target)?;
    copy_tree(&dir.join(release), &target.join(release))?;
    parts.modules = modules_layer(store, scratch, &scratch.path("modules"), release, None)?;
    parts.release = release.clone();
    Ok(parts)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).at("make", to)?;
    for entry in fs::read_dir(from).at("list", from)? {
        let entry = entry.at("list", from)?;
        let kind = entry.file_type().at("look at", entry.path())?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).at("copy", entry.path())?;
        }
        // Links (`build`, `source`) point to headers, which images do not contain.
    }
    Ok(())
}

fn kernel_blobs(store: &Store, name: &str, image: &[u8]) -> Result<(Artifact, Option<Artifact>)> {
    let vmlinux =
        bzimage::vmlinux(image).map_err(|source| ImageError::Kernel { path: name.to_owned(), source })?;
    let bzimage = if image.starts_with(b"\x7fELF") { None } else { Some(store.put(image)?) };
    Ok((store.put(&vmlinux)?, bzimage))
}

/// apt's configuration for the view in `dir`, independent of the host's.
fn apt_config(dir: &Path) -> String {
    let quoted = dir.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "Dir \"{quoted}\";\nDir::State::status \"{quoted}/var/lib/dpkg/status\";\nDir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::main \"/dev/null\";\nDir::Bin::dpkg \"dpkg\";\nAPT::Sandbox::User \"root\";\n\
         Dir::Log \"{quoted}/var/log/apt\";\nAcquire::Languages \"none\";\n"
    )
}

/// The real kernel package that a metapackage depends on, from its control fields.
fn real_package(control: &str) -> Option<String> {
    let depends = field(control, "Depends")?;
    depends
        .split(',')
        .filter_map(|d| d.split_whitespace().next())
        .find(|name| {
            name.starts_with("linux-image-")
                && name["linux-image-".len()..].starts_with(|c: char| c.is_ascii_digit())
        })
        .map(str::to_owned)
}

fn field<'a>(control: &'a str, name: &str) -> Option<&'a str> {
    control.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut found = None;
    for entry in fs::read_dir(dir).at("list", dir)? {
        found = Some(entry.at("list", dir)?.path());
    }
    found.ok_or_else(|| ImageError::Damaged { what: "apt-get downloaded nothing".into() })
}

#[derive(Debug, Default)]
struct Opened {
    /// Release and bytes of `/boot/vmlinuz-<release>`.
    image: Option<(String, Vec<u8>)>,
    config: Option<Vec<u8>>,
}

/// Reads kernel and configuration from a package's tar, and writes its modules below `modules`.
fn open_package(reader: impl Read, modules: &Path) -> Result<Opened, TarError> {
    let mut opened = Opened::default();
    let mut tree = Tree::default();
    walk(
        reader,
        &TarPolicy { devices: crate::tarball::Devices::Refuse, ..TarPolicy::BASE },
        |entry, data| {
            tree.add(&entry)?;
            let name = entry.name();
            let whole = |data: &mut dyn Read| {
                let mut bytes = Vec::new();
                data.take(MAX_BOOT_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(TarError::Read)?;
                if bytes.len() as u64 > MAX_BOOT_FILE_BYTES {
                    return Err(TarError::TooLarge {
                        what: "bytes in a file of /boot",
                        limit: MAX_BOOT_FILE_BYTES,
                    });
                }
                Ok::<_, TarError>(bytes)
            };
            if let Some(release) = name.strip_prefix("boot/vmlinuz-") {
                opened.image = Some((release.to_owned(), whole(data)?));
            } else if name.starts_with("boot/config-") {
                opened.config = Some(whole(data)?);
            } else if let Some(rest) = name.strip_prefix("usr/").unwrap_or(&name).strip_prefix("lib/modules/")
                && matches!(entry.kind, Kind::File(_))
            {
                // The path was checked: relative, without "..", and not below a link of this archive; `modules` is private.
                let target = modules.join("lib/modules").join(rest);
                let mut write = || -> io::Result<()> {
                    fs::create_dir_all(target.parent().unwrap_or(modules))?;
                    io::copy(data, &mut fs::File::create_new(&target)?).map(drop)
                };
                write().map_err(TarError::Write)?;
            }
            Ok(())
        },
    )?;
    Ok(opened)
}

/// Runs depmod and packs `usr/lib/modules/<release>` (and the kernel's configuration, which some programs look for).
fn modules_layer(
    store: &Store,
    scratch: &Scratch,
    root: &Path,
    release: &str,
    config: Option<Vec<u8>>,
) -> Result<Option<Artifact>> {
    let dir = root.join("lib/modules").join(release);
    if !dir.is_dir() {
        return Ok(None);
    }
    Invocation::new(DEPMOD, ["-b".as_ref(), root.as_os_str(), release.as_ref()]).output()?;
    squashfs::pack(store, scratch, "kernel", |sink| {
        let put = |sink: &mut squashfs::Sink, entry: &Entry, data: &mut dyn Read| {
            sink.put(entry, data).at("pack", entry.name())
        };
        for parent in ["usr", "usr/lib", MODULES_DIR] {
            put(sink, &Entry::directory(parent.as_bytes(), 0o755), &mut io::empty())?;
        }
        source::walk_dir(&dir, false, &mut |mut entry, data| {
            let mut path = format!("{MODULES_DIR}/{release}").into_bytes();
            if !entry.path.is_empty() {
                path.push(b'/');
                path.extend_from_slice(&entry.path);
            }
            entry.path = path;
            entry.mode = if entry.kind == Kind::Directory { 0o755 } else { 0o644 };
            put(sink, &entry, data)
        })?;
        if let Some(config) = &config {
            put(sink, &Entry::directory(b"boot", 0o755), &mut io::empty())?;
            let entry = Entry {
                kind: Kind::File(config.len() as u64),
                ..Entry::directory(format!("boot/config-{release}").as_bytes(), 0o644)
            };
            put(sink, &entry, &mut &config[..])?;
        }
        Ok(())
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metapackage_names_the_real_one() {
        let meta = "Package: linux-image-cloud-amd64\nVersion: 6.12.1-1\nDepends: linux-base, \
            linux-image-6.12.1+deb13-cloud-amd64 (= 6.12.1-1)\n";
        assert_eq!(real_package(meta).unwrap(), "linux-image-6.12.1+deb13-cloud-amd64");
        assert_eq!(field(meta, "Version"), Some("6.12.1-1"));
        let real = "Package: linux-image-6.1.0-9-cloud-amd64\nDepends: kmod, linux-base (>= 4.3~), initramfs-tools\n";
        assert_eq!(real_package(real), None);
    }
}
