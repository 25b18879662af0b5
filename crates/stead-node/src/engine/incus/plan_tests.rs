use super::*;
use crate::engine::incus::{preseed, preseed::PreseedError, scalars::Readings};
use proptest::prelude::*;
use serde_json::{Value, json};
use stead_model::{
    EngineKind,
    node::{EngineRole, EngineSpec},
};

fn spec(preseed: Value) -> EngineSpec {
    EngineSpec {
        kind: EngineKind::Incus,
        role: EngineRole::Init,
        address: "10.0.0.1:8443".parse().unwrap(),
        bridge: "br0".into(),
        storage_disk: None,
        preseed,
    }
}

fn wanted(spec: &EngineSpec, source: Option<&str>) -> Result<Preseed, PreseedError> {
    preseed::wanted(spec, source, Readings::of(stead_incus::Dialect::Incus, "6.0.4"))
}

/// An untouched server: no pool, and empty profiles called default.
fn untouched() -> Observed {
    Observed {
        projects: vec![Project { name: "default".into(), ..Project::default() }],
        profiles: vec![("default".into(), empty_profile("default"))],
        ..Default::default()
    }
}
fn empty_profile(name: &str) -> Profile {
    Profile { name: name.into(), ..Profile::default() }
}

/// Applies a step to a server, as the real one would.
fn apply(server: &mut Observed, step: &Step) {
    match step.clone() {
        Step::SetConfig { config } => server.config.extend(config),
        Step::RemoveLeftover { path } => server.leftovers.retain(|(p, _)| *p != path),
        Step::WipeDisk { .. } => {
            if let Some(d) = &mut server.disk {
                d.content = Content::Blank;
            }
        }
        Step::CreatePool { name, driver, mut config, description } => {
            if config.contains_key("source") {
                let disk = server.disk.as_mut().unwrap();
                assert_eq!(disk.content, Content::Blank, "mkfs on a disk that is not blank");
                disk.content = Content::Btrfs { uuid: "u".into(), label: name.clone() };
                config.insert("source".into(), "u".into());
            }
            server.pools.push(StoragePool {
                name,
                driver,
                config,
                description,
                status: "Created".into(),
                ..StoragePool::default()
            });
        }
        Step::PatchPool { name, config } => {
            server.pools.iter_mut().find(|p| p.name == name).unwrap().config.extend(config);
        }
        Step::DeletePool { name } => server.pools.retain(|p| p.name != name),
        Step::CreateNetwork { project, name, kind, config, description } => server.networks.push((
            project,
            Network {
                name,
                kind,
                managed: true,
                config,
                description,
                status: "Created".into(),
                ..Network::default()
            },
        )),
        Step::PatchNetwork { project, name, config } => {
            let n = server.networks.iter_mut().find(|(p, n)| *p == project && n.name == name).unwrap();
            n.1.config.extend(config);
        }
        Step::DeleteNetwork { project, name } => {
            server.networks.retain(|(p, n)| (p, &n.name) != (&project, &name));
        }
        Step::CreateProject { name, config, description } => {
            server.profiles.push((name.clone(), empty_profile("default")));
            server.projects.push(Project { name, description, config, ..Project::default() });
        }
        Step::PatchProject { name, config } => {
            server.projects.iter_mut().find(|p| p.name == name).unwrap().config.extend(config);
        }
        Step::CreateProfile { project, name, config, devices, description } => {
            server
                .profiles
                .push((project, Profile { name, description, config, devices, ..Profile::default() }));
        }
        Step::PatchProfile { project, name, config, devices } => {
            let p = server.profiles.iter_mut().find(|(q, p)| *q == project && p.name == name).unwrap();
            p.1.config.extend(config);
            p.1.devices.extend(devices);
        }
        Step::Bootstrap { .. } => {
            assert!(!server.clustered);
            server.clustered = true;
        }
    }
}

fn blank_disk() -> Option<Disk> {
    Some(Disk { device: "/dev/vdb".into(), content: Content::Blank })
}

