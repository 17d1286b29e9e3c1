//! Putting the dm devices of a pool up and taking them down.
//!
//! Invariant: what is on top goes up last and comes down first. Both directions can be repeated:
//! activating adopts what is active already, deactivating what is not there is fine.

use crate::engine::grow;
use crate::engine::pool::{numbers, sizes};
use crate::engine::stack as tables;
use crate::error::{Fault, Refusal};
use crate::format::thin;
use crate::model::dm::{Dm, Role, Table};
use crate::model::ids::PoolUuid;
use crate::model::pool::MetadataVersion;
use crate::shard::{Running, Shard};
use crate::sys::{Sys, Target};
use crate::units::Sectors;

/// Private dm devices from the top down, without the backstore below the metadata volume.
const UPPER: [Role; 5] = [Role::ThinPool, Role::ThinData, Role::ThinMetaSpare, Role::ThinMeta, Role::Mdv];
/// The backstore, from the top down.
const LOWER: [Role; 4] = [Role::Cache, Role::CacheSub, Role::MetaSub, Role::OriginSub];

/// The superblock of thin metadata.
const SUPERBLOCK: Sectors = Sectors(8);

/// Activates tables in the order given: bottom first.
pub async fn up<S: Sys>(sys: &S, tables: &[(Dm, Table)]) -> Result<(), Fault> {
    sys.activate(tables).await
}

/// Brings the stack of a pool that runs to what is on record, as a start would: what is active with its table
/// stays as it is, beginnings are completed, and the thin pool is shown that its metadata device has grown.
/// May be repeated where nothing was entered, because an earlier try may have ended before this.
pub async fn as_recorded<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    // A thin pool that is active keeps its length and its low water.
    up(&shard.sys, &of_running(running)).await?;
    running.pool.borrow_mut().set_backed();
    Ok(())
}

/// Makes what lies below the thin pool of a pool that runs as long as is on record.
pub async fn stretch_below<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    let mut below = of_running(running);
    below.retain(|(device, _)| *device != Dm::Private(running.uuid, Role::ThinPool));
    shard.sys.swap(&below).await.map(|_for_how_long| ())
}

/// The private devices of a pool that starts, with their tables as recorded: bottom first, the thin pool last.
pub fn recorded(running: &Running) -> Result<Vec<(Dm, Table)>, Refusal> {
    let (pool, uuid) = (running.pool.borrow(), running.uuid);
    tables::tables(pool.record(), pool.version(), uuid, &numbers(pool.members()))
        .map_err(|fault| Refusal::Inconsistent { pool: uuid, what: fault.as_str() })
}

/// Those of a pool that runs.
pub fn of_running(running: &Running) -> Vec<(Dm, Table)> {
    recorded(running).expect("a pool that runs has its tables")
}

/// Activates the private devices of a pool, the thin pool with as many blocks as it has come to have: more of them
/// are on record, and once they are its own they are never anybody else's.
pub async fn private_up<S: Sys>(shard: &Shard<S>, running: &Running, tables: &[(Dm, Table)]) -> Result<(), Fault> {
    let (top, below) = tables.split_last().expect("a stack has a thin pool");
    up(&shard.sys, below).await?;
    let meta = Target::Dm(Dm::Private(running.uuid, Role::ThinMeta));
    let superblock = shard.sys.read(meta, Sectors::ZERO, SUPERBLOCK).await?;
    let table = {
        let pool = running.pool.borrow();
        let blocks = thin::data_blocks(&superblock);
        grow::at_start(pool.record(), &sizes(pool.members()), blocks, shard.pace.get())
    };
    up(&shard.sys, &[(top.0, table)]).await
}

/// Takes down the cache of a pool that runs, as long as nothing lies on it.
pub async fn cache_down<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Fault> {
    let version = running.pool.borrow().version();
    match version {
        MetadataVersion::V1 => down(&shard.sys, running.uuid, &LOWER[..3]).await,
        // What is there in place of a cache stays.
        MetadataVersion::V2 => down(&shard.sys, running.uuid, &LOWER[1..3]).await,
    }
}

/// Takes down every thin volume of a pool, each one tried.
pub async fn volumes_down<S: Sys>(sys: &S, pool: PoolUuid) -> Result<(), Fault> {
    let mut volumes = sys.active(pool).await?;
    volumes.retain(|device| matches!(device, Dm::Thin(..)));
    sys.deactivate(&volumes).await
}

/// Takes down the thin pool and the metadata volume; the backstore stays, so records can be saved.
pub async fn upper_down<S: Sys>(sys: &S, pool: PoolUuid) -> Result<(), Fault> {
    sys.mdv_unmount(pool).await?;
    down(sys, pool, &UPPER).await
}

/// Takes down the backstore.
pub async fn lower_down<S: Sys>(sys: &S, pool: PoolUuid) -> Result<(), Fault> {
    down(sys, pool, &LOWER).await
}

/// Takes down whatever there is of a pool. udev has taken notice of that in the end, so what comes up next is not taken
/// for what had its number.
pub async fn all_down<S: Sys>(sys: &S, pool: PoolUuid) -> Result<(), Fault> {
    volumes_down(sys, pool).await?;
    upper_down(sys, pool).await?;
    lower_down(sys, pool).await?;
    sys.settle(pool).await;
    Ok(())
}

async fn down<S: Sys>(sys: &S, pool: PoolUuid, roles: &[Role]) -> Result<(), Fault> {
    let devices: Vec<Dm> = roles.iter().map(|role| Dm::Private(pool, *role)).collect();
    sys.deactivate(&devices).await
}
