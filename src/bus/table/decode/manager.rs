//! Calls of the manager: pools by name, by UUID and by path.
//!
//! Start and stop are answered here where the tree already tells the answer and no call about the
//! pool is on its way; everything else is for the pool's home to decide.

use dbus::Path;

use crate::bus::facts::ManagerFacts;
use crate::bus::report;
use crate::bus::table::decode::encryption::{Clevis, Key, OldClevis, OldKey, old_tokens, tokens};
use crate::bus::table::decode::{Ask, CallFault, Decoded, optional};
use crate::bus::tree::Tree;
use crate::error::Refusal;
use crate::limits::DEVICES_IN_REQUEST_MAX;
use crate::message::{Answer, Wish};
use crate::model::device::DevicePath;
use crate::model::ids::PoolUuid;
use crate::model::name::Name;
use crate::model::pool::{IntegritySpec, StoppedPoolView, TagSpec};
use crate::model::token::Tokens;
use crate::units::Bytes;

type Asked<'a> = Ask<'a, ManagerFacts>;
type Journal = (bool, u64);
type Unlock = (bool, (bool, u32));

/// The redundancy is ignored, whatever it is.
pub(in crate::bus::table) fn create_pool_r0(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    type Shape = (String, (bool, u16), Vec<String>, OldKey, OldClevis);
    let (name, _redundancy, devices, key, clevis): Shape = ask.args.all()?;
    create_pool(ask, &name, &devices, old_tokens(key, clevis)?, Ok(IntegritySpec::default()))
}

pub(in crate::bus::table) fn create_pool_r5(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (name, devices, key, clevis): (String, Vec<String>, OldKey, OldClevis) = ask.args.all()?;
    create_pool(ask, &name, &devices, old_tokens(key, clevis)?, Ok(IntegritySpec::default()))
}

pub(in crate::bus::table) fn create_pool_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    type Shape = (String, Vec<String>, Vec<Key>, Vec<Clevis>, Journal, (bool, String), (bool, bool));
    let (name, devices, keys, clevis, journal, tag, superblock): Shape = ask.args.all()?;
    let encrypted = !keys.is_empty() || !clevis.is_empty();
    let tokens = if encrypted { Some(tokens(keys, clevis)?) } else { None };
    let integrity = integrity(optional(journal), optional(tag), optional(superblock));
    create_pool(ask, &name, &devices, tokens, integrity)
}

fn create_pool(
    ask: &Asked<'_>,
    name: &str,
    devices: &[String],
    encryption: Option<Tokens>,
    integrity: Result<IntegritySpec, Refusal>,
) -> Result<Decoded, CallFault> {
    let name = Name::try_from(name).map_err(Refusal::Name)?;
    let devices = device_paths(devices)?;
    let integrity = integrity?;
    let there = &ask.tree.manager().keys;
    if let Some((_, key)) = encryption.iter().flat_map(Tokens::keys).find(|(_, key)| !there.contains(*key)) {
        return Err(Refusal::NoKey(key.clone()).into());
    }
    let pool = PoolUuid::from_random((ask.random)());
    Ok(Decoded::Wish(Wish::CreatePool { pool, name, devices, integrity, encryption }))
}

/// What is not said has its default.
fn integrity(journal: Option<u64>, tag: Option<String>, superblock: Option<bool>) -> Result<IntegritySpec, Refusal> {
    let default = IntegritySpec::default();
    let tag = match tag {
        None => default.tag,
        Some(text) => [TagSpec::B0, TagSpec::B32, TagSpec::B512]
            .into_iter()
            .find(|tag| tag.as_str() == text)
            .ok_or(Refusal::TagSpec { tried: text })?,
    };
    let journal = match journal {
        None => default.journal,
        Some(bytes) if bytes.is_multiple_of(4096) => {
            Bytes(u128::from(bytes)).sectors().expect("a multiple of 4096 is a whole number of sectors")
        }
        Some(bytes) => return Err(Refusal::Journal(bytes)),
    };
    Ok(IntegritySpec { tag, journal, superblock: superblock.unwrap_or(default.superblock) })
}

