//! An XFS that somebody has mounted, in whatever namespace: how full it is, and making it grow, by asking the
//! kernel through any of its mounts.
//!
//! Invariant: a folder is used only after its open descriptor was seen to be on the wanted device, so whatever
//! is mounted over a mount point, or instead of it by now, is not touched. No descriptor is kept: it would be in
//! the way of who unmounts.
//!
//! Deliberately absent: mounting what is not mounted, growing the device, and growing the log, which stays as long
//! as it was made.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::iter;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

use super::KernelSys;
use super::block::{numbered, shape};
use super::dm::node;
use super::lanes::{self, blocking};
use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::Dm;
use crate::model::filesystem::Fill;
use crate::sys::Growth;
use crate::units::Bytes;

/// Every process, and so every mount namespace.
const PROCESSES: &str = "/proc";
/// What the kernel uses memory for.
pub(super) const MEMORY: &str = "/proc/meminfo";
/// What was written and has not reached a device: not begun, and under way.
const DIRTY: [&str; 2] = ["Dirty:", "Writeback:"];

/// `struct xfs_fsop_geom`, as far as it is of use here: 256 bytes.
#[repr(C)]
#[derive(Default)]
struct Geometry {
    block_bytes: u32,
    /// `rtextsize`, `agblocks`, `agcount`, `logblocks`, `sectsize`, `inodesize`.
    _sizes: [u32; 6],
    /// Per cent of the space that inodes may take: it is set together with the size.
    inodes_max_percent: u32,
    blocks: u64,
    _rest: [u64; 27],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct Wanted {
    blocks: u64,
    inodes_max_percent: u32,
}

mod ioctl {
    #![allow(missing_docs, unreachable_pub, reason = "the macros make them so")]
    use super::{Geometry, Wanted};
    use nix::{ioctl_read, ioctl_write_ptr};

    // `XFS_IOC_FSGEOMETRY` and `XFS_IOC_FSGROWFSDATA`.
    ioctl_read!(geometry, b'X', 126, Geometry);
    ioctl_write_ptr!(grow, b'X', 110, Wanted);
}

fn geometry(mount: &File) -> io::Result<Geometry> {
    let mut geometry = Geometry::default();
    // SAFETY: the descriptor is open while `mount` is borrowed, and the kernel writes one
    // `xfs_fsop_geom`, which `Geometry` is as long as, to a value of ours that outlives the call. A
    // filesystem of another type refuses the ioctl.
    unsafe { ioctl::geometry(mount.as_raw_fd(), &raw mut geometry) }?;
    Ok(geometry)
}

/// Grows what is mounted there to so many bytes; its size in the end. Blocking.
fn grow(mount: &File, bytes: u64) -> io::Result<Bytes> {
    let found = geometry(mount)?;
    let blocks = bytes / u64::from(found.block_bytes);
    // What is larger is not made smaller, and the kernel need not be asked for nothing.
    if found.blocks < blocks {
        let wanted = Wanted { blocks, inodes_max_percent: found.inodes_max_percent };
        // SAFETY: the descriptor is open while `mount` is borrowed, and the kernel reads one
        // `xfs_growfs_data`, which is what `Wanted` is, from a value of ours that outlives the call.
        unsafe { ioctl::grow(mount.as_raw_fd(), &raw const wanted) }?;
    }
    let grown = geometry(mount)?;
    Ok(Bytes(u128::from(grown.blocks) * u128::from(grown.block_bytes)))
}

/// How full what is mounted there is. Blocking.
fn fill(mount: &File) -> io::Result<Fill> {
    let found = geometry(mount)?;
    let files = fstatvfs(mount)?;
    let block = u128::from(files.fragment_size());
    let total = u128::from(files.blocks()) * block;
    Ok(Fill {
        size: Bytes(u128::from(found.blocks) * u128::from(found.block_bytes)),
        total: Bytes(total),
        used: Bytes(total.saturating_sub(u128::from(files.blocks_free()) * block)),
    })
}

/// Where a device is mounted, by what the kernel says of all mounts of a process.
fn mount_points(mounts: &[u8], device: DeviceNumber) -> impl Iterator<Item = PathBuf> {
    let number = format!("{}:{}", device.0, device.1);
    mounts.split(|byte| *byte == b'\n').filter_map(move |mount| {
        // The number of a mount, that of its parent, the device's, the root inside of it, the folder.
        let mut words = mount.split(|byte| *byte == b' ').skip(2);
        let found = words.next() == Some(number.as_bytes());
        words.nth(1).filter(|_| found).map(|folder| PathBuf::from(OsString::from_vec(unescaped(folder))))
    })
}

/// Blanks and backslashes are written as a backslash and three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut rest = word;
    let mut bytes = Vec::with_capacity(word.len());
    while let Some((first, behind)) = rest.split_first() {
        let digits = (*first == b'\\').then(|| behind.get(..3)).flatten();
        let code = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

/// Opens a folder if it is on this device. What cannot be opened, because it is no folder or gone, is not.
fn open_on(folder: &Path, device: DeviceNumber) -> Option<File> {
    let flags = libc::O_DIRECTORY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(folder).ok()?;
    let there = file.metadata().ok()?.dev();
    (numbered(there) == device).then_some(file)
}

/// Processes, this one first, of which each sees other mounts than those before. They are looked for one by one:
/// what this one sees is most often enough.
fn namespaces() -> io::Result<impl Iterator<Item = PathBuf>> {
    let mut seen = BTreeSet::new();
    let is_process = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
    let others = fs::read_dir(PROCESSES)?.flatten().map(|entry| entry.path()).filter(is_process);
    // A process that has ended in the meantime is not missed.
    let other =
        move |folder: &PathBuf| fs::read_link(folder.join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace));
    Ok(iter::once(Path::new(PROCESSES).join("self")).chain(others).filter(other))
}

/// Asks each mount of a device, until there is an answer. Blocking.
fn on_mounts<T>(device: DeviceNumber, mut ask: impl FnMut(&File) -> Option<T>) -> io::Result<Option<T>> {
    for process in namespaces()? {
        let Ok(mounts) = fs::read(process.join("mountinfo")) else { continue };
        for folder in mount_points(&mounts, device) {
            // Seen from that process: its root may be another, too.
            let seen = process.join("root").join(folder.strip_prefix("/").unwrap_or(&folder));
            let answer = open_on(&seen, device).and_then(|mount| ask(&mount));
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }
    Ok(None)
}

/// Grows what is on a device, through the first mount that allows it. Blocking.
fn grow_there(device: DeviceNumber) -> io::Result<Growth> {
    let bytes = u64::try_from(shape(&File::open(node(device))?)?.size.bytes().0).map_err(|_| Errno::EFBIG)?;
    let mut refused = None;
    let grown = on_mounts(device, |mount| match grow(mount, bytes) {
        // This mount is read-only; the filesystem may have others.
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            refused = Some(error);
            None
        }
        outcome => Some(outcome),
    })?;
    match grown {
        Some(outcome) => outcome.map(Growth::Mounted),
        None => refused.map_or(Ok(Growth::NotMounted), Err),
    }
}

/// Memory that is on its way to devices, by what the kernel says of all memory.
fn dirty(memory: &str) -> Option<Bytes> {
    let kib = |name: &str| -> Option<u128> {
        memory.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
    };
    DIRTY.into_iter().map(kib).sum::<Option<u128>>().map(|kib| Bytes(kib << 10))
}

impl KernelSys {
    pub(super) async fn grow_volume(&self, device: Dm) -> Result<Growth, Why> {
        let number = self.inner.mapper.number(device).await?;
        blocking(lanes::of(&self.inner.lanes.mounted, device.pool()), move || grow_there(number)).await
    }

