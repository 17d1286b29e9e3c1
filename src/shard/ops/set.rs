//! Changing properties of pools, filesystems and devices.
//!
//! Commit point: the record with the new value is durable. Until then memory has the old value, or gets
//! it back.

use std::rc::Rc;

use cores::rt;

use crate::error::{Failure, Refusal};
use crate::message::{Answer, View};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::Availability;
use crate::shard::ops::save::checked;
use crate::shard::ops::{Outcome, records, thin_pool};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::units::Sectors;
use crate::zoo::{Bug, planted};

/// Changes how far a filesystem may grow.
pub async fn size_limit<S: Sys>(
    shard: &Rc<Shard<S>>,
    pool: PoolUuid,
    filesystem: FsUuid,
    limit: Option<Sectors>,
) -> Outcome {
    let running = shard.changeable(pool)?;
    let changed = running.pool.borrow().filesystems.plan_size_limit(filesystem, limit)?;
    record(shard, &running, changed).await
}

/// Schedules or cancels a merge.
pub async fn merge<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, filesystem: FsUuid, merge: bool) -> Outcome {
    let running = shard.changeable(pool)?;
    let changed = running.pool.borrow().filesystems.plan_merge(filesystem, merge)?;
    record(shard, &running, changed).await
}

/// Saves a filesystem's new record, if there is one, and shows it.
async fn record<S: Sys>(shard: &Rc<Shard<S>>, running: &Running, changed: Option<FilesystemRecord>) -> Outcome {
    let Some(record) = changed else {
        return Ok(Answer::Identity);
    };
    save_record(shard, running, &record).await?;
    show_record(shard, running, record)?;
    Ok(Answer::Set)
}

/// Saves another record of a filesystem. A save that fails may have come as far as the rename of its file, so
/// the record before is saved over it; if that fails, too, nobody knows which one is on disk, and the pool gets
/// no more changes.
pub(super) async fn save_record<S: Sys>(
    shard: &Shard<S>,
    running: &Running,
    record: &FilesystemRecord,
) -> Result<(), Failure> {
    rt::stage("record");
    let Err(failed) = records::save(&shard.sys, running.uuid, record).await else {
        return Ok(());
    };
    rt::stage("put back");
    let before = running.pool.borrow().filesystems.find(record.uuid)?.record.clone();
    if let Err(fault) = records::save(&shard.sys, running.uuid, &before).await {
        log::error!("the change of {before} could not be taken back (pool={}): {fault}", running.uuid);
        shard.degrade(running, Availability::NoPoolChanges);
    }
    Err(failed.into())
}

/// Takes over a record that is saved, and shows it.
pub(super) fn show_record<S: Sys>(
    shard: &Shard<S>,
    running: &Running,
    record: FilesystemRecord,
) -> Result<(), Refusal> {
    let view = {
        let mut pool = running.pool.borrow_mut();
        let uuid = record.uuid;
        pool.filesystems.replace(record);
        let found = pool.filesystems.find(uuid)?;
        shard.filesystem_view(&pool, found)
    };
    shard.show(vec![view]);
    Ok(())
}

/// Changes the user's tag on a device.
pub async fn user_info<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, device: DevUuid, info: Option<Name>) -> Outcome {
    let running = shard.changeable(pool)?;
    if !running.pool.borrow().has_device(device) {
        return Err(Refusal::NoDevice(device).into());
    }
    let info = info.as_ref().map(Name::as_str);
    let Some(before) = running.pool.borrow_mut().set_user_info(device, info) else {
        return Ok(Answer::Identity);
    };
    if let Err(failure) = checked(shard, &running).await {
        running.pool.borrow_mut().set_user_info(device, before.as_deref());
        return Err(failure);
    }
    let views = running.pool.borrow().device_views();
    shard.show(views.into_iter().filter(|view| view.uuid == device).map(View::Device).collect());
    Ok(Answer::Set)
}

/// Allows or forbids overprovisioning.
pub async fn overprovisioning<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, allowed: bool) -> Outcome {
    let running = shard.running(pool).ok_or(Refusal::NoPool(pool))?;
    running.pool.borrow().check_changes()?;
    let Some(before) = running.pool.borrow_mut().set_overprovisioning(allowed)? else {
        return Ok(Answer::Identity);
    };
    if let Err(failure) = checked(shard, &running).await {
        if !planted(Bug::NotTakenBack) {
            running.pool.borrow_mut().unset_overprovisioning(before);
        }
        return Err(failure);
    }
    shard.show_pool(&running);
    thin_pool::look(shard, pool);
    Ok(Answer::Set)
}
