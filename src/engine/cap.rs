//! The cap device of a pool: which dm device it is, and where the next piece on it goes.
//!
//! All that a pool keeps (thin metadata, its spare, thin data, the metadata volume) is a list of segments of this
//! one device. Version 2 records the pieces that were asked for, behind room for an encryption header: stratisd 3.9.2
//! lists each of them, here one that follows the last makes that longer, so that a record does not grow with each
//! step of its pool. Version 1 has no such room, and one piece that grows.
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
    match cap.allocs.last_mut() {
        Some(last) if last.end() == piece.start => last.length += length,
        Some(_) | None => cap.allocs.push(piece),
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
    fn a_piece_that_follows_the_last_makes_it_longer() {
        let mut new = Cap { allocs: vec![segment(34_816, 8_192)], crypt_meta_allocs: vec![segment(0, 34_816)] };
        assert_eq!(append(&mut new, Sectors(2_048)), segment(43_008, 2_048));
        assert_eq!(new.allocs, [segment(34_816, 10_240)]);
        // Theirs need not be in the order of their addresses.
        let theirs = [segment(43_008, 2_048), segment(34_816, 8_192)];
        let mut found = Cap { allocs: theirs.to_vec(), crypt_meta_allocs: vec![segment(0, 34_816)] };
        assert_eq!(append(&mut found, Sectors(6)), segment(45_056, 6));
        assert_eq!(found.allocs, [theirs[0], theirs[1], segment(45_056, 6)]);
        let mut old = Cap { allocs: vec![segment(0, 8_192)], crypt_meta_allocs: Vec::new() };
        assert_eq!(append(&mut old, Sectors(2_048)), segment(8_192, 2_048));
        assert_eq!(append(&mut old, Sectors(6)), segment(10_240, 6));
        assert_eq!(old.allocs, [segment(0, 10_246)]);
    }
}
