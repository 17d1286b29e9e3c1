//! Giving filesystems and pools other names.
//!
//! Commit point: the record with the other name is durable, that of the filesystem in the metadata volume,
//! that of the pool on a device. The paths of filesystems follow, then clients see both; a start makes the
//! paths anew, so a power failure in between leaves none with the old name.
//!
//! Meanwhile the other name is nobody else's: that of a filesystem is reserved in its pool, that of a pool is
//! claimed in the directory, beside the one it has.

use std::rc::Rc;

use cores::rt;

use crate::error::{Failure, Refusal};
use crate::message::{Answer, Claim, View};
use crate::model::ids::{FsUuid, PoolUuid};
use crate::model::name::Name;
use crate::shard::ops::{Outcome, save, set, stop_pool};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Gives a filesystem another name.
pub async fn filesystem<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, filesystem: FsUuid, name: Name) -> Outcome {
    let running = shard.changeable(pool)?;
    let planned = running.pool.borrow_mut().filesystems.plan_rename(filesystem, &name)?;
    // It keeps the name from others to the end of this.
    let Some(renaming) = planned else {
        return Ok(Answer::Identity);
    };
    let record = &renaming.record;
    set::save_record(shard, &running, record).await?;
    rt::stage("path");
    let of_pool = running.pool.borrow().name().clone();
    if !planted(Bug::OldPathStays) {
        shard.sys.announce((pool, &of_pool), (record.uuid, &record.name, record.thin_id)).await;
    }
    set::show_record(shard, &running, record.clone())?;
    log::info!("filesystem has another name (pool={pool} filesystem={filesystem} name={:?})", name.as_str());
    Ok(Answer::Set)
}

/// Gives a pool another name.
pub async fn pool<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, name: Name) -> Outcome {
    let running = shard.running(pool).ok_or(Refusal::NoPool(pool))?;
    running.pool.borrow().check_changes()?;
    if *running.pool.borrow().name() == name {
        return Ok(Answer::Identity);
    }
    rt::stage("claim");
    claim(shard, pool, &name).await?;
    let saved = enter(shard, &running, &name).await;
    if saved.is_err() {
        shard.claim(Claim::GiveBack(pool));
    }
    saved?;
    shard.claim(Claim::Commit(pool));
    rt::stage("paths");
    stop_pool::announce(shard, &running).await;
    show(shard, &running);
    log::info!("pool has another name (pool={pool} name={:?})", name.as_str());
    Ok(Answer::Set)
}

async fn claim<S: Sys>(shard: &Shard<S>, pool: PoolUuid, name: &Name) -> Result<(), Refusal> {
    let claim = Claim::TakeMore { pool, name: Some(name.clone()), devices: Vec::new() };
    shard.take(claim).await.map_err(|taken| taken.refusal(name))
}

/// The commit point.
async fn enter<S: Sys>(shard: &Shard<S>, running: &Running, name: &Name) -> Result<(), Failure> {
    let before = running.pool.borrow_mut().record_name(name);
    if let Err(failure) = save::checked(shard, running).await {
        running.pool.borrow_mut().unrecord_name(before);
        return Err(failure);
    }
    running.pool.borrow_mut().set_name(name.clone());
    Ok(())
}

/// The pool, then every filesystem, whose path has its name in it.
fn show<S: Sys>(shard: &Shard<S>, running: &Running) {
    let pool = running.pool.borrow();
    let mut views = vec![View::Pool(pool.view())];
    views.extend(pool.filesystems.iter().map(|found| shard.filesystem_view(&pool, found)));
    shard.show(views);
}
