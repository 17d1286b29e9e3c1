//! Reading, writing and flushing sectors: SKELETON, owned by helper devices.

use crate::error::{Fault, Why};
use crate::sys::kernel::KernelSys;
use crate::sys::{Target, Write};
use crate::units::Sectors;

impl KernelSys {
    /// What a target is called in a message.
    pub(super) fn subject(&self, target: Target, start: Sectors) -> String {
        format!("{target:?} at sector {}", start.0)
    }

    pub(super) async fn read_sectors(&self, _: Target, _start: Sectors, _count: Sectors) -> Result<Vec<u8>, Why> {
        Err(Why::Errno(libc::ENOSYS))
    }

    pub(super) async fn write_sectors(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        batch.iter().map(|_| Err(Fault::errno("write", "skeleton", libc::ENOSYS))).collect()
    }

    pub(super) async fn flush_targets(&self, targets: &[Target]) -> Vec<Result<(), Fault>> {
        targets.iter().map(|_| Err(Fault::errno("flush", "skeleton", libc::ENOSYS))).collect()
    }
}
