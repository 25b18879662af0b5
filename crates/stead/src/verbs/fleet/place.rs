//! `stead fleet place`.

use super::{PolicyFile, Target, directory};
use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
    verbs::pair,
};
use clap::Args;
use stead_fleet::{facts, facts::Asking, newcomers, newcomers::Asked, snapshot::snapshot};
use stead_incus::types::Devices;
use stead_placement::{place as find, place::Placement, snapshot::InstanceKind};

/// Find members for new instances, or say why there are none; creates nothing.
///
/// The instances are described as for `incus launch`; all of a call are placed together. The exit code is 1 when there
/// is no member for one.
///
/// Example: stead fleet place web1 web2 web3 -c limits.memory=2GiB -c user.stead.group=web
#[derive(Debug, Args)]
pub struct Place {
    /// Names of the instances.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    target: Target,
    /// A profile; may be repeated, later ones win.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    profile: Vec<String>,
    /// A setting; may be repeated.
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    config: Vec<(String, String)>,
    /// A setting of a device, as in `root,size=10GiB`; may be repeated.
    #[arg(long, short, value_name = "DEVICE,KEY=VALUE", value_parser = device)]
    device: Vec<(String, Vec<(String, String)>)>,
    /// Place virtual machines instead of containers.
    #[arg(long)]
    vm: bool,
    /// Architecture of the instances [default: that of the server that answers]
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// Project of the instances.
    #[arg(long, value_name = "NAME", default_value = "default")]
    project: String,
    /// Cluster group of the engine that the instances are for.
    #[arg(long, value_name = "NAME")]
    cluster_group: Option<String>,
    #[command(flatten)]
    policy: PolicyFile,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Place {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(place(app, self))
    }
}

async fn place(app: &App, args: Place) -> Result<Exit> {
    let policy = args.policy.read(app)?;
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
    asked.check()?;
    let client = args.target.client(app).await?;
    let facts =
        facts::gather(&client, Asking { memory: Some(&directory(app)), tell: &|who| app.output.note(who) })
            .await?;
    let batch = newcomers::newcomers(&client, &facts, &args.names, &asked).await?;
    let placement = find(&snapshot(&facts), &policy, &batch)?;
    match args.json {
        true => app.output.json(&placement)?,
        false => app.output.print(shown(&placement))?,
    }
    Ok(Exit::success_if(placement.refused.is_empty()))
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

fn device(text: &str) -> Result<(String, Vec<(String, String)>), String> {
    let mut parts = text.split(',');
    let name = parts.next().filter(|n| !n.is_empty() && !n.contains('='));
    let settings: Vec<_> = parts.map(pair).collect::<Result<_, _>>()?;
    match name {
        Some(name) if !settings.is_empty() => Ok((name.to_owned(), settings)),
        _ => Err("not of the form DEVICE,KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_settings() {
        let owned = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(pair("user.a=b=c"), Ok(owned("user.a", "b=c")));
        assert_eq!(
            device("root,size=10GiB,pool=fast"),
            Ok(("root".to_owned(), vec![owned("size", "10GiB"), owned("pool", "fast")]))
        );
        for bad in ["", "root", "root,", "size=1", ",size=1", "root,size"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert!(pair("a").is_err() && pair("=a").is_err());
    }
}
