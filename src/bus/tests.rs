//! The whole role without a bus: views and calls in, bytes out, read back by `dbus`.

use dbus::arg::messageitem::MessageItem;
use dbus::{Message, MessageType};

use crate::bus::core::Bus;
use crate::bus::encode::tests::Call;
use crate::bus::errors::*;
use crate::bus::table::LATEST;
use crate::bus::value::Value;
use crate::bus::value::tests::from_item;
use crate::error::{Failure, Refusal};
use crate::limits::{CALLS_PER_SENDER_MAX, LISTING_PASSED_MAX};
use crate::message::{Answer, Reply, Request, View, Wish};
use crate::model::device::{DevicePath, DeviceView, Tier};
use crate::model::filesystem::{FilesystemRecord, FilesystemSpec, FilesystemView};
use crate::model::ids::{DevUuid, FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::model::pool::{
    Availability, IntegritySpec, MetadataVersion, PoolView, StoppedDevice, StoppedPoolView, TagSpec,
};
use crate::units::{Bytes, Sectors};

const TOP: &str = "/org/storage/stratis3";
const GIB: Sectors = Sectors(2_097_152);

// ---- a world ---------------------------------------------------------------------------------

fn name(text: &str) -> Name {
    Name::try_from(text).expect("a name")
}

fn pool_id(n: u8) -> PoolUuid {
    PoolUuid::from_random([n; 16])
}

fn fs_id(n: u8) -> FsUuid {
    FsUuid::from_random([0x40 | n; 16])
}

fn dev_id(n: u8) -> DevUuid {
    DevUuid::from_random([0x80 | n; 16])
}

fn pool(n: u8) -> PoolView {
    PoolView {
        uuid: pool_id(n),
        name: name(&format!("pool{n}")),
        availability: Availability::Full,
        version: MetadataVersion::V2,
        has_cache: false,
        physical_size: Bytes(590_295_810_358_705_651_712),
        physical_used: Some(Bytes(0)),
        allocated: Bytes(2_684_354_560),
        no_alloc_space: false,
        fs_limit: 100,
        overprovisioning: true,
    }
}

fn filesystem(pool: u8, n: u8) -> FilesystemView {
    FilesystemView {
        pool: pool_id(pool),
        record: FilesystemRecord {
            name: name(&format!("fs{n}")),
            uuid: fs_id(n),
            thin_id: ThinId(u32::from(n)),
            size: GIB,
            created: 1_795_234_979,
            size_limit: None,
            origin: None,
            merge: false,
        },
        devnode: format!("/dev/stratis/pool{pool}/fs{n}"),
        used: None,
    }
}

fn device(pool: u8, n: u8) -> DeviceView {
    DeviceView {
        pool: pool_id(pool),
        uuid: dev_id(n),
        devnode: format!("/dev/sd{n}"),
        physical_path: format!("/dev/sd{n}"),
        initialized: 1_795_234_979,
        hardware: None,
        user_info: None,
        tier: Tier::Data,
        size: GIB,
        new_size: None,
    }
}

fn stopped(n: u8, called: Option<&str>) -> StoppedPoolView {
    StoppedPoolView {
        uuid: pool_id(n),
        name: called.map(name),
        devices: vec![StoppedDevice { uuid: dev_id(n), devnode: format!("/dev/sd{n}") }],
        version: Some(MetadataVersion::V2),
        features: Some(std::collections::BTreeMap::new()),
    }
}

/// A bus with pool 1 (path 0), its filesystem 1 (path 1) and its device 1 (path 2).
fn bus() -> Bus {
    let mut bus = Bus::new("3.9.2", Some("0123".into()), || [9; 16]);
    let device = View::Device(device(1, 1));
    bus.handle_views(vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1)), device]);
    drain(&mut bus);
    bus
}

// ---- asking and reading ------------------------------------------------------------------------

fn text(text: &str) -> Value {
    Value::text(text)
}

fn structure<const N: usize>(members: [Value; N]) -> Value {
    Value::Struct(members.into())
}

fn path(n: u64) -> Value {
    Value::Path(format!("{TOP}/{n}"))
}

fn none() -> Value {
    structure([Value::Flag(false), text("")])
}

fn some(value: &str) -> Value {
    structure([Value::Flag(true), text(value)])
}

fn manager(rev: u8) -> String {
    format!("org.storage.stratis3.Manager.r{rev}")
}

