//! The cap device of a pool: which dm device it is, and where the next piece on it goes.
//!
//! All that a pool keeps (thin metadata, its spare, thin data, the metadata volume) is a list of segments of this
//! one device. Version 2 records each piece that was ever asked for, behind room for an encryption header;
//! version 1 has no such room, and one piece that grows.
//!
//! Invariant: a record that passed `check` passes it when what is entered here is entered in a flex device and in
//! the data tier too.
//!
//! Deliberately absent: who gets the piece, and the sectors that it lies on.

use crate::format::record::{Cap, PoolRecord, Segment};
use crate::model::dm::Role;
use crate::model::pool::MetadataVersion;
use crate::units::Sectors;

/// The dm device that the flex devices lie on. Version 2 has a placeholder for a cache that may come, version 1
/// lies on the backstore itself until there is one.
pub const fn role(record: &PoolRecord, version: MetadataVersion) -> Role {
    match (version, &record.backstore.cache_tier) {
        (MetadataVersion::V1, None) => Role::OriginSub,
        (MetadataVersion::V1, Some(_)) | (MetadataVersion::V2, _) => Role::Cache,
    }
}

/// Enters one more piece, behind all others, and says where it is.
///
/// # Panics
/// When the record has not passed `check`.
pub fn append(cap: &mut Cap, length: Sectors) -> Segment {
    let end = cap.allocs.iter().chain(&cap.crypt_meta_allocs).map(Segment::end).max();
    let piece = Segment { start: end.expect("the metadata volume is on the cap device"), length };
    // Only a record of version 1 keeps no room for an encryption header: so `check` has found it.
    if cap.crypt_meta_allocs.is_empty() {
        cap.allocs[0].length += length;
    } else {
        cap.allocs.push(piece);
    }
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u64, length: u64) -> Segment {
        Segment { start: Sectors(start), length: Sectors(length) }
    }

    #[test]
    fn version_2_lists_each_piece_and_version_1_has_one() {
        let mut new = Cap { allocs: vec![segment(34_816, 8_192)], crypt_meta_allocs: vec![segment(0, 34_816)] };
        assert_eq!(append(&mut new, Sectors(2_048)), segment(43_008, 2_048));
        assert_eq!(new.allocs, [segment(34_816, 8_192), segment(43_008, 2_048)]);
        let mut old = Cap { allocs: vec![segment(0, 8_192)], crypt_meta_allocs: Vec::new() };
        assert_eq!(append(&mut old, Sectors(2_048)), segment(8_192, 2_048));
        assert_eq!(append(&mut old, Sectors(6)), segment(10_240, 6));
        assert_eq!(old.allocs, [segment(0, 10_246)]);
    }
}
