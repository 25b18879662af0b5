use super::{Node, code, node};
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};
use stead_agent::ClientError;
use stead_testkit::wait::eventually_async;
use tar::{Builder, EntryType, Header};

fn entry(builder: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, link: Option<&str>, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    // Written by hand, because the library refuses hostile names.
    let name = &mut header.as_gnu_mut().unwrap().name;
    name[..path.len()].copy_from_slice(path.as_bytes());
    if let Some(link) = link {
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn tar(entries: &[(&str, EntryType, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, link, data) in entries {
        entry(&mut builder, path, *kind, *link, data);
    }
    builder.into_inner().unwrap()
}

async fn put(node: &Node, path: &Path, tar: &[u8]) -> Result<(), ClientError> {
    node.client.put_files(path.to_str().unwrap(), &mut &tar[..]).await
}

async fn get(node: &Node, path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    node.client.get_files(path.to_str().unwrap(), &mut out).await.unwrap();
    out
}

#[tokio::test]
async fn a_tree_goes_there_and_back_unchanged() {
    let node = node().await;
    let root = node.dir.path().canonicalize().unwrap();
    let tree = root.join("tree");
    fs::create_dir_all(tree.join("sub/leer")).unwrap();
    fs::write(tree.join("big"), vec![42; 3 << 20]).unwrap();
    fs::write(tree.join("script"), "#!/bin/sh\n").unwrap();
    fs::write(tree.join("sub").join("ü".repeat(90)), "long name").unwrap();
    fs::write(tree.join("secret"), "s").unwrap();
    for (file, mode) in [("script", 0o755), ("secret", 0o600), ("sub/leer", 0o1777), ("big", 0o4755)] {
        fs::set_permissions(tree.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("../script", tree.join("sub/link")).unwrap();
    symlink("/absolute/nowhere", tree.join("dangling")).unwrap();
    let old =
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567));
    fs::File::options().write(true).open(tree.join("secret")).unwrap().set_times(old).unwrap();

    let packed = get(&node, &tree).await;
    let to = root.join("to");
    fs::create_dir(&to).unwrap();
    put(&node, &to, &packed).await.unwrap();
    let back = to.join("tree");
    for path in ["big", "script", "secret", "sub/leer", "sub"] {
        let (a, b) = (fs::metadata(tree.join(path)).unwrap(), fs::metadata(back.join(path)).unwrap());
        assert_eq!((a.mode(), a.len(), a.uid()), (b.mode(), b.len(), b.uid()), "{path}");
    }
    assert_eq!(fs::read(back.join("big")).unwrap(), vec![42; 3 << 20]);
    assert_eq!(fs::metadata(back.join("secret")).unwrap().mtime(), 1_234_567);
    assert_eq!(fs::read_to_string(back.join("sub").join("ü".repeat(90))).unwrap(), "long name");
    assert_eq!(fs::read_link(back.join("sub/link")).unwrap(), Path::new("../script"));
    assert_eq!(fs::read_link(back.join("dangling")).unwrap(), Path::new("/absolute/nowhere"));
    // Unpacked over itself: files are replaced, links are not followed.
    put(&node, &to, &packed).await.unwrap();
    assert_eq!(fs::read_dir(&back).unwrap().count(), 5, "no temporary file is left");
}

#[tokio::test]
async fn one_file_a_link_and_files_of_proc() {
    let node = node().await;
    let read = |bytes: Vec<u8>| {
        let mut archive = tar::Archive::new(io::Cursor::new(bytes));
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, entry.header().entry_type(), text)
    };
    let file = node.dir.path().join("f");
    fs::write(&file, "hello").unwrap();
    assert_eq!(read(get(&node, &file).await), ("f".into(), EntryType::Regular, "hello".into()));
    symlink("f", node.dir.path().join("l")).unwrap();
    assert_eq!(read(get(&node, &node.dir.path().join("l")).await).1, EntryType::Symlink);
    let (name, _, text) = read(get(&node, Path::new("/proc/version")).await);
    assert_eq!((name.as_str(), text), ("version", fs::read_to_string("/proc/version").unwrap()));
    let error = node.client.get_files("/no/such", &mut Vec::new()).await.unwrap_err();
    assert_eq!(code(&error), 404);
    assert!(error.to_string().contains("/no/such"));
}

#[tokio::test]
async fn hostile_tars_are_refused_and_leave_nothing_outside() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let node = node().await;
    let root = node.dir.path().canonicalize().unwrap();
    let outside = root.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "safe").unwrap();
    let out = outside.to_str().unwrap();
    let out_file = outside.join("file");
    let out_file = out_file.to_str().unwrap();
    let absolute = format!("{out}/evil");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("is absolute", tar(&[(&absolute, Regular, None, b"x")])),
        ("..", tar(&[("../outside/evil", Regular, None, b"x")])),
        ("..", tar(&[("a/../../outside/evil", Regular, None, b"x")])),
        ("..", tar(&[("..", Directory, None, b"")])),
        ("through a link", tar(&[("l", Symlink, Some(out), b""), ("l/evil", Regular, None, b"x")])),
        ("through a link", tar(&[("l", Symlink, Some("../outside"), b""), ("l/evil", Regular, None, b"x")])),
        (
            "through a link",
            tar(&[("l", Symlink, Some("../outside"), b""), ("l/new/evil", Regular, None, b"x")]),
        ),
        ("through a link", tar(&[("a", Symlink, Some(".."), b""), ("a/outside/evil", Directory, None, b"")])),
        ("through a link", tar(&[("found/evil", Regular, None, b"x")])),
        ("link that leads out", tar(&[("h", Link, Some("../outside/file"), b"")])),
        ("link that leads out", tar(&[("h", Link, Some(out_file), b"")])),
        ("through a link", tar(&[("l", Symlink, Some(out), b""), ("h", Link, Some("l/file"), b"")])),
        ("device", tar(&[("d", EntryType::Char, None, b"")])),
        ("device", tar(&[("d", EntryType::Block, None, b"")])),
        ("link without a target", tar(&[("l", Symlink, None, b"")])),
        ("unknown type", tar(&[("k", EntryType::new(b'Q'), None, b"")])),
        ("cannot be followed", tar(&[("l", Symlink, Some("l"), b""), ("l/x", Regular, None, b"x")])),
        ("cannot read the tar", vec![b'x'; 5000]),
        ("cannot read the tar", tar(&[("f", Regular, None, &[b'x'; 5000])])[..3000].to_vec()),
    ];
    for (n, (why, hostile)) in cases.into_iter().enumerate() {
        let target = root.join(format!("target{n}"));
        fs::create_dir(&target).unwrap();
        symlink(&outside, target.join("found")).unwrap();
        let error = put(&node, &target, &hostile).await.expect_err(why);
        assert_eq!(code(&error), 400, "{why}: {error}");
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{why}");
        assert_eq!(fs::metadata(outside.join("file")).unwrap().nlink(), 1, "{why}");
        let left = fs::read_dir(&target).unwrap().flatten();
        assert!(
            left.into_iter().all(|e| !e.file_name().to_string_lossy().starts_with(".stead-put")),
            "{why}"
        );
    }
    // Replacing a link writes the link, not what it points to.
    let target = root.join("replace");
    fs::create_dir(&target).unwrap();
    symlink(out_file, target.join("l")).unwrap();
    put(&node, &target, &tar(&[("l", Regular, None, b"mine")])).await.unwrap();
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "safe");
    assert_eq!(fs::read_to_string(target.join("l")).unwrap(), "mine");
}

