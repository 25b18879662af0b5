//! Disks, network interfaces, PCI devices, context and console of a VM's document.

use super::{DocumentError, xml::Element};
use crate::ids::{self, DatastoreId, DiskId, IdError, NicId, VmId};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// DISK_TYPE and TYPE: the location of a disk's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// A file in the VM's directory, or a link there to one in an image datastore.
    File,
    /// A block device (LVM) that the file in the VM's directory is a link to.
    Block,
    /// An image of a Ceph pool.
    Rbd {
        /// `pool/image`, with the suffixes of a clone or a volatile disk.
        image: String,
        /// CEPH_USER.
        user: Option<String>,
        /// CEPH_CONF; `None`: Ceph's default.
        conf: Option<PathBuf>,
    },
}

/// Directory of Ceph's configuration. It can name libraries to load, so only files written by root are used, whatever a
/// document says.
const CEPH_DIRECTORY: &str = "/etc/ceph";

/// Format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// Raw bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// TYPE of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// TYPE=fs: empty for this VM; gets a filesystem at the first deploy.
    Volatile,
    /// TYPE=swap: a container cannot use it.
    Swap,
    /// An image.
    Image,
}

/// I/O limits of a disk; `None` means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskLimits {
    /// TOTAL_BYTES_SEC.
    pub total_bytes: Option<u64>,
    /// TOTAL_IOPS_SEC.
    pub total_iops: Option<u64>,
    /// READ_BYTES_SEC.
    pub read_bytes: Option<u64>,
    /// WRITE_BYTES_SEC.
    pub write_bytes: Option<u64>,
    /// READ_IOPS_SEC.
    pub read_iops: Option<u64>,
    /// WRITE_IOPS_SEC.
    pub write_iops: Option<u64>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// DISK_ID.
    pub id: DiskId,
    /// Location of its bytes.
    pub kind: DiskKind,
    /// Its role.
    pub role: Role,
    /// FORMAT, otherwise DRIVER: the file's format. A guest can write a qcow2 header to the start of its own raw disk,
    /// so the file is probed only if the document names no format.
    pub format: Option<ImageFormat>,
    /// TARGET, if it is a path in the instance.
    pub target: Option<PathBuf>,
    /// READONLY.
    pub readonly: bool,
    /// CACHE, for qcow2: `none`, `writeback`, …
    pub cache: Option<String>,
    /// FS: the filesystem of a volatile disk.
    pub filesystem: Option<String>,
    /// Whether SIZE is larger than ORIGINAL_SIZE: then the filesystem is grown to the disk.
    pub grow: bool,
    /// SIZE.
    pub size_mib: Option<u64>,
    /// DATASTORE_ID: its image datastore.
    pub datastore: Option<DatastoreId>,
    /// Name of its image's file in that datastore: the last part of SOURCE.
    pub image: Option<String>,
    /// I/O limits.
    pub limits: DiskLimits,
    /// ATTACH=YES: the disk of attach_disk and detach_disk.
    pub attach: bool,
}

impl Disk {
    pub(super) fn of(vm: VmId, disk: Element<'_>) -> Result<Self, DocumentError> {
        let id: DiskId = disk.value("DISK_ID")?.ok_or(DocumentError::Missing("DISK/DISK_ID"))?;
        let role = match disk.text("TYPE").unwrap_or_default().to_ascii_lowercase().as_str() {
            "fs" => Role::Volatile,
            "swap" => Role::Swap,
            _ => Role::Image,
        };
        let format = match disk.text("FORMAT").or_else(|| disk.text("DRIVER")) {
            None => None,
            Some(text) => match text.to_ascii_lowercase().as_str() {
                "raw" => Some(ImageFormat::Raw),
                "qcow2" => Some(ImageFormat::Qcow2),
                _ => return Err(IdError::new("the disk's FORMAT", &text, "raw or qcow2").into()),
            },
        };
        let (size, original) = (disk.number("SIZE")?, disk.number("ORIGINAL_SIZE")?);
        Ok(Self {
            id,
            kind: kind(vm, id, role, disk)?,
            role,
            format,
            target: target(disk)?,
            readonly: disk.is_yes("READONLY") || disk.text("DISK_TYPE").is_some_and(|t| t.ends_with("CDROM")),
            cache: word(disk, "CACHE")?,
            filesystem: word(disk, "FS")?,
            grow: matches!((size, original), (Some(size), Some(original)) if size > original),
            size_mib: size,
            datastore: disk.value("DATASTORE_ID")?,
            image: disk.text("SOURCE").and_then(|s| Some(PathBuf::from(s).file_name()?.to_str()?.to_owned())),
            limits: DiskLimits {
                total_bytes: disk.number("TOTAL_BYTES_SEC")?,
                total_iops: disk.number("TOTAL_IOPS_SEC")?,
                read_bytes: disk.number("READ_BYTES_SEC")?,
                write_bytes: disk.number("WRITE_BYTES_SEC")?,
                read_iops: disk.number("READ_IOPS_SEC")?,
                write_iops: disk.number("WRITE_IOPS_SEC")?,
            },
            attach: disk.is_yes("ATTACH"),
        })
    }
    /// TYPE=swap.
    pub fn is_swap(&self) -> bool {
        self.role == Role::Swap
    }
}

