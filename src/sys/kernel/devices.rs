//! Open block devices: SKELETON, owned by helper devices.

use crate::error::{Failure, Fault};
use crate::model::device::{Candidate, DeviceNumber, DevicePath};
use crate::sys::Opening;
use crate::sys::kernel::KernelSys;

/// An open device.
pub(super) struct Open {
    /// Where it is.
    #[allow(dead_code)]
    pub(super) path: DevicePath,
}

impl KernelSys {
    pub(super) async fn open_device(&self, candidate: &Candidate, _opening: Opening) -> Result<(), Failure> {
        Err(Fault::errno("open", &candidate.path, libc::ENOSYS).into())
    }

    pub(super) async fn close_device(&self, _number: DeviceNumber) {}

    /// Gives up the exclusive hold on devices that a dm table is about to refer to.
    pub(super) fn release_exclusive(&self, _numbers: &[DeviceNumber]) {}

    pub(super) async fn examine_device(&self, path: &DevicePath) -> Result<Candidate, Failure> {
        Err(Fault::errno("examine", path, libc::ENOSYS).into())
    }

    pub(super) async fn discover_devices(&self) -> Result<Vec<Candidate>, Fault> {
        Err(Fault::errno("discover", "devices", libc::ENOSYS))
    }
}
