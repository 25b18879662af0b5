//! `stead cp`: files and trees, as tar streams, between here and nodes.
//!
//! Owns the rules of cp(1) about its arguments, for both directions; all is copied as `cp -a` does it. Does not own how a
//! tree becomes a tar and back, which is `stead_agent::files`.

use crate::{
    cli::{App, Exit, Run},
    error::{Doing, Error, Result},
};
use clap::Args;
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};
use stead_agent::{
    Client,
    files::{
        pack::{Packer, Source},
        unpack::{Target, Top, UnpackError, is_tree},
    },
};
use stead_cluster::{ClusterError, remote};
use stead_model::{ClusterName, NodeName};

/// Copy files to and from nodes: `CLUSTER/NODE:PATH` names one there, `-` is a tar on stdin or stdout.
#[derive(Debug, Args)]
pub struct Cp {
    /// From: local paths, or `CLUSTER/NODE:PATH`, or `-` (a tar on stdin).
    #[arg(required = true)]
    source: Vec<String>,
    /// To: a local directory or file, `CLUSTER/NODE:PATH`, or `-` (a tar on stdout).
    #[arg(required = true)]
    destination: String,
}

impl Run for Cp {
    fn run(self, app: &App) -> Result<Exit> {
        let sources = self.source.iter().map(|s| place(s)).collect::<Result<Vec<_>>>()?;
        let one_on_a_node = || Error::bad_input("one of the two paths must be on a node: CLUSTER/NODE:PATH");
        match place(&self.destination)? {
            Place::Node(to) => {
                if sources.iter().any(|s| matches!(s, Place::Node(_))) {
                    return Err(Error::bad_input_hint(
                        "cannot copy from one node to another",
                        "copy here first, or pipe one `stead cp … -` into another",
                    ));
                }
                app.wait_and_leave(to_node(app, &sources, &to))?;
            }
            to => {
                let mut from = Vec::new();
                for source in sources {
                    let Place::Node(source) = source else { return Err(one_on_a_node()) };
                    from.push(source);
                }
                app.wait(from_nodes(app, &from, &to))?;
            }
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

/// The last part of a source's path; `None` for one that has no name of its own (`.`, `..`, `/`), whose content is meant.
fn own_name(path: &Path) -> Option<OsString> {
    let bytes = path.as_os_str().as_bytes();
    let bare = bytes.iter().rposition(|b| *b != b'/').map_or(&b""[..], |end| &bytes[..=end]);
    match bare.rsplit(|b| *b == b'/').next().unwrap_or_default() {
        b"" | b"." | b".." => None,
        name => Some(OsStr::from_bytes(name).to_owned()),
    }
}

/// Where a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goes {
    /// Into this directory under this name.
    Under(PathBuf, OsString),
    /// What is in the source, into this directory.
    Into(PathBuf),
}

/// Why there is no such copy: a fragment about the destination.
type Refusal = &'static str;

/// The rules of cp(1): `name` is the source's own, `is_dir` whether it is a directory, `to_dir` whether the destination is.
fn goes(name: Option<&OsStr>, is_dir: bool, to: &Path, to_dir: bool, several: bool) -> Result<Goes, Refusal> {
    if to_dir {
        return Ok(match name {
            Some(name) => Goes::Under(to.to_owned(), name.to_owned()),
            None => Goes::Into(to.to_owned()),
        });
    }
    if several || (to.as_os_str().as_bytes().ends_with(b"/") && !is_dir) {
        return Err("is not a directory");
    }
    match (to.parent(), own_name(to)) {
        (Some(parent), Some(name)) => Ok(Goes::Under(parent.to_owned(), name)),
        _ => Err("is not a directory"),
    }
}

/// A failure in speaking to the node. One at our own end (nobody reads the tar any more) is not the node's.
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

async fn from_nodes(app: &App, from: &[OnNode], to: &Place) -> Result<()> {
    let Place::Local(to) = to else {
        let [one] = from else {
            return Err(Error::bad_input("several sources do not go into one tar on stdout"));
        };
        let client = remote::connect(&app.host, &one.cluster, &one.node)?;
        let stream = &mut tokio::io::stdout();
        return client.get_files(&one.path, stream).await.map(drop).map_err(failed("read files", one));
    };
    let local = app.context.absolute(to);
    let mut left_out = Ok(());
    for source in from {
        let client = remote::connect(&app.host, &source.cluster, &source.node)?;
        // Spooled, so that nothing half-made is left when the connection breaks.
        let mut spool = tokio::fs::File::from_std(spool(app)?);
        client.get_files(&source.path, &mut spool).await.map_err(failed("read files", source))?;
        let mut spool = spool.into_std().await;
        spool.seek(SeekFrom::Start(0))?;
        let done = unpack(spool, Path::new(&source.path), to, &local, from.len() > 1);
        if left_out.is_ok() {
            left_out = done?;
        }
    }
    left_out
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

/// Unpacks what a node sent of `source` at `to` (`local` as an absolute path). The inner error is of what was left out.
fn unpack(mut tar: File, source: &Path, to: &Path, local: &Path, several: bool) -> Result<Result<()>> {
    let refuse = |why: &str| Error::bad_input(format!("{} {why}", to.display()));
    if local.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return Err(refuse("is neither a file nor a directory; `-` writes a tar to standard output"));
    }
    let slash = to.as_os_str().as_bytes().ends_with(b"/");
    // `absolute` takes a slash at the end away.
    let shaped = if slash { local.join("") } else { local.to_owned() };
    let goes = goes(
        own_name(source).as_deref(),
        is_tree(&mut &tar).context("the node sent no tar")?,
        &shaped,
        local.is_dir(),
        several,
    );
    let (dir, top) = match goes.as_ref().map_err(|why| refuse(why))? {
        Goes::Under(dir, name) => (dir, Top::Renamed(name)),
        Goes::Into(dir) => (dir, Top::Removed),
    };
    tar.seek(SeekFrom::Start(0))?;
    let unpacked = Target::open(dir.clone()).and_then(|target| target.unpack(&mut tar, top));
    match unpacked {
        Ok(()) => Ok(Ok(())),
        Err(e @ UnpackError::Target { .. }) => Err(Error::bad_input(stead_os::chain(&e))),
        Err(e @ UnpackError::Skipped { .. }) => Ok(Err(Error::failed(stead_os::chain(&e)))),
        Err(e) => Err(Error::failed(stead_os::chain(&e))),
    }
}

async fn to_node(app: &App, sources: &[Place], to: &OnNode) -> Result<()> {
    let client = remote::connect(&app.host, &to.cluster, &to.node)?;
    if let [Place::Stream] = sources {
        let put = client.put_files(&to.path, &mut tokio::io::stdin()).await;
        return put.map_err(failed("write files", to));
    }
    let to_dir = client.is_directory(&to.path).await.map_err(failed("look at the destination", to))?;
    let several = sources.len() > 1;
    let mut copies = Vec::new();
    for source in sources {
        let Place::Local(path) = source else {
            return Err(Error::bad_input("a tar on stdin is the only source"));
        };
        let shown = path.display();
        // `absolute` takes away what makes the kernel follow a link.
        let local = app.context.absolute(path);
        let local = if follows(path) { local.join(".") } else { local };
        let source = Source::find(local).named_by_user(format!("cannot read {shown}"))?;
        let goes = goes(own_name(path).as_deref(), source.is_dir(), Path::new(&to.path), to_dir, several)
            .map_err(|why| Error::bad_input(format!("{} {why} on {}", to.path, to.node)))?;
        copies.push((shown, source, goes));
    }
    // One tar for each directory: all copies of one command go into the same, unless there is one copy only.
    let mut spool = spool(app)?;
    let mut packer = Packer::new(&mut spool);
    let mut dir = PathBuf::from(&to.path);
    for (shown, source, goes) in &copies {
        let name = match goes {
            Goes::Under(parent, name) => {
                dir.clone_from(parent);
                name.as_os_str()
            }
            Goes::Into(_) => OsStr::new("."),
        };
        packer.add(source, name).context(format!("cannot read {shown}"))?;
    }
    packer.finish()?;
    spool.seek(SeekFrom::Start(0))?;
    put(&client, &dir, spool, to).await
}

async fn put(client: &Client, dir: &Path, spool: File, to: &OnNode) -> Result<()> {
    // Both came from an argument, which is text.
    let dir = dir.to_string_lossy();
    client.put_files(&dir, &mut tokio::fs::File::from_std(spool)).await.map_err(failed("write files", to))
}

/// Whether a path means what a link at its end leads to: it ends in `/`, `.` or `..`.
fn follows(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/") || own_name(path).is_none()
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

    /// The table of cp(1): `-` stands for a refusal.
    #[test]
    fn arguments_mean_what_they_mean_to_cp() {
        for (source, is_dir, to, to_dir, several, want) in [
            ("/a/f", false, "/d", true, false, "/d f"),
            ("/a/f", false, "/d/", true, false, "/d/ f"),
            ("/a/f", false, "/d/new", false, false, "/d new"),
            ("/a/f", false, "/d/new/", false, false, "-"),
            ("/a/f", false, "/d", true, true, "/d f"),
            ("/a/f", false, "/d/new", false, true, "-"),
            ("/a/t", true, "/d", true, false, "/d t"),
            ("/a/t/", true, "/d", true, false, "/d t"),
            ("/a/t", true, "/d/new", false, false, "/d new"),
            ("/a/t", true, "/d/new/", false, false, "/d new"),
            ("/a/t/.", true, "/d", true, false, "/d *"),
            ("/a/t/.", true, "/d/new", false, false, "/d new"),
            (".", true, "/d", true, false, "/d *"),
            ("..", true, "/d", true, false, "/d *"),
            ("/", true, "/d", true, false, "/d *"),
            ("/a/f", false, "/", true, false, "/ f"),
            ("/a/f", false, "/d/.", false, false, "-"),
            ("/a/f", false, "/new", false, false, "/ new"),
        ] {
            let got =
                match goes(own_name(Path::new(source)).as_deref(), is_dir, Path::new(to), to_dir, several) {
                    Ok(Goes::Under(dir, name)) => format!("{} {}", dir.display(), name.display()),
                    Ok(Goes::Into(dir)) => format!("{} *", dir.display()),
                    Err(_) => "-".to_owned(),
                };
            assert_eq!(got, want, "{source} to {to}");
        }
    }
}
