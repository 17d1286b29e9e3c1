//! Destroying filesystems.
//!
//! Commit point, for each filesystem by itself: its record is durably gone. Its thin id is noted as an
//! intent before, so a start after a power failure deletes the volume of a record that is gone, and
//! keeps the volume of one that is not. What follows the commit point (snapshots of it get its own origin,
//! its volume is deleted) the intent sees through, whenever that is.

use std::rc::Rc;

use cores::rt;

use crate::error::{Fault, Refusal};
use crate::format::intent::Intent;
use crate::message::{Answer, View};
use crate::model::dm::{Dm, Table};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::pool::Availability;
use crate::shard::ops::{Outcome, intents, records, thin_pool};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Destroys the named filesystems, all or none of them unless the machine fails half-way.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, named: Vec<FsUuid>) -> Outcome {
    let running = shard.changeable(pool)?;
    let victims = running.pool.borrow_mut().filesystems.plan_destroy(&named)?;
    if victims.is_empty() {
        return Ok(Answer::Identity);
    }
    let outcome = destroy(shard, &running, &victims).await;
    if outcome.is_err() {
        let mut pool = running.pool.borrow_mut();
        victims.iter().for_each(|victim| pool.filesystems.keep(victim.uuid));
    }
    outcome
}

async fn destroy<S: Sys>(shard: &Rc<Shard<S>>, running: &Running, victims: &[FilesystemRecord]) -> Outcome {
    let pool = running.uuid;
    rt::stage("examine");
    for victim in victims {
        if shard.sys.busy(Dm::Thin(pool, victim.uuid)).await? {
            return Err(Refusal::FilesystemInUse { name: victim.name.clone() }.into());
        }
    }
    let uuids: Vec<FsUuid> = victims.iter().map(|victim| victim.uuid).collect();
    let intents: Vec<Intent> = victims.iter().map(Intent::of).collect();
    rt::stage("intent");
    intents::note(&shard.sys, pool, &intents).await?;
    rt::stage("remove");
    if let Err(fault) = remove(shard, pool, &uuids).await {
        restore(shard, running, victims).await;
        return Err(fault.into());
    }
    let survivors = finish(shard, running, &intents).await;
    show(shard, running, &uuids, survivors);
    thin_pool::look(shard, pool);
    log::info!("filesystems destroyed (pool={pool} count={})", uuids.len());
    Ok(Answer::FilesystemsDestroyed(uuids))
}

/// Takes the volumes down and the records away: the commit point is the end of this.
async fn remove<S: Sys>(shard: &Shard<S>, pool: PoolUuid, uuids: &[FsUuid]) -> Result<(), Fault> {
    let volumes: Vec<Dm> = uuids.iter().map(|uuid| Dm::Thin(pool, *uuid)).collect();
    shard.sys.deactivate(&volumes).await?;
    records::remove(&shard.sys, pool, uuids).await
}

/// The machine failed before the commit point: puts everything back. If even that fails, nobody knows
/// which records are on disk, and the pool gets no more changes.
async fn restore<S: Sys>(shard: &Shard<S>, running: &Running, victims: &[FilesystemRecord]) {
    rt::stage("restore");
    let pool = running.uuid;
    let of_pool = running.pool.borrow().name().clone();
    let restored: Result<(), Fault> = async {
        for victim in victims {
            records::save(&shard.sys, pool, victim).await?;
            let table = Table::Thin { length: victim.size, id: victim.thin_id };
            shard.sys.activate(&[(Dm::Thin(pool, victim.uuid), table)]).await?;
            // A volume that was gone for a moment has lost the path under which clients find it.
            shard.sys.announce((pool, &of_pool), (victim.uuid, &victim.name, victim.thin_id)).await;
        }
        let ids: Vec<ThinId> = victims.iter().map(|victim| victim.thin_id).collect();
        intents::drop_all(&shard.sys, pool, &ids).await
    }
    .await;
    if let Err(fault) = restored {
        log::error!("a destruction could not be taken back (pool={pool}): {fault}");
        shard.degrade(running, Availability::NoPoolChanges);
    }
}

/// The filesystems are gone; gives back which others have changed for it. What of the rest cannot be done
/// now is done when the pool is next set up, because the intents stay.
async fn finish<S: Sys>(shard: &Shard<S>, running: &Running, gone: &[Intent]) -> Vec<FsUuid> {
    let orphans = {
        let filesystems = &mut running.pool.borrow_mut().filesystems;
        gone.iter().for_each(|intent| filesystems.remove(intent.uuid));
        let orphans = filesystems.orphans(gone);
        // The intents say durably that it is so, whenever their records are saved.
        orphans.iter().for_each(|orphan| filesystems.replace(orphan.clone()));
        orphans
    };
    if let Err(fault) = see_through(shard, running.uuid, gone, &orphans).await {
        log::warn!("the rest of a destruction follows when the pool is next set up (pool={}): {fault}", running.uuid);
    }
    orphans.iter().map(|orphan| orphan.uuid).collect()
}

async fn see_through<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    gone: &[Intent],
    orphans: &[FilesystemRecord],
) -> Result<(), Fault> {
    rt::stage("adopt snapshots");
    for orphan in orphans.iter().filter(|_| !planted(Bug::OriginInMemory)) {
        records::save(&shard.sys, pool, orphan).await?;
    }
    rt::stage("delete volumes");
    if planted(Bug::IntentFirst) {
        let ids: Vec<ThinId> = gone.iter().map(|intent| intent.thin_id).collect();
        intents::drop_durably(&shard.sys, pool, &ids).await?;
    }
    for intent in gone {
        intents::delete(&shard.sys, pool, intent.thin_id).await?;
    }
    shard.sys.thin_commit(pool).await?;
    let ids: Vec<ThinId> = gone.iter().map(|intent| intent.thin_id).collect();
    intents::drop_all(&shard.sys, pool, &ids).await
}

fn show<S: Sys>(shard: &Shard<S>, running: &Running, gone: &[FsUuid], changed: Vec<FsUuid>) {
    let pool = running.pool.borrow();
    let mut views: Vec<View> = gone.iter().map(|uuid| View::FilesystemGone(running.uuid, *uuid)).collect();
    for filesystem in pool.filesystems.iter().filter(|filesystem| changed.contains(&filesystem.record.uuid)) {
        views.push(shard.filesystem_view(&pool, filesystem));
    }
    views.push(View::Pool(pool.view()));
    shard.show(views);
}
