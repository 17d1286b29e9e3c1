//! Keys: setting, listing and forgetting them, and what is taken for a passphrase.

use std::fs::File;
use std::io::{Seek, Write, pipe};
use std::os::fd::OwnedFd;

use stratisd::limits::PASSPHRASES_READ_MAX;

use crate::support::client::{Answer, Client, method};
use crate::support::keys::{file, make_key, open_pipe, set_key_on};
use crate::support::rig::{Kind, Rig};
use crate::support::{REVISIONS, TOP, interface};

const NEITHER: (bool, bool) = (false, false);

#[track_caller]
fn unset_key(client: &Client, key: &str) -> Answer<bool> {
    client.ask(TOP, &interface("Manager", 9), "UnsetKey", (key,))
}

#[track_caller]
fn keys(client: &Client, revision: u8) -> Vec<String> {
    let answer: Answer<Vec<String>> = client.ask(TOP, &interface("Manager", revision), "ListKeys", ());
    let mut keys = answer.done();
    keys.sort();
    keys
}

#[test]
fn a_key_is_new_the_same_or_replaced_on_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in 0..REVISIONS {
        let set = |value: &[u8]| set_key_on(&client, revision, "k", file(value)).done();
        assert_eq!(set(b"one"), (true, false), "r{revision}");
        assert_eq!(set(b"one"), (false, false), "r{revision}");
        assert_eq!(set(b"two"), (true, true), "r{revision}");
        assert_eq!(set(b"two"), (false, false), "r{revision}");
        assert_eq!(keys(&client, revision), ["k"]);
        let unset =
            |key: &str| -> Answer<bool> { client.ask(TOP, &interface("Manager", revision), "UnsetKey", (key,)) };
        assert!(!unset("other").done());
        assert!(unset("k").done(), "r{revision}");
        assert!(!unset("k").done(), "r{revision}");
        assert!(keys(&client, revision).is_empty());
    }
}

#[test]
fn passphrases_of_64_bytes_at_most_are_taken() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for length in [0, 1, 32, 63, 64, 65, 128] {
        // What is no text, and the newline at the end, are part of it.
        let bytes: Vec<u8> = (0..length).map(|n| 0xff - n).chain([b'\n']).skip(1).collect();
        let fits = bytes.len() <= 64;
        let check = |key: &str, answer: Answer<(bool, bool)>| {
            if fits {
                assert_eq!(answer.done(), (true, false), "{key} of {length}");
                assert_eq!(
                    set_key_on(&client, 9, key, file(&bytes)).done(),
                    NEITHER,
                    "the same bytes: {key} of {length}"
                );
            } else {
                assert!(answer.refused(&NEITHER).contains("64"), "{key} of {length}");
            }
        };
        check(&format!("file{length}"), set_key_on(&client, 9, &format!("file{length}"), file(&bytes)));
        if !bytes.is_empty() {
            let (reader, _writer) = open_pipe(&bytes);
            let key = format!("open-pipe{length}");
            check(&key, set_key_on(&client, 9, &key, reader));
        }
        let (reader, writer) = open_pipe(&bytes);
        drop(writer);
        let key = format!("closed-pipe{length}");
        check(&key, set_key_on(&client, 9, &key, reader));
    }
}

#[test]
fn a_file_is_read_from_where_it_stands() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let mut longer = tempfile::tempfile().expect("a file");
    longer.write_all(&[b'x'; 100]).expect("it takes bytes");
    longer.seek(std::io::SeekFrom::Start(97)).expect("it is longer");
    assert_eq!(set_key_on(&client, 9, "k", longer).done(), (true, false));
    assert_eq!(set_key_on(&client, 9, "k", file(b"xxx")).done(), NEITHER);
}

#[test]
fn nobody_waits_for_a_pipe_to_which_nothing_is_written() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let (client, other) = (rig.client(), rig.client());
    let (reader, _writer) = open_pipe(b"");
    let call = method(TOP, &interface("Manager", 9), "SetKey").append2("k", File::from(OwnedFd::from(reader)));
    let serial = client.send(call);
    // Everybody else is served meanwhile, also with keys of their own.
    make_key(&other, "other");
    assert!(other.create_pool("p", &["/d"]).done().0);
    assert_eq!(keys(&other, 9), ["other"], "it has not come yet");
    let reply = client.reply_to(serial).expect("it is answered").expect("a reply");
    let (value, code, text): ((bool, bool), u16, String) = reply.read3().expect("three values");
    assert_eq!((value, code), (NEITHER, 1));
    assert!(text.contains("within 5 seconds"), "{text}");
    make_key(&other, "k");
}

