//! Checks that every cluster must pass: the fake, a real Incus, a real LXD. Each function checks one group of claims
//! and panics when a claim fails. Needs at least two members, a storage pool `default` and a default profile with a
//! root disk in that pool. Removes everything it creates.

use crate::image::TinyImage;
use std::{collections::BTreeSet, pin::Pin, time::Duration};
use stead_incus::{
    Client, Delivery, Dialect, ETag, Error, EventFilter, Feature, Operation, Scope, Tagged,
    client::Moved,
    requests::{
        cluster, images,
        instances::{self, Detail, InstanceSource, Move, NewInstance, StateAction},
        profiles, projects,
    },
    types::{ClusterGroupPut, Config, Devices, EventKind, Outcome, ProfilePut},
};

/// The cluster under test.
#[derive(Debug)]
pub struct Env {
    /// A client of it.
    pub client: Client,
    /// Two of its members.
    pub members: [String; 2],
    /// An image that starts there.
    pub image: TinyImage,
    /// Whether instances can be started: Incus 7 needs cgroup version 2. Everything else is checked there too.
    pub starts: bool,
}

const PROJECT: &str = "default";
const SOON: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);
/// An ETag that matches no object any more.
fn stale() -> ETag {
    ETag::new("\"0000\"")
}

/// A group of claims, with its name.
pub type Group = (&'static str, for<'e> fn(&'e Env) -> Pin<Box<dyn Future<Output = ()> + 'e>>);

/// All groups. Instances are created from the image that `images_and_aliases` leaves.
pub const GROUPS: [Group; 7] = [
    ("server", |env| Box::pin(server(env))),
    ("members_and_groups", |env| Box::pin(members_and_groups(env))),
    ("profiles_and_projects", |env| Box::pin(profiles_and_projects(env))),
    ("images_and_aliases", |env| Box::pin(images_and_aliases(env))),
    ("instances", |env| Box::pin(instances(env))),
    ("moves", |env| Box::pin(moves(env))),
    ("operations_and_events", |env| Box::pin(operations_and_events(env))),
];

/// Runs all groups.
pub async fn all(env: &Env) {
    for (_, group) in GROUPS {
        group(env).await;
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, codes: &[u16]) -> Error {
    let error = answer.expect_err("a refusal");
    let code = error.code().unwrap_or_else(|| panic!("no code: {error:?}"));
    assert!(codes.contains(&code), "refused with {code}, not {codes:?}: {error}");
    error
}
#[track_caller]
fn changed<T: std::fmt::Debug>(answer: Result<T, Error>) {
    assert!(matches!(answer, Err(Error::Changed { .. })), "{answer:?}");
}

/// The server's description of itself; a missing API extension is refused by name.
pub async fn server(env: &Env) {
    let c = &env.client;
    let server = c.server_info().await.unwrap();
    assert_eq!(server.auth, "trusted");
    assert!(server.environment.server_clustered);
    let engine = match c.dialect() {
        Dialect::Incus => "incus",
        Dialect::Lxd => "lxd",
    };
    assert_eq!(server.environment.server, engine);
    let found = Client::discover(c.endpoint().clone()).await.unwrap();
    assert_eq!(found.dialect(), c.dialect());

    let request = instances::relocate(PROJECT, "nobody", &Move { refresh: true, ..Move::to("nowhere") });
    match (c.dialect(), c.has(Feature::RefreshMigration).await.unwrap()) {
        (Dialect::Lxd, _) => {
            assert!(matches!(
                c.send(&request).await,
                Err(Error::Never { feature: Feature::RefreshMigration, .. })
            ));
        }
        (Dialect::Incus, false) => match c.send(&request).await.unwrap_err() {
            Error::Extension { feature, extension, endpoint } => {
                assert_eq!(feature, Feature::RefreshMigration);
                assert_eq!(extension, "instance_refresh_migration");
                assert_eq!(endpoint, c.endpoint().to_string());
            }
            other => panic!("{other}"),
        },
        (Dialect::Incus, true) => {
            refused(c.send(&request).await, &[404]);
        }
    }

    changed(c.send(&stead_incus::requests::server::put_config(&server.config, stale())).await);
    let key = Config::from([("user.stead-test".to_owned(), "1".to_owned())]);
    c.send(&stead_incus::requests::server::patch_config(&key)).await.unwrap();
    let Tagged { value, etag } = c.server().await.unwrap();
    assert_eq!(value.config["user.stead-test"], "1");
    let mut config = value.config;
    // A key that is left out would stay: the servers reset only the keys they know.
    config.insert("user.stead-test".into(), String::new());
    c.send(&stead_incus::requests::server::put_config(&config, etag)).await.unwrap();
    assert!(!c.server().await.unwrap().value.config.contains_key("user.stead-test"));

    for warning in c.warnings().await.unwrap() {
        assert!(!warning.uuid.is_empty() && !warning.severity.is_empty());
    }
    let unknown = stead_incus::requests::warnings::get("11111111-1111-4111-8111-111111111111");
    refused(c.fetch::<stead_incus::types::Warning>(&unknown).await, &[404]);
    refused(c.fetch::<Config>(&stead_incus::Request::get("/1.0/nowhere")).await, &[404]);
}

/// Members, their resources, groups.
pub async fn members_and_groups(env: &Env) {
    let c = &env.client;
    let names: BTreeSet<String> = c.members().await.unwrap().into_iter().map(|m| m.server_name).collect();
    assert!(env.members.iter().all(|m| names.contains(m)));
    for name in &env.members {
        let member = c.member(name).await.unwrap().value;
        assert_eq!(
            (member.status.as_str(), member.groups.as_slice()),
            ("Online", &["default".to_owned()][..])
        );
        assert!(member.database && !member.architecture.is_empty());
        let resources = c.resources(Some(name)).await.unwrap();
        assert!(resources.cpu.total > 0 && resources.memory.total > resources.memory.used);
        let threads: usize =
            resources.cpu.sockets.iter().flat_map(|s| &s.cores).map(|core| core.threads.len()).sum();
        assert_eq!(threads as u64, resources.cpu.total);
        let space = c.storage_space("default", Some(name)).await.unwrap().space;
        assert!(space.total > 0 && space.used <= space.total);
        match c.member_state(name).await {
            Ok(state) => {
                assert!(state.sysinfo.total_ram > state.sysinfo.free_ram);
                assert_eq!(state.storage_pools["default"].space.total, space.total);
            }
            Err(e) => assert!(e.is_missing_extension() && c.dialect() == Dialect::Lxd, "{e}"),
        }
    }
    refused(c.member("nobody").await, &[404]);
    refused(c.resources(Some("nobody")).await, &[400, 404, 500]);

    // A member's settings, changed with their ETag.
    let name = env.members[1].as_str();
    let Tagged { value, etag } = c.member(name).await.unwrap();
    let mut put = value.writable();
    put.description = "changed".into();
    put.config.insert("user.stead".into(), "1".into());
    changed(c.send(&cluster::update_member(name, &put, stale())).await);
    c.send(&cluster::update_member(name, &put, etag.clone())).await.unwrap();
    let now = c.member(name).await.unwrap();
    assert_eq!((now.value.description.as_str(), now.value.config["user.stead"].as_str()), ("changed", "1"));
    assert_ne!(now.etag, etag);
    changed(c.send(&cluster::update_member(name, &put, etag)).await);
    c.send(&cluster::update_member(name, &value.writable(), now.etag)).await.unwrap();

    let group = ClusterGroupPut { members: vec![name.to_owned()], ..ClusterGroupPut::default() };
    c.send(&cluster::create_group("stead-a", &group)).await.unwrap();
    let again = c.send(&cluster::create_group("stead-a", &group)).await;
    refused(again, &[409, 500]);
    assert_eq!(c.cluster_group("stead-a").await.unwrap().value.members, [name]);
    assert!(c.member(name).await.unwrap().value.groups.contains(&"stead-a".to_owned()));
    c.send(&cluster::rename_group("stead-a", "stead-b")).await.unwrap();
    refused(c.cluster_group("stead-a").await, &[404]);
    let listed: Vec<String> = c.cluster_groups().await.unwrap().into_iter().map(|g| g.name).collect();
    assert!(listed.contains(&"stead-b".to_owned()) && listed.contains(&"default".to_owned()));
    refused(c.send(&cluster::delete_group("stead-b")).await, &[400, 500]);
    let Tagged { value, etag } = c.cluster_group("stead-b").await.unwrap();
    let empty = ClusterGroupPut { members: Vec::new(), ..value.writable() };
    c.send(&cluster::update_group("stead-b", &empty, etag)).await.unwrap();
    c.send(&cluster::delete_group("stead-b")).await.unwrap();
    refused(c.send(&cluster::delete_group("default")).await, &[400, 403]);
}

/// Profiles and projects.
pub async fn profiles_and_projects(env: &Env) {
    let c = &env.client;
    let config = Config::from([("limits.cpu".to_owned(), "1".to_owned())]);
    c.send(&profiles::create(PROJECT, "stead-p", &config, &Devices::new(), "one")).await.unwrap();
    refused(c.send(&profiles::create(PROJECT, "stead-p", &config, &Devices::new(), "")).await, &[409, 500]);
    let Tagged { value, etag } = c.profile(PROJECT, "stead-p").await.unwrap();
    assert_eq!((value.description.as_str(), &value.config), ("one", &config));
    let put = ProfilePut { description: "two".into(), ..value.writable() };
    changed(c.send(&profiles::update(PROJECT, "stead-p", &put, stale())).await);
    c.send(&profiles::update(PROJECT, "stead-p", &put, etag.clone())).await.unwrap();
    changed(c.send(&profiles::update(PROJECT, "stead-p", &put, etag)).await);
    let more = Config::from([("limits.memory".to_owned(), "64MiB".to_owned())]);
    c.send(&profiles::patch(PROJECT, "stead-p", &more, &Devices::new())).await.unwrap();
    let now = c.profile(PROJECT, "stead-p").await.unwrap().value;
    assert_eq!((now.description.as_str(), now.config.len()), ("two", 2));
    c.send(&profiles::rename(PROJECT, "stead-p", "stead-q")).await.unwrap();
    assert!(c.profiles(PROJECT).await.unwrap().iter().any(|p| p.name == "stead-q"));
    c.send(&profiles::delete(PROJECT, "stead-q")).await.unwrap();
    refused(c.profile(PROJECT, "stead-q").await, &[404]);
    refused(c.send(&profiles::delete(PROJECT, "default")).await, &[400, 403]);

    c.send(&projects::create("stead-x", &Config::new(), "mine")).await.unwrap();
    refused(c.send(&projects::create("stead-x", &Config::new(), "")).await, &[409, 500]);
    let Tagged { value, etag } = c.project("stead-x").await.unwrap();
    assert_eq!(value.config["features.images"], "true");
    let mut put = value.writable();
    put.config.insert("user.stead".into(), "1".into());
    changed(c.send(&projects::update("stead-x", &put, stale())).await);
    c.send(&projects::update("stead-x", &put, etag)).await.unwrap();
    assert!(c.project_state("stead-x").await.unwrap().resources.contains_key("instances"));
    // The project has its own profiles.
    assert_eq!(c.profiles("stead-x").await.unwrap().len(), 1);
    assert!(c.profile("stead-x", "default").await.unwrap().value.devices.is_empty());
    c.send(&projects::delete("stead-x")).await.unwrap();
    refused(c.project("stead-x").await, &[404]);
    refused(c.send(&projects::delete("default")).await, &[400, 403]);
}

/// Images, their names and properties. Leaves the image under the alias `stead-tiny`.
pub async fn images_and_aliases(env: &Env) {
    let c = &env.client;
    let fingerprint = upload(env).await;
    // A second upload gives the same image.
    assert_eq!(upload(env).await, fingerprint);
    let image = c.image(PROJECT, &fingerprint[..12]).await.unwrap();
    assert_eq!(image.value.fingerprint, fingerprint);
    assert!(image.value.size > 0);
    refused(c.image(PROJECT, "ffffffffffff").await, &[404]);

    let mut put = image.value.writable();
    put.properties.insert("stead".into(), "1".into());
    changed(c.send(&images::update(PROJECT, &fingerprint, &put, stale())).await);
    c.send(&images::update(PROJECT, &fingerprint, &put, image.etag.clone())).await.unwrap();
    changed(c.send(&images::update(PROJECT, &fingerprint, &put, image.etag)).await);
    let more = Config::from([("more".to_owned(), "2".to_owned())]);
    c.send(&images::patch_properties(PROJECT, &fingerprint, &more)).await.unwrap();
    let now = c.image(PROJECT, &fingerprint).await.unwrap().value.properties;
    assert_eq!((now["stead"].as_str(), now["more"].as_str()), ("1", "2"));

    refused(c.send(&images::create_alias(PROJECT, "stead/none", "ffffffffffff")).await, &[404]);
    c.set_image_alias(PROJECT, "stead/one", &fingerprint).await.unwrap();
    c.set_image_alias(PROJECT, "stead/one", &fingerprint).await.unwrap();
    refused(c.send(&images::create_alias(PROJECT, "stead/one", &fingerprint)).await, &[409]);
    let alias = c.image_alias(PROJECT, "stead/one").await.unwrap();
    assert_eq!(alias.value.target, fingerprint);
    changed(c.send(&images::update_alias(PROJECT, "stead/one", &fingerprint, stale())).await);
    c.send(&images::update_alias(PROJECT, "stead/one", &fingerprint, alias.etag)).await.unwrap();
    c.send(&images::rename_alias(PROJECT, "stead/one", "stead/two")).await.unwrap();
    refused(c.image_alias(PROJECT, "stead/one").await, &[404]);
    assert!(c.image_aliases(PROJECT).await.unwrap().iter().any(|a| a.name == "stead/two"));
    assert!(
        c.image(PROJECT, &fingerprint).await.unwrap().value.aliases.iter().any(|a| a.name == "stead/two")
    );
    c.send(&images::delete_alias(PROJECT, "stead/two")).await.unwrap();
    c.set_image_alias(PROJECT, "stead-tiny", &fingerprint).await.unwrap();
    assert!(c.images(PROJECT).await.unwrap().iter().any(|i| i.fingerprint == fingerprint));
}

async fn upload(env: &Env) -> String {
    env.client.upload_image(PROJECT, &env.image.metadata, Some(&env.image.rootfs)).await.unwrap()
}

async fn gone(c: &Client, name: &str) {
    if c.instance(PROJECT, name).await.is_ok() {
        let _ = c.set_instance_state(PROJECT, name, StateAction::Kill, STOP).await;
        c.delete_instance(PROJECT, name).await.unwrap();
    }
}

/// One instance: created, changed, started, snapshotted, renamed, stopped, copied, deleted.
pub async fn instances(env: &Env) {
    let c = &env.client;
    let [first, _] = &env.members;
    let mut new = NewInstance::of_image("stead-c1", "stead-tiny");
    new.config.insert("user.stead.group".into(), "web".into());
    c.create_instance(PROJECT, Some(first), &new).await.unwrap();
    let made = c.instance(PROJECT, "stead-c1").await.unwrap();
    assert_eq!((made.value.location.as_str(), made.value.status.as_str()), (first.as_str(), "Stopped"));
    assert_eq!(made.value.profiles, ["default"]);
    assert_eq!(made.value.expanded_devices["root"]["pool"], "default");
    assert_eq!(made.value.config["user.stead.group"], "web");

    // Instances that cannot be created.
    let again = c.create_instance(PROJECT, Some(first), &new).await;
    refused(again, &[400, 409, 500]);
    assert_eq!(c.instance(PROJECT, "stead-c1").await.unwrap().value.created_at, made.value.created_at);
    let other = |name: &str| NewInstance { name: name.into(), ..new.clone() };
    refused(c.create_instance(PROJECT, Some("nobody"), &other("stead-c9")).await, &[404]);
    refused(c.create_instance(PROJECT, None, &other("no name")).await, &[400]);
    let unknown = NewInstance::of_image("stead-c9", "stead-nothing");
    refused(c.create_instance(PROJECT, None, &unknown).await, &[400, 404, 500]);
    refused(c.instance(PROJECT, "stead-c9").await, &[404]);

    // Lists and filters.
    let named = |list: Vec<stead_incus::types::Instance>| -> Vec<String> {
        list.into_iter().map(|i| i.name).filter(|n| n.starts_with("stead-")).collect()
    };
    let scope = Scope::Project(PROJECT);
    assert_eq!(
        named(c.list_instances(Scope::AllProjects, Detail::Settings, None).await.unwrap()),
        ["stead-c1"]
    );
    let web = Some("config.user.stead.group eq web and status eq Stopped");
    assert_eq!(named(c.list_instances(scope, Detail::Settings, web).await.unwrap()), ["stead-c1"]);
    let running = Some("status eq Running");
    assert!(named(c.list_instances(scope, Detail::Settings, running).await.unwrap()).is_empty());

    // Settings.
    let mut put = made.value.writable();
    put.description = "changed".into();
    put.config.insert("user.more".into(), "1".into());
    changed(c.update_instance(PROJECT, "stead-c1", &put, stale()).await);
    c.update_instance(PROJECT, "stead-c1", &put, made.etag.clone()).await.unwrap();
    changed(c.update_instance(PROJECT, "stead-c1", &put, made.etag).await);
    let less = Config::from([("user.more".to_owned(), "2".to_owned())]);
    c.patch_instance(PROJECT, "stead-c1", &less, &Devices::new()).await.unwrap();
    let now = c.instance(PROJECT, "stead-c1").await.unwrap().value;
    assert_eq!((now.description.as_str(), now.config["user.more"].as_str()), ("changed", "2"));
    assert_eq!(now.config["user.stead.group"], "web");
    let bare = instances::patch(PROJECT, "stead-c1", "", &Config::new(), &Devices::new(), Some(stale()));
    changed(c.run(&bare, SOON).await);

    if env.starts {
        running_instance(c, "stead-c1").await;
    }

    // Snapshots.
    c.create_snapshot(PROJECT, "stead-c1", "before", false).await.unwrap();
    refused(c.create_snapshot(PROJECT, "stead-c1", "before", false).await, &[400, 409, 500]);
    c.create_snapshot(PROJECT, "stead-c1", "second", false).await.unwrap();
    let listed: BTreeSet<String> =
        c.snapshots(PROJECT, "stead-c1").await.unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(listed, BTreeSet::from(["before".to_owned(), "second".to_owned()]));
    let snapshot = c.snapshot(PROJECT, "stead-c1", "before").await.unwrap();
    assert!(!snapshot.value.stateful);
    let later = "2037-01-01T00:00:00Z";
    let expire = |etag| instances::expire_snapshot(PROJECT, "stead-c1", "before", later, etag);
    changed(c.run(&expire(stale()), SOON).await);
    c.run(&expire(snapshot.etag), SOON).await.unwrap();
    assert_eq!(c.snapshot(PROJECT, "stead-c1", "before").await.unwrap().value.expires_at, later);
    refused(c.snapshot(PROJECT, "stead-c1", "never").await, &[404]);
    c.rename_snapshot(PROJECT, "stead-c1", "second", "third").await.unwrap();
    c.delete_snapshot(PROJECT, "stead-c1", "third").await.unwrap();
    refused(c.delete_snapshot(PROJECT, "stead-c1", "third").await, &[404]);
    let restore = |etag| instances::restore_snapshot(PROJECT, "stead-c1", "before", false, etag);
    changed(c.run(&restore(stale()), SOON).await);

    if env.starts {
        c.set_instance_state(PROJECT, "stead-c1", StateAction::Stop, STOP).await.unwrap();
    }
    let later = Config::from([("user.more".to_owned(), "3".to_owned())]);
    c.patch_instance(PROJECT, "stead-c1", &later, &Devices::new()).await.unwrap();
    c.restore_snapshot(PROJECT, "stead-c1", "before", false).await.unwrap();
    assert_eq!(c.instance(PROJECT, "stead-c1").await.unwrap().value.config["user.more"], "2");
    refused(c.restore_snapshot(PROJECT, "stead-c1", "never", false).await, &[400, 404, 500]);

    // A copy, refreshed.
    let copy = |refresh| NewInstance {
        name: "stead-c2".into(),
        source: InstanceSource::Copy {
            name: "stead-c1".into(),
            project: None,
            instance_only: false,
            refresh,
            allow_inconsistent: false,
        },
        ..NewInstance::default()
    };
    c.create_instance(PROJECT, Some(first), &copy(false)).await.unwrap();
    c.create_instance(PROJECT, Some(first), &copy(true)).await.unwrap();
    assert_eq!(c.snapshots(PROJECT, "stead-c2").await.unwrap().len(), 1);
    c.delete_instance(PROJECT, "stead-c2").await.unwrap();

    c.rename_instance(PROJECT, "stead-c1", "stead-c3").await.unwrap();
    refused(c.instance(PROJECT, "stead-c1").await, &[404]);
    c.delete_instance(PROJECT, "stead-c3").await.unwrap();
    refused(c.instance(PROJECT, "stead-c3").await, &[404]);
    refused(c.delete_instance(PROJECT, "stead-c3").await, &[404]);
}

/// Starts and stops an instance, and checks what a running one refuses. Leaves it running.
async fn running_instance(c: &Client, name: &str) {
    let state = |action| c.set_instance_state(PROJECT, name, action, STOP);
    refused(state(StateAction::Stop).await, &[400, 500]);
    state(StateAction::Start).await.unwrap();
    refused(state(StateAction::Start).await, &[400, 500]);
    let now = c.instance_state(PROJECT, name).await.unwrap();
    assert!(now.status == "Running" && now.pid > 0 && now.processes > 0 && now.memory.usage > 0, "{now:?}");
    let full = c.instance_full(PROJECT, name).await.unwrap();
    assert!(full.state.is_some_and(|s| s.network.contains_key("lo")));
    refused(c.delete_instance(PROJECT, name).await, &[400]);
    refused(c.rename_instance(PROJECT, name, "stead-c2").await, &[400, 500]);
}

/// Moves between members and between projects, and moves that are refused.
pub async fn moves(env: &Env) {
    let c = &env.client;
    let [first, second] = &env.members;
    let whereabouts = async || c.instance(PROJECT, "stead-m1").await.unwrap().value.location;
    c.create_instance(PROJECT, Some(first), &NewInstance::of_image("stead-m1", "stead-tiny")).await.unwrap();
    c.create_snapshot(PROJECT, "stead-m1", "snap", false).await.unwrap();
    assert_eq!(c.move_instance(PROJECT, "stead-m1", &Move::to(second)).await.unwrap(), Moved::Done);
    assert_eq!(&whereabouts().await, second);
    assert_eq!(c.snapshots(PROJECT, "stead-m1").await.unwrap().len(), 1);
    // Already there: the client sends no request; if it is sent, the servers refuse.
    assert_eq!(c.move_instance(PROJECT, "stead-m1", &Move::to(second)).await.unwrap(), Moved::AlreadyThere);
    let same = c.run(&instances::relocate(PROJECT, "stead-m1", &Move::to(second)), SOON).await;
    refused(same, &[400, 500]);
    refused(c.move_instance(PROJECT, "stead-m1", &Move::to("nobody")).await, &[404]);
    refused(c.move_instance(PROJECT, "nobody", &Move::to(first)).await, &[404]);

    if env.starts {
        moves_of_a_running_instance(env).await;
    }

    // To a group.
    let group = ClusterGroupPut { members: vec![first.clone()], ..ClusterGroupPut::default() };
    c.send(&cluster::create_group("stead-g", &group)).await.unwrap();
    c.create_instance(PROJECT, Some("@stead-g"), &NewInstance::of_image("stead-m2", "stead-tiny"))
        .await
        .unwrap();
    assert_eq!(&c.instance(PROJECT, "stead-m2").await.unwrap().value.location, first);
    c.delete_instance(PROJECT, "stead-m2").await.unwrap();
    let empty = c.cluster_group("stead-g").await.unwrap();
    c.send(&cluster::update_group("stead-g", &ClusterGroupPut::default(), empty.etag)).await.unwrap();
    c.send(&cluster::delete_group("stead-g")).await.unwrap();

    // Another project that uses the default project's profiles, so that there is a root disk.
    let shared = Config::from([("features.profiles".to_owned(), "false".to_owned())]);
    c.send(&projects::create("stead-y", &shared, "")).await.unwrap();
    let over = Move { project: Some("stead-y".into()), ..Move::default() };
    assert_eq!(c.move_instance(PROJECT, "stead-m1", &over).await.unwrap(), Moved::Done);
    refused(c.instance(PROJECT, "stead-m1").await, &[404]);
    let there = c.instance("stead-y", "stead-m1").await.unwrap().value;
    assert_eq!(there.project, "stead-y");
    assert!(named_in(c, Scope::AllProjects).await.contains(&"stead-m1".to_owned()));
    assert!(!named_in(c, Scope::Project(PROJECT)).await.contains(&"stead-m1".to_owned()));
    c.delete_instance("stead-y", "stead-m1").await.unwrap();
    for image in c.images("stead-y").await.unwrap() {
        c.delete_image("stead-y", &image.fingerprint).await.unwrap();
    }
    c.send(&projects::delete("stead-y")).await.unwrap();
}

/// `stead-m1` starts on the second member and ends stopped.
async fn moves_of_a_running_instance(env: &Env) {
    let c = &env.client;
    let [first, second] = &env.members;
    let whereabouts = async || c.instance(PROJECT, "stead-m1").await.unwrap().value.location;
    // A running instance: LXD stops it and starts it on the target; Incus requires it to be stopped.
    c.set_instance_state(PROJECT, "stead-m1", StateAction::Start, STOP).await.unwrap();
    let moved = c.move_instance(PROJECT, "stead-m1", &Move::to(first)).await;
    let here = match c.dialect() {
        Dialect::Incus => {
            refused(moved, &[400]);
            second
        }
        Dialect::Lxd => {
            assert_eq!(moved.unwrap(), Moved::Done);
            first
        }
    };
    assert_eq!(&whereabouts().await, here);
    assert_eq!(c.instance_state(PROJECT, "stead-m1").await.unwrap().status, "Running");
    // A live move fails, because none of these machines has CRIU. The instance stays and keeps running.
    let live = Move { live: true, ..Move::to(if here == first { second } else { first }) };
    refused(c.move_instance(PROJECT, "stead-m1", &live).await, &[400]);
    assert_eq!(&whereabouts().await, here);
    assert_eq!(c.instance_state(PROJECT, "stead-m1").await.unwrap().status, "Running");
    c.set_instance_state(PROJECT, "stead-m1", StateAction::Kill, STOP).await.unwrap();
}

async fn named_in(c: &Client, scope: Scope<'_>) -> Vec<String> {
    c.list_instances(scope, Detail::Settings, None).await.unwrap().into_iter().map(|i| i.name).collect()
}

/// Events report operations to earlier subscribers; ended operations are forgotten.
pub async fn operations_and_events(env: &Env) {
    let c = &env.client;
    gone(c, "stead-o1").await;
    let filter = EventFilter::of([EventKind::Lifecycle, EventKind::Operation]);
    let mut events = c.events(filter).await.unwrap();
    let new = NewInstance::of_image("stead-o1", "stead-tiny");
    let request = instances::create(PROJECT, Some(&env.members[1]), &new);
    let operation = c.begin(&request).await.unwrap().expect("an operation");
    let id = operation.path.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let done = c.wait(&operation, SOON).await.unwrap();
    assert_eq!((done.outcome(), done.id.as_str()), (Outcome::Success, id.as_str()));
    assert_eq!(done.progress().map(|p| p.percent), done.progress().map(|p| p.percent));
    // It is still listed for a moment.
    assert!(c.operations(Scope::Project(PROJECT)).await.unwrap().iter().any(|o| o.id == id));

    let (mut ended, mut created) = (false, false);
    while !(ended && created) {
        let delivery = tokio::time::timeout(SOON, events.next()).await.expect("the events of it").unwrap();
        let Delivery::Event(event) = delivery else { panic!("the connection broke") };
        if let Some(o) = event.operation()
            && o.id == id
        {
            ended |= o.outcome() == Outcome::Success;
        }
        if let Some(l) = event.lifecycle() {
            created |= l.action == "instance-created" && l.source.contains("stead-o1");
        }
    }
    drop(events);
    // Waiting for an ended operation returns its result; for an unknown one, an error of its own.
    c.wait(&operation, SOON).await.unwrap();
    let nobodys = Operation::known("POST /1.0/x", "/1.0/operations/11111111-1111-4111-8111-111111111111");
    match c.wait(&nobodys, SOON).await.unwrap_err() {
        Error::OutcomeUnknown { operation, interrupted, .. } => {
            assert_eq!((operation, interrupted), (nobodys.path.clone(), false));
        }
        other => panic!("{other}"),
    }
    refused(c.operation(&nobodys).await, &[404]);
    refused(c.cancel(&nobodys).await, &[404]);

    // Waiting returns a failure with the server's message, in whichever way the server reports it.
    let failing = instances::set_state(PROJECT, "stead-o1", StateAction::Stop, STOP);
    let operation = c.begin(&failing).await.unwrap().expect("an operation");
    match c.wait(&operation, SOON).await.unwrap_err() {
        Error::Operation { code: 400, message, .. } => {
            assert!(message.contains("already stopped"), "{message}")
        }
        other => panic!("{other:?}"),
    }
    c.delete_instance(PROJECT, "stead-o1").await.unwrap();
}
