//! `stead image show`.

use crate::{
    cli::{App, Exit, Run},
    error::Result,
};
use clap::Args;
use std::{collections::BTreeMap, path::PathBuf};
use stead_image::store;
use stead_model::ImageName;

/// Show one image: layers, digests, packages.
#[derive(Debug, Args)]
pub struct Show {
    /// The image.
    name: ImageName,
    /// Print JSON: the manifest and the path of every file.
    #[arg(long)]
    json: bool,
}

impl Run for Show {
    fn run(self, app: &App) -> Result<Exit> {
        let store = app.host.store()?;
        let (digest, manifest) = store.manifest(&self.name)?;
        if self.json {
            let files = store::artifacts(&manifest).into_iter();
            let paths: BTreeMap<String, PathBuf> =
                files.map(|(word, a)| (word, store.blob(&a.digest))).collect();
            app.output
                .json(&serde_json::json!({ "digest": digest, "manifest": manifest, "paths": paths }))?;
            return Ok(Exit::SUCCESS);
        }
        let kind = format!("{:?}", manifest.kind).to_lowercase();
        let kernel = manifest.boot.as_ref().and_then(|b| b.kernel_release.as_ref());
        app.output.print(format!(
            "image {} ({digest})\nkind {kind}, {}, engine {}{}, {} packages\n{}",
            manifest.name,
            manifest.architecture,
            manifest.engine,
            kernel.map(|release| format!(", kernel {release}")).unwrap_or_default(),
            manifest.packages.len(),
            super::describe(&manifest)
        ))?;
        Ok(Exit::SUCCESS)
    }
}
