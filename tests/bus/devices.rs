//! Devices of pools that exist: `AddDataDevs`, `InitCache`, `AddCacheDevs`, `GrowPhysicalDevice`, and
//! `StartPool` that removes the cache.

use std::fs::OpenOptions;

use crate::support::client::{Answer, Client, Properties, absent, method, started};
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{KINDS, make_pool, text_of};

type Path = dbus::Path<'static>;
type Start = (bool, (Path, Vec<Path>, Vec<Path>));

fn nothing() -> (bool, Vec<String>) {
    (false, Vec::new())
}

/// The properties of the device at a path of the machine.
#[track_caller]
fn device(client: &Client, disk: &str) -> (String, Properties) {
    let mut all = client.family("blockdev").into_iter();
    all.find(|(_, properties)| properties["Devnode"].text() == disk).expect("the device is there")
}

fn bytes(client: &Client, pool: &str) -> u64 {
    text_of(client, pool, "pool", "TotalPhysicalSize").parse().expect("a number")
}

#[test]
fn data_devices_are_added_on_every_revision() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let mut size = bytes(&client, &pool);
        for revision in 0..REVISIONS {
            let disk = rig.disk(&format!("disk{revision}"), GIB);
            let add = || client.give_devices(&pool, ("AddDataDevs", revision), &[&disk, &disk]).done();
            let (changed, paths) = add();
            let (path, properties) = device(&client, &disk);
            assert_eq!((changed, paths), (true, vec![path]), "r{revision}");
            assert_eq!(properties["Tier"], Value::Unsigned('q', 0));
            assert_eq!(properties["Pool"].text(), pool);
            let now = bytes(&client, &pool);
            let own: u64 = properties["TotalPhysicalSize"].text().parse().expect("a number");
            assert_eq!(now, size + own, "r{revision}: the pool has what the device has");
            size = now;
            assert_eq!(add(), nothing(), "r{revision}: it has the device");
            assert_eq!(client.give_devices(&pool, ("AddDataDevs", revision), &[""; 0]).done(), nothing());
            client.give_devices(&pool, ("AddDataDevs", revision), &["relative", &disk]).refused(&nothing());
        }
        assert_eq!(client.family("blockdev").len(), 1 + usize::from(REVISIONS));
    }
}

#[test]
fn devices_that_do_not_fit_are_refused_by_name() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        make_pool(&rig, &client, "q");
        let (theirs, good) = (rig.disk("disk-of-q", 2 * GIB), rig.disk("good", GIB));
        let before = client.objects();
        let text = client.give_devices(&pool, ("AddDataDevs", 9), &[&good, &theirs]).refused(&nothing());
        assert!(text.contains(&theirs), "{text}");
        if kind == Kind::Files {
            let small = rig.disk("small", GIB - 512);
            let text = client.give_devices(&pool, ("AddDataDevs", 9), &[&good, &small]).refused(&nothing());
            assert!(text.contains(&small), "{text}");
            let missing = format!("{good}-not");
            let text = client.give_devices(&pool, ("AddDataDevs", 9), &[&good, &missing]).refused(&nothing());
            assert!(text.contains(&missing), "{text}");
        }
        assert_eq!(client.objects(), before);
        assert!(client.give_devices(&pool, ("AddDataDevs", 9), &[&good]).done().0, "it is free");
    }
}

#[test]
fn what_was_added_is_there_after_a_restart() {
    let rig = Rig::files();
    let mut daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    client.make_filesystem(&pool, "f");
    let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
    client.give_devices(&pool, ("AddDataDevs", 9), &[&disks[0], &disks[1]]).done();
    let size = bytes(&client, &pool);
    client.set(&pool, &interface("pool", 9), "FsLimit", 2_000_u64).expect("the new devices have room for that");
    let uuids = |client: &Client| disks.clone().map(|disk| device(client, &disk).1["Uuid"].text().to_owned());
    let before = uuids(&client);
    for _ in 0..2 {
        assert!(daemon.interrupt().success());
        daemon = rig.start();
        let (pool, _) = client.family("pool").into_iter().next().expect("it was found again");
        assert_eq!((bytes(&client, &pool), uuids(&client)), (size, before.clone()));
        // Asked for again with all of its devices it is the pool that exists.
        let all = [rig.disk("disk-of-p", 2 * GIB), disks[0].clone(), disks[1].clone()];
        assert!(!client.create_pool("p", &all).done().0);
    }
}

