//! Checks that need a real engine. Each group creates what it needs and removes it.

use std::time::Duration;
use stead_incus::{
    Client, Dialect, Error, Feature, Source,
    client::FileKind,
    requests::{
        cluster::MemberAction,
        exec::Command,
        files::{Attributes, NewFile},
        images,
        instances::{InstanceSource, NewInstance, StateAction},
        storage,
    },
    types::Config,
};
use stead_testkit::{
    body::{Env, Group},
    wait::SOON,
};

const PROJECT: &str = "default";
const LIMIT: usize = 1 << 20;

/// What needs no running instance.
pub const GROUPS: [Group; 2] = [
    ("volumes_and_networks", |env| Box::pin(volumes_and_networks(env))),
    ("images_out_and_in", |env| Box::pin(images_out_and_in(env))),
];

/// What needs one.
pub const OF_RUNNING_INSTANCES: [Group; 5] = [
    COMMANDS,
    ("files_and_logs", |env| Box::pin(files_and_logs(env))),
    ("metrics", |env| Box::pin(metrics(env))),
    ("rebuilding", |env| Box::pin(rebuilding(env))),
    ("evacuation", |env| Box::pin(evacuation(env))),
];

/// Commands go over websockets, and so are checked over each transport.
pub const COMMANDS: Group = ("commands", |env| Box::pin(commands(env)));

/// Creates and starts an instance on a member.
pub async fn start(c: &Client, member: &str, name: &str) {
    c.create_instance(PROJECT, Some(member), &NewInstance::of_image(name, "stead-tiny")).await.unwrap();
    c.set_instance_state(PROJECT, name, StateAction::Start, SOON).await.unwrap();
}
pub async fn remove(c: &Client, name: &str) {
    let _ = c.set_instance_state(PROJECT, name, StateAction::Kill, SOON).await;
    c.delete_instance(PROJECT, name).await.unwrap();
}

/// Commands with their streams, on both members: the other member's go through the one that is asked.
async fn commands(env: &Env) {
    let c = &env.client;
    for (member, name) in env.members.iter().zip(["stead-e1", "stead-e2"]) {
        start(c, member, name).await;
        let run = async |command: &Command, input: &[u8]| {
            c.exec_to_end(PROJECT, name, command, input, LIMIT, SOON).await
        };
        let sh = |script: &str| Command::new(["sh", "-c", script]);
        let done = run(&sh("echo out; echo err >&2; exit 3"), b"").await.unwrap();
        assert_eq!((done.code, &done.stdout[..], &done.stderr[..]), (3, &b"out\n"[..], &b"err\n"[..]));

        // One and a half megabytes there and back, every byte.
        let input: Vec<u8> = (0..LIMIT + LIMIT / 2).map(|n| (n % 251) as u8).collect();
        let done =
            c.exec_to_end(PROJECT, name, &Command::new(["cat"]), &input, 2 * LIMIT, SOON).await.unwrap();
        assert!(done.code == 0 && done.stdout == input, "{} bytes came back", done.stdout.len());
        let too_long = run(&Command::new(["cat"]), &input).await;
        assert!(matches!(too_long, Err(Error::TooLong { .. })), "{too_long:?}");
        // A command that does not read its input.
        assert_eq!(run(&Command::new(["true"]), &input).await.unwrap().code, 0);

        let mut environment = Config::new();
        environment.insert("GREETING".into(), "hello $HOME \"and\" more".into());
        let somebody = Command {
            environment,
            user: 1000,
            group: 1000,
            directory: Some("/tmp".into()),
            ..sh("echo $GREETING; id -u; id -g; pwd")
        };
        let done = run(&somebody, b"").await.unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), "hello $HOME \"and\" more\n1000\n1000\n/tmp\n");

        let nothing = run(&Command::new(["no-such-program"]), b"").await;
        match nothing {
            Ok(done) => assert_eq!(done.code, 127),
            Err(e) => assert!(e.to_string().contains("ommand not found"), "{e}"),
        }

        // Signals reach it; it ends with its client.
        let mut exec = c
            .exec(
                PROJECT,
                name,
                &sh("trap 'echo got it; exit 7' USR1; echo ready; while true; do sleep 0.1; done"),
            )
            .await
            .unwrap();
        assert_eq!(exec.stdout.next().await.unwrap().unwrap(), "ready\n");
        exec.control.signal(10).await.unwrap();
        let mut said = Vec::new();
        let read = async {
            while let Some(piece) = exec.stdout.next().await.unwrap() {
                said.extend_from_slice(&piece);
            }
        };
        let (code, ()) = tokio::join!(exec.exit.wait(SOON), read);
        assert_eq!((code.unwrap(), said.as_slice()), (7, &b"got it\n"[..]));

        let mut exec = c.exec(PROJECT, name, &sh("echo $$ > /tmp/pid; exec sleep 1000")).await.unwrap();
        let alive = sh("while ! [ -s /tmp/pid ]; do sleep 0.1; done; kill -0 $(cat /tmp/pid)");
        assert_eq!(run(&alive, b"").await.unwrap().code, 0);
        let _ = exec.stdin.close().await;
        drop(exec);
        let dead = sh(
            "n=0; while kill -0 $(cat /tmp/pid) && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done; [ $n -lt 100 ]",
        );
        assert_eq!(run(&dead, b"").await.unwrap().code, 0);

        // A command that is too slow ends in an error in time.
        let slow = c
            .exec_to_end(PROJECT, name, &Command::new(["sleep", "30"]), b"", LIMIT, Duration::from_secs(1))
            .await;
        assert!(matches!(slow, Err(Error::Timeout { .. })), "{slow:?}");

        terminal(c, name).await;
        remove(c, name).await;
    }
}

