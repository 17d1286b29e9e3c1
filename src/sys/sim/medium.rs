//! Sectors with a volatile cache, those of a disk or of a thin volume: what was written is visible at
//! once and durable only after a flush that began after the write ended.
//!
//! Invariant: for each 512-byte unit, `pending` holds the versions written since the durable one,
//! oldest first. A power loss keeps any one of them or the durable one, each unit for itself: a
//! disk may write its cache back in any order and tear a write anywhere between units.
//!
//! Deliberately absent: a length, and damage to sectors that nobody wrote.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

use smallvec::SmallVec;

use super::dice::Dice;
use crate::sys::WriteData;
use crate::units::{SECTOR_BYTES, Sectors};

/// Bytes in the unit that is written or not.
pub(super) const UNIT_BYTES: usize = 512;
const _: () = assert!(UNIT_BYTES as u64 == SECTOR_BYTES);

/// A unit's content without the zeroes that it ends with: most of what is written is short. What was written at once
/// shares its memory.
#[derive(Clone, Debug)]
struct Unit {
    written: Rc<[u8]>,
    at: usize,
    length: usize,
}

impl Deref for Unit {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.written[self.at..][..self.length]
    }
}

/// Contents that may be lost, oldest first. Nearly always it is one.
type Versions = SmallVec<[Version; 1]>;

/// A content that may be lost.
#[derive(Clone, Debug)]
struct Version {
    data: Unit,
    /// The write it came with.
    write: u64,
    /// When that write ended, on the machine's count of ended writes; `None` while it runs.
    ended: Option<u64>,
}

/// The content that is safe.
#[derive(Clone, Debug)]
struct Kept {
    /// Not empty.
    data: Unit,
    /// The write it came with.
    write: u64,
}

/// Sectors.
#[derive(Clone, Debug, Default)]
pub(super) struct Medium {
    /// Units that are not zero. Shared with copies of this until one of them changes.
    durable: Rc<BTreeMap<u64, Kept>>,
    pending: Rc<BTreeMap<u64, Versions>>,
}

impl Medium {
    /// What a reader sees.
    pub(super) fn read(&self, start: Sectors, count: Sectors) -> Vec<u8> {
        whole((start.0..start.0 + count.0).map(|at| self.seen(at)))
    }

    /// What would be read after a power loss that loses everything it may.
    pub(super) fn read_durable(&self, start: Sectors, count: Sectors) -> Vec<u8> {
        whole((start.0..start.0 + count.0).map(|at| self.durable.get(&at).map_or(&[][..], |kept| &kept.data)))
    }

    /// Whether a reader sees nothing but zeroes.
    pub(super) fn is_zero(&self, start: Sectors, count: Sectors) -> bool {
        let range = start.0..start.0 + count.0;
        let mut written = self.durable.range(range.clone()).map(|(at, _)| at);
        let mut changed = self.pending.range(range).map(|(at, _)| at);
        written.all(|at| self.seen(*at).is_empty()) && changed.all(|at| self.seen(*at).is_empty())
    }

    /// Which write a reader sees there; 0 where nothing but zeroes is.
    pub(super) fn writer(&self, at: Sectors) -> u64 {
        match self.pending.get(&at.0).and_then(|versions| versions.last()) {
            Some(newest) => newest.write,
            None => self.durable.get(&at.0).map_or(0, |kept| kept.write),
        }
    }

    fn seen(&self, at: u64) -> &[u8] {
        match self.pending.get(&at).and_then(|versions| versions.last()) {
            Some(newest) => &newest.data,
            None => self.durable.get(&at).map_or(&[], |kept| &kept.data),
        }
    }

