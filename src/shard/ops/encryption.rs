//! Encrypting, reencrypting and decrypting a pool, and changing what unlocks it.
//!
//! Commit points: of a change of tokens, the header has changed; of the others, the pool's record is durable.
//!
//! Invariant: at every moment, a pool whose newest record says that it is encrypted has a header. So a header
//! is there before such a record, and goes only after one that says otherwise. One that a power failure left
//! on a plain pool means nothing, and the next start erases it.

use std::rc::Rc;

use cores::rt;

use crate::error::{Failure, Refusal};
use crate::message::Answer;
use crate::model::ids::PoolUuid;
use crate::model::pool::{Availability, MetadataVersion};
use crate::model::token::{TokenChange, Tokens};
use crate::shard::ops::save::checked;
use crate::shard::ops::{Outcome, save};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::sys::encryption::Encryption;
use crate::zoo::{Bug, planted};

/// Changes what unlocks a pool.
pub async fn change<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, change: &TokenChange) -> Outcome {
    let running = shard.changeable(pool)?;
    let planned = running.pool.borrow().plan_tokens(change)?;
    let Some(tokens) = planned else {
        return Ok(Answer::Identity);
    };
    rt::stage("write header");
    shard.sys.encryption()?.set_tokens(pool, &tokens).await?;
    if running.pool.borrow_mut().set_tokens(tokens)
        && let Err(failure) = checked(shard, &running).await
    {
        // The change is real. What the record says of it is for those who list the pool while it is locked,
        // and the next save says it.
        log::error!("the record does not tell of a change of unlock mechanisms (pool={pool}): {failure}");
    }
    shard.show_pool(&running);
    Ok(Answer::Set)
}

/// Encrypts a pool.
pub async fn encrypt<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, tokens: Tokens) -> Outcome {
    let running = shard.changeable(pool)?;
    let machine = shard.sys.encryption()?;
    if running.pool.borrow().encryption().is_some() {
        return Ok(Answer::Identity);
    }
    running.pool.borrow().encryptable()?;
    rt::stage("write header");
    let early = tokens.clone();
    if !planted(Bug::EncryptedBeforeHeader) {
        machine.set_tokens(pool, &early).await?;
    }
    // Every address on the cap device becomes another one.
    let _alone = shard.alone(pool).await;
    running.pool.borrow_mut().set_tokens(tokens);
    if let Err(failure) = checked(shard, &running).await {
        running.pool.borrow_mut().decrypt();
        again(shard, &running).await;
        return Err(failure);
    }
    if planted(Bug::EncryptedBeforeHeader) {
        machine.set_tokens(pool, &early).await?;
    }
    shard.show_pool(&running);
    Ok(Answer::Set)
}

/// Gives a pool another volume key.
pub async fn reencrypt<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) -> Outcome {
    let running = shard.changeable(pool)?;
    if running.pool.borrow().encryption().is_none() {
        let name = running.pool.borrow().name().clone();
        return Err(Refusal::Unencrypted { name }.into());
    }
    rt::stage("reencrypt");
    shard.sys.encryption()?.reencrypt(pool).await?;
    let before = running.pool.borrow_mut().set_reencrypted(Some(rt::wall().seconds));
    if let Err(failure) = checked(shard, &running).await {
        running.pool.borrow_mut().set_reencrypted(before);
        return Err(failure);
    }
    shard.show_pool(&running);
    Ok(Answer::Set)
}

/// Makes a pool a plain one.
pub async fn decrypt<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) -> Outcome {
    let running = shard.changeable(pool)?;
    let Some(before) = running.pool.borrow().encryption() else {
        return Ok(Answer::Identity);
    };
    let machine = shard.sys.encryption()?;
    let _alone = shard.alone(pool).await;
    running.pool.borrow_mut().decrypt();
    if let Err(failure) = checked(shard, &running).await {
        running.pool.borrow_mut().undecrypt(before);
        again(shard, &running).await;
        return Err(failure);
    }
    rt::stage("erase header");
    if !planted(Bug::HeaderAfterDecryption)
        && let Err(fault) = machine.erase(pool).await
    {
        log::error!("a plain pool keeps the header of an encrypted one until it is next started: {fault}");
    }
    shard.show_pool(&running);
    Ok(Answer::Set)
}

/// What is in the header of a pool that is being set up; it has one exactly if its record says so. In version 1
/// there is no room for one.
pub async fn header<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<Option<Tokens>, Failure> {
    let pool = running.uuid;
    let (version, encrypted) = {
        let engine = running.pool.borrow();
        (engine.version(), engine.record().is_encrypted())
    };
    if version == MetadataVersion::V1 {
        return Ok(None);
    }
    let machine = match shard.sys.encryption() {
        Ok(machine) => machine,
        // Such a machine has no headers.
        Err(_) if !encrypted => return Ok(None),
        Err(refusal) => return Err(refusal.into()),
    };
    let tokens = machine.tokens(pool).await?;
    if encrypted {
        let what = "its record says that it is encrypted, and it has no encryption header";
        return Ok(Some(tokens.ok_or(Refusal::Inconsistent { pool, what })?));
    }
    if tokens.is_some() {
        log::warn!("an encryption header that was left on a plain pool is erased (pool={pool})");
        machine.erase(pool).await?;
    }
    Ok(None)
}

/// A save failed, and may have reached a device: the newest record must say what is so. If it cannot, nothing
/// is changed any more until the pool was set up from disk.
async fn again<S: Sys>(shard: &Shard<S>, running: &Running) {
    rt::stage("put back");
    if let Err(fault) = save::durable(shard, running).await {
        log::error!("it is not known what a pool's record says (pool={}): {fault}", running.uuid);
        shard.degrade(running, Availability::NoPoolChanges);
    }
}
