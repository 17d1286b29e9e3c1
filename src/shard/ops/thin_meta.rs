//! The metadata of a thin pool is looked at before the kernel works with it, and repaired into the spare.
//!
//! Commit point: the record in which metadata and spare have changed places is durable. Whoever starts the pool
//! before that finds the damaged metadata where it was, and repairs it again; whoever does so afterwards finds what
//! was made of it. Nothing is on either place when the record changes, so no device has a table that is not its own.
//!
//! Deliberately absent: looking at a thin pool that is active. The kernel knows more of it than its metadata device.

use cores::rt;

use crate::error::{Failure, Fault, Why};
use crate::model::dm::{Dm, Role};
use crate::shard::ops::{save, stack};
use crate::shard::{Running, Shard};
use crate::sys::{Sys, Target};
use crate::zoo::{Bug, planted};

/// Activates the private stack of a pool that starts. What is active already is adopted; `has_thin_pool` says whether
/// the thin pool is.
pub async fn up<S: Sys>(shard: &Shard<S>, running: &Running, has_thin_pool: bool) -> Result<(), Failure> {
    let pool = running.uuid;
    if !has_thin_pool {
        // A repair that was cut off begins anew.
        shard.sys.deactivate(&[Dm::Private(pool, Role::ThinMetaSpare)]).await?;
        let tables = stack::recorded(running)?;
        let (_thin_pool, below) = tables.split_last().expect("a stack has a thin pool");
        shard.sys.activate(below).await?;
        rt::stage("check thin metadata");
        if !shard.sys.thin_check(Dm::Private(pool, Role::ThinMeta)).await? {
            rt::stage("repair thin metadata");
            repair(shard, running).await?;
        }
    }
    Ok(stack::private_up(shard, running, &stack::recorded(running)?).await?)
}

async fn repair<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Failure> {
    let pool = running.uuid;
    let [meta, spare] = [Role::ThinMeta, Role::ThinMetaSpare].map(|role| Dm::Private(pool, role));
    log::error!("the metadata of a thin pool is damaged: it is repaired into the spare (pool={pool})");
    running.pool.borrow_mut().swap_thin_meta();
    let (_, table) =
        stack::recorded(running)?.into_iter().find(|(device, _)| *device == meta).expect("a stack has thin metadata");
    shard.sys.activate(&[(spare, table)]).await?;
    shard.sys.thin_repair(meta, spare).await?;
    shard.sys.flush(vec![Target::Dm(spare)]).await.into_iter().collect::<Result<(), Fault>>()?;
    if !shard.sys.thin_check(spare).await? {
        return Err(Fault::new("repair the metadata on", meta, Why::Data("what came of it is not whole")).into());
    }
    shard.sys.deactivate(&[spare, meta]).await?;
    if !planted(Bug::RepairNotSaved) {
        save::durable(shard, running).await?;
    }
    log::warn!("the metadata of a thin pool is repaired (pool={pool})");
    Ok(())
}
