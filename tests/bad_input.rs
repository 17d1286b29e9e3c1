//! What a client should not send: wrong devices, wrong sizes, quarrelling requests, broken messages.
//!
//! After each: the documented error, nothing changed on any disk or in the daemon's folder, the same
//! objects as before, and a daemon that still works.

mod support;

#[path = "bad_input/devices.rs"]
mod devices;
#[path = "bad_input/quarrels.rs"]
mod quarrels;
#[path = "bad_input/requests.rs"]
mod requests;
#[path = "bad_input/wire.rs"]
mod wire;

use std::collections::BTreeMap;

use support::client::{Client, Objects, Properties};
use support::daemon::Daemon;
use support::disk::{Fingerprint, survey};
use support::rig::Rig;

/// All that may be looked at from outside.
#[derive(Debug, Eq, PartialEq)]
struct State {
    objects: Objects,
    stopped: BTreeMap<String, Properties>,
    files: BTreeMap<String, Option<Fingerprint>>,
    disks: BTreeMap<String, Option<Fingerprint>>,
}

/// Takes everything in.
fn state(rig: &Rig, client: &Client) -> State {
    State {
        objects: client.objects(),
        stopped: client.stopped_pools(9),
        files: survey(&rig.files_folder()),
        disks: survey(&rig.disks_folder()),
    }
}

/// That nothing has changed and the daemon lives.
#[track_caller]
fn assert_untouched(rig: &Rig, client: &Client, daemon: &mut Daemon, before: &State, what: &str) {
    assert!(daemon.is_alive(), "{what}");
    let after = state(rig, client);
    assert_eq!(after.objects, before.objects, "{what}: objects");
    assert_eq!(after.stopped, before.stopped, "{what}: stopped pools");
    assert_eq!(after.disks, before.disks, "{what}: disks");
    assert_eq!(after.files, before.files, "{what}: the daemon's folder");
}

/// The value of a refused CreatePool.
fn no_pool() -> (bool, (String, Vec<String>)) {
    (false, ("/".to_owned(), Vec::new()))
}
