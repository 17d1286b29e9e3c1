//! Items 4, 7, 8 and 11 where keys and encrypted pools are about: what is taken for a passphrase, and how pools are
//! unlocked and get a cache through each revision.

use dbus::MessageType;
use dbus::arg::AppendAll;

use crate::calls::{Start, has_started, start_as_blivet, start_as_cockpit};
use crate::support::client::{Answer, Client, Started, null, started};
use crate::support::keys::{FREE, at, create_encrypted, file, make_key, open_pipe, set_key_on};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{REVISIONS, TOP, interface};
use crate::{Path, text_of};

const NEITHER: (bool, bool) = (false, false);

/// A pool that a key in slot 1 and Clevis in slot 2 unlock, as revisions up to r7 make one; its UUID. It is stopped.
fn locked(client: &Client, name: &str) -> String {
    let (_, (pool, _)) = create_encrypted(client, name, &[(at(1), "k")], &[(at(2), "tpm2", "{}")]).done();
    let uuid = text_of(client, &pool, "pool", "Uuid");
    client.stop_pool(name, "name").done();
    uuid
}

fn not_started() -> Started {
    (false, ("/".to_owned(), Vec::new(), Vec::new()))
}

#[test]
fn item_4_passphrases_of_64_bytes_at_most_are_taken_as_they_are() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for length in [0, 1, 32, 63, 64, 65, 128] {
        // None of these is text, and the last one is a line's end.
        let bytes: Vec<u8> = (1..=length).rev().map(|n| if n == 1 { b'\n' } else { 0xff - n }).collect();
        let key = format!("k{length}");
        let mut set = set_key_on(&client, 9, &key, file(&bytes));
        if length <= 64 {
            assert_eq!(set.done(), (true, false), "a file of {length} bytes");
            set = set_key_on(&client, 9, &key, file(&bytes));
        }
        let expected = Answer { value: NEITHER, code: u16::from(length > 64), text: set.text.clone() };
        assert_eq!(set, expected, "a file of {length} bytes, once more");
        // Whoever passes a pipe keeps the other end until the answer is there. Nothing is read from it twice.
        if length > 0 {
            let (reader, _writer) = open_pipe(&bytes);
            assert_eq!(set_key_on(&client, 9, &key, reader), expected, "an open pipe with {length} bytes");
        }
        let (reader, writer) = open_pipe(&bytes);
        drop(writer);
        assert_eq!(set_key_on(&client, 9, &key, reader), expected, "a closed pipe with {length} bytes");
    }
}

#[test]
fn item_7_a_stopped_encrypted_pool_is_listed_with_the_types_of_r7_and_r9() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let uuid = locked(&client, "e");
    let old = [("clevis_info", "(bv)"), ("devs", "aa{ss}"), ("key_description", "(bv)"), ("name", "s")];
    let new = [("features", "(ba{sb})"), ("metadata_version", "(bt)")];
    for (revision, mut members) in [(7, old.to_vec()), (9, [&old[..], &new].concat())] {
        let entry = &client.stopped_pools(revision)[&uuid];
        let found: Vec<_> = entry.iter().map(|(name, value)| (name.as_str(), value.signature())).collect();
        members.sort_unstable();
        let expected: Vec<_> = members.into_iter().map(|(name, kind)| (name, kind.to_owned())).collect();
        assert_eq!(found, expected, "r{revision}");
        for (name, kind, value) in
            [("key_description", "(bs)", "(true, \"k\")"), ("clevis_info", "(b(ss))", "(true, (\"tpm2\", \"{}\"))")]
        {
            let inner = entry[name].members()[1].clone().bare();
            assert_eq!((entry[name].members()[0].is_true(), inner.signature().as_str()), (true, kind), "r{revision}");
            assert_eq!(inner.to_string(), value, "r{revision}");
        }
    }
    let features = client.stopped_pools(9)[&uuid]["features"].members()[1].entries();
    let expected = ["clevis_present", "encryption", "key_description_present"];
    assert!(features.keys().eq(expected) && features.values().all(Value::is_true), "{features:?}");
}

#[test]
fn item_8_a_cache_on_an_encrypted_pool_is_refused_until_r4_and_made_since_r5() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    for revision in 0..REVISIONS {
        let (encrypted, plain) = (format!("e{revision}"), format!("p{revision}"));
        let (_, (pool, _)) = create_encrypted(&client, &encrypted, &[(FREE, "k")], &[]).done();
        let init = |pool: &str, device: &str| -> Answer<(bool, Vec<Path>)> {
            client.ask(pool, &interface("pool", revision), "InitCache", (vec![device],))
        };
        let has_cache =
            |pool: &str| client.get(pool, &interface("pool", revision), "HasCache").expect("it can be read");
        let device = format!("/dev/cache-of-{encrypted}");
        init(&pool, "relative").refused(&(false, Vec::new()));
        if revision < 5 {
            init(&pool, &device).refused(&(false, Vec::new()));
        } else {
            let (made, paths) = init(&pool, &device).done();
            assert_eq!((made, paths.len()), (true, 1), "r{revision}");
            assert_eq!(init(&pool, &device).done(), (false, Vec::new()), "r{revision}");
        }
        assert_eq!(has_cache(&pool), Value::Bool(revision >= 5), "r{revision}");
        let (_, (pool, _)) = client.create_pool(&plain, &[format!("/dev/{plain}")]).done();
        assert!(init(&pool, &format!("/dev/cache-of-{plain}")).done().0, "r{revision}: any plain pool may have one");
        assert_eq!(has_cache(&pool), Value::Bool(true));
    }
}

