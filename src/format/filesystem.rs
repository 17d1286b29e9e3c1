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
