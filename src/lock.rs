//! One daemon at a time: the lock on `stratisd.pid`, and taking over from the boot-time daemon.
//!
//! Two daemons would write the same metadata, so the lock is the first thing taken after the
//! command line is read, and every daemon for these pools must use the same files. The lock is the
//! kernel's and ends with the process however it ends; the file stays, and what it holds means
//! something only while it is locked.
//!
//! Invariant: while a `Lock` lives, no other process that follows the protocol works on pools.
//!
//! Deliberately absent: time limits. Taking over waits until the other daemon has gone; it happens
//! before signals are blocked, so SIGINT still ends the wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

/// Held by a running stratisd.
const DAEMON_FILE: &str = "stratisd.pid";

/// Held by stratisd-min, which serves pools while a system boots.
const BOOT_FILE: &str = "stratisd-min.pid";

/// Bytes of a pid file that are looked at: the largest pid has 7 digits.
const PID_BYTES_MAX: u64 = 32;

/// Permission bits of a new pid file, less the umask.
const MODE: u32 = 0o644;

/// Why this daemon cannot be the only one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum LockFault {
    /// Another one runs. It is not disturbed.
    #[error("stratisd is running already as process {}: it holds {}", name(*.pid), path.display())]
    Held {
        /// The file it holds.
        path: PathBuf,
        /// Its process id, if the file tells.
        pid: Option<i32>,
    },
    /// A pid file cannot be used.
    #[error("cannot {doing} {}: {}", path.display(), errno.desc())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// The boot-time daemon runs, but cannot be asked to go.
    #[error("cannot take over from stratisd-min: it holds {}, which names no process", .0.display())]
    Nameless(PathBuf),
    /// Likewise.
    #[error("cannot take over from stratisd-min: SIGINT to process {pid}: {}", errno.desc())]
    Signal {
        /// Its process id.
        pid: i32,
        /// Why not.
        errno: Errno,
    },
}

fn name(pid: Option<i32>) -> String {
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
}

/// Proof that this process is the only daemon. Keep it for as long as the daemon lives.
#[derive(Debug)]
pub struct Lock {
    _held: Flock<File>,
}

impl Lock {
    /// Takes the lock below `run_dir`, writes our process id, and takes over from the boot-time
    /// daemon if one runs.
    ///
    /// # Errors
    /// `LockFault`; the lock is not held then.
    pub fn take(run_dir: &Path) -> Result<Self, LockFault> {
        let path = run_dir.join(DAEMON_FILE);
        let mut held = match try_lock(&path)? {
            Ok(held) => held,
            Err(mut file) => return Err(LockFault::Held { pid: read_pid(&mut file, &path)?, path }),
        };
        write_pid(&mut held).map_err(|error| file_fault("write", &path, &error))?;
        take_over(&run_dir.join(BOOT_FILE))?;
        Ok(Self { _held: held })
    }
}

/// Asks the boot-time daemon to go, if it runs, and waits until it has.
fn take_over(path: &Path) -> Result<(), LockFault> {
    let mut file = match try_lock(path)? {
        // Nobody is there. The lock ends here, so that a later stratisd-min can see ours and refuse.
        Ok(_nobody) => return Ok(()),
        Err(file) => file,
    };
    let pid = read_pid(&mut file, path)?.ok_or_else(|| LockFault::Nameless(path.to_owned()))?;
    match kill(Pid::from_raw(pid), Signal::SIGINT) {
        // No such process: it has ended since the file was read, and its lock with it.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => return Err(LockFault::Signal { pid, errno }),
    }
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(_gone) => return Ok(()),
            Err((same, Errno::EINTR)) => file = same,
            Err((_, errno)) => return Err(LockFault::File { doing: "lock", path: path.to_owned(), errno }),
        }
    }
}

/// The lock on a file, which is made if it is missing; or the open file, if another one holds it.
fn try_lock(path: &Path) -> Result<Result<Flock<File>, File>, LockFault> {
    // Not truncated: until the lock is ours, the contents belong to its holder.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(path);
    let file = file.map_err(|error| file_fault("open", path, &error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Ok(held)),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Err(file)),
        Err((_, errno)) => Err(LockFault::File { doing: "lock", path: path.to_owned(), errno }),
    }
}

/// The process id in a pid file. `None` for anything that is not one: 0 and negative numbers would
/// signal whole groups of processes.
fn read_pid(file: &mut File, path: &Path) -> Result<Option<i32>, LockFault> {
    let mut bytes = Vec::new();
    file.take(PID_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| file_fault("read", path, &error))?;
    let pid = str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    Ok(pid.filter(|&pid| pid > 0))
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(std::process::id().to_string().as_bytes())
}

