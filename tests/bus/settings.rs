//! Properties that can be set: accepted, refused, unchanged, and read back on every revision.

use dbus::arg::{Append, Arg};

use crate::support::client::{BusError, Client, absent, present};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, interface};
use crate::{KINDS, make_pool};

const FAILED: &str = "org.freedesktop.DBus.Error.Failed";

/// Sets a property through `r`, and reads it back on all revisions from `since` on.
#[track_caller]
fn set_and_read(
    client: &Client,
    (path, family): (&str, &str),
    (property, since): (&str, u8),
    value: impl Arg + Append + Clone,
    expected: &Value,
) {
    for revision in since..REVISIONS {
        client.set(path, &interface(family, revision), property, value.clone()).expect("it is accepted");
        for reading in since..REVISIONS {
            let read = client.get(path, &interface(family, reading), property).expect("it can be read");
            assert_eq!(&read, expected, "set through r{revision}, read through r{reading}");
        }
    }
}

#[track_caller]
fn assert_failed(outcome: Result<(), BusError>) {
    let error = outcome.expect_err("the value must be rejected");
    assert_eq!(error.name, FAILED, "{error}");
}

fn pair(text: &str) -> (bool, String) {
    (true, text.to_owned())
}

#[test]
fn a_size_limit_can_be_set_changed_and_removed() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let mut daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let path = client.make_filesystem(&pool, "f");
        let object = (path.as_str(), "filesystem");
        let property = ("SizeLimit", 6);
        set_and_read(&client, object, property, pair("1073741824"), &present("1073741824"));
        set_and_read(&client, object, property, pair("536870912"), &present("536870912"));
        set_and_read(&client, object, property, (false, "ignored".to_owned()), &absent());
        set_and_read(&client, object, property, pair("2147483648"), &present("2147483648"));
        let set = |text: &str| client.set(&path, &interface("filesystem", 9), "SizeLimit", pair(text));
        for wrong in ["", "0", "-1", "x", "536870400", "536870913", "9444732965739290427392", "1 GiB"] {
            assert_failed(set(wrong));
        }
        let read = |client: &Client, path: &str| client.get(path, &interface("filesystem", 9), "SizeLimit");
        assert_eq!(read(&client, &path), Ok(present("2147483648")), "a rejected value changes nothing");
        if kind == crate::support::rig::Kind::Files {
            assert!(daemon.interrupt().success());
            daemon = rig.start();
            let (path, _) = client.family("filesystem").into_iter().next().expect("it was found again");
            assert_eq!(read(&client, &path), Ok(present("2147483648")), "it is durable");
        }
        drop(daemon);
    }
}

#[test]
fn a_size_limit_is_not_below_the_size() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let (_, made) = client.create_filesystems(&pool, &[("f", Some("1073741824"), None)]).done();
    let set = |text: &str| client.set(&made[0].0, &interface("filesystem", 9), "SizeLimit", pair(text));
    assert_failed(set("1073741312"));
    assert_eq!(set("1073741824"), Ok(()));
}

#[test]
fn user_info_can_be_set_changed_and_removed() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let (_, (_, devices)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
        let object = (devices[0].as_str(), "blockdev");
        set_and_read(&client, object, ("UserInfo", 3), pair("tag"), &present("tag"));
        set_and_read(&client, object, ("UserInfo", 3), pair("other"), &present("other"));
        let old = client.get(&devices[0], &interface("blockdev", 0), "UserInfo");
        assert_eq!(old, Ok(present("other")), "old revisions read it too");
        for wrong in ["", " x", "a b", "a/b", &"x".repeat(256)] {
            assert_failed(client.set(&devices[0], &interface("blockdev", 9), "UserInfo", pair(wrong)));
        }
        set_and_read(&client, object, ("UserInfo", 3), (false, String::new()), &absent());
    }
}

#[test]
fn overprovisioning_can_be_forbidden_while_it_is_not_used() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let object = (pool.as_str(), "pool");
        set_and_read(&client, object, ("Overprovisioning", 1), false, &Value::Bool(false));
        set_and_read(&client, object, ("Overprovisioning", 1), true, &Value::Bool(true));
    }
}

#[test]
fn overprovisioning_is_kept_within_the_data_space_once_forbidden() {
    let rig = Rig::files();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let set = |allowed: bool| client.set(&pool, &interface("pool", 9), "Overprovisioning", allowed);
    assert_eq!(set(false), Ok(()));
    client.create_filesystems(&pool, &[("f", Some("1099511627776"), None)]).refused(&(false, Vec::new()));
    assert!(client.family("filesystem").is_empty());
    assert_eq!(set(true), Ok(()));
    client.create_filesystems(&pool, &[("f", Some("4294967296"), None)]).done();
    assert_failed(set(false));
    let read = client.get(&pool, &interface("pool", 9), "Overprovisioning");
    assert_eq!(read, Ok(Value::Bool(true)), "a rejected value changes nothing");
}

