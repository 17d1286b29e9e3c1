//! The rule of log safety, as a type: who may leave the log of a new filesystem unwritten.
//!
//! The kernel finds the end of a log by the cycle number in each of its sectors. Sectors that were
//! never written must therefore read as zeroes. Old bytes there make a filesystem that works until
//! its first unmount and cannot be mounted after it.
//!
//! Invariant: a value of `ReadsZeroes` stands for one volume, made a moment ago, that reads as zeroes
//! wherever nothing was written. It cannot be copied, and formatting uses it up.
//!
//! Deliberately absent: any other way to a log that is not zeroed. A pool with `skip_block_zeroing`,
//! a metadata volume, a volume that held something before: the log is zeroed.

use crate::model::dm::ThinFeature;

/// Permission to write nothing of a log but its first record.
#[derive(Debug)]
pub struct ReadsZeroes(());

impl ReadsZeroes {
    /// For the thin volume that `create_thin` just made in a running pool with these features, and
    /// that nothing was written to. `None`: the pool hands out blocks as they are.
    ///
    /// Only the operation that sent `create_thin` and saw it succeed may ask, and only with the
    /// features in the pool's table as it was loaded. A snapshot is no new volume.
    pub fn of_new_thin(features: &[ThinFeature]) -> Option<Self> {
        (!features.contains(&ThinFeature::SkipBlockZeroing)).then_some(Self(()))
    }

    /// For a regular file that was just created by the caller and given its length, and that nothing
    /// was written to: holes read as zeroes.
    pub fn of_new_file() -> Self {
        Self(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_does_not_zero_its_blocks_gives_no_permission() {
        use ThinFeature::{ErrorIfNoSpace, NoDiscardPassdown, SkipBlockZeroing};
        assert!(ReadsZeroes::of_new_thin(&[]).is_some());
        assert!(ReadsZeroes::of_new_thin(&[ErrorIfNoSpace, NoDiscardPassdown]).is_some());
        assert!(ReadsZeroes::of_new_thin(&[NoDiscardPassdown, SkipBlockZeroing]).is_none());
    }
}
