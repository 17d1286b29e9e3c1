//! Lanes: a few threads for calls that block (device-mapper ioctls, mounts, libcryptsetup).
//!
//! `run` puts a job into a bounded queue at once, in the order of the calls, or says that the queue
//! is full. The result comes back as a future; a panic of the job is a result too.
//!
//! Invariant: the thread that a job panics on lives on. When the `Lane` is dropped, jobs already
//! taken or queued still run to their end (a started action is never left half done), then the
//! threads end; nobody waits for them unless `join` is called.
//!
//! Deliberately absent: cancelling a job. An ioctl cannot be taken back; dropping the future only
//! drops the result.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
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
    /// The job panicked: a bug of ours.
    #[error("a job panicked: {0}")]
    Panicked(String),
}

type Job = Box<dyn FnOnce() + Send>;

/// A bounded queue of jobs and the threads that run them.
#[derive(Debug)]
pub struct Lane {
    name: Arc<str>,
    queue_max: usize,
    jobs: Sender<Job>,
    threads: Vec<JoinHandle<()>>,
}

impl Lane {
    /// Starts `threads` threads (at least one) called `name`, all on `cpu` where that is given and
    /// allowed; else a warning is logged and they run where the kernel puts them. At most `queue_max`
    /// (at least one) jobs wait.
    ///
    /// # Errors
    /// A thread could not be started; those before it end.
    pub fn new(name: &str, threads: usize, queue_max: usize, cpu: Option<usize>) -> io::Result<Lane> {
        Self::prepared(name, threads, queue_max, cpu, || Ok(()))
    }

    /// As `new`; each thread calls `prepare` before its first job. Where that fails, a warning is logged
    /// and the thread works all the same.
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
        assert!(threads > 0 && queue_max > 0, "lane {name}: {threads} threads, {queue_max} jobs");
        let (jobs, queue) = bounded(queue_max);
        let thread = |_| {
            let (name, queue) = (name.to_owned(), queue.clone());
            thread::Builder::new().name(name.clone()).spawn(move || work(&name, cpu, prepare, &queue))
        };
        let threads = (0..threads).map(thread).collect::<io::Result<Vec<_>>>()?;
        Ok(Lane { name: name.into(), queue_max, jobs, threads })
    }

    /// Queues `job` now and gives the future of its result.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let shared = Arc::new(Shared { result: Mutex::new(None), waker: AtomicWaker::new() });
        let outcome = Outcome { shared: shared.clone() };
        let job = move || {
            let result = catch_unwind(AssertUnwindSafe(job));
            shared.deliver(result.map_err(|payload| LaneFault::Panicked(panic_text(payload.as_ref()))));
        };
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => {
                drop(job);
                outcome.shared.deliver(Err(LaneFault::Full { lane: self.name.clone(), queue_max: self.queue_max }));
            }
            Err(TrySendError::Disconnected(_)) => unreachable!("the threads end only after the lane"),
        }
        outcome
    }

    /// Jobs that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.jobs.len()
    }

    /// Runs what is queued to its end and waits for the threads. Blocks.
    pub fn join(self) {
        let Lane { name, jobs, threads, .. } = self;
        drop(jobs);
        for thread in threads {
            thread.join().unwrap_or_else(|_| unreachable!("threads of lane {name} catch every panic"));
        }
    }
}

/// What each thread of a lane does.
fn work(name: &str, cpu: Option<usize>, prepare: fn() -> io::Result<()>, queue: &Receiver<Job>) {
    if let Some(cpu) = cpu
        && let Err(errno) = pin(cpu)
    {
        log::warn!("lane {name} is not pinned: CPU {cpu} is refused: {errno}");
    }
    if let Err(error) = prepare() {
        log::warn!("a thread of lane {name} is not prepared as it should be: {error}");
    }
    for job in queue {
        // The job itself is caught inside; this is for destructors of what it was given.
        drop_caught(name, catch_unwind(AssertUnwindSafe(job)));
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)
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
