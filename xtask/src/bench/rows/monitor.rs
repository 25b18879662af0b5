//! The OpenNebula driver's monitoring of 500 instances on the in-memory engine: the cost of the driver itself.

use crate::bench::{
    Bench,
    measure::{repeated, seconds},
    row::Row,
};
use anyhow::{Context, Result, ensure};
use stead_incus::{Dialect, Endpoint, requests::instances::NewInstance};
use stead_one::{
    Context as Caller,
    lxdrc::Lxdrc,
    monitor::{Probe, probe},
    say::Log,
};
use stead_testkit::{
    counters,
    fake::{Fake, Usage},
};

/// Goal, in seconds: oned polls its hosts every few seconds.
const GOAL_S: f64 = 1.0;
const INSTANCES: usize = 500;

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let fake = Fake::server(Dialect::Incus).start();
    let run = tempfile::tempdir().context("a directory for the readings and the kernel's counters")?;
    let sys = run.path().join("sys");
    for id in 0..INSTANCES {
        let (name, interface) = (format!("one-{id}"), format!("one-{id}-0"));
        counters::write(&sys, &name, &interface, 1000, 64).context("cannot write counters")?;
        let config = [("volatile.eth0.host_name".to_owned(), interface)].into();
        let new = NewInstance { name, config, ..NewInstance::default() };
        fake.put_instance("default", "none", &new, true, Usage::default());
    }
    let Endpoint::Unix(socket) = fake.endpoint() else { return Ok(Vec::new()) };
    let caller = Caller {
        script_path: Some("/var/tmp/one/im/incus-probes.d/vm/monitor/x".into()),
        program: "stead".into(),
        run: run.path().to_owned(),
        sys,
        user: None,
        ssh_agent: None,
    };
    let rc = Lxdrc { socket: Some(socket), ..Lxdrc::default() };
    let ask = || {
        let mut log = Log::new("bench", std::io::stderr());
        let told = runtime.block_on(probe(Probe::Monitor, &caller, &rc, &mut log))?;
        ensure!(told.lines().count() == INSTANCES, "the probe reported {} instances", told.lines().count());
        Ok(())
    };
    // The first call has no earlier reading of CPU time, so it reads twice.
    ask()?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let measured = repeated(bench.runs, || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        seconds(ask)
    })?;
    Ok(vec![Row::limited("OpenNebula probe of 500 instances", "s", measured, GOAL_S)])
}
