//! The metadata area: four regions, each with room for one header and one record.
//!
//! Regions 0 and 1 are written in turn, regions 2 and 3 are their second copies. Other daemons
//! write a header before its record, so after a power failure any region may be torn. We read the
//! four as four independent records and take the newest whose two checksums hold.
//!
//! Invariant: a save overwrites the pair that does not hold the newest good record, so at every
//! moment of a save at least one good record is on the device.
//!
//! Our own order of writing: the record starts inside the header's sector, so all units of a region
//! but the first are written and flushed, then the first (see `Pieces`).

use thiserror::Error;

use crate::format::header::{HEADER_SECTORS, MDA_SECTORS, StaticHeader};
use crate::units::{SECTOR_BYTES, Sectors};
use crate::zoo::{Bug, planted};

/// Regions of a metadata area.
pub const REGIONS: usize = 4;
/// Regions written in turn; region k + 2 is the second copy of region k.
pub const PRIMARIES: usize = 2;
/// Longest record: what fits the smallest region, which is the only one in use.
pub const RECORD_BYTES_MAX: usize = 508 * 512 - HEADER_BYTES;
const _: () = assert!(MDA_SECTORS.0 == 4 * 508, "a region has 508 sectors");

const HEADER_CRC: usize = 0;
const DATA_CRC: usize = HEADER_CRC + 4;
const USED: usize = DATA_CRC + 4;
const SECONDS: usize = USED + 8;
const NANOSECONDS: usize = SECONDS + 8;
const HEADER_VERSION: usize = NANOSECONDS + 4;
const RECORD_VERSION: usize = HEADER_VERSION + 1;
/// Bytes of a region's header; the record follows at once.
pub const HEADER_BYTES: usize = RECORD_VERSION + 1 + 2;

/// Both version bytes, whatever the version of the pool.
const VERSION: u8 = 1;

/// When a record was written: wall time, but forced to grow from save to save.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct WallStamp {
    /// Seconds since the Unix epoch.
    pub seconds: u64,
    /// Below one thousand million.
    pub nanoseconds: u32,
}

const NANOSECONDS_IN_SECOND: u32 = 1_000_000_000;
/// Times are signed in other daemons; a larger one is damage.
const SECONDS_MAX: u64 = u64::MAX / 2;

impl WallStamp {
    /// The stamp of the next save: now, or just after the last one where the clock stands behind it.
    pub fn next(now: Self, last: Option<Self>) -> Self {
        let Some(last) = last.filter(|_| !planted(Bug::ClockRules)) else { return now };
        let after = match last.nanoseconds + 1 {
            NANOSECONDS_IN_SECOND => Self { seconds: last.seconds + 1, nanoseconds: 0 },
            nanoseconds => Self { seconds: last.seconds, nanoseconds },
        };
        now.max(after)
    }
}

/// Where the regions of a device are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Geometry {
    region: Sectors,
}

impl Geometry {
    /// Of a device with this header.
    pub fn of(header: &StaticHeader) -> Self {
        Self { region: Sectors(header.mda_size.0 / REGIONS as u64) }
    }

    /// The first sector of a region on the device.
    ///
    /// # Panics
    /// When there is no such region.
    pub fn start(&self, region: usize) -> Sectors {
        assert!(region < REGIONS, "a metadata area has four regions");
        HEADER_SECTORS + Sectors(self.region.0 * region as u64)
    }

    /// The length of each region.
    pub fn length(&self) -> Sectors {
        self.region
    }
}

/// A record longer than a region.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a record of {bytes} bytes is too long: {RECORD_BYTES_MAX} fit a region")]
pub struct TooLarge {
    /// Its length.
    pub bytes: usize,
}

/// Why a region holds no record that can be trusted.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Damage {
    /// The header's checksum does not match: never initialised, or overwritten.
    #[error("the checksum of a region header is wrong")]
    HeaderChecksum,
    /// A version that nobody has defined.
    #[error("a region header has an unknown version")]
    Version,
    /// The record would pass the end of the region.
    #[error("a region header promises more bytes than the region has")]
    Length,
    /// A time that cannot be.
    #[error("a region header has an impossible time")]
    Time,
    /// The record's checksum does not match: a save was cut off.
    #[error("the checksum of a record is wrong")]
    RecordChecksum,
}

