//! What happens to devices: udev's messages, and events of thin pools.
//!
//! Invariants: what happens after `listen` is told, or it is told that something was lost; dm events
//! are armed before they are looked at, so that none falls in between; nothing here waits for udev, a
//! device or another process except to be woken.
//!
//! Deliberately absent: what a change means for a pool, and looking at the device itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cores::rt;
use cores::side::Fd;
use devicemapper::DM;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use udev::{MonitorBuilder, MonitorSocket};

use super::dm::list::{Listed, Room, list};
use super::lanes;
use crate::error::Why;
use crate::limits::{DEVICE_EVENTS_MAX, MONITOR_BYTES};
use crate::model::device::{DeviceNumber, DevicePath};
use crate::model::dm::{Dm, PRIVATE, thin_pool_of};
use crate::model::ids::PoolUuid;
use crate::sys::DeviceEvent;
use crate::sys::kernel::KernelSys;

/// The socket at which a running udevd is asked for things.
const UDEVD: &str = "/run/udev/control";
/// How long to leave alone what has just failed for no reason of ours.
const PAUSE: Duration = Duration::from_secs(1);

/// What one core listens to.
#[derive(Default)]
pub(super) struct Ears {
    udev: RefCell<Option<Rc<Monitor>>>,
    dm: RefCell<Option<Rc<Control>>>,
}

impl KernelSys {
    /// Starts listening; what happens from here on is told by `next_device_events`.
    pub(super) fn listen(&self) {
        if self.inner.ears.udev.borrow().is_some() {
            return;
        }
        match Monitor::open() {
            Ok(monitor) => *self.inner.ears.udev.borrow_mut() = Some(Rc::new(monitor)),
            Err(error) => log::error!("devices that come and go are not noticed: cannot listen to udev: {error}"),
        }
    }

    /// As `Sys::device_events`.
    pub(super) async fn next_device_events(&self) -> Vec<DeviceEvent> {
        let monitor = self.inner.ears.udev.borrow().clone();
        let Some(monitor) = monitor else {
            return std::future::pending().await;
        };
        loop {
            let (told, dry) = monitor.drain();
            if !told.is_empty() {
                return told;
            }
            if !dry {
                rt::yield_now().await;
                continue;
            }
            if let Err(error) = self.inner.side.readable(&monitor.fd).await {
                log::error!("cannot wait for udev's messages: {error}");
                rt::sleep(PAUSE).await;
            }
        }
    }

