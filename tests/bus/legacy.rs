//! Old revisions and old clients: shapes that changed, and what cockpit and blivet really send.

use crate::support::client::{Answer, Client, method, started};
use crate::support::raw::{RawClient, bytes_of, patch};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{GIB, REVISIONS, TOP, interface};
use crate::{NIL, make_pool, text_of};

type Path = dbus::Path<'static>;
type Pool = (bool, (Path, Vec<Path>));
type Start = (bool, (Path, Vec<Path>, Vec<Path>));

/// No Clevis configuration, as r0 to r7 write it.
fn no_clevis() -> (bool, (String, String)) {
    (false, (String::new(), String::new()))
}

fn no_text() -> (bool, String) {
    (false, String::new())
}

#[test]
fn create_pool_is_served_in_all_three_shapes() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in 0..REVISIONS {
        let (name, disk) = (format!("p{revision}"), format!("/disk{revision}"));
        let on = interface("Manager", revision);
        let create = || -> Answer<Pool> {
            let devices = vec![disk.clone()];
            match revision {
                0..=4 => {
                    // Redundancy is ignored, whatever it says.
                    let arguments = (name.clone(), (revision % 2 == 0, 7_u16), devices, no_text(), no_clevis());
                    client.ask(TOP, &on, "CreatePool", arguments)
                }
                5..=7 => client.ask(TOP, &on, "CreatePool", (name.clone(), devices, no_text(), no_clevis())),
                _ => {
                    let arguments = crate::support::client::create_pool_arguments(&name, &devices);
                    client.ask(TOP, &on, "CreatePool", arguments)
                }
            }
        };
        let (changed, (pool, devices)) = create().done();
        assert!(changed, "r{revision}");
        assert_eq!(devices.len(), 1);
        assert_eq!(text_of(&client, &pool, "pool", "Name"), name);
        assert_eq!(create().done(), (false, (Path::from("/"), Vec::new())), "r{revision}");
    }
}

#[test]
fn start_and_stop_are_served_in_all_shapes() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let mut path = make_pool(&rig, &client, "p");
    let uuid = text_of(&client, &path, "pool", "Uuid");
    client.make_filesystem(&path, "f");
    for revision in 2..REVISIONS {
        let on = interface("Manager", revision);
        let stop = |path: &str| -> Answer<(bool, String)> {
            match revision {
                2..=5 => client.ask(TOP, &on, "StopPool", (Path::from(path.to_owned()),)),
                _ => client.ask(TOP, &on, "StopPool", ("p", "name")),
            }
        };
        assert_eq!(stop(&path).done(), (true, uuid.clone()), "r{revision}");
        if revision < 6 {
            stop(&path).refused(&(false, String::new()));
        } else {
            assert_eq!(stop(&path).done(), (false, String::new()), "r{revision}");
        }
        let start = || -> Answer<Start> {
            match revision {
                2..=3 => client.ask(TOP, &on, "StartPool", (uuid.clone(), no_text())),
                4..=7 => client.ask(TOP, &on, "StartPool", ("p", "name", no_text())),
                8 => client.ask(TOP, &on, "StartPool", ("p", "name", (false, (false, 0_u32)), (false, dummy()))),
                _ => client.ask(TOP, &on, "StartPool", ("p", "name", (false, (false, 0_u32)), (false, dummy()), false)),
            }
        };
        let (changed, (pool, devices, filesystems)) = start().map(started).done();
        assert_eq!((changed, devices.len(), filesystems.len()), (true, 1, 1), "r{revision}");
        assert!(!start().done().0, "r{revision}: it runs already");
        path = pool;
    }
}

fn dummy() -> std::fs::File {
    std::fs::File::open("/dev/null").expect("/dev/null can be opened")
}

