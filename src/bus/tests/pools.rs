//! Calls of the manager: all shapes of creating, destroying, starting and stopping pools.
//!
//! Old shapes must mean the same as new ones, so most tests run over all revisions and expect one
//! wish.

use super::*;

fn created(integrity: IntegritySpec) -> Wish {
    let devices = vec![DevicePath::try_from("/dev/a").expect("absolute")];
    Wish::CreatePool { pool: PoolUuid::from_random([9; 16]), name: name("p"), devices, integrity, encryption: None }
}

fn devices(paths: &[&str]) -> Value {
    Value::Array("s", paths.iter().map(|path| text(path)).collect())
}

fn no_clevis() -> Value {
    structure([Value::Flag(false), structure([text(""), text("")])])
}

fn create_r8(journal: Value, tag: Value, superblock: Value) -> [Value; 7] {
    let lists = [Value::Array("((bu)s)", vec![]), Value::Array("((bu)ss)", vec![])];
    let [keys, clevis] = lists;
    [text("p"), devices(&["/dev/a"]), keys, clevis, journal, tag, superblock]
}

#[test]
fn all_shapes_of_create_pool_mean_the_same() {
    let redundancy = pair(true, Value::U16(7));
    let old = [text("p"), redundancy, devices(&["/dev/a", "//dev/./a"]), none(), no_clevis()];
    let middle = [text("p"), devices(&["/dev/a"]), none(), no_clevis()];
    let new = create_r8(pair(false, Value::U64(1)), pair(false, text("?")), pair(false, Value::Flag(false)));
    for rev in 0..=LATEST {
        let mut bus = bus();
        let args: &[Value] = match rev {
            0..=4 => &old,
            5..=7 => &middle,
            _ => &new,
        };
        let request = asked(&mut bus, TOP, &manager(rev), "CreatePool", args);
        assert_eq!(request.wish, created(IntegritySpec::default()), "r{rev}");
    }
}

#[test]
fn integrity_arguments_are_carried_over() {
    let mut bus = bus();
    let args = create_r8(pair(true, Value::U64(0)), pair(true, text("0b")), pair(true, Value::Flag(false)));
    let request = asked(&mut bus, TOP, &manager(9), "CreatePool", &args);
    let integrity = IntegritySpec { tag: TagSpec::B0, journal: Sectors(0), superblock: false };
    assert_eq!(request.wish, created(integrity));

    let odd = create_r8(pair(true, Value::U64(4097)), pair(false, text("")), pair(false, Value::Flag(false)));
    let (_, why) = code_1(&mut bus, TOP, &manager(9), "CreatePool", &odd);
    assert_eq!(why, Refusal::Journal(4097).to_string());
    let odd = create_r8(pair(false, Value::U64(0)), pair(true, text("1b")), pair(false, Value::Flag(false)));
    let (_, why) = code_1(&mut bus, TOP, &manager(9), "CreatePool", &odd);
    assert_eq!(why, Refusal::TagSpec { tried: "1b".into() }.to_string());
}

#[test]
fn a_refused_create_pool_has_the_neutral_result() {
    let mut bus = bus();
    let neutral = pair(false, structure([Value::Path("/".into()), Value::Array("o", vec![])]));
    let relative = [text("p"), devices(&["sda", "/dev/b", "sdc"]), none(), no_clevis()];
    let (first, why) = code_1(&mut bus, TOP, &manager(5), "CreatePool", &relative);
    assert_eq!(first, neutral);
    assert!(why.contains("\"sda\"") && why.contains("\"sdc\"") && !why.contains("/dev/b"), "{why}");

    let bad_name = [text("a b"), devices(&["/dev/b"]), none(), no_clevis()];
    assert!(code_1(&mut bus, TOP, &manager(5), "CreatePool", &bad_name).1.contains("\"a b\""));
    let key = [text("p"), devices(&["/dev/b"]), some("key"), no_clevis()];
    assert!(code_1(&mut bus, TOP, &manager(5), "CreatePool", &key).1.contains("no key \"key\" is in the key ring"));
}

#[test]
fn a_new_pool_is_announced_before_its_creator_is_answered() {
    let mut bus = bus();
    let args = [text("p"), devices(&["/dev/a"]), none(), no_clevis()];
    let request = asked(&mut bus, TOP, &manager(7), "CreatePool", &args);
    let answer = Answer::PoolCreated(pool_id(2), vec![dev_id(2), dev_id(3)]);
    let views = vec![View::Pool(pool(2)), View::Device(device(2, 2)), View::Device(device(2, 3))];
    let messages = concluded(&mut bus, &request, views, answer);
    let (first, code, why) = triple(&messages);
    assert_eq!((code, &*why), (0, "Ok"));
    assert_eq!(first, pair(true, structure([path(3), Value::Array("o", vec![path(4), path(5)])])));
    let (_, before) = messages.split_last().expect("not empty");
    assert_eq!(before.len(), 3);
    for (signal, n) in before.iter().zip(3..) {
        assert_eq!(signal.msg_type(), MessageType::Signal);
        assert_eq!(signal.member().as_deref(), Some("InterfacesAdded"));
        assert_eq!(signal.path().as_deref(), Some(TOP));
        assert_eq!(values(signal)[0], path(n));
    }
}

