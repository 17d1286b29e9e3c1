//! Kills the daemon at random points of random operations, and asks it afterwards what it remembers.
//!
//! Each round: several workers send operations, each one after the other, all at once; after 0 to 60 ms
//! the daemon is killed with SIGKILL and started again. Then every operation that was answered must be
//! there, every one that was not must be there entirely or not at all, and nothing else may be left:
//! no volume without a record, no half-written file, no intent.
//!
//! `KILL_POINTS` is the number of rounds (200), `KILL_SEED` repeats a run as far as timing allows.
//! Deliberately absent: power failure. A killed process loses nothing that the kernel has; losing
//! unflushed writes is what the simulation under `tests/sim` does.

mod support;

#[path = "kill/check.rs"]
mod check;
#[path = "kill/journal.rs"]
mod journal;
#[path = "kill/model.rs"]
mod model;
#[path = "kill/volumes.rs"]
mod volumes;
#[path = "kill/worker.rs"]
mod worker;

use std::env;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use support::daemon::Daemon;
use support::rig::Rig;
use support::{GIB, MIB};
use worker::{Counts, Report, Worker};

/// Clients at once.
const WORKERS: usize = 4;
/// Disks of each worker.
const DISKS: usize = 3;
/// Longest time between the first request of a round and the kill.
const DELAY_MICROS_MAX: u64 = 60_000;

#[test]
fn a_killed_daemon_remembers_exactly_what_it_answered() {
    let points: u64 = number("KILL_POINTS").unwrap_or(200);
    let seed = number("KILL_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
        now.as_secs()
    });
    println!("kill: KILL_SEED={seed} KILL_POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    let rig = Rig::files();
    let mut workers: Vec<_> = (0..WORKERS).map(|index| furnish(&rig, index, random.fork())).collect();
    let mut counts = Counts::default();
    let started = Instant::now();
    let mut daemon = rig.start();
    for point in 0..points {
        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        let reports = round(&rig, &mut daemon, &mut workers, delay);
        counts.add(&reports);
        daemon = rig.start();
        let context = format!("kill {point}, KILL_SEED={seed}, after {delay:?}: {:?}", in_flight(&reports));
        let client = rig.client();
        let (seen, freed) = check::objects(&client, &mut workers, reports, &context);
        freed.iter().for_each(|disks| check::reusable(&client, disks, &context));
        volumes::everything(&rig, &seen, &mut random, &context);
        check::stop_some(&client, &mut workers, &mut random, &context);
    }
    println!("kill: {points} kills in {:.0?}; {counts:?}", started.elapsed());
    if points >= 100 {
        counts.expect_all_kinds();
    }
    assert!(daemon.interrupt().success());
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

fn furnish(rig: &Rig, index: usize, random: fastrand::Rng) -> Worker {
    let size = |disk: usize| if disk == 0 { GIB + 512 * MIB } else { GIB };
    let disks = (0..DISKS).map(|disk| rig.disk(&format!("disk-{index}-{disk}"), size(disk)));
    Worker::new(index, disks.collect(), random)
}

/// Lets the workers loose, kills the daemon, and gathers what the workers know.
fn round(rig: &Rig, daemon: &mut Daemon, workers: &mut [Worker], delay: Duration) -> Vec<Report> {
    let barrier = Barrier::new(workers.len() + 1);
    thread::scope(|scope| {
        let barrier = &barrier;
        let running: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let client = rig.client();
                scope.spawn(move || {
                    barrier.wait();
                    worker.work(&client)
                })
            })
            .collect();
        barrier.wait();
        thread::sleep(delay);
        daemon.kill9();
        running.into_iter().map(|one| one.join().expect("a worker found a wrong answer, see above")).collect()
    })
}

fn in_flight(reports: &[Report]) -> Vec<&model::Operation> {
    reports.iter().filter_map(|report| report.in_flight.as_ref()).collect()
}
