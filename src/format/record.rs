//! A pool's record: the JSON that describes everything below its filesystems.
//!
//! The structs have the names, the nesting and the order of the JSON's keys, because other daemons
//! read what we write and the golden tests compare bytes. What a record leaves out stays `None` or
//! empty here, so decoding and encoding gives the same bytes; the meaning of an absent key is a
//! method (`fs_limit`, `overprovisioning`, `started`, `thin_features`).
//!
//! Two keys at the end are ours, and others ignore them: `files` and `destroying`.
//!
//! Deliberately absent: whether a record makes sense. That is `engine::check`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::limits::{NAME_BYTES_MAX, SECTORS_MAX};
use crate::model::dm::ThinFeature;
use crate::model::ids::DevUuid;
use crate::model::pool::{IntegritySpec, TagSpec};
use crate::units::Sectors;

/// Filesystems a pool may have where its record does not say.
pub const FS_LIMIT_DEFAULT: u64 = 100;

/// A run of sectors of the cap device, or of one device. On disk the pair `[start,length]`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "(Sectors, Sectors)", into = "(Sectors, Sectors)")]
pub struct Segment {
    /// Its first sector.
    pub start: Sectors,
    /// How many.
    pub length: Sectors,
}

impl Segment {
    /// The first sector behind it.
    pub fn end(&self) -> Sectors {
        self.start + self.length
    }
}

impl From<Segment> for (Sectors, Sectors) {
    fn from(segment: Segment) -> Self {
        (segment.start, segment.length)
    }
}

impl TryFrom<(Sectors, Sectors)> for Segment {
    type Error = Huge;

    fn try_from((start, length): (Sectors, Sectors)) -> Result<Self, Huge> {
        Ok(Self { start: believed(start)?, length: believed(length)? })
    }
}

/// A number of sectors that no device has.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{0} are more than any device has")]
pub struct Huge(Sectors);

fn believed(sectors: Sectors) -> Result<Sectors, Huge> {
    if sectors > SECTORS_MAX { Err(Huge(sectors)) } else { Ok(sectors) }
}

pub(super) fn bounded<'de, D: Deserializer<'de>>(from: D) -> Result<Sectors, D::Error> {
    believed(Sectors::deserialize(from)?).map_err(serde::de::Error::custom)
}

pub(super) fn bounded_option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Sectors>, D::Error> {
    let sectors = Option::<Sectors>::deserialize(from)?;
    sectors.map(believed).transpose().map_err(serde::de::Error::custom)
}

/// A run of sectors of one of the pool's devices.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DeviceSegment {
    /// The device.
    pub parent: DevUuid,
    /// Its first sector there.
    #[serde(deserialize_with = "bounded")]
    pub start: Sectors,
    /// How many.
    #[serde(deserialize_with = "bounded")]
    pub length: Sectors,
}

impl DeviceSegment {
    /// The first sector behind it.
    pub fn end(&self) -> Sectors {
        self.start + self.length
    }

    /// The same without the device.
    pub const fn segment(&self) -> Segment {
        Segment { start: self.start, length: self.length }
    }
}

/// The whole record.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// The pool's name, as found; cut at 255 bytes when written.
    #[serde(serialize_with = "cut")]
    pub name: String,
    /// Devices and what is allocated of them.
    pub backstore: Backstore,
    /// What lies on the cap device.
    pub flex_devs: FlexDevices,
    /// The thin pool.
    pub thinpool_dev: ThinPool,
    /// False only in the save that stops the pool; see `started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
    /// `Encryption` and the like; see `is_encrypted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// When the pool was last encrypted anew, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reencrypt: Option<u64>,
    /// Ours: regular files stand in for devices.
    #[serde(default, skip_serializing_if = "is_false")]
    pub files: bool,
    /// Ours: the pool is being destroyed; whoever finds it goes on with that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub destroying: bool,
}

/// Everything up to the cap device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Backstore {
    /// The devices that hold data.
    pub data_tier: DataTier,
    /// The cap device.
    pub cap: Cap,
    /// The devices that cache it, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_tier: Option<CacheTier>,
}

/// The data tier.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct DataTier {
    /// Devices and allocations.
    pub blockdev: Devices,
    /// Room kept for an integrity layer: version 2 always, version 1 never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity_spec: Option<Integrity>,
}

/// The cache tier.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct CacheTier {
    /// Devices and allocations: first list the cache's data, second its metadata.
    pub blockdev: Devices,
}

/// Devices of a tier, and what is allocated of them.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Devices {
    /// For each device that lies on the tier its segments, in order. A data tier has one list.
    pub allocs: Vec<Vec<DeviceSegment>>,
    /// In the order in which they were added, which is the order of allocation.
    pub devs: Vec<Device>,
}

/// A device of the pool.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Which.
    pub uuid: DevUuid,
    /// Space kept free for an integrity layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub integrity_meta_allocs: Vec<Segment>,
    /// The user's tag; cut at 255 bytes when written.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "cut_option")]
    pub user_info: Option<String>,
    /// A hardware identifier; cut at 255 bytes when written.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "cut_option")]
    pub hardware_info: Option<String>,
}

/// How the room for an integrity layer is computed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Integrity {
    /// Size of a tag.
    pub tag_spec: Tag,
    /// Sectors of journal.
    #[serde(deserialize_with = "bounded")]
    pub journal_size: Sectors,
    /// Bytes a tag covers: 4096.
    pub block_size: u64,
    /// Whether there is room for a superblock.
    pub allocate_superblock: bool,
}

