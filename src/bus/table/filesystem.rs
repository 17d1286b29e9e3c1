//! Rows of `org.storage.stratis3.filesystem`.
//!
//! Sizes are decimal bytes in texts, because a number on D-Bus ends at 64 bits and these do not.

use crate::bus::facts::FilesystemFacts;
use crate::bus::table::decode::filesystem::*;
use crate::bus::table::reply::changed_subject;
use crate::bus::table::{ALL, Const, Decode, Family, Invalidates, Served, True, method, property, property_rw, since};
use crate::bus::value::Value;
use crate::model::ids::FsUuid;

/// A filesystem of a running pool.
#[rustfmt::skip]
pub static FILESYSTEM: Family<FilesystemFacts> = Family {
    interface: "org.storage.stratis3.filesystem",
    methods: &[
        method(ALL, "SetName", "name:s", "result:(bs) return_code:q return_string:s", Served(set_name, changed_subject)),
    ],
    properties: &[
        property(ALL, "Created", "s", Const, |fs| Value::text(time(fs.view.record.created))),
        property(ALL, "Devnode", "s", Invalidates, |fs| Value::text(&fs.view.devnode)),
        property_rw(since(7), "MergeScheduled", "b", True, |fs| Value::Flag(fs.view.record.merge), Decode(set_merge_scheduled)),
        property(ALL, "Name", "s", True, |fs| Value::text(&fs.view.record.name)),
        property(since(7), "Origin", "(bs)", True, |fs| Value::optional(fs.view.record.origin.map(FsUuid::simple), NIL)),
        property(ALL, "Pool", "o", Const, |fs| fs.pool_path.value()),
        property(ALL, "Size", "s", True, |fs| Value::text(fs.view.record.size.bytes().0)),
        property_rw(since(6), "SizeLimit", "(bs)", True, |fs| Value::optional(fs.view.record.size_limit.map(|limit| limit.bytes().0), ""), Decode(set_size_limit)),
        property(ALL, "Used", "(bs)", True, |fs| Value::optional(fs.view.used.map(|used| used.0), "")),
        property(ALL, "Uuid", "s", Const, |fs| Value::text(fs.view.record.uuid.simple())),
    ],
};

/// What stands for "no origin": clients expect digits, not an empty text.
const NIL: &str = "00000000000000000000000000000000";

/// RFC 3339 ends with the year 9999; a record from a broken clock must not end the daemon.
const LAST_SECOND: u64 = 253_402_300_799;

/// A time as clients read it.
pub(super) fn time(seconds: u64) -> String {
    let since = std::time::Duration::from_secs(seconds.min(LAST_SECOND));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_seconds_is_a_time() {
        assert_eq!(time(1_795_234_979), "2026-11-21T04:22:59Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
