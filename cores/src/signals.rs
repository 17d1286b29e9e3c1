//! SIGINT and SIGTERM: the first asks the daemon to stop, the second ends it at once.
//!
//! Order of use: `block()` on the main thread before any other thread exists, so that every thread
//! inherits the mask and the signals can only be taken by the one thread that `watch()` starts. It
//! sleeps in `sigwait`: no handler runs, so nothing here has to be async-signal-safe but
//! `unblock_in_child`, which our children need: they would inherit the mask.
//!
//! Invariant: once raised, a `StopFlag` stays raised, and every future of `raised()`, on whatever
//! executor and whenever it was made, becomes ready.
//!
//! Deliberately absent: every other signal. SIGHUP and the rest keep their default effect; pools
//! live in the kernel and need no cleaning up.

use std::future::Future;
use std::io;
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;

use atomic_waker::AtomicWaker;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// How the process ends when a second SIGINT or SIGTERM comes: somebody did not want to wait.
/// (0 is an orderly stop, 1 a failure, 2 bad use of the command line.)
pub const EXIT_SECOND_SIGNAL: i32 = 3;

/// Name of the thread that waits for signals, at most 15 bytes.
const THREAD: &str = "signals";

/// The signals that ask us to stop.
const STOPPING: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

fn stopping() -> SigSet {
    STOPPING.into_iter().collect()
}

/// Keeps SIGINT and SIGTERM from ending the process until `watch` takes them. Call it on the main
/// thread before any other thread exists: threads inherit it, and one without it would die of the
/// signal. A signal that comes before `watch` is not lost.
///
/// # Errors
/// Those of `pthread_sigmask`: none that a valid set could cause.
pub fn block() -> io::Result<()> {
    stopping().thread_block().map_err(io::Error::from)
}

/// Starts the thread that takes the signals. Call it once.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch() -> io::Result<StopFlag> {
    let flag = StopFlag::default();
    let raised = flag.clone();
    // It runs as long as the process: nothing waits for it.
    thread::Builder::new().name(THREAD.into()).spawn(move || take_signals(&raised))?;
    Ok(flag)
}

fn take_signals(flag: &StopFlag) {
    let set = stopping();
    let take = || set.wait().expect("sigwait takes a set of valid signals");
    // Whoever awaits the flag logs it, not this thread: standard error may be a full pipe, and the
    // second signal must work even then.
    take();
    flag.raise();
    take();
    // Not `process::exit`: it runs exit handlers and may wait for a lock that a hung thread holds.
    // SAFETY: `_exit` demands nothing; it never returns and runs no code of this process.
    unsafe { libc::_exit(EXIT_SECOND_SIGNAL) }
}

/// Lets the stopping signals through again in the thread that calls it. For `pre_exec`.
///
/// # Errors
/// Those of `pthread_sigmask`: none that a valid set could cause.
pub fn unblock_in_child() -> io::Result<()> {
    // Between fork and exec only async-signal-safe functions may be called: sigemptyset, sigaddset
    // and pthread_sigmask are, and nothing here allocates or takes a lock.
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&stopping()), None).map_err(io::Error::from)
}

/// Makes a child start with the stopping signals let through, as every program expects.
pub fn unblock_in(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec, where it must be async-signal-safe and must
    // not touch memory that another thread may have left half-written: see `unblock_in_child`.
    unsafe { command.pre_exec(unblock_in_child) }
}

/// Whether the daemon has been asked to stop. Clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    raised: AtomicBool,
    /// One for each living `Raised` that has been polled. Locked for a few instructions, when a
    /// future is first polled, is dropped, or the flag is raised: three times in a daemon's life.
    waiters: Mutex<Vec<Arc<AtomicWaker>>>,
}

impl Shared {
    fn waiters(&self) -> MutexGuard<'_, Vec<Arc<AtomicWaker>>> {
        // Pushing, retaining and waking leave the list whole wherever they unwind.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StopFlag {
    /// Raises the flag, as a signal would; for a failure that must stop the daemon in order.
    /// Raising it again changes nothing (only a second *signal* ends the process).
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::SeqCst);
        for waiter in self.0.waiters().iter() {
            waiter.wake();
        }
    }

    /// Whether it has been raised.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }

    /// Resolves when the flag is raised, or at once. Any number of tasks on any executors may wait.
    pub fn raised(&self) -> Raised {
        Raised { shared: self.0.clone(), waiter: None }
    }
}

/// The future of `StopFlag::raised`.
#[derive(Debug)]
#[must_use = "a future does nothing until it is awaited"]
pub struct Raised {
    shared: Arc<Shared>,
    waiter: Option<Arc<AtomicWaker>>,
}

impl Future for Raised {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let waiter = this.waiter.get_or_insert_with(|| {
            let waiter = Arc::new(AtomicWaker::new());
            this.shared.waiters().push(waiter.clone());
            waiter
        });
        waiter.register(context.waker());
        // Looked at only after registering: a `raise` that came in between has either seen the
        // waiter or is seen here.
        if this.shared.raised.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(mine) = self.waiter.take() {
            self.shared.waiters().retain(|waiter| !Arc::ptr_eq(waiter, &mine));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader};
    use std::pin::pin;
    use std::process::{Child, Stdio};
    use std::task::{Wake, Waker};

    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;

