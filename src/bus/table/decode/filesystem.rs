//! Properties of a filesystem that can be set.
//!
//! Whether a limit is below the size, or a merge is possible, is for the pool's home to decide.

use crate::bus::facts::FilesystemFacts;
use crate::bus::table::decode::{Args, CallFault, optional, size};
use crate::message::Wish;

pub(in crate::bus::table) fn set_size_limit(fs: &FilesystemFacts, args: &Args) -> Result<Wish, CallFault> {
    let limit = optional(args.value::<(bool, String)>()?).map(|text| size(&text)).transpose()?;
    Ok(Wish::SetSizeLimit(fs.view.pool, fs.view.record.uuid, limit))
}

pub(in crate::bus::table) fn set_merge_scheduled(fs: &FilesystemFacts, args: &Args) -> Result<Wish, CallFault> {
    Ok(Wish::SetMerge(fs.view.pool, fs.view.record.uuid, args.value()?))
}
