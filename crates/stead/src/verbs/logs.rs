//! `stead logs` and `stead console`.

use crate::{cli, output};
use anyhow::Result;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write, stdout},
    process::ExitCode,
    time::Duration,
};
use stead_cluster::{ClusterError, Host, files, remote};

pub async fn logs(host: &Host, args: cli::Logs) -> Result<ExitCode> {
    let client = remote::connect(host, &args.cluster, &args.node)?;
    let node = remote::require_node(host, &args.cluster, &args.node)?;
    let error = |e| ClusterError::Agent { action: "read logs", node: node.clone(), source: Box::new(e) };
    let mut chunks =
        client.logs(Some(&args.service), Some(u64::from(args.tail)), args.follow).await.map_err(error)?;
    while let Some(bytes) = chunks.next_chunk().await.map_err(error)? {
        let mut out = stdout().lock();
        if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The console is a file on this host, so it can be read when the node does not answer.
pub async fn console(host: &Host, args: cli::Console) -> Result<ExitCode> {
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let node = remote::require_node(host, &args.cluster, &args.node)?;
    let path = host.layout(&args.cluster).node(&node).join("console.log");
    let text = files::tail(&path, args.tail as usize);
    if !text.is_empty() {
        output::print(&(text + "\n"))?;
    }
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut at = std::fs::metadata(&path).map_or(0, |m| m.len());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
        let Ok(mut file) = File::open(&path) else { continue };
        let size = file.metadata().map_or(0, |m| m.len());
        if size < at {
            at = 0; // rotated
        }
        if size > at {
            let mut more = Vec::new();
            file.seek(SeekFrom::Start(at))?;
            at += file.take(size - at).read_to_end(&mut more)? as u64;
            output::print(&String::from_utf8_lossy(&more))?;
        }
    }
}
