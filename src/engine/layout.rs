//! Where everything lies in a new pool: version 2, not encrypted, no cache.
//!
//! From a data device's end the room for an integrity layer is kept free; the rest is handed out from
//! the start, in one order that the record fixes for ever: room for an encryption header, thin
//! metadata, its spare, thin data, metadata volume.
//!
//! Invariant: what is laid out passes `engine::check` for devices of these sizes.
//!
//! Deliberately absent: growing. A pool that exists grows by `alloc` and by appending to its record.

use thiserror::Error;

use crate::engine::alloc::{Allocator, append};
use crate::engine::size::{self, CRYPT_RESERVE, DATA_BLOCK, Initial, MDV};
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
/// (`size::DATA_CHUNK`) however large the devices are; the pool grows when that is used.
///
/// # Errors
/// When not even one block would be left for data.
pub fn first(devices: &[(DevUuid, Sectors)], integrity: &IntegritySpec, fs_limit: u64) -> Result<Layout, LayoutFault> {
    let (mut allocator, devices) = reserve(devices, integrity)?;
    let free = allocator.free();
    let Initial { meta, data } = Initial::of(free.saturating_sub(CRYPT_RESERVE), fs_limit);
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
        allocator.add(device, DATA_START, size);
        let room = size::integrity(size, integrity);
        let taken = allocator.reserve_high(device, room).map_err(|_| LayoutFault::Device {
            device,
            size,
            wanted: Sectors(DATA_START.0.saturating_add(room.0)),
        })?;
        reserved.push((device, taken));
    }
    Ok((allocator, reserved))
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
        record.set_thin_features(&[ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing]);
        record
    }
}
