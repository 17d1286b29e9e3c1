//! Superblocks, `xfs_dsb`: the first sector of every allocation group. The first one counts; the
//! others are what repair falls back on.
//!
//! Invariant: `decode` believes nothing that would lead a reader out of the device, and refuses
//! features whose meaning is not known here, because they may move what is looked for.
//!
//! Deliberately absent: every field that neither a new filesystem nor a change of its UUID touches.

use thiserror::Error;
use uuid::Uuid;

use crate::limits::{SECTORS_MAX, XFS_GROUPS_CHANGED_MAX};
use crate::xfs::bytes::{Field, checksum, seal};
use crate::xfs::geometry::{Geometry, INODE_CHUNK, INODES_IN_BLOCK_LOG, Sector};
use crate::xfs::inode;
use crate::xfs::{BLOCK_BYTES, Span};

const MAGIC: &[u8; 4] = b"XFSB";

const MAGICNUM: Field = Field::first(4);
const BLOCKSIZE: Field = MAGICNUM.then(4);
const DBLOCKS: Field = BLOCKSIZE.then(8);
const RBLOCKS: Field = DBLOCKS.then(8);
const REXTENTS: Field = RBLOCKS.then(8);
const UUID: Field = REXTENTS.then(16);
const LOGSTART: Field = UUID.then(8);
const ROOTINO: Field = LOGSTART.then(8);
const RBMINO: Field = ROOTINO.then(8);
const RSUMINO: Field = RBMINO.then(8);
const REXTSIZE: Field = RSUMINO.then(4);
const AGBLOCKS: Field = REXTSIZE.then(4);
const AGCOUNT: Field = AGBLOCKS.then(4);
const RBMBLOCKS: Field = AGCOUNT.then(4);
const LOGBLOCKS: Field = RBMBLOCKS.then(4);
const VERSIONNUM: Field = LOGBLOCKS.then(2);
const SECTSIZE: Field = VERSIONNUM.then(2);
const INODESIZE: Field = SECTSIZE.then(2);
const INOPBLOCK: Field = INODESIZE.then(2);
const FNAME: Field = INOPBLOCK.then(12);
const BLOCKLOG: Field = FNAME.then(1);
const SECTLOG: Field = BLOCKLOG.then(1);
const INODELOG: Field = SECTLOG.then(1);
const INOPBLOG: Field = INODELOG.then(1);
const AGBLKLOG: Field = INOPBLOG.then(1);
const REXTSLOG: Field = AGBLKLOG.then(1);
const INPROGRESS: Field = REXTSLOG.then(1);
const IMAX_PCT: Field = INPROGRESS.then(1);
const ICOUNT: Field = IMAX_PCT.then(8);
const IFREE: Field = ICOUNT.then(8);
const FDBLOCKS: Field = IFREE.then(8);
const FREXTENTS: Field = FDBLOCKS.then(8);
const UQUOTINO: Field = FREXTENTS.then(8);
const GQUOTINO: Field = UQUOTINO.then(8);
const QFLAGS: Field = GQUOTINO.then(2);
const FLAGS: Field = QFLAGS.then(1);
const SHARED_VN: Field = FLAGS.then(1);
const INOALIGNMT: Field = SHARED_VN.then(4);
const UNIT: Field = INOALIGNMT.then(4);
const WIDTH: Field = UNIT.then(4);
const DIRBLKLOG: Field = WIDTH.then(1);
const LOGSECTLOG: Field = DIRBLKLOG.then(1);
const LOGSECTSIZE: Field = LOGSECTLOG.then(2);
const LOGSUNIT: Field = LOGSECTSIZE.then(4);
const FEATURES2: Field = LOGSUNIT.then(4);
/// `sb_bad_features2`: where some kernels once looked for `sb_features2`; kept equal.
const BAD_FEATURES2: Field = FEATURES2.then(4);
const FEATURES_COMPAT: Field = BAD_FEATURES2.then(4);
const FEATURES_RO_COMPAT: Field = FEATURES_COMPAT.then(4);
const FEATURES_INCOMPAT: Field = FEATURES_RO_COMPAT.then(4);
const FEATURES_LOG_INCOMPAT: Field = FEATURES_INCOMPAT.then(4);
const CRC: Field = FEATURES_LOG_INCOMPAT.then(4);
const SPINO_ALIGN: Field = CRC.then(4);
const PQUOTINO: Field = SPINO_ALIGN.then(8);
const LSN: Field = PQUOTINO.then(8);
/// `sb_meta_uuid`: what all other structures carry as UUID, if it is not `sb_uuid`.
const META_UUID: Field = LSN.then(16);

