//! A metadata volume as the folders and files it is, wherever they lie. Blocking; runs on a lane.
//!
//! Invariant: each function is one step, and nothing is durable that the caller did not ask to be, so
//! that a crash between any two steps can be tried.
//!
//! Deliberately absent: what a record is, the order of writing one (temporary file, rename), and how
//! the volume comes to be there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use cores::bulk;
use nix::sys::statvfs::statvfs;

use crate::error::Why;
use crate::limits::{BULK_FILE_BYTES, RECORD_BYTES_MAX, RECORDS_MAX};
use crate::sys::Folder;
use crate::units::Bytes;

/// Every folder of a volume.
pub(super) const FOLDERS: [Folder; 2] = [Folder::Filesystems, Folder::Intents];
/// Only root reads metadata and volumes.
pub(super) const FOLDER_MODE: u32 = 0o700;
/// What is read of a file: more than any record, so that a record that is too long shows.
const READ_BYTES_MAX: u64 = 16 * RECORD_BYTES_MAX as u64;

/// What a folder is called.
pub(super) const fn name(folder: Folder) -> &'static str {
    match folder {
        Folder::Filesystems => "filesystems",
        Folder::Intents => "intents",
    }
}

/// Makes the folders that are missing, durably.
pub(super) fn make_folders(volume: &Path) -> io::Result<()> {
    for folder in FOLDERS {
        make_folder(&volume.join(name(folder)))?;
    }
    sync_folder(volume)
}

/// Makes a folder if it is missing. Not durable.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// Makes what was created, renamed and removed in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Takes only what names a file in its folder.
pub(super) fn checked(file: &str) -> Result<&str, Why> {
    let name = !file.is_empty() && file != "." && file != ".." && !file.contains(['/', '\0']);
    if name { Ok(file) } else { Err(Why::Errno(libc::EINVAL)) }
}

/// How large the file system is that a folder is on.
pub(super) fn size(folder: &Path) -> io::Result<Bytes> {
    let found = statvfs(folder)?;
    Ok(Bytes(u128::from(found.blocks()) * u128::from(found.fragment_size())))
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
    content(File::open(path)?)
}

/// The contents of files in a folder; says at which one it failed.
pub(super) fn read_each(folder: &Path, files: &[String]) -> Result<Vec<Vec<u8>>, (String, io::Error)> {
    let Some(first) = files.first() else { return Ok(Vec::new()) };
    let open = File::open(folder).map_err(|error| (first.clone(), error))?;
    let read_one = |file: &String| read(&folder.join(file)).map_err(|error| (file.clone(), error));
    let contents = files.iter().zip(bulk::read(&open, files, BULK_FILE_BYTES));
    contents.map(|(file, bytes)| bytes.map_or_else(|| read_one(file), Ok)).collect()
}

fn content(file: File) -> io::Result<Vec<u8>> {
    // All of a record with one call, and that nothing follows with another.
    let mut bytes = Vec::with_capacity(RECORD_BYTES_MAX);
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
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
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_one_name() {
        assert_eq!(checked("0123.json"), Ok("0123.json"));
        for wrong in ["", ".", "..", "a/b", "/a", "a\0"] {
            assert_eq!(checked(wrong), Err(Why::Errno(libc::EINVAL)), "{wrong:?}");
        }
    }

    #[test]
    fn folders_are_made_once_and_files_come_and_go() {
        let volume = tempfile::tempdir().expect("a folder");
        make_folders(volume.path()).expect("made");
        let folder = volume.path().join(name(Folder::Filesystems));
        let file = folder.join("b.json");
        write(&file, b"longer").expect("written");
        write(&file, b"one").expect("written again, truncated");
        write(&folder.join("a.json"), b"").expect("written");
        make_folders(volume.path()).expect("there already");
        sync(&file).expect("there");
        sync_folder(&folder).expect("there");
        assert_eq!(list(&folder).expect("there"), ["a.json", "b.json"]);
        assert_eq!(read(&file).expect("there"), b"one");
        let named = ["b.json", "a.json"].map(str::to_owned);
        assert_eq!(read_each(&folder, &named).expect("both are there"), [b"one".to_vec(), Vec::new()]);
        remove(&file).expect("there");
        remove(&file).expect("none is fine");
        assert_eq!(list(&folder).expect("there"), ["a.json"]);
        assert_eq!(read(&file).expect_err("gone").kind(), io::ErrorKind::NotFound);
        let (which, error) = read_each(&folder, &named).expect_err("one is gone");
        assert_eq!((which.as_str(), error.kind()), ("b.json", io::ErrorKind::NotFound));
    }
}