/// A terminal has a size that can change, and an end.
async fn terminal(c: &Client, name: &str) {
    // The sleep: LXD 5.0 stops reading a terminal when the command ends and may lose its last output.
    let script = "stty size; read line; stty size; echo \"read $line\"; sleep 0.5; exit 5";
    let command = Command { terminal: Some((100, 30)), ..Command::new(["sh", "-c", script]) };
    let mut exec = c.exec(PROJECT, name, &command).await.unwrap();
    assert!(exec.stderr.is_none());
    let mut said = String::new();
    while !said.contains("30 100") {
        let piece = exec.stdout.next().await.unwrap().expect("the size");
        said.push_str(&String::from_utf8_lossy(&piece));
    }
    exec.control.resize(120, 40).await.unwrap();
    // The size is sent on another connection than the line.
    tokio::time::sleep(Duration::from_millis(300)).await;
    exec.stdin.write("a line\n".into()).await.unwrap();
    let read = async {
        while let Some(piece) = exec.stdout.next().await.unwrap() {
            said.push_str(&String::from_utf8_lossy(&piece));
        }
    };
    let (code, ()) = tokio::join!(exec.exit.wait(SOON), read);
    assert_eq!(code.unwrap(), 5);
    assert!(said.contains("40 120") && said.contains("read a line"), "{said}");
}

/// Files in a running and in a stopped instance; logs and console.
async fn files_and_logs(env: &Env) {
    let c = &env.client;
    start(c, &env.members[1], "stead-f1").await;
    let put = async |path: &str, new: &NewFile, attributes| {
        c.write_file(PROJECT, "stead-f1", path, new, attributes).await
    };
    let get = async |path: &str| c.read_file(PROJECT, "stead-f1", path, LIMIT as u64).await;
    let bytes = |text: &'static str| Source::Bytes(text.into());
    let nobody = Attributes { uid: Some(1000), gid: Some(1001), mode: Some(0o640) };

    put("/root/new", &NewFile::File(bytes("one\n")), nobody).await.unwrap();
    let file = get("/root/new").await.unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (1000, 1001, 0o640));
    assert_eq!(file.kind, FileKind::File("one\n".into()));
    put("/root/new", &NewFile::Append(bytes("two\n")), Attributes::default()).await.unwrap();
    assert_eq!(get("/root/new").await.unwrap().kind, FileKind::File("one\ntwo\n".into()));
    put("/root/new", &NewFile::File(bytes("three\n")), Attributes::default()).await.unwrap();
    let file = get("/root/new").await.unwrap();
    assert_eq!((file.kind, file.mode), (FileKind::File("three\n".into()), 0o640));

    put("/root/dir", &NewFile::Directory, Attributes { mode: Some(0o711), ..nobody }).await.unwrap();
    put("/root/dir", &NewFile::Directory, nobody).await.unwrap();
    put("/root/dir/with a space & more", &NewFile::File(bytes("")), Attributes::default()).await.unwrap();
    let dir = get("/root/dir").await.unwrap();
    assert_eq!((dir.mode, dir.kind), (0o711, FileKind::Directory(vec!["with a space & more".into()])));
    put("/root/link", &NewFile::Symlink("/root/new".into()), Attributes::default()).await.unwrap();
    assert_eq!(get("/root/link").await.unwrap().kind, FileKind::Symlink("/root/new".into()));

    let missing = get("/root/never").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let small = c.read_file(PROJECT, "stead-f1", "/root/new", 3).await.unwrap_err();
    assert!(matches!(small, Error::TooLong { limit_bytes: 3, .. }), "{small}");
    let full = c.delete_file(PROJECT, "stead-f1", "/root/dir").await;
    assert!(full.is_err(), "a directory with something in it was deleted");
    c.delete_file(PROJECT, "stead-f1", "/root/dir/with a space & more").await.unwrap();
    c.delete_file(PROJECT, "stead-f1", "/root/dir").await.unwrap();
    assert!(get("/root/dir").await.unwrap_err().is_not_found());

    // The uploaded image itself, from disk: larger than any buffer.
    put("/root/image", &NewFile::File(Source::File(env.image.rootfs.clone())), Attributes::default())
        .await
        .unwrap();
    let size = std::fs::metadata(&env.image.rootfs).unwrap().len();
    let back = c.read_file(PROJECT, "stead-f1", "/root/image", size).await.unwrap();
    assert!(back.kind == FileKind::File(std::fs::read(&env.image.rootfs).unwrap().into()));

    let logs = c.instance_logs(PROJECT, "stead-f1").await.unwrap();
    assert!(logs.iter().any(|l| l.starts_with("lxc")), "{logs:?}");
    for log in &logs {
        c.instance_log(PROJECT, "stead-f1", log, LIMIT as u64).await.unwrap();
    }
    let console = c.console_log(PROJECT, "stead-f1", LIMIT as u64).await.unwrap();
    assert!(console.starts_with(b"tiny"), "{console:?}");

    c.set_instance_state(PROJECT, "stead-f1", StateAction::Kill, SOON).await.unwrap();
    assert_eq!(get("/root/new").await.unwrap().kind, FileKind::File("three\n".into()));
    remove(c, "stead-f1").await;
}

