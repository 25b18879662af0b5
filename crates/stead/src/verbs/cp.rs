//! `stead cp`: a file or a tree, as a tar stream, between here and a node.
//!
//! As with `cp`, a destination that ends in `/` (or, here, is a directory) receives the source under its own name;
//! any other destination is the new name.

use crate::{cli, output::BadInput};
use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
};
use stead_cluster::{ClusterError, Host, remote};
use stead_model::ClusterName;

enum Place {
    Stream,
    Local(PathBuf),
    Node { cluster: ClusterName, node: String, path: String },
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
        let cluster = cluster.parse().map_err(|e| BadInput(format!("{text}: {e}")))?;
        if !path.starts_with('/') {
            return Err(BadInput(format!("{text}: the path on the node must be absolute")).into());
        }
        return Ok(Place::Node { cluster, node: node.to_owned(), path: path.to_owned() });
    }
    Ok(Place::Local(text.into()))
}

pub async fn cp(host: &Host, args: cli::Cp) -> Result<ExitCode> {
    match (place(&args.source)?, place(&args.destination)?) {
        (Place::Node { cluster, node, path }, to) => from_node(host, &cluster, &node, &path, to).await?,
        (from, Place::Node { cluster, node, path }) => to_node(host, &cluster, &node, &path, from).await?,
        _ => return Err(BadInput("one of the two must be on a node: CLUSTER/NODE:PATH".into()).into()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn from_node(host: &Host, cluster: &ClusterName, node: &str, path: &str, to: Place) -> Result<()> {
    let client = remote::connect(host, cluster, node)?;
    let name = remote::require_node(host, cluster, node)?;
    let error = |e| ClusterError::Agent { action: "read files", node: name.clone(), source: Box::new(e) };
    match to {
        Place::Stream => {
            client.get_files(path, &mut tokio::io::stdout()).await.map_err(error)?;
        }
        Place::Local(to) => {
            // Spooled, so that nothing half-made is left when the connection breaks.
            let mut spool = tokio::fs::File::from_std(spool()?);
            client.get_files(path, &mut spool).await.map_err(error)?;
            let mut spool = spool.into_std().await;
            spool.seek(SeekFrom::Start(0))?;
            unpack(spool, path, &to)?;
        }
        Place::Node { .. } => bail!(
            "copying from node to node is not supported: copy here first, or use a pipe of two `stead cp … -`"
        ),
    }
    Ok(())
}

fn spool() -> Result<File> {
    let dir = std::env::temp_dir();
    rustix::fs::open(
        &dir,
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .map(File::from)
    .with_context(|| format!("make a temporary file in {}", dir.display()))
}

fn unpack(tar: File, source: &str, to: &Path) -> Result<()> {
    let into_dir = to.is_dir() || to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let top = Path::new(source).file_name().map(PathBuf::from);
    let (dir, renamed) = match (into_dir, &top) {
        (false, Some(_)) => {
            (to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")), to.file_name())
        }
        _ => (to, None),
    };
    std::fs::create_dir_all(dir).with_context(|| format!("make directory {}", dir.display()))?;
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        match (renamed, &top) {
            (Some(new), Some(top)) => {
                let rest = path.strip_prefix(top).unwrap_or(&path);
                if rest.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                    bail!("the node sent {}, which leaves the destination", path.display());
                }
                let target =
                    if rest.as_os_str().is_empty() { dir.join(new) } else { dir.join(new).join(rest) };
                entry.unpack(&target).with_context(|| format!("write {}", target.display()))?;
            }
            _ => {
                if !entry
                    .unpack_in(dir)
                    .with_context(|| format!("write {} in {}", path.display(), dir.display()))?
                {
                    bail!("the node sent {}, which leaves the destination", path.display());
                }
            }
        }
    }
    Ok(())
}

async fn to_node(host: &Host, cluster: &ClusterName, node: &str, path: &str, from: Place) -> Result<()> {
    let client = remote::connect(host, cluster, node)?;
    let name = remote::require_node(host, cluster, node)?;
    let error = |e| ClusterError::Agent { action: "write files", node: name.clone(), source: Box::new(e) };
    match from {
        Place::Stream => client.put_files(path, &mut tokio::io::stdin()).await.map_err(error)?,
        Place::Local(from) => {
            let own = from.canonicalize().map_err(|e| BadInput(format!("read {}: {e}", from.display())))?;
            let own = own.file_name().map(PathBuf::from).unwrap_or_default();
            let (dir, top) = match path.strip_suffix('/') {
                Some(dir) => (if dir.is_empty() { "/" } else { dir }, own),
                None => {
                    let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
                    (if dir.is_empty() { "/" } else { dir }, PathBuf::from(last))
                }
            };
            let mut spool = spool()?;
            {
                let mut tar = tar::Builder::new(&mut spool);
                tar.follow_symlinks(false);
                if from.is_dir() {
                    tar.append_dir_all(&top, &from)
                } else {
                    tar.append_path_with_name(&from, &top)
                }
                .with_context(|| format!("read {}", from.display()))?;
                tar.finish()?;
            }
            spool.seek(SeekFrom::Start(0))?;
            client.put_files(dir, &mut tokio::fs::File::from_std(spool)).await.map_err(error)?;
        }
        Place::Node { .. } => bail!("copying from node to node is not supported: copy here first"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert!(matches!(place("demo/node1:/etc/x").unwrap(), Place::Node { .. }));
        assert!(matches!(place("./demo/node1:/etc/x").unwrap(), Place::Local(_)));
        assert!(matches!(place("/a:b").unwrap(), Place::Local(_)));
        assert!(matches!(place("-").unwrap(), Place::Stream));
        assert!(place("demo/node1:etc").is_err());
    }
}
