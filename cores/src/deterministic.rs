//! A universe: one thread, virtual time, and one seed that decides everything else.
//!
//! Each step picks one of the runnable tasks by the seeded generator and polls it. Time stands
//! still while anything can run, and jumps to the next deadline when nothing can. So the same seed
//! and the same code give the same run, which `trace()` lets a test assert.
//!
//! Invariant: nothing here asks the kernel for time, randomness or order. Dropping the universe
//! drops every task where it stands: that is the crash.
//!
//! Deliberately absent: the side ring, lanes, and wake-ups from other threads (they would work, but
//! when they come is not up to the seed).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::clock::{Instant, WallTime};
use crate::limits::TURNS_IN_RUN_MAX;
use crate::rt::{Boxed, Entered, Join, Panicked, Queue, Runtime};
use crate::side::Side;
use crate::task::Watched;
use crate::turns::{Counters, Turns};
use crate::wait::{Sleepers, give_way};

/// Looks on after each turn; it is told how many tasks there are.
type Watcher = Box<dyn FnMut(usize)>;

/// What `wall()` says at the start of a universe: 2026-01-01 00:00:00 UTC, in seconds.
pub const WALL_AT_START: u64 = 1_767_225_600;

/// Keeps the random bytes apart from the choices, so that asking for more of the one does not
/// change the other.
const VALUES_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a, 64 bits: offset basis and prime, from draft-eastlake-fnv.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// How a run ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended<T> {
    /// The main future ended with this.
    Finished(T),
    /// Nothing can run and no timer is pending: the main future would wait for ever.
    Stalled,
    /// The main future or a singleton panicked.
    Panicked(Panicked),
    /// The run took more turns than allowed: something never sleeps.
    TurnLimit,
}

impl<T> Ended<T> {
    /// The result of a run that finished.
    ///
    /// # Panics
    /// If it ended in any other way; for tests.
    #[track_caller]
    pub fn finished(self) -> T {
        match self {
            Ended::Finished(value) => value,
            Ended::Stalled => panic!("the run stalled: nothing can run and no timer is pending"),
            Ended::Panicked(panicked) => panic!("{panicked}"),
            Ended::TurnLimit => panic!("the run did not end within its turns"),
        }
    }
}

/// A world of tasks with its own time.
pub struct Universe {
    world: Rc<World>,
}

impl Universe {
    /// An empty universe whose choices and random values follow from `seed`.
    pub fn new(seed: u64) -> Universe {
        let world = World {
            tasks: RefCell::default(),
            ready: Arc::default(),
            clock: Clock::default(),
            started: Cell::new(0),
            turns_max: Cell::new(TURNS_IN_RUN_MAX),
            choices: RefCell::new(fastrand::Rng::with_seed(seed)),
            values: RefCell::new(fastrand::Rng::with_seed(seed ^ VALUES_SEED)),
            panicked: RefCell::default(),
            trace: Cell::new(FNV_BASIS),
            turns: Turns::new(Instant::START),
            watcher: RefCell::default(),
        };
        Universe { world: Rc::new(world) }
    }

    /// Starts the clock at `now`: time goes on where the universe before the crash left it.
    pub fn starting_at(self, now: Instant) -> Universe {
        self.world.clock.now.set(now);
        self
    }

    /// Allows `turns` turns in each run instead of `TURNS_IN_RUN_MAX`.
    pub fn with_turns_max(self, turns: u64) -> Universe {
        self.world.turns_max.set(turns);
        self
    }

    /// Has somebody look on after each turn from now on, who is told how many tasks there are.
    pub fn watch(&self, watcher: impl FnMut(usize) + 'static) {
        *self.world.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    /// Runs `main` and all that it starts until `main` ends. Tasks that are left over stay, and go
    /// on in the next run.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> Ended<T> {
        let _entered = Entered::new(self.world.clone());
        let (watched, mut join) = Watched::new("main", false, main);
        self.world.start(Queue::Normal, Box::pin(watched));
        for _ in 0..self.world.turns_max.get() {
            if !self.world.step() && !self.world.clock.jump() {
                return Ended::Stalled;
            }
            if let Some(panicked) = self.world.panicked.take() {
                return Ended::Panicked(panicked);
            }
            match result_of(&mut join) {
                None => {}
                Some(Ok(value)) => return Ended::Finished(value),
                Some(Err(panicked)) => return Ended::Panicked(panicked),
            }
        }
        Ended::TurnLimit
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.world.clock.now.get()
    }

    /// A hash over which task ran at each step and every stage named so far: equal for equal runs.
    pub fn trace(&self) -> u64 {
        self.world.trace.get()
    }