/// What a region holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Region {
    /// Nothing was ever written here.
    Empty,
    /// Something that cannot be trusted.
    Torn(Damage),
    /// A whole record.
    Record {
        /// When it was written.
        time: WallStamp,
        /// The record, see `format::record`.
        json: Vec<u8>,
    },
}

/// The header of a region that never held a record.
pub fn empty_header() -> [u8; HEADER_BYTES] {
    header(&[], WallStamp { seconds: 0, nanoseconds: 0 })
}

/// The first sector of each region of a new device: `empty_header`, then zeroes.
pub fn empty_sector() -> Vec<u8> {
    padded(empty_header().to_vec())
}

fn header(json: &[u8], time: WallStamp) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[DATA_CRC..USED].copy_from_slice(&crc32c::crc32c(json).to_le_bytes());
    header[USED..SECONDS].copy_from_slice(&(json.len() as u64).to_le_bytes());
    header[SECONDS..NANOSECONDS].copy_from_slice(&time.seconds.to_le_bytes());
    header[NANOSECONDS..HEADER_VERSION].copy_from_slice(&time.nanoseconds.to_le_bytes());
    header[HEADER_VERSION] = VERSION;
    header[RECORD_VERSION] = VERSION;
    let crc = crc32c::crc32c(&header[DATA_CRC..]);
    header[HEADER_CRC..DATA_CRC].copy_from_slice(&crc.to_le_bytes());
    header
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    bytes
}

/// Header and record, padded with zeroes to whole sectors: the content of a region and of its copy.
///
/// # Errors
/// When the record does not fit a region.
pub fn encode(json: &[u8], time: WallStamp) -> Result<Vec<u8>, TooLarge> {
    if json.len() > RECORD_BYTES_MAX {
        return Err(TooLarge { bytes: json.len() });
    }
    let mut bytes = header(json, time).to_vec();
    bytes.extend_from_slice(json);
    Ok(padded(bytes))
}

const SECTOR: usize = 512;
const _: () = assert!(SECTOR as u64 == SECTOR_BYTES, "one size of sector");

/// The two writes of one region, in the order in which they must become durable: `rest` is written
/// and flushed, then `first` is written and flushed. Until `first` is there, the region's header is
/// the old one and its record's checksum wrong, so the region counts as torn, never as something new.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pieces {
    /// What shares a physical block with the header, and where on the device it goes.
    pub first: (Sectors, Vec<u8>),
    /// All that follows, unless that is nothing.
    pub rest: Option<(Sectors, Vec<u8>)>,
}

/// Cuts what `encode` returned for the region that starts at `start`, behind the physical block
/// (of `physical` bytes) in which the region starts. Regions 1 and 3 do not start on a block of
/// 4096 bytes, so their first piece is shorter than a block; neither piece needs to end on one.
pub fn pieces(encoded: &[u8], start: Sectors, physical: u32) -> Pieces {
    let unit = (u64::from(physical) / SECTOR_BYTES).max(1);
    let next_unit = (start.0 / unit + 1) * unit;
    let cut = usize::try_from((next_unit - start.0) * SECTOR_BYTES).unwrap_or(usize::MAX).min(encoded.len());
    let (first, rest) = encoded.split_at(cut);
    let rest = (!rest.is_empty()).then(|| (Sectors(next_unit), rest.to_vec()));
    Pieces { first: (start, first.to_vec()), rest }
}

/// Reads a region: all of it, or as many bytes from its start as hold its record.
pub fn decode(region: &[u8]) -> Region {
    match parse(region) {
        Ok(None) => Region::Empty,
        Ok(Some((time, json))) => Region::Record { time, json: json.to_vec() },
        Err(damage) => Region::Torn(damage),
    }
}

