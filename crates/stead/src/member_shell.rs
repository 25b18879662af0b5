//! How `stead fleet` runs programs on members: by the agents of a cluster of Stead's, by a command such as ssh, or here.

use crate::{
    cli::App,
    error::{Error, Result},
};
use clap::Args;
use std::{collections::BTreeSet, path::Path, time::Duration};
use stead_agent::Event;
use stead_cluster::{Host, remote};
use stead_fleet::shell::{Commands, MEMBER, Ran, Shell};
use stead_incus::{Client, Endpoint};
use stead_model::{ClusterName, EngineFacts, agent::ExecRequest};
use stead_os::chain;

/// How long a program on a member may take: `du` over a large instance on slow disks takes minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// A way to run programs on members.
#[derive(Debug, Args)]
pub struct ShellArgument {
    /// The command that runs another one on a member, as in 'ssh root@{member}' [default: the agents of a --cluster, or this
    /// host for its own engine]
    #[arg(long, value_name = "COMMAND")]
    shell: Option<String>,
}

impl ShellArgument {
    /// The way there is.
    pub async fn of(
        &self,
        app: &App,
        cluster: Option<&ClusterName>,
        client: &Client,
    ) -> Result<Box<dyn Shell>> {
        if let Some(command) = &self.shell {
            let template: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if !template.iter().any(|word| word.contains(MEMBER)) {
                return Err(Error::bad_input(format!("--shell {command:?} does not contain {MEMBER}")));
            }
            return Ok(Box::new(Commands { template, here: BTreeSet::new() }));
        }
        if let Some(cluster) = cluster {
            return Ok(Box::new(Agents { host: app.host.clone(), cluster: cluster.clone() }));
        }
        let mut here = BTreeSet::new();
        // Any other socket may be that of a container or a node, whose files are elsewhere.
        let is_ours =
            |socket: &Path| EngineFacts::all().any(|f| f.sockets.iter().any(|s| Path::new(s) == socket));
        if app.context.is_root
            && let Endpoint::Unix(socket) = client.endpoint()
            && is_ours(socket)
        {
            here.insert(client.server_info().await?.environment.server_name.clone());
        }
        Ok(Box::new(Commands { template: Vec::new(), here }))
    }
}

/// The agents of a cluster's nodes.
struct Agents {
    host: Host,
    cluster: ClusterName,
}

impl Agents {
    async fn ran(&self, node: &str, argv: &[String]) -> std::result::Result<Ran, String> {
        let agent = remote::connect(&self.host, &self.cluster, node).map_err(|e| chain(&e))?;
        let request =
            ExecRequest { command: argv.to_vec(), environment: Default::default(), cwd: None, tty: None };
        let (mut input, mut events) = agent.exec(&request).await.map_err(|e| chain(&e))?.split();
        input.close_stdin().await.map_err(|e| chain(&e))?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut code = None;
        while let Some(event) = events.next().await.map_err(|e| chain(&e))? {
            match event {
                Event::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                Event::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Event::Exit(exit) => {
                    stderr.extend(exit.error.into_iter().flat_map(String::into_bytes));
                    code = Some(exit.code);
                }
            }
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = code.ok_or("the connection ended before the command")?;
        Ok(Ran { code, stdout: text(&stdout), stderr: text(&stderr) })
    }
}

impl Shell for Agents {
    fn reaches(&self, member: &str) -> bool {
        remote::require_node(&self.host, &self.cluster, member).is_ok()
    }
    fn run<'a>(
        &'a self,
        member: &'a str,
        argv: &'a [String],
    ) -> std::pin::Pin<Box<dyn Future<Output = std::result::Result<Ran, String>> + Send + 'a>> {
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, self.ran(member, argv)).await {
                Ok(ran) => ran,
                Err(_) => Err(format!("it has not ended after {} s", PATIENCE.as_secs())),
            }
        })
    }
}
