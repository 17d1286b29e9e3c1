//! Device-mapper.
//!
//! A batch is one job of a lane, with one cookie for udev if it changes anything; what a job does to one device
//! stands in `change`, what is waited for afterwards in `udev`.
//!
//! Invariant: after an error every device is as `change` promises, and those before it in the batch
//! are done. Deliberately absent: events, and which tables are wanted.

mod change;
mod control;
mod cookie;
mod ioctl;
pub(super) mod list;
mod question;
mod reserve;
mod semaphore;
mod status;
mod swaps;
mod table;
mod udev;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cores::rt;

use self::control::{Ask, Control, Info, Numbers};
use self::cookie::LazyCookie;
use self::reserve::Reserves;
use self::table::Numbered;
use self::udev::Waits;
use crate::error::Why;
use crate::limits::{DM_BATCH_MAX, DM_BUSY_PAUSE_MS, DM_BUSY_TRIES, DM_QUESTIONS_MAX};
use crate::model::blank::ReadsZeroes;
use crate::model::device::DeviceNumber;
use crate::model::dm::{Dm, Role, Table, ThinPoolMode, ThinPoolState};
use crate::model::ids::{PoolUuid, ThinId};
use crate::sys::kernel::lanes::{self, Lanes};
use crate::units::Sectors;

/// Device-mapper as one core uses it.
pub(super) struct Mapper {
    lanes: Rc<Lanes>,
    control: Arc<Control>,
    waits: Rc<Waits>,
    reserves: Reserves,
}

/// Takes away what a daemon that died left of its talk with udev. Call it before any core has a `Mapper`.
pub(super) fn clear_cookies() {
    cookie::clear();
}

impl Mapper {
    /// Opens device-mapper.
    pub(super) fn new(lanes: Rc<Lanes>, cpu: Option<usize>) -> io::Result<Self> {
        let control = Arc::new(Control::open()?);
        let waits = Rc::new(Waits::new(Rc::clone(&lanes)));
        Ok(Self { lanes, control, waits, reserves: Reserves::new(cpu) })
    }

    /// As `Sys::activate`; says which device it failed at. What somebody else holds below is tried again: a
    /// process that was just forked has all our descriptors, exclusive ones too, until it runs its program. So is a
    /// volume whose thin pool stood still for a moment: the kernel takes no table for it then. That is waited out,
    /// however often it grows, because it is nobody's fault.
    pub(super) async fn activate(&self, tables: &[(Dm, Table)]) -> Result<(), (Dm, Why)> {
        let Some((first, _)) = tables.first() else { return Ok(()) };
        let reserve = self.reserves.of(first.pool()).map_err(|why| (*first, why))?;
        let mut left = tables;
        let mut tries = 1;
        loop {
            let none = reserve.swaps.none().await;
            let (device, why) = match self.activate_once(left).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            let done = left.iter().position(|(other, _)| *other == device).expect("a device of the batch failed");
            left = &left[done..];
            if why == Why::Errno(libc::EINVAL) && matches!(device, Dm::Thin(..)) && reserve.swaps.since(none) {
                continue;
            }
            if why != Why::Errno(libc::EBUSY) || tries == DM_BUSY_TRIES {
                return Err((device, why));
            }
            tries += 1;
            rt::sleep(Duration::from_millis(DM_BUSY_PAUSE_MS)).await;
        }
    }

    async fn activate_once(&self, tables: &[(Dm, Table)]) -> Result<(), (Dm, Why)> {
        for batch in self.to_be_done(tables).await.chunks(DM_BATCH_MAX) {
            let owned = batch.to_vec();
            let work = move |control: &Control, cookie: &LazyCookie| {
                let numbers = Numbers::of(control);
                let one = |(device, table): &(Dm, Table)| {
                    change::activate(&numbers, *device, table, cookie).map_err(|why| (*device, why))
                };
                owned.iter().try_for_each(one)
            };
            let devices: Vec<Dm> = batch.iter().map(|(device, _)| *device).collect();
            self.change(devices, work).await.map_err(|why| (batch[0].0, why))??;
        }
        Ok(())
    }

