//! Intents: what an operation is about to make or destroy, noted durably before it begins.
//!
//! An intent is a file in the metadata volume, named after a thin id. Recovery has one rule for both
//! directions: a thin volume that has an intent and no record is deleted; an intent whose volume has
//! a record is dropped. What merely lacks a record is never touched.
//!
//! So creating commits with the record, destroying commits with the removal of the record, and what is
//! left to do follows: giving another origin to the snapshots of what was destroyed, deleting the volume. A
//! revert commits with the record that has the copy's volume, and the destruction of the snapshot follows.
//! Other daemons neither read nor write this folder.

use crate::error::{Fault, Why};
use crate::format::intent::{self, Intent};
use crate::model::ids::{PoolUuid, ThinId};
use crate::shard::ops::records::{self, Records};
use crate::sys::{Folder, Sys};
use crate::zoo::{Bug, planted};

const HERE: Folder = Folder::Intents;

/// Notes intents, all with one sync of the folder. Durable at the end.
pub async fn note<S: Sys>(sys: &S, pool: PoolUuid, intents: &[Intent]) -> Result<(), Fault> {
    for intent in intents.iter().filter(|_| !planted(Bug::NoIntent)) {
        let file = intent.thin_id.to_string();
        sys.mdv_write(pool, HERE, &file, &intent::encode(intent)).await?;
        sys.mdv_sync(pool, HERE, &file).await?;
    }
    sys.mdv_sync_folder(pool, HERE).await
}

/// Drops intents. Not made durable: recovery drops them again, by the rule above.
pub async fn drop_all<S: Sys>(sys: &S, pool: PoolUuid, volumes: &[ThinId]) -> Result<(), Fault> {
    for id in volumes {
        sys.mdv_remove(pool, HERE, &id.to_string()).await?;
    }
    Ok(())
}

/// Drops intents. Durable at the end.
pub async fn drop_durably<S: Sys>(sys: &S, pool: PoolUuid, volumes: &[ThinId]) -> Result<(), Fault> {
    drop_all(sys, pool, volumes).await?;
    sys.mdv_sync_folder(pool, HERE).await
}

/// Applies the rule to every intent, after the thin pool is up. Gives back all ids that were named.
/// As long as a record cannot be read nothing is deleted: the volume might be its.
pub async fn recover<S: Sys>(sys: &S, pool: PoolUuid, records: &mut Records) -> Result<Vec<ThinId>, Fault> {
    let mut ids = Vec::new();
    for file in sys.mdv_list(pool, HERE).await? {
        match file.parse() {
            Ok(id) => ids.push(ThinId(id)),
            Err(_) => log::warn!("an intent has no thin id for a name and is ignored (pool={pool} file={file:?})"),
        }
    }
    if records.unreadable > 0 && !ids.is_empty() {
        log::warn!("{} intents wait until every record can be read (pool={pool})", ids.len());
        return Ok(ids);
    }
    remove_replaced(sys, pool, &ids, records).await?;
    let (mut settled, orphans): (Vec<ThinId>, Vec<ThinId>) =
        ids.iter().copied().partition(|id| is_recorded(*id, records));
    let mut destroyed = Vec::new();
    for id in &orphans {
        destroyed.extend(intent::decode(&sys.mdv_read(pool, HERE, &id.to_string()).await?));
    }
    records::adopt(sys, pool, &destroyed, records).await?;
    for id in orphans {
        log::info!("a volume of an operation that was cut off is deleted (pool={pool} thin_id={id})");
        match delete(sys, pool, id).await {
            Ok(()) => settled.push(id),
            Err(fault) => log::warn!("an intent stays, its volume cannot be deleted now: {fault}"),
        }
    }
    if !settled.is_empty() {
        sys.thin_commit(pool).await?;
        drop_durably(sys, pool, &settled).await?;
    }
    Ok(ids)
}

fn is_recorded(id: ThinId, records: &Records) -> bool {
    records.good.iter().any(|record| record.thin_id == id)
}

/// Removes the records of snapshots whose copies are on record in their place.
async fn remove_replaced<S: Sys>(sys: &S, pool: PoolUuid, ids: &[ThinId], records: &mut Records) -> Result<(), Fault> {
    let mut replaced = Vec::new();
    for id in ids.iter().filter(|id| is_recorded(**id, records)) {
        let noted = intent::decode(&sys.mdv_read(pool, HERE, &id.to_string()).await?);
        replaced.extend(noted.and_then(|intent| intent.replaces));
    }
    replaced.retain(|uuid| records.good.iter().any(|record| record.uuid == *uuid));
    if !replaced.is_empty() {
        log::info!("{} snapshots have taken the places of their origins (pool={pool})", replaced.len());
        records::remove(sys, pool, &replaced).await?;
        records.good.retain(|record| !replaced.contains(&record.uuid));
    }
    Ok(())
}

/// Deletes a thin volume; one that is gone already is fine.
pub async fn delete<S: Sys>(sys: &S, pool: PoolUuid, id: ThinId) -> Result<(), Fault> {
    match sys.thin_delete(pool, id).await {
        Err(Fault { why: Why::Errno(libc::ENODATA), .. }) => Ok(()),
        other => other,
    }
}
