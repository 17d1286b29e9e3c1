//! The static header: one signature block, written twice, in the first 16 sectors of a device.
//!
//! A copy is a group of 8 sectors: an empty one, the signature block, six empty ones. Each copy is
//! written whole and flushed before the other is begun, so one of them is always good; which one
//! counts when they differ is decided by `choose`.
//!
//! Invariant: `decode(&header.block())` is `Good` of the same header, and the block that another
//! daemon wrote for a header equals ours, byte by byte.
//!
//! Deliberately absent: repair. `choose` names the copy to rewrite; a reader that may not write
//! still gets its answer.

use thiserror::Error;

use crate::limits::{MDA_SECTORS_MAX, SECTORS_MAX};
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::pool::MetadataVersion;
use crate::units::{SECTOR_BYTES, Sectors};
use crate::zoo::{Bug, planted};

/// Bytes of a signature block: one sector.
pub const BLOCK_BYTES: usize = 512;
/// Sectors of one copy: a pad, the signature block, six pads.
pub const GROUP_SECTORS: Sectors = Sectors(8);
/// Position of the signature block in its group.
const BLOCK_IN_GROUP: Sectors = Sectors(1);
/// Sectors of the static header: two copies. Zeroes over all of it disown a device.
pub const HEADER_SECTORS: Sectors = Sectors(2 * GROUP_SECTORS.0);
/// Sectors of the metadata area that every device gets.
pub const MDA_SECTORS: Sectors = Sectors(2032);
/// Sectors behind the metadata area that are never written.
pub const RESERVED_SECTORS: Sectors = Sectors(6144);
/// The first sector that may hold data: 8192 on every device we make.
pub const DATA_START: Sectors = Sectors(HEADER_SECTORS.0 + MDA_SECTORS.0 + RESERVED_SECTORS.0);

/// A flag of ours, ignored by other daemons: the pool is being created and has no record yet.
///
/// Set in the first headers, cleared in both copies as soon as the pool's first record is durable.
/// A device found with it and without any record is the remains of a creation that was cut off, and
/// may be wiped; a device found with it and with a record lost only the clearing. Where the copies
/// differ in it, the cleared one is the newer.
pub const FLAG_CREATING: u64 = 1;
/// A flag of ours, ignored by other daemons: the device joins a pool that exists, or leaves it. Whether it is
/// the pool's is for the pool's record to say.
///
/// Set before a record lists the device, cleared in both copies once that is durable. Found with it, without a
/// record of its own and not listed by the record of a pool that is otherwise whole, the device holds nothing
/// and may be wiped.
pub const FLAG_JOINING: u64 = 2;

/// What is taken off a device as soon as it is its pool's.
pub const MARKS: u64 = FLAG_CREATING | FLAG_JOINING;

const MAGIC: [u8; 16] = *b"!Stra0tis\x86\xff\x02^Arh";

const CRC: usize = 0;
const MAGIC_AT: usize = CRC + 4;
const SIZE: usize = MAGIC_AT + 16;
const VERSION: usize = SIZE + 8;
const POOL: usize = VERSION + 1 + 3;
const DEVICE: usize = POOL + 32;
const MDA_SIZE: usize = DEVICE + 32;
const RESERVED: usize = MDA_SIZE + 8;
const FLAGS: usize = RESERVED + 8;
const INITIALIZED: usize = FLAGS + 8;
const END: usize = INITIALIZED + 8;

/// What a signature block says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StaticHeader {
    /// The device's length when it was last looked at on purpose; the pool uses no more.
    pub size: Sectors,
    /// The pool's metadata format.
    pub version: MetadataVersion,
    /// Whose device it is.
    pub pool: PoolUuid,
    /// Which of the pool's devices it is.
    pub device: DevUuid,
    /// Length of the metadata area, a multiple of its four regions.
    pub mda_size: Sectors,
    /// Length of what is kept free behind it.
    pub reserved: Sectors,
    /// See `FLAG_CREATING`; kept as read.
    pub flags: u64,
    /// When the device was given to the pool, Unix seconds.
    pub initialized: u64,
}

