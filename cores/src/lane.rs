//! Lanes: a few threads for calls that block (device-mapper ioctls, mounts, libcryptsetup).
//!
//! `run` puts a job into a bounded queue at once, in the order of the calls, or says that the queue
//! is full. The result comes back as a future; a panic of the job is a result too.
//!
//! A thread is started when a job comes and all others have theirs, unless threads have to be prepared: then all are
//! there before the first job, or come with it. A daemon that starts has better things to do than to start threads that
//! nobody needs.
//!
//! Where there are several, jobs of one owner never have all of them. Those of a few together may; a job that could
//! begin and finds that starts a thread that stands by. If for a while no job begins at all, what has the threads
//! hangs, and that thread becomes one of them, for good. So there are more than usual only after something hung.
//!
//! Invariants: who waits for something that hangs keeps nobody else waiting, until `LANE_THREADS_MORE` threads
//! are lost to that; apart from that jobs begin in their order. A lane of one thread keeps to that. The thread that a
//! job panics on lives on. When the `Lane` is dropped, jobs already taken or queued still run to their end
//! (a started action is never left half done), then the threads end; nobody waits for them unless
//! `join` is called.
//!
//! Deliberately absent: cancelling a job. An ioctl cannot be taken back; dropping the future only
//! drops the result.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

use crate::limits::{LANE_HANGS_MS, LANE_THREADS_MORE};
use crate::task::{drop_caught, panic_text};

/// Why a job has no result.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum LaneFault {
    /// The queue is full; the job did not run and never will.
    #[error("lane {lane} is full: {queue_max} jobs are waiting")]
    Full {
        /// The lane's name.
        lane: Arc<str>,
        /// The bound of its queue.
        queue_max: usize,
    },
    /// No thread is to be had; the job did not run and never will.
    #[error("lane {lane} has no thread, and cannot start one: {why}")]
    NoThread {
        /// The lane's name.
        lane: Arc<str>,
        /// The kernel's reason.
        why: String,
    },
    /// The job panicked: a bug of ours.
    #[error("a job panicked: {0}")]
    Panicked(String),
}

type Job = Box<dyn FnOnce() + Send>;

/// Whose jobs may not have all threads: any number that its jobs have in common.
pub type Owner = u128;

/// A bounded queue of jobs and the threads that run them.
#[derive(Debug)]
pub struct Lane {
    queue: Arc<Queue>,
}

/// A lane, and who uses it.
#[derive(Clone, Copy, Debug)]
pub struct Use<'a> {
    lane: &'a Lane,
    owner: Option<Owner>,
}

impl<'a> From<&'a Lane> for Use<'a> {
    /// Nobody's.
    fn from(lane: &'a Lane) -> Self {
        Self { lane, owner: None }
    }
}

impl Lane {
    /// A lane of `threads` threads at most (at least one) called `name`, which are started when they are needed, all on
    /// `cpu` where that is given and allowed; else a warning is logged and they run where the kernel puts them. At most
    /// `queue_max` (at least one) jobs wait.
    pub fn new(name: &str, threads: usize, queue_max: usize, cpu: Option<usize>) -> Lane {
        Lane { queue: Arc::new(Queue::of(name, (threads, queue_max), cpu, || Ok(()))) }
    }

    /// The same with all of its threads; each calls `prepare` before its first job. Where that fails, a warning is
    /// logged and the thread works all the same.
    ///
    /// # Errors
    /// A thread could not be started; those before it end.
    pub fn prepared(
        name: &str,
        threads: usize,
        queue_max: usize,
        cpu: Option<usize>,
        prepare: fn() -> io::Result<()>,
    ) -> io::Result<Lane> {
        let lane = Lane { queue: Arc::new(Queue::of(name, (threads, queue_max), cpu, prepare)) };
        (0..threads).try_for_each(|_| lane.queue.grow(&mut lane.queue.state()))?;
        Ok(lane)
    }

    /// The same, but its threads are started together when the first job comes: of two who may use a lane only one may
    /// ever do so.
    pub fn prepared_late(
        name: &str,
        threads: usize,
        queue_max: usize,
        cpu: Option<usize>,
        prepare: fn() -> io::Result<()>,
    ) -> Lane {
        Lane { queue: Arc::new(Queue { together: true, ..Queue::of(name, (threads, queue_max), cpu, prepare) }) }
    }

