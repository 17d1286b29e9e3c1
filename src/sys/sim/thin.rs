//! Which thin volumes a thin pool has, and which of them carry an XFS.
//!
//! Invariant: `now` is `durable` with `changes` applied in order. dm-thin commits its metadata as a
//! whole and at times of its own choosing, so a power loss keeps a prefix of the changes.
//!
//! Deliberately absent: blocks. How full a pool is does not matter to the daemon that runs on this.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::dice::Dice;
use crate::model::ids::ThinId;
use crate::units::Sectors;

/// One thin volume: the UUID of the XFS on it, if there is a valid one.
type Volumes = BTreeMap<ThinId, Option<Uuid>>;

#[derive(Clone, Copy, Debug)]
enum Change {
    Create(ThinId),
    Delete(ThinId),
    Format(ThinId, Option<Uuid>),
}

impl Change {
    fn apply(self, volumes: &mut Volumes) {
        match self {
            Self::Create(id) => drop(volumes.insert(id, None)),
            Self::Delete(id) => drop(volumes.remove(&id)),
            Self::Format(id, uuid) => drop(volumes.insert(id, uuid)),
        }
    }
}

/// The metadata of one thin pool.
#[derive(Clone, Debug)]
pub(super) struct ThinStore {
    /// Says on the metadata device that it is this one's.
    pub(super) mark: u64,
    /// How much of the metadata device it works with. Grows durably, as the kernel commits it at once.
    pub(super) meta: Sectors,
    durable: Volumes,
    now: Volumes,
    changes: Vec<Change>,
}

impl ThinStore {
    /// A pool without volumes.
    pub(super) const fn new(mark: u64, meta: Sectors) -> Self {
        Self { mark, meta, durable: Volumes::new(), now: Volumes::new(), changes: Vec::new() }
    }

    /// The volumes that exist.
    pub(super) const fn volumes(&self) -> &Volumes {
        &self.now
    }

    /// Makes a volume; `EEXIST` where it exists.
    pub(super) fn create(&mut self, id: ThinId) -> Result<(), i32> {
        if self.now.contains_key(&id) {
            return Err(libc::EEXIST);
        }
        self.change(Change::Create(id));
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

    /// Puts an XFS on a volume, or with `None` only what is not yet one.
    pub(super) fn format(&mut self, id: ThinId, uuid: Option<Uuid>) -> Result<(), i32> {
        if !self.now.contains_key(&id) {
            return Err(libc::ENODATA);
        }
        self.change(Change::Format(id, uuid));
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }

    /// Makes everything durable.
    pub(super) fn commit(&mut self) {
        for change in self.changes.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// The power fails.
    pub(super) fn lose(&mut self, dice: &mut Dice) {
        self.changes.truncate(dice.index(self.changes.len()));
        self.commit();
        self.now = self.durable.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_loss_keeps_a_prefix_of_what_was_not_committed() {
        let mut seen = Vec::new();
        for seed in 0..64 {
            let mut store = ThinStore::new(0, Sectors(8_192));
            store.create(ThinId(0)).expect("new");
            store.commit();
            store.delete(ThinId(0)).expect("there");
            store.create(ThinId(1)).expect("new");
            store.lose(&mut Dice::new(seed));
            seen.push(store.volumes().keys().map(|id| id.0).collect::<Vec<_>>());
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen, [vec![], vec![0], vec![1]]);
    }

    #[test]
    fn the_kernel_s_errors_are_told() {
        let mut store = ThinStore::new(0, Sectors(8_192));
        assert_eq!(store.delete(ThinId(1)), Err(libc::ENODATA));
        assert_eq!(store.create(ThinId(1)), Ok(()));
        assert_eq!(store.create(ThinId(1)), Err(libc::EEXIST));
    }
}
