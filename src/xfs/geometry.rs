//! Geometry: how many blocks, in which allocation groups, and where the log and the root inodes lie.
//!
//! Invariant: equal to what `mkfs.xfs` 6.1 chooses for the same explicit options (`-s size`,
//! `-d su,sw,agcount`, `-l size`), and whatever it refuses is refused.
//!
//! Deliberately absent: reading hints of a device. The caller gives a stripe or none, so that a
//! filesystem's geometry does not depend on where it is made.

use thiserror::Error;

use crate::limits::{SECTORS_MAX, XFS_GROUPS_MADE_MAX};
use crate::units::Sectors;
use crate::xfs::space::Space;
use crate::xfs::{BLOCK_BYTES, Span};

const MIB: u64 = (1 << 20) / BLOCK_BYTES;
const GIB: u64 = MIB << 10;
const TIB: u64 = GIB << 10;

/// Smallest filesystem that mkfs.xfs makes.
const FILESYSTEM_BYTES_MIN: u64 = 300 << 20;
/// Smallest allocation group, in blocks: 16 MiB.
const GROUP_MIN: u64 = 16 * MIB;
/// Largest allocation group, in blocks: one below 1 TiB.
const GROUP_MAX: u64 = TIB - 1;
/// Smallest log, in blocks: 64 MiB. Every transaction of a filesystem with our features fits in less.
const LOG_MIN: u64 = 64 * MIB;
/// Largest log, in blocks: 10 MiB below 2 GiB.
const LOG_MAX: u64 = 2 * GIB - 10 * MIB;
/// Largest unit that log writes are padded to, in blocks: 256 KiB. Beyond it, 32 KiB are taken.
const LOG_UNIT_MAX: u64 = 64;
const LOG_UNIT_INSTEAD: u64 = 8;
/// By how much of the filesystem the log grows.
const BLOCKS_FOR_LOG_BLOCK: u64 = 2048;

/// Sectors that a group begins with: superblock, AGF, AGI, AGFL.
pub(super) const HEADER_SECTORS: u64 = 4;
/// Blocks behind them: the roots of the trees.
pub(super) const ROOTS: u64 = 5;
/// Blocks in the free list of a group.
pub(super) const FREE_LIST: u64 = 4;
/// Inodes in a block, as a power of two.
pub(super) const INODES_IN_BLOCK_LOG: u32 = 3;
/// Blocks of one chunk of 64 inodes; chunks are aligned to as many.
pub(super) const INODE_CHUNK: u64 = 8;

/// Bytes of a sector: what the filesystem's headers are written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sector {
    /// 512 bytes.
    Bytes512,
    /// 4096 bytes.
    Bytes4096,
}

impl Sector {
    /// As a number.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bytes512 => 512,
            Self::Bytes4096 => 4096,
        }
    }
}

/// What data is aligned to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stripe {
    /// Stripe unit: the block of a thin pool.
    pub unit: Sectors,
    /// Stripe width: a multiple of the unit.
    pub width: Sectors,
}

/// How many allocation groups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Groups {
    /// As many as mkfs.xfs makes.
    Default,
    /// So many.
    Exactly(u32),
}

/// How long the log is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogLength {
    /// What mkfs.xfs takes: 1/2048 of the filesystem, at least 64 MiB and at most about 2 GiB.
    Default,
    /// The smallest that mkfs.xfs accepts: 64 MiB, or a little more to fill a stripe unit.
    Smallest,
    /// So long: whole blocks, and whole stripe units of the log.
    Exactly(Sectors),
}

/// What a filesystem is asked to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Length of the device.
    pub size: Sectors,
    /// Sector size.
    pub sector: Sector,
    /// Alignment of data, if any.
    pub stripe: Option<Stripe>,
    /// How many allocation groups.
    pub groups: Groups,
}

