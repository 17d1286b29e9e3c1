//! Having the kernel replay the log of a filesystem, which it does when it mounts one.
//!
//! The mount is where only this process sees it, and lasts as long as the replay; it goes with the process
//! if that dies meanwhile, and the next daemon finds the volume unused.
//!
//! Invariant: after an error nothing is mounted and no folder is left, unless unmounting is what failed.
//!
//! Deliberately absent: looking at the log, before or after.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::KernelSys;
use super::dm::node;
use super::lanes::{self, blocking};
use super::mdv::remove_mount_point;
use super::namespace::MOUNTS;
use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::Dm;
use crate::sys::volume::make_folder;

/// A snapshot has the UUID of its origin, and that one may be mounted.
const OPTIONS: &str = "nouuid";

fn mount_there(device: DeviceNumber, there: &Path) -> io::Result<()> {
    make_folder(there)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some(&node(device)), there, Some("xfs"), flags, Some(OPTIONS));
    if mounted.is_err()
        && let Err(error) = remove_mount_point(there)
    {
        log::warn!("a mount point stays (path={}): {error}", there.display());
    }
    Ok(mounted?)
}

impl KernelSys {
    /// Mounts a filesystem and unmounts it again.
    pub(super) async fn mount_once(&self, device: Dm) -> Result<(), Why> {
        let number = self.inner.mapper.number(device).await?;
        let there: PathBuf = Path::new(MOUNTS).join(format!(".replay-{device}"));
        let point = there.clone();
        blocking(lanes::of(&self.inner.lanes.mount, device.pool()), move || mount_there(number, &point)).await?;
        self.unmount(device.pool(), there).await
    }
}
