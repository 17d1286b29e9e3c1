//! The call of a filesystem, and its properties that can be set.
//!
//! Whether a name is taken, a limit is below the size, or a merge is possible, is for the pool's home to decide.

use crate::bus::facts::FilesystemFacts;
use crate::bus::table::decode::{Args, Ask, CallFault, Decoded, name, optional, size};
use crate::message::Wish;

pub(in crate::bus::table) fn set_name(ask: &Ask<'_, FilesystemFacts>) -> Result<Decoded, CallFault> {
    let (text,): (String,) = ask.args.all()?;
    let view = &ask.on.view;
    Ok(Decoded::Wish(Wish::SetFilesystemName(view.pool, view.record.uuid, name(&text)?)))
}

pub(in crate::bus::table) fn set_size_limit(fs: &FilesystemFacts, args: &Args) -> Result<Wish, CallFault> {
    let limit = optional(args.value::<(bool, String)>()?).map(|text| size(&text)).transpose()?;
    Ok(Wish::SetSizeLimit(fs.view.pool, fs.view.record.uuid, limit))
}

pub(in crate::bus::table) fn set_merge_scheduled(fs: &FilesystemFacts, args: &Args) -> Result<Wish, CallFault> {
    Ok(Wish::SetMerge(fs.view.pool, fs.view.record.uuid, args.value()?))
}