    pub(super) async fn fill_of(&self, device: Dm) -> Result<Option<Fill>, Why> {
        if self.inner.mapper.open_count(device).await? == 0 {
            return Ok(None);
        }
        let number = self.inner.mapper.number(device).await?;
        let job = move || on_mounts(number, |mount| Some(fill(mount)))?.transpose();
        blocking(lanes::of(&self.inner.lanes.mounted, device.pool()), job).await
    }

    pub(super) async fn dirty_memory(&self) -> Result<Bytes, Why> {
        let memory = blocking(&self.inner.lanes.files, || fs::read_to_string(MEMORY)).await?;
        dirty(&memory).ok_or(Why::Data("it does not say how much is to be written"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernel_has_them() {
        assert_eq!((size_of::<Geometry>(), size_of::<Wanted>()), (256, 16));
    }

    #[test]
    fn mount_points_are_found_by_device_whatever_their_names() {
        let mounts = b"22 1 253:1 / / rw - ext4 /dev/vda1 rw\n\
                       41 22 253:7 / /mnt/a\\040b\\134\\011c rw shared:3 - xfs /dev/dm-7 rw\n\
                       42 22 253:70 / /mnt/b rw - xfs /dev/dm-70 rw\n\
                       43 22 253:7 /sub /mnt/\xff\\09 ro - xfs /dev/dm-7 rw\n";
        let found =
            |device| mount_points(mounts, device).map(|path| path.into_os_string().into_vec()).collect::<Vec<_>>();
        assert_eq!(found(DeviceNumber(253, 7)), [b"/mnt/a b\\\tc".to_vec(), b"/mnt/\xff\\09".to_vec()]);
        assert_eq!(found(DeviceNumber(253, 1)), [b"/".to_vec()]);
        assert_eq!(found(DeviceNumber(7, 253)), [b""; 0]);
    }

    #[test]
    fn what_is_on_its_way_to_devices_is_dirty_or_being_written() {
        let memory = "MemTotal:        4028044 kB\nDirty:               100 kB\nWriteback:            20 kB\n\
                      WritebackTmp:          7 kB\nDirtyOther: 9 kB\n";
        assert_eq!(dirty(memory), Some(Bytes(120 << 10)));
        assert_eq!(dirty("Dirty: 100 kB\n"), None);
        assert_eq!(dirty("Dirty: many kB\nWriteback: 1 kB\n"), None);
    }

    #[test]
    fn a_folder_on_another_device_is_not_taken() {
        let root = numbered(fs::metadata("/proc").expect("it is mounted").dev());
        assert!(open_on(Path::new("/proc"), root).is_some());
        assert!(open_on(Path::new("/proc"), DeviceNumber(root.0 + 1, root.1)).is_none());
        assert!(open_on(Path::new("/proc/version"), root).is_none(), "no folder");
    }
}