    /// Those of the devices of which something is left to do. Who takes over many volumes finds most as they should be.
    async fn to_be_done(&self, tables: &[(Dm, Table)]) -> Vec<(Dm, Table)> {
        let [(Dm::Thin(pool, _), _), _, ..] = tables else { return tables.to_vec() };
        let done = |numbers: &Numbers<'_>, (volume, table): &(Dm, Table)| change::is_done(numbers, *volume, table);
        let is_done = self.ask_each(*pool, tables, done).await;
        let left = tables.iter().zip(is_done).filter(|(_, is_done)| *is_done != Ok(true));
        left.map(|(table, _)| table.clone()).collect()
    }

    /// As `Sys::swap`; says which device it failed at. One job; udev is told and not waited for. A thin pool has a
    /// reserved thread for itself: what lies below waits for the disks before it stands still.
    pub(super) async fn swap(&self, tables: &[(Dm, Table)]) -> Result<Duration, (Dm, Why)> {
        let Some((first, _)) = tables.first() else { return Ok(Duration::ZERO) };
        let (control, owned) = (Arc::clone(&self.control), tables.to_vec());
        let job = move || {
            let one = |(device, table): &(Dm, Table)| {
                change::swap_active(&control, *device, table).map_err(|why| (*device, why))
            };
            owned.iter().map(one).sum::<Result<Duration, _>>()
        };
        let reserve = self.reserves.of(first.pool()).map_err(|why| (*first, why))?;
        if !matches!(first, Dm::Private(_, Role::ThinPool)) {
            return lanes::on(&reserve.below, job).await.map_err(|why| (*first, why))?;
        }
        let _swap = reserve.swaps.begin();
        lanes::on(&reserve.urgent, job).await.map_err(|why| (*first, why))?
    }

    /// As `Sys::deactivate`. What somebody has open is tried again: udev looks into new devices for moments.
    pub(super) async fn deactivate(&self, devices: &[Dm]) -> Result<(), (Dm, Why)> {
        let mut left = devices.to_vec();
        let mut first = None;
        for tries in 1..=DM_BUSY_TRIES {
            let mut busy = Vec::new();
            for batch in left.chunks(DM_BATCH_MAX) {
                for (device, why) in self.remove(batch).await.map_err(|why| (batch[0], why))? {
                    if why == Why::Errno(libc::EBUSY) && tries < DM_BUSY_TRIES {
                        busy.push(device);
                    } else {
                        first.get_or_insert((device, why));
                    }
                }
            }
            if busy.is_empty() {
                break;
            }
            left = busy;
            rt::sleep(Duration::from_millis(DM_BUSY_PAUSE_MS)).await;
        }
        for device in devices.iter().filter(|device| **device == thin_pool(device.pool())) {
            self.reserves.release(device.pool());
        }
        first.map_or(Ok(()), Err)
    }

    /// Tries to remove each once; tells what failed.
    async fn remove(&self, devices: &[Dm]) -> Result<Vec<(Dm, Why)>, Why> {
        let owned = devices.to_vec();
        let work = move |control: &Control, cookie: &LazyCookie| {
            let one = |device: &Dm| change::remove(control, *device, cookie).err().map(|why| (*device, why));
            owned.iter().filter_map(one).collect()
        };
        self.change(devices.to_vec(), work).await
    }

