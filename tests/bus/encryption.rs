//! Encrypted pools: creating, unlocking, what their properties look like, and changing what unlocks them.

use std::collections::BTreeSet;
use std::fs::File;

use crate::support::client::{
    Answer, Client, Created, Optional, Slot, Started, create_pool_arguments, created, started,
};
use crate::support::keys::{FREE, at, clevis_argument, create_encrypted, keys_argument, make_key};
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{assert_simple_uuid, make_pool, text_of};

const TANG: &str = r#"{"thp":"abc","url":"http://x"}"#;

fn nothing() -> Created {
    (false, ("/".to_owned(), Vec::new()))
}

fn not_started() -> Started {
    (false, ("/".to_owned(), Vec::new(), Vec::new()))
}

/// A pool with the key `k` in slot 0; its path.
#[track_caller]
fn make_encrypted(client: &Client, name: &str) -> String {
    let (changed, (pool, _)) = create_encrypted(client, name, &[(FREE, "k")], &[]).done();
    assert!(changed);
    pool
}

fn get(client: &Client, pool: &str, revision: u8, property: &str) -> Value {
    client.get(pool, &interface("pool", revision), property).expect("it can be read")
}

/// Type and value of a property, in one text.
fn shown(client: &Client, pool: &str, revision: u8, property: &str) -> String {
    let value = get(client, pool, revision, property);
    format!("{} {value}", value.signature())
}

/// A method of a pool that answers with a truth value.
#[track_caller]
fn ask(client: &Client, pool: &str, revision: u8, member: &str, arguments: impl dbus::arg::AppendAll) -> Answer<bool> {
    client.ask(pool, &interface("pool", revision), member, arguments)
}

