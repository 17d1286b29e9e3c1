//! StartPool, StopPool and StoppedPools: what comes back, what is kept, what gets new paths.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::client::{Client, Properties, Started, absent};
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{KINDS, assert_simple_uuid, hyphenated, make_pool, text_of};

fn not_started() -> Started {
    (false, ("/".to_owned(), Vec::new(), Vec::new()))
}

/// The properties that outlive a stop, of all objects of a family, by UUID.
fn lasting(client: &Client, family: &str) -> BTreeMap<String, Properties> {
    let all = client.family(family).into_values();
    all.map(|mut properties| {
        let uuid = properties["Uuid"].text().to_owned();
        // An object path does not outlive a stop; what is used may be measured anew.
        for fleeting in ["Pool", "Used", "TotalPhysicalUsed"] {
            properties.remove(fleeting);
        }
        (uuid, properties)
    })
    .collect()
}

#[test]
fn stop_and_start_keep_everything_but_the_paths() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        let (_, (pool, devices)) = client.create_pool("p", &disks).done();
        client.make_filesystem(&pool, "a");
        client.create_filesystems(&pool, &[("b", Some("536870912"), Some("1073741824"))]).done();
        let info = (true, "tag".to_owned());
        client.set(&devices[0], &interface("blockdev", 9), "UserInfo", info).expect("a tag can be set");
        let uuid = text_of(&client, &pool, "pool", "Uuid");
        let old_paths: BTreeSet<_> = client.objects().into_keys().collect();
        let before = ["pool", "filesystem", "blockdev"].map(|family| lasting(&client, family));

        assert_eq!(client.stop_pool(&uuid, "uuid").done(), (true, uuid.clone()), "the simple UUID");
        assert!(client.objects().is_empty(), "stopped pools have no objects");
        let (changed, (path, devices, filesystems)) = client.start_pool(&uuid, "uuid").done();
        assert!(changed);

        let objects = client.objects();
        assert!(objects.keys().all(|path| !old_paths.contains(path)), "all paths are new");
        let of = |family: &str| client.family(family).into_keys().collect::<BTreeSet<_>>();
        assert_eq!(of("pool"), BTreeSet::from([path]));
        assert_eq!(of("blockdev"), devices.into_iter().collect(), "devices come before filesystems");
        assert_eq!(of("filesystem"), filesystems.into_iter().collect());
        let after = ["pool", "filesystem", "blockdev"].map(|family| lasting(&client, family));
        assert_eq!(after, before, "{kind:?}");
    }
}

#[test]
fn starting_and_stopping_twice_changes_nothing_the_second_time() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let uuid = text_of(&client, &pool, "pool", "Uuid");
        assert_eq!(client.start_pool("p", "name").done(), not_started());
        assert_eq!(client.start_pool(&uuid, "uuid").done(), not_started());
        assert_eq!(client.stop_pool("p", "name").done(), (true, uuid.clone()));
        assert_eq!(client.stop_pool("p", "name").done(), (false, String::new()));
        assert_eq!(client.stop_pool(&uuid, "uuid").done(), (false, String::new()));
        assert!(client.start_pool("p", "name").done().0);
        assert_eq!(client.start_pool("p", "name").done(), not_started());
    }
}

#[test]
fn uuids_are_taken_in_every_spelling() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let simple = text_of(&client, &pool, "pool", "Uuid");
    let long = hyphenated(&simple);
    let spellings = [
        simple.clone(),
        long.clone(),
        format!("{{{long}}}"),
        format!("urn:uuid:{long}"),
        simple.to_uppercase(),
        long.to_uppercase(),
    ];
    for spelling in spellings {
        assert!(client.stop_pool(&spelling, "uuid").done().0, "{spelling:?}");
        assert!(client.start_pool(&spelling, "uuid").done().0, "{spelling:?}");
    }
    for wrong in ["", "p", &simple[1..], &format!("{simple}0"), &format!("{long}-"), &"g".repeat(32)] {
        client.stop_pool(wrong, "uuid").refused(&(false, String::new()));
        client.start_pool(wrong, "uuid").refused(&not_started());
    }
}

#[test]
fn unknown_pools_and_id_types_are_refused() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_pool(&rig, &client, "p");
    let unknown = "0123456789abcdef0123456789abcdef";
    for (id, kind) in [(unknown, "uuid"), ("q", "name"), ("p", "Name"), ("p", "UUID"), ("p", ""), ("p", "path")] {
        client.start_pool(id, kind).refused(&not_started());
        client.stop_pool(id, kind).refused(&(false, String::new()));
    }
    assert_eq!(client.family("pool").len(), 1);
}

#[test]
fn an_unencrypted_pool_is_not_unlocked() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_pool(&rig, &client, "p");
    let start = |unlock: (bool, (bool, u32)), key: bool| {
        let dummy = std::fs::File::open("/dev/null").expect("/dev/null can be opened");
        let arguments = ("p".to_owned(), "name".to_owned(), unlock, (key, dummy), false);
        client.ask(TOP, &interface("Manager", 9), "StartPool", arguments).map(crate::support::client::started)
    };
    for _running_then_stopped in 0..2 {
        start((true, (false, 0)), false).refused(&not_started());
        start((true, (true, 1)), false).refused(&not_started());
        start((false, (false, 0)), true).refused(&not_started());
        client.stop_pool("p", "name").done();
    }
    assert_eq!(client.stopped_pools(9).len(), 1, "it stays stopped");
}