/// Why no filesystem is made natively of a shape.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Unfit {
    /// Below what mkfs.xfs makes.
    #[error("{0} are too few for an XFS filesystem: 300 MiB is the least")]
    TooSmall(Sectors),
    /// No device is so large.
    #[error("{0} are more than any device has")]
    TooLarge(Sectors),
    /// A stripe that is not one.
    #[error("a stripe of {unit} in {width} does not consist of whole blocks and units")]
    Stripe {
        /// Its unit.
        unit: Sectors,
        /// Its width.
        width: Sectors,
    },
    /// One group has no second superblock, and beyond the largest count memory is the limit.
    #[error("{0} allocation groups: at least 2, at most {XFS_GROUPS_MADE_MAX}")]
    GroupCount(u64),
    /// Groups would be too large, or too small for what must lie in one.
    #[error("{blocks} blocks make groups of {each} blocks, the last of {last}, which cannot be")]
    GroupLength {
        /// All blocks.
        blocks: u64,
        /// Of each group.
        each: u64,
        /// Of the last one.
        last: u64,
    },
    /// The log does not fit a group, or is too short.
    #[error("a log of {blocks} blocks: at least {LOG_MIN}, at most {most}, whole units of {unit}")]
    LogLength {
        /// What it would have.
        blocks: u64,
        /// What it could have.
        most: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
}

/// Where everything lies. All lengths are in blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Geometry {
    pub(super) sector: Sector,
    /// Length of the device in bytes, whole sectors.
    pub(super) device: u64,
    /// `sb_dblocks`
    pub(super) blocks: u64,
    /// `sb_agblocks`
    pub(super) group_blocks: u64,
    /// `sb_agcount`
    pub(super) groups: u64,
    /// `sb_unit`; 0: none
    pub(super) stripe_unit: u64,
    /// `sb_width`; 0: none
    pub(super) stripe_width: u64,
    /// What the log's writes are padded to; 0: to a sector.
    pub(super) log_unit: u64,
    /// `sb_logblocks`
    pub(super) log_blocks: u64,
    /// The group that the log lies in: the middle one.
    pub(super) log_group: u64,
    /// The log's first block in its group.
    pub(super) log_block: u64,
    /// `sb_imax_pct`
    pub(super) inode_percent: u8,
}

impl Geometry {
    /// Decides where everything lies.
    ///
    /// # Errors
    /// When there can be no such filesystem, or mkfs.xfs would make none.
    pub fn of(shape: &Shape, log: LogLength) -> Result<Self, Unfit> {
        if shape.size > SECTORS_MAX {
            return Err(Unfit::TooLarge(shape.size));
        }
        let bytes = shape.size.offset();
        if bytes < FILESYSTEM_BYTES_MIN {
            return Err(Unfit::TooSmall(shape.size));
        }
        let (unit, width) = stripe_blocks(shape.stripe)?;
        let blocks = bytes / BLOCK_BYTES;
        let (group_blocks, groups) = match shape.groups {
            Groups::Default => default_groups(blocks, unit, width)?,
            Groups::Exactly(count) => exact_groups(blocks, u64::from(count), unit)?,
        };
        let (blocks, groups) = trimmed(blocks, group_blocks, groups)?;
        let mut geometry = Self {
            sector: shape.sector,
            device: bytes / shape.sector.bytes() * shape.sector.bytes(),
            blocks,
            group_blocks,
            groups,
            stripe_unit: unit,
            stripe_width: width,
            log_unit: log_unit(shape.sector, unit),
            log_blocks: 0,
            log_group: groups / 2,
            log_block: 0,
            inode_percent: inode_percent(blocks),
        };
        geometry.place_log(log)?;
        geometry.check_room()?;
        Ok(geometry)
    }

