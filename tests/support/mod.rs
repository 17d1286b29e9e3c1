//! What the tests of the whole daemon stand on: a bus of their own, the daemon as a child, a client.
//!
//! Invariant: each `Rig` has its own bus, run folder and disks, so tests run side by side; whatever
//! it started or made is gone when it is dropped, also when the test panics.
//!
//! Deliberately absent: sleeping until something is probably ready. Readiness is a line on a pipe
//! (the bus) or a name owned by the right process (the daemon).

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod broker;
pub(crate) mod bus;
pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod disk;
pub(crate) mod introspection;
pub(crate) mod keys;
pub(crate) mod picture;
pub(crate) mod raw;
pub(crate) mod rig;
pub(crate) mod value;

/// The name the daemon owns.
pub(crate) const NAME: &str = "org.storage.stratis3";
/// The top object.
pub(crate) const TOP: &str = "/org/storage/stratis3";
/// Number of interface revisions, r0 to r9.
pub(crate) const REVISIONS: u8 = 10;
/// The standard interface of properties.
pub(crate) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The standard interface of the object list.
pub(crate) const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

/// Bytes in one MiB and one GiB.
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// The name of a Stratis interface: family `Manager`, `Report`, `pool`, `filesystem`, `blockdev`.
pub(crate) fn interface(family: &str, revision: u8) -> String {
    format!("org.storage.stratis3.{family}.r{revision}")
}