#[test]
fn a_fresh_server_with_a_disk() {
    let wanted = wanted(&spec(Value::Null), Some("/dev/vdb")).unwrap();
    let steps = init(&wanted, "node1", &Observed { disk: blank_disk(), ..untouched() }).unwrap();
    insta::assert_json_snapshot!(steps, @r#"
    [
      {
        "set_config": {
          "config": {
            "cluster.https_address": "10.0.0.1:8443",
            "core.https_address": "10.0.0.1:8443"
          }
        }
      },
      {
        "create_pool": {
          "name": "default",
          "driver": "btrfs",
          "config": {
            "source": "/dev/vdb"
          },
          "description": ""
        }
      },
      {
        "patch_profile": {
          "project": "default",
          "name": "default",
          "config": {},
          "devices": {
            "eth0": {
              "name": "eth0",
              "nictype": "bridged",
              "parent": "br0",
              "type": "nic"
            },
            "root": {
              "path": "/",
              "pool": "default",
              "type": "disk"
            }
          }
        }
      },
      {
        "bootstrap": {
          "member": "node1"
        }
      }
    ]
    "#);
}

#[test]
fn a_clustered_server_is_left_alone() {
    let wanted = wanted(&spec(Value::Null), None).unwrap();
    let o = Observed { clustered: true, ..untouched() };
    assert!(init(&wanted, "node1", &o).unwrap().is_empty());
    assert!(before_join(&o).unwrap().is_empty());
}

#[test]
fn data_is_never_wiped() {
    let wanted = wanted(&spec(Value::Null), Some("/dev/vdb")).unwrap();
    let with = |content, disk_unused| Observed {
        disk: Some(Disk { device: "/dev/vdb".into(), content }),
        disk_unused,
        ..untouched()
    };
    let pool = || Content::Btrfs { uuid: "u".into(), label: "default".into() };
    for o in [with(Content::Other, false), with(pool(), false)] {
        assert!(init(&wanted, "node1", &o).is_err());
        assert!(before_join(&o).is_err());
    }
    for o in [with(pool(), true), with(Content::HalfMade, false)] {
        let steps = init(&wanted, "node1", &o).unwrap();
        assert!(steps.contains(&Step::WipeDisk { device: "/dev/vdb".into() }));
    }
}

#[test]
fn what_a_failed_join_left_goes_first() {
    let mut o = Observed { disk: blank_disk(), ..untouched() };
    apply(
        &mut o,
        &Step::CreatePool {
            name: "default".into(),
            driver: "btrfs".into(),
            config: Config::from([("source".into(), "/dev/vdb".into())]),
            description: String::new(),
        },
    );
    assert_eq!(
        before_join(&o).unwrap(),
        [
            Step::DeletePool { name: "default".into() },
            Step::RemoveLeftover { path: "default".into() },
            Step::WipeDisk { device: "/dev/vdb".into() }
        ]
    );
    o.pools[0].used_by.push("/1.0/profiles/default".into());
    assert!(matches!(before_join(&o), Err(PlanError::PoolInUse { .. })));
}

#[test]
fn leftovers_go_unless_they_hold_files() {
    let wanted = wanted(&spec(Value::Null), None).unwrap();
    let mut o = Observed { leftovers: vec![("/x/default".into(), false)], ..untouched() };
    let remove = Step::RemoveLeftover { path: "/x/default".into() };
    assert!(init(&wanted, "node1", &o).unwrap().contains(&remove));
    assert_eq!(before_join(&o).unwrap(), [remove]);
    o.leftovers[0].1 = true;
    assert!(init(&wanted, "node1", &o).is_err() && before_join(&o).is_err());
}

#[test]
fn another_driver_is_an_error() {
    let mut o = untouched();
    o.pools.push(StoragePool { name: "default".into(), driver: "zfs".into(), ..StoragePool::default() });
    let wanted = wanted(&spec(Value::Null), None).unwrap();
    assert!(matches!(init(&wanted, "node1", &o), Err(PlanError::PoolDriver { .. })));
}

fn any_config() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("user\\.[a-c]", "[a-c]{0,2}", 0..3).prop_map(|m| json!(m))
}
fn any_preseed() -> impl Strategy<Value = Value> {
    (
        any_config(),
        prop::collection::btree_map("[a-c]", any_config(), 0..3),
        prop::collection::btree_map("[a-c]", any_config(), 0..3),
        prop::collection::btree_map(("[a-c]|default", "[p-r]|default"), any_config(), 0..4),
    )
        .prop_map(|(config, pools, networks, profiles)| {
            json!({
                "config": config,
                "storage_pools": pools.iter().map(|(n, c)| json!({ "name": n, "driver": "dir", "config": c })).collect::<Vec<_>>(),
                "networks": networks.iter().map(|(n, c)| json!({ "name": n, "config": c })).collect::<Vec<_>>(),
                "projects": (["p", "q", "r"].map(|p| json!({ "name": p }))),
                "profiles": profiles.iter().map(|((n, p), c)| json!({ "name": n, "project": p, "config": c })).collect::<Vec<_>>(),
            })
        })
}

proptest! {
    /// After power cuts at any steps, the next plan completes, and the result is the same as without them.
    #[test]
    fn every_interruption_is_recovered(user in any_preseed(), disk: bool, cuts in prop::collection::vec(0usize..12, 0..4)) {
        let wanted = wanted(&spec(user), disk.then_some("/dev/vdb")).unwrap();
        let fresh = || Observed { disk: if disk { blank_disk() } else { None }, ..untouched() };
        let mut straight = fresh();
        for step in init(&wanted, "node1", &straight).unwrap() {
            apply(&mut straight, &step);
        }
        prop_assert!(straight.clustered);
        let mut broken = fresh();
        for cut in cuts {
            for step in init(&wanted, "node1", &broken).unwrap().iter().take(cut) {
                apply(&mut broken, step);
            }
        }
        for step in init(&wanted, "node1", &broken).unwrap() {
            apply(&mut broken, &step);
        }
        prop_assert_eq!(&broken, &straight);
        prop_assert!(init(&wanted, "node1", &broken).unwrap().is_empty());
    }
}
