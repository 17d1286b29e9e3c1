//! Putting the dm devices of a pool up and taking them down.
//!
//! Invariant: what is on top goes up last and comes down first. Both directions can be repeated:
//! activating adopts what is active already, deactivating what is not there is fine.

use crate::error::Fault;
use crate::model::dm::{Dm, Role, Table};
use crate::model::ids::PoolUuid;
use crate::shard::wait::all;
use crate::sys::Sys;

/// Private dm devices from the top down, without the backstore below the metadata volume.
const UPPER: [Role; 4] = [Role::ThinPool, Role::ThinData, Role::ThinMeta, Role::Mdv];
/// The backstore, from the top down.
const LOWER: [Role; 2] = [Role::Cache, Role::OriginSub];

/// Activates tables in the order given: bottom first.
pub async fn up<S: Sys>(sys: &S, tables: &[(Dm, Table)]) -> Result<(), Fault> {
    for (device, table) in tables {
        sys.activate(*device, table).await?;
    }
    Ok(())
}

/// Takes down every thin volume of a pool, each one tried.
pub async fn volumes_down<S: Sys>(sys: &S, pool: PoolUuid) -> Result<(), Fault> {
    let active = sys.active(pool).await?;
    let volumes = active.into_iter().filter(|device| matches!(device, Dm::Thin(..)));
    all(volumes.map(|device| sys.deactivate(device))).await.into_iter().collect()
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

/// Takes down whatever there is of a pool.
pub async fn all_down<S: Sys>(sys: &S, pool: PoolUuid) -> Result<(), Fault> {
    volumes_down(sys, pool).await?;
    upper_down(sys, pool).await?;
    lower_down(sys, pool).await
}

async fn down<S: Sys>(sys: &S, pool: PoolUuid, roles: &[Role]) -> Result<(), Fault> {
    for role in roles {
        sys.deactivate(Dm::Private(pool, *role)).await?;
    }
    Ok(())
}
