//! `stead fleet place`.

use super::{client, policy};
use crate::{cli::fleet::Place, output};
use anyhow::{Context, Result};
use std::process::ExitCode;
use stead_cluster::Host;
use stead_fleet::{facts, newcomers, newcomers::Asked, snapshot::snapshot};
use stead_incus::types::Devices;
use stead_placement::{place as find, place::Placement, snapshot::InstanceKind};

pub async fn place(host: &Host, args: Place) -> Result<ExitCode> {
    let policy = policy(args.policy.as_deref(), None)?;
    let client = client(host, &args.target).await?;
    let facts = facts::gather(&client).await?;
    let mut devices = Devices::new();
    for (name, settings) in args.device {
        devices.entry(name).or_default().extend(settings);
    }
    let asked = Asked {
        kind: if args.vm { InstanceKind::VirtualMachine } else { InstanceKind::Container },
        architecture: args.architecture,
        project: args.project,
        profiles: args.profile,
        config: args.config.into_iter().collect(),
        devices,
        cluster_group: args.cluster_group,
    };
    let batch = newcomers::newcomers(&client, &facts, &args.names, &asked)
        .await
        .context("find out what the instances would be")?;
    let placement = find(&snapshot(&facts), &policy, &batch).map_err(|e| output::BadInput(e.to_string()))?;
    match args.json {
        true => output::json(&placement)?,
        false => output::print(&shown(&placement))?,
    }
    Ok(ExitCode::from(u8::from(!placement.refused.is_empty())))
}

fn shown(placement: &Placement) -> String {
    let rows: Vec<Vec<String>> = placement
        .placed
        .iter()
        .map(|p| {
            let percent = format!("{} %", p.level_ppm.div_ceil(10_000));
            vec![p.instance.to_string(), p.member.to_string(), percent]
        })
        .collect();
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => output::table(&["INSTANCE", "MEMBER", "USED THEN"], &rows),
    };
    for r in &placement.refused {
        text += &format!("no member for {}: {}: {}\n", r.instance, r.verdict, r.why);
    }
    for finding in &placement.findings {
        text += &format!("{finding}\n");
    }
    text
}
