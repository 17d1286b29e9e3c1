//! Reports and metadata: JSON that says what properties say, and what is on the devices.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::support::client::{Client, Properties};
use crate::support::rig::{Kind, Rig};
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{KINDS, hyphenated, make_pool, text_of};

/// A document that a method answers with.
#[track_caller]
fn document(client: &Client, path: &str, interface: &str, member: &str, arguments: impl dbus::arg::AppendAll) -> Json {
    let text: String = client.ask(path, interface, member, arguments).done();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{member}: {error}: {text}"))
}

fn engine_state(client: &Client, revision: u8) -> Json {
    document(client, TOP, &interface("Manager", revision), "EngineStateReport", ())
}

fn stopped_pools(client: &Client, revision: u8) -> Json {
    document(client, TOP, &interface("Report", revision), "GetReport", ("stopped_pools",))
}

fn metadata(client: &Client, pool: &str, current: bool) -> Json {
    document(client, pool, &interface("pool", 9), "Metadata", (current,))
}

fn filesystem_metadata(client: &Client, pool: &str, name: Option<&str>) -> Json {
    let name = (name.is_some(), name.unwrap_or_default());
    document(client, pool, &interface("pool", 9), "FilesystemMetadata", (name, true))
}

/// The entries of a list by one of their members.
fn by(list: &Json, key: &str) -> BTreeMap<String, Json> {
    let all = list.as_array().expect("a list").iter();
    all.map(|one| (one[key].as_str().expect("a text").to_owned(), one.clone())).collect()
}

fn uuid(properties: &Properties) -> String {
    hyphenated(properties["Uuid"].text())
}

fn sectors(bytes: &str) -> String {
    format!("{} sectors", bytes.parse::<u128>().expect("decimal bytes") / 512)
}

#[test]
fn the_state_of_the_engine_says_what_properties_say() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let nothing = json!({"partially_constructed_pools": [], "pools": [], "stopped_pools": []});
        assert_eq!(engine_state(&client, 0), nothing);
        let pool = make_pool(&rig, &client, "p");
        let origin = client.make_filesystem(&pool, "f");
        let (_, snapshot) = client.snapshot(&pool, &origin, "s").done();
        let limit = (true, "1073741824".to_owned());
        client.set(&snapshot, &interface("filesystem", 9), "SizeLimit", limit).expect("it is larger");
        make_pool(&rig, &client, "other");
        for revision in 0..REVISIONS {
            let state = engine_state(&client, revision);
            let pools = by(&state["pools"], "name");
            assert_eq!(pools.len(), 2, "{state}");
            let shown = &client.family("pool")[&pool];
            let said = &pools["p"];
            assert_eq!((&said["uuid"], &said["pool_uuid"]), (&json!(uuid(shown)), &json!(uuid(shown))));
            assert_eq!(said["fs_limit"], json!(shown["FsLimit"].number()));
            assert_eq!(said["available_actions"], json!(shown["AvailableActions"].text()));
            let devices = client.family("blockdev");
            let device = devices.values().find(|device| device["Pool"].text() == pool).expect("one device");
            let listed = &said["blockdevs"]["datadevs"][0];
            assert_eq!(listed["uuid"], json!(uuid(device)));
            assert_eq!(listed["path"], json!(device["PhysicalPath"].text()));
            assert_eq!(listed["size"], json!(sectors(device["TotalPhysicalSize"].text())));
            assert_eq!(said["blockdevs"]["cachedevs"], json!([]));
            let filesystems = by(&said["filesystems"], "uuid");
            let all = client.family("filesystem");
            assert_eq!(filesystems.len(), all.len());
            for shown in all.values() {
                let said = &filesystems[&uuid(shown)];
                assert_eq!(said["name"], json!(shown["Name"].text()));
                assert_eq!(said["size"], json!(sectors(shown["Size"].text())));
                assert_eq!(said["used"], json!(format!("{} bytes", shown["Used"].members()[1].text())));
            }
            let copy = &filesystems[&uuid(&all[&snapshot])];
            assert_eq!(copy["origin"], json!(uuid(&all[&origin])));
            assert_eq!(copy["size_limit"], json!("2097152 sectors"));
            assert_eq!(filesystems[&uuid(&all[&origin])]["origin"], json!("Not set"));
            assert_eq!(filesystems[&uuid(&all[&origin])]["size_limit"], json!("Not set"));
        }
    }
}