    /// As `Sys::thin_pool_events`.
    pub(super) async fn next_thin_pool_events(&self) -> Vec<PoolUuid> {
        loop {
            match self.thin_pool_news().await {
                Ok(news) if !news.is_empty() => return news,
                Ok(_) => {}
                Err(why) => {
                    log::error!("cannot look for events of device-mapper: {why}");
                    rt::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Looks at the event numbers; if none has changed, waits until one may have.
    async fn thin_pool_news(&self) -> Result<Vec<PoolUuid>, Why> {
        let control = self.control()?;
        let source = Arc::clone(&control.source);
        let listed = lanes::on(&self.inner.lanes.events, move || source.look()).await?;
        let listed = listed.map_err(|error| {
            log::error!("device-mapper does not list its devices: {error}");
            Why::Errno(libc::EIO)
        })?;
        let news = control.compare(listed.into_iter().collect());
        if news.is_empty() {
            self.inner.side.readable(&control.fd).await.map_err(|error| super::why(&error))?;
        }
        Ok(news)
    }

    fn control(&self) -> Result<Rc<Control>, Why> {
        let mut known = self.inner.ears.dm.borrow_mut();
        match &*known {
            Some(control) => Ok(Rc::clone(control)),
            None => {
                let control = Rc::new(Control::open()?);
                *known = Some(Rc::clone(&control));
                Ok(control)
            }
        }
    }
}

// ---- udev -----------------------------------------------------------------------------------------

/// udev's messages about block devices.
struct Monitor {
    socket: MonitorSocket,
    /// The same socket, to wait for.
    fd: Fd,
    /// Whether the messages come from udevd, which knows what is on a device, or from the kernel.
    knowing: bool,
    /// Whether a message was dropped since the socket was empty.
    lost: Cell<bool>,
}

impl Monitor {
    fn open() -> io::Result<Self> {
        let knowing = Path::new(UDEVD).exists();
        if !knowing {
            log::warn!("udevd does not run: every block device that comes or changes is looked at");
        }
        let builder = if knowing { MonitorBuilder::new() } else { MonitorBuilder::new_kernel() };
        let socket = builder?.match_subsystem("block")?.listen()?;
        if let Err(errno) = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &MONITOR_BYTES) {
            log::warn!("bursts of device events may be lost, and then all devices are looked at: {errno}");
        }
        let fd = Rc::new(socket.as_fd().try_clone_to_owned()?);
        Ok(Self { socket, fd, knowing, lost: Cell::new(false) })
    }

    /// Takes what has arrived, up to a bound; true: that was all.
    ///
    /// From the first message that the kernel has no room for until the socket is empty it drops every
    /// message, and says so once. So a loss is told when the socket is empty, and what was in it until
    /// then is not: all devices are going to be looked at.
    fn drain(&self) -> (Vec<DeviceEvent>, bool) {
        let mut told = Vec::new();
        for _ in 0..DEVICE_EVENTS_MAX {
            match self.socket.iter().next() {
                Some(_) if self.lost.get() => {}
                Some(event) => told.extend(Heard::of(&event).and_then(|heard| heard.tell(self.knowing))),
                None if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => self.lost.set(true),
                // What is no message of udevd's looks like the end of them.
                None => match self.peek() {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(Errno::ENOBUFS) => self.lost.set(true),
                    Err(_) => {
                        told.extend(self.lost.take().then_some(DeviceEvent::Lost));
                        return (told, true);
                    }
                },
            }
        }
        (told, false)
    }

    /// Whether something waits; taken is an error at most.
    fn peek(&self) -> nix::Result<usize> {
        recv(self.fd.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
    }
}

/// What a message says, as far as it matters here.
struct Heard<'a> {
    action: &'a str,
    path: DevicePath,
    number: DeviceNumber,
    holds: Option<&'a str>,
    multipath: bool,
    dm_name: Option<&'a str>,
}

impl<'a> Heard<'a> {
    /// Reads a message; one that names no device node is about nothing that a pool is made of.
    fn of(event: &'a udev::Event) -> Option<Self> {
        let text = |key| event.property_value(key).and_then(|value| value.to_str());
        let part = |key| text(key).and_then(|value| value.parse().ok());
        Some(Self {
            action: text("ACTION")?,
            path: event.devnode().and_then(Path::to_str).and_then(|path| DevicePath::try_from(path).ok())?,
            number: DeviceNumber(part("MAJOR")?, part("MINOR")?),
            holds: text("ID_FS_TYPE"),
            multipath: text("DM_MULTIPATH_DEVICE_PATH") == Some("1"),
            dm_name: text("DM_NAME"),
        })
    }

    /// What that means. Where udevd has looked at the device, it is believed: a device of somebody else
    /// is not opened each time it changes.
    fn tell(self, knowing: bool) -> Option<DeviceEvent> {
        let Self { action, path, number, holds, multipath, dm_name } = self;
        if dm_name.is_some_and(|name| name.parse::<Dm>().is_ok()) {
            return None;
        }
        let may_be_ours = !knowing || (holds == Some("stratis") && !multipath);
        if action != "remove" && may_be_ours {
            Some(DeviceEvent::Changed { path, number })
        } else {
            Some(DeviceEvent::Removed { path, number })
        }
    }
}

// ---- device-mapper ----------------------------------------------------------------------------------

/// Device-mapper's control device, open for its events alone, and the event numbers told so far.
struct Control {
    source: Arc<Source>,
    /// The same, to wait for.
    fd: Fd,
    told: RefCell<Option<BTreeMap<PoolUuid, u32>>>,
}

/// What a lane looks at.
struct Source {
    dm: DM,
    room: Room,
}

impl Source {
    /// Lists thin pools with their event numbers; what happens from now on wakes who waits for it.
    fn look(&self) -> io::Result<Vec<(PoolUuid, u32)>> {
        self.dm.arm_poll().map_err(io::Error::other)?;
        let thin_pool = |listed: Listed<'_>| Some((thin_pool_of(listed.name)?, listed.event));
        list(self.dm.file().as_fd(), &self.room, PRIVATE, thin_pool)
    }
}

impl Control {
    fn open() -> Result<Self, Why> {
        let dm = DM::new().map_err(|error| {
            log::error!("cannot open device-mapper for its events: {error}");
            Why::Errno(libc::EIO)
        })?;
        let fd = dm.file().as_fd().try_clone_to_owned().map_err(|error| super::why(&error))?;
        Ok(Self { source: Arc::new(Source { dm, room: Room::default() }), fd: Rc::new(fd), told: RefCell::default() })
    }

    fn compare(&self, now: BTreeMap<PoolUuid, u32>) -> Vec<PoolUuid> {
        let mut told = self.told.borrow_mut();
        let news = news(told.as_ref(), &now);
        *told = Some(now);
        news
    }
}

/// The thin pools whose number is not the one told before. The first time those are all; later one that is new and has
/// raised no event is none.
fn news(told: Option<&BTreeMap<PoolUuid, u32>>, now: &BTreeMap<PoolUuid, u32>) -> Vec<PoolUuid> {
    let is_new = |pool: &PoolUuid, event: u32| match told {
        None => true,
        Some(told) => told.get(pool).copied().unwrap_or_default() != event,
    };
    now.iter().filter(|(pool, event)| is_new(pool, **event)).map(|(pool, _)| *pool).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dm::Role;

    fn heard(action: &'static str, holds: Option<&'static str>) -> Heard<'static> {
        Heard {
            action,
            path: DevicePath::try_from("/dev/sda").expect("absolute"),
            number: DeviceNumber(8, 0),
            holds,
            multipath: false,
            dm_name: None,
        }
    }

    fn changed(heard: Heard<'_>, knowing: bool) -> bool {
        match heard.tell(knowing).expect("it is told") {
            DeviceEvent::Changed { .. } => true,
            DeviceEvent::Removed { .. } => false,
            DeviceEvent::Lost => panic!("a message is no loss"),
        }
    }

    #[test]
    fn what_udevd_has_seen_decides() {
        assert!(changed(heard("add", Some("stratis")), true));
        assert!(changed(heard("change", Some("stratis")), true));
        assert!(!changed(heard("change", Some("xfs")), true));
        assert!(!changed(heard("change", None), true));
        assert!(!changed(heard("remove", Some("stratis")), true));
        assert!(!changed(Heard { multipath: true, ..heard("change", Some("stratis")) }, true));
    }

    #[test]
    fn without_udevd_every_device_is_looked_at() {
        assert!(changed(heard("add", None), false));
        assert!(!changed(heard("remove", None), false));
    }

    #[test]
    fn our_own_dm_devices_are_no_news() {
        let name = Dm::Private(PoolUuid::from_random([7; 16]), Role::Cache).to_string();
        assert_eq!(Heard { dm_name: Some(&name), ..heard("change", None) }.tell(true), None);
        assert!(changed(Heard { dm_name: Some("vg-lv"), ..heard("change", Some("stratis")) }, true));
    }

    #[test]
    fn an_event_number_is_told_once() {
        let [one, other] = [7, 8].map(|byte| PoolUuid::from_random([byte; 16]));
        let first = BTreeMap::from([(one, 0), (other, 3)]);
        assert_eq!(news(None, &first), [one, other], "the first time all are told");
        assert_eq!(news(Some(&first), &first), []);
        let later = BTreeMap::from([(one, 1), (other, 3)]);
        assert_eq!(news(Some(&first), &later), [one]);
        assert_eq!(news(Some(&BTreeMap::new()), &first), [other], "a new one without an event is none");
        assert_eq!(news(Some(&later), &first), [one], "it was removed and made again");
    }
}
