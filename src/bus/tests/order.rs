//! Bounds, stopping, and what may pass what on its way out.
//!
//! A listing counts as large from `REPLY_SMALL_BYTES_MAX` on, so the bus here has some sixty
//! filesystems.

use super::*;

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
