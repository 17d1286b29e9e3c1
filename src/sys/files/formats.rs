//! mkfs.xfs on a file: how it is run, how many at a time, and how it is stopped.
//!
//! A formatter is a child process. A lane starts it; then only its output is awaited, on the side
//! ring, so that no thread is held while it works.
//!
//! Invariant: a child that was started is waited for, also when nobody wants its result any more.
//!
//! Deliberately absent: discards. mkfs.xfs leaves them out on a regular file.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::future::poll_fn;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::task::{Poll, Waker};

use cores::side::{Buffer, Fd, Side};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, Whence, lseek64};

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
    pub(super) version: Cell<Option<u32>>,
}

/// One of the `FORMAT_THREADS` places.
pub(super) struct Place<'a> {
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

    /// Waits for a place. `None`: formats are cancelled.
    pub(super) async fn place(&self) -> Option<Place<'_>> {
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

    /// Whether formats are cancelled.
    pub(super) fn cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Waits until a child has closed its output, as it does by ending, and gives it back with what
    /// it said. The child can be killed meanwhile.
    pub(super) async fn watch(&self, side: &Rc<Side>, child: Child, output: PipeReader) -> io::Result<(Child, String)> {
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
fn find_program() -> io::Result<PathBuf> {
    let paths = FOLDERS.iter().map(|folder| Path::new(folder).join(PROGRAM));
    paths.into_iter().find(|path| path.exists()).ok_or_else(|| Errno::ENOENT.into())
}

/// The first number of the formatter's version. Blocking.
pub(super) fn ask_version() -> io::Result<u32> {
    let mut command = Command::new(find_program()?);
    let output = prepare(command.arg("-V")).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let first = |word: &str| word.split_once('.')?.0.parse().ok(); // Other words are not versions.
    let number = text.split_whitespace().find_map(first);
    number.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
}

/// Starts the formatter on a file. Blocking, for as long as a fork takes.
pub(super) fn start(file: &Path, uuid: uuid::Uuid, version: u32) -> io::Result<(Child, PipeReader)> {
    let (output, input) = io::pipe()?;
    let mut command = Command::new(find_program()?);
    command.args(["-f", "-q", "-m", &format!("uuid={}", uuid.hyphenated())]);
    if version >= NREXT64_SINCE {
        command.args(["-i", "nrext64=0"]);
    }
    command.arg(file).stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    let child = prepare(&mut command).spawn()?;
    Ok((child, output)) // The command goes here, and with it our ends of the pipe's input.
}

/// Undoes for a child what is the daemon's alone: blocked signals, and the one CPU of its core.
fn prepare(command: &mut Command) -> &mut Command {
    let signals = SigSet::all();
    let mut cpus = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        cpus.set(cpu).expect("a number below the count of a set");
    }
    let undo = move || {
        signals.thread_unblock()?;
        // The kernel takes of these CPUs what the process may use; to be refused does no harm.
        sched_setaffinity(Pid::from_raw(0), &cpus).or(Ok(()))
    };
    // SAFETY: between fork and exec the closure makes two system calls on values it owns; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(undo) }
}

/// Gives the host back what reads as zeroes without being a hole. mkfs.xfs zeroes its whole log by
/// allocating it unwritten: 64 MiB for a small filesystem, 512 MiB for 1 TiB. A hole reads the same.
/// Blocking.
pub(super) fn dig(file: &File) -> io::Result<()> {
    file.sync_all()?; // What is not written back yet may look like a hole.
    let size = libc::off_t::try_from(file.metadata()?.size()).map_err(|_| Errno::EFBIG)?;
    let holes = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut at = 0;
    while at < size {
        let data = match lseek64(file, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => size,
            Err(errno) => return Err(errno.into()),
        };
        if at < data {
            match fallocate(file, holes, at, data - at) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => return Ok(()), // A host without holes keeps its blocks.
                Err(errno) => return Err(errno.into()),
            }
        }
        if data == size {
            break;
        }
        at = lseek64(file, data, Whence::SeekHole)?;
    }
    Ok(())
}

/// Opens a volume to dig and to flush it. Blocking.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
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

    #[test]
    fn digging_leaves_what_is_read_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create_new(&path).expect("new");
        file.set_len(8 << 20).expect("sized");
        fallocate(&file, FallocateFlags::empty(), 0, 6 << 20).expect("room");
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 10_000], 3 << 20).expect("room");
        // Not read before: the host takes what is in its cache for data.
        dig(&open(&path).expect("there")).expect("the host has holes");
        assert!(file.metadata().expect("open").blocks() * 512 < 1 << 20);
        let mut expected = vec![0; 8 << 20];
        expected[3 << 20..][..10_000].fill(7);
        assert!(std::fs::read(&path).expect("readable") == expected);
    }
}
