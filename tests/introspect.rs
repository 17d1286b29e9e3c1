//! The XML of every object, compared with what a released stratisd 3.9.2 shows (tests/golden).
//!
//! Compared are sets: interfaces, methods with their arguments in order, properties with type,
//! access and change annotation, signals. The order of members and white space do not matter, and
//! neither do bare child nodes.

use std::collections::BTreeSet;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use stratisd::bus::xml;

/// One line for each interface, method, property and signal.
fn members(text: &str) -> BTreeSet<String> {
    let mut reader = Reader::from_str(text);
    let mut found = BTreeSet::new();
    let (mut interface, mut member) = (String::new(), String::new());
    loop {
        let event = reader.read_event().expect("well-formed XML");
        let (Event::Start(tag) | Event::Empty(tag)) = &event else {
            match event {
                Event::Eof => break,
                Event::End(tag) if [&b"method"[..], b"property", b"signal"].contains(&tag.name().as_ref()) => {
                    found.insert(std::mem::take(&mut member));
                }
                _ => {}
            }
            continue;
        };
        let name = attribute(tag, "name");
        match tag.name().as_ref() {
            b"interface" => {
                found.insert(format!("interface {name}"));
                interface = name;
            }
            kind @ (b"method" | b"property" | b"signal") => {
                let kind = String::from_utf8_lossy(kind).into_owned();
                member = format!("{interface} {kind} {name} {} {}", attribute(tag, "type"), attribute(tag, "access"));
                if matches!(event, Event::Empty(_)) {
                    found.insert(std::mem::take(&mut member));
                }
            }
            b"arg" => {
                let parts = [name, attribute(tag, "type"), attribute(tag, "direction")].join(" ");
                member.push_str(&format!(" [{parts}]"));
            }
            b"annotation" => member.push_str(&format!(" {}={}", name, attribute(tag, "value"))),
            b"node" => {}
            other => panic!("introspection has no element {}", String::from_utf8_lossy(other)),
        }
    }
    found
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> String {
    let found = tag.attributes().map(|attribute| attribute.expect("well-formed")).find(|attribute| {
        attribute.key.as_ref() == name.as_bytes() //
    });
    found.map(|attribute| String::from_utf8_lossy(&attribute.value).into_owned()).unwrap_or_default()
}

fn assert_same(ours: &str, golden: &str, interfaces: usize) {
    let (ours, golden) = (members(ours), members(golden));
    let count = golden.iter().filter(|line| line.starts_with("interface org.storage")).count();
    assert_eq!(count, interfaces, "the golden file has all revisions");
    let missing: Vec<_> = golden.difference(&ours).collect();
    let surplus: Vec<_> = ours.difference(&golden).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nsurplus: {surplus:#?}");
}

#[test]
fn the_top_object_has_the_interfaces_of_the_peer() {
    let ours = xml::top([0, 17].into_iter());
    assert_same(&ours, include_str!("golden/introspection/manager.xml"), 20);
    assert!(ours.contains("<node name=\"17\"/>"), "children are listed");
}

#[test]
fn a_pool_has_the_interfaces_of_the_peer() {
    assert_same(&xml::pool(), include_str!("golden/introspection/pool.xml"), 10);
}

#[test]
fn a_filesystem_has_the_interfaces_of_the_peer() {
    assert_same(&xml::filesystem(), include_str!("golden/introspection/filesystem.xml"), 10);
}

#[test]
fn a_block_device_has_the_interfaces_of_the_peer() {
    assert_same(&xml::blockdev(), include_str!("golden/introspection/blockdev.xml"), 10);
}
