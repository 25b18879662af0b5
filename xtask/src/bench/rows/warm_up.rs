//! `up` of three namespace nodes with Incus, against a script that starts the same daemons in bare namespaces and joins
//! them by hand.

use crate::bench::{
    Bench,
    measure::{in_turns, output},
    row::Row,
    stead::needs_root,
};
use anyhow::{Context, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What `up` may cost over the floor.
const GOAL: f64 = 1.5;
// No disks: the floor has its storage in a directory too.
const CLUSTER: &str = "image: incus-node\nnodes: 3\nmachine: { backend: namespace }\nengine: incus\n";

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    needs_root()?;
    bench.image("incus-node")?;
    let root = Root::mount(&bench.layers("incus-node")?)?;
    let script = bench.root.join("bench/floor-incus.sh");
    let cluster = bench.cluster("bench-warm-up", CLUSTER)?;
    let measured = || {
        let took = cluster.up()?;
        cluster.check_healthy(3)?;
        cluster.down()?;
        Ok(took)
    };
    let floor = || {
        let said = output(Command::new(&script).arg(root.path()))?;
        let last = said.lines().last().unwrap_or_default();
        last.trim().parse().with_context(|| format!("{} said {last:?}, no seconds", script.display()))
    };
    // Once for nothing: files come into the page cache.
    floor()?;
    measured()?;
    let (measured, floor) = in_turns(bench.runs, measured, floor)?;
    Ok(vec![Row::against("warm up, 3 Incus nodes", "s", measured, floor, GOAL)])
}

/// An image's layers, mounted over each other read-only; unmounted when dropped.
#[derive(Debug)]
struct Root {
    dir: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Root {
    fn mount(layers: &[PathBuf]) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        let mut root = Self { dir, mounted: Vec::new() };
        for (i, layer) in layers.iter().enumerate() {
            let at = root.dir.path().join(format!("layer{i}"));
            root.add(Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).arg(layer), at)?;
        }
        // overlayfs wants the topmost first.
        let lower: Vec<_> = root.mounted.iter().rev().map(|p| p.display().to_string()).collect();
        let at = root.dir.path().join("root");
        if let [only] = &lower[..] {
            root.add(Command::new("mount").args(["--bind", only]), at)?;
        } else {
            let options = format!("ro,lowerdir={}", lower.join(":"));
            root.add(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]), at)?;
        }
        Ok(root)
    }

    fn add(&mut self, mount: &mut Command, at: PathBuf) -> Result<()> {
        std::fs::create_dir(&at).with_context(|| format!("cannot make {}", at.display()))?;
        output(mount.arg(&at))?;
        self.mounted.push(at);
        Ok(())
    }

    fn path(&self) -> &Path {
        self.mounted.last().map_or(self.dir.path(), PathBuf::as_path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for at in self.mounted.iter().rev() {
            if let Err(error) = output(Command::new("umount").arg(at)) {
                eprintln!("bench: {error:#}");
            }
        }
    }
}
