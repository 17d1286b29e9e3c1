//! An intent: what an operation is about to make or destroy, a small JSON file in a folder of its own in
//! the metadata volume.
//!
//! The file is called after the thin id, and the name alone says which volume is meant. What stands in
//! it is needed when a filesystem was destroyed and its snapshots have not got another origin yet.
//! Other daemons neither read nor write such files.
//!
//! Deliberately absent: files, and what follows from an intent (`shard::ops::intents`).

use serde::{Deserialize, Serialize};

use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, ThinId};

/// A filesystem that is being made or destroyed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Intent {
    /// Its thin volume.
    pub thin_id: ThinId,
    /// Which it is.
    pub uuid: FsUuid,
    /// What it is a snapshot of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<FsUuid>,
    /// Its volume is a copy of this snapshot's: once a record has it, the snapshot is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<FsUuid>,
}

impl Intent {
    /// The intent to make or destroy what has this record.
    pub const fn of(record: &FilesystemRecord) -> Self {
        Self { thin_id: record.thin_id, uuid: record.uuid, origin: record.origin, replaces: None }
    }
}

/// The intent as bytes.
pub fn encode(intent: &Intent) -> Vec<u8> {
    serde_json::to_vec(intent).expect("an intent has only string keys and finite numbers")
}

/// Reads an intent; `None` when the bytes are none, because its file was being written.
pub fn decode(json: &[u8]) -> Option<Intent> {
    serde_json::from_slice(json).ok() // The file's name still says which volume is meant.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_is_read_as_it_was_written() {
        let uuid = FsUuid::from_random([1; 16]);
        let empty = Intent { thin_id: ThinId(3), uuid, origin: None, replaces: None };
        assert_eq!(encode(&empty), format!(r#"{{"thin_id":3,"uuid":"{uuid}"}}"#).into_bytes());
        let other = Some(FsUuid::from_random([2; 16]));
        for intent in [empty, Intent { origin: other, ..empty }, Intent { replaces: other, ..empty }] {
            assert_eq!(decode(&encode(&intent)), Some(intent));
        }
        for torn in ["", "{}", r#"{"thin_id":3,"uuid":"#, "[]"] {
            assert_eq!(decode(torn.as_bytes()), None, "{torn}");
        }
    }
}
