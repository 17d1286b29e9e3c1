//! What an installation needs agrees with the program: policy, unit, udev rules and what they run, manual
//! page, completion; and `make install` lays all of it out.
//!
//! Deliberately absent: whether dbus-daemon, systemd and udev read these files as meant; virtual machines tell.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use clap::{CommandFactory, ValueEnum};
use data_encoding::BASE32_NOPAD;
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

// ---- udev -------------------------------------------------------------------------------------

fn decode(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stratis-base32-decode"));
    command.args(arguments).output().expect("the helper was built for this test")
}

#[test]
fn a_name_is_decoded_into_one_line() {
    for name in ["p1", "Übung-1", "数据,池", "a+b:c=d@e_f.g#"] {
        let output = decode(&["STRATIS_POOL_NAME", &BASE32_NOPAD.encode(name.as_bytes())]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).expect("text"), format!("STRATIS_POOL_NAME={name}\n"));
    }
}

#[test]
fn what_is_no_name_is_not_decoded() {
    let encoded = |bytes: &[u8]| BASE32_NOPAD.encode(bytes);
    let wrong = [
        "1".to_owned(),               // No base32.
        "OAYQ====".to_owned(),        // Padded.
        encoded(b"\xff\xfe"),         // No text.
        encoded(b"a\nDEVTYPE=other"), // A second property.
        encoded(b"../sda"),           // Another place.
        encoded(b""),
    ];
    for value in &wrong {
        let output = decode(&["KEY", value]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{value}");
        assert!(!output.stderr.is_empty(), "{value}");
    }
    for arguments in [&[][..], &["KEY"], &["KEY", "OAYQ", "OAYQ"]] {
        assert_eq!(decode(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn texts_are_compared() {
    let compare = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_stratis-str-cmp")).args(words).output();
        let output = output.expect("the helper was built for this test");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    assert_eq!(compare(&["a", "a"]), (Some(0), "0\n".to_owned()));
    assert_eq!(compare(&["a", "A"]), (Some(0), "1\n".to_owned()));
    assert_eq!(compare(&["a", ""]), (Some(0), "1\n".to_owned()));
    assert_eq!(compare(&["a"]), (Some(2), String::new()));
}

#[test]
fn every_label_of_the_rules_is_there_and_is_used() {
    let rules = dist("61-stratisd.rules");
    let after = |key: &str| -> BTreeSet<String> {
        let label = |tail: &str| tail.split('"').next().expect("there is always a first part").to_owned();
        rules.match_indices(key).map(|(at, _)| label(&rules[at + key.len()..])).collect()
    };
    assert_eq!(after("GOTO=\""), after("LABEL=\""));
}

// ---- installation -----------------------------------------------------------------------------

/// Runs `make install` over a copy of the tree that seems to be built already.
fn install(arguments: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let built = folder.path().join("target/release");
    fs::create_dir_all(&built).expect("made");
    for program in ["stratisd", "stratis-base32-decode", "stratis-str-cmp"] {
        fs::write(built.join(program), "").expect("written");
        fs::set_permissions(built.join(program), fs::Permissions::from_mode(0o755)).expect("ours");
    }
    let here = std::env::current_dir().expect("tests run in the root of the repository");
    for entry in ["Makefile", "dist"] {
        std::os::unix::fs::symlink(here.join(entry), folder.path().join(entry)).expect("new");
    }
    let mut command = Command::new("make");
    // Of a `make test` above us nothing is to be passed on.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").current_dir(folder.path());
    let output = command.args(["install", "DESTDIR=out"]).args(arguments).output().expect("make is installed");
    assert!(output.status.success(), "{output:?}");
    folder
}

/// Every file below a folder with its permission bits, sorted.
fn files(folder: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inside) = folders.pop() {
        for entry in fs::read_dir(inside).expect("readable") {
            let entry = entry.expect("readable");
            let data = entry.metadata().expect("readable");
            let path = entry.path();
            if data.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").to_string_lossy().into_owned();
                found.push((name, data.permissions().mode() & 0o7777));
            }
        }
    }
    found.sort();
    found
}

fn rules_in(folder: &Path) -> String {
    fs::read_to_string(folder.join("61-stratisd.rules")).expect("installed")
}

#[test]
fn an_installation_has_every_part_in_its_place() {
    let folder = install(&[]);
    let out = folder.path().join("out");
    let expected = [
        ("usr/lib/systemd/system/stratisd.service", 0o644),
        ("usr/lib/udev/rules.d/61-stratisd.rules", 0o644),
        ("usr/lib/udev/stratis-base32-decode", 0o755),
        ("usr/lib/udev/stratis-str-cmp", 0o755),
        ("usr/libexec/stratisd", 0o755),
        ("usr/share/bash-completion/completions/stratisd", 0o644),
        ("usr/share/dbus-1/system.d/stratisd.conf", 0o644),
        ("usr/share/doc/stratisd/stratisd-large.conf", 0o644),
        ("usr/share/man/man8/stratisd.8", 0o644),
    ];
    assert_eq!(files(&out), expected.map(|(name, mode)| (name.to_owned(), mode)));
    let rules = rules_in(&out.join("usr/lib/udev/rules.d"));
    assert_eq!(rules.matches("\"/usr/lib/udev/stratis-").count(), 3, "{rules}");
    assert_eq!(rules.replace("\"/usr/lib/udev/stratis-", "\"stratis-"), dist("61-stratisd.rules"));
}

#[test]
fn elsewhere_rules_and_policy_are_still_where_they_are_read() {
    let folder = install(&["PREFIX=/opt/stratis"]);
    let out = folder.path().join("out");
    assert!(rules_in(&out.join("etc/udev/rules.d")).contains("\"/opt/stratis/lib/udev/stratis-str-cmp "));
    assert!(out.join("opt/stratis/lib/udev/stratis-str-cmp").exists());
    assert!(out.join("etc/dbus-1/system.d/stratisd.conf").exists());
    let folder = install(&["PREFIX=/usr/local"]);
    assert!(rules_in(&folder.path().join("out/usr/local/lib/udev/rules.d")).contains("\"/usr/local/lib/udev/stratis-"));
}
