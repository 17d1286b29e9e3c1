//! Telling udev the names of a filesystem: a `change` event that carries them, or a note for the first event of a
//! volume that is brought up.
//!
//! The kernel passes on what is written to a device's `uevent`, letters and digits only, so names
//! travel in base32. udev's rule (dist/61-stratisd.rules) makes the link of it when the UUID that the
//! event carries is the one that it finds on the device. An event more is dear, because udev looks at all of a
//! device and runs five programs for it. So for a volume that is yet to come up there is a note, called after the
//! volume and the UUID; the rule reads the one of the UUID that it finds, and only where nothing else has told it the
//! names.
//!
//! Invariants: an event goes out only for a volume whose UUID is on disk and that nobody here has open; a note is there
//! before its volume is active, and goes with it, or when an event tells more.
//!
//! Deliberately absent: waiting for the link, and making or removing one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;

use super::block::numbered;
use super::{KernelSys, lanes, why};
use crate::error::Fault;
use crate::limits::DM_BATCH_MAX;
use crate::model::device::DeviceNumber;
use crate::model::dm::Dm;
use crate::model::ids::{FsUuid, PoolUuid};
use crate::model::name::Name;

/// There while udevd has events that it has not dealt with.
const UDEV_BUSY: &str = "/run/udev/queue";
/// Where notes are: memory, and emptied by each boot.
const NOTES: &str = "/run/stratisd/names";

/// What is written for a filesystem.
fn event(uuid: FsUuid, pool: &Name, filesystem: &Name) -> String {
    let encode = |name: &Name| BASE32_NOPAD.encode(name.as_str().as_bytes());
    format!("change {uuid} STRATISPOOLNAME={} STRATISFSNAME={}", encode(pool), encode(filesystem))
}

fn file(device: DeviceNumber) -> PathBuf {
    format!("/sys/dev/block/{}:{}/uevent", device.0, device.1).into()
}

/// The kernel takes an event in one write. Blocking.
fn send(file: &Path, event: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(event.as_bytes())
}

/// Where the note of a filesystem is.
fn note(pool: PoolUuid, filesystem: FsUuid) -> PathBuf {
    Path::new(NOTES).join(format!("{}.{filesystem}", Dm::Thin(pool, filesystem)))
}

/// Removes the note of a volume. Most often there is none for a new one, and one that stays is made anew before it is
/// read. Blocking.
fn forget(device: Dm) {
    match device {
        Dm::Thin(pool, filesystem) => drop(fs::remove_file(note(pool, filesystem))),
        Dm::Private(..) => {}
    }
}

/// What is in it. No name has a quotation mark.
fn noted(pool: &Name, filesystem: &Name) -> String {
    format!("STRATIS_POOL_NAME=\"{pool}\"\nSTRATIS_FS_NAME=\"{filesystem}\"\n")
}

/// Whether a path leads to the node of this device. Blocking.
fn leads_to(path: &Path, device: DeviceNumber) -> bool {
    fs::metadata(path).is_ok_and(|node| node.file_type().is_block_device() && numbered(node.rdev()) == device)
}

