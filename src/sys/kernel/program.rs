//! Running a program to its end, for a limited time.
//!
//! Invariants: it ends with this process, however that ends, so the next daemon does not find one at work; what
//! it says is read while it says it, so it never waits for us.
//!
//! Deliberately absent: input, a shell, and a search anywhere but where programs of the system are.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::limits::{PROGRAM_KILLED_WAIT_MS, PROGRAM_WORDS_BYTES};

/// Where programs are looked for, whatever the environment says.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// How often a killed program is asked whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where a program is.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| PathBuf::from(folder).join(name)).find(|path| path.is_file())
}

/// Runs a program to its end; tells how it ended and the beginning of what it said. Blocking.
///
/// # Errors
/// ETIMEDOUT when it took too long; it was killed then.
pub(super) fn run(program: PathBuf, arguments: &[String], wait: Duration) -> io::Result<(ExitStatus, String)> {
    let (mut said, says) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(says.try_clone()?).stderr(says);
    // SAFETY: between fork and exec the closure makes one system call and neither allocates nor locks; an errno
    // becomes an `io::Error` without memory.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let mut child = command.spawn()?;
    // It holds our ends of the pipe, and the pipe ends with the program's.
    drop(command);
    let heard = listen(&mut said, Instant::now() + wait);
    if heard.is_err() {
        end(&mut child);
    }
    let words = String::from_utf8_lossy(&heard?).trim().replace('\n', "; ");
    Ok((child.wait()?, words))
}

/// Reads until the other end is closed, and keeps the beginning.
fn listen(said: &mut PipeReader, end: Instant) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(said.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Err(Errno::ETIMEDOUT.into()),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let count = said.read(&mut bytes)?;
        if count == 0 {
            return Ok(kept);
        }
        let room = PROGRAM_WORDS_BYTES.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&bytes[..room]);
    }
}

/// Kills a program and reaps it. One that does not end even so stays in the process table until we end.
fn end(child: &mut Child) {
    let killed = Instant::now();
    // It may have ended by itself.
    let _ = child.kill();
    while killed.elapsed() < Duration::from_millis(PROGRAM_KILLED_WAIT_MS) {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    log::warn!("a program that was killed has not ended (pid={})", child.id());
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str, wait: Duration) -> io::Result<(ExitStatus, String)> {
        run(find("sh").expect("there is a shell"), &["-c".to_owned(), script.to_owned()], wait)
    }

    #[test]
    fn how_it_ended_and_what_it_said_is_told() {
        let (status, said) = shell("echo one; echo two >&2; exit 3", LONG).expect("it ends");
        assert_eq!((status.code(), said.as_str()), (Some(3), "one; two"));
    }

    #[test]
    fn one_that_says_much_is_not_held_up() {
        let (status, said) = shell("head -c 1000000 /dev/zero | tr '\\0' x", LONG).expect("it ends");
        assert!(status.success());
        assert_eq!(said, "x".repeat(PROGRAM_WORDS_BYTES));
    }

    #[test]
    fn one_that_takes_too_long_is_killed() {
        let error = shell("exec sleep 1000", Duration::from_millis(50)).expect_err("it sleeps");
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(find("no such program"), None);
    }
}
