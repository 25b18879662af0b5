//! Debian bases by mmdebstrap: its invocation as a value, what is left out of its result, and what its failures mean.

use crate::{
    error::{ImageError, IoContext, Result},
    secrets::{self, Identity},
    squashfs::EPOCH,
    tarball::{Entry, Kind, TarPolicy, Tree, walk},
    tools::{self, Invocation, MMDEBSTRAP},
};
use rustix::thread::UnshareFlags;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufReader, Read},
    path::Path,
    process::{Child, Stdio},
    thread,
};
use stead_model::recipe::Debian;

/// Directories that only people on a full system read.
const FOR_READERS: [&str; 6] = [
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
];
/// Only copyright files are kept of this directory: images are redistributed.
const DOC: &str = "usr/share/doc";

/// Makes dpkg not even unpack what [`keep`] leaves out. mmdebstrap's own `--dpkgopt=path-exclude` would pipe every
/// essential package through a Python filter: 10 s of 45. The hook writes the option into the tree instead, once the
/// essential packages are unpacked. The text is constant and run by a shell.
const EXCLUDE_HOOK: &str = r#"--extract-hook=printf 'path-exclude=/usr/share/%s/*\n' bash-completion bug doc info lintian locale man >"$1/etc/dpkg/dpkg.cfg.d/98excludes" && echo 'path-include=/usr/share/doc/*/copyright' >>"$1/etc/dpkg/dpkg.cfg.d/98excludes""#;

/// mmdebstrap gives the tree the build host's name, which packages write into their configuration.
const HOSTNAME_HOOK: &str = r#"--extract-hook=echo localhost >"$1/etc/hostname""#;

/// Temporary space of a bootstrap, in bytes: downloaded packages, the tree, the packed layer. Measured 480 MB for the
/// largest shipped recipe.
pub const SPACE_NEEDED: u64 = 1 << 30;

/// The archive that packages come from: `mirror`, followed by the snapshot's timestamp when one is pinned.
///
/// # Errors
/// A snapshot without a mirror.
pub fn archive(debian: &Debian) -> Result<Option<String>> {
    match (&debian.mirror, &debian.snapshot) {
        (Some(mirror), Some(at)) => Ok(Some(format!("{}/{at}/", mirror.trim_end_matches('/')))),
        (Some(mirror), None) => Ok(Some(mirror.clone())),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(ImageError::input(
            "base.debian.snapshot",
            "needs \"mirror\": the address of a snapshot archive, below which each timestamp is a directory",
        )),
    }
}

/// Debian's own archive, and its security updates.
const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY_ARCHIVE: &str = "http://deb.debian.org/debian-security";

fn invocation(debian: &Debian, variant: &str, packages: &[String], tmp: &Path) -> Result<Invocation> {
    let mut args: Vec<String> = vec![
        "--mode=root".into(),
        format!("--variant={variant}"),
        // Only the host's architecture is built, so QEMU's user emulation is not checked.
        "--skip=check/qemu".into(),
    ];
    if !debian.components.is_empty() {
        args.push(format!("--components={}", debian.components.join(",")));
    }
    if !packages.is_empty() {
        args.push(format!("--include={}", packages.join(",")));
    }
    if debian.snapshot.is_some() {
        args.push("--aptopt=Acquire::Check-Valid-Until \"false\"".into());
    }
    Ok(Invocation::new(MMDEBSTRAP, args)
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .env("TMPDIR", tmp.as_os_str()))
}

/// mmdebstrap writing the base as a tar to standard output.
///
/// # Errors
/// See [`archive`].
pub fn bootstrap(debian: &Debian, tmp: &Path) -> Result<Invocation> {
    // Essential packages only: an immutable node does not need apt. An instance's recipe names it.
    let mut run = invocation(debian, "essential", &debian.packages, tmp)?;
    run.args.extend([
        EXCLUDE_HOOK.into(),
        HOSTNAME_HOOK.into(),
        "--format=tar".into(),
        debian.suite.clone().into(),
        "-".into(),
    ]);
    run.args.extend(sources(debian)?.into_iter().map(Into::into));
    Ok(run)
}