/// What is in the slots, by a fresh read on r9.
fn slots(client: &Client, pool: &str) -> BTreeSet<String> {
    let all = ["KeyDescriptions", "ClevisInfos"].map(|property| get(client, pool, 9, property));
    all.iter().flat_map(|list| list.members()).map(ToString::to_string).collect()
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn slots_of_a_new_pool_are_shown_on_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    ["k0", "k1"].iter().for_each(|key| make_key(&client, key));
    let keys = [(at(0), "k0"), (at(3), "k1")];
    let clevis = [(at(1), "tang", r#"{"url": "http://x",  "thp":"abc"}"#), (FREE, "tpm2", "{}")];
    let (changed, (pool, devices)) = create_encrypted(&client, "e", &keys, &clevis).done();
    assert_eq!((changed, devices.len()), (true, 1));
    for revision in 0..REVISIONS {
        assert_eq!(shown(&client, &pool, revision, "Encrypted"), "b true");
        if revision < 8 {
            assert_eq!(shown(&client, &pool, revision, "KeyDescription"), "(b(bs)) (true, (true, \"k0\"))");
            let expected = format!("(b(b(ss))) (true, (true, (\"tang\", {TANG:?})))");
            assert_eq!(shown(&client, &pool, revision, "ClevisInfo"), expected);
        } else {
            assert_eq!(get(&client, &pool, revision, "KeyDescriptions").signature(), "a(us)");
            assert_eq!(get(&client, &pool, revision, "ClevisInfos").signature(), "a(u(ss))");
            let tang = format!("(1, (\"tang\", {TANG:?}))");
            assert_eq!(slots(&client, &pool), set(&["(0, \"k0\")", "(3, \"k1\")", "(2, (\"tpm2\", \"{}\"))", &tang]));
            assert_eq!(shown(&client, &pool, revision, "FreeTokenSlots"), "(by) (true, 11)");
            assert_eq!(shown(&client, &pool, revision, "VolumeKeyLoaded"), "b false");
        }
    }
    assert_eq!(shown(&client, &pool, 9, "LastReencryptedTimestamp"), "(bs) (false, \"\")");
}

#[test]
fn a_plain_pool_says_so_on_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    for revision in 0..REVISIONS {
        assert_eq!(shown(&client, &pool, revision, "Encrypted"), "b false");
        if revision < 8 {
            assert_eq!(shown(&client, &pool, revision, "KeyDescription"), "(b(bs)) (true, (false, \"\"))");
            assert_eq!(shown(&client, &pool, revision, "ClevisInfo"), "(b(b(ss))) (true, (false, (\"\", \"\")))");
        } else {
            assert_eq!(shown(&client, &pool, revision, "KeyDescriptions"), "s \"Unencrypted\"");
            assert_eq!(shown(&client, &pool, revision, "ClevisInfos"), "s \"Unencrypted\"");
            assert_eq!(shown(&client, &pool, revision, "FreeTokenSlots"), "(by) (false, 0)");
        }
    }
    for (member, revision) in [("BindKeyring", 0), ("RebindKeyring", 7)] {
        ask(&client, &pool, revision, member, ("k",)).refused(&false);
        ask(&client, &pool, 8, member, ("k", FREE)).refused(&false);
    }
    for member in ["RebindClevis", "UnbindClevis", "UnbindKeyring"] {
        ask(&client, &pool, 7, member, ()).refused(&false);
        ask(&client, &pool, 9, member, (FREE,)).refused(&false);
    }
    ask(&client, &pool, 3, "BindClevis", ("tpm2", "{}")).refused(&false);
    ask(&client, &pool, 9, "BindClevis", ("tpm2", "{}", at(4))).refused(&false);
}

#[test]
fn until_r7_a_key_gets_slot_1_and_clevis_slot_2() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let none = || (false, String::new());
    let cases: [(bool, bool, &[&str], &str); 3] = [
        (true, false, &["(1, \"k\")"], "(true, 14)"),
        (false, true, &["(2, (\"tang\", \"{\\\"a\\\":1}\"))"], "(true, 14)"),
        (true, true, &["(1, \"k\")", "(2, (\"tang\", \"{\\\"a\\\":1}\"))"], "(true, 13)"),
    ];
    for revision in 0..8 {
        for (number, (with_key, with_clevis, expected, free)) in cases.iter().enumerate() {
            let name = format!("p{revision}-{number}");
            let devices = vec![format!("/disk-of-{name}")];
            let key: Optional = if *with_key { (true, "k".to_owned()) } else { none() };
            let clevis = (*with_clevis, ("tang".to_owned(), "{\"a\": 1}".to_owned()));
            let on = interface("Manager", revision);
            let answer: Answer<(bool, (dbus::Path<'_>, Vec<dbus::Path<'_>>))> = if revision < 5 {
                client.ask(TOP, &on, "CreatePool", (name, (false, 0_u16), devices, key, clevis))
            } else {
                client.ask(TOP, &on, "CreatePool", (name, devices, key, clevis))
            };
            let (_, (pool, _)) = answer.map(created).done();
            assert_eq!(slots(&client, &pool), set(expected), "r{revision}");
            assert_eq!(get(&client, &pool, 9, "FreeTokenSlots").to_string(), *free);
        }
    }
}

#[test]
fn what_cannot_unlock_a_pool_is_refused_at_its_creation() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let refused = |keys: &[(Slot, &str)], clevis: &[(Slot, &str, &str)], named: &str| {
        let text = create_encrypted(&client, "p", keys, clevis).refused(&nothing());
        assert!(text.contains(named), "{text}");
    };
    refused(&[(FREE, "other")], &[], "other");
    refused(&[(FREE, "k"), (FREE, "other")], &[], "other");
    refused(&[(at(3), "k")], &[(at(3), "tpm2", "{}")], "3");
    refused(&[(at(3), "k"), (at(3), "k")], &[], "3");
    refused(&[], &[(FREE, "tang", "{")], "tang");
    refused(&[(FREE, "a;b")], &[], "a;b");
    refused(&[], &[(FREE, "tpm2", "{}"); 16], "15");
    assert!(client.objects().is_empty());
    make_pool(&rig, &client, "p");
    refused(&[(FREE, "other")], &[], "other");
    let (_, (pool, _)) = create_encrypted(&client, "q", &[], &[(FREE, "", "7"); 15]).done();
    assert_eq!(get(&client, &pool, 9, "FreeTokenSlots").to_string(), "(true, 0)");
    // Whether it is encrypted is not compared.
    assert_eq!(create_encrypted(&client, "q", &[], &[]).done(), nothing());
}

