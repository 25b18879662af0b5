//! No instance of a real cluster is harmed: what a stop would destroy stays, what does not start is moved back, what an
//! evacuation stopped runs again, and what a cut move leaves behind is recognised and removed.

use crate::{
    common::{Said, eventually},
    fleet::{Fleet, PROJECT},
};
use std::fs;
use stead_incus::{
    Scope,
    requests::{
        cluster::{EvacuationMode, MemberAction},
        instances::StateAction,
        storage,
    },
    types::{Config, Devices, Instance},
};
use stead_testkit::wait::SOON;

/// What is done to a cluster, besides what [`Fleet`] does.
trait Harm {
    fn on(&self, node: &str, command: &[&str]) -> String;
    fn own(&self, args: &[&str]) -> Said;
    fn drain(&self, member: &str, more: &[&str]) -> Said;
    fn instance(&self, name: &str) -> Instance;
    fn set(&self, name: &str, action: StateAction);
    fn configure(&self, name: &str, config: &[(&str, &str)], devices: Devices);
    fn assert_at(&self, name: &str, member: &str, status: &str);
}

impl Harm for Fleet {
    fn on(&self, node: &str, command: &[&str]) -> String {
        self.w.exec(self.name, node, command)
    }
    /// `stead fleet` on this cluster as one of Stead's: programs run on its nodes by their agents.
    fn own(&self, args: &[&str]) -> Said {
        let said = self.w.stead(&[&["fleet"], args, &["--cluster", self.name]].concat());
        println!("fleet {args:?}: exit {}\n{}{}", said.code, said.stderr, said.stdout);
        said
    }
    fn drain(&self, member: &str, more: &[&str]) -> Said {
        let policy = self.w.file(&format!("drain-{member}"), &format!("drain: [{member}]\n"));
        self.own(&[&["rebalance", "--policy", &policy, "--stop-timeout", "20"], more].concat())
    }
    fn instance(&self, name: &str) -> Instance {
        self.runtime.block_on(self.client.instance_full(PROJECT, name)).unwrap()
    }
    fn set(&self, name: &str, action: StateAction) {
        self.runtime.block_on(self.client.set_instance_state(PROJECT, name, action, SOON)).unwrap();
    }
    fn configure(&self, name: &str, config: &[(&str, &str)], devices: Devices) {
        let config: Config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.runtime.block_on(self.client.patch_instance(PROJECT, name, &config, &devices)).unwrap();
    }
    #[track_caller]
    fn assert_at(&self, name: &str, member: &str, status: &str) {
        let now = self.instance(name);
        assert_eq!((now.location.as_str(), now.status.as_str()), (member, status), "{name}");
    }
}

#[test]
fn no_instance_of_incus_6_is_harmed() {
    let Some(f) = Fleet::up("no_instance_of_incus_6_is_harmed", "fl-safe", "incus-node", 96) else { return };
    sizes(&f);
    ephemeral(&f);
    preflight(&f);
    moved_back_and_owed(&f);
    // Not frozen: under version 1 of cgroups, Incus 6.0 takes a frozen container for a running one and cannot stop it.
    evacuated(&f);
    left_over(&f);
    f.w.down(f.name);
}

#[test]
fn no_instance_of_lxd_5_is_harmed() {
    let Some(f) = Fleet::up("no_instance_of_lxd_5_is_harmed", "fl-slxd", "lxd-node", 95) else { return };
    ephemeral(&f);
    preflight(&f);
    moved_back_and_owed(&f);
    frozen(&f);
    left_over(&f);
    f.w.down(f.name);
}

/// A btrfs pool without quotas measures nothing: by the API alone a size is unknown, and a rate is refused; on the nodes `du`
/// knows.
fn sizes(f: &Fleet) {
    f.create("sized", "node1", &[]);
    let drain = f.w.file("drain-sized", "drain: [node1]\n");
    let plan: serde_json::Value =
        serde_json::from_str(&f.own(&["plan", "--json", "--policy", &drain]).stdout).unwrap();
    let measured = plan["moves"][0]["size_mib"].as_u64().expect("measured by du");
    assert!(measured > 0, "{plan}");

    let socket = format!("/proc/{}/root/var/lib/incus/unix.socket", first_process(f, "node1"));
    let by_api = |args: &[&str]| {
        let said = f.w.stead(&[&["fleet"], args, &["--policy", &drain, "--socket", &socket]].concat());
        println!("{}{}", said.stderr, said.stdout);
        said
    };
    assert!(by_api(&["plan"]).stdout.contains("at least"), "the image has a size");
    let refused = by_api(&["rebalance", "--bandwidth", "1"]);
    assert!(
        refused.code == 2 && refused.stderr.contains("the sizes of sized are unknown"),
        "{}",
        refused.stderr
    );
    assert_eq!(f.own(&["rebalance", "--bandwidth", "0"]).code, 2);
    f.assert_at("sized", "node1", "Running");

    let said = f.drain("node1", &["--bandwidth", "1000"]);
    assert!(said.code == 0 && said.stderr.contains("before sized is moved"), "{}", said.stderr);
    f.delete("sized");
}