/// Each path once, in the order of the request; if any is relative, all of those are named.
pub(super) fn device_paths(texts: &[String]) -> Result<Vec<DevicePath>, Refusal> {
    if texts.len() > DEVICES_IN_REQUEST_MAX {
        return Err(Refusal::TooManyDevices { asked: texts.len(), max: DEVICES_IN_REQUEST_MAX });
    }
    let mut relative = Vec::new();
    let mut paths = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for text in texts {
        match DevicePath::try_from(text.as_str()) {
            Ok(path) if seen.insert(path.clone()) => paths.push(path),
            Ok(_again) => {}
            Err(fault) => relative.push(fault),
        }
    }
    if relative.is_empty() { Ok(paths) } else { Err(Refusal::Paths(relative)) }
}

pub(in crate::bus::table) fn destroy_pool(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::DestroyPool(pool_at(ask)?)))
}

/// The one argument is the path of a running pool.
fn pool_at(ask: &Asked<'_>) -> Result<PoolUuid, CallFault> {
    let (path,): (Path<'static>,) = ask.args.all()?;
    let pool = ask.tree.pool_at(&path).ok_or_else(|| Refusal::NoPoolAt(path.to_string()))?;
    Ok(pool.uuid)
}

pub(in crate::bus::table) fn start_pool_r2(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (id, unlock): (String, (bool, String)) = ask.args.all()?;
    start_pool(ask, &id, "uuid", Unlocking::by_method(old_unlock(unlock)?), false)
}

pub(in crate::bus::table) fn start_pool_r4(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (id, id_type, unlock): (String, String, (bool, String)) = ask.args.all()?;
    start_pool(ask, &id, &id_type, Unlocking::by_method(old_unlock(unlock)?), false)
}

pub(in crate::bus::table) fn start_pool_r8(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (id, id_type, unlock, key): (String, String, Unlock, (bool, u32)) = ask.args.all()?;
    let passphrase = ask.args.has_descriptor(key)?;
    start_pool(ask, &id, &id_type, Unlocking { method: unlock.0, passphrase }, false)
}

pub(in crate::bus::table) fn start_pool_r9(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    type Shape = (String, String, Unlock, (bool, u32), bool);
    let (id, id_type, unlock, key, remove_cache): Shape = ask.args.all()?;
    let passphrase = ask.args.has_descriptor(key)?;
    start_pool(ask, &id, &id_type, Unlocking { method: unlock.0, passphrase }, remove_cache)
}

/// Starting a pool, from the time when there was no other reason to.
pub(in crate::bus::table) fn unlock_pool(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (id, method): (String, String) = ask.args.all()?;
    start_pool(ask, &id, "uuid", Unlocking::by_method(old_unlock((true, method))?), false)
}

/// What a request to start brings for unlocking. Which method and slot is not looked at: the machine that
/// encrypts opens a pool with any.
#[derive(Clone, Copy)]
struct Unlocking {
    method: bool,
    passphrase: bool,
}

impl Unlocking {
    const fn by_method(method: bool) -> Self {
        Self { method, passphrase: false }
    }
}

/// An unlock method by name. Some clients write it in lower case; an absent one may be any text.
fn old_unlock((present, method): (bool, String)) -> Result<bool, Refusal> {
    let known = ["any", "clevis", "keyring"].iter().any(|name| method.eq_ignore_ascii_case(name));
    if present && !known {
        return Err(Refusal::UnlockMethod { tried: method });
    }
    Ok(present)
}

fn start_pool(
    ask: &Asked<'_>,
    id: &str,
    id_type: &str,
    with: Unlocking,
    remove_cache: bool,
) -> Result<Decoded, CallFault> {
    let unlock = with.method;
    let wish = |pool| Ok(Decoded::Wish(Wish::StartPool { pool, unlock, remove_cache }));
    let found = find(ask.tree, id, id_type)?;
    match found {
        Found::Running(pool) | Found::Stopped(pool, _) if with.passphrase && !unlock => {
            let encrypted = ask.tree.pool(pool).is_some_and(|view| view.encryption.is_some());
            let alone = Refusal::PassphraseAlone { pool };
            if encrypted { Ok(Decoded::Known(Answer::Identity)) } else { Err(alone.into()) }
        }
        // Calls about it are on their way: only its home knows what it will be when they are done.
        Found::Running(pool) | Found::Stopped(pool, _) if (ask.busy)(pool) => wish(pool),
        Found::Running(pool) if unlock && ask.tree.pool(pool).is_some_and(|view| view.encryption.is_none()) => {
            Err(Refusal::NotEncrypted { pool }.into())
        }
        Found::Running(_) => Ok(Decoded::Known(Answer::Identity)),
        Found::Stopped(pool, view) if unlock && encrypted(view) == Some(false) => {
            Err(Refusal::NotEncrypted { pool }.into())
        }
        Found::Stopped(pool, _) => wish(pool),
    }
}

/// `None` where that could not be read.
fn encrypted(view: &StoppedPoolView) -> Option<bool> {
    view.features.as_ref().map(|set| set.get("encryption").copied().unwrap_or(false))
}

pub(in crate::bus::table) fn stop_pool_r2(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Wish(Wish::StopPool(pool_at(ask)?)))
}

