//! The alarm of a core: a timerfd that the side ring watches, so that it ends a sleep as everything else does.
//!
//! Invariant: while a core sleeps with a deadline before it, the timer is set to that deadline or to an earlier point
//! in time, and the ring watches it. An alarm that rings too early is set again by the core, which looks at its
//! sleepers whenever it wakes.
//!
//! Deliberately absent: glommio's timers. Each of them leaves completions without a waiter in its latency ring (see
//! `scheduler` for what those do). Absent too: switching the alarm off, which would cost a system call to save one
//! early ring.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{opcode, squeue, types};
use nix::sys::time::TimeSpec;
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags};

use crate::clock::Instant;
use crate::limits::SLEEP_MAX;

pub(super) struct Alarm {
    timer: TimerFd,
    /// What the timer was last set to.
    at: Cell<Instant>,
    /// The ring has an operation that waits for the timer.
    watched: Cell<bool>,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Alarm> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        Ok(Alarm { timer, at: Cell::new(Instant::START), watched: Cell::new(false) })
    }

    /// Sees to it that the alarm rings at `deadline` or before, which lies after `now`. Gives the entry that the ring
    /// needs for that, unless it has it already.
    pub(super) fn set(&self, deadline: Instant, now: Instant) -> Option<squeue::Entry> {
        let at = self.at.get();
        if at > deadline || at <= now {
            let left = deadline.since(now).min(SLEEP_MAX);
            self.timer
                .set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())
                .expect("the timer is open, and a time up to SLEEP_MAX is valid");
            self.at.set(deadline);
        }
        if self.watched.replace(true) {
            // A ring that is under way for an earlier alarm finds the timer not yet due and goes on waiting, or rings,
            // and then the core comes here again.
            return None;
        }
        let timer = types::Fd(self.timer.as_fd().as_raw_fd());
        Some(opcode::PollAdd::new(timer, libc::POLLIN.cast_unsigned().into()).build())
    }

    /// The ring no longer watches the timer.
    pub(super) fn has_rung(&self) {
        self.watched.set(false);
    }
}
