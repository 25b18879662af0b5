//! The builder against real squashfs tools, without root and without a mirror: bases come from tars and OCI layouts.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};
use stead_image::{BuildOutcome, BuildRequest, ImageError, Progress, Store, build, digest, overlay, plan};
use stead_model::{Failure, ImageName, recipe::OverlayOptions};
use stead_os::chain;

/// Whether a test cannot run here; prints the reason.
fn tools_missing(test: &str) -> bool {
    for tool in ["mksquashfs", "unsquashfs"] {
        if Command::new(tool).arg("-version").output().is_err() {
            println!("SKIP {test}: {tool} is not installed");
            return true;
        }
    }
    false
}

/// A bare 64-bit ELF header, which passes as a statically linked executable.
fn write_stead_node(path: &Path, marker: &str) {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf.extend_from_slice(marker.as_bytes());
    fs::write(path, elf).unwrap();
}

fn tar_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn options(path: &str) -> OverlayOptions {
    stead_model::recipe::OverlaySource::Path(path.into()).options()
}

/// `path: mode owner/group contents` of everything in a squashfs.
fn listing(squashfs: &Path) -> Vec<String> {
    let out = Command::new("unsquashfs").arg("-lln").arg(squashfs).output().unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines()
        .filter_map(|l| {
            let (head, path) = l.split_once(" squashfs-root")?;
            let mut words = head.split_whitespace();
            let (mode, owner) = (words.next()?, words.next()?);
            Some(format!("{} {mode} {owner}", if path.is_empty() { "/" } else { path }))
        })
        .collect()
}

fn cat(squashfs: &Path, path: &str) -> String {
    let out = Command::new("unsquashfs").arg("-cat").arg(squashfs).arg(path).output().unwrap();
    assert!(out.status.success(), "{path}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A folder with a recipe that needs no mirror, and a store.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(bench.path("base.tar"), tar_of(&[("etc/os-release", "ID=test\n"), ("usr/bin/sh", "#!")]))
            .unwrap();
        fs::create_dir_all(bench.path("ovl/one/etc")).unwrap();
        fs::write(bench.path("ovl/one/etc/motd"), "hello\n").unwrap();
        fs::create_dir_all(bench.path("ovl/two/srv")).unwrap();
        fs::write(bench.path("ovl/two/srv/x"), "two\n").unwrap();
        write_stead_node(&bench.path("stead-node"), "v1");
        bench.recipe("name: t\nbase: {tar: base.tar}\noverlays: [ovl/one, ovl/two]\nfiles:\n- {path: /etc/f, contents: f}\n");
        bench
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn recipe(&self, yaml: &str) {
        fs::write(self.path("t.yaml"), yaml).unwrap();
    }
    fn store(&self, name: &str) -> Store {
        Store::open(&self.path(name)).unwrap()
    }
    fn request(&self) -> BuildRequest {
        BuildRequest::new(self.path("t.yaml"), self.path("stead-node"))
    }
    fn build(&self, store: &Store) -> BuildOutcome {
        build(store, &self.request(), &mut |_| ()).unwrap()
    }
}

fn made(outcome: &BuildOutcome) -> Vec<&str> {
    outcome.steps.iter().filter(|s| !s.cached).map(|s| s.step.as_str()).collect()
}
fn name(s: &str) -> ImageName {
    s.parse().unwrap()
}

#[test]
fn two_builds_are_bit_identical_and_the_second_in_a_store_does_nothing() {
    if tools_missing("two_builds_are_bit_identical") {
        return;
    }
    let bench = Bench::new();
    let (one, two) = (bench.store("one"), bench.store("two"));
    let first = bench.build(&one);
    assert!(!first.reused);
    assert_eq!(bench.build(&two).digest, first.digest);
    let files = |s: &Store| -> BTreeSet<String> {
        let dir = s.dir().join("blobs/sha256");
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(files(&one), files(&two));

    let planned = plan(&one, &bench.request()).unwrap();
    assert!(planned.is_done(), "{planned:?}");
    let again = bench.build(&one);
    assert!(again.reused && made(&again).is_empty(), "{:?}", again.steps);
    assert_eq!(again.digest, first.digest);
    assert_eq!(one.verify(&name("t")).unwrap().bad, Vec::<String>::new());
}

#[test]
fn one_changed_overlay_makes_only_its_own_layer() {
    if tools_missing("one_changed_overlay_makes_only_its_own_layer") {
        return;
    }
    let bench = Bench::new();
    let store = bench.store("s");
    let before = bench.build(&store);
    fs::write(bench.path("ovl/two/srv/x"), "TWO\n").unwrap();
    let after = bench.build(&store);
    assert_eq!(made(&after), ["overlay:two"]);
    let changed: Vec<&str> = before
        .manifest
        .layers
        .iter()
        .zip(&after.manifest.layers)
        .filter(|(a, b)| a != b)
        .map(|(a, _)| a.name.as_str())
        .collect();
    assert_eq!(changed, ["overlay:two"]);

    write_stead_node(&bench.path("stead-node"), "v2");
    assert_eq!(made(&bench.build(&store)), ["stead-node"]);
}

#[test]
fn layers_hold_what_the_recipe_says() {
    if tools_missing("layers_hold_what_the_recipe_says") {
        return;
    }
    let bench = Bench::new();
    let store = bench.store("s");
    let manifest = bench.build(&store).manifest;
    let names: Vec<&str> = manifest.layers.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["base", "files", "overlay:one", "overlay:two"]);
    let blob = |i: usize| store.blob(&manifest.layers[i].artifact.digest);
    assert_eq!(cat(&blob(0), "etc/os-release"), "ID=test\n");
    assert_eq!(cat(&blob(1), "etc/f"), "f");
    assert!(cat(&blob(1), "usr/lib/stead/system.json").starts_with('{'));
    assert!(listing(&blob(1)).contains(&"/tmp drwxrwxrwt 0/0".to_owned()), "{:?}", listing(&blob(1)));
    assert_eq!(cat(&blob(2), "etc/motd"), "hello\n");
    let boot = manifest.boot.unwrap();
    assert_eq!((boot.kernel_release, boot.vmlinux, boot.initrd), (None, None, None));
    assert_eq!(
        fs::read(store.blob(&boot.stead_node.digest)).unwrap(),
        fs::read(bench.path("stead-node")).unwrap()
    );
}

#[test]
fn overlay_directories_fit_a_merged_usr_base() {
    if tools_missing("overlay_directories_fit_a_merged_usr_base") {
        return;
    }
    let bench = Bench::new();
    let dir = bench.path("o");
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("usr/bin")).unwrap();
    fs::write(dir.join("bin/tool"), "1").unwrap();
    fs::set_permissions(dir.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("usr/bin/other"), "2").unwrap();
    symlink("tool", dir.join("bin/alias")).unwrap();
    let store = bench.store("s");
    let (layer, _) = overlay::build_layer(&store, &options("o"), bench.dir.path()).unwrap();
    let found = listing(&store.blob(&layer.artifact.digest));
    assert_eq!(
        found,
        [
            "/ drwxr-xr-x 0/0",
            "/usr drwxr-xr-x 0/0",
            "/usr/bin drwxr-xr-x 0/0",
            "/usr/bin/alias -> tool lrwxrwxrwx 0/0",
            "/usr/bin/other -rw-r--r-- 0/0",
            "/usr/bin/tool -rwxr-xr-x 0/0",
        ]
    );
    assert_eq!(layer.name, "overlay:o");
}

