//! What of a pool's encryption is on its record, and how it gets there.
//!
//! What unlocks the pool stands in the header of the encryption layer, not in the record; the record says
//! that there is one, and which kinds of mechanism it has, for those who list the pool while it is locked.
//! The cap device of an encrypted pool begins behind the room for the header, so all addresses on it are
//! smaller by that room.
//!
//! Invariant: a record that passed `check` passes it after each of these; `leave` undoes `enter`.

use crate::format::record::{PoolRecord, Segment};
use crate::model::token::{Kind, Tokens};
use crate::units::Sectors;

const ENCRYPTION: &str = "Encryption";
const KEY: &str = "KeyDescriptionEnabled";
const CLEVIS: &str = "ClevisEnabled";

/// Makes the record that of an encrypted pool, or brings that up to what the header holds now. True if this
/// was a change.
pub fn enter(record: &mut PoolRecord, tokens: &Tokens) -> bool {
    if !record.is_encrypted() {
        let room = header_room(record);
        cap_segments(record).for_each(|segment| segment.start = segment.start - room);
    }
    let has = |kind| tokens.lowest(kind).is_some();
    let own = [(ENCRYPTION, true), (KEY, has(Kind::Key)), (CLEVIS, has(Kind::Clevis))];
    set_features(record, own.into_iter().filter(|(_, set)| *set).map(|(name, _)| name))
}

/// Makes the record that of a plain pool.
pub fn leave(record: &mut PoolRecord) {
    let room = header_room(record);
    cap_segments(record).for_each(|segment| segment.start += room);
    set_features(record, []);
    record.last_reencrypt = None;
}

/// Where on the device below the encryption layer a pool's addresses begin.
pub fn base(record: &PoolRecord) -> Sectors {
    if record.is_encrypted() { header_room(record) } else { Sectors::ZERO }
}

fn header_room(record: &PoolRecord) -> Sectors {
    record.backstore.cap.crypt_meta_allocs.iter().sum()
}

/// Every address on the cap device.
fn cap_segments(record: &mut PoolRecord) -> impl Iterator<Item = &mut Segment> {
    let flex = &mut record.flex_devs;
    let lists = [&mut flex.meta_dev, &mut flex.thin_meta_dev, &mut flex.thin_data_dev, &mut flex.thin_meta_dev_spare];
    lists.into_iter().flatten().chain(&mut record.backstore.cap.allocs)
}

/// Replaces what the record says of encryption and leaves the rest. True if that was a change.
fn set_features<'a>(record: &mut PoolRecord, own: impl IntoIterator<Item = &'a str>) -> bool {
    let others = record.features.iter().filter(|name| ![ENCRYPTION, KEY, CLEVIS].contains(&name.as_str()));
    let features: Vec<String> = others.cloned().chain(own.into_iter().map(str::to_owned)).collect();
    let changed = features != record.features;
    record.features = features;
    changed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::check::check;
    use crate::engine::layout;
    use crate::engine::stack::{LowWater, tables};
    use crate::model::device::DeviceNumber;
    use crate::model::ids::{DevUuid, PoolUuid};
    use crate::model::name::Name;
    use crate::model::pool::{IntegritySpec, MetadataVersion};
    use crate::model::token::{Clevis, KeyDescription, Mechanism};

    const SIZE: Sectors = Sectors(4_000_000);

    fn device() -> DevUuid {
        DevUuid::from_random([1; 16])
    }

    fn record() -> PoolRecord {
        let integrity = IntegritySpec::default();
        let layout = layout::first(&[(device(), SIZE)], &integrity, 100).expect("large enough");
        layout.record(&Name::try_from("p").expect("a name"), &integrity, 100)
    }

    fn key() -> Mechanism {
        Mechanism::Key(KeyDescription::try_from("k").expect("a description"))
    }

    fn clevis() -> Mechanism {
        Mechanism::Clevis(Clevis::new("tpm2", "{}").expect("JSON"))
    }

    fn tokens(all: impl IntoIterator<Item = Mechanism>) -> Tokens {
        Tokens::assign(all.into_iter().map(|one| (None, one)).collect()).expect("they fit")
    }

    fn is_sound(record: &PoolRecord) -> bool {
        check(record, MetadataVersion::V2, &BTreeMap::from([(device(), SIZE)])).is_ok()
    }

    #[test]
    fn a_record_says_which_kinds_there_are() {
        let mut record = record();
        record.features.push("Raid".into());
        assert!(enter(&mut record, &tokens([key()])));
        assert_eq!(record.features, ["Raid", "Encryption", "KeyDescriptionEnabled"]);
        assert!(!enter(&mut record, &tokens([key(), key()])), "nothing to say");
        assert!(enter(&mut record, &tokens([key(), clevis()])));
        assert_eq!(record.features, ["Raid", "Encryption", "KeyDescriptionEnabled", "ClevisEnabled"]);
        assert!(enter(&mut record, &tokens([clevis()])));
        assert_eq!(record.features, ["Raid", "Encryption", "ClevisEnabled"]);
    }

    #[test]
    fn addresses_move_once_and_back_and_nothing_moves_on_the_disks() {
        let plain = record();
        let mut record = plain.clone();
        for _twice in 0..2 {
            enter(&mut record, &tokens([key()]));
            assert_eq!(record.flex_devs.thin_meta_dev[0].start, Sectors::ZERO);
            assert!(record.is_encrypted() && is_sound(&record));
        }
        let (pool, numbers) = (PoolUuid::from_random([2; 16]), BTreeMap::from([(device(), DeviceNumber(8, 0))]));
        let of = |record| tables(record, MetadataVersion::V2, pool, &numbers, LowWater::Setup).expect("no cache");
        assert_eq!(of(&record), of(&plain));
        record.last_reencrypt = Some(7);
        leave(&mut record);
        assert!(is_sound(&record));
        assert_eq!(record, plain);
    }
}