/// `StartPool` r9 by name.
#[track_caller]
fn start(client: &Client, name: &str, unlock: (bool, Slot), passphrase: bool) -> Answer<Started> {
    let null = File::open("/dev/null").expect("it is there");
    let arguments = (name.to_owned(), "name".to_owned(), unlock, (passphrase, null), false);
    client.ask(TOP, &interface("Manager", 9), "StartPool", arguments).map(started)
}

#[test]
fn an_encrypted_pool_is_started_with_an_unlock_method() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let pool = make_encrypted(&client, "e");
    client.make_filesystem(&pool, "f");
    let uuid = text_of(&client, &pool, "pool", "Uuid");
    let stop = || assert_eq!(client.stop_pool("e", "name").done(), (true, uuid.clone()));
    let (none, any) = ((false, FREE), (true, FREE));
    for (unlock, passphrase) in [(any, false), ((true, at(0)), false), ((true, at(77)), true), (any, true)] {
        stop();
        start(&client, "e", none, false).refused(&not_started());
        start(&client, "e", none, true).refused(&not_started());
        assert_eq!(client.stopped_pools(9).len(), 1, "it stays stopped");
        let (changed, (_, devices, filesystems)) = start(&client, "e", unlock, passphrase).done();
        assert_eq!((changed, devices.len(), filesystems.len()), (true, 1, 1));
        for (unlock, passphrase) in [(none, false), (none, true), (any, false), ((true, at(5)), true)] {
            assert_eq!(start(&client, "e", unlock, passphrase).done(), not_started(), "it runs");
        }
    }
    for revision in 2..8 {
        for method in ["any", "Any", "clevis", "Keyring", "keyring"] {
            stop();
            let on = interface("Manager", revision);
            let start = |present: bool, method: &str| -> Answer<Started> {
                let method = (present, method.to_owned());
                let answer = if revision < 4 {
                    client.ask(TOP, &on, "StartPool", (uuid.clone(), method))
                } else {
                    client.ask(TOP, &on, "StartPool", ("e", "name", method))
                };
                answer.map(started)
            };
            start(false, method).refused(&not_started());
            start(true, "nonsense").refused(&not_started());
            assert!(start(true, method).done().0, "r{revision} {method}");
            assert_eq!(start(true, method).done(), not_started());
        }
    }
    let pools = client.family("pool");
    let pool = pools.keys().next().expect("one pool");
    assert_eq!(slots(&client, pool), set(&["(0, \"k\")"]));
}

#[test]
fn old_clients_unlock_a_pool() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let pool = make_encrypted(&client, "e");
    let uuid = text_of(&client, &pool, "pool", "Uuid");
    let plain = text_of(&client, &make_pool(&rig, &client, "p"), "pool", "Uuid");
    for revision in 0..2 {
        let unlock = |uuid: &str, method: &str| -> Answer<(bool, Vec<String>)> {
            client.ask(TOP, &interface("Manager", revision), "UnlockPool", (uuid, method))
        };
        client.stop_pool(&uuid, "uuid").done();
        let neutral = (false, Vec::new());
        unlock("nonsense", "any").refused(&neutral);
        unlock(&uuid, "nonsense").refused(&neutral);
        unlock(&plain, "any").refused(&neutral);
        let (unlocked, devices) = unlock(&uuid, "keyring").done();
        assert_eq!((unlocked, devices.len()), (true, 1));
        devices.iter().for_each(|device| assert_simple_uuid(device));
        assert_eq!(unlock(&uuid, "Clevis").done(), neutral, "it runs");
        assert_eq!(client.family("pool").len(), 2, "its objects are published");
    }
}