async fn volumes_and_networks(env: &Env) {
    let c = &env.client;
    let [member, _] = &env.members;
    let target = Some(member.as_str());
    let config = Config::from([("user.stead".to_owned(), "1".to_owned())]);
    let create = storage::create_volume("default", PROJECT, "stead-v", "filesystem", &config, target);
    c.send(&create).await.unwrap();
    let volume = c.volume("default", PROJECT, "custom", "stead-v", target).await.unwrap();
    assert_eq!(
        (volume.value.location.as_str(), volume.value.config["user.stead"].as_str()),
        (member.as_str(), "1")
    );
    let listed = c.volumes("default", stead_incus::Scope::Project(PROJECT)).await.unwrap();
    assert!(listed.iter().any(|v| v.kind == "custom" && v.name == "stead-v"));
    let mut put = volume.value.writable();
    // The description is not part of a volume's ETag.
    put.description = "mine".into();
    put.config.insert("user.stead".into(), "2".into());
    let update = |etag| storage::update_volume("default", PROJECT, "custom", "stead-v", target, &put, etag);
    c.send(&update(volume.etag.clone())).await.unwrap();
    assert!(matches!(c.send(&update(volume.etag)).await, Err(Error::Changed { .. })));
    // btrfs only counts with quotas.
    match c.volume_state("default", PROJECT, "custom", "stead-v", target).await {
        Ok(state) => assert!(state.usage.is_none_or(|u| u.used < LIMIT as u64), "{state:?}"),
        Err(e) => assert!(e.to_string().ends_with("(500): Not supported"), "{e}"),
    }
    c.send(&storage::delete_volume("default", PROJECT, "custom", "stead-v", target)).await.unwrap();
    let gone = c.volume("default", PROJECT, "custom", "stead-v", target).await.unwrap_err();
    assert!(gone.is_not_found());
    let (pool, etag) = c.storage_pool("default").await.unwrap();
    assert_eq!((pool.driver.as_str(), pool.locations.len()), ("btrfs", 2));
    assert_eq!(etag.is_some(), c.dialect() == Dialect::Incus);
    let mut put = pool.writable();
    put.description = "mine".into();
    c.send(&storage::update_pool("default", &put, etag)).await.unwrap();
    assert_eq!(c.storage_pool("default").await.unwrap().0.description, "mine");

    let networks = c.networks(PROJECT).await.unwrap();
    assert!(networks.iter().any(|n| n.name == "br0" && !n.managed), "{networks:?}");
    let state = c.network_state(PROJECT, "br0", target).await.unwrap();
    assert!(
        state.state == "up" && !state.addresses.is_empty() && state.counters.bytes_received > 0,
        "{state:?}"
    );
    let leases = c.network_leases(PROJECT, "br0").await;
    assert!(leases.is_err_and(|e| e.is_not_found()), "an unmanaged network has leases");
}

