//! How the tasks of a glommio core are woken: by wakers of ours, through a bell of ours.
//!
//! glommio 0.9.0 has a hole. It may look at its latency ring just when a completion without a waiter
//! has come in (its preempt timer, or the eventfd behind its own foreign wake-ups), conclude that it
//! was preempted before it ran anything, take that for "nothing to run", and park with runnable
//! tasks. They then wait for the next event, which may never come; two cores that play ping-pong
//! under load hang within some thousand rounds (found by `benches/hop.rs`; repaired after 0.9.0, see
//! glommio/glommio pull request 53). So no such completion may ever come in:
//!
//! * the preempt timer is set to an hour; `Pace` preempts instead, through the bell;
//! * no glommio waker leaves its thread. Tasks get our wakers; from another thread these list the
//!   task and ring the bell, an eventfd that a task reads, so its completion has a waiter.
//!
//! Invariant: a key that is listed has its bell rung after it; who answers the bell clears it before
//! taking the list. So a wake-up is taken by this answer, or the next one is on its way.
//!
//! Welcome besides: these wakers may be cloned and woken any number of times, from anywhere, where
//! glommio counts the clones of a waker in 16 bits.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::Instant;
use crate::limits::{PAUSE, PREEMPT_AFTER};
use crate::rt::{Boxed, Queue};

/// Which task is to be woken: place, and which of the tasks that have been there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Key {
    index: usize,
    generation: u64,
}

/// What wakes a core: completions of the side ring ring it, and wake-ups from other threads.
#[derive(Debug)]
pub(crate) struct Bell {
    eventfd: EventFd,
    rung: AtomicBool,
    woken: Mutex<Vec<Key>>,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        // Blocking, because a read of a non-blocking eventfd would fail instead of waiting in a ring.
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Bell { eventfd, rung: AtomicBool::new(false), woken: Mutex::default() })
    }

    /// A second descriptor of the bell, to read it.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        self.eventfd.as_fd().try_clone_to_owned()
    }

    /// The bell's number, for the kernel to ring it.
    pub(crate) fn raw(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Rings, unless it rings already.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.eventfd.write(1).expect("a counter of wake-ups does not reach 2^64");
        }
    }

    fn list(&self, key: Key) {
        self.woken().push(key);
        self.ring();
    }

    /// Silences the bell and takes who was woken.
    fn answer(&self) -> Vec<Key> {
        self.rung.swap(false, Ordering::AcqRel);
        std::mem::take(&mut *self.woken())
    }

    fn woken(&self) -> MutexGuard<'_, Vec<Key>> {
        // Nothing panics while it holds the list, and a list of keys is never half changed.
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Our waker of one task.
struct TaskWaker {
    key: Key,
    listed: AtomicBool,
    bell: Arc<Bell>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // An error means that this thread is ending and has no tasks any more.
        let here = HOST.try_with(|host| match &*host.borrow() {
            Some(host) if Arc::ptr_eq(&host.bell, &self.bell) => {
                host.wake(self.key);
                true
            }
            Some(_) | None => false,
        });
        if here != Ok(true) && !self.listed.swap(true, Ordering::AcqRel) {
            self.bell.list(self.key);
        }
    }
}

thread_local! {
    /// The tasks of this thread, if it is a core.
    static HOST: RefCell<Option<Rc<Host>>> = const { RefCell::new(None) };
}

/// A task that glommio runs for us.
struct Guest {
    glommio: Waker,
    ours: Arc<TaskWaker>,
    queue: Queue,
}

/// A place for a guest.
#[derive(Default)]
struct Place {
    generation: u64,
    guest: Option<Guest>,
}

/// The tasks of one core.
pub(crate) struct Host {
    pub(crate) bell: Arc<Bell>,
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<usize>>,
    /// A task of the urgent queue was woken and has not run since.
    urgent: Cell<bool>,
}

impl Host {
    /// The host of this thread, for the rest of the thread's life.
    pub(crate) fn start() -> io::Result<Rc<Host>> {
        let bell = Arc::new(Bell::new()?);
        let host =
            Rc::new(Host { bell, places: RefCell::default(), free: RefCell::default(), urgent: Cell::new(false) });
        HOST.set(Some(host.clone()));
        Ok(host)
    }

