//! SnapshotFilesystem: what a snapshot is, names that are taken, origins that cannot be, origins that go.

use std::fs;

use crate::support::client::{Client, absent, present};
use crate::support::disk;
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{REVISIONS, interface};
use crate::{KINDS, NIL, hyphenated, make_pool, text_of};

/// What a refusal and a request that changes nothing answer.
fn none() -> (bool, String) {
    (false, "/".to_owned())
}

/// Takes a snapshot that must be new; its path.
#[track_caller]
fn take(client: &Client, pool: &str, origin: &str, name: &str) -> String {
    let (changed, path) = client.snapshot(pool, origin, name).done();
    assert!(changed, "{name} is new");
    path
}

#[track_caller]
fn origin_of(client: &Client, filesystem: &str) -> Value {
    client.get(filesystem, &interface("filesystem", 9), "Origin").expect("it can be read")
}

/// A filesystem that is no snapshot.
fn no_origin() -> Value {
    Value::Struct(vec![Value::Bool(false), Value::Text(NIL.to_owned())])
}

#[test]
fn a_snapshot_has_what_its_origin_has_and_an_origin() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let spec = ("f", Some("1073741824"), Some("2147483648"));
        let origin = client.create_filesystems(&pool, &[spec]).done().1.remove(0).0;
        let snapshot = take(&client, &pool, &origin, "s");
        let second = take(&client, &pool, &snapshot, "t");
        assert_eq!(origin_of(&client, &origin), no_origin());
        for (path, name, of) in [(&snapshot, "s", &origin), (&second, "t", &snapshot)] {
            let property = |name: &str| text_of(&client, path, "filesystem", name);
            assert_eq!((property("Name").as_str(), property("Size").as_str()), (name, "1073741824"));
            assert!(property("Devnode").ends_with(&format!("/p/{name}")));
            let limit = client.get(path, &interface("filesystem", 9), "SizeLimit");
            assert_eq!(limit, Ok(present("2147483648")));
            assert_eq!(origin_of(&client, path), present(&text_of(&client, of, "filesystem", "Uuid")));
            let merge = client.get(path, &interface("filesystem", 9), "MergeScheduled");
            assert_eq!(merge, Ok(Value::Bool(false)));
        }
        assert_eq!(client.set(&snapshot, &interface("filesystem", 9), "MergeScheduled", true), Ok(()));
        let third = take(&client, &pool, &snapshot, "u");
        assert_eq!(client.family("filesystem").len(), 4, "one that is to be merged can be copied: {third}");
    }
}

#[test]
fn a_name_that_is_taken_changes_nothing() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let origin = client.make_filesystem(&pool, "f");
    client.create_filesystems(&pool, &[("larger", Some("1073741824"), None)]).done();
    take(&client, &pool, &origin, "s");
    let before = client.objects();
    for taken in ["f", "s", "larger"] {
        assert_eq!(client.snapshot(&pool, &origin, taken).done(), none(), "{taken}");
    }
    assert_eq!(client.objects(), before);
}

#[test]
fn every_revision_takes_snapshots() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let origin = client.make_filesystem(&pool, "f");
    for revision in 0..REVISIONS {
        let arguments = (dbus::Path::from(origin.clone()), format!("s{revision}"));
        let answer = client.ask(&pool, &interface("pool", revision), "SnapshotFilesystem", arguments);
        let (changed, path): (bool, dbus::Path<'static>) = answer.done();
        assert!(changed, "r{revision}");
        assert_eq!(text_of(&client, &path, "filesystem", "Name"), format!("s{revision}"));
    }
}

