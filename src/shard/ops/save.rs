//! The one saver of a pool's record.
//!
//! One save is in flight; requests that arrive meanwhile are grouped into the next. Invariants: at
//! most one write sequence is outstanding per device; a save that is reported as done holds
//! everything that was committed before it was asked for; at every moment each device holds a whole
//! record.
//!
//! Order on each device: all units of the region but the first, flush, the first unit, flush; then
//! the same for the region's second copy. The record starts inside the header's own unit, so the
//! first unit is what makes the region new.

use std::cell::{Cell, RefCell};

use cores::rt;

use crate::engine::pool::{Member, Save};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::mda::{self, Geometry, PRIMARIES, RECORD_BYTES_MAX, WallStamp};
use crate::format::record::{self, PoolRecord};
use crate::model::ids::DevUuid;
use crate::model::pool::Availability;
use crate::shard::ops::headers::{bytes, wrong};
use crate::shard::wait::Signal;
use crate::shard::{Running, Shard};
use crate::sys::{Sys, Target};
use crate::units::{SECTOR_BYTES, Sectors};

/// Which saves were asked for, and how they ended.
#[derive(Debug, Default)]
pub struct Saver {
    asked: Cell<u64>,
    ended: Cell<u64>,
    running: Cell<bool>,
    /// Results by the last request that each save covers; dropped when read by nobody any more.
    results: RefCell<Vec<(u64, Result<(), Fault>)>>,
    changed: Signal,
}

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
        let cut_off = || Err(Fault::new("save", "a pool's record", Why::Bug("the save was cut off".to_owned())));
        self.saver.end(self.last, self.result.take().unwrap_or_else(cut_off));
    }
}

async fn save<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    rt::stage("save");
    let save = running.pool.borrow_mut().next_save(now());
    let total = save.places.len();
    let reaches = write(&shard.sys, &save).await?;
    for reach in &reaches {
        running.pool.borrow_mut().saved(reach.device, reach.durable, reach.fault.is_none());
        if let Some(fault) = &reach.fault {
            log::error!("a device gets no more saves (pool={} device={}): {fault}", running.uuid, reach.device);
        }
    }
    if !reaches.iter().any(|reach| reach.durable) {
        return Err(Fault::new("save the record of", format!("pool {}", running.uuid), Why::NoDevice { total }));
    }
    if reaches.iter().any(|reach| reach.fault.is_some()) {
        shard.degrade(running, Availability::NoRequests);
    }
    Ok(())
}

/// The wall clock as a time of saving.
pub fn now() -> WallStamp {
    let wall = rt::wall();
    WallStamp { seconds: wall.seconds, nanoseconds: wall.nanoseconds }
}

/// As `durable`, for a record that has changed: one that does not fit is refused before anything is written.
pub async fn checked<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Failure> {
    fits(running.pool.borrow().record())?;
    Ok(durable(shard, running).await?)
}

/// A record that would not fit is refused before anything is changed.
pub fn fits(record: &PoolRecord) -> Result<(), Refusal> {
    let bytes = record::encode(record).len();
    if bytes > RECORD_BYTES_MAX { Err(Refusal::RecordTooLarge { bytes, max: RECORD_BYTES_MAX }) } else { Ok(()) }
}

/// How far a save came on one device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reach {
    /// The device.
    pub device: DevUuid,
    /// The region holds the record, durably.
    pub durable: bool,
    /// What went wrong, there or with the second copy.
    pub fault: Option<Fault>,
}

/// Writes a save to all its places, side by side.
///
/// # Errors
/// When the record does not fit a region.
pub async fn write<S: Sys>(sys: &S, save: &Save) -> Result<Vec<Reach>, Fault> {
    let encoded =
        mda::encode(&save.json, save.time).map_err(|_| wrong("save", "a pool's record", "it does not fit a region"))?;
    let mut reaches: Vec<Reach> =
        save.places.iter().map(|member| Reach { device: member.header.device, durable: false, fault: None }).collect();
    for copy in [0, PRIMARIES] {
        for piece in [Piece::Rest, Piece::First] {
            step(sys, save, &encoded, (copy, piece), &mut reaches).await;
        }
        for reach in &mut reaches {
            reach.durable |= reach.fault.is_none();
        }
    }
    Ok(reaches)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Piece {
    Rest,
    First,
}

/// One barrier group: the same piece on every device that is still in order, then a flush of each.
async fn step<S: Sys>(sys: &S, save: &Save, encoded: &[u8], (copy, piece): (usize, Piece), reaches: &mut [Reach]) {
    let mut batch = Vec::new();
    let mut whose = Vec::new();
    for (place, member) in save.places.iter().enumerate() {
        if reaches[place].fault.is_some() {
            continue;
        }
        let start = Geometry::of(&member.header).start(member.older + copy);
        let physical = member.candidate.blocks.physical;
        let pieces = mda::pieces(encoded, start, physical);
        let part = match piece {
            Piece::Rest => pieces.rest,
            Piece::First => Some(pieces.first),
        };
        let Some((start, data)) = part else {
            continue;
        };
        match widen(sys, member, start, data).await {
            Ok((start, data)) => {
                batch.push(bytes(Target::Device(member.candidate.number), start, data));
                whose.push(place);
            }
            Err(fault) => reaches[place].fault = Some(fault),
        }
    }
    let targets: Vec<Target> = batch.iter().map(|write| write.target).collect();
    let written = sys.write(batch).await;
    let flushed = sys.flush(targets).await;
    for (place, result) in whose.into_iter().zip(written.into_iter().zip(flushed)) {
        reaches[place].fault = result.0.and(result.1).err();
    }
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
    let mut wide = sys.read(Target::Device(member.candidate.number), first, end - first).await?;
    let at = usize::try_from((start - first).offset()).expect("a region is small");
    wide[at..at + data.len()].copy_from_slice(&data);
    Ok((first, wide))
}
