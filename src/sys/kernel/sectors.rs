//! Where sectors are, and reading and flushing them, on the side ring.
//!
//! Everything bypasses the cache (O_DIRECT), so it is whole logical blocks that are read.
//!
//! Invariant: a result says success only when every byte was transferred, and what lies outside of a
//! device is an error.
//!
//! Deliberately absent: writing (see `writes`).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use cores::rt::{self, Panicked};
use cores::side::{Buffer, Fd};

use super::block::{Shape, shape};
use super::{dm, extents, lanes};
use crate::error::{Fault, Why};
use crate::limits::READS_AT_ONCE_MAX;
use crate::model::device::{BlockSizes, DeviceNumber};
use crate::model::dm::Dm;
use crate::model::ids::PoolUuid;
use crate::sys::Target;
use crate::sys::jobs::why;
use crate::sys::kernel::KernelSys;
use crate::sys::transfer::{ALIGNMENT, whole};
use crate::units::{SECTOR_BYTES, Sectors};

/// Where a target's sectors are.
#[derive(Clone)]
pub(super) struct Place {
    /// The device that they are on.
    pub(super) number: DeviceNumber,
    /// Open for direct I/O.
    pub(super) fd: Fd,
    /// Its length in bytes.
    pub(super) size: u64,
    blocks: BlockSizes,
    /// Of a dm device that was opened for one call: whose it is.
    pool: Option<PoolUuid>,
}

impl Place {
    /// The bytes of some sectors, if the device has them.
    pub(super) fn range(&self, start: Sectors, count: Sectors) -> Result<Range<u64>, Why> {
        let end = start.checked_add(count).filter(|end| end.0 <= self.size / SECTOR_BYTES);
        end.map(|end| start.offset()..end.offset()).ok_or(Why::Errno(libc::EIO))
    }

    /// What is written at once.
    pub(super) fn unit(&self) -> u64 {
        extents::unit(self.blocks)
    }
}

impl From<(File, Shape)> for Place {
    fn from((file, shape): (File, Shape)) -> Self {
        let Shape { number, size, blocks, .. } = shape;
        Self { number, fd: Fd::new(file.into()), size: size.offset(), blocks, pool: None }
    }
}

impl KernelSys {
    /// What a target is called in a message.
    pub(super) fn subject(&self, target: Target, start: Sectors) -> String {
        match target {
            Target::Dm(device) => format!("{device} at sector {}", start.0),
            Target::Device(number) => match self.inner.open.borrow().get(&number) {
                Some(device) => format!("{} at sector {}", device.path, start.0),
                None => format!("a device that is not open ({}:{})", number.0, number.1),
            },
        }
    }

    /// Finds a target. Give the place to `leave` in the end.
    pub(super) async fn place(&self, target: Target, writable: bool) -> Result<Place, Why> {
        let number = match target {
            Target::Dm(device) => return self.volume(device, writable).await,
            Target::Device(number) => number,
        };
        let open = self.inner.open.borrow();
        let device = open.get(&number).ok_or(Why::Errno(libc::EBADF))?;
        Ok(Place { number, fd: device.fd.clone(), size: device.size.offset(), blocks: device.blocks, pool: None })
    }

    /// A dm device, opened for one call.
    async fn volume(&self, device: Dm, writable: bool) -> Result<Place, Why> {
        let number = self.inner.mapper.number(device).await?;
        let (pool, lane) = (Some(device.pool()), lanes::of(&self.inner.lanes.files, device.pool()));
        let opened = lanes::blocking(lane, move || open(number, writable)).await;
        opened.map(|opened| Place { pool, ..Place::from(opened) })
    }

    /// Dm devices of a pool, opened for one call. Few at a time, because each has a descriptor.
    async fn volumes(&self, pool: PoolUuid, numbers: Vec<Result<DeviceNumber, Why>>) -> Vec<Result<Place, Why>> {
        let (lane, count) = (lanes::of(&self.inner.lanes.files, pool), numbers.len());
        let one = |number: Result<DeviceNumber, Why>| open(number?, false).map_err(|error| why(&error));
        let place = |opened| Place { pool: Some(pool), ..Place::from(opened) };
        match lanes::on(lane, move || numbers.into_iter().map(one).collect::<Vec<_>>()).await {
            Ok(opened) => opened.into_iter().map(|opened| opened.map(place)).collect(),
            Err(why) => (0..count).map(|_| Err(why.clone())).collect(),
        }
    }

    /// Gives back the descriptor of a volume on a lane: its last close may wait.
    pub(super) async fn leave(&self, places: Vec<Place>) {
        let files = &self.inner.lanes.files;
        // They are of one pool, or devices that somebody else has open, too.
        let lane = places.iter().find_map(|place| place.pool).map_or(files.into(), |pool| lanes::of(files, pool));
        let only: Vec<_> = places.into_iter().filter_map(|place| Rc::try_unwrap(place.fd).ok()).collect();
        if !only.is_empty()
            && let Err(why) = lanes::on(lane, move || drop(only)).await
        {
            // The job was dropped, and the descriptors with it.
            log::warn!("{}", Fault::new("close in good order", "dm devices", why));
        }
    }

    pub(super) async fn read_sectors(&self, target: Target, start: Sectors, count: Sectors) -> Result<Buffer, Why> {
        let place = self.place(target, false).await?;
        let outcome = self.read_place(&place, start, count).await;
        self.leave(vec![place]).await;
        outcome
    }

    /// Reads several places, the device opened once; says at which one it failed.
    pub(super) async fn read_places(
        &self,
        target: Target,
        places: &[(Sectors, Sectors)],
    ) -> Result<Vec<Buffer>, (Sectors, Why)> {
        let place = self.place(target, false).await.map_err(|why| (Sectors::ZERO, why))?;
        let outcome = self.read_at(&place, places).await;
        self.leave(vec![place]).await;
        outcome
    }

