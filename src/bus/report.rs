//! Reports: what is known of all pools as JSON, for people and for tools that keep what they are told.
//!
//! A released daemon has two forms, one for its simulator and one for real devices. Here is one with the keys of
//! both: a pool has its UUID under both names. A pool that is stopped has its devices and no more, because what it
//! holds stands in metadata that nobody reads while it is stopped.
//!
//! Invariant: a report says what signals have said: both come from the tree. Deliberately absent: keys and anything
//! about encryption, because reports are open to everybody.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Serialize, Serializer};

use crate::bus::tree::Tree;
use crate::model::device::{BlockSizes, DeviceView, Tier};
use crate::model::filesystem::FilesystemView;
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::{PoolView, StoppedDevice, StoppedPoolView};
use crate::units::{Bytes, Sectors};

/// The state of the whole daemon.
pub fn engine_state(tree: &Tree) -> String {
    let pools = tree.pools().map(|pool| Pool::new(tree, pool)).collect();
    json(&EngineState { partially_constructed_pools: [], pools, stopped: Stopped::new(tree) })
}

/// What is known of pools that do not run.
pub fn stopped_pools(tree: &Tree) -> String {
    json(&Stopped::new(tree))
}

fn json(report: &impl Serialize) -> String {
    serde_json::to_string(report).expect("a report has only string keys and finite numbers")
}

// ---- the whole ---------------------------------------------------------------------------------

#[derive(Serialize)]
struct EngineState<'a> {
    /// A pool runs as a whole or is stopped.
    partially_constructed_pools: [(); 0],
    pools: Vec<Pool<'a>>,
    #[serde(flatten)]
    stopped: Stopped<'a>,
}

/// The two maps are there where they say something.
#[derive(Serialize)]
struct Stopped<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    name_to_pool_uuid_map: BTreeMap<&'a str, Pools>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    path_to_ids_map: BTreeMap<&'a str, (PoolUuid, DevUuid)>,
    stopped_pools: Vec<StoppedPool<'a>>,
}

/// The pools of one name: stopped ones may share it.
#[derive(Serialize)]
#[serde(untagged)]
enum Pools {
    One(PoolUuid),
    Several(Vec<PoolUuid>),
}

impl<'a> Stopped<'a> {
    fn new(tree: &'a Tree) -> Self {
        let all = &tree.manager().stopped;
        let mut names: BTreeMap<&str, Vec<PoolUuid>> = BTreeMap::new();
        for pool in all.values() {
            if let Some(name) = &pool.name {
                names.entry(name.as_str()).or_default().push(pool.uuid);
            }
        }
        let one = |pools: Vec<PoolUuid>| if let [pool] = pools[..] { Pools::One(pool) } else { Pools::Several(pools) };
        let paths = |pool: &'a StoppedPoolView| {
            pool.devices.iter().map(|device| (device.devnode.as_str(), (pool.uuid, device.uuid)))
        };
        Self {
            name_to_pool_uuid_map: names.into_iter().map(|(name, pools)| (name, one(pools))).collect(),
            path_to_ids_map: all.values().flat_map(paths).collect(),
            stopped_pools: all.values().map(StoppedPool::new).collect(),
        }
    }
}

// ---- a running pool ----------------------------------------------------------------------------

#[derive(Serialize)]
struct Pool<'a> {
    available_actions: &'static str,
    blockdevs: Tiers<'a>,
    filesystems: Vec<Filesystem<'a>>,
    fs_limit: u64,
    name: &'a str,
    pool_uuid: PoolUuid,
    uuid: PoolUuid,
}

#[derive(Serialize)]
struct Tiers<'a> {
    cachedevs: Vec<Device<'a>>,
    datadevs: Vec<Device<'a>>,
}

#[derive(Serialize)]
struct Device<'a> {
    #[serde(serialize_with = "block_sizes")]
    blksizes: BlockSizes,
    /// Whose pool runs is in use.
    in_use: bool,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown_if")]
    new_size: Option<Sectors>,
    path: &'a str,
    #[serde(serialize_with = "shown")]
    size: Sectors,
    uuid: DevUuid,
}