fn pool_interface(rev: u8) -> String {
    format!("org.storage.stratis3.pool.r{rev}")
}

fn drain(bus: &mut Bus) -> Vec<Message> {
    let bytes = std::iter::from_fn(|| bus.poll_bytes());
    bytes.map(|bytes| Message::demarshal(&bytes).expect("what we send is well-formed")).collect()
}

fn values(message: &Message) -> Vec<Value> {
    message.get_items().iter().map(from_item).collect()
}

fn send(bus: &mut Bus, call: &Call<'_>) {
    bus.handle_message(&mut call.bytes(), call.descriptors as usize).expect("a message");
}

/// The one message that answers a call at once.
fn answer(bus: &mut Bus, call: &Call<'_>) -> Message {
    send(bus, call);
    assert!(bus.poll_request().is_none(), "{} is answered here", call.member);
    let mut messages = drain(bus);
    assert_eq!(messages.len(), 1, "{} has one answer", call.member);
    let message = messages.remove(0);
    assert_eq!(message.get_reply_serial(), Some(call.serial));
    assert_eq!(message.destination().as_deref(), Some(call.sender));
    message
}

fn returned(bus: &mut Bus, path: &str, interface: &str, member: &str, args: &[Value]) -> Vec<Value> {
    let message = answer(bus, &Call::new(path, interface, member, args));
    assert_eq!(message.msg_type(), MessageType::MethodReturn, "{:?}", values(&message));
    values(&message)
}

fn failed(bus: &mut Bus, path: &str, interface: &str, member: &str, args: &[Value]) -> String {
    error_name(&answer(bus, &Call::new(path, interface, member, args)))
}

/// The error's name: the first thing in the debug form of the fields that `dbus` does not show.
fn error_name(message: &Message) -> String {
    assert_eq!(message.msg_type(), MessageType::Error);
    message.as_result_name()
}

trait ErrorName {
    fn as_result_name(&self) -> String;
}

impl ErrorName for Message {
    fn as_result_name(&self) -> String {
        let mut copy = self.duplicate().expect("in memory");
        let error = copy.as_result().expect_err("an error");
        error.name().expect("an error has a name").to_owned()
    }
}

/// The request that a call becomes.
fn asked(bus: &mut Bus, path: &str, interface: &str, member: &str, args: &[Value]) -> Box<Request> {
    send(bus, &Call::new(path, interface, member, args));
    assert!(drain(bus).is_empty(), "{member} is not answered yet");
    bus.poll_request().expect("the call becomes a request")
}

/// The reply to a call that a shard answers like this, after showing these views.
fn concluded(bus: &mut Bus, request: &Request, views: Vec<View>, answer: Answer) -> Vec<Message> {
    if !views.is_empty() {
        bus.handle_views(views);
    }
    bus.handle_reply(Reply { call: request.call, outcome: Ok(answer) });
    drain(bus)
}

/// First value, return code and text of the last message.
fn triple(messages: &[Message]) -> (Value, u16, String) {
    let last = messages.last().expect("a reply");
    assert_eq!(last.msg_type(), MessageType::MethodReturn);
    match &values(last)[..] {
        [first, Value::U16(code), Value::Text(text)] => (first.clone(), *code, text.clone()),
        other => panic!("a method returns three values, not {other:?}"),
    }
}

fn code_1(bus: &mut Bus, path: &str, interface: &str, member: &str, args: &[Value]) -> (Value, String) {
    let (first, code, text) = triple(&[answer(bus, &Call::new(path, interface, member, args))]);
    assert_eq!(code, 1, "{member} is refused");
    (first, text)
}

fn get(bus: &mut Bus, path: &str, interface: &str, property: &str) -> Value {
    let all = returned(bus, path, "org.freedesktop.DBus.Properties", "Get", &[text(interface), text(property)]);
    match &all[..] {
        [Value::Variant(value)] => (**value).clone(),
        other => panic!("Get returns a variant, not {other:?}"),
    }
}

fn set_call(interface: &str, property: &str, value: Value) -> [Value; 3] {
    [text(interface), text(property), Value::Variant(Box::new(value))]
}

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

// ---- creating and destroying pools -----------------------------------------------------------------

