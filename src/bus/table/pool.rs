//! Rows of `org.storage.stratis3.pool`.
//!
//! Quirk kept out: client descriptions of r7 exist that list `MetadataVersion`; no daemon serves
//! that, and neither do we.

use crate::bus::table::decode::pool::*;
use crate::bus::table::reply::{
    added_devices, created_filesystems, destroyed_filesystems, is_changed, renamed_pool, snapshotted_filesystem,
};
use crate::bus::table::{
    ALL, Const, Decode, False, Family, NotServed, Served, True, method, property, property_rw, since, until,
};
use crate::bus::value::Value;
use crate::model::pool::PoolView;

/// A running pool.
#[rustfmt::skip]
pub static POOL: Family<PoolView> = Family {
    interface: "org.storage.stratis3.pool",
    methods: &[
        method(ALL, "AddCacheDevs", "devices:as", "results:(bao) return_code:q return_string:s", Served(add_cache_devs, added_devices)),
        method(ALL, "AddDataDevs", "devices:as", "results:(bao) return_code:q return_string:s", Served(add_data_devs, added_devices)),
        method(until(7), "BindClevis", "pin:s json:s", "results:b return_code:q return_string:s", NotServed),
        method(since(8), "BindClevis", "pin:s json:s token_slot:(bu)", "results:b return_code:q return_string:s", NotServed),
        method(until(7), "BindKeyring", "key_desc:s", "results:b return_code:q return_string:s", NotServed),
        method(since(8), "BindKeyring", "key_desc:s token_slot:(bu)", "results:b return_code:q return_string:s", NotServed),
        method(until(5), "CreateFilesystems", "specs:a(s(bs))", "results:(ba(os)) return_code:q return_string:s", Served(create_filesystems_r0, created_filesystems)),
        method(since(6), "CreateFilesystems", "specs:a(s(bs)(bs))", "results:(ba(os)) return_code:q return_string:s", Served(create_filesystems_r6, created_filesystems)),
        method(since(9), "DecryptPool", "", "results:b return_code:q return_string:s", NotServed),
        method(ALL, "DestroyFilesystems", "filesystems:ao", "results:(bas) return_code:q return_string:s", Served(destroy_filesystems, destroyed_filesystems)),
        method(since(9), "EncryptPool", "key_descs:a((bu)s) clevis_infos:a((bu)ss)", "results:b return_code:q return_string:s", NotServed),
        method(since(7), "FilesystemMetadata", "fs_name:(bs) current:b", "results:s return_code:q return_string:s", NotServed),
        method(since(3), "GrowPhysicalDevice", "dev:s", "results:b return_code:q return_string:s", Served(grow_physical_device, is_changed)),
        method(until(4), "InitCache", "devices:as", "results:(bao) return_code:q return_string:s", Served(init_cache_r0, added_devices)),
        method(since(5), "InitCache", "devices:as", "results:(bao) return_code:q return_string:s", Served(init_cache_r5, added_devices)),
        method(since(7), "Metadata", "current:b", "results:s return_code:q return_string:s", NotServed),
        method(until(7), "RebindClevis", "", "results:b return_code:q return_string:s", NotServed),
        method(since(8), "RebindClevis", "token_slot:(bu)", "results:b return_code:q return_string:s", NotServed),
        method(until(7), "RebindKeyring", "key_desc:s", "results:b return_code:q return_string:s", NotServed),
        method(since(8), "RebindKeyring", "key_desc:s token_slot:(bu)", "results:b return_code:q return_string:s", NotServed),
        method(since(9), "ReencryptPool", "", "results:b return_code:q return_string:s", NotServed),
        method(ALL, "SetName", "name:s", "result:(bs) return_code:q return_string:s", Served(set_name, renamed_pool)),
        method(ALL, "SnapshotFilesystem", "origin:o snapshot_name:s", "result:(bo) return_code:q return_string:s", Served(snapshot_filesystem, snapshotted_filesystem)),
        method(until(7), "UnbindClevis", "", "results:b return_code:q return_string:s", NotServed),
        method(since(8), "UnbindClevis", "token_slot:(bu)", "results:b return_code:q return_string:s", NotServed),
        method(until(7), "UnbindKeyring", "", "results:b return_code:q return_string:s", NotServed),
        method(since(8), "UnbindKeyring", "token_slot:(bu)", "results:b return_code:q return_string:s", NotServed),
    ],
    // Encryption is not served yet, so what is read about it is what an unencrypted pool says.
    properties: &[
        property(ALL, "AllocatedSize", "s", True, |pool| Value::text(pool.allocated.0)),
        property(ALL, "AvailableActions", "s", True, |pool| Value::text(pool.availability.as_str())),
        property(until(7), "ClevisInfo", "(b(b(ss)))", True, |_| consistent(absent(vec![Value::text(""), Value::text("")]))),
        property(since(8), "ClevisInfos", "v", True, |_| Value::text(UNENCRYPTED)),
        property(until(8), "Encrypted", "b", Const, |_| Value::Flag(false)),
        property(since(9), "Encrypted", "b", True, |_| Value::Flag(false)),
        property(since(8), "FreeTokenSlots", "(by)", True, |_| Value::Struct(vec![Value::Flag(false), Value::Byte(0)])),
        property_rw(since(1), "FsLimit", "t", True, |pool| Value::U64(pool.fs_limit), Decode(set_fs_limit)),
        property(ALL, "HasCache", "b", True, |pool| Value::Flag(pool.has_cache)),
        property(until(7), "KeyDescription", "(b(bs))", True, |_| consistent(Value::optional(None::<&str>, ""))),
        property(since(8), "KeyDescriptions", "v", True, |_| Value::text(UNENCRYPTED)),
        property(since(9), "LastReencryptedTimestamp", "(bs)", True, |_| Value::optional(None::<&str>, "")),
        property(since(8), "MetadataVersion", "t", Const, |pool| Value::U64(u64::from(pool.version.number()))),
        property(ALL, "Name", "s", True, |pool| Value::text(&pool.name)),
        property(since(1), "NoAllocSpace", "b", True, |pool| Value::Flag(pool.no_alloc_space)),
        property_rw(since(1), "Overprovisioning", "b", True, |pool| Value::Flag(pool.overprovisioning), Decode(set_overprovisioning)),
        property(ALL, "TotalPhysicalSize", "s", True, |pool| Value::text(pool.physical_size.0)),
        property(ALL, "TotalPhysicalUsed", "(bs)", True, |pool| Value::optional(pool.physical_used.map(|used| used.0), "0")),
        property(ALL, "Uuid", "s", Const, |pool| Value::text(pool.uuid.simple())),
        property(since(8), "VolumeKeyLoaded", "v", False, |_| Value::Flag(false)),
    ],
};

const UNENCRYPTED: &str = "Unencrypted";

/// `(true, …)`: all devices of the pool agree.
fn consistent(value: Value) -> Value {
    Value::Struct(vec![Value::Flag(true), value])
}

/// `(false, (…))`: there is no such binding.
fn absent(filler: Vec<Value>) -> Value {
    Value::Struct(vec![Value::Flag(false), Value::Struct(filler)])
}
