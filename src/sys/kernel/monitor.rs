//! What happens to devices: udev's monitor, and events of device-mapper. SKELETON, owned by helper events.

use crate::model::dm::Dm;
use crate::sys::DeviceEvent;
use crate::sys::kernel::KernelSys;

impl KernelSys {
    /// Starts listening; what happens from here on is told by `next_device_events`.
    pub(super) fn listen(&self) {}

    pub(super) async fn next_device_events(&self) -> Vec<DeviceEvent> {
        std::future::pending().await
    }

    pub(super) async fn next_dm_events(&self) -> Vec<Dm> {
        std::future::pending().await
    }
}
