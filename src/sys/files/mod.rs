//! A machine made of files: devices are regular files, thin volumes are sparse files, the metadata
//! volume is a folder. The I/O is real; device-mapper is only kept in mind.
//!
//! For trying the daemon without risk, and for tests of everything above the kernel. A daemon works
//! like this only when it was started with `--files DIR`, never because something else is missing.
//!
//! Invariant: what the trait calls durable is durable on the host's file system. dm tables vanish
//! with the process, as they would at a reboot.
//!
//! Deliberately absent: sync(2) and every other call that waits for the whole host; mounts.

mod calls;
mod devices;
mod examine;
mod links;
mod mdv;
mod root;
mod sectors;
#[cfg(test)]
mod tests;
mod thin;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use cores::lane::Lane;
use cores::rt;
use cores::side::{Fd, Side};

use self::root::Locked;
use crate::error::{Fault, Why};
use crate::limits::{BLOCKING_THREADS, LANE_QUEUE_MAX};
use crate::model::device::{DeviceNumber, DevicePath};
use crate::model::dm::{Dm, Table};
use crate::model::ids::PoolUuid;
use crate::sys::Target;
use crate::sys::jobs;
use crate::sys::stack::Stack;
use crate::units::Sectors;

pub use self::root::{FilesRoot, RootFault};

/// An open device.
struct Open {
    path: DevicePath,
    fd: Fd,
    size: Sectors,
    _lock: Locked,
}

struct Inner {
    root: FilesRoot,
    side: Rc<Side>,
    lane: Lane,
    open: RefCell<BTreeMap<DeviceNumber, Open>>,
    stack: RefCell<Stack>,
    mounted: RefCell<BTreeSet<PoolUuid>>,
    /// The link to each announced volume, and where it leads.
    links: RefCell<BTreeMap<Dm, (PathBuf, PathBuf)>>,
}

/// The machine of files as one core sees it. Clones are the same.
#[derive(Clone)]
pub struct FilesSys {
    inner: Rc<Inner>,
}

impl fmt::Debug for FilesSys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "FilesSys({})", self.inner.root.path().display())
    }
}

impl FilesSys {
    /// The machine for the core that this is called on; its blocking calls run on `cpu`.
    ///
    /// # Panics
    /// Outside of a core: there is no side ring.
    pub fn new(root: FilesRoot, cpu: Option<usize>) -> Self {
        let inner = Inner {
            root,
            side: rt::side(),
            lane: Lane::new("files", BLOCKING_THREADS, LANE_QUEUE_MAX, cpu),
            open: RefCell::default(),
            stack: RefCell::new(Stack::new()),
            mounted: RefCell::default(),
            links: RefCell::default(),
        };
        Self { inner: Rc::new(inner) }
    }

    /// Runs a job that blocks on the lane.
    async fn lane<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Why> {
        jobs::on(&self.inner.lane, job).await
    }

    /// As `lane`, for a job that ends with a system call's result.
    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Why> {
        jobs::blocking(&self.inner.lane, job).await
    }

    /// What a target is called in a message.
    fn subject(&self, target: Target, start: Sectors) -> String {
        match target {
            Target::Dm(device) => format!("{device} at sector {}", start.0),
            Target::Device(number) => match self.inner.open.borrow().get(&number) {
                Some(device) => format!("{} at sector {}", device.path, start.0),
                None => format!("a device that is not open ({}-{})", number.0, number.1),
            },
        }
    }

    /// The file of an active thin volume.
    fn volume(&self, device: Dm) -> Result<PathBuf, Why> {
        match self.inner.stack.borrow().table(device) {
            Some(Table::Thin { id, .. }) => Ok(self.inner.root.volume(device.pool(), *id)),
            Some(Table::Linear(_) | Table::Cache { .. } | Table::ThinPool { .. }) => Err(Why::Errno(libc::EINVAL)),
            None => Err(Why::Errno(libc::ENXIO)),
        }
    }
}

fn fault(doing: &'static str, subject: impl ToString) -> impl FnOnce(Why) -> Fault {
    move |why| Fault::new(doing, subject, why)
}
