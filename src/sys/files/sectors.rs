//! Reading, writing and flushing sectors of files, on the side ring.
//!
//! Invariant: a result says success only when every byte was transferred. What lies outside of a
//! device is an error, never a longer file.
//!
//! Deliberately absent: reading and writing thin volumes; mkfs.xfs and the user do that.

use std::collections::BTreeMap;

use cores::rt;
use cores::side::{Buffer, Fd};

use super::FilesSys;
use crate::error::{Fault, Why};
use crate::model::device::DeviceNumber;
use crate::model::dm::{Dm, Table};
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

impl FilesSys {
    /// Where a target's sectors are, each piece with the file that it lies on.
    fn files(&self, target: Target, start: Sectors, count: Sectors) -> Result<Vec<(Fd, Piece)>, Why> {
        let pieces = match target {
            Target::Device(number) => vec![Piece { device: number, start, count }],
            Target::Dm(device) => self.inner.stack.borrow().resolve(device, start, count)?,
        };
        let open = self.inner.open.borrow();
        let with_file = |piece: Piece| {
            let device = open.get(&piece.device).ok_or(Why::Errno(libc::EBADF))?;
            let end = piece.start.checked_add(piece.count);
            let inside = end.is_some_and(|end| end <= device.size);
            if inside { Ok((device.fd.clone(), piece)) } else { Err(Why::Errno(libc::EIO)) }
        };
        pieces.into_iter().map(with_file).collect()
    }

    pub(super) async fn read_sectors(&self, target: Target, start: Sectors, count: Sectors) -> Result<Vec<u8>, Why> {
        let mut bytes = Vec::new();
        for (fd, piece) in self.files(target, start, count)? {
            let wanted = usize::try_from(piece.count.offset()).map_err(|_| Why::Errno(libc::EINVAL))?;
            let buffer = Buffer::aligned(wanted, ALIGNMENT);
            let (result, buffer) = self.inner.side.read(&fd, piece.start.offset(), buffer).await;
            whole(result, wanted)?;
            bytes.extend_from_slice(&buffer);
        }
        Ok(bytes)
    }

    pub(super) async fn write_sectors(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        let mut results: Vec<Result<(), Why>> = Vec::new();
        let mut owners = Vec::new(); // Which of the batch each write of a piece belongs to.
        let mut writes = Vec::new();
        let mut zeroes = Vec::new();
        for (index, write) in batch.iter().enumerate() {
            results.push(Ok(()));
            let files = length(&write.data).and_then(|count| self.files(write.target, write.start, count));
            let files = match files {
                Ok(files) => files,
                Err(why) => {
                    results[index] = Err(why);
                    continue;
                }
            };
            let mut from = 0;
            for (fd, piece) in files {
                match &write.data {
                    WriteData::Zeroes(_) => zeroes.push((index, fd, piece)),
                    WriteData::Bytes(bytes) => {
                        let end = from + usize::try_from(piece.count.offset()).expect("part of what is in memory");
                        let mut buffer = Buffer::aligned(end - from, ALIGNMENT);
                        buffer.copy_from_slice(&bytes[from..end]);
                        from = end;
                        owners.push((index, buffer.len()));
                        writes.push((fd, piece.start.offset(), buffer));
                    }
                }
            }
        }
        let outcomes = self.inner.side.write_batch(writes).await;
        for ((index, wanted), outcome) in owners.into_iter().zip(outcomes) {
            note(&mut results[index], whole(outcome, wanted));
        }
        for (index, fd, piece) in zeroes {
            let outcome = self.zero(&fd, piece).await;
            note(&mut results[index], outcome);
        }
        let fault = |(write, result): (&Write, Result<(), Why>)| {
            result.map_err(|why| Fault::new("write", self.subject(write.target, write.start), why))
        };
        batch.iter().zip(results).map(fault).collect()
    }

    /// A hole reads as zeroes and takes no room.
    async fn zero(&self, fd: &Fd, piece: Piece) -> Result<(), Why> {
        let side = &self.inner.side;
        let (start, end) = (piece.start.offset(), (piece.start + piece.count).offset());
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
            Table::Linear(_) => {
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
                let file = self.blocking(move || super::dig::open(&path)).await?;
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
