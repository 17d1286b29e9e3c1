//! A core: a glommio executor on its own thread, pinned where a CPU is named.
//!
//! Invariant: everything that runs on the executor went through `rt::spawn`, so no panic reaches
//! glommio, where it would end the thread. When the main future ends the executor ends at once;
//! tasks that still wait are leaked by glommio (their destructors do not run).
//!
//! Deliberately absent: glommio's own blocking pool and its file I/O (see `lane` and `side`), and
//! the choice of CPUs (see `placement`).

use std::cell::OnceCell;
use std::future::Future;
use std::io;
use std::process;
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use glommio::{ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::clock::{Instant, WallTime};
use crate::limits::{IO_MEMORY_BYTES, PREEMPT_NEVER, SINGLETON_PANIC_EXIT, SLEEP_MAX};
use crate::rt::{self, Boxed, Entered, Join, Panicked, Queue, Runtime};
use crate::side::Side;
use crate::turns::Turns;
use crate::wake::{Host, Pace};

/// Tells glommio that the urgent queue's completions preempt the normal queue. The time is what its
/// preempt timer would be set to while the queue is active (see `wake`).
const URGENT_LATENCY: Latency = Latency::Matters(PREEMPT_NEVER);

/// A core to start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CoreSpec {
    /// Name of the thread; the kernel keeps 15 bytes of it.
    pub name: String,
    /// The CPU to pin it to; None lets the kernel choose. Where pinning is refused the core runs
    /// unpinned and a warning is logged.
    pub cpu: Option<usize>,
}

/// A running core. Dropping it lets the core run on.
#[must_use = "join the core"]
pub struct CoreHandle<T: Send + 'static = ()> {
    name: String,
    thread: ExecutorJoinHandle<Result<T, Panicked>>,
}

impl<T: Send + 'static> CoreHandle<T> {
    /// Blocks until the core's main future has ended, and gives its result or its panic.
    pub fn join(self) -> Result<T, Panicked> {
        match self.thread.join() {
            Ok(result) => result,
            Err(fault) => Err(Panicked { task: "executor", message: format!("core {}: {fault}", self.name) }),
        }
    }
}

/// Starts a core and waits until it runs. `main` is called on the core; the core ends with it.
///
/// # Errors
/// The executor could not be set up: io_uring or locked memory is refused, or no thread was to be
/// had. `preflight` finds the causes with better words, before any core starts.
pub fn start<T, F, M>(core: CoreSpec, main: M) -> io::Result<CoreHandle<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce() -> F + Send + 'static,
{
    let name = core.name.clone();
    let (up, running) = bounded(1);
    let thread = LocalExecutorBuilder::new(placement(&core))
        .name(&core.name)
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_NEVER)
        .spawn(move || run(core.name, up, main))
        .map_err(|fault| io::Error::other(format!("core {name} does not start: {fault}")))?;
    match running.recv() {
        Ok(Ok(())) => Ok(CoreHandle { name, thread }),
        Ok(Err(error)) => Err(error),
        // The sender is gone, so the executor has ended before `run` could say anything.
        Err(_) => match thread.join() {
            Ok(_) => unreachable!("an executor that ran to its end has said that it is up"),
            Err(fault) => Err(io::Error::other(format!("core {name} does not start: {fault}"))),
        },
    }
}

/// The main future of the executor itself.
async fn run<T, F, M>(name: String, up: Sender<io::Result<()>>, main: M) -> Result<T, Panicked>
where
    T: 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce() -> F + 'static,
{
    name_thread(&name);
    let urgent = glommio::executor().create_task_queue(Shares::default(), URGENT_LATENCY, "urgent");
    let side = match begin(urgent) {
        Ok(side) => side,
        Err(error) => {
            let message = format!("core {name} does not start: {error}");
            up.send(Err(error)).expect("start() waits for this message");
            return Err(Panicked { task: "executor", message });
        }
    };
    up.send(Ok(())).expect("start() waits for this message");
    let result = rt::spawn("main", async move { main().await }).await;
    // The only task of ours that can be told to end; its descriptors would be leaked with it.
    let (side, listener) = side;
    side.close();
    listener.await?;
    result
}

