//! Which snapshots take the places of their origins when a pool is set up, and what is recorded then.
//!
//! Invariant: a filesystem is part of one revert at most. Requests that contradict each other (two snapshots of
//! one origin, a snapshot of what is to be replaced itself) are all left for a person to look at: no daemon
//! accepts them, so something has gone wrong with the records.
//!
//! Deliberately absent: volumes, and the order in which things become durable (`shard::ops::revert`).

use crate::format::intent::Intent;
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, ThinId};

/// A snapshot that takes the place of its origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revert {
    /// Who keeps its name, UUID, time of creation and origin.
    pub origin: FilesystemRecord,
    /// Whose content, size and size limit it gets.
    pub snapshot: FilesystemRecord,
}

/// What is scheduled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reverts {
    /// What can be carried out.
    pub clear: Vec<Revert>,
    /// Snapshots that are scheduled and whose place is not clear.
    pub unclear: Vec<FsUuid>,
}

/// Sorts out what is scheduled.
pub fn plan(records: &[FilesystemRecord]) -> Reverts {
    let mut reverts = Reverts::default();
    for snapshot in records.iter().filter(|record| record.merge) {
        match origin_of(snapshot, records) {
            Some(origin) => reverts.clear.push(Revert { origin: origin.clone(), snapshot: snapshot.clone() }),
            None => reverts.unclear.push(snapshot.uuid),
        }
    }
    reverts
}

/// The origin whose place this snapshot takes, unless another request is about one of the two.
fn origin_of<'a>(snapshot: &FilesystemRecord, records: &'a [FilesystemRecord]) -> Option<&'a FilesystemRecord> {
    let uuid = snapshot.origin?;
    let others = |record: &&FilesystemRecord| record.merge && record.uuid != snapshot.uuid;
    let disputed = records
        .iter()
        .filter(others)
        .any(|other| other.uuid == uuid || other.origin == Some(uuid) || other.origin == Some(snapshot.uuid));
    let origin = records.iter().find(|record| record.uuid == uuid && record.uuid != snapshot.uuid);
    origin.filter(|_| !disputed)
}

impl Revert {
    /// What is recorded of the origin once its volume is this one, a copy of the snapshot's.
    pub fn reverted(&self, thin_id: ThinId) -> FilesystemRecord {
        FilesystemRecord {
            thin_id,
            size: self.snapshot.size,
            size_limit: self.snapshot.size_limit,
            merge: false,
            ..self.origin.clone()
        }
    }

    /// What is noted before the copy is made. The copy goes by a UUID that no record has. With both other
    /// volumes the snapshot goes, so that its own snapshots become the origin's.
    pub fn intents(&self, copy: ThinId, nobody: FsUuid) -> [Intent; 3] {
        let gone = Intent::of(&self.snapshot);
        [
            Intent { thin_id: copy, uuid: nobody, origin: None, replaces: Some(self.snapshot.uuid) },
            Intent { thin_id: self.origin.thin_id, ..gone },
            gone,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::Name;
    use crate::units::Sectors;

    fn uuid(n: u8) -> FsUuid {
        FsUuid::from_random([n; 16])
    }

    fn record(n: u8, origin: Option<u8>, merge: bool) -> FilesystemRecord {
        FilesystemRecord {
            name: Name::try_from(format!("fs{n}").as_str()).expect("a name"),
            uuid: uuid(n),
            thin_id: ThinId(n.into()),
            size: Sectors(u64::from(n) << 21),
            created: n.into(),
            size_limit: (n > 1).then_some(Sectors(u64::from(n) << 22)),
            origin: origin.map(uuid),
            merge,
        }
    }

    #[test]
    fn what_takes_the_place_of_what_is_clear() {
        let records = [record(1, None, false), record(2, Some(1), true), record(3, Some(2), false)];
        let reverts = plan(&records);
        assert_eq!(reverts.unclear, []);
        let [revert] = reverts.clear.as_slice() else { panic!("one is scheduled: {reverts:?}") };
        let expected = FilesystemRecord {
            thin_id: ThinId(9),
            size: records[1].size,
            size_limit: records[1].size_limit,
            ..records[0].clone()
        };
        assert_eq!(revert.reverted(ThinId(9)), expected);
    }

    #[test]
    fn requests_that_contradict_each_other_are_left() {
        let two = [record(1, None, false), record(2, Some(1), true), record(3, Some(1), true)];
        let chain = [record(1, None, false), record(2, Some(1), true), record(3, Some(2), true)];
        let orphan = [record(2, Some(1), true)];
        let none = [record(2, None, true)];
        let itself = [record(2, Some(2), true)];
        for records in [&two[..], &chain, &orphan, &none, &itself] {
            let reverts = plan(records);
            let scheduled: Vec<FsUuid> =
                records.iter().filter(|record| record.merge).map(|record| record.uuid).collect();
            assert_eq!((reverts.clear, reverts.unclear), (vec![], scheduled));
        }
        // What they are about hinders no other.
        let beside = [two.as_slice(), &[record(4, None, false), record(5, Some(4), true)]].concat();
        assert_eq!(plan(&beside).clear.len(), 1);
    }

    #[test]
    fn the_snapshots_volume_and_the_origins_go_with_the_snapshot() {
        let revert = Revert { origin: record(1, Some(7), false), snapshot: record(2, Some(1), true) };
        let [copy, old, snapshot] = revert.intents(ThinId(9), uuid(8));
        assert_eq!((copy.thin_id, copy.uuid, copy.origin, copy.replaces), (ThinId(9), uuid(8), None, Some(uuid(2))));
        for (intent, thin_id) in [(old, ThinId(1)), (snapshot, ThinId(2))] {
            assert_eq!(intent, Intent { thin_id, uuid: uuid(2), origin: Some(uuid(1)), replaces: None });
        }
    }
}
