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

use std::iter::Sum;

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

/// How many sectors there are in all.
impl<'a> Sum<&'a Segment> for Sectors {
    fn sum<I: Iterator<Item = &'a Segment>>(all: I) -> Self {
        all.map(|segment| segment.length).sum()
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

/// How many sectors there are in all.
impl<'a> Sum<&'a DeviceSegment> for Sectors {
    fn sum<I: Iterator<Item = &'a DeviceSegment>>(all: I) -> Self {
        all.map(|segment| segment.length).sum()
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = concat!(
        r#"{"name":"p1","backstore":{"data_tier":{"blockdev":{"allocs":[[{"#,
        r#""parent":"b7d1c0f4-7a5e-4a8a-8f0d-2f4f1f7ac111","start":8192,"length":1792000}]],"#,
        r#""devs":[{"uuid":"b7d1c0f4-7a5e-4a8a-8f0d-2f4f1f7ac111","#,
        r#""integrity_meta_allocs":[[1802232,294920]]}]},"integrity_spec":{"tag_spec":"512b","journal_size":262144,"#,
        r#""block_size":4096,"allocate_superblock":true}},"cap":{"allocs":[[34816,8192],[43008,8192],[51200,692224],"#,
        r#"[743424,1048576]],"crypt_meta_allocs":[[0,34816]]}},"flex_devs":{"meta_dev":[[743424,1048576]],"#,
        r#""thin_meta_dev":[[34816,8192]],"thin_data_dev":[[51200,692224]],"thin_meta_dev_spare":[[43008,8192]]},"#,
        r#""thinpool_dev":{"data_block_size":2048,"feature_args":["no_discard_passdown","skip_block_zeroing"],"#,
        r#""fs_limit":100,"enable_overprov":true},"started":true}"#,
    );

    fn example() -> PoolRecord {
        decode(EXAMPLE.as_bytes()).expect("the published example")
    }

    fn text(record: &PoolRecord) -> String {
        String::from_utf8(encode(record)).expect("JSON is UTF-8")
    }

    #[test]
    fn the_published_example_comes_back_byte_by_byte() {
        assert_eq!(text(&example()), EXAMPLE);
        assert_eq!(example().thin_features(), [ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing]);
        assert_eq!(example().integrity(), IntegritySpec::default());
    }

