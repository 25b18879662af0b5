//! `stead image`: a file each verb. Here: their list, and how a manifest is shown.

mod build;
mod gc;
mod ls;
mod rm;
mod show;

use crate::{
    cli::{App, Exit, Run, verb_list},
    error::Result,
    output,
};
use clap::Args;
use stead_image::store;
use stead_model::Manifest;

/// Build and manage images.
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    verb: Verb,
}

verb_list! {
    Build(build::Build),
    Ls(ls::Ls),
    Show(show::Show),
    Rm(rm::Rm),
    Gc(gc::Gc),
}

impl Run for Image {
    fn run(self, app: &App) -> Result<Exit> {
        self.verb.run(app)
    }
}

/// The files of an image as a table.
fn describe(manifest: &Manifest) -> String {
    let rows: Vec<Vec<String>> = store::artifacts(manifest)
        .into_iter()
        .map(|(word, a)| vec![format!("  {word}"), output::size(a.size.0), a.digest.short().to_owned()])
        .collect();
    output::table(&["  FILE", "SIZE", "DIGEST"], &rows)
}