/// The process that is the root of a node, seen from here.
fn first_process(f: &Fleet, node: &str) -> String {
    let file = f.w.state.join("clusters").join(f.name).join("nodes").join(node).join("state.json");
    let state: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    state["machine_pid"].to_string()
}

/// An ordinary balance plan and a drain leave ephemeral instances where they are.
fn ephemeral(f: &Fleet) {
    f.create("lasting", "node1", &[]);
    for n in 0..3 {
        let mut new =
            stead_incus::requests::instances::NewInstance::of_image(format!("eph{n}"), "stead-tiny");
        new.ephemeral = true;
        f.runtime.block_on(f.client.create_instance(PROJECT, Some("node1"), &new)).unwrap();
        f.set(&format!("eph{n}"), StateAction::Start);
    }
    assert_eq!(f.own(&["rebalance"]).code, 0);
    let said = f.drain("node1", &[]);
    assert!(
        said.stdout.contains("it is ephemeral: stopping it for a move would delete it"),
        "{}",
        said.stdout
    );
    for n in 0..3 {
        f.assert_at(&format!("eph{n}"), "node1", "Running");
        f.set(&format!("eph{n}"), StateAction::Kill);
    }
    assert_ne!(f.places(&["lasting"]), ["node1"]);
    f.delete("lasting");
    eventually("the ephemeral instances are deleted by their stop", || {
        f.instances().iter().all(|i| !i.name.starts_with("eph"))
    });
}

