//! The ioctls of loop devices (linux/loop.h), each with its argument type.
#![allow(unsafe_code)]

use rustix::{
    io::Result,
    ioctl::{Getter, IntegerSetter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl},
};
use std::{
    fs::File,
    os::fd::{AsRawFd, BorrowedFd},
};

const LOOP_SET_FD: Opcode = 0x4C00;
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_SET_STATUS64: Opcode = 0x4C04;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_SET_DIRECT_IO: Opcode = 0x4C08;
/// Linux 5.8 and later.
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

/// The device is read-only.
pub(super) const READ_ONLY: u32 = 1;
/// Detach once nothing uses the device.
pub(super) const AUTOCLEAR: u32 = 4;
/// Have the kernel look for partitions.
pub(super) const PARTITION_SCAN: u32 = 8;
/// Bypass the page cache of the file's filesystem.
pub(super) const DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Debug, Clone)]
pub(super) struct Info {
    pub device: u64,
    pub inode: u64,
    pub rdevice: u64,
    pub offset: u64,
    pub size_limit: u64,
    pub number: u32,
    pub encrypt_type: u32,
    pub encrypt_key_size: u32,
    pub flags: u32,
    pub file_name: [u8; 64],
    pub crypt_name: [u8; 64],
    pub encrypt_key: [u8; 32],
    pub init: [u64; 2],
}

impl Info {
    /// A request; the kernel fills in the other fields.
    pub(super) fn wanted(offset: u64, size_limit: u64, flags: u32, name: &[u8]) -> Self {
        let mut file_name = [0; 64];
        // The last byte stays NUL.
        let shown = name.len().min(63);
        file_name[..shown].copy_from_slice(&name[..shown]);
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset,
            size_limit,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<Config>() == 304 && size_of::<Info>() == 232);

struct GetFree;
// SAFETY: LOOP_CTL_GET_FREE takes no argument and returns the number of a device.
unsafe impl Ioctl for GetFree {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }
    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> Result<Self::Output> {
        Ok(out)
    }
}

/// The number of a device that nothing is attached to; the kernel makes one when there is none.
pub(super) fn free_number(control: &File) -> Result<u32> {
    // SAFETY: the ioctl takes no argument; files other than the control device refuse it.
    unsafe { ioctl(control, GetFree) }.map(|n| n as u32)
}

/// Attaches `backing` in one step. `EINVAL` from a kernel before 5.8.
pub(super) fn configure(device: &File, backing: BorrowedFd<'_>, info: &Info) -> Result<()> {
    let config =
        Config { fd: backing.as_raw_fd() as u32, block_size: 0, info: info.clone(), reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout is asserted above.
    unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, Config>::new(config)) }
}

/// Attaches the whole of `backing`.
pub(super) fn set_fd(device: &File, backing: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: LOOP_SET_FD takes a descriptor as its argument.
    unsafe { ioctl(device, IntegerSetter::<LOOP_SET_FD>::new_usize(backing.as_raw_fd() as usize)) }
}

/// Sets offset, limit and flags of an attached device.
pub(super) fn set_status(device: &File, info: &Info) -> Result<()> {
    // SAFETY: LOOP_SET_STATUS64 reads one `struct loop_info64`, whose layout is asserted above.
    unsafe { ioctl(device, Setter::<LOOP_SET_STATUS64, Info>::new(info.clone())) }
}

/// What is attached; `ENXIO` when nothing is.
pub(super) fn status(device: &File) -> Result<Info> {
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, whose layout is asserted above; any bytes are one.
    unsafe { ioctl(device, Getter::<LOOP_GET_STATUS64, Info>::new()) }
}

/// Turns direct I/O on or off; `EINVAL` when the file's filesystem has none.
pub(super) fn set_direct_io(device: &File, on: bool) -> Result<()> {
    // SAFETY: LOOP_SET_DIRECT_IO takes a number as its argument.
    unsafe { ioctl(device, IntegerSetter::<LOOP_SET_DIRECT_IO>::new_usize(usize::from(on))) }
}

/// Detaches now or, while others have the device open, when the last of them closes it.
pub(super) fn clear(device: &File) -> Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    unsafe { ioctl(device, NoArg::<LOOP_CLR_FD>::new()) }
}

/// Sets the device's size to the file's present size.
pub(super) fn set_capacity(device: &File) -> Result<()> {
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    unsafe { ioctl(device, NoArg::<LOOP_SET_CAPACITY>::new()) }
}
