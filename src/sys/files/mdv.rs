//! The metadata volume as two folders of real files. Blocking; runs on a lane.
//!
//! Invariant: nothing is durable that the caller did not ask to be; a crash of the host shows the
//! daemon the same states as an XFS would.
//!
//! Deliberately absent: what is done with the files; that is `sys::volume`.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::root::{FilesRoot, make_folder, sync_folder};
use crate::model::ids::PoolUuid;
use crate::sys::volume::{FOLDERS, make_folders, name};

/// The folder of a pool, and what holds it.
#[derive(Debug)]
pub(super) struct Volume {
    root: PathBuf,
    pool: PathBuf,
}

impl Volume {
    /// Where a pool's metadata volume is.
    pub(super) fn of(root: &FilesRoot, pool: PoolUuid) -> Self {
        Self { root: root.path().to_owned(), pool: root.pool(pool) }
    }

    /// Makes both folders, or empties them, durably.
    pub(super) fn empty(&self) -> io::Result<()> {
        make_folder(&self.pool)?;
        make_folders(&self.pool)?;
        for folder in FOLDERS.map(|folder| self.pool.join(name(folder))) {
            for entry in fs::read_dir(&folder)? {
                fs::remove_file(entry?.path())?;
            }
            sync_folder(&folder)?;
        }
        sync_folder(&self.root)
    }

    /// Makes the folders that are missing, durably. The volume itself must have been made.
    pub(super) fn mount(&self) -> io::Result<()> {
        if !self.pool.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        make_folders(&self.pool)?;
        sync_folder(&self.root)
    }
}
