//! mkfs.xfs on a volume, be it a file or a device: how it is run, how many at a time, and how it is
//! stopped.
//!
//! A formatter is a child process. A lane starts it; then only its output is awaited, on the side
//! ring, so that no thread is held while it works.
//!
//! Invariants: a child that was started is waited for, also when nobody wants its result any more. One
//! does not outlive the daemon: the next daemon takes away what was being made, and must find it unused.
//!
//! Deliberately absent: making the result durable. What that needs depends on what the volume is.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::rc::Rc;
use std::task::{Poll, Waker};

use cores::lane::Lane;
use cores::side::{Buffer, Fd, Side};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid};

use super::jobs::{blocking, why};
use crate::error::Why;
use crate::limits::FORMAT_THREADS;

/// The formatter.
pub(super) const PROGRAM: &str = "mkfs.xfs";
/// Where it may be; the daemon's own PATH says nothing about root's tools.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// What of its output is kept: its messages are a few lines.
const OUTPUT_BYTES_MAX: usize = 4_096;
/// The first version that knows, and by default uses, the 64-bit extent counters that older
/// kernels cannot mount.
const NREXT64_SINCE: u32 = 6;

/// The formatters of one core.
#[derive(Debug, Default)]
pub(super) struct Formats {
    running: Cell<usize>,
    waiting: RefCell<VecDeque<Waker>>,
    children: RefCell<BTreeMap<u64, Child>>,
    next: Cell<u64>,
    cancelled: Cell<bool>,
    /// The program's first version number, once it was asked for.
    version: Cell<Option<u32>>,
}

/// One of the `FORMAT_THREADS` places.
struct Place<'a> {
    formats: &'a Formats,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.formats.running.set(self.formats.running.get() - 1);
        if let Some(next) = self.formats.waiting.borrow_mut().pop_front() {
            next.wake();
        }
    }
}

impl Formats {
    /// Kills what runs, and lets nothing start any more.
    pub(super) fn cancel(&self) {
        self.cancelled.set(true);
        for child in self.children.borrow_mut().values_mut() {
            if let Err(error) = child.kill() {
                log::warn!("{PROGRAM} (process {}) is not killed: {error}", child.id());
            }
        }
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Puts an empty XFS with this UUID on a volume. Not durable yet.
    pub(super) async fn format(
        &self,
        side: &Rc<Side>,
        lane: &Lane,
        volume: &Path,
        uuid: uuid::Uuid,
    ) -> Result<(), Why> {
        let Some(_place) = self.place().await else { return Err(Why::Cancelled) };
        let version = match self.version.get() {
            Some(version) => version,
            None => blocking(lane, ask_version).await?,
        };
        self.version.set(Some(version));
        let volume = volume.to_owned();
        let (child, output) = blocking(lane, move || start(&volume, uuid, version)).await?;
        let (mut child, said) = self.watch(side, child, output).await.map_err(|error| why(&error))?;
        let status = blocking(lane, move || child.wait()).await?;
        if status.success() {
            return Ok(());
        }
        let failed = Why::Child { program: PROGRAM, status: status.to_string(), stderr: said };
        Err(if self.cancelled.get() { Why::Cancelled } else { failed })
    }

    /// Waits for a place. `None`: formats are cancelled.
    async fn place(&self) -> Option<Place<'_>> {
        poll_fn(|context| {
            if self.cancelled.get() {
                return Poll::Ready(None);
            }
            if self.running.get() < FORMAT_THREADS {
                self.running.set(self.running.get() + 1);
                return Poll::Ready(Some(Place { formats: self }));
            }
            self.waiting.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until a child has closed its output, as it does by ending, and gives it back with what
    /// it said. The child can be killed meanwhile.
    async fn watch(&self, side: &Rc<Side>, child: Child, output: PipeReader) -> io::Result<(Child, String)> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.children.borrow_mut().insert(number, child);
        if self.cancelled.get() {
            self.cancel(); // It was cancelled while the child was being started.
        }
        let output: Fd = Rc::new(OwnedFd::from(output));
        let mut said = Vec::new();
        let outcome = loop {
            let (result, buffer) = side.read(&output, 0, Buffer::aligned(OUTPUT_BYTES_MAX, 1)).await;
            match result {
                Ok(0) => break Ok(()),
                Ok(len) => {
                    let room = OUTPUT_BYTES_MAX - said.len();
                    said.extend_from_slice(&buffer[..len.min(room)]);
                }
                Err(error) => break Err(error),
            }
        };
        let child = self.children.borrow_mut().remove(&number).expect("a child stays until it is taken here");
        outcome.map(|()| (child, String::from_utf8_lossy(&said).trim().to_owned()))
    }
}

/// Finds the formatter. Blocking.
pub(super) fn find_program() -> io::Result<PathBuf> {
    let paths = FOLDERS.iter().map(|folder| Path::new(folder).join(PROGRAM));
    paths.into_iter().find(|path| path.exists()).ok_or_else(|| Errno::ENOENT.into())
}

/// The first number of the formatter's version. Blocking.
fn ask_version() -> io::Result<u32> {
    let mut command = Command::new(find_program()?);
    let output = prepare(command.arg("-V")).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let first = |word: &str| word.split_once('.')?.0.parse().ok(); // Other words are not versions.
    let number = text.split_whitespace().find_map(first);
    number.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
}

/// Starts the formatter on a volume. Blocking, for as long as a fork takes.
fn start(volume: &Path, uuid: uuid::Uuid, version: u32) -> io::Result<(Child, PipeReader)> {
    let (output, input) = io::pipe()?;
    let mut command = Command::new(find_program()?);
    // -K: a volume that was just made has nothing to discard, and being asked to costs a thin pool time.
    command.args(["-f", "-q", "-K", "-m", &format!("uuid={}", uuid.hyphenated())]);
    if version >= NREXT64_SINCE {
        command.args(["-i", "nrext64=0"]);
    }
    command.arg(volume).stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    let child = prepare(&mut command).spawn()?;
    Ok((child, output)) // The command goes here, and with it our ends of the pipe's input.
}

/// Undoes for a child what is the daemon's alone, blocked signals and the one CPU of its core, and ties
/// its life to the thread that starts it: a lane's, which lives as long as the daemon.
fn prepare(command: &mut Command) -> &mut Command {
    let signals = SigSet::all();
    let mut cpus = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        cpus.set(cpu).expect("a number below the count of a set");
    }
    let daemon = Pid::from_raw(process::id().cast_signed());
    let undo = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != daemon {
            return Err(Errno::ESRCH.into()); // It died before its death was to be told.
        }
        signals.thread_unblock()?;
        // The kernel takes of these CPUs what the process may use; to be refused does no harm.
        sched_setaffinity(Pid::from_raw(0), &cpus).or(Ok(()))
    };
    // SAFETY: between fork and exec the closure makes four system calls on values it owns; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(undo) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use cores::executor::{CoreSpec, start as start_core};
    use cores::rt;

