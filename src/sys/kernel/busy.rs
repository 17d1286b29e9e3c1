//! Whether a volume is in use: mounted, or held open by somebody who keeps it.
//!
//! udev opens a device for moments whenever something happened to it, so one look says little: a volume
//! that is open but not mounted is looked at a few times more.
//!
//! Invariant: "not in use" was true at one moment; who opens the volume later is met with EBUSY when it
//! is removed.
//!
//! Deliberately absent: who uses it.

use std::fs;
use std::time::Duration;

use cores::rt;

use super::KernelSys;
use super::lanes::blocking;
use crate::error::Why;
use crate::limits::{OPEN_AGAIN_AFTER_MS, OPEN_LOOKS_MAX};
use crate::model::device::DeviceNumber;
use crate::model::dm::Dm;

/// Every mount that this process sees; those of the host are among them.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Whether a device is mounted, by what the kernel says of all mounts.
fn is_mounted(mounts: &str, device: DeviceNumber) -> bool {
    let number = format!("{}:{}", device.0, device.1);
    // The number of a mount, that of its parent, and the device's.
    mounts.lines().any(|mount| mount.split(' ').nth(2) == Some(number.as_str()))
}

impl KernelSys {
    pub(super) async fn in_use(&self, device: Dm) -> Result<bool, Why> {
        for _look in 0..OPEN_LOOKS_MAX {
            let number = match self.inner.mapper.open_count(device).await {
                // What is not active is not used; somebody may have removed it by hand.
                Ok(0) | Err(Why::Errno(libc::ENXIO)) => return Ok(false),
                Ok(_) => self.inner.mapper.number(device).await?,
                Err(why) => return Err(why),
            };
            // Paths in it are bytes; numbers are text whatever the rest is.
            let mounts = blocking(&self.inner.lanes.files, || fs::read(MOUNTS)).await?;
            if is_mounted(&String::from_utf8_lossy(&mounts), number) {
                return Ok(true);
            }
            rt::sleep(Duration::from_millis(OPEN_AGAIN_AFTER_MS)).await;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device_and_nothing_else() {
        let mounts = "22 1 253:1 / / rw - ext4 /dev/vda1 rw\n\
                      41 22 0:30 /253:7 /mnt/a\\040253:7 rw shared:3 - tmpfs 253:7 rw\n\
                      42 22 253:70 / /mnt/b rw - xfs /dev/dm-70 rw\n";
        assert!(is_mounted(mounts, DeviceNumber(253, 1)));
        assert!(is_mounted(mounts, DeviceNumber(253, 70)));
        assert!(!is_mounted(mounts, DeviceNumber(253, 7)));
        assert!(!is_mounted("", DeviceNumber(253, 1)));
    }
}