    /// The lane as this owner uses it.
    pub fn of(&self, owner: Owner) -> Use<'_> {
        Use { lane: self, owner: Some(owner) }
    }

    /// Queues `job`, nobody's, now and gives the future of its result.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        Use::from(self).run(job)
    }

    /// Jobs that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.queue.state().waiting.len()
    }

    /// Runs what is queued to its end and waits for the threads. Blocks.
    pub fn join(self) {
        self.queue.close();
        let left = |state: &mut State| state.threads > 0;
        drop(self.queue.over.wait_while(self.queue.state(), left).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Use<'_> {
    /// Queues `job` now and gives the future of its result.
    pub fn run<T: Send + 'static>(self, job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let shared = Arc::new(Shared { result: Mutex::new(None), waker: AtomicWaker::new() });
        let outcome = Outcome { shared: shared.clone() };
        let (own, owner) = (Arc::clone(&self.lane.queue), self.owner);
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(job));
            // Whoever gets the result may bring the next job, and this thread is as good as free.
            own.ended(owner);
            shared.deliver(result.map_err(|payload| LaneFault::Panicked(panic_text(payload.as_ref()))));
        };
        if let Err((job, fault)) = self.lane.queue.push(owner, Box::new(job)) {
            drop(job);
            outcome.shared.deliver(Err(fault));
        }
        outcome
    }
}

/// What each thread of a lane does.
fn work(queue: &Arc<Queue>) {
    let name = &queue.name;
    if let Some(cpu) = queue.cpu
        && let Err(errno) = pin(cpu)
    {
        log::warn!("lane {name} is not pinned: CPU {cpu} is refused: {errno}");
    }
    if let Err(error) = (queue.prepare)() {
        log::warn!("a thread of lane {name} is not prepared as it should be: {error}");
    }
    while let Some(job) = queue.take() {
        // The job itself is caught inside; this is for destructors of what it was given.
        drop_caught(name, catch_unwind(AssertUnwindSafe(job)));
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)
}

/// Jobs that wait, how many run for whom, and what another thread needs.
struct Queue {
    name: Arc<str>,
    /// Jobs that may wait.
    max: usize,
    /// Threads, as long as nothing hangs.
    usual: usize,
    /// Jobs of one owner that may run at a time: all of these but one, if there are several.
    owner_max: usize,
    cpu: Option<usize>,
    prepare: fn() -> io::Result<()>,
    /// All of the usual threads come with the first job.
    together: bool,
    state: Mutex<State>,
    /// Something came that a thread may take, or nothing will come any more.
    came: Condvar,
    /// Nothing will come any more, or the last thread has gone.
    over: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Option<Owner>, Job)>,
    /// How many run for whom; not zero.
    running: BTreeMap<Option<Owner>, usize>,
    threads: usize,
    /// How many jobs have begun.
    begun: u64,
    /// A thread finds out whether all the others hang.
    stands_by: bool,
    closed: bool,
}

impl State {
    /// How many jobs run.
    fn busy(&self) -> usize {
        self.running.values().sum()
    }

    /// The place of the first job that may begin, if one owner's may be so many.
    fn next(&self, owner_max: usize) -> Option<usize> {
        let runs = |owner| self.running.get(owner).copied().unwrap_or_default();
        self.waiting.iter().position(|(owner, _)| owner.is_none() || runs(owner) < owner_max)
    }
}

impl Queue {
    fn of(name: &str, (usual, max): (usize, usize), cpu: Option<usize>, prepare: fn() -> io::Result<()>) -> Self {
        assert!(usual > 0 && max > 0, "lane {name}: {usual} threads, {max} jobs");
        let (state, came, over) = Default::default();
        let owner_max = (usual - 1).max(1);
        Self { name: name.into(), max, usual, owner_max, cpu, prepare, together: false, state, came, over }
    }

    /// Gives the job back if so many wait, or no thread can be had.
    fn push(self: &Arc<Self>, owner: Option<Owner>, job: Job) -> Result<(), (Job, LaneFault)> {
        let mut state = self.state();
        if state.waiting.len() >= self.max {
            return Err((job, LaneFault::Full { lane: self.name.clone(), queue_max: self.max }));
        }
        if state.threads < self.usual && state.waiting.len() + state.busy() >= state.threads {
            let missing = if self.together { self.usual - state.threads } else { 1 };
            match (0..missing).try_for_each(|_| self.grow(&mut state)) {
                Ok(()) => {}
                Err(error) if state.threads == 0 => {
                    return Err((job, LaneFault::NoThread { lane: self.name.clone(), why: error.to_string() }));
                }
                Err(error) => log::warn!("lane {} stays at {} threads: {error}", self.name, state.threads),
            }
        }
        state.waiting.push_back((owner, job));
        self.see_to(&mut state);
        drop(state);
        // Whatever thread it wakes may take whatever may be taken.
        self.came.notify_one();
        Ok(())
    }

