//! Rows of `org.storage.stratis3.blockdev`.
//!
//! `UserInfo` is two properties: until r2 it is read-only, silent, and set by a method.

use crate::bus::facts::DeviceFacts;
use crate::bus::table::decode::blockdev::*;
use crate::bus::table::reply::changed_subject;
use crate::bus::table::{ALL, Const, Decode, False, Family, Served, True, method, property, property_rw, since, until};
use crate::bus::value::Value;
use crate::model::device::Tier;

/// A block device of a running pool.
#[rustfmt::skip]
pub static BLOCKDEV: Family<DeviceFacts> = Family {
    interface: "org.storage.stratis3.blockdev",
    methods: &[
        method(until(2), "SetUserInfo", "id:(bs)", "changed:(bs) return_code:q return_string:s", Served(call_set_user_info, changed_subject)),
    ],
    properties: &[
        property(ALL, "Devnode", "s", Const, |device| Value::text(&device.view.devnode)),
        property(ALL, "HardwareInfo", "(bs)", Const, |device| Value::optional(device.view.hardware.as_ref(), "")),
        property(ALL, "InitializationTime", "t", Const, |device| Value::U64(device.view.initialized)),
        property(since(3), "NewPhysicalSize", "(bs)", True, |device| Value::optional(device.view.new_size.map(|size| size.bytes().0), "")),
        property(ALL, "PhysicalPath", "s", Const, |device| Value::text(&device.view.physical_path)),
        property(ALL, "Pool", "o", Const, |device| device.pool_path.value()),
        property(ALL, "Tier", "q", False, |device| Value::U16(tier(device.view.tier))),
        property(ALL, "TotalPhysicalSize", "s", True, |device| Value::text(device.view.size.bytes().0)),
        property(until(2), "UserInfo", "(bs)", False, |device| Value::optional(device.view.user_info.as_ref(), "")),
        property_rw(since(3), "UserInfo", "(bs)", True, |device| Value::optional(device.view.user_info.as_ref(), ""), Decode(set_user_info)),
        property(ALL, "Uuid", "s", Const, |device| Value::text(device.view.uuid.simple())),
    ],
};

const fn tier(tier: Tier) -> u16 {
    match tier {
        Tier::Data => 0,
        Tier::Cache => 1,
    }
}
