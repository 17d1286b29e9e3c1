//! Rows of `org.storage.stratis3.Manager`, which the top object has.
//!
//! Quirk kept out: client descriptions of r7 exist that list `key_fd` for `StartPool`; no daemon
//! serves that, and neither do we.

use std::collections::BTreeMap;

use crate::bus::facts::ManagerFacts;
use crate::bus::table::decode::key::*;
use crate::bus::table::decode::manager::*;
use crate::bus::table::encryption::{clevis_of, key_of};
use crate::bus::table::reply::{
    created_pool, destroyed_pool, done, key_set, listed_keys, started_pool, stopped_pool, text, unlocked_pool,
};
use crate::bus::table::{ALL, Const, Family, Refresh, Served, True, method, only, property, since, until};
use crate::bus::value::Value;
use crate::model::ids::PoolUuid;
use crate::model::pool::{MetadataVersion, StoppedDevice, StoppedPoolView};

/// Creates, destroys, starts and stops pools; keeps keys.
#[rustfmt::skip]
pub static MANAGER: Family<ManagerFacts> = Family {
    interface: "org.storage.stratis3.Manager",
    methods: &[
        method(until(4), "CreatePool", "name:s redundancy:(bq) devices:as key_desc:(bs) clevis_info:(b(ss))", "result:(b(oao)) return_code:q return_string:s", Served(create_pool_r0, created_pool)),
        method(only(5, 7), "CreatePool", "name:s devices:as key_desc:(bs) clevis_info:(b(ss))", "result:(b(oao)) return_code:q return_string:s", Served(create_pool_r5, created_pool)),
        method(since(8), "CreatePool", "name:s devices:as key_desc:a((bu)s) clevis_info:a((bu)ss) journal_size:(bt) tag_spec:(bs) allocate_superblock:(bb)", "result:(b(oao)) return_code:q return_string:s", Served(create_pool_r8, created_pool)),
        method(ALL, "DestroyPool", "pool:o", "result:(bs) return_code:q return_string:s", Served(destroy_pool, destroyed_pool)),
        method(ALL, "EngineStateReport", "", "result:s return_code:q return_string:s", Served(engine_state_report, text)),
        method(ALL, "ListKeys", "", "result:as return_code:q return_string:s", Served(list_keys, listed_keys)),
        method(since(2), "RefreshState", "", "return_code:q return_string:s", Refresh),
        method(ALL, "SetKey", "key_desc:s key_fd:h", "result:(bb) return_code:q return_string:s", Served(set_key, key_set)),
        method(only(2, 3), "StartPool", "pool_uuid:s unlock_method:(bs)", "result:(b(oaoao)) return_code:q return_string:s", Served(start_pool_r2, started_pool)),
        method(only(4, 7), "StartPool", "id:s id_type:s unlock_method:(bs)", "result:(b(oaoao)) return_code:q return_string:s", Served(start_pool_r4, started_pool)),
        method(only(8, 8), "StartPool", "id:s id_type:s unlock_method:(b(bu)) key_fd:(bh)", "result:(b(oaoao)) return_code:q return_string:s", Served(start_pool_r8, started_pool)),
        method(since(9), "StartPool", "id:s id_type:s unlock_method:(b(bu)) key_fd:(bh) remove_cache:b", "result:(b(oaoao)) return_code:q return_string:s", Served(start_pool_r9, started_pool)),
        method(only(2, 5), "StopPool", "pool:o", "result:(bs) return_code:q return_string:s", Served(stop_pool_r2, stopped_pool)),
        method(since(6), "StopPool", "id:s id_type:s", "result:(bs) return_code:q return_string:s", Served(stop_pool_r6, stopped_pool)),
        method(until(1), "UnlockPool", "pool_uuid:s unlock_method:s", "result:(bas) return_code:q return_string:s", Served(unlock_pool, unlocked_pool)),
        method(ALL, "UnsetKey", "key_desc:s", "result:b return_code:q return_string:s", Served(unset_key, done)),
    ],
    properties: &[
        property(until(1), "LockedPools", "a{sa{sv}}", True, |_| Value::Array("{sa{sv}}", Vec::new())),
        property(only(2, 7), "StoppedPools", "a{sa{sv}}", True, |manager| stopped_pools(&manager.stopped, false)),
        property(since(8), "StoppedPools", "a{sa{sv}}", True, |manager| stopped_pools(&manager.stopped, true)),
        property(ALL, "Version", "s", Const, |manager| Value::text(&manager.version)),
    ],
};

fn stopped_pools(all: &BTreeMap<PoolUuid, StoppedPoolView>, features: bool) -> Value {
    let entry = |pool: &StoppedPoolView| {
        Value::Entry(Box::new((Value::text(pool.uuid.simple()), stopped_pool_entry(pool, features))))
    };
    Value::Array("{sa{sv}}", all.values().map(entry).collect())
}

fn stopped_pool_entry(pool: &StoppedPoolView, features: bool) -> Value {
    let mut members = vec![Value::entry("devs", Value::Array("a{ss}", pool.devices.iter().map(device).collect()))];
    if features {
        members.push(Value::entry("features", feature_map(pool.features.as_ref())));
        members.push(Value::entry("metadata_version", version(pool.version)));
    }
    if let Some(tokens) = &pool.tokens {
        let found = |value| Value::Struct(vec![Value::Flag(true), Value::Variant(Box::new(value))]);
        members.push(Value::entry("clevis_info", found(clevis_of(tokens))));
        members.push(Value::entry("key_description", found(key_of(tokens))));
    }
    if let Some(name) = &pool.name {
        members.push(Value::entry("name", Value::text(name)));
    }
    Value::Array("{sv}", members)
}

fn device(device: &StoppedDevice) -> Value {
    let pair = |name: &str, text: Value| Value::Entry(Box::new((Value::text(name), text)));
    let devnode = pair("devnode", Value::text(&device.devnode));
    Value::Array("{ss}", vec![devnode, pair("uuid", Value::text(device.uuid.simple()))])
}

/// Only what is true is in the map; `(false, {})` where the record could not be read.
fn feature_map(features: Option<&BTreeMap<String, bool>>) -> Value {
    let flag = |name: &String| Value::Entry(Box::new((Value::text(name), Value::Flag(true))));
    let set = features.into_iter().flatten().filter(|(_, set)| **set).map(|(name, _)| flag(name)).collect();
    Value::Struct(vec![Value::Flag(features.is_some()), Value::Array("{sb}", set)])
}

fn version(version: Option<MetadataVersion>) -> Value {
    let number = version.map_or(0, MetadataVersion::number);
    Value::Struct(vec![Value::Flag(version.is_some()), Value::U64(u64::from(number))])
}
