//! Which swaps of thin pools' tables are under way, for those who would be in their way.
//!
//! A pool belongs to one core, so whoever changes it asks here. Invariant: a swap never waits for anybody; others
//! wait for it, and find out that one has begun meanwhile. Deliberately absent: which pool. They take moments.

use std::cell::Cell;

use cores::changes::Signal;

/// The swaps of one core.
#[derive(Debug, Default)]
pub(super) struct Swaps {
    begun: Cell<u64>,
    ended: Cell<u64>,
    news: Signal,
}

/// A moment in which none was under way: how many there had been.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before(u64);

/// One that is under way, until it is dropped.
pub(super) struct Swap<'a>(&'a Swaps);

impl Swaps {
    /// One begins.
    pub(super) fn begin(&self) -> Swap<'_> {
        self.begun.set(self.begun.get() + 1);
        Swap(self)
    }

    /// Waits until none is under way.
    pub(super) async fn none(&self) -> Before {
        self.news.until(|| (self.begun.get() == self.ended.get()).then(|| Before(self.begun.get()))).await
    }

    /// Whether one has begun since then.
    pub(super) fn since(&self, before: Before) -> bool {
        self.begun.get() != before.0
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        self.0.ended.set(self.0.ended.get() + 1);
        self.0.news.raise();
    }
}

#[cfg(test)]
mod tests {
    use cores::deterministic::Universe;

    use super::*;

    #[test]
    fn who_was_in_the_way_of_a_swap_is_told() {
        let story = Universe::new(0).run(async {
            let swaps = Swaps::default();
            let before = swaps.none().await;
            assert!(!swaps.since(before));
            let swap = swaps.begin();
            assert!(swaps.since(before));
            drop(swap);
            assert!(swaps.since(before), "it has ended, and was there");
            let later = swaps.none().await;
            assert!(!swaps.since(later));
        });
        story.finished();
    }
}
