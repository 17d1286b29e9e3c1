//! Which task of a core runs next, and how a sleeping core is woken.
//!
//! A core is one glommio task, which runs ours from two queues. glommio gives it its thread and its
//! CPU. It does not get our tasks, because glommio 0.9.0 loses wake-ups: when a completion without a
//! waiter (of its preempt timer, or of its own eventfd for wake-ups from other threads) comes in at the
//! wrong moment, it takes "preempted" for "nothing to run" and parks with runnable tasks. Two cores
//! that play ping-pong on a loaded machine hang within some thousand rounds; repaired after 0.9.0, see
//! glommio/glommio pull request 53. Nor does it get our sleep, which would cost a dozen system calls
//! and a barrier on every CPU: a core sleeps in its side ring, and what wakes it from other threads is
//! an eventfd, the bell.
//!
//! Invariant: who wakes a task of another thread lists it, then looks whether the core sleeps; a core
//! says that it sleeps, then looks at the list. Both in sequentially consistent order, so one of them
//! sees the other, and a bell is rung only for a core that sleeps.
//!
//! Between two turns a core looks at the list, at the side ring and at its timers: three loads. So a
//! busy core notices urgent work after one turn, without any timer or system call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use io_uring::{opcode, squeue, types};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::Instant;
use crate::limits::URGENT_IN_ROW_MAX;
use crate::rt::{Boxed, Queue};
use crate::wait::Sleepers;

/// Which task is to be woken: its place, and which of the tasks that have been there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Key {
    queue: Queue,
    index: usize,
    generation: u64,
}

/// What wakes a core that sleeps.
#[derive(Debug)]
pub(crate) struct Bell {
    eventfd: EventFd,
    asleep: AtomicBool,
    /// The list is not empty.
    listed: AtomicBool,
    list: Mutex<Vec<Key>>,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (asleep, listed) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Bell { eventfd, asleep, listed, list: Mutex::default() })
    }

    /// What a ring needs to wait until the bell has rung.
    pub(crate) fn entry(&self) -> squeue::Entry {
        let eventfd = types::Fd(self.eventfd.as_fd().as_raw_fd());
        opcode::PollAdd::new(eventfd, libc::POLLIN.cast_unsigned().into()).build()
    }

    /// The bell was heard, and can ring again.
    pub(crate) fn heard(&self) {
        self.eventfd.read().expect("the kernel said that it has rung, and only this thread hears it");
    }

    /// Another thread wakes a task.
    fn call(&self, key: Key) {
        self.list().push(key);
        self.listed.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.eventfd.write(1).expect("a counter of wake-ups does not reach 2^64");
        }
    }

    /// The core is about to sleep; false if it must not.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let may = !self.listed.load(Ordering::SeqCst);
        if !may {
            self.wake_up();
        }
        may
    }

    /// The core is awake and looks at the list by itself.
    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Takes whom other threads have woken.
    fn take(&self) -> Vec<Key> {
        if !self.listed.load(Ordering::Relaxed) {
            return Vec::new();
        }
        // Cleared before the list is taken: who comes in between sets it again, for nothing.
        self.listed.swap(false, Ordering::SeqCst);
        std::mem::take(&mut *self.list())
    }

    fn list(&self) -> MutexGuard<'_, Vec<Key>> {
        // Nothing panics while it holds the list, and a list of keys is never half changed.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes one task, once for each of its turns. May be cloned and used on any thread.
struct TaskWaker {
    key: Key,
    queued: AtomicBool,
    bell: Arc<Bell>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        // An error means that this thread is ending and runs no tasks any more.
        let here = HERE.try_with(|scheduler| match &*scheduler.borrow() {
            Some(scheduler) if Arc::ptr_eq(&scheduler.bell, &self.bell) => {
                scheduler.enqueue(self.key);
                true
            }
            Some(_) | None => false,
        });
        if here != Ok(true) {
            self.bell.call(self.key);
        }
    }
}

thread_local! {
    /// The scheduler of this thread, if it is a core.
    static HERE: RefCell<Option<Rc<Scheduler>>> = const { RefCell::new(None) };
}

/// A task that has not ended.
struct Task {
    body: Boxed,
    ours: Arc<TaskWaker>,
    waker: Waker,
}