#[test]
fn a_cache_is_made_on_every_revision_and_grows() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in 0..REVISIONS {
        let pool = make_pool(&rig, &client, &format!("p{revision}"));
        let data = rig.disk(&format!("disk-of-p{revision}"), GIB);
        let [one, two] = ["one", "two"].map(|name| rig.disk(&format!("{name}-{revision}"), GIB));
        let has_cache = || client.get(&pool, &interface("pool", revision), "HasCache").expect("it can be read");
        let ask = |method: &str, disks: &[&str]| client.give_devices(&pool, (method, revision), disks);
        assert_eq!(has_cache(), Value::Bool(false));
        for disks in [&[][..], &[one.as_str()]] {
            ask("AddCacheDevs", disks).refused(&nothing());
        }
        ask("InitCache", &[]).refused(&nothing());
        ask("InitCache", &["relative"]).refused(&nothing());
        let size = bytes(&client, &pool);
        let (changed, made) = ask("InitCache", &[&one, &one]).done();
        let (path, properties) = device(&client, &one);
        assert_eq!((changed, made), (true, vec![path]), "r{revision}");
        assert_eq!((properties["Tier"].clone(), has_cache()), (Value::Unsigned('q', 1), Value::Bool(true)));
        assert_eq!(bytes(&client, &pool), size, "a cache is no room for data");
        assert_eq!(ask("InitCache", &[&one]).done(), nothing(), "r{revision}");
        for others in [&[][..], &[two.as_str()], &[one.as_str(), two.as_str()]] {
            ask("InitCache", others).refused(&nothing());
        }
        ask("AddCacheDevs", &[&data]).refused(&nothing());
        ask("AddDataDevs", &[&one]).refused(&nothing());
        assert_eq!(ask("AddCacheDevs", &[]).done(), nothing());
        assert_eq!(ask("AddCacheDevs", &[&one]).done(), nothing());
        let (changed, made) = ask("AddCacheDevs", &[&one, &two]).done();
        let (path, properties) = device(&client, &two);
        assert_eq!((changed, made), (true, vec![path]), "only what is new");
        assert_eq!(properties["Tier"], Value::Unsigned('q', 1));
        assert_eq!(ask("AddCacheDevs", &[&two]).done(), nothing());
        // The devices of the cache are not compared.
        assert!(!client.create_pool(&format!("p{revision}"), &[data]).done().0);
    }
}

#[test]
fn files_have_no_cache_and_say_so() {
    let rig = Rig::files();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let disk = rig.disk("cache", 2 * GIB);
    let before = client.objects();
    for method in ["InitCache", "AddCacheDevs"] {
        let text = client.give_devices(&pool, (method, 9), &[&disk]).refused(&nothing());
        assert!(text.contains("not supported"), "{text}");
    }
    assert_eq!(client.objects(), before);
    assert!(client.give_devices(&pool, ("AddDataDevs", 9), &[&disk]).done().0, "nothing was done to it");
}