fn kind(vm: VmId, id: DiskId, role: Role, disk: Element<'_>) -> Result<DiskKind, DocumentError> {
    let text = disk.text("DISK_TYPE").unwrap_or_default();
    match text.to_ascii_uppercase().as_str() {
        "" | "FILE" | "CDROM" => Ok(DiskKind::File),
        "BLOCK" => Ok(DiskKind::Block),
        "RBD" | "RBD_CDROM" => {
            let image = if role == Role::Volatile {
                let pool = disk.text("POOL_NAME").ok_or(DocumentError::Missing("DISK/POOL_NAME"))?;
                format!("{pool}/one-sys-{vm}-{id}")
            } else {
                let source = disk.text("SOURCE").ok_or(DocumentError::Missing("DISK/SOURCE"))?;
                if disk.is_yes("CLONE") { format!("{source}-{vm}-{id}") } else { source }
            };
            // An argument of rbd-nbd: `pool/image`, or `pool/namespace/image`.
            let allowed = image.len() <= 200
                && !image.starts_with('-')
                && image.split('/').all(|part| !part.is_empty())
                && image.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_.-".contains(&b));
            if !allowed {
                return Err(IdError::new("DISK/SOURCE", &image, "pool/image").into());
            }
            let user = disk.text("CEPH_USER");
            if let Some(bad) = user.as_ref().filter(|u| {
                u.starts_with('-') || !u.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            }) {
                return Err(IdError::new("CEPH_USER", bad, "a user of Ceph").into());
            }
            let conf = disk.text("CEPH_CONF").map(|text| {
                let path = ids::path("CEPH_CONF", &text)?;
                if path.parent() == Some(Path::new(CEPH_DIRECTORY)) {
                    Ok::<_, DocumentError>(path)
                } else {
                    Err(IdError::new("CEPH_CONF", &text, "a file in /etc/ceph").into())
                }
            });
            Ok(DiskKind::Rbd { image, user, conf: conf.transpose()? })
        }
        _ => Err(IdError::new("DISK_TYPE", &text, "FILE, CDROM, BLOCK or RBD").into()),
    }
}

/// Mounted by the instance itself: a disk must not take their place.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// TARGET as a path in the instance. `vdb` and the like have no meaning in a container.
fn target(disk: Element<'_>) -> Result<Option<PathBuf>, DocumentError> {
    let Some(text) = disk.text("TARGET").filter(|t| t.starts_with('/')) else { return Ok(None) };
    let path = ids::path("TARGET", &text)?;
    let is_kernels = KERNELS.iter().any(|k| path.starts_with(k));
    if path.parent().is_none() || is_kernels {
        return Err(
            IdError::new("TARGET", &text, "a path that is not /, and not in /proc, /sys or /dev").into()
        );
    }
    Ok(Some(path))
}

/// A word of letters and digits, for use as an argument of a program.
fn word(element: Element<'_>, name: &'static str) -> Result<Option<String>, DocumentError> {
    let Some(text) = element.text(name) else { return Ok(None) };
    if text.len() > 32 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(IdError::new(name, &text, "a word of letters and digits").into());
    }
    Ok(Some(text))
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// NIC_ID.
    pub id: NicId,
    /// MAC.
    pub mac: Option<String>,
    /// BRIDGE.
    pub bridge: Option<String>,
    /// TARGET: the interface's name on the host.
    pub target: Option<String>,
    /// INBOUND_AVG_BW, in units of 1000 bytes a second.
    pub inbound_kbytes: Option<u64>,
    /// OUTBOUND_AVG_BW, in units of 1000 bytes a second.
    pub outbound_kbytes: Option<u64>,
    /// Whether VN_MAD is one of the Open vSwitch drivers, whose ports outlive the interface.
    pub open_vswitch: bool,
}

