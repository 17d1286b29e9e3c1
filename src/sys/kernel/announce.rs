//! Telling udev the names of a filesystem: a `change` event that carries them.
//!
//! The kernel passes on what is written to a device's `uevent`, letters and digits only, so names
//! travel in base32. udev's rule (dist/61-stratisd.rules) makes the link of it when the UUID that the
//! event carries is the one that it finds on the device.
//!
//! Invariant: an event goes out only for a volume whose UUID is on disk and that nobody here has open.
//!
//! Deliberately absent: waiting for the link, and making or removing one.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;

use super::KernelSys;
use super::lanes::blocking;
use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::Dm;
use crate::model::ids::FsUuid;
use crate::model::name::Name;

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

impl KernelSys {
    pub(super) async fn tell_udev(&self, device: Dm, pool: &Name, filesystem: &Name) -> Result<(), Why> {
        let uuid = match device {
            Dm::Thin(_, uuid) => uuid,
            Dm::Private(..) => return Err(Why::Errno(libc::EINVAL)), // Those have no names to tell.
        };
        let file = file(self.inner.mapper.number(device).await?);
        let event = event(uuid, pool, filesystem);
        blocking(&self.inner.lanes.files, move || send(&file, &event)).await
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
