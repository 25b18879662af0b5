//! What is made from the program's own definitions: schemas, completions, manual pages; and `doctor`.

use crate::{
    cli::{Cli, Completions, Json, Man, Schema, SchemaOf},
    output,
};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::process::ExitCode;
use stead_machine::doctor::{self, Verdict};
use stead_model::{ClusterSpec, Manifest, NodeSpec, Recipe};

pub fn schema(args: &Schema) -> Result<ExitCode> {
    output::json(&match args.of {
        SchemaOf::Recipe => schemars::schema_for!(Recipe),
        SchemaOf::Cluster => schemars::schema_for!(ClusterSpec),
        SchemaOf::Node => schemars::schema_for!(NodeSpec),
        SchemaOf::Manifest => schemars::schema_for!(Manifest),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub fn completions(args: &Completions) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stead", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: &Man) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("make directory {}", args.dir.display()))?;
    clap_mangen::generate_to(Cli::command(), &args.dir)
        .with_context(|| format!("write to {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

pub fn doctor(args: &Json) -> Result<ExitCode> {
    let checks = doctor::checks(&doctor::observe());
    if args.json {
        output::json(&checks)?;
    } else {
        let rows: Vec<Vec<String>> = checks
            .iter()
            .map(|c| {
                let verdict = match c.ok {
                    Verdict::Ok => "ok",
                    Verdict::Warn => "warn",
                    Verdict::Fail => "FAIL",
                };
                let fix = c.fix.as_ref().map(|f| format!(" -> {f}")).unwrap_or_default();
                vec![verdict.to_owned(), c.name.to_string(), format!("{}{fix}", c.detail)]
            })
            .collect();
        output::print(&output::table(&["", "CHECK", "FOUND"], &rows))?;
    }
    let failed = checks.iter().any(|c| c.ok == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
