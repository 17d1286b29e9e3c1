//! Every property of every object on every revision: names, types, values, and one truth behind all
//! ways to read it.

use std::collections::BTreeMap;

use crate::support::client::{absent, present};
use crate::support::introspection::{Interfaces, golden, parse};
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{KINDS, NIL, assert_simple_uuid, make_pool};

/// One object of each kind, the kind's name in the golden files first.
fn objects_of_each_kind(client: &crate::support::client::Client) -> BTreeMap<&'static str, String> {
    let mut found = BTreeMap::from([("manager", TOP.to_owned())]);
    for family in ["pool", "filesystem", "blockdev"] {
        let (path, _) = client.family(family).into_iter().next().expect("there is one");
        found.insert(family, path);
    }
    found
}

/// Whether a value may stand where the golden file declares `kind`: a variant shows what is inside.
fn fits(value: &Value, kind: &str, name: &str) -> bool {
    let allowed: &[&str] = match (kind, name) {
        ("v", "KeyDescriptions") => &["s", "a(us)", "(b(bs))"],
        ("v", "ClevisInfos") => &["s", "a(u(ss))", "(b(b(ss)))"],
        ("v", "VolumeKeyLoaded") => &["b", "s"],
        _ => return value.signature() == kind,
    };
    allowed.contains(&value.signature().as_str())
}

#[test]
fn every_property_is_there_on_every_revision_with_its_type() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        client.make_filesystem(&pool, "f");
        for (object, path) in objects_of_each_kind(&client) {
            for (name, declared) in golden(object) {
                let all = client.get_all(&path, &name).expect("all properties can be read");
                let names = |all: Vec<&String>| all.into_iter().cloned().collect::<Vec<_>>();
                assert_eq!(names(all.keys().collect()), names(declared.properties.keys().collect()), "{name}");
                for (property, declared) in declared.properties {
                    let value = client.get(&path, &name, &property).expect("a declared property can be read");
                    assert!(
                        fits(&value, &declared.kind, &property),
                        "{name}.{property}: {} {value}",
                        value.signature()
                    );
                    assert_eq!(value, all[&property], "{name}.{property}: Get and GetAll agree");
                }
            }
        }
    }
}

#[test]
fn the_object_list_equals_what_each_object_says() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        assert!(client.objects().is_empty(), "an empty daemon has an empty list");
        for name in ["p", "q"] {
            let pool = make_pool(&rig, &client, name);
            client.make_filesystem(&pool, "f");
        }
        let objects = client.objects();
        assert_eq!(objects.len(), 6);
        for (path, interfaces) in objects {
            let number = path.strip_prefix(TOP).and_then(|rest| rest.strip_prefix('/')).expect("below the top object");
            number.parse::<u64>().expect("one level, a number");
            assert_eq!(interfaces.len(), usize::from(REVISIONS), "{path}: one entry for each revision");
            for (name, properties) in interfaces {
                assert_eq!(client.get_all(&path, &name).expect("it can be read"), properties, "{path} {name}");
            }
        }
    }
}

#[test]
fn live_objects_introspect_as_the_golden_files() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    client.make_filesystem(&pool, "f");
    let standard = |extra: bool| {
        let all = ["Introspectable", "ObjectManager", "Peer", "Properties"];
        let wanted = all.iter().filter(move |name| extra || **name != "ObjectManager");
        wanted.map(|name| format!("org.freedesktop.DBus.{name}")).collect::<Vec<_>>()
    };
    for (object, path) in objects_of_each_kind(&client) {
        let (names, interfaces) = parse(&client.introspect(&path).expect("an object can be introspected"));
        assert_same(&interfaces, &golden(object));
        let others: Vec<_> = names.into_iter().filter(|name| !name.starts_with("org.storage")).collect();
        assert_eq!(others, standard(path == TOP), "{path}");
    }
}

/// Compares interface by interface, so that a difference can be read.
fn assert_same(found: &Interfaces, expected: &Interfaces) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, interface) in expected {
        assert_eq!(&found[name], interface, "{name}");
    }
}

