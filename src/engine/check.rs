//! Whether a pool's record makes sense on the devices that were found.
//!
//! A record that another daemon wrote, or that a bug of ours did, is looked at before any table is
//! computed from it: a wrong table destroys data. A record that passes can be given to every function
//! of `engine` without a further check.
//!
//! Invariant: a record that passes has no sector in two places, and every sector on a device. What is
//! odd but harmless passes: a pool that does not start is worse.
//!
//! Deliberately absent: devices that the record does not list. The caller leaves those out that carry
//! no record themselves (an addition that was cut off) and reports the others.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::engine::alloc::Allocator;
use crate::engine::size::{CRYPT_RESERVE, DATA_BLOCK};
use crate::format::record::{Device, DeviceSegment, FlexDevices, PoolRecord, Segment};
use crate::model::ids::DevUuid;
use crate::model::pool::MetadataVersion;
use crate::units::Sectors;

/// The first rule that a record breaks.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{}", self.as_str())]
pub enum Inconsistency {
    /// Two entries are one device.
    DeviceTwice,
    /// A device of the record has no size here.
    DeviceMissing,
    /// A size was given for a device that is not in the record.
    DeviceForeign,
    /// A tier has a wrong number of segment lists.
    Lists,
    /// A segment is empty.
    SegmentEmpty,
    /// Segments overlap, or lie where none may.
    Segments,
    /// The cache tier does not use all of its devices.
    CacheUnused,
    /// No data is allocated.
    NothingAllocated,
    /// The cap device of version 1 has one piece and no room for an encryption header.
    Version1,
    /// Room for the encryption header is not at the start, or has another size.
    CryptRoom,
    /// The flex devices and the cap device's allocations differ in total.
    CapSum,
    /// More of the cap device is allocated than there is.
    CapLength,
    /// Flex segments overlap, or lie outside of the cap device.
    Flex,
    /// One of the flex devices has no sectors.
    FlexEmpty,
    /// Another block size, or data that is no whole number of blocks.
    DataBlocks,
}

impl Inconsistency {
    /// What is wrong, in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DeviceTwice => "a device is listed twice",
            Self::DeviceMissing => "a listed device was not found",
            Self::DeviceForeign => "a device was found that is not listed",
            Self::Lists => "a tier has a wrong number of segment lists",
            Self::SegmentEmpty => "a segment has no sectors",
            Self::Segments => "segments overlap or pass the limits of their device",
            Self::CacheUnused => "the cache leaves sectors of its devices unused",
            Self::NothingAllocated => "no sectors of the data devices are allocated",
            Self::Version1 => "the cap device of a version 1 record is not one piece from 0 on",
            Self::CryptRoom => "the room for an encryption header is not the first 34816 sectors",
            Self::CapSum => "the flex devices and the allocations of the cap device differ in total",
            Self::CapLength => "more of the cap device is allocated than its devices hold",
            Self::Flex => "flex segments overlap or pass the limits of the cap device",
            Self::FlexEmpty => "a flex device has no sectors",
            Self::DataBlocks => "thin data is not a whole number of blocks of 2048 sectors",
        }
    }
}

/// Checks a record against the sizes in the headers of the pool's devices, both tiers, no others.
///
/// # Errors
/// The first rule it breaks.
pub fn check(
    record: &PoolRecord,
    version: MetadataVersion,
    sizes: &BTreeMap<DevUuid, Sectors>,
) -> Result<(), Inconsistency> {
    devices(record, sizes)?;
    tiers(record, sizes)?;
    match version {
        MetadataVersion::V1 => version1(record)?,
        MetadataVersion::V2 => version2(record)?,
    }
    cap(record)?;
    thin(record)
}

fn unless(broken: bool, fault: Inconsistency) -> Result<(), Inconsistency> {
    if broken { Err(fault) } else { Ok(()) }
}

fn allocated(record: &PoolRecord) -> Sectors {
    record.backstore.data_tier.blockdev.allocs.iter().flatten().sum()
}

fn flex(flex: &FlexDevices) -> [&[Segment]; 4] {
    [&flex.thin_meta_dev, &flex.thin_meta_dev_spare, &flex.thin_data_dev, &flex.meta_dev]
}

fn devices(record: &PoolRecord, sizes: &BTreeMap<DevUuid, Sectors>) -> Result<(), Inconsistency> {
    let listed: BTreeSet<DevUuid> = record.devices().map(|device| device.uuid).collect();
    unless(listed.len() != record.devices().count(), Inconsistency::DeviceTwice)?;
    unless(listed.iter().any(|uuid| !sizes.contains_key(uuid)), Inconsistency::DeviceMissing)?;
    unless(sizes.keys().any(|uuid| !listed.contains(uuid)), Inconsistency::DeviceForeign)
}