#[test]
fn stopped_pools_are_reported_on_every_revision() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let uuid = uuid(&client.family("pool")[&pool]);
        client.stop_pool("p", "name").done();
        let (_, listed) = client.stopped_pools(9).into_iter().next().expect("one is stopped");
        let device = listed["devs"].members()[0].entries();
        for revision in 0..REVISIONS {
            let report = stopped_pools(&client, revision);
            let said = &report["stopped_pools"][0];
            assert_eq!((&said["pool_uuid"], &said["name"]), (&json!(uuid), &json!("p")));
            assert_eq!(said["devices"][0]["devnode"], json!(device["devnode"].text()));
            assert_eq!(said["devices"][0]["device_uuid"], json!(hyphenated(device["uuid"].text())));
            assert_eq!(report["name_to_pool_uuid_map"], json!({"p": uuid}));
            assert_eq!(engine_state(&client, revision)["stopped_pools"], report["stopped_pools"]);
        }
        client.start_pool("p", "name").done();
        assert_eq!(stopped_pools(&client, 9), json!({"stopped_pools": []}));
    }
}

#[test]
fn another_report_is_refused() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for name in ["engine_state_report", "x", ""] {
        let answer = client.ask(TOP, &interface("Report", 9), "GetReport", (name,));
        let why = answer.refused(&String::new());
        assert!(why.contains(&format!("{name:?}")), "{why}");
    }
}

#[test]
fn the_metadata_of_a_pool_is_its_record() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let mut daemon = rig.start();
        let client = rig.client();
        let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        let (_, (pool, devices)) = client.create_pool("p", &disks).done();
        let record = metadata(&client, &pool, true);
        assert_eq!((&record["name"], &record["started"]), (&json!("p"), &json!(true)));
        assert_eq!(record["thinpool_dev"]["fs_limit"], json!(100));
        assert_eq!(record["thinpool_dev"]["enable_overprov"], json!(true));
        let recorded = by(&record["backstore"]["data_tier"]["blockdev"]["devs"], "uuid");
        let uuids = devices.iter().map(|path| hyphenated(&text_of(&client, path, "blockdev", "Uuid")));
        assert!(uuids.clone().all(|uuid| recorded.contains_key(&uuid)), "{record}");
        assert_eq!(metadata(&client, &pool, false), record, "what is shown was written first");

        client.set(&pool, &interface("pool", 9), "Overprovisioning", false).expect("there is room");
        for current in [true, false] {
            let changed = metadata(&client, &pool, current);
            assert_eq!(changed["thinpool_dev"]["enable_overprov"], json!(false), "current: {current}");
        }
        if kind == Kind::Files {
            let before = metadata(&client, &pool, false);
            assert!(daemon.interrupt().success());
            let _daemon = rig.start();
            let (pool, _) = client.family("pool").into_iter().next().expect("it starts by itself");
            assert_eq!(metadata(&client, &pool, false), before);
            assert_eq!(metadata(&client, &pool, true), before);
        }
    }
}

#[test]
fn the_metadata_of_filesystems_is_that_of_their_records() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    assert_eq!(filesystem_metadata(&client, &pool, None), json!({}));
    let origin = client.make_filesystem(&pool, "f");
    let (_, snapshot) = client.snapshot(&pool, &origin, "s").done();
    client.set(&snapshot, &interface("filesystem", 9), "MergeScheduled", true).expect("it has an origin");
    let limit = (true, "1073741824".to_owned());
    client.set(&snapshot, &interface("filesystem", 9), "SizeLimit", limit).expect("it is larger");
    let all = filesystem_metadata(&client, &pool, None);
    let [of_origin, of_snapshot] =
        [&origin, &snapshot].map(|path| hyphenated(&text_of(&client, path, "filesystem", "Uuid")));
    assert_eq!(all.as_object().map(serde_json::Map::len), Some(2), "{all}");
    let (first, second) = (&all[&of_origin], &all[&of_snapshot]);
    assert_eq!((&first["name"], &first["uuid"]), (&json!("f"), &json!(of_origin)));
    assert_eq!((&first["size"], &first["merge"]), (&json!(1_048_576), &json!(false)));
    assert_eq!((first.get("origin"), first.get("fs_size_limit")), (None, None), "{first}");
    assert!(first["created"].as_u64().is_some_and(|seconds| seconds > 1_700_000_000), "{first}");
    assert_eq!((&second["origin"], &second["merge"]), (&json!(of_origin), &json!(true)));
    assert_eq!(second["fs_size_limit"], json!(2_097_152));
    assert_eq!(filesystem_metadata(&client, &pool, Some("s")), json!({ of_snapshot: second }));
    for unknown in ["nobody", "a b", ""] {
        assert_eq!(filesystem_metadata(&client, &pool, Some(unknown)), json!({}));
    }
}

#[test]
fn metadata_can_be_asked_for_since_r7() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    for revision in 0..REVISIONS {
        let on = interface("pool", revision);
        let outcome: Result<(String, u16, String), _> = client.call(&pool, &on, "Metadata", (true,));
        assert_eq!(outcome.is_ok(), revision >= 7, "r{revision}: {outcome:?}");
        let arguments = ((false, ""), false);
        let outcome: Result<(String, u16, String), _> = client.call(&pool, &on, "FilesystemMetadata", arguments);
        assert_eq!(outcome.is_ok(), revision >= 7, "r{revision}: {outcome:?}");
    }
}
