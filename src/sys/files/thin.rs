//! Thin volumes as sparse files. Blocking; runs on a lane.
//!
//! Invariant: a file is never made shorter. The host gives out blocks as they are written, and when
//! it has none left, its ENOSPC comes through as it is.
//!
//! Deliberately absent: a limit on the sum of the volumes, and snapshots.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

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
    use super::*;

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
