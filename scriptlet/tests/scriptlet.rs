//! The scriptlet, run in a Starlark interpreter with the functions that a server offers, compared with the results of
//! `place`. Other tests run it on real servers.

#[path = "../../crates/stead-placement/tests/it/common/mod.rs"]
mod common;

use common::{policy, snapshot, workloads};
use proptest::prelude::*;
use starlark::{
    environment::{GlobalsBuilder, LibraryExtension, Module},
    eval::Evaluator,
    syntax::{AstModule, Dialect},
};
use std::fmt::Write;
use stead_placement::{
    Policy, Snapshot,
    place::place,
    scriptlet::{self, View},
    snapshot::{InstanceKind, Member, MemberState, Schedulable, Workload},
};

/// A server's functions and objects in Starlark, with the attributes that Incus gives them.
fn server(s: &Snapshot, new: &Workload, candidates: &[&Member], view: View) -> String {
    let text = |t: &str| serde_json::to_string(t).unwrap();
    let config = |w: &Workload| {
        let mut config = String::new();
        for (key, value) in &w.settings {
            let _ = write!(config, "{}: {}, ", text(key), text(value));
        }
        // Half of the amounts in another unit with the same meaning.
        let memory = w.limits.memory_mib.unwrap();
        let memory =
            if memory.is_multiple_of(2) { format!("{memory}MiB") } else { (memory << 20).to_string() };
        let _ = write!(config, "\"limits.memory\": {}, ", text(&memory));
        let cpu = w.limits.cpu_milli.unwrap() / 1000;
        let cpu = if cpu == 3 { "1-2,5".to_owned() } else { cpu.to_string() };
        let _ = write!(config, "\"limits.cpu\": {}, ", text(&cpu));
        config
    };
    let devices = |w: &Workload| {
        let disks: Vec<String> = w
            .disk_mib
            .iter()
            .map(|(pool, size)| {
                format!(
                    r#""root": {{"type": "disk", "path": "/", "pool": {}, "size": "{size}MiB"}}"#,
                    text(&pool.0)
                )
            })
            .collect();
        format!(r#"{{{}, "eth0": {{"type": "nic", "network": "br0"}}}}"#, disks.join(", "))
    };
    let kind = |w: &Workload| match w.kind {
        InstanceKind::Container => "container",
        InstanceKind::VirtualMachine => "virtual-machine",
    };
    let mut out = String::from("TARGET = []\ndef set_target(member_name):\n    TARGET.append(member_name)\n");
    out.push_str("def log_info(*args):\n    pass\ndef log_warn(*args):\n    pass\n");
    for (name, of) in [("RESOURCES", 0), ("STATES", 1)] {
        let _ = writeln!(out, "{name} = {{");
        for m in &s.members {
            let pools: Vec<String> = m
                .pools_mib
                .iter()
                .map(|(pool, size)| {
                    let total = size.unwrap_or(7) << 20;
                    format!(
                        "{}: struct(space = struct(total = {total}, used = {}))",
                        text(&pool.0),
                        total / 2
                    )
                })
                .collect();
            let value = match of {
                0 => format!(
                    "struct(memory = struct(total = {}, used = {}), cpu = struct(total = {}))",
                    m.memory_mib << 20,
                    m.memory_mib << 19,
                    m.cpu_milli / 1000
                ),
                _ => format!(
                    "struct(storage_pools = {{{}}}, sysinfo = struct(load_averages = [0.25, 0.5, 0.5]))",
                    pools.join(", ")
                ),
            };
            let _ = writeln!(out, "    {}: {value},", text(&m.name.0));
        }
        out.push_str("}\n");
    }
    out.push_str("def get_cluster_member_resources(member_name):\n    return RESOURCES[member_name]\n");
    out.push_str("def get_cluster_member_state(member_name):\n    return STATES[member_name]\n");
    if view == View::Instances {
        out.push_str("INSTANCES = [\n");
        for i in &s.instances {
            let w = &i.workload;
            let power = if i.running { "RUNNING" } else { "STOPPED" };
            let _ = writeln!(
                out,
                "    struct(name = {}, project = {}, location = {}, type = {}, expanded_config = {{{}\"volatile.last_state.power\": \"{power}\"}}, expanded_devices = {}),",
                text(&w.id.name),
                text(&w.id.project),
                text(&i.member.0),
                text(kind(w)),
                config(w),
                devices(w)
            );
        }
        out.push_str("]\ndef get_instances(project = \"\", location = \"\"):\n    return INSTANCES\n");
    }
    let _ = writeln!(
        out,
        "REQUEST = struct(name = {}, project = {}, type = {}, reason = \"new\", architecture = {}, config = {{{}}}, devices = {})",
        text(&new.id.name),
        text(&new.id.project),
        text(kind(new)),
        text(&new.architecture),
        config(new),
        devices(new)
    );
    out.push_str("CANDIDATES = [\n");
    for m in candidates {
        let roles: Vec<String> = m.roles.iter().map(|r| text(r)).collect();
        let _ =
            writeln!(out, "    struct(server_name = {}, roles = [{}]),", text(&m.name.0), roles.join(", "));
    }
    out.push_str("]\n");
    out
}

/// The member that the scriptlet chooses for the instance, or its error.
fn run(server: &str, scriptlet: &str) -> Result<String, String> {
    evaluate(&format!(
        "{server}\n{scriptlet}\ninstance_placement(request = REQUEST, candidate_members = CANDIDATES)\nTARGET[0]\n"
    ))
}

/// The string that is the value of a program's last statement.
fn evaluate(program: &str) -> Result<String, String> {
    // The dialect of the specification, without the extensions of some interpreters.
    let ast = AstModule::parse("placement.star", program.to_owned(), &Dialect::Standard)
        .map_err(|e| e.to_string())?;
    let globals = GlobalsBuilder::extended_by(&[LibraryExtension::StructType]).build();
    Module::with_temp_heap(|module| {
        let mut evaluator = Evaluator::new(&module);
        let last = evaluator.eval_module(ast, &globals).map_err(|e| e.to_string())?;
        last.unpack_str().map(str::to_owned).ok_or_else(|| format!("not a string: {last}"))
    })
}

/// Scales to MiB and whole processors, as in a server's numbers.
fn whole(mut s: Snapshot, mut new: Workload) -> (Snapshot, Workload) {
    let cpus = |w: &mut Workload| w.limits.cpu_milli = w.limits.cpu_milli.map(|n| n * 1000);
    s.instances.iter_mut().for_each(|i| cpus(&mut i.workload));
    s.members.iter_mut().for_each(|m| m.cpu_milli *= 1000);
    cpus(&mut new);
    // The scriptlet ignores these, because the server checks them.
    let plain = |w: &mut Workload| {
        w.networks.clear();
        w.architecture = "x86_64".to_owned();
        w.cluster_group = None;
    };
    s.instances.iter_mut().for_each(|i| plain(&mut i.workload));
    plain(&mut new);
    (s, new)
}

fn candidates(s: &Snapshot) -> Vec<&Member> {
    // The server offers members that are online and open to its scheduler.
    s.members.iter().filter(|m| m.state == MemberState::Online && m.schedulable == Schedulable::All).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chooses_as_place_does(
        s in snapshot(1..=5, 0..=14), new in workloads(1..=1, 100), p in policy(), known in any::<bool>()
    ) {
        let (s, new) = whole(s, new.into_iter().next().unwrap());
        let made = place(&s, &p, std::slice::from_ref(&new)).unwrap();
        let want = made.placed.first().map(|x| x.member.0.clone());
        // Without the snapshot, members are asked for their sizes; then a shared pool looks like any other.
        let shared = s.members.iter().any(|m| m.pools_mib.values().any(Option::is_none));
        let text = scriptlet::generate(&p, (known || shared).then_some(&s), View::Instances);
        let got = run(&server(&s, &new, &candidates(&s), View::Instances), &text);
        match (&want, &got) {
            (Some(want), Ok(got)) => prop_assert_eq!(want, got),
            (None, Err(why)) => prop_assert!(why.contains("stead: no member for i100: "), "{why}"),
            _ => prop_assert!(false, "place: {made:#?}, scriptlet: {got:?}"),
        }
    }
}

fn sample() -> (Snapshot, Workload) {
    let s = Snapshot {
        members: (0..3).map(|n| common::member(n, 8 << 10, 4000)).collect(),
        instances: (0..3).map(|n| common::instance(n, n, (3 + n as u64) << 10, 1000)).collect(),
    };
    let mut new = common::workload(9, 6 << 10, 1000);
    new.disk_mib.clear();
    new.disk_mib.insert("local".into(), 2);
    (s, new)
}

#[test]
fn a_failure_says_why_with_numbers() {
    let (s, mut new) = sample();
    let text = scriptlet::generate(&Policy::default(), Some(&s), View::Instances);
    let why = run(&server(&s, &new, &candidates(&s), View::Instances), &text).unwrap_err();
    // The trace also shows the line of the scriptlet.
    let said = why
        .lines()
        .find(|l| l.contains("stead:") && !l.contains("fail(\""))
        .unwrap_or_default()
        .trim()
        .to_owned();
    insta::assert_snapshot!(said, @"error: fail: stead: no member for i9: n0: 6144 MiB of memory needed, 5120 free; n1: 6144 MiB of memory needed, 4096 free; n2: 6144 MiB of memory needed, 3072 free");
    new.limits.memory_mib = Some(1 << 10);
    assert_eq!(run(&server(&s, &new, &candidates(&s), View::Instances), &text).unwrap(), "n0");
}

#[test]
fn a_server_that_shows_no_instances_is_asked_for_what_is_used() {
    let (s, mut new) = sample();
    new.limits.memory_mib = Some(1 << 10);
    let text = scriptlet::generate(&Policy::default(), None, View::MeasuredOnly);
    let members = candidates(&s);
    assert_eq!(run(&server(&s, &new, &members, View::MeasuredOnly), &text).unwrap(), "n0");
    new.settings.insert("user.stead.group".to_owned(), "web".to_owned());
    assert!(run(&server(&s, &new, &members, View::MeasuredOnly), &text).is_ok());
    new.settings.insert("user.stead.group.strength".to_owned(), "strict".to_owned());
    let why = run(&server(&s, &new, &members, View::MeasuredOnly), &text).unwrap_err();
    assert!(why.contains("it is in the strict group web"), "{why}");
}

/// A percentage is of the member's memory; processors may be listed by number, or given as a virtual machine's
/// topology.
#[test]
fn limits_are_read_as_engines_write_them() {
    let (s, new) = sample();
    let text = scriptlet::generate(&Policy::default(), Some(&s), View::Instances);
    for (expression, value) in [
        ("mib(\"512MiB\")", "512"),
        ("mib(\"1GB\")", "954"),
        ("mib(\"1\")", "1"),
        ("mib(\"x\")", "None"),
        ("cpu_milli(\"\")", "None"),
        ("cpu_milli(\"4\")", "4000"),
        ("cpu_milli(\"0-3,7\")", "5000"),
        ("cpu_milli(\"sockets=1,cores=2,threads=2\")", "4000"),
        ("committed(\"container\", {\"limits.memory\": \"25%\"}, {}, 4096)", "(1024, 500, \"\", 0)"),
        (
            "committed(\"virtual-machine\", {}, {\"root\": {\"type\": \"disk\", \"path\": \"/\", \"pool\": \"p\"}}, 1)",
            "(1024, 1000, \"p\", 10240)",
        ),
    ] {
        let fake = server(&s, &new, &candidates(&s), View::Instances);
        assert_eq!(evaluate(&format!("{fake}\n{text}\nstr({expression})\n")).unwrap(), value, "{expression}");
    }
}
