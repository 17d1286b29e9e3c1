//! What one worker knows for certain about the pools and filesystems it owns.
//!
//! Invariant: only the owner of an object changes it, one operation after the other, so the order of
//! its operations is the order of their replies. Filesystems may live in pools of other workers.
//! Names are used once and so are the keys; a UUID is learned when it is first seen and must stay.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::support::client::{Objects, Properties};
use crate::support::interface;
use crate::support::value::Value;

/// Something that was asked for; pools and filesystems by name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Operation {
    /// A pool of these disks.
    CreatePool { name: String, disks: Vec<String> },
    /// An own pool is taken apart.
    DestroyPool { pool: String },
    /// An own pool is stopped.
    StopPool { pool: String },
    /// An own pool is started.
    StartPool { pool: String },
    /// A filesystem in anybody's pool.
    CreateFilesystem { pool: String, name: String, limit: Option<String> },
    /// Own filesystems of one pool.
    DestroyFilesystems { filesystems: Vec<String> },
    /// An own filesystem's limit.
    SetLimit { filesystem: String, limit: Option<String> },
    /// The tag on the first device of an own pool.
    SetTag { pool: String, tag: Option<String> },
}

impl Operation {
    /// For the statistics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::CreatePool { .. } => "CreatePool",
            Self::DestroyPool { .. } => "DestroyPool",
            Self::StopPool { .. } => "StopPool",
            Self::StartPool { .. } => "StartPool",
            Self::CreateFilesystem { .. } => "CreateFilesystem",
            Self::DestroyFilesystems { .. } => "DestroyFilesystems",
            Self::SetLimit { .. } => "SetLimit",
            Self::SetTag { .. } => "SetTag",
        }
    }
}

/// An own pool.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Pool {
    /// Its UUID, once it was seen.
    pub(crate) uuid: Option<String>,
    /// Its disks, in the order given; the first one carries the tag.
    pub(crate) disks: Vec<String>,
    /// Device UUIDs by disk, once they were seen; all or none.
    pub(crate) devices: BTreeMap<String, String>,
    /// Whether it runs.
    pub(crate) running: bool,
    /// The tag on the first disk.
    pub(crate) tag: Option<String>,
}

/// An own filesystem.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Filesystem {
    /// Its UUID, once it was seen.
    pub(crate) uuid: Option<String>,
    /// The name of its pool.
    pub(crate) pool: String,
    /// Its size limit in bytes.
    pub(crate) limit: Option<String>,
}

/// What one worker owns.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Model {
    /// Pools by name.
    pub(crate) pools: BTreeMap<String, Pool>,
    /// Filesystems by name.
    pub(crate) filesystems: BTreeMap<String, Filesystem>,
    /// Disks of no pool.
    pub(crate) free: Vec<String>,
}

impl Model {
    /// Every kind of operation.
    pub(crate) const KINDS: [&'static str; 8] = [
        "CreatePool",
        "DestroyPool",
        "StopPool",
        "StartPool",
        "CreateFilesystem",
        "DestroyFilesystems",
        "SetLimit",
        "SetTag",
    ];

    /// A pool has come into being.
    pub(crate) fn pool_created(&mut self, name: &str, disks: &[String]) {
        self.free.retain(|disk| !disks.contains(disk));
        let pool = Pool { uuid: None, disks: disks.to_vec(), devices: BTreeMap::new(), running: true, tag: None };
        assert!(self.pools.insert(name.to_owned(), pool).is_none(), "names are used once");
    }

    /// A filesystem has come into being.
    pub(crate) fn filesystem_created(&mut self, name: &str, pool: &str, limit: Option<&str>) {
        let filesystem = Filesystem { uuid: None, pool: pool.to_owned(), limit: limit.map(str::to_owned) };
        assert!(self.filesystems.insert(name.to_owned(), filesystem).is_none(), "names are used once");
    }

    /// A pool is gone, its disks are free.
    pub(crate) fn pool_destroyed(&mut self, name: &str) {
        let pool = self.pools.remove(name).expect("the pool was known");
        self.free.extend(pool.disks);
    }

    /// An own pool.
    pub(crate) fn pool(&mut self, name: &str) -> &mut Pool {
        self.pools.get_mut(name).expect("the pool is known")
    }

