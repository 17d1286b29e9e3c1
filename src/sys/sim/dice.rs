//! A small seeded generator (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", 2014), so that a machine's faults repeat from its seed.
//!
//! Invariant: the choices depend on the seed and on how many were made before, on nothing else.
//!
//! Deliberately absent: any use outside the simulation. It is not random enough for an id.

/// A seeded source of choices.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// The same seed gives the same choices.
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(super) const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `max`, both included.
    pub(super) const fn upto(&mut self, max: u64) -> u64 {
        let number = self.number();
        if max == u64::MAX { number } else { number % (max + 1) }
    }

    /// An index from 0 to `max`, both included.
    pub(super) fn index(&mut self, max: usize) -> usize {
        usize::try_from(self.upto(max as u64)).expect("an index that is not above a usize")
    }

    /// Yes or no.
    pub(super) const fn coin(&mut self) -> bool {
        self.number() & 1 == 1
    }
}
