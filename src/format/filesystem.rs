//! A filesystem's record: one small JSON file in the folder `filesystems` of the metadata volume.
//!
//! Invariant: the file is called after the UUID inside it, so a record is found without reading
//! the others.
//!
//! Deliberately absent: files. Writing aside, syncing and renaming is the shard's work.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::format::record::{RecordFault, bounded, bounded_option};
use crate::limits::THIN_ID_MAX;
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, ThinId};
use crate::model::name::{Name, NameFault};
use crate::units::Sectors;

const SUFFIX: &str = ".json";

/// The keys, in their order.
#[derive(Serialize, Deserialize)]
struct OnDisk<'a> {
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    uuid: FsUuid,
    thin_id: ThinId,
    #[serde(deserialize_with = "bounded")]
    size: Sectors,
    created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded_option")]
    fs_size_limit: Option<Sectors>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<FsUuid>,
    #[serde(default)]
    merge: bool,
}

/// Why a file is not a filesystem's record.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum FilesystemFault {
    /// It has another form.
    #[error(transparent)]
    Form(#[from] RecordFault),
    /// Its name is not one.
    #[error(transparent)]
    Name(#[from] NameFault),
    /// Thin ids have 24 bits.
    #[error("it names thin volume {0}: {THIN_ID_MAX} is the last")]
    ThinId(ThinId),
}

/// The name of the file that holds the record of this filesystem.
pub fn file_name(filesystem: FsUuid) -> String {
    filesystem.simple() + SUFFIX
}

/// Whose record a file of this name holds; `None` for a name that is not a record's (a leftover
/// `.temp`, say).
pub fn uuid_of(file: &str) -> Option<FsUuid> {
    let uuid: FsUuid = file.strip_suffix(SUFFIX)?.parse().ok()?; // Another form is not an error here.
    (file_name(uuid) == file).then_some(uuid)
}

/// The record as bytes.
pub fn encode(record: &FilesystemRecord) -> Vec<u8> {
    let on_disk = OnDisk {
        name: record.name.as_str().into(),
        uuid: record.uuid,
        thin_id: record.thin_id,
        size: record.size,
        created: record.created,
        fs_size_limit: record.size_limit,
        origin: record.origin,
        merge: record.merge,
    };
    serde_json::to_vec(&on_disk).expect("a record has only string keys and finite numbers")
}

/// Reads a record. Unknown keys are ignored.
///
/// # Errors
/// When the bytes are not one.
pub fn decode(json: &[u8]) -> Result<FilesystemRecord, FilesystemFault> {
    let on_disk: OnDisk<'_> = serde_json::from_slice(json).map_err(|error| RecordFault::from_json(&error))?;
    if on_disk.thin_id.0 > THIN_ID_MAX {
        return Err(FilesystemFault::ThinId(on_disk.thin_id));
    }
    Ok(FilesystemRecord {
        name: Name::try_from(&*on_disk.name)?,
        uuid: on_disk.uuid,
        thin_id: on_disk.thin_id,
        size: on_disk.size,
        created: on_disk.created,
        size_limit: on_disk.fs_size_limit,
        origin: on_disk.origin,
        merge: on_disk.merge,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = concat!(
        r#"{"name":"f1","uuid":"1e5f2ad7-6f0b-4d44-9d5c-4c1c5bd44f3e","thin_id":0,"#,
        r#""size":2147483648,"created":1763697600,"merge":false}"#
    );

    fn example() -> FilesystemRecord {
        decode(EXAMPLE.as_bytes()).expect("the published example")
    }

    #[test]
    fn the_published_example_comes_back_byte_by_byte() {
        assert_eq!(encode(&example()), EXAMPLE.as_bytes());
        assert_eq!(example().size, Sectors(2_147_483_648));
    }

    #[test]
    fn optional_keys_have_their_places_and_merge_its_default() {
        let full = FilesystemRecord {
            size_limit: Some(Sectors(7)),
            origin: Some(FsUuid::from_random([9; 16])),
            merge: true,
            ..example()
        };
        let json = String::from_utf8(encode(&full)).expect("JSON is UTF-8");
        let uuid = FsUuid::from_random([9; 16]);
        let end = format!(r#""created":1763697600,"fs_size_limit":7,"origin":"{uuid}","merge":true}}"#);
        assert!(json.ends_with(&end), "{json}");
        assert_eq!(decode(json.as_bytes()), Ok(full));
        let old = EXAMPLE.replace(r#","merge":false"#, r#","fs_size_limit":null"#);
        assert_eq!(decode(old.as_bytes()), Ok(example()));
    }

    #[test]
    fn names_ids_and_sizes_are_checked() {
        let with = |from: &str, to: &str| decode(EXAMPLE.replacen(from, to, 1).as_bytes());
        assert!(matches!(with("f1", "f1/"), Err(FilesystemFault::Name(_))));
        assert_eq!(with(r#""thin_id":0"#, r#""thin_id":16777216"#), Err(FilesystemFault::ThinId(ThinId(16_777_216))));
        assert!(matches!(with("2147483648", "18446744073709551615"), Err(FilesystemFault::Form(_))));
        assert!(matches!(with("}", ""), Err(FilesystemFault::Form(_))));
        let escaped = with("f1", "f\\u00e4").expect("an escape is a character");
        assert_eq!(escaped.name.as_str(), "fä");
    }

    #[test]
    fn only_record_files_are_records() {
        let name = file_name(example().uuid);
        assert_eq!(name, "1e5f2ad76f0b4d449d5c4c1c5bd44f3e.json");
        assert_eq!(uuid_of(&name), Some(example().uuid));
        let hyphenated = "1e5f2ad7-6f0b-4d44-9d5c-4c1c5bd44f3e.json";
        for other in ["1e5f2ad76f0b4d449d5c4c1c5bd44f3e.temp", ".json", "x.json", hyphenated] {
            assert_eq!(uuid_of(other), None, "{other}");
        }
    }
}
