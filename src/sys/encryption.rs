//! What a machine that can encrypt pools does: the key ring, and the header of a pool's encryption layer.
//!
//! The layer lies on the backstore of a pool, behind the room for its header. A header is changed whole or
//! not at all, and durably.
//!
//! A machine that cannot encrypt has no value of this trait (`Infallible` implements it), so that an operation
//! learns that before it changes anything: there is nothing to call.
//!
//! Deliberately absent: moving what is on a pool between plain and encrypted, and unlocking. The one machine
//! that encrypts so far simulates, and needs neither.

use std::convert::Infallible;

use crate::error::{Failure, Fault};
use crate::model::ids::PoolUuid;
use crate::model::token::{KeyChange, KeyDescription, Tokens};
use crate::sys::passphrase::Passphrase;

/// The key ring, and the encryption layers of pools whose backstore is active.
#[allow(async_fn_in_trait, reason = "every implementation and every caller stays on its core")]
pub trait Encryption {
    /// Keeps a passphrase under a description.
    async fn set_key(&self, key: &KeyDescription, passphrase: Passphrase) -> Result<KeyChange, Failure>;

    /// Forgets a key. False: there is none.
    async fn unset_key(&self, key: &KeyDescription) -> Result<bool, Fault>;

    /// The descriptions of all keys.
    async fn keys(&self) -> Result<Vec<KeyDescription>, Fault>;

    /// What the header of a pool holds; `None` where there is no header.
    async fn tokens(&self, pool: PoolUuid) -> Result<Option<Tokens>, Fault>;

    /// Makes a header with these, or changes what it holds to these.
    async fn set_tokens(&self, pool: PoolUuid, tokens: &Tokens) -> Result<(), Fault>;

    /// Replaces the volume key.
    async fn reencrypt(&self, pool: PoolUuid) -> Result<(), Fault>;

    /// Erases the header. One that is not there is fine.
    async fn erase(&self, pool: PoolUuid) -> Result<(), Fault>;
}

impl Encryption for Infallible {
    async fn set_key(&self, _: &KeyDescription, _: Passphrase) -> Result<KeyChange, Failure> {
        match *self {}
    }

    async fn unset_key(&self, _: &KeyDescription) -> Result<bool, Fault> {
        match *self {}
    }

    async fn keys(&self) -> Result<Vec<KeyDescription>, Fault> {
        match *self {}
    }

    async fn tokens(&self, _: PoolUuid) -> Result<Option<Tokens>, Fault> {
        match *self {}
    }

    async fn set_tokens(&self, _: PoolUuid, _: &Tokens) -> Result<(), Fault> {
        match *self {}
    }

    async fn reencrypt(&self, _: PoolUuid) -> Result<(), Fault> {
        match *self {}
    }

    async fn erase(&self, _: PoolUuid) -> Result<(), Fault> {
        match *self {}
    }
}
