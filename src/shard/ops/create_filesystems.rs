//! Creating filesystems.
//!
//! Commit point: the filesystem's record is durable in the metadata volume. The volume's thin id is
//! noted as an intent before the volume is made, so a start after a power failure deletes a volume
//! whose record never came. Any number of creations of one pool run side by side; only the thin pool's
//! messages and the metadata volume's syncs follow each other in the kernel.

use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::{Creation, Planned};
use crate::engine::{pool, stack as tables, volume};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::intent::Intent;
use crate::limits::THIN_IDS_TRIED_MAX;
use crate::message::{Answer, View};
use crate::model::dm::Dm;
use crate::model::filesystem::{FilesystemRecord, FilesystemSpec};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::shard::ops::{Outcome, format, intents, records};
use crate::shard::{Running, Shard};
use crate::sys::Sys;

/// Creates what is asked for: one filesystem at a time, or none.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, specs: Vec<FilesystemSpec>) -> Outcome {
    let running = shard.changeable(pool)?;
    if specs.len() > 1 {
        return Err(Refusal::OneFilesystemAtATime { asked: specs.len() }.into());
    }
    let Some(spec) = specs.first() else {
        return Ok(Answer::Identity);
    };
    let planned = {
        let mut pool = running.pool.borrow_mut();
        let rules = pool.rules();
        pool.filesystems.plan(spec, pool::rules(&rules), FsUuid::from_random(rt::random()), rt::wall().seconds)?
    };
    match planned {
        Planned::Exists => Ok(Answer::Identity),
        Planned::Create(creation) => {
            running.pool.borrow().check_metadata_space()?;
            create(shard, &running, creation).await
        }
    }
}

async fn create<S: Sys>(shard: &Shard<S>, running: &Running, mut creation: Creation) -> Outcome {
    let made = make(shard, running, &mut creation.record).await;
    if let Err(failure) = made {
        unwind(shard, running.uuid, &creation.record).await;
        return Err(failure);
    }
    let (uuid, name) = (creation.record.uuid, creation.record.name.clone());
    enter(shard, running, creation).await;
    log::info!("filesystem created (pool={} filesystem={uuid} name={:?})", running.uuid, name.as_str());
    Ok(Answer::FilesystemsCreated(vec![(uuid, name)]))
}

/// What comes after the commit point: the filesystem gets its paths, becomes part of the pool, and is shown.
pub(super) async fn enter<S: Sys>(shard: &Shard<S>, running: &Running, creation: Creation) {
    let (pool, uuid) = (running.uuid, creation.record.uuid);
    // The record stands; an intent that stays is dropped by the next setup.
    if let Err(fault) = intents::drop_all(&shard.sys, pool, &[creation.record.thin_id]).await {
        log::warn!("an intent stays until the pool is next set up (pool={pool}): {fault}");
    }
    // udev takes the events of a device in their order, so these names come after its first look at it:
    // nobody waits for that look.
    let of_pool = running.pool.borrow().name().clone();
    shard.sys.announce((pool, &of_pool), (uuid, &creation.record.name, creation.record.thin_id)).await;
    let used = shard.used(pool, uuid).await;
    let views = {
        let mut pool = running.pool.borrow_mut();
        pool.filesystems.commit(creation, used);
        let filesystem = pool.filesystems.find(uuid).expect("it was just committed");
        vec![shard.filesystem_view(&pool, filesystem), View::Pool(pool.view())]
    };
    shard.show(views);
}

/// Makes volume, XFS and record, up to the commit point.
async fn make<S: Sys>(shard: &Shard<S>, running: &Running, record: &mut FilesystemRecord) -> Result<(), Failure> {
    let pool = running.uuid;
    let create = async |id| shard.sys.thin_create(pool, id).await;
    let blank = make_volume(shard, running, record, create).await?;
    let device = Dm::Thin(pool, record.uuid);
    shard.sys.activate(&[(device, tables::thin(record))]).await?;
    rt::stage("format");
    let shape = volume::thin(record.size, shard.sys.block_sizes(device).await?)?;
    assert!(blank.as_ref().is_none_or(|blank| blank.is_of(pool, record.thin_id)), "the permission is for this volume");
    let log = volume::log(&running.pool.borrow().record().thin_features(), blank);
    let made = format::make(&shard.sys, device, &shape, log, record.uuid.0).await;
    made.map_err(|fault| full_or(running, fault))?;
    rt::stage("record");
    Ok(records::save(&shard.sys, pool, record).await?)
}

/// Why nothing could be written to a new volume: not for a fault of the machine where the thin pool is full.
fn full_or(running: &Running, fault: Fault) -> Failure {
    if fault.why == Why::Errno(libc::ENOSPC) {
        return Refusal::PoolFull { name: running.pool.borrow().name().clone() }.into();
    }
    fault.into()
}

/// Makes the thin volume in the way that is given, and gives back what that did. The kernel may know an id
/// that no record and no intent names; nobody may touch such a volume, so another id is taken.
pub(super) async fn make_volume<S: Sys, T>(
    shard: &Shard<S>,
    running: &Running,
    record: &mut FilesystemRecord,
    create: impl AsyncFn(ThinId) -> Result<T, Fault>,
) -> Result<T, Failure> {
    let pool = running.uuid;
    for _ in 0..THIN_IDS_TRIED_MAX {
        rt::stage("intent");
        intents::note(&shard.sys, pool, &[Intent::of(record)]).await?;
        rt::stage("create volume");
        match create(record.thin_id).await {
            Ok(made) => return Ok(made),
            Err(Fault { why: Why::Errno(libc::EEXIST), .. }) => {
                log::warn!("a thin id is in use but on no record (pool={pool} thin_id={})", record.thin_id);
                intents::drop_durably(&shard.sys, pool, &[record.thin_id]).await?;
                record.thin_id = running.pool.borrow_mut().filesystems.next_thin_id()?;
            }
            Err(fault) => return Err(fault.into()),
        }
    }
    Err(Refusal::ThinIds(pool).into())
}

/// Takes back whatever was done. What cannot be taken back keeps its intent for the next setup.
pub(super) async fn unwind<S: Sys>(shard: &Shard<S>, pool: PoolUuid, record: &FilesystemRecord) {
    rt::stage("unwind");
    if let Err(fault) = take_back(shard, pool, record).await {
        log::error!("a creation could not be taken back whole (pool={pool} thin_id={}): {fault}", record.thin_id);
    }
}

async fn take_back<S: Sys>(shard: &Shard<S>, pool: PoolUuid, record: &FilesystemRecord) -> Result<(), Fault> {
    // The save may have come as far as the rename, so the record goes first.
    records::remove(&shard.sys, pool, &[record.uuid]).await?;
    shard.sys.deactivate(&[Dm::Thin(pool, record.uuid)]).await?;
    intents::delete(&shard.sys, pool, record.thin_id).await?;
    shard.sys.thin_commit(pool).await?;
    intents::drop_all(&shard.sys, pool, &[record.thin_id]).await
}
