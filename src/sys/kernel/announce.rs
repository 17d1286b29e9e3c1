//! Telling udev the names of a filesystem: SKELETON, owned by helper volume.

use crate::error::Why;
use crate::model::dm::Dm;
use crate::model::name::Name;
use crate::sys::kernel::KernelSys;

impl KernelSys {
    pub(super) async fn tell_udev(&self, _device: Dm, _pool: &Name, _filesystem: &Name) -> Result<(), Why> {
        Err(Why::Errno(libc::ENOSYS))
    }
}
