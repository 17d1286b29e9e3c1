//! Threads that must go on while a device does not: whoever suspends a device, or swaps its table, may
//! not wait for memory that only writing to that very device would free.
//!
//! Invariant: a thread that was made steady asks the kernel for memory without starting I/O, and a piece of its stack
//! is in memory for good. Deliberately absent: what such a thread does in between; it must not ask for memory of the
//! process, because only the stack is held, and one that goes ahead of others must do little: it takes the CPU from its
//! own core, too.

use std::hint::black_box;
use std::io;

use crate::limits::STEADY_STACK_BYTES;

/// `prctl` operation, since Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// How nice a thread is that goes ahead of others: as LVM while it has devices suspended.
const NICE: libc::c_int = -18;

/// Makes the calling thread steady.
///
/// # Errors
/// The kernel is too old, the process may not (it needs `CAP_SYS_RESOURCE`), or memory cannot be locked.
pub fn make() -> io::Result<()> {
    hold_stack()?;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes integers only, and changes nothing but a flag of the calling thread.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the calling thread steady, and has it go ahead of all others.
///
/// # Errors
/// As `make`; it needs `CAP_SYS_NICE`, too.
pub fn make_first() -> io::Result<()> {
    make()?;
    // SAFETY: this call takes integers only; 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
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
