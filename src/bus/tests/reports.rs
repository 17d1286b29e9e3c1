//! Reports as JSON, and the calls that ask for what is recorded.

use super::*;
use serde_json::{Value as Json, from_str, json};

/// The reply to a call that is answered with a document and code 0.
fn document(bus: &mut Bus, interface: &str, member: &str, args: &[Value]) -> Json {
    match &returned(bus, TOP, interface, member, args)[..] {
        [Value::Text(document), Value::U16(0), Value::Text(ok)] if ok == "Ok" => from_str(document).expect("JSON"),
        other => panic!("{member} gives a document, not {other:?}"),
    }
}

fn report(rev: u8) -> String {
    format!("org.storage.stratis3.Report.r{rev}")
}

#[test]
fn the_state_of_the_engine_has_every_object() {
    let mut bus = bus();
    let mut snapshot = filesystem(1, 2);
    snapshot.record.origin = Some(fs_id(1));
    snapshot.record.size_limit = Some(Sectors(7));
    snapshot.used = Some(Bytes(99));
    let cache = DeviceView { tier: Tier::Cache, new_size: Some(Sectors(5)), ..device(1, 2) };
    bus.handle_views(vec![View::Filesystem(snapshot), View::Device(cache), View::Pool(pool(2))]);
    bus.handle_views(vec![View::Stopped(stopped(3, Some("gone")))]);
    drain(&mut bus);
    let [one, two] = [pool_id(1), pool_id(2)].map(|id| id.to_string());
    let expected = json!({
        "partially_constructed_pools": [],
        "pools": [
            {
                "available_actions": "fully_operational",
                "blockdevs": {
                    "cachedevs": [{
                        "blksizes": "logical: 512 bytes, physical: 4096 bytes", "in_use": true,
                        "new_size": "5 sectors", "path": "/dev/sd2", "size": "2097152 sectors", "uuid": dev_id(2),
                    }],
                    "datadevs": [{
                        "blksizes": "logical: 512 bytes, physical: 4096 bytes", "in_use": true,
                        "path": "/dev/sd1", "size": "2097152 sectors", "uuid": dev_id(1),
                    }],
                },
                "filesystems": [
                    {
                        "name": "fs1", "origin": "Not set", "size": "2097152 sectors", "size_limit": "Not set",
                        "used": "Unavailable", "uuid": fs_id(1),
                    },
                    {
                        "name": "fs2", "origin": fs_id(1).to_string(), "size": "2097152 sectors",
                        "size_limit": "7 sectors", "used": "99 bytes", "uuid": fs_id(2),
                    },
                ],
                "fs_limit": 100, "name": "pool1", "pool_uuid": one, "uuid": one,
            },
            {
                "available_actions": "fully_operational", "blockdevs": {"cachedevs": [], "datadevs": []},
                "filesystems": [], "fs_limit": 100, "name": "pool2", "pool_uuid": two, "uuid": two,
            },
        ],
        "stopped_pools": [{
            "devices": [{
                "device_uuid": dev_id(3), "devnode": "/dev/sd3", "major": 8, "minor": 3, "pool_uuid": pool_id(3),
            }],
            "name": "gone", "pool_uuid": pool_id(3),
        }],
        "name_to_pool_uuid_map": {"gone": pool_id(3)},
        "path_to_ids_map": {"/dev/sd3": [pool_id(3), dev_id(3)]},
    });
    for rev in 0..=LATEST {
        assert_eq!(document(&mut bus, &manager(rev), "EngineStateReport", &[]), expected, "r{rev}");
    }
}

#[test]
fn the_report_of_stopped_pools_tells_pools_of_one_name_apart() {
    let mut bus = bus();
    for rev in 0..=LATEST {
        let empty = document(&mut bus, &report(rev), "GetReport", &[text("stopped_pools")]);
        assert_eq!(empty, json!({"stopped_pools": []}), "r{rev}");
    }
    for (n, name) in [(2, Some("twin")), (3, None), (4, Some("twin"))] {
        bus.handle_views(vec![View::Stopped(stopped(n, name))]);
    }
    drain(&mut bus);
    let listed = document(&mut bus, &report(9), "GetReport", &[text("stopped_pools")]);
    assert_eq!(listed["name_to_pool_uuid_map"], json!({"twin": [pool_id(2), pool_id(4)]}));
    let pools = listed["stopped_pools"].as_array().expect("a list");
    assert_eq!(pools.len(), 3);
    assert_eq!(pools[1].get("name"), None, "what cannot be read is left out: {listed}");
}

#[test]
fn there_is_no_other_report() {
    let mut bus = bus();
    for tried in ["engine_state_report", "", "stopped_pools ", "Stopped_pools"] {
        let (first, why) = code_1(&mut bus, TOP, &report(0), "GetReport", &[text(tried)]);
        assert_eq!(first, text(""));
        assert!(why.contains(&format!("{tried:?}")), "{why}");
    }
}

#[test]
fn what_is_recorded_is_asked_of_the_home_of_the_pool() {
    let mut bus = bus();
    let pool = format!("{TOP}/0");
    for rev in 7..=LATEST {
        let interface = pool_interface(rev);
        for current in [false, true] {
            let request = asked(&mut bus, &pool, &interface, "Metadata", &[Value::Flag(current)]);
            assert_eq!(request.wish, Wish::Metadata(pool_id(1), current));
            let messages = concluded(&mut bus, &request, vec![], Answer::Text("{\"a\":1}".into()));
            assert_eq!(triple(&messages), (text("{\"a\":1}"), 0, "Ok".into()));
        }
        for (name, wanted) in [(none(), None), (some("fs1"), Some("fs1".to_owned())), (some("a b"), Some("a b".into()))]
        {
            let request = asked(&mut bus, &pool, &interface, "FilesystemMetadata", &[name, Value::Flag(true)]);
            assert_eq!(request.wish, Wish::FilesystemMetadata(pool_id(1), wanted));
            bus.handle_reply(Reply { call: request.call, outcome: Err(Refusal::NoPool(pool_id(1)).into()) });
            let (first, code, _) = triple(&drain(&mut bus));
            assert_eq!((first, code), (text(""), 1));
        }
    }
}
