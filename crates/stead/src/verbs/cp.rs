//! `stead cp`: a file or a tree, as a tar stream, between here and a node.
//!
//! As with `cp`, a destination that ends in `/` (or, here, is a directory) receives the source under its own name;
//! any other destination is the new name.

use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Error, Result},
};
use clap::Args;
use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};
use stead_cluster::{ClusterError, remote};
use stead_model::{ClusterName, NodeName};

/// Copy files to and from nodes: `CLUSTER/NODE:PATH` names one there, `-` is a tar on stdin or stdout.
#[derive(Debug, Args)]
pub struct Cp {
    /// From: a local path, `CLUSTER/NODE:PATH`, or `-` (a tar on stdin).
    source: String,
    /// To: a local directory or file, `CLUSTER/NODE:PATH`, or `-` (a tar on stdout).
    destination: String,
}

impl Run for Cp {
    fn run(self, app: &App) -> Result<Exit> {
        match (place(&self.source)?, place(&self.destination)?) {
            (Place::Node(_), Place::Node(_)) => {
                return Err(Error::bad_input_hint(
                    "cannot copy from one node to another",
                    "copy here first, or pipe one `stead cp … -` into another",
                ));
            }
            (Place::Node(from), to) => app.wait(from_node(app, &from, &to))?,
            (from, Place::Node(to)) => app.wait_and_leave(to_node(app, &from, &to))?,
            _ => return Err(Error::bad_input("one of the two paths must be on a node: CLUSTER/NODE:PATH")),
        }
        Ok(Exit::SUCCESS)
    }
}

enum Place {
    Stream,
    Local(PathBuf),
    Node(OnNode),
}

struct OnNode {
    cluster: ClusterName,
    node: String,
    path: String,
}

fn place(text: &str) -> Result<Place> {
    if text == "-" {
        return Ok(Place::Stream);
    }
    // A local path that looks like one on a node is written with ./ before it.
    if !text.starts_with(['/', '.'])
        && let Some((target, path)) = text.split_once(':')
        && let Some((cluster, node)) = target.split_once('/')
    {
        let cluster = cluster.parse::<ClusterName>().context(text)?;
        if !path.starts_with('/') {
            return Err(Error::bad_input(format!("{text}: the path on the node must be absolute")));
        }
        return Ok(Place::Node(OnNode { cluster, node: node.to_owned(), path: path.to_owned() }));
    }
    Ok(Place::Local(text.into()))
}

/// The node's complaint about a transfer. One about our own end (nobody reads the tar any more) is no failure of it.
fn failed(action: &'static str, at: &OnNode) -> impl Fn(stead_agent::ClientError) -> Error {
    let node = at.node.parse::<NodeName>();
    move |e| match (&node, &e) {
        (_, stead_agent::ClientError::Local { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            Error::ReaderGone
        }
        (Ok(node), _) => ClusterError::Agent { action, node: node.clone(), source: Box::new(e) }.into(),
        (Err(_), _) => e.into(),
    }
}

async fn from_node(app: &App, from: &OnNode, to: &Place) -> Result<()> {
    let client = remote::connect(&app.host, &from.cluster, &from.node)?;
    match to {
        Place::Local(to) => {
            // Spooled, so that nothing half-made is left when the connection breaks.
            let mut spool = tokio::fs::File::from_std(spool(app)?);
            client.get_files(&from.path, &mut spool).await.map_err(failed("read files", from))?;
            let mut spool = spool.into_std().await;
            spool.seek(SeekFrom::Start(0))?;
            unpack(spool, &from.path, &app.context.absolute(to), ends_with_slash(to))
        }
        _ => {
            let stream = &mut tokio::io::stdout();
            client.get_files(&from.path, stream).await.map(drop).map_err(failed("read files", from))
        }
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn spool(app: &App) -> Result<File> {
    let dir = &app.context.temp_dir;
    rustix::fs::open(
        dir,
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .map(File::from)
    .map_err(io::Error::from)
    .context(format!("cannot make a temporary file in {}", dir.display()))
}

/// Unpacks what the node sent: into the directory `to`, or under that name when there is no such directory and no slash
/// asks for one.
fn unpack(tar: File, source: &str, to: &Path, slash: bool) -> Result<()> {
    let top = Path::new(source).file_name().map(PathBuf::from);
    let (dir, renamed) = match (slash || to.is_dir(), &top) {
        (false, Some(_)) => (to.parent().unwrap_or(Path::new("/")), to.file_name()),
        _ => (to, None),
    };
    let leaves = |path: &Path| {
        Error::failed(format!("the node sent {}, which leaves the destination", path.display()))
    };
    fs::create_dir_all(dir).named_by_user(format!("cannot make directory {}", dir.display()))?;
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        match (renamed, &top) {
            (Some(new), Some(top)) => {
                let rest = path.strip_prefix(top).unwrap_or(&path);
                if rest.components().any(|c| !matches!(c, Component::Normal(_))) {
                    return Err(leaves(&path));
                }
                let target =
                    if rest.as_os_str().is_empty() { dir.join(new) } else { dir.join(new).join(rest) };
                entry.unpack(&target).context(format!("cannot write {}", target.display()))?;
            }
            _ => {
                let what = format!("cannot write {} in {}", path.display(), dir.display());
                if !entry.unpack_in(dir).context(what)? {
                    return Err(leaves(&path));
                }
            }
        }
    }
    Ok(())
}

async fn to_node(app: &App, from: &Place, to: &OnNode) -> Result<()> {
    let client = remote::connect(&app.host, &to.cluster, &to.node)?;
    let failed = failed("write files", to);
    let Place::Local(from) = from else {
        return client.put_files(&to.path, &mut tokio::io::stdin()).await.map_err(failed);
    };
    let shown = from.display();
    let local = app.context.absolute(from).canonicalize().named_by_user(format!("cannot read {shown}"))?;
    let own = local.file_name().map(PathBuf::from).unwrap_or_default();
    let (dir, top) = match to.path.strip_suffix('/') {
        Some(dir) => (dir, own),
        None => {
            let (dir, last) = to.path.rsplit_once('/').unwrap_or(("", &to.path));
            (dir, PathBuf::from(last))
        }
    };
    let dir = if dir.is_empty() { "/" } else { dir };
    let mut spool = spool(app)?;
    {
        let mut tar = tar::Builder::new(&mut spool);
        tar.follow_symlinks(false);
        let added = match local.is_dir() {
            true => tar.append_dir_all(&top, &local),
            false => tar.append_path_with_name(app.context.absolute(from), &top),
        };
        added.and_then(|()| tar.finish()).context(format!("cannot read {shown}"))?;
    }
    spool.seek(SeekFrom::Start(0))?;
    client.put_files(dir, &mut tokio::fs::File::from_std(spool)).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert!(matches!(place("demo/node1:/etc/x").unwrap(), Place::Node(_)));
        assert!(matches!(place("./demo/node1:/etc/x").unwrap(), Place::Local(_)));
        assert!(matches!(place("/a:b").unwrap(), Place::Local(_)));
        assert!(matches!(place("-").unwrap(), Place::Stream));
        assert!(place("demo/node1:etc").is_err());
    }
}
