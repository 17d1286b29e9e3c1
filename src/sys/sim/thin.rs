//! Which thin volumes a thin pool has, and what is on them.
//!
//! Invariant: `now` is `durable` with `changes` applied in order. dm-thin commits its metadata as a
//! whole and at times of its own choosing, so a power loss keeps a prefix of the changes; what was
//! written to the volumes is lost unit by unit, as on a disk.
//!
//! Deliberately absent: where on the pool's devices a block lies. Blocks are counted, so that a pool
//! can be full; those that a power loss took away stay counted.

use std::collections::{BTreeMap, BTreeSet};

use super::dice::Dice;
use super::medium::{Medium, UNIT_BYTES};
use crate::model::ids::ThinId;
use crate::units::{Bytes, Sectors};

/// Which volumes exist, each with the number of its content.
type Volumes = BTreeMap<ThinId, u64>;

/// What a block holds that nobody zeroed.
const STALE: [u8; UNIT_BYTES] = [0xa5; UNIT_BYTES];
/// Where a volume of a pool that does not zero its blocks shows what was there before: one unit in each
/// so many, up to there. It covers the smallest log of a small filesystem, and costs little.
const STALE_EVERY: Sectors = Sectors(2_048);
const STALE_END: Sectors = Sectors(1 << 21);

/// How a record of a log begins, and where its number of operations has its last byte.
const LOG_RECORD: [u8; 4] = [0xfe, 0xed, 0xba, 0xbe];
const LOG_OPERATIONS: usize = 43;

#[derive(Clone, Copy, Debug, Hash)]
enum Change {
    Create(ThinId, u64),
    Delete(ThinId),
}

impl Change {
    /// Gives the content that no volume has any more.
    fn apply(self, volumes: &mut Volumes) -> Option<u64> {
        match self {
            Self::Create(id, content) => volumes.insert(id, content),
            Self::Delete(id) => volumes.remove(&id),
        }
    }
}

/// What is on a volume.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Content {
    pub(super) medium: Medium,
    /// Whether it is that of a filesystem that was mounted when it was copied, and not unmounted since.
    pub(super) dirty: bool,
    /// What of the volume the filesystem on it has come to lie on since it was made.
    pub(super) grown: Sectors,
    /// What of the filesystem its files have.
    pub(super) filled: Bytes,
    /// Blocks that it takes of its pool.
    blocks: BTreeSet<u64>,
    /// Blocks that it got from its origin. Who writes to a shared block first is the snapshot here, always.
    shared: BTreeSet<u64>,
}

/// What is wrong with the metadata of a thin pool.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Damage {
    /// All that counts can still be read.
    Repairable,
    /// Nothing can be made of it.
    Hopeless,
}

/// The metadata of one thin pool.
#[derive(Clone, Debug, Hash)]
pub(super) struct ThinStore {
    /// Says on the metadata device that it is this one's.
    pub(super) mark: u64,
    /// The kernel does not take it as it is.
    pub(super) damage: Option<Damage>,
    /// How much of the metadata device it works with. Grows durably, as the kernel commits it at once.
    pub(super) meta: Sectors,
    /// How many data blocks it has had so far. Likewise.
    pub(super) data: u64,
    durable: Volumes,
    now: Volumes,
    changes: Vec<Change>,
    contents: BTreeMap<u64, Content>,
    next: u64,
}

impl ThinStore {
    /// A pool without volumes.
    pub(super) const fn new(mark: u64, meta: Sectors) -> Self {
        Self {
            mark,
            damage: None,
            meta,
            data: 0,
            durable: Volumes::new(),
            now: Volumes::new(),
            changes: Vec::new(),
            contents: BTreeMap::new(),
            next: 0,
        }
    }

    /// The volumes that exist, with what is on them.
    pub(super) fn volumes(&self) -> impl Iterator<Item = (ThinId, &Content)> {
        self.now.iter().map(|(id, content)| (*id, &self.contents[content]))
    }

    /// What is on a volume.
    pub(super) fn content(&self, id: ThinId) -> Option<&Content> {
        self.now.get(&id).map(|content| &self.contents[content])
    }

