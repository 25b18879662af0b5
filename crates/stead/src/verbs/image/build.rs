//! `stead image build`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
    output,
};
use clap::{Args, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use stead_image::{BuildPlan, BuildRequest, Progress};

/// Build an image from a recipe. What has not changed is not built again.
#[derive(Debug, Args)]
pub struct Build {
    /// The recipe.
    #[arg(value_hint = ValueHint::FilePath)]
    recipe: PathBuf,
    /// The node's program [default: `stead-node` beside this program]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    stead_node: Option<PathBuf>,
    /// Build base and kernel again even if nothing changed here: the mirror may have newer packages.
    #[arg(long)]
    refresh: bool,
    /// For instance images: also make the unified tar.
    #[arg(long)]
    unified: bool,
    /// Only print the plan.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Run for Build {
    fn run(self, app: &App) -> Result<Exit> {
        let began = Instant::now();
        let stead_node = match &self.stead_node {
            Some(path) => app.context.absolute(path),
            None => app.host.exe.with_file_name("stead-node"),
        };
        let mut request = BuildRequest::new(app.context.absolute(&self.recipe), stead_node);
        request.refresh = self.refresh;
        request.unified = self.unified;
        let store = app.host.store()?;
        if self.dry_run {
            let plan = stead_image::plan(&store, &request)?;
            match self.json {
                true => app.output.json(&plan)?,
                false => app.output.print(describe_plan(&plan))?,
            }
            return Ok(Exit::SUCCESS);
        }
        let live = app.context.terminals.stderr;
        let bar = if live { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        let result = stead_image::build(&store, &request, &mut |p: Progress| match p {
            Progress::Started { step, what } => bar.set_message(format!("{step}: {what}")),
            Progress::Note { step, text } => bar.set_message(format!("{step}: {text}")),
            Progress::Warning { .. } | Progress::Done(_) => {}
        });
        bar.finish_and_clear();
        let outcome = result?;
        outcome.warnings.iter().for_each(|text| app.output.note(format!("warning: {text}")));
        if self.json {
            app.output.json(&outcome)?;
            return Ok(Exit::SUCCESS);
        }
        let seconds = began.elapsed().as_secs_f64();
        let (name, digest) = (&outcome.manifest.name, outcome.digest.short());
        app.output.print(match outcome.reused {
            true => format!("image {name}: nothing to do, {digest} ({seconds:.1} s)\n"),
            false => {
                format!("image {name}: {digest}, in {seconds:.1} s\n{}", super::describe(&outcome.manifest))
            }
        })?;
        Ok(Exit::SUCCESS)
    }
}

fn describe_plan(plan: &BuildPlan) -> String {
    let rows: Vec<Vec<String>> = plan
        .steps
        .iter()
        .map(|s| {
            let what = if s.cached { "cached" } else { "build" };
            vec![format!("  {}", s.name), what.to_owned(), s.what.clone()]
        })
        .collect();
    format!("image {}:\n{}", plan.name, output::table(&["  STEP", "", "WHAT"], &rows))
}