    use super::*;

    #[test]
    fn a_formatter_that_runs_is_killed_and_a_later_one_does_not_start() {
        let spec = CoreSpec { name: "formats".to_owned(), cpu: None };
        let core = start_core(spec, || async {
            let (output, input) = io::pipe().expect("descriptors");
            let mut command = Command::new("sleep");
            command.arg("1000000").stdin(Stdio::null()).stdout(input.try_clone().expect("descriptors")).stderr(input);
            let child = prepare(&mut command).spawn().expect("sleep is installed");
            drop(command);
            let formats = Rc::new(Formats::default());
            let watcher = formats.clone();
            let watch = rt::spawn("watch", async move { watcher.watch(&rt::side(), child, output).await });
            rt::yield_now().await;
            formats.cancel();
            let (mut child, said) = watch.await.expect("no panic").expect("the pipe can be read");
            assert_eq!(said, "");
            assert_eq!(child.wait().expect("ours").signal(), Some(libc::SIGKILL));
            assert!(formats.place().await.is_none());
        });
        core.expect("io_uring").join().expect("no panic");
    }

    #[test]
    fn places_are_as_many_as_threads_and_pass_on() {
        let spec = CoreSpec { name: "places".to_owned(), cpu: None };
        let core = start_core(spec, || async {
            let formats = Rc::new(Formats::default());
            let mut held = Vec::new();
            for _ in 0..FORMAT_THREADS {
                held.push(formats.place().await.expect("free"));
            }
            let other = formats.clone();
            let waiter = rt::spawn("wait", async move { other.place().await.is_some() });
            rt::yield_now().await;
            assert!(!waiter.is_finished());
            drop(held.pop());
            assert!(waiter.await.expect("no panic"));
        });
        core.expect("io_uring").join().expect("no panic");
    }

    #[test]
    fn a_child_of_a_pinned_thread_may_use_every_cpu() {
        let count = |command: &mut Command| {
            let output = command.output().expect("nproc is installed");
            String::from_utf8(output.stdout).expect("UTF-8")
        };
        let all = count(&mut Command::new("nproc"));
        let own = nix::sched::sched_getaffinity(Pid::from_raw(0)).expect("ours");
        let mut one = CpuSet::new();
        let first = (0..CpuSet::count()).find(|cpu| own.is_set(*cpu) == Ok(true)).expect("this thread runs");
        one.set(first).expect("below the count");
        sched_setaffinity(Pid::from_raw(0), &one).expect("a part of what we have");
        assert_eq!(count(&mut Command::new("nproc")).trim(), "1");
        assert_eq!(count(prepare(&mut Command::new("nproc"))), all);
    }
}