fn created(integrity: IntegritySpec) -> Wish {
    let devices = vec![DevicePath::try_from("/dev/a").expect("absolute")];
    Wish::CreatePool { pool: PoolUuid::from_random([9; 16]), name: name("p"), devices, integrity }
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

fn pair(present: bool, value: Value) -> Value {
    structure([Value::Flag(present), value])
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
    assert!(code_1(&mut bus, TOP, &manager(5), "CreatePool", &key).1.contains("not supported"));
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

// ---- starting and stopping -------------------------------------------------------------------------

fn start_args(rev: u8, id: &str, id_type: &str) -> Vec<Value> {
    let slot = || pair(false, pair(false, Value::U32(0)));
    match rev {
        2..=3 => vec![text(id), none()],
        4..=7 => vec![text(id), text(id_type), none()],
        8 => vec![text(id), text(id_type), slot(), pair(false, Value::U32(0))],
        _ => vec![text(id), text(id_type), slot(), pair(false, Value::U32(u32::MAX)), Value::Flag(true)],
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

// ---- filesystems ---------------------------------------------------------------------------------

#[test]
fn both_shapes_of_create_filesystems_mean_the_same() {
    let size = || some("1073741824");
    let old = Value::Array("(s(bs))", vec![structure([text("f"), size()])]);
    let new = Value::Array("(s(bs)(bs))", vec![structure([text("f"), size(), none()])]);
    for rev in 0..=LATEST {
        let mut bus = bus();
        let args = if rev < 6 { &old } else { &new };
        let request =
            asked(&mut bus, &format!("{TOP}/0"), &pool_interface(rev), "CreateFilesystems", std::slice::from_ref(args));
        let spec = FilesystemSpec { name: name("f"), size: Some(GIB), size_limit: None };
        assert_eq!(request.wish, Wish::CreateFilesystems(pool_id(1), vec![spec]), "r{rev}");
        let answer = Answer::FilesystemsCreated(vec![(fs_id(2), name("f"))]);
        let messages = concluded(&mut bus, &request, vec![View::Filesystem(filesystem(1, 2))], answer);
        let list = Value::Array("(os)", vec![structure([path(3), text("f")])]);
        assert_eq!(triple(&messages), (pair(true, list), 0, "Ok".into()));
    }
}

#[test]
fn filesystems_are_created_one_at_a_time() {
    let mut bus = bus();
    let at = format!("{TOP}/0");
    let spec = |n: &str, size: Value, limit: Value| structure([text(n), size, limit]);
    let list = |specs: Vec<Value>| [Value::Array("(s(bs)(bs))", specs)];
    let neutral = pair(false, Value::Array("(os)", vec![]));
    let nothing = returned(&mut bus, &at, &pool_interface(9), "CreateFilesystems", &list(vec![]));
    assert_eq!(nothing, [neutral.clone(), Value::U16(0), text("Ok")]);
    let junk = structure([Value::Flag(false), text("junk")]);
    asked(&mut bus, &at, &pool_interface(9), "CreateFilesystems", &list(vec![spec("f", junk.clone(), junk)]));
    for (specs, part) in [
        (vec![spec("a", none(), none()), spec("b", none(), none())], "2 filesystems"),
        (vec![spec("a", some("many"), none())], "\"many\""),
        (vec![spec("a", some("513"), none())], "513"),
        (vec![spec("a", none(), some("512"))], "512"),
        (vec![spec("", none(), none())], "empty"),
    ] {
        let (first, why) = code_1(&mut bus, &at, &pool_interface(9), "CreateFilesystems", &list(specs));
        assert_eq!(first, neutral);
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn only_filesystems_of_the_pool_are_destroyed() {
    let mut bus = bus();
    bus.handle_views(vec![View::Pool(pool(2)), View::Filesystem(filesystem(2, 2))]);
    drain(&mut bus);
    let at = format!("{TOP}/0");
    let all = vec![path(1), path(1), path(4), path(0), path(99), Value::Path("/x".into())];
    let request = asked(&mut bus, &at, &pool_interface(0), "DestroyFilesystems", &[Value::Array("o", all)]);
    assert_eq!(request.wish, Wish::DestroyFilesystems(pool_id(1), vec![fs_id(1)]));
    let views = vec![View::FilesystemGone(pool_id(1), fs_id(1))];
    let messages = concluded(&mut bus, &request, views, Answer::FilesystemsDestroyed(vec![fs_id(1)]));
    assert_eq!(triple(&messages).0, pair(true, Value::Array("s", vec![text(&fs_id(1).simple())])));

    let none_left = [Value::Array("o", vec![path(1), path(4)])];
    let nothing = returned(&mut bus, &at, &pool_interface(0), "DestroyFilesystems", &none_left);
    assert_eq!(nothing[0], pair(false, Value::Array("s", vec![])));
    assert_eq!(nothing[1], Value::U16(0));
}

// ---- properties ------------------------------------------------------------------------------------

#[test]
fn a_property_reads_as_the_view_has_it() {
    let mut bus = bus();
    let fs = format!("{TOP}/1");
    let dev = format!("{TOP}/2");
    let filesystem = |rev: u8| format!("org.storage.stratis3.filesystem.r{rev}");
    let blockdev = |rev: u8| format!("org.storage.stratis3.blockdev.r{rev}");
    assert_eq!(get(&mut bus, TOP, &manager(0), "Version"), text("3.9.2"));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Pool"), path(0));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Created"), text("2026-11-21T04:22:59Z"));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Size"), text("1073741824"));
    assert_eq!(get(&mut bus, &fs, &filesystem(0), "Used"), none());
    assert_eq!(get(&mut bus, &fs, &filesystem(7), "Origin"), pair(false, text(&"0".repeat(32))));
    assert_eq!(get(&mut bus, &dev, &blockdev(0), "Tier"), Value::U16(0));
    assert_eq!(get(&mut bus, &dev, &blockdev(0), "Pool"), path(0));
    let pool = format!("{TOP}/0");
    assert_eq!(get(&mut bus, &pool, &pool_interface(8), "KeyDescriptions"), text("Unencrypted"));
    assert_eq!(get(&mut bus, &pool, &pool_interface(0), "TotalPhysicalUsed"), some("0"));
    assert_eq!(get(&mut bus, &pool, &pool_interface(8), "MetadataVersion"), Value::U64(2));
}

#[test]
fn listings_hold_every_property_of_every_revision_in_its_declared_type() {
    let mut bus = bus();
    let all = returned(&mut bus, TOP, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &[]);
    let [Value::Array("{oa{sa{sv}}}", objects)] = &all[..] else { panic!("{all:?}") };
    assert_eq!(objects.len(), 3);
    let mut seen = 0;
    for (object, number) in objects.iter().zip(0..) {
        let Value::Entry(pair) = object else { panic!("{object:?}") };
        assert_eq!(pair.0, path(number));
        let Value::Array(_, interfaces) = &pair.1 else { panic!("{object:?}") };
        assert_eq!(interfaces.len(), 10);
        for interface in interfaces {
            let Value::Entry(pair) = interface else { panic!("{interface:?}") };
            let Value::Text(name) = &pair.0 else { panic!("{interface:?}") };
            let at = format!("{TOP}/{number}");
            let alone = returned(&mut bus, &at, PROPERTIES, "GetAll", &[text(name)]);
            assert_eq!(alone, std::slice::from_ref(&pair.1), "{name}");
            seen += declared_types(name, &pair.1);
        }
    }
    // Spec: 331 property entries, of which the manager has 20.
    assert_eq!(seen, 331 - 20);
}

/// Checks the values against the introspection XML; gives their count.
fn declared_types(interface: &str, all: &Value) -> usize {
    let xml = [crate::bus::xml::pool(), crate::bus::xml::filesystem(), crate::bus::xml::blockdev()].concat();
    let start = xml.find(&format!("<interface name=\"{interface}\">")).expect("it is introspected");
    let xml = &xml[start..start + xml[start..].find("</interface>").expect("it ends")];
    let Value::Array("{sv}", entries) = all else { panic!("{all:?}") };
    assert_eq!(xml.matches("<property ").count(), entries.len(), "{interface} is complete");
    for entry in entries {
        let Value::Entry(pair) = entry else { panic!("{entry:?}") };
        let (Value::Text(name), Value::Variant(value)) = &**pair else { panic!("{entry:?}") };
        let signature = value.to_signature();
        let declared = format!("<property name=\"{name}\" type=\"{signature}\"");
        let open = format!("<property name=\"{name}\" type=\"v\"");
        assert!(xml.contains(&declared) || xml.contains(&open), "{interface}.{name} is {signature}");
    }
    entries.len()
}

#[test]
fn a_set_becomes_a_wish_and_is_answered_with_nothing() {
    let mut bus = bus();
    let (fs, dev) = (format!("{TOP}/1"), format!("{TOP}/2"));
    let r9 = |family: &str| format!("org.storage.stratis3.{family}.r9");
    for (at, family, property, value, wish) in [
        (
            &format!("{TOP}/0"),
            "pool",
            "Overprovisioning",
            Value::Flag(false),
            Wish::SetOverprovisioning(pool_id(1), false),
        ),
        (&fs, "filesystem", "SizeLimit", some("1073741824"), Wish::SetSizeLimit(pool_id(1), fs_id(1), Some(GIB))),
        (&fs, "filesystem", "SizeLimit", pair(false, text("junk")), Wish::SetSizeLimit(pool_id(1), fs_id(1), None)),
        (&fs, "filesystem", "MergeScheduled", Value::Flag(true), Wish::SetMerge(pool_id(1), fs_id(1), true)),
        (&dev, "blockdev", "UserInfo", some("mine"), Wish::SetUserInfo(pool_id(1), dev_id(1), Some(name("mine")))),
        (&dev, "blockdev", "UserInfo", none(), Wish::SetUserInfo(pool_id(1), dev_id(1), None)),
    ] {
        let request = asked(&mut bus, at, PROPERTIES, "Set", &set_call(&r9(family), property, value));
        assert_eq!(request.wish, wish);
        let messages = concluded(&mut bus, &request, vec![], Answer::Set);
        assert_eq!(messages[0].msg_type(), MessageType::MethodReturn);
        assert!(values(&messages[0]).is_empty());
    }
}

#[test]
fn a_set_that_fails_has_the_error_name_that_clients_know() {
    let mut bus = bus();
    let fs = format!("{TOP}/1");
    let interface = "org.storage.stratis3.filesystem.r9";
    let refused = failed(&mut bus, &fs, PROPERTIES, "Set", &set_call(interface, "SizeLimit", some("513")));
    assert_eq!(refused, SET_FAILED);
    let request = asked(&mut bus, &fs, PROPERTIES, "Set", &set_call(interface, "MergeScheduled", Value::Flag(true)));
    let refusal = Refusal::NotASnapshot { name: name("fs1") };
    bus.handle_reply(Reply { call: request.call, outcome: Err(Failure::Refused(refusal)) });
    assert_eq!(error_name(&drain(&mut bus)[0]), SET_FAILED);
}

#[test]
fn wrong_sets_are_told_apart() {
    let mut bus = bus();
    let at = format!("{TOP}/0");
    let r9 = pool_interface(9);
    for (interface, property, value, error) in [
        (&*r9, "Overprovisioning", Value::U32(1), INVALID_ARGS),
        (&*r9, "Name", text("x"), UNKNOWN_PROPERTY),
        (&*r9, "Nothing", text("x"), UNKNOWN_PROPERTY),
        (&*r9, "FsLimit", Value::U32(200), INVALID_ARGS),
        (&*r9, "FsLimit", Value::U64(200), NOT_SUPPORTED),
        ("org.storage.stratis3.pool.r0", "Overprovisioning", Value::Flag(true), UNKNOWN_PROPERTY),
        ("org.storage.stratis3.pool.r10", "Overprovisioning", Value::Flag(true), UNKNOWN_INTERFACE),
        ("org.storage.stratis3.filesystem.r9", "Name", text("x"), UNKNOWN_INTERFACE),
        ("", "Name", text("x"), INVALID_ARGS),
    ] {
        assert_eq!(
            failed(&mut bus, &at, PROPERTIES, "Set", &set_call(interface, property, value)),
            error,
            "{property}"
        );
    }
    assert_eq!(failed(&mut bus, &at, PROPERTIES, "Get", &[text(&r9)]), INVALID_ARGS);
    assert_eq!(failed(&mut bus, &at, PROPERTIES, "Get", &[text(&r9), text("Nothing")]), UNKNOWN_PROPERTY);
    assert_eq!(failed(&mut bus, &at, PROPERTIES, "GetAll", &[text("a.b")]), UNKNOWN_INTERFACE);
}

#[test]
fn the_old_user_info_call_answers_with_the_device() {
    let mut bus = bus();
    let at = format!("{TOP}/2");
    let interface = "org.storage.stratis3.blockdev.r2";
    let request = asked(&mut bus, &at, interface, "SetUserInfo", &[some("mine")]);
    let messages = concluded(&mut bus, &request, vec![], Answer::Set);
    assert_eq!(triple(&messages), (some(&dev_id(1).simple()), 0, "Ok".into()));
    let request = asked(&mut bus, &at, interface, "SetUserInfo", &[some("mine")]);
    let messages = concluded(&mut bus, &request, vec![], Answer::Identity);
    assert_eq!(triple(&messages), (pair(false, text(&"0".repeat(32))), 0, "Ok".into()));
    assert_eq!(failed(&mut bus, &at, "org.storage.stratis3.blockdev.r3", "SetUserInfo", &[none()]), UNKNOWN_METHOD);
}

// ---- change signals --------------------------------------------------------------------------------

/// Interface, changed names and invalidated names of each `PropertiesChanged`.
fn changes(messages: &[Message]) -> Vec<(String, Vec<String>, Vec<String>)> {
    let name = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        Value::Entry(pair) => pair.0.to_text(),
        other => panic!("{other:?} is no name"),
    };
    messages
        .iter()
        .filter(|message| message.member().as_deref() == Some("PropertiesChanged"))
        .map(|message| match &values(message)[..] {
            [Value::Text(interface), Value::Array(_, changed), Value::Array(_, invalidated)] => {
                (interface.clone(), changed.iter().map(name).collect(), invalidated.iter().map(name).collect())
            }
            other => panic!("{other:?} is no change"),
        })
        .collect()
}

trait ToText {
    fn to_text(&self) -> String;
}

impl ToText for Value {
    fn to_text(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            other => panic!("{other:?} is no text"),
        }
    }
}

#[test]
fn a_changed_property_is_announced_on_the_revisions_that_have_it() {
    let mut bus = bus();
    bus.handle_views(vec![View::Pool(PoolView { overprovisioning: false, ..pool(1) })]);
    let told = changes(&drain(&mut bus));
    let expected: Vec<_> =
        (1..=9).map(|rev| (pool_interface(rev), vec!["Overprovisioning".to_owned()], vec![])).collect();
    assert_eq!(told, expected);
}

#[test]
fn one_signal_carries_all_that_changed_on_an_interface() {
    let mut bus = bus();
    let grown = PoolView { allocated: Bytes(1), no_alloc_space: true, ..pool(1) };
    bus.handle_views(vec![View::Pool(grown)]);
    let told = changes(&drain(&mut bus));
    assert_eq!(told.len(), 10);
    assert_eq!(told[0].1, ["AllocatedSize"]);
    assert_eq!(told[1].1, ["AllocatedSize", "NoAllocSpace"]);
}

#[test]
fn the_mount_path_is_announced_without_its_value() {
    let mut bus = bus();
    bus.handle_views(vec![View::Filesystem(FilesystemView { devnode: "/elsewhere".into(), ..filesystem(1, 1) })]);
    let told = changes(&drain(&mut bus));
    assert_eq!(told.len(), 10);
    assert!(told.iter().all(|(_, changed, invalid)| changed.is_empty() && invalid == &["Devnode"]));
}

#[test]
fn what_does_not_change_is_not_announced() {
    let mut bus = bus();
    bus.handle_views(vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1)), View::StoppedGone(pool_id(3))]);
    // Constant and silent properties, too.
    bus.handle_views(vec![View::Device(DeviceView { devnode: "/dev/x".into(), tier: Tier::Cache, ..device(1, 1) })]);
    assert!(drain(&mut bus).is_empty());
}

