//! Machines with so many filesystems that a list of them is longer than the bus takes.
//!
//! What is long depends on the bus: most of these tests tell the daemon of a bus that takes 1 MiB, so
//! that some hundred filesystems are many.

use std::path::Path;

use crate::support::bus::PrivateBus;
use crate::support::client::{Client, method};
use crate::support::daemon::Daemon;
use crate::support::rig::{Kind, Rig};
use crate::support::{OBJECT_MANAGER, PROPERTIES, TOP, interface};

const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";

/// Filesystems of which a list takes more than 1 MiB.
const MANY: usize = 300;

/// Creates filesystems.
fn fill(client: &Client, pool: &str, count: usize) {
    let limit = dbus::arg::Variant(count as u64);
    let set = method(pool, PROPERTIES, "Set").append3(interface("pool", 9), "FsLimit", limit);
    client.exchange(set).expect("the limit can be raised");
    (0..count).for_each(|number| drop(client.make_filesystem(pool, &format!("fs{number}"))));
}

/// The daemon on a bus of which it was told that it takes so much.
fn daemon(rig: &Rig, message_max: &str) -> Daemon {
    Daemon::spawn(rig.command().args(["--bus-message-max", message_max])).wait_ready(rig.bus.address())
}

#[test]
fn a_list_that_the_bus_does_not_take_is_refused_and_the_daemon_stays() {
    let rig = Rig::new(Kind::Sim).with_bus(PrivateBus::of_a_system(None));
    let mut daemon = daemon(&rig, "1048576");
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &["/a"]).done();
    fill(&client, &pool, MANY);
    let error = client.exchange(method(TOP, OBJECT_MANAGER, "GetManagedObjects")).expect_err("1 MiB is too little");
    assert_eq!(error.name, LIMITS_EXCEEDED);
    assert!(error.text.contains("1048576") && error.text.contains("--bus-message-max"), "{}", error.text);
    assert!(daemon.is_alive());
    assert_eq!(client.get(&pool, &interface("pool", 9), "Name").expect("the others are answered").text(), "p");
}

#[test]
fn no_caller_can_make_the_daemon_send_what_ends_its_connection() {
    let rig = Rig::new(Kind::Sim).with_bus(PrivateBus::of_a_system(None));
    let mut daemon = rig.start();
    let client = rig.client();
    // Each of these becomes two in a quoted text: the refusal would have 36 MiB.
    let name = "\"".repeat(18 << 20);
    let error = client.get(TOP, &name, "Version").expect_err("there is no such interface");
    assert_eq!(error.name, LIMITS_EXCEEDED);
    assert!(daemon.is_alive());
    assert!(client.objects().is_empty(), "it still serves");
}

#[test]
fn the_file_for_large_installations_raises_the_limit_of_the_bus() {
    let drop_in = Path::new("dist/stratisd-large.conf");
    let rig = Rig::new(Kind::Sim).with_bus(PrivateBus::of_a_system(Some(drop_in)));
    let mut daemon = daemon(&rig, "134217728");
    let client = rig.client();
    // What the bus takes from a client it takes from a service.
    let error = client.get(TOP, &"x".repeat(40 << 20), "Version").expect_err("there is no such interface");
    assert!(error.text.len() > 40 << 20, "{}: the answer came through the bus", error.name);
    assert!(daemon.is_alive());
}
