//! What a pool's encryption looks like in properties.
//!
//! Until r7 a pool shows the key and the Clevis configuration of the lowest token slots; since r8 it shows all
//! of them, in a variant that holds a text where the pool is not encrypted.
//!
//! Deliberately absent: pools of metadata version 1, which are not started.

use crate::bus::table::filesystem::time;
use crate::bus::value::Value;
use crate::limits::TOKENS_MAX;
use crate::model::pool::PoolView;
use crate::model::token::{Clevis, KeyDescription, Tokens};

const UNENCRYPTED: &str = "Unencrypted";

fn tokens(pool: &PoolView) -> Option<&Tokens> {
    pool.encryption.as_ref().map(|encryption| &encryption.tokens)
}

/// `(true, …)`: all devices of the pool agree.
fn consistent(value: Value) -> Value {
    Value::Struct(vec![Value::Flag(true), value])
}

fn key(tokens: Option<&Tokens>) -> Value {
    Value::optional(tokens.and_then(Tokens::key).map(|key| key.as_str()), "")
}

/// `(b(ss))`.
fn clevis(tokens: Option<&Tokens>) -> Value {
    let found = tokens.and_then(Tokens::clevis);
    let (pin, config) = found.map_or(("", ""), |clevis| (clevis.pin(), clevis.config()));
    let pair = Value::Struct(vec![Value::text(pin), Value::text(config)]);
    Value::Struct(vec![Value::Flag(found.is_some()), pair])
}

/// `(bs)`: the key in the lowest slot.
pub(super) fn key_of(tokens: &Tokens) -> Value {
    key(Some(tokens))
}

/// `(b(ss))`: the Clevis configuration in the lowest slot.
pub(super) fn clevis_of(tokens: &Tokens) -> Value {
    clevis(Some(tokens))
}

/// `(b(bs))`.
pub(super) fn key_description(pool: &PoolView) -> Value {
    consistent(key(tokens(pool)))
}

/// `(b(b(ss)))`.
pub(super) fn clevis_info(pool: &PoolView) -> Value {
    consistent(clevis(tokens(pool)))
}

/// `a(us)`: slot and description of each key.
pub(super) fn key_descriptions(pool: &PoolView) -> Value {
    let Some(tokens) = tokens(pool) else {
        return Value::text(UNENCRYPTED);
    };
    let entry = |(slot, key): (u32, &KeyDescription)| Value::Struct(vec![Value::U32(slot), Value::text(key.as_str())]);
    Value::Array("(us)", tokens.keys().map(entry).collect())
}

/// `a(u(ss))`: slot, pin and configuration of each.
pub(super) fn clevis_infos(pool: &PoolView) -> Value {
    let Some(tokens) = tokens(pool) else {
        return Value::text(UNENCRYPTED);
    };
    let entry = |(slot, clevis): (u32, &Clevis)| {
        let pair = Value::Struct(vec![Value::text(clevis.pin()), Value::text(clevis.config())]);
        Value::Struct(vec![Value::U32(slot), pair])
    };
    Value::Array("(u(ss))", tokens.clevis_all().map(entry).collect())
}

/// `(by)`: how many slots are left.
pub(super) fn free_slots(pool: &PoolView) -> Value {
    let free = tokens(pool).map(|tokens| TOKENS_MAX.saturating_sub(tokens.count()));
    let byte = u8::try_from(free.unwrap_or(0)).expect("there are few slots");
    Value::Struct(vec![Value::Flag(free.is_some()), Value::Byte(byte)])
}

/// `(bs)`: when it last got another volume key.
pub(super) fn reencrypted(pool: &PoolView) -> Value {
    let seconds = pool.encryption.as_ref().and_then(|encryption| encryption.reencrypted);
    Value::optional(seconds.map(time), "")
}
