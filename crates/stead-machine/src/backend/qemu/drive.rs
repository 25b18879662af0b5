//! The drive a VM finds its spec on: a plain tar.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};
use stead_model::node::VmBoot;

/// A block device has whole sectors, bytes.
const SECTOR: usize = 512;

/// A tar of the regular files in `spec_dir`, readable by root only, and `boot`. The same input gives the same bytes.
pub(crate) fn spec_tar(spec_dir: &Path, boot: VmBoot) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut files: Vec<_> = fs::read_dir(spec_dir)?
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_file()))
        .map(|e| (e.file_name(), e.path()))
        .filter(|(name, _)| !name.to_string_lossy().starts_with('.'))
        .collect();
    files.sort();
    for (name, path) in files {
        let mut content = Vec::new();
        io::copy(&mut File::open(&path)?, &mut content)?;
        add(&mut tar, Path::new(&name), &content)?;
    }
    add(&mut tar, Path::new(VmBoot::FILE), &serde_json::to_vec(&boot)?)?;
    let mut out = tar.into_inner()?;
    let padding = out.len().next_multiple_of(SECTOR) - out.len();
    out.write_all(&vec![0; padding])?;
    Ok(out)
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &Path, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(0);
    tar.append_data(&mut header, name, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_spec_and_how_to_boot() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node.json"), "{}").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let boot = VmBoot { layers: 3 };
        let bytes = spec_tar(dir.path(), boot).unwrap();
        assert_eq!(bytes.len() % SECTOR, 0);
        assert_eq!(bytes, spec_tar(dir.path(), boot).unwrap());
        let mut seen = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).unwrap();
            seen.push((entry.path().unwrap().display().to_string(), entry.header().mode().unwrap(), text));
        }
        assert_eq!(
            seen,
            [
                ("node.json".to_owned(), 0o600, "{}".to_owned()),
                ("boot.json".to_owned(), 0o600, serde_json::to_string(&boot).unwrap()),
            ]
        );
    }
}