#[test]
fn a_stopped_pool_shows_what_unlocks_it() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k0");
    create_encrypted(&client, "both", &[(at(2), "k0")], &[(FREE, "tang", "{\"url\":\"x\"}")]).done();
    create_encrypted(&client, "key", &[(FREE, "k0")], &[]).done();
    for (name, key, clevis, features) in [
        ("both", "(true, <(true, \"k0\")>)", "(true, <(true, (\"tang\", \"{\\\"url\\\":\\\"x\\\"}\"))>)", 3),
        ("key", "(true, <(true, \"k0\")>)", "(true, <(false, (\"\", \"\"))>)", 2),
    ] {
        let (_, uuid) = client.stop_pool(name, "name").done();
        for revision in 2..REVISIONS {
            let entry = &client.stopped_pools(revision)[&uuid];
            assert_eq!(entry["key_description"].signature(), "(bv)");
            assert_eq!(entry["key_description"].members()[1].clone().bare().signature(), "(bs)");
            assert_eq!(entry["key_description"].to_string(), key);
            assert_eq!(entry["clevis_info"].signature(), "(bv)");
            assert_eq!(entry["clevis_info"].members()[1].clone().bare().signature(), "(b(ss))");
            assert_eq!(entry["clevis_info"].to_string(), clevis);
            let mut keys = vec!["clevis_info", "devs", "key_description", "name"];
            if revision >= 8 {
                keys = vec!["clevis_info", "devs", "features", "key_description", "metadata_version", "name"];
                assert_eq!(entry["features"].signature(), "(ba{sb})");
                let map = entry["features"].members()[1].entries();
                let all = ["clevis_present", "encryption", "key_description_present"];
                assert_eq!(map.keys().collect::<Vec<_>>(), all[3 - features..]);
                assert!(map.values().all(Value::is_true));
                assert_eq!(entry["metadata_version"].to_string(), "(true, 2)");
            }
            assert_eq!(entry.keys().collect::<Vec<_>>(), keys, "r{revision}");
        }
        for revision in 0..2 {
            let locked = client.get(TOP, &interface("Manager", revision), "LockedPools").expect("it can be read");
            assert_eq!((locked.signature().as_str(), locked.entries().len()), ("a{sa{sv}}", 0));
        }
    }
}