/// That a stopped pool starts through this call, and that nothing is left to do for one that runs.
#[track_caller]
fn starts<A: AppendAll>(client: &Client, revision: u8, arguments: impl Fn() -> A) {
    let start = || -> Answer<Start> { client.ask(TOP, &interface("Manager", revision), "StartPool", arguments()) };
    let (changed, (pool, devices, _)) = start().map(started).done();
    assert_eq!((changed, devices.len()), (true, 1), "r{revision}");
    assert!(client.get(&pool, &interface("pool", revision), "Encrypted").expect("it can be read").is_true());
    assert_eq!(start().map(started).done(), not_started(), "r{revision}: it runs");
    client.stop_pool("e", "name").done();
}

/// That the call is refused and the pool stays stopped.
#[track_caller]
fn stays_stopped(client: &Client, revision: u8, arguments: impl AppendAll) {
    let answer: Answer<Start> = client.ask(TOP, &interface("Manager", revision), "StartPool", arguments);
    answer.map(started).refused(&not_started());
    assert_eq!(client.stopped_pools(revision).len(), 1, "r{revision}: it stays stopped");
}

#[test]
fn item_8_an_encrypted_pool_is_unlocked_in_the_shape_of_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let uuid = locked(&client, "e");
    for revision in 2..4 {
        for method in ["any", "clevis", "keyring", "Any", "Clevis", "Keyring"] {
            starts(&client, revision, || (&*uuid, (true, method)));
        }
        stays_stopped(&client, revision, (&*uuid, (false, "any")));
        stays_stopped(&client, revision, (&*uuid, (true, "nonsense")));
    }
    for revision in 4..8 {
        for method in ["any", "clevis", "keyring", "Any", "Clevis", "Keyring"] {
            starts(&client, revision, || ("e", "name", (true, method)));
            starts(&client, revision, || (&*uuid, "uuid", (true, method)));
        }
        stays_stopped(&client, revision, ("e", "name", (false, "any")));
        stays_stopped(&client, revision, ("e", "name", (true, "nonsense")));
    }
    let secret = || file(b"secret");
    for slot in [FREE, at(1), at(2)] {
        starts(&client, 8, || ("e", "name", (true, slot), (false, null())));
        starts(&client, 9, || ("e", "name", (true, slot), (false, null()), false));
        starts(&client, 8, || (&*uuid, "uuid", (true, slot), (true, secret())));
        starts(&client, 9, || (&*uuid, "uuid", (true, slot), (true, secret()), false));
    }
    // A passphrase says what with, and not that the pool is to be unlocked.
    for passphrase in [false, true] {
        stays_stopped(&client, 8, ("e", "name", (false, FREE), (passphrase, secret())));
        stays_stopped(&client, 9, ("e", "name", (false, FREE), (passphrase, secret()), false));
    }
    assert_eq!(client.stopped_pools(9).len(), 1);
}

#[test]
fn item_8_unlock_pool_publishes_the_pool_that_it_unlocks() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let uuid = locked(&client, "e");
    for revision in 0..2 {
        let unlock = |id: &str, method: &str| -> Answer<(bool, Vec<String>)> {
            client.ask(TOP, &interface("Manager", revision), "UnlockPool", (id, method))
        };
        for method in ["keyring", "clevis", "any", "Keyring", "Clevis", "Any"] {
            unlock(&uuid, "nonsense").refused(&(false, Vec::new()));
            unlock("nonsense", method).refused(&(false, Vec::new()));
            assert!(client.objects().is_empty());
            let (unlocked, devices) = unlock(&uuid, method).done();
            let there: Vec<_> =
                client.family("blockdev").into_values().map(|one| one["Uuid"].text().to_owned()).collect();
            assert_eq!((unlocked, devices), (true, there), "r{revision} {method}");
            assert_eq!(client.family("pool").len(), 1);
            assert_eq!(unlock(&uuid, method).done(), (false, Vec::new()), "r{revision} {method}: it runs");
            client.stop_pool("e", "name").done();
        }
    }
}

#[test]
fn item_11_blivet_and_cockpit_unlock_pools_as_they_do() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let uuid = locked(&client, "e");
    let stop = || assert!(client.stop_pool(&uuid, "uuid").done().0);
    for method in ["keyring", "clevis"] {
        assert!(start_as_cockpit(&client, &uuid, (true, method)).done().0, "{method}");
        stop();
    }
    start_as_cockpit(&client, &uuid, (false, "")).map(started).refused(&not_started());
    assert!(!has_started(&start_as_blivet(&rig, &uuid, false, (false, u32::MAX))));
    assert!(has_started(&start_as_blivet(&rig, &uuid, true, (false, u32::MAX))));
    stop();
    let malformed = start_as_blivet(&rig, &uuid, true, (true, 0));
    assert_eq!(malformed.msg_type(), MessageType::Error, "a descriptor is announced and none comes");
    assert_eq!(client.stopped_pools(8).len(), 1, "it stays stopped");
}
