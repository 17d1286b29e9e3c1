//! Where everything lies in a new pool: version 2, not encrypted, no cache.
//!
//! From a data device's end the room for an integrity layer is kept free; the rest is handed out from
//! the start, in one order that the record fixes for ever: room for an encryption header, thin
//! metadata, its spare, thin data, metadata volume. A part is left to nobody, so that the thin metadata
//! of a pool that is otherwise full can grow with its limit of filesystems (`size::Initial`): sizes are on
//! record, so to any other daemon that is free space like any other.
//!
//! Invariant: what is laid out passes `engine::check` for devices of these sizes.
//!
//! Deliberately absent: growing. A pool that exists grows by appending to its record (`space`).

use thiserror::Error;

use crate::engine::alloc::{Allocator, append};
use crate::engine::size::{self, CRYPT_RESERVE, DATA_BLOCK, DATA_CHUNK, Initial, MDV};
use crate::format::header::DATA_START;
use crate::format::record::{
    Backstore, Cap, DataTier, Device, DeviceSegment, Devices, FlexDevices, PoolRecord, Segment, ThinPool,
};
use crate::model::dm::ThinFeature;
use crate::model::ids::DevUuid;
use crate::model::name::Name;
use crate::model::pool::IntegritySpec;
use crate::units::Sectors;

/// Everything that the record of a new pool says about sectors.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    /// What is allocated of the data devices, in the order of the cap device's sectors.
    pub data_allocs: Vec<DeviceSegment>,
    /// The data devices in the order given, each with its room for an integrity layer.
    pub devices: Vec<(DevUuid, Vec<Segment>)>,
    /// The pieces of the cap device: thin metadata, spare, thin data, metadata volume.
    pub cap_allocs: Vec<Segment>,
    /// The room for an encryption header.
    pub crypt_meta_allocs: Vec<Segment>,
    /// The same pieces by what lies on them.
    pub flex: FlexDevices,
}

/// The devices are too small for a pool.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum LayoutFault {
    /// One of them is smaller than its metadata and its room for an integrity layer.
    #[error("device {device} has {size}: its metadata and the room for an integrity layer take {wanted}")]
    Device {
        /// Which.
        device: DevUuid,
        /// What it has.
        size: Sectors,
        /// What would be used up before the first sector of data.
        wanted: Sectors,
    },
    /// Together they leave less than one block for data.
    #[error("{wanted} are wanted for the smallest pool and {free} are free on its devices")]
    Pool {
        /// What the smallest pool of these devices would take.
        wanted: Sectors,
        /// What they offer.
        free: Sectors,
    },
}

/// Lays a new pool out on these devices, in this order. Thin data starts with 50 GiB at most
/// (`size::DATA_CHUNK`) however large the devices are; the pool grows when that is used (`grow`).
///
/// # Errors
/// When not even one block would be left for data.
pub fn first(devices: &[(DevUuid, Sectors)], integrity: &IntegritySpec, fs_limit: u64) -> Result<Layout, LayoutFault> {
    first_with(devices, integrity, fs_limit, DATA_CHUNK)
}

/// The same, where thin data starts with so much at most.
///
/// # Errors
/// When not even one block would be left for data.
pub fn first_with(
    devices: &[(DevUuid, Sectors)],
    integrity: &IntegritySpec,
    fs_limit: u64,
    most: Sectors,
) -> Result<Layout, LayoutFault> {
    let (mut allocator, devices) = reserve(devices, integrity)?;
    let free = allocator.free();
    let Initial { meta, data } = Initial::of(free.saturating_sub(CRYPT_RESERVE), fs_limit, most);
    if data == Sectors::ZERO {
        return Err(LayoutFault::Pool { wanted: CRYPT_RESERVE + meta + meta + DATA_BLOCK + MDV, free });
    }
    let wanted = [CRYPT_RESERVE, meta, meta, data, MDV];
    let granted = allocator.allocate(&wanted).expect("the data was sized to what is free");
    let mut data_allocs = Vec::new();
    granted.iter().for_each(|segments| append(&mut data_allocs, segments));

    let mut end = Sectors::ZERO;
    let [crypt, meta, spare, data, mdv] = wanted.map(|length| {
        let start = end;
        end += length;
        Segment { start, length }
    });
    Ok(Layout {
        data_allocs,
        devices,
        cap_allocs: vec![meta, spare, data, mdv],
        crypt_meta_allocs: vec![crypt],
        flex: FlexDevices {
            meta_dev: vec![mdv],
            thin_meta_dev: vec![meta],
            thin_data_dev: vec![data],
            thin_meta_dev_spare: vec![spare],
        },
    })
}