    /// What is on a volume, to change it.
    pub(super) fn content_mut(&mut self, id: ThinId) -> Option<&mut Content> {
        self.contents.get_mut(self.now.get(&id)?)
    }

    /// Makes a volume; `EEXIST` where it exists. `stale`: its blocks show what was in them before.
    pub(super) fn create(&mut self, id: ThinId, stale: bool) -> Result<(), i32> {
        if self.now.contains_key(&id) {
            return Err(libc::EEXIST);
        }
        let mut content = Content::default();
        if stale {
            let step = usize::try_from(STALE_EVERY.0).expect("a small number");
            for at in (STALE_EVERY.0 / 2..STALE_END.0).step_by(step) {
                content.medium.engrave(0, Sectors(at), &STALE);
            }
        }
        self.next += 1;
        self.contents.insert(self.next, content);
        self.change(Change::Create(id, self.next));
        Ok(())
    }

    /// Makes a volume of what another is now; `EEXIST` where it exists, `ENODATA` where there is no origin.
    pub(super) fn copy(&mut self, from: ThinId, to: ThinId, mounted: bool) -> Result<(), i32> {
        if self.now.contains_key(&to) {
            return Err(libc::EEXIST);
        }
        let origin = self.content(from).ok_or(libc::ENODATA)?;
        let content = Content {
            medium: origin.medium.clone(),
            dirty: origin.dirty || mounted,
            grown: origin.grown,
            filled: origin.filled,
            blocks: BTreeSet::new(),
            shared: origin.blocks.union(&origin.shared).copied().collect(),
        };
        self.next += 1;
        self.contents.insert(self.next, content);
        self.change(Change::Create(to, self.next));
        Ok(())
    }

    /// Drops a volume; `ENODATA` where there is none.
    pub(super) fn delete(&mut self, id: ThinId) -> Result<(), i32> {
        if !self.now.contains_key(&id) {
            return Err(libc::ENODATA);
        }
        self.change(Change::Delete(id));
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }

    /// Blocks that all volumes take together.
    pub(super) fn used(&self) -> u64 {
        self.contents.values().map(Content::used).sum()
    }

    /// Makes every change of what exists durable.
    pub(super) fn commit(&mut self) {
        for change in self.changes.drain(..) {
            // Each volume has a content of its own.
            if let Some(gone) = change.apply(&mut self.durable) {
                self.contents.remove(&gone);
            }
        }
    }

    /// The writer is gone, the kernel is not: every write that was started ends.
    pub(super) fn end_all(&mut self, now: u64) {
        self.contents.values_mut().for_each(|content| content.medium.end_all(now));
    }

    /// The power fails.
    pub(super) fn lose(&mut self, dice: &mut Dice) {
        self.changes.truncate(dice.index(self.changes.len()));
        self.commit();
        self.now = self.durable.clone();
        // Those of volumes that were never made durable.
        let kept: BTreeSet<u64> = self.durable.values().copied().collect();
        self.contents.retain(|content, _| kept.contains(content));
        self.contents.values_mut().for_each(|content| content.medium.lose(dice));
    }
}

impl Content {
    /// What a reader sees.
    pub(super) fn read(&self, start: Sectors, count: Sectors) -> Vec<u8> {
        let mut bytes = self.medium.read(start, count);
        let records = bytes.chunks_mut(UNIT_BYTES).filter(|unit| self.dirty && unit.starts_with(&LOG_RECORD));
        // The last record of the log is one of a filesystem at work: it has several operations.
        records.for_each(|record| record[LOG_OPERATIONS] = 2);
        bytes
    }

    /// Blocks that it shows, its own and those of its origin.
    pub(super) fn mapped(&self) -> u64 {
        self.blocks.union(&self.shared).count() as u64
    }

