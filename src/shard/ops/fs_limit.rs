//! Allowing a pool more filesystems. Their records in the thin pool take metadata, so its device and the
//! spare grow first.
//!
//! Commit point: the record with the new limit is durable. Before it, in this order: the record with the
//! larger devices is durable, their tables are active, the thin pool uses them. A power failure in between
//! leaves a pool with its old limit, whose tables the next start makes as the record has them; a fault leaves
//! it running with its old limit, and the next try goes on with what is on record.
//!
//! A creation that is planned while the new limit is being saved may use it already. Should the save fail,
//! that filesystem is one too many for the limit and not for the metadata.

use std::rc::Rc;

use cores::rt;

use crate::error::{Failure, Fault, Refusal};
use crate::message::Answer;
use crate::model::ids::PoolUuid;
use crate::shard::ops::save::checked;
use crate::shard::ops::{Outcome, stack};
use crate::shard::{Running, Shard};
use crate::sys::Sys;

/// Raises the limit of filesystems of a pool.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, limit: u64) -> Outcome {
    let running = shard.running(pool).ok_or(Refusal::NoPool(pool))?;
    running.pool.borrow().check_changes()?;
    let mdv = shard.sys.mdv_size(pool).await?;
    rt::stage("make room");
    let alone = shard.alone(pool).await;
    let before = running.pool.borrow_mut().make_room(limit, mdv)?;
    if let Some(before) = before {
        if let Err(failure) = checked(shard, &running).await {
            running.pool.borrow_mut().unmake_room(before);
            return Err(failure);
        }
        shard.show_pool(&running);
    }
    rt::stage("use room");
    stack::as_recorded(shard, &running).await.map_err(|fault| held_up(&running, fault))?;
    drop(alone);
    rt::stage("save");
    let before = running.pool.borrow_mut().set_fs_limit(limit);
    if let Err(failure) = checked(shard, &running).await {
        running.pool.borrow_mut().unset_fs_limit(before);
        return Err(failure);
    }
    shard.show_pool(&running);
    Ok(Answer::Set)
}

/// Says what a fault means for the pool.
fn held_up(running: &Running, fault: Fault) -> Failure {
    let pool = running.pool.borrow();
    let (name, limit) = (pool.name().as_str(), pool.fs_limit());
    let subject =
        format!("the filesystem limit of pool {name:?}, which stays {limit}: {} {}", fault.doing, fault.subject);
    Fault::new("raise", subject, fault.why).into()
}