/// Makes this thread a core.
fn begin(urgent: TaskQueueHandle) -> io::Result<(Rc<Side>, Join<()>)> {
    let host = Host::start()?;
    let turns = Turns::new(Instant::monotonic());
    let core = Rc::new(Core { urgent, host: host.clone(), pace: Pace::default(), turns, side: OnceCell::new() });
    // For good: in the pass that ends the main future glommio may still run other tasks.
    Entered::for_good(core.clone());
    let (side, listener) = Side::start(host)?;
    let side = core.side.get_or_init(|| side).clone();
    Ok((side, listener))
}

/// Where the core's thread goes: pinned if that is possible.
fn placement(core: &CoreSpec) -> Placement {
    match core.cpu {
        None => Placement::Unbound,
        Some(cpu) => match pinnable(cpu) {
            Ok(()) => Placement::Fixed(cpu),
            Err(errno) => {
                log::warn!("core {} is not pinned: CPU {cpu} is refused: {errno}", core.name);
                Placement::Unbound
            }
        },
    }
}

/// Tries out whether this process may run on `cpu`, by moving this thread there and back. glommio
/// itself finds out too late: its helper thread panics.
fn pinnable(cpu: usize) -> nix::Result<()> {
    let before = sched_getaffinity(Pid::from_raw(0))?;
    let mut wanted = CpuSet::new();
    wanted.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &wanted)?;
    sched_setaffinity(Pid::from_raw(0), &before)
}

/// Gives this thread the core's bare name; glommio adds a number to it.
fn name_thread(name: &str) {
    let bytes: Vec<u8> = name.bytes().filter(|byte| *byte != 0).chain([0]).collect();
    // SAFETY: PR_SET_NAME reads a string up to its NUL (the last of `bytes`) or 16 bytes, whichever
    // is first, and keeps no pointer to it.
    let result = unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
    assert_eq!(result, 0, "PR_SET_NAME fails only for an invalid pointer");
}

/// The glommio runtime of one core.
struct Core {
    urgent: TaskQueueHandle,
    host: Rc<Host>,
    pace: Pace,
    turns: Turns,
    /// Empty only while the core starts.
    side: OnceCell<Rc<Side>>,
}

impl Runtime for Core {
    fn start(&self, queue: Queue, task: Boxed) {
        let task = self.host.host(queue, task);
        // Always into a named queue: plain `spawn_local` would inherit the queue of the caller.
        let queue = match queue {
            Queue::Normal => TaskQueueHandle::default(),
            Queue::Urgent => self.urgent,
        };
        glommio::spawn_local_into(task, queue).expect("both queues live as long as the executor").detach();
    }

    fn now(&self) -> Instant {
        Instant::monotonic()
    }

    fn wall(&self) -> WallTime {
        WallTime::system()
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel's random source works once the machine is up");
        bytes
    }

    fn sleep(&self, duration: Duration) -> Boxed {
        Box::pin(glommio::timer::sleep(duration.min(SLEEP_MAX)))
    }

    fn yield_now(&self) -> Boxed {
        Box::pin(async { glommio::executor().yield_task_queue_now().await })
    }

    fn staged(&self, _stage: &'static str) {}

    fn turn_ended(&self) {
        if let Some(side) = self.side.get() {
            side.flush();
        }
    }

    fn turn_counted(&self, began: Instant, ended: Instant) {
        if self.pace.is_due(began, ended) {
            self.host.bell.ring();
        }
    }

    fn singleton_panicked(&self, panicked: Panicked) {
        log::error!("the process ends, it cannot do without this task: {panicked}");
        process::exit(SINGLETON_PANIC_EXIT);
    }

    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn wake_ups(&self) -> u64 {
        voluntary_switches()
    }

    fn side(&self) -> Option<Rc<Side>> {
        self.side.get().cloned()
    }
}

/// How often this thread has gone to sleep so far.
fn voluntary_switches() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD)
        .expect("RUSAGE_THREAD is known to every kernel since 2.6.26");
    u64::try_from(usage.voluntary_context_switches()).expect("a count is not negative")
}
