//! Item 9: what somebody who is not root may call, and what signals tell them, under the policy as it is installed.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use dbus::{Message, MessageType};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::furnish;
use crate::support::bus::PrivateBus;
use crate::support::client::method;
use crate::support::raw::{RawClient, bytes_of};
use crate::support::rig::Rig;
use crate::support::value::Value;
use crate::support::{NAME, PROPERTIES, REVISIONS, TOP, interface};

/// The user `nobody`.
const NOBODY: u32 = 65_534;

fn can_become_nobody() -> bool {
    let can = nix::unistd::geteuid().is_root();
    if !can {
        println!("SKIPPED conformance: item 9 has to become another user, which only root can");
    }
    can
}

/// Whether the bus lets somebody who is not root make a call. Whatever the daemon answers is fine.
fn may(rig: &Rig, path: &str, member: &str, arguments: &[&str]) -> bool {
    let output = Command::new("dbus-send")
        .args([&format!("--bus={}", rig.bus.address()), "--print-reply", &format!("--dest={NAME}"), path, member])
        .args(arguments)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .expect("dbus-send can be executed (Debian: package dbus-bin)");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let denied = errors.contains("org.freedesktop.DBus.Error.AccessDenied");
    let answered = output.status.success();
    assert!(denied || answered, "{member} is answered: {errors}");
    !denied
}

#[test]
fn item_9_others_than_root_may_look_and_change_nothing() {
    if !can_become_nobody() {
        return;
    }
    let rig = Rig::sim().with_bus(PrivateBus::as_installed());
    let _daemon = rig.start();
    let client = rig.client();
    let pool = furnish(&rig, &client, "p").pool;
    let properties = |member: &str| format!("org.freedesktop.DBus.Properties.{member}");
    let manager = interface("Manager", 9);
    let (on_manager, on_pool) = (format!("string:{manager}"), format!("string:{}", interface("pool", 9)));
    assert!(may(&rig, TOP, "org.freedesktop.DBus.ObjectManager.GetManagedObjects", &[]));
    assert!(may(&rig, TOP, "org.freedesktop.DBus.Introspectable.Introspect", &[]));
    assert!(may(&rig, TOP, &properties("Get"), &[&on_manager, "string:Version"]));
    assert!(may(&rig, &pool, &properties("GetAll"), &[&on_pool]));
    for revision in 0..REVISIONS {
        let report = format!("{}.GetReport", interface("Report", revision));
        assert!(may(&rig, TOP, &report, &["string:stopped_pools"]), "{report}");
        for member in ["EngineStateReport", "ListKeys"] {
            let member = format!("{}.{member}", interface("Manager", revision));
            assert!(may(&rig, TOP, &member, &[]), "{member}");
        }
    }
    let before = client.objects();
    let set = [&*on_pool, "string:Overprovisioning", "variant:boolean:false"];
    assert!(!may(&rig, &pool, &properties("Set"), &set));
    assert!(!may(&rig, TOP, "org.freedesktop.DBus.Peer.Ping", &[]));
    assert!(!may(&rig, TOP, &format!("{manager}.RefreshState"), &[]));
    assert!(!may(&rig, TOP, &format!("{manager}.StopPool"), &["string:p", "string:name"]));
    assert!(!may(&rig, TOP, &format!("{manager}.UnsetKey"), &["string:k"]));
    assert!(!may(&rig, &pool, &format!("{}.Metadata", interface("pool", 9)), &["boolean:true"]));
    assert!(!may(&rig, &pool, &format!("{}.SetName", interface("pool", 9)), &["string:q"]));
    assert_eq!(client.objects(), before);
}

/// A connection to the bus that somebody else than root has made: it belongs to who connects the socket.
fn connect_as_nobody(rig: &Rig) -> RawClient {
    let ours = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    let theirs = ours.try_clone().expect("a second descriptor");
    let connect = "import socket, sys; socket.socket(fileno=0).connect(sys.argv[1])";
    let status = Command::new("python3")
        .args(["-c", connect])
        .arg(rig.bus.socket())
        .stdin(Stdio::from(theirs))
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .expect("python3 can be executed");
    assert!(status.success(), "nobody can connect to the bus: {status}");
    RawClient::over(UnixStream::from(ours), NOBODY).hello()
}

/// Sends a call under this number.
fn send(raw: &mut RawClient, mut call: Message, serial: u32) {
    call.set_serial(serial);
    raw.send(&bytes_of(&call)).expect("the bus reads");
}

/// The values of a property that signals of one interface told, in order.
fn told(messages: &[Message], path: &str, interface: &str, property: &str) -> Vec<Value> {
    let of_object = |message: &&Message| {
        message.msg_type() == MessageType::Signal
            && message.member().as_deref() == Some("PropertiesChanged")
            && message.path().as_deref() == Some(path)
    };
    let bodies = messages.iter().filter(of_object).map(Value::body);
    bodies.filter(|body| body[0].text() == interface).filter_map(|body| body[1].entries().remove(property)).collect()
}

#[test]
fn item_9_others_than_root_hear_signals_before_the_replies_that_show_their_effect() {
    if !can_become_nobody() {
        return;
    }
    let rig = Rig::sim().with_bus(PrivateBus::as_installed());
    let _daemon = rig.start();
    let client = rig.client();
    let pool = furnish(&rig, &client, "p").pool;
    let on_pool = interface("pool", 9);
    let mut raw = connect_as_nobody(&rig);
    let bus = "org.freedesktop.DBus";
    let rule = format!("type='signal',sender='{NAME}'");
    let subscribe = Message::new_method_call(bus, "/org/freedesktop/DBus", bus, "AddMatch").expect("well-formed");
    send(&mut raw, subscribe.append1(rule), 2);
    raw.reply_to(2).expect("the bus answers");
    let get = || method(&pool, PROPERTIES, "Get").append2(&*on_pool, "FsLimit");
    let (mut heard, mut asked) = (Value::Unsigned('t', 100), 2);
    for limit in 101..150_u64 {
        // One read is on its way while the limit is raised, and one is sent when it has been raised.
        send(&mut raw, get(), asked + 1);
        client.set(&pool, &on_pool, "FsLimit", limit).expect("it is raised");
        send(&mut raw, get(), asked + 2);
        for _read in 0..2 {
            asked += 1;
            let messages = raw.messages_until(asked).expect("the bus is there");
            heard = told(&messages, &pool, &on_pool, "FsLimit").pop().unwrap_or(heard);
            let reply = Value::body(messages.last().expect("a reply"));
            assert_eq!(reply, [Value::Variant(Box::new(heard.clone()))], "what is read was heard before");
        }
        assert_eq!(heard, Value::Unsigned('t', limit), "what root has been told is done everybody has heard");
    }
    // On every revision, and of objects too.
    let made = client.make_filesystem(&pool, "heard");
    client.set(&pool, &on_pool, "Overprovisioning", false).expect("it is accepted");
    send(&mut raw, get(), asked + 1);
    let messages = raw.messages_until(asked + 1).expect("the bus is there");
    for revision in 1..REVISIONS {
        let values = told(&messages, &pool, &interface("pool", revision), "Overprovisioning");
        assert_eq!(values, [Value::Bool(false)], "r{revision}");
    }
    let added = messages.iter().filter(|message| message.member().as_deref() == Some("InterfacesAdded"));
    let paths: Vec<_> = added.map(|message| Value::body(message).remove(0)).collect();
    assert_eq!(paths, [Value::Path(made)]);
}
