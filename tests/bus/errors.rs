//! What is not a Stratis answer but a D-Bus error: unknown things, malformed calls.

use crate::support::client::{BusError, Client, method};
use crate::support::rig::Rig;
use crate::support::{GIB, OBJECT_MANAGER, PROPERTIES, TOP, interface};
use crate::{make_pool, text_of};

/// What a call with the wrong arguments may be answered with.
const MALFORMED: [&str; 2] = ["org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.zbus.Error"];

#[track_caller]
fn assert_error<T: std::fmt::Debug>(outcome: Result<T, BusError>, short: &str) {
    let error = outcome.expect_err("the call must fail");
    assert_eq!(error.name, format!("org.freedesktop.DBus.Error.{short}"), "{error}");
    assert!(!error.text.is_empty(), "an error says why");
}

fn bare_call(client: &Client, path: &str, interface: &str, member: &str) -> Result<(), BusError> {
    client.exchange(method(path, interface, member)).map(|_| ())
}

#[test]
fn unknown_things_are_told_apart() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let before = client.objects();
    let manager = interface("Manager", 9);
    for path in ["/org/storage/stratis3/999", "/no/such", "/org/storage/stratis3/0/1", "/org/storage/stratis4"] {
        assert_error(client.get(path, &manager, "Version"), "UnknownObject");
        assert_error(client.get_all(path, &manager), "UnknownObject");
        assert_error(client.introspect(path), "UnknownObject");
        assert_error(bare_call(&client, path, &manager, "ListKeys"), "UnknownObject");
    }
    for unknown in ["org.storage.stratis3.Manager.r10", "org.storage.stratis3.pool.r9", "no.such.interface"] {
        assert_error(client.get(TOP, unknown, "Version"), "UnknownInterface");
        assert_error(client.get_all(TOP, unknown), "UnknownInterface");
        assert_error(client.set(TOP, unknown, "Version", true), "UnknownInterface");
        assert_error(bare_call(&client, TOP, unknown, "DestroyPool"), "UnknownInterface");
    }
    for member in ["NoSuchMethod", "createPool", "UnlockPool", "Version"] {
        assert_error(bare_call(&client, TOP, &manager, member), "UnknownMethod");
    }
    assert_error(bare_call(&client, &pool, &interface("pool", 8), "EncryptPool"), "UnknownMethod");
    for property in ["NoSuchProperty", "", "version", "LockedPools", "CreatePool"] {
        assert_error(client.get(TOP, &manager, property), "UnknownProperty");
    }
    assert_error(client.get(TOP, &interface("Manager", 0), "StoppedPools"), "UnknownProperty");
    assert_eq!(client.objects(), before);
}

#[test]
fn the_object_list_is_asked_of_the_top_object() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    for path in ["/", "/org", "/org/storage", &pool] {
        assert_error(bare_call(&client, path, OBJECT_MANAGER, "GetManagedObjects"), "UnknownInterface");
    }
}

#[test]
fn a_ping_is_answered_anywhere() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    for path in [TOP, "/", "/org", &pool, "/no/such/object"] {
        assert_eq!(client.ping(path), Ok(()), "{path}");
    }
    let id: (String,) =
        client.call(TOP, "org.freedesktop.DBus.Peer", "GetMachineId", ()).expect("the machine has an id");
    assert_eq!(id.0.len(), 32);
}

#[test]
fn wrong_arguments_are_malformed_calls() {
    let rig = Rig::sim();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    let before = client.objects();
    let manager = interface("Manager", 9);
    let outcomes = [
        bare_call(&client, TOP, &manager, "CreatePool"),
        client.call(TOP, &manager, "DestroyPool", (pool.as_str(),)),
        client.call(TOP, &manager, "DestroyPool", (7_u32,)),
        client.call(TOP, &manager, "StopPool", ("p",)),
        client.call(TOP, &manager, "StopPool", (dbus::Path::from(pool.clone()),)),
        client.call(TOP, &interface("Manager", 5), "StopPool", ("p", "name")),
        client.call(TOP, &manager, "CreatePool", ("q", vec!["/q"], (false, ""), (false, ("", "")))),
        client.call(&pool, &interface("pool", 9), "CreateFilesystems", (vec![("f", (false, ""))],)),
        client.call(&pool, &interface("pool", 9), "DestroyFilesystems", (vec!["f"],)),
        client.call(&pool, PROPERTIES, "Get", (interface("pool", 9),)),
        client.call(&pool, PROPERTIES, "GetAll", (7_u32,)),
        client.call(&pool, PROPERTIES, "Set", (interface("pool", 9), "Overprovisioning", false)),
    ];
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let error = outcome.expect_err("the call is malformed");
        assert!(MALFORMED.contains(&error.name.as_str()), "call {index}: {error}");
    }
    assert_eq!(client.objects(), before);
}

#[test]
fn a_failing_call_leaves_no_trace_and_the_next_one_works() {
    let rig = Rig::sim();
    let mut daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    for _ in 0..100 {
        assert_error(bare_call(&client, &pool, "no.such.interface", "X"), "UnknownInterface");
        let error = bare_call(&client, TOP, &interface("Manager", 9), "CreatePool").expect_err("malformed");
        assert!(MALFORMED.contains(&error.name.as_str()));
    }
    assert!(daemon.is_alive());
    assert_eq!(text_of(&client, &pool, "pool", "Name"), "p");
    assert!(client.create_pool("q", &[rig.disk("q", 2 * GIB)]).done().0);
}