/// A place for a task.
#[derive(Default)]
struct Place {
    generation: u64,
    /// Empty while the task runs, and when there is none.
    task: Option<Task>,
}

/// The tasks of one core.
pub(crate) struct Scheduler {
    pub(crate) bell: Arc<Bell>,
    pub(crate) sleepers: Rc<Sleepers>,
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<usize>>,
    urgent: RefCell<VecDeque<Key>>,
    normal: RefCell<VecDeque<Key>>,
    /// Urgent turns since the last normal one.
    urgent_in_row: Cell<usize>,
}

impl Scheduler {
    /// The scheduler of this thread, for the rest of the thread's life.
    pub(crate) fn start() -> io::Result<Rc<Scheduler>> {
        let scheduler = Rc::new(Scheduler {
            bell: Arc::new(Bell::new()?),
            sleepers: Rc::default(),
            places: RefCell::default(),
            free: RefCell::default(),
            urgent: RefCell::default(),
            normal: RefCell::default(),
            urgent_in_row: Cell::new(0),
        });
        HERE.set(Some(scheduler.clone()));
        Ok(scheduler)
    }

    /// Takes in a task; it is runnable.
    pub(crate) fn spawn(&self, queue: Queue, body: Boxed) {
        let mut places = self.places.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            places.push(Place::default());
            places.len() - 1
        });
        let place = &mut places[index];
        place.generation += 1;
        let key = Key { queue, index, generation: place.generation };
        let ours = Arc::new(TaskWaker { key, queued: AtomicBool::new(true), bell: self.bell.clone() });
        place.task = Some(Task { body, waker: Waker::from(ours.clone()), ours });
        self.enqueue(key);
    }

    /// Runs one task for one turn; false if none is runnable.
    pub(crate) fn turn(&self) -> bool {
        let Some(key) = self.next() else { return false };
        // None: it was woken after its end, by a waker that somebody has kept.
        let task = self.task(key);
        if let Some(mut task) = task {
            // A swap, not a store: who comes before it and finds the task queued has left work that the poll
            // must see, and only a swap reads what they wrote.
            task.ours.queued.swap(false, Ordering::AcqRel);
            match task.body.as_mut().poll(&mut Context::from_waker(&task.waker)) {
                Poll::Pending => self.places.borrow_mut()[key.index].task = Some(task),
                Poll::Ready(()) => self.free.borrow_mut().push(key.index),
            }
        }
        true
    }

    /// Whether no task is runnable, apart from those that other threads have woken.
    pub(crate) fn is_idle(&self) -> bool {
        self.urgent.borrow().is_empty() && self.normal.borrow().is_empty()
    }

    /// Makes runnable whom other threads have woken, and whose time has come.
    pub(crate) fn look(&self, now: Instant) {
        for key in self.bell.take() {
            self.enqueue(key);
        }
        self.sleepers.wake(now);
    }

    /// Drops every task where it stands, and those that their destructors start.
    pub(crate) fn clear(&self) {
        loop {
            let tasks: Vec<_> = self.places.borrow_mut().iter_mut().filter_map(|place| place.task.take()).collect();
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
    }

    fn enqueue(&self, key: Key) {
        let queue = match key.queue {
            Queue::Urgent => &self.urgent,
            Queue::Normal => &self.normal,
        };
        queue.borrow_mut().push_back(key);
    }

    fn task(&self, key: Key) -> Option<Task> {
        let mut places = self.places.borrow_mut();
        let place = &mut places[key.index];
        if place.generation == key.generation { place.task.take() } else { None }
    }

    /// The urgent queue first, but not for ever.
    fn next(&self) -> Option<Key> {
        let in_row = self.urgent_in_row.get();
        let urgent = if in_row < URGENT_IN_ROW_MAX { self.urgent.borrow_mut().pop_front() } else { None };
        if urgent.is_some() {
            self.urgent_in_row.set(in_row + 1);
            return urgent;
        }
        self.urgent_in_row.set(0);
        let normal = self.normal.borrow_mut().pop_front();
        normal.or_else(|| self.urgent.borrow_mut().pop_front())
    }
}
