//! How much clients may ask for, and how long a message may be.

use super::*;
use crate::bus::encode::Outgoing;
use crate::bus::listing::Listing;

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

/// A bus with so many more filesystems in pool 1.
fn many(count: u16) -> Bus {
    let mut bus = bus();
    bus.handle_views((0..count).map(numbered).collect());
    while bus.poll_out().is_some() {}
    bus
}

fn numbered(n: u16) -> View {
    let mut view = filesystem(1, 1);
    let [high, low] = n.to_be_bytes();
    view.record.uuid = FsUuid::from_random([high, low, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    view.record.name = name(&format!("filesystem{n}"));
    view.devnode = format!("/dev/stratis/pool1/filesystem{n}");
    View::Filesystem(view)
}

fn introspect<'a>() -> Call<'a> {
    Call::new(TOP, "org.freedesktop.DBus.Introspectable", "Introspect", &[])
}

fn innocent<'a>() -> Call<'a> {
    Call { sender: ":1.9", ..Call::new(TOP, "org.freedesktop.DBus.Peer", "Ping", &[]) }
}

fn count(messages: &[Message], kind: MessageType) -> usize {
    messages.iter().filter(|message| message.msg_type() == kind).count()
}

// ---- what waits for one client ---------------------------------------------------------------------

#[test]
fn ten_thousand_listings_of_one_client_do_not_hurt_another() {
    let mut bus = many(1_000);
    let fit = SENDER_BYTES_MAX / Listing::size(bus.tree());
    assert!(fit > 1);
    (0..10_000).for_each(|_| send(&mut bus, &list()));
    send(&mut bus, &innocent());
    let mut messages = drain(&mut bus);
    messages.retain(|message| message.destination().as_deref() != Some(BUS));
    let (refused, rest) = messages.split_at(10_000 - fit);
    assert!(refused.iter().all(|message| error_name(message) == LIMITS_EXCEEDED));
    assert_eq!(rest[0].destination().as_deref(), Some(":1.9"), "no listing is before it");
    assert_eq!(count(&rest[1..], MessageType::MethodReturn), fit, "those that were not refused are answered");
    send(&mut bus, &list());
    assert!(matches!(bus.poll_out(), Some(Out::Listing(_))), "there is room again");
}

#[test]
fn answers_that_a_client_does_not_read_are_bounded_by_their_bytes() {
    let mut bus = many(4_000);
    let length = bytes(&mut bus, &introspect());
    let calls = 4 * SENDER_BYTES_MAX / length;
    (0..calls).for_each(|_| send(&mut bus, &introspect()));
    assert!(!bus.is_congested(), "others are still read");
    let messages = drain(&mut bus);
    assert_eq!(messages.len(), calls);
    assert_eq!(count(&messages, MessageType::MethodReturn), SENDER_BYTES_MAX.div_ceil(length));
    assert_eq!(error_name(&messages[calls - 1]), LIMITS_EXCEEDED);
    assert!(bytes(&mut bus, &introspect()) == length, "there is room again");
}

/// The length of an answer.
fn bytes(bus: &mut Bus, call: &Call<'_>) -> usize {
    send(bus, call);
    next_bytes(bus).expect("an answer").len()
}

// ---- clients that go -------------------------------------------------------------------------------

fn name_vanishes(bus: &mut Bus, gone: &str, owner: &str) {
    let mut signal = Outgoing::signal(1, "/org/freedesktop/DBus", BUS, "NameOwnerChanged", "sss");
    [gone, gone, owner].iter().for_each(|text| signal.body().string(text));
    let mut message = Message::demarshal(&signal.finish()).expect("well-formed");
    message.set_sender(Some(BUS.into()));
    assert!(deliver(bus, &mut marshalled(&message), Vec::new()));
}

fn marshalled(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let taken: Result<(), ()> = message.marshal(|part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    taken.expect("memory takes it");
    bytes
}

const BUS: &str = "org.freedesktop.DBus";

#[test]
fn what_waits_for_a_client_that_goes_is_dropped() {
    let mut bus = many(100);
    (0..3).for_each(|_| send(&mut bus, &list()));
    send(&mut bus, &Call { sender: ":1.5", ..list() });
    send(&mut bus, &introspect());
    let watch = Message::demarshal(&next_bytes(&mut bus).expect("a rule")).expect("well-formed");
    assert_eq!((watch.member().as_deref(), watch.get_no_reply()), (Some("AddMatch"), true));
    name_vanishes(&mut bus, ":1.5", ":1.5");
    name_vanishes(&mut bus, ":1.4", "");
    let messages = drain(&mut bus);
    let to: Vec<_> = messages.iter().map(|message| message.destination().expect("somebody").to_string()).collect();
    assert_eq!(to, [":1.5", BUS], "the other client is answered, and nobody is watched any more");
    assert_eq!(messages[1].member().as_deref(), Some("RemoveMatch"));
    assert_eq!(messages[1].read1::<&str>(), watch.read1::<&str>());
    send(&mut bus, &list());
    assert_eq!(drain(&mut bus).len(), 1, "one that waits behind nobody needs no watch");
}

#[test]
fn only_the_bus_says_who_has_gone() {
    let mut bus = many(100);
    send(&mut bus, &list());
    let mut signal = Outgoing::signal(1, "/org/freedesktop/DBus", BUS, "NameOwnerChanged", "sss");
    [":1.4", ":1.4", ""].iter().for_each(|text| signal.body().string(text));
    let mut message = Message::demarshal(&signal.finish()).expect("well-formed");
    message.set_sender(Some(":1.7".into()));
    assert!(deliver(&mut bus, &mut marshalled(&message), Vec::new()));
    assert_eq!(drain(&mut bus).len(), 1);
}

// ---- how long a message may be ---------------------------------------------------------------------

#[test]
fn the_length_of_a_listing_is_known_before_and_grows_with_the_filesystems() {
    let lengths = [1_000, 2_000, 8_000].map(|count| {
        let mut bus = many(count);
        let length = bytes(&mut bus, &list());
        let said = Listing::size(bus.tree());
        assert!(length <= said && said - length < 1_024, "{length} of {said}");
        length
    });
    let each = (lengths[1] - lengths[0]) / 1_000;
    assert!(lengths[2] - lengths[1] < 6_000 * (each + 16), "{lengths:?}");
    assert!(lengths[2] < BUS_MESSAGE_BYTES_DEFAULT, "{lengths:?}: 8,000 are served everywhere");
}

#[test]
fn ten_thousand_filesystems_are_refused_and_served_where_the_bus_takes_them() {
    let mut bus = many(10_000);
    let refused = answer(&mut bus, &list());
    assert_eq!(error_name(&refused), LIMITS_EXCEEDED);
    let text = format!("{:?}", values(&refused));
    assert!(text.contains("33554432") && text.contains("--bus-message-max"), "{text}");
    let mut bus = bus.with_message_max(64 << 20);
    assert!(bytes(&mut bus, &list()) > BUS_MESSAGE_BYTES_DEFAULT);
}

#[test]
fn no_answer_is_longer_than_the_bus_takes() {
    let mut bus = bus().with_message_max(1 << 20);
    // Quoted, each of these is twice as long as it came.
    let long = "\"".repeat(900_000);
    for (interface, member, args) in [
        (PROPERTIES, "Get", vec![text(&long), text("Version")]),
        (&*manager(7), "StartPool", start_args(7, &long, "name")),
    ] {
        let refused = answer(&mut bus, &Call::new(TOP, interface, member, &args));
        assert_eq!(error_name(&refused), LIMITS_EXCEEDED, "{member}");
    }
    let mut long = filesystem(1, 2);
    long.devnode = "x".repeat(200_000);
    bus.handle_views(vec![View::Filesystem(long), View::Filesystem(filesystem(1, 3))]);
    let announced = drain(&mut bus);
    assert_eq!(announced.len(), 1, "a signal that is too long would end the connection");
}

// ---- what listings say -------------------------------------------------------------------------------

#[test]
fn a_listing_says_what_get_all_says() {
    let mut bus = bus();
    let said = drain_one(&mut bus);
    let [Value::Array(_, objects)] = &said[..] else { panic!("a listing") };
    let mut seen = 0;
    for object in objects {
        let Value::Entry(object) = object else { panic!("an object") };
        let (Value::Path(path), Value::Array(_, interfaces)) = &**object else { panic!("a path and its interfaces") };
        for interface in interfaces {
            let Value::Entry(interface) = interface else { panic!("an interface") };
            let (Value::Text(name), properties) = &**interface else { panic!("a name and its properties") };
            assert_eq!(returned(&mut bus, path, PROPERTIES, "GetAll", &[text(name)])[0], *properties, "{path} {name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 30, "three objects with ten interfaces each");
}

fn drain_one(bus: &mut Bus) -> Vec<Value> {
    send(bus, &list());
    values(&drain(bus)[0])
}

#[test]
fn an_empty_listing_is_one() {
    let mut bus = Bus::new("3.9.2", None, || [9; 16]);
    assert_eq!(drain_one(&mut bus), [Value::Array("{oa{sa{sv}}}", vec![])]);
}
