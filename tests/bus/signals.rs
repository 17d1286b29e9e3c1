//! Signals: before the reply, on every revision, with the values that a read then gives.
//!
//! One signal for each interface or one for all of them, one property or several in a signal: both are
//! allowed and read alike here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

use crate::support::client::{Answer, Client, Objects, Signal, present};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{KINDS, make_pool, text_of};

/// Signals sorted by what they say.
#[derive(Debug, Default)]
struct Heard {
    added: Objects,
    /// Objects in the order of their first announcement.
    order: Vec<String>,
    removed: BTreeMap<String, BTreeSet<String>>,
    /// (object, interface, property) and the value.
    changed: BTreeMap<(String, String, String), Value>,
    invalidated: BTreeSet<(String, String, String)>,
}

fn sort(signals: Vec<Signal>) -> Heard {
    let mut heard = Heard::default();
    for Signal { path, member, body } in signals {
        match member.as_str() {
            "InterfacesAdded" => {
                assert_eq!(path, TOP);
                let object = body[0].text().to_owned();
                for (name, properties) in body[1].entries() {
                    let before = heard.added.entry(object.clone()).or_default().insert(name, properties.entries());
                    assert!(before.is_none(), "{object} is announced once");
                }
                if !heard.order.contains(&object) {
                    heard.order.push(object);
                }
            }
            "InterfacesRemoved" => {
                assert_eq!(path, TOP);
                let names = body[1].members().iter().map(|name| name.text().to_owned());
                let object = body[0].text().to_owned();
                heard.removed.entry(object.clone()).or_default().extend(names);
                if !heard.order.contains(&object) {
                    heard.order.push(object);
                }
            }
            "PropertiesChanged" => {
                let interface = body[0].text();
                let key = |name: &str| (path.clone(), interface.to_owned(), name.to_owned());
                for (name, value) in body[1].entries() {
                    heard.changed.insert(key(&name), value);
                }
                heard.invalidated.extend(body[2].members().iter().map(|name| key(name.text())));
            }
            other => panic!("the daemon has no signal {other}"),
        }
    }
    heard
}

/// The interfaces of a family.
fn revisions(family: &str) -> BTreeSet<String> {
    (0..REVISIONS).map(|revision| interface(family, revision)).collect()
}

/// That exactly these objects were announced, each on all revisions, as they can be read now.
#[track_caller]
fn assert_added(client: &Client, heard: &Heard, expected: &[(&str, &str)]) {
    let paths: BTreeSet<_> = expected.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(heard.added.keys().cloned().collect::<BTreeSet<_>>(), paths);
    let objects = client.objects();
    for (path, family) in expected {
        let interfaces = &heard.added[*path];
        assert_eq!(interfaces.keys().cloned().collect::<BTreeSet<_>>(), revisions(family), "{path}");
        assert_eq!(interfaces, &objects[*path], "{path}: announced as it can be read");
    }
}

/// That a property was announced on revisions `since` to r9, with the value a read gives.
#[track_caller]
fn assert_changed(client: &Client, heard: &Heard, path: &str, (family, property): (&str, &str), since: u8) {
    let count = heard.changed.keys().filter(|(at, _, name)| at == path && name == property).count();
    assert_eq!(count, usize::from(REVISIONS - since), "{property} on r{since} to r9: {heard:?}");
    for revision in since..REVISIONS {
        let name = interface(family, revision);
        let value = client.get(path, &name, property).expect("it can be read");
        let said = heard.changed.get(&(path.to_owned(), name.clone(), property.to_owned()));
        assert_eq!(said, Some(&value), "{name}.{property}");
    }
}

fn listener(rig: &Rig) -> Client {
    let client = rig.client();
    client.subscribe();
    client
}

fn assert_silent(client: &Client) {
    assert_eq!(client.late_signals(), [], "everything was said before the reply");
}

#[test]
fn a_new_pool_and_its_devices_are_announced_before_the_reply() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = listener(&rig);
        let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        let (_, (pool, devices)) = client.create_pool("p", &disks).done();
        let heard = sort(client.signals());
        assert_silent(&client);
        assert_eq!(heard.order[0], pool, "the pool comes first");
        let expected = [(pool.as_str(), "pool"), (devices[0].as_str(), "blockdev"), (devices[1].as_str(), "blockdev")];
        assert_added(&client, &heard, &expected);
        assert!(heard.changed.is_empty() && heard.removed.is_empty(), "{heard:?}");

        client.create_pool("p", &disks).done();
        assert_eq!(client.signals(), [], "an unchanged pool is not announced again");
        client.destroy_pool(&pool).done();
        let heard = sort(client.signals());
        assert_silent(&client);
        assert_eq!(heard.removed[&pool], revisions("pool"));
        for device in &devices {
            assert_eq!(heard.removed[device], revisions("blockdev"));
        }
        assert_eq!(heard.order.last(), Some(&pool), "the pool goes last");
        assert_eq!((heard.removed.len(), heard.added.len()), (3, 0));
    }
}

