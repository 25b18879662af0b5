//! The functions of the fuzz targets: each accepts any bytes, must return, and asserts properties of the parsed value.

use bytes::BytesMut;
use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
};
use stead_agent::{
    files::unpack,
    frame::{self, Frame},
};
use stead_image::{
    ImageError,
    compression::decompressed,
    oci,
    programs::{elf, gomod},
    secrets,
    tarball::{TarError, TarPolicy, walk},
};
use stead_incus::{
    Envelope, JoinToken, TrustToken, envelope, events, metrics,
    types::{
        Certificate, Cluster, ClusterGroup, EventKind, Image, ImageAlias, Instance, InstanceState, Member,
        MemberState, Network, NetworkLease, NetworkState, OperationStatus, Profile, Project, ProjectState,
        Resources, Server, Snapshot, StoragePool, StorageSpace, Volume, VolumeState, Warning,
    },
};
use stead_model::{
    ClusterSpec, Failure, NodeSpec, Recipe, agent,
    programs::{VersionOf, VersionPart},
};
use stead_node::api::{Route, route};
use stead_one::{disks, document, instance, lxdrc, payload, raw};
use stead_os::{
    mountinfo,
    qmp::{self, Message as QmpMessage},
};
use stead_placement::{Policy, check, place, plan};
use tokio_tungstenite::tungstenite::{
    Message, WebSocket,
    protocol::{Role, WebSocketConfig},
};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by name; its seeds are in `seeds/<name>/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent_files", agent_files),
    ("agent_frames", agent_frames),
    ("agent_requests", agent_requests),
    ("cluster_file", cluster_file),
    ("compressed", compressed),
    ("engine_envelope", engine_envelope),
    ("engine_events", engine_events),
    ("engine_metrics", engine_metrics),
    ("engine_objects", engine_objects),
    ("engine_operations", engine_operations),
    ("mountinfo", mountinfo),
    ("node_spec", node_spec),
    ("oci_layout", oci_layout),
    ("one_document", one_document),
    ("one_lxdrc", one_lxdrc),
    ("one_raw", one_raw),
    ("placement", placement),
    ("program_files", program_files),
    ("qmp", qmp),
    ("private_keys", private_keys),
    ("recipe", recipe),
    ("tar_overlay", tar_overlay),
];

/// A policy, a line `---` and a snapshot. They are refused, or (for a small cluster) the plan passes the checker, a second
/// plan is empty, and copies of the instances get a member or a reason.
pub fn placement(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((policy, snapshot)) = text.split_once("\n---\n") else { return };
    let policy = match Policy::from_yaml("policy.yaml", policy) {
        Ok(policy) => policy,
        Err(error) => return assert!(error.to_string().starts_with("policy.yaml")),
    };
    let snapshot = match stead_placement::Snapshot::from_json("snapshot.json", snapshot) {
        Ok(snapshot) => snapshot,
        Err(error) => return assert!(error.to_string().starts_with("snapshot.json")),
    };
    if snapshot.members.len() > 6 || snapshot.instances.len() > 12 {
        return;
    }
    let made = plan(&snapshot, &policy).expect("a parsed snapshot is consistent");
    if let Err(faults) = check(&snapshot, &policy, &made) {
        panic!("{faults:?}");
    }
    let after = snapshot.with_moves(made.moves.iter().map(|m| (&m.instance, &m.to)));
    let again = plan(&after, &policy).expect("a snapshot after a plan is consistent");
    assert!(again.moves.is_empty() || policy.max_moves.is_some(), "a second plan is not empty");
    let mut batch: Vec<_> = snapshot.instances.into_iter().map(|i| i.workload).collect();
    batch.iter_mut().for_each(|w| w.id.name.insert_str(0, "new-"));
    if let Ok(placed) = place(&after, &policy, &batch) {
        assert_eq!(placed.placed.len() + placed.refused.len(), batch.len());
        assert!(placed.refused.iter().all(|r| !r.why.is_empty()));
    }
}

/// A recipe is refused, or round-trips through JSON.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Recipe::from_yaml("recipe.yaml", text) {
        Ok(recipe) => {
            let json = serde_json::to_string(&recipe).expect("a recipe can be written");
            let again = Recipe::from_yaml("recipe.yaml", &json).expect("a written recipe can be read");
            assert_eq!(recipe, again);
        }
        Err(error) => assert!(error.to_string().starts_with("recipe.yaml")),
    }
}

/// A cluster file is refused, or each of its nodes has a name and unique hardware addresses.
pub fn cluster_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ClusterSpec::from_yaml("cluster.yaml", text) {
        Ok(cluster) => {
            let nodes = cluster.resolve();
            assert_eq!(nodes.len(), cluster.node_names().len());
            let mut macs: Vec<_> = nodes.iter().flat_map(|n| n.nics.iter().map(|i| i.mac)).collect();
            let all = macs.len();
            macs.sort();
            macs.dedup();
            assert_eq!(macs.len(), all, "two interfaces have the same hardware address");
        }
        Err(error) => assert!(error.to_string().starts_with("cluster.yaml")),
    }
}

/// A node spec is refused, or round-trips through JSON.
pub fn node_spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match NodeSpec::from_json("node.json", text) {
        Ok(spec) => {
            let json = serde_json::to_string(&spec).expect("a node spec can be written");
            let again = NodeSpec::from_json("node.json", &json).expect("a written node spec can be read");
            assert_eq!(spec, again);
        }
        Err(error) => assert!(error.to_string().starts_with("node.json")),
    }
}

/// The frames of an exec stream do not depend on how the stream is cut into pieces, and they round-trip.
pub fn agent_frames(data: &[u8]) {
    let whole = frames(data, data.len().max(1));
    let cut = data.first().map_or(1, |n| usize::from(*n) % 7 + 1);
    assert_eq!(whole, frames(data, cut), "frames depend on how the stream is cut");
    for frame in whole.0 {
        let mut written = BytesMut::new();
        frame::encode(&frame, &mut written).expect("a frame that was read can be written");
        // Empty data is not sent at all.
        if let Some(again) = frame::decode(&mut written).expect("a written frame can be read") {
            assert_eq!(frame, again);
        }
    }
}

/// Decodes a stream in pieces; returns its frames and the error that ends it, if any.
fn frames(data: &[u8], piece: usize) -> (Vec<Frame>, Option<String>) {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in data.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match frame::decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }
    (frames, None)
}

/// A request of the agent API: the line `METHOD PATH`, then the body. Accepted paths are absolute and bodies round-trip.
pub fn agent_requests(data: &[u8]) {
    let mut parts = data.splitn(2, |b| *b == b'\n');
    let line = parts.next().unwrap_or_default();
    let body = parts.next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return };
    let (method, path) = line.split_once(' ').unwrap_or((line, ""));
    let Ok(asked) = route(method, path) else { return };
    match asked {
        Route::GetFiles { path } | Route::PutFiles { path } => {
            assert!(path.starts_with('/') && !path.contains('\0'), "{path:?} was accepted");
        }
        Route::JoinToken => read::<agent::JoinTokenRequest>(body),
        Route::Join => read::<agent::JoinRequest>(body),
        Route::Access => read::<agent::AccessRequest>(body),
        Route::RemoveMember => read::<agent::RemoveMemberRequest>(body),
        Route::RestoreMember => read::<agent::RestoreMemberRequest>(body),
        Route::Reboot | Route::Shutdown => read::<agent::StopRequest>(body),
        Route::Status | Route::Logs { .. } | Route::Exec | Route::Engine | Route::Instances => {}
    }
}

/// A body is refused, or round-trips through JSON.
fn read<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(body) else { return };
    let json = serde_json::to_vec(&value).expect("a message can be written");
    assert_eq!(value, serde_json::from_slice::<T>(&json).expect("a written message can be read"));
}

/// A tar sent to a node is refused, or unpacked below its target directory; no file appears outside of it.
pub fn agent_files(data: &[u8]) {
    let outside = tempfile::tempdir().expect("a temporary directory");
    let inside = outside.path().join("inside");
    fs::create_dir(&inside).expect("a directory in it");
    let target = unpack::Target::open(inside).expect("the directory can be opened");
    let _ = target.unpack(&mut &*data, unpack::Top::Kept);
    assert_eq!(names(outside.path()), ["inside"], "an entry was written outside the directory");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a readable directory");
    entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// An overlay's tar is refused, or each of its entries stays below the root and is not a device.
pub fn tar_overlay(data: &[u8]) {
    for policy in [TarPolicy::OVERLAY, TarPolicy::BASE, TarPolicy::OCI] {
        let _ = walk(data, &policy, |entry, contents| {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            assert!(!path.starts_with('/'), "{path:?} is absolute");
            assert!(!path.split('/').any(|part| part == ".." || part == "."), "{path:?} climbs");
            assert!(path.is_empty() || !path.split('/').any(str::is_empty), "{path:?} has an empty part");
            assert!(entry.mode & !0o7777 == 0, "{path:?} has a mode of {:o}", entry.mode);
            io::copy(contents, &mut io::sink()).map(drop).map_err(TarError::Read)
        });
    }
}

/// Compressed data is refused, or unpacks to bytes that do not depend on the size of the reads.
pub fn compressed(data: &[u8]) {
    /// Limit on the unpacked length: a few bytes may unpack to very many.
    const MOST: u64 = 4 << 20;
    let unpacked = |piece: usize| -> io::Result<Vec<u8>> {
        let mut reader = decompressed(io::Cursor::new(data.to_vec()))?.take(MOST);
        let (mut out, mut buf) = (Vec::new(), vec![0; piece]);
        loop {
            match reader.read(&mut buf)? {
                0 => return Ok(out),
                n => out.extend_from_slice(&buf[..n]),
            }
        }
    };
    match (unpacked(64 << 10), unpacked(61)) {
        (Ok(whole), Ok(pieces)) => assert!(whole == pieces, "the bytes depend on how they are read"),
        (Err(_), Err(_)) => {}
        (whole, pieces) => panic!("{:?} and {:?}", whole.is_ok(), pieces.is_ok()),
    }
}

/// A file of an image, searched for private keys: a key is also found after other lines.
pub fn private_keys(data: &[u8]) {
    if let Some(kind) = secrets::private_key(data)
        && kind != "PuTTY"
    {
        let later = [b"-----BEGIN CERTIFICATE-----\nL\n", data].concat();
        assert_eq!(secrets::private_key(&later), Some(kind));
    }
}

/// The JSON documents of an OCI layout or a Docker archive, separated by lines `---`: the first is the index, a
/// descriptor's size selects among the others. At most one image is chosen.
pub fn oci_layout(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let documents: Vec<&[u8]> = text.split("\n---\n").map(str::as_bytes).collect();
    let (index, others) = (documents[0], &documents[1..]);
    let any = |n: u64| {
        let missing = || ImageError::Input { subject: "layout".into(), why: "has no such document".into() };
        let at = n.checked_rem(others.len() as u64).ok_or_else(missing)?;
        Ok(others[usize::try_from(at).unwrap_or(0)].to_vec())
    };
    for reference in [None, Some("v1".to_owned())] {
        let wanted = oci::Wanted { architecture: "amd64".into(), reference };
        let chosen = [
            oci::choose(index, &wanted, &|descriptor| any(descriptor.size)),
            oci::choose_saved(index, &wanted, &|name| any(name.len() as u64)),
        ];
        for result in chosen {
            match result {
                Ok(layers) => assert!(!layers.is_empty(), "an image without layers was chosen"),
                Err(e) => assert!(e.is_bad_input(), "{e}"),
            }
        }
    }
}

/// An answer of an engine, or a token from one, is refused or parsed.
pub fn engine_envelope(data: &[u8]) {
    if let Ok(Envelope::Async { operation, .. }) = envelope::parse(data) {
        assert!(!operation.is_empty(), "an operation without a path was accepted");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = JoinToken::decode(text) {
        assert!(token == JoinToken::decode(&token.encode()).expect("a written token can be read"));
    }
    if let Ok(token) = TrustToken::decode(text) {
        assert!(token == TrustToken::decode(&token.encode()).expect("a written token can be read"));
    }
}

/// A document of OpenNebula is refused, or every path, name and argument from it is harmless.
pub fn one_document(data: &[u8]) {
    let Ok(text) = payload::decode(data.to_vec()) else { return };
    let _ = disks::fstab::parse(&text);
    let Ok((vm, kept)) = document::read(&text) else { return };
    let plain = |t: &str| t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b));
    assert!(plain(vm.name.as_str()) && !vm.name.as_str().contains('/'));
    for disk in &vm.disks {
        if let Some(target) = &disk.target {
            assert!(target.is_absolute() && !target.components().any(|c| c.as_os_str() == ".."));
        }
        if let document::DiskKind::Rbd { image, .. } = &disk.kind {
            assert!(plain(image) && !image.starts_with('-'));
        }
    }
    for nic in &vm.nics {
        assert!(nic.bridge.iter().chain(&nic.target).all(|n| plain(n) && !n.starts_with('-')));
    }
    let facts = instance::Facts { pool: "default".into(), ..Default::default() };
    if let Ok((wanted, _)) = instance::wanted(&vm, &kept, &facts) {
        assert_eq!(wanted.config.get(instance::STATUS_KEY).map(String::as_str), Some("0"));
        let (again, _) = document::read(&kept).expect("what is kept of a document can be read");
        assert_eq!(again, vm);
    }
}

/// The OpenNebula driver's configuration is refused, or its values are within bounds.
pub fn one_lxdrc(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match lxdrc::parse("lxdrc", text) {
        Ok((rc, _)) => {
            assert!(rc.datastore_location.is_absolute());
            assert!((80..=4096).contains(&rc.vnc.width) && (80..=4096).contains(&rc.vnc.height));
        }
        Err(error) => assert!(error.to_string().starts_with("lxdrc")),
    }
}

/// A template's RAW text is refused or parsed as settings.
pub fn one_raw(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = raw::parse(text);
}

/// An object of an engine: the line with its kind, then its JSON. It is refused, or the body of a `PUT` of it can be
/// serialised.
pub fn engine_objects(data: &[u8]) {
    let mut parts = data.splitn(2, |b| *b == b'\n');
    let kind = parts.next().unwrap_or_default();
    let json = parts.next().unwrap_or_default();
    fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Option<T> {
        serde_json::from_slice(json).ok()
    }
    fn written(put: Option<impl serde::Serialize>) {
        if let Some(put) = put {
            serde_json::to_string(&put).expect("what can be changed can be written");
        }
    }
    match kind {
        b"certificate" => drop(read::<Certificate>(json)),
        b"cluster" => drop(read::<Cluster>(json)),
        b"group" => written(read::<ClusterGroup>(json).map(|g| g.writable())),
        b"image" => written(read::<Image>(json).map(|i| i.writable())),
        b"alias" => drop(read::<ImageAlias>(json)),
        b"instance" => {
            let instance = read::<Instance>(json);
            written(instance.as_ref().map(Instance::writable));
            let addresses = instance.map(|i| i.global_addresses()).unwrap_or_default();
            assert!(addresses.len() <= json.len(), "addresses came from nowhere");
        }
        b"state" => drop(read::<InstanceState>(json)),
        b"member" => written(read::<Member>(json).map(|m| m.writable())),
        b"member-state" => drop(read::<MemberState>(json)),
        b"network" => written(read::<Network>(json).map(|n| n.writable())),
        b"network-state" => drop(read::<NetworkState>(json)),
        b"lease" => drop(read::<NetworkLease>(json)),
        b"profile" => written(read::<Profile>(json).map(|p| p.writable())),
        b"project" => written(read::<Project>(json).map(|p| p.writable())),
        b"project-state" => drop(read::<ProjectState>(json)),
        b"resources" => drop(read::<Resources>(json)),
        b"server" => drop(read::<Server>(json).map(|s| s.has("etag"))),
        b"snapshot" => drop(read::<Snapshot>(json)),
        b"pool" => written(read::<StoragePool>(json).map(|p| p.writable())),
        b"space" => drop(read::<StorageSpace>(json)),
        b"volume" => written(read::<Volume>(json).map(|v| v.writable())),
        b"volume-state" => drop(read::<VolumeState>(json)),
        b"warning" => drop(read::<Warning>(json)),
        _ => {}
    }
}

/// An operation of an engine is refused, or its progress and secrets can be read.
pub fn engine_operations(data: &[u8]) {
    let Ok(operation) = serde_json::from_slice::<OperationStatus>(data) else { return };
    let _ = operation.outcome();
    if let Some(progress) = operation.progress() {
        assert!(progress.percent.is_none_or(|p| p <= 100), "{progress:?}");
    }
    for (name, secret) in operation.secrets() {
        assert!(data.len() >= name.len().max(secret.len()), "a secret came from nowhere");
    }
}

/// The bytes a server sends on a websocket, with events as messages. Each event is refused or has a single kind.
pub fn engine_events(data: &[u8]) {
    let config = WebSocketConfig::default().max_message_size(Some(1 << 16)).max_frame_size(Some(1 << 16));
    let mut socket = WebSocket::from_raw_socket(OneWay(data), Role::Client, Some(config));
    while let Ok(message) = socket.read() {
        match message {
            Message::Text(text) => event(text.as_bytes()),
            Message::Binary(bytes) => event(&bytes),
            Message::Close(_) => break,
            _ => {}
        }
    }
    event(data);
}

fn event(json: &[u8]) {
    let Ok(event) = events::parse(json) else { return };
    assert!(event.operation().is_none() || event.kind == EventKind::Operation);
    assert!(event.lifecycle().is_none() || event.kind == EventKind::Lifecycle);
}

/// A stream that reads from the bytes and discards all writes.
struct OneWay<'d>(&'d [u8]);

impl Read for OneWay<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
impl Write for OneWay<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A metrics text is refused with the number of the bad line, or each of its lines is a sample or a comment.
pub fn engine_metrics(data: &[u8]) {
    let lines = data.split(|b| *b == b'\n').count();
    match metrics::parse(data) {
        Ok(samples) => {
            assert!(samples.len() <= lines);
            assert!(samples.iter().all(|s| !s.name.is_empty()));
        }
        Err(metrics::MetricsError::Line { line, .. }) => assert!((1..=lines).contains(&line)),
        Err(metrics::MetricsError::Text) => assert!(std::str::from_utf8(data).is_err()),
    }
}

/// A mount table: each line gives at most one mount, a mount's fields come from its line, and the mount that holds a mount
/// point is mounted there.
pub fn mountinfo(data: &[u8]) {
    let mounts = mountinfo::parse(data);
    assert!(mounts.len() <= data.split(|b| *b == b'\n').count());
    for mount in &mounts {
        assert!(mount.at.as_os_str().len() + mount.source.as_os_str().len() < data.len());
        let holding = mountinfo::holding(&mounts, &mount.at).expect("a mount point is on a mount");
        assert_eq!(holding.at.components().count(), mount.at.components().count());
    }
}

/// A program or a go.mod. An interpreter is a path out of the file; versions are those that the text has.
pub fn program_files(data: &[u8]) {
    if let Some(interpreter) = elf::program(data).interpreter() {
        assert!(interpreter.len() <= 3 * data.len());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let module = gomod::parse(text);
    for (path, version) in &module.require {
        assert!(text.contains(path) && text.contains(version));
        let of = |part| module.version_of(&VersionOf { version_of: path.clone(), part });
        if let (Some(whole), Some(minor)) = (of(None), of(Some(VersionPart::Minor))) {
            assert!(whole.contains(&minor));
        }
    }
    if let Some(version) = &module.go {
        assert_eq!(version.to_string().parse().as_ref(), Ok(version));
    }
}

/// Lines from QEMU's machine protocol. The fields of events and errors come from the line.
pub fn qmp(data: &[u8]) {
    for line in data.split(|b| *b == b'\n') {
        match qmp::parse(line) {
            QmpMessage::Event(event) => assert!(event.name.len() <= line.len()),
            QmpMessage::Answer { id, result } => {
                assert!(id.is_none() || line.contains(&b':'));
                if let Err(refusal) = result {
                    assert!(refusal.class.len() + refusal.desc.len() < line.len());
                }
            }
            QmpMessage::Greeting | QmpMessage::Unknown => {}
        }
    }
}
