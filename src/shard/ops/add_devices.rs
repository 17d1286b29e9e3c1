//! Giving a running pool devices: more for its data, a cache, more for that.
//!
//! Commit point: the record that lists the devices is durable on a device that the pool had before. Until then
//! each new device carries the mark of one that joins, so a start after a power failure wipes those that the
//! record does not list; a failure on the way is unwound to the same. New devices get saves from the next one
//! on: a record that lists a device is never on new devices alone.
//!
//! No table changes for data devices here: their sectors are free until something grows. The tables of a cache follow
//! its record. A first cache that cannot be made active is taken back, with a second record, as long as nothing lies
//! on it; otherwise what is missing the next start makes.

use std::rc::Rc;

use cores::rt;

use crate::engine::pool::Member;
use crate::engine::tier;
use crate::error::{Failure, Refusal};
use crate::format::header::FLAG_JOINING;
use crate::format::record::PoolRecord;
use crate::message::{Answer, Claim};
use crate::model::device::{Candidate, DevicePath, Tier};
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::pool::Availability;
use crate::shard::ops::{Outcome, create_pool, headers, save, stack, thin_pool};
use crate::shard::{Running, Shard};
use crate::sys::{Kind, Opening, Sys, Target, Write, WriteData};
use crate::units::Sectors;

/// The superblock of a cache's metadata.
const CACHE_META_HEAD: Sectors = Sectors(8);

/// Gives a pool more devices for its data.
pub async fn data<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, paths: Vec<DevicePath>) -> Outcome {
    let running = shard.changeable(pool)?;
    rt::stage("examine");
    let named = create_pool::examine(shard, &paths).await?;
    let new = running.pool.borrow().tiers().newcomers(Tier::Data, named)?;
    join(shard, &running, Tier::Data, new).await
}

/// Gives a pool a cache, or finds that it has one of these devices.
pub async fn cache<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, paths: Vec<DevicePath>) -> Outcome {
    let running = shard.changeable(pool)?;
    caches_work(shard.sys.kind())?;
    rt::stage("examine");
    let named = create_pool::examine(shard, &paths).await?;
    let new = {
        let pool = running.pool.borrow();
        if pool.tiers().has_cache() {
            pool.tiers().is_cache_of(&named)?;
            return Ok(Answer::Identity);
        }
        if named.is_empty() {
            return Err(Refusal::NoCacheDevices { name: pool.name().clone() }.into());
        }
        pool.tiers().newcomers(Tier::Cache, named)?
    };
    join(shard, &running, Tier::Cache, new).await
}

/// Gives a pool with a cache more devices for that.
pub async fn more_cache<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, paths: Vec<DevicePath>) -> Outcome {
    let running = shard.changeable(pool)?;
    caches_work(shard.sys.kind())?;
    if !running.pool.borrow().tiers().has_cache() {
        return Err(Refusal::NoCache { name: running.pool.borrow().name().clone() }.into());
    }
    rt::stage("examine");
    let named = create_pool::examine(shard, &paths).await?;
    let new = running.pool.borrow().tiers().newcomers(Tier::Cache, named)?;
    join(shard, &running, Tier::Cache, new).await
}

/// Whether pools may have a cache on this machine.
pub(super) const fn caches_work(kind: Kind) -> Result<(), Refusal> {
    match kind {
        Kind::Sim | Kind::Kernel => Ok(()),
        Kind::Files => Err(Refusal::Unsupported { what: "a cache on regular files" }),
    }
}

/// Claims the devices, makes them the pool's, and shows them.
async fn join<S: Sys>(shard: &Rc<Shard<S>>, running: &Running, tier: Tier, new: Vec<Candidate>) -> Outcome {
    if new.is_empty() {
        return Ok(Answer::Identity);
    }
    rt::stage("claim");
    claim(shard, running, tier, &new).await?;
    let joined = make(shard, running, tier, new).await;
    shard.claim(if joined.is_ok() { Claim::Commit(running.uuid) } else { Claim::GiveBack(running.uuid) });
    let devices = joined?;
    shard.show_devices(running, &devices);
    thin_pool::look(shard, running.uuid);
    log::info!("devices added (pool={} tier={} count={})", running.uuid, tier.as_str(), devices.len());
    Ok(Answer::DevicesAdded(devices))
}

async fn claim<S: Sys>(shard: &Shard<S>, running: &Running, tier: Tier, new: &[Candidate]) -> Result<(), Refusal> {
    let devices = new.iter().map(|candidate| (candidate.number, candidate.path.clone(), tier)).collect();
    let claim = Claim::TakeMore { pool: running.uuid, name: None, devices };
    shard.take(claim).await.map_err(|taken| taken.refusal(running.pool.borrow().name()))
}

