//! Reading, setting and listing properties, and how changes are announced.
//!
//! Types are compared with the introspection XML, which `tests/introspect.rs` compares with that of
//! a released daemon.

use super::*;
use crate::bus::encode::Buffer;
use crate::bus::facts::ObjectPath;
use crate::bus::table::{BLOCKDEV, FILESYSTEM, Family, POOL};
use crate::bus::tree::Object;

#[test]
fn a_property_reads_as_the_view_has_it() {
    let mut bus = bus();
    let fs = format!("{TOP}/1");
    let dev = format!("{TOP}/2");
    let filesystem = |rev: u8| format!("org.storage.stratis3.filesystem.r{rev}");
    let blockdev = |rev: u8| format!("org.storage.stratis3.blockdev.r{rev}");
    assert_eq!(get(&mut bus, TOP, &manager(0), "Version"), text("3.9.2"));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Pool"), path(0));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Created"), text("2026-11-21T04:22:59Z"));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Size"), text("1073741824"));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Used"), none());
    assert_eq!(get(&mut bus, &fs, &filesystem(7), "Origin"), pair(false, text(&"0".repeat(32))));
    assert_eq!(get(&mut bus, &dev, &blockdev(0), "Tier"), Value::U16(0));
    assert_eq!(get(&mut bus, &dev, &blockdev(0), "Pool"), path(0));
    let pool = format!("{TOP}/0");
    assert_eq!(get(&mut bus, &pool, &pool_interface(8), "KeyDescriptions"), text("Unencrypted"));
    assert_eq!(get(&mut bus, &pool, &pool_interface(0), "TotalPhysicalUsed"), some("0"));
    assert_eq!(get(&mut bus, &pool, &pool_interface(8), "MetadataVersion"), Value::U64(2));
}

#[test]
fn listings_hold_every_property_of_every_revision_in_its_declared_type() {
    let mut bus = bus();
    let all = returned(&mut bus, TOP, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &[]);
    let [Value::Array("{oa{sa{sv}}}", objects)] = &all[..] else { panic!("{all:?}") };
    assert_eq!(objects.len(), 3);
    let mut seen = 0;
    for (object, number) in objects.iter().zip(0..) {
        let Value::Entry(pair) = object else { panic!("{object:?}") };
        assert_eq!(pair.0, path(number));
        let Value::Array(_, interfaces) = &pair.1 else { panic!("{object:?}") };
        assert_eq!(interfaces.len(), 10);
        for interface in interfaces {
            let Value::Entry(pair) = interface else { panic!("{interface:?}") };
            let Value::Text(name) = &pair.0 else { panic!("{interface:?}") };
            let at = format!("{TOP}/{number}");
            let alone = returned(&mut bus, &at, PROPERTIES, "GetAll", &[text(name)]);
            assert_eq!(alone, std::slice::from_ref(&pair.1), "{name}");
            seen += declared_types(name, &pair.1);
        }
    }
    // Spec: 331 property entries, of which the manager has 20.
    assert_eq!(seen, 331 - 20);
}

/// Checks the values against the introspection XML; gives their count.
fn declared_types(interface: &str, all: &Value) -> usize {
    let xml = [crate::bus::xml::pool(), crate::bus::xml::filesystem(), crate::bus::xml::blockdev()].concat();
    let start = xml.find(&format!("<interface name=\"{interface}\">")).expect("it is introspected");
    let xml = &xml[start..start + xml[start..].find("</interface>").expect("it ends")];
    let Value::Array("{sv}", entries) = all else { panic!("{all:?}") };
    assert_eq!(xml.matches("<property ").count(), entries.len(), "{interface} is complete");
    for entry in entries {
        let Value::Entry(pair) = entry else { panic!("{entry:?}") };
        let (Value::Text(name), Value::Variant(value)) = &**pair else { panic!("{entry:?}") };
        let signature = value.to_signature();
        let declared = format!("<property name=\"{name}\" type=\"{signature}\"");
        let open = format!("<property name=\"{name}\" type=\"v\"");
        assert!(xml.contains(&declared) || xml.contains(&open), "{interface}.{name} is {signature}");
    }
    entries.len()
}

