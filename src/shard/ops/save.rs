//! The one saver of a pool's record.
//!
//! One save is in flight; requests that arrive meanwhile are grouped into the next. To each device goes a task of
//! its own, and those in order are waited for, for a limited time. One that fails or is late has failed: the pool
//! degrades. Each later save tries it again beside the others, and nobody waits for it as long as another one
//! is in order.
//!
//! Invariants: at most one write is outstanding per device, also of one that is late; a save that is reported as
//! done holds everything that was committed before it was asked for; at every moment each device holds a whole
//! record.
//!
//! Order on each device: all units of the region but the first, flush, the first unit, flush; then
//! the same for the region's second copy. The record starts inside the header's own unit, so the
//! first unit is what makes the region new.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use cores::changes::Signal;
use cores::rt;

use crate::engine::pool::{Member, Save};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::mda::{self, Geometry, PRIMARIES, RECORD_BYTES_MAX, WallStamp};
use crate::format::record::{self, PoolRecord};
use crate::limits::RECORD_ROOM_BYTES;
use crate::model::device::DeviceNumber;
use crate::model::ids::DevUuid;
use crate::model::pool::Availability;
use crate::shard::ops::headers::{self, bytes, wrong};
use crate::shard::{Running, Shard};
use crate::sys::{Sys, Target, patience};
use crate::units::{SECTOR_BYTES, Sectors};
use crate::zoo::{Bug, planted};

/// Which saves were asked for, and how they ended.
#[derive(Debug, Default)]
pub struct Saver {
    asked: Cell<u64>,
    ended: Cell<u64>,
    running: Cell<bool>,
    /// Results by the last request that each save covers; dropped when read by nobody any more.
    results: RefCell<Vec<(u64, Result<(), Fault>)>>,
    changed: Signal,
    reaches: Rc<Reaches>,
}

/// How saves to single devices ended, until the saver takes that in.
#[derive(Debug, Default)]
struct Reaches {
    ended: RefCell<Vec<Reach>>,
    news: Signal,
}

/// Devices that a write to has not ended yet, whoever waits for it.
pub type Outstanding = Rc<RefCell<BTreeSet<DeviceNumber>>>;

enum Turn {
    Ours,
    Ended(Result<(), Fault>),
}

impl Saver {
    fn look(&self, number: u64) -> Option<Turn> {
        if self.ended.get() >= number {
            let results = self.results.borrow();
            let covering = results.iter().find(|(last, _)| *last >= number).expect("an ended save has its result");
            return Some(Turn::Ended(covering.1.clone()));
        }
        if self.running.get() {
            return None;
        }
        self.running.set(true);
        Some(Turn::Ours)
    }

    fn end(&self, last: u64, result: Result<(), Fault>) {
        let mut results = self.results.borrow_mut();
        results.push((last, result));
        // Whoever waits was there before the last two saves ended, so older results have no reader.
        let surplus = results.len().saturating_sub(2);
        results.drain(..surplus);
        drop(results);
        self.ended.set(last);
        self.running.set(false);
        self.changed.raise();
    }
}

/// Makes everything that was committed so far durable, or says why it is not.
pub async fn durable<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    let saver = &running.saver;
    let number = saver.asked.get() + 1;
    saver.asked.set(number);
    // Waiting for another operation's save is waiting for writes.
    match rt::timed("write", saver.changed.until(|| saver.look(number))).await {
        Turn::Ended(result) => result,
        Turn::Ours => {
            let turn = InFlight { saver, last: saver.asked.get(), result: None };
            turn.end(save(shard, running).await)
        }
    }
}

/// The turn of one save. Ends also when the save panics, so that nobody waits for ever.
struct InFlight<'a> {
    saver: &'a Saver,
    last: u64,
    result: Option<Result<(), Fault>>,
}

impl InFlight<'_> {
    fn end(mut self, result: Result<(), Fault>) -> Result<(), Fault> {
        self.result = Some(result.clone());
        result
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let last = if planted(Bug::SaveCoversLate) { self.saver.asked.get() } else { self.last };
        self.saver.end(last, self.result.take().unwrap_or_else(|| Err(cut_off())));
    }
}

