//! What a core has been doing: counters, and every turn that took too long.
//!
//! A turn is one poll of one of our tasks. The task wrapper reports each of them here with two
//! clock reads; a turn over `SLOW_TURN` is kept with its task and stage, and the first one of each
//! task and stage is logged. It is cheap enough to be always on.
//!
//! Invariant: `busy + idle` is the age of the recorder, since idle is what is not busy (it includes
//! the executor's own work, some microseconds for each wake-up).
//!
//! Deliberately absent: sharing. A recorder belongs to its core; `counters()` gives a copy to send.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::{Instant, nanoseconds};
use crate::limits::{SLOW_PLACES_MAX, SLOW_TURN, SLOW_TURNS_MAX};

/// A turn that took longer than `SLOW_TURN`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SlowTurn {
    /// The task that was polled.
    pub task: &'static str,
    /// The task's stage at the end of the turn; empty if it never named one.
    pub stage: &'static str,
    /// When the turn began.
    pub began: Instant,
    /// How long it took.
    pub took: Duration,
}

/// A copy of a core's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Time inside turns.
    pub busy: Duration,
    /// Time outside turns.
    pub idle: Duration,
    /// Turns so far.
    pub turns: u64,
    /// Messages taken from rings so far, as reported by `count_messages`.
    pub messages: u64,
    /// Times the thread went to sleep and was woken; in a universe, times virtual time jumped.
    pub wake_ups: u64,
    /// Messages waiting in the rings towards this core when last reported by `set_ring_depth`.
    pub ring_depth: usize,
    /// Turns over `SLOW_TURN` so far, those included that are no longer kept.
    pub slow: u64,
}

/// The recorder of one core.
#[derive(Debug)]
pub struct Turns {
    began: Instant,
    busy_ns: Cell<u64>,
    turns: Cell<u64>,
    messages: Cell<u64>,
    ring_depth: Cell<usize>,
    slow: Cell<u64>,
    kept: RefCell<VecDeque<SlowTurn>>,
    logged: RefCell<BTreeSet<(&'static str, &'static str)>>,
}

impl Turns {
    /// A recorder whose age counts from `now`.
    pub(crate) fn new(now: Instant) -> Turns {
        Turns {
            began: now,
            busy_ns: Cell::new(0),
            turns: Cell::new(0),
            messages: Cell::new(0),
            ring_depth: Cell::new(0),
            slow: Cell::new(0),
            kept: RefCell::default(),
            logged: RefCell::default(),
        }
    }

    /// Adds `count` messages to the counter.
    pub fn count_messages(&self, count: usize) {
        self.messages.set(self.messages.get() + count as u64);
    }

    /// Sets the gauge of messages waiting towards this core.
    pub fn set_ring_depth(&self, depth: usize) {
        self.ring_depth.set(depth);
    }

    /// The slow turns that are kept, oldest first.
    pub fn slow_turns(&self) -> Vec<SlowTurn> {
        self.kept.borrow().iter().copied().collect()
    }

    /// A copy of the counters as of `now`.
    pub(crate) fn counters(&self, now: Instant, wake_ups: u64) -> Counters {
        let busy = Duration::from_nanos(self.busy_ns.get());
        Counters {
            busy,
            idle: now.since(self.began).saturating_sub(busy),
            turns: self.turns.get(),
            messages: self.messages.get(),
            wake_ups,
            ring_depth: self.ring_depth.get(),
            slow: self.slow.get(),
        }
    }

    /// Takes note of one turn of `task` that left it in `stage`.
    pub(crate) fn record(&self, task: &'static str, stage: &'static str, began: Instant, ended: Instant) {
        let took = ended.since(began);
        self.busy_ns.set(self.busy_ns.get().saturating_add(nanoseconds(took)));
        self.turns.set(self.turns.get() + 1);
        if took > SLOW_TURN {
            self.keep(SlowTurn { task, stage, began, took });
        }
    }

    fn keep(&self, turn: SlowTurn) {
        self.slow.set(self.slow.get() + 1);
        let mut kept = self.kept.borrow_mut();
        if kept.len() == SLOW_TURNS_MAX {
            kept.pop_front();
        }
        kept.push_back(turn);
        let mut logged = self.logged.borrow_mut();
        if logged.len() < SLOW_PLACES_MAX && logged.insert((turn.task, turn.stage)) {
            let SlowTurn { task, stage, took, .. } = turn;
            log::warn!("a turn took long (task={task} stage={stage:?} took_us={})", took.as_micros());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::START + Duration::from_millis(milliseconds)
    }

    #[test]
    fn busy_and_idle_add_up_to_the_age() {
        let turns = Turns::new(at(10));
        turns.record("a", "", at(11), at(13));
        turns.record("b", "", at(20), at(21));
        turns.count_messages(4);
        turns.set_ring_depth(9);
        let counters = turns.counters(at(110), 5);
        assert_eq!(counters.busy, Duration::from_millis(3));
        assert_eq!(counters.idle, Duration::from_millis(97));
        assert_eq!((counters.turns, counters.messages, counters.wake_ups), (2, 4, 5));
        assert_eq!((counters.ring_depth, counters.slow), (9, 0));
    }

    #[test]
    fn only_turns_over_the_threshold_are_kept() {
        let turns = Turns::new(at(0));
        turns.record("exact", "", at(0), at(0) + SLOW_TURN);
        turns.record("over", "format", at(100), at(106));
        let kept = turns.slow_turns();
        let expected = SlowTurn { task: "over", stage: "format", began: at(100), took: Duration::from_millis(6) };
        assert_eq!(kept, [expected]);
    }

    #[test]
    fn the_oldest_slow_turn_is_dropped_and_still_counted() {
        let turns = Turns::new(at(0));
        let extra = 3;
        for turn in 0..(SLOW_TURNS_MAX + extra) as u64 {
            turns.record("slow", "", at(turn * 10), at(turn * 10 + 6));
        }
        let kept = turns.slow_turns();
        assert_eq!(kept.len(), SLOW_TURNS_MAX);
        assert_eq!(kept[0].began, at(extra as u64 * 10));
        assert_eq!(turns.counters(at(0), 0).slow, (SLOW_TURNS_MAX + extra) as u64);
    }
}
