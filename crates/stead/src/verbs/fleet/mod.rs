//! `stead fleet`: looking after clusters, made by Stead or not; a file each verb. Here: their list, and what several of
//! them are asked for.

mod forget;
mod place;
mod plan;
mod rebalance;
mod remotes;
mod repair;
mod scriptlet;
mod snapshot;
mod trust;

use crate::{
    cli::{App, Exit, Run, verb_list},
    error::{Error, Result},
};
use clap::{Args, ValueHint};
use std::path::PathBuf;
use stead_cluster::client_env;
use stead_fleet::remote::Remotes;
use stead_incus::{Client, Endpoint};
use stead_model::{ClusterName, EngineFacts, RemoteName};
use stead_placement::Policy;

/// Balance any Incus or LXD cluster, made by Stead or not: plan moves, carry them out, place new instances.
#[derive(Debug, Args)]
pub struct Fleet {
    #[command(subcommand)]
    verb: Verb,
}

verb_list! {
    Trust(trust::Trust),
    Remotes(remotes::Remotes),
    Forget(forget::Forget),
    Plan(plan::Plan),
    Rebalance(rebalance::Rebalance),
    Repair(repair::Repair),
    Place(place::Place),
    Scriptlet(scriptlet::Scriptlet),
    Snapshot(snapshot::Snapshot),
}

impl Run for Fleet {
    fn run(self, app: &App) -> Result<Exit> {
        self.verb.run(app)
    }
}

/// Which cluster.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Target {
    /// A registered cluster: see `stead fleet trust`.
    #[arg(long, value_name = "NAME")]
    remote: Option<RemoteName>,
    /// A cluster that `stead up` started on this host.
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The unix socket of an engine that is a member of the cluster [default: that of this host's Incus or LXD]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: Option<PathBuf>,
}

/// The policy.
#[derive(Debug, Args)]
pub struct PolicyFile {
    /// The placement policy (YAML); see docs/placement.md.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    policy: Option<PathBuf>,
}

impl Target {
    async fn client(&self, app: &App) -> Result<Client> {
        if let Some(name) = &self.remote {
            return Ok(remotes(app).get(name)?.connect().await?);
        }
        if let Some(cluster) = &self.cluster {
            return Ok(client_env::engine_client(&app.host, cluster).await?);
        }
        let socket = match &self.socket {
            Some(socket) => {
                let path = app.context.absolute(socket);
                if !path.exists() {
                    return Err(Error::bad_input(format!("there is no socket {}", socket.display())));
                }
                path
            }
            None => EngineFacts::all()
                .flat_map(|f| f.sockets)
                .map(PathBuf::from)
                .find(|p| p.exists())
                .ok_or_else(|| {
                    Error::bad_input_hint(
                        "no engine runs on this host",
                        "name a cluster with --remote or --cluster, or a socket with --socket",
                    )
                })?,
        };
        Ok(Client::discover(Endpoint::Unix(socket)).await?)
    }
}

impl PolicyFile {
    fn read(&self, app: &App) -> Result<Policy> {
        Ok(match &self.policy {
            Some(file) => {
                let (name, text) = super::read_text(app, file)?;
                Policy::from_yaml(&name, &text)?
            }
            None => Policy::default(),
        })
    }
}

/// What is kept of clusters that are not Stead's.
fn directory(app: &App) -> PathBuf {
    app.host.state_dir.join("fleet")
}

fn remotes(app: &App) -> Remotes {
    Remotes::new(directory(app).join("remotes"))
}

fn ratio(ppm: u64) -> String {
    format!("{:.2}", ppm as f64 / 1e6)
}