fn file_fault(doing: &'static str, path: &Path, error: &io::Error) -> LockFault {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    LockFault::File { doing, path: path.to_owned(), errno }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::SigSet;

    use super::*;

    fn run_dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder can be made")
    }

    fn text(folder: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(folder.path().join(name)).expect("the pid file is there")
    }

    fn own_pid() -> i32 {
        Pid::this().as_raw()
    }

    #[test]
    fn the_second_daemon_is_refused_and_told_who_the_first_is() {
        let folder = run_dir();
        let first = Lock::take(folder.path()).expect("nobody holds the lock");
        assert_eq!(text(&folder, DAEMON_FILE), own_pid().to_string());
        let path = folder.path().join(DAEMON_FILE);
        let fault = Lock::take(folder.path()).expect_err("the first daemon holds the lock");
        assert_eq!(fault, LockFault::Held { path: path.clone(), pid: Some(own_pid()) });
        let said = format!("stratisd is running already as process {}: it holds {}", own_pid(), path.display());
        assert_eq!(fault.to_string(), said);
        assert_eq!(text(&folder, DAEMON_FILE), own_pid().to_string());
        drop(first);
        assert!(path.exists(), "the file is not removed");
        Lock::take(folder.path()).expect("the first daemon has gone");
    }

    #[test]
    fn what_an_earlier_daemon_left_in_the_file_is_gone() {
        let folder = run_dir();
        fs::write(folder.path().join(DAEMON_FILE), "99999999999 and more\n").expect("the folder is ours");
        let _lock = Lock::take(folder.path()).expect("nobody holds the lock");
        assert_eq!(text(&folder, DAEMON_FILE), own_pid().to_string());
    }

    #[test]
    fn a_missing_run_dir_is_named() {
        let folder = run_dir();
        let fault = Lock::take(&folder.path().join("missing")).expect_err("the folder does not exist");
        assert!(fault.to_string().ends_with("missing/stratisd.pid: No such file or directory"), "{fault}");
    }

    #[test]
    fn without_a_boot_time_daemon_its_lock_is_left_free() {
        let folder = run_dir();
        let _lock = Lock::take(folder.path()).expect("nobody holds the lock");
        let path = folder.path().join(BOOT_FILE);
        assert!(try_lock(&path).expect("the file was made").is_ok());
        assert_eq!(text(&folder, BOOT_FILE), "");
    }

    #[test]
    fn a_boot_time_daemon_that_names_nobody_is_not_signalled() {
        for left in ["", "0", "-1", "1234 5678", "none"] {
            let folder = run_dir();
            let path = folder.path().join(BOOT_FILE);
            let mut held = try_lock(&path).expect("the folder is ours").expect("nobody holds the lock");
            held.write_all(left.as_bytes()).expect("the file is ours");
            let fault = Lock::take(folder.path()).expect_err("the boot-time daemon cannot be asked");
            assert_eq!(fault, LockFault::Nameless(path));
            drop(held);
            Lock::take(folder.path()).expect("a take-over that failed has not kept the lock");
        }
    }

    const FOLDER: &str = "LOCK_TEST_RUN_DIR";

    /// A boot-time daemon in a process of its own: holds the lock, ends on SIGINT.
    #[test]
    #[ignore = "run in a child process by another test"]
    fn child_serves_the_boot() {
        let folder = PathBuf::from(std::env::var_os(FOLDER).expect("the parent names the folder"));
        let mut held = try_lock(&folder.join(BOOT_FILE)).expect("the folder is there").expect("nobody holds the lock");
        write_pid(&mut held).expect("the file can be written");
        println!("\nheld");
        let interrupt: SigSet = [Signal::SIGINT].into_iter().collect();
        assert_eq!(interrupt.wait(), Ok(Signal::SIGINT));
        drop(held);
    }

    fn boot_time_daemon(folder: &Path) -> Child {
        // The child inherits the mask, so SIGINT ends its wait in all cases, even where whoever runs
        // the tests ignores it.
        let interrupt: SigSet = [Signal::SIGINT].into_iter().collect();
        interrupt.thread_block().expect("signals can be blocked");
        let mut child = Command::new(std::env::current_exe().expect("a test knows its own binary"))
            .args(["--exact", "lock::tests::child_serves_the_boot", "--ignored", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary can be started");
        interrupt.thread_unblock().expect("signals can be unblocked");
        let mut lines = BufReader::new(child.stdout.as_mut().expect("standard output is a pipe")).lines();
        assert!(lines.any(|line| line.expect("the child writes text") == "held"));
        child
    }

    #[test]
    fn a_boot_time_daemon_is_asked_to_go_and_waited_for() {
        let folder = run_dir();
        let mut child = boot_time_daemon(folder.path());
        let pid = child.id().to_string();
        assert_eq!(text(&folder, BOOT_FILE), pid);
        assert!(try_lock(&folder.path().join(BOOT_FILE)).expect("the file is there").is_err(), "it holds its lock");
        let _lock = Lock::take(folder.path()).expect("the boot-time daemon goes when asked");
        let path = folder.path().join(BOOT_FILE);
        assert!(try_lock(&path).expect("the file is there").is_ok(), "its lock was given back");
        assert!(child.wait().expect("a child can be waited for").success());
    }
}
