//! `/etc/fstab` of an image with partitions: which partition is mounted where.

use std::path::PathBuf;
use stead_os::mountinfo;

/// Longest fstab that is read.
pub const MAX_BYTES: usize = 64 << 10;
/// Most entries: more than any disk has partitions.
const MAX_ENTRIES: usize = 128;

/// How an entry names its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// `LABEL=`.
    Label(String),
    /// `UUID=`.
    Uuid(String),
    /// `PARTUUID=`.
    PartUuid(String),
}

/// An entry for a filesystem of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its device.
    pub tag: Tag,
    /// Its mount point, below root, without `..`.
    pub at: PathBuf,
}

/// The entries that name a device by tag, except swap and root, in an order in which they can be mounted.
pub fn parse(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = text.lines().filter_map(entry).take(MAX_ENTRIES).collect();
    // Parents come first; otherwise in the order of the file.
    entries.sort_by_key(|e| e.at.components().count());
    entries
}

fn entry(line: &str) -> Option<Entry> {
    let mut fields = line.split_whitespace();
    let (device, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
    if device.starts_with('#') || kind == "swap" {
        return None;
    }
    let (name, value) = device.split_once('=')?;
    let value = value.trim_matches('"').to_owned();
    let tag = match name {
        "LABEL" => Tag::Label(value),
        "UUID" => Tag::Uuid(value),
        "PARTUUID" => Tag::PartUuid(value),
        _ => return None,
    };
    // fstab uses the escapes of the kernel's tables.
    let at = String::from_utf8(mountinfo::unescape(at.as_bytes())).ok()?;
    let at = crate::ids::path("", &at).ok()?;
    at.parent()?;
    Some(Entry { tag, at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ordinary_one() {
        let text = "# /etc/fstab\nUUID=aa / ext4 errors=remount-ro 0 1\nLABEL=esp /boot/efi vfat umask=0077 0 1\n\
                    PARTUUID=\"bb-02\" /boot ext4 defaults 0 2\nUUID=cc none swap sw 0 0\n/dev/sr0 /media/cdrom0 iso9660 ro 0 0\n\
                    tmpfs /tmp tmpfs defaults 0 0\nLABEL=x ../climb ext4 defaults\nLABEL=y /a/../../b ext4 defaults\n";
        let found = parse(text);
        assert_eq!(
            found,
            [
                Entry { tag: Tag::PartUuid("bb-02".into()), at: "/boot".into() },
                Entry { tag: Tag::Label("esp".into()), at: "/boot/efi".into() },
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_climbs(text in "(LABEL|UUID)=[a-z]{0,3}[ \t]+[/.a-z\\\\0-9]{0,20} ext4[ \n]{0,3}") {
            for entry in parse(&text) {
                assert!(entry.at.is_absolute() && !entry.at.components().any(|c| c.as_os_str() == ".."));
            }
        }
    }
}
