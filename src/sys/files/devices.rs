//! Files that stand in for devices: opened, locked, remembered, found again. Blocking; runs on a
//! lane.
//!
//! Invariant: an open file is locked (flock), so that two daemons never write one file. A file is
//! remembered by one link in `devices`, whatever its path and number were before.
//!
//! Deliberately absent: a search. A file that was moved is found again when somebody names it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cores::side::Buffer;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::examine::{examine, identity};
use super::root::{Locked, place_link, remove_if_there, sync_folder};
use crate::error::{Failure, Fault, Refusal};
use crate::limits::DISCOVERED_MAX;
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Occupant};
use crate::sys::transfer::ALIGNMENT;

/// The smallest piece that we write, and one that does not start on a larger block.
const PROBE_BYTES: usize = 512;

/// Opens and locks a file that was examined; gives the descriptor and the lock on it.
pub(super) fn open(candidate: &Candidate) -> Result<(File, Locked), Failure> {
    let path = &candidate.path;
    let fault = |error: &io::Error| Failure::from(Fault::io("open", path, error));
    let file = match OpenOptions::new().read(true).write(true).open(path.as_path()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refusal::DeviceChanged { path: path.clone() }.into());
        }
        Err(error) => return Err(fault(&error)),
    };
    // A file whose identity cannot be read is not what was examined either.
    if identity(&file).ok() != Some((candidate.number, candidate.size)) {
        return Err(Refusal::DeviceChanged { path: path.clone() }.into());
    }
    let lock = match Locked::new(file.try_clone().map_err(|error| fault(&error))?) {
        Ok(lock) => lock,
        Err(TryLockError::WouldBlock) => return Err(Refusal::DeviceTaken { path: path.clone() }.into()),
        Err(TryLockError::Error(error)) => return Err(fault(&error)),
    };
    bypass_cache(&file).map_err(|error| fault(&error))?;
    Ok((file, lock))
}

/// Turns direct I/O on where the host takes it in sectors, and leaves it off elsewhere (tmpfs, or a
/// host with larger blocks).
pub(super) fn bypass_cache(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    if fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)).is_err() {
        return Ok(());
    }
    let mut buffer = Buffer::aligned(PROBE_BYTES, ALIGNMENT);
    match file.read_at(&mut buffer, PROBE_BYTES as u64) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            fcntl(file.as_fd(), FcntlArg::F_SETFL(flags))?;
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

fn link_name(number: DeviceNumber) -> String {
    format!("{}-{}", number.0, number.1)
}

/// Makes `discover` find the file, durably.
pub(super) fn remember(devices: &Path, making: &Path, candidate: &Candidate) -> io::Result<()> {
    let link = devices.join(link_name(candidate.number));
    place_link(candidate.path.as_path(), making, &link)?;
    for other in links(devices)? {
        if other != link && leads_to(&other, candidate.path.as_path()) {
            remove_if_there(&other)?;
        }
    }
    sync_folder(devices)
}

/// Makes `discover` not find the file, durably.
pub(super) fn forget(devices: &Path, number: DeviceNumber, path: Option<&Path>) -> io::Result<()> {
    remove_if_there(&devices.join(link_name(number)))?;
    for other in links(devices)? {
        // The number of a file changes when its host restarts with other device numbers.
        if path.is_some_and(|path| leads_to(&other, path)) {
            remove_if_there(&other)?;
        }
    }
    sync_folder(devices)
}

/// Every remembered file with a Stratis signature. Links to what is gone are removed.
pub(super) fn discover(devices: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for link in links(devices)? {
        let target = fs::read_link(&link)?;
        let Some(Ok(path)) = target.to_str().map(DevicePath::try_from) else {
            drop_link(&link, "it does not lead to an absolute path")?;
            continue;
        };
        match examine(&path) {
            Ok(candidate) if candidate.occupant == Occupant::Stratis => found.push(candidate),
            Ok(candidate) => log::info!("no pool is on {} ({:?})", candidate.path, candidate.occupant),
            Err(Failure::Refused(refusal)) => drop_link(&link, &refusal.to_string())?,
            Err(Failure::Faulted(fault)) => log::warn!("{fault}"),
        }
    }
    // Two links to one file: an old number beside the new one.
    found.sort_by_key(|candidate| candidate.number);
    found.dedup_by_key(|candidate| candidate.number);
    Ok(found)
}

fn drop_link(link: &Path, why: &str) -> io::Result<()> {
    log::warn!("a remembered device is forgotten: {why} (link={})", link.display());
    remove_if_there(link)
}

fn links(devices: &Path) -> io::Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(devices)? {
        let entry = entry?;
        if links.len() == DISCOVERED_MAX {
            log::warn!("only {DISCOVERED_MAX} remembered devices are looked at");
            break;
        }
        if entry.file_type()?.is_symlink() {
            links.push(entry.path());
        }
    }
    links.sort();
    Ok(links)
}

fn leads_to(link: &Path, path: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == path)
}
