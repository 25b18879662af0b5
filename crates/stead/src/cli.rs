//! What can be typed.

pub mod fleet;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::{ffi::OsString, path::PathBuf};
use stead_model::ClusterName;

/// Small immutable Linux nodes, and clusters of them, by one command.
///
/// A recipe becomes an image (`stead image build`), an image boots as machines in namespaces or QEMU, machines become
/// a cluster with a real Incus or LXD on it (`stead up`).
#[derive(Debug, Parser)]
#[command(name = "stead", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Where images and clusters are kept.
    #[arg(long, global = true, env = "STEAD_STATE_DIR", default_value = "/var/lib/stead", value_hint = ValueHint::DirPath, value_name = "DIR")]
    pub state_dir: PathBuf,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Build and keep images.
    #[command(subcommand)]
    Image(ImageVerb),
    /// Make a cluster what its file says: start, join, change, remove. Run it again at any time.
    Up(Up),
    /// Take a cluster down and delete everything of it.
    Down(Down),
    /// Show a cluster: nodes, engine, instances.
    Status(Status),
    /// List the clusters on this host.
    Ls(Json),
    /// Run a command on a node; its exit code is passed through.
    ///
    /// Example: stead exec demo node1 -- incus list
    Exec(Exec),
    /// Open a shell on a node.
    Shell(Shell),
    /// Show the logs of a node or of one of its services.
    Logs(Logs),
    /// Copy files to and from nodes: `CLUSTER/NODE:PATH` names one there, `-` is a tar on stdin or stdout.
    Cp(Cp),
    /// Show the console of a node (what its kernel and init print).
    Console(Console),
    /// Reboot a node cleanly.
    Reboot(Reboot),
    /// Change the number of nodes: new ones join, surplus ones are evacuated, removed and deleted.
    Scale(Scale),
    /// Print the environment with which the stock `incus` or `lxc` client uses a cluster.
    ///
    /// Use it as: eval "$(stead env demo)"
    Env(Env),
    /// Look after any Incus or LXD cluster, made by Stead or not: where instances should be, and moving them there.
    #[command(subcommand)]
    Fleet(fleet::Verb),
    /// The OpenNebula driver: install it, check a host, run its scripts.
    #[command(subcommand)]
    One(OneVerb),
    /// Check what this host offers, and say how to mend what it lacks.
    Doctor(Json),
    /// Print the JSON Schema of a file format.
    Schema(Schema),
    /// Print completions for a shell.
    Completions(Completions),
    /// Write the manual pages.
    Man(Man),
    /// Supervise one machine (started by `up`).
    #[command(subcommand, hide = true)]
    Machine(Supervise),
    /// Supervise one cluster's network (started by `up`).
    #[command(subcommand, hide = true)]
    Network(Supervise),
}

#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Build an image from a recipe. Nothing changed: nothing is done.
    Build(ImageBuild),
    /// List the images in the store.
    Ls(Json),
    /// Show one image: layers, digests, packages.
    Show(ImageShow),
    /// Remove images by name. Their files go with the next `gc`.
    Rm(ImageRm),
    /// Delete files that no image and no cluster uses.
    Gc(ImageGc),
}

#[derive(Debug, Subcommand)]
pub enum OneVerb {
    /// Lay out the driver's scripts and probes in OpenNebula's remotes. Run it again at any time.
    ///
    /// Example: stead one install --remotes /var/lib/one/remotes --program /usr/local/bin/stead
    Install(OneInstall),
    /// Take them away, and put back what was there before.
    Uninstall(OneInstall),
    /// Check whether this host has what the driver needs.
    Check(OneCheck),
    /// Run one script, as OpenNebula calls it; `stead one NAME ARGUMENTS…` is the same.
    Run(OneRun),
    /// A script by its name.
    #[command(external_subcommand)]
    Named(Vec<OsString>),
    /// Supervise the console of one VM (started by its deploy).
    #[command(hide = true)]
    Console {
        /// Where its files are.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct OneInstall {
    /// OpenNebula's remotes: /var/lib/one/remotes on the frontend, /var/tmp/one on a host.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub remotes: PathBuf,
    /// Where this program is on the hosts; where it is here when absent.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub program: Option<PathBuf>,
    /// Probes as OpenNebula 5.8 and 5.10 lay them out.
    #[arg(long)]
    pub old: bool,
}

#[derive(Debug, Args)]
pub struct OneCheck {
    /// Where OpenNebula's remotes are on this host.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/one", value_hint = ValueHint::DirPath)]
    pub remotes: PathBuf,
    /// Which of the two drivers.
    #[arg(long, value_enum, default_value = "lxd")]
    pub driver: OneDriver,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OneDriver {
    Lxd,
    Incus,
}

impl OneDriver {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lxd => "lxd",
            Self::Incus => "incus",
        }
    }
}

