//! Lanes: a few threads for calls that block (device-mapper ioctls, mounts, libcryptsetup).
//!
//! `run` puts a job into a bounded queue at once, in the order of the calls, or says that the queue
//! is full. The result comes back as a future; a panic of the job is a result too.
//!
//! A thread is started when a job comes and all others have theirs, unless threads have to be prepared: then all are
//! there before the first job. A daemon that starts has better things to do than to start threads that nobody needs.
//!
//! Invariants: jobs of one owner never have all threads of several, so who waits for something that
//! hangs keeps nobody else waiting; apart from that jobs begin in their order. The thread that a job
//! panics on lives on. When the `Lane` is dropped, jobs already taken or queued still run to their end
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
use std::thread::{self, JoinHandle};

use atomic_waker::AtomicWaker;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use thiserror::Error;

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
    name: Arc<str>,
    queue_max: usize,
    queue: Arc<Queue>,
    crew: Mutex<Crew>,
}

/// The threads of a lane, and what another one needs.
#[derive(Debug)]
struct Crew {
    max: usize,
    cpu: Option<usize>,
    prepare: fn() -> io::Result<()>,
    threads: Vec<JoinHandle<()>>,
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
        assert!(threads > 0 && queue_max > 0, "lane {name}: {threads} threads, {queue_max} jobs");
        let crew = Mutex::new(Crew { max: threads, cpu, prepare: || Ok(()), threads: Vec::new() });
        let queue = Arc::new(Queue::of(threads));
        Lane { name: name.into(), queue_max, queue, crew }
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
        let lane = Self::new(name, threads, queue_max, cpu);
        lane.crew().prepare = prepare;
        (0..threads).try_for_each(|_| lane.crew().grow(&lane.name, &lane.queue))?;
        Ok(lane)
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        // Nothing panics while it holds the lock.
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a thread is there for one job more.
    fn man(&self) -> Result<(), LaneFault> {
        let mut crew = self.crew();
        let there = crew.threads.len();
        if there == crew.max || self.queue.unfinished() < there {
            return Ok(());
        }
        match crew.grow(&self.name, &self.queue) {
            Ok(()) => Ok(()),
            Err(error) if there == 0 => Err(LaneFault::NoThread { lane: self.name.clone(), why: error.to_string() }),
            Err(error) => {
                log::warn!("lane {} stays at {there} threads: {error}", self.name);
                Ok(())
            }
        }
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
        let threads = std::mem::take(&mut self.crew().threads);
        self.queue.close();
        for thread in threads {
            thread.join().unwrap_or_else(|_| unreachable!("threads of lane {} catch every panic", self.name));
        }
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
        if let Err(fault) = self.lane.man() {
            outcome.shared.deliver(Err(fault));
            return outcome;
        }
        let (own, owner) = (Arc::clone(&self.lane.queue), self.owner);
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(job));
            // Whoever gets the result may bring the next job, and this thread is as good as free.
            own.ended(owner);
            shared.deliver(result.map_err(|payload| LaneFault::Panicked(panic_text(payload.as_ref()))));
        };
        let Lane { name, queue_max, queue, .. } = self.lane;
        if let Err(job) = queue.push(owner, Box::new(job), *queue_max) {
            drop(job);
            outcome.shared.deliver(Err(LaneFault::Full { lane: name.clone(), queue_max: *queue_max }));
        }
        outcome
    }
}

impl Crew {
    /// Starts one thread more.
    fn grow(&mut self, name: &Arc<str>, queue: &Arc<Queue>) -> io::Result<()> {
        let (own, queue, cpu, prepare) = (name.clone(), queue.clone(), self.cpu, self.prepare);
        let builder = thread::Builder::new().name(name.to_string());
        self.threads.push(builder.spawn(move || work(&own, cpu, prepare, &queue))?);
        Ok(())
    }
}

/// What each thread of a lane does.
fn work(name: &str, cpu: Option<usize>, prepare: fn() -> io::Result<()>, queue: &Queue) {
    if let Some(cpu) = cpu
        && let Err(errno) = pin(cpu)
    {
        log::warn!("lane {name} is not pinned: CPU {cpu} is refused: {errno}");
    }
    if let Err(error) = prepare() {
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

/// Jobs that wait, and how many run for whom.
struct Queue {
    /// Jobs of one owner that may run at a time: all threads but one, if there are several.
    owner_max: usize,
    state: Mutex<State>,
    /// Something came that a thread may take, or nothing will come any more.
    came: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Option<Owner>, Job)>,
    /// How many run for whom; not zero.
    running: BTreeMap<Option<Owner>, usize>,
    closed: bool,
}

impl Queue {
    fn of(threads: usize) -> Self {
        Self { owner_max: (threads - 1).max(1), state: Mutex::default(), came: Condvar::new() }
    }

    /// Gives the job back if so many wait.
    fn push(&self, owner: Option<Owner>, job: Job, max: usize) -> Result<(), Job> {
        let mut state = self.state();
        if state.waiting.len() >= max {
            return Err(job);
        }
        state.waiting.push_back((owner, job));
        drop(state);
        // Whatever thread it wakes may take whatever may be taken.
        self.came.notify_one();
        Ok(())
    }

    /// Jobs that wait or run.
    fn unfinished(&self) -> usize {
        let state = self.state();
        state.waiting.len() + state.running.values().sum::<usize>()
    }

    /// The first job that may begin; waits for one. `None` when there will be none.
    fn take(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            let State { waiting, running, closed } = &mut *state;
            let may = |owner: &Option<Owner>| {
                owner.is_none() || running.get(owner).is_none_or(|count| *count < self.owner_max)
            };
            if let Some(next) = waiting.iter().position(|(owner, _)| may(owner)) {
                let (owner, job) = waiting.remove(next).expect("it is there");
                *running.entry(owner).or_default() += 1;
                return Some(job);
            }
            if *closed && waiting.is_empty() {
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
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(formatter, "Queue {{ waiting: {}, running: {:?} }}", state.waiting.len(), state.running)
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