#[test]
fn user_info_is_announced_since_r3() {
    let mut bus = bus();
    bus.handle_views(vec![View::Device(DeviceView { user_info: Some("x".into()), ..device(1, 1) })]);
    let told = changes(&drain(&mut bus));
    assert_eq!(told.first().map(|(interface, _, _)| &**interface), Some("org.storage.stratis3.blockdev.r3"));
    assert_eq!(told.len(), 7);
}

#[test]
fn paths_are_never_used_twice() {
    let mut bus = bus();
    bus.handle_views(vec![View::PoolGone(pool_id(1))]);
    bus.handle_views(vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1)), View::Device(device(1, 1))]);
    drain(&mut bus);
    assert_eq!(bus.tree().paths().map(|path| path.0).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(get(&mut bus, &format!("{TOP}/4"), "org.storage.stratis3.filesystem.r1", "Pool"), path(3));
    assert_eq!(
        failed(&mut bus, &format!("{TOP}/0"), PROPERTIES, "GetAll", &[text(&pool_interface(1))]),
        UNKNOWN_OBJECT
    );
}

// ---- wrong calls -----------------------------------------------------------------------------------

#[test]
fn unknown_things_are_told_apart() {
    let mut bus = bus();
    let objects = "org.freedesktop.DBus.ObjectManager";
    for (path, interface, member, error) in [
        ("/org/storage/stratis3/99", "org.storage.stratis3.pool.r0", "SetName", UNKNOWN_OBJECT),
        ("/nowhere", "org.freedesktop.DBus.Introspectable", "Introspect", UNKNOWN_OBJECT),
        ("/org/storage/stratis3/0", "org.storage.stratis3.Manager.r0", "ListKeys", UNKNOWN_INTERFACE),
        ("/org/storage/stratis3/0", objects, "GetManagedObjects", UNKNOWN_INTERFACE),
        ("/", objects, "GetManagedObjects", UNKNOWN_INTERFACE),
        ("/org/storage/stratis3", objects, "Nothing", UNKNOWN_METHOD),
        ("/org/storage/stratis3", "org.storage.stratis3.Manager.r0", "StartPool", UNKNOWN_METHOD),
        ("/org/storage/stratis3", "org.storage.stratis3.Manager.r0", "Nothing", UNKNOWN_METHOD),
        ("/org/storage/stratis3", "", "Nothing", UNKNOWN_METHOD),
        ("/org/storage/stratis3", "org.storage.stratis3.Manager.r0", "EngineStateReport", NOT_SUPPORTED),
        ("/nowhere", "org.freedesktop.DBus.Peer", "Nothing", UNKNOWN_METHOD),
    ] {
        assert_eq!(failed(&mut bus, path, interface, member, &[]), error, "{path} {interface}.{member}");
    }
}

