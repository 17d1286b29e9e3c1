//! The D-Bus API, method by method and property by property, against a daemon on a private bus.
//!
//! What is expected stands in the API's specification and in `tests/golden/introspection`; where the
//! specification leaves a choice (the name of the error for a malformed call, one signal or ten for
//! a new object) the tests accept every allowed one.
//!
//! Deliberately absent: texts. No client parses them; a test only asks that they name what matters.

mod support;

#[path = "bus/broker.rs"]
mod broker;
#[path = "bus/devices.rs"]
mod devices;
#[path = "bus/encryption.rs"]
mod encryption;
#[path = "bus/errors.rs"]
mod errors;
#[path = "bus/filesystems.rs"]
mod filesystems;
#[path = "bus/histories.rs"]
mod histories;
#[path = "bus/keys.rs"]
mod keys;
#[path = "bus/large.rs"]
mod large;
#[path = "bus/legacy.rs"]
mod legacy;
#[path = "bus/names.rs"]
mod names;
#[path = "bus/pools.rs"]
mod pools;
#[path = "bus/properties.rs"]
mod properties;
#[path = "bus/reports.rs"]
mod reports;
#[path = "bus/reverts.rs"]
mod reverts;
#[path = "bus/settings.rs"]
mod settings;
#[path = "bus/signals.rs"]
mod signals;
#[path = "bus/snapshots.rs"]
mod snapshots;
#[path = "bus/start_stop.rs"]
mod start_stop;

use support::GIB;
use support::client::Client;
use support::rig::{Kind, Rig};

/// Both machines; most of the API must not tell them apart.
const KINDS: [Kind; 2] = [Kind::Sim, Kind::Files];

/// Creates a pool on one fresh disk of 2 GiB and returns its path.
#[track_caller]
fn make_pool(rig: &Rig, client: &Client, name: &str) -> String {
    let disk = rig.disk(&format!("disk-of-{name}"), 2 * GIB);
    let (changed, (pool, devices)) = client.create_pool(name, &[disk]).done();
    assert!(changed, "pool {name:?} is new");
    assert_eq!(devices.len(), 1, "one device was given");
    pool
}

/// A property of an object on the newest revision, as text.
#[track_caller]
fn text_of(client: &Client, path: &str, family: &str, property: &str) -> String {
    let value = client.get(path, &support::interface(family, 9), property);
    value.expect("the property can be read").text().to_owned()
}

/// What must be true of a UUID in a reply: 32 lower-case hex digits, without hyphens.
#[track_caller]
fn assert_simple_uuid(uuid: &str) {
    let good = uuid.len() == 32 && uuid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(good, "{uuid:?} must be 32 lower-case hex digits");
}

/// The hyphenated form of a simple UUID.
fn hyphenated(simple: &str) -> String {
    let cuts = [0, 8, 12, 16, 20, 32];
    cuts.windows(2).map(|cut| &simple[cut[0]..cut[1]]).collect::<Vec<_>>().join("-")
}

/// The nil UUID as the API writes it.
const NIL: &str = "00000000000000000000000000000000";
