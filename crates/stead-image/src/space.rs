//! Checks for free space before the work, so that it does not fail at its end.

use crate::error::{ImageError, IoContext, Result};
use std::path::Path;
use stead_model::Bytes;

/// Always left free, in bytes: a full disk harms more than the build.
const RESERVE: u64 = 64 << 20;

/// Refuses when the filesystem of `dir` has less than `needed` bytes, plus a reserve, available.
///
/// # Errors
/// [`ImageError::Space`].
pub fn check(dir: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).at("look at", dir)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = needed.saturating_add(RESERVE);
    if free >= needed {
        return Ok(());
    }
    // In whole MiB, for readability.
    let mib = |b: u64| Bytes(b >> 20 << 20);
    Err(ImageError::Space { path: dir.to_owned(), free: mib(free), needed: mib(needed) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Failure;

    #[test]
    fn asks_the_file_system() {
        let dir = std::env::temp_dir();
        check(&dir, 0).unwrap();
        let e = check(&dir, 1 << 60).unwrap_err();
        assert!(matches!(e, ImageError::Space { .. }) && !e.is_bad_input(), "{e}");
    }
}
