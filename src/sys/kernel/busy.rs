//! Whether a volume is in use: SKELETON, owned by helper volume.

use crate::error::Why;
use crate::model::dm::Dm;
use crate::sys::kernel::KernelSys;

impl KernelSys {
    pub(super) async fn in_use(&self, _device: Dm) -> Result<bool, Why> {
        Err(Why::Errno(libc::ENOSYS))
    }
}
