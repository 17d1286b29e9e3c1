//! From the `Answer` of a shard to the first value of a reply.
//!
//! Invariant: `Identity` gives the neutral value of each shape. It stands in replies that say
//! "nothing had to change" and in all that carry an error text, so one function serves both.

use uuid::Uuid;

use crate::bus::tree::Tree;
use crate::bus::value::Value;
use crate::message::Answer;
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::token::KeyChange;

/// What a reply is made of.
pub struct Replying<'a> {
    /// All objects, with the effects of the call.
    pub tree: &'a Tree,
    /// What the call was about: a device or filesystem, else the pool.
    pub subject: Uuid,
    /// How it ended.
    pub answer: &'a Answer,
}

impl Replying<'_> {
    /// The path of a pool; `/` where it is gone again.
    fn pool(&self, pool: PoolUuid) -> Value {
        Value::Path(self.tree.pool_path(pool).map_or_else(|| "/".to_owned(), |path| path.to_string()))
    }

    fn devices(&self, pool: PoolUuid, devices: &[DevUuid]) -> Value {
        let paths = devices.iter().filter_map(|device| self.tree.device_path(pool, *device));
        Value::Array("o", paths.map(|path| path.value()).collect())
    }

    fn filesystems(&self, pool: PoolUuid, filesystems: &[FsUuid]) -> Value {
        let paths = filesystems.iter().filter_map(|fs| self.tree.filesystem_path(pool, *fs));
        Value::Array("o", paths.map(|path| path.value()).collect())
    }
}

/// `(b…)`: whether anything changed, and what.
fn changed(changed: bool, what: Value) -> Value {
    Value::Struct(vec![Value::Flag(changed), what])
}

fn nowhere() -> Value {
    Value::Path("/".to_owned())
}

/// `b`: whether anything changed.
pub(super) fn done(reply: &Replying<'_>) -> Value {
    Value::Flag(*reply.answer == Answer::Set)
}

/// `(bb)`: whether the key has another value than before, and whether that was there before.
pub(super) fn key_set(reply: &Replying<'_>) -> Value {
    let Answer::KeySet(change) = reply.answer else {
        return changed(false, Value::Flag(false));
    };
    changed(*change != KeyChange::Same, Value::Flag(*change == KeyChange::Replaced))
}

/// `as`: the descriptions.
pub(super) fn listed_keys(reply: &Replying<'_>) -> Value {
    let Answer::Keys(keys) = reply.answer else {
        return Value::Array("s", Vec::new());
    };
    Value::Array("s", keys.iter().map(|key| Value::text(key.as_str())).collect())
}

/// `(bas)`: the UUIDs of the devices of a pool that was started.
pub(super) fn unlocked_pool(reply: &Replying<'_>) -> Value {
    let Answer::PoolStarted(_, devices, _) = reply.answer else {
        return changed(false, Value::Array("s", Vec::new()));
    };
    changed(true, Value::Array("s", devices.iter().map(|device| Value::text(device.simple())).collect()))
}

/// `(b(oao))`: pool, data devices.
pub(super) fn created_pool(reply: &Replying<'_>) -> Value {
    let Answer::PoolCreated(pool, devices) = reply.answer else {
        return changed(false, Value::Struct(vec![nowhere(), Value::Array("o", Vec::new())]));
    };
    changed(true, Value::Struct(vec![reply.pool(*pool), reply.devices(*pool, devices)]))
}

/// `(bs)`: the UUID with hyphens, which only this reply has.
pub(super) fn destroyed_pool(reply: &Replying<'_>) -> Value {
    let Answer::PoolDestroyed(pool) = reply.answer else {
        return changed(false, Value::text(""));
    };
    changed(true, Value::text(pool))
}

/// `(b(oaoao))`: pool, devices, filesystems; in this order, though paths are numbered in the other.
pub(super) fn started_pool(reply: &Replying<'_>) -> Value {
    let Answer::PoolStarted(pool, devices, filesystems) = reply.answer else {
        let none = || Value::Array("o", Vec::new());
        return changed(false, Value::Struct(vec![nowhere(), none(), none()]));
    };
    let paths = vec![reply.pool(*pool), reply.devices(*pool, devices), reply.filesystems(*pool, filesystems)];
    changed(true, Value::Struct(paths))
}

/// `(bs)`: the UUID without hyphens.
pub(super) fn stopped_pool(reply: &Replying<'_>) -> Value {
    let Answer::PoolStopped(pool) = reply.answer else {
        return changed(false, Value::text(""));
    };
    changed(true, Value::text(pool.simple()))
}

/// `(ba(os))`: path and name of each.
pub(super) fn created_filesystems(reply: &Replying<'_>) -> Value {
    let Answer::FilesystemsCreated(filesystems) = reply.answer else {
        return changed(false, Value::Array("(os)", Vec::new()));
    };
    let pool = PoolUuid(reply.subject);
    let pairs = filesystems.iter().filter_map(|(uuid, name)| {
        let path = reply.tree.filesystem_path(pool, *uuid)?;
        Some(Value::Struct(vec![path.value(), Value::text(name)]))
    });
    changed(true, Value::Array("(os)", pairs.collect()))
}

/// `(bas)`: their UUIDs.
pub(super) fn destroyed_filesystems(reply: &Replying<'_>) -> Value {
    let Answer::FilesystemsDestroyed(filesystems) = reply.answer else {
        return changed(false, Value::Array("s", Vec::new()));
    };
    let uuids = filesystems.iter().map(|uuid| Value::text(uuid.simple()));
    changed(true, Value::Array("s", uuids.collect()))
}

/// `(bao)`: the paths of those that are new.
pub(super) fn added_devices(reply: &Replying<'_>) -> Value {
    let Answer::DevicesAdded(devices) = reply.answer else {
        return changed(false, Value::Array("o", Vec::new()));
    };
    changed(true, reply.devices(PoolUuid(reply.subject), devices))
}

/// `b`: whether anything changed.
pub(super) fn is_changed(reply: &Replying<'_>) -> Value {
    Value::Flag(*reply.answer == Answer::Set)
}

/// `(bo)`: the path of the snapshot.
pub(super) fn snapshotted_filesystem(reply: &Replying<'_>) -> Value {
    let Answer::FilesystemSnapshotted(snapshot) = reply.answer else {
        return changed(false, nowhere());
    };
    let path = reply.tree.filesystem_path(PoolUuid(reply.subject), *snapshot);
    changed(true, path.map_or_else(nowhere, |path| path.value()))
}

/// `s`: what was asked for.
pub(super) fn text(reply: &Replying<'_>) -> Value {
    let Answer::Text(text) = reply.answer else {
        return Value::text("");
    };
    Value::text(text)
}

/// `(bs)`: the UUID without hyphens; an empty text where nothing changed.
pub(super) fn renamed_pool(reply: &Replying<'_>) -> Value {
    let set = *reply.answer == Answer::Set;
    changed(set, Value::text(if set { PoolUuid(reply.subject).simple() } else { String::new() }))
}

/// `(bs)`: the UUID of the filesystem or device; 32 zeroes where nothing changed.
pub(super) fn changed_subject(reply: &Replying<'_>) -> Value {
    let set = *reply.answer == Answer::Set;
    changed(set, Value::text(if set { reply.subject } else { Uuid::nil() }.simple()))
}
