//! Monitoring of many instances: how often the engine is asked, and what is told.

use base64::Engine as _;
use std::path::Path;
use stead_incus::{Dialect, Endpoint, requests::instances::NewInstance};
use stead_one::{
    Context,
    lxdrc::Lxdrc,
    monitor::{Probe, probe},
    say::Log,
};
use stead_testkit::{
    counters,
    fake::{Fake, Usage},
};

async fn told(which: Probe, context: &Context, rc: &Lxdrc) -> String {
    probe(which, context, rc, &mut Log::new(which.name(), std::io::sink())).await.unwrap()
}

fn context(run: &Path) -> Context {
    Context {
        script_path: Some("/var/tmp/one/im/incus-probes.d/vm/status/stead-vm-status.sh".into()),
        program: "/usr/bin/stead".into(),
        run: run.to_owned(),
        sys: run.join("sys"),
        user: None,
        ssh_agent: None,
    }
}

/// The kernel's counters of an instance.
fn count(run: &Path, id: u64, cpu_ms: u64) {
    counters::write(&run.join("sys"), &format!("one-{id}"), &format!("one-{id}-0"), cpu_ms, id).unwrap();
}

fn socket(fake: &Fake) -> std::path::PathBuf {
    match fake.endpoint() {
        Endpoint::Unix(socket) => socket,
        Endpoint::Https { .. } => unreachable!("the fake listens on a unix socket"),
    }
}

/// The kernel's counters are read where they are; where one is not, the engine is asked for all, once.
#[tokio::test]
async fn five_hundred_instances_are_one_request() {
    for (dialect, counted) in [(Dialect::Incus, 500), (Dialect::Lxd, 500), (Dialect::Incus, 499)] {
        let fake = Fake::server(dialect).start();
        let run = tempfile::tempdir().unwrap();
        for id in 0..500 {
            let interface = ("volatile.eth0.host_name".to_owned(), format!("one-{id}-0"));
            let config = [interface].into();
            let new = NewInstance { name: format!("one-{id}"), config, ..NewInstance::default() };
            let usage = Usage { memory_mib: id, disk_mib: 1, cpu_ns: 1_000_000_000 };
            fake.put_instance("default", "none", &new, true, usage);
            if id < counted {
                count(run.path(), id, 1000);
            }
        }
        let context = context(run.path());
        let rc = Lxdrc { socket: Some(socket(&fake)), ..Lxdrc::default() };
        // The first call has no earlier reading of CPU time and looks twice.
        told(Probe::Monitor, &context, &rc).await;
        fake.set_usage("default", "one-7", Usage { memory_mib: 7, disk_mib: 1, cpu_ns: 1_200_000_000 });
        count(run.path(), 7, 1200);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let before = fake.requests().len();
        let began = std::time::Instant::now();
        let lines = told(Probe::Monitor, &context, &rc).await;
        let took = began.elapsed();
        println!("{dialect}: 500 instances, {counted} counted here, in {} ms", took.as_millis());
        let asked = fake.requests()[before..].to_vec();
        let lists: Vec<&String> = asked.iter().filter(|r| r.contains("/instances")).collect();
        assert_eq!(lists.len(), if counted == 500 { 1 } else { 2 }, "{asked:?}");
        assert!(lists[0].contains("recursion=1"), "{asked:?}");
        assert!(asked.len() <= 5, "{asked:?}");
        assert_eq!(lines.lines().count(), 500);
        let line = lines.lines().find(|l| l.contains("DEPLOY_ID=one-7,")).unwrap();
        let packed = line.split('"').nth(1).unwrap();
        let values = base64::engine::general_purpose::STANDARD.decode(packed).unwrap();
        let values = String::from_utf8(values).unwrap();
        assert!(values.starts_with("MEMORY=\"7168\"\n"), "{values}");
        let cpu: f64 = values.split("CPU=\"").nth(1).unwrap().trim_end_matches("\"\n").parse().unwrap();
        // 200 ms of CPU in at least 200 ms.
        assert!((1.0..=101.0).contains(&cpu), "{cpu}");
        let before = fake.requests().len();
        assert_eq!(told(Probe::Status, &context, &rc).await.lines().count(), 502);
        assert_eq!(fake.requests()[before..].iter().filter(|r| r.contains("/instances")).count(), 1);
    }
}

#[tokio::test]
async fn a_host_tells_of_its_own_member_only() {
    let fake = Fake::cluster(Dialect::Incus, 2).start();
    for (name, member) in [("one-1", "node1"), ("one-2", "node2"), ("web", "node1")] {
        let new = NewInstance { name: name.into(), ..NewInstance::default() };
        fake.put_instance("default", member, &new, true, Usage::default());
    }
    let run = tempfile::tempdir().unwrap();
    let rc = Lxdrc { socket: Some(socket(&fake)), ..Lxdrc::default() };
    let lines = told(Probe::Status, &context(run.path()), &rc).await;
    assert!(lines.contains("one-1") && !lines.contains("one-2"), "{lines}");
    let lines = told(Probe::System, &context(run.path()), &rc).await;
    assert!(lines.contains("DEPLOY_ID=web, VM_NAME=web") && lines.contains("HYPERVISOR=incus"), "{lines}");
}
