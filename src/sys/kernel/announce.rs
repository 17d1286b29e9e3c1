//! Telling udev the names of a filesystem: a `change` event that carries them.
//!
//! The kernel passes on what is written to a device's `uevent`, letters and digits only, so names
//! travel in base32. udev's rule (dist/61-stratisd.rules) makes the link of it when the UUID that the
//! event carries is the one that it finds on the device.
//!
//! Invariant: an event goes out only for a volume whose UUID is on disk and that nobody here has open.
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

/// Whether a path leads to the node of this device. Blocking.
fn leads_to(path: &Path, device: DeviceNumber) -> bool {
    fs::metadata(path).is_ok_and(|node| node.file_type().is_block_device() && numbered(node.rdev()) == device)
}

impl KernelSys {
    /// Tells the names of filesystems; logs which could not be told.
    pub(super) async fn tell_udev(&self, (pool, of_pool): (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) {
        let devices: Vec<Dm> = filesystems.iter().map(|(uuid, _)| Dm::Thin(pool, *uuid)).collect();
        let numbers = self.inner.mapper.numbers(&devices).await;
        let named = filesystems.iter().map(|(uuid, name)| event(*uuid, of_pool, name));
        let events: Vec<_> = devices.into_iter().zip(numbers).zip(named).collect();
        for some in events.chunks(DM_BATCH_MAX) {
            let own = some.to_vec();
            let job = move || {
                for ((device, number), event) in own {
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
    fn the_longest_names_fit_what_the_kernel_passes_on() {
        // All variables of an event have 2,048 bytes together, and the kernel's own take some hundred.
        let name = Name::try_from("x".repeat(255).as_str()).expect("a name");
        assert!(event(FsUuid::from_random([7; 16]), &name, &name).len() < 1_024);
    }
}