#[test]
fn a_pool_is_started_without_its_cache_where_r9_asks_for_that() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let disk = rig.disk("cache", GIB);
    client.give_devices(&pool, ("InitCache", 9), &[&disk]).done();
    let start = |revision: u8, remove: bool| {
        let dummy = std::fs::File::open("/dev/null").expect("/dev/null can be opened");
        let (unlock, key) = ((false, (false, 0_u32)), (false, dummy));
        let on = interface("Manager", revision);
        let answer: Answer<Start> = match revision {
            8 => client.ask(TOP, &on, "StartPool", ("p", "name", unlock, key)),
            _ => client.ask(TOP, &on, "StartPool", ("p", "name", unlock, key, remove)),
        };
        let (changed, (pool, devices, _)) = started(answer.done());
        (changed, pool, devices.len())
    };
    client.stop_pool("p", "name").done();
    assert_eq!(
        client.stopped_pools(9).values().next().expect("it is stopped")["devs"].clone().bare().members().len(),
        2
    );
    for (revision, remove, devices) in [(8, false, 2), (9, false, 2), (9, true, 1), (9, true, 1)] {
        let (changed, pool, count) = start(revision, remove);
        assert_eq!((changed, count), (true, devices), "r{revision} {remove}");
        let has_cache = client.get(&pool, &interface("pool", 9), "HasCache").expect("it can be read");
        assert_eq!(has_cache, Value::Bool(devices == 2));
        assert_eq!(start(9, true), (false, "/".to_owned(), 0), "it runs");
        client.stop_pool("p", "name").done();
    }
    // The device is nobody's now.
    client.create_pool("q", &[disk]).done();
}

#[test]
fn a_device_grows_when_it_has_grown() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let disk = rig.disk("disk-of-p", 2 * GIB);
        let (path, properties) = device(&client, &disk);
        let uuid = properties["Uuid"].text().to_owned();
        for revision in 3..REVISIONS {
            let grow = |id: &str| -> Answer<bool> {
                client.ask(&pool, &interface("pool", revision), "GrowPhysicalDevice", (id,))
            };
            let hyphenated = crate::hyphenated(&uuid);
            let spellings = [
                uuid.clone(),
                hyphenated.to_uppercase(),
                format!("{{{hyphenated}}}"),
                format!("urn:uuid:{hyphenated}"),
            ];
            for spelling in &spellings {
                assert!(!grow(spelling).done(), "it has not grown");
            }
            assert!(!grow(crate::NIL).done(), "a device that is not there has not grown");
            for wrong in ["", "x", "disk", &uuid[1..]] {
                grow(wrong).refused(&false);
            }
            if kind == Kind::Files {
                let size = (2 + u64::from(revision)) * GIB;
                let file = OpenOptions::new().write(true).open(&disk).expect("the disk is a file");
                file.set_len(size).expect("the host has holes");
                assert!(grow(&uuid).done(), "r{revision}");
                assert!(!grow(&uuid).done(), "r{revision}: once");
                assert_eq!(text_of(&client, &path, "blockdev", "TotalPhysicalSize"), size.to_string());
                assert_eq!(bytes(&client, &pool), size);
                let pending = client.get(&path, &interface("blockdev", 9), "NewPhysicalSize");
                assert_eq!(pending, Ok(absent()));
            }
        }
        for revision in 0..3 {
            let call = method(&pool, &interface("pool", revision), "GrowPhysicalDevice").append1(uuid.as_str());
            let error = client.exchange(call).expect_err("old revisions do not have it");
            assert_eq!(error.name, "org.freedesktop.DBus.Error.UnknownMethod");
        }
    }
}

#[test]
fn a_refresh_changes_nothing_where_nothing_has_changed() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        client.make_filesystem(&pool, "f");
        make_pool(&rig, &client, "q");
        client.stop_pool("q", "name").done();
        client.subscribe();
        let (objects, stopped) = (client.objects(), client.stopped_pools(9));
        for revision in 2..REVISIONS {
            let said: Result<(u16, String), _> = client.call(TOP, &interface("Manager", revision), "RefreshState", ());
            assert_eq!(said.expect("it is answered"), (0, "Ok".to_owned()), "r{revision}");
        }
        assert_eq!(client.late_signals(), []);
        assert_eq!((client.objects(), client.stopped_pools(9)), (objects, stopped));
        client.start_pool("q", "name").done();
    }
}