#[derive(Debug, Args)]
pub struct OneRun {
    /// The path it was called by: it tells the driver and where its configuration is.
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Its name: deploy, shutdown, …, or a probe's.
    pub name: String,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Json {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ImageBuild {
    /// The recipe.
    #[arg(value_hint = ValueHint::FilePath)]
    pub recipe: PathBuf,
    /// The node's program; the one beside `stead` when absent.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub stead_node: Option<PathBuf>,
    /// Build base and kernel anew though nothing changed here: the mirror may have newer packages.
    #[arg(long)]
    pub refresh: bool,
    /// For instance images: make the unified tar too.
    #[arg(long)]
    pub unified: bool,
    /// Only print what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ImageShow {
    /// Its name.
    pub name: String,
    /// Print JSON: the manifest and the path of every file.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ImageRm {
    /// Their names.
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ImageGc {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Up {
    /// The cluster file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Only print the plan.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Down {
    /// The cluster.
    pub cluster: ClusterName,
    /// Stop the nodes cleanly and keep their disks: `up` goes on with them.
    #[arg(long)]
    pub keep_disks: bool,
    /// Do not fail when there is no such cluster.
    #[arg(long)]
    pub if_exists: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    /// The cluster.
    pub cluster: ClusterName,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Show the boot timeline and services of every node too.
    #[arg(long, short)]
    pub verbose: bool,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: String,
    /// Give the command a terminal (the default when stdin and stdout are terminals).
    #[arg(long, short, overrides_with = "no_tty")]
    pub tty: bool,
    /// Give it none.
    #[arg(long, short = 'T', overrides_with = "tty")]
    pub no_tty: bool,
    /// Set a variable, NAME=VALUE; may be repeated.
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE")]
    pub environment: Vec<String>,
    /// Working directory.
    #[arg(long)]
    pub cwd: Option<String>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Shell {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node; the first when absent.
    pub node: Option<String>,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: String,
    /// The service; the node's own log when absent.
    #[arg(default_value = "node")]
    pub service: String,
    /// Go on as more is written.
    #[arg(long, short)]
    pub follow: bool,
    /// Start with the last N lines.
    #[arg(long, short = 'n', default_value_t = 100)]
    pub tail: u32,
}

#[derive(Debug, Args)]
pub struct Cp {
    /// From: a local path, `CLUSTER/NODE:PATH`, or `-` (a tar on stdin).
    pub source: String,
    /// To: a local directory or file, `CLUSTER/NODE:PATH`, or `-` (a tar on stdout).
    pub destination: String,
}

#[derive(Debug, Args)]
pub struct Console {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: String,
    /// Go on as more is printed.
    #[arg(long, short)]
    pub follow: bool,
    /// Start with the last N lines.
    #[arg(long, short = 'n', default_value_t = 100)]
    pub tail: u32,
}

#[derive(Debug, Args)]
pub struct Reboot {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: String,
    /// Seconds its services get to stop.
    #[arg(long, default_value_t = 60)]
    pub deadline: u32,
    /// Return at once instead of when the node runs again.
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct Scale {
    /// The cluster.
    pub cluster: ClusterName,
    /// How many nodes it should have.
    #[arg(value_parser = clap::value_parser!(u32).range(1..=250))]
    pub count: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Env {
    /// The cluster.
    pub cluster: ClusterName,
    /// Print the commands that undo it.
    #[arg(long)]
    pub unset: bool,
}

#[derive(Debug, Args)]
pub struct Schema {
    /// Of which file.
    #[arg(value_enum)]
    pub of: SchemaOf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SchemaOf {
    /// The recipe of an image.
    Recipe,
    /// The cluster file.
    Cluster,
    /// The spec a node boots with.
    Node,
    /// The manifest of a built image.
    Manifest,
}

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// The directory they are written to.
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Supervise {
    /// Run it until it ends.
    Run {
        /// Its spec.
        file: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