/// `sb_versionnum` of a filesystem without stripe and with sectors of 512 bytes: version 5, and the
/// bits that every such filesystem has (attributes, numbered links, aligned inodes, log of version 2,
/// unwritten extents, folders of version 2, more bits).
const VERSION: u16 = 0xb4a5;
const VERSION_MASK: u64 = 0xf;
const VERSION_5: u64 = 5;
/// `XFS_SB_VERSION_DALIGNBIT`: there is a stripe.
const VERSION_STRIPE: u16 = 0x0100;
/// `XFS_SB_VERSION_SECTORBIT`: sectors are larger than 512 bytes.
const VERSION_SECTOR: u16 = 0x0800;
/// `sb_features2`: lazy counters, attributes of version 2, wide project ids, checksums.
const MORE_FEATURES: u32 = 0x018a;
/// `sb_features_ro_compat`: free inode tree, shared extents, inode tree counts.
const RO_COMPAT: u32 = 0xd;
/// The same with reverse mapping, which others may have made.
const RO_COMPAT_KNOWN: u64 = 0xf;
/// `sb_features_incompat`: file types, sparse inodes, big times.
const INCOMPAT: u32 = 0xb;
/// `XFS_SB_FEAT_INCOMPAT_META_UUID`
const INCOMPAT_META_UUID: u64 = 1 << 2;
/// The known ones: those, META_UUID, and wide counts of extents. A filesystem that wants repair
/// (`NEEDSREPAIR`, bit 4) is left alone.
const INCOMPAT_KNOWN: u64 = 0x2f;
/// `sb_spino_align`: blocks that a sparse chunk of inodes is aligned to.
const SPARSE_ALIGN: u32 = 4;
/// `sb_logsunit` where log writes are padded to a sector only.
const NO_LOG_UNIT: u64 = 1;

/// Which superblock of a new filesystem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// The first.
    Primary,
    /// One that knows the root inode: the last, and the one in the middle.
    WithRoot,
    /// Any other.
    Plain,
}

/// The superblock of a group of a new filesystem.
pub(super) fn encode(geometry: &Geometry, uuid: Uuid, group: u64, sector: &mut [u8]) {
    let last = geometry.groups - 1;
    let kind = match group {
        0 => Kind::Primary,
        group if group == last || (geometry.groups > 2 && group == last / 2) => Kind::WithRoot,
        _ => Kind::Plain,
    };
    MAGICNUM.put_bytes(sector, MAGIC);
    UUID.put_bytes(sector, uuid.as_bytes());
    put_geometry(geometry, sector);
    put_features(geometry, sector);
    put_counts(geometry, kind, sector);
    seal(sector, CRC);
}

