//! The whole role without a bus: views and calls in, bytes out, read back by `dbus`.
//!
//! Here are the world that the tests start from and the ways to ask and to read; the tests stand in
//! the files beside, and `live` has those with a real bus.

mod bounds;
mod filesystems;
mod fuzz;
mod keys;
mod live;
mod order;
mod pools;
mod properties;
mod reports;
mod wire;
mod wrong;

use std::os::fd::OwnedFd;

use cores::side::Excerpt;
use dbus::{Message, MessageType};

use crate::bus::core::Bus;
use crate::bus::encode::tests::Call;
use crate::bus::errors::*;
use crate::bus::listing::Listing;
use crate::bus::queue::Out;
use crate::bus::table::LATEST;
use crate::bus::value::Value;
use crate::bus::value::tests::from_item;
use crate::error::{Failure, Refusal};
use crate::limits::{BUS_MESSAGE_BYTES_DEFAULT, CALLS_PER_SENDER_MAX, LISTING_PASSED_MAX, SENDER_BYTES_MAX};
use crate::message::{Answer, Reply, Request, View, Wish};
use crate::model::device::{BlockSizes, DeviceNumber, DevicePath, DeviceView, Tier};
use crate::model::filesystem::{FilesystemRecord, FilesystemSpec, FilesystemView};
use crate::model::ids::{DevUuid, FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::model::pool::{
    Availability, IntegritySpec, MetadataVersion, PoolView, StoppedDevice, StoppedPoolView, TagSpec,
};
use crate::units::{Bytes, Sectors};

const TOP: &str = "/org/storage/stratis3";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
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
        encryption: None,
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
        blocks: BlockSizes { logical: 512, physical: 4096 },
    }
}

fn stopped(n: u8, called: Option<&str>) -> StoppedPoolView {
    StoppedPoolView {
        uuid: pool_id(n),
        name: called.map(name),
        devices: vec![StoppedDevice {
            uuid: dev_id(n),
            devnode: format!("/dev/sd{n}"),
            number: DeviceNumber(8, u64::from(n)),
        }],
        version: Some(MetadataVersion::V2),
        features: Some(std::collections::BTreeMap::new()),
        tokens: None,
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

/// The next message, or the messages that leave together.
fn next_bytes(bus: &mut Bus) -> Option<Vec<u8>> {
    Some(match bus.poll_out()? {
        Out::Bytes(bytes) => bytes,
        Out::Listing(mut listing) => bytes_of(&mut listing),
    })
}

/// What is left of a listing, as it leaves.
fn bytes_of(listing: &mut Listing) -> Vec<u8> {
    let excerpts: Vec<Excerpt> = std::iter::from_fn(|| listing.poll_excerpts()).flatten().collect();
    excerpts.iter().flat_map(Excerpt::slices).flatten().copied().collect()
}

fn drain(bus: &mut Bus) -> Vec<Message> {
    let bytes = std::iter::from_fn(|| next_bytes(bus));
    bytes.map(|bytes| Message::demarshal(&bytes).expect("what we send is well-formed")).collect()
}

/// Whether a message with these descriptors could be read.
fn deliver(bus: &mut Bus, bytes: &mut [u8], descriptors: Vec<OwnedFd>) -> bool {
    bus.handle_message(bytes, descriptors.into()).is_ok()
}

fn list<'a>() -> Call<'a> {
    Call::new(TOP, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &[])
}

fn values(message: &Message) -> Vec<Value> {
    message.get_items().iter().map(from_item).collect()
}

fn send(bus: &mut Bus, call: &Call<'_>) {
    let null = || std::fs::File::open("/dev/null").expect("it is there").into();
    let descriptors: Vec<std::os::fd::OwnedFd> = (0..call.descriptors).map(|_| null()).collect();
    bus.handle_message(&mut call.bytes(), descriptors.into()).expect("a message");
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

fn error_name(message: &Message) -> String {
    assert_eq!(message.msg_type(), MessageType::Error);
    let mut copy = message.duplicate().expect("in memory");
    copy.as_result().expect_err("an error").name().expect("an error has a name").to_owned()
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

/// `(bT)`
fn pair(present: bool, value: Value) -> Value {
    structure([Value::Flag(present), value])
}

/// The arguments of `StartPool` in the shape of a revision.
fn start_args(rev: u8, id: &str, id_type: &str) -> Vec<Value> {
    let slot = || pair(false, pair(false, Value::U32(0)));
    match rev {
        2..=3 => vec![text(id), none()],
        4..=7 => vec![text(id), text(id_type), none()],
        8 => vec![text(id), text(id_type), slot(), pair(false, Value::U32(0))],
        _ => vec![text(id), text(id_type), slot(), pair(false, Value::U32(u32::MAX)), Value::Flag(true)],
    }
}
