//! Claims of cluster names on this machine. Network namespaces and cgroups are named after the cluster, not after its
//! state directory: two state directories with clusters of the same name would destroy each other's machines.
//!
//! Owns `/run/stead/clusters/NAME`, which contains the directory of the cluster with that name. A claim ends with
//! `down` and with a reboot, like everything it protects. A claim of a cluster that no longer exists is ignored.

use crate::{ClusterError, Layout, files};
use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Beside `/run/netns`, which it guards.
const CLAIMS: &str = "/run/stead/clusters";

/// Refuses a name that a cluster in another state directory has claimed.
///
/// # Errors
/// [`ClusterError::NameTaken`].
pub(crate) fn check(layout: &Layout) -> Result<(), ClusterError> {
    check_in(Path::new(CLAIMS), layout)
}

/// Claims the name for this cluster.
///
/// # Errors
/// [`ClusterError::NameTaken`], or the claim cannot be written.
pub(crate) fn take(layout: &Layout) -> Result<(), ClusterError> {
    take_in(Path::new(CLAIMS), layout)
}

/// Releases the name, if this cluster has claimed it.
pub(crate) fn release(layout: &Layout) {
    release_in(Path::new(CLAIMS), layout);
}

/// The cluster directory that the claim names.
fn holder(claims: &Path, layout: &Layout) -> Option<PathBuf> {
    let said = fs::read(claims.join(layout.cluster().as_str())).ok()?;
    Some(Path::new(OsStr::from_bytes(&said)).to_owned())
}

/// The directory's canonical path.
fn real(dir: &Path) -> PathBuf {
    fs::canonicalize(dir).or_else(|_| std::path::absolute(dir)).unwrap_or_else(|_| dir.to_owned())
}

fn check_in(claims: &Path, layout: &Layout) -> Result<(), ClusterError> {
    match holder(claims, layout) {
        Some(dir) if real(&dir) != real(&layout.dir()) && dir.is_dir() => {
            Err(ClusterError::NameTaken {
                cluster: layout.cluster().clone(),
                // <state>/clusters/<name>
                state_dir: dir.ancestors().nth(2).unwrap_or(&dir).to_owned(),
            })
        }
        _ => Ok(()),
    }
}

fn take_in(claims: &Path, layout: &Layout) -> Result<(), ClusterError> {
    files::private_dir(claims)?;
    // Simultaneous claims take turns.
    let _turn = files::wait_lock(&claims.join(".lock"))?;
    check_in(claims, layout)?;
    // The directory must exist to have a canonical path.
    files::private_dir(&layout.dir())?;
    files::write(&claims.join(layout.cluster().as_str()), real(&layout.dir()).as_os_str().as_bytes())
        .map(drop)
}

fn release_in(claims: &Path, layout: &Layout) {
    if holder(claims, layout).is_some_and(|dir| dir == real(&layout.dir())) {
        let _: io::Result<()> = fs::remove_file(claims.join(layout.cluster().as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::Failure;

    fn layout(state_dir: &Path) -> Layout {
        Layout::new(state_dir, &"demo".parse().unwrap())
    }

    #[test]
    fn only_one_state_directory_has_a_name_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        let claims = tmp.path().join("claims");
        let (one, two) = (layout(&tmp.path().join("one")), layout(&tmp.path().join("two")));
        check_in(&claims, &two).unwrap();
        take_in(&claims, &one).unwrap();
        let error = take_in(&claims, &two).unwrap_err();
        assert!(error.is_bad_input());
        let text = format!("{error}; {}", error.hint().unwrap());
        assert!(text.contains(&tmp.path().join("one").display().to_string()), "{text}");
        // Its own claim is no obstacle, through any path.
        std::os::unix::fs::symlink(tmp.path().join("one"), tmp.path().join("link")).unwrap();
        take_in(&claims, &layout(&tmp.path().join("link"))).unwrap();
        // Another's claim is not released.
        release_in(&claims, &two);
        assert!(check_in(&claims, &two).is_err());
        release_in(&claims, &one);
        take_in(&claims, &two).unwrap();
    }

    #[test]
    fn a_claim_of_a_removed_cluster_is_ignored() {
        let tmp = tempfile::tempdir().unwrap();
        let claims = tmp.path().join("claims");
        let (one, two) = (layout(&tmp.path().join("one")), layout(&tmp.path().join("two")));
        take_in(&claims, &one).unwrap();
        fs::remove_dir_all(tmp.path().join("one")).unwrap();
        take_in(&claims, &two).unwrap();
        assert!(holder(&claims, &one).unwrap().ends_with("two/clusters/demo"));
    }
}