#[test]
fn parents_name_their_children() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_pool(&rig, &client, "p");
    for (parent, child) in [("/", "org"), ("/org", "storage"), ("/org/storage", "stratis3"), (TOP, "0")] {
        let xml = client.introspect(parent).expect("parents can be introspected");
        let one = xml.contains(&format!("<node name=\"{child}\""));
        assert!(one || xml.contains(&format!("<node name='{child}'")), "{parent} names {child}: {xml}");
    }
}

#[test]
fn a_fresh_pool_shows_the_documented_values() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let all = &client.family("pool")[&pool];
        let expect = |name: &str, text: &str| assert_eq!(all[name].to_string(), text, "{name}");
        expect("AvailableActions", "\"fully_operational\"");
        expect("ClevisInfos", "\"Unencrypted\"");
        expect("KeyDescriptions", "\"Unencrypted\"");
        expect("Encrypted", "false");
        expect("FreeTokenSlots", "(false, 0)");
        expect("FsLimit", "100");
        expect("HasCache", "false");
        expect("LastReencryptedTimestamp", "(false, \"\")");
        expect("MetadataVersion", "2");
        expect("Name", "\"p\"");
        expect("NoAllocSpace", "false");
        expect("Overprovisioning", "true");
        expect("VolumeKeyLoaded", "false");
        let bytes = |name: &str| all[name].text().parse::<u128>().expect("sizes are decimal");
        assert!(bytes("AllocatedSize") > 0 && bytes("AllocatedSize") <= bytes("TotalPhysicalSize"));
        if kind == Kind::Files {
            assert_eq!(bytes("TotalPhysicalSize"), u128::from(2 * GIB), "the size of its device");
        }
        let old = client.get_all(&pool, &interface("pool", 7)).expect("it can be read");
        assert_eq!(old["KeyDescription"].to_string(), "(true, (false, \"\"))");
        assert_eq!(old["ClevisInfo"].to_string(), "(true, (false, (\"\", \"\")))");
    }
}

#[test]
fn a_fresh_filesystem_and_device_show_the_documented_values() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let path = client.make_filesystem(&pool, "f");
        let all = &client.family("filesystem")[&path];
        assert_eq!(all["MergeScheduled"], Value::Bool(false));
        assert_eq!(all["Origin"], Value::Struct(vec![Value::Bool(false), Value::Text(NIL.to_owned())]));
        assert_eq!(all["SizeLimit"], absent());
        assert_eq!(all["Size"], Value::Text("536870912".to_owned()));
        assert_eq!(all["Pool"], Value::Path(pool.clone()));
        let created = all["Created"].text();
        assert!(created.len() == 20 && created.ends_with('Z') && &created[10..11] == "T", "{created:?}");
        let used = all["Used"].members();
        assert!(!used[0].is_true() || used[1].text().parse::<u64>().is_ok(), "{}", all["Used"]);

        let (_, device) = client.family("blockdev").into_iter().next().expect("one device");
        assert_simple_uuid(device["Uuid"].text());
        assert_eq!(device["Devnode"], device["PhysicalPath"]);
        assert_eq!(device["Devnode"].text(), rig.disk("disk-of-p", 0), "{kind:?}");
        assert_eq!(device["Pool"], Value::Path(pool));
        assert_eq!(device["Tier"], Value::Unsigned('q', 0));
        assert_eq!(device["HardwareInfo"], absent());
        assert_eq!(device["NewPhysicalSize"], absent());
        assert_eq!(device["UserInfo"], absent());
        assert!(device["InitializationTime"].number() > 1_700_000_000);
        if kind == Kind::Files {
            assert_eq!(device["TotalPhysicalSize"].text(), (2 * GIB).to_string());
        }
    }
}

#[test]
fn the_version_suits_the_command_line_client() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in 0..REVISIONS {
        let version = client.get(TOP, &interface("Manager", revision), "Version").expect("it can be read");
        assert_eq!(version.text(), env!("CARGO_PKG_VERSION"));
    }
    let limit = ("f", Some("536870912"), Some("1073741824"));
    let pool = make_pool(&rig, &client, "p");
    let (_, made) = client.create_filesystems(&pool, &[limit]).done();
    let read = client.get(&made[0].0, &interface("filesystem", 9), "SizeLimit").expect("it can be read");
    assert_eq!(read, present("1073741824"));
}
