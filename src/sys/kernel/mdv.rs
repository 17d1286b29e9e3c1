//! Metadata volumes: XFS on a linear device, mounted where only this process sees it.
//!
//! Invariant: a file operation on a volume that is not mounted fails (ENOENT): its folders exist
//! inside the volume only, never in the mount point.
//!
//! Deliberately absent: what is written, and in which order; a record of what is mounted, because the
//! kernel knows.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cores::rt;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::makedev;

use super::dm::node;
use super::lanes::{self, blocking};
use super::namespace::MOUNTS;
use super::{KernelSys, fault};
use crate::error::{Fault, Why};
use crate::limits::{BULK_FILES_MAX, UNMOUNT_AGAIN_AFTER_MS, UNMOUNT_TRIES_MAX};
use crate::model::device::DeviceNumber;
use crate::model::dm::{Dm, Role};
use crate::model::ids::PoolUuid;
use crate::sys::Folder;
use crate::sys::volume::{self, checked, make_folder, make_folders};
use crate::units::Bytes;

/// Where a pool's volume is mounted.
fn mount_point(pool: PoolUuid) -> PathBuf {
    Path::new(MOUNTS).join(format!(".mdv-{}", pool.simple()))
}

fn folder_path(pool: PoolUuid, folder: Folder) -> PathBuf {
    mount_point(pool).join(volume::name(folder))
}

/// Mounts a device, unless it is mounted there. Blocking.
fn mount_there(device: DeviceNumber, there: &Path) -> io::Result<()> {
    make_folder(there)?;
    let wanted = makedev(device.0, device.1);
    let present = fs::metadata(there)?.dev();
    if present != wanted {
        if present != fs::metadata(MOUNTS)?.dev() {
            return Err(Errno::EBUSY.into()); // Another device is mounted there.
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        match mount(Some(&node(device)), there, Some("xfs"), flags, None::<&str>) {
            // Busy may mean that it is mounted there since we looked, or that it is used otherwise.
            Err(Errno::EBUSY) if fs::metadata(there)?.dev() == wanted => {}
            outcome => outcome?,
        }
    }
    make_folders(there)
}

/// Unmounts what is mounted there; nothing is fine. Blocking.
fn unmount_there(there: &Path) -> nix::Result<()> {
    match umount2(there, MntFlags::UMOUNT_NOFOLLOW) {
        // No mount point, or no folder.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        outcome => outcome,
    }
}

pub(super) fn remove_mount_point(there: &Path) -> io::Result<()> {
    match fs::remove_dir(there) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

impl KernelSys {
    pub(super) async fn mount_volume(&self, pool: PoolUuid) -> Result<(), Why> {
        let device = self.inner.mapper.number(Dm::Private(pool, Role::Mdv)).await?;
        let there = mount_point(pool);
        blocking(lanes::of(&self.inner.lanes.mount, pool), move || mount_there(device, &there)).await
    }

    pub(super) async fn unmount_volume(&self, pool: PoolUuid) -> Result<(), Why> {
        self.unmount(pool, mount_point(pool)).await
    }

    /// Unmounts what is mounted there and removes the mount point. Tries again while it is busy: whoever
    /// looks at mounts (df, udev) holds one for moments.
    pub(super) async fn unmount(&self, pool: PoolUuid, mounted: PathBuf) -> Result<(), Why> {
        let lane = lanes::of(&self.inner.lanes.mount, pool);
        let mut tries = 1;
        loop {
            let there = mounted.clone();
            match blocking(lane, move || Ok(unmount_there(&there)?)).await {
                Err(Why::Errno(libc::EBUSY)) if tries < UNMOUNT_TRIES_MAX => tries += 1,
                Err(why) => return Err(why),
                Ok(()) => break,
            }
            rt::sleep(Duration::from_millis(UNMOUNT_AGAIN_AFTER_MS)).await;
        }
        blocking(lane, move || remove_mount_point(&mounted)).await
    }

    /// Runs a job on a file of a volume.
    async fn on_file<T: Send + 'static>(
        &self,
        doing: &'static str,
        (pool, folder, file): (PoolUuid, Folder, &str),
        job: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let path = folder_path(pool, folder);
        let subject = format!("{file:?} in {}", path.display());
        let outcome = match checked(file) {
            Ok(file) => {
                let path = path.join(file);
                blocking(lanes::of(&self.inner.lanes.files, pool), move || job(&path)).await
            }
            Err(why) => Err(why),
        };
        outcome.map_err(fault(doing, subject))
    }

    /// Runs a job on a folder of a volume.
    async fn on_folder<T: Send + 'static>(
        &self,
        doing: &'static str,
        pool: PoolUuid,
        folder: Folder,
        job: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let path = folder_path(pool, folder);
        let subject = path.display().to_string();
        let lane = lanes::of(&self.inner.lanes.files, pool);
        blocking(lane, move || job(&path)).await.map_err(fault(doing, subject))
    }

    pub(super) async fn volume_size(&self, pool: PoolUuid) -> Result<Bytes, Fault> {
        self.on_folder("measure", pool, Folder::Filesystems, volume::size).await
    }

    pub(super) async fn volume_list(&self, pool: PoolUuid, folder: Folder) -> Result<Vec<String>, Fault> {
        self.on_folder("list", pool, folder, volume::list).await
    }

    pub(super) async fn volume_read(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<Vec<u8>, Fault> {
        self.on_file("read", (pool, folder, file), volume::read).await
    }

    pub(super) async fn volume_read_each(
        &self,
        pool: PoolUuid,
        folder: Folder,
        files: &[String],
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let path = folder_path(pool, folder);
        let at = |file: &str| format!("{file:?} in {}", path.display());
        let mut all = Vec::with_capacity(files.len());
        for some in files.chunks(BULK_FILES_MAX) {
            for file in some {
                checked(file).map_err(fault("read", at(file)))?;
            }
            let (there, own) = (path.clone(), some.to_vec());
            let read =
                lanes::on(lanes::of(&self.inner.lanes.files, pool), move || volume::read_each(&there, &own)).await;
            let read = read.map_err(fault("read files in", path.display()))?;
            all.extend(read.map_err(|(file, error)| Fault::io("read", at(&file), &error))?);
        }
        Ok(all)
    }

    pub(super) async fn volume_write(
        &self,
        pool: PoolUuid,
        folder: Folder,
        file: &str,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let bytes = bytes.to_vec();
        self.on_file("write", (pool, folder, file), move |path| volume::write(path, &bytes)).await
    }

    pub(super) async fn volume_sync(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        self.on_file("flush", (pool, folder, file), volume::sync).await
    }

    pub(super) async fn volume_rename(
        &self,
        pool: PoolUuid,
        folder: Folder,
        from: &str,
        to: &str,
    ) -> Result<(), Fault> {
        let to = checked(to).map_err(fault("rename to", format!("{to:?}")))?;
        let to = folder_path(pool, folder).join(to);
        self.on_file("rename", (pool, folder, from), move |path| fs::rename(path, &to)).await
    }

    pub(super) async fn volume_remove(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        self.on_file("remove", (pool, folder, file), volume::remove).await
    }

    pub(super) async fn volume_sync_folder(&self, pool: PoolUuid, folder: Folder) -> Result<(), Fault> {
        self.on_folder("flush", pool, folder, volume::sync_folder).await
    }
}