fn put_geometry(geometry: &Geometry, sector: &mut [u8]) {
    let sector_bytes = geometry.sector.bytes();
    let block_log = BLOCK_BYTES.ilog2();
    BLOCKSIZE.put(sector, BLOCK_BYTES);
    DBLOCKS.put(sector, geometry.blocks);
    LOGSTART.put(sector, geometry.log_start());
    REXTSIZE.put(sector, 1_u32);
    AGBLOCKS.put(sector, geometry.group_blocks);
    AGCOUNT.put(sector, geometry.groups);
    LOGBLOCKS.put(sector, geometry.log_blocks);
    SECTSIZE.put(sector, sector_bytes);
    INODESIZE.put(sector, BLOCK_BYTES >> INODES_IN_BLOCK_LOG);
    INOPBLOCK.put(sector, 1_u32 << INODES_IN_BLOCK_LOG);
    BLOCKLOG.put(sector, block_log);
    SECTLOG.put(sector, sector_bytes.ilog2());
    INODELOG.put(sector, block_log - INODES_IN_BLOCK_LOG);
    INOPBLOG.put(sector, INODES_IN_BLOCK_LOG);
    AGBLKLOG.put(sector, geometry.group_bits());
    IMAX_PCT.put(sector, geometry.inode_percent);
    INOALIGNMT.put(sector, INODE_CHUNK);
    UNIT.put(sector, geometry.stripe_unit);
    WIDTH.put(sector, geometry.stripe_width);
    if geometry.sector != Sector::Bytes512 {
        LOGSECTLOG.put(sector, sector_bytes.ilog2());
        LOGSECTSIZE.put(sector, sector_bytes);
    }
    LOGSUNIT.put(sector, if geometry.log_unit == 0 { NO_LOG_UNIT } else { geometry.log_unit * BLOCK_BYTES });
    SPINO_ALIGN.put(sector, SPARSE_ALIGN);
}

fn put_features(geometry: &Geometry, sector: &mut [u8]) {
    let stripe = if geometry.stripe_unit == 0 { 0 } else { VERSION_STRIPE };
    let large = if geometry.sector == Sector::Bytes512 { 0 } else { VERSION_SECTOR };
    VERSIONNUM.put(sector, VERSION | stripe | large);
    FEATURES2.put(sector, MORE_FEATURES);
    BAD_FEATURES2.put(sector, MORE_FEATURES);
    FEATURES_RO_COMPAT.put(sector, RO_COMPAT);
    FEATURES_INCOMPAT.put(sector, INCOMPAT);
}

/// The root inodes and the counters. Only the first superblock counts what the root inodes take.
fn put_counts(geometry: &Geometry, kind: Kind, sector: &mut [u8]) {
    let root = geometry.root_inode();
    let free = geometry.blocks - geometry.groups * geometry.first_free() - geometry.log_blocks;
    for field in [ROOTINO, RBMINO, RSUMINO] {
        field.put_none(sector);
    }
    match kind {
        Kind::Primary => {
            ROOTINO.put(sector, root);
            RBMINO.put(sector, root + 1);
            RSUMINO.put(sector, root + 2);
            ICOUNT.put(sector, inode::IN_CHUNK);
            IFREE.put(sector, inode::IN_CHUNK - inode::USED);
        }
        Kind::WithRoot => ROOTINO.put(sector, root),
        Kind::Plain => {}
    }
    INPROGRESS.put(sector, u64::from(kind != Kind::Primary));
    FDBLOCKS.put(sector, if kind == Kind::Primary { free - INODE_CHUNK } else { free });
}

/// Why a sector is not a superblock that can be worked with.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SuperblockFault {
    /// No magic number.
    #[error("there is no XFS superblock")]
    NotXfs,
    /// Its sector size is none.
    #[error("its sectors have {0} bytes: 512 or 4096 are known")]
    Sector(u64),
    /// The checksum is another.
    #[error("the checksum of its superblock is wrong")]
    Checksum,
    /// A version without checksums.
    #[error("it is XFS of version {0}: only version 5 is known")]
    Version(u64),
    /// Another block size.
    #[error("its blocks have {0} bytes: only {BLOCK_BYTES} are known")]
    Block(u64),
    /// Features that are not known here, that want repair, or that are in the middle of something.
    #[error("it has features that are not known: {ro_compat:#x} {incompat:#x} {log_incompat:#x}")]
    Features {
        /// `sb_features_ro_compat`
        ro_compat: u64,
        /// `sb_features_incompat`
        incompat: u64,
        /// `sb_features_log_incompat`
        log_incompat: u64,
    },
    /// mkfs.xfs or a growth did not come to its end.
    #[error("it was not made to the end")]
    InProgress,
    /// Lengths that contradict each other or the device.
    #[error("{groups} groups of {each} blocks do not make {blocks} blocks on a device of {device} bytes")]
    Geometry {
        /// `sb_dblocks`
        blocks: u64,
        /// `sb_agcount`
        groups: u64,
        /// `sb_agblocks`
        each: u64,
        /// The device's length.
        device: u64,
    },
    /// The log lies elsewhere, or has a form that is not known.
    #[error("its log ({blocks} blocks at {start:#x}) lies outside of it or has an unknown form")]
    Log {
        /// `sb_logstart`
        start: u64,
        /// `sb_logblocks`
        blocks: u64,
    },
}