impl KernelSys {
    /// Tells the names of filesystems; logs which could not be told. Their notes go: they may say other names, and udev
    /// would read them again should it lose what it knows.
    pub(super) async fn tell_udev(&self, (pool, of_pool): (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) {
        let devices: Vec<Dm> = filesystems.iter().map(|(uuid, _)| Dm::Thin(pool, *uuid)).collect();
        let numbers = self.inner.mapper.numbers(&devices).await;
        let named = filesystems.iter().map(|(uuid, name)| event(*uuid, of_pool, name));
        let events: Vec<_> = devices.into_iter().zip(numbers).zip(named).collect();
        for some in events.chunks(DM_BATCH_MAX) {
            let own = some.to_vec();
            let job = move || {
                for ((device, number), event) in own {
                    forget(device);
                    let sent = number.and_then(|number| send(&file(number), &event).map_err(|error| why(&error)));
                    if let Err(why) = sent {
                        log::warn!("{}", Fault::new("announce", device, why));
                    }
                }
            };
            if let Err(why) = lanes::on(&self.inner.lanes.files, job).await {
                log::warn!("{}", Fault::new("announce filesystems of pool", pool, why));
            }
        }
    }

    /// Notes the names of filesystems whose volumes are about to come up; tells for which that is done.
    pub(super) async fn note_names(&self, of_pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) -> Vec<bool> {
        let (pool, pool_name) = of_pool;
        let written = |(uuid, name): &(FsUuid, &Name)| (note(pool, *uuid), noted(pool_name, name));
        let notes: Vec<(PathBuf, String)> = filesystems.iter().map(written).collect();
        let count = notes.len();
        let job = move || {
            fs::create_dir_all(NOTES)?;
            Ok(notes.iter().map(|(path, text)| fs::write(path, text).is_ok()).collect())
        };
        let noted = lanes::blocking(&self.inner.lanes.files, job).await;
        noted.unwrap_or_else(|why| {
            log::warn!("{}", Fault::new("note names of filesystems of pool", pool, why));
            vec![false; count]
        })
    }

    /// Removes the notes of volumes that are gone.
    pub(super) async fn remove_notes(&self, devices: &[Dm]) {
        let volumes: Vec<Dm> = devices.iter().copied().filter(|device| matches!(device, Dm::Thin(..))).collect();
        if volumes.is_empty() {
            return;
        }
        if let Err(why) = lanes::on(&self.inner.lanes.files, move || volumes.into_iter().for_each(forget)).await {
            log::debug!("notes of volumes stay: {why}");
        }
    }

    /// Which of these volumes have their paths for certain: those that lead there while udevd has nothing left to do.
    pub(super) async fn paths_of(&self, pool: PoolUuid, filesystems: Vec<(FsUuid, PathBuf)>) -> Vec<bool> {
        let devices: Vec<Dm> = filesystems.iter().map(|(uuid, _)| Dm::Thin(pool, *uuid)).collect();
        let count = filesystems.len();
        let numbers = self.inner.mapper.numbers(&devices).await;
        let job = move || {
            let leads = |((_, path), number): (&(_, PathBuf), &Result<DeviceNumber, _>)| {
                number.as_ref().is_ok_and(|number| leads_to(path, *number))
            };
            let lead: Vec<bool> = filesystems.iter().zip(&numbers).map(leads).collect();
            let idle = !Path::new(UDEV_BUSY).exists();
            lead.into_iter().map(|leads| leads && idle).collect()
        };
        // Announced once more than needed is as good.
        lanes::on(&self.inner.lanes.files, job).await.unwrap_or_else(|_why| vec![false; count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_what_the_kernel_takes() {
        let name = |text| Name::try_from(text).expect("a name");
        let uuid = FsUuid::from_random([7; 16]);
        let text = event(uuid, &name("p1"), &name("Übung-1"));
        let words: Vec<&str> = text.split(' ').collect();
        assert_eq!(words.len(), 4);
        assert_eq!(words[0], "change");
        assert_eq!(words[1], uuid.to_string());
        assert_eq!((words[1].len(), words[1].matches('-').count()), (36, 4), "the kernel wants it hyphenated");
        assert_eq!(words[2], "STRATISPOOLNAME=OAYQ");
        let value = words[3].strip_prefix("STRATISFSNAME=").expect("the key that the rule knows");
        assert!(value.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(BASE32_NOPAD.decode(value.as_bytes()).expect("base32"), "Übung-1".as_bytes());
    }

    #[test]
    fn a_note_is_called_after_the_volume_and_what_is_on_it() {
        let (pool, uuid) = (PoolUuid::from_random([6; 16]), FsUuid::from_random([7; 16]));
        let path = note(pool, uuid);
        let expected = format!("stratis-1-{}-thin-fs-{}.{uuid}", pool.simple(), uuid.simple());
        assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(expected.as_str()));
        let name = |text| Name::try_from(text).expect("a name");
        assert_eq!(
            noted(&name("p,1"), &name("Übung\u{a0}1=#")),
            "STRATIS_POOL_NAME=\"p,1\"\nSTRATIS_FS_NAME=\"Übung\u{a0}1=#\"\n"
        );
    }

    #[test]
    fn the_longest_names_fit_what_the_kernel_passes_on() {
        // All variables of an event have 2,048 bytes together, and the kernel's own take some hundred.
        let name = Name::try_from("x".repeat(255).as_str()).expect("a name");
        assert!(event(FsUuid::from_random([7; 16]), &name, &name).len() < 1_024);
    }
}
