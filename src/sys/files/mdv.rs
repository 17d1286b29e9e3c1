//! The metadata volume as two folders of real files. Blocking; runs on a lane.
//!
//! Invariant: nothing is durable that the caller did not ask to be; a crash of the host shows the
//! daemon the same states as an XFS would.
//!
//! Deliberately absent: what a record is, and the order of writing one (temporary file, rename).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::root::{FilesRoot, make_folder, remove_if_there, sync_folder};
use crate::error::Why;
use crate::limits::{RECORD_BYTES_MAX, RECORDS_MAX};
use crate::model::ids::PoolUuid;
use crate::sys::Folder;

const FOLDERS: [Folder; 2] = [Folder::Filesystems, Folder::Intents];
/// What is read of a file: more than any record, so that a record that is too long shows.
const READ_BYTES_MAX: u64 = 16 * RECORD_BYTES_MAX as u64;

/// The two folders of a pool, and what holds them.
#[derive(Debug)]
pub(super) struct Volume {
    root: PathBuf,
    pool: PathBuf,
    folders: [PathBuf; 2],
}

impl Volume {
    /// Where a pool's metadata volume is.
    pub(super) fn of(root: &FilesRoot, pool: PoolUuid) -> Self {
        let folders = FOLDERS.map(|folder| root.mdv(pool, folder));
        Self { root: root.path().to_owned(), pool: root.pool(pool), folders }
    }

    /// Makes both folders, or empties them, durably.
    pub(super) fn format(&self) -> io::Result<()> {
        make_folder(&self.pool)?;
        for folder in &self.folders {
            make_folder(folder)?;
            for entry in fs::read_dir(folder)? {
                fs::remove_file(entry?.path())?;
            }
            sync_folder(folder)?;
        }
        self.sync()
    }

    /// Makes the folders that are missing, durably. The volume itself must have been formatted.
    pub(super) fn mount(&self) -> io::Result<()> {
        if !self.pool.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        for folder in &self.folders {
            make_folder(folder)?;
        }
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        sync_folder(&self.pool)?;
        sync_folder(&self.root)
    }
}

/// Takes only what names a file in its folder.
pub(super) fn checked(file: &str) -> Result<&str, Why> {
    let name = !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\0']);
    if name { Ok(file) } else { Err(Why::Errno(libc::EINVAL)) }
}

/// Names of the files, sorted.
pub(super) fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if names.len() == RECORDS_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let name = entry?.file_name().into_string();
        // Nobody who writes records makes such a name, so it is not one of ours.
        names.extend(name.inspect_err(|name| log::warn!("{name:?} in {} is not a record", folder.display())));
    }
    names.sort();
    Ok(names)
}

/// The content of a file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Creates or truncates a file and writes it.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)
}

/// Makes the content of a file durable.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file; none is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(path)
}
