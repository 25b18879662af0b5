//! What can be typed after `stead fleet`.

use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;
use stead_fleet::window::Window;
use stead_model::{ClusterName, RemoteName};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Have a cluster trust this host, by a one-time token, and keep it under a name for `--remote`.
    ///
    /// The token is what `incus config trust add NAME` or `lxc config trust add --name NAME` prints on a member. It is
    /// read from a file or from stdin.
    ///
    /// Example: ssh node1 incus config trust add stead | stead fleet trust lab
    Trust(Trust),
    /// List the clusters that trust this host.
    Remotes(Json),
    /// Have a cluster trust this host no longer, and forget it.
    Forget(Forget),
    /// Show which instances should be moved, and why; changes nothing.
    Plan(Plan),
    /// Move instances so that members are evenly used and every rule holds.
    ///
    /// Each step is written to a journal first: run again after it was killed, it brings what was on its way to an end
    /// and goes on. Ctrl-C ends after the moves that run.
    Rebalance(Rebalance),
    /// Find members for new instances, or say why there are none; creates nothing.
    ///
    /// The instances are described as for `incus launch`; all of a call are placed together.
    ///
    /// Example: stead fleet place web1 web2 web3 -c limits.memory=2GiB -c user.stead.group=web
    Place(Place),
    /// Print the scriptlet by which the server itself places new instances as `place` would; or put it there.
    Scriptlet(Scriptlet),
    /// Print the cluster as plans see it (JSON).
    Snapshot(Target),
}

#[derive(Debug, Args)]
pub struct Json {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Target {
    /// A cluster that trusts this host: see `stead fleet trust`.
    #[arg(long, value_name = "NAME")]
    pub remote: Option<RemoteName>,
    /// A cluster of Stead's on this host.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<ClusterName>,
    /// The unix socket of an engine that is a member of the cluster; by default that of this host's Incus or LXD.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Trust {
    /// What to call it.
    pub name: RemoteName,
    /// The file with the token; stdin when absent.
    #[arg(long, value_name = "FILE", default_value = "-", hide_default_value = true, value_hint = ValueHint::FilePath)]
    pub token: PathBuf,
    /// Where a member is reached, when the token's own addresses cannot be; may be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub address: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Forget {
    /// Its name.
    pub name: RemoteName,
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub target: Target,
    /// What is wanted of placement (YAML); see docs/placement.md.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,
    /// The most moves.
    #[arg(long, value_name = "N")]
    pub max_moves: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Rebalance {
    #[command(flatten)]
    pub plan: Plan,
    /// Only print the plan.
    #[arg(long)]
    pub dry_run: bool,
    /// Moves at the same time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub at_once: usize,
    /// Begin moves only as fast as instances may be copied on average.
    #[arg(long, value_name = "MIB_PER_S")]
    pub bandwidth: Option<u64>,
    /// Seconds an instance may take to shut down; one that takes longer is not moved.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub stop_timeout: u32,
    /// Begin moves only at these times of day (this host's time zone); may be repeated. Outside of them it waits, and
    /// plans anew when the next begins.
    #[arg(long, value_name = "HH:MM-HH:MM")]
    pub window: Vec<Window>,
    /// Outside of the windows, end instead of waiting.
    #[arg(long, requires = "window")]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct Place {
    /// Names of the instances.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub target: Target,
    /// A profile; may be repeated, later ones win.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub profile: Vec<String>,
    /// A setting; may be repeated.
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    pub config: Vec<(String, String)>,
    /// A setting of a device, as in `root,size=10GiB`; may be repeated.
    #[arg(long, short, value_name = "DEVICE,KEY=VALUE", value_parser = device)]
    pub device: Vec<(String, Vec<(String, String)>)>,
    /// They are virtual machines.
    #[arg(long)]
    pub vm: bool,
    /// Their architecture; that of the server that answers when absent.
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
    /// Their project.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub project: String,
    /// The engine's cluster group they are for.
    #[arg(long, value_name = "NAME")]
    pub cluster_group: Option<String>,
    /// What is wanted of placement (YAML); see docs/placement.md.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Scriptlet {
    #[command(flatten)]
    pub target: Target,
    /// What is wanted of placement (YAML); see docs/placement.md.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,
    /// Have the server use it.
    #[arg(long, conflicts_with = "remove")]
    pub install: bool,
    /// Have the server use none.
    #[arg(long)]
    pub remove: bool,
    /// Replace or remove one that Stead has not written.
    #[arg(long)]
    pub force: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is not KEY=VALUE".to_owned()),
    }
}

fn device(text: &str) -> Result<(String, Vec<(String, String)>), String> {
    let mut parts = text.split(',');
    let name = parts.next().filter(|n| !n.is_empty() && !n.contains('='));
    let settings: Vec<_> = parts.map(pair).collect::<Result<_, _>>()?;
    match name {
        Some(name) if !settings.is_empty() => Ok((name.to_owned(), settings)),
        _ => Err("is not DEVICE,KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_settings() {
        let owned = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(pair("user.a=b=c"), Ok(owned("user.a", "b=c")));
        assert_eq!(
            device("root,size=10GiB,pool=fast"),
            Ok(("root".to_owned(), vec![owned("size", "10GiB"), owned("pool", "fast")]))
        );
        for bad in ["", "root", "root,", "size=1", ",size=1", "root,size"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert!(pair("a").is_err() && pair("=a").is_err());
    }
}