/// Which copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// At the start of the device.
    First,
    /// Behind the first.
    Second,
}

impl Which {
    /// Where the copy's group starts: what `group` returns is written here.
    pub const fn group_start(self) -> Sectors {
        match self {
            Self::First => Sectors::ZERO,
            Self::Second => GROUP_SECTORS,
        }
    }

    /// The sector with the copy's signature block: what `decode` wants.
    pub const fn block_start(self) -> Sectors {
        Sectors(self.group_start().0 + BLOCK_IN_GROUP.0)
    }
}

/// What is wrong with a signature.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HeaderFault {
    /// The checksum does not match.
    #[error("the checksum of the signature block is wrong")]
    Checksum,
    /// A format that nobody has defined.
    #[error("the signature block has version {0}: 1 and 2 are known")]
    Version(u8),
    /// One of the ids is not 32 hex digits.
    #[error("a UUID in the signature block cannot be read")]
    Uuid,
    /// A length in it is impossible.
    #[error("a size in the signature block is impossible: {0}")]
    Size(Sectors),
    /// Two good copies of equal age contradict each other.
    #[error("the two signature blocks differ and are equally old")]
    Disagree,
    /// Neither copy could be read.
    #[error("neither signature block can be read")]
    Unreadable,
}

/// What one sector turned out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decoded {
    /// Not a signature block.
    NoMagic,
    /// A damaged one.
    Bad(HeaderFault),
    /// A good one.
    Good(StaticHeader),
}

/// The sector could not be read at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unreadable;

/// What the two copies say together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// Nobody's device, as far as Stratis knows.
    NotStratis,
    /// A Stratis device that cannot be trusted.
    Refused(HeaderFault),
    /// A Stratis device.
    Use {
        /// What counts.
        header: StaticHeader,
        /// The copy to overwrite with `header.group()`.
        repair: Option<Which>,
    },
}

