//! Reading, writing and flushing sectors of files, on the side ring.
//!
//! A thin volume is a file of its own, opened for each call. A metadata volume is a folder, so writing to
//! its device empties that: nobody writes there but to make a filesystem.
//!
//! Invariant: a result says success only when every byte was transferred. What lies outside of a
//! device is an error, never a longer file.
//!
//! Deliberately absent: the content of metadata volumes; that is in `mdv`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use cores::rt;
use cores::side::{Buffer, Fd};

use super::{FilesSys, mdv, thin};
use crate::error::{Fault, Why};
use crate::model::device::{BlockSizes, DeviceNumber};
use crate::model::dm::{Dm, Role, Table};
use crate::sys::jobs::why;
use crate::sys::linear::Piece;
use crate::sys::transfer::{self, ALIGNMENT, length, note, whole};
use crate::sys::{Target, Write, WriteData};
use crate::units::Sectors;

/// What a flush goes to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Flushed {
    Device(DeviceNumber),
    Volume(Dm),
    Pool(Dm),
}

/// Sectors of one file.
struct Part {
    fd: Fd,
    start: Sectors,
    count: Sectors,
}

/// The files of thin volumes, open, and why others are not.
type Volumes = BTreeMap<Target, Result<Option<Fd>, Why>>;

impl FilesSys {
    /// Makes ready what is read or written: opens a thin volume, empties a metadata volume.
    async fn reach(&self, target: Target, writes: bool) -> Result<Option<Fd>, Why> {
        match target {
            Target::Dm(device @ Dm::Thin(..)) => {
                let path = self.volume(device)?;
                let file = self.blocking(move || thin::open(&path)).await?;
                Ok(Some(Fd::new(file.into())))
            }
            Target::Dm(Dm::Private(pool, Role::Mdv)) if writes => {
                if self.inner.mounted.borrow().contains(&pool) {
                    return Err(Why::Errno(libc::EBUSY));
                }
                let volume = mdv::Volume::of(&self.inner.root, pool);
                self.blocking(move || volume.empty()).await.map(|()| None)
            }
            Target::Device(_) | Target::Dm(Dm::Private(..)) => Ok(None),
        }
    }

    /// Where a target's sectors are.
    fn parts(&self, volumes: &Volumes, target: Target, start: Sectors, count: Sectors) -> Result<Vec<Part>, Why> {
        let outside = |size| start.checked_add(count).is_none_or(|end| end > size);
        let device = match target {
            Target::Device(number) => return self.lie_on(vec![Piece { device: number, start, count }]),
            Target::Dm(device) => device,
        };
        let stack = self.inner.stack.borrow();
        match volumes[&target].clone()? {
            Some(_) if stack.table(device).is_none_or(|table| outside(table.length())) => Err(Why::Errno(libc::EIO)),
            Some(fd) => Ok(vec![Part { fd, start, count }]),
            None => self.lie_on(stack.resolve(device, start, count)?),
        }
    }

    /// The pieces with the files that they lie on.
    fn lie_on(&self, pieces: Vec<Piece>) -> Result<Vec<Part>, Why> {
        let open = self.inner.open.borrow();
        let with_file = |piece: Piece| {
            let device = open.get(&piece.device).ok_or(Why::Errno(libc::EBADF))?;
            let end = piece.start.checked_add(piece.count);
            let inside = end.is_some_and(|end| end <= device.size);
            let part = Part { fd: device.fd.clone(), start: piece.start, count: piece.count };
            if inside { Ok(part) } else { Err(Why::Errno(libc::EIO)) }
        };
        pieces.into_iter().map(with_file).collect()
    }

    /// Block sizes of an active dm device. The host completes what is smaller than its own blocks.
    pub(super) fn blocks_of(&self, device: Dm) -> Result<BlockSizes, Why> {
        self.inner.stack.borrow().table(device).ok_or(Why::Errno(libc::ENXIO))?;
        Ok(BlockSizes { logical: 512, physical: 512 })
    }

    pub(super) async fn read_sectors(&self, target: Target, start: Sectors, count: Sectors) -> Result<Buffer, Why> {
        let volumes = Volumes::from([(target, self.reach(target, false).await)]);
        let mut bytes = Vec::new();
        for Part { fd, start, count } in self.parts(&volumes, target, start, count)? {
            let wanted = usize::try_from(count.offset()).map_err(|_| Why::Errno(libc::EINVAL))?;
            let buffer = Buffer::aligned(wanted, ALIGNMENT);
            let (result, buffer) = self.inner.side.read(&fd, start.offset(), buffer).await;
            whole(result, wanted)?;
            bytes.extend_from_slice(&buffer);
        }
        Ok(bytes.into())
    }