#[test]
fn an_identity_is_code_0_with_the_neutral_result() {
    let mut bus = bus();
    let args = [text("p"), devices(&["/dev/a"]), none(), no_clevis()];
    let request = asked(&mut bus, TOP, &manager(7), "CreatePool", &args);
    let messages = concluded(&mut bus, &request, vec![], Answer::Identity);
    let neutral = pair(false, structure([Value::Path("/".into()), Value::Array("o", vec![])]));
    assert_eq!(triple(&messages), (neutral, 0, "Ok".into()));
}

#[test]
fn a_destroyed_pool_has_hyphens_in_its_answer() {
    let mut bus = bus();
    let request = asked(&mut bus, TOP, &manager(3), "DestroyPool", &[path(0)]);
    assert_eq!(request.wish, Wish::DestroyPool(pool_id(1)));
    let messages = concluded(&mut bus, &request, vec![View::PoolGone(pool_id(1))], Answer::PoolDestroyed(pool_id(1)));
    assert_eq!(triple(&messages).0, some(&pool_id(1).to_string()));
    let gone: Vec<_> = messages[..3].iter().map(|signal| values(signal)[0].clone()).collect();
    assert_eq!(gone, [path(1), path(2), path(0)], "filesystems, devices, then the pool");

    for unknown in [path(0), path(1), Value::Path("/x".into())] {
        assert_eq!(code_1(&mut bus, TOP, &manager(3), "DestroyPool", &[unknown]).0, none());
    }
}

fn start_call<'a>(rev: u8, interface: &'a str, args: &'a [Value]) -> Call<'a> {
    let call = Call::new(TOP, interface, "StartPool", args);
    let signature = match rev {
        8 => Some("ss(b(bu))(bh)"),
        9 => Some("ss(b(bu))(bh)b"),
        _ => None,
    };
    Call { signature, ..call }
}

#[test]
fn all_shapes_of_start_pool_mean_the_same() {
    for rev in 2..=LATEST {
        let mut bus = bus();
        bus.handle_views(vec![View::Stopped(stopped(2, Some("p2")))]);
        drain(&mut bus);
        let args = start_args(rev, &pool_id(2).simple(), "uuid");
        send(&mut bus, &start_call(rev, &manager(rev), &args));
        let request = bus.poll_request().expect("a request");
        let wish = Wish::StartPool { pool: pool_id(2), unlock: false, remove_cache: rev == 9 };
        assert_eq!(request.wish, wish, "r{rev}");
        let answer = Answer::PoolStarted(pool_id(2), vec![dev_id(2)], vec![fs_id(2)]);
        let views = vec![
            View::Pool(pool(2)),
            View::Filesystem(filesystem(2, 2)),
            View::Device(device(2, 2)),
            View::StoppedGone(pool_id(2)),
        ];
        let messages = concluded(&mut bus, &request, views, answer);
        let lists = [path(3), Value::Array("o", vec![path(5)]), Value::Array("o", vec![path(4)])];
        assert_eq!(triple(&messages), (pair(true, structure(lists)), 0, "Ok".into()), "devices come first");
        let told = messages.iter().filter(|m| m.member().as_deref() == Some("PropertiesChanged")).count();
        assert_eq!(told, 8, "StoppedPools changed on r2 to r9");
    }
}

