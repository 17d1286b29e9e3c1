//! The one gate that every action on a simulated machine passes: it counts, traces, delays, fails
//! and stops.
//!
//! Invariant: an action happens at the moment it is counted, and not at all once the machine is
//! frozen. So "stopped at action n" means the same world for the same seed, always.
//!
//! Deliberately absent: reading. It changes nothing, so it is neither counted nor a crash point.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::dice::Dice;

/// Lines of trace that are kept; the oldest go first.
const TRACE_LINES_MAX: usize = 4_096;

/// What the gate says to an action.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pass {
    /// Happen.
    Go,
    /// Do not happen, and say so with this errno.
    Fail(i32),
    /// Never happen, and never say so.
    Stop,
}

/// The gate.
#[derive(Debug)]
pub(super) struct Gate {
    actions: u64,
    trace: VecDeque<String>,
    /// Lines that are kept of it.
    trace_max: usize,
    failures: BTreeMap<u64, i32>,
    stop: Option<u64>,
    frozen: bool,
    delay_max: Duration,
}

/// A copy keeps the count and has neither plans nor a trace.
impl Clone for Gate {
    fn clone(&self) -> Self {
        Self { actions: self.actions, trace_max: 0, ..Self::new(self.delay_max) }
    }
}

impl Gate {
    /// An open gate.
    pub(super) const fn new(delay_max: Duration) -> Self {
        Self {
            actions: 0,
            trace: VecDeque::new(),
            trace_max: TRACE_LINES_MAX,
            failures: BTreeMap::new(),
            stop: None,
            frozen: false,
            delay_max,
        }
    }

    /// Keeps no trace: nobody would read it.
    pub(super) const fn forget_all(&mut self) {
        self.trace_max = 0;
    }

    /// Lets the next action through, or not.
    pub(super) fn pass(&mut self, what: impl FnOnce() -> String) -> Pass {
        if self.stop.is_some_and(|stop| self.actions >= stop) {
            self.frozen = true;
        }
        if self.frozen {
            return Pass::Stop;
        }
        let action = self.actions;
        self.actions += 1;
        let failure = self.failures.remove(&action);
        if self.trace_max > 0 {
            let fate = failure.map_or(String::new(), |errno| format!(": fails with errno {errno}"));
            self.keep(format!("{action}: {}{fate}", what()));
        }
        failure.map_or(Pass::Go, Pass::Fail)
    }

    fn keep(&mut self, line: String) {
        if self.trace.len() == self.trace_max {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    /// How long the next step takes.
    pub(super) fn delay(&self, dice: &mut Dice) -> Duration {
        let micros = u64::try_from(self.delay_max.as_micros()).expect("a delay of less than an age");
        Duration::from_micros(dice.upto(micros))
    }

    /// How many actions have been counted.
    pub(super) const fn actions(&self) -> u64 {
        self.actions
    }

    /// What happened last, oldest first.
    pub(super) fn trace(&self) -> Vec<String> {
        self.trace.iter().cloned().collect()
    }

    /// Whether the stop has been reached.
    pub(super) const fn frozen(&self) -> bool {
        self.frozen
    }

    /// Makes action `n` fail.
    pub(super) fn fail_at(&mut self, n: u64, errno: i32) {
        self.failures.insert(n, errno);
    }

    /// Freezes the machine when action `n` comes.
    pub(super) const fn stop_at(&mut self, n: u64) {
        self.stop = Some(n);
    }

    /// Sets the longest delay before and after an action.
    pub(super) const fn set_delay_max(&mut self, delay_max: Duration) {
        self.delay_max = delay_max;
    }

    /// A new life: nothing is planned to fail or to stop. The count goes on.
    pub(super) fn reopen(&mut self, what: &str) {
        self.failures.clear();
        self.stop = None;
        self.frozen = false;
        if self.trace_max > 0 {
            self.keep(format!("-- {what}"));
        }
    }
}
