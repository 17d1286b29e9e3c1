//! Machines with so many filesystems that a list of them is longer than the bus takes.
//!
//! What is long depends on the bus: most of these tests tell the daemon of a bus that takes 1 MiB, so
//! that some hundred filesystems are many. Those that make ten thousand of them are for `make test-long`.

use std::ops::Range;
use std::path::Path;
use std::thread;

use dbus::Message;
use dbus::arg::ArgType;

use crate::support::bus::PrivateBus;
use crate::support::client::{BusError, Client, method};
use crate::support::daemon::Daemon;
use crate::support::raw::bytes_of;
use crate::support::rig::{Kind, Rig};
use crate::support::{OBJECT_MANAGER, PROPERTIES, TOP, interface};

const LIMITS_EXCEEDED: &str = "org.freedesktop.DBus.Error.LimitsExceeded";

/// Filesystems of which a list takes more than 1 MiB.
const MANY: usize = 300;

/// Pools that ten thousand filesystems are spread over.
const POOLS: usize = 10;

/// Creates filesystems with these numbers.
fn fill(client: &Client, pool: &str, numbers: Range<usize>) {
    let limit = dbus::arg::Variant(numbers.end as u64);
    let set = method(pool, PROPERTIES, "Set").append3(interface("pool", 9), "FsLimit", limit);
    client.exchange(set).expect("the limit can be raised");
    numbers.for_each(|number| drop(client.make_filesystem(pool, &format!("fs{number:05}"))));
}

/// The same in each of these pools, side by side.
fn fill_each(rig: &Rig, pools: &[String], numbers: &Range<usize>) {
    thread::scope(|scope| {
        for pool in pools {
            scope.spawn(move || fill(&rig.client(), pool, numbers.clone()));
        }
    });
}

/// `POOLS` pools, by their paths.
fn make_pools(client: &Client) -> Vec<String> {
    (0..POOLS).map(|number| client.create_pool(&format!("p{number}"), &[format!("/{number}")]).done().1.0).collect()
}

/// How many objects a list has, and how many bytes it takes.
fn measure(list: &Message) -> (usize, usize) {
    let mut objects = list.iter_init().recurse(ArgType::Array).expect("a list is an array");
    let mut count = 0;
    while objects.arg_type() != ArgType::Invalid {
        count += 1;
        objects.next();
    }
    (count, bytes_of(list).len())
}

fn list(client: &Client) -> Result<Message, BusError> {
    client.exchange(method(TOP, OBJECT_MANAGER, "GetManagedObjects"))
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
    fill(&client, &pool, 0..MANY);
    let error = list(&client).expect_err("1 MiB is too little");
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

#[test]
#[ignore = "makes 10,000 filesystems: make test-long"]
fn eight_thousand_filesystems_are_listed_and_ten_thousand_politely_refused() {
    let rig = Rig::sim().with_bus(PrivateBus::of_a_system(None));
    let mut daemon = rig.start();
    let client = rig.client();
    let pools = make_pools(&client);
    let (_, empty) = measure(&list(&client).expect("it is short"));
    let mut bytes = Vec::new();
    for (from, to) in [(0, 400), (400, 800)] {
        fill_each(&rig, &pools, &(from..to));
        let (count, length) = measure(&list(&client).expect("32 MiB are enough"));
        assert_eq!(count, POOLS * (to + 2), "each pool with its device and its filesystems");
        bytes.push(length);
    }
    let (half, whole) = (bytes[0] - empty, bytes[1] - empty);
    assert!(whole < half * 2 + half / 50, "the second 4,000 take as much as the first: {half} of {whole} bytes");
    fill_each(&rig, &pools, &(800..1_000));
    for _again in 0..3 {
        let error = list(&client).expect_err("32 MiB are too little");
        assert_eq!(error.name, LIMITS_EXCEEDED);
        assert!(error.text.contains("33554432") && error.text.contains("--bus-message-max"), "{}", error.text);
    }
    assert!(daemon.is_alive());
    let name = client.get(&pools[9], &interface("pool", 9), "Name").expect("everything else is answered");
    assert_eq!(name.text(), "p9");
    // Where they become fewer they can be listed again.
    client.stop_pool("p9", "name").done();
    client.stop_pool("p8", "name").done();
    assert_eq!(measure(&list(&client).expect("32 MiB are enough again")).0, (POOLS - 2) * 1_002);
    assert!(daemon.interrupt().success());
}

#[test]
#[ignore = "makes 10,000 filesystems: make test-long"]
fn ten_thousand_filesystems_are_listed_where_the_limits_are_raised() {
    let drop_in = Path::new("dist/stratisd-large.conf");
    let rig = Rig::sim().with_bus(PrivateBus::of_a_system(Some(drop_in)));
    let mut daemon = daemon(&rig, "134217728");
    let client = rig.client();
    fill_each(&rig, &make_pools(&client), &(0..1_000));
    for _again in 0..3 {
        let (count, bytes) = measure(&list(&client).expect("128 MiB are enough"));
        assert_eq!(count, POOLS * 1_002);
        assert!(bytes > 32 << 20, "{bytes} bytes are more than buses take by default");
    }
    assert!(daemon.interrupt().success());
}