    #[test]
    fn the_published_region_header_belongs_to_the_published_example() {
        use crate::format::mda::{self, HEADER_BYTES, WallStamp};
        let time = WallStamp { seconds: 1_763_697_600, nanoseconds: 123_456_789 };
        let region = mda::encode(EXAMPLE.as_bytes(), time).expect("it fits");
        let hex: String = region[..HEADER_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(&hex[16..], "f602000000000000c0e31f690000000015cd5b0701010000");
        assert_eq!(&hex[..16], "c319209fda79ae1e");
    }

    #[test]
    fn keys_of_ours_stand_at_the_end_and_only_when_set() {
        let mut record = example();
        record.files = true;
        record.destroying = true;
        assert!(text(&record).ends_with(r#","started":true,"files":true,"destroying":true}"#));
        assert_eq!(decode(&encode(&record)), Ok(record));
    }

    #[test]
    fn optional_keys_have_their_places() {
        let mut record = example();
        record.features = vec!["Encryption".into(), "ClevisEnabled".into()];
        record.last_reencrypt = Some(7);
        record.backstore.data_tier.blockdev.devs[0].user_info = Some("tag".into());
        record.backstore.data_tier.blockdev.devs[0].hardware_info = Some("wwn".into());
        let devs = Vec::new();
        record.backstore.cache_tier =
            Some(CacheTier { blockdev: Devices { allocs: vec![Vec::new(), Vec::new()], devs } });
        let json = text(&record);
        assert!(json.contains(r#"[[1802232,294920]],"user_info":"tag","hardware_info":"wwn"}]},"integrity_spec""#));
        assert!(json.contains(r#"[[0,34816]]},"cache_tier":{"blockdev":{"allocs":[[],[]],"devs":[]}}},"flex_devs""#));
        assert!(json.ends_with(r#""started":true,"features":["Encryption","ClevisEnabled"],"last_reencrypt":7}"#));
        assert!(record.is_encrypted() && !example().is_encrypted());
        assert_eq!(decode(json.as_bytes()), Ok(record));
    }

    #[test]
    fn what_an_old_record_leaves_out_has_a_meaning_and_stays_out() {
        let old = EXAMPLE
            .replace(r#","started":true"#, "")
            .replace(r#","feature_args":["no_discard_passdown","skip_block_zeroing"]"#, "")
            .replace(r#","fs_limit":100,"enable_overprov":true"#, "");
        let record = decode(old.as_bytes()).expect("an old record");
        assert!(record.started() && record.overprovisioning());
        assert_eq!((record.fs_limit(3), record.fs_limit(300)), (100, 300));
        assert_eq!(record.thin_features(), [ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing]);
        assert_eq!(text(&record), old);
    }

    #[test]
    fn unknown_keys_and_other_spellings_of_an_id_are_accepted() {
        let other = EXAMPLE
            .replace(r#"{"name":"p1","#, r#"{"colour":{"deep":[1,null]},"name":"p1","#)
            .replace("b7d1c0f4-7a5e-4a8a-8f0d-2f4f1f7ac111", "b7d1c0f47a5e4a8a8f0d2f4f1f7ac111");
        assert_eq!(decode(other.as_bytes()), Ok(example()));
    }

    #[test]
    fn what_is_not_a_record_is_refused_with_the_place() {
        let fault = |from: &str, to: &str| decode(EXAMPLE.replacen(from, to, 1).as_bytes()).expect_err("refused");
        assert_eq!(decode(b"{"), Err(RecordFault::Syntax { column: 1 }));
        assert!(matches!(fault("{\"name\"", "{name"), RecordFault::Syntax { column: 2 }));
        assert!(matches!(fault(r#""name":"p1","#, ""), RecordFault::Shape { .. }));
        assert!(matches!(fault("512b", "513b"), RecordFault::Shape { .. }));
        assert!(matches!(fault("[0,34816]", "[0]"), RecordFault::Shape { .. }));
        assert!(matches!(fault("[0,34816]", "[0,34816,1]"), RecordFault::Syntax { .. }));
        assert!(matches!(fault("[0,34816]", "[0,-1]"), RecordFault::Shape { .. }));
        // Numbers that no device has: sums over a record must not pass 64 bits.
        for huge in ["140737488355329", "18446744073709551615"] {
            assert!(matches!(fault("[0,34816]", &format!("[0,{huge}]")), RecordFault::Shape { .. }));
            assert!(matches!(fault(r#""start":8192"#, &format!(r#""start":{huge}"#)), RecordFault::Shape { .. }));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut record = example();
        record.name = "x".repeat(254) + "ä";
        record.backstore.data_tier.blockdev.devs[0].user_info = Some("ä".repeat(200));
        let written = decode(&encode(&record)).expect("a record");
        assert_eq!(written.name, "x".repeat(254));
        assert_eq!(written.backstore.data_tier.blockdev.devs[0].user_info, Some("ä".repeat(127)));
    }

    #[test]
    fn features_are_recorded_in_the_order_of_their_names() {
        let mut record = example();
        let all = [ThinFeature::SkipBlockZeroing, ThinFeature::ErrorIfNoSpace, ThinFeature::NoDiscardPassdown];
        record.set_thin_features(&all);
        assert!(text(&record).contains(r#"["error_if_no_space","no_discard_passdown","skip_block_zeroing"]"#));
        assert_eq!(record.thin_features().len(), 3);
    }

    proptest! {
        #[test]
        fn a_record_with_one_byte_changed_is_read_or_refused(at in 0..EXAMPLE.len(), byte: u8) {
            let mut bytes = EXAMPLE.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(record) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&record)), Ok(record));
            }
        }
    }
}
