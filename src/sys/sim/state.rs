//! What a simulated machine is made of, and what happens to it when the power or the process fails.
//!
//! Thin-pool metadata and metadata volumes are kept beside the disks but belong to places on them:
//! a mark on the first sector of the place says whose it is. Overwrite or lose the mark, and they
//! are gone, as they would be.
//!
//! Invariant: nothing here waits; each function is one moment of the machine.
//!
//! Deliberately absent: who asks. Processes that are dead are kept away by `calls`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::dice::Dice;
use super::disk::{Disk, UNIT_BYTES};
use super::events::News;
use super::gate::Gate;
use super::mdv::MdvStore;
use super::thin::ThinStore;
use crate::error::Why;
use crate::model::device::{DeviceNumber, DevicePath};
use crate::model::dm::{Below, Dm, Role, Table, ThinMessage};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::sys::linear::Piece;
use crate::sys::stack::{Blocked, Likeness, Stack};
use crate::sys::{Target, Write, WriteData};
use crate::units::{SECTOR_BYTES, Sectors};

/// A place on a disk.
type Place = (DeviceNumber, Sectors);

/// First bytes of a thin pool's metadata device and of a metadata volume here; a number follows.
const THIN_MARK: &[u8; 8] = b"sim-thin";
const MDV_MARK: &[u8; 8] = b"sim-mdv\0";
/// Who reads when it is the machine itself.
const KERNEL: u64 = 0;
/// Sectors that are zero on thin-pool metadata that was never used: the kernel looks at 4 KiB.
const FRESH_SECTORS: Sectors = Sectors(8);

/// Everything.
#[derive(Debug)]
pub(super) struct State {
    pub(super) gate: Gate,
    pub(super) dice: Dice,
    /// Unknown absolute paths are empty disks of this size.
    pub(super) conjures: Option<Sectors>,
    pub(super) format_time: Duration,
    pub(super) disks: BTreeMap<DeviceNumber, Disk>,
    /// Symbolic links.
    pub(super) links: BTreeMap<DevicePath, DevicePath>,
    /// Open by which `SimSys` of the process that runs now; whether for writing.
    pub(super) open: BTreeMap<(u64, DeviceNumber), bool>,
    /// Disks that were pulled and may come back.
    pub(super) pulled: Vec<Disk>,
    pub(super) news: News,
    /// How many `SimSys` there have been.
    pub(super) seats: u64,
    pub(super) stack: Stack,
    thin: BTreeMap<Place, ThinStore>,
    mdv: BTreeMap<Place, MdvStore>,
    pub(super) mounted: BTreeMap<PoolUuid, Place>,
    /// Volumes that a user has mounted.
    pub(super) in_use: BTreeSet<Dm>,
    pub(super) announced: BTreeMap<FsUuid, (PoolUuid, Name, Name, ThinId)>,
    pub(super) bugs: Vec<String>,
    /// Grows whenever the process ends: calls of an earlier one do nothing any more.
    pub(super) life: u64,
    /// Counts writes, their ends, and marks.
    clock: u64,
}

