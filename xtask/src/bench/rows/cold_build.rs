//! `image build` into an empty store, against mmdebstrap and mksquashfs of the same packages alone.

use crate::bench::{
    Bench,
    measure::{in_turns, output, seconds},
    row::{Row, Skip},
    stead::{needs_program, needs_root},
};
use anyhow::{Context, Result, anyhow};
use std::{fs, process::Command};
use stead_model::{
    Recipe,
    recipe::{Base, Debian},
};

/// Limit on the ratio: what kernel, initrd, manifest and overlays may add to packages and squashfs.
const GOAL: f64 = 1.2;
const IMAGE: &str = "incus-node";

pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    needs_root()?;
    needs_program("mmdebstrap")?;
    needs_program("mksquashfs")?;
    let file = bench.recipe(IMAGE);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let recipe = Recipe::from_yaml(&file.to_string_lossy(), &text)?;
    let Base::Debian(debian) = recipe.base else {
        return Err(anyhow!(Skip(format!("{IMAGE} is not built from Debian packages"))));
    };
    let measured = || {
        let state = tempfile::tempdir()?;
        seconds(|| output(bench.stead(["image", "build"]).arg(&file).env("STEAD_STATE_DIR", state.path())))
    };
    let floor = || by_hand(&debian);
    let (measured, floor) = in_turns(bench.slow_runs(), measured, floor)?;
    Ok(vec![Row::against(format!("cold build of {IMAGE}"), "s", measured, floor, GOAL)])
}

/// The two commands that a person would type, with the same packages, the same variant and the same compression.
fn by_hand(debian: &Debian) -> Result<f64> {
    let work = tempfile::tempdir()?;
    let (tree, squashfs) = (work.path().join("tree"), work.path().join("root.squashfs"));
    seconds(|| {
        let mut bootstrap = Command::new("mmdebstrap");
        bootstrap.args(["--mode=root", "--variant=essential", "--skip=check/qemu", "--quiet"]);
        if !debian.packages.is_empty() {
            bootstrap.arg(format!("--include={}", debian.packages.join(",")));
        }
        if !debian.components.is_empty() {
            bootstrap.arg(format!("--components={}", debian.components.join(",")));
        }
        bootstrap.arg(&debian.suite).arg(&tree).args(&debian.mirror);
        output(&mut bootstrap)?;
        output(Command::new("mksquashfs").arg(&tree).arg(&squashfs).args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            "3",
            "-no-progress",
            "-quiet",
        ]))
    })
}