fn tiers(record: &PoolRecord, sizes: &BTreeMap<DevUuid, Sectors>) -> Result<(), Inconsistency> {
    let data = &record.backstore.data_tier.blockdev;
    unless(data.allocs.len() != 1, Inconsistency::Lists)?;
    let cache = record.backstore.cache_tier.as_ref().map(|tier| &tier.blockdev);
    unless(cache.is_some_and(|cache| cache.allocs.len() != 2), Inconsistency::Lists)?;
    for tier in [Some(data), cache].into_iter().flatten() {
        let allocated = tier.allocs.iter().flatten().map(DeviceSegment::segment);
        let room = tier.devs.iter().flat_map(|device: &Device| device.integrity_meta_allocs.iter().copied());
        unless(allocated.chain(room).any(|segment| segment.length == Sectors::ZERO), Inconsistency::SegmentEmpty)?;
    }
    Allocator::rebuild(data, sizes).map_err(|_| Inconsistency::Segments)?;
    let Some(cache) = cache else { return Ok(()) };
    let left = Allocator::rebuild(cache, sizes).map_err(|_| Inconsistency::Segments)?.free();
    unless(left > Sectors::ZERO, Inconsistency::CacheUnused)
}

fn version1(record: &PoolRecord) -> Result<(), Inconsistency> {
    let cap = &record.backstore.cap;
    let one_piece = cap.allocs.len() == 1 && cap.allocs[0].start == Sectors::ZERO;
    unless(!one_piece || !cap.crypt_meta_allocs.is_empty(), Inconsistency::Version1)?;
    let end = flex(&record.flex_devs).into_iter().flatten().map(Segment::end).max();
    unless(end != Some(cap.allocs[0].length), Inconsistency::CapSum)
}

fn version2(record: &PoolRecord) -> Result<(), Inconsistency> {
    let room = [Segment { start: Sectors::ZERO, length: CRYPT_RESERVE }];
    unless(record.backstore.cap.crypt_meta_allocs != room, Inconsistency::CryptRoom)
}

fn cap(record: &PoolRecord) -> Result<(), Inconsistency> {
    let cap = &record.backstore.cap;
    let allocated = allocated(record);
    unless(allocated == Sectors::ZERO, Inconsistency::NothingAllocated)?;
    let handed_out: Sectors = cap.allocs.iter().sum();
    let used: Sectors = flex(&record.flex_devs).into_iter().flatten().sum();
    unless(used != handed_out, Inconsistency::CapSum)?;
    let room: Sectors = cap.crypt_meta_allocs.iter().sum();
    unless(handed_out + room > allocated, Inconsistency::CapLength)?;

    // On an encrypted pool the cap device is what lies behind the room for the encryption header.
    let (first, end) = if record.is_encrypted() { (Sectors::ZERO, allocated - room) } else { (room, allocated) };
    apart(flex(&record.flex_devs).into_iter().flatten(), first, end, Inconsistency::Flex)?;
    apart(&cap.allocs, first, end, Inconsistency::CapLength)
}

/// Segments that do not overlap and lie between two sectors.
fn apart<'a>(
    segments: impl IntoIterator<Item = &'a Segment>,
    first: Sectors,
    end: Sectors,
    fault: Inconsistency,
) -> Result<(), Inconsistency> {
    let mut sorted: Vec<&Segment> = segments.into_iter().collect();
    sorted.sort_unstable();
    let mut free = first;
    for segment in sorted {
        unless(segment.length == Sectors::ZERO, Inconsistency::SegmentEmpty)?;
        unless(segment.start < free || segment.end() > end, fault)?;
        free = segment.end();
    }
    Ok(())
}

