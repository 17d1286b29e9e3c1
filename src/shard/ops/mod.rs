//! Operations: each reads top to bottom as claim, plan, do, commit, or unwind what was done.
//!
//! Invariant: after every await of an operation the power may fail, and the next start finds the
//! operation's whole effect or none of it. The step at which an operation becomes real is named
//! `commit point` in each file.

pub mod add_devices;
pub mod adopted;
pub mod backstop;
pub mod create_filesystems;
pub mod create_pool;
pub mod destroy_filesystems;
pub mod destroy_pool;
pub mod encryption;
pub mod extend;
pub mod format;
pub mod fs_limit;
pub mod gather;
pub mod grow_device;
pub mod grow_filesystem;
pub mod headers;
pub mod heal;
pub mod intents;
pub mod keys;
pub mod look;
pub mod metadata;
pub mod new_uuid;
pub mod records;
pub mod revert;
pub mod save;
pub mod set;
pub mod set_name;
pub mod snapshot_filesystem;
pub mod stack;
pub mod start_pool;
pub mod stop_pool;
pub mod thin_meta;
pub mod thin_pool;
pub mod watch;

use std::rc::Rc;

use crate::descriptors::Descriptors;
use crate::error::Failure;
use crate::message::{Answer, KeyWish, Wish};
use crate::shard::Shard;
use crate::sys::Sys;

/// What every operation comes to.
pub type Outcome = Result<Answer, Failure>;

/// Carries out a wish. The caller holds the place in the pool's queue. Descriptors that the operation does not
/// read are closed.
pub async fn carry<S: Sys>(shard: &Rc<Shard<S>>, wish: Wish, descriptors: Descriptors) -> Outcome {
    match wish {
        Wish::CreatePool { pool, name, devices, integrity, encryption } => {
            create_pool::run(shard, create_pool::Asked { pool, name, devices, integrity, encryption }).await
        }
        Wish::DestroyPool(pool) => destroy_pool::run(shard, pool).await,
        Wish::StartPool { pool, unlock, remove_cache } => start_pool::run(shard, pool, unlock, remove_cache).await,
        Wish::StopPool(pool) => stop_pool::run(shard, pool).await,
        Wish::CreateFilesystems(pool, specs) => create_filesystems::run(shard, pool, specs).await,
        Wish::DestroyFilesystems(pool, named) => destroy_filesystems::run(shard, pool, named).await,
        Wish::AddDataDevices(pool, devices) => add_devices::data(shard, pool, devices).await,
        Wish::AddCacheDevices(pool, devices) => add_devices::more_cache(shard, pool, devices).await,
        Wish::InitCache(pool, devices) => add_devices::cache(shard, pool, devices).await,
        Wish::GrowDevice(pool, device) => grow_device::run(shard, pool, device).await,
        Wish::SnapshotFilesystem(pool, origin, name) => snapshot_filesystem::run(shard, pool, origin, name).await,
        Wish::SetFilesystemName(pool, filesystem, name) => set_name::filesystem(shard, pool, filesystem, name).await,
        Wish::SetPoolName(pool, name) => set_name::pool(shard, pool, name).await,
        Wish::SetSizeLimit(pool, filesystem, limit) => set::size_limit(shard, pool, filesystem, limit).await,
        Wish::SetMerge(pool, filesystem, merge) => set::merge(shard, pool, filesystem, merge).await,
        Wish::SetUserInfo(pool, device, info) => set::user_info(shard, pool, device, info).await,
        Wish::SetOverprovisioning(pool, allowed) => set::overprovisioning(shard, pool, allowed).await,
        Wish::SetFsLimit(pool, limit) => fs_limit::run(shard, pool, limit).await,
        Wish::Metadata(pool, current) => metadata::pool(shard, pool, current).await,
        Wish::FilesystemMetadata(pool, name) => metadata::filesystems(shard, pool, name.as_deref()),
        Wish::ChangeTokens(pool, change) => encryption::change(shard, pool, &change).await,
        Wish::EncryptPool(pool, tokens) => encryption::encrypt(shard, pool, tokens).await,
        Wish::ReencryptPool(pool) => encryption::reencrypt(shard, pool).await,
        Wish::DecryptPool(pool) => encryption::decrypt(shard, pool).await,
        Wish::Keys(wish) => keys::run(shard, wish, descriptors).await,
    }
}

