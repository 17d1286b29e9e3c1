//! Calls of the manager about keys.
//!
//! Deliberately absent: the passphrase. It comes through a descriptor, which goes along unread.

use crate::bus::facts::ManagerFacts;
use crate::bus::table::decode::{Ask, CallFault, Decoded};
use crate::message::{KeyWish, Wish};
use crate::model::token::KeyDescription;

type Asked<'a> = Ask<'a, ManagerFacts>;

pub(in crate::bus::table) fn list_keys(_: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::Keys(KeyWish::List)))
}

pub(in crate::bus::table) fn set_key(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text, index): (String, u32) = ask.args.all()?;
    let index = ask.args.descriptor(index)?;
    Ok(Decoded::Wish(Wish::Keys(KeyWish::Set(KeyDescription::try_from(&*text)?, index))))
}

pub(in crate::bus::table) fn unset_key(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text,): (String,) = ask.args.all()?;
    Ok(Decoded::Wish(Wish::Keys(KeyWish::Unset(KeyDescription::try_from(&*text)?))))
}