#[test]
fn slots_are_bound_and_unbound_since_r8() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let pool = make_encrypted(&client, "e");
    for revision in [8, 9] {
        let bind_key = |key: &str, slot: Slot| ask(&client, &pool, revision, "BindKeyring", (key, slot));
        let bind_clevis = |json: &str, slot: Slot| ask(&client, &pool, revision, "BindClevis", ("tang", json, slot));
        let rebind_key = |key: &str, slot: Slot| ask(&client, &pool, revision, "RebindKeyring", (key, slot));
        let rebind_clevis = |slot: Slot| ask(&client, &pool, revision, "RebindClevis", (slot,));
        let unbind = |member: &str, slot: Slot| ask(&client, &pool, revision, member, (slot,));
        // The only way in stays, whatever is named.
        unbind("UnbindKeyring", FREE).refused(&false);
        unbind("UnbindClevis", at(9)).refused(&false);
        rebind_clevis(FREE).refused(&false);
        // No key of the ring is needed.
        assert!(!bind_key("k", FREE).done(), "bound already");
        assert!(bind_key("two", FREE).done());
        assert!(bind_key("k", at(7)).done(), "once more, in a slot that is named");
        assert!(!bind_key("k", at(7)).done());
        assert!(bind_key("other", at(7)).refused(&false).contains('7'));
        assert!(bind_clevis("{\"a\": 1}", FREE).done());
        assert!(bind_clevis("{\"a\":1}", FREE).done(), "a duplicate");
        assert!(!bind_clevis(" {\"a\" :1}", at(2)).done());
        bind_clevis("{\"a\":2}", at(2)).refused(&false);
        bind_clevis("{\"a\":1}", at(0)).refused(&false);
        bind_clevis("{", FREE).refused(&false);
        let clevis = |slot: u32| format!("({slot}, (\"tang\", \"{{\\\"a\\\":1}}\"))");
        let all = [&clevis(2), &clevis(3), "(0, \"k\")", "(1, \"two\")", "(7, \"k\")"];
        assert_eq!(slots(&client, &pool), set(&all), "lowest free slots");
        assert_eq!(shown(&client, &pool, revision, "FreeTokenSlots"), "(by) (true, 10)");

        assert!(!rebind_key("k", FREE).done());
        assert!(rebind_key("three", FREE).done());
        assert!(rebind_key("four", at(7)).done());
        rebind_key("four", at(2)).refused(&false);
        rebind_key("four", at(8)).refused(&false);
        assert!(rebind_clevis(FREE).done() && rebind_clevis(at(3)).done(), "each time");
        rebind_clevis(at(0)).refused(&false);
        rebind_clevis(at(8)).refused(&false);
        let all = [&clevis(2), &clevis(3), "(0, \"three\")", "(1, \"two\")", "(7, \"four\")"];
        assert_eq!(slots(&client, &pool), set(&all));

        assert!(!unbind("UnbindKeyring", at(32)).done(), "nothing there");
        unbind("UnbindKeyring", at(2)).refused(&false);
        unbind("UnbindClevis", at(0)).refused(&false);
        assert!(unbind("UnbindClevis", FREE).done());
        assert!(unbind("UnbindClevis", at(3)).done());
        assert!(!unbind("UnbindClevis", FREE).done(), "none is left");
        assert!(unbind("UnbindKeyring", FREE).done());
        assert!(unbind("UnbindKeyring", at(7)).done());
        assert_eq!(slots(&client, &pool), set(&["(1, \"two\")"]));
        assert!(rebind_key("k", FREE).done());
        assert!(bind_key("x", at(0)).done() && unbind("UnbindKeyring", at(1)).done() && rebind_key("k", FREE).done());
    }
}

#[test]
fn until_r7_a_pool_has_one_key_and_one_clevis_configuration() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let pool = make_encrypted(&client, "e");
    for revision in 0..8 {
        let call = |member: &str, text: &str| ask(&client, &pool, revision, member, (text,));
        let bind_clevis = |json: &str| ask(&client, &pool, revision, "BindClevis", ("tang", json));
        let plain = |member: &str| ask(&client, &pool, revision, member, ());
        assert!(!call("BindKeyring", "k").done(), "r{revision}");
        call("BindKeyring", "two").refused(&false);
        plain("RebindClevis").refused(&false);
        plain("UnbindKeyring").refused(&false);
        assert!(bind_clevis("{\"a\": 1}").done());
        assert!(!bind_clevis("{\"a\":1}").done());
        bind_clevis("{\"a\":2}").refused(&false);
        assert!(plain("RebindClevis").done());
        assert!(plain("UnbindKeyring").done());
        plain("UnbindClevis").refused(&false);
        assert!(call("BindKeyring", "two").done(), "now there is none");
        assert!(call("RebindKeyring", "k").done() && !call("RebindKeyring", "k").done());
        assert!(plain("UnbindClevis").done());
    }
}