    /// Wraps a task, for glommio to run.
    pub(crate) fn host(self: &Rc<Self>, queue: Queue, task: Boxed) -> Hosted {
        Hosted { host: self.clone(), queue, lodging: None, task }
    }

    /// Wakes every task that other threads have woken.
    pub(crate) fn answer_bell(&self) {
        for key in self.bell.answer() {
            self.wake(key);
        }
    }

    fn wake(&self, key: Key) {
        let places = self.places.borrow();
        let place = &places[key.index];
        if let Some(guest) = &place.guest
            && place.generation == key.generation
        {
            if guest.queue == Queue::Urgent {
                self.urgent.set(true);
            }
            guest.ours.listed.store(false, Ordering::Release);
            guest.glommio.wake_by_ref();
        }
    }

    fn lodge(&self, queue: Queue, glommio: &Waker) -> (Key, Waker) {
        let mut places = self.places.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            places.push(Place::default());
            places.len() - 1
        });
        let place = &mut places[index];
        place.generation += 1;
        let key = Key { index, generation: place.generation };
        let ours = Arc::new(TaskWaker { key, listed: AtomicBool::new(false), bell: self.bell.clone() });
        place.guest = Some(Guest { glommio: glommio.clone(), ours: ours.clone(), queue });
        (key, Waker::from(ours))
    }

    fn leave(&self, key: Key) {
        let guest = self.places.borrow_mut()[key.index].guest.take();
        self.free.borrow_mut().push(key.index);
        drop(guest);
    }
}

/// A task as glommio sees it.
pub(crate) struct Hosted {
    host: Rc<Host>,
    queue: Queue,
    /// Our key and waker, from the first poll on.
    lodging: Option<(Key, Waker)>,
    task: Boxed,
}

impl Future for Hosted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Hosted { host, queue, lodging, task } = &mut *self;
        let (_, waker) = lodging.get_or_insert_with(|| host.lodge(*queue, context.waker()));
        let polled = task.as_mut().poll(&mut Context::from_waker(waker));
        match queue {
            Queue::Urgent => host.urgent.set(false),
            // glommio prefers the queue that it ran last, for as long as that has tasks.
            Queue::Normal if host.urgent.get() => give_way(),
            Queue::Normal => {}
        }
        polled
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        if let Some((key, _)) = self.lodging.take() {
            self.host.leave(key);
        }
    }
}

/// Makes glommio choose among its queues again after this turn.
fn give_way() {
    let executor = glommio::executor();
    let switch = pin!(executor.yield_task_queue_now());
    // The first poll leaves the mark; nobody is to be woken, the task goes on as it is.
    let polled = switch.poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "a yield takes two polls");
}

/// Makes sure that a core without a pause still looks at its rings and timers.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    since: Cell<Instant>,
    ended: Cell<Instant>,
}

impl Pace {
    /// Takes note of a turn; true if it is time to look at the rings.
    pub(crate) fn is_due(&self, began: Instant, ended: Instant) -> bool {
        if began.since(self.ended.replace(ended)) > PAUSE {
            self.since.set(began);
        }
        let due = ended.since(self.since.get()) > PREEMPT_AFTER;
        if due {
            self.since.set(ended);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(microseconds: u64) -> Instant {
        Instant::START + Duration::from_micros(microseconds)
    }

    #[test]
    fn turns_without_a_pause_are_interrupted_once_in_a_while() {
        let pace = Pace::default();
        let due = |turn: u64| pace.is_due(at(1_000_000 + turn * 10), at(1_000_000 + turn * 10 + 9));
        let count = (0..1_000).filter(|turn| due(*turn)).count();
        // Ten milliseconds; each interval ends with the first turn past it.
        assert_eq!(count, 9);
    }

    #[test]
    fn turns_with_pauses_are_left_alone() {
        let pace = Pace::default();
        assert!((1..1_000).all(|turn| !pace.is_due(at(turn * 200), at(turn * 200 + 100))));
    }
}
