//! Rows of `org.storage.stratis3.pool`.
//!
//! Quirk kept out: client descriptions of r7 exist that list `MetadataVersion`; no daemon serves
//! that, and neither do we.

use crate::bus::table::decode::encryption::*;
use crate::bus::table::decode::pool::*;
use crate::bus::table::encryption::{
    clevis_info, clevis_infos, free_slots, key_description, key_descriptions, reencrypted,
};
use crate::bus::table::reply::{
    added_devices, created_filesystems, destroyed_filesystems, done, is_changed, renamed_pool, snapshotted_filesystem,
    text,
};
use crate::bus::table::{ALL, Const, Decode, False, Family, Served, True, method, property, property_rw, since, until};
use crate::bus::value::Value;
use crate::model::pool::PoolView;

/// A running pool.
#[rustfmt::skip]
pub static POOL: Family<PoolView> = Family {
    interface: "org.storage.stratis3.pool",
    methods: &[
        method(ALL, "AddCacheDevs", "devices:as", "results:(bao) return_code:q return_string:s", Served(add_cache_devs, added_devices)),
        method(ALL, "AddDataDevs", "devices:as", "results:(bao) return_code:q return_string:s", Served(add_data_devs, added_devices)),
        method(until(7), "BindClevis", "pin:s json:s", "results:b return_code:q return_string:s", Served(bind_clevis_r0, done)),
        method(since(8), "BindClevis", "pin:s json:s token_slot:(bu)", "results:b return_code:q return_string:s", Served(bind_clevis_r8, done)),
        method(until(7), "BindKeyring", "key_desc:s", "results:b return_code:q return_string:s", Served(bind_keyring_r0, done)),
        method(since(8), "BindKeyring", "key_desc:s token_slot:(bu)", "results:b return_code:q return_string:s", Served(bind_keyring_r8, done)),
        method(until(5), "CreateFilesystems", "specs:a(s(bs))", "results:(ba(os)) return_code:q return_string:s", Served(create_filesystems_r0, created_filesystems)),
        method(since(6), "CreateFilesystems", "specs:a(s(bs)(bs))", "results:(ba(os)) return_code:q return_string:s", Served(create_filesystems_r6, created_filesystems)),
        method(since(9), "DecryptPool", "", "results:b return_code:q return_string:s", Served(decrypt_pool, done)),
        method(ALL, "DestroyFilesystems", "filesystems:ao", "results:(bas) return_code:q return_string:s", Served(destroy_filesystems, destroyed_filesystems)),
        method(since(9), "EncryptPool", "key_descs:a((bu)s) clevis_infos:a((bu)ss)", "results:b return_code:q return_string:s", Served(encrypt_pool, done)),
        method(since(7), "FilesystemMetadata", "fs_name:(bs) current:b", "results:s return_code:q return_string:s", Served(filesystem_metadata, text)),
        method(since(3), "GrowPhysicalDevice", "dev:s", "results:b return_code:q return_string:s", Served(grow_physical_device, is_changed)),
        method(until(4), "InitCache", "devices:as", "results:(bao) return_code:q return_string:s", Served(init_cache_r0, added_devices)),
        method(since(5), "InitCache", "devices:as", "results:(bao) return_code:q return_string:s", Served(init_cache_r5, added_devices)),
        method(since(7), "Metadata", "current:b", "results:s return_code:q return_string:s", Served(metadata, text)),
        method(until(7), "RebindClevis", "", "results:b return_code:q return_string:s", Served(rebind_clevis_r0, done)),
        method(since(8), "RebindClevis", "token_slot:(bu)", "results:b return_code:q return_string:s", Served(rebind_clevis_r8, done)),
        method(until(7), "RebindKeyring", "key_desc:s", "results:b return_code:q return_string:s", Served(rebind_keyring_r0, done)),
        method(since(8), "RebindKeyring", "key_desc:s token_slot:(bu)", "results:b return_code:q return_string:s", Served(rebind_keyring_r8, done)),
        method(since(9), "ReencryptPool", "", "results:b return_code:q return_string:s", Served(reencrypt_pool, done)),
        method(ALL, "SetName", "name:s", "result:(bs) return_code:q return_string:s", Served(set_name, renamed_pool)),
        method(ALL, "SnapshotFilesystem", "origin:o snapshot_name:s", "result:(bo) return_code:q return_string:s", Served(snapshot_filesystem, snapshotted_filesystem)),
        method(until(7), "UnbindClevis", "", "results:b return_code:q return_string:s", Served(unbind_clevis_r0, done)),
        method(since(8), "UnbindClevis", "token_slot:(bu)", "results:b return_code:q return_string:s", Served(unbind_clevis_r8, done)),
        method(until(7), "UnbindKeyring", "", "results:b return_code:q return_string:s", Served(unbind_keyring_r0, done)),
        method(since(8), "UnbindKeyring", "token_slot:(bu)", "results:b return_code:q return_string:s", Served(unbind_keyring_r8, done)),
    ],
    properties: &[
        property(ALL, "AllocatedSize", "s", True, |pool| Value::text(pool.allocated.0)),
        property(ALL, "AvailableActions", "s", True, |pool| Value::text(pool.availability.as_str())),
        property(until(7), "ClevisInfo", "(b(b(ss)))", True, clevis_info),
        property(since(8), "ClevisInfos", "v", True, clevis_infos),
        property(until(8), "Encrypted", "b", Const, |pool| Value::Flag(pool.encryption.is_some())),
        property(since(9), "Encrypted", "b", True, |pool| Value::Flag(pool.encryption.is_some())),
        property(since(8), "FreeTokenSlots", "(by)", True, free_slots),
        property_rw(since(1), "FsLimit", "t", True, |pool| Value::U64(pool.fs_limit), Decode(set_fs_limit)),
        property(ALL, "HasCache", "b", True, |pool| Value::Flag(pool.has_cache)),
        property(until(7), "KeyDescription", "(b(bs))", True, key_description),
        property(since(8), "KeyDescriptions", "v", True, key_descriptions),
        property(since(9), "LastReencryptedTimestamp", "(bs)", True, reencrypted),
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