#[test]
fn fifteen_slots_are_all() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_key(&client, "k");
    let pool = make_encrypted(&client, "e");
    for number in 1..15 {
        assert!(ask(&client, &pool, 9, "BindKeyring", (format!("k{number}"), FREE)).done());
    }
    assert_eq!(get(&client, &pool, 9, "FreeTokenSlots").to_string(), "(true, 0)");
    for arguments in [("k15", FREE), ("k1", FREE), ("k", at(0))] {
        assert!(ask(&client, &pool, 9, "BindKeyring", arguments).refused(&false).contains("15"));
    }
    assert!(ask(&client, &pool, 9, "UnbindKeyring", (at(4),)).done());
    assert!(ask(&client, &pool, 9, "BindClevis", ("tpm2", "{}", FREE)).done());
    assert!(slots(&client, &pool).contains("(4, (\"tpm2\", \"{}\"))"), "the one that was free");
}

/// `PropertiesChanged` before the last reply: interface and property, short.
fn changed(client: &Client) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for signal in client.signals() {
        assert_eq!(signal.member, "PropertiesChanged");
        let revision = signal.body[0].text().rsplit('.').next().expect("a revision").to_owned();
        all.extend(signal.body[1].entries().keys().map(|name| format!("{name} {revision}")));
    }
    all
}

fn on(property: &str, revisions: std::ops::RangeInclusive<u8>) -> Vec<String> {
    revisions.map(|revision| format!("{property} r{revision}")).collect()
}

#[test]
fn changes_of_encryption_are_announced_on_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    client.subscribe();
    make_key(&client, "k");
    assert!(client.signals().is_empty(), "keys are not announced");
    let pool = make_pool(&rig, &client, "p");
    let keys = || [on("KeyDescription", 0..=7), on("KeyDescriptions", 8..=9)].concat();
    let clevis = || [on("ClevisInfo", 0..=7), on("ClevisInfos", 8..=9)].concat();
    let free = || on("FreeTokenSlots", 8..=9);
    let again = || on("LastReencryptedTimestamp", 9..=9);
    let whole = || [keys(), on("ClevisInfos", 8..=9), free(), on("Encrypted", 9..=9)].concat();
    let expect = |what: &str, lists: &[Vec<String>]| {
        let expected: BTreeSet<String> = lists.concat().into_iter().collect();
        assert_eq!(changed(&client), expected, "{what}");
    };
    let no_clevis: Vec<(Slot, String, String)> = Vec::new();
    assert!(ask(&client, &pool, 9, "EncryptPool", (vec![(FREE, "k")], no_clevis)).done());
    expect("encrypt", &[whole()]);
    assert!(ask(&client, &pool, 9, "BindClevis", ("tpm2", "{}", FREE)).done());
    expect("bind", &[clevis(), free()]);
    assert!(ask(&client, &pool, 9, "BindKeyring", ("two", FREE)).done());
    expect("bind what old revisions do not see", &[on("KeyDescriptions", 8..=9), free()]);
    assert!(ask(&client, &pool, 0, "RebindKeyring", ("three",)).done());
    expect("rebind", &[keys()]);
    assert!(ask(&client, &pool, 9, "RebindClevis", (FREE,)).done());
    expect("the same configuration", &[]);
    assert!(ask(&client, &pool, 7, "UnbindClevis", ()).done());
    expect("unbind", &[clevis(), free()]);
    assert!(ask(&client, &pool, 9, "ReencryptPool", ()).done());
    expect("reencrypt", &[again()]);
    assert!(ask(&client, &pool, 9, "DecryptPool", ()).done());
    expect("decrypt", &[whole(), again()]);
}

