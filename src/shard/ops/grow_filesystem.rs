//! Making a filesystem that is mounted larger.
//!
//! First its record says so, durably; then its volume gets the length, and then the kernel makes the XFS on it as
//! large. Commit point: the record. After a power failure the volume is made as long as the record says, and an XFS
//! that has not followed yet does when it is looked at next. The other way round a record could say less than the
//! XFS lies on, and the next start would make a volume that is too short for it.
//!
//! Invariant: a volume never becomes shorter. If it cannot become longer it keeps the table that it has, and the old
//! record is put back; if not even that is certain, the pool gets no more changes. If only the XFS does not follow,
//! volume and record stay as they are: nobody knows how far the kernel has come, and the next look tries again.
//!
//! Deliberately absent: when (`watch`).

use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::{Grow, Growing};
use crate::engine::pool::Pool;
use crate::engine::stack as tables;
use crate::error::Failure;
use crate::message::View;
use crate::model::dm::Dm;
use crate::model::filesystem::Fill;
use crate::model::ids::FsUuid;
use crate::model::pool::Availability;
use crate::shard::conflict::Operation;
use crate::shard::ops::{records, set};
use crate::shard::turn::left;
use crate::shard::{Running, Shard};
use crate::sys::{Growth, Sys};

/// Whether a filesystem that is this full has to grow.
pub fn is_needed(pool: &Pool, uuid: FsUuid, fill: &Fill) -> bool {
    pool.filesystems.needs_growth(uuid, fill, pool.rules().2)
}

/// Makes a filesystem larger that is this full, in its turn.
pub fn begin<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>, uuid: FsUuid, fill: Fill) {
    let ticket = shard.gate(running.uuid).queue(Operation::Grow(uuid));
    shard.busy.set(shard.busy.get() + 1);
    let (grows, of) = (Rc::clone(shard), Rc::clone(running));
    let enlarged = rt::spawn("grow filesystem", async move {
        ticket.admitted().await;
        enlarge(&grows, &of, uuid, &fill).await
    });
    let (shard, running) = (Rc::clone(shard), Rc::clone(running));
    rt::spawn("filesystem grows", async move {
        let outcome = enlarged.await;
        // The rest is the kernel's, and may wait for a user who has frozen the filesystem.
        left(&shard);
        let grown = match outcome {
            Ok(Ok(true)) => follow(&shard, &running, uuid).await,
            Ok(Ok(false)) => true,
            Ok(Err(failure)) => {
                log::error!("a filesystem does not grow (pool={} filesystem={uuid}): {failure}", running.uuid);
                false
            }
            Err(_panicked) => {
                shard.degrade(&running, Availability::NoPoolChanges);
                false
            }
        };
        shard.watches.tried(running.uuid, uuid, grown);
    })
    .detach();
}

/// Gives a filesystem a larger volume, if it still needs one. True if its XFS has to follow.
async fn enlarge<S: Sys>(
    shard: &Rc<Shard<S>>,
    running: &Rc<Running>,
    uuid: FsUuid,
    fill: &Fill,
) -> Result<bool, Failure> {
    if !shard.is_running(running) || running.pool.borrow().check_changes().is_err() {
        return Ok(false);
    }
    let planned = {
        let mut pool = running.pool.borrow_mut();
        let limit = pool.rules().2;
        pool.filesystems.plan_growth(uuid, fill, limit)
    };
    let growing = match planned {
        Ok(Grow::Volume(growing)) => growing,
        Ok(Grow::Xfs) => return Ok(true),
        // It has gone meanwhile, or has what it may have.
        Ok(Grow::Nothing) | Err(_) => return Ok(false),
    };
    set::save_record(shard, running, &growing.record).await?;
    rt::stage("volume");
    let volume = (Dm::Thin(running.uuid, uuid), tables::thin(&growing.record));
    if let Err(fault) = shard.sys.activate(&[volume]).await {
        put_back(shard, running, &growing).await;
        return Err(fault.into());
    }
    commit(shard, running, growing);
    Ok(true)
}

/// The volume could not become longer: makes sure that it goes on as it was, and takes the record back.
async fn put_back<S: Sys>(shard: &Shard<S>, running: &Running, growing: &Growing) {
    rt::stage("put back");
    let (pool, before) = (running.uuid, &growing.before);
    if let Err(fault) = shard.sys.activate(&[(Dm::Thin(pool, before.uuid), tables::thin(before))]).await {
        log::error!("a volume is not as it was (pool={pool} filesystem={}): {fault}", before.uuid);
        return shard.degrade(running, Availability::NoPoolChanges);
    }
    // A record that says more than there is does no harm: the next start makes the volume as long.
    if let Err(fault) = records::save(&shard.sys, pool, before).await {
        log::warn!("a record says more than there is (pool={pool} filesystem={}): {fault}", before.uuid);
    }
}

fn commit<S: Sys>(shard: &Shard<S>, running: &Running, growing: Growing) {
    let (pool, uuid) = (running.uuid, growing.record.uuid);
    let (from, to) = (growing.before.size, growing.record.size);
    log::info!("a filesystem gets a larger volume (pool={pool} filesystem={uuid} from={from} to={to})");
    let views = {
        let mut engine = running.pool.borrow_mut();
        engine.filesystems.grown(growing);
        let found = engine.filesystems.find(uuid).map(|found| shard.filesystem_view(&engine, found));
        found.into_iter().chain([View::Pool(engine.view())]).collect()
    };
    shard.show(views);
}

/// Has the XFS lie on all of its volume; false if it does not.
async fn follow<S: Sys>(shard: &Shard<S>, running: &Running, uuid: FsUuid) -> bool {
    let pool = running.uuid;
    match shard.sys.grow_xfs(Dm::Thin(pool, uuid)).await {
        Ok(Growth::Mounted(size)) => {
            log::info!("a filesystem has grown (pool={pool} filesystem={uuid} size={size})");
            running.pool.borrow_mut().filesystems.set_whole(uuid, size);
            true
        }
        Ok(Growth::NotMounted) => true,
        Err(fault) => {
            log::error!("a filesystem lies on less than it has (pool={pool} filesystem={uuid}): {fault}");
            false
        }
    }
}