#[test]
fn a_new_filesystem_is_announced_before_the_reply() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = listener(&rig);
        let pool = make_pool(&rig, &client, "p");
        let path = client.make_filesystem(&pool, "f");
        let heard = sort(client.signals());
        assert_silent(&client);
        assert_added(&client, &heard, &[(&path, "filesystem")]);
        assert!(heard.removed.is_empty());
        assert!(heard.changed.keys().all(|(at, _, _)| at == &pool), "only the pool's sizes may change: {heard:?}");

        client.destroy_filesystems(&pool, std::slice::from_ref(&path)).done();
        let heard = sort(client.signals());
        assert_silent(&client);
        assert_eq!(heard.removed, BTreeMap::from([(path, revisions("filesystem"))]));
        client.destroy_filesystems::<&str>(&pool, &[]).done();
        assert_eq!(client.signals(), []);
    }
}

#[test]
fn a_snapshot_is_announced_and_so_is_another_origin() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = listener(&rig);
        let pool = make_pool(&rig, &client, "p");
        let origin = client.make_filesystem(&pool, "f");
        client.signals();
        let (_, snapshot) = client.snapshot(&pool, &origin, "s").done();
        let heard = sort(client.signals());
        assert_silent(&client);
        assert_added(&client, &heard, &[(&snapshot, "filesystem")]);
        assert!(heard.changed.keys().all(|(at, _, _)| at == &pool), "the origin is as it was: {heard:?}");
        client.snapshot(&pool, &origin, "s").done();
        assert_eq!(client.signals(), [], "a name that is taken is not announced");

        client.destroy_filesystems(&pool, std::slice::from_ref(&origin)).done();
        let heard = sort(client.signals());
        assert_silent(&client);
        assert_eq!(heard.removed, BTreeMap::from([(origin, revisions("filesystem"))]));
        assert_changed(&client, &heard, &snapshot, ("filesystem", "Origin"), 7);
    }
}

#[test]
fn a_stopped_and_started_pool_is_announced_with_the_list_of_stopped_pools() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = listener(&rig);
        let pool = make_pool(&rig, &client, "p");
        let filesystem = client.make_filesystem(&pool, "f");
        let (device, _) = client.family("blockdev").into_iter().next().expect("one device");
        client.stop_pool("p", "name").done();
        let heard = sort(client.signals());
        assert_silent(&client);
        let gone = [(pool, "pool"), (filesystem, "filesystem"), (device, "blockdev")];
        assert_eq!(heard.removed, gone.into_iter().map(|(path, family)| (path, revisions(family))).collect());
        assert!(heard.added.is_empty());
        assert_changed(&client, &heard, TOP, ("Manager", "StoppedPools"), 2);

        let (_, (pool, devices, filesystems)) = client.start_pool("p", "name").done();
        let signals = client.signals();
        assert_silent(&client);
        let last_added = signals.iter().rposition(|signal| signal.member == "InterfacesAdded");
        let first_listed = signals.iter().position(|signal| signal.path == TOP && signal.member == "PropertiesChanged");
        assert!(last_added < first_listed, "objects first, then the list");
        let heard = sort(signals);
        assert_eq!(heard.order, [pool.clone(), filesystems[0].clone(), devices[0].clone()], "in this order");
        let expected = [(&pool, "pool"), (&filesystems[0], "filesystem"), (&devices[0], "blockdev")];
        assert_added(&client, &heard, &expected.map(|(path, family)| (path.as_str(), family)));
        assert_changed(&client, &heard, TOP, ("Manager", "StoppedPools"), 2);
    }
}

/// That a path was declared to be another one, on every revision, without saying which.
#[track_caller]
fn assert_path_invalidated(heard: &Heard, paths: &[&str]) {
    let keys = paths.iter().flat_map(|path| {
        (0..REVISIONS).map(|revision| ((*path).to_owned(), interface("filesystem", revision), "Devnode".to_owned()))
    });
    assert_eq!(heard.invalidated, keys.collect());
}