async fn save<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    rt::stage("save");
    // Which regions a device that was late has by now decides where the next record goes.
    take_in(running, Reaches::all(&running.saver.reaches));
    let save = running.pool.borrow_mut().next_save(now());
    let total = save.places.len();
    let awaited = start(shard, running, &save)?;
    let reaches = &running.saver.reaches;
    let all_ended = || awaited.iter().all(|device| reaches.has(save.time, *device)).then_some(());
    // Whoever has not ended by then is found missing below.
    let _late = patience::in_time(reaches.news.until(all_ended)).await;
    let mut ended = Reaches::all(reaches);
    let told = |device: &&DevUuid| ended.iter().any(|reach| reach.time == save.time && reach.device == **device);
    let missing: Vec<Reach> =
        awaited.iter().filter(|device| !told(device)).map(|device| Reach::late(*device, save.time)).collect();
    ended.extend(missing);
    let saved = ended.iter().any(|reach| reach.time == save.time && reach.durable);
    let failed = take_in(running, ended);
    if failed && saved {
        shard.degrade(running, Availability::NoRequests);
    } else if failed && shard.is_running(running) {
        // Whoever asked for what could not be saved takes it back first; then it is shown (see `turn`).
        running.pool.borrow_mut().degrade(Availability::NoRequests);
        log::error!("no device takes the record of a pool any more (pool={})", running.uuid);
    }
    let nowhere = || Fault::new("save the record of", format!("pool {}", running.uuid), Why::NoDevice { total });
    (saved || planted(Bug::NoDeviceIsEnough)).then_some(()).ok_or_else(nowhere)
}

impl Reaches {
    fn has(&self, save: WallStamp, device: DevUuid) -> bool {
        self.ended.borrow().iter().any(|reach| reach.time == save && reach.device == device)
    }

    fn add(&self, reach: Reach) {
        self.ended.borrow_mut().push(reach);
        self.news.raise();
    }

    /// All there are, taken out.
    fn all(&self) -> Vec<Reach> {
        std::mem::take(&mut *self.ended.borrow_mut())
    }
}

/// Enters how saves to devices ended. True if one that was in order has failed.
fn take_in(running: &Running, ended: Vec<Reach>) -> bool {
    let mut failed = false;
    for Reach { device, durable, fault, .. } in ended {
        let changed = running.pool.borrow_mut().saved(device, durable, fault.is_none());
        match fault {
            Some(fault) if changed => {
                failed = true;
                log::error!("a device has failed to take a record (pool={} device={device}): {fault}", running.uuid);
            }
            Some(fault) => {
                log::debug!("a device still takes no record (pool={} device={device}): {fault}", running.uuid)
            }
            None if changed => log::warn!("a device takes records again (pool={} device={device})", running.uuid),
            None => {}
        }
    }
    failed
}

/// Starts a save on every device that no write is outstanding to; says which ones are to be waited for.
fn start<S: Sys>(shard: &Shard<S>, running: &Running, save: &Save) -> Result<Vec<DevUuid>, Fault> {
    let encoded =
        mda::encode(&save.json, save.time).map_err(|_| wrong("save", "a pool's record", "it does not fit a region"))?;
    let encoded: Rc<[u8]> = encoded.into();
    let any_in_order = save.places.iter().any(|member| !member.bad);
    let mut awaited = Vec::new();
    for member in &save.places {
        let device = member.header.device;
        if !member.bad || !any_in_order {
            awaited.push(device);
        }
        if !shard.outstanding.borrow_mut().insert(member.candidate.number) && !planted(Bug::WrittenTwice) {
            running.saver.reaches.add(Reach::late(device, save.time));
            continue;
        }
        let mut writing = Writing {
            number: member.candidate.number,
            outstanding: Rc::clone(&shard.outstanding),
            reaches: Rc::clone(&running.saver.reaches),
            reach: Reach { device, time: save.time, durable: false, fault: Some(cut_off()) },
        };
        let (sys, member, encoded) = (shard.sys.clone(), member.clone(), Rc::clone(&encoded));
        rt::spawn("save to a device", async move {
            let outcome = write(&sys, &member, &encoded, &mut writing.reach.durable).await;
            writing.end(outcome);
        })
        .detach();
    }
    Ok(awaited)
}