/// What a superblock says of what a change of the UUID needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Superblock {
    /// Bytes of a sector.
    pub(super) sector: u64,
    /// Bytes of a sector of the log.
    pub(super) log_sector: u64,
    /// Allocation groups.
    pub(super) groups: u64,
    /// Blocks of each.
    pub(super) group_blocks: u64,
    /// Where the log lies.
    pub(super) log: Span,
    /// What everybody sees.
    pub(super) uuid: Uuid,
    /// What the other structures carry.
    pub(super) meta_uuid: Uuid,
}

/// Reads the first superblock; `bytes` may go on behind it.
///
/// # Errors
/// When it is none, or none that is understood.
pub(super) fn decode(bytes: &[u8], device: u64) -> Result<Superblock, SuperblockFault> {
    if MAGICNUM.of(bytes) != MAGIC {
        return Err(SuperblockFault::NotXfs);
    }
    let sector = SECTSIZE.get(bytes);
    if sector != Sector::Bytes512.bytes() && sector != Sector::Bytes4096.bytes() {
        return Err(SuperblockFault::Sector(sector));
    }
    check_whole(bytes, sector)?;
    if INPROGRESS.get(bytes) != 0 {
        return Err(SuperblockFault::InProgress);
    }
    let (groups, each) = decode_groups(bytes, device)?;
    let uuid = UUID.get_uuid(bytes);
    Ok(Superblock {
        sector,
        log_sector: log_sector(bytes),
        groups,
        group_blocks: each,
        log: decode_log(bytes, groups, each)?,
        uuid,
        meta_uuid: meta_uuid(bytes),
    })
}

/// How many bytes of its device a filesystem lies on, by its first superblock; nothing if that is none that is
/// understood. However many groups it has: the kernel makes more of them when it grows.
pub fn size(bytes: &[u8]) -> Option<u64> {
    let whole = MAGICNUM.of(bytes) == MAGIC && check_whole(bytes, SECTSIZE.get(bytes)).is_ok();
    let bytes = whole.then(|| DBLOCKS.get(bytes).checked_mul(BLOCK_BYTES)).flatten()?;
    (bytes <= SECTORS_MAX.offset()).then_some(bytes)
}

/// What holds for every superblock of a filesystem that is understood: checksum, version, features.
fn check_whole(bytes: &[u8], sector: u64) -> Result<(), SuperblockFault> {
    let whole = usize::try_from(sector).ok().and_then(|length| bytes.get(..length));
    let version = VERSIONNUM.get(bytes) & VERSION_MASK;
    if version != VERSION_5 {
        return Err(SuperblockFault::Version(version));
    }
    if whole.is_none_or(|whole| CRC.of(whole) != checksum(whole, CRC)) {
        return Err(SuperblockFault::Checksum);
    }
    let block = BLOCKSIZE.get(bytes);
    if block != BLOCK_BYTES {
        return Err(SuperblockFault::Block(block));
    }
    let ro_compat = FEATURES_RO_COMPAT.get(bytes);
    let incompat = FEATURES_INCOMPAT.get(bytes);
    let log_incompat = FEATURES_LOG_INCOMPAT.get(bytes);
    let compat = FEATURES_COMPAT.get(bytes);
    if ro_compat & !RO_COMPAT_KNOWN != 0 || incompat & !INCOMPAT_KNOWN != 0 || log_incompat != 0 || compat != 0 {
        return Err(SuperblockFault::Features { ro_compat, incompat, log_incompat });
    }
    Ok(())
}

