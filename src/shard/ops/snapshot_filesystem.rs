//! Making a snapshot of a filesystem.
//!
//! Commit point: the snapshot's record is durable in the metadata volume. Its thin id is noted as an
//! intent before the volume is made, so a start after a power failure deletes a volume whose record never
//! came. The origin is touched by one call only, in which it is suspended and resumed.
//!
//! The volume begins as a copy of the origin, UUID included. Until it has a UUID of its own nobody can
//! mount both, and so the record comes after that.

use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::{Creation, Planned};
use crate::engine::{pool, stack as tables};
use crate::error::{Failure, Refusal};
use crate::message::Answer;
use crate::model::dm::{Dm, ThinPoolMode};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::shard::ops::create_filesystems::{enter, make_volume, unwind};
use crate::shard::ops::{Outcome, new_uuid, records};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// What is copied: which filesystem, and its volume.
type Origin = (FsUuid, ThinId);

/// Makes a snapshot of this name. It need not be made if a filesystem has the name.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, origin: FsUuid, name: Name) -> Outcome {
    let running = shard.changeable(pool)?;
    let (origin, planned) = {
        let mut pool = running.pool.borrow_mut();
        let rules = pool.rules();
        let (uuid, now) = (FsUuid::from_random(rt::random()), rt::wall().seconds);
        let planned = pool.filesystems.plan_snapshot(origin, &name, pool::rules(&rules), uuid, now)?;
        ((origin, pool.filesystems.find(origin)?.record.thin_id), planned)
    };
    match planned {
        Planned::Exists => Ok(Answer::Identity),
        Planned::Create(creation) => snapshot(shard, &running, origin, creation).await,
    }
}

async fn snapshot<S: Sys>(shard: &Shard<S>, running: &Running, origin: Origin, mut creation: Creation) -> Outcome {
    check_space(shard, running).await?;
    let made = make(shard, running, origin, &mut creation.record).await;
    if let Err(failure) = made {
        if !planted(Bug::SnapshotStays) {
            unwind(shard, running.uuid, &creation.record).await;
        }
        return Err(failure);
    }
    let (uuid, name) = (creation.record.uuid, creation.record.name.clone());
    enter(shard, running, creation).await;
    let (pool, origin) = (running.uuid, origin.0);
    log::info!("snapshot made (pool={pool} filesystem={uuid} origin={origin} name={:?})", name.as_str());
    Ok(Answer::FilesystemSnapshotted(uuid))
}

/// A full thin pool keeps writes waiting, for a minute, and suspending the origin would wait for those.
async fn check_space<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<(), Failure> {
    running.pool.borrow().check_metadata_space()?;
    match shard.sys.thin_pool(running.uuid).await?.mode {
        ThinPoolMode::OutOfDataSpace => Err(Refusal::PoolFull { name: running.pool.borrow().name().clone() }.into()),
        ThinPoolMode::ReadWrite | ThinPoolMode::OutOfMetadataSpace | ThinPoolMode::ReadOnly | ThinPoolMode::Failed => {
            Ok(())
        }
    }
}

/// Makes volume, UUID and record, up to the commit point.
async fn make<S: Sys>(
    shard: &Shard<S>,
    running: &Running,
    origin: Origin,
    record: &mut FilesystemRecord,
) -> Result<(), Failure> {
    let pool = running.uuid;
    let copy = async |id| shard.sys.thin_snapshot(pool, origin, id).await;
    make_volume(shard, running, record, copy).await?;
    let device = Dm::Thin(pool, record.uuid);
    shard.sys.activate(&[(device, tables::thin(record))]).await?;
    new_uuid::give(&shard.sys, device, record.size, record.uuid).await?;
    rt::stage("record");
    Ok(records::save(&shard.sys, pool, record).await?)
}
