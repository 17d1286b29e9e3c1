//! How large the parts of a pool are: pure arithmetic over sectors.
//!
//! The formulas are those of stratisd 3.9.2, because a pool made here is continued there and sizes
//! predicted by its tools are believed. Results are recorded, so a pool never depends on them later.
//! One differs: a new pool keeps `room` for the metadata of more filesystems, where 3.9.2 gives all of a
//! small pool to data and its limit can never be raised.
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
/// What a cache caches at once, 1 MiB.
pub const CACHE_BLOCK: Sectors = Sectors(2_048);
/// The metadata of a cache, 512 MiB.
pub const CACHE_META: Sectors = Sectors(1_048_576);
/// The most that a cache holds, 32 TiB: what its metadata has room for.
pub const CACHE_DATA_MAX: Sectors = Sectors(68_719_476_736);
/// The limit of filesystems up to which a new pool keeps room for metadata, if `ROOM_PART` allows.
pub const ROOM_FS_LIMIT: u64 = 1_000;
/// That room takes at most one part in so many of what is left for data. Filesystems in a pool are as many
/// as its data has room for, and the data of most pools is never divided among hundreds.
const ROOM_PART: u64 = 32;

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

/// The highest limit of filesystems for which `thin_meta` is at most `meta`.
pub fn fs_limit_within(usable: Sectors, meta: Sectors) -> u64 {
    let meta = meta.floor_to(DATA_BLOCK);
    if meta >= thin_meta(usable, u64::MAX) {
        return u64::MAX; // As large as the kernel allows: a higher limit asks for no more.
    }
    let blocks = meta.0 / (THIN_META_BLOCK * THIN_META_FACTOR);
    blocks.saturating_sub(1 + (usable.0 / DATA_BLOCK.0).div_ceil(THIN_META_MAPPINGS))
}

/// What is left for thin data beside the metadata volume, thin metadata of this size, and its spare.
pub fn for_data(usable: Sectors, meta: Sectors) -> Sectors {
    usable.saturating_sub(MDV).saturating_sub(meta + meta)
}

/// What a pool leaves to nobody as long as it can, so that its thin metadata and the spare can grow: both grow by
/// whole data blocks.
pub fn room(usable: Sectors, meta: Sectors) -> Sectors {
    let more = thin_meta(usable, ROOM_FS_LIMIT).saturating_sub(meta);
    (more + more).min(Sectors(for_data(usable, meta).0 / ROOM_PART).floor_to(DATA_BLOCK + DATA_BLOCK))
}

/// What a new pool asks for first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Initial {
    /// Thin metadata; the spare has the same size.
    pub meta: Sectors,
    /// Thin data: whole blocks, possibly none.
    pub data: Sectors,
}