#[test]
fn standard_interfaces_answer_where_they_should() {
    let mut bus = bus();
    let peer = "org.freedesktop.DBus.Peer";
    assert!(returned(&mut bus, "/nowhere", peer, "Ping", &[]).is_empty());
    assert_eq!(returned(&mut bus, "/", peer, "GetMachineId", &[]), [text("0123")]);
    assert!(returned(&mut bus, TOP, "", "Ping", &[]).is_empty());
    for at in ["/", "/org", "/org/storage", TOP, "/org/storage/stratis3/2"] {
        let xml = returned(&mut bus, at, "org.freedesktop.DBus.Introspectable", "Introspect", &[]);
        assert!(matches!(&xml[..], [Value::Text(xml)] if xml.contains("<node>")), "{at}");
    }
}

#[test]
fn arguments_of_other_types_are_an_error() {
    let mut bus = bus();
    for args in [vec![], vec![text("a")], vec![path(0), path(0)], vec![Value::U32(1)]] {
        assert_eq!(failed(&mut bus, TOP, &manager(9), "DestroyPool", &args), INVALID_ARGS);
    }
    assert_eq!(failed(&mut bus, TOP, "org.freedesktop.DBus.Peer", "Ping", &[text("x")]), INVALID_ARGS);
    // A number where a descriptor is meant.
    let args = start_args(8, "pool1", "name");
    assert_eq!(failed(&mut bus, TOP, &manager(8), "StartPool", &args), INVALID_ARGS);
}

