//! Which blocks a batch of writes changes, and keeping two writes from changing one block at a time.
//!
//! A device is written in whole blocks of its physical size: a smaller write would be completed by
//! the device itself, and a power failure in the middle could take the neighbours along. So a write
//! that begins or ends inside a block reads that block first; writes of one batch that meet in a block
//! become one.
//!
//! Invariant: extents of one device do not overlap, and neither do extents that are held.
//!
//! Deliberately absent: I/O.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use cores::changes::Signal;

use crate::limits::PHYSICAL_BLOCK_BYTES_MAX;
use crate::model::device::{BlockSizes, DeviceNumber};

/// Whole blocks that are written at once. Positions are bytes of the device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Extent {
    /// What is written.
    pub(super) range: Range<u64>,
    /// The blocks that have to be read first.
    pub(super) reads: Vec<Range<u64>>,
    /// Which of the writes it consists of, in their order.
    pub(super) parts: Vec<usize>,
}

/// In which unit a device is written: its physical block, or its logical one where the device says
/// nothing sensible of the former.
pub(super) fn unit(blocks: BlockSizes) -> u64 {
    let BlockSizes { logical, physical } = blocks;
    let sensible = physical.is_power_of_two() && physical <= PHYSICAL_BLOCK_BYTES_MAX && physical >= logical;
    u64::from(if sensible { physical } else { logical })
}

/// The whole blocks around a range. The last block of a device may be shorter than the others.
pub(super) fn around(range: &Range<u64>, unit: u64, size: u64) -> Range<u64> {
    range.start / unit * unit..range.end.next_multiple_of(unit).min(size)
}

/// The extents that these writes make on a device of `size` bytes. All writes lie inside of it.
pub(super) fn extents(writes: &[Range<u64>], unit: u64, size: u64) -> Vec<Extent> {
    let mut order: Vec<usize> = (0..writes.len()).filter(|part| !writes[*part].is_empty()).collect();
    order.sort_by_key(|part| writes[*part].start);
    let mut extents: Vec<(Extent, BTreeSet<u64>)> = Vec::new();
    for part in order {
        let write = &writes[part];
        let range = around(write, unit, size);
        let mut cut = BTreeSet::new();
        if write.start != range.start {
            cut.insert(range.start);
        }
        if write.end != range.end {
            cut.insert(write.end / unit * unit);
        }
        match extents.last_mut() {
            Some((last, cuts)) if range.start < last.range.end => {
                last.range.end = last.range.end.max(range.end);
                last.parts.push(part);
                cuts.append(&mut cut);
            }
            Some(_) | None => extents.push((Extent { range, reads: Vec::new(), parts: vec![part] }, cut)),
        }
    }
    let whole = |(mut extent, cuts): (Extent, BTreeSet<u64>)| {
        extent.reads = cuts.into_iter().map(|start| start..(start + unit).min(size)).collect();
        extent.parts.sort_unstable();
        extent
    };
    extents.into_iter().map(whole).collect()
}

/// Splits a run of zeroes into what is no whole block at its begin, whole blocks, and the rest. Parts
/// may be empty.
pub(super) fn split(range: &Range<u64>, unit: u64, size: u64) -> [Range<u64>; 3] {
    let start = range.start.next_multiple_of(unit);
    let end = if range.end == size { size } else { range.end / unit * unit };
    if start >= end {
        return [range.clone(), range.end..range.end, range.end..range.end];
    }
    [range.start..start, start..end, end..range.end]
}

/// Bytes of devices that are being written.
#[derive(Debug, Default)]
pub(super) struct Busy {
    held: RefCell<Vec<(DeviceNumber, Range<u64>)>>,
    released: Signal,
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    busy: &'a Busy,
    ranges: Vec<(DeviceNumber, Range<u64>)>,
}

impl Busy {
    /// Waits until none of the ranges is held, then holds all of them.
    pub(super) async fn hold(&self, ranges: Vec<(DeviceNumber, Range<u64>)>) -> Held<'_> {
        let is_free = || !ranges.iter().any(|range| self.meets(range));
        self.released.until(|| is_free().then_some(())).await;
        self.held.borrow_mut().extend(ranges.iter().cloned());
        Held { busy: self, ranges }
    }

    fn meets(&self, (device, range): &(DeviceNumber, Range<u64>)) -> bool {
        let held = self.held.borrow();
        held.iter().any(|(other, taken)| other == device && taken.start < range.end && range.start < taken.end)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.busy.held.borrow_mut().retain(|range| !self.ranges.contains(range));
        self.busy.released.raise();
    }
}

