//! A udevd that hangs: operations on one pool end within their bound and with a warning, other pools answer
//! meanwhile, and nothing is left behind.
//!
//! Deliberately absent: how long the bound is. A reply is waited for as long as for any other in these tests.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use dbus::Message;

use crate::guest::udev::{self, Frozen};
use crate::guest::{Guest, dm, files};
use crate::host::{SPEC, Spec};
use crate::model::Seen;
use crate::scenario;
use crate::support::client::{create_pool_arguments, method, specs_argument};
use crate::support::value::Value;
use crate::support::{MIB, TOP, interface};
use crate::{aftermath, kill};

/// What the daemon says when udev does not answer.
const WARNING: &str = "udev does not react";

scenario!(
    /// Create and stop with a udevd that was stopped by SIGSTOP.
    a_hung_udevd_costs_a_warning,
    Spec { disks: &["4G", "4G"], limit_s: 240, ..SPEC },
    play
);

fn play(guest: &mut Guest) {
    guest.start();
    let client = guest.client();
    let disks = guest.disks();
    let (_, (calm, _)) = client.create_pool("calm", &disks[..1]).done();
    client.make_filesystem(&calm, "calm");
    let rounds = u32::try_from(kill::number("POINTS").unwrap_or(1)).expect("a few");
    for round in 0..rounds {
        udev::settle();
        let threads = threads(guest);
        // A disk that had a pool and lost it is looked at by udev before it can have another.
        frozen(guest, &calm, &disks[1..], &format!("held{round}"));
        thawed(guest, &calm);
        assert_eq!(self::threads(guest), threads, "threads of the daemon");
    }
    guest.stop();
}

/// The life of a pool while udevd hangs.
fn frozen(guest: &Guest, calm: &str, disks: &[String], name: &str) {
    let client = guest.client();
    let warned = warnings(guest);
    let frozen = Frozen::now();
    let mut create = method(TOP, &interface("Manager", 9), "CreatePool");
    create.append_all(create_pool_arguments(name, disks));
    let body = meanwhile(guest, calm, create);
    assert_eq!(body[1].number(), 0, "a pool is created without udev: {body:?}");
    assert!(warnings(guest) > warned, "that udev does not react is said once");
    let seen = Seen::new(&client.objects());
    let pool = seen.pools[name].path.clone();
    let specs = specs_argument(&[("f", Some(&(512 * MIB).to_string()), None)]);
    let body = meanwhile(guest, calm, method(&pool, &interface("pool", 9), "CreateFilesystems").append1(specs));
    assert_eq!(body[1].number(), 0, "a filesystem is created without udev: {body:?}");
    let stop = || method(TOP, &interface("Manager", 9), "StopPool").append2(name, "name");
    let body = meanwhile(guest, calm, stop());
    assert_eq!(body[1].number(), 0, "a pool is stopped without udev: {body:?}");
    assert!(dm::names().iter().all(|device| !device.contains(&seen.pools[name].uuid)), "{:?}", dm::names());
    aftermath::cookies("udevd hangs");
    assert!(client.start_pool(name, "name").done().0, "it starts");
    drop(frozen);
    // Its disk was written while nobody told; udev looks at it again now.
    udev::settle();
    let pool = Seen::new(&client.objects()).pools[name].path.clone();
    let filesystems: Vec<_> = Seen::new(&client.objects()).filesystems.remove("f").into_iter().collect();
    assert_eq!(filesystems.len(), 1, "the filesystem has survived");
    client.destroy_filesystems(&pool, &[&filesystems[0].path]).done();
    client.destroy_pool(&pool).done();
}

/// Sends a request, and changes another pool until the answer comes; the answer.
fn meanwhile(guest: &Guest, calm: &str, request: Message) -> Vec<Value> {
    let (asks, other) = (guest.client(), guest.client());
    let what = request.member().expect("a call has a name").to_string();
    let (devices, pool) = (interface("blockdev", 9), interface("pool", 9));
    let mine = other.family("blockdev").into_iter().find(|(_, one)| one["Pool"].text() == calm);
    let (device, _) = mine.expect("the calm pool has a device");
    let mut answered = 0;
    let reply = thread::scope(|scope| {
        let waiting = scope.spawn(move || asks.exchange(request));
        while !waiting.is_finished() {
            let tag = format!("{what}{answered}");
            other.set(&device, &devices, "UserInfo", (true, tag.clone())).expect("a calm pool can be changed");
            let told = other.get(&device, &devices, "UserInfo").expect("and read");
            assert_eq!(told.members()[1].text(), tag, "what is written is read");
            assert_eq!(other.get(calm, &pool, "Name").expect("a name can be read").text(), "calm");
            answered += 1;
        }
        waiting.join().expect("the call is answered")
    });
    println!("{what}: the calm pool was changed {answered} times meanwhile");
    assert!(answered > 1, "{what}: the calm pool was held up");
    Value::body(&reply.unwrap_or_else(|error| panic!("{what}: {error}")))
}

/// With udevd back, all is as if it had never been away.
fn thawed(guest: &mut Guest, calm: &str) {
    udev::settle();
    aftermath::cookies("udevd is back");
    dm::expect_settled();
    let client = guest.client();
    let path = client.make_filesystem(calm, "after");
    let link = client.get(&path, &interface("filesystem", 9), "Devnode").expect("it has a path").text().to_owned();
    let node = files::node(&client, &path);
    guest.until("the link of a new filesystem", |_| fs::canonicalize(&link).ok() == fs::canonicalize(&node).ok());
    client.destroy_filesystems(calm, &[&path]).done();
    udev::settle();
    let seen = Seen::new(&client.objects());
    let names: BTreeMap<_, _> = seen.pools.iter().map(|(name, pool)| (name.as_str(), pool.uuid.as_str())).collect();
    assert_eq!(names.keys().collect::<Vec<_>>(), [&"calm"], "the other pool is gone");
    let strangers: Vec<_> = dm::names().into_iter().filter(|device| !device.contains(names["calm"])).collect();
    assert!(strangers.is_empty(), "dm devices of a pool that is gone: {strangers:?}");
}

fn warnings(guest: &Guest) -> usize {
    guest.log().matches(WARNING).count()
}

/// Threads that are started when they are needed, so many of a name at most: see `Lanes`.
const WHEN_NEEDED: [&str; 6] = ["mount", "mounted", "probe", "files", "programs", "udev"];

/// The daemon's threads by name. Those of io_uring come and go as the kernel likes.
fn threads(guest: &Guest) -> Vec<String> {
    let daemon = guest.daemon_id().expect("the daemon runs");
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).expect("the daemon runs");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let lasting = |name: &String| !name.starts_with("iou-") && !WHEN_NEEDED.contains(&name.trim());
    let mut names: Vec<String> = names.filter(lasting).collect();
    names.sort();
    names
}
