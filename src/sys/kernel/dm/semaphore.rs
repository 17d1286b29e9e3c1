//! One System V semaphore, as udev's rules and ours count in it.
//!
//! Invariant: a `Semaphore` that is dropped is gone from the system. Deliberately absent: what is
//! counted, and where its name is kept for the case that this process dies.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libc::{EAGAIN, EIDRM, EINTR, EINVAL, IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_RMID, c_int, c_short, sembuf};

/// semctl's question for the value, which libc does not have; Linux' ABI for all architectures.
const GETVAL: c_int = 12;
/// Only root touches it.
const MODE: c_int = 0o600;

/// What waiting came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Waited {
    /// It is at zero, or somebody removed it: there is nothing to wait for.
    Done,
    /// Not yet.
    NotYet,
}

/// A semaphore of our own.
#[derive(Debug)]
pub(super) struct Semaphore {
    id: c_int,
}

impl Semaphore {
    /// Makes the semaphore of a key; its value is 0.
    pub(super) fn create(key: u32) -> io::Result<Self> {
        get(key, IPC_CREAT | IPC_EXCL | MODE).map(|id| Self { id })
    }

    /// The semaphore that a dead process left, if the key still leads to the same one.
    pub(super) fn left(key: u32, id: i32) -> Option<Self> {
        let present = get(key, 0).is_ok_and(|present| present == id);
        // Made only when it is ours: dropping one removes it.
        if present { Some(Self { id }) } else { None }
    }

    /// The semaphore of a key, if it was made at `since` (or a second before) or later and nobody has counted in it:
    /// as it is between `create` and the first `up`.
    pub(super) fn unused(key: u32, since: SystemTime) -> Option<Self> {
        let id = get(key, 0).ok()?;
        // SAFETY: semid_ds is numbers; zero is a value of each.
        let mut found: libc::semid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: IPC_STAT writes one semid_ds behind its pointer, which outlives the call.
        let stat = unsafe { libc::semctl(id, 0, libc::IPC_STAT, &raw mut found) };
        // SAFETY: GETVAL has no fourth argument.
        let value = unsafe { libc::semctl(id, 0, GETVAL) };
        let since = since.duration_since(UNIX_EPOCH).ok()?.as_secs();
        let made = u64::try_from(found.sem_ctime).ok()?;
        // The kernel tells this time by a clock of whole seconds, which may be a tick behind that of files.
        let unused = stat == 0 && value == 0 && found.sem_otime == 0 && made + 1 >= since;
        // Made only when it is ours: dropping one removes it.
        if unused { Some(Self { id }) } else { None }
    }

    /// The id that the system gave it; no other semaphore gets it soon.
    pub(super) fn id(&self) -> i32 {
        self.id
    }

    /// One more is expected.
    pub(super) fn up(&self) -> io::Result<()> {
        self.operate(1, IPC_NOWAIT, Duration::ZERO)
    }

    /// One less is expected.
    pub(super) fn down(&self) -> io::Result<()> {
        self.operate(-1, IPC_NOWAIT, Duration::ZERO)
    }

    /// Waits, for so long at most, until nothing is expected any more. Blocks.
    pub(super) fn wait(&self, longest: Duration) -> io::Result<Waited> {
        match self.operate(0, 0, longest) {
            Ok(()) => Ok(Waited::Done),
            Err(error) => match error.raw_os_error() {
                Some(EAGAIN | EINTR) => Ok(Waited::NotYet),
                Some(EIDRM | EINVAL) => Ok(Waited::Done),
                Some(_) | None => Err(error),
            },
        }
    }

    fn operate(&self, operation: c_short, flags: c_int, longest: Duration) -> io::Result<()> {
        let flags = c_short::try_from(flags).expect("the flags of semop are small");
        let mut operation = sembuf { sem_num: 0, sem_op: operation, sem_flg: flags };
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(longest.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        // SAFETY: semtimedop takes the id by value, one operation behind a pointer to one operation, and
        // a pointer to a timespec; both outlive the call, which only reads them.
        let result =
            unsafe { libc::syscall(libc::SYS_semtimedop, self.id, &raw mut operation, 1_usize, &raw const time) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: semctl takes integers; IPC_RMID has no fourth argument.
        let result = unsafe { libc::semctl(self.id, 0, IPC_RMID) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // Somebody cleaned up before us.
            if !matches!(error.raw_os_error(), Some(EIDRM | EINVAL)) {
                log::warn!("a semaphore stays (id={}): {error}", self.id);
            }
        }
    }
}

fn get(key: u32, flags: c_int) -> io::Result<c_int> {
    // SAFETY: semget takes integers.
    let id = unsafe { libc::semget(key.cast_signed(), 1, flags) };
    if id < 0 { Err(io::Error::last_os_error()) } else { Ok(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of no cookie, one for each test.
    const KEY: u32 = 0x7357_0000;

    fn semaphore(key: u32) -> Semaphore {
        // One that an aborted run left is in the way.
        drop(get(key, 0).map(|id| Semaphore { id }));
        Semaphore::create(key).expect("semaphores are to be had")
    }

    #[test]
    fn it_is_waited_for_until_nothing_is_expected() {
        let semaphore = semaphore(KEY + 1);
        assert_eq!(semaphore.wait(Duration::ZERO).expect("waits"), Waited::Done);
        semaphore.up().expect("counts");
        assert_eq!(semaphore.wait(Duration::from_millis(1)).expect("waits"), Waited::NotYet);
        semaphore.down().expect("counts");
        assert_eq!(semaphore.wait(Duration::ZERO).expect("waits"), Waited::Done);
    }

    #[test]
    fn dropped_is_gone() {
        let first = semaphore(KEY + 2);
        let id = first.id();
        assert_eq!(Semaphore::create(KEY + 2).expect_err("taken").raw_os_error(), Some(libc::EEXIST));
        assert!(Semaphore::left(KEY + 2, id + 1).is_none());
        let same = Semaphore::left(KEY + 2, id).expect("the same");
        drop(same);
        assert!(Semaphore::left(KEY + 2, id).is_none());
        assert_eq!(first.wait(Duration::from_secs(3_600)).expect("waits"), Waited::Done);
    }
}