impl Nic {
    pub(super) fn of(nic: Element<'_>) -> Result<Self, DocumentError> {
        Ok(Self {
            id: nic.value("NIC_ID")?.ok_or(DocumentError::Missing("NIC/NIC_ID"))?,
            mac: nic.text("MAC").map(mac).transpose()?,
            bridge: interface(nic, "BRIDGE")?,
            target: interface(nic, "TARGET")?,
            inbound_kbytes: nic.number("INBOUND_AVG_BW")?,
            outbound_kbytes: nic.number("OUTBOUND_AVG_BW")?,
            open_vswitch: nic.text("VN_MAD").is_some_and(|m| m.contains("ovswitch")),
        })
    }
    /// Its name in the instance, and the name of its device.
    pub fn name(&self) -> String {
        format!("eth{}", self.id)
    }
}

/// A hardware address in the form that the engines accept.
pub(crate) fn mac(text: String) -> Result<String, IdError> {
    let parts: Vec<&str> = text.split(':').collect();
    let hexadecimal = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(hexadecimal) {
        return Err(IdError::new("MAC", &text, "a hardware address"));
    }
    Ok(text.to_ascii_lowercase())
}

/// A network interface's name that the kernel allows.
fn interface(nic: Element<'_>, name: &'static str) -> Result<Option<String>, DocumentError> {
    let Some(text) = nic.text(name) else { return Ok(None) };
    // 15 is the kernel's limit (IFNAMSIZ without the terminator).
    let allowed = text.len() <= 15
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.starts_with(['-', '.']);
    if !allowed {
        return Err(IdError::new(name, &text, "an interface's name").into());
    }
    Ok(Some(text))
}

/// A PCI device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pci {
    /// `0000:01:00.0`.
    pub address: String,
    /// CLASS, hexadecimal: `0300` is a display controller.
    pub class: Option<String>,
}

impl Pci {
    pub(super) fn of(pci: Element<'_>) -> Result<Self, DocumentError> {
        let text = pci.text("ADDRESS").ok_or(DocumentError::Missing("PCI/ADDRESS"))?;
        // OpenNebula writes `0000:01:00:0`, with a colon before the function.
        let parts: Vec<&str> = text.split([':', '.']).collect();
        let widths = [4, 2, 2, 1];
        let is_address = parts.len() == 4
            && parts
                .iter()
                .zip(widths)
                .all(|(p, width)| p.len() == width && p.bytes().all(|b| b.is_ascii_hexdigit()));
        if !is_address {
            return Err(IdError::new("PCI/ADDRESS", &text, "a PCI address such as 0000:01:00.0").into());
        }
        let address = format!("{}:{}:{}.{}", parts[0], parts[1], parts[2], parts[3]).to_ascii_lowercase();
        Ok(Self { address, class: word(pci, "CLASS")? })
    }
}

/// The context disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Context {
    /// Its DISK_ID.
    pub disk: DiskId,
}

impl Context {
    /// A CONTEXT without a DISK_ID has no disk.
    pub(super) fn of(context: Element<'_>) -> Result<Option<Self>, DocumentError> {
        Ok(context.value("DISK_ID")?.map(|disk| Self { disk }))
    }
}

/// The console: GRAPHICS of type vnc.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Graphics {
    /// LISTEN; `None`: all addresses.
    pub listen: Option<std::net::IpAddr>,
    /// PORT.
    pub port: u16,
    /// PASSWD. A secret.
    #[serde(skip)]
    pub password: Option<String>,
    /// COMMAND, which replaces the configured one.
    pub command: Option<String>,
}

impl std::fmt::Debug for Graphics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graphics")
            .field("listen", &self.listen)
            .field("port", &self.port)
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

impl Graphics {
    /// `None` without a port: OpenNebula assigns it when it deploys.
    pub(super) fn of(graphics: Element<'_>) -> Result<Option<Self>, DocumentError> {
        let Some(port) = graphics.text("PORT") else { return Ok(None) };
        let port: u16 = match port.parse() {
            Ok(0) | Err(_) => {
                return Err(IdError::new("GRAPHICS/PORT", &port, "a port from 1 to 65535").into());
            }
            Ok(port) => port,
        };
        let listen = graphics.text("LISTEN");
        let listen = listen
            .map(|l| l.parse().map_err(|_| IdError::new("GRAPHICS/LISTEN", &l, "an address")))
            .transpose()?;
        Ok(Some(Self { listen, port, password: graphics.text("PASSWD"), command: graphics.text("COMMAND") }))
    }
}
