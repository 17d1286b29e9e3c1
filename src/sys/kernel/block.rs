//! What the kernel says of a block device.
//!
//! Invariant: everything is read from one open descriptor, so it is of one device. Deliberately
//! absent: what lives on the device, and what udev knows of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};

use crate::model::device::{BlockSizes, DeviceNumber};
use crate::units::{SECTOR_BYTES, Sectors};

mod ioctl {
    #![allow(missing_docs, unreachable_pub, reason = "the macros make them so")]
    use libc::c_int;
    use nix::{ioctl_read, ioctl_read_bad, request_code_none};

    ioctl_read!(size_in_bytes, 0x12, 114, u64);
    ioctl_read_bad!(logical_block, request_code_none!(0x12, 104), c_int);
    ioctl_read_bad!(physical_block, request_code_none!(0x12, 123), c_int);
    ioctl_read_bad!(read_only, request_code_none!(0x12, 94), c_int);
}

/// What a block device is, whatever is on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    /// Its number.
    pub(super) number: DeviceNumber,
    /// Its length.
    pub(super) size: Sectors,
    /// Its block sizes.
    pub(super) blocks: BlockSizes,
    /// The kernel refuses to write to it.
    pub(super) read_only: bool,
}

/// Reads the shape of an open device; ENOTBLK for anything else.
pub(super) fn shape(file: &File) -> io::Result<Shape> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() {
        return Err(io::Error::from_raw_os_error(libc::ENOTBLK));
    }
    let fd = file.as_raw_fd();
    let mut bytes = 0;
    // SAFETY: the descriptor is open while `file` is borrowed, and BLKGETSIZE64 writes one u64 to
    // where it is told, which is a u64 of ours that outlives the call.
    unsafe { ioctl::size_in_bytes(fd, &raw mut bytes) }?;
    let blocks =
        BlockSizes { logical: positive(ioctl::logical_block, fd)?, physical: positive(ioctl::physical_block, fd)? };
    let read_only = number(ioctl::read_only, fd)? != 0;
    Ok(Shape { number: numbered(metadata.rdev()), size: Sectors(bytes / SECTOR_BYTES), blocks, read_only })
}

/// A device number as the kernel splits it.
pub(super) fn numbered(number: u64) -> DeviceNumber {
    DeviceNumber(major(number), minor(number))
}

// SAFETY: this is a type only. `number` is the one place that calls such a function, and says why it may.
type Ask = unsafe fn(RawFd, *mut libc::c_int) -> nix::Result<libc::c_int>;

/// Asks for one number of a device.
fn number(ask: Ask, fd: RawFd) -> io::Result<libc::c_int> {
    let mut answer = 0;
    // SAFETY: every caller passes one of the ioctls above that write one int, and a descriptor that it
    // holds open; the int is ours and outlives the call.
    unsafe { ask(fd, &raw mut answer) }?;
    Ok(answer)
}

/// Asks for a number that cannot be zero or less on any device.
fn positive(ask: Ask, fd: RawFd) -> io::Result<u32> {
    let answer = u32::try_from(number(ask, fd)?).ok().filter(|answer| *answer > 0);
    answer.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}
