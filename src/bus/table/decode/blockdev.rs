//! The user's tag of a device: a method until r2, a property since r3.
//!
//! Both become the same wish. A tag follows the rules of names; an absent one clears it.

use crate::bus::facts::DeviceFacts;
use crate::bus::table::decode::{Args, Ask, CallFault, Decoded, optional};
use crate::error::Refusal;
use crate::message::Wish;
use crate::model::name::Name;

pub(in crate::bus::table) fn call_set_user_info(ask: &Ask<'_, DeviceFacts>) -> Result<Decoded, CallFault> {
    let (tag,): ((bool, String),) = ask.args.all()?;
    Ok(Decoded::Wish(wish(ask.on, tag)?))
}

pub(in crate::bus::table) fn set_user_info(device: &DeviceFacts, args: &Args) -> Result<Wish, CallFault> {
    Ok(wish(device, args.value()?)?)
}

fn wish(device: &DeviceFacts, tag: (bool, String)) -> Result<Wish, Refusal> {
    let tag = optional(tag).map(|text| Name::try_from(text.as_str())).transpose()?;
    Ok(Wish::SetUserInfo(device.view.pool, device.view.uuid, tag))
}