#[derive(Serialize)]
struct Filesystem<'a> {
    name: &'a str,
    #[serde(serialize_with = "shown_or_not_set")]
    origin: Option<FsUuid>,
    #[serde(serialize_with = "shown")]
    size: Sectors,
    #[serde(serialize_with = "shown_or_not_set")]
    size_limit: Option<Sectors>,
    #[serde(serialize_with = "shown_or_unavailable")]
    used: Option<Bytes>,
    uuid: FsUuid,
}

impl<'a> Pool<'a> {
    fn new(tree: &'a Tree, pool: &'a PoolView) -> Self {
        let tier = |tier| tree.devices_of(pool.uuid).filter(move |device| device.tier == tier).map(Device::new);
        Self {
            available_actions: pool.availability.as_str(),
            blockdevs: Tiers { cachedevs: tier(Tier::Cache).collect(), datadevs: tier(Tier::Data).collect() },
            filesystems: tree.filesystems_of(pool.uuid).map(Filesystem::new).collect(),
            fs_limit: pool.fs_limit,
            name: pool.name.as_str(),
            pool_uuid: pool.uuid,
            uuid: pool.uuid,
        }
    }
}

impl<'a> Device<'a> {
    fn new(device: &'a DeviceView) -> Self {
        let DeviceView { physical_path, size, new_size, blocks, uuid, .. } = device;
        Self { blksizes: *blocks, in_use: true, new_size: *new_size, path: physical_path, size: *size, uuid: *uuid }
    }
}

impl<'a> Filesystem<'a> {
    fn new(filesystem: &'a FilesystemView) -> Self {
        let record = &filesystem.record;
        Self {
            name: record.name.as_str(),
            origin: record.origin,
            size: record.size,
            size_limit: record.size_limit,
            used: filesystem.used,
            uuid: record.uuid,
        }
    }
}

// ---- a stopped pool ----------------------------------------------------------------------------

#[derive(Serialize)]
struct StoppedPool<'a> {
    devices: Vec<FoundDevice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    pool_uuid: PoolUuid,
}

/// A device by number and path. A regular file has its file system and its inode for numbers.
#[derive(Serialize)]
struct FoundDevice<'a> {
    device_uuid: DevUuid,
    devnode: &'a str,
    major: u64,
    minor: u64,
    pool_uuid: PoolUuid,
}

impl<'a> StoppedPool<'a> {
    fn new(pool: &'a StoppedPoolView) -> Self {
        let device = |device: &'a StoppedDevice| FoundDevice {
            device_uuid: device.uuid,
            devnode: &device.devnode,
            major: device.number.0,
            minor: device.number.1,
            pool_uuid: pool.uuid,
        };
        Self {
            devices: pool.devices.iter().map(device).collect(),
            name: pool.name.as_ref().map(Name::as_str),
            pool_uuid: pool.uuid,
        }
    }
}

// ---- values ------------------------------------------------------------------------------------

/// `2097152 sectors`, `1073741824 bytes`, `a47ddfac-dd5a-434c-bc79-76a67463e47a`.
fn shown<S: Serializer>(value: &impl Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn shown_if<S: Serializer>(value: &Option<Sectors>, to: S) -> Result<S::Ok, S::Error> {
    or("", value, to)
}

fn shown_or_not_set<S: Serializer>(value: &Option<impl Display>, to: S) -> Result<S::Ok, S::Error> {
    or("Not set", value, to)
}

fn shown_or_unavailable<S: Serializer>(value: &Option<Bytes>, to: S) -> Result<S::Ok, S::Error> {
    or("Unavailable", value, to)
}

fn or<S: Serializer>(absent: &str, value: &Option<impl Display>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_str(absent),
    }
}

fn block_sizes<S: Serializer>(blocks: &BlockSizes, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("logical: {} bytes, physical: {} bytes", blocks.logical, blocks.physical))
}