    /// Blocks that it takes of its pool.
    pub(super) fn used(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// How many blocks more it takes once this is written.
    pub(super) fn lacks(&self, block: Sectors, start: Sectors, count: Sectors) -> u64 {
        touched(block, start, count).filter(|block| !self.blocks.contains(block)).count() as u64
    }

    /// Takes the blocks for what is written.
    pub(super) fn take(&mut self, block: Sectors, start: Sectors, count: Sectors) {
        self.blocks.extend(touched(block, start, count));
    }
}

/// The blocks of a range.
fn touched(block: Sectors, start: Sectors, count: Sectors) -> impl Iterator<Item = u64> {
    start.0 / block.0..(start.0 + count.0).div_ceil(block.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::WriteData;

    fn ids(store: &ThinStore) -> Vec<u32> {
        store.volumes().map(|(id, _)| id.0).collect()
    }

    #[test]
    fn a_power_loss_keeps_a_prefix_of_what_was_not_committed() {
        let mut seen = Vec::new();
        for seed in 0..64 {
            let mut store = ThinStore::new(0, Sectors(8_192));
            store.create(ThinId(0), false).expect("new");
            store.commit();
            store.delete(ThinId(0)).expect("there");
            store.create(ThinId(1), false).expect("new");
            store.lose(&mut Dice::new(seed));
            seen.push(ids(&store));
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen, [vec![], vec![0], vec![1]]);
    }

    #[test]
    fn a_volume_that_comes_back_has_its_content_and_a_new_one_none() {
        let mut store = ThinStore::new(0, Sectors(8_192));
        store.create(ThinId(0), false).expect("new");
        let medium = |store: &mut ThinStore| store.content_mut(ThinId(0)).expect("there").medium.clone();
        let content = store.content_mut(ThinId(0)).expect("there");
        content.medium.submit(1, Sectors(7), &WriteData::Bytes(vec![1; UNIT_BYTES]), || true);
        content.medium.end(1, Sectors(7), Sectors(1), 1);
        content.medium.flush(1);
        store.commit();
        store.delete(ThinId(0)).expect("there");
        store.create(ThinId(0), false).expect("it was deleted");
        assert!(medium(&mut store).is_zero(Sectors(0), Sectors(100)));
        let back = (0..64).any(|seed| {
            let mut after = store.clone();
            after.lose(&mut Dice::new(seed));
            ids(&after) == [0] && !medium(&mut after).is_zero(Sectors(0), Sectors(100))
        });
        assert!(back, "some power loss takes the deletion back");
        store.commit();
        assert_eq!(store.contents.len(), 1, "what nobody can see any more is forgotten");
    }

    #[test]
    fn a_copy_has_what_its_origin_had_and_takes_blocks_for_what_is_new() {
        let mut store = ThinStore::new(0, Sectors(8_192));
        store.create(ThinId(0), false).expect("new");
        let unit = |byte| WriteData::Bytes(vec![byte; UNIT_BYTES]);
        let (block, at) = (Sectors(2_048), Sectors(7));
        let origin = store.content_mut(ThinId(0)).expect("there");
        origin.medium.submit(1, at, &unit(1), || true);
        origin.take(block, at, Sectors(1));
        assert_eq!(store.copy(ThinId(0), ThinId(1), false), Ok(()));
        assert_eq!(store.copy(ThinId(0), ThinId(1), false), Err(libc::EEXIST));
        assert_eq!(store.copy(ThinId(7), ThinId(2), false), Err(libc::ENODATA));
        store.content_mut(ThinId(0)).expect("there").medium.submit(2, at, &unit(2), || true);
        let copy = store.content(ThinId(1)).expect("made");
        assert_eq!((copy.read(at, Sectors(1))[0], copy.mapped(), copy.used()), (1, 1, 0));
        assert_eq!(copy.lacks(block, at, Sectors(1)), 1, "what is shared is copied when it is written");
        assert_eq!(store.used(), 1);
    }

    #[test]
    fn blocks_are_counted_once() {
        let mut content = Content::default();
        let block = Sectors(2_048);
        assert_eq!(content.lacks(block, Sectors(2_047), Sectors(2)), 2);
        content.take(block, Sectors(2_047), Sectors(2));
        assert_eq!((content.used(), content.lacks(block, Sectors(0), Sectors(2_049))), (2, 0));
    }

    #[test]
    fn the_kernel_s_errors_are_told() {
        let mut store = ThinStore::new(0, Sectors(8_192));
        assert_eq!(store.delete(ThinId(1)), Err(libc::ENODATA));
        assert_eq!(store.create(ThinId(1), false), Ok(()));
        assert_eq!(store.create(ThinId(1), false), Err(libc::EEXIST));
    }
}