#[test]
fn a_caller_that_wants_no_reply_gets_none() {
    let mut bus = bus();
    let quiet = |member| Call { no_reply: true, ..Call::new(TOP, "org.freedesktop.DBus.Peer", member, &[]) };
    send(&mut bus, &quiet("Ping"));
    send(&mut bus, &quiet("Nothing"));
    let args = [path(0)];
    let interface = manager(9);
    send(&mut bus, &Call { no_reply: true, ..Call::new(TOP, &interface, "DestroyPool", &args) });
    let request = bus.poll_request().expect("it is done all the same");
    assert!(concluded(&mut bus, &request, vec![], Answer::PoolDestroyed(pool_id(1))).is_empty());
}

// ---- bounds and order --------------------------------------------------------------------------------

#[test]
fn one_client_cannot_use_up_all_calls() {
    let mut bus = bus();
    let (interface, args) = (manager(9), [path(0)]);
    let call = Call::new(TOP, &interface, "DestroyPool", &args);
    let mut requests = Vec::new();
    for _ in 0..CALLS_PER_SENDER_MAX {
        send(&mut bus, &call);
        requests.extend(bus.poll_request());
    }
    assert_eq!(requests.len(), CALLS_PER_SENDER_MAX);
    assert_eq!(error_name(&answer(&mut bus, &call)), LIMITS_EXCEEDED);
    send(&mut bus, &Call { sender: ":1.5", ..call.clone() });
    assert!(bus.poll_request().is_some(), "another client is not affected");

    concluded(&mut bus, &requests[0], vec![], Answer::Identity);
    send(&mut bus, &call);
    assert!(bus.poll_request().is_some(), "an answered call makes room");
}