async fn make<S: Sys>(
    shard: &Shard<S>,
    running: &Running,
    tier: Tier,
    new: Vec<Candidate>,
) -> Result<Vec<DevUuid>, Failure> {
    running.pool.borrow().tiers().admit(tier, &new)?;
    let initialized = rt::wall().seconds;
    let of = (running.uuid, running.pool.borrow().version());
    let member = |candidate| Member::new(candidate, of, DevUuid::from_random(rt::random()), FLAG_JOINING, initialized);
    let members: Vec<Member> = new.into_iter().map(member).collect();
    let record = running.pool.borrow().tiers().join(tier, &members)?;
    save::fits(&record)?;
    if let Err(failure) = prepare(shard, &members, &record).await {
        unwind(shard, running.uuid, &members).await;
        return Err(failure);
    }
    let alone = shard.alone(running.uuid).await;
    enter(shard, running, tier, &members).await?;
    if tier == Tier::Cache {
        use_cache(shard, running, &members).await?;
    }
    drop(alone);
    settle_in(shard, running, &members).await;
    Ok(members.iter().map(|member| member.header.device).collect())
}

/// Makes the devices such that a record may list them.
async fn prepare<S: Sys>(shard: &Shard<S>, members: &[Member], record: &PoolRecord) -> Result<(), Failure> {
    create_pool::open_new(shard, members).await?;
    rt::stage("initialise");
    headers::initialise(&shard.sys, &create_pool::signed(members)).await?;
    // The kernel takes metadata that begins with zeroes for a new cache. Once the record is durable, a start
    // may be the next that looks there.
    let head = tier::cache_meta_start(record);
    let new = head.and_then(|head| members.iter().find(|member| member.header.device == head.parent).zip(Some(head)));
    if let Some((member, head)) = new {
        let target = Target::Device(member.candidate.number);
        let clear = Write { target, start: head.start, data: WriteData::Zeroes(CACHE_META_HEAD) };
        headers::put(&shard.sys, vec![clear]).await?;
    }
    Ok(())
}

/// The commit point. The record may have changed since it was looked at: the pool grows whenever it has to.
async fn enter<S: Sys>(shard: &Shard<S>, running: &Running, tier: Tier, members: &[Member]) -> Result<(), Failure> {
    let entered = running.pool.borrow_mut().enter(tier, members);
    if let Err(refusal) = entered {
        unwind(shard, running.uuid, members).await;
        return Err(refusal.into());
    }
    if let Err(failure) = save::checked(shard, running).await {
        running.pool.borrow_mut().part(members);
        leave_marked(shard, members).await;
        return Err(failure);
    }
    running.pool.borrow_mut().join(members.to_vec());
    Ok(())
}

/// A record that could not be saved may be on a device nevertheless. So the new ones stay marked as they are, and
/// the next start sees whether it lists them.
async fn leave_marked<S: Sys>(shard: &Shard<S>, members: &[Member]) {
    for member in members {
        shard.sys.close(member.candidate.number, false).await;
    }
}

/// Makes the tables of the cache. The new devices still have their marks: should this fail and be taken back, a
/// start after a power failure wipes them.
async fn use_cache<S: Sys>(shard: &Shard<S>, running: &Running, new: &[Member]) -> Result<(), Failure> {
    rt::stage("stack");
    let Err(fault) = stack::as_recorded(shard, running).await else { return Ok(()) };
    rt::stage("take back");
    let first = running.pool.borrow().tiers().members(Tier::Cache).count() == new.len();
    // What nothing lies on goes down.
    if !first || stack::cache_down(shard, running).await.is_err() {
        log::error!("a cache is not used before the next start of its pool (pool={}): {fault}", running.uuid);
        return Ok(());
    }
    running.pool.borrow_mut().part(new);
    if let Err(again) = save::durable(shard, running).await {
        log::error!("it is not known whether a pool's record has a cache (pool={}): {again}", running.uuid);
        shard.degrade(running, Availability::NoPoolChanges);
        leave_marked(shard, new).await;
        return Err(fault.into());
    }
    unwind(shard, running.uuid, new).await;
    Err(fault.into())
}

/// What follows the commit point.
async fn settle_in<S: Sys>(shard: &Shard<S>, running: &Running, new: &[Member]) {
    create_pool::clear_marks(shard, running).await;
    for member in new {
        // It is nobody else's by its signature now, and need not be held.
        if let Err(failure) = shard.sys.open(&member.candidate, Opening::Member).await {
            log::warn!("a new device stays held (pool={} device={}): {failure}", running.uuid, member.candidate.path);
        }
    }
}

/// Takes back whatever was done. A device that cannot be wiped keeps its mark, and the next start wipes it.
async fn unwind<S: Sys>(shard: &Shard<S>, pool: PoolUuid, members: &[Member]) {
    rt::stage("unwind");
    let wiped = create_pool::wipe_signed(shard, members).await;
    if let Err(fault) = &wiped {
        log::error!("an addition of devices could not be taken back whole (pool={pool}): {fault}");
    }
    for member in members {
        shard.sys.close(member.candidate.number, wiped.is_ok()).await;
    }
}
