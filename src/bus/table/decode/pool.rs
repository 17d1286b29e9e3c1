//! Calls of a pool, and its properties that can be set.
//!
//! Paths of filesystems become ids here; a path that names none of this pool's is left out where several
//! are asked for.

use dbus::Path;

use crate::bus::table::decode::manager::device_paths;
use crate::bus::table::decode::{Args, Ask, CallFault, Decoded, name, optional, size};
use crate::error::Refusal;
use crate::limits::FILESYSTEMS_IN_REQUEST_MAX;
use crate::message::{Answer, Wish};
use crate::model::device::DevicePath;
use crate::model::filesystem::FilesystemSpec;
use crate::model::ids::DevUuid;
use crate::model::name::Name;
use crate::model::pool::PoolView;

type Asked<'a> = Ask<'a, PoolView>;
type Size = (bool, String);

pub(in crate::bus::table) fn create_filesystems_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (specs,): (Vec<(String, Size)>,) = ask.args.all()?;
    create_filesystems(ask, specs.into_iter().map(|(name, size)| (name, size, (false, String::new()))).collect())
}

pub(in crate::bus::table) fn create_filesystems_r6(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (specs,): (Vec<(String, Size, Size)>,) = ask.args.all()?;
    create_filesystems(ask, specs)
}

fn create_filesystems(ask: &Asked<'_>, specs: Vec<(String, Size, Size)>) -> Result<Decoded, CallFault> {
    match &specs[..] {
        [] => Ok(Decoded::Known(Answer::Identity)),
        [(name, size, limit)] => {
            let spec = filesystem_spec(name, size.clone(), limit.clone())?;
            Ok(Decoded::Wish(Wish::CreateFilesystems(ask.on.uuid, vec![spec])))
        }
        [..] => Err(Refusal::OneFilesystemAtATime { asked: specs.len() }.into()),
    }
}

fn filesystem_spec(name: &str, bytes: Size, limit: Size) -> Result<FilesystemSpec, Refusal> {
    let bytes = optional(bytes).map(|text| size(&text)).transpose()?;
    let size_limit = optional(limit).map(|text| size(&text)).transpose()?;
    Ok(FilesystemSpec { name: Name::try_from(name)?, size: bytes, size_limit })
}

/// Paths that are not filesystems of this pool are ignored, as clients expect.
pub(in crate::bus::table) fn destroy_filesystems(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (paths,): (Vec<Path<'static>>,) = ask.args.all()?;
    if paths.len() > FILESYSTEMS_IN_REQUEST_MAX {
        let what = "the list of filesystems in one request";
        return Err(Refusal::Full { what, max: FILESYSTEMS_IN_REQUEST_MAX }.into());
    }
    let mut seen = std::collections::HashSet::new();
    let found = paths.iter().filter_map(|path| ask.tree.filesystem_at(path));
    let own = found.filter(|fs| fs.view.pool == ask.on.uuid).map(|fs| fs.view.record.uuid);
    let filesystems: Vec<_> = own.filter(|uuid| seen.insert(*uuid)).collect();
    if filesystems.is_empty() {
        return Ok(Decoded::Known(Answer::Identity));
    }
    Ok(Decoded::Wish(Wish::DestroyFilesystems(ask.on.uuid, filesystems)))
}

/// A path that is not a filesystem of this pool is refused: there must be one to copy.
pub(in crate::bus::table) fn snapshot_filesystem(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (path, name): (Path<'static>, String) = ask.args.all()?;
    let found = ask.tree.filesystem_at(&path).filter(|fs| fs.view.pool == ask.on.uuid);
    let origin = found.ok_or_else(|| Refusal::NoFilesystemAt(path.to_string()))?.view.record.uuid;
    Ok(Decoded::Wish(Wish::SnapshotFilesystem(ask.on.uuid, origin, Name::try_from(&*name).map_err(Refusal::from)?)))
}

pub(in crate::bus::table) fn metadata(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (current,): (bool,) = ask.args.all()?;
    Ok(Decoded::Wish(Wish::Metadata(ask.on.uuid, current)))
}

/// A filesystem's record is changed and saved as one, so whether the current one is asked for makes no difference.
pub(in crate::bus::table) fn filesystem_metadata(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (name, _current): ((bool, String), bool) = ask.args.all()?;
    Ok(Decoded::Wish(Wish::FilesystemMetadata(ask.on.uuid, optional(name))))
}

pub(in crate::bus::table) fn add_data_devs(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::AddDataDevices(ask.on.uuid, devices(ask)?)))
}

pub(in crate::bus::table) fn add_cache_devs(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::AddCacheDevices(ask.on.uuid, devices(ask)?)))
}

/// Until r4 a pool that is encrypted gets no cache.
pub(in crate::bus::table) fn init_cache_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let decoded = init_cache_r5(ask)?;
    if ask.on.encryption.is_some() {
        return Err(Refusal::CacheOfEncrypted { name: ask.on.name.clone() }.into());
    }
    Ok(decoded)
}

pub(in crate::bus::table) fn init_cache_r5(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::InitCache(ask.on.uuid, devices(ask)?)))
}

/// The one argument is a list of paths.
fn devices(ask: &Asked<'_>) -> Result<Vec<DevicePath>, CallFault> {
    let (texts,): (Vec<String>,) = ask.args.all()?;
    Ok(device_paths(&texts)?)
}

/// Whether the pool has the device, and whether that has grown, is for the pool's home to find out.
pub(in crate::bus::table) fn grow_physical_device(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text,): (String,) = ask.args.all()?;
    let device: DevUuid = text.parse().map_err(|_| Refusal::Uuid { tried: text })?;
    Ok(Decoded::Wish(Wish::GrowDevice(ask.on.uuid, device)))
}

pub(in crate::bus::table) fn set_name(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (text,): (String,) = ask.args.all()?;
    Ok(Decoded::Wish(Wish::SetPoolName(ask.on.uuid, name(&text)?)))
}

pub(in crate::bus::table) fn set_overprovisioning(pool: &PoolView, args: &Args) -> Result<Wish, CallFault> {
    Ok(Wish::SetOverprovisioning(pool.uuid, args.value()?))
}

pub(in crate::bus::table) fn set_fs_limit(pool: &PoolView, args: &Args) -> Result<Wish, CallFault> {
    Ok(Wish::SetFsLimit(pool.uuid, args.value()?))
}