#[test]
fn a_running_pool_is_encrypted_reencrypted_and_decrypted() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let filesystem = client.make_filesystem(&pool, "f");
    let lists = |keys: &[(Slot, &str)], clevis: &[(Slot, &str, &str)]| {
        ask(&client, &pool, 9, "EncryptPool", (keys_argument(keys), clevis_argument(clevis)))
    };
    lists(&[], &[]).refused(&false);
    lists(&[(at(1), "a"), (at(1), "b")], &[]).refused(&false);
    lists(&[], &[(FREE, "tang", "{")]).refused(&false);
    ask(&client, &pool, 9, "ReencryptPool", ()).refused(&false);
    assert!(!ask(&client, &pool, 9, "DecryptPool", ()).done(), "it is plain already");
    for _twice in 0..2 {
        assert!(lists(&[(FREE, "a")], &[(at(5), "tpm2", "{}")]).done());
        assert!(!lists(&[(FREE, "b")], &[]).done(), "it is encrypted already");
        lists(&[], &[]).refused(&false);
        assert_eq!(slots(&client, &pool), set(&["(0, \"a\")", "(5, (\"tpm2\", \"{}\"))"]));
        assert_eq!(shown(&client, &pool, 9, "LastReencryptedTimestamp"), "(bs) (false, \"\")");
        for _twice in 0..2 {
            assert!(ask(&client, &pool, 9, "ReencryptPool", ()).done());
        }
        let time = get(&client, &pool, 9, "LastReencryptedTimestamp");
        let text = time.members()[1].text();
        assert!(time.members()[0].is_true() && text.len() == 20 && text.ends_with('Z'), "{text:?}");
        client.make_filesystem(&pool, "g");
        client.destroy_filesystems(&pool, &[client.snapshot(&pool, &filesystem, "s").done().1]).done();
        let made: Vec<_> = client.family("filesystem").into_keys().filter(|path| *path != filesystem).collect();
        client.destroy_filesystems(&pool, &made).done();
        assert!(ask(&client, &pool, 9, "DecryptPool", ()).done());
        assert!(!ask(&client, &pool, 9, "DecryptPool", ()).done());
        assert_eq!(shown(&client, &pool, 9, "LastReencryptedTimestamp"), "(bs) (false, \"\")");
        assert_eq!(shown(&client, &pool, 9, "KeyDescriptions"), "s \"Unencrypted\"");
    }
    client.stop_pool("p", "name").done();
    assert!(client.start_pool("p", "name").done().0, "a plain pool needs no method");
}

#[test]
fn what_was_changed_is_there_when_the_pool_is_started_again() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    assert!(ask(&client, &pool, 9, "EncryptPool", (vec![(at(9), "k")], Vec::<(Slot, String, String)>::new())).done());
    assert!(ask(&client, &pool, 9, "BindClevis", ("tpm2", "{}", FREE)).done());
    assert!(ask(&client, &pool, 9, "ReencryptPool", ()).done());
    let about = ["KeyDescriptions", "ClevisInfos", "FreeTokenSlots", "LastReencryptedTimestamp", "Encrypted"];
    let before = about.map(|property| shown(&client, &pool, 9, property));
    client.stop_pool("p", "name").done();
    let (_, (pool, ..)) = start(&client, "p", (true, FREE), false).done();
    assert_eq!(about.map(|property| shown(&client, &pool, 9, property)), before);
}

#[test]
fn nothing_is_encrypted_on_files_and_nothing_changes() {
    let rig = Rig::new(Kind::Files);
    let _daemon = rig.start();
    let client = rig.client();
    let disk = rig.disk("d", 2 * GIB);
    let mut arguments = create_pool_arguments("e", &[&disk]);
    arguments.3 = vec![(FREE, "tpm2".to_owned(), "{}".to_owned())];
    let answer = client.ask(TOP, &interface("Manager", 9), "CreatePool", arguments).map(created);
    assert!(answer.refused(&nothing()).contains("not supported"));
    assert!(client.objects().is_empty());
    let (_, (pool, _)) = client.create_pool("p", &[&disk]).done();
    let clevis = vec![(FREE, "tpm2", "{}")];
    let answer = ask(&client, &pool, 9, "EncryptPool", (Vec::<(Slot, String)>::new(), clevis));
    assert!(answer.refused(&false).contains("not supported"));
    assert!(!get(&client, &pool, 9, "Encrypted").is_true());
}
