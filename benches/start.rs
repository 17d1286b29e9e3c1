//! How long a pool with many filesystems takes to start on a real kernel, and udev to deal with it; and how long a
//! daemon that follows one that was killed takes to answer and to take the pool over.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`). `POINTS` is the number of filesystems. Deliberately
//! absent: a failure because of a figure.

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::env;
use std::time::Instant;

use guest::{Guest, dm, udev};
use host::{SPEC, Spec};

/// Filesystems, unless `POINTS` says otherwise.
const FILESYSTEMS: usize = 100;
/// How often the pool is stopped and started.
const STARTS: usize = 5;
/// How often a killed daemon is followed by another one.
const TAKEOVERS: usize = 3;

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    host::print("bench::start", &Spec { disks: &["20G"], limit_s: 900, ..SPEC });
}

fn measure(guest: &mut Guest) {
    guest.start();
    let client = guest.client();
    let count = env::var("POINTS").map_or(FILESYSTEMS, |text| text.parse().expect("POINTS is a number"));
    let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
    for number in 0..count {
        client.make_filesystem(&pool, &format!("f{number}"));
    }
    let mut all: [Vec<f64>; 3] = Default::default();
    for _ in 0..STARTS {
        udev::settle();
        all[0].push(milliseconds(|| drop(client.stop_pool("p", "name").done())));
        udev::settle();
        let began = Instant::now();
        all[1].push(milliseconds(|| drop(client.start_pool("p", "name").done())));
        udev::settle();
        all[2].push(began.elapsed().as_secs_f64() * 1000.0);
    }
    println!("\na pool with {count} filesystems, {STARTS} times");
    for (took, what) in all.iter_mut().zip(["stop", "start", "start until udev has dealt with it"]) {
        took.sort_by(f64::total_cmp);
        println!("ms for the {what}: best {:.0}, median {:.0}", took[0], took[STARTS / 2]);
    }
    let log = guest.log();
    let booked = log.lines().rfind(|line| line.contains("request done")).unwrap_or_default();
    println!("the start: {booked}");
    let tables = dm::tables();
    for _ in 0..TAKEOVERS {
        println!("takeover: {:?}", guest.take_over());
        assert_eq!(dm::tables(), tables, "no table is touched");
    }
    guest.stop();
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64() * 1000.0
}