    async fn read_at(&self, place: &Place, places: &[(Sectors, Sectors)]) -> Result<Vec<Buffer>, (Sectors, Why)> {
        let wanted = places.iter().map(|(start, count)| Ok((place, *start, *count))).collect();
        let read = self.read_all(wanted).await;
        read.into_iter().zip(places).map(|(read, (start, _))| read.map_err(|why| (*start, why))).collect()
    }

    /// The first sectors of dm devices of a pool, so many of each; a part of the devices at a time.
    pub(super) async fn read_heads(&self, devices: &[Dm], count: Sectors) -> Vec<Result<Buffer, Why>> {
        let numbers = self.inner.mapper.numbers(devices).await;
        let mut all = Vec::with_capacity(devices.len());
        for (some, numbers) in devices.chunks(READS_AT_ONCE_MAX).zip(numbers.chunks(READS_AT_ONCE_MAX)) {
            let places = self.volumes(some[0].pool(), numbers.to_vec()).await;
            let wanted = places.iter().map(|place| match place {
                Ok(place) => Ok((place, Sectors::ZERO, count)),
                Err(why) => Err(why.clone()),
            });
            all.extend(self.read_all(wanted.collect()).await);
            self.leave(places.into_iter().flatten().collect()).await;
        }
        all
    }

    /// Reads sectors of places that could be found, all at once.
    async fn read_all(&self, wanted: Vec<Result<(&Place, Sectors, Sectors), Why>>) -> Vec<Result<Buffer, Why>> {
        let mut reads = Vec::with_capacity(wanted.len());
        let mut parts = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            parts.push(wanted.and_then(|(place, start, count)| {
                let range = place.range(start, count)?;
                let blocks = extents::around(&range, u64::from(place.blocks.logical), place.size);
                let bytes = usize::try_from(blocks.end - blocks.start).map_err(|_| Why::Errno(libc::EINVAL))?;
                reads.push((place.fd.clone(), blocks.start, Buffer::aligned(bytes, ALIGNMENT)));
                Ok((bytes, within(&range, &blocks)))
            }));
        }
        let mut read = self.inner.side.read_batch(reads).await.into_iter();
        let found = |part: Result<(usize, Range<usize>), Why>| {
            let (bytes, part) = part?;
            let (result, buffer) = read.next().expect("each of these was read");
            whole(result, bytes).map(|()| buffer.part(part))
        };
        parts.into_iter().map(found).collect()
    }

    async fn read_place(&self, place: &Place, start: Sectors, count: Sectors) -> Result<Buffer, Why> {
        let range = place.range(start, count)?;
        let blocks = extents::around(&range, u64::from(place.blocks.logical), place.size);
        let buffer = self.read_bytes(place, &blocks).await?;
        Ok(buffer.part(within(&range, &blocks)))
    }

    /// Reads whole blocks.
    pub(super) async fn read_bytes(&self, place: &Place, range: &Range<u64>) -> Result<Buffer, Why> {
        let wanted = usize::try_from(range.end - range.start).map_err(|_| Why::Errno(libc::EINVAL))?;
        let buffer = Buffer::aligned(wanted, ALIGNMENT);
        let (result, buffer) = self.inner.side.read(&place.fd, range.start, buffer).await;
        whole(result, wanted).map(|()| buffer)
    }

    pub(super) async fn flush_targets(&self, targets: &[Target]) -> Vec<Result<(), Fault>> {
        // What is named twice is flushed once, all of it in parallel.
        let mut running = BTreeMap::new();
        for target in targets.iter().copied() {
            let sys = self.clone();
            running.entry(target).or_insert_with(|| rt::spawn("flush", async move { sys.flush_one(target).await }));
        }
        let mut outcomes = BTreeMap::new();
        for (target, join) in running {
            outcomes.insert(target, ended(join.await));
        }
        let fault = |target: &Target| {
            outcomes[target].clone().map_err(|why| Fault::new("flush", self.subject(*target, Sectors::ZERO), why))
        };
        targets.iter().map(fault).collect()
    }

    /// Block sizes of a dm device.
    pub(super) async fn blocks_of(&self, device: Dm) -> Result<BlockSizes, Why> {
        let place = self.volume(device, false).await?;
        let blocks = place.blocks;
        self.leave(vec![place]).await;
        Ok(blocks)
    }

    async fn flush_one(&self, target: Target) -> Result<(), Why> {
        // Not open for writing: udev would look at a dm device again when that is closed.
        let place = self.place(target, false).await?;
        let outcome = self.inner.side.fsync(&place.fd, true).await;
        self.leave(vec![place]).await;
        outcome.map_err(|error| why(&error))
    }
}

/// Opens the dm device of a number. Blocking.
fn open(number: DeviceNumber, writable: bool) -> io::Result<(File, Shape)> {
    let file = OpenOptions::new().read(true).write(writable).custom_flags(libc::O_DIRECT).open(dm::node(number))?;
    let shape = shape(&file)?;
    // It went, and another took its number.
    if shape.number != number { Err(io::Error::from_raw_os_error(libc::ENXIO)) } else { Ok((file, shape)) }
}

/// Where a range lies in a buffer that holds another around it.
pub(super) fn within(range: &Range<u64>, around: &Range<u64>) -> Range<usize> {
    let at = |byte: u64| usize::try_from(byte - around.start).expect("a position in a buffer");
    at(range.start)..at(range.end)
}

/// The result of a task; a panic of it is a bug of ours.
pub(super) fn ended<T>(result: Result<Result<T, Why>, Panicked>) -> Result<T, Why> {
    result.unwrap_or_else(|panicked| Err(Why::Bug(panicked.to_string())))
}