#[test]
fn a_stopping_daemon_reads_and_refuses() {
    let mut bus = bus();
    let (interface, args) = (manager(9), [path(0)]);
    let request = asked(&mut bus, TOP, &interface, "DestroyPool", &args);
    bus.handle_stop();
    assert_eq!(code_1(&mut bus, TOP, &interface, "DestroyPool", &args).1, Refusal::Stopping.to_string());
    assert_eq!(get(&mut bus, TOP, &interface, "Version"), text("3.9.2"));
    assert!(!bus.is_idle());
    let messages = concluded(&mut bus, &request, vec![], Answer::PoolDestroyed(pool_id(1)));
    assert_eq!(triple(&messages).1, 0);
    assert!(bus.is_idle() && bus.is_drained());
}

/// A bus with so many filesystems that a listing of them is large.
fn large() -> Bus {
    let mut bus = bus();
    let many = (2..60).map(|n| View::Filesystem(filesystem(1, n)));
    bus.handle_views(many.collect());
    drain(&mut bus);
    bus
}

fn list<'a>() -> Call<'a> {
    Call::new(TOP, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &[])
}

fn ping<'a>() -> Call<'a> {
    Call { sender: ":1.9", ..Call::new(TOP, "org.freedesktop.DBus.Peer", "Ping", &[]) }
}

