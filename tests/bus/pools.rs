//! CreatePool and DestroyPool: twice, wrongly, and in all shapes.

use crate::support::client::{create_pool_arguments, method};
use crate::support::rig::{Kind, Rig};
use crate::support::{GIB, TOP, interface};
use crate::{KINDS, assert_simple_uuid, hyphenated, make_pool, text_of};

type Paths = (bool, (dbus::Path<'static>, Vec<dbus::Path<'static>>));

fn unchanged() -> (bool, (String, Vec<String>)) {
    (false, ("/".to_owned(), Vec::new()))
}

#[test]
fn creating_a_pool_twice_changes_nothing_the_second_time() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let disks = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        let (changed, (pool, devices)) = client.create_pool("p", &disks).done();
        assert!(changed);
        assert_eq!(devices.len(), 2);
        assert_eq!(text_of(&client, &pool, "pool", "Name"), "p");
        assert_simple_uuid(&text_of(&client, &pool, "pool", "Uuid"));
        let before = client.objects();
        assert_eq!(client.create_pool("p", &disks).done(), unchanged(), "{kind:?}");
        let reversed = [disks[1].clone(), disks[0].clone()];
        assert_eq!(client.create_pool("p", &reversed).done(), unchanged(), "the order of devices does not matter");
        assert_eq!(client.objects(), before);
    }
}

#[test]
fn an_existing_name_with_other_devices_is_refused_naming_the_differences() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let [one, two, three] = ["one", "two", "three"].map(|name| rig.disk(name, 2 * GIB));
        client.create_pool("p", &[&one, &two]).done();
        let before = client.objects();
        let text = client.create_pool("p", &[&one, &three]).refused(&unchanged());
        assert!(text.contains(&two) && text.contains(&three), "{text:?} names what differs");
        client.create_pool("p", &[&one]).refused(&unchanged());
        client.create_pool::<&str>("p", &[]).refused(&unchanged());
        client.create_pool::<&str>("q", &[]).refused(&unchanged());
        assert_eq!(client.objects(), before);
        client.create_pool("q", &[&three]).done();
    }
}

#[test]
fn a_device_of_one_pool_is_refused_for_another() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let [one, two] = ["one", "two"].map(|name| rig.disk(name, 2 * GIB));
        client.create_pool("p", &[&one]).done();
        let text = client.create_pool("q", &[&two, &one]).refused(&unchanged());
        assert!(text.contains(&one), "{text:?} names the device");
        // The innocent device is free again.
        client.create_pool("q", &[&two]).done();
        // A stopped pool keeps its devices.
        client.stop_pool("p", "name").done();
        client.create_pool("r", &[&one]).refused(&unchanged());
    }
}

#[test]
fn a_destroyed_pool_is_gone_and_its_devices_are_free() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let disk = rig.disk("one", 2 * GIB);
        let (_, (pool, devices)) = client.create_pool("p", &[&disk]).done();
        let uuid = text_of(&client, &pool, "pool", "Uuid");
        let destroyed = client.destroy_pool(&pool).done();
        assert_eq!(destroyed, (true, hyphenated(&uuid)), "DestroyPool returns the hyphenated UUID");
        assert!(client.objects().is_empty());
        assert!(client.stopped_pools(9).is_empty());
        client.destroy_pool(&pool).refused(&(false, String::new()));
        client.destroy_pool(&devices[0]).refused(&(false, String::new()));
        let (changed, (again, _)) = client.create_pool("p", &[&disk]).done();
        assert!(changed);
        assert_ne!(again, pool, "paths are not used again");
        assert_ne!(text_of(&client, &again, "pool", "Uuid"), uuid);
    }
}

#[test]
fn only_an_empty_pool_can_be_destroyed() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let filesystem = client.make_filesystem(&pool, "f");
        let before = client.objects();
        client.destroy_pool(&pool).refused(&(false, String::new()));
        for path in [filesystem.as_str(), TOP, "/", "/no/such/object"] {
            client.destroy_pool(path).refused(&(false, String::new()));
        }
        assert_eq!(client.objects(), before);
        client.destroy_filesystems(&pool, &[filesystem]).done();
        assert!(client.destroy_pool(&pool).done().0);
    }
}