#[test]
fn other_names_are_announced_and_paths_invalidated_before_the_reply() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = listener(&rig);
        let pool = make_pool(&rig, &client, "p");
        let (one, two) = (client.make_filesystem(&pool, "one"), client.make_filesystem(&pool, "two"));
        for revision in 0..REVISIONS {
            let set = |path: &str, family: &str, name: String| -> Heard {
                let on = interface(family, revision);
                let answer: Answer<(bool, String)> = client.ask(path, &on, "SetName", (name,));
                assert!(answer.done().0);
                let heard = sort(client.signals());
                assert_silent(&client);
                assert!(heard.added.is_empty() && heard.removed.is_empty(), "{heard:?}");
                heard
            };
            let heard = set(&one, "filesystem", format!("one{revision}"));
            assert_eq!(heard.changed.len(), usize::from(REVISIONS), "the name and nothing else: {heard:?}");
            assert_path_invalidated(&heard, &[&one]);
            assert_changed(&client, &heard, &one, ("filesystem", "Name"), 0);
            let heard = set(&pool, "pool", format!("p{revision}"));
            assert_eq!(heard.changed.len(), usize::from(REVISIONS), "the name and nothing else: {heard:?}");
            assert_path_invalidated(&heard, &[&one, &two]);
            assert_changed(&client, &heard, &pool, ("pool", "Name"), 0);
        }
        let same: Answer<(bool, String)> = client.ask(&pool, &interface("pool", 9), "SetName", ("p9",));
        assert!(!same.done().0);
        assert_eq!(client.signals(), []);
    }
}

#[test]
fn new_devices_are_announced_behind_what_they_change() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = listener(&rig);
        let pool = make_pool(&rig, &client, "p");
        let give = |method: &str, disks: &[String]| -> (Vec<String>, Vec<Signal>) {
            let answer: Answer<(bool, Vec<dbus::Path<'static>>)> =
                client.ask(&pool, &interface("pool", 4), method, (disks.to_vec(),));
            let (changed, paths) = answer.done();
            assert_eq!(changed, !paths.is_empty());
            let signals = client.signals();
            assert_silent(&client);
            (paths.iter().map(ToString::to_string).collect(), signals)
        };
        let in_order = |signals: &[Signal]| {
            let last_changed = signals.iter().rposition(|signal| signal.member == "PropertiesChanged");
            let first_added = signals.iter().position(|signal| signal.member == "InterfacesAdded");
            last_changed < first_added
        };
        let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        let (paths, signals) = give("AddDataDevs", &disks);
        assert!(in_order(&signals), "sizes first, then the devices");
        let heard = sort(signals);
        assert_added(&client, &heard, &[(&paths[0], "blockdev"), (&paths[1], "blockdev")]);
        for property in ["TotalPhysicalSize", "AllocatedSize", "TotalPhysicalUsed"] {
            assert_changed(&client, &heard, &pool, ("pool", property), 0);
        }
        assert!(heard.removed.is_empty() && heard.invalidated.is_empty());
        assert_eq!(give("AddDataDevs", &disks), (Vec::new(), Vec::new()));
        if kind == crate::support::rig::Kind::Files {
            continue;
        }
        let caches = ["c", "d"].map(|name| rig.disk(name, 2 * GIB));
        let (paths, signals) = give("InitCache", &caches[..1]);
        assert!(in_order(&signals), "the pool has a cache, then its devices");
        let heard = sort(signals);
        assert_added(&client, &heard, &[(&paths[0], "blockdev")]);
        assert_changed(&client, &heard, &pool, ("pool", "HasCache"), 0);
        assert_eq!(heard.changed.len(), usize::from(REVISIONS), "nothing else changes: {heard:?}");
        assert_eq!(give("InitCache", &caches[..1]), (Vec::new(), Vec::new()));
        let (paths, signals) = give("AddCacheDevs", &caches);
        let heard = sort(signals);
        assert_added(&client, &heard, &[(&paths[0], "blockdev")]);
        assert!(heard.changed.is_empty(), "{heard:?}");
    }
}