    /// Does something that udev is told of, and has that waited for beside.
    async fn change<T: Send + 'static>(
        &self,
        devices: Vec<Dm>,
        work: impl FnOnce(&Control, &LazyCookie) -> T + Send + 'static,
    ) -> Result<T, Why> {
        let pool = devices.first().expect("a change is one of devices").pool();
        let (control, random) = (Arc::clone(&self.control), rt::random());
        let job = move || {
            let cookie = LazyCookie::new(random);
            let outcome = work(&control, &cookie);
            (outcome, cookie.awaited())
        };
        let (outcome, cookie) = lanes::on(lanes::of(&self.lanes.dm, pool), job).await?;
        if let Some(cookie) = cookie {
            self.waits.watch(devices, cookie);
        }
        Ok(outcome)
    }

    /// As `Sys::settle`.
    pub(super) async fn settle(&self, pool: PoolUuid) {
        self.waits.settle(pool).await;
    }

    /// As `Sys::active`.
    pub(super) async fn active(&self, pool: PoolUuid) -> Result<Vec<Dm>, Why> {
        self.ask(pool, move |control| control.of_pool(pool)).await
    }

    /// As `Sys::thin_create`. Whether new blocks are zeroed is what the table that is active says, whoever
    /// loaded it.
    pub(super) async fn thin_create(&self, pool: PoolUuid, id: ThinId) -> Result<Option<ReadsZeroes>, Why> {
        let create = move |control: &Control| {
            let active = Numbered::parse(&control.lines(thin_pool(pool), Ask::Table)?);
            let Some(Numbered::ThinPool { features, .. }) = active else { return Err(Why::OtherTable) };
            control.message(thin_pool(pool), &format!("create_thin {id}"))?;
            Ok(ReadsZeroes::of_new_thin(pool, id, &features))
        };
        self.ask(pool, create).await
    }

    /// As `Sys::thin_delete`.
    pub(super) async fn thin_delete(&self, pool: PoolUuid, id: ThinId) -> Result<(), Why> {
        self.ask(pool, move |control| control.message(thin_pool(pool), &format!("delete {id}"))).await
    }

    /// As `Sys::thin_snapshot`; tells how long the origin was suspended. One job, so that the thread that
    /// suspends is the one that resumes.
    pub(super) async fn thin_snapshot(&self, origin: (Dm, ThinId), id: ThinId) -> Result<Duration, Why> {
        let work = move |control: &Control, cookie: &LazyCookie| change::snapshot(control, origin, id, cookie);
        self.change(vec![origin.0], work).await?
    }

    /// As `Sys::thin_commit`: the kernel commits when it is asked for a status, but not while the thin pool stands
    /// still; then it is asked again.
    pub(super) async fn thin_commit(&self, pool: PoolUuid) -> Result<(), Why> {
        let reserve = self.reserves.of(pool)?;
        let state = loop {
            let none = reserve.swaps.none().await;
            let ask = move |control: &Control| control.lines(thin_pool(pool), Ask::StatusAfterCommit);
            let state = self.ask(pool, move |control| status::thin_pool(&ask(control)?)).await?;
            if !reserve.swaps.since(none) {
                break state;
            }
        };
        match state.mode {
            ThinPoolMode::ReadWrite | ThinPoolMode::OutOfDataSpace if !state.needs_check => Ok(()),
            ThinPoolMode::OutOfMetadataSpace => Err(Why::Data("the metadata of the thin pool is full")),
            ThinPoolMode::ReadWrite | ThinPoolMode::OutOfDataSpace | ThinPoolMode::ReadOnly => {
                Err(Why::Data("the thin pool takes no changes any more"))
            }
            ThinPoolMode::Failed => Err(Why::Data("the thin pool has failed")),
        }
    }

    /// As `Sys::thin_pool`.
    pub(super) async fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Why> {
        let control = Arc::clone(&self.control);
        let reserve = self.reserves.of(pool)?;
        let job = move || {
            let state = status::thin_pool(&control.lines(thin_pool(pool), Ask::Status)?)?;
            match Numbered::parse(&control.lines(thin_pool(pool), Ask::Table)?) {
                Some(Numbered::ThinPool { low_water, .. }) => Ok(ThinPoolState { low_water, ..state }),
                Some(_) | None => Err(Why::OtherTable),
            }
        };
        let state = lanes::on(&reserve.urgent, job).await?;
        if state == Err(Why::Errno(libc::ENXIO)) {
            self.reserves.release(pool);
        }
        state
    }

    /// As `Sys::thin_volume`.
    pub(super) async fn thin_volume(&self, device: Dm) -> Result<(ThinId, Sectors), Why> {
        let volume = move |control: &Control| {
            let active = Numbered::parse(&control.lines(device, Ask::Table)?);
            let Some(Numbered::Thin { length, id, .. }) = active else { return Err(Why::OtherTable) };
            Ok((id, length))
        };
        self.ask(device.pool(), volume).await
    }

    /// Sectors that an active thin volume takes of its pool.
    pub(super) async fn thin_used(&self, device: Dm) -> Result<Sectors, Why> {
        self.ask(device.pool(), move |control| status::thin(&control.lines(device, Ask::Status)?)).await
    }

    /// The same of many.
    pub(super) async fn thin_used_each(&self, devices: &[Dm]) -> Vec<Result<Sectors, Why>> {
        let Some(first) = devices.first() else { return Vec::new() };
        let used = |numbers: &Numbers<'_>, device: &Dm| status::thin(&numbers.control.lines(*device, Ask::Status)?);
        self.ask_each(first.pool(), devices, used).await
    }

    /// The numbers of many devices that are there: one question, unless it is one device. ENXIO for one that is not.
    pub(super) async fn numbers(&self, devices: &[Dm]) -> Vec<Result<DeviceNumber, Why>> {
        let pool = match devices {
            [] => return Vec::new(),
            [device] => return vec![self.number(*device).await],
            [first, ..] => first.pool(),
        };
        let list = |control: &Control| Ok(control.ours()?.into_iter().collect());
        let numbers: Result<BTreeMap<Dm, DeviceNumber>, Why> = self.ask(pool, list).await;
        let number = |device| match &numbers {
            Ok(numbers) => numbers.get(device).copied().ok_or(Why::Errno(libc::ENXIO)),
            Err(why) => Err(why.clone()),
        };
        devices.iter().map(number).collect()
    }

    /// The minor numbers of all devices that pools have. Who asks looks at devices and changes none.
    pub(super) async fn minors(&self) -> Result<BTreeSet<u64>, Why> {
        let control = Arc::clone(&self.control);
        let list = move || Ok(control.ours()?.into_iter().map(|(_, number)| number.1).collect());
        lanes::on(&self.lanes.probe, list).await?
    }

    /// The number of an active device; its node is `/dev/dm-<minor>`. ENXIO when it is not active.
    pub(super) async fn number(&self, device: Dm) -> Result<DeviceNumber, Why> {
        self.info(device).await.map(|info| info.number)
    }

    /// How many have the device open, the daemon and mounts included. ENXIO when it is not active.
    pub(super) async fn open_count(&self, device: Dm) -> Result<u32, Why> {
        self.info(device).await.map(|info| info.open_count)
    }

    async fn info(&self, device: Dm) -> Result<Info, Why> {
        self.ask(device.pool(), move |control| control.info(device)).await
    }

    /// Asks one thing of many devices of a pool, of a part of them at a time.
    async fn ask_each<D: Clone + Send + 'static, T: Send + 'static>(
        &self,
        pool: PoolUuid,
        devices: &[D],
        question: impl Fn(&Numbers<'_>, &D) -> Result<T, Why> + Clone + Send + 'static,
    ) -> Vec<Result<T, Why>> {
        let mut all = Vec::with_capacity(devices.len());
        for some in devices.chunks(DM_QUESTIONS_MAX) {
            let (own, question) = (some.to_vec(), question.clone());
            let ask = move |control: &Control| {
                let numbers = Numbers::of(control);
                Ok(own.iter().map(|device| question(&numbers, device)).collect())
            };
            match self.ask(pool, ask).await {
                Ok::<Vec<_>, _>(answers) => all.extend(answers),
                Err(why) => all.extend(some.iter().map(|_| Err(why.clone()))),
            }
        }
        all
    }

    /// Asks something of a pool, or does what udev is not told of.
    async fn ask<T: Send + 'static>(
        &self,
        pool: PoolUuid,
        question: impl FnOnce(&Control) -> Result<T, Why> + Send + 'static,
    ) -> Result<T, Why> {
        let control = Arc::clone(&self.control);
        lanes::on(lanes::of(&self.lanes.dm, pool), move || question(&control)).await?
    }
}

fn thin_pool(pool: PoolUuid) -> Dm {
    Dm::Private(pool, Role::ThinPool)
}

/// The node of a dm device.
pub(super) fn node(number: DeviceNumber) -> PathBuf {
    format!("/dev/dm-{}", number.1).into()
}