#[cfg(test)]
mod tests {
    use cores::deterministic::Universe;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_blocks_are_written_as_they_are() {
        let found = extents(&[8192..12288, 0..4096], 4096, 1 << 20);
        let extent = |range, part| Extent { range, reads: vec![], parts: vec![part] };
        assert_eq!(found, [extent(0..4096, 1), extent(8192..12288, 0)]);
        assert_eq!(extents(&[512..1024, 1024..2048], 512, 1 << 20).len(), 2, "neighbours stay two");
    }

    #[test]
    fn writes_that_meet_in_a_block_become_one() {
        // The second copies of two regions: one ends where the other begins, in the middle of a block.
        let found = extents(&[268_288..270_848, 267_776..268_288], 4096, 1 << 20);
        let reads = vec![266_240..270_336, 270_336..274_432];
        assert_eq!(found, [Extent { range: 266_240..274_432, reads, parts: vec![0, 1] }]);
    }

    #[test]
    fn the_last_block_may_be_short() {
        let (write, last) = (4096..5120, 4096..5632);
        let found = extents(std::slice::from_ref(&write), 4096, 5632);
        assert_eq!(found, [Extent { range: last.clone(), reads: Vec::from([last]), parts: vec![0] }]);
        assert_eq!(split(&(4096..5632), 4096, 5632), [4096..4096, 4096..5632, 5632..5632]);
    }

    #[test]
    fn a_senseless_physical_block_is_not_believed() {
        assert_eq!(unit(BlockSizes { logical: 512, physical: 4096 }), 4096);
        assert_eq!(unit(BlockSizes { logical: 4096, physical: 512 }), 4096);
        assert_eq!(unit(BlockSizes { logical: 512, physical: 3000 }), 512);
        assert_eq!(unit(BlockSizes { logical: 512, physical: 1 << 30 }), 512);
    }

    #[test]
    fn what_is_held_is_waited_for() {
        let ended = Universe::new(1).run(async {
            let busy = std::rc::Rc::new(Busy::default());
            let disk = DeviceNumber(8, 0);
            let first = busy.hold(vec![(disk, 0..4096)]).await;
            let beside = busy.hold(vec![(disk, 4096..8192), (DeviceNumber(8, 16), 0..4096)]).await;
            let other = busy.clone();
            let waiting = cores::rt::spawn("waits", async move { drop(other.hold(vec![(disk, 512..1024)]).await) });
            cores::rt::yield_now().await;
            assert!(!waiting.is_finished());
            drop((first, beside));
            waiting.await.expect("it does not panic");
            busy.held.borrow().len()
        });
        assert_eq!(ended.finished(), 0);
    }

    proptest! {
        /// Reading, changing and writing the extents does what writing each piece by itself does.
        #[test]
        fn nothing_but_what_is_written_changes(
            pieces in proptest::collection::vec((0u64..60, 1u64..20), 1..6),
            power in 0u32..4,
            last in 60u64..80,
        ) {
            let (unit, size) = (512 << power, last * 512);
            let writes: Vec<Range<u64>> =
                pieces.iter().map(|(start, count)| start * 512..((start + count) * 512).min(size)).collect();
            let at = |byte: u64| usize::try_from(byte).expect("small");
            let span = |range: &Range<u64>| at(range.start)..at(range.end);
            let mut disk = vec![0xee_u8; at(size)];
            let mut expected = disk.clone();
            // Parts of one batch that overlap have no order; here the order given.
            for write in &writes {
                expected[span(write)].fill(1);
            }
            let mut before = 0;
            for extent in extents(&writes, unit, size) {
                prop_assert!(extent.range.start >= before && extent.range.start % unit == 0);
                prop_assert!(extent.range.end == size || extent.range.end % unit == 0);
                before = extent.range.end;
                let mut buffer = vec![0x11_u8; at(extent.range.end - extent.range.start)];
                let first = extent.range.start;
                let inside = |range: &Range<u64>| span(&(range.start - first..range.end - first));
                for read in &extent.reads {
                    buffer[inside(read)].copy_from_slice(&disk[span(read)]);
                }
                for part in &extent.parts {
                    buffer[inside(&writes[*part])].fill(1);
                }
                disk[span(&extent.range)].copy_from_slice(&buffer);
            }
            prop_assert!(disk == expected);
        }

        #[test]
        fn a_split_run_of_zeroes_is_the_same_run(start in 0u64..60, count in 1u64..60, power in 0u32..4) {
            let (unit, size) = (512_u64 << power, 60 * 512);
            let range = start * 512..((start + count) * 512).min(size);
            let [head, middle, tail] = split(&range, unit, size);
            prop_assert_eq!((head.start, head.end), (range.start, middle.start));
            prop_assert_eq!((middle.end, tail.end), (tail.start, range.end));
            let whole = middle.start % unit == 0 && (middle.end % unit == 0 || middle.end == size);
            prop_assert!(middle.is_empty() || whole);
        }
    }
}