fn thin(record: &PoolRecord) -> Result<(), Inconsistency> {
    let active = [&record.flex_devs.thin_meta_dev, &record.flex_devs.thin_data_dev, &record.flex_devs.meta_dev];
    unless(active.into_iter().any(Vec::is_empty), Inconsistency::FlexEmpty)?;
    let data: Sectors = record.flex_devs.thin_data_dev.iter().sum();
    let odd = !data.0.is_multiple_of(DATA_BLOCK.0);
    unless(odd || record.thinpool_dev.data_block_size != DATA_BLOCK, Inconsistency::DataBlocks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::layout;
    use crate::engine::stack::{self, LowWater};
    use crate::format::record::{self, CacheTier, Devices};
    use crate::model::device::DeviceNumber;
    use crate::model::dm::Table;
    use crate::model::ids::PoolUuid;
    use crate::model::name::Name;
    use crate::model::pool::IntegritySpec;

    type Sizes = BTreeMap<DevUuid, Sectors>;

    fn id(number: u8) -> DevUuid {
        DevUuid::from_random([number; 16])
    }

    fn sizes() -> Sizes {
        BTreeMap::from([(id(1), Sectors(4_000_000)), (id(2), Sectors(4_000_000))])
    }

    fn record() -> PoolRecord {
        let integrity = IntegritySpec::default();
        let devices: Vec<_> = sizes().into_iter().collect();
        let layout = layout::first(&devices, &integrity, 100).expect("large enough");
        layout.record(&Name::try_from("p").expect("a name"), &integrity, 100)
    }

    /// The same pool as version 1 would have it: nothing kept free, the cap device from 0 on.
    fn old_record() -> PoolRecord {
        let mut record = record();
        record.backstore.data_tier.integrity_spec = None;
        record.backstore.data_tier.blockdev.devs.iter_mut().for_each(|device| device.integrity_meta_allocs.clear());
        let flex = &mut record.flex_devs;
        for list in
            [&mut flex.meta_dev, &mut flex.thin_meta_dev, &mut flex.thin_data_dev, &mut flex.thin_meta_dev_spare]
        {
            list[0].start = list[0].start - CRYPT_RESERVE;
        }
        let length = record.flex_devs.meta_dev[0].end();
        record.backstore.cap.allocs = vec![Segment { start: Sectors::ZERO, length }];
        record.backstore.cap.crypt_meta_allocs.clear();
        record
    }

    fn broken(version: MetadataVersion, change: impl FnOnce(&mut PoolRecord, &mut Sizes)) -> Inconsistency {
        let (mut record, mut sizes) = match version {
            MetadataVersion::V1 => (old_record(), sizes()),
            MetadataVersion::V2 => (record(), sizes()),
        };
        assert_eq!(check(&record, version, &sizes), Ok(()));
        change(&mut record, &mut sizes);
        check(&record, version, &sizes).expect_err("a broken rule")
    }

    fn broken2(change: impl FnOnce(&mut PoolRecord, &mut Sizes)) -> Inconsistency {
        broken(MetadataVersion::V2, change)
    }

    fn data(record: &mut PoolRecord) -> &mut Devices {
        &mut record.backstore.data_tier.blockdev
    }

    #[test]
    fn the_devices_are_those_of_the_record() {
        use Inconsistency as I;
        assert_eq!(
            broken2(|_, sizes| {
                sizes.remove(&id(2));
            }),
            I::DeviceMissing
        );
        assert_eq!(
            broken2(|_, sizes| {
                sizes.insert(id(3), Sectors(9));
            }),
            I::DeviceForeign
        );
        let twice = broken2(|record, _| {
            let again = data(record).devs[0].clone();
            data(record).devs.push(again);
        });
        assert_eq!(twice, I::DeviceTwice);
    }

    #[test]
    fn segments_stay_on_their_device_and_apart() {
        use Inconsistency as I;
        assert_eq!(broken2(|record, _| data(record).allocs.clear()), I::Lists);
        assert_eq!(broken2(|record, _| data(record).allocs[0][0].start = Sectors(8_191)), I::Segments);
        assert_eq!(broken2(|record, _| data(record).allocs[0][1].parent = id(1)), I::Segments);
        assert_eq!(
            broken2(|_, sizes| {
                sizes.insert(id(1), Sectors(3_999_999));
            }),
            I::Segments
        );
        let into_integrity = |record: &mut PoolRecord, _: &mut Sizes| data(record).allocs[0][0].length += Sectors(1);
        assert_eq!(broken2(into_integrity), I::Segments);
        assert_eq!(broken2(|record, _| data(record).allocs[0][1].length = Sectors::ZERO), I::SegmentEmpty);
        assert_eq!(broken2(|record, _| data(record).allocs[0].clear()), I::NothingAllocated);
    }

    #[test]
    fn the_cap_device_is_handed_out_once_and_wholly_accounted_for() {
        use Inconsistency as I;
        assert_eq!(broken2(|record, _| record.backstore.cap.crypt_meta_allocs.clear()), I::CryptRoom);
        assert_eq!(
            broken2(|record, _| {
                record.backstore.cap.allocs.pop();
            }),
            I::CapSum
        );
        assert_eq!(broken2(|record, _| data(record).allocs[0][1].length = Sectors(1)), I::CapLength);
        assert_eq!(broken2(|record, _| record.backstore.cap.allocs[1].start = CRYPT_RESERVE), I::CapLength);
        assert_eq!(broken2(|record, _| record.flex_devs.meta_dev[0].start = Sectors::ZERO), I::Flex);
        let swapped = |record: &mut PoolRecord, _: &mut Sizes| {
            record.flex_devs.thin_meta_dev[0] = record.flex_devs.thin_meta_dev_spare[0];
        };
        assert_eq!(broken2(swapped), I::Flex);
        // What is good for a plain pool lies 17 MiB too far up for an encrypted one.
        assert_eq!(broken2(|record, _| record.features.push("Encryption".into())), I::Flex);
    }

    #[test]
    fn the_thin_pool_has_whole_blocks() {
        use Inconsistency as I;
        assert_eq!(broken2(|record, _| record.thinpool_dev.data_block_size = Sectors(1_024)), I::DataBlocks);
        let odd = |record: &mut PoolRecord, _: &mut Sizes| {
            record.flex_devs.thin_data_dev[0].length = record.flex_devs.thin_data_dev[0].length - Sectors(1);
            record.backstore.cap.allocs[2].length = record.backstore.cap.allocs[2].length - Sectors(1);
        };
        assert_eq!(broken2(odd), I::DataBlocks);
        let empty = |record: &mut PoolRecord, _: &mut Sizes| {
            record.flex_devs.thin_meta_dev.clear();
            record.backstore.cap.allocs.remove(0);
        };
        assert_eq!(broken2(empty), I::FlexEmpty);
    }

    #[test]
    fn a_cache_uses_all_of_its_devices() {
        let add = |record: &mut PoolRecord, sizes: &mut Sizes, length: u64| {
            let segment = DeviceSegment { parent: id(3), start: Sectors(8_192), length: Sectors(length) };
            let device =
                Device { uuid: id(3), integrity_meta_allocs: Vec::new(), user_info: None, hardware_info: None };
            let blockdev = Devices { allocs: vec![vec![segment], Vec::new()], devs: vec![device] };
            record.backstore.cache_tier = Some(CacheTier { blockdev });
            sizes.insert(id(3), Sectors(10_000));
        };
        let (mut record, mut sizes) = (record(), sizes());
        add(&mut record, &mut sizes, 1_808);
        assert_eq!(check(&record, MetadataVersion::V2, &sizes), Ok(()));
        assert_eq!(broken2(|record, sizes| add(record, sizes, 1_807)), Inconsistency::CacheUnused);
        assert_eq!(broken2(|record, sizes| add(record, sizes, 1_809)), Inconsistency::Segments);
    }

    #[test]
    fn version_1_has_one_cap_allocation_that_ends_with_the_last_flex_segment() {
        use Inconsistency as I;
        let broken1 = |change: fn(&mut PoolRecord)| broken(MetadataVersion::V1, |record, _| change(record));
        let room = Segment { start: Sectors::ZERO, length: CRYPT_RESERVE };
        assert_eq!(
            broken(MetadataVersion::V1, |record, _| record.backstore.cap.crypt_meta_allocs = vec![room]),
            I::Version1
        );
        assert_eq!(broken1(|record| record.backstore.cap.allocs.clear()), I::Version1);
        assert_eq!(broken1(|record| record.backstore.cap.allocs[0].start = Sectors(1)), I::Version1);
        assert_eq!(broken1(|record| record.flex_devs.meta_dev[0].start += Sectors(1)), I::CapSum);
        assert_eq!(broken1(|record| record.backstore.cap.allocs[0].length += Sectors(1)), I::CapSum);
    }

    /// The record's JSON with one of its numbers replaced.
    fn with_number(json: &str, which: usize, value: u64) -> String {
        let digit = |c: char| c.is_ascii_digit();
        let starts: Vec<usize> = json
            .char_indices()
            .filter(|(at, c)| digit(*c) && matches!(json.as_bytes()[at - 1], b'[' | b',' | b':'))
            .map(|(at, _)| at)
            .collect();
        let start = starts[which % starts.len()];
        let rest = json[start..].trim_start_matches(digit);
        format!("{}{value}{rest}", &json[..start])
    }

    proptest! {
        #[test]
        fn a_record_with_any_wrong_number_is_refused_or_still_has_sound_tables(
            which: usize, value in prop_oneof![any::<u64>(), 0..5_000_000u64, Just(1 << 47)], old: bool,
        ) {
            let (record, version) =
                if old { (old_record(), MetadataVersion::V1) } else { (record(), MetadataVersion::V2) };
            let json = String::from_utf8(record::encode(&record)).expect("JSON is UTF-8");
            let json = with_number(&json, which, value);
            let Ok(record) = record::decode(json.as_bytes()) else { return Ok(()) };
            if check(&record, version, &sizes()).is_err() {
                return Ok(());
            }
            let numbers = sizes().into_keys().zip(0..).map(|(uuid, minor)| (uuid, DeviceNumber(minor, 8))).collect();
            let pool = PoolUuid::from_random([9; 16]);
            let tables = stack::tables(&record, version, pool, &numbers, LowWater::Setup).expect("a plain pool");
            let bottom = tables[0].1.length();
            prop_assert!(bottom < sizes().values().copied().sum());
            for (device, table) in &tables[1..] {
                let Table::Linear(lines) = table else { continue };
                for line in lines {
                    prop_assert!(line.start + line.length <= bottom, "{} passes its end", device);
                }
            }
        }
    }
}
