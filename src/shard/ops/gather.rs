//! Reading the devices of a pool that is not running, and what to do with what was found.
//!
//! Invariant: what is wiped here carries a mark that says so: a creation without any record, or a
//! record that says the pool is being destroyed. Everything else is set up or listed as stopped.

use std::rc::Rc;

use cores::rt;

use crate::engine::gather::{Read, Ready, Verdict, judge, stopped_view};
use crate::error::Failure;
use crate::limits::DEVICES_READ_AT_ONCE;
use crate::message::{Claim, View};
use crate::model::device::{Candidate, DeviceNumber, Tier};
use crate::model::ids::PoolUuid;
use crate::probe::{self, Said};
use crate::shard::ops::{headers, stack, start_pool};
use crate::shard::wait::all;
use crate::shard::{Shard, news};
use crate::sys::{Opening, Sys, patience};

/// Opens the gathered devices of a pool and reads their metadata. Devices that cannot be read are
/// logged and left out; those that are not there any more as what they were are told as `gone`.
pub async fn read<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    mut gone: impl FnMut(DeviceNumber),
) -> Result<Vec<Read>, Failure> {
    let candidates: Vec<Candidate> =
        shard.gathered.borrow().get(&pool).map(|gathered| gathered.candidates.clone()).unwrap_or_default();
    let free = |candidate: &Candidate| match shard.holder(candidate.number) {
        Some(holder) => {
            log::warn!("a device of pool {pool} is in use by pool {holder}: {}", candidate.path);
            false
        }
        None => true,
    };
    let candidates: Vec<Candidate> = candidates.into_iter().filter(free).collect();
    let mut devices = Vec::with_capacity(candidates.len());
    for batch in candidates.chunks(DEVICES_READ_AT_ONCE) {
        let outcomes = all(batch.iter().map(|candidate| in_time(shard, pool, candidate))).await;
        for (candidate, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                Ok(Some(device)) => devices.push(device),
                Ok(None) => {
                    log::warn!("a device no longer has the signature of pool {pool}: {}", candidate.path);
                    gone(candidate.number);
                }
                Err(failure) => {
                    log::warn!("a device of pool {pool} is left out: {failure}");
                    // One that has failed may work another time.
                    if matches!(failure, Failure::Refused(_)) {
                        gone(candidate.number);
                    }
                }
            }
        }
    }
    Ok(devices)
}

/// Reads one device. One that says nothing counts as failed, so that it holds up no other.
async fn in_time<S: Sys>(shard: &Shard<S>, pool: PoolUuid, candidate: &Candidate) -> Result<Option<Read>, Failure> {
    let reading = async {
        match read_one(shard, pool, candidate).await {
            // It may have been pulled and put back, which is no news to anybody by now.
            Err(Failure::Faulted(fault)) if probe::is_gone(&fault) => read_one(shard, pool, candidate).await,
            outcome => outcome,
        }
    };
    if let Some(outcome) = patience::in_time(reading).await {
        return outcome;
    }
    shard.sys.close(candidate.number, false).await;
    Err(patience::late("read", &candidate.path).into())
}

async fn read_one<S: Sys>(shard: &Shard<S>, pool: PoolUuid, known: &Candidate) -> Result<Option<Read>, Failure> {
    // Size and blocks may have changed since the device was found.
    let candidate = shard.sys.examine(&known.path).await?;
    shard.sys.open(&candidate, Opening::Look).await?;
    match probe::said(&shard.sys, &candidate).await {
        Ok(Some(Said { header, worn, regions })) if header.pool == pool => {
            Ok(Some(Read { candidate, header, worn, regions }))
        }
        other => {
            shard.sys.close(candidate.number, false).await;
            other.map(|_| None)
        }
    }
}

/// Closes devices that were read.
pub async fn close<S: Sys>(shard: &Shard<S>, devices: &[Read]) {
    for number in start_pool::numbers(devices) {
        shard.sys.close(number, false).await;
    }
}

