//! What is left to do of a pool that was taken over, once clients see it: filesystems that were active before most
//! often have their paths, and most often lie on all of their volumes.
//!
//! Invariant: a path is told as the filesystem is called at that moment. Deliberately absent: filesystems that a start
//! has brought up; of these both is known before anybody sees them. And haste: clients who have waited for the name
//! come first.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use cores::rt;

use crate::limits::PATHS_AFTER_MS;
use crate::model::ids::{FsUuid, ThinId};
use crate::model::name::Name;
use crate::shard::conflict::Operation;
use crate::shard::ops::heal;
use crate::shard::{Running, Shard};
use crate::sys::Sys;

/// Looks at these filesystems, beside everything else. Nobody waits for it but who gives or takes away names, or takes
/// the pool down.
pub fn look<S: Sys>(shard: &Rc<Shard<S>>, running: Rc<Running>, adopted: BTreeSet<FsUuid>) {
    let shard = Rc::clone(shard);
    rt::spawn("adopted", async move {
        rt::sleep(Duration::from_millis(PATHS_AFTER_MS)).await;
        let ticket = shard.gate(running.uuid).queue(Operation::Announce);
        ticket.admitted().await;
        if shard.is_running(&running) {
            paths(&shard, &running, &adopted).await;
        }
        drop(ticket);
        sizes(&shard, &running).await;
    })
    .detach();
}

/// Tells the names of those filesystems that may have no paths. Who has come since is told of already.
async fn paths<S: Sys>(shard: &Shard<S>, running: &Running, adopted: &BTreeSet<FsUuid>) {
    let (pool, filesystems): (Name, Vec<(FsUuid, Name, ThinId)>) = {
        let engine = running.pool.borrow();
        let all = engine.filesystems.iter().map(|found| &found.record).filter(|record| adopted.contains(&record.uuid));
        (engine.name().clone(), all.map(|record| (record.uuid, record.name.clone(), record.thin_id)).collect())
    };
    let of_pool = (running.uuid, &pool);
    let named: Vec<(FsUuid, &Name)> = filesystems.iter().map(|(uuid, name, _)| (*uuid, name)).collect();
    let paths = shard.sys.have_paths(of_pool, &named).await;
    let without = filesystems.iter().zip(paths).filter(|(_, has_path)| !has_path);
    let without: Vec<_> = without.map(|((uuid, name, volume), _)| (*uuid, name, *volume)).collect();
    shard.sys.announce_each(of_pool, &without).await;
    let (pool, count, told) = (running.uuid, filesystems.len(), without.len());
    log::info!("filesystems that were active have their paths (pool={pool} filesystems={count} told={told})");
}

/// Looks on how much of their volumes those filesystems lie of which that is not known yet.
async fn sizes<S: Sys>(shard: &Rc<Shard<S>>, running: &Running) {
    let ticket = shard.gate(running.uuid).queue(Operation::Look);
    ticket.admitted().await;
    if !shard.is_running(running) {
        return;
    }
    let unknown: Vec<FsUuid> = {
        let pool = running.pool.borrow();
        pool.filesystems.iter().filter(|found| found.may_follow()).map(|found| found.record.uuid).collect()
    };
    let sizes = heal::sizes(&shard.sys, running.uuid, &unknown).await;
    let mut pool = running.pool.borrow_mut();
    sizes.into_iter().for_each(|(uuid, size)| pool.filesystems.set_whole(uuid, size.bytes()));
}
