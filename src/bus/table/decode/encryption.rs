//! What unlocks a pool, in all the shapes in which clients say it, and the calls that change it.
//!
//! Until r7 a call knows no token slots: what is created gets slot 1 for its key and slot 2 for Clevis, and a
//! pool is taken to have at most one of each.

use crate::bus::table::decode::{Ask, CallFault, Decoded, optional};
use crate::message::Wish;
use crate::model::pool::PoolView;
use crate::model::token::{self, KeyDescription, Kind, Mechanism, Slot, TokenChange, TokenFault, Tokens};

type Asked<'a> = Ask<'a, PoolView>;
type TokenSlot = (bool, u32);

/// A key until r7.
pub(super) type OldKey = (bool, String);
/// A Clevis configuration until r7.
pub(super) type OldClevis = (bool, (String, String));
/// A key with its slot.
pub(super) type Key = (TokenSlot, String);
/// A Clevis configuration with its slot.
pub(super) type Clevis = (TokenSlot, String, String);

impl From<TokenFault> for CallFault {
    fn from(fault: TokenFault) -> Self {
        Self::Refused(fault.into())
    }
}

fn key(text: &str) -> Result<Mechanism, TokenFault> {
    Ok(Mechanism::Key(KeyDescription::try_from(text)?))
}

fn clevis(pin: &str, config: &str) -> Result<Mechanism, TokenFault> {
    Ok(Mechanism::Clevis(token::Clevis::new(pin, config)?))
}

/// At most one of each, in the slots that they always had.
pub(super) fn old_tokens(old_key: OldKey, old_clevis: OldClevis) -> Result<Option<Tokens>, TokenFault> {
    let mut all = Vec::new();
    if let Some(text) = optional(old_key) {
        all.push((Some(1), key(&text)?));
    }
    if let Some((pin, config)) = optional(old_clevis) {
        all.push((Some(2), clevis(&pin, &config)?));
    }
    if all.is_empty() { Ok(None) } else { Tokens::assign(all).map(Some) }
}

/// Lists since r8; not both empty.
pub(super) fn tokens(keys: Vec<Key>, all_clevis: Vec<Clevis>) -> Result<Tokens, TokenFault> {
    let keys = keys.into_iter().map(|(slot, text)| Ok((optional(slot), key(&text)?)));
    let all_clevis = all_clevis.into_iter().map(|(slot, pin, config)| Ok((optional(slot), clevis(&pin, &config)?)));
    Tokens::assign(keys.chain(all_clevis).collect::<Result<_, TokenFault>>()?)
}

fn change(ask: &Asked<'_>, change: TokenChange) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::ChangeTokens(ask.on.uuid, change)))
}

/// Where a client that knows slots wants something.
fn place(slot: TokenSlot) -> Slot {
    optional(slot).map_or(Slot::Free, Slot::At)
}

pub(in crate::bus::table) fn bind_keyring_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text,): (String,) = ask.args.all()?;
    change(ask, TokenChange::Bind(key(&text)?, Slot::Sole))
}

pub(in crate::bus::table) fn bind_keyring_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text, slot): (String, TokenSlot) = ask.args.all()?;
    change(ask, TokenChange::Bind(key(&text)?, place(slot)))
}

pub(in crate::bus::table) fn bind_clevis_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (pin, config): (String, String) = ask.args.all()?;
    change(ask, TokenChange::Bind(clevis(&pin, &config)?, Slot::Sole))
}

pub(in crate::bus::table) fn bind_clevis_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (pin, config, slot): (String, String, TokenSlot) = ask.args.all()?;
    change(ask, TokenChange::Bind(clevis(&pin, &config)?, place(slot)))
}

pub(in crate::bus::table) fn rebind_keyring_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text,): (String,) = ask.args.all()?;
    change(ask, TokenChange::RebindKey(KeyDescription::try_from(&*text)?, None))
}

pub(in crate::bus::table) fn rebind_keyring_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text, slot): (String, TokenSlot) = ask.args.all()?;
    change(ask, TokenChange::RebindKey(KeyDescription::try_from(&*text)?, optional(slot)))
}

pub(in crate::bus::table) fn rebind_clevis_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    change(ask, TokenChange::RebindClevis(None))
}

pub(in crate::bus::table) fn rebind_clevis_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (slot,): (TokenSlot,) = ask.args.all()?;
    change(ask, TokenChange::RebindClevis(optional(slot)))
}

pub(in crate::bus::table) fn unbind_keyring_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    change(ask, TokenChange::Unbind(Kind::Key, None))
}

pub(in crate::bus::table) fn unbind_keyring_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (slot,): (TokenSlot,) = ask.args.all()?;
    change(ask, TokenChange::Unbind(Kind::Key, optional(slot)))
}

pub(in crate::bus::table) fn unbind_clevis_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    change(ask, TokenChange::Unbind(Kind::Clevis, None))
}

pub(in crate::bus::table) fn unbind_clevis_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (slot,): (TokenSlot,) = ask.args.all()?;
    change(ask, TokenChange::Unbind(Kind::Clevis, optional(slot)))
}

pub(in crate::bus::table) fn encrypt_pool(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (keys, all_clevis): (Vec<Key>, Vec<Clevis>) = ask.args.all()?;
    Ok(Decoded::Wish(Wish::EncryptPool(ask.on.uuid, tokens(keys, all_clevis)?)))
}

pub(in crate::bus::table) fn reencrypt_pool(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::ReencryptPool(ask.on.uuid)))
}

pub(in crate::bus::table) fn decrypt_pool(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::DecryptPool(ask.on.uuid)))
}
