//! Broken and hostile messages: the bus or the daemon refuses them, and the daemon goes on.

use std::time::Duration;

use dbus::arg::Variant;
use dbus::{Message, Path};

use crate::support::client::{Client, method};
use crate::support::raw::{RawClient, bytes_of, patch};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{GIB, NAME, OBJECT_MANAGER, PROPERTIES, TOP, interface};
use crate::{assert_untouched, no_pool, state};

/// A world with one pool of one filesystem.
fn furnished() -> (Rig, crate::support::daemon::Daemon, Client, String) {
    let rig = Rig::files();
    let daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("one", 2 * GIB)]).done();
    client.make_filesystem(&pool, "f");
    (rig, daemon, client, pool)
}

fn listing() -> Vec<u8> {
    let mut message = method(TOP, OBJECT_MANAGER, "GetManagedObjects");
    message.set_serial(2);
    bytes_of(&message)
}

#[test]
fn garbage_after_the_handshake_costs_only_the_sender() {
    let (rig, mut daemon, client, _) = furnished();
    let before = state(&rig, &client);
    let mut truncated = listing();
    truncated.truncate(40);
    let mut zeroed = listing();
    zeroed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let noise: Vec<u8> =
        (0..4096_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    for bytes in [noise, zeroed, vec![0; 1024], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut raw = RawClient::connect(rig.bus.socket()).hello();
        raw.send(&bytes).expect("the bus reads");
        raw.wait_closed();
        assert_untouched(&rig, &client, &mut daemon, &before, "garbage");
    }
    let mut raw = RawClient::connect(rig.bus.socket()).hello();
    raw.send(&truncated).expect("the bus reads");
    drop(raw);
    assert_untouched(&rig, &client, &mut daemon, &before, "half a message");
}

#[test]
fn bodies_that_do_not_fit_their_signature_cost_only_the_sender() {
    let (rig, mut daemon, client, pool) = furnished();
    let before = state(&rig, &client);
    // The signature says an object path, the body holds a text that is none.
    let mut message = method(TOP, &interface("Manager", 9), "DestroyPool").append1("not a path");
    message.set_serial(2);
    let mut bytes = bytes_of(&message);
    patch(&mut bytes, "\u{1}s\0", "\u{1}o\0");
    let mut raw = RawClient::connect(rig.bus.socket()).hello();
    raw.send(&bytes).expect("the bus reads");
    raw.wait_closed();
    // A name that is not UTF-8.
    let mut message = method(&pool, &interface("pool", 9), "SetName").append1("NAME");
    message.set_serial(2);
    let mut bytes = bytes_of(&message);
    let at = bytes.windows(5).rposition(|window| window == b"NAME\0").expect("the name is there");
    bytes[at] = 0xff;
    let mut raw = RawClient::connect(rig.bus.socket()).hello();
    raw.send(&bytes).expect("the bus reads");
    raw.wait_closed();
    assert_untouched(&rig, &client, &mut daemon, &before, "bodies against their signature");
}

#[test]
fn a_descriptor_that_was_not_sent_is_an_error() {
    let (rig, mut daemon, client, _) = furnished();
    let before = state(&rig, &client);
    for index in [0, 1, 250, u32::MAX] {
        let mut message = method(TOP, &interface("Manager", 8), "StartPool");
        message.append_all(("p", "name", (false, (false, 0_u32)), (true, index)));
        message.set_serial(2);
        let mut bytes = bytes_of(&message);
        patch(&mut bytes, "ss(b(bu))(bu)", "ss(b(bu))(bh)");
        let mut raw = RawClient::connect(rig.bus.socket()).hello();
        raw.send(&bytes).expect("the bus reads");
        // Refused by the bus (it may close), or answered by the daemon.
        if let Some(mut reply) = raw.reply_to(2) {
            let changed = reply.as_result().is_ok_and(|reply| Value::body(reply)[0].members()[0].is_true());
            assert!(!changed, "index {index}");
        }
        assert_untouched(&rig, &client, &mut daemon, &before, "a missing descriptor");
    }
}

#[test]
fn large_messages_are_answered() {
    let (rig, mut daemon, client, pool) = furnished();
    let before = state(&rig, &client);
    let devices: Vec<String> = (0..100_000).map(|index| format!("/no/such/device/{index}")).collect();
    client.create_pool("q", &devices).refused(&no_pool());
    let huge = "x".repeat(8 << 20);
    client.create_pool(&huge, &["/a"]).refused(&no_pool());
    client.create_pool("q", &[format!("/{huge}")]).refused(&no_pool());
    client.create_filesystems(&pool, &[(&huge, None, None)]).refused(&(false, Vec::new()));
    client.create_filesystems(&pool, &[("g", Some(&huge), None)]).refused(&(false, Vec::new()));
    client.start_pool(&huge, "name").refused(&(false, ("/".to_owned(), Vec::new(), Vec::new())));
    client.start_pool("p", &huge).refused(&(false, ("/".to_owned(), Vec::new(), Vec::new())));
    client.get(&pool, &interface("pool", 9), &huge).expect_err("no such property");
    let many: Vec<String> = (0..200_000).map(|index| format!("/no/such/object/{index}")).collect();
    // Ignored, or refused because there are too many; never more than that.
    assert!(!client.destroy_filesystems(&pool, &many).value.0);
    assert_untouched(&rig, &client, &mut daemon, &before, "large messages");
}

#[test]
fn deeply_nested_values_are_answered() {
    let (rig, mut daemon, client, pool) = furnished();
    let before = state(&rig, &client);
    let deep = Variant(Variant(Variant(Variant(Variant(Variant(Variant(Variant(1_u32))))))));
    let mut message = method(&pool, PROPERTIES, "Set");
    message.append_all((interface("pool", 9), "Overprovisioning", deep));
    client.exchange(message).expect_err("the type is wrong");
    assert_untouched(&rig, &client, &mut daemon, &before, "nested variants");
}

#[test]
fn what_is_no_call_is_ignored() {
    let (rig, mut daemon, client, _) = furnished();
    let before = state(&rig, &client);
    let mut signal = Message::new_signal(TOP, "org.storage.stratis3.Manager.r9", "CreatePool").expect("well-formed");
    signal.set_destination(Some(NAME.into()));
    client.send(signal);
    let mut stray = method(TOP, OBJECT_MANAGER, "GetManagedObjects");
    stray.set_serial(99);
    let mut stray = stray.method_return().append1("stray");
    stray.set_destination(Some(NAME.into()));
    client.send(stray);
    assert_untouched(&rig, &client, &mut daemon, &before, "signals and stray replies");
}

#[test]
fn a_flood_of_calls_is_answered_call_by_call() {
    let (rig, mut daemon, client, pool) = furnished();
    let before = state(&rig, &client);
    let flood = rig.client();
    let calls: Vec<_> = (0..3_000)
        .map(|index| {
            let message = match index % 3 {
                0 => method(&pool, PROPERTIES, "Get").append2(interface("pool", 9), "Name"),
                1 => method(&pool, &interface("pool", 9), "DestroyFilesystems").append1(Vec::<Path<'_>>::new()),
                _ => method(TOP, &interface("Manager", 9), "StopPool").append2("nobody", "name"),
            };
            flood.send(message)
        })
        .collect();
    for serial in calls {
        if let Err(error) = flood.reply_to(serial).expect("every call is answered") {
            assert_eq!(error.name, "org.freedesktop.DBus.Error.LimitsExceeded", "{error}");
        }
    }
    assert_untouched(&rig, &client, &mut daemon, &before, "a flood");
}

#[test]
fn clients_that_ask_and_leave_do_not_fill_the_daemon() {
    let (rig, mut daemon, client, _) = furnished();
    let before = state(&rig, &client);
    for _ in 0..200 {
        let mut raw = RawClient::connect(rig.bus.socket()).hello();
        raw.send(&listing()).expect("the bus reads");
    }
    client.wait_message(Duration::ZERO);
    assert_untouched(&rig, &client, &mut daemon, &before, "clients that left");
}