    /// An own filesystem.
    pub(crate) fn filesystem(&mut self, name: &str) -> &mut Filesystem {
        self.filesystems.get_mut(name).expect("the filesystem is known")
    }

    /// Takes UUIDs of own things out of an object list; one that was seen before must be the same.
    pub(crate) fn learn(&mut self, seen: &Seen) {
        for (name, pool) in &mut self.pools {
            let Some(found) = seen.pools.get(name) else { continue };
            same(&mut pool.uuid, &found.uuid, name);
            if pool.devices.is_empty() {
                pool.devices = found.devices.iter().map(|(disk, device)| (disk.clone(), device.uuid.clone())).collect();
            }
        }
        for (name, filesystem) in &mut self.filesystems {
            if let Some(found) = seen.filesystems.get(name) {
                same(&mut filesystem.uuid, &found.uuid, name);
            }
        }
    }
}

fn same(known: &mut Option<String>, found: &str, name: &str) {
    let known = known.get_or_insert_with(|| found.to_owned());
    assert_eq!(known, found, "{name} has kept its UUID");
}

/// A running pool in an object list.
#[derive(Clone, Debug)]
pub(crate) struct SeenPool {
    pub(crate) path: String,
    pub(crate) uuid: String,
    pub(crate) availability: String,
    /// By disk.
    pub(crate) devices: BTreeMap<String, SeenDevice>,
}

/// A device in an object list.
#[derive(Clone, Debug)]
pub(crate) struct SeenDevice {
    pub(crate) path: String,
    pub(crate) uuid: String,
    pub(crate) tag: Option<String>,
}

/// A filesystem in an object list.
#[derive(Clone, Debug)]
pub(crate) struct SeenFilesystem {
    pub(crate) path: String,
    pub(crate) uuid: String,
    /// The name of its pool.
    pub(crate) pool: String,
    pub(crate) size: String,
    pub(crate) limit: Option<String>,
    pub(crate) devnode: String,
}

/// An object list, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) pools: BTreeMap<String, SeenPool>,
    pub(crate) filesystems: BTreeMap<String, SeenFilesystem>,
}

impl Seen {
    /// Reads an object list.
    pub(crate) fn new(objects: &Objects) -> Self {
        let of = |family: &str| {
            let newest = interface(family, 9);
            let all = objects.iter().filter_map(move |(path, all)| Some((path, all.get(&newest)?)));
            all.map(|(path, one)| (path.clone(), one.clone())).collect::<Vec<_>>()
        };
        let text = |one: &Properties, name: &str| one[name].text().to_owned();
        let mut seen = Self::default();
        let mut names = BTreeMap::new();
        for (path, one) in of("pool") {
            let availability = text(&one, "AvailableActions");
            let pool =
                SeenPool { path: path.clone(), uuid: text(&one, "Uuid"), availability, devices: BTreeMap::new() };
            names.insert(path, text(&one, "Name"));
            assert!(seen.pools.insert(text(&one, "Name"), pool).is_none(), "pool names are unique");
        }
        for (path, one) in of("blockdev") {
            let device = SeenDevice { path, uuid: text(&one, "Uuid"), tag: optional(&one["UserInfo"]) };
            let pool = seen.pools.get_mut(&names[one["Pool"].text()]).expect("the pool is in the same list");
            let twice = pool.devices.insert(text(&one, "Devnode"), device);
            assert!(twice.is_none(), "a disk is one device");
        }
        for (path, one) in of("filesystem") {
            let filesystem = SeenFilesystem {
                path,
                uuid: text(&one, "Uuid"),
                pool: names[one["Pool"].text()].clone(),
                size: text(&one, "Size"),
                limit: optional(&one["SizeLimit"]),
                devnode: text(&one, "Devnode"),
            };
            let twice = seen.filesystems.insert(text(&one, "Name"), filesystem);
            assert!(twice.is_none(), "the test uses each filesystem name once");
        }
        seen
    }
}

/// An optional text of a property.
fn optional(value: &Value) -> Option<String> {
    let members = value.members();
    members[0].is_true().then(|| members[1].text().to_owned())
}