impl StaticHeader {
    /// The signature block: one sector.
    pub fn block(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[MAGIC_AT..SIZE].copy_from_slice(&MAGIC);
        block[SIZE..VERSION].copy_from_slice(&self.size.0.to_le_bytes());
        block[VERSION] = self.version.number();
        self.pool.0.simple().encode_lower(&mut block[POOL..DEVICE]);
        self.device.0.simple().encode_lower(&mut block[DEVICE..MDA_SIZE]);
        block[MDA_SIZE..RESERVED].copy_from_slice(&self.mda_size.0.to_le_bytes());
        block[RESERVED..FLAGS].copy_from_slice(&self.reserved.0.to_le_bytes());
        block[FLAGS..INITIALIZED].copy_from_slice(&self.flags.to_le_bytes());
        block[INITIALIZED..END].copy_from_slice(&self.initialized.to_le_bytes());
        let crc = crc32c::crc32c(&block[MAGIC_AT..]);
        block[CRC..MAGIC_AT].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// One whole copy, 8 sectors, for `Which::group_start`.
    pub fn group(&self) -> Vec<u8> {
        let mut group = vec![0; bytes(GROUP_SECTORS)];
        let start = bytes(BLOCK_IN_GROUP);
        group[start..start + BLOCK_BYTES].copy_from_slice(&self.block());
        group
    }

    /// The first sector that may hold data.
    pub fn data_start(&self) -> Sectors {
        HEADER_SECTORS + self.mda_size + self.reserved
    }

    /// Equal in all that other daemons compare: everything but the flags.
    fn agrees(&self, other: &Self) -> bool {
        Self { flags: 0, ..*self } == Self { flags: 0, ..*other }
    }
}

/// Reads one signature block. The magic decides whether it is one; only then can it be damaged.
pub fn decode(block: &[u8; BLOCK_BYTES]) -> Decoded {
    if block[MAGIC_AT..SIZE] != MAGIC {
        return Decoded::NoMagic;
    }
    match parse(block) {
        Ok(header) => Decoded::Good(header),
        Err(fault) => Decoded::Bad(fault),
    }
}

fn parse(block: &[u8; BLOCK_BYTES]) -> Result<StaticHeader, HeaderFault> {
    if block[CRC..MAGIC_AT] != crc32c::crc32c(&block[MAGIC_AT..]).to_le_bytes() {
        return Err(HeaderFault::Checksum);
    }
    let version = match block[VERSION] {
        1 => MetadataVersion::V1,
        2 => MetadataVersion::V2,
        other => return Err(HeaderFault::Version(other)),
    };
    let uuid = |at: usize| uuid::Uuid::try_parse_ascii(&block[at..at + 32]).map_err(|_| HeaderFault::Uuid);
    let header = StaticHeader {
        size: Sectors(number(block, SIZE)),
        version,
        pool: PoolUuid(uuid(POOL)?),
        device: DevUuid(uuid(DEVICE)?),
        mda_size: Sectors(number(block, MDA_SIZE)),
        reserved: Sectors(number(block, RESERVED)),
        flags: number(block, FLAGS),
        initialized: number(block, INITIALIZED),
    };
    for size in [header.size, header.reserved] {
        if size > SECTORS_MAX {
            return Err(HeaderFault::Size(size));
        }
    }
    let mda = header.mda_size;
    if mda < MDA_SECTORS || mda > MDA_SECTORS_MAX || !mda.0.is_multiple_of(4) {
        return Err(HeaderFault::Size(mda));
    }
    Ok(header)
}

/// Decides between the two copies, each read by its own I/O. `device` is the real length.
///
/// Where good copies differ, the one initialised later wins. Equally old ones that differ only in
/// size are a growth that was cut off: the larger one that the device can hold wins.
pub fn choose(first: Result<Decoded, Unreadable>, second: Result<Decoded, Unreadable>, device: Sectors) -> Choice {
    use Decoded::{Bad, Good, NoMagic};
    match (first, second) {
        (Ok(Good(_)), Ok(Bad(_))) | (Ok(Bad(_)), Ok(Good(_))) if planted(Bug::OneBadCopyRefuses) => {
            Choice::Refused(HeaderFault::Checksum)
        }
        (Ok(Good(first)), Ok(Good(second))) => between(first, second, device),
        (Ok(Good(header)), Ok(NoMagic | Bad(_)) | Err(Unreadable)) => {
            Choice::Use { header, repair: Some(Which::Second) }
        }
        (Ok(NoMagic | Bad(_)) | Err(Unreadable), Ok(Good(header))) => {
            Choice::Use { header, repair: Some(Which::First) }
        }
        (Ok(Bad(fault)), Ok(NoMagic | Bad(_)) | Err(Unreadable)) | (Ok(NoMagic) | Err(Unreadable), Ok(Bad(fault))) => {
            Choice::Refused(fault)
        }
        (Ok(NoMagic), Ok(NoMagic) | Err(Unreadable)) | (Err(Unreadable), Ok(NoMagic)) => Choice::NotStratis,
        (Err(Unreadable), Err(Unreadable)) => Choice::Refused(HeaderFault::Unreadable),
    }
}

fn between(first: StaticHeader, second: StaticHeader, device: Sectors) -> Choice {
    let first_wins = Choice::Use { header: first, repair: Some(Which::Second) };
    let second_wins = Choice::Use { header: second, repair: Some(Which::First) };
    if first == second {
        return Choice::Use { header: first, repair: None };
    }
    if first.agrees(&second) {
        let behind = first.flags & MARKS != 0 && second.flags & MARKS == 0;
        return if behind { second_wins } else { first_wins };
    }
    if first.initialized != second.initialized {
        return if first.initialized > second.initialized { first_wins } else { second_wins };
    }
    if planted(Bug::GrownCopiesDisagree) || !first.agrees(&StaticHeader { size: first.size, ..second }) {
        return Choice::Refused(HeaderFault::Disagree);
    }
    match (first.size <= device, second.size <= device) {
        (true, true) if first.size > second.size => first_wins,
        (true, false) => first_wins,
        (true | false, true) => second_wins,
        (false, false) => Choice::Refused(HeaderFault::Disagree),
    }
}

fn number(block: &[u8; BLOCK_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes of a block"))
}

const fn bytes(length: Sectors) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "a few sectors")]
    let bytes = (length.0 * SECTOR_BYTES) as usize;
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEVICE: Sectors = Sectors(2_097_152);

    fn header() -> StaticHeader {
        StaticHeader {
            size: DEVICE,
            version: MetadataVersion::V2,
            pool: "0e5f2ad7-6f0b-4d44-9d5c-4c1c5bd44f3e".parse().expect("a pool"),
            device: "b7d1c0f4-7a5e-4a8a-8f0d-2f4f1f7ac111".parse().expect("a device"),
            mda_size: MDA_SECTORS,
            reserved: RESERVED_SECTORS,
            flags: 0,
            initialized: 1_763_697_600,
        }
    }

    fn with_checksum(mut block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
        let crc = crc32c::crc32c(&block[MAGIC_AT..]);
        block[CRC..MAGIC_AT].copy_from_slice(&crc.to_le_bytes());
        block
    }

    #[test]
    fn the_published_example_has_exactly_these_bytes() {
        let mut expected = [0; BLOCK_BYTES];
        expected[..16].copy_from_slice(b"\x41\x29\x62\xa5!Stra0tis\x86\xff\x02");
        expected[16..32].copy_from_slice(b"^Arh\x00\x00\x20\0\0\0\0\0\x02\0\0\0");
        expected[32..64].copy_from_slice(b"0e5f2ad76f0b4d449d5c4c1c5bd44f3e");
        expected[64..96].copy_from_slice(b"b7d1c0f47a5e4a8a8f0d2f4f1f7ac111");
        expected[96..112].copy_from_slice(b"\xf0\x07\0\0\0\0\0\0\x00\x18\0\0\0\0\0\0");
        expected[112..128].copy_from_slice(b"\0\0\0\0\0\0\0\0\xc0\xe3\x1f\x69\0\0\0\0");
        assert_eq!(header().block(), expected);
        assert_eq!(decode(&expected), Decoded::Good(header()));
        assert_eq!(header().data_start(), Sectors(8192));
        assert_eq!(DATA_START, Sectors(8192));
    }

    #[test]
    fn a_group_is_eight_sectors_with_the_block_in_the_second() {
        let group = header().group();
        assert_eq!(group.len(), 4096);
        assert_eq!(group[512..1024], header().block());
        assert!(group[..512].iter().chain(&group[1024..]).all(|byte| *byte == 0));
        assert_eq!((Which::First.block_start(), Which::Second.block_start()), (Sectors(1), Sectors(9)));
    }

    #[test]
    fn damage_is_told_from_absence_by_the_magic_alone() {
        let good = header().block();
        let mut unsigned = good;
        unsigned[MAGIC_AT] ^= 1;
        assert_eq!(decode(&unsigned), Decoded::NoMagic);
        let mut damaged = good;
        damaged[511] ^= 1;
        assert_eq!(decode(&damaged), Decoded::Bad(HeaderFault::Checksum));
        let mut version = good;
        version[VERSION] = 3;
        assert_eq!(decode(&with_checksum(version)), Decoded::Bad(HeaderFault::Version(3)));
        let mut pool = good;
        pool[POOL] = b'x';
        assert_eq!(decode(&with_checksum(pool)), Decoded::Bad(HeaderFault::Uuid));
    }

    #[test]
    fn sizes_that_no_device_has_are_not_believed() {
        for (size, mda, reserved, odd) in [
            (u64::MAX, 2032, 6144, u64::MAX),
            (2_097_152, 2032, 1 << 60, 1 << 60),
            (2_097_152, 2031, 6144, 2031),
            (2_097_152, 0, 6144, 0),
            (2_097_152, 2034, 6144, 2034),
            (2_097_152, 1 << 40, 6144, 1 << 40),
        ] {
            let odd_one =
                StaticHeader { size: Sectors(size), mda_size: Sectors(mda), reserved: Sectors(reserved), ..header() };
            assert_eq!(decode(&odd_one.block()), Decoded::Bad(HeaderFault::Size(Sectors(odd))));
        }
    }

    #[test]
    fn each_pair_of_copies_has_the_published_result() {
        let good = Ok(Decoded::Good(header()));
        let none = Ok(Decoded::NoMagic);
        let bad = Ok(Decoded::Bad(HeaderFault::Checksum));
        let worse = Ok(Decoded::Bad(HeaderFault::Version(9)));
        let lost = Err(Unreadable);
        let choose = |first, second| choose(first, second, DEVICE);
        let used = |repair| Choice::Use { header: header(), repair };

        assert_eq!(choose(none, none), Choice::NotStratis);
        assert_eq!(choose(good, good), used(None));
        for other in [none, bad, worse, lost] {
            assert_eq!(choose(good, other), used(Some(Which::Second)), "{other:?}");
            assert_eq!(choose(other, good), used(Some(Which::First)), "{other:?}");
        }
        for other in [none, lost] {
            assert_eq!(choose(bad, other), Choice::Refused(HeaderFault::Checksum));
            assert_eq!(choose(other, bad), Choice::Refused(HeaderFault::Checksum));
        }
        assert_eq!(choose(bad, worse), Choice::Refused(HeaderFault::Checksum));
        assert_eq!(choose(lost, none), Choice::NotStratis);
        assert_eq!(choose(none, lost), Choice::NotStratis);
        assert_eq!(choose(lost, lost), Choice::Refused(HeaderFault::Unreadable));
    }

    fn of(first: StaticHeader, second: StaticHeader) -> Choice {
        choose(Ok(Decoded::Good(first)), Ok(Decoded::Good(second)), DEVICE)
    }

    #[test]
    fn of_two_good_copies_the_later_initialised_one_wins() {
        let other = "11111111-1111-4111-8111-111111111111".parse().expect("a pool");
        let later = StaticHeader { initialized: header().initialized + 1, pool: other, ..header() };
        assert_eq!(of(header(), later), Choice::Use { header: later, repair: Some(Which::First) });
        assert_eq!(of(later, header()), Choice::Use { header: later, repair: Some(Which::Second) });
        let equally_old = StaticHeader { pool: other, ..header() };
        assert_eq!(of(header(), equally_old), Choice::Refused(HeaderFault::Disagree));
    }

    #[test]
    fn a_growth_that_was_cut_off_ends_with_the_larger_size_that_the_device_has() {
        let sized = |size| StaticHeader { size: Sectors(size), ..header() };
        let (small, large, huge) = (sized(1_000_000), sized(DEVICE.0), sized(DEVICE.0 + 1));
        assert_eq!(of(small, large), Choice::Use { header: large, repair: Some(Which::First) });
        assert_eq!(of(large, small), Choice::Use { header: large, repair: Some(Which::Second) });
        assert_eq!(of(small, huge), Choice::Use { header: small, repair: Some(Which::Second) });
        assert_eq!(of(huge, large), Choice::Use { header: large, repair: Some(Which::First) });
        assert_eq!(of(huge, sized(DEVICE.0 + 2)), Choice::Refused(HeaderFault::Disagree));
    }

    #[test]
    fn a_creation_is_over_when_either_copy_says_so() {
        for flags in [FLAG_CREATING, FLAG_JOINING] {
            let marked = StaticHeader { flags, ..header() };
            assert_eq!(of(marked, header()), Choice::Use { header: header(), repair: Some(Which::First) });
            assert_eq!(of(header(), marked), Choice::Use { header: header(), repair: Some(Which::Second) });
            assert_eq!(of(marked, marked), Choice::Use { header: marked, repair: None });
        }
    }

    proptest! {
        #[test]
        fn every_header_comes_back_and_every_flipped_bit_is_noticed(
            size in 0..=SECTORS_MAX.0, old: bool, ids: [[u8; 16]; 2], flags: u64, initialized: u64, bit in 0..4096usize,
        ) {
            let version = if old { MetadataVersion::V1 } else { MetadataVersion::V2 };
            let (pool, device) = (PoolUuid::from_random(ids[0]), DevUuid::from_random(ids[1]));
            let header = StaticHeader { size: Sectors(size), version, pool, device, flags, initialized, ..header() };
            let mut block = header.block();
            prop_assert_eq!(decode(&block), Decoded::Good(header));
            block[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(decode(&block), Decoded::Good(_)));
        }
    }
}