    /// Starts a write. `lands` says of each unit whether it gets that far.
    pub(super) fn submit(&mut self, write: u64, start: Sectors, data: &WriteData, mut lands: impl FnMut() -> bool) {
        match data {
            WriteData::Bytes(bytes) => {
                let units = bytes.chunks_exact(UNIT_BYTES);
                let range = start.0..start.0 + units.len() as u64;
                let fresh =
                    self.durable.range(range.clone()).next().is_none() && self.pending.range(range).next().is_none();
                // Most of a filesystem is zeroes where nothing was.
                let lands = |(_, unit): &(u64, &[u8])| lands() && !(fresh && unit.is_empty());
                self.put(write, (start.0..).zip(units.map(short)).filter(lands).collect());
            }
            WriteData::Zeroes(count) => {
                // Only what is not zero already can change, and the range may be large.
                let range = start.0..start.0 + count.0;
                let mut touched: Vec<u64> = self.durable.range(range.clone()).map(|(at, _)| *at).collect();
                touched.extend(self.pending.range(range).map(|(at, _)| *at));
                touched.sort_unstable();
                touched.dedup();
                self.put(write, touched.into_iter().filter(|_| lands()).map(|at| (at, &[][..])).collect());
            }
        }
    }

    fn put(&mut self, write: u64, mut units: Vec<(u64, &[u8])>) {
        // Lost or not, zeroes where nothing was read the same.
        units.retain(|(at, data)| !data.is_empty() || self.pending.contains_key(at) || self.durable.contains_key(at));
        let written: Rc<[u8]> = units.iter().map(|(_, data)| *data).collect::<Vec<_>>().concat().into();
        let pending = Rc::make_mut(&mut self.pending);
        let mut end = 0;
        for (at, length) in units.into_iter().map(|(at, data)| (at, data.len())) {
            let data = Unit { written: written.clone(), at: end, length };
            pending.entry(at).or_default().push(Version { data, write, ended: None });
            end += length;
        }
    }

    /// Ends a write that was started on this range.
    pub(super) fn end(&mut self, write: u64, start: Sectors, count: Sectors, now: u64) {
        for (_, versions) in Rc::make_mut(&mut self.pending).range_mut(start.0..start.0 + count.0) {
            for version in versions.iter_mut().filter(|version| version.write == write) {
                version.ended = Some(now);
            }
        }
    }

    /// Makes durable what had ended at `until`.
    pub(super) fn flush(&mut self, until: u64) {
        if self.pending.is_empty() {
            return;
        }
        let (durable, pending) = (Rc::make_mut(&mut self.durable), Rc::make_mut(&mut self.pending));
        pending.retain(|at, versions| {
            let kept = versions.iter().rposition(|version| version.ended.is_some_and(|ended| ended <= until));
            if let Some(newest) = kept {
                let safe = versions.drain(..=newest).next_back().expect("the range ends with it");
                settle(durable, *at, safe);
            }
            !versions.is_empty()
        });
    }

    /// The writer is gone, the kernel is not: every write that was started ends.
    pub(super) fn end_all(&mut self, now: u64) {
        if !self.pending.is_empty() {
            Rc::make_mut(&mut self.pending).values_mut().flatten().for_each(|version| {
                version.ended.get_or_insert(now);
            });
        }
    }

    /// The power fails.
    pub(super) fn lose(&mut self, dice: &mut Dice) {
        for (at, versions) in std::mem::take(&mut self.pending).iter() {
            let kept = dice.kept(versions.iter().map(|version| version.write));
            if kept > 0 {
                settle(Rc::make_mut(&mut self.durable), *at, versions[kept - 1].clone());
            }
        }
    }

    /// Whether a write to one of these sectors is under way.
    pub(super) fn is_being_written(&self, start: Sectors, count: Sectors) -> bool {
        let mut versions = self.pending.range(start.0..start.0 + count.0).flat_map(|(_, versions)| versions);
        versions.any(|version| version.ended.is_none())
    }

    /// Writes one unit durably, past everything pending: the kernel itself did.
    pub(super) fn engrave(&mut self, write: u64, at: Sectors, unit: &[u8; UNIT_BYTES]) {
        if self.pending.contains_key(&at.0) {
            Rc::make_mut(&mut self.pending).remove(&at.0);
        }
        let unit = short(unit);
        let data = Unit { written: unit.into(), at: 0, length: unit.len() };
        settle(Rc::make_mut(&mut self.durable), at.0, Version { data, write, ended: Some(write) });
    }
}

/// What a reader would see after a power loss that loses everything it may; who wrote it does not count.
impl Hash for Medium {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.durable.len().hash(state);
        for (at, kept) in &*self.durable {
            (at, &*kept.data).hash(state);
        }
    }
}

