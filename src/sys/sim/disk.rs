//! A disk with a volatile write cache: what was written is visible at once and durable only after
//! a flush that began after the write ended.
//!
//! Invariant: for each 512-byte unit, `pending` holds the versions written since the durable one,
//! oldest first. A power loss keeps any one of them or the durable one, each unit for itself: a
//! disk may write its cache back in any order and tear a write anywhere between units.
//!
//! Deliberately absent: damage to sectors that nobody wrote.

use std::collections::BTreeMap;

use super::dice::Dice;
use crate::model::device::{BlockSizes, DeviceNumber, DevicePath};
use crate::sys::WriteData;
use crate::units::{SECTOR_BYTES, Sectors};

/// Bytes in the unit that is written or not.
pub(super) const UNIT_BYTES: usize = 512;
const _: () = assert!(UNIT_BYTES as u64 == SECTOR_BYTES);

/// A unit's content; zeroes are not stored.
type Unit = Option<Box<[u8; UNIT_BYTES]>>;

/// A content that may be lost.
#[derive(Clone, Debug)]
struct Version {
    data: Unit,
    /// The write it came with.
    write: u64,
    /// When that write ended, on the machine's count of ended writes; `None` while it runs.
    ended: Option<u64>,
}

/// One disk.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) path: DevicePath,
    pub(super) number: DeviceNumber,
    pub(super) size: Sectors,
    pub(super) blocks: BlockSizes,
    pub(super) hardware: Option<String>,
    /// Somebody else who lives here, in words.
    pub(super) resident: Option<String>,
    /// With which error reads fail now.
    pub(super) reads_fail: Option<i32>,
    /// With which error writes and flushes fail now.
    pub(super) writes_fail: Option<i32>,
    durable: BTreeMap<u64, Box<[u8; UNIT_BYTES]>>,
    pending: BTreeMap<u64, Vec<Version>>,
}