type Reserved = (Allocator, Vec<(DevUuid, Vec<Segment>)>);

fn reserve(devices: &[(DevUuid, Sectors)], integrity: &IntegritySpec) -> Result<Reserved, LayoutFault> {
    let mut allocator = Allocator::default();
    let mut reserved = Vec::with_capacity(devices.len());
    for &(device, size) in devices {
        reserved.push((device, add(&mut allocator, device, size, integrity)?));
    }
    Ok((allocator, reserved))
}

/// The room that a data device of this size keeps for an integrity layer.
///
/// # Errors
/// When it has less.
pub fn room(device: DevUuid, size: Sectors, integrity: &IntegritySpec) -> Result<Vec<Segment>, LayoutFault> {
    add(&mut Allocator::default(), device, size, integrity)
}

fn add(
    allocator: &mut Allocator,
    device: DevUuid,
    size: Sectors,
    integrity: &IntegritySpec,
) -> Result<Vec<Segment>, LayoutFault> {
    allocator.add(device, DATA_START, size);
    let room = size::integrity(size, integrity);
    allocator.reserve_high(device, room).map_err(|_| LayoutFault::Device {
        device,
        size,
        wanted: Sectors(DATA_START.0.saturating_add(room.0)),
    })
}

impl Layout {
    /// The first record of the pool: started, overprovisioning allowed, waiting when out of space.
    /// Nothing is known of the devices yet but their ids.
    pub fn record(&self, name: &Name, integrity: &IntegritySpec, fs_limit: u64) -> PoolRecord {
        let devs = self.devices.iter().map(|(uuid, room)| Device {
            uuid: *uuid,
            integrity_meta_allocs: room.clone(),
            user_info: None,
            hardware_info: None,
        });
        let blockdev = Devices { allocs: vec![self.data_allocs.clone()], devs: devs.collect() };
        let mut record = PoolRecord {
            name: name.as_str().to_owned(),
            backstore: Backstore {
                data_tier: DataTier { blockdev, integrity_spec: Some((*integrity).into()) },
                cap: Cap { allocs: self.cap_allocs.clone(), crypt_meta_allocs: self.crypt_meta_allocs.clone() },
                cache_tier: None,
            },
            flex_devs: self.flex.clone(),
            thinpool_dev: ThinPool {
                data_block_size: DATA_BLOCK,
                feature_args: None,
                fs_limit: Some(fs_limit),
                enable_overprov: Some(true),
            },
            started: Some(true),
            features: Vec::new(),
            last_reencrypt: None,
            files: false,
            destroying: false,
        };
        // New blocks are zeroed, so that the log of a new filesystem need not be written, and nobody reads
        // what the devices held before. What that costs was measured (README).
        record.set_thin_features(&[ThinFeature::NoDiscardPassdown]);
        record
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::check::check;
    use crate::model::pool::{MetadataVersion, TagSpec};

    fn id(number: u8) -> DevUuid {
        DevUuid::from_random([number; 16])
    }

    fn starts(layout: &Layout) -> Vec<u64> {
        layout.cap_allocs.iter().map(|segment| segment.start.0).collect()
    }

    #[test]
    fn the_published_examples_hold() {
        let spec = IntegritySpec::default();
        let [one, ten, tera] = [2_097_152, 20_971_520, 2_147_483_648].map(Sectors);
        let on = |device, start, length| DeviceSegment { parent: id(device), start, length };
        // The last number is what is left to metadata that grows, and published as a part of the data.
        for (sizes, mut expected_starts, mut lengths, room) in [
            (vec![one], [34_816, 43_008, 51_200, 743_424], vec![1_792_000], 20_480),
            (vec![ten], [34_816, 47_104, 59_392, 19_322_880], vec![20_371_456], 114_688),
            (vec![ten, ten], [34_816, 53_248, 71_680, 39_696_384], vec![20_373_496, 20_371_464], 114_688),
            (vec![tera], [34_816, 567_296, 1_099_776, 105_957_376], vec![107_005_952], 0),
        ] {
            expected_starts[3] -= room;
            *lengths.last_mut().expect("a device") -= room;
            let devices: Vec<_> = (1..).map(id).zip(sizes).collect();
            let layout = first(&devices, &spec, 100).expect("large enough");
            assert_eq!(starts(&layout), expected_starts);
            let expected = (1..).zip(lengths).map(|(device, length)| on(device, DATA_START, Sectors(length)));
            assert_eq!(layout.data_allocs, expected.collect::<Vec<_>>());
        }
        let layout = first(&[(id(1), one)], &spec, 100).expect("large enough");
        let room = Segment { start: Sectors(1_802_232), length: Sectors(294_920) };
        assert_eq!(layout.devices, [(id(1), vec![room])]);
    }

    #[test]
    fn too_little_space_is_refused_with_numbers() {
        let spec = IntegritySpec { tag: TagSpec::B0, journal: Sectors(0), superblock: false };
        // 34816 + 2 × 8192 + 2048 + 1048576 sectors and the metadata of the device.
        let least = Sectors(1_101_824 + 8_192);
        let layout = first(&[(id(1), least)], &spec, 100).expect("one block of data");
        assert_eq!(layout.flex.thin_data_dev[0].length, DATA_BLOCK);
        let refused = first(&[(id(1), least - Sectors(1))], &spec, 100);
        assert_eq!(refused, Err(LayoutFault::Pool { wanted: Sectors(1_101_824), free: Sectors(1_101_823) }));
        assert_eq!(first(&[], &spec, 100), Err(LayoutFault::Pool { wanted: Sectors(1_101_824), free: Sectors(0) }));
    }

    #[test]
    fn a_journal_larger_than_a_device_is_refused() {
        let size = Sectors(2_097_152);
        let huge = IntegritySpec { journal: Sectors(u64::MAX), ..IntegritySpec::default() };
        let refused = first(&[(id(1), size)], &huge, 100);
        assert_eq!(refused, Err(LayoutFault::Device { device: id(1), size, wanted: Sectors(u64::MAX) }));
    }

    proptest! {
        #[test]
        fn what_is_laid_out_is_consistent_and_whole(
            sizes in prop::collection::vec(2_097_152..400_000_000u64, 1..6),
            tag in prop::sample::select(vec![TagSpec::B0, TagSpec::B32, TagSpec::B512]),
            journal in 0..1_000u64, superblock: bool, fs_limit in 0..10_000u64,
        ) {
            let integrity = IntegritySpec { tag, journal: Sectors(journal * 8), superblock };
            let devices: Vec<_> = (1..).map(id).zip(sizes.into_iter().map(Sectors)).collect();
            let layout = first(&devices, &integrity, fs_limit).expect("a gibibyte is enough");
            let name = Name::try_from("pool").expect("a name");
            let record = layout.record(&name, &integrity, fs_limit);
            let sizes: BTreeMap<_, _> = devices.iter().copied().collect();
            prop_assert_eq!(check(&record, MetadataVersion::V2, &sizes), Ok(()));
            prop_assert_eq!(&record.flex_devs.thin_meta_dev[0].length, &record.flex_devs.thin_meta_dev_spare[0].length);
            let of_devices: Sectors = layout.data_allocs.iter().sum();
            prop_assert_eq!(layout.cap_allocs.last().map(Segment::end), Some(of_devices));
            prop_assert!(layout.flex.thin_data_dev[0].length <= size::DATA_CHUNK);
            for (uuid, room) in &layout.devices {
                let end = room.first().map_or(sizes[uuid], Segment::end);
                prop_assert_eq!(end, sizes[uuid]);
            }
        }
    }
}
