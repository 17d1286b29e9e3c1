//! Taking into use what a data device has grown by.
//!
//! Commit point: a signature with the new size is durable. The record follows, with more room for an integrity
//! layer at the new end: with the sizes the other way round it would name sectors that the device does not have
//! by its signature. A power failure in between leaves a pool that offers these sectors for data until the
//! device grows again; that is no harm.
//!
//! Deliberately absent: cache devices. Every sector of theirs is on record, so neither could come first.

use std::rc::Rc;

use cores::rt;

use crate::engine::pool::Member;
use crate::error::{Failure, Refusal};
use crate::format::header::StaticHeader;
use crate::message::Answer;
use crate::model::device::{Candidate, Tier};
use crate::model::ids::{DevUuid, PoolUuid};
use crate::shard::ops::{Outcome, headers, save, thin_pool};
use crate::shard::{Running, Shard};
use crate::sys::{Opening, Sys};
use crate::zoo::{Bug, planted};

/// Takes a device into use in its present size. One that has not grown, or is not of the data tier, stays as it is.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, device: DevUuid) -> Outcome {
    let running = shard.changeable(pool)?;
    let Some(member) = running.pool.borrow().tiers().member(Tier::Data, device).cloned() else {
        return Ok(Answer::Identity);
    };
    rt::stage("examine");
    let now = shard.sys.examine(&member.candidate.path).await?;
    if now.number != member.candidate.number {
        return Err(Refusal::DeviceChanged { path: now.path }.into());
    }
    let recorded = member.header.size;
    if now.size < recorded {
        return Err(Refusal::DeviceShrunk { path: now.path, size: now.size, recorded }.into());
    }
    if now.size == recorded {
        return Ok(Answer::Identity);
    }
    let alone = shard.alone(pool).await;
    let record = running.pool.borrow().tiers().grow(device, now.size)?;
    save::fits(&record)?;
    grow(shard, &running, &member, &now).await?;
    drop(alone);
    shard.show_devices(&running, &[device]);
    thin_pool::look(shard, pool);
    log::info!("device has grown (pool={pool} device={} before={recorded} now={})", now.path, now.size);
    Ok(Answer::Set)
}

async fn grow<S: Sys>(shard: &Shard<S>, running: &Running, member: &Member, now: &Candidate) -> Result<(), Failure> {
    // What is open is open in the size that it had.
    let now = Candidate { occupant: member.candidate.occupant.clone(), ..now.clone() };
    shard.sys.open(&now, Opening::Member).await?;
    rt::stage("sign");
    let header = StaticHeader { size: now.size, ..member.header };
    if let Err(fault) = headers::sign(&shard.sys, &[(now.number, header)]).await {
        // One copy may have the new size by now, and the larger one is taken for the newer.
        if let Err(again) = headers::sign(&shard.sys, &[(now.number, member.header)]).await {
            log::error!("the next start may find that a device has grown (device={}): {again}", now.path);
        }
        return Err(fault.into());
    }
    // The record may have changed since it was looked at: the pool grows whenever it has to.
    let kept = {
        let mut pool = running.pool.borrow_mut();
        pool.grow_device(header.device, now.size);
        pool.keep_room(header.device)
    };
    let saved = match kept {
        Ok(_) if planted(Bug::RoomNotSaved) => Ok(()),
        Ok(before) => save::checked(shard, running).await.map_err(|failure| (failure, Some(before))),
        Err(refusal) => Err((refusal.into(), None)),
    };
    if let Err((failure, before)) = saved {
        if let Some(before) = before {
            running.pool.borrow_mut().unkeep_room(header.device, before);
        }
        log::warn!("no room for an integrity layer is kept of what a device has grown by: {failure}");
    }
    Ok(())
}
