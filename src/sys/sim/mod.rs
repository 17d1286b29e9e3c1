//! A machine in memory: disks that lose what was not flushed, device-mapper with its rules, thin
//! pools, metadata volumes, and one gate that can fail or stop any action.
//!
//! A `Machine` outlives the processes on it. A test runs the daemon on `machine.sys()`, stops it at
//! some action (`stop_at`), pulls the plug (`crash`) or ends the process (`kill`), and runs another
//! one on a new `machine.sys()`.
//!
//! Invariant: the same seed and the same calls in the same order give the same machine.
//!
//! Deliberately absent: more than one thread. A daemon whose cores each have a machine of their own
//! agrees with itself only because disks are numbered after their paths.

mod calls;
mod crypt;
mod dice;
mod disks;
mod events;
mod fill;
mod gate;
mod image;
mod mdv;
mod medium;
mod mounted;
mod state;
#[cfg(test)]
mod tests;
mod thin;
mod xfs;

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use uuid::Uuid;

use self::dice::Dice;
use self::image::Watcher;
use self::state::State;
use crate::error::Why;
use crate::model::device::{BlockSizes, DeviceNumber, DevicePath};
use crate::model::dm::{Dm, Table, ThinPoolMode};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::token::Tokens;
use crate::sys::{DeviceEvent, Folder, Target};
use crate::units::{Bytes, Sectors};

pub use self::calls::SimSys;
pub use self::fill::Written;
pub use self::thin::Damage;

/// The size of a disk that a daemon started with `--sim` finds under any path: 4 TiB. A pool of one has room for
/// filesystems of the default size also without overprovisioning, and a cache may have eight.
pub const CONJURED_SIZE: Sectors = Sectors(1 << 33);
/// Longest delay before and after an action of a test machine: long enough to reorder, and free,
/// because the time is virtual.
const DELAY_MAX: Duration = Duration::from_micros(1_000);

/// A simulated machine. Clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    state: Rc<RefCell<State>>,
    watcher: Watcher,
}

impl fmt::Debug for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Machine(after {} actions)", self.actions())
    }
}