/// A save to one device while it is under way. Says how it ended also when it panics.
struct Writing {
    number: DeviceNumber,
    outstanding: Outstanding,
    reaches: Rc<Reaches>,
    reach: Reach,
}

impl Writing {
    fn end(mut self, outcome: Result<(), Fault>) {
        self.reach.fault = outcome.err();
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.outstanding.borrow_mut().remove(&self.number);
        self.reaches.add(self.reach.clone());
    }
}

fn cut_off() -> Fault {
    Fault::new("save", "a pool's record", Why::Bug("the save was cut off".to_owned()))
}

/// The wall clock as a time of saving.
pub fn now() -> WallStamp {
    let wall = rt::wall();
    WallStamp { seconds: wall.seconds, nanoseconds: wall.nanoseconds }
}

/// As `durable`, for a record that a client has changed: one that does not fit is refused before anything is written.
pub async fn checked<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Failure> {
    fits(running.pool.borrow().record())?;
    Ok(durable(shard, running).await?)
}

/// A record that a client wants, and that would leave no room for what a pool does by itself, is refused before
/// anything is changed.
pub fn fits(record: &PoolRecord) -> Result<(), Refusal> {
    let (bytes, max) = (record::encode(record).len(), RECORD_BYTES_MAX - RECORD_ROOM_BYTES);
    if bytes > max { Err(Refusal::RecordTooLarge { bytes, max }) } else { Ok(()) }
}

/// How far a save came on one device.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Reach {
    device: DevUuid,
    /// Which save.
    time: WallStamp,
    /// The region holds the record, durably.
    durable: bool,
    /// What went wrong, there or with the second copy.
    fault: Option<Fault>,
}

impl Reach {
    /// One of which nothing was heard in time.
    fn late(device: DevUuid, time: WallStamp) -> Self {
        let late = patience::late("write to", format!("device {device}"));
        Self { device, time, durable: false, fault: Some(late) }
    }
}

/// Writes a record to a region of one device and to the copy of that, each piece durable before the next.
async fn write<S: Sys>(sys: &S, member: &Member, encoded: &[u8], durable: &mut bool) -> Result<(), Fault> {
    let target = Target::Device(member.candidate.number);
    for copy in [0, PRIMARIES] {
        let start = Geometry::of(&member.header).start(member.older + copy);
        let mda::Pieces { first, rest } = mda::pieces(encoded, start, member.candidate.blocks.physical);
        let mut pieces: Vec<_> = rest.into_iter().chain([first]).collect();
        if planted(Bug::HeaderBeforeData) {
            pieces.reverse();
        }
        for (start, data) in pieces {
            let (start, data) = widen(sys, member, start, data).await?;
            headers::put(sys, vec![bytes(target, start, data)]).await?;
        }
        *durable = true;
    }
    Ok(())
}

/// Widens a write to whole physical blocks, with what is on the device around it: a device with
/// blocks of 4096 bytes would do the same, but not in one piece.
async fn widen<S: Sys>(sys: &S, member: &Member, start: Sectors, data: Vec<u8>) -> Result<(Sectors, Vec<u8>), Fault> {
    let unit = Sectors((u64::from(member.candidate.blocks.physical) / SECTOR_BYTES).max(1));
    let length = Sectors(data.len() as u64 / SECTOR_BYTES);
    let (first, end) = (start.floor_to(unit), (start + length).ceil_to(unit));
    if first == start && end == start + length {
        return Ok((start, data));
    }
    let mut wide = sys.read(Target::Device(member.candidate.number), first, end - first).await?.to_vec();
    let at = usize::try_from((start - first).offset()).expect("a region is small");
    wide[at..at + data.len()].copy_from_slice(&data);
    Ok((first, wide))
}