fn is_listing(message: &Message) -> bool {
    message.destination().as_deref() == Some(":1.4")
}

#[test]
fn small_replies_pass_a_large_one_that_has_not_started() {
    let mut bus = large();
    send(&mut bus, &list());
    send(&mut bus, &ping());
    let order: Vec<_> = drain(&mut bus).iter().map(is_listing).collect();
    assert_eq!(order, [false, true]);
}

#[test]
fn a_large_reply_is_passed_by_so_many_and_no_more() {
    let mut bus = large();
    send(&mut bus, &list());
    send(&mut bus, &ping());
    let mut before = 0;
    // A client that pings for ever, as fast as it is answered.
    while let Some(bytes) = bus.poll_bytes() {
        if is_listing(&Message::demarshal(&bytes).expect("ours")) {
            break;
        }
        before += 1;
        assert!(before < 1_000, "the listing never comes");
        send(&mut bus, &ping());
        send(&mut bus, &ping());
    }
    // What was queued when the listing's turn came is before it: it shows what those say.
    assert!(before <= 2 * LISTING_PASSED_MAX + 2, "{before}");
}

#[test]
fn a_listing_shows_every_signal_that_was_sent_before_it() {
    let mut bus = large();
    send(&mut bus, &list());
    bus.handle_views(vec![View::Filesystem(filesystem(1, 63))]);
    let messages = drain(&mut bus);
    assert_eq!(messages[0].member().as_deref(), Some("InterfacesAdded"));
    let [Value::Array(_, objects)] = &values(&messages[1])[..] else { panic!("a listing") };
    let Some(Value::Entry(last)) = objects.last() else { panic!("objects") };
    assert_eq!(values(&messages[0])[0], last.0);
}

#[test]
fn the_size_of_a_listing_is_not_underestimated() {
    let mut bus = large();
    send(&mut bus, &list());
    let bytes = bus.poll_bytes().expect("a listing").len();
    assert!(bytes <= bus.tree().size() + 128, "{bytes} of {}", bus.tree().size());
    assert!(bytes * 10 >= bus.tree().size() * 9, "{bytes} of {}", bus.tree().size());
}

#[test]
fn a_message_item_of_each_kind_is_known() {
    // Guards the tests' own reader: a kind it does not know would panic far from here.
    assert_eq!(from_item(&MessageItem::Byte(1)), Value::Byte(1));
}
