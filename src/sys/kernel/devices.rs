//! Open block devices.
//!
//! Each is open once, for looking or for writing. A device that becomes a new member is also held
//! exclusively, from before it is examined for the last time until the first dm table that refers to
//! it: from then on the kernel holds it for dm, and two holders would be in each other's way.
//!
//! Invariant: what is open has the number and the size that were examined. What is opened for a look is
//! open for reading only: udev looks again at a device when a descriptor for writing is closed. It
//! may miss that while it is still busy with the device, so where a signature came or went it is told
//! with an event of its own: when a hold is given up, and when a device is closed to be forgotten.
//!
//! Deliberately absent: what is on the devices; remembering them (udev finds them again).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use cores::side::Fd;

use super::block::shape;
use super::{examine, fault, lanes};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath};
use crate::sys::Opening;
use crate::sys::kernel::KernelSys;
use crate::units::Sectors;

/// An open device.
pub(super) struct Open {
    /// Where it is.
    pub(super) path: DevicePath,
    /// The descriptor for reading, and for writing unless it is open for a look only.
    pub(super) fd: Fd,
    /// Its length.
    pub(super) size: Sectors,
    /// Its block sizes.
    pub(super) blocks: BlockSizes,
    writable: bool,
    hold: Option<OwnedFd>,
}

/// A device that was just opened.
struct Opened {
    file: File,
    hold: Option<File>,
}

impl KernelSys {
    pub(super) async fn open_device(&self, candidate: &Candidate, opening: Opening) -> Result<(), Failure> {
        if opening == Opening::Member {
            self.release_exclusive(&[candidate.number]).await;
        }
        if self.is_open(candidate, opening) {
            return Ok(());
        }
        let own = candidate.clone();
        let opened = lanes::on(&self.inner.lanes.probe, move || open(&own, opening)).await;
        let Opened { file, hold } = opened.map_err(fault("open", &candidate.path))??;
        let open = Open {
            path: candidate.path.clone(),
            fd: Fd::new(file.into()),
            size: candidate.size,
            blocks: candidate.blocks,
            writable: opening != Opening::Look,
            hold: hold.map(Into::into),
        };
        let before = self.inner.open.borrow_mut().insert(candidate.number, open);
        self.shut(before).await;
        Ok(())
    }

    /// Whether it is open for that already, and in the size that it has.
    fn is_open(&self, candidate: &Candidate, opening: Opening) -> bool {
        self.inner.open.borrow().get(&candidate.number).is_some_and(|open| match opening {
            Opening::Look => true,
            Opening::Member => open.writable && open.size == candidate.size,
            Opening::New => open.hold.is_some(),
        })
    }

    pub(super) async fn close_device(&self, number: DeviceNumber, forget: bool) {
        let open = self.inner.open.borrow_mut().remove(&number);
        let written = open.as_ref().is_some_and(|open| open.writable);
        self.shut(open).await;
        if forget && written {
            self.let_go(vec![(number, None)]).await;
        }
    }

    /// Closes a device on a lane: the last close of a device may wait for its cache to be written.
    async fn shut(&self, open: Option<Open>) {
        let Some(Open { path, fd, hold, .. }) = open else { return };
        // Operations in flight keep the descriptor; then the last of them closes it.
        let fd = Rc::try_unwrap(fd).ok();
        if let Err(why) = lanes::on(&self.inner.lanes.probe, move || drop((hold, fd))).await {
            log::warn!("{}", Fault::new("close in good order", path, why));
        }
    }

    /// Gives up the exclusive hold on devices that a dm table is about to refer to. Their signatures are
    /// durable by now, and udev is told to look.
    pub(super) async fn release_exclusive(&self, numbers: &[DeviceNumber]) {
        let mut holds = Vec::new();
        for number in numbers {
            let hold = self.inner.open.borrow_mut().get_mut(number).and_then(|open| open.hold.take());
            holds.extend(hold.map(|hold| (*number, Some(hold))));
        }
        if !holds.is_empty() {
            self.let_go(holds).await;
        }
    }

    /// Closes holds and makes the kernel tell everybody that the devices have changed. Best effort.
    async fn let_go(&self, devices: Vec<(DeviceNumber, Option<OwnedFd>)>) {
        let job = move || {
            for (DeviceNumber(major, minor), hold) in devices {
                drop(hold);
                let file = format!("/sys/dev/block/{major}:{minor}/uevent");
                match fs::write(&file, "change") {
                    Ok(()) => {}
                    // A device that is gone has told so itself.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => log::warn!("{}", Fault::io("tell udev by writing to", file, &error)),
                }
            }
        };
        if let Err(why) = lanes::on(&self.inner.lanes.probe, job).await {
            // The job was dropped, and the holds with it.
            log::warn!("{}", Fault::new("let go", "of devices", why));
        }
    }

    pub(super) async fn examine_device(&self, path: &DevicePath) -> Result<Candidate, Failure> {
        let own = path.clone();
        lanes::on(&self.inner.lanes.probe, move || examine::examine(&own)).await.map_err(fault("examine", path))?
    }

    pub(super) async fn discover_devices(&self) -> Result<Vec<Candidate>, Fault> {
        // There may be thousands of these, and none of them is what is looked for.
        let own = self.inner.mapper.minors().await.unwrap_or_default();
        let job = move || {
            let looked = examine::list(&own)?.into_iter().filter_map(|path| {
                let look = examine::unread(&path);
                look.inspect_err(|failure| log::info!("no pool is looked for on a device: {failure}")).ok()
            });
            Ok(looked.collect())
        };
        let listed: Result<Vec<Candidate>, Why> = lanes::blocking(&self.inner.lanes.probe, job).await;
        let mut found = listed.map_err(fault("list", "block devices"))?;
        // One device under two nodes.
        found.sort_by_key(|candidate| candidate.number);
        found.dedup_by_key(|candidate| candidate.number);
        Ok(found)
    }
}

/// Opens a device that was examined. Blocking.
fn open(candidate: &Candidate, opening: Opening) -> Result<Opened, Failure> {
    let path = &candidate.path;
    let hold = match opening {
        Opening::New => Some(node(path, false, libc::O_EXCL)?),
        Opening::Look | Opening::Member => None,
    };
    let writable = opening != Opening::Look;
    let file = node(path, writable, libc::O_DIRECT)?;
    // A device whose shape cannot be read is not what was examined either.
    let shape = shape(&file).ok();
    let same = |shape: &super::block::Shape| (shape.number, shape.size) == (candidate.number, candidate.size);
    match shape.filter(same) {
        None => Err(Refusal::DeviceChanged { path: path.clone() }.into()),
        Some(shape) if writable && shape.read_only => Err(Refusal::DeviceReadOnly { path: path.clone() }.into()),
        Some(_) => Ok(Opened { file, hold }),
    }
}

fn node(path: &DevicePath, writable: bool, flags: i32) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path.as_path());
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Refusal::DeviceChanged { path: path.clone() }.into(),
        Some(libc::EBUSY) => Refusal::DeviceInUse { path: path.clone() }.into(),
        Some(libc::EROFS | libc::EACCES) if writable => Refusal::DeviceReadOnly { path: path.clone() }.into(),
        _ => Fault::io("open", path, &error).into(),
    })
}