#[test]
fn unlock_methods_are_taken_in_lower_case_and_ignored_where_absent() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_pool(&rig, &client, "p");
    client.stop_pool("p", "name").done();
    let neutral = (false, (Path::from("/"), Vec::new(), Vec::new()));
    let start = |unlock: (bool, &str)| -> Answer<Start> {
        client.ask(TOP, &interface("Manager", 5), "StartPool", ("p", "name", (unlock.0, unlock.1.to_owned())))
    };
    // The pool is not encrypted, so a method is refused; but by code 1, not as a malformed call.
    for spelling in ["any", "Any", "clevis", "Clevis", "keyring", "Keyring", "KEYRING", "nonsense", ""] {
        start((true, spelling)).refused(&neutral);
    }
    assert!(start((false, "")).done().0, "what cockpit sends");
    client.stop_pool("p", "name").done();
    assert!(start((false, "nonsense")).done().0, "an absent method is not read");
}

#[test]
fn a_missing_descriptor_is_ignored_where_the_flag_is_false() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    make_pool(&rig, &client, "p");
    client.stop_pool("p", "name").done();
    // blivet sends the handle -1 and no descriptor, which no library lets us write: the number goes
    // out as `u`, and the signature is changed on the wire.
    let mut message = method(TOP, &interface("Manager", 8), "StartPool");
    message.append_all(("p", "name", (false, (false, 0_u32)), (false, u32::MAX)));
    message.set_serial(7);
    let mut bytes = bytes_of(&message);
    patch(&mut bytes, "ss(b(bu))(bu)", "ss(b(bu))(bh)");
    let mut raw = RawClient::connect(rig.bus.socket()).hello();
    raw.send(&bytes).expect("the bus reads");
    let reply = raw.reply_to(7).expect("the call is answered");
    let body = Value::body(&reply);
    assert!(body[0].members()[0].is_true(), "the pool is started: {body:?}");
    assert_eq!(client.family("pool").len(), 1);
}

#[test]
fn filesystems_are_created_in_both_shapes() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    for revision in 0..6 {
        let name = format!("f{revision}");
        let create = || -> Answer<(bool, Vec<(Path, String)>)> {
            let specs = vec![(name.clone(), (true, "536870912".to_owned()))];
            client.ask(&pool, &interface("pool", revision), "CreateFilesystems", (specs,))
        };
        let (changed, made) = create().done();
        assert_eq!((changed, made[0].1.as_str()), (true, name.as_str()));
        assert_eq!(create().done(), (false, Vec::new()), "r{revision}");
    }
    for (revision, path) in (0..).zip(client.family("filesystem").into_keys()) {
        let paths = vec![Path::from(path)];
        let answer: Answer<(bool, Vec<String>)> =
            client.ask(&pool, &interface("pool", revision), "DestroyFilesystems", (paths,));
        assert_eq!(answer.done().1.len(), 1, "r{revision}");
    }
    assert!(client.family("filesystem").is_empty());
}

#[test]
fn destroy_pool_is_served_on_every_revision() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    for revision in 0..REVISIONS {
        let pool = make_pool(&rig, &client, "p");
        let answer: Answer<(bool, String)> =
            client.ask(TOP, &interface("Manager", revision), "DestroyPool", (Path::from(pool),));
        assert!(answer.done().0, "r{revision}");
    }
}

#[test]
fn the_old_method_sets_the_user_info_without_signals() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let (_, (_, devices)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    let uuid = text_of(&client, &devices[0], "blockdev", "Uuid");
    client.subscribe();
    for revision in 0..3 {
        let set = |client: &Client, info: (bool, String)| -> Answer<(bool, String)> {
            client.ask(&devices[0], &interface("blockdev", revision), "SetUserInfo", (info,))
        };
        let unchanged = (false, NIL.to_owned());
        let tag = (true, format!("tag{revision}"));
        assert_eq!(set(&client, tag.clone()).done(), (true, uuid.clone()));
        assert_eq!(set(&client, tag).done(), unchanged);
        set(&client, (true, "a b".to_owned())).refused(&unchanged);
        set(&client, (true, String::new())).refused(&unchanged);
        let read = client.get(&devices[0], &interface("blockdev", 9), "UserInfo");
        assert_eq!(read, Ok(crate::support::client::present(&format!("tag{revision}"))));
    }
    assert!(client.ask::<(bool, String)>(&devices[0], &interface("blockdev", 0), "SetUserInfo", (no_text(),)).done().0);
}