#[test]
fn a_grown_device_is_announced_on_every_revision() {
    let rig = Rig::files();
    let _daemon = rig.start();
    let client = listener(&rig);
    let pool = make_pool(&rig, &client, "p");
    let (device, properties) = client.family("blockdev").into_iter().next().expect("one device");
    let file = OpenOptions::new().write(true).open(rig.disk("disk-of-p", 0)).expect("the disk is a file");
    file.set_len(5 * GIB).expect("the host has holes");
    let arguments = (properties["Uuid"].text().to_owned(),);
    let grown: Answer<bool> = client.ask(&pool, &interface("pool", 3), "GrowPhysicalDevice", arguments);
    assert!(grown.done());
    let heard = sort(client.signals());
    assert_silent(&client);
    assert_changed(&client, &heard, &device, ("blockdev", "TotalPhysicalSize"), 0);
    // The pool keeps no room for integrity, so all of it is free.
    assert_changed(&client, &heard, &pool, ("pool", "TotalPhysicalSize"), 0);
    assert!(heard.added.is_empty() && heard.removed.is_empty() && heard.invalidated.is_empty(), "{heard:?}");
}

#[test]
fn settings_are_announced_on_every_revision_that_has_them() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = listener(&rig);
    let pool = make_pool(&rig, &client, "p");
    let (device, _) = client.family("blockdev").into_iter().next().expect("one device");
    let path = client.make_filesystem(&pool, "f");
    let text = |text: &str| (true, text.to_owned());

    let heard = |outcome| {
        assert_eq!(outcome, Ok(()));
        let heard = sort(client.signals());
        assert_silent(&client);
        heard
    };
    let set = heard(client.set(&path, &interface("filesystem", 6), "SizeLimit", text("1073741824")));
    assert_changed(&client, &set, &path, ("filesystem", "SizeLimit"), 6);
    let set = heard(client.set(&device, &interface("blockdev", 9), "UserInfo", text("tag")));
    assert_changed(&client, &set, &device, ("blockdev", "UserInfo"), 3);
    let set = heard(client.set(&pool, &interface("pool", 1), "Overprovisioning", false));
    assert_changed(&client, &set, &pool, ("pool", "Overprovisioning"), 1);
    let set = heard(client.set(&pool, &interface("pool", 2), "FsLimit", 105_u64));
    assert_changed(&client, &set, &pool, ("pool", "FsLimit"), 1);

    let refused = client.set(&path, &interface("filesystem", 9), "SizeLimit", text("1"));
    refused.expect_err("too small");
    assert_eq!(client.signals(), [], "a rejected value is not announced");
    assert_silent(&client);
}

#[test]
fn every_other_client_sees_the_effect_of_an_answered_call() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let (one, other) = (rig.client(), rig.client());
    let pool = make_pool(&rig, &one, "p");
    assert_eq!(text_of(&other, &pool, "pool", "Name"), "p");
    for round in 0..50 {
        let path = one.make_filesystem(&pool, "f");
        assert!(other.objects().contains_key(&path), "round {round}");
        let limit = (true, "1073741824".to_owned());
        one.set(&path, &interface("filesystem", 9), "SizeLimit", limit).expect("it is accepted");
        let read = other.get(&path, &interface("filesystem", 9), "SizeLimit");
        assert_eq!(read, Ok(present("1073741824")), "round {round}");
        one.destroy_filesystems(&pool, std::slice::from_ref(&path)).done();
        assert!(!other.objects().contains_key(&path), "round {round}");
    }
}

#[test]
fn sizes_in_use_follow_while_somebody_reads() {
    let rig = Rig::files();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = client.create_pool("p", &[rig.disk("one", 4 * GIB)]).done().1.0;
    let filesystem = client.make_filesystem(&pool, "fs");
    let volume = rig.files_folder().join("stratis/p/fs");
    let mut file = OpenOptions::new().write(true).open(volume).expect("the link leads to the volume");
    file.seek(SeekFrom::Start(200 << 20)).expect("the volume is large enough");
    file.write_all(&[7; 8 << 20]).and_then(|()| file.sync_all()).expect("the host has 8 MiB");

    client.subscribe();
    // The first read gives what is known, and makes the daemon look; the change is announced.
    let known = client.get(&filesystem, &interface("filesystem", 9), "Used").expect("Used can be read");
    let key = (filesystem.clone(), interface("filesystem", 9), "Used".to_owned());
    let mut signals = Vec::new();
    let announced = loop {
        client.wait_message(Duration::from_secs(60));
        signals.extend(client.signals());
        if let Some(value) = sort(signals.clone()).changed.remove(&key) {
            break value;
        }
    };
    let now = client.get(&filesystem, &interface("filesystem", 9), "Used").expect("Used can be read");
    assert_eq!(announced, now);
    let bytes = |value: &Value| -> u64 { value.members()[1].text().parse().expect("a number of bytes") };
    assert!(bytes(&now) >= bytes(&known) + (8 << 20), "{known:?} {now:?}");
}