    /// Chooses the log's length and place.
    fn place_log(&mut self, wanted: LogLength) -> Result<(), Unfit> {
        // Without a stripe unit of its own, the log keeps to that of the data.
        let align = if self.log_unit != 0 { self.log_unit } else { self.stripe_unit.max(1) };
        let most = self.log_most();
        // What is aligned is the number that holds group and block, as mkfs.xfs has it: with a unit that
        // is no power of two, that is another place than a multiple in the group.
        let group = self.log_group << self.group_bits();
        self.log_block = (group + self.first_free()).next_multiple_of(align) - group;
        let length = match wanted {
            LogLength::Default => {
                let length = (self.blocks / BLOCKS_FOR_LOG_BLOCK).max(LOG_MIN).min(most);
                let up = length.next_multiple_of(align);
                if up > most { length / align * align } else { up }
            }
            LogLength::Smallest => LOG_MIN.next_multiple_of(align),
            LogLength::Exactly(length) => whole_blocks(length).unwrap_or(0),
        };
        // Aligning the place can take a unit from the end.
        let over = self.log_block + length > self.length_of(self.log_group);
        self.log_blocks = if over { length.saturating_sub(align) } else { length };
        let fits = length <= most
            && self.log_blocks >= LOG_MIN
            && self.log_blocks.is_multiple_of(align)
            && self.log_block + self.log_blocks <= self.length_of(self.log_group);
        let unfit = Unfit::LogLength { blocks: length, most, unit: align };
        if fits { Ok(()) } else { Err(unfit) }
    }

    /// The longest log that leaves its group what the group needs: the blocks at its beginning, those
    /// of the free list, and one.
    fn log_most(&self) -> u64 {
        self.group_blocks.saturating_sub(self.first_free() + FREE_LIST + 1).min(LOG_MAX)
    }

    /// Odd stripes could leave no room in the log's group or in the first one.
    fn check_room(&self) -> Result<(), Unfit> {
        let last = self.length_of(self.groups - 1);
        let unfit = Unfit::GroupLength { blocks: self.blocks, each: self.group_blocks, last };
        let has_room = self.root_block() + INODE_CHUNK <= self.length_of(0)
            && Space::of(self, self.log_group).is_some()
            && Space::of(self, 0).is_some();
        if has_room { Ok(()) } else { Err(unfit) }
    }

    /// Blocks of the four headers of a group.
    pub(super) const fn header_blocks(&self) -> u64 {
        (HEADER_SECTORS * self.sector.bytes()).div_ceil(BLOCK_BYTES)
    }

    /// The first block of a group that holds nothing fixed: behind the headers and the roots.
    pub(super) const fn first_free(&self) -> u64 {
        self.header_blocks() + ROOTS
    }

    /// The block of the root inodes, in the first group.
    pub(super) const fn root_block(&self) -> u64 {
        let striped = self.stripe_unit != 0 && self.stripe_unit.is_multiple_of(INODE_CHUNK);
        let align = if striped { self.stripe_unit } else { INODE_CHUNK };
        (self.first_free() + FREE_LIST).next_multiple_of(align)
    }

    /// `sb_rootino`
    pub(super) const fn root_inode(&self) -> u64 {
        self.root_block() << INODES_IN_BLOCK_LOG
    }

    /// `sb_agblklog`: bits of a block's number in its group.
    pub(super) const fn group_bits(&self) -> u32 {
        (self.group_blocks - 1).ilog2() + 1
    }

    /// `sb_logstart`: as group and block in one number.
    pub(super) const fn log_start(&self) -> u64 {
        self.log_group << self.group_bits() | self.log_block
    }

    /// Blocks of a group; the last one may be shorter.
    pub(super) const fn length_of(&self, group: u64) -> u64 {
        if group + 1 == self.groups { self.blocks - group * self.group_blocks } else { self.group_blocks }
    }

    /// The offset in bytes of a block of a group.
    pub(super) const fn offset(&self, group: u64, block: u64) -> u64 {
        (group * self.group_blocks + block) * BLOCK_BYTES
    }

    /// Blocks of the filesystem.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Allocation groups.
    pub const fn groups(&self) -> u64 {
        self.groups
    }

    /// Blocks of each group but perhaps the last.
    pub const fn group_blocks(&self) -> u64 {
        self.group_blocks
    }

    /// The log.
    pub const fn log(&self) -> Span {
        Span { at: self.offset(self.log_group, self.log_block), length: self.log_blocks * BLOCK_BYTES }
    }

    /// The chunk of inodes that holds the root folder and the two inodes of the realtime section.
    pub const fn root_inodes(&self) -> Span {
        Span { at: self.offset(0, self.root_block()), length: INODE_CHUNK * BLOCK_BYTES }
    }
}

