//! What a simulated machine is made of, and what happens to it when the power or the process fails.
//!
//! Thin-pool metadata and the files of metadata volumes are kept beside the disks but belong to places
//! on them: a mark on the first sector of the place says whose thin-pool metadata it is, and files
//! belong to the write that made the volume's superblock. Overwrite or lose it, and they are gone, as
//! they would be.
//!
//! Invariant: nothing here waits; each function is one moment of the machine.
//!
//! Deliberately absent: who asks. Processes that are dead are kept away by `calls`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::crypt::Header;
use super::dice::Dice;
use super::disks::{Disk, refuse};
use super::events::News;
use super::fill::Fill;
use super::gate::Gate;
use super::mdv::MdvStore;
use super::medium::UNIT_BYTES;
use super::thin::{Content, Damage, ThinStore};
use super::xfs::{self, Readable};
use crate::error::Why;
use crate::model::blank::ReadsZeroes;
use crate::model::device::{BlockSizes, DeviceNumber, DevicePath};
use crate::model::dm::{Below, Dm, Role, Table, ThinFeature, ThinPoolMode, ThinPoolState};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::model::token::KeyDescription;
use crate::sys::linear::Piece;
use crate::sys::passphrase::Passphrase;
use crate::sys::stack::{Blocked, Likeness, META_BLOCK, Stack};
use crate::sys::{Target, Write, WriteData};
use crate::units::{Bytes, SECTOR_BYTES, Sectors};

/// A place on a disk.
pub(super) type Place = (DeviceNumber, Sectors);

/// Sectors that are written or read, and whose they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    ground: Ground,
    start: Sectors,
    count: Sectors,
}

/// What sectors belong to in the end.
#[derive(Clone, Copy, Debug)]
enum Ground {
    Disk(DeviceNumber),
    /// A volume of the thin pool whose metadata is at this place.
    Volume(Place, ThinId),
}

impl From<Piece> for Spot {
    fn from(piece: Piece) -> Self {
        Self { ground: Ground::Disk(piece.device), start: piece.start, count: piece.count }
    }
}

/// First bytes of a cache's metadata device here.
const CACHE_MARK: &[u8; 9] = b"sim-cache";
/// First bytes of a thin pool's metadata device here; a number follows.
const THIN_MARK: &[u8; 8] = b"sim-thin";
/// Who reads when it is the machine itself.
pub(super) const KERNEL: u64 = 0;
/// Sectors that are zero on metadata that was never used, of a thin pool or of a cache: the kernel looks at 4 KiB.
const FRESH_SECTORS: Sectors = Sectors(8);

