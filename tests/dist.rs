//! What an installation needs agrees with the program: policy, unit, manual page, completion.
//!
//! Deliberately absent: whether dbus-daemon and systemd read these files as meant.

use std::collections::BTreeSet;
use std::fs;

use clap::{CommandFactory, ValueEnum};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use stratisd::args::{Args, LogLevel};

const BUS_NAME: &str = "org.storage.stratis3";

fn dist(name: &str) -> String {
    fs::read_to_string(format!("dist/{name}")).expect("the file is part of the repository")
}

// ---- policy -----------------------------------------------------------------------------------

/// A rule: its policy's attributes, its element, its attributes; written as in the file.
type Rule = (String, String, BTreeSet<String>);

fn attributes(element: &BytesStart<'_>) -> BTreeSet<String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the policy is text");
    let pair = |attribute: quick_xml::events::attributes::Attribute<'_>| {
        format!("{}={}", text(attribute.key.as_ref()), text(&attribute.value))
    };
    element.attributes().map(|attribute| pair(attribute.expect("the policy is well-formed"))).collect()
}

fn rules() -> Vec<Rule> {
    let text = dist("stratisd.conf");
    let mut reader = Reader::from_str(&text);
    let (mut policy, mut rules) = (String::new(), Vec::new());
    loop {
        match reader.read_event().expect("the policy is well-formed") {
            Event::Start(element) if element.name().as_ref() == b"policy" => {
                policy = attributes(&element).into_iter().collect();
            }
            Event::Empty(element) => {
                let name = String::from_utf8(element.name().as_ref().to_vec()).expect("the policy is text");
                rules.push((policy.clone(), name, attributes(&element)));
            }
            Event::Eof => return rules,
            _ => {}
        }
    }
}

fn rule(policy: &str, element: &str, attributes: &[String]) -> Rule {
    (policy.into(), element.into(), attributes.iter().cloned().collect())
}

#[test]
fn others_than_root_may_look_and_nothing_else() {
    let send = format!("send_destination={BUS_NAME}");
    let interface = |name: &str| format!("send_interface={name}");
    let member = |name: &str| format!("send_member={name}");
    let properties = interface("org.freedesktop.DBus.Properties");
    let mut expected = vec![
        rule("context=default", "deny", &[format!("own={BUS_NAME}")]),
        rule("context=default", "deny", std::slice::from_ref(&send)),
        rule("context=default", "allow", &[format!("receive_sender={BUS_NAME}")]),
        rule("context=default", "allow", &[send.clone(), interface("org.freedesktop.DBus.ObjectManager")]),
        rule("context=default", "allow", &[send.clone(), interface("org.freedesktop.DBus.Introspectable")]),
        rule("context=default", "allow", &[send.clone(), properties.clone(), member("Get")]),
        rule("context=default", "allow", &[send.clone(), properties, member("GetAll")]),
        rule("user=root", "allow", &[format!("own={BUS_NAME}")]),
        rule("user=root", "allow", std::slice::from_ref(&send)),
    ];
    for revision in 0..=9 {
        let report = interface(&format!("{BUS_NAME}.Report.r{revision}"));
        expected.push(rule("context=default", "allow", &[send.clone(), report]));
        for name in ["EngineStateReport", "ListKeys"] {
            let manager = interface(&format!("{BUS_NAME}.Manager.r{revision}"));
            expected.push(rule("context=default", "allow", &[send.clone(), manager, member(name)]));
        }
    }
    let rules = rules();
    // Of two rules that match, the later one counts: what is denied must come before its exceptions.
    let denied = rules.iter().rposition(|(_, element, _)| element == "deny").expect("something is denied");
    let allowed = rules.iter().position(|(_, element, _)| element == "allow").expect("something is allowed");
    assert!(denied < allowed);
    let sorted = |mut rules: Vec<Rule>| {
        rules.sort();
        rules
    };
    assert_eq!(sorted(rules), sorted(expected));
}

// ---- options ----------------------------------------------------------------------------------

/// Every `--word` in a text.
fn long_options(text: &str) -> BTreeSet<String> {
    let name = |tail: &str| {
        let end = tail.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(tail.len());
        tail[..end].to_owned()
    };
    text.match_indices("--").map(|(at, _)| name(&text[at + 2..])).filter(|name| !name.is_empty()).collect()
}

fn options() -> BTreeSet<String> {
    let mut command = Args::command();
    command.build();
    command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned).collect()
}

#[test]
fn the_manual_page_and_the_completion_know_the_options_the_program_has() {
    let manual = dist("stratisd.8").replace("\\-", "-");
    assert_eq!(long_options(&manual), options());
    let completion = dist("stratisd.bash");
    assert_eq!(long_options(&completion), options());
    for level in LogLevel::value_variants() {
        let name = level.to_possible_value().expect("every level can be given").get_name().to_owned();
        assert!(completion.contains(&name) && manual.contains(&name), "{name}");
    }
}

#[test]
fn the_manual_page_names_every_exit_code_and_the_version() {
    let manual = dist("stratisd.8");
    let codes = manual.split(".SH EXIT STATUS").nth(1).expect("there is such a section");
    for code in [0, 1, 2, cores::signals::EXIT_SECOND_SIGNAL] {
        assert!(codes.contains(&format!("\n.B {code}\n")), "{code}");
    }
    assert!(manual.contains(concat!("\"stratisd ", env!("CARGO_PKG_VERSION"), "\"")));
}

// ---- unit -------------------------------------------------------------------------------------

#[test]
fn the_unit_stops_the_daemon_the_way_it_expects() {
    let unit = dist("stratisd.service");
    for line in [
        "Type=dbus",
        "BusName=org.storage.stratis3",
        "KillSignal=SIGINT",
        "KillMode=process",
        "Restart=on-failure",
        "LimitMEMLOCK=64M",
        "DefaultDependencies=no",
        "After=multi-user.target",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("the unit starts something");
    let options = long_options(start);
    assert!(options.is_subset(&self::options()), "{options:?}");
}
