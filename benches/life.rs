//! How long the life of a pool takes on a real kernel, and where the time goes: udev, ioctls of device-mapper,
//! writes, the format.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`), on sparse files of the host: figures for the share of
//! each kind of work, and for comparison on one machine, not for what a disk can do. The kinds are those that the
//! daemon books while it works (`cores::rt::timed`) and logs with each request; those that overlap may
//! exceed the whole. What belongs to none of them is `rest`: the bus, the CPU, waiting for a turn.
//!
//! `POINTS` is the number of rounds. Deliberately absent: a failure because of a figure.

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::env;
use std::time::Instant;

use guest::{Guest, udev};
use host::{SPEC, Spec};
use support::TOP;

/// Rounds, unless `POINTS` says otherwise.
const ROUNDS: usize = 7;
/// Filesystems that a pool has when it is stopped and started.
const FILESYSTEMS: usize = 3;
/// Kinds that have a column, in order.
const KINDS: [&str; 8] = ["udev", "dm", "write", "format", "mount", "files", "probe", "read"];

/// What one operation took: milliseconds from call to reply, and what the daemon booked.
#[derive(Debug)]
struct Sample {
    wall: f64,
    booked: BTreeMap<String, f64>,
}

/// Samples by operation, in the order of a pool's life.
type Samples = Vec<(&'static str, Vec<Sample>)>;

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    host::print("bench::life", &Spec { disks: &["10G", "10G"], limit_s: 500, ..SPEC });
}

fn measure(guest: &mut Guest) {
    guest.start();
    let client = guest.client();
    let disks = guest.disks();
    let rounds = env::var("POINTS").map_or(ROUNDS, |text| text.parse().expect("POINTS is a number"));
    let mut samples = Samples::new();
    for round in 0..rounds {
        let name = format!("p{round}");
        let (_, (mut pool, _)) =
            sample(guest, &mut samples, "create pool", || client.create_pool(&name, &disks).done());
        for number in 0..FILESYSTEMS {
            let own = format!("f{number}");
            sample(guest, &mut samples, "create filesystem, 512 MiB", || client.make_filesystem(&pool, &own));
        }
        sample(guest, &mut samples, "create filesystem, 1 TiB", || {
            client.create_filesystems(&pool, &[("t", None, None)])
        });
        sample(guest, &mut samples, "stop pool", || client.stop_pool(&name, "name").done());
        pool = sample(guest, &mut samples, "start pool", || client.start_pool(&name, "name").done()).1.0;
        let all: Vec<String> = client.family("filesystem").into_keys().collect();
        client.destroy_filesystems(&pool, &all).done();
        sample(guest, &mut samples, "destroy pool", || client.destroy_pool(&pool).done());
    }
    client.ping(TOP).expect("the daemon has survived");
    guest.stop();
    print_table(rounds, &samples);
}

/// Times one call and takes its figures out of the daemon's log.
fn sample<T>(guest: &Guest, samples: &mut Samples, what: &'static str, call: impl FnOnce() -> T) -> T {
    // What udev still does for the call before is not booked here.
    udev::settle();
    let before = guest.log().len();
    let began = Instant::now();
    let value = call();
    let wall = began.elapsed().as_secs_f64() * 1000.0;
    let log = guest.log();
    let line = log[before..].lines().find_map(|line| line.split_once("request done (").map(|(_, figures)| figures));
    let line = line.expect("the daemon logs a request before it answers");
    let figures = line.trim_end_matches(')').split_whitespace().filter_map(|figure| figure.split_once('='));
    let booked = figures.map(|(kind, value)| (kind.to_owned(), value.parse().expect("a figure is a number"))).collect();
    let place = samples.iter().position(|(other, _)| *other == what).unwrap_or_else(|| {
        samples.push((what, Vec::new()));
        samples.len() - 1
    });
    samples[place].1.push(Sample { wall, booked });
    value
}

fn print_table(rounds: usize, samples: &Samples) {
    println!("\nlife of a pool on 2 disks, {rounds} rounds, daemon {}:", env!("CARGO_PKG_VERSION"));
    println!("milliseconds from call to reply (median, fastest, slowest), and shares of it in per cent");
    print!("{:<27} {:>3} {:>8} {:>8} {:>8} ", "operation", "n", "median", "min", "max");
    KINDS.iter().for_each(|kind| print!(" {kind:>6}"));
    println!(" {:>6}", "rest");
    for (what, all) in samples {
        let mut walls: Vec<f64> = all.iter().map(|one| one.wall).collect();
        walls.sort_by(f64::total_cmp);
        let whole: f64 = walls.iter().sum();
        let share = |kind: &&str| {
            let spent: f64 = all.iter().filter_map(|one| one.booked.get(*kind)).sum();
            // The sum of nothing is -0.0.
            100.0 * spent.abs() / whole
        };
        let shares: Vec<f64> = KINDS.iter().map(share).collect();
        let (median, last) = (walls[walls.len() / 2], walls[walls.len() - 1]);
        print!("{what:<27} {:>3} {median:>8.1} {:>8.1} {last:>8.1} ", walls.len(), walls[0]);
        shares.iter().for_each(|share| print!(" {share:>6.1}"));
        println!(" {:>6.1}", (100.0 - shares.iter().sum::<f64>()).max(0.0));
    }
}