pub(in crate::bus::table) fn stop_pool_r6(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (id, id_type): (String, String) = ask.args.all()?;
    match find(ask.tree, &id, &id_type)? {
        Found::Stopped(pool, _) if !(ask.busy)(pool) => Ok(Decoded::Known(Answer::Identity)),
        Found::Running(pool) | Found::Stopped(pool, _) => Ok(Decoded::Wish(Wish::StopPool(pool))),
    }
}

pub(in crate::bus::table) fn engine_state_report(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    Ok(Decoded::Known(Answer::Text(report::engine_state(ask.tree))))
}

pub(in crate::bus::table) fn get_report(ask: &Asked<'_>) -> Result<Decoded, CallFault> {
    let (name,): (String,) = ask.args.all()?;
    if name != "stopped_pools" {
        return Err(Refusal::Report { tried: name }.into());
    }
    Ok(Decoded::Known(Answer::Text(report::stopped_pools(ask.tree))))
}

/// A pool that a client named.
#[derive(Clone, Copy)]
enum Found<'a> {
    Running(PoolUuid),
    Stopped(PoolUuid, &'a StoppedPoolView),
}

fn find<'a>(tree: &'a Tree, id: &str, id_type: &str) -> Result<Found<'a>, Refusal> {
    match id_type {
        "uuid" => {
            let pool: PoolUuid = id.parse().map_err(|_| Refusal::Uuid { tried: id.to_owned() })?;
            if tree.pool(pool).is_some() {
                return Ok(Found::Running(pool));
            }
            let stopped = tree.manager().stopped.get(&pool).ok_or(Refusal::NoPool(pool))?;
            Ok(Found::Stopped(pool, stopped))
        }
        "name" => find_named(tree, id),
        other => Err(Refusal::IdType { tried: other.to_owned() }),
    }
}

/// A running pool first, since names of those are unique; then the stopped ones, where they may not be.
fn find_named<'a>(tree: &'a Tree, name: &str) -> Result<Found<'a>, Refusal> {
    if let Some(pool) = tree.pool_named(name) {
        return Ok(Found::Running(pool.uuid));
    }
    let has_name = |pool: &&StoppedPoolView| pool.name.as_ref().is_some_and(|own| own.as_str() == name);
    let named: Vec<_> = tree.manager().stopped.values().filter(has_name).collect();
    match named[..] {
        [] => Err(Refusal::NoPoolNamed(name.to_owned())),
        [one] => Ok(Found::Stopped(one.uuid, one)),
        [..] => {
            let pools = named.iter().map(|pool| pool.uuid).collect();
            Err(Refusal::PoolNameAmbiguous { name: name.to_owned(), pools })
        }
    }
}