/// Sets up a pool that was found, lists it as stopped, or cleans up what a cut-off operation left.
pub async fn settle<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) {
    if let Some(running) = shard.running(pool) {
        // Its devices were reported while it was made or started.
        news::runs(shard, &running);
        return;
    }
    rt::stage("read metadata");
    // Whoever reports devices reports them again when they are back, and then that must be news.
    let gone = |number| {
        if let Some(gathered) = shard.gathered.borrow_mut().get_mut(&pool) {
            gathered.remove(number);
        }
    };
    let devices = match read(shard, pool, gone).await {
        Ok(devices) => devices,
        Err(failure) => {
            log::error!("a pool is left out (pool={pool}): {failure}");
            return;
        }
    };
    if devices.is_empty() {
        forget(shard, pool);
        return;
    }
    match judge(pool, &devices) {
        Verdict::HalfMade => clean_up(shard, pool, &devices, "creation").await,
        Verdict::Destroying => clean_up(shard, pool, &devices, "destruction").await,
        Verdict::Ready(ready) => {
            if let Err(failure) = start_or_list(shard, pool, ready, &devices).await {
                log::error!("a pool stays stopped (pool={pool}): {failure}");
                list(shard, pool, &devices).await;
            }
        }
        Verdict::Unfit(refusal) => {
            log::error!("a pool stays stopped (pool={pool}): {refusal}");
            list(shard, pool, &devices).await;
        }
    }
}

async fn start_or_list<S: Sys>(
    shard: &Rc<Shard<S>>,
    pool: PoolUuid,
    ready: Box<Ready>,
    devices: &[Read],
) -> Result<(), Failure> {
    if start_pool::comes_up(shard, pool, &ready.record).await? {
        start_pool::start(shard, pool, *ready).await?;
    } else {
        if !shard.sys.active(pool).await?.is_empty()
            && let Err(fault) = stack::all_down(&shard.sys, pool).await
        {
            // What a start that was cut off has put up, or a stop has not taken down. What is in use stays.
            log::warn!("a stopped pool keeps a part of its stack (pool={pool}): {fault}");
        }
        list(shard, pool, devices).await;
    }
    Ok(())
}

/// Lists a pool as stopped. It holds its devices, not its name. One none of whose devices can be flushed is listed all
/// the same: clients are to see that it is there.
async fn list<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, devices: &[Read]) {
    if let Err(fault) = start_pool::flush(shard, pool, start_pool::numbers(devices)).await {
        log::warn!("what is shown of a stopped pool may not be durable (pool={pool}): {fault}");
    }
    close(shard, devices).await;
    // Without a name nobody asks which of them are a cache's.
    let place = |device: &Read| (device.candidate.number, device.candidate.path.clone(), Tier::Data);
    let held = devices.iter().map(place).collect();
    if let Err(taken) = shard.take(Claim::Take { pool, name: None, devices: held }).await {
        log::error!("a device of a stopped pool is in other hands (pool={pool}): {taken:?}");
    }
    shard.show(vec![View::Stopped(stopped_view(pool, devices))]);
}

/// The last device of a pool is gone, and so is all that is known of it here.
fn forget<S: Sys>(shard: &Shard<S>, pool: PoolUuid) {
    shard.gathered.borrow_mut().remove(&pool);
    shard.claim(Claim::Release(pool));
    shard.show(vec![View::StoppedGone(pool)]);
}

/// Wipes devices that are marked as left over.
async fn clean_up<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, devices: &[Read], what: &str) {
    log::warn!("a {what} was cut off: its {} devices are wiped (pool={pool})", devices.len());
    let numbers = start_pool::numbers(devices);
    let wiped: Result<(), Failure> = async {
        stack::all_down(&shard.sys, pool).await?;
        shard.sys.scrap(pool).await?;
        for device in devices {
            shard.sys.open(&device.candidate, Opening::Member).await?;
        }
        // Those without a record do not say what is to become of them, so they go first.
        let (marked, unmarked): (Vec<&Read>, Vec<&Read>) = devices.iter().partition(|device| device.has_record());
        for group in [unmarked, marked] {
            let numbers: Vec<DeviceNumber> = group.iter().map(|device| device.candidate.number).collect();
            headers::wipe(&shard.sys, &numbers).await?;
        }
        Ok(())
    }
    .await;
    if let Err(failure) = &wiped {
        log::error!("devices that were to be wiped are not (pool={pool}): {failure}");
    }
    if wiped.is_ok() {
        forget(shard, pool);
    }
    // Otherwise they stay known, so that closing them, which makes the machine report them, is no reason to
    // try the same again and again.
    for number in numbers {
        shard.sys.close(number, wiped.is_ok()).await;
    }
}