impl Machine {
    /// A machine without disks for a test; every choice follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self::of(State::new(seed, DELAY_MAX))
    }

    /// The machine of a daemon that was started with `--sim`: every absolute path is an empty disk
    /// of 4 TiB, and nothing takes time.
    pub fn daemon() -> Self {
        let machine = Self::of(State::new(0, Duration::ZERO));
        machine.state().conjures = Some(CONJURED_SIZE);
        machine.state().gate.forget_all();
        machine
    }

    fn of(state: State) -> Self {
        Self { state: Rc::new(RefCell::new(state)), watcher: Watcher::default() }
    }

    fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// A process on this machine. It works until the next `kill` or `crash`.
    pub fn sys(&self) -> SimSys {
        SimSys::new(self.clone())
    }

    // ---- what is plugged in -------------------------------------------------------------------

    /// Adds an empty disk with 512-byte blocks.
    ///
    /// # Panics
    /// When the path is not absolute.
    pub fn add_disk(&self, path: &str, size: Sectors) -> DeviceNumber {
        self.add_disk_with(path, size, BlockSizes { logical: 512, physical: 512 })
    }

    /// Adds an empty disk with these block sizes.
    ///
    /// # Panics
    /// When the path is not absolute.
    pub fn add_disk_with(&self, path: &str, size: Sectors, blocks: BlockSizes) -> DeviceNumber {
        let path = DevicePath::try_from(path).expect("an absolute path");
        let mut state = self.state();
        let number = state.add_disk(&path, size, blocks);
        state.touched(number);
        number
    }

    /// Adds a symbolic link.
    ///
    /// # Panics
    /// When a path is not absolute.
    pub fn add_link(&self, path: &str, target: &str) {
        let absolute = |path| DevicePath::try_from(path).expect("an absolute path");
        self.state().links.insert(absolute(path), absolute(target));
    }

    /// Somebody else lives on the disk: `what` are a few words such as `an ext4 filesystem`.
    pub fn occupy(&self, path: &str, what: &str) {
        let mut state = self.state();
        let disk = state.disk_mut(path);
        disk.resident = Some(what.to_owned());
        let number = disk.number;
        state.touched(number);
    }

    /// Gives a disk a hardware identifier.
    pub fn set_hardware(&self, path: &str, id: &str) {
        self.state().disk_mut(path).hardware = Some(id.to_owned());
    }

    /// Changes the block sizes of a disk, as another controller does.
    pub fn set_blocks(&self, path: &str, blocks: BlockSizes) {
        self.state().disk_mut(path).blocks = blocks;
    }

    /// Changes the size of a disk; what lies behind a smaller one stays hidden.
    pub fn resize_disk(&self, path: &str, size: Sectors) {
        self.state().disk_mut(path).size = size;
    }

    /// Takes a disk out. `plug` puts it back.
    pub fn unplug(&self, path: &str) {
        let mut state = self.state();
        let number = state.disk(path).number;
        let disk = state.disks.remove(&number).expect("just found");
        state.open.retain(|(_, open), _| *open != number);
        state.news.add(DeviceEvent::Removed { path: disk.path.clone(), number });
        state.pulled.push(disk);
    }

    /// Puts back the disk that was taken out last. Nobody has it open.
    ///
    /// # Panics
    /// When none was taken out.
    pub fn plug(&self) {
        let mut state = self.state();
        let disk = state.pulled.pop().expect("a disk was taken out");
        let number = disk.number;
        state.disks.insert(number, disk);
        state.touched(number);
    }

    /// udev says `change` of a disk, for no reason.
    pub fn touch(&self, path: &str) {
        let mut state = self.state();
        let number = state.disk(path).number;
        state.touched(number);
    }

    /// Device events that wait to be heard are lost, and so is what has just happened.
    pub fn lose_events(&self) {
        self.state().news.add(DeviceEvent::Lost);
    }

    /// The kernel finds something wrong with a pool's thin pool, and says so by an event.
    pub fn ail(&self, pool: PoolUuid, mode: ThinPoolMode, needs_check: bool) {
        self.state().ail(pool, mode, needs_check);
    }

    /// The metadata of a pool's thin pool goes bad, which nobody notices before it is next opened or checked.
    ///
    /// # Panics
    /// When the thin pool is not active.
    pub fn damage(&self, pool: PoolUuid, damage: Damage) {
        self.state().thin_store_mut(pool).expect("the thin pool is active").damage = Some(damage);
    }

    /// A pool's thin pool raises an event.
    pub fn raise(&self, pool: PoolUuid) {
        self.state().news.raise(pool);
    }

    /// From now on events of thin pools are lost, which no kernel does.
    pub fn lose_thin_pool_events(&self) {
        self.state().news.deaf = true;
    }

    /// From now on reads of a disk fail with this errno; with `None` they succeed again.
    pub fn fail_reads(&self, path: &str, errno: Option<i32>) {
        self.state().disk_mut(path).reads_fail = errno;
    }

    /// From now on writes to and flushes of a disk fail with this errno; `None`: succeed again.
    pub fn fail_writes(&self, path: &str, errno: Option<i32>) {
        self.state().disk_mut(path).writes_fail = errno;
    }

    /// From now on what is read from, written to and flushed on a disk itself happens, and nobody is told that it
    /// has ended; `false`: told again, with all that has ended meanwhile.
    pub fn hang(&self, path: &str, hangs: bool) {
        let mut state = self.state();
        let number = state.disk(path).number;
        if hangs {
            state.hung.insert(number);
        } else {
            state.hung.remove(&number);
            state.news.wake();
        }
    }

    /// Somebody gives an active dm device another table.
    pub fn reload(&self, device: Dm, table: Table) {
        self.state().stack.insert(device, table);
    }

    // ---- faults -------------------------------------------------------------------------------

    /// How many actions have happened or failed, since the machine was made.
    pub fn actions(&self) -> u64 {
        self.state.borrow().gate.actions()
    }

    /// The last actions, oldest first, each with its number.
    pub fn trace(&self) -> Vec<String> {
        self.state.borrow().gate.trace()
    }

    /// Action `n`, counted from 0, fails with this errno. A failed write may have written a part.
    pub fn fail_at(&self, n: u64, errno: i32) {
        self.state().gate.fail_at(n, errno);
    }

    /// When action `n`, counted from 0, comes, the machine stops: that action and all later ones
    /// never happen, and calls stay pending for ever. Until `kill` or `crash`.
    pub fn stop_at(&self, n: u64) {
        self.state().gate.stop_at(n);
    }

    /// Whether the machine has been stopped.
    pub fn stopped(&self) -> bool {
        self.state.borrow().gate.frozen()
    }

    /// Sets the longest delay before and after each action; zero keeps everything in order.
    pub fn set_delay_max(&self, delay_max: Duration) {
        self.state().gate.set_delay_max(delay_max);
    }

    /// Makes each batch of writes take this much longer.
    pub fn set_write_time(&self, time: Duration) {
        self.state().write_time = time;
    }

    /// The power fails, and comes back. What was not flushed is kept or lost, unit by unit, as the
    /// seed says; dm tables, opens and mounts are gone; what was planned to fail or stop is not.
    pub fn crash(&self, seed: u64) {
        let mut state = self.state();
        state.dice = state.crash(Dice::new(seed));
    }

    /// The process ends. What it had submitted ends by itself, dm tables stay active, its opens and
    /// mounts are gone; what was planned to fail or stop is not.
    pub fn kill(&self) {
        self.state().kill();
    }

    /// A user mounts a filesystem (or opens its volume), or lets go of it.
    pub fn set_in_use(&self, pool: PoolUuid, filesystem: FsUuid, in_use: bool) {
        let device = Dm::Thin(pool, filesystem);
        let mut state = self.state();
        if in_use {
            state.in_use.insert(device);
        } else {
            state.in_use.remove(&device);
        }
    }

    /// A user writes to a filesystem that he has mounted until so much of it is used.
    ///
    /// # Errors
    /// `ENOSPC` when it has not so much.
    ///
    /// # Panics
    /// When its volume is not active.
    pub fn write_until(&self, pool: PoolUuid, filesystem: FsUuid, used: Bytes) -> Result<(), i32> {
        match self.state().write_until(Dm::Thin(pool, filesystem), used) {
            Ok(()) => Ok(()),
            Err(Why::Errno(libc::ENOSPC)) => Err(libc::ENOSPC),
            Err(why) => panic!("it cannot be written to: {why}"),
        }
    }

    /// Writes some bytes to a volume, durably and without being an action.
    ///
    /// # Panics
    /// When the volume is not active, or the bytes are not whole sectors.
    pub fn scribble_volume(&self, pool: PoolUuid, filesystem: FsUuid, start: Sectors, bytes: &[u8]) {
        self.state().scribble_volume(Dm::Thin(pool, filesystem), start, bytes);
    }

    // ---- looking on ---------------------------------------------------------------------------

    /// Mistakes of the daemon that a kernel would have let pass, and that lose data. Each one also
    /// panicked where it happened; a test asserts that there are none.
    pub fn bugs(&self) -> Vec<String> {
        self.state.borrow().bugs.clone()
    }

    /// The number of a disk.
    pub fn number(&self, path: &str) -> DeviceNumber {
        self.state.borrow().disk(path).number
    }

    /// The size of a disk.
    pub fn size(&self, path: &str) -> Sectors {
        self.state.borrow().disk(path).size
    }

    /// What a reader of a disk sees.
    pub fn bytes(&self, path: &str, start: Sectors, count: Sectors) -> Vec<u8> {
        self.state.borrow().disk(path).medium.read(start, count)
    }

    /// What a reader would see after a power failure that loses all that can be lost.
    pub fn durable_bytes(&self, path: &str, start: Sectors, count: Sectors) -> Vec<u8> {
        self.state.borrow().disk(path).medium.read_durable(start, count)
    }

    /// Writes to a disk durably and without being an action: damage, or somebody else's bytes.
    ///
    /// # Panics
    /// When the bytes are not whole sectors.
    pub fn scribble(&self, path: &str, start: Sectors, bytes: &[u8]) {
        let mut state = self.state();
        let write = state.tick();
        let disk = state.disk_mut(path);
        let (units, rest) = bytes.as_chunks();
        assert!(rest.is_empty(), "whole sectors are written");
        for (at, unit) in (start.0..).zip(units) {
            disk.medium.engrave(write, Sectors(at), unit);
        }
        let number = disk.number;
        state.touched(number);
    }

    /// What a reader of an active dm device sees.
    ///
    /// # Panics
    /// When it is not active.
    pub fn dm_bytes(&self, device: Dm, start: Sectors, count: Sectors) -> Vec<u8> {
        self.state.borrow().read(state::KERNEL, Target::Dm(device), start, count).expect("it is active")
    }

    /// How often something was asked that changes nothing, since the machine was made.
    pub fn questions(&self) -> u64 {
        self.state.borrow().questions
    }

    /// Every active dm device with its table.
    pub fn tables(&self) -> BTreeMap<Dm, Table> {
        self.state.borrow().stack.tables().clone()
    }

    /// The thin volumes of a pool, each with the UUID of the XFS on it, if a whole one is there.
    /// `None` while the thin pool is not active.
    pub fn volumes(&self, pool: PoolUuid) -> Option<BTreeMap<ThinId, Option<Uuid>>> {
        let state = self.state.borrow();
        // The only error is that it is not active.
        let store = state.thin_store(pool).ok()?;
        Some(store.volumes().map(|(id, content)| (id, xfs::find(&content.medium))).collect())
    }

    /// How much of its metadata device the thin pool of a pool works with. `None` while it is not active.
    pub fn thin_meta(&self, pool: PoolUuid) -> Option<Sectors> {
        // The only error is that it is not active.
        self.state.borrow().thin_store(pool).ok().map(|store| store.meta)
    }

    /// How much of its data device the cache of a pool works with. `None` while there is none.
    pub fn cache_data(&self, pool: PoolUuid) -> Option<Sectors> {
        self.state.borrow().cache_data(pool)
    }

    /// The UUID of the XFS on a mounted metadata volume. `None` while it is not mounted.
    pub fn mdv_uuid(&self, pool: PoolUuid) -> Option<Uuid> {
        // The only error is that it is not mounted.
        self.state.borrow().mdv_store(pool).ok().map(|store| store.uuid)
    }

    /// Names of the files in a folder of a mounted metadata volume. `None` while it is not mounted.
    pub fn files(&self, pool: PoolUuid, folder: Folder) -> Option<Vec<String>> {
        // The only error is that it is not mounted.
        self.state.borrow().mdv_store(pool).ok().map(|store| store.list(folder))
    }

    /// What is in a file of a mounted metadata volume. `None` while it is not mounted, or has no such file.
    pub fn file(&self, pool: PoolUuid, folder: Folder, name: &str) -> Option<Vec<u8>> {
        // The only errors are these two.
        self.state.borrow().mdv_store(pool).ok()?.read(folder, name).ok()
    }

    /// Thin pools of which nobody has asked how they are since they raised an event, with the number of that event.
    pub fn unanswered(&self) -> BTreeMap<PoolUuid, u64> {
        self.state.borrow().news.unanswered.clone()
    }

    /// How many data blocks an active thin pool has free, and at how many it says that it runs low.
    pub fn thin_room(&self, pool: PoolUuid) -> Option<(u64, u64)> {
        // The only error is that it is not active.
        let state = self.state.borrow().thin_pool(pool).ok()?;
        Some((state.data_total.saturating_sub(state.data_used), state.low_water))
    }

    /// What the encryption header of a pool holds, if it has one. `None` also while the backstore is not active.
    pub fn tokens(&self, pool: PoolUuid) -> Option<Tokens> {
        // The only errors are that it is not active, and a disk that cannot be read.
        self.state.borrow().tokens(pool).ok().flatten()
    }

    /// Where `announce` made paths lead: pool and filesystem name, to the thin volume.
    pub fn announced(&self) -> BTreeMap<String, (PoolUuid, FsUuid, ThinId)> {
        let entry = |(fs, (pool, pool_name, name, id)): (&FsUuid, &(PoolUuid, _, _, ThinId))| {
            (format!("{pool_name}/{name}"), (*pool, *fs, *id))
        };
        self.state.borrow().announced.iter().map(entry).collect()
    }
}
