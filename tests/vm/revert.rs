//! Reverts on a real kernel: a snapshot takes its origin's place at the next start of its pool, also when the daemon
//! dies while it sees to that.
//!
//! `POINTS` is the number of kills, `SEED` repeats a run as far as timing allows.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, dm, run, state, udev};
use crate::host::{SPEC, Spec};
use crate::kill::{number, seed};
use crate::scenario;
use crate::support::client::{Client, method, start_pool_arguments};
use crate::support::{MIB, TOP, interface};

/// Kills, unless `POINTS` says otherwise.
const KILLS: u64 = 4;

fn property(client: &Client, filesystem: &str, name: &str) -> String {
    client.get(filesystem, &interface("filesystem", 9), name).expect("it can be read").text().to_owned()
}

/// The path of the object of a filesystem, if it is there.
fn find(client: &Client, name: &str) -> Option<String> {
    let all = client.family("filesystem").into_iter();
    all.filter(|(_, properties)| properties["Name"].text() == name).map(|(path, _)| path).next()
}

fn schedule(client: &Client, snapshot: &str) {
    client.set(snapshot, &interface("filesystem", 9), "MergeScheduled", true).expect("it has an origin");
}

/// Panics unless a filesystem is whole, has the UUID that its object shows, and is found under its name. Its device.
fn examine(client: &Client, name: &str) -> PathBuf {
    let path = find(client, name).expect("it is there");
    let device = files::node(client, &path);
    files::check_xfs(&device);
    let uuid = run("blkid", &["--probe", "--output", "value", "--match-tag", "UUID", text(&device)]);
    assert_eq!(uuid.trim().replace('-', ""), property(client, &path, "Uuid"));
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(real(Path::new(&property(client, &path, "Devnode"))), real(&device), "the link leads to it");
    device
}

scenario!(
    /// A udev that is late sees the copy's device go and the origin's come under the same number: a link that is there
    /// once the start is answered stays.
    a_link_that_is_there_after_a_revert_stays,
    Spec { disks: &["4G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let origin = client.make_filesystem(&pool, "origin");
        let snapshot = client.snapshot(&pool, &origin, "s").done().1;
        let link = files::node(&client, &origin);
        schedule(&client, &snapshot);
        client.stop_pool("p", "name").done();
        assert!(!link.exists(), "it goes with the pool");

        udev::late(|| {
            client.start_pool("p", "name").done();
            guest.until("there is a link", |_| link.exists());
        });
        udev::expect_stays(&link);
        drop(examine(&client, "origin"));
        guest.stop();
    }
);

scenario!(
    /// Content, size and limit are the snapshot's, all else stays the origin's; who is a snapshot of the snapshot is
    /// one of the origin then.
    a_snapshot_takes_the_place_of_its_origin,
    Spec { disks: &["4G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let origin = client.make_filesystem(&pool, "origin");
        let uuid = property(&client, &origin, "Uuid");
        let folder = files::mount(&files::node(&client, &origin), "origin");
        let before = Contents::write(folder.join("before"), 20 * MIB, 1);
        let snapshot = client.snapshot(&pool, &origin, "s").done().1;
        Contents::write(folder.join("after"), 20 * MIB, 2);
        files::unmount(&folder);
        let sibling = client.snapshot(&pool, &snapshot, "sibling").done().1;
        let folder = files::mount(&files::node(&client, &snapshot), "s");
        let added = Contents::write(folder.join("added"), 5 * MIB, 3);
        files::unmount(&folder);
        assert_ne!(property(&client, &sibling, "Uuid"), uuid);
        schedule(&client, &snapshot);

        client.stop_pool("p", "name").done();
        client.start_pool("p", "name").done();
        assert_eq!(client.family("filesystem").len(), 2, "the snapshot is gone");
        dm::expect_settled();
        let device = examine(&client, "origin");
        assert_eq!(property(&client, &find(&client, "origin").expect("it is there"), "Uuid"), uuid);
        let folder = files::mount(&device, "origin");
        for file in [&before, &added] {
            file.check(&folder);
        }
        assert!(!folder.join("after").exists(), "it came after the snapshot");
        let twin = files::mount(&examine(&client, "sibling"), "sibling");
        before.check(&twin);
        files::unmount(&twin);
        files::unmount(&folder);
        let path = find(&client, "sibling").expect("it is there");
        let of = client.get(&path, &interface("filesystem", 9), "Origin").expect("it can be read");
        assert_eq!(of.members()[1].text(), uuid, "durably: see below");
        client.stop_pool("p", "name").done();
        client.start_pool("p", "name").done();
        let path = find(&client, "sibling").expect("it is there");
        let of = client.get(&path, &interface("filesystem", 9), "Origin").expect("it can be read");
        assert_eq!(of.members()[1].text(), uuid);
        state::expect_no_io_error();
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// Daemons that die while they start a pool with a revert leave it scheduled or done; it is done by the next start.
    killed_while_reverting,
    Spec { disks: &["4G"], limit_s: 500, ..SPEC },
    |guest: &mut Guest| {
        let (points, seed) = (number("POINTS").unwrap_or(KILLS), seed());
        println!("revert: SEED={seed} POINTS={points}");
        let mut random = fastrand::Rng::with_seed(seed);
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let origin = client.make_filesystem(&pool, "origin");
        let uuid = property(&client, &origin, "Uuid");
        let mut longest = Duration::from_secs(2);
        for point in 0..=points {
            let client = guest.client();
            let file = prepare(&client, point);
            client.stop_pool("p", "name").done();
            let began = Instant::now();
            let mut call = method(TOP, &interface("Manager", 9), "StartPool");
            call.append_all(start_pool_arguments("p", "name"));
            if point == 0 {
                client.start_pool("p", "name").done();
                longest = began.elapsed();
            } else {
                client.send(call);
                let delay = longest.mul_f64(random.f64());
                println!("kill {point} after {delay:.0?}");
                thread::sleep(delay);
                guest.kill9();
                guest.start();
            }
            finish(guest, &file, &uuid, &format!("kill {point}, SEED={seed}"));
        }
        state::expect_no_io_error();
        guest.stop();
    }
);

/// A snapshot is scheduled that has a file which its origin has no more: that file.
fn prepare(client: &Client, point: u64) -> Contents {
    let origin = find(client, "origin").expect("it is there");
    let pool = client.family("pool").into_keys().next().expect("the pool runs");
    let folder = files::mount(&files::node(client, &origin), "origin");
    let file = Contents::write(folder.join(point.to_string()), 3 * MIB, point);
    let snapshot = client.snapshot(&pool, &origin, "s").done().1;
    fs::remove_file(folder.join(point.to_string())).expect("it is there");
    files::unmount(&folder);
    schedule(client, &snapshot);
    file
}

/// Whatever was cut off: started once more, the pool has the origin with the snapshot's files, and nothing else.
fn finish(guest: &Guest, file: &Contents, uuid: &str, context: &str) {
    let client = guest.client();
    if client.family("pool").is_empty() {
        client.start_pool("p", "name").done();
    }
    assert_eq!(client.family("filesystem").len(), 1, "{context}: {}", guest.log());
    dm::expect_settled();
    assert_eq!(dm::names().len(), 7, "{context}: {:?}", dm::names());
    let device = examine(&client, "origin");
    assert_eq!(property(&client, &find(&client, "origin").expect("it is there"), "Uuid"), uuid, "{context}");
    let folder = files::mount(&device, "origin");
    file.check(&folder);
    files::unmount(&folder);
}
