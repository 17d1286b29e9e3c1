//! Which filesystems can come to be too full, and when to look again.
//!
//! What a filesystem holds has been mapped by its volume, or is in memory on its way there. So nothing need be asked
//! of one whose volume has mapped little, and one that could not fill with all that its thin pool has free need not be
//! looked at until something changes.
//!
//! Invariant: the next look comes before a writer of the speed that is believed possible has filled half of the room
//! of the fullest that may still grow.
//!
//! Deliberately absent: the clock, and asking.

use std::collections::BTreeMap;

use crate::engine::filesystem::{Filesystem, Filesystems};
use crate::engine::size::DATA_BLOCK;
use crate::limits::{FILL_BYTES_PER_S, WATCH_IDLE_MS_MIN, WATCH_MS_MAX, WATCH_MS_MIN};
use crate::model::dm::ThinPoolState;
use crate::model::filesystem::Fill;
use crate::model::ids::FsUuid;
use crate::units::{Bytes, Sectors};

/// One part in so many of a filesystem is its own: what it counts as used without having written it.
const OWN_PART: u128 = 16;

/// What was seen of a pool in one look.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sight {
    /// Space of its thin pool that is in use.
    pub used: Bytes,
    /// Space that is free.
    pub free: Bytes,
    /// What is on its way to any filesystem of the machine.
    pub dirty: Bytes,
    /// How full filesystems are that were asked, and are mounted.
    pub fills: BTreeMap<FsUuid, Fill>,
}

impl Sight {
    /// Before any filesystem was asked.
    pub fn new(state: &ThinPoolState, dirty: Bytes) -> Self {
        let bytes = |blocks| Bytes(u128::from(blocks) * DATA_BLOCK.bytes().0);
        let free = bytes(state.data_total.saturating_sub(state.data_used));
        Self { used: bytes(state.data_used), free, dirty, fills: BTreeMap::new() }
    }

    /// Filesystems that could come to be too full with what the pool has now. `limit`: what all sizes may sum up to.
    pub fn in_reach(&self, filesystems: &Filesystems, limit: Option<Sectors>) -> Vec<FsUuid> {
        self.watched(filesystems, limit, self.free).map(|filesystem| filesystem.record.uuid).collect()
    }

    /// Filesystems that may be too full by now.
    pub fn near(&self, filesystems: &Filesystems, limit: Option<Sectors>) -> Vec<FsUuid> {
        self.watched(filesystems, limit, Bytes(0)).map(|filesystem| filesystem.record.uuid).collect()
    }

    /// Filesystems that do not lie on all of their volumes, and those that may still grow and would be half full with
    /// so much more.
    fn watched<'a>(
        &self,
        filesystems: &'a Filesystems,
        limit: Option<Sectors>,
        more: Bytes,
    ) -> impl Iterator<Item = &'a Filesystem> {
        let left = filesystems.left_of(limit);
        let coming = self.dirty.0 + more.0;
        filesystems.iter().filter(move |filesystem| {
            let size = filesystem.record.size.bytes().0;
            let fills = mapped(filesystem).0 + coming + size / OWN_PART >= size / 2;
            filesystem.may_follow() || (fills && filesystem.may_grow(left))
        })
    }

    /// What was written between two looks, as far as it shows.
    pub fn since(&self, before: &Self) -> Bytes {
        let asked = self.fills.iter().filter_map(|(uuid, fill)| Some((fill.used, before.fills.get(uuid)?.used)));
        let pairs = asked.chain([(self.used, before.used), (self.dirty, before.dirty)]);
        Bytes(pairs.map(|(now, then)| now.0.saturating_sub(then.0)).sum())
    }

    /// Milliseconds until the next look; nothing if none is needed before something changes. `written`: since the
    /// look before, so many milliseconds ago.
    pub fn pause(
        &self,
        filesystems: &Filesystems,
        limit: Option<Sectors>,
        written: Bytes,
        elapsed_ms: u64,
    ) -> Option<u64> {
        let room = self.watched(filesystems, limit, self.free).map(|filesystem| self.room(filesystem).0).min()?;
        let seen = written.0 * 1_000 / u128::from(elapsed_ms.max(1));
        let half_gone = room / 2 * 1_000 / FILL_BYTES_PER_S.max(2 * seen);
        let least = if written.0 == 0 { WATCH_IDLE_MS_MIN } else { WATCH_MS_MIN };
        Some(u64::try_from(half_gone).unwrap_or(WATCH_MS_MAX).clamp(least, WATCH_MS_MAX))
    }

    /// What can still be written to a filesystem.
    fn room(&self, filesystem: &Filesystem) -> Bytes {
        match self.fills.get(&filesystem.record.uuid) {
            // It has less than its volume, and nobody knows how much.
            None if filesystem.may_follow() => Bytes(0),
            Some(fill) => Bytes(fill.total.0.saturating_sub(fill.used.0)),
            None => {
                let held = mapped(filesystem).0 + self.dirty.0;
                Bytes(filesystem.record.size.bytes().0.saturating_sub(held))
            }
        }
    }
}