fn parse(region: &[u8]) -> Result<Option<(WallStamp, &[u8])>, Damage> {
    let (header, data) = region.split_at_checked(HEADER_BYTES).ok_or(Damage::Length)?;
    if header[HEADER_CRC..DATA_CRC] != crc32c::crc32c(&header[DATA_CRC..]).to_le_bytes() {
        return Err(Damage::HeaderChecksum);
    }
    if header[HEADER_VERSION] != VERSION || header[RECORD_VERSION] != VERSION {
        return Err(Damage::Version);
    }
    let used = u64::from_le_bytes(header[USED..SECONDS].try_into().expect("eight bytes of a header"));
    if used == 0 {
        return Ok(None);
    }
    let time = WallStamp {
        seconds: u64::from_le_bytes(header[SECONDS..NANOSECONDS].try_into().expect("eight bytes of a header")),
        nanoseconds: u32::from_le_bytes(header[NANOSECONDS..HEADER_VERSION].try_into().expect("four bytes")),
    };
    if time.seconds > SECONDS_MAX || time.nanoseconds >= NANOSECONDS_IN_SECOND {
        return Err(Damage::Time);
    }
    // A length that does not fit the machine's words does not fit the region either.
    let json = usize::try_from(used).ok().and_then(|used| data.get(..used)).ok_or(Damage::Length)?;
    if header[DATA_CRC..USED] != crc32c::crc32c(json).to_le_bytes() {
        return Err(Damage::RecordChecksum);
    }
    Ok(Some((time, json)))
}

/// The newest good record: the pair that holds it (0 or 1), its time, and itself.
pub fn newest(regions: &[Region; REGIONS]) -> Option<(usize, WallStamp, &[u8])> {
    let torn = |pair: usize| [pair, pair + PRIMARIES].iter().all(|at| matches!(regions[*at], Region::Torn(_)));
    if planted(Bug::PairCostsDevice) && (torn(0) || torn(1)) {
        return None;
    }
    let good = regions.iter().enumerate().filter_map(|(region, content)| match content {
        Region::Record { time, json } => Some((region % PRIMARIES, *time, json.as_slice())),
        Region::Empty | Region::Torn(_) => None,
    });
    // Of equally old ones the last wins: pair 1 before pair 0, as other daemons have it.
    good.max_by_key(|(pair, time, _)| (*time, *pair))
}

/// The pair (0 or 1) that the next save overwrites, region by region: never the one with the newest
/// good record, even where that has only one good copy left.
pub fn older(regions: &[Region; REGIONS]) -> usize {
    match newest(regions) {
        Some((pair, _, _)) => 1 - pair,
        None => 0,
    }
}

