//! Writing sectors of block devices, on the side ring.
//!
//! A batch becomes whole physical blocks (see `extents`): what begins or ends inside of one is read,
//! changed and written back. Runs of zeroes are made by the device itself where it can.
//!
//! Invariant: a write that has started runs to its end whoever waits for it, and until then no other
//! touches its blocks; a block that could not be read is not written.
//!
//! Deliberately absent: a cache of blocks. Metadata is written seldom.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use cores::rt::{self, Join, Panicked};
use cores::side::Buffer;

use super::extents::{self, Extent, extents};
use super::sectors::{Place, ended, within};
use crate::error::{Fault, Why};
use crate::model::device::DeviceNumber;
use crate::sys::jobs::why;
use crate::sys::kernel::KernelSys;
use crate::sys::transfer::{self, ALIGNMENT, length, note, whole};
use crate::sys::{Target, Write, WriteData};

/// A part of a batch: which of the writes it belongs to, and the bytes of the device that it changes.
type Part = (usize, Range<u64>);

/// A read that was started: of what, and its result.
type Reading = (Range<u64>, Join<Result<Buffer, Why>>);

/// All that a batch changes on one device.
struct Changes {
    place: Place,
    /// What is put into blocks: whole writes of bytes, and the ragged ends of zeroes.
    parts: Vec<Part>,
    /// Whole blocks of zeroes.
    zeroes: Vec<Part>,
}

/// Blocks that are written at once.
struct Block {
    place: Place,
    extent: Extent,
    parts: Vec<Part>,
    buffer: Buffer,
}

impl KernelSys {
    pub(super) async fn write_sectors(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        let subjects: Vec<String> = batch.iter().map(|write| self.subject(write.target, write.start)).collect();
        // A task of its own, so that it ends even when nobody waits.
        let sys = self.clone();
        let results = rt::spawn("write", async move { sys.write_batch(&batch).await }).await;
        let bug = |panicked: Panicked| vec![Err(Why::Bug(panicked.to_string())); subjects.len()];
        let with_subject =
            |(result, subject): (Result<(), Why>, &String)| result.map_err(|why| Fault::new("write", subject, why));
        results.unwrap_or_else(bug).into_iter().zip(&subjects).map(with_subject).collect()
    }

    async fn write_batch(&self, batch: &[Write]) -> Vec<Result<(), Why>> {
        let mut results: Vec<Result<(), Why>> = batch.iter().map(|_| Ok(())).collect();
        let devices = self.changes(batch, &mut results).await;
        let held = self.inner.writing.hold(devices.iter().flat_map(Changes::ranges).collect()).await;
        // Zeroes go on while blocks are read and written.
        let zeroing: Vec<(usize, Join<Result<(), Why>>)> =
            devices.iter().flat_map(|changes| self.start_zeroes(changes)).collect();
        let blocks = devices.iter().flat_map(Changes::blocks).collect();
        let blocks = self.fill(blocks, batch, &mut results).await;
        self.put(blocks, &mut results).await;
        for (write, join) in zeroing {
            note(&mut results[write], ended(join.await));
        }
        drop(held);
        self.leave(devices.into_iter().map(|changes| changes.place).collect()).await;
        results
    }

