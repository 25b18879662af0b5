//! Packs root layers: a stream of checked entries goes into mksquashfs; the same entries give the same bytes.

use crate::{
    error::{ImageError, IoContext, Result},
    store::{Scratch, Store},
    tarball::{TarError, Writer},
    tools::{self, Invocation, MKSQUASHFS},
};
use std::{
    io::{self, BufWriter},
    path::Path,
    process::{ChildStdin, Stdio},
    thread,
};
use stead_model::Artifact;

/// Timestamp of everything in an image, 2025-01-01T00:00:00Z: some programs take zero for "unset". Images differ by
/// their digests, not by their times.
pub const EPOCH: u64 = 1_735_689_600;

/// zstd's level: 3 packs a 265 MB root in 3 s on two cores; higher levels take minutes to save a tenth of the size.
const ZSTD_LEVEL: &str = "3";

/// Arguments that pack a tar on standard input into `out`.
pub fn invocation(out: &Path) -> Invocation {
    let epoch = EPOCH.to_string();
    let args = [
        "-".into(),
        out.as_os_str().to_owned(),
        "-tar".into(),
        "-noappend".into(),
        "-comp".into(),
        "zstd".into(),
        "-Xcompression-level".into(),
        ZSTD_LEVEL.into(),
        "-all-time".into(),
        epoch.clone().into(),
        "-mkfs-time".into(),
        epoch.into(),
        // Defaults for what the tar does not state.
        "-root-mode".into(),
        "0755".into(),
        "-root-uid".into(),
        "0".into(),
        "-root-gid".into(),
        "0".into(),
        // Only NFS exports need the table.
        "-no-exports".into(),
        "-no-recovery".into(),
        "-no-progress".into(),
        "-quiet".into(),
    ];
    Invocation::new(MKSQUASHFS, args)
}

/// Packs the entries that `fill` writes, and puts the result into the store.
///
/// # Errors
/// Those of `fill`, or else those of mksquashfs.
pub(crate) fn pack(
    store: &Store,
    scratch: &Scratch,
    name: &str,
    fill: impl FnOnce(&mut Sink) -> Result<()>,
) -> Result<Artifact> {
    let out = scratch.path(&format!("{}.squashfs", name.replace(['/', ':'], "_")));
    let mut child = invocation(&out).spawn(Stdio::piped(), Stdio::null(), Stdio::piped())?;
    let stdin = child.stdin.take().expect("piped");
    let stderr = child.stderr.take().expect("piped");
    let reader = thread::spawn(move || tools::drain_lines(stderr, |_| ()));
    let mut sink = Writer::new(BufWriter::with_capacity(256 << 10, stdin), EPOCH, "");
    let filled = fill(&mut sink);
    let ended = match &filled {
        Ok(()) => sink.finish().map(drop),
        Err(_) => {
            // Nothing of a refused archive is kept, so mksquashfs need not finish it.
            let _ = child.kill();
            Ok(())
        }
    };
    let status = child.wait().at("wait for", MKSQUASHFS.name)?;
    let stderr = reader.join().unwrap_or_default();
    match filled {
        // A broken pipe only means that mksquashfs failed; its own message says why.
        Err(e) if !is_broken_pipe(&e) => return Err(e),
        _ => tools::check(MKSQUASHFS.name, status, &stderr)?,
    }
    ended.at("write to", MKSQUASHFS.name)?;
    store.adopt(&out)
}

fn is_broken_pipe(e: &ImageError) -> bool {
    let source = match e {
        ImageError::Io { source, .. } => source,
        ImageError::Archive { source: TarError::Write(source), .. } => source,
        _ => return false,
    };
    source.kind() == io::ErrorKind::BrokenPipe
}

/// Writer of entries into a squashfs.
pub type Sink = Writer<BufWriter<ChildStdin>>;
