//! QEMU's control protocol, as far as a qemu-storage-daemon is told to grow an image.

use super::DiskError;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// An answer is a line; the longest one here is the greeting.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Growing only writes metadata.
const PATIENCE: Duration = Duration::from_secs(60);

/// Grows the disk that the daemon behind `control` exports.
pub(super) fn grow(control: &Path, size_bytes: u64) -> Result<(), DiskError> {
    let failed = |e| DiskError::file("control the daemon at", control)(e);
    let stream = UnixStream::connect(control).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut reader = BufReader::new(stream.try_clone().map_err(failed)?);
    answer(&mut reader).map_err(failed)?; // the greeting
    let commands = [
        json!({"execute": "qmp_capabilities"}),
        json!({"execute": "block_resize", "arguments": {"node-name": "disk", "size": size_bytes}}),
    ];
    for command in commands {
        writeln!(&stream, "{command}").map_err(failed)?;
        loop {
            let said = answer(&mut reader).map_err(failed)?;
            if said.get("event").is_some() {
                continue;
            }
            if let Some(error) = said.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(DiskError::Unexpected(format!("the image cannot be grown: {why}")));
            }
            break;
        }
    }
    Ok(())
}

fn answer(reader: &mut impl BufRead) -> std::io::Result<Value> {
    let mut line = String::new();
    reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(std::io::Error::other)
}