#[test]
fn pools_are_started_by_name_where_the_name_is_clear() {
    let mut bus = bus();
    bus.handle_views(vec![View::Stopped(stopped(2, Some("two"))), View::Stopped(stopped(3, Some("twin")))]);
    bus.handle_views(vec![View::Stopped(stopped(4, Some("twin"))), View::Stopped(stopped(5, Some("pool1")))]);
    drain(&mut bus);
    let start = |bus: &mut Bus, id: &str, id_type: &str| {
        let args = start_args(4, id, id_type);
        send(bus, &Call::new(TOP, &manager(4), "StartPool", &args));
    };
    start(&mut bus, "two", "name");
    let request = bus.poll_request().expect("a request");
    assert_eq!(request.wish.pool(), pool_id(2));

    for (id, id_type, code, part) in [
        ("pool1", "name", 0, "Ok"),
        ("twin", "name", 1, "several pools"),
        ("nobody", "name", 1, "\"nobody\""),
        ("two", "Name", 1, "\"Name\""),
        ("two", "uuid", 1, "\"two\""),
        (&pool_id(77).to_string(), "uuid", 1, &pool_id(77).to_string()),
    ] {
        start(&mut bus, id, id_type);
        let (_, given, why) = triple(&drain(&mut bus));
        assert_eq!(given, code, "{id} {id_type}: {why}");
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn an_unlock_method_is_refused_for_pools_without_encryption() {
    let mut bus = bus();
    bus.handle_views(vec![View::Stopped(stopped(2, Some("p2")))]);
    drain(&mut bus);
    for id in [pool_id(1).simple(), pool_id(2).simple()] {
        for method in ["any", "Any", "keyring", "Clevis"] {
            let args = [text(&id), some(method)];
            assert!(code_1(&mut bus, TOP, &manager(2), "StartPool", &args).1.contains("not encrypted"));
        }
        let args = [text(&id), some("magic")];
        assert!(code_1(&mut bus, TOP, &manager(2), "StartPool", &args).1.contains("\"magic\""));
    }
}

#[test]
fn a_descriptor_counts_only_if_it_is_there() {
    let mut bus = bus();
    let slot = pair(false, pair(false, Value::U32(0)));
    let args = [text("pool1"), text("name"), slot, pair(true, Value::U32(0))];
    let interface = manager(8);
    let call = start_call(8, &interface, &args);
    assert_eq!(error_name(&answer(&mut bus, &call)), INVALID_ARGS);
    let (_, code, why) = triple(&[answer(&mut bus, &Call { descriptors: 1, ..call })]);
    assert_eq!(code, 1);
    assert!(why.contains("passphrase"), "{why}");
}

#[test]
fn stopping_knows_both_shapes() {
    let mut bus = bus();
    let by_path = asked(&mut bus, TOP, &manager(2), "StopPool", &[path(0)]);
    assert_eq!(by_path.wish, Wish::StopPool(pool_id(1)));
    let views = vec![View::PoolGone(pool_id(1)), View::Stopped(stopped(1, Some("pool1")))];
    let messages = concluded(&mut bus, &by_path, views, Answer::PoolStopped(pool_id(1)));
    assert_eq!(triple(&messages), (some(&pool_id(1).simple()), 0, "Ok".into()));

    assert_eq!(code_1(&mut bus, TOP, &manager(2), "StopPool", &[path(0)]).0, none());
    let again = returned(&mut bus, TOP, &manager(6), "StopPool", &[text("pool1"), text("name")]);
    assert_eq!(again, [none(), Value::U16(0), text("Ok")]);
}

#[test]
fn what_is_on_its_way_is_decided_at_home() {
    let mut bus = bus();
    let stop = asked(&mut bus, TOP, &manager(6), "StopPool", &[text("pool1"), text("name")]);
    // The pool still runs in the tree, but it may have stopped when this call is reached.
    let start = asked(&mut bus, TOP, &manager(4), "StartPool", &start_args(4, "pool1", "name"));
    assert_eq!(start.wish.pool(), stop.wish.pool());
}

#[test]
fn stopped_pools_have_the_types_that_clients_test() {
    let mut bus = bus();
    let unreadable = StoppedPoolView { name: None, version: None, features: None, ..stopped(3, None) };
    let sealed = [("encryption".to_owned(), true), ("clevis_present".to_owned(), false)].into();
    bus.handle_views(vec![
        View::Stopped(StoppedPoolView { features: Some(sealed), ..stopped(2, Some("p2")) }),
        View::Stopped(unreadable),
    ]);
    drain(&mut bus);
    let pairs = |n: u8| {
        let pair = |key: &str, value: &str| Value::Entry(Box::new((text(key), text(value))));
        let both = vec![pair("devnode", &format!("/dev/sd{n}")), pair("uuid", &dev_id(n).simple())];
        Value::entry("devs", Value::Array("a{ss}", vec![Value::Array("{ss}", both)]))
    };
    let entry = |n: u8, members: Vec<Value>| {
        Value::Entry(Box::new((text(&pool_id(n).simple()), Value::Array("{sv}", members))))
    };
    let features = |known, set: Vec<Value>| Value::entry("features", pair(known, Value::Array("{sb}", set)));
    let version = |known, number| Value::entry("metadata_version", pair(known, Value::U64(number)));
    let encryption = Value::Entry(Box::new((text("encryption"), Value::Flag(true))));
    let two = vec![pairs(2), features(true, vec![encryption]), version(true, 2), Value::entry("name", text("p2"))];
    let three = vec![pairs(3), features(false, vec![]), version(false, 0)];
    let new = Value::Array("{sa{sv}}", vec![entry(2, two), entry(3, three)]);
    assert_eq!(get(&mut bus, TOP, &manager(8), "StoppedPools"), new);
    let old = vec![entry(2, vec![pairs(2), Value::entry("name", text("p2"))]), entry(3, vec![pairs(3)])];
    assert_eq!(get(&mut bus, TOP, &manager(7), "StoppedPools"), Value::Array("{sa{sv}}", old));
    assert_eq!(get(&mut bus, TOP, &manager(1), "LockedPools"), Value::Array("{sa{sv}}", vec![]));
}