impl Initial {
    /// Of a pool that offers `usable` sectors; data gets `most` of them at most.
    pub fn of(usable: Sectors, fs_limit: u64, most: Sectors) -> Self {
        let meta = thin_meta(usable, fs_limit);
        let data = (for_data(usable, meta) - room(usable, meta)).min(most).floor_to(DATA_BLOCK);
        Self { meta, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::header::DATA_START;
    use crate::units::Bytes;

    const GIB: u64 = 1 << 30;

    fn usable(sizes: &[Sectors], spec: &IntegritySpec) -> Sectors {
        let free: Sectors = sizes.iter().map(|size| *size - DATA_START - integrity(*size, spec)).sum();
        free - CRYPT_RESERVE
    }

    fn gib(count: u64) -> Sectors {
        Bytes(u128::from(count * GIB)).sectors().expect("whole sectors")
    }

    #[test]
    fn the_published_examples_hold() {
        let spec = IntegritySpec::default();
        for (sizes, usable_expected, meta, data, room) in [
            (vec![gib(1)], 1_759_224, 8_192, 692_224, 20_480),
            (vec![gib(10)], 20_338_680, 12_288, 19_263_488, 114_688),
            (vec![gib(10), gib(10)], 40_712_176, 18_432, 39_624_704, 114_688),
            // What is beyond the first 50 GiB is room enough.
            (vec![gib(1024)], 2_113_624_056, 532_480, 104_857_600, 0),
        ] {
            let usable = usable(&sizes, &spec);
            assert_eq!(usable, Sectors(usable_expected), "{sizes:?}");
            let data = Sectors(data - room);
            assert_eq!(Initial::of(usable, 100, DATA_CHUNK), Initial { meta: Sectors(meta), data }, "{sizes:?}");
        }
    }

    #[test]
    fn the_room_for_integrity_follows_each_part_of_its_specification() {
        let spec = IntegritySpec::default();
        assert_eq!(integrity(gib(1), &spec), Sectors(294_920));
        assert_eq!(integrity(gib(4), &spec), Sectors(393_224));
        let bare = IntegritySpec { tag: TagSpec::B0, journal: Sectors(8), superblock: false };
        assert_eq!(integrity(gib(1), &bare), Sectors(8));
        assert_eq!(integrity(gib(1), &IntegritySpec { superblock: true, ..bare }), Sectors(16));
        assert_eq!(integrity(gib(1), &IntegritySpec { tag: TagSpec::B32, ..bare }), Sectors(8 + 2048));
        // Tags of the last, broken block are not kept; tags are rounded up to a whole block.
        assert_eq!(integrity(Sectors(8 * 1024 + 7), &IntegritySpec { tag: TagSpec::B32, ..bare }), Sectors(8 + 8));
        assert_eq!(integrity(Sectors(8 * 1025), &IntegritySpec { tag: TagSpec::B32, ..bare }), Sectors(8 + 16));
    }

    #[test]
    fn a_begun_block_of_mappings_counts_as_a_whole_one() {
        // 32 blocks of 4 KiB, eight times, are one step of 1 MiB; the mapping of one data block is the 33rd.
        assert_eq!(thin_meta(DATA_BLOCK - Sectors(1), 31), Sectors(2_048));
        assert_eq!(thin_meta(DATA_BLOCK, 31), Sectors(4_096));
    }

    #[test]
    fn a_limit_fits_as_long_as_its_metadata_does() {
        for usable in [0, 2_047, 2_048, 20_338_680, 2_113_624_056].map(Sectors) {
            for meta in (1..200).map(|blocks| Sectors(blocks * 2_048 + blocks)) {
                let limit = fs_limit_within(usable, meta);
                let fits = |limit| thin_meta(usable, limit) <= meta;
                assert!(!fits(limit + 1), "{limit} in {usable} with {meta}");
                assert!(limit == 0 || fits(limit), "{limit} in {usable} with {meta}");
            }
        }
        // The kernel's own bound.
        let most = Sectors(33_292_288);
        assert_eq!(fs_limit_within(Sectors(2_048), most), u64::MAX);
        assert_eq!(fs_limit_within(Sectors(2_048), most - DATA_BLOCK), 520_158);
    }

    #[test]
    fn numbers_without_sense_do_not_overflow() {
        let most = Sectors(u64::MAX);
        assert_eq!(integrity(most, &IntegritySpec { journal: most, ..IntegritySpec::default() }), most);
        assert_eq!(thin_meta(most, u64::MAX), Sectors(33_292_288));
        assert_eq!(Initial::of(Sectors::ZERO, u64::MAX, DATA_CHUNK).data, Sectors::ZERO);
        assert_eq!(Initial::of(Sectors::ZERO, 100, DATA_CHUNK).meta, Sectors(8_192));
    }

    /// What stratis-predict-usage of stratisd 3.9.2 printed, in bytes: the devices, what filesystems
    /// take, then free, stratis-admin-space, stratis-metadata-space, used.
    #[test]
    fn the_published_predictions_hold() {
        const EMPTY_1_GIB: u64 = GIB;
        for (sizes, filesystems, expected) in [
            (vec![gib(1)], 0, [355_463_168, 545_259_520, 173_019_136, 718_278_656]),
            (vec![gib(10)], 0, [9_863_950_336, 549_453_824, 324_014_080, 873_467_904]),
            (vec![gib(1024)], 0, [1_081_093_386_240, 1_082_130_432, 17_336_111_104, 18_418_241_536]),
            (vec![gib(10); 2], EMPTY_1_GIB, [19_215_147_008, 555_745_280, 630_202_368, 2_259_689_472]),
        ] {
            let usable = usable(&sizes, &IntegritySpec::default());
            let meta = thin_meta(usable, 100);
            let admin = meta + meta + MDV;
            let total: Sectors = sizes.iter().copied().sum();
            let free = usable - admin - Bytes(filesystems.into()).sectors().expect("whole sectors");
            let found = [free, admin, total - usable, total - free].map(Sectors::offset);
            assert_eq!(found, expected, "{sizes:?}");
        }
    }
}
