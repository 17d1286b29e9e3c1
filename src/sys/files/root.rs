//! The folder that a daemon started with `--files DIR` works in, and what may stand in it.
//!
//! ```text
//! DIR/stratisd.lock                    held while a daemon uses the folder
//! DIR/devices/<dev>-<inode>            links to the files that are to be found after a restart
//! DIR/stratis/<pool name>/<fs name>    links to thin volumes, as /dev/stratis has them
//! DIR/links/                           links in the making
//! DIR/<pool uuid>/thin/<id>            thin volumes, sparse
//! DIR/<pool uuid>/filesystems, intents the metadata volume
//! ```
//!
//! Invariant: one process has the folder, and nothing in it is anybody else's. Links under `stratis`
//! are made anew by each process, as udev makes them anew at each boot.
//!
//! Deliberately absent: the devices. They are files of the user's own, anywhere.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::model::ids::{PoolUuid, ThinId};
use crate::model::name::Name;
use crate::sys::Folder;
use crate::sys::volume::{self, FOLDER_MODE};

pub(super) use crate::sys::volume::{make_folder, remove as remove_if_there, sync_folder};

const LOCK: &str = "stratisd.lock";
const DEVICES: &str = "devices";
const STRATIS: &str = "stratis";
const LINKS: &str = "links";
/// What mkfs.ext4 puts at the top of a file system; the folder may be one's mount point.
const LOST_AND_FOUND: &str = "lost+found";

/// Why the folder cannot be used.
#[derive(Debug, Error)]
pub enum RootFault {
    /// A system call failed.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something stands in it that no daemon put there.
    #[error("{} holds {entry:?}, which is not a daemon's: choose an empty or a new folder", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What stands there.
        entry: String,
    },
    /// Another daemon has it.
    #[error("{} is in use by another daemon", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
    },
}

/// The folder of a daemon, locked. Clones for other cores keep the lock as well.
#[derive(Clone, Debug)]
pub struct FilesRoot {
    path: PathBuf,
    /// Shared, and never touched again: it is there to be dropped by the last.
    _lock: Arc<Locked>,
}

/// A file that is locked (flock) as long as this lives.
#[derive(Debug)]
pub(super) struct Locked(File);