fn decode_groups(bytes: &[u8], device: u64) -> Result<(u64, u64), SuperblockFault> {
    let (blocks, groups, each) = (DBLOCKS.get(bytes), AGCOUNT.get(bytes), AGBLOCKS.get(bytes));
    let some = groups > 0 && groups <= u64::from(XFS_GROUPS_CHANGED_MAX) && each > 0;
    // Both fields have 32 bits, so the products fit 64.
    let whole = some && blocks > (groups - 1) * each && blocks <= groups * each;
    let held = blocks.checked_mul(BLOCK_BYTES).is_some_and(|bytes| bytes <= device);
    if whole && held { Ok((groups, each)) } else { Err(SuperblockFault::Geometry { blocks, groups, each, device }) }
}

/// Sectors of the log, which are not named where they have 512 bytes.
fn log_sector(bytes: &[u8]) -> u64 {
    match LOGSECTSIZE.get(bytes) {
        0 => Sector::Bytes512.bytes(),
        other => other,
    }
}

fn decode_log(bytes: &[u8], groups: u64, each: u64) -> Result<Span, SuperblockFault> {
    let (start, blocks) = (LOGSTART.get(bytes), LOGBLOCKS.get(bytes));
    let bits = AGBLKLOG.get(bytes);
    let fault = SuperblockFault::Log { start, blocks };
    let sector = log_sector(bytes);
    let realtime = RBLOCKS.get(bytes) != 0;
    let known = [Sector::Bytes512.bytes(), Sector::Bytes4096.bytes()].contains(&sector) && !realtime;
    if start == 0 || bits > 31 || !known {
        return Err(fault);
    }
    let (group, block) = (start >> bits, start & ((1 << bits) - 1));
    let inside = group < groups && block + blocks <= each && blocks >= LOG_BLOCKS_MIN;
    let end = (group * each).checked_add(block + blocks);
    if !inside || end.is_none_or(|end| end > DBLOCKS.get(bytes)) {
        return Err(fault);
    }
    Ok(Span { at: (group * each + block) * BLOCK_BYTES, length: blocks * BLOCK_BYTES })
}

/// A log shorter than 4 MiB is none that the tools of the last twenty years made.
const LOG_BLOCKS_MIN: u64 = (4 << 20) / BLOCK_BYTES;

fn meta_uuid(bytes: &[u8]) -> Uuid {
    let separate = FEATURES_INCOMPAT.get(bytes) & INCOMPAT_META_UUID != 0;
    if separate { META_UUID.get_uuid(bytes) } else { UUID.get_uuid(bytes) }
}