impl Disk {
    /// An empty disk.
    pub(super) const fn new(path: DevicePath, number: DeviceNumber, size: Sectors, blocks: BlockSizes) -> Self {
        Self {
            path,
            number,
            size,
            blocks,
            hardware: None,
            resident: None,
            reads_fail: None,
            writes_fail: None,
            durable: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// The errno for a range that the disk does not take, if it does not.
    pub(super) fn refuse(&self, start: Sectors, count: Sectors) -> Option<i32> {
        let block = u64::from(self.blocks.logical) / SECTOR_BYTES;
        if !start.0.is_multiple_of(block) || !count.0.is_multiple_of(block) {
            return Some(libc::EINVAL);
        }
        let inside = start.checked_add(count).is_some_and(|end| end <= self.size);
        (!inside).then_some(libc::EIO)
    }

    /// What a reader sees.
    pub(super) fn read(&self, start: Sectors, count: Sectors) -> Vec<u8> {
        (start.0..start.0 + count.0).flat_map(|at| *self.seen(at).unwrap_or(&[0; UNIT_BYTES])).collect()
    }

    /// What would be read after a power loss that loses everything it may.
    pub(super) fn read_durable(&self, start: Sectors, count: Sectors) -> Vec<u8> {
        let unit = |at| self.durable.get(&at).map_or([0; UNIT_BYTES], |data| **data);
        (start.0..start.0 + count.0).flat_map(unit).collect()
    }

    fn seen(&self, at: u64) -> Option<&[u8; UNIT_BYTES]> {
        match self.pending.get(&at).and_then(|versions| versions.last()) {
            Some(newest) => newest.data.as_deref(),
            None => self.durable.get(&at).map(|data| &**data),
        }
    }

    /// Starts a write. `lands` says of each unit whether it gets that far.
    pub(super) fn submit(&mut self, write: u64, start: Sectors, data: &WriteData, mut lands: impl FnMut() -> bool) {
        match data {
            WriteData::Bytes(bytes) => {
                for (at, unit) in (start.0..).zip(bytes.chunks_exact(UNIT_BYTES)) {
                    let unit: &[u8; UNIT_BYTES] = unit.try_into().expect("chunks of this size");
                    let data = (*unit != [0; UNIT_BYTES]).then(|| Box::new(*unit));
                    if lands() {
                        self.put(at, data, write);
                    }
                }
            }
            WriteData::Zeroes(count) => {
                // Only what is not zero already can change, and the range may be large.
                let range = start.0..start.0 + count.0;
                let mut touched: Vec<u64> = self.durable.range(range.clone()).map(|(at, _)| *at).collect();
                touched.extend(self.pending.range(range).map(|(at, _)| *at));
                touched.sort_unstable();
                touched.dedup();
                for at in touched {
                    if lands() {
                        self.put(at, None, write);
                    }
                }
            }
        }
    }

    fn put(&mut self, at: u64, data: Unit, write: u64) {
        let durable = self.durable.get(&at);
        if !self.pending.contains_key(&at) && durable == data.as_ref() {
            return; // Lost or not, the unit reads the same.
        }
        self.pending.entry(at).or_default().push(Version { data, write, ended: None });
    }

    /// Ends a write that was started on this range.
    pub(super) fn end(&mut self, write: u64, start: Sectors, count: Sectors, now: u64) {
        for (_, versions) in self.pending.range_mut(start.0..start.0 + count.0) {
            for version in versions.iter_mut().filter(|version| version.write == write) {
                version.ended = Some(now);
            }
        }
    }

    /// Makes durable what had ended at `until`.
    pub(super) fn flush(&mut self, until: u64) {
        let Self { durable, pending, .. } = self;
        pending.retain(|at, versions| {
            let kept = versions.iter().rposition(|version| version.ended.is_some_and(|ended| ended <= until));
            if let Some(newest) = kept {
                let safe = versions.drain(..=newest).next_back().expect("the range ends with it");
                settle(durable, *at, safe.data);
            }
            !versions.is_empty()
        });
    }

    /// The writer is gone, the kernel is not: every write that was started ends.
    pub(super) fn end_all(&mut self, now: u64) {
        for version in self.pending.values_mut().flatten() {
            version.ended.get_or_insert(now);
        }
    }

    /// The power fails.
    pub(super) fn lose(&mut self, dice: &mut Dice) {
        for (at, mut versions) in std::mem::take(&mut self.pending) {
            let kept = dice.index(versions.len());
            if kept > 0 {
                settle(&mut self.durable, at, versions.swap_remove(kept - 1).data);
            }
        }
    }

    /// Writes one unit durably, past everything pending: the kernel itself did.
    pub(super) fn engrave(&mut self, at: Sectors, unit: &[u8; UNIT_BYTES]) {
        self.pending.remove(&at.0);
        let data = (*unit != [0; UNIT_BYTES]).then(|| Box::new(*unit));
        settle(&mut self.durable, at.0, data);
    }
}

fn settle(durable: &mut BTreeMap<u64, Box<[u8; UNIT_BYTES]>>, at: u64, data: Unit) {
    match data {
        Some(data) => durable.insert(at, data),
        None => durable.remove(&at),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: fn() -> bool = || true;

    fn disk() -> Disk {
        let path = DevicePath::try_from("/disk").expect("absolute");
        let blocks = BlockSizes { logical: 512, physical: 4096 };
        Disk::new(path, DeviceNumber(0, 0), Sectors(1 << 35), blocks)
    }

    fn bytes(value: u8, units: usize) -> WriteData {
        WriteData::Bytes(vec![value; units * UNIT_BYTES])
    }

    #[test]
    fn a_flush_saves_what_ended_before_it_and_nothing_else() {
        let mut disk = disk();
        disk.submit(1, Sectors(0), &bytes(1, 1), ALL);
        disk.end(1, Sectors(0), Sectors(1), 10);
        disk.submit(2, Sectors(1), &bytes(2, 1), ALL);
        disk.flush(10);
        disk.end(2, Sectors(1), Sectors(1), 11);
        assert_eq!(disk.read(Sectors(0), Sectors(2)), [vec![1; 512], vec![2; 512]].concat());
        assert_eq!(disk.read_durable(Sectors(0), Sectors(2)), [vec![1; 512], vec![0; 512]].concat());
    }

    #[test]
    fn an_overwritten_unit_may_keep_any_of_its_versions() {
        let mut seen = [false; 3];
        for seed in 0..64 {
            let mut disk = disk();
            for write in 1..=2_u8 {
                disk.submit(u64::from(write), Sectors(5), &bytes(write, 1), ALL);
                disk.end(u64::from(write), Sectors(5), Sectors(1), u64::from(write));
            }
            disk.lose(&mut Dice::new(seed));
            seen[usize::from(disk.read(Sectors(5), Sectors(1))[0])] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn a_large_write_may_be_torn_between_units() {
        let torn = (0..64).any(|seed| {
            let mut disk = disk();
            disk.submit(1, Sectors(0), &bytes(7, 2), ALL);
            disk.lose(&mut Dice::new(seed));
            let after = disk.read(Sectors(0), Sectors(2));
            after[0] != after[512]
        });
        assert!(torn);
    }

    #[test]
    fn zeroes_over_a_large_range_cover_what_was_there() {
        let mut disk = disk();
        disk.submit(1, Sectors(1 << 30), &bytes(7, 1), ALL);
        disk.end(1, Sectors(1 << 30), Sectors(1), 1);
        disk.flush(1);
        disk.submit(2, Sectors(0), &WriteData::Zeroes(Sectors(1 << 34)), ALL);
        assert_eq!(disk.read(Sectors(1 << 30), Sectors(1)), vec![0; 512]);
        assert_eq!(disk.read_durable(Sectors(1 << 30), Sectors(1)), vec![7; 512]);
    }

    #[test]
    fn only_whole_blocks_inside_the_disk_are_taken() {
        let mut disk = disk();
        disk.blocks.logical = 4096;
        assert_eq!(disk.refuse(Sectors(8), Sectors(8)), None);
        assert_eq!(disk.refuse(Sectors(8), Sectors(1)), Some(libc::EINVAL));
        assert_eq!(disk.refuse(Sectors(1 << 35), Sectors(8)), Some(libc::EIO));
    }
}