#[test]
fn stopped_pools_have_the_shape_of_their_revision() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        let (_, (pool, devices)) = client.create_pool("p", &disks).done();
        let uuid = text_of(&client, &pool, "pool", "Uuid");
        let expected: BTreeSet<_> = devices
            .iter()
            .map(|path| (text_of(&client, path, "blockdev", "Devnode"), text_of(&client, path, "blockdev", "Uuid")))
            .collect();
        for revision in 2..REVISIONS {
            assert!(client.stopped_pools(revision).is_empty());
        }
        client.stop_pool("p", "name").done();
        for revision in 2..REVISIONS {
            let all = client.stopped_pools(revision);
            assert_eq!(all.keys().collect::<Vec<_>>(), [&uuid]);
            let entry = &all[&uuid];
            assert_eq!(entry["name"], Value::Text("p".to_owned()));
            assert_eq!(entry["devs"].signature(), "aa{ss}");
            let listed = entry["devs"].members().iter().map(Value::entries);
            let listed: BTreeSet<_> =
                listed.map(|one| (one["devnode"].text().to_owned(), one["uuid"].text().to_owned())).collect();
            assert_eq!(listed, expected);
            let mut keys = vec!["devs", "name"];
            if revision >= 8 {
                keys = vec!["devs", "features", "metadata_version", "name"];
                assert_eq!(entry["metadata_version"].signature(), "(bt)");
                assert_eq!(entry["metadata_version"].to_string(), "(true, 2)");
                assert_eq!(entry["features"].signature(), "(ba{sb})");
                assert_eq!(entry["features"].to_string(), "(true, {})");
            }
            assert_eq!(entry.keys().collect::<Vec<_>>(), keys, "r{revision}");
        }
        for revision in 0..2 {
            let locked = client.get(TOP, &interface("Manager", revision), "LockedPools").expect("it can be read");
            assert_eq!((locked.signature().as_str(), locked.entries().len()), ("a{sa{sv}}", 0));
        }
        client.start_pool("p", "name").done();
        assert!(client.stopped_pools(9).is_empty());
    }
}

#[test]
fn the_name_of_a_stopped_pool_is_free_but_then_it_cannot_be_started() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let uuid = text_of(&client, &pool, "pool", "Uuid");
        client.stop_pool(&uuid, "uuid").done();
        let (changed, (second, _)) = client.create_pool("p", &[rig.disk("another", 2 * GIB)]).done();
        assert!(changed, "{kind:?}");
        client.start_pool(&uuid, "uuid").refused(&not_started());
        let second = text_of(&client, &second, "pool", "Uuid");
        client.stop_pool(&second, "uuid").done();
        client.start_pool("p", "name").refused(&not_started());
        assert_eq!(client.stopped_pools(9).len(), 2);
        assert!(client.start_pool(&second, "uuid").done().0);
    }
}

#[test]
fn a_restarted_daemon_finds_running_and_stopped_pools() {
    let rig = Rig::new(Kind::Files);
    let mut daemon = rig.start();
    let client = rig.client();
    let running = make_pool(&rig, &client, "running");
    let stopped = make_pool(&rig, &client, "stopped");
    client.make_filesystem(&running, "a");
    client.make_filesystem(&stopped, "b");
    let uuid = text_of(&client, &stopped, "pool", "Uuid");
    client.stop_pool("stopped", "name").done();
    let before = ["pool", "filesystem", "blockdev"].map(|family| lasting(&client, family));
    let listed = client.stopped_pools(9);
    for _ in 0..2 {
        assert!(daemon.interrupt().success());
        daemon = rig.start();
        let after = ["pool", "filesystem", "blockdev"].map(|family| lasting(&client, family));
        assert_eq!(after, before);
        assert_eq!(client.stopped_pools(9), listed, "an explicitly stopped pool stays stopped");
    }
    let (changed, (_, devices, filesystems)) = client.start_pool(&uuid, "uuid").done();
    assert_eq!((changed, devices.len(), filesystems.len()), (true, 1, 1));
    assert!(daemon.interrupt().success());
    let _daemon = rig.start();
    assert_eq!(client.family("pool").len(), 2, "a started pool starts by itself again");
    assert!(client.stopped_pools(9).is_empty());
}

#[test]
fn a_simulated_daemon_forgets() {
    let rig = Rig::sim();
    let mut daemon = rig.start();
    let client = rig.client();
    make_pool(&rig, &client, "p");
    assert!(daemon.interrupt().success());
    let _daemon = rig.start();
    assert!(client.objects().is_empty());
    let again = make_pool(&rig, &client, "p");
    assert_simple_uuid(&text_of(&client, &again, "pool", "Uuid"));
    let devices = client.family("blockdev");
    let device = devices.values().next().expect("one device");
    assert_eq!(device["UserInfo"], absent());
}