    /// Turns taken, messages counted, jumps of time (as wake-ups).
    pub fn counters(&self) -> Counters {
        self.world.turns.counters(self.now(), self.world.clock.jumps.get())
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.world.tasks.borrow().len()
    }
}

impl Drop for Universe {
    fn drop(&mut self) {
        let _entered = Entered::new(self.world.clone());
        // Destructors may start tasks; those are dropped too.
        loop {
            let tasks = self.world.tasks.take();
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
    }
}

/// The result of a task, if there is one yet.
fn result_of<T>(join: &mut Join<T>) -> Option<Result<T, Panicked>> {
    if !join.is_finished() {
        return None;
    }
    match Pin::new(join).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => unreachable!("the join said that its task has ended"),
    }
}

/// Tasks that can run, in the order in which they were woken.
#[derive(Default)]
struct Ready(Mutex<Vec<u64>>);

impl Ready {
    fn list(&self) -> MutexGuard<'_, Vec<u64>> {
        // Nothing panics while it holds the list, and a list of numbers is never half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes one task, at most once for each of its turns.
struct TaskWaker {
    id: u64,
    listed: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.ready.list().push(self.id);
        }
    }
}

/// A task and its waker.
struct Task {
    body: Boxed,
    waker: Arc<TaskWaker>,
}

/// Virtual time, and who waits for it.
#[derive(Default)]
struct Clock {
    now: Cell<Instant>,
    sleepers: Rc<Sleepers>,
    jumps: Cell<u64>,
}

impl Clock {
    /// Jumps to the next deadline and wakes all who wait for it; false if nobody waits.
    fn jump(&self) -> bool {
        let Some(deadline) = self.sleepers.next() else {
            return false;
        };
        self.now.set(self.now.get().max(deadline));
        self.jumps.set(self.jumps.get() + 1);
        self.sleepers.wake(self.now.get());
        true
    }
}

/// All of a universe.
struct World {
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: Arc<Ready>,
    clock: Clock,
    started: Cell<u64>,
    turns_max: Cell<u64>,
    choices: RefCell<fastrand::Rng>,
    values: RefCell<fastrand::Rng>,
    panicked: RefCell<Option<Panicked>>,
    trace: Cell<u64>,
    turns: Turns,
    watcher: RefCell<Option<Watcher>>,
}

impl World {
    /// Polls one runnable task; false if there is none.
    fn step(&self) -> bool {
        let id = {
            let mut ready = self.ready.list();
            if ready.is_empty() {
                return false;
            }
            let choice = self.choices.borrow_mut().usize(..ready.len());
            ready.swap_remove(choice)
        };
        self.traced(&id.to_le_bytes());
        // A task may be woken after its end; that turn does nothing.
        let task = self.tasks.borrow_mut().remove(&id);
        if let Some(mut task) = task {
            task.waker.listed.store(false, Ordering::Release);
            let waker = Waker::from(task.waker.clone());
            match task.body.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(()) => drop(task),
                Poll::Pending => {
                    self.tasks.borrow_mut().insert(id, task);
                }
            }
            if let Some(watcher) = &mut *self.watcher.borrow_mut() {
                watcher(self.tasks.borrow().len());
            }
        }
        true
    }

    fn traced(&self, bytes: &[u8]) {
        let hash = bytes.iter().fold(self.trace.get(), |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME));
        self.trace.set(hash);
    }
}

impl Runtime for World {
    fn start(&self, _queue: Queue, body: Boxed) {
        let id = self.started.get();
        self.started.set(id + 1);
        let waker = Arc::new(TaskWaker { id, listed: AtomicBool::new(true), ready: self.ready.clone() });
        self.tasks.borrow_mut().insert(id, Task { body, waker });
        self.ready.list().push(id);
    }

    fn now(&self) -> Instant {
        self.clock.now.get()
    }

    fn wall(&self) -> WallTime {
        let age = Duration::from_nanos(self.clock.now.get().nanoseconds());
        WallTime::since_epoch(Duration::from_secs(WALL_AT_START) + age)
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.values.borrow_mut().fill(&mut bytes);
        bytes
    }

    fn sleep(&self, duration: Duration) -> Boxed {
        self.clock.sleepers.sleep(self.now(), duration)
    }

    fn yield_now(&self) -> Boxed {
        give_way()
    }

    fn staged(&self, stage: &'static str) {
        self.traced(stage.as_bytes());
    }

    fn turn_ended(&self) {}

    fn turn_counted(&self, _ended: Instant) {}

    fn singleton_panicked(&self, panicked: Panicked) {
        self.panicked.borrow_mut().get_or_insert(panicked);
    }

    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn wake_ups(&self) -> u64 {
        self.clock.jumps.get()
    }

    fn side(&self) -> Option<Rc<Side>> {
        None
    }
}