#[test]
fn what_cannot_be_copied_is_refused() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let [mine, other] = ["mine", "other"].map(|name| make_pool(&rig, &client, name));
    let own = client.make_filesystem(&mine, "f");
    let foreign = client.make_filesystem(&other, "f");
    let gone = client.make_filesystem(&mine, "gone");
    client.destroy_filesystems(&mine, std::slice::from_ref(&gone)).done();
    for origin in [foreign.as_str(), &gone, &mine, "/", "/org/storage/stratis3/999999"] {
        let why = client.snapshot(&mine, origin, "s").refused(&none());
        assert!(why.contains(origin), "{why}");
    }
    for name in ["", ".", "a b", "a/b", " a", &"x".repeat(256)] {
        client.snapshot(&mine, &own, name).refused(&none());
    }
    assert_eq!(client.family("filesystem").len(), 2, "nothing was left behind");
    // One of 1 TiB on a disk of 4.
    let large = client.create_filesystems(&mine, &[("large", None, None)]).done().1.remove(0).0;
    client.set(&mine, &interface("pool", 9), "Overprovisioning", false).expect("there is room for both");
    take(&client, &mine, &large, "s");
    let mut number = 0;
    let why = loop {
        let answer = client.snapshot(&mine, &large, &format!("s{number}"));
        if answer.code != 0 {
            break answer.refused(&none());
        }
        number += 1;
    };
    assert!(why.contains("overprovisioning"), "{why}");
}

#[test]
fn the_filesystem_limit_holds_for_snapshots() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let origin = client.make_filesystem(&pool, "f");
    for index in 1..100 {
        take(&client, &pool, &origin, &format!("s{index}"));
    }
    let why = client.snapshot(&pool, &origin, "one-more").refused(&none());
    assert!(why.contains("100"), "{why:?} states the limit");
    client.snapshot(&pool, &origin, "f").refused(&none());
}

#[test]
fn snapshots_of_what_is_destroyed_get_its_origin() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let first = client.make_filesystem(&pool, "first");
        let [second, third, fourth] = {
            let second = take(&client, &pool, &first, "second");
            let third = take(&client, &pool, &second, "third");
            let fourth = take(&client, &pool, &third, "fourth");
            [second, third, fourth]
        };
        let uuid = text_of(&client, &first, "filesystem", "Uuid");
        let (_, destroyed) = client.destroy_filesystems(&pool, &[third, second]).done();
        assert_eq!(destroyed.len(), 2);
        assert_eq!(origin_of(&client, &fourth), present(&uuid));
        client.stop_pool("p", "name").done();
        let (_, (pool, ..)) = client.start_pool("p", "name").done();
        let all = client.family("filesystem");
        assert_eq!(all.len(), 2, "what was destroyed does not come back: {all:?}");
        let path = |name: &str| all.iter().find(|(_, one)| one["Name"].text() == name).expect("it is there").0.clone();
        assert_eq!(origin_of(&client, &path("fourth")), present(&uuid));
        client.destroy_filesystems(&pool, &[path("first")]).done();
        assert_eq!(origin_of(&client, &path("fourth")), no_origin());
    }
}

#[test]
fn a_limit_that_the_origin_gets_later_is_not_the_snapshots() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let origin = client.make_filesystem(&pool, "f");
    let snapshot = take(&client, &pool, &origin, "s");
    let limit = (true, "1073741824".to_owned());
    client.set(&origin, &interface("filesystem", 9), "SizeLimit", limit).expect("it is large enough");
    assert_eq!(client.get(&snapshot, &interface("filesystem", 9), "SizeLimit"), Ok(absent()));
}

#[test]
fn the_file_of_a_snapshot_has_the_bytes_of_its_origin_and_a_uuid_of_its_own() {
    let rig = Rig::new(Kind::Files);
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let origin = client.make_filesystem(&pool, "f");
    let snapshot = take(&client, &pool, &origin, "s");
    let volume = |path: &str| {
        let devnode = text_of(&client, path, "filesystem", "Devnode");
        fs::canonicalize(devnode).expect("the path leads to the volume")
    };
    let (from, to) = (volume(&origin), volume(&snapshot));
    let length = |path| fs::metadata(path).expect("it exists").len();
    assert_eq!(length(&from), length(&to));
    let uuid = |path, at: usize| {
        let head = disk::head(path, 512);
        hyphenated(&head[at..at + 16].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    // Of an XFS superblock: the UUID that everybody sees, and that which all other structures carry.
    let shown = |path: &str| hyphenated(&text_of(&client, path, "filesystem", "Uuid"));
    assert_eq!(uuid(&to, 32), shown(&snapshot));
    assert_eq!(uuid(&to, 248), shown(&origin));
    assert_eq!(uuid(&from, 32), shown(&origin));
    let checked = std::process::Command::new("xfs_repair").arg("-n").arg("-f").arg(&to).output();
    assert!(checked.expect("xfs_repair is installed").status.success(), "the snapshot is whole");
}
