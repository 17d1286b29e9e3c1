//! Changing properties of pools, filesystems and devices.
//!
//! Commit point: the record with the new value is durable. Until then memory has the old value, or gets
//! it back.

use std::rc::Rc;

use crate::error::Refusal;
use crate::message::{Answer, View};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::name::Name;
use crate::shard::ops::save::checked;
use crate::shard::ops::{Outcome, records, thin_pool};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::units::Sectors;

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
    records::save(&shard.sys, running.uuid, &record).await?;
    let view = {
        let mut pool = running.pool.borrow_mut();
        let uuid = record.uuid;
        pool.filesystems.replace(record);
        let found = pool.filesystems.find(uuid)?;
        shard.filesystem_view(&pool, found)
    };
    shard.show(vec![view]);
    Ok(Answer::Set)
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
        running.pool.borrow_mut().unset_overprovisioning(before);
        return Err(failure);
    }
    shard.show_pool(&running);
    thin_pool::look(shard, pool);
    Ok(Answer::Set)
}