#[test]
fn the_limit_of_filesystems_can_be_raised_through_every_revision() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let mut daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let read = |client: &Client, pool: &str, revision| {
            client.get(pool, &interface("pool", revision), "FsLimit").expect("it can be read").number()
        };
        let mut limit = 100;
        for revision in 1..REVISIONS {
            limit += 15;
            client.set(&pool, &interface("pool", revision), "FsLimit", limit).expect("there is room");
            for reading in 1..REVISIONS {
                assert_eq!(read(&client, &pool, reading), limit, "set through r{revision}, read through r{reading}");
            }
        }
        for wrong in [0, 1, limit - 1, limit, 1 << 20, u64::MAX] {
            assert_failed(client.set(&pool, &interface("pool", 9), "FsLimit", wrong));
        }
        assert_eq!(read(&client, &pool, 9), limit, "a rejected value changes nothing");
        if kind == crate::support::rig::Kind::Files {
            assert!(daemon.interrupt().success());
            daemon = rig.start();
            let (pool, _) = client.family("pool").into_iter().next().expect("it was found again");
            assert_eq!(read(&client, &pool, 9), limit, "it is durable");
            client.make_filesystem(&pool, "f");
        }
        drop(daemon);
    }
}

#[test]
fn a_limit_without_room_for_its_metadata_names_the_highest_that_fits() {
    let rig = Rig::files();
    let _daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("small", GIB)]).done();
    let set = |limit: u64| client.set(&pool, &interface("pool", 9), "FsLimit", limit);
    let refused = set(344).expect_err("a pool of 1 GiB keeps little room");
    assert_eq!(refused.name, FAILED);
    for number in ["344", "32768 sectors", "28672 sectors", "343"] {
        assert!(refused.text.contains(number), "{number}: {refused}");
    }
    assert_eq!(set(343), Ok(()));
    let full = set(344).expect_err("that was the highest");
    assert!(full.text.contains("is 343"), "{full}");
}

#[test]
fn a_filesystem_without_origin_cannot_be_merged() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let path = client.make_filesystem(&pool, "f");
    for value in [true, false] {
        assert_failed(client.set(&path, &interface("filesystem", 9), "MergeScheduled", value));
    }
}

#[test]
fn set_is_typed_and_only_for_what_can_be_written() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let (device, _) = client.family("blockdev").into_iter().next().expect("one device");
    let path = client.make_filesystem(&pool, "f");
    let before = client.objects();
    let malformed = ["org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.zbus.Error"];
    let typed = [
        client.set(&pool, &interface("pool", 9), "Overprovisioning", 1_u32),
        client.set(&pool, &interface("pool", 9), "Overprovisioning", "true".to_owned()),
        client.set(&pool, &interface("pool", 9), "FsLimit", 200_u32),
        client.set(&pool, &interface("pool", 9), "FsLimit", 200_i64),
        client.set(&path, &interface("filesystem", 9), "SizeLimit", "1073741824".to_owned()),
        client.set(&path, &interface("filesystem", 9), "SizeLimit", (true, 1_073_741_824_u64)),
        client.set(&device, &interface("blockdev", 9), "UserInfo", "tag".to_owned()),
    ];
    for outcome in typed {
        let error = outcome.expect_err("the type is wrong");
        assert!(malformed.contains(&error.name.as_str()), "{error}");
    }
    let read_only = [
        client.set(&pool, &interface("pool", 9), "Name", "q".to_owned()),
        client.set(&path, &interface("filesystem", 9), "Size", "1".to_owned()),
        client.set(&device, &interface("blockdev", 2), "UserInfo", pair("tag")),
        client.set(crate::support::TOP, &interface("Manager", 9), "Version", "4".to_owned()),
        client.set(&pool, &interface("pool", 0), "Overprovisioning", false),
        client.set(&pool, &interface("pool", 0), "FsLimit", 200_u64),
        client.set(&path, &interface("filesystem", 5), "SizeLimit", pair("1073741824")),
        client.set(&pool, &interface("pool", 9), "NoSuchProperty", false),
    ];
    for outcome in read_only {
        let error = outcome.expect_err("it cannot be written");
        assert_eq!(error.name, "org.freedesktop.DBus.Error.UnknownProperty", "{error}");
    }
    assert_eq!(client.objects(), before);
}
