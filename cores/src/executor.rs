//! A core: a glommio executor on its own thread, pinned where a CPU is named, that drives our tasks.
//!
//! Invariant: everything that runs on a core went through `rt::spawn`, so no panic reaches glommio,
//! where it would end the thread. When the main future ends the core ends at once; tasks that are left
//! are dropped where they stand.
//!
//! Deliberately absent: glommio's tasks and its sleep (see `scheduler` for why), its blocking pool and
//! its file I/O (see `lane` and `side`), and the choice of CPUs (see `placement`).

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::process;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::clock::{Instant, WallTime};
use crate::limits::{IO_MEMORY_BYTES, PREEMPT_NEVER, SINGLETON_PANIC_EXIT};
use crate::rt::{self, Boxed, Entered, Join, Panicked, Queue, Runtime};
use crate::scheduler::Scheduler;
use crate::side::Side;
use crate::turns::Turns;
use crate::wait::give_way;

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

/// The one task of the executor.
async fn run<T, F, M>(name: String, up: Sender<io::Result<()>>, main: M) -> Result<T, Panicked>
where
    T: 'static,
    F: Future<Output = T> + 'static,
    M: FnOnce() -> F + 'static,
{
    name_thread(&name);
    let core = match begin() {
        Ok(core) => core,
        Err(error) => {
            let message = format!("core {name} does not start: {error}");
            up.send(Err(error)).expect("start() waits for this message");
            return Err(Panicked { task: "executor", message });
        }
    };
    up.send(Ok(())).expect("start() waits for this message");
    let main = rt::spawn("main", async move { main().await });
    let result = core.drive(main);
    core.scheduler.clear();
    result
}

/// Makes this thread a core.
fn begin() -> io::Result<Rc<Core>> {
    let scheduler = Scheduler::start()?;
    let side = Side::new(scheduler.bell.clone())?;
    let now = Instant::monotonic();
    let core = Rc::new(Core { scheduler, side, now: Cell::new(now), turns: Turns::new(now) });
    // For good: destructors may still need it while the thread ends.
    Entered::for_good(core.clone());
    Ok(core)
}

/// Where the core's thread goes: pinned if that is possible.
fn placement(core: &CoreSpec) -> Placement {
    match core.cpu {
        None => Placement::Unbound,
        Some(cpu) => match pinnable(cpu) {
            Ok(()) => Placement::Fixed(cpu),
            Err(fault) => {
                log::warn!("core {} is not pinned: CPU {cpu} is refused: {fault}", core.name);
                Placement::Unbound
            }
        },
    }
}

/// Tries out whether this process may run on `cpu`, by moving this thread there and back, and whether
/// glommio can find it: it reads the whole topology, and some virtual machines have none (package -1).
/// glommio itself finds out too late: it panics.
fn pinnable(cpu: usize) -> io::Result<()> {
    let before = sched_getaffinity(Pid::from_raw(0))?;
    let mut wanted = CpuSet::new();
    wanted.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &wanted)?;
    sched_setaffinity(Pid::from_raw(0), &before)?;
    let online = glommio::CpuSet::online().map_err(|fault| {
        io::Error::other(format!("the topology of the machine cannot be read: {}", fault.to_string().trim_end()))
    })?;
    match online.filter(|location| location.cpu == cpu).is_empty() {
        true => Err(io::Error::other("the topology of the machine does not have it")),
        false => Ok(()),
    }
}

/// Gives this thread the core's bare name; glommio adds a number to it.
fn name_thread(name: &str) {
    let bytes: Vec<u8> = name.bytes().filter(|byte| *byte != 0).chain([0]).collect();
    // SAFETY: PR_SET_NAME reads a string up to its NUL (the last of `bytes`) or 16 bytes, whichever
    // is first, and keeps no pointer to it.
    let result = unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
    assert_eq!(result, 0, "PR_SET_NAME fails only for an invalid pointer");
}

/// The runtime of one core.
struct Core {
    scheduler: Rc<Scheduler>,
    side: Rc<Side>,
    /// The end of the last turn.
    now: Cell<Instant>,
    turns: Turns,
}

impl Core {
    /// Runs tasks until the main one has ended, and sleeps while none is runnable.
    fn drive<T>(&self, mut main: Join<T>) -> Result<T, Panicked> {
        loop {
            if let Some(result) = self.work(&mut main) {
                return result;
            }
            if self.scheduler.bell.fall_asleep() && !self.is_due() {
                self.side.listen();
                // To make room for alarm and bell, completions may have been taken.
                if self.scheduler.is_idle() {
                    self.side.sleep();
                    self.now.set(Instant::monotonic());
                }
            }
            self.scheduler.bell.wake_up();
        }
    }

    /// Runs tasks until none is runnable; the result of the main task if that ended.
    fn work<T>(&self, main: &mut Join<T>) -> Option<Result<T, Panicked>> {
        loop {
            self.side.look();
            self.scheduler.look(self.now.get());
            if !self.scheduler.turn() {
                return None;
            }
            if main.is_finished() {
                // The context is of no use: the result is there.
                match Pin::new(main).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(result) => return Some(result),
                    Poll::Pending => unreachable!("the join said that its task has ended"),
                }
            }
        }
    }

    /// Whether the next sleeper is due already; else the alarm goes off for it.
    fn is_due(&self) -> bool {
        let Some(deadline) = self.scheduler.sleepers.next() else { return false };
        let now = Instant::monotonic();
        if deadline <= now {
            self.now.set(now);
            return true;
        }
        self.side.set_alarm(deadline, now);
        false
    }
}

impl Runtime for Core {
    fn start(&self, queue: Queue, task: Boxed) {
        self.scheduler.spawn(queue, task);
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
        self.scheduler.sleepers.sleep(self.now(), duration)
    }

    fn yield_now(&self) -> Boxed {
        give_way()
    }

    fn staged(&self, _stage: &'static str) {}

    fn turn_ended(&self) {
        // Else the core is about to sleep in the ring, which hands over what was queued.
        if !self.scheduler.is_idle() {
            self.side.turn_ended();
        }
    }

    fn turn_counted(&self, ended: Instant) {
        self.now.set(ended);
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
        Some(self.side.clone())
    }
}

/// How often this thread has gone to sleep so far.
fn voluntary_switches() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD)
        .expect("RUSAGE_THREAD is known to every kernel since 2.6.26");
    u64::try_from(usage.voluntary_context_switches()).expect("a count is not negative")
}