    /// Starts one thread more.
    fn grow(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        self.start(self.name.to_string(), work)?;
        state.threads += 1;
        Ok(())
    }

    fn start(self: &Arc<Self>, name: String, doing: fn(&Arc<Self>)) -> io::Result<()> {
        let own = Arc::clone(self);
        thread::Builder::new().name(name).spawn(move || doing(&own)).map(drop)
    }

    /// Sees to it that somebody stands by if a job may begin and all threads have one.
    fn see_to(self: &Arc<Self>, state: &mut State) {
        let can_grow = self.usual > 1 && state.threads < self.usual + LANE_THREADS_MORE;
        if state.waiting.is_empty() || state.stands_by || !can_grow || state.busy() < state.threads {
            return;
        }
        if state.next(self.owner_max).is_some() {
            state.stands_by = true;
            if let Err(error) = self.start(format!("{}+", self.name), stand_by) {
                // The next job tries again.
                state.stands_by = false;
                log::warn!("lane {} has no thread that stands by: {error}", self.name);
            }
        }
    }

    /// Waits until no job that may begin is left, or until none has begun for a while. True: that is so, and the
    /// thread that asks is one of the lane's from now on.
    fn hangs(&self) -> bool {
        let mut state = self.state();
        loop {
            let begun = state.begun;
            let patience = Duration::from_millis(LANE_HANGS_MS);
            let waits = self.over.wait_timeout_while(state, patience, |state| !state.closed);
            state = waits.unwrap_or_else(PoisonError::into_inner).0;
            let hangs = state.begun == begun;
            if state.closed || hangs || state.next(self.owner_max).is_none() {
                state.stands_by = false;
                let joins = !state.closed && hangs && state.next(self.owner_max).is_some();
                state.threads += usize::from(joins);
                return joins;
            }
        }
    }

    /// The first job that may begin; waits for one. `None` when there will be none: then the thread is gone.
    fn take(self: &Arc<Self>) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(next) = state.next(self.owner_max) {
                let (owner, job) = state.waiting.remove(next).expect("it is there");
                *state.running.entry(owner).or_default() += 1;
                state.begun += 1;
                self.see_to(&mut state);
                return Some(job);
            }
            if state.closed && state.waiting.is_empty() {
                state.threads -= 1;
                if state.threads == 0 {
                    self.over.notify_all();
                }
                return None;
            }
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job has ended. The thread that ran it looks for the next by itself, so nobody else need be woken for what
    /// may begin now; but who waits for the end of all must see it.
    fn ended(&self, owner: Option<Owner>) {
        let mut state = self.state();
        let count = state.running.get_mut(&owner).expect("it was taken");
        *count -= 1;
        if *count == 0 {
            state.running.remove(&owner);
        }
        if state.closed {
            self.came.notify_all();
        }
    }

    /// No job will come any more.
    fn close(&self) {
        self.state().closed = true;
        self.came.notify_all();
        self.over.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread does that was started because a job found all others with one.
fn stand_by(queue: &Arc<Queue>) {
    if queue.hangs() {
        log::warn!("the threads of lane {} hang: it has another one", queue.name);
        work(queue);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let State { waiting, running, threads, .. } = &*state;
        write!(formatter, "{} {{ waiting: {}, running: {running:?}, threads: {threads} }}", self.name, waiting.len())
    }
}

/// Where a result waits for its future. The lock is held for a move only.
#[derive(Debug)]
struct Shared<T> {
    result: Mutex<Option<Result<T, LaneFault>>>,
    waker: AtomicWaker,
}

impl<T> Shared<T> {
    fn result(&self) -> MutexGuard<'_, Option<Result<T, LaneFault>>> {
        // Nothing panics while it holds the lock.
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, result: Result<T, LaneFault>) {
        *self.result() = Some(result);
        self.waker.wake();
    }
}

/// The result of a job, to be awaited. Dropping it lets the job run and drops the result.
#[derive(Debug)]
#[must_use = "the job may have been refused: await its result"]
pub struct Outcome<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Future for Outcome<T> {
    type Output = Result<T, LaneFault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.shared.result().take() {
            return Poll::Ready(result);
        }
        // Register, then look again: the result may have come in between.
        self.shared.waker.register(context.waker());
        let result = self.shared.result().take();
        result.map_or(Poll::Pending, Poll::Ready)
    }
}