/// Whether a save should be made just to repair: some region is torn, or the two copies of a pair
/// are not the same, so that a reader stricter than this one might refuse the device.
pub fn damaged(regions: &[Region; REGIONS]) -> bool {
    let torn = regions.iter().any(|region| matches!(region, Region::Torn(_)));
    let apart = (0..PRIMARIES).any(|pair| regions[pair] != regions[pair + PRIMARIES]);
    torn || apart
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64, nanoseconds: u32) -> WallStamp {
        WallStamp { seconds, nanoseconds }
    }

    fn record(seconds: u64) -> Region {
        Region::Record { time: at(seconds, 0), json: format!("{{\"n\":{seconds}}}").into_bytes() }
    }

    const TORN: Region = Region::Torn(Damage::RecordChecksum);

    #[test]
    fn an_empty_header_has_the_published_bytes() {
        let mut expected = [0; 32];
        expected[..4].copy_from_slice(&[0xaf, 0xff, 0xcd, 0x8f]);
        expected[28..30].copy_from_slice(&[1, 1]);
        assert_eq!(empty_header(), expected);
        assert_eq!(decode(&empty_sector()), Region::Empty);
        assert_eq!(empty_sector().len(), 512);
        assert_eq!(decode(&[0; 512]), Region::Torn(Damage::HeaderChecksum));
    }

    #[test]
    fn a_record_fills_a_region_to_the_last_byte_and_no_further() {
        assert_eq!(RECORD_BYTES_MAX, 260_064);
        let full = encode(&vec![b'x'; RECORD_BYTES_MAX], at(1, 2)).expect("it fits");
        assert_eq!(full.len(), 508 * 512);
        assert_eq!(decode(&full), Region::Record { time: at(1, 2), json: vec![b'x'; RECORD_BYTES_MAX] });
        assert_eq!(encode(&vec![b'x'; RECORD_BYTES_MAX + 1], at(1, 2)), Err(TooLarge { bytes: 260_065 }));
    }

    #[test]
    fn each_kind_of_damage_is_told_apart() {
        let good = encode(b"{}", at(7, 8)).expect("it fits");
        let change = |position: usize, byte: u8, checksum: bool| {
            let mut bytes = good.clone();
            bytes[position] = byte;
            if checksum {
                let crc = crc32c::crc32c(&bytes[DATA_CRC..HEADER_BYTES]);
                bytes[HEADER_CRC..DATA_CRC].copy_from_slice(&crc.to_le_bytes());
            }
            decode(&bytes)
        };
        assert_eq!(change(SECONDS, 9, false), Region::Torn(Damage::HeaderChecksum));
        assert_eq!(change(HEADER_VERSION, 2, true), Region::Torn(Damage::Version));
        assert_eq!(change(RECORD_VERSION, 2, true), Region::Torn(Damage::Version));
        assert_eq!(change(USED + 7, 1, true), Region::Torn(Damage::Length));
        assert_eq!(change(SECONDS + 7, 0x80, true), Region::Torn(Damage::Time));
        assert_eq!(change(NANOSECONDS + 3, 0x80, true), Region::Torn(Damage::Time));
        assert_eq!(change(HEADER_BYTES, b'[', false), Region::Torn(Damage::RecordChecksum));
        assert_eq!(decode(&good[..HEADER_BYTES + 1]), Region::Torn(Damage::Length));
        assert_eq!(decode(&good[..HEADER_BYTES - 1]), Region::Torn(Damage::Length));
    }

    #[test]
    fn the_newest_is_found_wherever_it_is_and_never_overwritten() {
        let newest_in = |regions: [Region; 4]| newest(&regions).map(|(pair, time, _)| (pair, time.seconds));
        let empty = Region::Empty;
        let none = [empty.clone(), empty.clone(), empty.clone(), empty.clone()];
        assert_eq!((newest_in(none.clone()), older(&none), damaged(&none)), (None, 0, false));

        let first = [record(1), empty.clone(), record(1), empty.clone()];
        assert_eq!((newest_in(first.clone()), older(&first), damaged(&first)), (Some((0, 1)), 1, false));

        // The first copy of the newest pair is gone; the pair is still not the one to overwrite.
        let copy_only = [TORN, record(1), record(2), record(1)];
        assert_eq!((newest_in(copy_only.clone()), older(&copy_only), damaged(&copy_only)), (Some((0, 2)), 1, true));

        // A first write was torn: what it was to replace is older than the other pair.
        let torn_save = [TORN, record(2), record(1), record(2)];
        assert_eq!((newest_in(torn_save.clone()), older(&torn_save)), (Some((1, 2)), 0));

        let copy_behind = [record(3), record(2), record(1), record(2)];
        assert_eq!((newest_in(copy_behind.clone()), older(&copy_behind)), (Some((0, 3)), 1));
        assert!(damaged(&copy_behind));

        // Equally old: other daemons call pair 0 the older one.
        let equal = [record(1), record(1), record(1), record(1)];
        assert_eq!((newest_in(equal.clone()), older(&equal)), (Some((1, 1)), 0));
    }

    #[test]
    fn the_stamp_grows_also_when_the_clock_does_not() {
        assert_eq!(WallStamp::next(at(5, 6), None), at(5, 6));
        assert_eq!(WallStamp::next(at(5, 6), Some(at(4, 999_999_999))), at(5, 6));
        assert_eq!(WallStamp::next(at(5, 6), Some(at(5, 6))), at(5, 7));
        assert_eq!(WallStamp::next(at(5, 6), Some(at(9, 999_999_999))), at(10, 0));
    }

    #[test]
    fn a_region_is_cut_behind_the_block_that_holds_its_header() {
        let encoded = encode(&[b'x'; 9_000], at(1, 0)).expect("it fits");
        let starts = |start, physical| {
            let Pieces { first, rest } = pieces(&encoded, Sectors(start), physical);
            let rest = rest.expect("more than one block");
            assert_eq!([first.1.as_slice(), rest.1.as_slice()].concat(), encoded);
            assert_eq!(first.0, Sectors(start));
            (first.1.len(), rest.0)
        };
        assert_eq!(starts(16, 512), (512, Sectors(17)));
        assert_eq!(starts(16, 4096), (4096, Sectors(24)));
        // Region 1 starts in the middle of a block of 4096 bytes.
        assert_eq!(starts(524, 4096), (2048, Sectors(528)));
        assert_eq!(starts(524, 0), (512, Sectors(525)));
        let small = encode(b"{}", at(1, 0)).expect("it fits");
        assert_eq!(pieces(&small, Sectors(16), 4096), Pieces { first: (Sectors(16), small.clone()), rest: None });
    }

    fn regions(geometry: Geometry, image: &[u8]) -> [Region; REGIONS] {
        std::array::from_fn(|region| decode(slice(image, geometry.start(region), geometry.length())))
    }

    fn slice(image: &[u8], start: Sectors, length: Sectors) -> &[u8] {
        let start = usize::try_from(start.offset()).expect("a small image");
        &image[start..start + usize::try_from(length.offset()).expect("a small image")]
    }

    fn put(image: &mut [u8], start: Sectors, bytes: &[u8]) {
        let start = usize::try_from(start.offset()).expect("a small image");
        image[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Saves, and loses power during write number `cut` of the save: of that write only the sectors
    /// in `kept` arrive, but a first piece, which is one physical block, arrives whole or not at all.
    fn save(image: &mut [u8], json: &[u8], time: WallStamp, physical: u32, cut: Option<(usize, u64)>) {
        let geometry = Geometry { region: Sectors(508) };
        let pair = older(&regions(geometry, image));
        let encoded = encode(json, time).expect("it fits");
        let mut writes = Vec::new();
        for region in [pair, pair + PRIMARIES] {
            let Pieces { first, rest } = pieces(&encoded, geometry.start(region), physical);
            writes.extend(rest.map(|rest| (rest, false)));
            writes.push((first, true));
        }
        let (last, kept) = cut.unwrap_or((writes.len(), 0));
        for ((start, bytes), _) in &writes[..last.min(writes.len())] {
            put(image, *start, bytes);
        }
        if let Some(((start, bytes), whole)) = writes.get(last) {
            for (index, sector) in bytes.chunks(512).enumerate() {
                let bit = if *whole { 0 } else { index % 64 };
                if kept >> bit & 1 == 1 {
                    put(image, *start + Sectors(index as u64), sector);
                }
            }
        }
    }

    /// What other daemons find: they trust the headers of the first copies, look into the second copy
    /// only where the first is bad, and never fall back to the older pair.
    fn strict(geometry: Geometry, image: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        let region = |region| slice(image, geometry.start(region), geometry.length());
        let good = |region: &&[u8]| region[..4] == crc32c::crc32c(&region[4..32]).to_le_bytes();
        let mut newest: Option<(WallStamp, usize, u32, usize)> = None;
        for pair in 0..PRIMARIES {
            let copies = [region(pair), region(pair + PRIMARIES)];
            let header = copies.into_iter().find(good).ok_or("both headers of a pair are bad")?;
            let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let used = usize::try_from(number(8)).expect("a small record");
            let this = (at(number(16), word(24)), pair, word(4), used);
            if used != 0 && newest.is_none_or(|newest| newest < this) {
                newest = Some(this);
            }
        }
        let Some((_, pair, checksum, used)) = newest else { return Ok(None) };
        let copies = [pair, pair + PRIMARIES].map(|copy| &region(copy)[32..32 + used]);
        let json = copies.into_iter().find(|json| crc32c::crc32c(json) == checksum);
        json.map(|json| Some(json.to_vec())).ok_or("neither copy has the data of the newest header")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn power_may_fail_in_every_save_and_no_finished_save_is_lost(
            blocks in prop::sample::select(vec![512, 4096]),
            saves in prop::collection::vec((1..9_000usize, prop::option::of((0..5usize, any::<u64>()))), 1..12),
        ) {
            let geometry = Geometry { region: Sectors(508) };
            let mut image = vec![0; 1 << 20];
            for region in 0..REGIONS {
                put(&mut image, geometry.start(region), &empty_sector());
            }
            let mut known: Option<Vec<u8>> = None;
            for (number, (length, cut)) in saves.into_iter().enumerate() {
                let json = vec![b'a' + u8::try_from(number).expect("few saves"); length];
                save(&mut image, &json, at(number as u64 + 1, 0), blocks, cut);
                let found = regions(geometry, &image);
                let found = newest(&found).map(|(_, _, json)| json.to_vec());
                let arrived = found.as_ref() == Some(&json);
                prop_assert!(arrived || (cut.is_some() && found == known), "save {} is neither old nor new", number);
                prop_assert_eq!(strict(geometry, &image), Ok(found.clone()));
                known = found;
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let record = matches!(decode(&bytes), Region::Record { .. });
            prop_assert!(!record, "no checksum holds by chance");
        }
    }
}