#[test]
fn passphrases_that_do_not_come_hold_a_bounded_number_of_threads() {
    let rig = Rig::sim();
    let daemon = rig.start();
    let (client, other) = (rig.client(), rig.client());
    let threads = || std::fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("the daemon runs").count();
    make_key(&client, "k");
    let before = threads();
    let mut waiting = Vec::new();
    for number in 0..PASSPHRASES_READ_MAX {
        let (reader, writer) = open_pipe(b"");
        let call = method(TOP, &interface("Manager", 9), "SetKey");
        let serial = client.send(call.append2(format!("k{number}"), File::from(OwnedFd::from(reader))));
        waiting.push((serial, writer));
    }
    // In order: the reply to a call that was sent later says that all of them have been looked at.
    client.get(TOP, &interface("Manager", 9), "Version").expect("reads are answered meanwhile");
    let text = set_key_on(&other, 9, "one-more", file(b"secret")).refused(&NEITHER);
    assert!(text.contains(&PASSPHRASES_READ_MAX.to_string()), "{text}");
    assert!(threads() <= before + PASSPHRASES_READ_MAX, "{} threads instead of {before}", threads());
    for (serial, writer) in waiting {
        drop(writer);
        client.reply_to(serial).expect("it is answered").expect("a reply");
    }
    make_key(&other, "one-more");
}

#[test]
fn what_cannot_be_read_is_no_passphrase() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let folder = File::open("/").expect("a folder");
    set_key_on(&client, 9, "k", folder).refused(&NEITHER);
    let null = File::options().write(true).open("/dev/null").expect("it is there");
    set_key_on(&client, 9, "k", null).refused(&NEITHER);
    let (_reader, writer) = pipe().expect("a pipe");
    set_key_on(&client, 9, "k", writer).refused(&NEITHER);
    assert!(keys(&client, 9).is_empty());
}

#[test]
fn descriptions_are_any_text_without_a_semicolon() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for key in ["", " ", "with spaces", "k\u{e9}y", "a:b"] {
        make_key(&client, key);
    }
    assert_eq!(keys(&client, 0), ["", " ", "a:b", "k\u{e9}y", "with spaces"].map(str::to_owned).to_vec());
    for key in [";", "a;b"] {
        assert!(set_key_on(&client, 9, key, file(b"x")).refused(&NEITHER).contains(key));
        unset_key(&client, key).refused(&false);
    }
}

#[test]
fn a_key_without_a_descriptor_or_with_more_arguments_is_malformed() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in [0, 9] {
        let on = interface("Manager", revision);
        let surplus: Result<((bool, bool), u16, String), _> =
            client.call(TOP, &on, "SetKey", ("k", File::open("/dev/null").expect("it is there"), true));
        surplus.expect_err("old cockpit's third argument");
        let none: Result<((bool, bool), u16, String), _> = client.call(TOP, &on, "SetKey", ("k",));
        none.expect_err("no descriptor");
        let number: Result<((bool, bool), u16, String), _> = client.call(TOP, &on, "SetKey", ("k", 0_u32));
        number.expect_err("a number is no descriptor");
    }
    assert!(keys(&client, 9).is_empty());
}

#[test]
fn descriptors_are_closed_whatever_becomes_of_the_call() {
    let rig = Rig::sim();
    let daemon = rig.start();
    let client = rig.client();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).expect("the daemon runs").count();
    make_key(&client, "k");
    let before = open();
    for _ in 0..20 {
        set_key_on(&client, 9, "k", file(b"secret")).done();
        set_key_on(&client, 9, "k", file(&[0; 99])).refused(&NEITHER);
        set_key_on(&client, 9, "a;b", file(b"secret")).refused(&NEITHER);
        client.start_pool("nobody", "name").refused(&(false, ("/".to_owned(), Vec::new(), Vec::new())));
        let surplus: Result<(), _> =
            client.call(TOP, &interface("Manager", 9), "ListKeys", (File::open("/").expect("a folder"),));
        surplus.expect_err("it takes no arguments");
    }
    assert_eq!(open(), before);
}

#[test]
fn keys_are_refused_where_nothing_can_be_encrypted() {
    let rig = Rig::new(Kind::Files);
    let _daemon = rig.start();
    let client = rig.client();
    assert!(set_key_on(&client, 9, "k", file(b"secret")).refused(&NEITHER).contains("not supported"));
    unset_key(&client, "k").refused(&false);
    let answer: Answer<Vec<String>> = client.ask(TOP, &interface("Manager", 9), "ListKeys", ());
    answer.refused(&Vec::new());
}