/// The name of the task that carries out a wish, for the turn recorder.
pub const fn task(wish: &Wish) -> &'static str {
    match wish {
        Wish::CreatePool { .. } => "create pool",
        Wish::DestroyPool(_) => "destroy pool",
        Wish::StartPool { .. } => "start pool",
        Wish::StopPool(_) => "stop pool",
        Wish::CreateFilesystems(..) => "create filesystems",
        Wish::DestroyFilesystems(..) => "destroy filesystems",
        Wish::AddDataDevices(..) => "add data devices",
        Wish::AddCacheDevices(..) => "add cache devices",
        Wish::InitCache(..) => "init cache",
        Wish::GrowDevice(..) => "grow device",
        Wish::SnapshotFilesystem(..) => "snapshot filesystem",
        Wish::SetFilesystemName(..) => "rename filesystem",
        Wish::SetPoolName(..) => "rename pool",
        Wish::SetSizeLimit(..) => "set size limit",
        Wish::SetMerge(..) => "set merge",
        Wish::SetUserInfo(..) => "set user info",
        Wish::SetOverprovisioning(..) => "set overprovisioning",
        Wish::SetFsLimit(..) => "set filesystem limit",
        Wish::Metadata(..) => "pool metadata",
        Wish::FilesystemMetadata(..) => "filesystem metadata",
        Wish::ChangeTokens(..) => "change tokens",
        Wish::EncryptPool(..) => "encrypt pool",
        Wish::ReencryptPool(_) => "reencrypt pool",
        Wish::DecryptPool(_) => "decrypt pool",
        Wish::Keys(KeyWish::List) => "list keys",
        Wish::Keys(KeyWish::Set(..)) => "set key",
        Wish::Keys(KeyWish::Unset(_)) => "unset key",
    }
}

/// A wish in words, for the log.
pub fn words(wish: &Wish) -> String {
    let detail = match wish {
        Wish::CreatePool { name, devices, .. } => format!(" name={:?} devices={}", name.as_str(), devices.len()),
        Wish::CreateFilesystems(_, specs) => format!(" count={}", specs.len()),
        Wish::DestroyFilesystems(_, named) => format!(" count={}", named.len()),
        Wish::AddDataDevices(_, devices) | Wish::AddCacheDevices(_, devices) | Wish::InitCache(_, devices) => {
            format!(" devices={}", devices.len())
        }
        Wish::GrowDevice(_, device) => format!(" device={device}"),
        Wish::SnapshotFilesystem(_, origin, name) => format!(" origin={origin} name={:?}", name.as_str()),
        Wish::SetFilesystemName(_, filesystem, name) => format!(" filesystem={filesystem} name={:?}", name.as_str()),
        Wish::SetPoolName(_, name) => format!(" name={:?}", name.as_str()),
        Wish::SetFsLimit(_, limit) => format!(" limit={limit}"),
        Wish::EncryptPool(_, tokens) => format!(" tokens={}", tokens.count()),
        Wish::Keys(KeyWish::Set(key, _) | KeyWish::Unset(key)) => format!(" key={:?}", key.as_str()),
        Wish::DestroyPool(_)
        | Wish::StartPool { .. }
        | Wish::StopPool(_)
        | Wish::SetSizeLimit(..)
        | Wish::SetMerge(..)
        | Wish::SetUserInfo(..)
        | Wish::SetOverprovisioning(..)
        | Wish::Metadata(..)
        | Wish::FilesystemMetadata(..)
        | Wish::ChangeTokens(..)
        | Wish::ReencryptPool(_)
        | Wish::DecryptPool(_)
        | Wish::Keys(KeyWish::List) => String::new(),
    };
    format!("what={:?} pool={}{detail}", task(wish), wish.pool())
}
