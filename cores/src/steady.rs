//! Threads that must go on while a device does not: whoever suspends a device, or swaps its table, may
//! not wait for memory that only writing to that very device would free, nor for the CPU, because all who write wait
//! for it.
//!
//! Invariant: a thread that was made steady asks the kernel for memory without starting I/O, a piece
//! of its stack is in memory for good. Deliberately absent: what such a thread does in between; it must not ask for
//! memory of the process, because only the stack is held, and one that goes first must do little: it takes the CPU from
//! its own core, too.

use std::hint::black_box;
use std::io;

use crate::limits::STEADY_STACK_BYTES;

/// `prctl` operation, since Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// The most that an ordinary thread can have.
const NICE: libc::c_int = -20;

/// Makes the calling thread steady.
///
/// # Errors
/// The kernel is too old, the process may not (it needs `CAP_SYS_RESOURCE`), or memory cannot be locked.
pub fn make() -> io::Result<()> {
    hold_stack()?;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes integers only, and changes nothing but a flag of the calling thread.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the calling thread steady, and has it run before all ordinary ones. A kernel that gives realtime threads to
/// groups (`CONFIG_RT_GROUP_SCHED`) may have none left for the group of this process: then it is hastened.
///
/// # Errors
/// As `make`; it needs `CAP_SYS_NICE`, too.
pub fn make_first() -> io::Result<()> {
    make()?;
    schedule(libc::SCHED_RR, 1).or_else(|_none_left| hasten())
}

/// Lets the calling thread get far more of the CPU than ordinary ones, and soon: it does little at a time, and others
/// wait for it. It does not keep them from it, as a steady one could. Threads that it starts are ordinary.
///
/// # Errors
/// The process may not (it needs `CAP_SYS_NICE`).
pub fn hasten() -> io::Result<()> {
    schedule(libc::SCHED_OTHER, 0)?;
    // SAFETY: integers only; 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Changes how the calling thread is scheduled, and not the threads that it starts.
fn schedule(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let place = libc::sched_param { sched_priority: priority };
    // SAFETY: the struct is read during the call only; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const place) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Locks the pages that the next calls of this thread will have their frames in.
#[inline(never)]
fn hold_stack() -> io::Result<()> {
    let stack = black_box([0_u8; STEADY_STACK_BYTES]);
    // SAFETY: the range is that of a live local; locking reads and writes nothing of it. That the pages
    // stay locked after this frame is gone is what it is for; they go with the stack.
    let result = unsafe { libc::mlock(stack.as_ptr().cast(), stack.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
