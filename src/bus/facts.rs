//! What the rows of the table read from: views, and the one thing a view does not know, which is
//! the object path of its pool.
//!
//! Deliberately absent: anything computed. A row computes what it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::bus::value::Value;
use crate::model::device::DeviceView;
use crate::model::filesystem::FilesystemView;
use crate::model::ids::PoolUuid;
use crate::model::pool::StoppedPoolView;
use crate::model::token::KeyDescription;

/// The object that is always there.
pub const TOP: &str = "/org/storage/stratis3";

/// The path of an object below the top one. Numbers are never used twice in a daemon's life.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectPath(pub u64);

impl ObjectPath {
    /// Reads exactly what `Display` writes.
    pub fn parse(path: &str) -> Option<Self> {
        let digits = path.strip_prefix(TOP)?.strip_prefix('/')?;
        let number = digits.parse().ok()?;
        // No signs, no leading zeros: an object has one path.
        (Self(number).to_string() == path).then_some(Self(number))
    }

    /// As a D-Bus value.
    pub fn value(self) -> Value {
        Value::Path(self.to_string())
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{TOP}/{}", self.0)
    }
}

/// What the top object shows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ManagerFacts {
    /// The daemon's version.
    pub version: String,
    /// Every pool that is known and does not run.
    pub stopped: BTreeMap<PoolUuid, StoppedPoolView>,
    /// The descriptions of the keys that clients have set. No property shows them.
    pub keys: BTreeSet<KeyDescription>,
}

/// What a filesystem's object shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilesystemFacts {
    /// Its pool's object.
    pub pool_path: ObjectPath,
    /// The rest.
    pub view: FilesystemView,
}

/// What a device's object shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceFacts {
    /// Its pool's object.
    pub pool_path: ObjectPath,
    /// The rest.
    pub view: DeviceView,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_one_path() {
        assert_eq!(ObjectPath::parse("/org/storage/stratis3/17"), Some(ObjectPath(17)));
        for path in ["", "/", "/org/storage/stratis3", "/org/storage/stratis3/", "/org/storage/stratis3/+1"] {
            assert_eq!(ObjectPath::parse(path), None, "{path}");
        }
        for path in ["/org/storage/stratis3/01", "/org/storage/stratis3/1/2", "/org/storage/stratis31"] {
            assert_eq!(ObjectPath::parse(path), None, "{path}");
        }
    }
}