/// What a volume has mapped; all of it, if that is not known.
fn mapped(filesystem: &Filesystem) -> Bytes {
    filesystem.used.unwrap_or(filesystem.record.size.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::filesystem::FilesystemRecord;
    use crate::model::ids::{PoolUuid, ThinId};
    use crate::model::name::Name;

    const MIB: u128 = 1 << 20;
    const GIB: u128 = 1 << 30;

    fn uuid(n: u8) -> FsUuid {
        FsUuid::from_random([n; 16])
    }

    /// Filesystems by size, limit, and what their volumes have mapped.
    fn filesystems(all: &[(u128, Option<u128>, u128)]) -> Filesystems {
        let sectors = |bytes| Bytes(bytes).sectors().expect("whole sectors");
        let found = (1..).zip(all).map(|(n, (size, size_limit, mapped))| {
            let record = FilesystemRecord {
                name: Name::try_from(format!("f{n}").as_str()).expect("a name"),
                uuid: uuid(n),
                thin_id: ThinId(n.into()),
                size: sectors(*size),
                created: 0,
                size_limit: size_limit.map(sectors),
                origin: None,
                merge: false,
            };
            let whole = Some(record.size);
            Filesystem::new(record, Some(Bytes(*mapped))).on(whole)
        });
        Filesystems::new(PoolUuid::from_random([0; 16]), found.collect(), Vec::new(), [])
    }

    /// With so many blocks of the thin pool used and free.
    fn sight(used: u128, free: u128, dirty: u128) -> Sight {
        Sight { used: Bytes(used * MIB), free: Bytes(free * MIB), dirty: Bytes(dirty), fills: BTreeMap::new() }
    }

    #[test]
    fn only_what_could_be_half_full_is_looked_at() {
        let all = filesystems(&[(512 * MIB, None, 10 * MIB), (1 << 40, None, 10 * MIB), (GIB, None, 450 * MIB)]);
        let seen = sight(470, 4_096, 0);
        assert_eq!(seen.in_reach(&all, None), [uuid(1), uuid(3)], "the large one has more room than the pool");
        assert_eq!(seen.near(&all, None), [uuid(3)]);
        assert_eq!(sight(470, 100, 0).in_reach(&all, None), [uuid(3)], "nor have the small ones any more");
        let cached = sight(470, 4_096, 250 * MIB);
        assert_eq!(cached.near(&all, None), [uuid(1), uuid(3)], "what is in memory counts for each");
        assert_eq!(sight(470, 100, 0).pause(&filesystems(&[(1 << 40, None, 0)]), None, Bytes(0), 1), None);
    }

    #[test]
    fn what_cannot_grow_is_not_looked_at() {
        let mut all = filesystems(&[(GIB, Some(GIB), GIB), (GIB, None, GIB), (1 << 40, None, 0)]);
        let near = |all: &Filesystems, limit| sight(2_048, 2_048, 0).near(all, limit);
        assert_eq!(near(&all, None), [uuid(2)]);
        let full = Some(Bytes((1 << 40) + 2 * GIB).sectors().expect("whole"));
        assert_eq!(near(&all, full), []);
        all.set_whole(uuid(3), Bytes(GIB));
        assert_eq!(near(&all, full), [uuid(3)], "it lies on a part of what it has");
        assert_eq!(sight(2_048, 2_048, 0).pause(&all, full, Bytes(0), 1), Some(WATCH_IDLE_MS_MIN));
    }

    #[test]
    fn the_next_look_comes_before_half_of_the_room_is_gone() {
        let all = filesystems(&[(8 * GIB, None, 0), (2 * GIB, None, 0)]);
        let seen = sight(0, 65_536, 0);
        let pause = |written: u128| seen.pause(&all, None, Bytes(written), 1_000).expect("both are in reach");
        assert_eq!(pause(0), 32_000, "of 2 GiB half is gone after 32 s at 32 MiB/s");
        assert_eq!(pause(16 * MIB), 32_000);
        assert_eq!(pause(64 * MIB), 8_000, "twice as fast is possible");
        assert_eq!(pause(1 << 40), WATCH_MS_MIN);
        let full = filesystems(&[(2 * GIB, None, 2 * GIB)]);
        assert_eq!(seen.pause(&full, None, Bytes(0), 1), Some(WATCH_IDLE_MS_MIN));
        let large = filesystems(&[(64 * GIB, None, 0)]);
        assert_eq!(seen.pause(&large, None, Bytes(0), 1), Some(WATCH_MS_MAX));
        let mut asked = seen.clone();
        asked.fills.insert(uuid(1), Fill { size: Bytes(GIB), total: Bytes(GIB), used: Bytes(0) });
        assert_eq!(asked.pause(&full, None, Bytes(0), 1), Some(16_000), "what it says itself counts");
    }

    #[test]
    fn what_was_written_shows_in_the_pool_in_memory_or_in_what_they_say() {
        let fill = |used| Fill { size: Bytes(GIB), total: Bytes(GIB), used: Bytes(used) };
        let mut before = sight(100, 1_000, 5 * MIB);
        before.fills.insert(uuid(1), fill(MIB));
        let mut now = sight(103, 997, 7 * MIB);
        now.fills.insert(uuid(1), fill(2 * MIB));
        now.fills.insert(uuid(2), fill(GIB));
        assert_eq!(now.since(&before), Bytes(6 * MIB), "nothing is known of the second");
        assert_eq!(before.since(&now), Bytes(0), "less of everything is nothing written");
    }
}