    /// This test binary again, to run one ignored test in a process of its own.
    pub(crate) fn child_test(name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a test knows its own binary"));
        command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
        command
    }

    /// Runs it and gives what it wrote to standard output.
    pub(crate) fn child_output(command: &mut Command) -> String {
        let output = command.stderr(Stdio::inherit()).output().expect("the test binary can be started");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }

    #[test]
    fn every_waiter_on_every_thread_wakes_and_late_ones_need_not_wait() {
        let flag = StopFlag::default();
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let flag = flag.clone();
                thread::spawn(move || {
                    block_on(async {
                        // Two at once in one task, too.
                        let (first, second) = (flag.raised(), flag.raised());
                        first.await;
                        second.await;
                    });
                })
            })
            .collect();
        assert!(!flag.is_raised());
        flag.raise();
        for thread in waiting {
            thread.join().expect("a waiter ends when the flag is raised");
        }
        assert!(flag.is_raised());
        block_on(flag.raised());
        assert!(flag.0.waiters().is_empty(), "a future that is gone leaves no waiter behind");
    }

    #[test]
    fn a_future_that_was_polled_is_woken_and_one_that_was_dropped_is_forgotten() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(0.into()));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let flag = StopFlag::default();
        let (mut kept, mut dropped) = (Box::pin(flag.raised()), Box::pin(flag.raised()));
        assert_eq!(kept.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(dropped.as_mut().poll(&mut context), Poll::Pending);
        drop(dropped);
        flag.raise();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(kept.as_mut().poll(&mut context), Poll::Ready(()));
    }

    /// The daemon's part: the mask is in force already, because the parent's was inherited.
    #[test]
    #[ignore = "run in a child process by the other tests"]
    fn child_watches() {
        block().expect("signals can be blocked");
        let flag = watch().expect("a thread can be started");
        let waiting: Vec<_> =
            [flag.clone(), flag].map(|flag| thread::spawn(move || block_on(flag.raised()))).into_iter().collect();
        println!("\nready");
        for thread in waiting {
            thread.join().expect("a waiter ends when the flag is raised");
        }
        println!("raised");
        loop {
            thread::park();
        }
    }

    /// Starts `child_watches` with the signals blocked in all its threads, and waits until it is
    /// ready. (In a test process the main thread is not ours, so `block` in a test comes too late.)
    fn watcher() -> (Child, impl FnMut(&str)) {
        let mut command = child_test("signals::tests::child_watches");
        // SAFETY: `block` runs between fork and exec; like `unblock_in_child` it only calls
        // sigemptyset, sigaddset and pthread_sigmask, which are async-signal-safe.
        unsafe { command.pre_exec(block) };
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the test binary can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
        let mut until = move |wanted: &str| {
            let found = lines.any(|line| line.expect("the child writes text") == wanted);
            assert!(found, "the child ended before it said {wanted:?}");
        };
        until("ready");
        (child, until)
    }

    fn send(child: &Child, signal: Signal) {
        let pid = i32::try_from(child.id()).expect("process ids fit i32");
        kill(Pid::from_raw(pid), signal).expect("a child can be signalled");
    }

    #[test]
    fn the_first_signal_raises_the_flag_and_the_second_ends_the_process() {
        for (first, second) in [(Signal::SIGINT, Signal::SIGINT), (Signal::SIGTERM, Signal::SIGINT)] {
            let (mut child, mut until) = watcher();
            send(&child, first);
            until("raised");
            assert_eq!(child.try_wait().expect("a child can be waited for"), None);
            send(&child, second);
            let status = child.wait().expect("a child can be waited for");
            assert_eq!(status.code(), Some(EXIT_SECOND_SIGNAL));
        }
    }

    #[test]
    fn other_signals_keep_their_effect() {
        use std::os::unix::process::ExitStatusExt;
        let (mut child, _until) = watcher();
        // Not SIGHUP, which is ignored by whatever runs under `nohup`.
        send(&child, Signal::SIGUSR1);
        let status = child.wait().expect("a child can be waited for");
        assert_eq!(status.signal(), Some(Signal::SIGUSR1 as i32));
    }

    #[test]
    fn a_child_inherits_the_mask_unless_it_is_unblocked() {
        let blocked = |command: &mut Command| {
            let output = command.output().expect("cat can be started").stdout;
            let status = String::from_utf8(output).expect("a process's status is text");
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("it has a mask");
            let mask = u64::from_str_radix(mask.trim(), 16).expect("a mask is hexadecimal");
            STOPPING.map(|signal| mask & (1 << (signal as i32 - 1)) != 0)
        };
        let cat = || {
            let mut command = Command::new("cat");
            command.arg("/proc/self/status");
            command
        };
        thread::spawn(move || {
            block().expect("signals can be blocked");
            assert_eq!(blocked(&mut cat()), [true, true]);
            assert_eq!(blocked(unblock_in(&mut cat())), [false, false]);
        })
        .join()
        .expect("the thread of its own mask ends well");
    }
}
