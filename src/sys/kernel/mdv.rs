//! Metadata volumes: SKELETON, owned by helper volume. Mount, unmount, primitive file operations.

use crate::error::Why;
use crate::model::ids::PoolUuid;
use crate::sys::kernel::KernelSys;

impl KernelSys {
    pub(super) async fn mount_volume(&self, _pool: PoolUuid) -> Result<(), Why> {
        Err(Why::Errno(libc::ENOSYS))
    }

    pub(super) async fn unmount_volume(&self, _pool: PoolUuid) -> Result<(), Why> {
        Err(Why::Errno(libc::ENOSYS))
    }
}
use crate::error::Fault;
use crate::model::dm::Dm;
use crate::sys::Folder;

#[allow(clippy::unused_async)]
impl KernelSys {
    pub(super) async fn format_volume(&self, _device: Dm, _uuid: uuid::Uuid) -> Result<(), Why> {
        Err(Why::Errno(libc::ENOSYS))
    }
    pub(super) fn cancel_formats(&self) {}
    pub(super) async fn volume_list(&self, pool: PoolUuid, _: Folder) -> Result<Vec<String>, Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
    pub(super) async fn volume_read(&self, pool: PoolUuid, _: Folder, _file: &str) -> Result<Vec<u8>, Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
    pub(super) async fn volume_write(&self, pool: PoolUuid, _: Folder, _file: &str, _: &[u8]) -> Result<(), Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
    pub(super) async fn volume_sync(&self, pool: PoolUuid, _: Folder, _file: &str) -> Result<(), Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
    pub(super) async fn volume_rename(&self, pool: PoolUuid, _: Folder, _: &str, _: &str) -> Result<(), Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
    pub(super) async fn volume_remove(&self, pool: PoolUuid, _: Folder, _file: &str) -> Result<(), Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
    pub(super) async fn volume_sync_folder(&self, pool: PoolUuid, _: Folder) -> Result<(), Fault> {
        Err(Fault::errno("skeleton", pool, libc::ENOSYS))
    }
}
