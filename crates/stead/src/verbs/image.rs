//! `stead image build|ls|show|rm|gc`.

use crate::{
    cli::{ImageBuild, ImageVerb},
    output::{self, BadInput},
};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal, stderr},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};
use stead_cluster::{Host, Record, files};
use stead_image::{BuildPlan, BuildRequest, Progress, store};
use stead_machine::MachineSpec;
use stead_model::{Digest, ImageName, Manifest};

pub fn run(host: &Host, verb: ImageVerb) -> Result<ExitCode> {
    match verb {
        ImageVerb::Build(args) => build(host, &args),
        ImageVerb::Ls(args) => ls(host, args.json),
        ImageVerb::Show(args) => show(host, &args.name, args.json),
        ImageVerb::Rm(args) => rm(host, &args.names),
        ImageVerb::Gc(args) => gc(host, args.json),
    }
}

fn name(text: &str) -> Result<ImageName> {
    Ok(text.parse().map_err(|e: stead_model::names::NameError| BadInput(e.to_string()))?)
}

fn build(host: &Host, args: &ImageBuild) -> Result<ExitCode> {
    let began = Instant::now();
    let stead_node = match &args.stead_node {
        Some(path) => path.clone(),
        None => host.exe.with_file_name("stead-node"),
    };
    let mut request = BuildRequest::new(&args.recipe, stead_node);
    request.refresh = args.refresh;
    request.unified = args.unified;
    let store = host.store()?;
    if args.dry_run {
        let plan = stead_image::plan(&store, &request)?;
        if args.json {
            output::json(&plan)?
        } else {
            output::print(&describe_plan(&plan))?
        }
        return Ok(ExitCode::SUCCESS);
    }
    let bar = if stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let result = stead_image::build(&store, &request, &mut |p: Progress| match p {
        Progress::Started { step, what } => bar.set_message(format!("{step}: {what}")),
        Progress::Note { step, text } => bar.set_message(format!("{step}: {text}")),
        Progress::Done(_) => {}
    });
    bar.finish_and_clear();
    let outcome = result?;
    if args.json {
        output::json(&outcome)?;
        return Ok(ExitCode::SUCCESS);
    }
    let seconds = began.elapsed().as_secs_f64();
    let what = &outcome.manifest.name;
    if outcome.reused {
        output::print(&format!(
            "image {what}: nothing to do, {} ({seconds:.1} s)\n",
            outcome.digest.short()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("image {what}: {}, in {seconds:.1} s\n", outcome.digest.short());
    text.push_str(&describe(&outcome.manifest));
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn describe_plan(plan: &BuildPlan) -> String {
    let rows: Vec<Vec<String>> = plan
        .steps
        .iter()
        .map(|s| {
            vec![
                format!("  {}", s.name),
                if s.cached { "cached" } else { "build" }.to_owned(),
                s.what.clone(),
            ]
        })
        .collect();
    format!("image {}:\n{}", plan.name, output::table(&["  STEP", "", "WHAT"], &rows))
}

fn describe(manifest: &Manifest) -> String {
    let rows: Vec<Vec<String>> = store::artifacts(manifest)
        .into_iter()
        .map(|(word, a)| vec![format!("  {word}"), output::size(a.size.0), a.digest.short().to_owned()])
        .collect();
    output::table(&["  FILE", "SIZE", "DIGEST"], &rows)
}

fn ls(host: &Host, json: bool) -> Result<ExitCode> {
    let list = host.store()?.list()?;
    if json {
        output::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|i| {
            vec![
                i.name.to_string(),
                format!("{:?}", i.manifest.kind).to_lowercase(),
                i.manifest.engine.to_string(),
                output::size(i.size.0),
                i.digest.short().to_owned(),
            ]
        })
        .collect();
    output::print(&output::table(&["IMAGE", "KIND", "ENGINE", "SIZE", "DIGEST"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

fn show(host: &Host, text: &str, json: bool) -> Result<ExitCode> {
    let store = host.store()?;
    let (digest, manifest) = store.manifest(&name(text)?)?;
    if json {
        let paths: BTreeMap<String, PathBuf> =
            store::artifacts(&manifest).into_iter().map(|(word, a)| (word, store.blob(&a.digest))).collect();
        output::json(&serde_json::json!({ "digest": digest, "manifest": manifest, "paths": paths }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = format!("image {} ({digest})\n", manifest.name);
    out.push_str(
        &format!("kind {:?}, {}, engine {}", manifest.kind, manifest.architecture, manifest.engine)
            .to_lowercase(),
    );
    if let Some(release) = manifest.boot.as_ref().and_then(|b| b.kernel_release.as_ref()) {
        out.push_str(&format!(", kernel {release}"));
    }
    out.push_str(&format!(", {} packages\n", manifest.packages.len()));
    out.push_str(&describe(&manifest));
    output::print(&out)?;
    Ok(ExitCode::SUCCESS)
}

fn rm(host: &Host, names: &[String]) -> Result<ExitCode> {
    let store = host.store()?;
    for n in names {
        store.remove(&name(n)?)?;
    }
    Ok(ExitCode::SUCCESS)
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

fn gc(host: &Host, json: bool) -> Result<ExitCode> {
    let keep = in_use(host).context("find what clusters use")?;
    let report = host.store()?.gc(&keep)?;
    if json {
        output::json(&report)?;
    } else {
        output::print(&format!(
            "{} files deleted, {} freed, {} kept\n",
            report.blobs,
            output::size(report.freed.0),
            report.kept
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
