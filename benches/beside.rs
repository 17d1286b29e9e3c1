//! Ours beside stratisd 3.9.2, in turns in one machine: how long each takes to start a pool with many filesystems, to
//! list all objects of it, and to make a filesystem of 1 TiB.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`). Each daemon has a pool that it has made itself; the other
//! pool is stopped meanwhile. `POINTS` is the number of filesystems. Deliberately absent: a failure because of a
//! figure, and anything where the peer is not at hand (`make test-peer` builds it).

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::env;
use std::time::{Duration, Instant};

use guest::peer::Peer;
use guest::{Guest, udev};
use host::{SPEC, Spec};
use support::client::{Client, method};
use support::{OBJECT_MANAGER, TOP};

/// Filesystems, unless `POINTS` says otherwise.
const FILESYSTEMS: usize = 30;
/// How often each daemon has its turn.
const TURNS: usize = 3;
/// Lists in a turn.
const LISTS: usize = 20;

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    match host::peer() {
        Ok(()) => host::print("bench::beside", &Spec { disks: &["20G", "20G"], limit_s: 1_800, ..SPEC }),
        Err(missing) => println!("SKIPPED beside stratisd 3.9.2: {missing}"),
    }
}

/// Milliseconds.
#[derive(Default)]
struct Figures {
    starts: Vec<f64>,
    settled: Vec<f64>,
    lists: Vec<f64>,
    creations: Vec<f64>,
}

fn measure(guest: &mut Guest) {
    let count = env::var("POINTS").map_or(FILESYSTEMS, |text| text.parse().expect("POINTS is a number"));
    let (mut ours, mut peers) = (Figures::default(), Figures::default());
    for turn in 0..TURNS {
        guest.start();
        take_turn(guest, (turn, count), ("ours", 0), &mut ours);
        guest.stop();
        let peer = Peer::start();
        take_turn(guest, (turn, count), ("peer", 1), &mut peers);
        peer.stop();
    }
    println!("\na pool with {count} filesystems, {TURNS} turns each, ms: best and median of ours, of 3.9.2, ratio");
    let rows = [
        ("start", ours.starts, peers.starts),
        ("start until udev has dealt with it", ours.settled, peers.settled),
        ("GetManagedObjects", ours.lists, peers.lists),
        ("a filesystem of 1 TiB", ours.creations, peers.creations),
    ];
    for (what, mut ours, mut peers) in rows {
        ours.sort_by(f64::total_cmp);
        peers.sort_by(f64::total_cmp);
        let (one, other) = (ours[ours.len() / 2], peers[peers.len() / 2]);
        println!("{what}: {:.1} and {one:.1}; {:.1} and {other:.1}; 1/{:.1}", ours[0], peers[0], other / one);
    }
}

/// One turn of one daemon, over the pool of this name on the disk of this number.
fn take_turn(guest: &Guest, (turn, count): (usize, usize), (name, disk): (&str, usize), figures: &mut Figures) {
    let client = guest.client();
    client.patience.set(Duration::from_secs(300));
    if turn == 0 {
        let (_, (pool, _)) = client.create_pool(name, &guest.disks()[disk..=disk]).done();
        for number in 0..count {
            client.make_filesystem(&pool, &format!("f{number}"));
        }
        udev::settle();
        client.stop_pool(name, "name").done();
    }
    udev::settle();
    let began = Instant::now();
    figures.starts.push(milliseconds(|| drop(client.start_pool(name, "name").done())));
    udev::settle();
    figures.settled.push(began.elapsed().as_secs_f64() * 1_000.0);
    let list = || drop(client.exchange(method(TOP, OBJECT_MANAGER, "GetManagedObjects")).expect("it is answered"));
    figures.lists.extend((0..LISTS).map(|_| milliseconds(list)));
    let (pool, _) = client.family("pool").pop_first().expect("it runs");
    let make = |client: &Client| client.create_filesystems(&pool, &[("large", None, None)]).done().1;
    let began = Instant::now();
    let made = make(&client);
    figures.creations.push(began.elapsed().as_secs_f64() * 1_000.0);
    udev::settle();
    client.destroy_filesystems(&pool, &[&made[0].0]).done();
    udev::settle();
    client.stop_pool(name, "name").done();
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1_000.0
}
