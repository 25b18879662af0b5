//! The last map of user ids of an instance's root filesystem, kept beside its disks: the files there have shifted
//! owners, which a recreated instance would shift a second time.
//!
//! File name and format are those of OpenNebula's own driver, so its VMs can be taken over unchanged.

use super::DiskError;
use std::{fs, io::Read, path::Path};
use stead_os::{PathContext, PathError};

/// The file in the VM's directory.
const FILE: &str = "idmaps.lxd";
/// Largest file read: a map has a few hundred bytes.
const MAX_BYTES: u64 = 64 << 10;

/// The map kept in a VM's directory.
///
/// # Errors
/// It exists but cannot be read.
pub fn load(vm_directory: &Path) -> Result<Option<String>, DiskError> {
    let path = vm_directory.join(FILE);
    let mut text = String::new();
    match fs::File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(PathError::new("open", &path)(e).into()),
        Ok(file) => {
            file.take(MAX_BYTES).read_to_string(&mut text).at("read", &path)?;
        }
    }
    Ok(parse(&text))
}

/// Parses the file; `None` unless the map is the engines' JSON.
fn parse(text: &str) -> Option<String> {
    let yaml: serde_json::Map<String, serde_json::Value> = serde_saphyr::from_str(text).ok()?;
    let map = yaml.get(":last_state_idmap")?.as_str()?.to_owned();
    serde_json::from_str::<Vec<serde_json::Value>>(&map).is_ok().then_some(map)
}

/// Saves a map.
///
/// # Errors
/// It cannot be written.
pub fn save(vm_directory: &Path, map: &str) -> Result<(), DiskError> {
    let path = vm_directory.join(FILE);
    let beside = vm_directory.join(".idmaps.lxd.new");
    let text = format!("---\n:last_state_idmap: '{}'\n", map.replace('\'', "''"));
    Ok(fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path)).at("write", path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let map = r#"[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":1000000000}]"#;
        save(dir.path(), map).unwrap();
        assert_eq!(load(dir.path()).unwrap().as_deref(), Some(map));
        fs::write(dir.path().join(FILE), "---\n:last_state_idmap: \n").unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
    }
}
