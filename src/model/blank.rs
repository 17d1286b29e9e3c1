//! The rule of log safety, as a type: who may leave the log of a new filesystem unwritten.
//!
//! The kernel finds the end of a log by the cycle number in each of its sectors. Sectors that were
//! never written must therefore read as zeroes. Old bytes there make a filesystem that works until
//! its first unmount and cannot be mounted after it.
//!
//! Invariant: a value of `ReadsZeroes` stands for one volume, made a moment ago, that reads as zeroes
//! wherever nothing was written. Only `sys` makes one (`tests/tidy.rs` checks), it cannot be copied,
//! and formatting uses it up.
//!
//! Deliberately absent: any other way to a log that is not zeroed. A pool with `skip_block_zeroing`,
//! a metadata volume, a volume that held something before: the log is zeroed.

use crate::model::dm::ThinFeature;
use crate::model::ids::{PoolUuid, ThinId};

/// Permission to write nothing of a volume's log but its first record.
#[derive(Debug)]
pub struct ReadsZeroes {
    pool: PoolUuid,
    volume: ThinId,
}

impl ReadsZeroes {
    /// For the thin volume that was just made, and that nothing was written to. `features`: those in
    /// the table of its pool that is active now, as the machine reports it. `None`: the pool hands out
    /// blocks as they are. A snapshot is no new volume.
    pub fn of_new_thin(pool: PoolUuid, volume: ThinId, features: &[ThinFeature]) -> Option<Self> {
        (!features.contains(&ThinFeature::SkipBlockZeroing)).then_some(Self { pool, volume })
    }

    /// For the volume that is a regular file, just created: holes read as zeroes.
    pub const fn of_new_file(pool: PoolUuid, volume: ThinId) -> Self {
        Self { pool, volume }
    }

    /// Whether it stands for this volume.
    pub fn is_of(&self, pool: PoolUuid, volume: ThinId) -> bool {
        (self.pool, self.volume) == (pool, volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_does_not_zero_its_blocks_gives_no_permission() {
        use ThinFeature::{ErrorIfNoSpace, NoDiscardPassdown, SkipBlockZeroing};
        let pool = PoolUuid::from_random([1; 16]);
        let of = |features: &[ThinFeature]| ReadsZeroes::of_new_thin(pool, ThinId(5), features);
        assert!(of(&[]).is_some_and(|blank| blank.is_of(pool, ThinId(5)) && !blank.is_of(pool, ThinId(6))));
        assert!(of(&[ErrorIfNoSpace, NoDiscardPassdown]).is_some());
        assert!(of(&[NoDiscardPassdown, SkipBlockZeroing]).is_none());
    }
}
