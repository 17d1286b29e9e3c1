//! How large the parts of a pool are: pure arithmetic over sectors.
//!
//! The formulas are those of stratisd 3.9.2, because a pool made here is continued there and sizes
//! predicted by its tools are believed. Results are recorded, so a pool never depends on them later.
//!
//! Deliberately absent: where the parts lie (`layout`, `alloc`).

use crate::model::pool::{IntegritySpec, TagSpec};
use crate::units::{SECTOR_BYTES, Sectors};

/// Room for an encryption header at the start of the cap device (version 2 only), 17 MiB.
pub const CRYPT_RESERVE: Sectors = Sectors(34_816);
/// The metadata volume, 512 MiB.
pub const MDV: Sectors = Sectors(1_048_576);
/// A data block of the thin pool, 1 MiB; flex devices are sized in these.
pub const DATA_BLOCK: Sectors = Sectors(2_048);
/// The most that the thin pool's data grows by at once, and what a new pool gets at most: 50 GiB.
pub const DATA_CHUNK: Sectors = Sectors(51_200 * DATA_BLOCK.0);
/// Free data blocks at which a thin pool asks for more: 15 GiB.
pub const LOW_WATER_BLOCKS: u64 = 15_360;

/// Blocks of 4 KiB that the kernel allows for thin metadata.
const THIN_META_BLOCKS_MAX: u64 = 4_161_600;
/// Sectors in one of them.
const THIN_META_BLOCK: u64 = 8;
/// Mappings that one of them holds when it is half full.
const THIN_META_MAPPINGS: u64 = 126;
/// Reserve for snapshots, found by experience.
const THIN_META_FACTOR: u64 = 8;

/// Bytes that one integrity tag covers, and the unit of the area that holds tags.
const INTEGRITY_BLOCK: u64 = 4_096;
/// Sectors of an integrity superblock.
const INTEGRITY_SUPERBLOCK: u64 = 8;

/// What a data device of this size keeps free for an integrity layer. May be more than the device
/// has, where the journal that somebody asked for is.
pub fn integrity(size: Sectors, spec: &IntegritySpec) -> Sectors {
    let tag_bytes = match spec.tag {
        TagSpec::B0 => 0,
        TagSpec::B32 => 4,
        TagSpec::B512 => 64,
    };
    let superblock = if spec.superblock { INTEGRITY_SUPERBLOCK } else { 0 };
    let blocks = size.0 / (INTEGRITY_BLOCK / SECTOR_BYTES);
    // In 128 bits nothing overflows here: 2^64 blocks of 64 bytes are 2^70.
    let tags = (u128::from(blocks) * tag_bytes).next_multiple_of(u128::from(INTEGRITY_BLOCK));
    let tags = u64::try_from(tags / u128::from(SECTOR_BYTES)).expect("tags are smaller than what they cover");
    Sectors(spec.journal.0.saturating_add(tags).saturating_add(superblock))
}

/// The size of the thin pool's metadata device for a pool that offers `usable` sectors to all that
/// lies on its cap device.
pub fn thin_meta(usable: Sectors, fs_limit: u64) -> Sectors {
    let mappings = usable.0 / DATA_BLOCK.0;
    let blocks = mappings.div_ceil(THIN_META_MAPPINGS).saturating_add(1).saturating_add(fs_limit);
    let raw = Sectors(blocks.min(THIN_META_BLOCKS_MAX) * THIN_META_BLOCK * THIN_META_FACTOR);
    let most = Sectors(THIN_META_BLOCKS_MAX * THIN_META_BLOCK);
    raw.ceil_to(DATA_BLOCK).min(most.floor_to(DATA_BLOCK))
}

/// What a new pool asks for first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Initial {
    /// Thin metadata; the spare has the same size.
    pub meta: Sectors,
    /// Thin data: whole blocks, at most `DATA_CHUNK`, possibly none.
    pub data: Sectors,
}

impl Initial {
    /// Of a pool that offers `usable` sectors.
    pub fn of(usable: Sectors, fs_limit: u64) -> Self {
        let meta = thin_meta(usable, fs_limit);
        let left = usable.saturating_sub(MDV).saturating_sub(meta + meta);
        Self { meta, data: left.min(DATA_CHUNK).floor_to(DATA_BLOCK) }
    }
}

/// The low-water mark of a new thin pool, in blocks.
pub fn low_water(data: Sectors) -> u64 {
    (data.0 / DATA_BLOCK.0 / 2).min(LOW_WATER_BLOCKS)
}