#[tokio::test]
async fn links_within_are_followed_and_hard_links_made() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let node = node().await;
    let target = node.dir.path().join("t");
    fs::create_dir_all(target.join("usr/lib")).unwrap();
    fs::set_permissions(target.join("usr"), fs::Permissions::from_mode(0o711)).unwrap();
    symlink("usr/lib", target.join("lib")).unwrap();
    let good = tar(&[
        ("./", Directory, None, b""),
        ("usr/", Directory, None, b""),
        ("lib/", Directory, None, b""),
        ("lib/a/b/x", Regular, None, b"data"),
        ("y", Link, Some("lib/a/b/x"), b""),
        ("y", Link, Some("lib/a/b/x"), b""),
        ("p", EntryType::Fifo, None, b""),
        ("s", Symlink, Some("x"), b""),
    ]);
    put(&node, &target, &good).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("usr/lib/a/b/x")).unwrap(), "data");
    assert_eq!(fs::metadata(target.join("y")).unwrap().nlink(), 2);
    assert_eq!(
        fs::metadata(target.join("usr")).unwrap().mode() & 0o7777,
        0o711,
        "an existing directory keeps its mode"
    );
    assert!(fs::symlink_metadata(target.join("lib")).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 5);
}

#[tokio::test]
async fn a_failing_sender_gets_an_error_and_leaves_no_half_file() {
    let node = node().await;
    let whole = tar(&[("f", EntryType::Regular, None, &vec![b'x'; 1 << 20])]);
    struct Failing(io::Cursor<Vec<u8>>);
    impl tokio::io::AsyncRead for Failing {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let n = self.0.read(buffer.initialize_unfilled())?;
            if n == 0 {
                return std::task::Poll::Ready(Err(io::Error::other("disk on fire")));
            }
            buffer.advance(n);
            std::task::Poll::Ready(Ok(()))
        }
    }
    let target = node.dir.path().join("t");
    fs::create_dir(&target).unwrap();
    let mut failing = Failing(io::Cursor::new(whole[..500_000].to_vec()));
    let error = node.client.put_files(target.to_str().unwrap(), &mut failing).await.unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error:?}");
    eventually_async("the temporary file is gone", || fs::read_dir(&target).unwrap().count() == 0).await;
}

#[tokio::test]
async fn an_early_refusal_arrives_although_much_data_follows() {
    let node = node().await;
    let target = node.dir.path().join("t");
    fs::create_dir(&target).unwrap();
    let mut hostile = tar(&[("/evil", EntryType::Regular, None, b"x")]);
    hostile.truncate(1024);
    hostile.extend_from_slice(&tar(&[("much", EntryType::Regular, None, &vec![0; 20 << 20])]));
    let error = put(&node, &target, &hostile).await.unwrap_err();
    assert_eq!(code(&error), 400, "{error:?}");
}

#[tokio::test]
async fn a_reader_that_leaves_frees_the_transfer() {
    let node = node().await;
    let big = node.dir.path().join("big");
    fs::File::create(&big).unwrap().set_len(64 << 20).unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(node.client.get_files_stream(big.to_str().unwrap()).await.unwrap());
    }
    let busy = node.client.get_files_stream(big.to_str().unwrap()).await.unwrap_err();
    assert_eq!(code(&busy), 503);
    drop(held);
    for _ in 0..300 {
        if node.client.get_files_stream("/etc/hostname").await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the transfers are still taken");
}
