//! Calls that are wrong in form, and the standard interfaces.
//!
//! Each gets a D-Bus error of its kind, and none of them becomes a request.

use super::*;

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
