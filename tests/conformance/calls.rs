//! Items 4, 7, 8 and 11: what calls take and what they answer, as far as no encryption is about.

use dbus::{Message, MessageType};

use crate::support::client::{Answer, Client, create_pool_arguments, method, start_pool_arguments, started};
use crate::support::raw::{RawClient, bytes_of, patch};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{REVISIONS, TOP, interface};
use crate::{Path, furnish, text_of};

/// What `StartPool` gives: whether that changed anything, the pool, its devices, its filesystems.
pub(crate) type Start = (bool, (Path, Vec<Path>, Vec<Path>));

#[test]
fn item_4_names_follow_the_table() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let all = furnish(&rig, &client, "p");
    let (longest, longer, wide) = ("x".repeat(255), "x".repeat(256), "ä".repeat(128));
    let good = ["...", "1", "-a", "a,b", "a:b=c@d#e+f", "ü", "\u{1f600}", "a\u{200b}", &longest, &wide[..254]];
    let whole = ["", ".", "..", &longer, &wide, " a", "a ", "\u{a0}a", "a\u{2003}", "a/b", "/a", "./a", "/", "a/"];
    let inside = " !\"$%&'()*;<>?[\\]^`{|}~\t\u{85}".chars().map(|letter| format!("a{letter}b"));
    let bad: Vec<String> = whole.map(str::to_owned).into_iter().chain(inside).collect();
    let create = |name: &str| client.create_filesystems(&all.pool, &[(name, Some("536870912"), None)]);
    let tag = |name: &str| client.set(&all.device, &interface("blockdev", 9), "UserInfo", (true, name.to_owned()));
    for name in good {
        let (changed, (pool, _)) = client.create_pool(name, &["/dev/of-a-name"]).done();
        assert!(changed, "{name:?}");
        client.destroy_pool(&pool).done();
        let (_, made) = create(name).done();
        client.destroy_filesystems(&all.pool, &[made[0].0.clone()]).done();
        assert_eq!(tag(name), Ok(()), "{name:?}");
    }
    let before = client.objects();
    for name in &bad {
        client.create_pool(name, &["/dev/of-a-name"]).refused(&(false, ("/".to_owned(), Vec::new())));
        create(name).refused(&(false, Vec::new()));
        client.snapshot(&all.pool, &all.origin, name).refused(&(false, "/".to_owned()));
        tag(name).expect_err("a tag follows the rules of names");
    }
    assert_eq!(client.objects(), before);
}

#[test]
fn item_4_sizes_are_checked() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = furnish(&rig, &client, "p").pool;
    let good = [
        (None, None, "1099511627776"),
        (Some("536870912"), None, "536870912"),
        (Some("+536870912"), None, "536870912"),
        (Some("536870912"), Some("536870912"), "536870912"),
        (Some("536870912"), Some("9444732965739290426880"), "536870912"),
    ];
    for (size, limit, expected) in good {
        let (_, made) = client.create_filesystems(&pool, &[("sized", size, limit)]).done();
        assert_eq!(text_of(&client, &made[0].0, "filesystem", "Size"), expected);
        client.destroy_filesystems(&pool, &[made[0].0.clone()]).done();
    }
    let wide = "340282366920938463463374607431768211456";
    for bad in ["", "-1", "1 GiB", "0x20000000", "536870911", "536870913", "536870400", "9444732965739290427392", wide]
    {
        client.create_filesystems(&pool, &[("sized", Some(bad), None)]).refused(&(false, Vec::new()));
        client.create_filesystems(&pool, &[("sized", None, Some(bad))]).refused(&(false, Vec::new()));
    }
    client.create_filesystems(&pool, &[("s2", Some("1073741824"), Some("536870912"))]).refused(&(false, Vec::new()));
}

#[test]
fn item_7_a_started_pool_has_new_paths_devices_before_filesystems() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let all = furnish(&rig, &client, "p");
    client.stop_pool("p", "name").done();
    for (revision, members) in [(7, vec!["devs", "name"]), (9, vec!["devs", "features", "metadata_version", "name"])] {
        let listed = client.stopped_pools(revision);
        let (uuid, entry) = listed.first_key_value().expect("one is stopped");
        assert_eq!((listed.len(), uuid.len()), (1, 32));
        assert_eq!(entry.keys().collect::<Vec<_>>(), members, "r{revision}");
        for (name, kind) in [("name", "s"), ("devs", "aa{ss}"), ("features", "(ba{sb})"), ("metadata_version", "(bt)")]
        {
            assert!(entry.get(name).is_none_or(|value| value.signature() == kind), "r{revision} {name}: {entry:?}");
        }
    }
    let (changed, (pool, devices, filesystems)) = client.start_pool("p", "name").done();
    assert!(changed);
    let number = |path: &str| path.rsplit('/').next().and_then(|last| last.parse::<u64>().ok()).expect("a number");
    let highest = [&all.pool, &all.device, &all.origin, &all.snapshot].map(|path| number(path)).into_iter().max();
    let (mut first, mut last): (Vec<_>, Vec<_>) =
        (filesystems.iter().map(|path| number(path)).collect(), devices.iter().map(|path| number(path)).collect());
    first.sort_unstable();
    last.sort_unstable();
    let next = highest.expect("four paths") + 1;
    assert_eq!((number(&pool), first, last), (next, vec![next + 1, next + 2], vec![next + 3]));
    assert!(devices.iter().all(|path| client.family("blockdev").contains_key(path)));
    assert!(filesystems.iter().all(|path| client.family("filesystem").contains_key(path)));
}

