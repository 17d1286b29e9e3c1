//! The key ring: listing, setting and forgetting keys.
//!
//! Commit point: the machine's key ring has changed. It is no part of any pool, and one home does all of this:
//! what the bus is told of it is never older than what it was told before.

use std::rc::Rc;

use cores::rt;

use crate::descriptors::Descriptors;
use crate::message::{Answer, KeyWish, View};
use crate::model::token::KeyDescription;
use crate::shard::Shard;
use crate::shard::ops::Outcome;
use crate::sys::encryption::Encryption;
use crate::sys::{Sys, passphrase};

/// Does what is asked with the key ring.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, wish: KeyWish, descriptors: Descriptors) -> Outcome {
    match wish {
        KeyWish::List => Ok(Answer::Keys(shard.sys.encryption()?.keys().await?)),
        KeyWish::Set(key, index) => set(shard, &key, descriptors, index).await,
        KeyWish::Unset(key) => unset(shard, &key).await,
    }
}

async fn set<S: Sys>(shard: &Shard<S>, key: &KeyDescription, descriptors: Descriptors, index: usize) -> Outcome {
    let machine = shard.sys.encryption()?;
    rt::stage("read passphrase");
    let descriptor = descriptors.pick(index).expect("decoding has counted them");
    let passphrase = passphrase::read(&shard.passphrases, descriptor).await?;
    rt::stage("set key");
    let change = machine.set_key(key, passphrase).await?;
    show(shard, machine).await;
    Ok(Answer::KeySet(change))
}

async fn unset<S: Sys>(shard: &Shard<S>, key: &KeyDescription) -> Outcome {
    let machine = shard.sys.encryption()?;
    if !machine.unset_key(key).await? {
        return Ok(Answer::Identity);
    }
    show(shard, machine).await;
    Ok(Answer::Set)
}

/// Tells the bus which keys there are now, because whoever creates a pool must name one of them.
async fn show<S: Sys>(shard: &Shard<S>, machine: &S::Encryption) {
    match machine.keys().await {
        Ok(keys) => shard.show(vec![View::Keys(keys)]),
        Err(fault) => log::error!("the bus does not learn which keys there are now: {fault}"),
    }
}