/// Gives a superblock another UUID, in place. What the other structures carry stays as it was: if it
/// differs from then on, the feature META_UUID says so.
///
/// # Errors
/// When the sector is no superblock of the filesystem that `first` is the first superblock of.
pub(super) fn change_uuid(sector: &mut [u8], first: &Superblock, new: Uuid) -> Result<(), SuperblockFault> {
    if MAGICNUM.of(sector) != MAGIC || SECTSIZE.get(sector) != first.sector {
        return Err(SuperblockFault::NotXfs);
    }
    check_whole(sector, first.sector)?;
    if meta_uuid(sector) != first.meta_uuid || AGBLOCKS.get(sector) != first.group_blocks {
        return Err(SuperblockFault::NotXfs);
    }
    let features = FEATURES_INCOMPAT.get(sector);
    if new == first.meta_uuid {
        FEATURES_INCOMPAT.put(sector, features & !INCOMPAT_META_UUID);
        META_UUID.of_mut(sector).fill(0);
    } else {
        FEATURES_INCOMPAT.put(sector, features | INCOMPAT_META_UUID);
        META_UUID.put_bytes(sector, first.meta_uuid.as_bytes());
    }
    UUID.put_bytes(sector, new.as_bytes());
    seal(sector, CRC);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Sectors;
    use crate::xfs::{Groups, LogLength, Shape};

    const OLD: Uuid = Uuid::from_bytes([1; 16]);
    const NEW: Uuid = Uuid::from_bytes([2; 16]);
    const DEVICE: u64 = 10 << 30;

    fn geometry() -> Geometry {
        let shape =
            Shape { size: Sectors(DEVICE / 512), sector: Sector::Bytes512, stripe: None, groups: Groups::Default };
        Geometry::of(&shape, LogLength::Default).expect("a geometry")
    }

    fn sector(group: u64) -> Vec<u8> {
        let mut sector = vec![0; 512];
        encode(&geometry(), OLD, group, &mut sector);
        sector
    }

    #[test]
    fn fields_lie_where_xfs_has_them() {
        let places = [UUID.at(), LOGSTART.at(), VERSIONNUM.at(), ICOUNT.at(), UNIT.at(), CRC.at(), META_UUID.at()];
        assert_eq!(places, [32, 48, 100, 128, 184, 224, 248]);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let first = decode(&sector(0), DEVICE).expect("a superblock");
        assert_eq!((first.groups, first.group_blocks, first.sector), (4, 655_360, 512));
        assert_eq!((first.log, first.uuid, first.meta_uuid), (geometry().log(), OLD, OLD));
        assert_eq!((size(&sector(0)), size(&[0; 512])), (Some(DEVICE), None));
        assert!(matches!(decode(&sector(0), DEVICE - 512), Err(SuperblockFault::Geometry { .. })));
        assert_eq!(decode(&sector(1), DEVICE), Err(SuperblockFault::InProgress));
        assert_eq!(decode(&[0; 512], DEVICE), Err(SuperblockFault::NotXfs));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let with = |field: Field, value: u64| {
            let mut sector = sector(0);
            field.put(&mut sector, value);
            seal(&mut sector, CRC);
            decode(&sector, DEVICE).expect_err("refused")
        };
        assert_eq!(with(VERSIONNUM, 0xb4a4), SuperblockFault::Version(4));
        assert_eq!(with(SECTSIZE, 1024), SuperblockFault::Sector(1024));
        assert_eq!(with(BLOCKSIZE, 1024), SuperblockFault::Block(1024));
        for field in [FEATURES_COMPAT, FEATURES_RO_COMPAT, FEATURES_INCOMPAT, FEATURES_LOG_INCOMPAT] {
            assert!(matches!(with(field, 0x10), SuperblockFault::Features { .. }));
        }
        for (field, value) in [(AGCOUNT, 5), (AGCOUNT, 3), (AGCOUNT, 0), (AGCOUNT, u64::from(u32::MAX)), (AGBLOCKS, 0)]
        {
            assert!(matches!(with(field, value), SuperblockFault::Geometry { .. }), "{value}");
        }
        for (field, value) in [
            (LOGSTART, 0),
            (LOGSTART, u64::MAX),
            (LOGBLOCKS, 1),
            (LOGBLOCKS, 655_360),
            (RBLOCKS, 1),
            (AGBLKLOG, 40),
            (LOGSECTSIZE, 1024),
        ] {
            assert!(matches!(with(field, value), SuperblockFault::Log { .. }), "{value}");
        }
    }

    #[test]
    fn another_uuid_and_back_leaves_no_trace() {
        let before = sector(0);
        let first = decode(&before, DEVICE).expect("a superblock");
        let mut changed = before.clone();
        change_uuid(&mut changed, &first, NEW).expect("its own superblock");
        let now = decode(&changed, DEVICE).expect("a superblock");
        assert_eq!((now.uuid, now.meta_uuid), (NEW, OLD));
        change_uuid(&mut changed, &now, OLD).expect("its own superblock");
        assert_eq!(changed, before);
        let mut other = vec![0; 512];
        encode(&geometry(), NEW, 1, &mut other);
        assert_eq!(change_uuid(&mut other, &first, NEW), Err(SuperblockFault::NotXfs));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(bit in 0..4096_usize) {
            let mut sector = sector(0);
            sector[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&sector, DEVICE).is_err());
        }
    }
}
