//! Thin volumes as sparse files. Blocking; runs on a lane.
//!
//! Invariant: a file is never made shorter. The host gives out blocks as they are written, and when
//! it has none left, its ENOSPC comes through as it is.
//!
//! Deliberately absent: a limit on the sum of the volumes, and freezing what is mounted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::devices::bypass_cache;
use super::root::{Locked, make_folder, sync_folder};
use crate::units::{Bytes, Sectors};

/// What `st_blocks` counts in, whatever the host's blocks are.
const STAT_BLOCK_BYTES: u128 = 512;
/// Only root reads what users store.
const MODE: u32 = 0o600;
/// Where the kernel lists block devices; loop devices name the file they lie on.
const BLOCK_DEVICES: &str = "/sys/block";

/// Makes the folder for a pool's volumes, durably. `folders`: what holds it, outermost first, and it
/// itself.
pub(super) fn make(folders: [&Path; 3]) -> io::Result<()> {
    let [root, pool, thin] = folders;
    if thin.is_dir() {
        return Ok(());
    }
    make_folder(pool)?;
    make_folder(thin)?;
    sync_folder(pool)?;
    sync_folder(root)
}

/// Makes an empty volume.
pub(super) fn create(folder: &Path, volume: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(MODE).open(volume)?;
    sync_folder(folder)
}

/// Opens a volume to read, write and flush it.
pub(super) fn open(volume: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(volume).map_err(missing)?;
    bypass_cache(&file)?;
    Ok(file)
}

/// Drops a volume; `ENODATA` where there is none, as the kernel's thin pool says.
pub(super) fn delete(folder: &Path, volume: &Path) -> io::Result<()> {
    fs::remove_file(volume).map_err(missing)?;
    sync_folder(folder)
}

/// Makes a volume of what another one is now, durably. Where the host's file system can (btrfs, XFS), both
/// share their blocks; elsewhere the written parts are copied, for as long as that takes.
pub(super) fn copy(folder: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from).map_err(missing)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(MODE).open(to)?;
    if !share(&from, &to)? {
        copy_written(&from, &to)?;
    }
    to.sync_all()?;
    sync_folder(folder)
}

/// Lets a new file share all blocks of another one; false where the host cannot.
fn share(from: &File, to: &File) -> io::Result<bool> {
    // SAFETY: the ioctl takes a descriptor as its argument; both are open for as long as the call lasts.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS) => Ok(false),
        _ => Err(error),
    }
}

/// Copies what is written of a file into a new one; holes stay holes.
fn copy_written(mut from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while let Some(start) = seek(from, at, Whence::SeekData)? {
        let end = seek(from, start, Whence::SeekHole)?.unwrap_or(length);
        let mut to = to;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        // The library has the kernel copy, where it can.
        let copied = io::copy(&mut from.take(end - start), &mut to)?;
        if copied < end - start {
            return Err(io::ErrorKind::UnexpectedEof.into()); // Somebody made the origin shorter.
        }
        at = end;
    }
    Ok(())
}

/// Where the next data or hole begins; nothing when there is none behind `at`.
fn seek(file: &File, at: u64, whence: Whence) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    match lseek(file, at, whence) {
        Ok(found) => Ok(Some(found.unsigned_abs())),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a volume at least this length.
pub(super) fn lengthen(volume: &Path, length: Sectors) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(volume).map_err(missing)?;
    let length = length.offset();
    if file.metadata()?.len() < length {
        file.set_len(length)?;
    }
    Ok(())
}

fn missing(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound { io::Error::from_raw_os_error(libc::ENODATA) } else { error }
}

/// What a volume takes of the host.
pub(super) fn used(volume: &Path) -> io::Result<Bytes> {
    Ok(Bytes(u128::from(fs::metadata(volume)?.blocks()) * STAT_BLOCK_BYTES))
}

/// Whether somebody uses a volume: it is locked, or a loop device lies on it (a file is mounted
/// through one). Who merely has it open is not seen.
pub(super) fn busy(volume: &Path) -> io::Result<bool> {
    match Locked::new(File::open(volume)?) {
        Ok(locked) => drop(locked),
        Err(TryLockError::WouldBlock) => return Ok(true),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    under_loop(volume, Path::new(BLOCK_DEVICES))
}

fn under_loop(volume: &Path, block_devices: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(block_devices) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false), // No sysfs, no loops.
        Err(error) => return Err(error),
    };
    for entry in entries {
        // A device that goes while we look has no backing file, as one that never had.
        let backing = fs::read_to_string(entry?.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end_matches('\n')) == volume {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let [from, to] = ["0", "1"].map(|name| folder.path().join(name));
        create(folder.path(), &from).expect("new");
        lengthen(&from, Sectors(1 << 21)).expect("there");
        let pieces: [(u64, u8); 3] = [(0, 1), (64 << 20, 2), ((1 << 30) - 4096, 3)];
        let file = OpenOptions::new().write(true).open(&from).expect("there");
        pieces.iter().for_each(|(at, byte)| file.write_all_at(&[*byte; 4096], *at).expect("there is room"));
        file.sync_all().expect("written");
        let check = |to: &Path| {
            let copy = File::open(to).expect("made");
            assert_eq!(copy.metadata().expect("open").len(), 1 << 30);
            for (at, byte) in pieces {
                let mut read = [0; 8192];
                let count = copy.read_at(&mut read, at).expect("readable");
                assert!(read[..4096] == [byte; 4096] && read[4096..count].iter().all(|byte| *byte == 0));
            }
            assert!(used(to).expect("there").0 < 16 << 20, "holes stay holes");
        };
        copy(folder.path(), &from, &to).expect("copied");
        check(&to);
        assert_eq!(copy(folder.path(), &from, &to).expect_err("it is there").raw_os_error(), Some(libc::EEXIST));
        // However the host does it: the other way, too.
        let by_hand = folder.path().join("2");
        create(folder.path(), &by_hand).expect("new");
        let target = OpenOptions::new().write(true).open(&by_hand).expect("there");
        copy_written(&File::open(&from).expect("there"), &target).expect("copied");
        check(&by_hand);
        let none = copy(folder.path(), &folder.path().join("9"), &folder.path().join("3")).expect_err("no origin");
        assert_eq!(none.raw_os_error(), Some(libc::ENODATA));
        assert!(!folder.path().join("3").exists());
    }

    #[test]
    fn a_volume_under_a_loop_device_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let volume = folder.path().join("5");
        let devices = folder.path().join("block");
        fs::create_dir_all(devices.join("vda")).expect("made");
        let look = || under_loop(&volume, &devices).expect("readable");
        assert!(!look());
        fs::create_dir_all(devices.join("loop0/loop")).expect("made");
        let set = |text| fs::write(devices.join("loop0/loop/backing_file"), text).expect("written");
        set(format!("{}5\n", volume.display()));
        assert!(!look());
        set(format!("{}\n", volume.display()));
        assert!(look());
        assert!(!under_loop(&volume, &folder.path().join("no sysfs")).expect("fine"));
    }
}
