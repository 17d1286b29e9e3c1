//! Giving back to the host what a formatted volume holds of its blocks without need.
//!
//! Invariant: what is read of a file does not change. Blocking; runs on a lane.
//!
//! Deliberately absent: anything for block devices; their thin pool has its own ways.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};

/// Gives the host back what reads as zeroes without being a hole. mkfs.xfs zeroes its whole log by
/// allocating it unwritten: 64 MiB for a small filesystem, 512 MiB for 1 TiB. A hole reads the same.
/// Blocking.
pub(super) fn dig(file: &File) -> io::Result<()> {
    file.sync_all()?; // What is not written back yet may look like a hole.
    let size = libc::off_t::try_from(file.metadata()?.size()).map_err(|_| Errno::EFBIG)?;
    let holes = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut at = 0;
    while at < size {
        let data = match lseek64(file, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => size,
            Err(errno) => return Err(errno.into()),
        };
        if at < data {
            match fallocate(file, holes, at, data - at) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => return Ok(()), // A host without holes keeps its blocks.
                Err(errno) => return Err(errno.into()),
            }
        }
        if data == size {
            break;
        }
        at = lseek64(file, data, Whence::SeekHole)?;
    }
    Ok(())
}

/// Opens a volume to dig and to flush it. Blocking.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digging_leaves_what_is_read_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create_new(&path).expect("new");
        file.set_len(8 << 20).expect("sized");
        fallocate(&file, FallocateFlags::empty(), 0, 6 << 20).expect("room");
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 10_000], 3 << 20).expect("room");
        // Not read before: the host takes what is in its cache for data.
        dig(&open(&path).expect("there")).expect("the host has holes");
        assert!(file.metadata().expect("open").blocks() * 512 < 1 << 20);
        let mut expected = vec![0; 8 << 20];
        expected[3 << 20..][..10_000].fill(7);
        assert!(std::fs::read(&path).expect("readable") == expected);
    }
}