#[test]
fn a_set_becomes_a_wish_and_is_answered_with_nothing() {
    let mut bus = bus();
    let (fs, dev) = (format!("{TOP}/1"), format!("{TOP}/2"));
    let r9 = |family: &str| format!("org.storage.stratis3.{family}.r9");
    for (at, family, property, value, wish) in [
        (
            &format!("{TOP}/0"),
            "pool",
            "Overprovisioning",
            Value::Flag(false),
            Wish::SetOverprovisioning(pool_id(1), false),
        ),
        (&format!("{TOP}/0"), "pool", "FsLimit", Value::U64(200), Wish::SetFsLimit(pool_id(1), 200)),
        (&fs, "filesystem", "SizeLimit", some("1073741824"), Wish::SetSizeLimit(pool_id(1), fs_id(1), Some(GIB))),
        (&fs, "filesystem", "SizeLimit", pair(false, text("junk")), Wish::SetSizeLimit(pool_id(1), fs_id(1), None)),
        (&fs, "filesystem", "MergeScheduled", Value::Flag(true), Wish::SetMerge(pool_id(1), fs_id(1), true)),
        (&dev, "blockdev", "UserInfo", some("mine"), Wish::SetUserInfo(pool_id(1), dev_id(1), Some(name("mine")))),
        (&dev, "blockdev", "UserInfo", none(), Wish::SetUserInfo(pool_id(1), dev_id(1), None)),
    ] {
        let request = asked(&mut bus, at, PROPERTIES, "Set", &set_call(&r9(family), property, value));
        assert_eq!(request.wish, wish);
        let messages = concluded(&mut bus, &request, vec![], Answer::Set);
        assert_eq!(messages[0].msg_type(), MessageType::MethodReturn);
        assert!(values(&messages[0]).is_empty());
    }
}

#[test]
fn a_set_that_fails_has_the_error_name_that_clients_know() {
    let mut bus = bus();
    let fs = format!("{TOP}/1");
    let interface = "org.storage.stratis3.filesystem.r9";
    let refused = failed(&mut bus, &fs, PROPERTIES, "Set", &set_call(interface, "SizeLimit", some("513")));
    assert_eq!(refused, SET_FAILED);
    let request = asked(&mut bus, &fs, PROPERTIES, "Set", &set_call(interface, "MergeScheduled", Value::Flag(true)));
    let refusal = Refusal::NotASnapshot { name: name("fs1") };
    bus.handle_reply(Reply { call: request.call, outcome: Err(Failure::Refused(refusal)) });
    assert_eq!(error_name(&drain(&mut bus)[0]), SET_FAILED);
}

#[test]
fn wrong_sets_are_told_apart() {
    let mut bus = bus();
    let at = format!("{TOP}/0");
    let r9 = pool_interface(9);
    for (interface, property, value, error) in [
        (&*r9, "Overprovisioning", Value::U32(1), INVALID_ARGS),
        (&*r9, "Name", text("x"), UNKNOWN_PROPERTY),
        (&*r9, "Nothing", text("x"), UNKNOWN_PROPERTY),
        (&*r9, "FsLimit", Value::U32(200), INVALID_ARGS),
        ("org.storage.stratis3.pool.r0", "Overprovisioning", Value::Flag(true), UNKNOWN_PROPERTY),
        ("org.storage.stratis3.pool.r0", "FsLimit", Value::U64(200), UNKNOWN_PROPERTY),
        ("org.storage.stratis3.pool.r10", "Overprovisioning", Value::Flag(true), UNKNOWN_INTERFACE),
        ("org.storage.stratis3.filesystem.r9", "Name", text("x"), UNKNOWN_INTERFACE),
        ("", "Name", text("x"), INVALID_ARGS),
    ] {
        assert_eq!(
            failed(&mut bus, &at, PROPERTIES, "Set", &set_call(interface, property, value)),
            error,
            "{property}"
        );
    }
    assert_eq!(failed(&mut bus, &at, PROPERTIES, "Get", &[text(&r9)]), INVALID_ARGS);
    assert_eq!(failed(&mut bus, &at, PROPERTIES, "Get", &[text(&r9), text("Nothing")]), UNKNOWN_PROPERTY);
    assert_eq!(failed(&mut bus, &at, PROPERTIES, "GetAll", &[text("a.b")]), UNKNOWN_INTERFACE);
}

#[test]
fn the_old_user_info_call_answers_with_the_device() {
    let mut bus = bus();
    let at = format!("{TOP}/2");
    let interface = "org.storage.stratis3.blockdev.r2";
    let request = asked(&mut bus, &at, interface, "SetUserInfo", &[some("mine")]);
    let messages = concluded(&mut bus, &request, vec![], Answer::Set);
    assert_eq!(triple(&messages), (some(&dev_id(1).simple()), 0, "Ok".into()));
    let request = asked(&mut bus, &at, interface, "SetUserInfo", &[some("mine")]);
    let messages = concluded(&mut bus, &request, vec![], Answer::Identity);
    assert_eq!(triple(&messages), (pair(false, text(&"0".repeat(32))), 0, "Ok".into()));
    assert_eq!(failed(&mut bus, &at, "org.storage.stratis3.blockdev.r3", "SetUserInfo", &[none()]), UNKNOWN_METHOD);
}

/// Interface, changed names and invalidated names of each `PropertiesChanged`.
fn changes(messages: &[Message]) -> Vec<(String, Vec<String>, Vec<String>)> {
    let name = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => panic!("{other:?} is no name"),
    };
    let key = |entry: &Value| match entry {
        Value::Entry(pair) => name(&pair.0),
        other => panic!("{other:?} is no entry"),
    };
    messages
        .iter()
        .filter(|message| message.member().as_deref() == Some("PropertiesChanged"))
        .map(|message| match &values(message)[..] {
            [Value::Text(interface), Value::Array(_, changed), Value::Array(_, invalidated)] => {
                (interface.clone(), changed.iter().map(key).collect(), invalidated.iter().map(name).collect())
            }
            other => panic!("{other:?} is no change"),
        })
        .collect()
}

