//! Reports on instances and hosts to OpenNebula: `poll` for 5.8 and 5.10, probes for 5.12 and later.
//!
//! Owns the texts and the numbers in them. All instances come from one request, whatever their number, and what they
//! use from the kernel ([`local`]) or, where that is not certain, from a second request with their states. CPU is a
//! rate: the last reading is kept in a file, and only when there is none are there two.

mod host;
mod local;
mod rate;
mod text;

pub use host::{host_system, host_usage};
pub use text::{Seen, State, import_template, poll_line, status};

use crate::{
    context::Context,
    engine::{Engine, EngineError, PROJECT},
    ids::InstanceName,
    instance::Shown,
    lxdrc::Lxdrc,
    say::Log,
    scripts::{at_work, sweep},
};
use rate::Readings;
use std::{path::PathBuf, time::Duration};
use stead_incus::{
    Scope,
    requests::instances::{Detail, list},
    types::Instance,
};

/// Pause before a second reading when there is no earlier one.
const FIRST_INTERVAL: Duration = Duration::from_millis(300);

/// The probes, as they are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The host's properties, and instances that OpenNebula does not know.
    System,
    /// The host's usage.
    Usage,
    /// States of instances.
    Status,
    /// Resource usage of instances.
    Monitor,
}

impl Probe {
    /// Each with its directory below `im/<driver>-probes.d` and its name in `stead one`.
    pub const ALL: [(Self, &'static str, &'static str); 4] = [
        (Self::System, "host/system", "host-system"),
        (Self::Usage, "host/monitor", "host-usage"),
        (Self::Status, "vm/status", "vm-status"),
        (Self::Monitor, "vm/monitor", "vm-monitor"),
    ];

    /// Its name in `stead one`.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(probe, ..)| *probe == self).map_or("probe", |(_, _, name)| name)
    }
    /// The probe of this name in `stead one`.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, _, own)| *own == name).map(|(probe, ..)| probe)
    }
}

/// The output of a probe.
///
/// # Errors
/// The engine cannot be asked. A probe that fails makes OpenNebula discard its whole group.
pub async fn probe(
    probe: Probe,
    context: &Context,
    rc: &Lxdrc,
    log: &mut Log<'_>,
) -> Result<String, EngineError> {
    if probe == Probe::Usage {
        return Ok(host_usage(context.driver()));
    }
    let engine = Engine::connect(context.driver(), rc).await?;
    match probe {
        Probe::Usage => Ok(String::new()),
        Probe::System => {
            let mut out = host_system(context.driver());
            let profiles = engine.client.profiles(PROJECT).await?;
            let names: Vec<&str> =
                profiles.iter().map(|p| p.name.as_str()).filter(|n| *n != "default").collect();
            out.push_str(&format!("LXD_PROFILES=\"{}\"\n", text::quoted(&names.join(" "))));
            let seen = look(context, &list_here(&engine, Detail::Settings).await?, None);
            out.push_str(&text::wild_lines(&seen, context.driver()));
            Ok(out)
        }
        Probe::Status => {
            let instances = list_here(&engine, Detail::Settings).await?;
            sweep(context, rc, &engine, &instances, log).await;
            Ok(status(&look(context, &instances, None), &at_work(&context.run)))
        }
        Probe::Monitor => Ok(text::monitor_lines(&usage(&engine, context).await?)),
    }
}

/// `poll <id>`: one line.
pub(crate) async fn poll_one(
    context: &Context,
    rc: &Lxdrc,
    name: &InstanceName,
) -> Result<String, EngineError> {
    let engine = Engine::connect(context.driver(), rc).await?;
    let seen = usage(&engine, context).await?;
    Ok(match seen.iter().find(|s| s.name == name.as_str()) {
        Some(seen) => poll_line(seen),
        None => "STATE=-".to_owned(),
    })
}

/// `poll -t` and `poll`: all instances.
pub(crate) async fn poll_all(
    context: &Context,
    rc: &Lxdrc,
    templates: bool,
    log: &mut Log<'_>,
) -> Result<String, EngineError> {
    let engine = Engine::connect(context.driver(), rc).await?;
    sweep(context, rc, &engine, &list_here(&engine, Detail::Settings).await?, log).await;
    let seen = usage(&engine, context).await?;
    Ok(text::poll_all(&seen, context.driver(), templates))
}

/// All instances of the host with their usage.
async fn usage(engine: &Engine, context: &Context) -> Result<Vec<Seen>, EngineError> {
    let file: PathBuf = context.run.join("readings.json");
    let before = Readings::load(&file);
    let instances = measure(engine, context).await?;
    let now = Readings::of(&instances);
    let (earlier, instances, now) = match before.filter(|b| b.serves(&now)) {
        Some(before) => (before, instances, now),
        None => {
            tokio::time::sleep(FIRST_INTERVAL).await;
            let instances = measure(engine, context).await?;
            let again = Readings::of(&instances);
            (now, instances, again)
        }
    };
    let seen = look(context, &instances, Some((&earlier, &now)));
    // Without it the next call takes a moment longer.
    let _ = now.save(&file);
    Ok(seen)
}

/// All instances of the host with their states, as far as they run.
async fn measure(engine: &Engine, context: &Context) -> Result<Vec<Instance>, EngineError> {
    let mut instances = list_here(engine, Detail::Settings).await?;
    if !local::fill(&context.sys, &mut instances) {
        instances = list_here(engine, Detail::State).await?;
    }
    Ok(instances)
}

async fn list_here(engine: &Engine, detail: Detail) -> Result<Vec<Instance>, EngineError> {
    let request = list(Scope::Project(PROJECT), detail, None);
    let mut all: Vec<Instance> = engine.client.list(&request).await?;
    all.retain(|i| engine.is_here(i) && i.kind == "container");
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn look(context: &Context, instances: &[Instance], readings: Option<(&Readings, &Readings)>) -> Vec<Seen> {
    let at_work = at_work(&context.run);
    instances
        .iter()
        .map(|instance| {
            let mut seen = Seen::of(instance);
            // What it is in the middle of a script is nobody's concern, unless it runs.
            if seen.shown == Shown::Yes && !seen.runs() && at_work.contains(&seen.name) {
                seen.shown = Shown::Busy;
            }
            seen.cpu_percent = readings.and_then(|(before, now)| rate::percent(before, now, &instance.name));
            seen
        })
        .collect()
}
