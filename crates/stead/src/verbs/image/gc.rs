//! `stead image gc`.

use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Result},
    output,
};
use clap::Args;
use std::collections::BTreeSet;
use stead_cluster::{Host, Record, files};
use stead_machine::MachineSpec;
use stead_model::Digest;

/// Delete files that no image and no cluster uses.
#[derive(Debug, Args)]
pub struct Gc {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Gc {
    fn run(self, app: &App) -> Result<Exit> {
        let keep = in_use(&app.host).context("cannot find out what clusters use")?;
        let report = app.host.store()?.gc(&keep)?;
        if self.json {
            app.output.json(&report)?;
        } else {
            let freed = output::size(report.freed.0);
            let (deleted, kept) = (report.blobs, report.kept);
            app.output.print(format!("{deleted} files deleted, {freed} freed, {kept} kept\n"))?;
        }
        Ok(Exit::SUCCESS)
    }
}

/// Everything that a cluster on this host was brought up with stays: a machine may be started again from it.
fn in_use(host: &Host) -> Result<BTreeSet<Digest>> {
    let mut keep = BTreeSet::new();
    for cluster in host.clusters()? {
        let layout = host.layout(&cluster);
        keep.extend(Record::load(&layout)?.map(|r| r.image));
        for node in layout.existing_nodes()? {
            let path = layout.node(&node).join("machine.json");
            let Some(machine) = files::read_json::<MachineSpec>(&path)? else { continue };
            let paths = machine
                .layers
                .iter()
                .chain(&machine.vmlinux)
                .chain(&machine.initrd)
                .chain([&machine.stead_node]);
            keep.extend(paths.filter_map(|p| format!("sha256:{}", p.file_name()?.to_str()?).parse().ok()));
        }
    }
    Ok(keep)
}