    /// Sorts a batch by device.
    async fn changes(&self, batch: &[Write], results: &mut [Result<(), Why>]) -> Vec<Changes> {
        let mut found: BTreeMap<Target, Changes> = BTreeMap::new();
        for (index, write) in batch.iter().enumerate() {
            let changes = match found.entry(write.target) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => match self.place(write.target, true).await {
                    Ok(place) => new.insert(Changes { place, parts: Vec::new(), zeroes: Vec::new() }),
                    Err(why) => {
                        results[index] = Err(why);
                        continue;
                    }
                },
            };
            note(&mut results[index], changes.add(index, write));
        }
        found.into_values().collect()
    }

    /// Starts making whole blocks zero.
    fn start_zeroes(&self, changes: &Changes) -> Vec<(usize, Join<Result<(), Why>>)> {
        let start = |(write, range): &Part| {
            let (sys, place, range) = (self.clone(), changes.place.clone(), range.clone());
            (*write, rt::spawn("zero", async move { sys.zero(&place, range).await }))
        };
        changes.zeroes.iter().map(start).collect()
    }

    /// Makes whole blocks zero, by the device itself where it can.
    async fn zero(&self, place: &Place, range: Range<u64>) -> Result<(), Why> {
        let side = &self.inner.side;
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match side.fallocate(&place.fd, mode, range.start, range.end - range.start).await {
            Ok(()) => Ok(()),
            // Not every device can, and none while somebody reads what the kernel wants to drop from its cache.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EBUSY)) => {
                transfer::zeroes(side, &place.fd, range.start, range.end).await
            }
            Err(error) => Err(why(&error)),
        }
    }

    /// Gives blocks the content that they will have. Those that cannot be read are left out.
    async fn fill(&self, blocks: Vec<Block>, batch: &[Write], results: &mut [Result<(), Why>]) -> Vec<Block> {
        let reading: Vec<_> = blocks.iter().map(|block| self.start_reads(block)).collect();
        let mut filled = Vec::with_capacity(blocks.len());
        for (mut block, reads) in blocks.into_iter().zip(reading) {
            let mut outcome = Ok(());
            for (range, join) in reads {
                match ended(join.await) {
                    Ok(bytes) => block.buffer[within(&range, &block.extent.range)].copy_from_slice(&bytes),
                    Err(why) => outcome = Err(why),
                }
            }
            if outcome.is_ok() {
                block.change(batch);
                filled.push(block);
            } else {
                block.parts.iter().for_each(|(write, _)| note(&mut results[*write], outcome.clone()));
            }
        }
        filled
    }

    /// Starts reading what a block keeps.
    fn start_reads(&self, block: &Block) -> Vec<Reading> {
        let start = |range: &Range<u64>| {
            let (sys, place, own) = (self.clone(), block.place.clone(), range.clone());
            (range.clone(), rt::spawn("read", async move { sys.read_bytes(&place, &own).await }))
        };
        block.extent.reads.iter().map(start).collect()
    }

    /// Writes blocks, all at once.
    async fn put(&self, blocks: Vec<Block>, results: &mut [Result<(), Why>]) {
        let mut owners = Vec::with_capacity(blocks.len());
        let mut writes = Vec::with_capacity(blocks.len());
        for block in blocks {
            owners.push((block.parts, block.buffer.len()));
            writes.push((block.place.fd, block.extent.range.start, block.buffer));
        }
        let outcomes = self.inner.side.write_batch(writes).await;
        for ((parts, wanted), outcome) in owners.into_iter().zip(outcomes) {
            let outcome = whole(outcome, wanted);
            parts.iter().for_each(|(write, _)| note(&mut results[*write], outcome.clone()));
        }
    }
}

impl Changes {
    /// Adds a write of the batch.
    fn add(&mut self, index: usize, write: &Write) -> Result<(), Why> {
        let range = self.place.range(write.start, length(&write.data)?)?;
        let full = |range: &Range<u64>| !range.is_empty();
        match write.data {
            WriteData::Bytes(_) => self.parts.extend(Some(range).filter(full).map(|range| (index, range))),
            WriteData::Zeroes(_) => {
                let [head, middle, tail] = extents::split(&range, self.place.unit(), self.place.size);
                self.parts.extend([head, tail].into_iter().filter(full).map(|range| (index, range)));
                self.zeroes.extend(Some(middle).filter(full).map(|range| (index, range)));
            }
        }
        Ok(())
    }

    /// The extents of the parts.
    fn extents(&self) -> Vec<Extent> {
        let ranges: Vec<Range<u64>> = self.parts.iter().map(|(_, range)| range.clone()).collect();
        extents(&ranges, self.place.unit(), self.place.size)
    }

    /// All that is written, for holding it.
    fn ranges(&self) -> Vec<(DeviceNumber, Range<u64>)> {
        let blocks = self.extents().into_iter().map(|extent| extent.range);
        let zeroes = self.zeroes.iter().map(|(_, range)| range.clone());
        blocks.chain(zeroes).map(|range| (self.place.number, range)).collect()
    }

    /// The blocks that the parts make, still empty.
    fn blocks(&self) -> Vec<Block> {
        let block = |extent: Extent| {
            let bytes = usize::try_from(extent.range.end - extent.range.start).expect("part of what is in memory");
            let parts = extent.parts.iter().map(|part| self.parts[*part].clone()).collect();
            Block { place: self.place.clone(), extent, parts, buffer: Buffer::aligned(bytes, ALIGNMENT) }
        };
        self.extents().into_iter().map(block).collect()
    }
}

impl Block {
    /// Puts into it what is written, in the order of the batch.
    fn change(&mut self, batch: &[Write]) {
        for (write, range) in &self.parts {
            let into = &mut self.buffer[within(range, &self.extent.range)];
            match &batch[*write].data {
                WriteData::Bytes(bytes) => into.copy_from_slice(bytes),
                WriteData::Zeroes(_) => into.fill(0),
            }
        }
    }
}