async fn metrics(env: &Env) {
    let c = &env.client;
    let [member, _] = &env.members;
    let target = Some(member.as_str());
    start(c, member, "stead-x1").await;
    let samples = c.metrics(None, target).await.unwrap();
    let engine = c.dialect().to_string().to_lowercase();
    let of = |name: &str| {
        samples.iter().find(|s| {
            s.name == format!("{engine}_{name}") && s.labels.get("name").is_some_and(|n| n == "stead-x1")
        })
    };
    assert!(
        of("procs_total").is_some_and(|s| s.value >= 1.0),
        "{:?}",
        samples.iter().take(5).collect::<Vec<_>>()
    );
    assert!(of("memory_MemTotal_bytes").is_some_and(|s| s.value > 1e6));
    remove(c, "stead-x1").await;
}

/// An exported image is imported unchanged; an instance becomes an image.
async fn images_out_and_in(env: &Env) {
    let c = &env.client;
    let alias = c.image_alias(PROJECT, "stead-tiny").await.unwrap().value;
    let out = env.image.rootfs.with_extension("exported");
    c.export_image(PROJECT, &alias.target, &out).await.unwrap();
    // A split image comes as a form with both its files.
    let size = |p: &std::path::Path| std::fs::metadata(p).unwrap().len();
    assert!(size(&out) > size(&env.image.rootfs) + size(&env.image.metadata));
    std::fs::remove_file(&out).unwrap();
    assert!(c.export_image(PROJECT, "ffffffffffff", &out).await.unwrap_err().is_not_found());
    assert!(!out.exists());

    c.create_instance(PROJECT, Some(&env.members[1]), &NewInstance::of_image("stead-i1", "stead-tiny"))
        .await
        .unwrap();
    let properties = Config::from([("os".to_owned(), "Published".to_owned())]);
    let fingerprint = c.publish_image(PROJECT, "stead-i1", &properties, &["stead/published"]).await.unwrap();
    assert_eq!(c.image(PROJECT, &fingerprint).await.unwrap().value.properties["os"], "Published");
    assert_eq!(c.image_alias(PROJECT, "stead/published").await.unwrap().value.target, fingerprint);
    // It has no source for a refresh.
    let refreshed = c.refresh_image(PROJECT, &fingerprint).await;
    assert!(
        matches!(refreshed, Ok(false) | Err(Error::Api { .. } | Error::Operation { .. })),
        "{refreshed:?}"
    );
    c.delete_image(PROJECT, &fingerprint).await.unwrap();
    remove(c, "stead-i1").await;
    let unknown = c.run(&images::refresh(PROJECT, "ffffffffffff"), SOON).await.unwrap_err();
    assert!(unknown.is_not_found());
}

async fn rebuilding(env: &Env) {
    let c = &env.client;
    start(c, &env.members[0], "stead-b1").await;
    let file = NewFile::File(Source::Bytes("old".into()));
    c.write_file(PROJECT, "stead-b1", "/root/old", &file, Attributes::default()).await.unwrap();
    let source = InstanceSource::Alias("stead-tiny".into());
    if c.has(Feature::Rebuild).await.unwrap() {
        assert_eq!(c.rebuild_instance(PROJECT, "stead-b1", &source).await.unwrap_err().code(), Some(400));
        c.set_instance_state(PROJECT, "stead-b1", StateAction::Kill, SOON).await.unwrap();
        c.rebuild_instance(PROJECT, "stead-b1", &source).await.unwrap();
        let old = c.read_file(PROJECT, "stead-b1", "/root/old", 10).await.unwrap_err();
        assert!(old.is_not_found(), "{old}");
    } else {
        assert_eq!(c.dialect(), Dialect::Lxd);
        let e = c.rebuild_instance(PROJECT, "stead-b1", &source).await.unwrap_err();
        assert!(e.to_string().contains("needs the API extension instances_rebuild"), "{e}");
    }
    remove(c, "stead-b1").await;
}

async fn evacuation(env: &Env) {
    let c = &env.client;
    let [first, second] = &env.members;
    start(c, second, "stead-v1").await;
    c.set_member_state(second, MemberAction::Evacuate).await.unwrap();
    assert_eq!(c.member(second).await.unwrap().value.status, "Evacuated");
    let there = c.instance(PROJECT, "stead-v1").await.unwrap().value;
    // LXD 5.0 has no modes and only stops an instance whose interface is on the member's own bridge.
    let expected = match c.has(Feature::EvacuationMode).await.unwrap() {
        true => (first, "Running"),
        false => (second, "Stopped"),
    };
    assert_eq!((&there.location, there.status.as_str()), expected);
    c.set_member_state(second, MemberAction::Restore).await.unwrap();
    assert_eq!(c.member(second).await.unwrap().value.status, "Online");
    let back = c.instance(PROJECT, "stead-v1").await.unwrap().value;
    assert_eq!((&back.location, back.status.as_str()), (second, "Running"));
    remove(c, "stead-v1").await;
}