/// A unit without the zeroes that it ends with.
fn short(unit: &[u8]) -> &[u8] {
    // Of a filesystem that is made, nearly all is zeroes.
    if unit == [0; UNIT_BYTES] {
        return &[];
    }
    let words = unit.rchunks_exact(16).take_while(|word| **word == [0; 16]).count();
    let rest = &unit[..unit.len() - 16 * words];
    let length = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &rest[..length]
}

/// Units with the zeroes that they end with.
fn whole<'a>(units: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(units.size_hint().0 * UNIT_BYTES);
    for unit in units {
        let end = bytes.len() + UNIT_BYTES;
        bytes.extend_from_slice(unit);
        bytes.resize(end, 0);
    }
    bytes
}

fn settle(durable: &mut BTreeMap<u64, Kept>, at: u64, version: Version) {
    if version.data.is_empty() {
        durable.remove(&at);
    } else {
        durable.insert(at, Kept { data: version.data, write: version.write });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: fn() -> bool = || true;

    fn bytes(value: u8, units: usize) -> WriteData {
        WriteData::Bytes(vec![value; units * UNIT_BYTES])
    }

    #[test]
    fn a_flush_saves_what_ended_before_it_and_nothing_else() {
        let mut medium = Medium::default();
        medium.submit(1, Sectors(0), &bytes(1, 1), ALL);
        medium.end(1, Sectors(0), Sectors(1), 10);
        medium.submit(2, Sectors(1), &bytes(2, 1), ALL);
        medium.flush(10);
        medium.end(2, Sectors(1), Sectors(1), 11);
        assert_eq!(medium.read(Sectors(0), Sectors(2)), [vec![1; 512], vec![2; 512]].concat());
        assert_eq!(medium.read_durable(Sectors(0), Sectors(2)), [vec![1; 512], vec![0; 512]].concat());
    }

    #[test]
    fn an_overwritten_unit_may_keep_any_of_its_versions() {
        let mut seen = [false; 3];
        for seed in 0..64 {
            let mut medium = Medium::default();
            for write in 1..=2_u8 {
                medium.submit(u64::from(write), Sectors(5), &bytes(write, 1), ALL);
                medium.end(u64::from(write), Sectors(5), Sectors(1), u64::from(write));
            }
            medium.lose(&mut Dice::new(seed));
            seen[usize::from(medium.read(Sectors(5), Sectors(1))[0])] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn a_large_write_may_be_torn_between_units() {
        let torn = (0..64).any(|seed| {
            let mut medium = Medium::default();
            medium.submit(1, Sectors(0), &bytes(7, 2), ALL);
            medium.lose(&mut Dice::new(seed));
            let after = medium.read(Sectors(0), Sectors(2));
            after[0] != after[512]
        });
        assert!(torn);
    }

    #[test]
    fn zeroes_over_a_large_range_cover_what_was_there() {
        let mut medium = Medium::default();
        medium.submit(1, Sectors(1 << 30), &bytes(7, 1), ALL);
        medium.end(1, Sectors(1 << 30), Sectors(1), 1);
        medium.flush(1);
        medium.submit(2, Sectors(0), &WriteData::Zeroes(Sectors(1 << 34)), ALL);
        assert_eq!(medium.read(Sectors(1 << 30), Sectors(1)), vec![0; 512]);
        assert_eq!(medium.read_durable(Sectors(1 << 30), Sectors(1)), vec![7; 512]);
    }

    #[test]
    fn who_wrote_a_unit_is_known_whatever_became_of_others() {
        let mut medium = Medium::default();
        assert_eq!(medium.writer(Sectors(0)), 0);
        medium.submit(1, Sectors(0), &bytes(7, 1), ALL);
        medium.end(1, Sectors(0), Sectors(1), 1);
        medium.flush(1);
        medium.submit(2, Sectors(0), &bytes(7, 1), ALL);
        assert_eq!(medium.writer(Sectors(0)), 2, "the same bytes again");
        let mut seen: Vec<u64> = (0..32)
            .map(|seed| {
                let mut after = medium.clone();
                after.lose(&mut Dice::new(seed));
                after.writer(Sectors(0))
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [1, 2]);
        medium.submit(3, Sectors(0), &WriteData::Zeroes(Sectors(1)), ALL);
        assert!(medium.is_zero(Sectors(0), Sectors(1 << 40)));
    }
}
