//! Carrying out reverts that were scheduled: the snapshot's content takes the origin's place.
//!
//! It happens while the pool is set up, before any volume is brought up. The snapshot's volume is copied, the
//! copy gets the origin's UUID, and then the origin's record gets the copy for its volume: that record being
//! durable is the commit point. Before it, origin and snapshot are untouched, and the copy has an intent and no
//! record, so it is deleted; after it the copy's intent says that the snapshot is to go, and those of the two other
//! volumes that they are. Either way the rest is what `intents::recover` does after a crash, and so it is left to that.
//!
//! Copying costs as much as any snapshot. Changing the UUID in place would not do: a crash half-way would leave a
//! filesystem that cannot be mounted, and it would be the only one with that content.
//!
//! Invariant: a filesystem that is in use, or that a daemon before this one has left active, is not touched; it
//! stays scheduled. A revert that fails leaves both as they were, and the pool comes up.

use std::collections::BTreeSet;

use cores::rt;

use crate::engine::revert::{self, Revert};
use crate::error::{Fault, Why};
use crate::limits::{THIN_ID_MAX, THIN_IDS_TRIED_MAX};
use crate::model::dm::{Dm, Table, ThinPoolMode};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::shard::Shard;
use crate::shard::ops::headers::wrong;
use crate::shard::ops::records::Records;
use crate::shard::ops::{intents, new_uuid, records};
use crate::sys::Sys;

/// Carries out what is scheduled. `found` is what is on record before and after that, `seen` gets the thin ids
/// that are used for it, `adopted` has the filesystems that were left active. Tells whether volumes were active for
/// that, and have gone.
///
/// # Errors
/// When nobody knows any more what is on record.
pub async fn run<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    found: &mut Records,
    seen: &mut Vec<ThinId>,
    adopted: &BTreeSet<FsUuid>,
) -> Result<bool, Fault> {
    let scheduled = revert::plan(&found.good);
    for snapshot in scheduled.unclear {
        log::warn!("a revert is ignored, it is not clear what is to become of it (pool={pool} snapshot={snapshot})");
    }
    if scheduled.clear.is_empty() || !can_begin(shard, pool, found).await? {
        return Ok(false);
    }
    rt::stage("revert");
    let mut copied = false;
    for revert in scheduled.clear {
        let (origin, snapshot) = (revert.origin.uuid, revert.snapshot.uuid);
        if adopted.contains(&origin) || adopted.contains(&snapshot) {
            log::info!("a revert waits for the next start of its pool (pool={pool} origin={origin})");
            continue;
        }
        copied = true;
        match copy(shard, pool, &revert, seen).await {
            Ok(copy) => commit(shard, pool, &revert, copy, found).await?,
            Err(fault) => {
                log::error!("a filesystem is not reverted (pool={pool} origin={origin} snapshot={snapshot}): {fault}");
            }
        }
    }
    intents::recover(&shard.sys, pool, found).await?;
    Ok(copied)
}

/// Whether the volumes of the pool can be copied, and all records are known.
async fn can_begin<S: Sys>(shard: &Shard<S>, pool: PoolUuid, found: &Records) -> Result<bool, Fault> {
    let state = shard.sys.thin_pool(pool).await?;
    // A full thin pool keeps writes waiting, for a minute.
    let why = match state.mode {
        _ if found.unreadable > 0 => "every record can be read",
        ThinPoolMode::ReadWrite if state.can_change() => return Ok(true),
        ThinPoolMode::ReadWrite
        | ThinPoolMode::OutOfDataSpace
        | ThinPoolMode::OutOfMetadataSpace
        | ThinPoolMode::ReadOnly
        | ThinPoolMode::Failed => "the thin pool can be written to",
    };
    log::warn!("reverts wait until {why} (pool={pool})");
    Ok(false)
}

/// Makes a copy of the snapshot that could be the origin. While it is made it goes by a name of its own: that of
/// nobody, which the next start takes down.
async fn copy<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    revert: &Revert,
    seen: &mut Vec<ThinId>,
) -> Result<ThinId, Fault> {
    let nobody = FsUuid::from_random(rt::random());
    let copy = make_volume(shard, pool, revert, nobody, seen).await?;
    let device = Dm::Thin(pool, nobody);
    let size = revert.snapshot.size;
    let given: Result<(), Fault> = async {
        shard.sys.activate(&[(device, Table::Thin { length: size, id: copy })]).await?;
        new_uuid::give(&shard.sys, device, size, revert.origin.uuid).await
    }
    .await;
    given.and(shard.sys.deactivate(&[device]).await)?;
    Ok(copy)
}

/// Makes the volume under an id that nobody has had. The kernel may know one that no record and no intent names.
async fn make_volume<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    revert: &Revert,
    nobody: FsUuid,
    seen: &mut Vec<ThinId>,
) -> Result<ThinId, Fault> {
    let from = (revert.snapshot.uuid, revert.snapshot.thin_id);
    for _ in 0..THIN_IDS_TRIED_MAX {
        let id = seen.iter().map(|id| id.0 + 1).max().unwrap_or_default();
        if id > THIN_ID_MAX {
            break;
        }
        let id = ThinId(id);
        seen.push(id);
        intents::note(&shard.sys, pool, &revert.intents(id, nobody)).await?;
        match shard.sys.thin_snapshot(pool, from, id).await {
            Ok(()) => return Ok(id),
            Err(Fault { why: Why::Errno(libc::EEXIST), .. }) => {
                log::warn!("a thin id is in use but on no record (pool={pool} thin_id={id})");
                intents::drop_durably(&shard.sys, pool, &[id]).await?;
            }
            Err(fault) => return Err(fault),
        }
    }
    Err(wrong("copy a volume of", format!("pool {pool}"), "no thin id is left for it"))
}

/// The origin's record gets the copy. If that fails, the old record is written again; if that fails too nobody
/// knows which is on disk, and the next start has to look.
async fn commit<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    revert: &Revert,
    copy: ThinId,
    found: &mut Records,
) -> Result<(), Fault> {
    let reverted = revert.reverted(copy);
    if let Err(fault) = records::save(&shard.sys, pool, &reverted).await {
        log::error!("a filesystem is not reverted (pool={pool} origin={}): {fault}", revert.origin.uuid);
        return records::save(&shard.sys, pool, &revert.origin).await;
    }
    log::info!("a filesystem is reverted (pool={pool} origin={} snapshot={})", reverted.uuid, revert.snapshot.uuid);
    let before = found.good.iter_mut().find(|record| record.uuid == reverted.uuid);
    *before.expect("reverts are made of what is on record") = reverted;
    Ok(())
}
