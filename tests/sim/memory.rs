//! What a daemon at rest holds in memory: it is what stands on the disks, and nothing is claimed for nobody.
//!
//! Invariant: whoever breaks one of these shows nothing wrong yet. It comes out when the next save, the next restart
//! or the next request makes something of it.

use std::collections::BTreeMap;

use stratisd::format::{filesystem, record};
use stratisd::message::{Answer, Wish};
use stratisd::model::ids::PoolUuid;
use stratisd::sys::Folder;
use stratisd::sys::sim::Machine;

use crate::sound::{Disk, recorded};
use crate::world::{Driver, Seen, name};

/// Names that stories give to pools.
const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "ü", "p", "q", "r", "before", "fresh"];

/// Asks a daemon that serves no clients for what it holds, and compares.
pub(crate) async fn agrees(driver: &Driver, machine: &Machine, at: &str) {
    for pool in driver.seen().running.keys() {
        let text = async |wish| match driver.call(wish).await {
            Ok(Answer::Text(text)) => text,
            other => panic!("a pool does not say what is recorded: {at} {other:?}"),
        };
        is_recorded(machine, *pool, &text(Wish::Metadata(*pool, true)).await, at);
        are_recorded(machine, *pool, &text(Wish::FilesystemMetadata(*pool, None)).await, at);
    }
    unclaimed(driver, machine, at);
}

/// The record that a pool would save now is the newest one on its disks.
pub(crate) fn is_recorded(machine: &Machine, pool: PoolUuid, said: &str, at: &str) {
    let held = record::decode(said.as_bytes()).expect("a pool says its record");
    let disks = Disk::all(machine);
    let saved = recorded(&disks, pool).unwrap_or_else(|| panic!("a running pool has no record: {at}"));
    assert_eq!(held, saved, "memory and record do not agree (left and right): {at}");
}

/// The records of filesystems in memory are the files. While an intent of a destruction waits for the next start, it
/// says which origins are others.
pub(crate) fn are_recorded(machine: &Machine, pool: PoolUuid, said: &str, at: &str) {
    let held: BTreeMap<String, serde_json::Value> = serde_json::from_str(said).expect("filesystems say their records");
    let intents = machine.files(pool, Folder::Intents).is_some_and(|intents| !intents.is_empty());
    for (uuid, mut value) in held {
        let uuid = uuid.parse().expect("records are told by their ids");
        let file = machine.file(pool, Folder::Filesystems, &filesystem::file_name(uuid));
        let file = file.unwrap_or_else(|| panic!("a filesystem has no record: {at} {uuid}"));
        let mut saved: serde_json::Value = serde_json::from_slice(&file).expect("a record is JSON");
        for record in [&mut saved, &mut value].into_iter().filter(|_| intents) {
            record.as_object_mut().map(|keys| keys.remove("origin"));
        }
        assert_eq!(value, saved, "memory and the record of a filesystem do not agree (left and right): {at}");
    }
}

/// Disks that are nobody's and names that no pool has are there for everybody.
pub(crate) fn unclaimed(driver: &Driver, machine: &Machine, at: &str) {
    for disk in Disk::all(machine).iter().filter(|disk| disk.header().is_none()) {
        let path = disk.path.to_string();
        assert!(driver.unclaimed(&[machine.number(&path)]), "a claim on {path} stays, which is nobody's: {at}");
    }
    let seen = driver.seen();
    let has = |text: &str| seen.running.values().any(|(name, _)| name == text);
    for text in NAMES.into_iter().filter(|text| !has(text)) {
        assert!(driver.unclaimed_name(&name(text)), "a claim on the name {text:?} stays, which no pool has: {at}");
    }
}

/// What is shown that outlives a daemon: how a pool is at the moment does not, and that a disk has grown may be news.
fn lasting(seen: &Seen) -> Vec<&String> {
    let fleeting = |line: &&String| line.contains(" no_") || line.ends_with(" no space") || line.contains(" grown ");
    seen.settings.iter().filter(|line| !fleeting(line)).collect()
}

/// Whether all that lasts is as it was.
pub(crate) fn is_again(before: &Seen, now: &Seen) -> bool {
    (&now.running, &now.stopped, lasting(now)) == (&before.running, &before.stopped, lasting(before))
}

/// A restart shows what was shown before it.
pub(crate) fn shown_again(before: &Seen, now: &Seen, power: bool, at: &str) {
    let of_pool = |what: &str| {
        let line = before.settings.iter().find(|line| line.contains(what));
        line.filter(|_| power).is_some()
    };
    if of_pool(" slot ") {
        // Which of them is locked then the settings of a stopped pool do not tell.
        for pool in before.running.keys() {
            let own = format!("{pool} slot ");
            let locked = before.settings.iter().any(|line| line.starts_with(&own));
            assert_eq!(now.stopped.contains_key(pool), locked, "an encrypted pool is locked: {at}\n{now:#?}");
        }
        return;
    }
    assert_eq!(now.running.keys().collect::<Vec<_>>(), before.running.keys().collect::<Vec<_>>(), "pools: {at}");
    assert_eq!(now.stopped, before.stopped, "stopped pools: {at}");
    // Reverts are made by a start.
    if !of_pool(" is to be merged") {
        assert_eq!(now.running, before.running, "a restart shows something else (left) than was shown: {at}");
        assert_eq!(lasting(now), lasting(before), "a restart shows something else (left) than was shown: {at}");
    }
}