fn device(keys: &[(&str, &str)]) -> Config {
    keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A custom volume on a local pool, and an interface that only the source has: nothing is stopped for a move that could not
/// end well.
fn preflight(f: &Fleet) {
    f.runtime
        .block_on(f.client.send(&storage::create_volume(
            "default",
            PROJECT,
            "data",
            "filesystem",
            &Config::new(),
            Some("node1"),
        )))
        .unwrap();
    f.on("node1", &["ip", "link", "add", "br7", "type", "bridge"]);
    f.create("withdata", "node1", &[]);
    f.create("withnic", "node1", &[]);
    let data = device(&[("type", "disk"), ("path", "/srv"), ("pool", "default"), ("source", "data")]);
    f.configure("withdata", &[], Devices::from([("data".into(), data)]));
    let nic = device(&[("type", "nic"), ("nictype", "bridged"), ("parent", "br7")]);
    f.configure("withnic", &[], Devices::from([("eth7".into(), nic)]));
    let pid = |name: &str| f.instance(name).state.unwrap().pid;
    let before = [pid("withdata"), pid("withnic")];
    let said = f.drain("node1", &[]);
    for why in ["has no volume data in pool default", "has no interface br7"] {
        assert!(said.stdout.contains(why), "{}", said.stdout);
    }
    assert_eq!([pid("withdata"), pid("withnic")], before, "stopped in vain");
    f.delete("withnic");
    f.delete("withdata");
    f.on("node1", &["ip", "link", "delete", "br7"]);
}

/// The directory of a node without which an instance with this setting does not start.
const NEEDED: &str = "/srv/needed";
const NEEDS: &str = "lxc.hook.pre-start = /usr/bin/test -e /srv/needed";

fn moved_back_and_owed(f: &Fleet) {
    f.on("node1", &["mkdir", "-p", NEEDED]);
    f.create("picky", "node1", &[("raw.lxc", NEEDS)]);
    let said = f.drain("node1", &[]);
    assert!(
        said.code == 1 && said.stderr.contains("moving picky back to node1"),
        "exit {}: {}",
        said.code,
        said.stderr
    );
    f.assert_at("picky", "node1", "Running");

    // It does not start anywhere: every run says so, until one can start it.
    f.on("node1", &["rmdir", NEEDED]);
    let said = f.drain("node1", &[]);
    assert!(said.code == 1 && said.stderr.contains("picky ran and is stopped"), "{}", said.stderr);
    f.assert_at("picky", "node1", "Stopped");
    let said = f.own(&["rebalance"]);
    assert!(said.code == 1 && said.stderr.contains("is still stopped"), "{}", said.stderr);
    f.on("node1", &["mkdir", "-p", NEEDED]);
    let said = f.own(&["rebalance"]);
    assert!(
        said.code == 0 && said.stderr.contains("which an earlier run left stopped, runs"),
        "{}",
        said.stderr
    );
    f.assert_at("picky", "node1", "Running");
    f.delete("picky");
}

fn frozen(f: &Fleet) {
    f.create("icy", "node1", &[]);
    f.set("icy", StateAction::Freeze);
    assert_eq!(f.drain("node1", &[]).code, 0);
    let at = f.places(&["icy"]).remove(0);
    assert_ne!(at, "node1");
    f.assert_at("icy", &at, "Frozen");
    f.set("icy", StateAction::Unfreeze);
    f.delete("icy");
}

fn evacuated(f: &Fleet) {
    f.create("leaves", "node2", &[]);
    f.create("stays", "node2", &[("cluster.evacuate", "stop")]);
    f.create("idle", "node2", &[]);
    f.set("idle", StateAction::Kill);
    let state = |action| f.runtime.block_on(f.client.set_member_state("node2", action)).unwrap();
    state(MemberAction::EvacuateAs(Some(EvacuationMode::Stop)));
    f.assert_at("leaves", "node2", "Stopped");
    assert_eq!(f.drain("node2", &[]).code, 0);
    let places = f.places(&["leaves", "idle"]);
    assert!(places.iter().all(|p| p != "node2"), "{places:?}");
    f.assert_at("leaves", &places[0], "Running");
    f.assert_at("idle", &places[1], "Stopped");
    f.assert_at("stays", "node2", "Stopped");
    state(MemberAction::Restore);
    f.assert_at("stays", "node2", "Running");
    assert_eq!(f.drain("node2", &[]).code, 0);
    f.assert_at("stays", "node2", "Running");
    for name in ["leaves", "stays", "idle"] {
        f.delete(name);
    }
}

/// What a move leaves whose link was cut: a row of the database, something on the disk, or both.
fn left_over(f: &Fleet) {
    let lxd = f.client.dialect() == stead_incus::Dialect::Lxd;
    let sql: &[&str] = if lxd { &["lxd", "sql", "global"] } else { &["incus", "admin", "sql", "global"] };
    let query = |text: &str| f.on("node1", &[sql, &[text]].concat());
    f.create("torn", "node1", &[]);
    // As the row of its own volume, on another member.
    let columns = "name, storage_pool_id, type, description, project_id, content_type";
    query(&format!(
        "INSERT INTO storage_volumes ({columns}, node_id) SELECT {columns}, (SELECT id FROM nodes WHERE name='node2') \
         FROM storage_volumes WHERE name='torn'"
    ));
    let path = format!("{}/storage-pools/default/containers/torn", f.client.dialect().facts().directory);
    f.on("node3", &["btrfs", "subvolume", "create", &path]);

    // node2 is known to have one; node3 is tried once, and then nothing is stopped in vain.
    let said = f.drain("node1", &[]);
    assert!(said.stdout.contains("has a left-over volume of its name in pool default"), "{}", said.stdout);
    f.assert_at("torn", "node1", "Running");
    let pid = f.instance("torn").state.unwrap().pid;
    let said = f.drain("node1", &[]);
    assert!(said.stdout.contains("node2, node3: has a left-over volume"), "{}", said.stdout);
    assert_eq!(f.instance("torn").state.unwrap().pid, pid, "stopped in vain");

    let said = f.own(&["repair", "--dry-run"]);
    assert!(said.code == 0 && said.stdout.contains("DELETE FROM storage_volumes"), "{}", said.stdout);
    let said = f.own(&["repair", "torn"]);
    assert!(
        said.code == 0
            && said.stdout.contains("removed from node2")
            && said.stdout.contains("removed from node3"),
        "{}",
        said.stdout
    );
    assert!(f.own(&["repair"]).stdout.contains("nothing is left over"));
    assert!(
        f.w.stead(&["exec", f.name, "node3", "--", "test", "-e", &path]).code != 0,
        "it is still on the disk"
    );
    assert_eq!(f.drain("node1", &[]).code, 0);
    let at = f.places(&["torn"]).remove(0);
    assert_ne!(at, "node1");
    f.assert_at("torn", &at, "Running");
    let volumes = f.runtime.block_on(f.client.volumes("default", Scope::Project(PROJECT))).unwrap();
    let copies: Vec<&str> =
        volumes.iter().filter(|v| v.name == "torn").map(|v| v.location.as_str()).collect();
    assert_eq!(copies, [at.as_str()]);
    f.delete("torn");
}