/// The size of a tag as the record spells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Tag {
    /// None.
    #[serde(rename = "0b")]
    B0,
    /// 32 bits.
    #[serde(rename = "32b")]
    B32,
    /// 512 bits.
    #[serde(rename = "512b")]
    B512,
}

/// Bytes that an integrity tag covers.
pub const INTEGRITY_BLOCK_BYTES: u64 = 4096;

impl From<IntegritySpec> for Integrity {
    fn from(spec: IntegritySpec) -> Self {
        let tag_spec = match spec.tag {
            TagSpec::B0 => Tag::B0,
            TagSpec::B32 => Tag::B32,
            TagSpec::B512 => Tag::B512,
        };
        Self {
            tag_spec,
            journal_size: spec.journal,
            block_size: INTEGRITY_BLOCK_BYTES,
            allocate_superblock: spec.superblock,
        }
    }
}

impl From<Integrity> for IntegritySpec {
    fn from(recorded: Integrity) -> Self {
        let tag = match recorded.tag_spec {
            Tag::B0 => TagSpec::B0,
            Tag::B32 => TagSpec::B32,
            Tag::B512 => TagSpec::B512,
        };
        Self { tag, journal: recorded.journal_size, superblock: recorded.allocate_superblock }
    }
}

/// The cap device, in its own sectors.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Cap {
    /// What the flex devices got. Version 1: one piece; version 2: one for each request ever made.
    pub allocs: Vec<Segment>,
    /// Version 2: room for an encryption header, `[[0,34816]]`. Version 1: absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crypt_meta_allocs: Vec<Segment>,
}

/// The linear devices on the cap device.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct FlexDevices {
    /// The metadata volume.
    pub meta_dev: Vec<Segment>,
    /// Metadata of the thin pool.
    pub thin_meta_dev: Vec<Segment>,
    /// Data of the thin pool.
    pub thin_data_dev: Vec<Segment>,
    /// Room to repair the thin pool's metadata into.
    pub thin_meta_dev_spare: Vec<Segment>,
}

/// The thin pool.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ThinPool {
    /// Sectors of a data block: 2048.
    #[serde(deserialize_with = "bounded")]
    pub data_block_size: Sectors,
    /// Sorted; see `thin_features`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_args: Option<Vec<String>>,
    /// See `fs_limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_limit: Option<u64>,
    /// See `overprovisioning`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_overprov: Option<bool>,
}

impl PoolRecord {
    /// Whether the pool is to be set up when it is found. Old records do not say: it is.
    pub fn started(&self) -> bool {
        self.started.unwrap_or(true)
    }

    /// How many filesystems the pool may have; it has `present` now.
    pub fn fs_limit(&self, present: u64) -> u64 {
        self.thinpool_dev.fs_limit.unwrap_or(FS_LIMIT_DEFAULT.max(present))
    }

    /// Whether the sum of filesystem sizes may pass the data space. Old records do not say: it may.
    pub fn overprovisioning(&self) -> bool {
        self.thinpool_dev.enable_overprov.unwrap_or(true)
    }

    /// How the room for an integrity layer is computed. Where the record does not say: by default.
    pub fn integrity(&self) -> IntegritySpec {
        self.backstore.data_tier.integrity_spec.map(IntegritySpec::from).unwrap_or_default()
    }

    /// The thin pool's features, sorted. Old records do not say: it waits for space.
    pub fn thin_features(&self) -> Vec<ThinFeature> {
        let all = [ThinFeature::ErrorIfNoSpace, ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];
        let Some(recorded) = &self.thinpool_dev.feature_args else { return all[1..].to_vec() };
        all.into_iter().filter(|feature| recorded.iter().any(|text| text == feature.as_str())).collect()
    }

    /// Puts the thin pool's features on record, in the order of their names.
    pub fn set_thin_features(&mut self, features: &[ThinFeature]) {
        let mut sorted = features.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        self.thinpool_dev.feature_args = Some(sorted.into_iter().map(|feature| feature.as_str().to_owned()).collect());
    }

    /// Whether the pool has an encryption layer above its devices (version 2).
    pub fn is_encrypted(&self) -> bool {
        self.features.iter().any(|feature| feature == "Encryption")
    }

    /// All devices, those of the data tier first.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        let cache = self.backstore.cache_tier.iter().flat_map(|tier| &tier.blockdev.devs);
        self.backstore.data_tier.blockdev.devs.iter().chain(cache)
    }
}

/// Bytes that are not a record. The column counts bytes from 1.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RecordFault {
    /// Not JSON at all, or cut off.
    #[error("it is not JSON, from byte {column} on")]
    Syntax {
        /// Where.
        column: usize,
    },
    /// JSON, but a key is missing or has a value that cannot be.
    #[error("a key is missing or has a value that cannot be, at byte {column}")]
    Shape {
        /// Where.
        column: usize,
    },
}

impl RecordFault {
    pub(super) fn from_json(error: &serde_json::Error) -> Self {
        let column = error.column();
        if error.is_data() { Self::Shape { column } } else { Self::Syntax { column } }
    }
}

/// The record as bytes: compact, keys in order.
pub fn encode(record: &PoolRecord) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record has only string keys and finite numbers")
}

/// Reads a record. Unknown keys are ignored.
///
/// # Errors
/// When the bytes are not a record.
pub fn decode(json: &[u8]) -> Result<PoolRecord, RecordFault> {
    serde_json::from_slice(json).map_err(|error| RecordFault::from_json(&error))
}

fn cut<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text[..text.floor_char_boundary(NAME_BYTES_MAX)])
}

fn cut_option<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    match text {
        Some(text) => cut(text, to),
        None => to.serialize_none(),
    }
}

fn is_false(value: &bool) -> bool {
    !value
}
