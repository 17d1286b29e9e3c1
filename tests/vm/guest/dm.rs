//! What the kernel's device-mapper has, as `dmsetup` shows it: an eye that shares no code with the daemon.

use std::collections::BTreeMap;

use super::run;
use crate::support::client::Client;
use crate::support::interface;

/// One dm device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// An active table is there.
    pub(crate) live: bool,
    /// A table was loaded and not activated.
    pub(crate) inactive: bool,
    pub(crate) suspended: bool,
    /// How many have it open, other dm devices included.
    pub(crate) open: u32,
    /// Its minor number: it is `/dev/dm-<minor>`.
    pub(crate) minor: u32,
}

/// All of them, by name.
pub(crate) fn devices() -> Vec<Device> {
    let columns = "name,uuid,attr,open,minor";
    let mut all: Vec<Device> = run("dmsetup", &["info", "-c", "--noheadings", "--separator", ";", "-o", columns])
        .lines()
        .filter_map(device)
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn device(line: &str) -> Option<Device> {
    // Without devices there is one line of prose.
    let [name, uuid, attributes, open, minor] = line.split(';').collect::<Vec<_>>().try_into().ok()?;
    Some(Device {
        name: name.to_owned(),
        uuid: uuid.to_owned(),
        live: attributes.contains('L'),
        inactive: attributes.contains('I'),
        suspended: attributes.contains('s'),
        open: open.parse().expect("a count is a number"),
        minor: minor.parse().expect("a minor number is a number"),
    })
}

/// The names of all of them.
pub(crate) fn names() -> Vec<String> {
    devices().into_iter().map(|device| device.name).collect()
}

/// The name of a private device of the pool of this UUID.
pub(crate) fn private(uuid: &str, role: &str) -> String {
    format!("stratis-1-private-{}-{role}", uuid.replace('-', ""))
}

/// The same of the pool of this object.
#[track_caller]
pub(crate) fn private_of(client: &Client, pool: &str, role: &str) -> String {
    private(client.get(pool, &interface("pool", 9), "Uuid").expect("a property").text(), role)
}

/// Their active tables by name, with numbers for devices.
pub(crate) fn tables() -> BTreeMap<String, String> {
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    for line in run("dmsetup", &["table"]).lines() {
        if let Some((name, table)) = line.split_once(": ") {
            let whole = tables.entry(name.to_owned()).or_default();
            whole.push_str(table);
            whole.push('\n');
        }
    }
    tables
}

/// Where a private device of a pool, or the first piece of it, lies on the pool's first disk: first sector and count.
#[track_caller]
pub(crate) fn on_disk(client: &Client, pool: &str, role: &str) -> (u64, u64) {
    let tables = tables();
    // `start length linear major:minor offset`
    let number = |role: &str, word| -> u64 {
        let table = &tables[&private_of(client, pool, role)];
        table.split_ascii_whitespace().nth(word).expect("a linear line").parse().expect("a number")
    };
    // What these lie on, the cap device, lies on the whole of what the lowest one has.
    (number(role, 4) + number("physical-originsub", 4), number(role, 1))
}

/// The features of a thin pool, by its table.
pub(crate) fn thin_features(table: &str) -> Option<String> {
    let words: Vec<&str> = table.split_whitespace().collect();
    let [_, _, "thin-pool", _meta, _data, _block, _low_water, _count, features @ ..] = words.as_slice() else {
        return None;
    };
    Some(features.join(" "))
}

/// The status lines of one device; the kernel is not asked to commit for it.
#[track_caller]
pub(crate) fn status(name: &str) -> String {
    run("dmsetup", &["status", "--noflush", name])
}

/// Panics if anything of a pool is suspended, half-made, or has a table that was loaded and not activated.
#[track_caller]
pub(crate) fn expect_settled() {
    for device in devices().into_iter().filter(|device| device.name.starts_with("stratis-")) {
        assert!(device.live && !device.inactive && !device.suspended, "not as an operation leaves it: {device:?}");
        assert_eq!(device.name, device.uuid, "names and dm UUIDs of a pool's devices are equal");
    }
}
