//! Stopping a pool.
//!
//! Commit point: a record that says `started: false` is durable. Before it, a start after a power
//! failure brings the pool up again; a failure on the way is taken back by bringing it up here.

use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::Filesystem;
use crate::engine::stack as tables;
use crate::error::{Failure, Fault, Refusal};
use crate::message::{Answer, Claim, View};
use crate::model::dm::Dm;
use crate::model::ids::PoolUuid;
use crate::model::pool::Availability;
use crate::shard::ops::{Outcome, save, stack};
use crate::shard::{Running, Shard, news};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Stops a running pool.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) -> Outcome {
    let Some(running) = shard.running(pool) else {
        let stopped = shard.gathered.borrow().contains_key(&pool);
        return if stopped { Ok(Answer::Identity) } else { Err(Refusal::NoPool(pool).into()) };
    };
    rt::stage("examine");
    unused(shard, &running).await?;
    rt::stage("take down");
    let _grows_no_more = shard.alone(pool).await;
    if let Err(fault) = take_down(shard, &running).await {
        if !planted(Bug::StopHalfWay) {
            put_back(shard, &running).await;
        }
        return Err(fault.into());
    }
    rt::stage("backstore");
    if let Err(fault) = stack::lower_down(&shard.sys, pool).await {
        // The record says stopped, and so it is: what is left of the stack is adopted by the next start.
        log::error!("a stopped pool keeps a part of its stack (pool={pool}): {fault}");
    }
    rt::stage("settle");
    shard.sys.settle(pool).await;
    Ok(commit(shard, &running).await)
}

/// No filesystem may be in use. udev has new volumes open while it looks at them, which counts for nothing.
pub async fn unused<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Failure> {
    shard.sys.settle(running.uuid).await;
    let filesystems: Vec<_> = {
        let pool = running.pool.borrow();
        pool.filesystems.iter().map(|found| (found.record.uuid, found.record.name.clone())).collect()
    };
    for (uuid, name) in filesystems {
        if shard.sys.busy(Dm::Thin(running.uuid, uuid)).await? {
            return Err(Refusal::FilesystemInUse { name }.into());
        }
    }
    Ok(())
}

/// Takes down what is above the backstore and makes that the pool's state on record. A pool that gets no
/// more changes is taken down without a record.
async fn take_down<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    stack::volumes_down(&shard.sys, running.uuid).await?;
    stack::upper_down(&shard.sys, running.uuid).await?;
    let availability = running.pool.borrow().availability();
    match availability {
        Availability::Full | Availability::NoRequests => {
            running.pool.borrow_mut().set_started(false);
            save::durable(shard, running).await
        }
        Availability::NoPoolChanges => Ok(()),
    }
}

/// The machine failed before the commit point: the pool goes on running. If it cannot, it gets no more
/// changes until it was set up from disk.
async fn put_back<S: Sys>(shard: &Shard<S>, running: &Running) {
    rt::stage("put back");
    running.pool.borrow_mut().set_started(true);
    if let Err(fault) = back_up(shard, running).await {
        log::error!("a pool could not be brought up again (pool={}): {fault}", running.uuid);
        shard.degrade(running, Availability::NoPoolChanges);
    }
}

async fn back_up<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    let volume = |found: &Filesystem| (Dm::Thin(running.uuid, found.record.uuid), tables::thin(&found.record));
    let volumes: Vec<_> = running.pool.borrow().filesystems.iter().map(volume).collect();
    stack::private_up(shard, running, &stack::of_running(running)).await?;
    shard.sys.mdv_mount(running.uuid).await?;
    stack::up(&shard.sys, &volumes).await?;
    announce(shard, running).await;
    // The save that failed may have reached a device: the newest record must say that the pool runs.
    save::durable(shard, running).await
}

/// Gives every filesystem its path: volumes that were gone for a moment have lost them, and in a pool with
/// another name they are others.
pub(super) async fn announce<S: Sys>(shard: &Shard<S>, running: &Running) {
    let (of_pool, records) = {
        let pool = running.pool.borrow();
        let records: Vec<_> = pool.filesystems.iter().map(|found| found.record.clone()).collect();
        (pool.name().clone(), records)
    };
    let named: Vec<_> = records.iter().map(|record| (record.uuid, &record.name, record.thin_id)).collect();
    shard.sys.announce_each((running.uuid, &of_pool), &named).await;
}

async fn commit<S: Sys>(shard: &Rc<Shard<S>>, running: &Running) -> Answer {
    let pool = running.uuid;
    shard.running.borrow_mut().remove(&pool);
    let (mut views, stopped, candidates) = {
        let engine = running.pool.borrow();
        let candidates: Vec<_> = engine.members().iter().map(|member| member.candidate.clone()).collect();
        (gone(&engine, pool), engine.stopped_view(), candidates)
    };
    // Known before they are closed: closing makes the machine report them, and that is no news then.
    news::runs_no_more(shard, pool, candidates.clone());
    for candidate in candidates.iter().filter(|_| !planted(Bug::DescriptorStays)) {
        shard.sys.close(candidate.number, false).await;
    }
    if !planted(Bug::NameStays) {
        shard.claim(Claim::ReleaseName(pool));
    }
    views.push(View::Stopped(stopped));
    shard.show(views);
    log::info!("pool stopped (pool={pool})");
    Answer::PoolStopped(pool)
}

/// What clients no longer see of a pool that does not run: filesystems, devices, then the pool.
pub fn gone(engine: &crate::engine::pool::Pool, pool: PoolUuid) -> Vec<View> {
    let filesystems = engine.filesystems.iter().map(|found| View::FilesystemGone(pool, found.record.uuid));
    let devices = engine.members().iter().map(|member| View::DeviceGone(pool, member.header.device));
    filesystems.chain(devices).chain([View::PoolGone(pool)]).collect()
}