fn whole_blocks(length: Sectors) -> Option<u64> {
    let bytes = (length <= SECTORS_MAX).then(|| length.offset())?;
    bytes.is_multiple_of(BLOCK_BYTES).then_some(bytes / BLOCK_BYTES)
}

/// Unit and width in blocks; zeroes without a stripe.
fn stripe_blocks(stripe: Option<Stripe>) -> Result<(u64, u64), Unfit> {
    let Some(Stripe { unit, width }) = stripe else {
        return Ok((0, 0));
    };
    match (whole_blocks(unit), whole_blocks(width)) {
        (Some(blocks), Some(wide)) if blocks > 0 && wide > 0 && wide.is_multiple_of(blocks) && wide < GROUP_MAX => {
            Ok((blocks, wide))
        }
        _ => Err(Unfit::Stripe { unit, width }),
    }
}

fn log_unit(sector: Sector, stripe_unit: u64) -> u64 {
    match sector {
        Sector::Bytes4096 => 1,
        Sector::Bytes512 if stripe_unit > LOG_UNIT_MAX => LOG_UNIT_INSTEAD,
        Sector::Bytes512 => stripe_unit,
    }
}

/// Length and count of groups as mkfs.xfs chooses them.
fn default_groups(blocks: u64, unit: u64, width: u64) -> Result<(u64, u64), Unfit> {
    let each = if blocks >= 32 * TIB || (unit == 0 && blocks >= 4 * TIB) {
        GROUP_MAX
    } else {
        // More disks, more groups: 32 in a striped filesystem, fewer in a small one, 4 in any other.
        let groups = if unit == 0 {
            4
        } else if blocks <= 8 * GIB {
            8
        } else if blocks <= 512 * GIB {
            16
        } else {
            32
        };
        blocks.div_ceil(groups).min(GROUP_MAX)
    };
    let mut each = aligned(each, unit);
    // Groups that all begin on the same disk of the stripe would keep that disk busy.
    let same_disk = width != unit && each.is_multiple_of(width) && blocks > each;
    if same_disk {
        let fewer = each.checked_sub(unit).filter(|fewer| *fewer >= GROUP_MIN);
        each = fewer.ok_or(Unfit::GroupLength { blocks, each, last: blocks % each })?;
    }
    Ok((each, blocks.div_ceil(each)))
}

/// The length of groups of which there are to be `count`.
fn exact_groups(blocks: u64, count: u64, unit: u64) -> Result<(u64, u64), Unfit> {
    if count == 0 {
        return Err(Unfit::GroupCount(count));
    }
    let each = blocks.div_ceil(count);
    if each > GROUP_MAX {
        return Err(Unfit::GroupLength { blocks, each, last: each });
    }
    Ok((aligned(each, unit), count))
}

/// Whole stripe units: more where possible.
fn aligned(each: u64, unit: u64) -> u64 {
    if unit == 0 {
        return each;
    }
    let up = each.next_multiple_of(unit);
    if up > GROUP_MAX { each / unit * unit } else { up }
}

/// Blocks and count of groups without a last group that would be too short.
fn trimmed(blocks: u64, each: u64, groups: u64) -> Result<(u64, u64), Unfit> {
    let before_last = each * groups.saturating_sub(1);
    let last = blocks.saturating_sub(before_last);
    if each < GROUP_MIN || last == 0 || last > each {
        return Err(Unfit::GroupLength { blocks, each, last });
    }
    let (blocks, groups) = if last < GROUP_MIN { (before_last, groups - 1) } else { (blocks, groups) };
    if groups < 2 || groups > u64::from(XFS_GROUPS_MADE_MAX) {
        return Err(Unfit::GroupCount(groups));
    }
    Ok((blocks, groups))
}

