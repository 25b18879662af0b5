//! Runs `stead` for the benchmarks: writes cluster files, and takes each cluster down at the end of its benchmark.

use super::{
    Bench,
    measure::{output, seconds},
    row::Skip,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A cluster of a benchmark; taken down when dropped.
#[derive(Debug)]
pub struct Cluster<'a> {
    bench: &'a Bench,
    name: &'static str,
    dir: tempfile::TempDir,
}

impl Bench {
    /// A call of `stead`.
    pub fn stead<I: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.stead);
        command.args(args).current_dir(&self.root);
        command
    }

    /// Builds an image unless it exists.
    ///
    /// # Errors
    /// The build fails.
    pub fn image(&self, name: &str) -> Result<()> {
        output(self.stead(["image", "build"]).arg(self.recipe(name))).map(drop)
    }

    /// The file of an image's artifact: `vmlinux`, `layer base`, ….
    ///
    /// # Errors
    /// There is no such image or artifact.
    pub fn artifacts(&self, image: &str) -> Result<Vec<(String, PathBuf)>> {
        let text = output(&mut self.stead(["image", "show", image, "--json"]))?;
        let shown: Value = serde_json::from_str(&text).context("stead image show --json printed no JSON")?;
        let paths = shown["paths"].as_object().context("stead image show --json lists no paths")?;
        Ok(paths
            .iter()
            .filter_map(|(what, path)| Some((what.clone(), PathBuf::from(path.as_str()?))))
            .collect())
    }

    /// The root layers of an image, lowest first.
    ///
    /// # Errors
    /// There is no such image.
    pub fn layers(&self, image: &str) -> Result<Vec<PathBuf>> {
        let text = output(&mut self.stead(["image", "show", image, "--json"]))?;
        let shown: Value = serde_json::from_str(&text).context("stead image show --json printed no JSON")?;
        let layers = shown["manifest"]["layers"].as_array().context("the manifest has no layers")?;
        layers
            .iter()
            .map(|l| {
                let name = format!("layer {}", l["name"].as_str().unwrap_or_default());
                let path = shown["paths"][&name].as_str();
                Ok(PathBuf::from(path.with_context(|| format!("{name} has no path"))?))
            })
            .collect()
    }

    /// A cluster from the text of its file, not started yet; a leftover one of the same name is taken down.
    ///
    /// # Errors
    /// Without root; if files cannot be written; if the leftover cannot be taken down.
    pub fn cluster(&self, name: &'static str, file: &str) -> Result<Cluster<'_>> {
        needs_root()?;
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        fs::write(dir.path().join("cluster.yaml"), format!("name: {name}\n{file}"))
            .context("cannot write the cluster file")?;
        let cluster = Cluster { bench: self, name, dir };
        cluster.down()?;
        Ok(cluster)
    }
}

/// Skips a benchmark that needs root.
///
/// # Errors
/// [`Skip`].
pub fn needs_root() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let root = status
        .lines()
        .any(|l| l.strip_prefix("Uid:").is_some_and(|r| r.split_whitespace().nth(1) == Some("0")));
    ensure!(root, Skip("needs root".to_owned()));
    Ok(())
}

/// Skips a benchmark whose program is not installed.
///
/// # Errors
/// [`Skip`].
pub fn needs_program(program: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    ensure!(there, Skip(format!("{program} is not installed; `make deps` installs it")));
    Ok(())
}

impl Cluster<'_> {
    /// The directory of the cluster file; overlays named in it by relative path are here.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Seconds that `stead up` takes.
    ///
    /// # Errors
    /// It fails.
    pub fn up(&self) -> Result<f64> {
        seconds(|| output(self.bench.stead(["up"]).arg(self.dir.path().join("cluster.yaml"))))
    }

    /// Seconds that `stead down` takes.
    ///
    /// # Errors
    /// It fails.
    pub fn down(&self) -> Result<f64> {
        seconds(|| output(&mut self.bench.stead(["down", self.name, "--if-exists"])))
    }

    /// `stead status --json`.
    ///
    /// # Errors
    /// It fails.
    pub fn status(&self) -> Result<Value> {
        let text = output(&mut self.bench.stead(["status", self.name, "--json"]))?;
        serde_json::from_str(&text).context("stead status --json printed no JSON")
    }

    /// Fails unless the cluster has `nodes` nodes, all running, each with its engine, if any, online.
    ///
    /// # Errors
    /// The cluster is not healthy.
    pub fn check_healthy(&self, nodes: usize) -> Result<()> {
        let status = self.status()?;
        let list = status["nodes"].as_array().context("stead status --json has no nodes")?;
        ensure!(list.len() == nodes, "{} nodes instead of {nodes}", list.len());
        for node in list {
            ensure!(node["phase"] == "running", "{} is {}", node["name"], node["phase"]);
            let engine = &node["engine"];
            ensure!(
                engine["kind"] == "none" || engine["state"] == "online",
                "the engine on {} is {}",
                node["name"],
                engine["state"]
            );
        }
        Ok(())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            eprintln!("bench: cluster {} is left: {error:#}", self.name);
        }
    }
}
