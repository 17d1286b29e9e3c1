//! A small seeded generator (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", 2014), so that a machine's faults repeat from its seed.
//!
//! Invariant: the choices depend on the seed and on how many were made before, on nothing else.
//!
//! Deliberately absent: any use outside the simulation. It is not random enough for an id.

/// A source of choices, seeded or dictated.
#[derive(Clone, Debug)]
pub(super) struct Dice {
    seed: u64,
    manner: Manner,
}

/// How choices are made.
#[derive(Clone, Debug)]
enum Manner {
    /// Each by itself.
    Each,
    /// By what becomes of each write, which follows from this: all of it is lost, nothing, or some.
    Writes(u64),
    /// As the digits of a number say, of which there are so many so far.
    Way { digits: u64, ways: u64 },
}

impl Dice {
    /// The same seed gives the same choices.
    pub(super) const fn new(seed: u64) -> Self {
        Self { seed, manner: Manner::Each }
    }

    /// Seeded, but most writes are kept or lost as a whole.
    pub(super) const fn of_writes(seed: u64) -> Self {
        Self { seed, manner: Manner::Writes(seed) }
    }

    /// All choices that there are, one after the other: 0 is the lowest answer to every question, and the largest
    /// number the highest. See `ways`.
    pub(super) const fn way(number: u64) -> Self {
        Self { seed: number, manner: Manner::Way { digits: number, ways: 1 } }
    }

    /// How many ways to answer there were to what was asked so far, if they were counted.
    pub(super) const fn ways(&self) -> u64 {
        match self.manner {
            Manner::Way { ways, .. } => ways,
            Manner::Each | Manner::Writes(_) => 1,
        }
    }

    /// Any number.
    pub(super) const fn number(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.seed)
    }

    /// A number from 0 to `max`, both included.
    pub(super) const fn upto(&mut self, max: u64) -> u64 {
        if let Manner::Way { digits, ways } = &mut self.manner {
            let base = max.saturating_add(1);
            *ways = ways.saturating_mul(base);
            if *digits == u64::MAX {
                return max;
            }
            let digit = *digits % base;
            *digits /= base;
            return digit;
        }
        let number = self.number();
        if max == u64::MAX { number } else { number % (max + 1) }
    }

    /// An index from 0 to `max`, both included.
    pub(super) fn index(&mut self, max: usize) -> usize {
        usize::try_from(self.upto(max as u64)).expect("an index that is not above a usize")
    }

    /// How many of these writes to one place, oldest first, are kept.
    pub(super) fn kept(&mut self, writes: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator) -> usize {
        let Manner::Writes(seed) = self.manner else { return self.index(writes.len()) };
        let (count, torn) = (writes.len(), self.coin());
        let is_kept = |write: u64| match mix(seed ^ mix(write)) % 5 {
            0 | 1 => false,
            2 | 3 => true,
            _ => torn,
        };
        writes.rev().position(is_kept).map_or(0, |newer| count - newer)
    }

    /// Yes or no.
    pub(super) const fn coin(&mut self) -> bool {
        self.number() & 1 == 1
    }
}

const fn mix(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
