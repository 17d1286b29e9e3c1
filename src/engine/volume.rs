//! What the filesystems of a pool look like: the shape of the XFS on a thin volume and on the metadata
//! volume, and what becomes of its log.
//!
//! Chosen for space: each allocation group begins with headers, and they cost a thin volume a block of
//! the pool, written or not. mkfs.xfs would make 32 groups of 1 TiB on a thin volume, because it
//! takes the blocks of the pool for the disks of an array. Here there are four, as on a single disk, and
//! more only where four are too small for the whole. Data is aligned to the blocks of the pool.
//!
//! Invariant: every size that may be asked for has a shape that `xfs` makes, with a log of any kind.
//!
//! Deliberately absent: bytes. They are `xfs`'s.

use crate::engine::size::DATA_BLOCK;
use crate::error::Refusal;
use crate::limits::{FILESYSTEM_SECTORS_MAX, XFS_GROUPS_MADE_MAX};
use crate::model::blank::ReadsZeroes;
use crate::model::device::BlockSizes;
use crate::model::dm::ThinFeature;
use crate::units::Sectors;
use crate::xfs::{Groups, Log, LogLength, Sector, Shape, Stripe};

/// Groups of a filesystem as long as they are long enough: so many files can be made at a time.
const GROUPS: u32 = 4;
/// The longest group: XFS allows 4 KiB less than 1 TiB, and groups are whole blocks of the pool.
const GROUP_MOST: Sectors = Sectors((1 << 31) - DATA_BLOCK.0);
const _: () = assert!(FILESYSTEM_SECTORS_MAX.0 == GROUP_MOST.0 * XFS_GROUPS_MADE_MAX as u64);

/// The shape of the filesystem on a thin volume.
pub fn thin(size: Sectors, blocks: BlockSizes) -> Result<Shape, Refusal> {
    let groups = u32::try_from(size.0.div_ceil(GROUP_MOST.0)).map_err(|_| Refusal::SizeLarge(size.bytes()))?;
    Ok(Shape {
        size,
        sector: sector(blocks)?,
        stripe: Some(Stripe { unit: DATA_BLOCK, width: DATA_BLOCK }),
        groups: Groups::Exactly(groups.max(GROUPS)),
    })
}

/// The shape of the filesystem on a metadata volume.
pub fn metadata(size: Sectors, blocks: BlockSizes) -> Result<Shape, Refusal> {
    Ok(Shape { size, sector: sector(blocks)?, stripe: None, groups: Groups::Default })
}

/// What becomes of the log of a thin volume in a pool with these features on record. The pool must zero new
/// blocks now, and after every restart too: the log is written to for as long as the volume lives.
pub fn log(recorded: &[ThinFeature], blank: Option<ReadsZeroes>) -> Log {
    match blank {
        Some(blank) if !recorded.contains(&ThinFeature::SkipBlockZeroing) => Log::RecordOnly(blank, LogLength::Default),
        Some(_) | None => Log::Zeroed,
    }
}

/// Headers are written in what the device writes without tearing, as far as XFS can.
fn sector(blocks: BlockSizes) -> Result<Sector, Refusal> {
    match blocks {
        BlockSizes { logical: ..=512, physical: ..=512 } => Ok(Sector::Bytes512),
        BlockSizes { logical: ..=4096, .. } => Ok(Sector::Bytes4096),
        BlockSizes { .. } => Err(Refusal::Unsupported { what: "a device with blocks of more than 4096 bytes" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::FILESYSTEM_SECTORS_MIN;
    use crate::model::ids::{PoolUuid, ThinId};
    use crate::xfs::Geometry;

    const BLOCKS: BlockSizes = BlockSizes { logical: 512, physical: 512 };
    const TIB: u64 = 1 << 31;

    fn groups(size: u64) -> (u64, u64) {
        let shape = thin(Sectors(size), BLOCKS).expect("a shape");
        let geometry = Geometry::of(&shape, LogLength::Default).expect("a geometry");
        (geometry.groups(), geometry.group_blocks())
    }

    #[test]
    fn there_are_four_groups_unless_they_would_be_too_long() {
        assert_eq!(groups(FILESYSTEM_SECTORS_MIN.0), (4, 32_768));
        assert_eq!(groups(TIB), (4, 67_108_864));
        assert_eq!(groups(4 * TIB - 4 * DATA_BLOCK.0), (4, 268_435_200));
        assert_eq!(groups(4 * TIB).0, 5);
        assert_eq!(groups(16 * TIB).0, 17);
    }

    #[test]
    fn every_size_that_may_be_asked_for_has_a_geometry() {
        let mut rng = fastrand::Rng::with_seed(3);
        let (least, most) = (FILESYSTEM_SECTORS_MIN.0, FILESYSTEM_SECTORS_MAX.0);
        let some =
            (0..20_000).map(|_| (least + rng.u64(0..most - least)) >> rng.u32(0..30)).map(|size| size.max(least));
        let edges = (1..=1024).flat_map(|count| [0, 1, 8, 2_048].map(|less| count * GROUP_MOST.0 - less));
        for size in some.collect::<Vec<_>>().into_iter().chain(edges).chain([least, least + 1, most]) {
            for physical in [512, 4096] {
                for log in [LogLength::Default, LogLength::Smallest] {
                    let shape = thin(Sectors(size), BlockSizes { logical: 512, physical }).expect("a shape");
                    let geometry = Geometry::of(&shape, log);
                    assert!(geometry.is_ok(), "{size} sectors, {physical}, {log:?}: {geometry:?}");
                }
            }
        }
    }

    #[test]
    fn a_log_stays_unwritten_only_if_blocks_are_zeroed_now_and_later() {
        use ThinFeature::{NoDiscardPassdown, SkipBlockZeroing};
        let blank =
            |features: &[ThinFeature]| ReadsZeroes::of_new_thin(PoolUuid::from_random([1; 16]), ThinId(0), features);
        let zeroing = [NoDiscardPassdown];
        let skipping = [NoDiscardPassdown, SkipBlockZeroing];
        assert!(matches!(log(&zeroing, blank(&zeroing)), Log::RecordOnly(_, LogLength::Default)));
        assert!(matches!(log(&skipping, blank(&zeroing)), Log::Zeroed));
        assert!(matches!(log(&zeroing, blank(&skipping)), Log::Zeroed));
        assert!(matches!(log(&zeroing, None), Log::Zeroed));
    }

    #[test]
    fn headers_are_as_long_as_what_the_device_writes_at_once() {
        let of = |logical, physical| sector(BlockSizes { logical, physical });
        assert_eq!(of(512, 512), Ok(Sector::Bytes512));
        for (logical, physical) in [(512, 4096), (4096, 4096), (512, 65_536), (4096, 512)] {
            assert_eq!(of(logical, physical), Ok(Sector::Bytes4096));
        }
        assert!(matches!(of(8192, 8192), Err(Refusal::Unsupported { .. })));
    }
}