impl Locked {
    /// Locks the file, unless somebody else has it.
    pub(super) fn new(file: File) -> Result<Self, TryLockError> {
        file.try_lock().map(|()| Self(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked a moment ago, and has not yet called exec,
        // has the file open too.
        if let Err(error) = self.0.unlock() {
            log::warn!("a lock is not given back: {error}");
        }
    }
}

impl FilesRoot {
    /// Makes the folder if it is missing, locks it, and checks that it is ours. Blocks; for the
    /// start of the process.
    ///
    /// # Errors
    /// See `RootFault`; nothing was changed then but for an empty folder and its lock file.
    pub fn open(path: &Path) -> Result<Self, RootFault> {
        let fault = |doing| move |error| RootFault::Io { doing, path: path.to_owned(), error };
        fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path).map_err(fault("create folder"))?;
        let path = path.canonicalize().map_err(fault("find"))?;
        let fault = |doing| {
            let path = path.clone();
            move |error| RootFault::Io { doing, path, error }
        };
        check(&path)?;
        let lock = File::create(path.join(LOCK)).map_err(fault("lock"))?;
        let lock = match Locked::new(lock) {
            Ok(lock) => Arc::new(lock),
            Err(TryLockError::WouldBlock) => return Err(RootFault::Taken { path }),
            Err(TryLockError::Error(error)) => return Err(fault("lock")(error)),
        };
        for folder in [STRATIS, LINKS] {
            clear_links(&path.join(folder)).map_err(fault("remove old links in"))?;
        }
        for folder in [DEVICES, STRATIS, LINKS] {
            make_folder(&path.join(folder)).map_err(fault("create folders in"))?;
        }
        sync_folder(&path).map_err(fault("flush"))?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder itself, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Links to the remembered devices.
    pub(super) fn devices(&self) -> PathBuf {
        self.path.join(DEVICES)
    }

    /// What belongs to one pool.
    pub(super) fn pool(&self, pool: PoolUuid) -> PathBuf {
        self.path.join(pool.simple())
    }

    /// A pool's thin volumes.
    pub(super) fn thin(&self, pool: PoolUuid) -> PathBuf {
        self.pool(pool).join("thin")
    }

    /// One thin volume.
    pub(super) fn volume(&self, pool: PoolUuid, id: ThinId) -> PathBuf {
        self.thin(pool).join(id.to_string())
    }

    /// A folder of a pool's metadata volume.
    pub(super) fn mdv(&self, pool: PoolUuid, folder: Folder) -> PathBuf {
        self.pool(pool).join(volume::name(folder))
    }

    /// Where clients find a filesystem.
    pub(super) fn devnode(&self, pool: &Name, filesystem: &Name) -> PathBuf {
        self.path.join(STRATIS).join(pool.as_str()).join(filesystem.as_str())
    }

    /// Where a link is made before it takes its place.
    pub(super) fn link_in_making(&self, name: &str) -> PathBuf {
        self.path.join(LINKS).join(name)
    }
}

fn check(path: &Path) -> Result<(), RootFault> {
    let fault = |error| RootFault::Io { doing: "list", path: path.to_owned(), error };
    for entry in fs::read_dir(path).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name();
        let known = name.to_str().is_some_and(|name| {
            let pool = name.len() == 32 && name.parse::<PoolUuid>().is_ok_and(|pool| pool.simple() == name);
            pool || [LOCK, DEVICES, STRATIS, LINKS, LOST_AND_FOUND].contains(&name)
        });
        if !known {
            let entry = name.to_string_lossy().into_owned();
            return Err(RootFault::Foreign { path: path.to_owned(), entry });
        }
    }
    Ok(())
}

/// Removes links, and folders that hold only links. Anything else is an error and stays.
fn clear_links(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            clear_links(&entry.path())?;
            fs::remove_dir(entry.path())?;
        } else if entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        } else {
            return Err(io::Error::other(format!("{} is not a link", entry.path().display())));
        }
    }
    Ok(())
}

/// Makes a link, or another target of a link, in one step. Not durable.
pub(super) fn place_link(target: &Path, making: &Path, link: &Path) -> io::Result<()> {
    remove_if_there(making)?;
    symlink(target, making)?;
    fs::rename(making, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_at_a_time_has_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/deep");
        let root = FilesRoot::open(&path).expect("free");
        assert!(matches!(FilesRoot::open(&path), Err(RootFault::Taken { .. })));
        let share = root.clone();
        drop(root);
        assert!(matches!(FilesRoot::open(&path), Err(RootFault::Taken { .. })), "a clone keeps the lock");
        drop(share);
        FilesRoot::open(&path).expect("free again");
    }

    #[test]
    fn a_folder_with_foreign_things_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("thesis.tex"), "").expect("written");
        let fault = FilesRoot::open(folder.path()).expect_err("foreign");
        assert!(fault.to_string().contains("thesis.tex"), "{fault}");
        assert!(!folder.path().join(LOCK).exists(), "nothing was changed");
    }

    #[test]
    fn old_links_go_and_pools_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(FilesRoot::open(folder.path()).expect("free"));
        let pool = folder.path().join(PoolUuid::from_random([7; 16]).simple());
        fs::create_dir_all(pool.join("thin")).expect("made");
        let names = folder.path().join("stratis/pool");
        fs::create_dir(&names).expect("made");
        symlink("../../x", names.join("fs")).expect("made");
        drop(FilesRoot::open(folder.path()).expect("ours"));
        assert!(pool.join("thin").exists());
        assert!(!names.exists());
    }
}
