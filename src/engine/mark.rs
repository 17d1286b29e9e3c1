//! At how many free blocks a thin pool that gets more says that it runs low.
//!
//! Writers go on until the growth is there that answers the kernel's event, and how much they have written by then is
//! plain to see: when the event came as many blocks were free as the mark says, and fewer are when the thin pool is
//! looked at. A mark that is four times as high leaves room for an answer that is four times as late, and for writers
//! that are four times as fast. But a hundred answers may be quick, and the next one late because the machine has
//! more to do than it can: so at the speed that was seen the mark lasts for half a second in any case.
//!
//! Invariants: as long as a pool runs its mark only doubles; none is wanted that what is backed now does not reach
//! beyond. It is remembered where it works, in the thin pool's table, so a daemon that takes over knows it, too.
//!
//! In the same way what was written while the next step was entered, saved and put below says how much is to be kept
//! ahead; that and the speed are forgotten with the daemon.
//!
//! Deliberately absent: the mark of a pool that gets no more (`grow`), and any clock.

use crate::engine::size::{DATA_BLOCK, DATA_CHUNK};
use crate::model::dm::ThinPoolState;

/// The mark is at least so many times what was written between an event and its answer.
const ROOM: u64 = 4;
/// A mark lasts that long: on a machine with several times more to do than it can, events were answered as late.
const ANSWER_US: u64 = 500_000;
/// A speed is taken over that long at least: some steps of a thin pool that grows often.
const SPAN_US: u64 = 30_000;
/// No mark is raised beyond this.
const MOST: u64 = DATA_CHUNK.0 / DATA_BLOCK.0;

/// What a look at a thin pool says of its mark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark {
    /// Where it is to be, if that is higher than usual; else zero.
    pub raised: u64,
    /// Blocks that were written since it was reached.
    pub late: u64,
}

impl Mark {
    /// Of a thin pool that is so and can be given `reach` blocks now. `usual`: the mark of one of that length; `least`:
    /// what its speed asks for.
    pub fn of(state: &ThinPoolState, (usual, lowest): (u64, u64), least: u64, reach: u64) -> Self {
        let (lowest, present) = (lowest.max(1), state.low_water);
        let raised = is_raised(state, lowest);
        // Another daemon's, or that of a pool that could get no more, says nothing of us.
        let told = if raised || present == usual { present } else { 0 };
        let late = told.saturating_sub(state.data_total.saturating_sub(state.data_used));
        let mut mark = if raised { present } else { lowest };
        // Where what is backed does not suffice it is the next step that is late, and a higher mark does not bring it.
        let most = MOST.min(reach.saturating_sub(state.data_used).saturating_sub(1));
        let wanted = least.max(late.saturating_mul(ROOM));
        while mark < wanted && mark * 2 <= most {
            mark *= 2;
        }
        Self { raised: if mark > lowest { mark } else { 0 }, late }
    }
}

/// Whether this is a mark that was raised here: the lowest, doubled some times. 3.9.2 has one of
/// all blocks for a while.
const fn is_raised(state: &ThinPoolState, lowest: u64) -> bool {
    let mark = state.low_water;
    let is_step = mark > lowest && mark.is_multiple_of(lowest) && (mark / lowest).is_power_of_two();
    is_step && mark <= MOST && mark < state.data_total
}

/// How fast a thin pool fills, and how much is written while more is made ready for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Blocks in use when it was last looked at.
    used: u64,
    /// The same at the begin of what is being measured, and microseconds since.
    from: (u64, u64),
    /// The mark lasts that long at the highest speed that was seen.
    pub mark: u64,
    /// Blocks in use when more was wanted, until that is there and the thin pool has been looked at again.
    wanted: Option<u64>,
    there: bool,
    /// At least so many blocks are to be ahead.
    pub ahead: u64,
}

impl Speed {
    /// The thin pool was looked at, so many microseconds after the look before.
    pub fn seen(&mut self, used: u64, elapsed_us: u64) {
        self.used = used;
        let (from, span) = (self.from.0, self.from.1.saturating_add(elapsed_us));
        self.from.1 = span;
        if span >= SPAN_US {
            let written = used.saturating_sub(from);
            self.mark = self.mark.max(written.saturating_mul(ANSWER_US) / span).min(MOST);
            self.from = (used, 0);
        }
        if let Some(wanted) = self.wanted.filter(|_| self.there) {
            let written = used.saturating_sub(wanted);
            // More is wanted when half of it is used.
            self.ahead = self.ahead.max(written.saturating_mul(2 * ROOM)).min(MOST);
            (self.wanted, self.there) = (None, false);
        }
    }

    /// More is wanted.
    pub fn ask(&mut self) {
        self.wanted.get_or_insert(self.used);
    }

