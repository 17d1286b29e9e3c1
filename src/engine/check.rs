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

fn sum<'a>(segments: impl IntoIterator<Item = &'a Segment>) -> Sectors {
    segments.into_iter().map(|segment| segment.length).sum()
}

fn allocated(record: &PoolRecord) -> Sectors {
    record.backstore.data_tier.blockdev.allocs.iter().flatten().map(|segment| segment.length).sum()
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
    let handed_out = sum(&cap.allocs);
    let used = sum(flex(&record.flex_devs).into_iter().flatten());
    unless(used != handed_out, Inconsistency::CapSum)?;
    let room = sum(&cap.crypt_meta_allocs);
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
    let odd = !sum(&record.flex_devs.thin_data_dev).0.is_multiple_of(DATA_BLOCK.0);
    unless(odd || record.thinpool_dev.data_block_size != DATA_BLOCK, Inconsistency::DataBlocks)
}
