//! The paths under which clients find filesystems: `stratis/<pool name>/<filesystem name>`.
//! Blocking; runs on a lane.
//!
//! Invariant: a path leads to a volume or does not exist, at every moment; it is never half made.
//!
//! Deliberately absent: durability. Each process makes the links anew.

use std::fs;
use std::io;
use std::path::Path;

use super::root::{make_folder, place_link, remove_if_there};

/// How often a folder that another core has just removed is made again.
const ATTEMPTS_MAX: usize = 3;

/// Makes a link, and its folder. Not durable: links are made anew by each process.
pub(super) fn place(target: &Path, making: &Path, link: &Path) -> io::Result<()> {
    let folder = link.parent().expect("a link stands in its pool's folder");
    let mut attempts = 0;
    loop {
        make_folder(folder)?;
        attempts += 1;
        match place_link(target, making, link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS_MAX => {}
            outcome => return outcome,
        }
    }
}

/// Removes a link if it still leads to `target`, and its folder if it is empty then.
pub(super) fn remove(target: &Path, link: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|leads_to| leads_to == target) {
        remove_if_there(link)?;
    }
    match fs::remove_dir(link.parent().expect("a link stands in its pool's folder")) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST | libc::ENOENT)) => {
            Err(error)
        }
        Ok(()) | Err(_) => Ok(()), // Other filesystems of the pool, or no folder: both are fine.
    }
}