#[test]
fn a_changed_property_is_announced_on_the_revisions_that_have_it() {
    let mut bus = bus();
    for (changed, name) in [
        (PoolView { overprovisioning: false, ..pool(1) }, "Overprovisioning"),
        (PoolView { overprovisioning: false, fs_limit: 200, ..pool(1) }, "FsLimit"),
    ] {
        bus.handle_views(vec![View::Pool(changed)]);
        let told = changes(&drain(&mut bus));
        let expected: Vec<_> = (1..=9).map(|rev| (pool_interface(rev), vec![name.to_owned()], vec![])).collect();
        assert_eq!(told, expected);
    }
}

#[test]
fn one_signal_carries_all_that_changed_on_an_interface() {
    let mut bus = bus();
    let grown = PoolView { allocated: Bytes(1), no_alloc_space: true, ..pool(1) };
    bus.handle_views(vec![View::Pool(grown)]);
    let told = changes(&drain(&mut bus));
    assert_eq!(told.len(), 10);
    assert_eq!(told[0].1, ["AllocatedSize"]);
    assert_eq!(told[1].1, ["AllocatedSize", "NoAllocSpace"]);
}

#[test]
fn the_mount_path_is_announced_without_its_value() {
    let mut bus = bus();
    bus.handle_views(vec![View::Filesystem(FilesystemView { devnode: "/elsewhere".into(), ..filesystem(1, 1) })]);
    let told = changes(&drain(&mut bus));
    assert_eq!(told.len(), 10);
    assert!(told.iter().all(|(_, changed, invalid)| changed.is_empty() && invalid == &["Devnode"]));
}

#[test]
fn what_does_not_change_is_not_announced() {
    let mut bus = bus();
    bus.handle_views(vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1)), View::StoppedGone(pool_id(3))]);
    // Constant and silent properties, too.
    bus.handle_views(vec![View::Device(DeviceView { devnode: "/dev/x".into(), tier: Tier::Cache, ..device(1, 1) })]);
    assert!(drain(&mut bus).is_empty());
}

#[test]
fn user_info_is_announced_since_r3() {
    let mut bus = bus();
    bus.handle_views(vec![View::Device(DeviceView { user_info: Some("x".into()), ..device(1, 1) })]);
    let told = changes(&drain(&mut bus));
    assert_eq!(told.first().map(|(interface, _, _)| &**interface), Some("org.storage.stratis3.blockdev.r3"));
    assert_eq!(told.len(), 7);
}

/// An object, each property of each revision written for itself.
fn written<V>(path: ObjectPath, family: &'static Family<V>, facts: &V) -> Vec<u8> {
    let mut out = Buffer::default();
    out.string(&path.to_string());
    out.array(8, |out| {
        for rev in 0..=LATEST {
            out.align(8);
            out.string(&family.interface_at(rev));
            out.array(8, |out| {
                for row in family.properties_at(rev) {
                    out.align(8);
                    out.string(row.name);
                    out.variant(&(row.read)(facts));
                }
            });
        }
    });
    out.into_bytes()
}

#[test]
fn what_an_object_says_is_each_property_of_each_revision_in_its_place() {
    let mut bus = bus();
    // Texts of other lengths end at other places.
    for length in 1..=9 {
        let record = FilesystemRecord { name: name(&"f".repeat(length)), ..filesystem(1, 1).record };
        bus.handle_views(vec![View::Filesystem(FilesystemView { record, ..filesystem(1, 1) })]);
        for path in bus.tree().paths() {
            let object = bus.tree().object(path).expect("it has a path");
            let expected = match object {
                Object::Pool(node) => written(path, &POOL, &node.facts),
                Object::Filesystem(node) => written(path, &FILESYSTEM, &node.facts),
                Object::Device(node) => written(path, &BLOCKDEV, &node.facts),
            };
            let mut sent = Buffer::default();
            object.fragment().write(&mut sent);
            assert!(sent.as_bytes() == expected, "{path}, length {length}");
            assert_eq!(object.fragment().size() - object.fragment().padding(), expected.len());
        }
    }
}

#[test]
fn paths_are_never_used_twice() {
    let mut bus = bus();
    bus.handle_views(vec![View::PoolGone(pool_id(1))]);
    bus.handle_views(vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1)), View::Device(device(1, 1))]);
    drain(&mut bus);
    assert_eq!(bus.tree().paths().map(|path| path.0).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(get(&mut bus, &format!("{TOP}/4"), "org.storage.stratis3.filesystem.r1", "Pool"), path(3));
    assert_eq!(
        failed(&mut bus, &format!("{TOP}/0"), PROPERTIES, "GetAll", &[text(&pool_interface(1))]),
        UNKNOWN_OBJECT
    );
}
