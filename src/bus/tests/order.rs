//! Stopping, and what may pass what on its way out. Bounds are in `bounds`.

use super::*;

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

fn ping<'a>() -> Call<'a> {
    Call { sender: ":1.9", ..Call::new(TOP, "org.freedesktop.DBus.Peer", "Ping", &[]) }
}

fn is_listing(message: &Message) -> bool {
    message.destination().as_deref() == Some(":1.4")
}

#[test]
fn replies_pass_a_listing_that_has_not_started() {
    let mut bus = bus();
    send(&mut bus, &list());
    send(&mut bus, &ping());
    let order: Vec<_> = drain(&mut bus).iter().map(is_listing).collect();
    assert_eq!(order, [false, true]);
}

#[test]
fn a_listing_is_passed_by_so_many_and_no_more() {
    let mut bus = bus();
    send(&mut bus, &list());
    send(&mut bus, &ping());
    let mut before = 0;
    // A client that pings for ever, as fast as it is answered.
    while let Some(bytes) = next_bytes(&mut bus) {
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
fn before_the_name_is_asked_for_nothing_is_announced_and_then_all() {
    let mut bus = Bus::new("3.9.2", None, || [9; 16]).unknown();
    bus.handle_views(vec![View::Pool(pool(1)), View::Filesystem(filesystem(1, 1))]);
    assert_eq!(drain(&mut bus).len(), 0, "nobody listens");
    bus.request_name();
    bus.handle_views(vec![View::Filesystem(filesystem(1, 2))]);
    let members: Vec<_> = drain(&mut bus).iter().map(|message| message.member().map(|name| name.to_string())).collect();
    assert_eq!(members, ["RequestName", "InterfacesAdded"].map(|name| Some(name.to_owned())));
    assert_eq!(bus.tree().paths().count(), 3, "what was there before is listed");
}

#[test]
fn a_listing_shows_every_signal_that_was_sent_before_it() {
    let mut bus = bus();
    send(&mut bus, &list());
    bus.handle_views(vec![View::Filesystem(filesystem(1, 63))]);
    let messages = drain(&mut bus);
    assert_eq!(messages[0].member().as_deref(), Some("InterfacesAdded"));
    let [Value::Array(_, objects)] = &values(&messages[1])[..] else { panic!("a listing") };
    let Some(Value::Entry(last)) = objects.last() else { panic!("objects") };
    assert_eq!(values(&messages[0])[0], last.0);
}

#[test]
fn clients_take_turns_at_listings() {
    let mut bus = bus();
    for (sender, calls) in [(":1.4", 3), (":1.5", 1), (":1.6", 2)] {
        (0..calls).for_each(|_| send(&mut bus, &Call { sender, ..list() }));
    }
    let listings = drain(&mut bus).into_iter().filter(|message| message.get_reply_serial().is_some());
    let order: Vec<_> = listings.map(|message| message.destination().expect("a client").to_string()).collect();
    assert_eq!(order, [":1.4", ":1.5", ":1.6", ":1.4", ":1.6", ":1.4"]);
}

#[test]
fn a_listing_that_leaves_shows_what_was_when_it_began() {
    let mut bus = bus();
    send(&mut bus, &list());
    let Some(Out::Listing(mut listing)) = bus.poll_out() else { panic!("a listing") };
    // Half of it has left when a filesystem changes, another one comes and the pool goes.
    let mut changed = filesystem(1, 1);
    changed.used = Some(Bytes(5));
    bus.handle_views(vec![View::Filesystem(changed), View::Filesystem(filesystem(1, 2)), View::PoolGone(pool_id(1))]);
    let bytes = bytes_of(&mut listing);
    let listing = Message::demarshal(&bytes).expect("well-formed");
    assert_eq!(values(&listing), listed(self::bus()));
}

/// What a listing says when nothing else happens.
fn listed(mut bus: Bus) -> Vec<Value> {
    send(&mut bus, &list());
    values(&drain(&mut bus)[0])
}