/// Package sources in mmdebstrap's syntax: none for Debian's own archive, an address, or a line of sources.list for
/// each suite when a package is wanted from another one (`incus-base/trixie-backports`).
fn sources(debian: &Debian) -> Result<Vec<String>> {
    let archive = archive(debian)?;
    let others: BTreeSet<&str> = debian
        .packages
        .iter()
        .filter_map(|p| Some(p.split_once('/')?.1))
        .filter(|suite| *suite != debian.suite)
        .collect();
    if others.is_empty() {
        return Ok(archive.into_iter().collect());
    }
    let components =
        if debian.components.is_empty() { "main".to_owned() } else { debian.components.join(" ") };
    let from = archive.as_deref().unwrap_or(ARCHIVE);
    let mut lines = vec![format!("deb {from} {} {components}", debian.suite)];
    if debian.mirror.is_none() {
        // As mmdebstrap does when it is given no source.
        lines.push(format!("deb {from} {}-updates {components}", debian.suite));
        lines.push(format!("deb {SECURITY_ARCHIVE} {}-security {components}", debian.suite));
    }
    lines.extend(others.iter().map(|suite| format!("deb {from} {suite} {components}")));
    Ok(lines)
}

/// mmdebstrap preparing only apt's view of the archive in `dir`, from which single packages are downloaded.
///
/// # Errors
/// See [`archive`].
pub fn apt_view(debian: &Debian, dir: &Path, tmp: &Path) -> Result<Invocation> {
    let mut run = invocation(debian, "extract", &[], tmp)?;
    run.args.retain(|a| a != "--skip=check/qemu");
    run.args.extend([
        "--skip=check/qemu,cleanup".into(),
        "--format=directory".into(),
        debian.suite.clone().into(),
        dir.as_os_str().to_owned(),
    ]);
    run.args.extend(archive(debian)?.map(Into::into));
    Ok(run)
}

/// Runs mmdebstrap (only for its effects).
pub fn run_view(run: &Invocation, debian: &Debian) -> Result<()> {
    run.output().map(drop).map_err(|e| explain(e, debian))
}

/// Result of a bootstrap besides its files.
#[derive(Debug, Default)]
pub struct Bootstrapped {
    /// Installed packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// Names of the identities left out ([`secrets::IDENTITIES`]), sorted.
    pub left_out: BTreeSet<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The host name that packages see during a bootstrap.
const BUILD_HOST: &str = "localhost";

/// Starts mmdebstrap where the host is called [`BUILD_HOST`]: keys, certificates and mail configuration contain the name
/// of the host they were made on. The calling thread gets its own UTS namespace, so it should do nothing else.
#[allow(unsafe_code)]
fn spawn_nameless(run: &Invocation) -> Result<Child> {
    // SAFETY: only CLONE_FILES could take file descriptors away from other owners; this asks for a new UTS namespace,
    // which holds only the host's name.
    let own = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUTS) };
    // Where that is not permitted, the files that contain the name are still left out.
    if own.is_ok() {
        rustix::system::sethostname(BUILD_HOST.as_bytes()).at("set", "the host name of a bootstrap")?;
    }
    run.spawn(Stdio::null(), Stdio::piped(), Stdio::piped())
}