    /// It is there.
    pub const fn arrived(&mut self) {
        self.there = self.wanted.is_some();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::dm::ThinPoolMode;

    const LOWEST: u64 = 32;

    /// With so many free blocks.
    fn state(low_water: u64, free: u64) -> ThinPoolState {
        ThinPoolState {
            meta_used: 0,
            meta_total: 1_000,
            meta_low_water: 0,
            data_used: 5_000 - free,
            data_total: 5_000,
            low_water,
            waits: true,
            mode: ThinPoolMode::ReadWrite,
            needs_check: false,
        }
    }

    fn mark(low_water: u64, free: u64, reach: u64) -> (u64, u64) {
        let Mark { raised, late } = Mark::of(&state(low_water, free), (LOWEST, LOWEST), 0, reach);
        (raised, late)
    }

    #[test]
    fn a_mark_is_four_times_what_was_written_until_the_answer() {
        assert_eq!(mark(32, 32, 9_000), (0, 0));
        assert_eq!(mark(32, 24, 9_000), (0, 8));
        assert_eq!(mark(32, 23, 9_000), (64, 9));
        assert_eq!(mark(32, 0, 9_000), (128, 32));
        assert_eq!(mark(128, 0, 9_000), (512, 128));
    }

    #[test]
    fn a_mark_that_was_raised_stays() {
        assert_eq!(mark(128, 4_000, 9_000), (128, 0));
        assert_eq!(mark(128, 127, 5_000), (128, 1), "nothing can be had now");
    }

    #[test]
    fn no_mark_is_wanted_that_cannot_be_kept() {
        assert_eq!(mark(32, 0, 5_064), (0, 32), "then 64 would be free, and it would be low again");
        assert_eq!(mark(32, 0, 5_128), (64, 32));
        assert_eq!(mark(32, 0, 5_129), (128, 32));
    }

    #[test]
    fn a_mark_of_somebody_else_says_nothing() {
        for other in [0, 31, 33, 96, 5_000, 1 << 40] {
            assert_eq!(mark(other, 10, 9_000), (0, 0), "{other}");
        }
        assert_eq!(Mark::of(&state(1, 0), (1, 0), 0, 9_000), Mark { raised: 4, late: 1 });
    }

    #[test]
    fn no_mark_is_beyond_reason() {
        let state = ThinPoolState { data_total: 1 << 30, data_used: 1 << 30, low_water: 15_360, ..state(0, 0) };
        assert_eq!(Mark::of(&state, (15_360, 15_360), 0, u64::MAX), Mark { raised: 30_720, late: 15_360 });
    }

    #[test]
    fn at_the_speed_that_was_seen_a_mark_lasts_for_half_a_second() {
        let mut speed = Speed::default();
        speed.seen(1_000, 60_000_000);
        assert_eq!(speed.mark, 8, "a minute");
        speed.seen(1_050, 2_000);
        speed.seen(1_100, 20_000);
        assert_eq!(speed.mark, 8, "too short");
        speed.seen(1_150, 8_000);
        assert_eq!(speed.mark, 2_500, "150 in 30 ms");
        speed.seen(900, 30_000);
        speed.seen(901, 30_000);
        assert_eq!(speed.mark, 2_500, "it may become as fast again");
        assert_eq!(Mark::of(&state(32, 1_000), (32, 32), 2_500, 9_000), Mark { raised: 4_096, late: 0 });
        assert_eq!(Mark::of(&state(5_000, 0), (32, 32), 40, 9_000), Mark { raised: 64, late: 0 }, "another daemon's");
    }

    #[test]
    fn what_is_ahead_lasts_four_times_as_long_as_making_more_took() {
        let mut speed = Speed::default();
        let seen = |speed: &mut Speed, used| speed.seen(used, 0);
        speed.arrived();
        seen(&mut speed, 100);
        assert_eq!(speed.ahead, 0, "nothing was wanted");
        speed.ask();
        seen(&mut speed, 150);
        // A try that has failed: what was wanted first is still not there.
        speed.ask();
        seen(&mut speed, 160);
        assert_eq!(speed.ahead, 0);
        speed.arrived();
        seen(&mut speed, 200);
        assert_eq!(speed.ahead, 800);
        seen(&mut speed, 9_000);
        speed.ask();
        speed.arrived();
        seen(&mut speed, 9_001);
        assert_eq!(speed.ahead, 800, "it never becomes less");
    }

    proptest! {
        /// Writers that get at most three times as fast from one growth to the next meet no full pool.
        #[test]
        fn who_becomes_faster_by_and_by_is_followed(speeds in prop::collection::vec(0..=300_u64, 1..60)) {
            let (mut low_water, mut fastest) = (LOWEST, LOWEST / 4);
            for speed in speeds {
                let written = fastest * speed / 100;
                let Some(free) = low_water.checked_sub(written) else {
                    prop_assert!(low_water * 2 > MOST, "{written} were written until the answer, {low_water} were free");
                    return Ok(());
                };
                let state = ThinPoolState { data_total: 1 << 30, data_used: (1 << 30) - free, ..state(low_water, 0) };
                let mark = Mark::of(&state, (LOWEST, LOWEST), 0, u64::MAX);
                prop_assert_eq!(mark.late, written);
                low_water = mark.raised.max(LOWEST);
                fastest = fastest.max(written);
            }
        }
    }
}
