//! Points in time: `Instant` for intervals, `WallTime` for people and records.
//!
//! Both are plain numbers, so that the deterministic runtime can make them up. Code that wants the
//! time asks `rt::now()` and `rt::wall()`; only the two runtimes call the functions in here that
//! ask the kernel.
//!
//! Deliberately absent: calendars and time zones, and arithmetic that could go below zero.

use std::ops::Add;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// A point on a clock that never goes back: nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Instant(u64);

impl Instant {
    /// The start of the clock.
    pub const START: Instant = Instant(0);

    /// The point that lies `nanoseconds` after the start of the clock.
    pub fn from_nanoseconds(nanoseconds: u64) -> Instant {
        Instant(nanoseconds)
    }

    /// Nanoseconds since the start of the clock.
    pub fn nanoseconds(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to here; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The kernel's monotonic clock.
    pub(crate) fn monotonic() -> Instant {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid, writable timespec that outlives the call.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
        assert_eq!(result, 0, "every Linux kernel has the monotonic clock");
        let seconds = u64::try_from(time.tv_sec).expect("the monotonic clock counts up from zero");
        let nanoseconds = u64::try_from(time.tv_nsec).expect("the kernel gives 0 to 999,999,999 nanoseconds");
        Instant(seconds * NANOSECONDS + nanoseconds)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates after 584 years: a deadline that far away means never.
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(nanoseconds(duration)))
    }
}

/// The nanoseconds of a duration; `u64::MAX` (584 years) for longer ones.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Time of day: seconds and nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct WallTime {
    /// Whole seconds since 1970-01-01 00:00:00 UTC.
    pub seconds: u64,
    /// The rest, 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl WallTime {
    /// The point that lies `duration` after the Unix epoch.
    pub fn since_epoch(duration: Duration) -> WallTime {
        WallTime { seconds: duration.as_secs(), nanoseconds: duration.subsec_nanos() }
    }

    /// The kernel's clock; the epoch itself on a machine whose clock is set to before 1970.
    pub(crate) fn system() -> WallTime {
        WallTime::since_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_order_and_subtract_without_going_below_zero() {
        let early = Instant::START + Duration::from_millis(3);
        let late = early + Duration::from_nanos(5);
        assert!(early < late);
        assert_eq!(late.since(early), Duration::from_nanos(5));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!((late + Duration::MAX).nanoseconds(), u64::MAX);
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let first = Instant::monotonic();
        assert!(Instant::monotonic() >= first);
    }

    #[test]
    fn wall_time_keeps_the_nanoseconds() {
        let time = WallTime::since_epoch(Duration::new(7, 999_999_999));
        assert_eq!(time, WallTime { seconds: 7, nanoseconds: 999_999_999 });
    }
}
