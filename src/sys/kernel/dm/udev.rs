//! Waiting for udev beside everything else.
//!
//! Invariant: each cookie is waited for in a task of its own, for a bounded time, in slices on the lane
//! of udev; so a udevd that hangs costs neither a thread nor anybody else's wait. Once a wait was in
//! vain, waits are short until udevd completes something again. A cookie whose wait is over is gone.
//!
//! Deliberately absent: what becomes of the events. Nothing here depends on udev; clients are to find
//! links when they have their reply, if udev is well.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use cores::changes::Signal;
use cores::rt;

use super::cookie::Cookie;
use super::semaphore::Waited;
use crate::error::Why;
use crate::limits::{UDEV_HUNG_WAIT_MS, UDEV_WAIT_MS, UDEV_WAIT_SLICE_MS};
use crate::model::dm::Dm;
use crate::model::ids::PoolUuid;
use crate::sys::kernel::lanes::{self, Lanes};
use crate::sys::kernel::why;

/// The waits of one core.
pub(super) struct Waits {
    lanes: Rc<Lanes>,
    pending: RefCell<Vec<Rc<Pending>>>,
    /// A wait was in vain, and udevd has completed nothing since.
    hung: Cell<bool>,
}

/// One wait.
struct Pending {
    devices: Vec<Dm>,
    over: Cell<bool>,
    ended: Signal,
}

impl Waits {
    pub(super) fn new(lanes: Rc<Lanes>) -> Self {
        Self { lanes, pending: RefCell::default(), hung: Cell::new(false) }
    }

    /// Waits beside for what was done to these devices.
    pub(super) fn watch(self: &Rc<Self>, devices: Vec<Dm>, cookie: Cookie) {
        let pending = Rc::new(Pending { devices, over: Cell::new(false), ended: Signal::default() });
        self.pending.borrow_mut().push(Rc::clone(&pending));
        let waits = Rc::clone(self);
        rt::spawn("udev", async move {
            waits.wait(&pending.devices, cookie).await;
            waits.pending.borrow_mut().retain(|other| !Rc::ptr_eq(other, &pending));
            pending.over.set(true);
            pending.ended.raise();
        })
        .detach();
    }

    /// Waits until nothing of a pool is waited for any more that is now.
    pub(super) async fn settle(&self, pool: PoolUuid) {
        let meant = |pending: &&Rc<Pending>| pending.devices.iter().any(|device| device.pool() == pool);
        let now: Vec<_> = self.pending.borrow().iter().filter(meant).cloned().collect();
        for pending in now {
            pending.ended.until(|| pending.over.get().then_some(())).await;
        }
    }

    async fn wait(&self, devices: &[Dm], cookie: Cookie) {
        let began = rt::now();
        let mut cookie = cookie;
        loop {
            // The job takes the cookie along, so that its end is on the lane too.
            let slice = lanes::on(&self.lanes.udev, move || {
                let waited = cookie.wait(Duration::from_millis(UDEV_WAIT_SLICE_MS));
                (matches!(waited, Ok(Waited::NotYet)).then_some(cookie), waited)
            });
            match slice.await {
                Ok((Some(same), _)) => cookie = same,
                Ok((None, Ok(_))) => return self.hung.set(false),
                Ok((None, Err(error))) => return log::warn!("udev is not waited for: {}", why(&error)),
                Err(Why::Full { .. }) => return log::warn!("udev is not waited for: {}", named(devices)),
                Err(why) => return log::warn!("udev is not waited for: {why}"),
            }
            let longest = Duration::from_millis(if self.hung.get() { UDEV_HUNG_WAIT_MS } else { UDEV_WAIT_MS });
            let waited = rt::now().since(began);
            if waited >= longest {
                self.give_up(devices, waited.as_secs_f32());
                // On a full lane it is dropped here: it is two short calls.
                let _ = lanes::on(&self.lanes.udev, move || drop(cookie)).await;
                return;
            }
        }
    }

    fn give_up(&self, devices: &[Dm], seconds: f32) {
        let what = named(devices);
        if self.hung.replace(true) {
            log::info!("udev still does not react ({what} s={seconds:.1})");
        } else {
            log::warn!("udev does not react, links in /dev may be missing: is udevd well? ({what} s={seconds:.1})");
        }
    }
}

/// A batch, for the log.
fn named(devices: &[Dm]) -> String {
    match devices {
        [] => "nothing".to_owned(),
        [one] => format!("pool={} device={one}", one.pool()),
        [first, ..] => format!("pool={} devices={} first={first}", first.pool(), devices.len()),
    }
}