#[test]
fn pool_names_follow_the_rules() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let longest = "x".repeat(255);
    let wide = "\u{fc}".repeat(127);
    for (index, good) in
        ["a,b", "...", "1", "-a", "#+,-.:=@_", "\u{1f600}", "\u{200b}", &longest, &wide].iter().enumerate()
    {
        assert!(client.create_pool(good, &[format!("/good{index}")]).done().0, "{good:?} is a name");
    }
    let before = client.objects();
    let long = "x".repeat(256);
    let wide = "\u{fc}".repeat(128);
    for bad in [
        "",
        ".",
        "..",
        &long,
        &wide,
        " a",
        "a ",
        "\u{a0}a",
        "a\u{2003}",
        "a\tb",
        "\u{85}",
        "a b",
        "a/b",
        "/a",
        "a/",
        "./a",
        "/",
    ] {
        client.create_pool(bad, &["/bad"]).refused(&unchanged());
    }
    for letter in "!\"$%&'()*;<>?[\\]^{|}~`".chars() {
        client.create_pool(&format!("a{letter}b"), &["/bad"]).refused(&unchanged());
    }
    assert_eq!(client.objects(), before);
}

#[test]
fn integrity_arguments_are_checked() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let create = |name: &str, journal: (bool, u64), tag: (bool, &str), superblock: (bool, bool)| {
        let mut arguments = create_pool_arguments(name, &[format!("/{name}")]);
        (arguments.4, arguments.5, arguments.6) = (journal, (tag.0, tag.1.to_owned()), superblock);
        client.ask::<Paths>(TOP, &interface("Manager", 9), "CreatePool", arguments)
    };
    assert!(create("defaults", (false, 7), (false, "nonsense"), (false, false)).done().0, "absent means ignored");
    assert!(create("none", (true, 0), (true, "0b"), (true, false)).done().0);
    assert!(create("small", (true, 4096), (true, "32b"), (true, true)).done().0);
    let neutral = (false, (dbus::Path::from("/"), Vec::new()));
    create("odd", (true, 4095), (true, "0b"), (true, false)).refused(&neutral);
    create("odd", (true, 131_079 * 1024), (true, "0b"), (true, false)).refused(&neutral);
    for tag in ["", "64b", "0B", "512"] {
        create("tag", (true, 0), (true, tag), (true, false)).refused(&neutral);
    }
    assert_eq!(client.family("pool").len(), 3);
}

#[test]
fn a_pool_with_unknown_keys_is_refused() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let mut arguments = create_pool_arguments("p", &["/a"]);
    arguments.2 = vec![((false, 0), "no such key".to_owned())];
    let neutral = (false, (dbus::Path::from("/"), Vec::new()));
    client.ask::<Paths>(TOP, &interface("Manager", 9), "CreatePool", arguments).refused(&neutral);
    assert!(client.objects().is_empty());
}

#[test]
fn relative_device_paths_are_refused_by_name() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let disk = rig.disk("one", 2 * GIB);
        for relative in ["dev/sda", "", "./sda", "../sda"] {
            let text = client.create_pool("p", &[&disk, relative]).refused(&unchanged());
            assert!(text.contains(relative), "{text:?} names {relative:?}");
        }
        assert!(client.objects().is_empty());
    }
}

#[test]
fn one_path_twice_is_one_device() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let disk = rig.disk("one", 2 * GIB);
        let doubled = disk.replacen('/', "//", 1);
        let dotted = disk.replacen('/', "/./", 1);
        let (_, (_, devices)) = client.create_pool("p", &[&disk, &disk, &doubled, &dotted]).done();
        assert_eq!(devices.len(), 1, "{kind:?}: all of these are one path");
        assert_eq!(client.create_pool("p", &[&doubled]).done(), unchanged());
    }
}

#[test]
fn a_call_without_reply_is_carried_out() {
    let rig = Rig::new(Kind::Sim);
    let _daemon = rig.start();
    let client = rig.client();
    let mut message = method(TOP, &interface("Manager", 9), "CreatePool");
    message.append_all(create_pool_arguments("p", &["/a"]));
    message.set_no_reply(true);
    client.send(message);
    // The reply to an equal call proves that the first was started, and that calls keep their order.
    let answer = client.create_pool("p", &["/a"]);
    assert!(answer.code == 0 || answer.text.contains('p'), "either done already or still going on: {answer:?}");
    while client.family("pool").is_empty() {
        client.wait_message(std::time::Duration::from_millis(5));
    }
    assert_eq!(client.create_pool("p", &["/a"]).done(), unchanged());
    assert_eq!(client.family("pool").len(), 1);
}