/// The share of space that inodes may take.
fn inode_percent(blocks: u64) -> u8 {
    if blocks < TIB {
        25
    } else if blocks < 50 * TIB {
        5
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(bytes: u64, unit: u64, groups: Groups) -> Shape {
        let unit = Sectors(unit / 512);
        let stripe = (unit.0 > 0).then_some(Stripe { unit, width: unit });
        Shape { size: Sectors(bytes / 512), sector: Sector::Bytes512, stripe, groups }
    }

    #[test]
    fn a_tebibyte_lies_as_mkfs_lays_it() {
        let plain = Geometry::of(&shape(1 << 40, 0, Groups::Default), LogLength::Default).expect("a geometry");
        assert_eq!((plain.groups, plain.group_blocks, plain.log_blocks), (4, 67_108_864, 131_072));
        assert_eq!((plain.log_group, plain.log_block, plain.root_block()), (2, 6, 16));
        let thin = Geometry::of(&shape(1 << 40, 1 << 20, Groups::Default), LogLength::Default).expect("a geometry");
        assert_eq!((thin.groups, thin.group_blocks, thin.log_blocks), (32, 8_388_608, 131_072));
        assert_eq!((thin.log_group, thin.log_block, thin.root_block()), (16, 8, 256));
        let few = Geometry::of(&shape(1 << 40, 1 << 20, Groups::Exactly(4)), LogLength::Smallest).expect("a geometry");
        assert_eq!((few.groups, few.log_blocks, few.log_unit), (4, 16_384, 8));
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let of = |bytes, unit, groups, log| Geometry::of(&shape(bytes, unit, groups), log).expect_err("refused");
        let gib = 1 << 30;
        let log = LogLength::Default;
        assert_eq!(of((300 << 20) - 512, 0, Groups::Default, log), Unfit::TooSmall(Sectors(614_399)));
        let huge = Shape { size: Sectors(u64::MAX), ..shape(gib, 0, Groups::Default) };
        assert_eq!(Geometry::of(&huge, log), Err(Unfit::TooLarge(Sectors(u64::MAX))));
        assert!(matches!(of(gib, 1024, Groups::Default, log), Unfit::Stripe { .. }));
        let none =
            Shape { stripe: Some(Stripe { unit: Sectors(0), width: Sectors(0) }), ..shape(gib, 0, Groups::Default) };
        assert!(matches!(Geometry::of(&none, log), Err(Unfit::Stripe { .. })));
        assert_eq!(of(gib, 0, Groups::Exactly(0), log), Unfit::GroupCount(0));
        assert_eq!(of(gib, 0, Groups::Exactly(1), log), Unfit::GroupCount(1));
        assert!(matches!(of(4 << 40, 0, Groups::Exactly(4), log), Unfit::GroupLength { .. }));
        assert!(matches!(of(gib, 0, Groups::Exactly(100), log), Unfit::GroupLength { .. }));
        assert!(matches!(of(gib, 0, Groups::Exactly(16), log), Unfit::LogLength { .. }));
        for length in [0, 63 << 11, (64 << 11) + 1, 3 << 22] {
            assert!(matches!(
                of(gib, 0, Groups::Default, LogLength::Exactly(Sectors(length))),
                Unfit::LogLength { .. }
            ));
        }
    }

    /// A number of any magnitude up to so many bits.
    fn number(rng: &mut fastrand::Rng, bits: u32) -> u64 {
        let bits = rng.u32(1..bits);
        rng.u64(0..1 << bits)
    }

    #[test]
    fn any_shape_is_refused_or_fits() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..20_000 {
            let unit = Sectors(number(&mut rng, 40));
            let stripe = rng.bool().then(|| Stripe { unit, width: Sectors(unit.0 * rng.u64(0..4)) });
            let groups = if rng.bool() {
                Groups::Default
            } else {
                Groups::Exactly(u32::try_from(number(&mut rng, 31)).expect("31 bits"))
            };
            let sector = if rng.bool() { Sector::Bytes512 } else { Sector::Bytes4096 };
            let log = match rng.u8(..3) {
                0 => LogLength::Default,
                1 => LogLength::Smallest,
                _ => LogLength::Exactly(Sectors(number(&mut rng, 60))),
            };
            let shape = Shape { size: Sectors(number(&mut rng, 50)), sector, stripe, groups };
            if let Ok(geometry) = Geometry::of(&shape, log) {
                assert!(geometry.log().end() <= geometry.device && geometry.blocks * BLOCK_BYTES <= geometry.device);
                assert!((0..geometry.groups).all(|group| Space::of(&geometry, group).is_some()), "{shape:?}");
            }
        }
    }
}