    pub(super) async fn write_sectors(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        let mut volumes = Volumes::new();
        for write in &batch {
            if let Entry::Vacant(new) = volumes.entry(write.target) {
                new.insert(self.reach(write.target, true).await);
            }
        }
        let mut results: Vec<Result<(), Why>> = Vec::new();
        let mut owners = Vec::new(); // Which of the batch each write of a part belongs to.
        let mut writes = Vec::new();
        let mut zeroes = Vec::new();
        for (index, write) in batch.iter().enumerate() {
            results.push(Ok(()));
            let parts = length(&write.data);
            let parts = parts.and_then(|count| self.parts(&volumes, write.target, write.start, count));
            let parts = match parts {
                Ok(parts) => parts,
                Err(why) => {
                    results[index] = Err(why);
                    continue;
                }
            };
            let mut from = 0;
            for part in parts {
                match &write.data {
                    WriteData::Zeroes(_) => zeroes.push((index, part)),
                    WriteData::Bytes(bytes) => {
                        let end = from + usize::try_from(part.count.offset()).expect("part of what is in memory");
                        let mut buffer = Buffer::aligned(end - from, ALIGNMENT);
                        buffer.copy_from_slice(&bytes[from..end]);
                        from = end;
                        owners.push((index, buffer.len()));
                        writes.push((part.fd, part.start.offset(), buffer));
                    }
                }
            }
        }
        let outcomes = self.inner.side.write_batch(writes).await;
        for ((index, wanted), outcome) in owners.into_iter().zip(outcomes) {
            note(&mut results[index], whole(outcome, wanted));
        }
        for (index, part) in zeroes {
            let outcome = self.zero(&part).await;
            note(&mut results[index], outcome);
        }
        let fault = |(write, result): (&Write, Result<(), Why>)| {
            result.map_err(|why| Fault::new("write", self.subject(write.target, write.start), why))
        };
        batch.iter().zip(results).map(fault).collect()
    }

    /// A hole reads as zeroes and takes no room.
    async fn zero(&self, Part { fd, start, count }: &Part) -> Result<(), Why> {
        let side = &self.inner.side;
        let (start, end) = (start.offset(), (*start + *count).offset());
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match side.fallocate(fd, hole, start, end - start).await {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(why(&error)),
        }
        transfer::zeroes(side, fd, start, end).await
    }

    pub(super) async fn flush_targets(&self, targets: &[Target]) -> Vec<Result<(), Fault>> {
        let parts: Vec<Result<Vec<Flushed>, Why>> = targets.iter().map(|target| self.flushed(*target)).collect();
        // What several targets lie on is flushed once, all of it in parallel.
        let mut running = BTreeMap::new();
        for part in parts.iter().flatten().flatten() {
            if !running.contains_key(part) {
                let (sys, own) = (self.clone(), part.clone());
                running.insert(part.clone(), rt::spawn("flush", async move { sys.flush_one(&own).await }));
            }
        }
        let mut outcomes = BTreeMap::new();
        for (part, join) in running {
            let outcome = join.await.unwrap_or_else(|panicked| Err(Why::Bug(panicked.to_string())));
            outcomes.insert(part, outcome);
        }
        let fault = |(target, parts): (&Target, Result<Vec<Flushed>, Why>)| {
            let outcome = parts.and_then(|parts| parts.iter().try_for_each(|part| outcomes[part].clone()));
            outcome.map_err(|why| Fault::new("flush", self.subject(*target, Sectors::ZERO), why))
        };
        targets.iter().zip(parts).map(fault).collect()
    }

    fn flushed(&self, target: Target) -> Result<Vec<Flushed>, Why> {
        let device = match target {
            Target::Device(number) => return Ok(vec![Flushed::Device(number)]),
            Target::Dm(device) => device,
        };
        let stack = self.inner.stack.borrow();
        let table = stack.table(device).ok_or(Why::Errno(libc::ENXIO))?;
        match table {
            Table::Thin { .. } => Ok(vec![Flushed::Volume(device), Flushed::Pool(device)]),
            Table::ThinPool { .. } => Ok(vec![Flushed::Pool(device)]),
            Table::Linear(_) | Table::Cache { .. } => {
                let pieces = stack.resolve(device, Sectors::ZERO, table.length())?;
                Ok(pieces.into_iter().map(|piece| Flushed::Device(piece.device)).collect())
            }
        }
    }

    async fn flush_one(&self, part: &Flushed) -> Result<(), Why> {
        match part {
            Flushed::Device(number) => {
                let fd = self.inner.open.borrow().get(number).map(|device| device.fd.clone());
                let fd = fd.ok_or(Why::Errno(libc::EBADF))?;
                self.inner.side.fsync(&fd, true).await.map_err(|error| why(&error))
            }
            Flushed::Volume(device) => {
                let path = self.volume(*device)?;
                let file = self.blocking(move || thin::open(&path)).await?;
                let fd: Fd = Fd::new(file.into());
                self.inner.side.fsync(&fd, true).await.map_err(|error| why(&error))
            }
            Flushed::Pool(device) => {
                let folder = self.inner.root.thin(device.pool());
                self.blocking(move || super::root::sync_folder(&folder)).await
            }
        }
    }
}
