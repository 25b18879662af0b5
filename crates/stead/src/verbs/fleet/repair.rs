//! `stead fleet repair`.

use super::{Target, directory};
use crate::{
    cli::{App, Exit, Run},
    error::Result,
    member_shell::ShellArgument,
};
use clap::Args;
use jiff::Timestamp;
use stead_fleet::{
    facts::{self, Asking},
    journal::{Entry, Journal},
    repair::{LeftOver, left_overs, repair},
};
use stead_placement::snapshot::InstanceId;

/// Remove what moves that were cut short have left on members.
///
/// A member whose daemon or link fails while an instance is copied to it may keep a volume of that instance, and then
/// refuses it. Such volumes are listed with the commands that remove them; on members where programs can be run, they are
/// removed.
///
/// Example: stead fleet repair --remote lab --shell 'ssh root@{member}'
#[derive(Debug, Args)]
pub struct Repair {
    /// The instances, as plans show them: NAME or PROJECT/NAME [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    shell: ShellArgument,
    /// Only print what is left over, and the commands.
    #[arg(long)]
    dry_run: bool,
}

impl Run for Repair {
    fn run(self, app: &App) -> Result<Exit> {
        app.wait(run(app, self))
    }
}

async fn run(app: &App, args: Repair) -> Result<Exit> {
    let client = args.target.client(app).await?;
    let shell = args.shell.of(app, args.target.cluster.as_ref(), &client).await?;
    let facts =
        facts::gather(&client, Asking { memory: Some(&directory(app)), tell: &|who| app.output.note(who) })
            .await?;
    // No rebalance meanwhile: it may be what is at work on the volumes.
    let (mut journal, past) = Journal::open(&directory(app), &facts.fingerprint)?;
    let meant = |id: &InstanceId| {
        args.names.is_empty()
            || args.names.iter().any(|n| *n == id.to_string() || *n == format!("{}/{}", id.project, id.name))
    };
    let found: Vec<LeftOver> =
        left_overs(&facts, &past, client.dialect()).into_iter().filter(|l| meant(&l.instance)).collect();
    let mut left = 0;
    let mut text = String::new();
    for l in &found {
        text += &format!("{l}\n");
        let repaired = match args.dry_run {
            true => None,
            false => Some(repair(&client, shell.as_ref(), l).await),
        };
        if let Some(Ok(())) = repaired {
            let (instance, member) = (l.instance.clone(), l.member.clone());
            let at_s = Timestamp::now().as_second().try_into().unwrap_or(0);
            journal.write(&Entry::Cleared { instance, member, at_s })?;
            text += &format!("removed from {}\n", l.member);
            continue;
        }
        left += 1;
        if let Some(Err(e)) = repaired {
            text += &format!("not removed: {}\n", stead_os::chain(&e));
        }
        text += &format!("on {}, these commands remove it:\n", l.member);
        for command in &l.remedy {
            text += &format!("  {command}\n");
        }
    }
    if found.is_empty() {
        text += "nothing is left over\n";
    }
    app.output.print(text)?;
    Ok(Exit::success_if(left == 0 || args.dry_run))
}
