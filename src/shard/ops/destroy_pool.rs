//! Destroying a pool.
//!
//! Commit point: a record that says `destroying` is durable. Before it, a start after a power failure
//! brings the pool up again; after it, the next start goes on with the destruction. Devices are wiped
//! side by side, and each one that is still there says what is to become of it: by its record, or, as one of a
//! cache, by its signature.

use std::rc::Rc;

use cores::rt;

use crate::engine::pool::Member;
use crate::error::{Failure, Fault, Refusal};
use crate::format::header::{FLAG_CREATING, StaticHeader};
use crate::message::{Answer, Claim};
use crate::model::device::Tier;
use crate::model::ids::PoolUuid;
use crate::model::pool::Availability;
use crate::shard::ops::{Outcome, headers, save, stack, stop_pool};
use crate::shard::{Running, Shard, news};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Destroys a running pool without filesystems.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) -> Outcome {
    let Some(running) = shard.running(pool) else {
        let stopped = shard.gathered.borrow().contains_key(&pool);
        return if stopped { Err(Refusal::NoPool(pool).into()) } else { Ok(Answer::Identity) };
    };
    let (name, count) = {
        let engine = running.pool.borrow();
        (engine.name().clone(), engine.filesystems.count())
    };
    if count > 0 {
        return Err(Refusal::PoolNotEmpty { name, count }.into());
    }
    rt::stage("mark");
    let _grows_no_more = shard.alone(pool).await;
    if !planted(Bug::NoDestroyingMark) {
        mark(shard, &running).await?;
    }
    let views = stop_pool::gone(&running.pool.borrow(), pool);
    shard.running.borrow_mut().remove(&pool);
    let destroyed = destroy(shard, &running).await;
    let numbers = running.pool.borrow().numbers();
    for number in numbers {
        // A device that still carries its mark must be found by the next start.
        shard.sys.close(number, destroyed.is_ok()).await;
    }
    shard.claim(Claim::Release(pool));
    shard.show(views);
    news::runs_no_more(shard, pool, Vec::new());
    destroyed?;
    log::info!("pool destroyed (pool={pool} name={:?})", name.as_str());
    Ok(Answer::PoolDestroyed(pool))
}

/// The commit point. A pool that gets no more changes may still be destroyed; its record then is the one
/// that memory has.
async fn mark<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Failure> {
    let availability = running.pool.borrow().availability();
    if availability == Availability::NoPoolChanges {
        log::warn!("a damaged pool is destroyed (pool={})", running.uuid);
    }
    let before = running.pool.borrow_mut().set_destroying();
    if let Err(fault) = save::durable(shard, running).await {
        running.pool.borrow_mut().unset_destroying(before);
        return Err(fault.into());
    }
    Ok(())
}

async fn destroy<S: Sys>(shard: &Rc<Shard<S>>, running: &Running) -> Result<(), Fault> {
    let pool = running.uuid;
    let (caches, others): (Vec<Member>, Vec<Member>) = {
        let engine = running.pool.borrow();
        let is_cache = |member: &Member| engine.tiers().of(member.header.device) == Tier::Cache;
        engine.members().iter().cloned().partition(is_cache)
    };
    mark_caches(shard, &caches).await;
    rt::stage("take down");
    stack::all_down(&shard.sys, pool).await?;
    rt::stage("scrap");
    shard.sys.scrap(pool).await?;
    rt::stage("wipe");
    // A device that the mark did not reach would come up as an incomplete pool, so it goes first.
    let (unmarked, marked): (Vec<Member>, Vec<Member>) = others.into_iter().partition(|member| member.bad);
    for group in [[caches, unmarked].concat(), marked] {
        let numbers: Vec<_> = group.iter().map(|member| member.candidate.number).collect();
        headers::wipe(&shard.sys, &numbers).await?;
    }
    Ok(())
}

/// A device of a cache has no record, so its signature gets the mark of a creation: whenever it is found, with the
/// others or when they are wiped already, it is wiped. One that cannot be written to is not.
async fn mark_caches<S: Sys>(shard: &Shard<S>, caches: &[Member]) {
    let marked = |member: &Member| StaticHeader { flags: member.header.flags | FLAG_CREATING, ..member.header };
    let headers: Vec<_> = caches.iter().map(|member| (member.candidate.number, marked(member))).collect();
    if headers.is_empty() {
        return;
    }
    if let Err(fault) = headers::sign(&shard.sys, &headers).await {
        log::warn!("a device of a cache does not say that its pool is being destroyed: {fault}");
    }
}