/// Everything.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) gate: Gate,
    pub(super) dice: Dice,
    /// Unknown absolute paths are empty disks of this size.
    pub(super) conjures: Option<Sectors>,
    /// How long a batch of writes waits before it begins.
    pub(super) write_time: Duration,
    /// Disks that answer nothing for now.
    pub(super) hung: BTreeSet<DeviceNumber>,
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
    pub(super) thin: BTreeMap<Place, ThinStore>,
    /// How much of its data device each cache works with since it was last made active.
    pub(super) caches: BTreeMap<PoolUuid, Sectors>,
    /// Pools whose origin was written without the cache that they had: what that holds is out of date.
    pub(super) passed_by: BTreeSet<PoolUuid>,
    /// Headers of encryption layers.
    pub(super) headers: BTreeMap<Place, Header>,
    pub(super) keys: BTreeMap<KeyDescription, Rc<Passphrase>>,
    /// By the place of the superblock and the write that made it.
    pub(super) mdv: BTreeMap<(Place, u64), MdvStore>,
    /// How active thin pools fill.
    pub(super) fills: BTreeMap<PoolUuid, Fill>,
    pub(super) mounted: BTreeMap<PoolUuid, (Place, u64)>,
    /// How often somebody asked something.
    pub(super) questions: u64,
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
            write_time: Duration::ZERO,
            hung: BTreeSet::new(),
            disks: BTreeMap::new(),
            links: BTreeMap::new(),
            open: BTreeMap::new(),
            pulled: Vec::new(),
            news: News::new(),
            seats: 0,
            stack: Stack::new(),
            thin: BTreeMap::new(),
            caches: BTreeMap::new(),
            passed_by: BTreeSet::new(),
            headers: BTreeMap::new(),
            keys: BTreeMap::new(),
            mdv: BTreeMap::new(),
            fills: BTreeMap::new(),
            mounted: BTreeMap::new(),
            questions: 0,
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

    /// The power fails. Only what is durable is there afterwards, and by luck some of the rest. Gives back what
    /// came of the dice.
    pub(super) fn crash(&mut self, mut dice: Dice) -> Dice {
        for disk in self.disks.values_mut() {
            disk.medium.lose(&mut dice);
        }
        for store in self.thin.values_mut() {
            store.lose(&mut dice);
        }
        for store in self.mdv.values_mut() {
            store.lose(&mut dice);
        }
        self.stack.clear();
        self.in_use.clear();
        self.keys.clear();
        self.announced.clear();
        self.mounted.clear();
        self.news.ailing.clear();
        self.fills.clear();
        self.reopen("the power failed");
        dice
    }

    /// The process ends. The kernel goes on: what was started ends, tables stay, and the mounts of
    /// the process' own namespace are undone cleanly.
    pub(super) fn kill(&mut self) {
        let now = self.tick();
        self.disks.values_mut().for_each(|disk| disk.medium.end_all(now));
        self.thin.values_mut().for_each(|store| store.end_all(now));
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
    fn spots(&self, who: u64, target: Target, start: Sectors, count: Sectors) -> Result<Vec<Spot>, Why> {
        let device = match target {
            Target::Device(number) if self.open.contains_key(&(who, number)) => {
                return Ok(vec![Piece { device: number, start, count }.into()]);
            }
            Target::Device(_) => return Err(Why::Errno(libc::EBADF)),
            Target::Dm(device) => device,
        };
        let Some(Table::Thin { length, id }) = self.stack.table(device) else {
            return Ok(self.stack.resolve(device, start, count)?.into_iter().map(Spot::from).collect());
        };
        if let Some(errno) = refuse(*length, self.block_sizes(device)?, start, count) {
            return Err(Why::Errno(errno));
        }
        Ok(vec![Spot { ground: Ground::Volume(self.thin_place(device.pool())?, *id), start, count }])
    }

    /// What a reader sees.
    pub(super) fn read(&self, who: u64, target: Target, start: Sectors, count: Sectors) -> Result<Vec<u8>, Why> {
        let mut bytes = Vec::new();
        for spot in self.spots(who, target, start, count)? {
            bytes.extend(match spot.ground {
                Ground::Volume(place, id) => self.content(place, id)?.read(spot.start, spot.count),
                Ground::Disk(number) => {
                    let disk = self.disks.get(&number).ok_or(Why::Errno(libc::ENODEV))?;
                    if let Some(errno) = disk.reads_fail.or_else(|| disk.refuse(spot.start, spot.count)) {
                        return Err(Why::Errno(errno));
                    }
                    disk.medium.read(spot.start, spot.count)
                }
            });
        }
        Ok(bytes)
    }

    /// Block sizes of a dm device: those of the coarsest disk below.
    pub(super) fn block_sizes(&self, device: Dm) -> Result<BlockSizes, Why> {
        let table = self.stack.table(device).ok_or(Why::Errno(libc::ENXIO))?;
        let below = match table {
            Table::Linear(_) | Table::Cache { .. } => device,
            Table::ThinPool { .. } | Table::Thin { .. } => Dm::Private(device.pool(), Role::ThinData),
        };
        let mut blocks = BlockSizes { logical: 512, physical: 512 };
        for number in self.disks_below(below)? {
            let disk = self.disks.get(&number).ok_or(Why::Errno(libc::ENODEV))?;
            blocks.logical = blocks.logical.max(disk.blocks.logical);
            blocks.physical = blocks.physical.max(disk.blocks.physical);
        }
        Ok(blocks)
    }

    /// The disks that a linear device lies on.
    fn disks_below(&self, device: Dm) -> Result<BTreeSet<DeviceNumber>, Why> {
        let length = self.stack.table(device).ok_or(Why::Errno(libc::ENXIO))?.length();
        Ok(self.stack.resolve(device, Sectors::ZERO, length)?.iter().map(|piece| piece.device).collect())
    }

    /// Starts a write and tells its number. `fails`: it will end with an error, and any part of it
    /// may get through.
    pub(super) fn submit(&mut self, who: u64, write: &Write, fails: bool) -> Result<(u64, Vec<Spot>), Why> {
        let count = length(&write.data)?;
        self.harmless(write, count);
        if let Target::Device(number) = write.target
            && self.open.get(&(who, number)) == Some(&false)
        {
            return Err(Why::Errno(libc::EBADF));
        }
        let spots = self.spots(who, write.target, write.start, count)?;
        for spot in &spots {
            self.writable(spot, write.target)?;
        }
        self.alone(&spots, write.target);
        let id = self.tick();
        let mut done = 0;
        for spot in &spots {
            let data = part(&write.data, done, spot.count);
            done += usize::try_from(spot.count.offset()).expect("a write fits memory");
            let dice = &mut self.dice;
            let medium = match spot.ground {
                Ground::Disk(number) => &mut self.disks.get_mut(&number).expect("checked above").medium,
                Ground::Volume(place, id) => {
                    &mut self
                        .thin
                        .get_mut(&place)
                        .and_then(|store| store.content_mut(id))
                        .expect("checked above")
                        .medium
                }
            };
            medium.submit(id, spot.start, &data, || !fails || dice.coin());
        }
        Ok((id, spots))
    }

    /// What a kernel would let pass, and what loses data.
    fn harmless(&mut self, write: &Write, count: Sectors) {
        let below = match write.target {
            Target::Device(number) => Below::Device(number),
            Target::Dm(device) => Below::Dm(device),
        };
        if let Some(owner) = self.stack.owner(below, write.start, count) {
            self.bug(format!("a write to {:?} at {} hits sectors of {owner}", write.target, write.start));
        }
        if let Target::Dm(device) = write.target
            && self.is_mounted(device)
        {
            self.bug(format!("a write to {device} at {}, which is mounted", write.start));
        }
    }

    /// Which of two writes to one place that are under way together comes last is nobody's choice.
    fn alone(&mut self, spots: &[Spot], target: Target) {
        for spot in spots {
            if let Ground::Disk(number) = spot.ground
                && self.disks.get(&number).is_some_and(|disk| disk.medium.is_being_written(spot.start, spot.count))
            {
                self.bug(format!("a write to {target:?} at {} while another one is under way there", spot.start));
            }
        }
    }

    /// Whether a write can be done; takes the blocks that it needs.
    fn writable(&mut self, spot: &Spot, target: Target) -> Result<(), Why> {
        match (spot.ground, target) {
            (Ground::Disk(number), _) => {
                let disk = self.disks.get(&number).ok_or(Why::Errno(libc::ENODEV))?;
                disk.writes_fail
                    .or_else(|| disk.refuse(spot.start, spot.count))
                    .map_or(Ok(()), |errno| Err(Why::Errno(errno)))
            }
            (Ground::Volume(..), Target::Device(_)) => unreachable!("a device is no volume"),
            (Ground::Volume(place, id), Target::Dm(device)) => {
                self.flushable(self.disks_below(Dm::Private(device.pool(), Role::ThinData))?)?;
                if self.content(place, id)?.dirty {
                    self.bug(format!("a write to {device}, whose log is to be replayed first"));
                }
                self.take_blocks(device.pool(), id, (spot.start, spot.count))
            }
        }
    }

    /// Ends a write.
    pub(super) fn end(&mut self, id: u64, spots: &[Spot]) {
        let now = self.tick();
        for spot in spots {
            // A disk may have been pulled, and a volume deleted.
            let medium = match spot.ground {
                Ground::Disk(number) => self.disks.get_mut(&number).map(|disk| &mut disk.medium),
                Ground::Volume(place, id) => {
                    let store = self.thin.get_mut(&place);
                    store.and_then(|store| store.content_mut(id)).map(|content| &mut content.medium)
                }
            };
            if let Some(medium) = medium {
                medium.end(id, spot.start, spot.count, now);
            }
        }
    }

    /// Starts a flush: which disks, and until when.
    pub(super) fn flush_start(&self, target: Target) -> Result<(BTreeSet<DeviceNumber>, u64), Why> {
        let device = match target {
            Target::Device(number) => return self.flushable(BTreeSet::from([number])),
            Target::Dm(device) => device,
        };
        let numbers = match self.stack.table(device).ok_or(Why::Errno(libc::ENXIO))? {
            Table::Linear(_) | Table::Cache { .. } => self.disks_below(device)?,
            Table::ThinPool { .. } | Table::Thin { .. } => {
                let below = |role| self.disks_below(Dm::Private(device.pool(), role));
                below(Role::ThinMeta)?.into_iter().chain(below(Role::ThinData)?).collect()
            }
        };
        self.flushable(numbers)
    }

    fn flushable(&self, numbers: BTreeSet<DeviceNumber>) -> Result<(BTreeSet<DeviceNumber>, u64), Why> {
        for number in &numbers {
            let disk = self.disks.get(number).ok_or(Why::Errno(libc::ENODEV))?;
            if let Some(errno) = disk.writes_fail {
                return Err(Why::Errno(errno));
            }
        }
        Ok((numbers, self.clock))
    }

    /// Ends a flush: what had ended when it began is durable, and with a thin volume or pool the metadata of
    /// the pool.
    pub(super) fn flush_end(
        &mut self,
        target: Target,
        numbers: &BTreeSet<DeviceNumber>,
        until: u64,
    ) -> Result<(), Why> {
        for number in numbers {
            if let Some(disk) = self.disks.get_mut(number) {
                disk.medium.flush(until);
            }
        }
        let Target::Dm(device @ (Dm::Thin(..) | Dm::Private(_, Role::ThinPool))) = target else { return Ok(()) };
        let volume = if let Dm::Thin(..) = device { Some(self.thin_id(device)?) } else { None };
        let store = self.thin_store_mut(device.pool())?;
        store.commit();
        if let Some(content) = volume.and_then(|id| store.content_mut(id)) {
            content.medium.flush(until);
        }
        Ok(())
    }

    // ---- device-mapper ------------------------------------------------------------------------

    pub(super) fn activate(&mut self, device: Dm, table: &Table) -> Result<(), Why> {
        if self.stack.likeness(device, table)? == Likeness::Same {
            // What works with less than the device below has is shown the rest.
            return match table {
                Table::ThinPool { .. } => self.resume_thin_pool(device.pool()),
                Table::Cache { .. } => self.open_cache(device.pool()),
                Table::Linear(_) | Table::Thin { .. } => Ok(()),
            };
        }
        match self.stack.check(device, table, |number| self.disks.get(&number).map(|disk| disk.size)) {
            Ok(()) => {}
            Err(Blocked::Why(why)) => return Err(why),
            Err(Blocked::Bug(what)) => self.bug(what),
        }
        match table {
            Table::Linear(_) => {}
            Table::Cache { .. } => self.open_cache(device.pool())?,
            Table::ThinPool { length, block, .. } => {
                self.pass_cache_by(device.pool());
                self.open_thin_pool(device.pool(), length.0 / block.0)?;
            }
            Table::Thin { id, length } => self.check_length(device, *id, *length)?,
        }
        self.stack.insert(device, table.clone());
        Ok(())
    }

    pub(super) fn deactivate(&mut self, device: Dm) -> Result<(), Why> {
        if self.is_mounted(device) {
            return Err(Why::Errno(libc::EBUSY));
        }
        self.stack.remove(device)?;
        if let Dm::Private(pool, Role::ThinPool) = device {
            self.fills.remove(&pool);
        }
        if let Dm::Thin(_, filesystem) = device {
            self.announced.remove(&filesystem);
        }
        Ok(())
    }

    /// Whether a device is mounted, by the daemon or by a user.
    pub(super) fn is_mounted(&self, device: Dm) -> bool {
        let volume = device == Dm::Private(device.pool(), Role::Mdv) && self.mounted.contains_key(&device.pool());
        volume || self.in_use.contains(&device)
    }

    /// Where the first sector of a device is.
    pub(super) fn place(&self, device: Dm) -> Result<Place, Why> {
        let first = self.stack.resolve(device, Sectors::ZERO, Sectors(1))?;
        let piece = first.first().expect("one sector is one piece");
        Ok((piece.device, piece.start))
    }

    /// The metadata that is on a device, if there is any.
    fn thin_on(&self, device: Dm) -> Result<Option<&ThinStore>, Why> {
        let start = self.read(KERNEL, Target::Dm(device), Sectors::ZERO, FRESH_SECTORS)?;
        let number = u64::from_le_bytes(start[8..16].try_into().expect("eight bytes"));
        let known = self.thin.get(&self.place(device)?);
        Ok(known.filter(|store| start.starts_with(THIN_MARK) && store.mark == number))
    }

    /// As `thin_check` does. A thin pool that was not well is well if its metadata is whole.
    pub(super) fn thin_check(&mut self, device: Dm) -> Result<bool, Why> {
        if self.stack.table(Dm::Private(device.pool(), Role::ThinPool)).is_some() {
            return Err(Why::Errno(libc::EBUSY));
        }
        let whole = self.thin_on(device)?.is_some_and(|store| store.damage.is_none());
        if whole {
            // Data space is no matter of the metadata.
            let full = |mode| matches!(mode, ThinPoolMode::OutOfDataSpace | ThinPoolMode::OutOfMetadataSpace);
            self.news.ailing.retain(|pool, (mode, _)| *pool != device.pool() || full(*mode));
        }
        Ok(whole)
    }

    /// As `thin_repair` does. What it writes is on the device like any other write: not durable.
    pub(super) fn thin_repair(&mut self, from: Dm, to: Dm) -> Result<(), Why> {
        let length = self.stack.table(to).ok_or(Why::Errno(libc::ENXIO))?.length();
        let (disk, start) = self.place(to)?;
        let mut store = match self.thin_on(from)? {
            Some(store) if store.damage != Some(Damage::Hopeless) && store.meta <= length => store.clone(),
            Some(_) | None => return Err(Why::Data("nothing can be made of the metadata")),
        };
        (store.mark, store.damage) = (self.tick(), None);
        let ended = self.tick();
        let medium = &mut self.disks.get_mut(&disk).expect("a resolved place lies on a disk").medium;
        medium.submit(store.mark, start, &WriteData::Bytes(marked(store.mark).to_vec()), || true);
        medium.end(store.mark, start, Sectors(1), ended);
        self.thin.insert((disk, start), store);
        Ok(())
    }

    /// Finds the metadata of a thin pool of so many data blocks, or begins it where there are only zeroes. It comes
    /// to use all of its devices, and never works on smaller ones again.
    pub(super) fn open_thin_pool(&mut self, pool: PoolUuid, blocks: u64) -> Result<(), Why> {
        let meta = Dm::Private(pool, Role::ThinMeta);
        let length = self.stack.table(meta).ok_or(Why::Errno(libc::ENODEV))?.length();
        let place = self.place(meta)?;
        let start = self.read(KERNEL, Target::Dm(meta), Sectors::ZERO, FRESH_SECTORS)?;
        let number = u64::from_le_bytes(start[8..16].try_into().expect("eight bytes"));
        let mark = start.starts_with(THIN_MARK).then_some(number);
        if let Some(store) = self.thin.get_mut(&place).filter(|store| Some(store.mark) == mark) {
            if length < store.meta || blocks < store.data {
                return Err(Why::Errno(libc::EINVAL));
            }
            if store.damage.is_some() {
                return Err(Why::Errno(libc::EILSEQ)); // As the kernel answers where a checksum is wrong.
            }
            if length > store.meta {
                self.news.ailing.retain(|ails, (mode, _)| *ails != pool || *mode != ThinPoolMode::OutOfMetadataSpace);
            }
            store.meta = length;
            self.count_blocks(place, blocks);
            return Ok(());
        }
        if start.iter().any(|byte| *byte != 0) {
            return Err(Why::Errno(libc::EILSEQ)); // As the kernel's superblock check answers.
        }
        let mark = self.tick();
        let medium = &mut self.disks.get_mut(&place.0).expect("a resolved place lies on a disk").medium;
        medium.engrave(mark, place.1, &marked(mark));
        self.thin.insert(place, ThinStore::new(mark, length));
        self.count_blocks(place, blocks);
        Ok(())
    }

    /// What is written from now on reaches the origin; a cache that is not there does not hear of it.
    fn pass_cache_by(&mut self, pool: PoolUuid) {
        match self.stack.table(Dm::Private(pool, Role::Cache)) {
            Some(Table::Cache { .. }) => {}
            Some(Table::Linear(_) | Table::ThinPool { .. } | Table::Thin { .. }) | None => {
                self.passed_by.insert(pool);
            }
        }
    }

    /// Finds the metadata of a cache, or begins it where there are only zeroes. What a cache holds its origin
    /// holds too, so nothing else is kept of it.
    fn open_cache(&mut self, pool: PoolUuid) -> Result<(), Why> {
        let meta = Dm::Private(pool, Role::MetaSub);
        let place = self.place(meta)?;
        let start = self.read(KERNEL, Target::Dm(meta), Sectors::ZERO, FRESH_SECTORS)?;
        let data = self.stack.table(Dm::Private(pool, Role::CacheSub)).ok_or(Why::Errno(libc::ENODEV))?;
        self.caches.insert(pool, data.length());
        if start.starts_with(CACHE_MARK) {
            if self.passed_by.contains(&pool) {
                self.bug(format!("the cache of pool {pool} is used again, and its origin was written without it"));
            }
            return Ok(());
        }
        if start.iter().any(|byte| *byte != 0) {
            return Err(Why::Errno(libc::EILSEQ)); // As the kernel's superblock check answers.
        }
        let mut sector = [0; UNIT_BYTES];
        self.passed_by.remove(&pool);
        sector[..CACHE_MARK.len()].copy_from_slice(CACHE_MARK);
        let mark = self.tick();
        self.disks.get_mut(&place.0).expect("a resolved place lies on a disk").medium.engrave(mark, place.1, &sector);
        Ok(())
    }

    /// How much of its data device an active cache works with.
    pub(super) fn cache_data(&self, pool: PoolUuid) -> Option<Sectors> {
        match self.stack.table(Dm::Private(pool, Role::Cache))? {
            Table::Cache { .. } => self.caches.get(&pool).copied(),
            Table::Linear(_) | Table::ThinPool { .. } | Table::Thin { .. } => None,
        }
    }

    pub(super) fn thin_place(&self, pool: PoolUuid) -> Result<Place, Why> {
        if self.stack.table(Dm::Private(pool, Role::ThinPool)).is_none() {
            return Err(Why::Errno(libc::ENXIO));
        }
        self.place(Dm::Private(pool, Role::ThinMeta))
    }

    /// Makes a thin volume.
    pub(super) fn thin_create(&mut self, pool: PoolUuid, id: ThinId) -> Result<Option<ReadsZeroes>, Why> {
        let Some(Table::ThinPool { features, .. }) = self.stack.table(Dm::Private(pool, Role::ThinPool)) else {
            return Err(Why::Errno(libc::ENXIO));
        };
        let blank = ReadsZeroes::of_new_thin(pool, id, features);
        self.has_metadata_space(pool)?;
        // What a daemon's own machine held before is nothing.
        let stale = features.contains(&ThinFeature::SkipBlockZeroing) && self.conjures.is_none();
        self.thin_store_mut(pool)?.create(id, stale).map_err(Why::Errno)?;
        Ok(blank)
    }

    /// Whether a thin pool takes changes of its volumes: none, while its metadata is full.
    fn has_metadata_space(&self, pool: PoolUuid) -> Result<(), Why> {
        match self.news.ailing.get(&pool) {
            Some((ThinPoolMode::OutOfMetadataSpace, _)) => Err(Why::Errno(libc::EOPNOTSUPP)),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a thin volume of what another one is now.
    pub(super) fn thin_snapshot(&mut self, pool: PoolUuid, origin: (FsUuid, ThinId), id: ThinId) -> Result<(), Why> {
        self.has_metadata_space(pool)?;
        let mounted = self.is_mounted(Dm::Thin(pool, origin.0));
        self.thin_store_mut(pool)?.copy(origin.1, id, mounted).map_err(Why::Errno)
    }

    /// Mounts a filesystem on a volume and unmounts it again.
    pub(super) fn replay_log(&mut self, device: Dm) -> Result<(), Why> {
        if self.is_mounted(device) {
            return Err(Why::Errno(libc::EBUSY));
        }
        let id = self.thin_id(device)?;
        let content = self.thin_store_mut(device.pool())?.content_mut(id).ok_or(Why::Errno(libc::ENODATA))?;
        // As mount(2) answers where there is no XFS.
        super::xfs::find(&content.medium).ok_or(Why::Errno(libc::EINVAL))?;
        content.dirty = false;
        Ok(())
    }

    /// Drops a thin volume, unless it is active.
    pub(super) fn thin_delete(&mut self, pool: PoolUuid, id: ThinId) -> Result<(), Why> {
        if self.stack.is_thin_active(pool, id) {
            return Err(Why::Errno(libc::EBUSY));
        }
        self.has_metadata_space(pool)?;
        self.thin_store_mut(pool)?.delete(id).map_err(Why::Errno)
    }

    /// How a thin pool is.
    pub(super) fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Why> {
        let store = self.thin_store(pool)?;
        let meta_total = store.meta.0 / META_BLOCK.0;
        let mut well = ThinPoolState { meta_total, data_used: store.used(), ..self.stack.thin_pool(pool)? };
        if self.fills.get(&pool).is_some_and(|fill| fill.out) {
            well.mode = ThinPoolMode::OutOfDataSpace;
        }
        let (mode, needs_check) = self.news.ailing.get(&pool).copied().unwrap_or((well.mode, well.needs_check));
        let meta_used = if mode == ThinPoolMode::OutOfMetadataSpace { meta_total } else { well.meta_used };
        Ok(ThinPoolState { meta_used, mode, needs_check, ..well })
    }

    /// Space that an active thin volume takes.
    pub(super) fn thin_used(&self, device: Dm) -> Result<Bytes, Why> {
        let id = self.thin_id(device)?;
        let content = self.thin_store(device.pool())?.content(id).ok_or(Why::Errno(libc::ENODATA))?;
        match self.stack.table(Dm::Private(device.pool(), Role::ThinPool)) {
            Some(Table::ThinPool { block, .. }) => Ok(Sectors(content.mapped() * block.0).bytes()),
            Some(Table::Linear(_) | Table::Cache { .. } | Table::Thin { .. }) | None => Err(Why::Errno(libc::ENXIO)),
        }
    }

    fn content(&self, place: Place, id: ThinId) -> Result<&Content, Why> {
        self.thin.get(&place).and_then(|store| store.content(id)).ok_or(Why::Errno(libc::ENODATA))
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
            Some(Table::Linear(_) | Table::Cache { .. } | Table::ThinPool { .. }) => Err(Why::Errno(libc::EINVAL)),
            None => Err(Why::Errno(libc::ENXIO)),
        }
    }

    // ---- metadata volumes ---------------------------------------------------------------------

    pub(super) fn mdv_mount(&mut self, pool: PoolUuid) -> Result<(), Why> {
        let device = Dm::Private(pool, Role::Mdv);
        let place = self.place(device)?;
        // As mount(2) answers where there is no XFS.
        let uuid = xfs::find(&Linear { state: self, device }).ok_or(Why::Errno(libc::EINVAL))?;
        self.pass_cache_by(pool);
        let maker = self.disks.get(&place.0).map_or(0, |disk| disk.medium.writer(place.1));
        self.mdv.entry((place, maker)).or_insert_with(|| MdvStore::new(uuid));
        self.mounted.insert(pool, (place, maker));
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

/// A linear device, as whoever mounts it reads it.
struct Linear<'a> {
    state: &'a State,
    device: Dm,
}

impl Readable for Linear<'_> {
    fn read(&self, start: Sectors, count: Sectors) -> Option<Vec<u8>> {
        // What cannot be read is no filesystem.
        self.state.read(KERNEL, Target::Dm(self.device), start, count).ok()
    }

    fn is_zero(&self, start: Sectors, count: Sectors) -> bool {
        let zero = |piece: &Piece| {
            self.state.disks.get(&piece.device).is_some_and(|disk| disk.medium.is_zero(piece.start, piece.count))
        };
        self.state.stack.resolve(self.device, start, count).is_ok_and(|pieces| pieces.iter().all(zero))
    }
}

/// The first sector of thin-pool metadata.
fn marked(mark: u64) -> [u8; UNIT_BYTES] {
    let mut sector = [0; UNIT_BYTES];
    sector[..8].copy_from_slice(THIN_MARK);
    sector[8..16].copy_from_slice(&mark.to_le_bytes());
    sector
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
fn part(data: &WriteData, done: usize, count: Sectors) -> Cow<'_, WriteData> {
    match data {
        WriteData::Zeroes(_) => Cow::Owned(WriteData::Zeroes(count)),
        WriteData::Bytes(bytes) => {
            let end = done + usize::try_from(count.offset()).expect("a write fits memory");
            if (done, end) == (0, bytes.len()) {
                return Cow::Borrowed(data);
            }
            Cow::Owned(WriteData::Bytes(bytes[done..end].to_vec()))
        }
    }
}