#[test]
fn scripts_see_what_they_declare_and_are_cached_by_it() {
    if tools_missing("scripts_see_what_they_declare") {
        return;
    }
    let bench = Bench::new();
    let dir = bench.path("ovl/script");
    fs::create_dir_all(dir.join("default/etc")).unwrap();
    fs::write(dir.join("default/etc/motd"), "from the script\n").unwrap();
    fs::write(bench.path("outside"), "1\n").unwrap();
    let script = "#!/bin/sh\nset -e\ntest \"$1\" = -\nt=$(mktemp -d)\ncp -R default/* $t\n\
        env | grep -v ^_= | grep -v ^PWD= | grep -v ^HOME= | grep -v ^OLDPWD | grep -v ^SHLVL | sort > $t/env\n\
        cat ../../outside > $t/outside\necho run >> ../../runs\ncd $t\ntar c *\nrm -r $t\n";
    fs::write(dir.join("tar"), script).unwrap();
    fs::set_permissions(dir.join("tar"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut options = options("ovl/script");
    options.environment.insert("SETUP".into(), "ipv6".into());
    options.inputs.push("outside".into());
    let store = bench.store("s");
    let make = |o: &OverlayOptions| overlay::build_layer(&store, o, bench.dir.path()).unwrap().0;
    let runs = || fs::read_to_string(bench.path("runs")).unwrap().lines().count();

    let layer = make(&options);
    let blob = store.blob(&layer.artifact.digest);
    assert_eq!(cat(&blob, "etc/motd"), "from the script\n");
    assert_eq!(
        cat(&blob, "env"),
        "LANG=C\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nSETUP=ipv6\n"
    );
    assert_eq!((make(&options), runs()), (layer.clone(), 1));
    fs::write(bench.path("outside"), "2\n").unwrap();
    assert_ne!(make(&options).artifact, layer.artifact);
    options.environment.insert("SETUP".into(), "other".into());
    make(&options);
    assert_eq!(runs(), 3);

    fs::write(dir.join("tar"), "#!/bin/sh\necho no such thing as a goose >&2\nexit 7\n").unwrap();
    let e = overlay::build_layer(&store, &options, bench.dir.path()).unwrap_err();
    assert!(e.to_string().contains("no such thing as a goose") && e.to_string().contains('7'), "{e}");
}

#[test]
fn an_empty_overlay_is_an_empty_layer() {
    if tools_missing("an_empty_overlay_is_an_empty_layer") {
        return;
    }
    let bench = Bench::new();
    fs::create_dir(bench.path("empty")).unwrap();
    let store = bench.store("s");
    let (layer, _) = overlay::build_layer(&store, &options("empty"), bench.dir.path()).unwrap();
    assert_eq!(listing(&store.blob(&layer.artifact.digest)), ["/ drwxr-xr-x 0/0"]);
}

/// At whatever moment a build is killed, the store is consistent and the next build completes it.
#[test]
fn a_killed_build_leaves_a_whole_store() {
    if tools_missing("a_killed_build_leaves_a_whole_store") {
        return;
    }
    let bench = Bench::new();
    let expected = bench.build(&bench.store("reference")).digest;
    for pause_ms in [0, 5, 20, 40, 80, 160] {
        let name = format!("killed-{pause_ms}");
        // A child of this very test program runs the build, and is killed.
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_build", "--nocapture"])
            .env("STEAD_TEST_CHILD", bench.dir.path())
            .env("STEAD_TEST_STORE", &name)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = bench.store(&name);
        if let Ok((digest, _)) = store.manifest(&"t".parse().unwrap()) {
            assert_eq!(digest, expected);
        }
        assert_eq!(bench.build(&store).digest, expected);
        assert_eq!(store.verify(&"t".parse().unwrap()).unwrap().bad, Vec::<String>::new());
        // A small file that was being written may stay for an hour; a scratch directory must not.
        let left = fs::read_dir(bench.store(&name).dir().join("tmp")).unwrap();
        assert_eq!(left.filter(|e| e.as_ref().unwrap().path().is_dir()).count(), 0);
    }
}

/// Not a test of its own: [`a_killed_build_leaves_a_whole_store`] runs and kills it. Run alone, it does nothing.
#[test]
fn child_build() {
    let (Some(dir), Some(name)) =
        (std::env::var_os("STEAD_TEST_CHILD"), std::env::var_os("STEAD_TEST_STORE"))
    else {
        return;
    };
    let dir = Path::new(&dir);
    let store = Store::open(&dir.join(name)).unwrap();
    build(&store, &BuildRequest::new(dir.join("t.yaml"), dir.join("stead-node")), &mut |_| ()).unwrap();
}

#[test]
fn hostile_overlays_leave_nothing_in_the_store() {
    if tools_missing("hostile_overlays_leave_nothing") {
        return;
    }
    let bench = Bench::new();
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.as_old_mut().name[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    let mut tar = tar_of(&[("fine", "1")]);
    tar.truncate(1024);
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(&[b'x'; 512]);
    tar.extend_from_slice(&[0; 1024]);
    fs::write(bench.path("bad.tar"), tar).unwrap();
    let store = bench.store("s");
    let e = overlay::build_layer(&store, &options("bad.tar"), bench.dir.path()).unwrap_err();
    assert!(e.is_bad_input(), "{e}");
    assert!(std::error::Error::source(&e).unwrap().to_string().contains("\"../escape\""));
    for sub in ["blobs/sha256", "cache", "tmp"] {
        assert_eq!(fs::read_dir(store.dir().join(sub)).unwrap().count(), 0, "{sub} is not empty");
    }
    assert!(!bench.path("escape").exists());

    fs::create_dir(bench.path("pipes")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, bench.path("pipes/p"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    let e = overlay::build_layer(&store, &options("pipes"), bench.dir.path()).unwrap_err();
    assert!(e.is_bad_input() && e.to_string().contains("pipes/p"), "{e}");
}

#[test]
fn damaged_archives_are_refused_whatever_they_are_compressed_with() {
    if tools_missing("damaged_archives_are_refused") {
        return;
    }
    let bench = Bench::new();
    let text: String = (0..2000u32).map(|n| format!("{}\n", n.wrapping_mul(2_654_435_761))).collect();
    let plain = tar_of(&[("etc/a", &text), ("etc/b", "last\n")]);
    fs::write(bench.path("o.tar"), &plain).unwrap();
    for (program, suffix) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let out = Command::new(program).args(["-c", "-q"]).arg(bench.path("o.tar")).output();
        let Ok(out) = out else {
            println!("SKIP part of damaged_archives_are_refused: {program} is not installed");
            continue;
        };
        assert!(out.status.success());
        let (good, name) = (out.stdout, format!("o.tar.{suffix}"));
        let at = |n: usize| {
            let mut bytes = good.clone();
            bytes[n] ^= 1;
            bytes
        };
        let cases = [
            ("ends early", good[..good.len() - 1].to_vec()),
            ("ends early", good[..good.len() / 2].to_vec()),
            ("is damaged", at(good.len() / 2)),
            ("is damaged", [&good[..], b"something else"].concat()),
        ];
        let store = bench.store(suffix);
        for (number, (expected, bytes)) in cases.into_iter().enumerate() {
            fs::write(bench.path(&name), bytes).unwrap();
            let e = overlay::build_layer(&store, &options(&name), bench.dir.path()).unwrap_err();
            let shown = chain(&e);
            assert!(
                e.is_bad_input() && shown.contains(&name) && shown.contains(program),
                "{number}: {shown}"
            );
            assert!(shown.contains(expected), "{number}: {shown}");
            bench.recipe(&format!("name: t\nbase: {{tar: {name}}}\n"));
            let e = build(&store, &bench.request(), &mut |_| ()).unwrap_err();
            assert!(e.is_bad_input() && chain(&e).contains(expected), "{}", chain(&e));
        }
        // The last bytes are the checksum, after the tar's own end.
        fs::write(bench.path(&name), at(good.len() - 6)).unwrap();
        assert!(overlay::build_layer(&store, &options(&name), bench.dir.path()).unwrap_err().is_bad_input());
        assert!(store.list().unwrap().is_empty());
        fs::write(bench.path(&name), &good).unwrap();
        overlay::build_layer(&store, &options(&name), bench.dir.path()).unwrap();
    }
    let store = bench.store("plain");
    for (bytes, expected) in [
        (&plain[..plain.len() - 1024], "it has no end marker: it is truncated after entry \"etc/b\""),
        (&[][..], "it is empty"),
        (b"BZh91AY&SY", "it is compressed with bzip2; only gzip, xz and zstd are supported"),
    ] {
        fs::write(bench.path("o.tar"), bytes).unwrap();
        let e = overlay::build_layer(&store, &options("o.tar"), bench.dir.path()).unwrap_err();
        assert!(e.is_bad_input() && chain(&e).contains(expected), "{}", chain(&e));
    }
}

#[test]
fn sparse_files_of_overlays_keep_their_names_and_sizes() {
    if tools_missing("sparse_files_of_overlays_keep_their_names_and_sizes") {
        return;
    }
    let bench = Bench::new();
    let dir = bench.path("tree");
    fs::create_dir(&dir).unwrap();
    let disk = fs::File::create(dir.join("disk.img")).unwrap();
    disk.set_len(5_000_001).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, b"in the middle", 2_500_000).unwrap();
    for format in ["gnu", "pax"] {
        let tar = bench.path(&format!("{format}.tar"));
        let status = Command::new("tar")
            .args(["--sparse", &format!("--format={format}"), "-cf"])
            .arg(&tar)
            .args(["-C", dir.to_str().unwrap(), "disk.img"])
            .status()
            .unwrap();
        assert!(status.success() && fs::metadata(&tar).unwrap().len() < 100_000);
        let store = bench.store(format);
        let (layer, _) =
            overlay::build_layer(&store, &options(&format!("{format}.tar")), bench.dir.path()).unwrap();
        let blob = store.blob(&layer.artifact.digest);
        let text = cat(&blob, "disk.img");
        assert_eq!((text.len(), &text[2_500_000..2_500_013]), (5_000_001, "in the middle"), "{format}");
    }
}

#[test]
fn a_replaced_name_leaves_the_other_names_of_its_file_alone() {
    if tools_missing("a_replaced_name_leaves_the_other_names_of_its_file_alone") {
        return;
    }
    let bench = Bench::new();
    let dir = bench.path("root");
    fs::create_dir_all(dir.join("usr/bin")).unwrap();
    let path = |name: &str| dir.join("usr/bin").join(name);
    fs::write(path("perl"), "perl\n").unwrap();
    fs::hard_link(path("perl"), path("perl5.36.0")).unwrap();
    fs::hard_link(path("perl"), path("perl5")).unwrap();
    symlink("perl", path("link")).unwrap();
    fs::hard_link(path("link"), path("link2")).unwrap();
    let out =
        Command::new("tar").arg("-cf").arg(bench.path("base.tar")).arg("-C").arg(&dir).arg("usr").status();
    assert!(out.unwrap().success());
    bench.recipe(
        "name: i\nkind: instance\nbase: {tar: base.tar}\nfiles: [{path: /usr/bin/perl, contents: \"new\\n\"}]\n",
    );
    let store = bench.store("s");
    let image = bench.build(&store).manifest.instance.unwrap();
    let out = bench.path("out");
    let status = Command::new("unsquashfs")
        .args(["-quiet", "-no-progress", "-d"])
        .arg(&out)
        .arg(store.blob(&image.rootfs.digest))
        .status()
        .unwrap();
    assert!(status.success());
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::symlink_metadata(out.join("usr/bin").join(name)).unwrap();
        (meta.ino(), meta.nlink())
    };
    let read = |name: &str| fs::read_to_string(out.join("usr/bin").join(name)).unwrap();
    assert_eq!(
        (read("perl"), read("perl5"), read("perl5.36.0")),
        ("new\n".into(), "perl\n".into(), "perl\n".into())
    );
    assert_eq!(inode("perl5"), inode("perl5.36.0"));
    assert_eq!((inode("perl").1, inode("perl5").1, inode("link").1), (1, 2, 2));
    assert_eq!(fs::read_link(out.join("usr/bin/link2")).unwrap(), Path::new("perl"));
}

/// A build warns about every layer, also when everything is cached.
#[test]
fn private_keys_and_shut_directories_are_warned_of() {
    if tools_missing("private_keys_and_shut_directories_are_warned_of") {
        return;
    }
    let bench = Bench::new();
    let line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
    let key = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{line}\n-----END OPENSSH PRIVATE KEY-----\n");
    fs::write(bench.path("base.tar"), tar_of(&[("etc/os-release", "ID=x\n"), ("root/.ssh/id", &key)]))
        .unwrap();
    fs::write(bench.path("ovl/one/etc/tls.key"), &key).unwrap();
    fs::set_permissions(bench.path("ovl/one/etc"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(bench.path("host_key"), &key).unwrap();
    let says =
        |path: &str| format!("{path} holds a private key (OpenSSH), which everyone with the image can read");
    let shut = format!(
        "/etc gets mode 0700 from {}, narrower than 0755, which then applies to every user of the image",
        fs::canonicalize(bench.path("ovl/one")).unwrap().display()
    );
    let expected = [says("/etc/app.key"), shut, says("/etc/tls.key"), says("/root/.ssh/id")];
    let (mut sorted, store) = (expected.to_vec(), bench.store("s"));
    sorted.sort();
    for kind in ["node", "instance"] {
        bench.recipe(&format!(
            "name: t\nkind: {kind}\nbase: {{tar: base.tar}}\noverlays: [ovl/one]\n\
            files: [{{path: /etc/app.key, source: host_key}}]\n"
        ));
        for _ in 0..2 {
            let mut told = Vec::new();
            let outcome = build(&store, &bench.request(), &mut |event| {
                if let Progress::Warning { text } = event {
                    told.push(text);
                }
            })
            .unwrap();
            told.sort();
            assert_eq!(outcome.warnings, sorted, "{kind}");
            assert_eq!(told, sorted, "{kind}");
        }
    }
    let (_, warnings) = overlay::build_layer(&store, &options("ovl/one"), bench.dir.path()).unwrap();
    assert_eq!(warnings, expected[1..3]);
}

#[test]
fn bad_input_is_distinguished_from_failure() {
    let bench = Bench::new();
    let store = bench.store("s");
    let fails = |yaml: &str| {
        bench.recipe(yaml);
        let e = build(&store, &bench.request(), &mut |_| ()).unwrap_err();
        assert!(e.is_bad_input(), "{e}");
        format!("{e}: {}", std::error::Error::source(&e).map_or(String::new(), |s| s.to_string()))
    };
    assert!(fails("name: t\nbase: {tar: base.tar}\nfile: []\n").contains("did you mean \"files\""));
    assert!(fails("name: t\nbase: {tar: none.tar}\n").contains("none.tar does not exist"));
    assert!(fails("name: t\nbase: {tar: base.tar}\noverlays: [none]\n").contains("no such overlay"));
    assert!(
        fails("name: t\nbase: {tar: base.tar}\nkernel: {package: linux}\n").contains("needs a Debian base")
    );
    assert!(
        fails("name: t\nbase: {tar: base.tar}\noverlays: [{path: ovl/one, environment: {A: b}}]\n")
            .contains("no executable")
    );
    fs::write(bench.path("stead-node"), "#!/bin/sh\n").unwrap();
    assert!(fails("name: t\nbase: {tar: base.tar}\n").contains("not a statically linked executable"));
    let e = store.manifest(&name("nobody")).unwrap_err();
    assert_eq!(e.to_string(), "there is no image nobody");
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn collection_keeps_what_is_used() {
    if tools_missing("collection_keeps_what_is_used") {
        return;
    }
    let bench = Bench::new();
    let store = bench.store("s");
    let first = bench.build(&store);
    fs::write(bench.path("ovl/two/srv/x"), "TWO\n").unwrap();
    let second = bench.build(&store);
    let old = |m: &stead_model::Manifest| m.layers[3].artifact.digest.clone();

    // The first build's layer is in use by a cluster, by its manifest's digest.
    let report = store.gc(&BTreeSet::from([first.digest.clone()])).unwrap();
    assert_eq!(report.blobs, 0, "{report:?}");
    assert!(store.blob(&old(&first.manifest)).exists());
    let report = store.gc(&BTreeSet::new()).unwrap();
    assert_eq!(report.blobs, 2, "the old manifest and the old layer: {report:?}");
    assert!(!store.blob(&old(&first.manifest)).exists() && store.blob(&old(&second.manifest)).exists());
    assert!(made(&bench.build(&store)).is_empty(), "a collection must not cause a rebuild");

    store.remove(&name("t")).unwrap();
    assert!(matches!(store.remove(&name("t")), Err(ImageError::NoImage { .. })));
    store.gc(&BTreeSet::new()).unwrap();
    assert_eq!(fs::read_dir(store.dir().join("blobs/sha256")).unwrap().count(), 0);
    // Everything can be built again.
    assert_eq!(bench.build(&store).digest, second.digest);
}

#[test]
fn damage_is_found() {
    if tools_missing("damage_is_found") {
        return;
    }
    let bench = Bench::new();
    let store = bench.store("s");
    let manifest = bench.build(&store).manifest;
    let path = store.blob(&manifest.layers[0].artifact.digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[2000] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::remove_file(store.blob(&manifest.layers[1].artifact.digest)).unwrap();
    let report = store.verify(&name("t")).unwrap();
    assert_eq!(report.bad.len(), 2, "{report:?}");
    assert!(report.bad[0].starts_with("layer base: ") && report.bad[1].starts_with("layer files: "));
}

#[test]
fn dead_builds_are_swept_and_running_ones_kept() {
    let bench = Bench::new();
    let store = bench.store("s");
    let dead = store.dir().join("tmp/wdead");
    fs::create_dir_all(dead.join("a/b")).unwrap();
    let alive = store.dir().join("tmp/walive");
    fs::create_dir(&alive).unwrap();
    let held = fs::File::open(&alive).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    bench.store("s");
    assert!(!dead.exists() && alive.exists());
}

#[test]
fn the_same_overlay_made_by_many_at_once_is_made_once() {
    if tools_missing("the_same_overlay_made_by_many_at_once") {
        return;
    }
    let bench = Bench::new();
    let store = bench.store("s");
    let layers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| overlay::build_layer(&store, &options("ovl/one"), bench.dir.path()).unwrap())
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(layers.windows(2).all(|w| w[0] == w[1]));
    assert_eq!(fs::read_dir(store.dir().join("tmp")).unwrap().count(), 0);
}

/// An OCI layout under construction, as a directory.
struct OciLayout {
    dir: PathBuf,
}

impl OciLayout {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
        Self { dir }
    }
    fn put(&self, media: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = digest::of_bytes(bytes);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": media, "digest": digest, "size": bytes.len() })
    }
    fn image(&self, architecture: &str, layers: &[(&str, Vec<u8>)]) -> serde_json::Value {
        let media = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let config = serde_json::json!({ "os": "linux", "architecture": architecture });
        let config = self.put(&media("config.v1+json"), config.to_string().as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|(how, bytes)| self.put(&media(&format!("layer.v1.tar{how}")), bytes))
            .collect();
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.put(&media("manifest.v1+json"), manifest.to_string().as_bytes())
    }
    fn index(&self, manifests: &[serde_json::Value]) {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }
    fn blob(&self, descriptor: &serde_json::Value) -> PathBuf {
        self.dir
            .join("blobs/sha256")
            .join(descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:"))
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}
/// Go's names of the builder's architecture and of another one.
fn architectures() -> (&'static str, &'static str) {
    if plan::architecture() == "amd64" { ("amd64", "arm64") } else { ("arm64", "amd64") }
}

#[test]
fn oci_layouts_are_bases_with_whiteouts_and_checked_digests() {
    if tools_missing("oci_layouts_are_bases") {
        return;
    }
    let bench = Bench::new();
    let layout = OciLayout::new(bench.path("oci"));
    let lower = gzip(&tar_of(&[("etc/a", "1"), ("etc/b", "2"), ("opt/x/y", "3"), ("opt/z", "4")]));
    let middle = tar_of(&[("etc/.wh.a", ""), ("etc/b", "two"), ("opt/.wh..wh..opq", ""), ("opt/new", "5")]);
    let upper = zstd::encode_all(&tar_of(&[("etc/c", "six")])[..], 1).unwrap();
    let ours = layout.image(architectures().0, &[("+gzip", lower.clone()), ("", middle), ("+zstd", upper)]);
    let other = layout.image(architectures().1, &[("", tar_of(&[("other", "")]))]);
    layout.index(&[other, ours]);
    bench.recipe("name: t\nbase: {oci: oci}\n");
    let store = bench.store("s");
    let base = store.blob(&bench.build(&store).manifest.layers[0].artifact.digest);
    let paths: Vec<String> = listing(&base).iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/", "/etc", "/etc/b", "/etc/c", "/opt", "/opt/new"]);
    assert_eq!((cat(&base, "etc/b"), cat(&base, "etc/c")), ("two".into(), "six".into()));

    // The same layout in an archive.
    let tar = Command::new("tar")
        .arg("-cf")
        .arg(bench.path("oci.tar"))
        .arg("-C")
        .arg(bench.path("oci"))
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    bench.recipe("name: t\nbase: {oci: oci.tar}\n");
    let packed = store.blob(&bench.build(&store).manifest.layers[0].artifact.digest);
    assert_eq!(packed, base);

    bench.recipe("name: t\nbase: {oci: oci}\n");
    let victim = layout.blob(&layout.put("", &lower));
    let mut bytes = fs::read(&victim).unwrap();
    bytes[60] ^= 1;
    fs::write(&victim, bytes).unwrap();
    let fresh = bench.store("fresh");
    let e = build(&fresh, &bench.request(), &mut |_| ()).unwrap_err();
    assert!(e.is_bad_input() && e.to_string().contains("has digest"), "{e}");
}

#[test]
fn an_oci_layout_of_several_images_needs_a_reference() {
    if tools_missing("an_oci_layout_of_several_images_needs_a_reference") {
        return;
    }
    let bench = Bench::new();
    let layout = OciLayout::new(bench.path("oci"));
    let image = |text: &str| {
        let mut descriptor = layout.image(architectures().0, &[("", tar_of(&[("which", text)]))]);
        descriptor["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": text });
        descriptor
    };
    layout.index(&[image("v1"), image("v2")]);
    let store = bench.store("s");
    let with = |base: &str| {
        bench.recipe(&format!("name: t\nbase: {{oci: {base}}}\n"));
        build(&store, &bench.request(), &mut |_| ())
    };
    let e = with("oci").unwrap_err();
    let shown = e.to_string();
    assert!(e.is_bad_input() && shown.contains("/oci: has 2 images for linux/"), "{shown}");
    assert!(shown.contains("\"v1\"") && shown.contains("\"v2\""), "{shown}");
    for wanted in ["v1", "v2"] {
        let outcome = with(&format!("{{path: oci, ref: {wanted}}}")).unwrap();
        let base = store.blob(&outcome.manifest.layers[0].artifact.digest);
        assert_eq!(cat(&base, "which"), wanted);
    }
    let e = with("{path: oci, ref: v3}").unwrap_err();
    assert!(e.is_bad_input() && e.to_string().contains("has no image \"v3\"; it has \"v1\""), "{e}");
    layout.index(&[layout.image(architectures().1, &[("", tar_of(&[("a", "")]))])]);
    let e = with("oci").unwrap_err();
    assert!(e.is_bad_input() && e.to_string().contains("has no image for linux/"), "{e}");
}

/// kaniko writes absolute names and hard link targets, and real images have links that lead above the root.
#[test]
fn absolute_names_and_targets_of_oci_layers_mean_the_root() {
    if tools_missing("absolute_names_and_targets_of_oci_layers") {
        return;
    }
    let bench = Bench::new();
    let layout = OciLayout::new(bench.path("oci"));
    let entry = |name: &str, kind: tar::EntryType, link: &str, data: &[u8]| {
        let mut h = tar::Header::new_gnu();
        h.set_mode(0o644);
        h.set_uid(0);
        h.set_gid(0);
        h.set_size(data.len() as u64);
        h.set_entry_type(kind);
        h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        h.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        h.set_cksum();
        let mut out = h.as_bytes().to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    };
    use tar::EntryType as T;
    let lower = [entry("/", T::Directory, "", b""), entry("/usr/bin/a", T::Regular, "", b"a"), vec![0; 1024]]
        .concat();
    let upper = [
        entry("/usr/bin/b", T::Link, "/usr/bin/a", b""),
        entry("/usr/.wh.lib", T::Regular, "", b""),
        entry("/etc/c", T::Symlink, "../../../usr/bin/a", b""),
        entry("/usr/bin/.wh.a", T::Regular, "", b""),
    ]
    .concat();
    layout.index(&[layout.image(architectures().0, &[("", lower), ("", upper)])]);
    bench.recipe("name: t\nbase: {oci: oci}\n");
    let store = bench.store("s");
    let base = store.blob(&bench.build(&store).manifest.layers[0].artifact.digest);
    let paths: Vec<String> = listing(&base).iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/", "/etc", "/etc/c", "/usr", "/usr/bin", "/usr/bin/b"]);
    assert_eq!(cat(&base, "usr/bin/b"), "a");
    // In an archive without a digest they are refused.
    fs::write(bench.path("o.tar"), [entry("/x", T::Regular, "", b"1"), vec![0; 1024]].concat()).unwrap();
    let e = overlay::build_layer(&store, &options("o.tar"), bench.dir.path()).unwrap_err();
    assert!(e.is_bad_input() && chain(&e).contains("\"/x\" is an absolute path"), "{e}");
}

#[test]
fn docker_archives_are_bases() {
    if tools_missing("docker_archives_are_bases") {
        return;
    }
    let bench = Bench::new();
    let dir = bench.path("saved");
    fs::create_dir_all(dir.join("one")).unwrap();
    fs::create_dir_all(dir.join("two")).unwrap();
    let (lower, upper) = (tar_of(&[("a", "1"), ("b", "2")]), tar_of(&[(".wh.a", ""), ("c", "3")]));
    fs::write(dir.join("one/layer.tar"), &lower).unwrap();
    fs::write(dir.join("upper.tar"), &upper).unwrap();
    // Docker writes a layer that already exists as a link.
    symlink("../upper.tar", dir.join("two/layer.tar")).unwrap();
    let ids = [digest::of_bytes(&lower), digest::of_bytes(&upper)];
    let config = serde_json::json!({ "os": "linux", "architecture": architectures().0,
        "rootfs": { "type": "layers", "diff_ids": ids } });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["a/b:1"],
        "Layers": ["one/layer.tar", "two/layer.tar"] }]);
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let store = bench.store("s");
    let with = |base: &str| {
        let tar =
            Command::new("tar").arg("-cf").arg(bench.path("saved.tar")).arg("-C").arg(&dir).arg(".").status();
        assert!(tar.unwrap().success());
        bench.recipe(&format!("name: t\nbase: {{oci: {base}}}\n"));
        build(&store, &bench.request(), &mut |_| ())
    };
    let archive = with("saved.tar").unwrap().manifest.layers[0].artifact.digest.clone();
    let base = store.blob(&archive);
    assert_eq!(listing(&base).len(), 3, "{:?}", listing(&base));
    assert_eq!((cat(&base, "b"), cat(&base, "c")), ("2".into(), "3".into()));
    assert_eq!(with("{path: saved, ref: \"a/b:1\"}").unwrap().manifest.layers[0].artifact.digest, archive);
    fs::write(dir.join("upper.tar"), tar_of(&[("c", "4")])).unwrap();
    let e = with("saved.tar").unwrap_err();
    assert!(e.is_bad_input() && e.to_string().contains("layer two/layer.tar has digest"), "{e}");
}

#[test]
fn instances_get_one_root_and_metadata() {
    if tools_missing("instances_get_one_root_and_metadata") {
        return;
    }
    let bench = Bench::new();
    bench.recipe("name: i\nkind: instance\nbase: {tar: base.tar}\noverlays: [ovl/one]\nfiles:\n- {path: /etc/os-release, contents: \"ID=new\\n\"}\n");
    let (one, two) = (bench.store("one"), bench.store("two"));
    let mut request = bench.request();
    request.unified = true;
    let outcome = build(&one, &request, &mut |_| ()).unwrap();
    assert_eq!(build(&two, &request, &mut |_| ()).unwrap().digest, outcome.digest);
    let image = outcome.manifest.instance.unwrap();
    let root = one.blob(&image.rootfs.digest);
    assert_eq!(cat(&root, "etc/os-release"), "ID=new\n");
    assert_eq!(cat(&root, "etc/motd"), "hello\n");
    let names = |path: PathBuf| -> Vec<String> {
        let reader = stead_image::compression::decompressed(fs::File::open(path).unwrap()).unwrap();
        let mut archive = tar::Archive::new(reader);
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
    };
    assert_eq!(
        names(one.blob(&image.metadata.digest)),
        ["metadata.yaml", "templates/", "templates/hostname.tpl", "templates/hosts.tpl"]
    );
    let unified = names(one.blob(&image.unified.unwrap().digest));
    for expected in ["metadata.yaml", "rootfs/", "rootfs/etc/motd", "rootfs/usr/bin/sh"] {
        assert!(unified.contains(&expected.to_owned()), "{expected} is not in {unified:?}");
    }
    let again = build(&one, &request, &mut |_| ()).unwrap();
    assert!(again.reused && made(&again).is_empty());
}