impl State {
    pub(super) const fn new(seed: u64, delay_max: Duration) -> Self {
        Self {
            gate: Gate::new(delay_max),
            dice: Dice::new(seed),
            conjures: None,
            format_time: Duration::ZERO,
            disks: BTreeMap::new(),
            links: BTreeMap::new(),
            open: BTreeMap::new(),
            pulled: Vec::new(),
            news: News::new(),
            seats: 0,
            stack: Stack::new(),
            thin: BTreeMap::new(),
            mdv: BTreeMap::new(),
            mounted: BTreeMap::new(),
            in_use: BTreeSet::new(),
            announced: BTreeMap::new(),
            bugs: Vec::new(),
            life: 0,
            clock: 0,
        }
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Notes a mistake of the daemon and panics with it.
    pub(super) fn bug(&mut self, what: String) -> ! {
        self.bugs.push(what.clone());
        panic!("{what}");
    }

    // ---- the process and the power ----------------------------------------------------------

    /// The power fails. Only what is durable is there afterwards, and by luck some of the rest.
    pub(super) fn crash(&mut self, seed: u64) {
        let mut dice = Dice::new(seed);
        for disk in self.disks.values_mut() {
            disk.lose(&mut dice);
        }
        for store in self.thin.values_mut() {
            store.lose(&mut dice);
        }
        for store in self.mdv.values_mut() {
            store.lose(&mut dice);
        }
        self.stack.clear();
        self.in_use.clear();
        self.announced.clear();
        self.mounted.clear();
        self.news.ailing.clear();
        self.dice = dice;
        self.reopen("the power failed");
    }

    /// The process ends. The kernel goes on: what was started ends, tables stay, and the mounts of
    /// the process' own namespace are undone cleanly.
    pub(super) fn kill(&mut self) {
        let now = self.tick();
        for disk in self.disks.values_mut() {
            disk.end_all(now);
        }
        for (_, place) in std::mem::take(&mut self.mounted) {
            self.mdv.get_mut(&place).expect("a mounted volume exists").sync_all();
        }
        self.reopen("the process ended");
    }

    fn reopen(&mut self, what: &str) {
        self.open.clear();
        // A thin pool that is not well stays so until it is set up anew.
        let ailing = std::mem::take(&mut self.news.ailing);
        self.news = News::new();
        self.news.ailing = ailing;
        self.life += 1;
        self.gate.reopen(what);
    }

    // ---- sectors ------------------------------------------------------------------------------

    /// Where a target's sectors are. A device must be open to `who`.
    pub(super) fn pieces(&self, who: u64, target: Target, start: Sectors, count: Sectors) -> Result<Vec<Piece>, Why> {
        match target {
            Target::Device(number) if self.open.contains_key(&(who, number)) => {
                Ok(vec![Piece { device: number, start, count }])
            }
            Target::Device(_) => Err(Why::Errno(libc::EBADF)),
            Target::Dm(device) => self.stack.resolve(device, start, count),
        }
    }

    /// What a reader sees.
    pub(super) fn read(&self, who: u64, target: Target, start: Sectors, count: Sectors) -> Result<Vec<u8>, Why> {
        let mut bytes = Vec::new();
        for piece in self.pieces(who, target, start, count)? {
            let disk = self.disks.get(&piece.device).ok_or(Why::Errno(libc::ENODEV))?;
            if let Some(errno) = disk.reads_fail.or_else(|| disk.refuse(piece.start, piece.count)) {
                return Err(Why::Errno(errno));
            }
            bytes.extend(disk.read(piece.start, piece.count));
        }
        Ok(bytes)
    }

    /// Starts a write and tells its number. `fails`: it will end with an error, and any part of it
    /// may get through.
    pub(super) fn submit(&mut self, who: u64, write: &Write, fails: bool) -> Result<(u64, Vec<Piece>), Why> {
        let count = length(&write.data)?;
        let below = match write.target {
            Target::Device(number) => Below::Device(number),
            Target::Dm(device) => Below::Dm(device),
        };
        if let Some(owner) = self.stack.owner(below, write.start, count) {
            self.bug(format!("a write to {:?} at {} hits sectors of {owner}", write.target, write.start));
        }
        if let Target::Device(number) = write.target
            && self.open.get(&(who, number)) == Some(&false)
        {
            return Err(Why::Errno(libc::EBADF));
        }
        let pieces = self.pieces(who, write.target, write.start, count)?;
        for piece in &pieces {
            let disk = self.disks.get(&piece.device).ok_or(Why::Errno(libc::ENODEV))?;
            if let Some(errno) = disk.writes_fail.or_else(|| disk.refuse(piece.start, piece.count)) {
                return Err(Why::Errno(errno));
            }
        }
        let id = self.tick();
        let mut done = 0;
        for piece in &pieces {
            let data = part(&write.data, done, piece.count);
            done += usize::try_from(piece.count.offset()).expect("a write fits memory");
            let (disks, dice) = (&mut self.disks, &mut self.dice);
            let disk = disks.get_mut(&piece.device).expect("checked above");
            disk.submit(id, piece.start, &data, || !fails || dice.coin());
        }
        Ok((id, pieces))
    }

    /// Ends a write.
    pub(super) fn end(&mut self, id: u64, pieces: &[Piece]) {
        let now = self.tick();
        for piece in pieces {
            if let Some(disk) = self.disks.get_mut(&piece.device) {
                disk.end(id, piece.start, piece.count, now);
            }
        }
    }

    /// Starts a flush: which disks, and the thin pool whose metadata goes along.
    pub(super) fn flush_start(&self, target: Target) -> Result<(Vec<DeviceNumber>, u64), Why> {
        let (pool_wide, device) = match target {
            Target::Device(number) => return self.flushable(vec![number]),
            Target::Dm(device) => match self.stack.table(device).ok_or(Why::Errno(libc::ENXIO))? {
                Table::Linear(_) => (false, device),
                Table::ThinPool { .. } | Table::Thin { .. } => (true, device),
            },
        };
        let mut numbers = BTreeSet::new();
        let roles: &[Role] = if pool_wide { &[Role::ThinMeta, Role::ThinData] } else { &[] };
        let below = roles.iter().map(|role| Dm::Private(device.pool(), *role));
        let mut devices: Vec<Dm> = below.collect();
        if !pool_wide {
            devices.push(device);
        }
        for device in devices {
            let length = self.stack.table(device).ok_or(Why::Errno(libc::ENXIO))?.length();
            numbers.extend(self.stack.resolve(device, Sectors::ZERO, length)?.iter().map(|piece| piece.device));
        }
        self.flushable(numbers.into_iter().collect())
    }

    fn flushable(&self, numbers: Vec<DeviceNumber>) -> Result<(Vec<DeviceNumber>, u64), Why> {
        for number in &numbers {
            let disk = self.disks.get(number).ok_or(Why::Errno(libc::ENODEV))?;
            if let Some(errno) = disk.writes_fail {
                return Err(Why::Errno(errno));
            }
        }
        Ok((numbers, self.clock))
    }

    /// Ends a flush: what had ended when it began is durable.
    pub(super) fn flush_end(&mut self, numbers: &[DeviceNumber], until: u64) {
        for number in numbers {
            if let Some(disk) = self.disks.get_mut(number) {
                disk.flush(until);
            }
        }
    }

    // ---- device-mapper ------------------------------------------------------------------------

    pub(super) fn activate(&mut self, device: Dm, table: &Table) -> Result<(), Why> {
        if self.stack.likeness(device, table)? == Likeness::Same {
            // A thin pool that works with less metadata than its device has is shown the rest.
            return if let Table::ThinPool { .. } = table { self.open_thin_pool(device.pool()) } else { Ok(()) };
        }
        match self.stack.check(device, table, |number| self.disks.get(&number).map(|disk| disk.size)) {
            Ok(()) => {}
            Err(Blocked::Why(why)) => return Err(why),
            Err(Blocked::Bug(what)) => self.bug(what),
        }
        match table {
            Table::Linear(_) => {}
            Table::ThinPool { .. } => self.open_thin_pool(device.pool())?,
            Table::Thin { id, .. } => {
                if !self.thin_store(device.pool())?.volumes().contains_key(id) {
                    return Err(Why::Errno(libc::ENODATA));
                }
            }
        }
        self.stack.insert(device, table.clone());
        Ok(())
    }

    pub(super) fn deactivate(&mut self, device: Dm) -> Result<(), Why> {
        let mounted = device == Dm::Private(device.pool(), Role::Mdv) && self.mounted.contains_key(&device.pool());
        if mounted || self.in_use.contains(&device) {
            return Err(Why::Errno(libc::EBUSY));
        }
        self.stack.remove(device)?;
        if let Dm::Thin(_, filesystem) = device {
            self.announced.remove(&filesystem);
        }
        Ok(())
    }

    /// The mark on the first sector of a device, and where that is.
    fn mark(&self, device: Dm, kind: &[u8; 8]) -> Result<(Place, Option<u64>), Why> {
        let first = self.stack.resolve(device, Sectors::ZERO, Sectors(1))?;
        let piece = first.first().expect("one sector is one piece");
        let sector = self.read(KERNEL, Target::Dm(device), Sectors::ZERO, Sectors(1))?;
        let number = sector[8..16].try_into().expect("eight bytes");
        let mark = sector.starts_with(kind).then_some(u64::from_le_bytes(number));
        Ok(((piece.device, piece.start), mark))
    }

    fn engrave(&mut self, place: Place, kind: &[u8; 8], mark: u64) {
        let mut sector = [0; UNIT_BYTES];
        sector[..8].copy_from_slice(kind);
        sector[8..16].copy_from_slice(&mark.to_le_bytes());
        self.disks.get_mut(&place.0).expect("a resolved place lies on a disk").engrave(place.1, &sector);
    }

    /// Finds the metadata of a thin pool, or begins it where there are only zeroes. It comes to use all of
    /// its device, and never works on a smaller one again.
    fn open_thin_pool(&mut self, pool: PoolUuid) -> Result<(), Why> {
        let meta = Dm::Private(pool, Role::ThinMeta);
        let (place, mark) = self.mark(meta, THIN_MARK)?;
        let length = self.stack.table(meta).ok_or(Why::Errno(libc::ENODEV))?.length();
        if let Some(store) = self.thin.get_mut(&place).filter(|store| Some(store.mark) == mark) {
            if length < store.meta {
                return Err(Why::Errno(libc::EINVAL));
            }
            store.meta = length;
            return Ok(());
        }
        let start = self.read(KERNEL, Target::Dm(meta), Sectors::ZERO, FRESH_SECTORS)?;
        if start.iter().any(|byte| *byte != 0) {
            return Err(Why::Errno(libc::EILSEQ)); // As the kernel's superblock check answers.
        }
        let mark = self.tick();
        self.engrave(place, THIN_MARK, mark);
        self.thin.insert(place, ThinStore::new(mark, length));
        Ok(())
    }

    fn thin_place(&self, pool: PoolUuid) -> Result<Place, Why> {
        if self.stack.table(Dm::Private(pool, Role::ThinPool)).is_none() {
            return Err(Why::Errno(libc::ENXIO));
        }
        let meta = self.stack.resolve(Dm::Private(pool, Role::ThinMeta), Sectors::ZERO, Sectors(1))?;
        let piece = meta.first().expect("one sector is one piece");
        Ok((piece.device, piece.start))
    }

    /// Makes or drops a thin volume. One that is active is not dropped.
    pub(super) fn thin_message(&mut self, pool: PoolUuid, message: ThinMessage) -> Result<(), Why> {
        let outcome = match message {
            ThinMessage::Create(id) => self.thin_store_mut(pool)?.create(id),
            ThinMessage::Delete(id) => {
                if self.stack.is_thin_active(pool, id) {
                    return Err(Why::Errno(libc::EBUSY));
                }
                self.thin_store_mut(pool)?.delete(id)
            }
        };
        outcome.map_err(Why::Errno)
    }

    pub(super) fn thin_store(&self, pool: PoolUuid) -> Result<&ThinStore, Why> {
        let place = self.thin_place(pool)?;
        Ok(self.thin.get(&place).expect("an active thin pool has metadata"))
    }

    pub(super) fn thin_store_mut(&mut self, pool: PoolUuid) -> Result<&mut ThinStore, Why> {
        let place = self.thin_place(pool)?;
        Ok(self.thin.get_mut(&place).expect("an active thin pool has metadata"))
    }

    /// The id of an active thin volume.
    pub(super) fn thin_id(&self, device: Dm) -> Result<ThinId, Why> {
        match self.stack.table(device) {
            Some(Table::Thin { id, .. }) => Ok(*id),
            Some(Table::Linear(_) | Table::ThinPool { .. }) => Err(Why::Errno(libc::EINVAL)),
            None => Err(Why::Errno(libc::ENXIO)),
        }
    }

    // ---- metadata volumes ---------------------------------------------------------------------

    /// What was on the metadata volume is gone.
    pub(super) fn mdv_format_start(&mut self, pool: PoolUuid) -> Result<Place, Why> {
        let (place, _) = self.mark(Dm::Private(pool, Role::Mdv), MDV_MARK)?;
        if self.mounted.contains_key(&pool) {
            return Err(Why::Errno(libc::EBUSY));
        }
        let disk = self.disks.get_mut(&place.0).expect("a resolved place lies on a disk");
        disk.engrave(place.1, &[0; UNIT_BYTES]);
        self.mdv.remove(&place);
        Ok(place)
    }

    /// An empty metadata volume is there.
    pub(super) fn mdv_format_end(&mut self, place: Place, uuid: uuid::Uuid) {
        let mark = self.tick();
        self.engrave(place, MDV_MARK, mark);
        self.mdv.insert(place, MdvStore::new(mark, uuid));
    }

    pub(super) fn mdv_mount(&mut self, pool: PoolUuid) -> Result<(), Why> {
        let (place, mark) = self.mark(Dm::Private(pool, Role::Mdv), MDV_MARK)?;
        if self.mdv.get(&place).is_none_or(|store| Some(store.mark) != mark) {
            return Err(Why::Errno(libc::EINVAL)); // As mount(2) answers where there is no XFS.
        }
        self.mounted.insert(pool, place);
        Ok(())
    }

    pub(super) fn mdv_unmount(&mut self, pool: PoolUuid) {
        if let Some(place) = self.mounted.remove(&pool) {
            self.mdv.get_mut(&place).expect("a mounted volume exists").sync_all();
        }
    }

    pub(super) fn mdv_store(&self, pool: PoolUuid) -> Result<&MdvStore, Why> {
        let place = self.mounted.get(&pool).ok_or(Why::Errno(libc::ENOENT))?;
        Ok(self.mdv.get(place).expect("a mounted volume exists"))
    }

    pub(super) fn mdv_store_mut(&mut self, pool: PoolUuid) -> Result<&mut MdvStore, Why> {
        let place = self.mounted.get(&pool).ok_or(Why::Errno(libc::ENOENT))?;
        Ok(self.mdv.get_mut(place).expect("a mounted volume exists"))
    }
}

/// The length of a write.
fn length(data: &WriteData) -> Result<Sectors, Why> {
    match data {
        WriteData::Zeroes(count) => Ok(*count),
        WriteData::Bytes(bytes) if bytes.len().is_multiple_of(UNIT_BYTES) => {
            Ok(Sectors(bytes.len() as u64 / SECTOR_BYTES))
        }
        WriteData::Bytes(_) => Err(Why::Errno(libc::EINVAL)),
    }
}

/// The part of a write that begins after `done` bytes and is `count` long.
fn part(data: &WriteData, done: usize, count: Sectors) -> WriteData {
    match data {
        WriteData::Zeroes(_) => WriteData::Zeroes(count),
        WriteData::Bytes(bytes) => {
            let end = done + usize::try_from(count.offset()).expect("a write fits memory");
            WriteData::Bytes(bytes[done..end].to_vec())
        }
    }
}