/// Runs mmdebstrap and passes each entry of its result that an image keeps to `put`.
pub fn stream(
    run: &Invocation,
    debian: &Debian,
    mut note: impl FnMut(&str) + Send,
    mut put: impl FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<Bootstrapped> {
    thread::scope(|scope| {
        let starter = scope.spawn(|| spawn_nameless(run));
        let mut child = starter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let stdout = BufReader::with_capacity(1 << 20, child.stdout.take().expect("piped"));
        let stderr = child.stderr.take().expect("piped");
        let reader = scope.spawn(move || {
            tools::drain_lines(stderr, |line| {
                if let Some(text) = line.strip_prefix("I: ") {
                    note(text.trim_end_matches('.'));
                }
            })
        });
        let mut result = Bootstrapped::default();
        let walked = filter(stdout, &mut result, &mut put);
        if walked.is_err() {
            // It may still be running; on SIGTERM it removes its temporary tree.
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let status = child.wait().at("wait for", MMDEBSTRAP.name)?;
        let stderr = reader.join().unwrap_or_default();
        // mmdebstrap's own error comes first: when it fails, the tar is truncated too.
        match walked {
            Err(e @ ImageError::Archive { source: crate::tarball::TarError::Write(_), .. }) => Err(e),
            walked => {
                tools::check(MMDEBSTRAP.name, status, &stderr).map_err(|e| explain(e, debian))?;
                walked.map(|()| result)
            }
        }
    })
}

fn filter(
    reader: impl Read,
    result: &mut Bootstrapped,
    put: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<()> {
    use crate::tarball::TarError::Write;
    let mut tree = Tree::default();
    walk(reader, &TarPolicy::BASE, |entry, data| {
        let text = String::from_utf8_lossy(&entry.path).into_owned();
        match keep(&text, &entry.kind) {
            Keep::No => return Ok(()),
            Keep::Never(identity) => {
                result.left_out.insert(identity.name.to_owned());
                return Ok(());
            }
            Keep::Empty => {
                let empty = Entry { kind: Kind::File(0), xattrs: Vec::new(), ..entry };
                tree.add(&empty)?;
                return put(&empty, &mut io::empty()).map_err(Write);
            }
            Keep::Yes => {}
        }
        if tree.add(&entry)? {
            return Err(crate::tarball::TarError::Refused { entry: text, why: "is there twice".into() });
        }
        if text == "var/lib/dpkg/status" {
            let mut status = Vec::new();
            data.read_to_end(&mut status).map_err(crate::tarball::TarError::Read)?;
            result.packages = installed(&String::from_utf8_lossy(&status));
            return put(&entry, &mut &status[..]).map_err(Write);
        }
        secrets::inspect(&entry, data, &mut result.warnings, put).map_err(Write)
    })
    .map_err(|source| ImageError::Archive { archive: "output of mmdebstrap".into(), source })
}

#[derive(Debug, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
    /// Kept without its contents, which come from the build.
    Empty,
    /// Left out: it belongs to one machine.
    Never(&'static Identity),
}

/// What goes into an image from a bootstrapped tree: nothing that reveals when, where or on which machine it was made.
fn keep(path: &str, kind: &Kind) -> Keep {
    let below = |dir: &str| path.strip_prefix(dir).is_some_and(|r| r.starts_with('/'));
    if ["etc/machine-id", "etc/resolv.conf"].contains(&path) {
        return Keep::Empty;
    }
    if let Some(identity) = secrets::identity(path, kind) {
        return Keep::Never(identity);
    }
    if let Some(doc) = path.strip_prefix(DOC).and_then(|rest| rest.strip_prefix('/')) {
        let of_package = match doc.split_once('/') {
            None => true,
            Some((_, name)) => name == "copyright",
        };
        return if of_package { Keep::Yes } else { Keep::No };
    }
    if FOR_READERS.iter().any(|d| below(d)) {
        return Keep::No;
    }
    let dropped_below = ["dev", "proc", "sys", "run", "tmp", "var/tmp", "var/cache/apt", "var/lib/apt/lists"];
    if dropped_below.iter().any(|d| below(d)) {
        return Keep::No;
    }
    let file = !matches!(kind, Kind::Directory);
    // Caches are regenerated when missing, except debconf's, which holds answers.
    let cache = below("var/cache")
        && (!below("var/cache/debconf") || path.ends_with("-old") || path.ends_with("/passwords.dat"));
    if file && (below("var/log") || cache) {
        return Keep::No;
    }
    let dropped = [
        // Not made by a package, but by the build.
        "etc/hostname",
        "etc/hosts",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/98excludes",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
        "etc/.pwd.lock",
    ];
    let backup = file
        && ((path.starts_with("etc/") && path.ends_with('-') && !path[4..].contains('/'))
            || (path.starts_with("var/lib/dpkg/") && path.ends_with("-old")));
    // The interpreter regenerates it when missing, with timestamps in it.
    let bytecode = path.split('/').any(|p| p == "__pycache__");
    if dropped.contains(&path) || backup || bytecode { Keep::No } else { Keep::Yes }
}

/// Installed packages and their versions, from dpkg's status file.
pub fn installed(status: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for paragraph in status.split("\n\n") {
        let field = |name: &str| {
            paragraph.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        if let (Some(package), Some(version)) = (field("Package"), field("Version"))
            && field("Status").is_some_and(|s| s.ends_with(" installed"))
        {
            out.insert(package.to_owned(), version.to_owned());
        }
    }
    out
}

/// What a failure of mmdebstrap or apt means.
pub fn explain(error: ImageError, debian: &Debian) -> ImageError {
    let ImageError::ToolFailed { tool, status, stderr } = error else { return error };
    let suite = match &debian.mirror {
        Some(mirror) => format!("{} of {mirror}", debian.suite),
        None => debian.suite.clone(),
    };
    for line in stderr.lines() {
        let line = line.trim_start_matches("E: ").trim();
        if let Some(package) = line.strip_prefix("Unable to locate package ") {
            return ImageError::NoPackage { package: package.trim().to_owned(), suite };
        }
        if let Some(rest) = line.strip_prefix("Package '")
            && let Some((package, rest)) = rest.split_once('\'')
            && rest.contains("no installation candidate")
        {
            return ImageError::NoPackage { package: package.to_owned(), suite };
        }
    }
    let find = |words: &[&str]| stderr.lines().find(|l| words.iter().any(|w| l.contains(w)));
    if let Some(line) =
        find(&["does not have a Release file", "404  Not Found", "no longer has a Release file"])
    {
        return ImageError::NoSuite { suite, detail: line.trim_start_matches("E: ").trim().to_owned() };
    }
    if stderr.contains("No space left on device") {
        return ImageError::ToolFailed { tool, status, stderr: "no space left on device".into() };
    }
    let unreachable = [
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Connection refused",
        "Connection failed",
        "Connection timed out",
        "Network is unreachable",
        "Unable to connect",
    ];
    if let Some(line) = find(&unreachable) {
        return ImageError::Mirror { detail: line.trim_start_matches("E: ").trim().to_owned() };
    }
    ImageError::ToolFailed { tool, status, stderr }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Failure;

    #[test]
    fn a_package_of_another_suite_brings_its_source() {
        let mut d = debian();
        assert_eq!(sources(&d).unwrap(), Vec::<String>::new());
        d.packages.extend(["incus-base/trixie-backports".into(), "kmod/trixie".into()]);
        assert_eq!(
            sources(&d).unwrap(),
            [
                "deb http://deb.debian.org/debian trixie main",
                "deb http://deb.debian.org/debian trixie-updates main",
                "deb http://deb.debian.org/debian-security trixie-security main",
                "deb http://deb.debian.org/debian trixie-backports main",
            ]
        );
        d.mirror = Some("http://m/debian".into());
        d.components = vec!["main".into(), "contrib".into()];
        assert_eq!(
            sources(&d).unwrap(),
            ["deb http://m/debian trixie main contrib", "deb http://m/debian trixie-backports main contrib"]
        );
    }

    fn debian() -> Debian {
        Debian {
            suite: "trixie".into(),
            packages: vec!["kmod".into(), "iproute2".into()],
            mirror: None,
            snapshot: None,
            components: vec![],
        }
    }

    #[test]
    fn invocation_does_not_name_the_host() {
        let argv = bootstrap(&debian(), Path::new("/t")).unwrap().argv();
        assert_eq!(argv.last().unwrap(), "-");
        assert!(argv.contains(&"--include=kmod,iproute2".to_owned()));
        assert!(!argv.iter().any(|a| a.contains("//")), "{argv:?}");
        let pinned = Debian {
            mirror: Some("http://mirror.test/archive/".into()),
            snapshot: Some("20261101T000000Z".into()),
            ..debian()
        };
        let argv = bootstrap(&pinned, Path::new("/t")).unwrap().argv();
        assert_eq!(argv.last().unwrap(), "http://mirror.test/archive/20261101T000000Z/");
        let e = bootstrap(&Debian { mirror: None, ..pinned }, Path::new("/t")).unwrap_err();
        assert!(e.is_bad_input() && e.to_string().contains("needs \"mirror\""));
    }

    #[test]
    fn failures_are_explained() {
        let failed = |stderr: &str| {
            let e = ImageError::ToolFailed {
                tool: "mmdebstrap".into(),
                status: "1".into(),
                stderr: stderr.into(),
            };
            explain(e, &debian())
        };
        let e = failed("I: installing\nE: Unable to locate package no-such-thing\nE: apt-get failed");
        assert_eq!(e.to_string(), "no package no-such-thing in Debian trixie");
        assert!(e.is_bad_input());
        let e = failed(
            "Err:1 http://x trixie InRelease\n  Could not connect to x:80 (127.0.0.1). - connect (111: Connection refused)",
        );
        assert!(matches!(e, ImageError::Mirror { .. }) && !e.is_bad_input(), "{e}");
        let e = failed("E: The repository 'http://x nosuch Release' does not have a Release file.");
        assert!(e.is_bad_input() && e.to_string().contains("trixie"), "{e}");
    }

    #[test]
    fn traces_of_the_build_are_left_out() {
        let file = Kind::File(1);
        for path in [
            "dev/null",
            "run/lock",
            "tmp/x",
            "etc/passwd-",
            "var/lib/dpkg/status-old",
            "var/log/dpkg.log",
            "usr/lib/python3/__pycache__/a.pyc",
            "etc/hostname",
            "var/cache/apt/pkgcache.bin",
            "usr/share/doc/tar/changelog.gz",
            "usr/share/doc/tar/examples/copyright",
            "usr/share/man/man1/tar.1.gz",
            "etc/hosts",
            "var/cache/fontconfig/CACHEDIR.TAG",
            "var/cache/ldconfig/aux-cache",
            "var/cache/debconf/passwords.dat",
        ] {
            assert_eq!(keep(path, &file), Keep::No, "{path}");
        }
        for path in [
            "etc/passwd",
            "dev",
            "run",
            "usr/lib/x",
            "usr/share/doc/tar/copyright",
            "usr/share/man",
            "var/lib/dpkg/status",
            "etc/a/b-",
            "var/cache/debconf/config.dat",
        ] {
            assert_eq!(keep(path, &file), Keep::Yes, "{path}");
        }
        assert_eq!(keep("etc/machine-id", &file), Keep::Empty);
        assert_eq!(keep("var/log/incus", &Kind::Directory), Keep::Yes);
    }

    #[test]
    fn secrets_and_the_build_host_stay_out_of_images() {
        let key =
            "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n";
        let mut builder = tar::Builder::new(Vec::new());
        for path in [
            "etc/ssh/ssh_host_rsa_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "etc/ssh/sshd_config",
            "etc/ssl/private/ssl-cert-snakeoil.key",
            "etc/ssl/certs/ssl-cert-snakeoil.pem",
            "etc/ssl/certs/Root.pem",
            "etc/app/tls.key",
            "etc/hostname",
            "etc/hosts",
            "etc/machine-id",
            "etc/resolv.conf",
            "var/lib/dbus/machine-id",
            "var/lib/systemd/random-seed",
        ] {
            let text = if path.ends_with("key") { key.repeat(2) } else { "root@builder\n".to_owned() };
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        let mut result = Bootstrapped::default();
        let mut kept = Vec::new();
        filter(&builder.into_inner().unwrap()[..], &mut result, &mut |entry, data| {
            kept.push((entry.name(), io::copy(data, &mut io::sink())? > 0));
            Ok(())
        })
        .unwrap();
        let kept: Vec<(&str, bool)> = kept.iter().map(|(n, full)| (n.as_str(), *full)).collect();
        assert_eq!(
            kept,
            [
                ("etc/ssh/sshd_config", true),
                ("etc/ssl/certs/Root.pem", true),
                ("etc/app/tls.key", true),
                ("etc/machine-id", false),
                ("etc/resolv.conf", false),
            ]
        );
        let left_out: Vec<&str> = result.left_out.iter().map(String::as_str).collect();
        assert_eq!(left_out, ["dbus-machine-id", "random-seed", "snakeoil-certificate", "ssh-host-keys"]);
        assert_eq!(
            result.warnings,
            ["/etc/app/tls.key holds a private key (PKCS #8), which everyone with the image can read"]
        );
    }

    #[test]
    fn reads_dpkg_status() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1.2-3\nDescription: x\n y\n\n\
            Package: b\nStatus: deinstall ok config-files\nVersion: 9\n\n";
        assert_eq!(installed(status), BTreeMap::from([("a".to_owned(), "1.2-3".to_owned())]));
    }
}
