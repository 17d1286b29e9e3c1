//! The two ways to wait that both runtimes share: for a point in time, and for the others.
//!
//! Invariant: a sleeper is listed only while its future lives, so dropping a sleep costs nothing
//! later.
//!
//! Deliberately absent: a clock. Who owns the sleepers says what time it is.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::Instant;
use crate::rt::{self, Boxed};

/// When a sleeper wakes: the deadline, then the order in which they went to sleep.
type Deadline = (Instant, u64);

/// Who waits for a point in time.
#[derive(Default)]
pub(crate) struct Sleepers {
    listed: RefCell<BTreeMap<Deadline, Waker>>,
    ordered: Cell<u64>,
}

impl Sleepers {
    /// A future that ends `duration` after `now`; it gives way at least once, even for no time at all.
    pub(crate) fn sleep(self: &Rc<Self>, now: Instant, duration: Duration) -> Boxed {
        let order = self.ordered.get();
        self.ordered.set(order + 1);
        let at_least = duration.max(Duration::from_nanos(1));
        Box::pin(Sleep { deadline: (now + at_least, order), sleepers: self.clone() })
    }

    /// The next deadline, if anybody sleeps.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.listed.borrow().keys().next().map(|(deadline, _)| *deadline)
    }

    /// Wakes all whose deadline has come by `now`, in the order of their deadlines.
    pub(crate) fn wake(&self, now: Instant) {
        if self.next().is_none_or(|deadline| deadline > now) {
            return;
        }
        let due = {
            let mut listed = self.listed.borrow_mut();
            let later = listed.split_off(&(now, u64::MAX));
            std::mem::replace(&mut *listed, later)
        };
        due.into_values().for_each(Waker::wake);
    }
}

/// Waits for a point in time.
struct Sleep {
    deadline: Deadline,
    sleepers: Rc<Sleepers>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if rt::now() >= self.deadline.0 {
            return Poll::Ready(());
        }
        self.sleepers.listed.borrow_mut().insert(self.deadline, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.sleepers.listed.borrow_mut().remove(&self.deadline);
        drop(waker);
    }
}

/// A future that gives way once.
pub(crate) fn give_way() -> Boxed {
    Box::pin(Yield { yielded: false })
}

struct Yield {
    yielded: bool,
}

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