#[test]
fn item_8_old_revisions_are_served_in_their_shapes() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let (no_text, no_clevis) = ((false, ""), (false, ("", "")));
    let arguments = ("p", (true, 7_u16), vec!["/dev/old"], no_text, no_clevis);
    let created: Answer<(bool, (Path, Vec<Path>))> = client.ask(TOP, &interface("Manager", 0), "CreatePool", arguments);
    let (changed, (pool, devices)) = created.done();
    assert!(changed, "redundancy is ignored");
    let uuid = text_of(&client, &pool, "pool", "Uuid");
    let tag: Answer<(bool, String)> =
        client.ask(&devices[0], &interface("blockdev", 0), "SetUserInfo", ((true, "tag"),));
    assert_eq!(tag.done(), (true, text_of(&client, &devices[0], "blockdev", "Uuid")));

    let stopped: Answer<(bool, String)> = client.ask(TOP, &interface("Manager", 2), "StopPool", (pool.clone(),));
    assert_eq!(stopped.done(), (true, uuid.clone()));
    let again: Answer<(bool, String)> = client.ask(TOP, &interface("Manager", 2), "StopPool", (pool,));
    again.refused(&(false, String::new()));
    let start: Answer<Start> = client.ask(TOP, &interface("Manager", 2), "StartPool", (uuid, no_text));
    assert!(start.done().0);
    client.stop_pool("p", "name").done();
    let start: Answer<Start> = client.ask(TOP, &interface("Manager", 4), "StartPool", ("p", "name", no_text));
    assert!(start.done().0);
}

/// `StartPool` of r8 with a handle but no descriptor, which no library lets a client write: the reply, or the error.
pub(crate) fn start_as_blivet(rig: &Rig, id: &str, unlock: bool, key: (bool, u32)) -> Message {
    let mut message = method(TOP, &interface("Manager", 8), "StartPool");
    message.append_all((id, "uuid", (unlock, (false, 0_u32)), key));
    message.set_serial(7);
    let mut bytes = bytes_of(&message);
    patch(&mut bytes, "ss(b(bu))(bu)", "ss(b(bu))(bh)");
    let mut raw = RawClient::connect(rig.bus.socket()).hello();
    raw.send(&bytes).expect("the bus reads");
    raw.reply_to(7).expect("the call is answered")
}

/// A reply to `StartPool` of r8, which must have its types: whether the pool was started.
pub(crate) fn has_started(reply: &Message) -> bool {
    let body = Value::body(reply);
    let types: Vec<_> = body.iter().map(Value::signature).collect();
    assert_eq!(types, ["(b(oaoao))", "q", "s"]);
    body[0].members()[0].is_true()
}

/// `StartPool` of r6 by UUID.
pub(crate) fn start_as_cockpit(client: &Client, id: &str, unlock: (bool, &str)) -> Answer<Start> {
    client.ask(TOP, &interface("Manager", 6), "StartPool", (id, "uuid", unlock))
}

#[test]
fn item_11_blivet_and_cockpit_start_pools_as_they_do() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = furnish(&rig, &client, "p").pool;
    let uuid = text_of(&client, &pool, "pool", "Uuid");
    client.stop_pool(&uuid, "uuid").done();
    let malformed = start_as_blivet(&rig, &uuid, false, (true, 0));
    assert_eq!(malformed.msg_type(), MessageType::Error, "a descriptor is announced and none comes");
    assert_eq!(client.stopped_pools(8).len(), 1, "it stays stopped");
    assert!(has_started(&start_as_blivet(&rig, &uuid, false, (false, u32::MAX))));
    client.stop_pool(&uuid, "uuid").done();
    let neutral = (false, (Path::from("/"), Vec::new(), Vec::new()));
    for method in ["keyring", "clevis", "any", "Keyring", "nonsense", ""] {
        start_as_cockpit(&client, &uuid, (true, method)).refused(&neutral);
    }
    let (changed, (_, devices, filesystems)) = start_as_cockpit(&client, &uuid, (false, "")).map(started).done();
    assert_eq!((changed, devices.len(), filesystems.len()), (true, 1, 2));
}

#[test]
fn item_5_and_7_hold_for_every_revision_that_starts_pools() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in 8..REVISIONS {
        let on = interface("Manager", revision);
        let (name, disk) = (format!("p{revision}"), format!("/dev/{revision}"));
        let created: Answer<(bool, (Path, Vec<Path>))> =
            client.ask(TOP, &on, "CreatePool", create_pool_arguments(&name, &[disk]));
        assert!(created.done().0);
        let stopped: Answer<(bool, String)> = client.ask(TOP, &on, "StopPool", (name.as_str(), "name"));
        assert!(stopped.done().0);
    }
    let arguments = start_pool_arguments("p9", "name");
    let start: Answer<Start> = client.ask(TOP, &interface("Manager", 9), "StartPool", arguments);
    assert!(start.done().0);
    assert_eq!(client.stopped_pools(8).len(), 1);
}
