//! Pools that grow under writers, in steps so small that they grow a hundred times, while clients work in them; and
//! the same while udevd stands still.
//!
//! What counts is what the kernel says: that it never was out of data space, and how long it took from its event to
//! the growth. Figures are printed, not judged. Deliberately absent: what a growth that is cut off leads to; the
//! simulation cuts each of its actions.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::udev::Frozen;
use crate::guest::{Guest, SYSTEM_BUS, dm, files, run, state};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Client;
use crate::support::{MIB, interface};

/// In MiB: by how much the pool grows at once, and at how many free ones.
pub(crate) const STEP: u64 = 16;
pub(crate) const LOW_WATER: u64 = 256;
/// Growths that are waited for.
const GROWTHS: usize = 100;
/// What a writer writes at most, in MiB.
const LONGEST: u64 = 1_800;
const WRITERS: [&str; 3] = ["one", "two", "three"];
/// A filesystem that a writer cannot fill.
const SIZE: &str = "4294967296";
/// A filesystem that comes and goes.
const SMALL: &str = "536870912";

/// What the kernel says when a thin pool runs low, when it grows, and when it is full.
pub(crate) const LOW: &str = "reached low water mark for data device";
pub(crate) const GROWS: &str = "growing the data device from";
pub(crate) const FULL: &str = "out-of-data-space";
/// What the daemon says when a thin pool has grown, and when it is full.
pub(crate) const GROWN: &str = "thin pool changed";
pub(crate) const TOLD_FULL: &str = "now=out_of_data_space";

scenario!(
    /// Writers, and clients that create, destroy and list filesystems.
    a_pool_grows_under_writers,
    Spec { disks: &["9G"], limit_s: 500, ..SPEC },
    |guest: &mut Guest| play(guest, false)
);

scenario!(
    /// The same, with a udevd that does nothing.
    a_pool_grows_while_udevd_hangs,
    Spec { disks: &["9G"], limit_s: 500, ..SPEC },
    |guest: &mut Guest| play(guest, true)
);

fn play(guest: &mut Guest, hangs: bool) {
    fs::write("/sys/module/printk/parameters/time", "1").expect("root may have the kernel tell the time");
    guest.start_with(&["--grow-step", &STEP.to_string(), "--low-water", &LOW_WATER.to_string()]);
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
    let mut volumes = Vec::new();
    for name in WRITERS {
        let (_, made) = client.create_filesystems(&pool, &[(name, Some(SIZE), None)]).done();
        let device = files::node(&client, &made[0].0);
        volumes.push((files::mount(&device, name), device));
    }
    let first = blocks();
    let frozen = hangs.then(Frozen::now);
    let stop = AtomicBool::new(false);
    let (written, created) = thread::scope(|scope| {
        let writing = |(folder, _): &(PathBuf, PathBuf)| {
            let (path, stop) = (folder.join("file"), &stop);
            scope.spawn(move || write(&path, stop))
        };
        let writers: Vec<_> = volumes.iter().map(writing).collect();
        let churns = scope.spawn(|| churn(&pool, &stop));
        let lists = scope.spawn(|| list(&stop));
        while count(&guest.log(), GROWN) < GROWTHS && writers.iter().any(|writer| !writer.is_finished()) {
            thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, Ordering::Relaxed);
        let written: Vec<Written> = writers.into_iter().map(|writer| writer.join().expect("it can write")).collect();
        println!("extend: {} lists of all objects meanwhile", lists.join().expect("objects can be listed"));
        (written, churns.join().expect("filesystems can be created and destroyed"))
    });
    drop(frozen);
    println!("extend: {created} filesystems created and destroyed meanwhile");
    report(guest, first, &written);
    dm::expect_settled();
    for ((folder, device), written) in volumes.iter().zip(&written) {
        files::drop_caches();
        check(&folder.join("file"), written.mib);
        files::unmount(folder);
        files::check_xfs(device);
    }
    state::expect_no_io_error();
    guest.expect_quiet();
    let (pool, all) = client.family("pool").into_iter().next().expect("it runs");
    assert!(!client.get(&pool, &interface("pool", 9), "NoAllocSpace").expect("a property").is_true(), "{all:?}");
    // Another daemon takes it over as it is; a start brings it up with what it has come to have.
    let tables = dm::tables();
    guest.kill9();
    guest.start_with(&["--grow-step", &STEP.to_string(), "--low-water", &LOW_WATER.to_string()]);
    let client = guest.client();
    assert_eq!(dm::tables(), tables);
    let grown = blocks();
    assert!(client.stop_pool("p", "name").done().0);
    client.start_pool("p", "name").done();
    assert_eq!(blocks(), grown, "a start takes nothing");
    guest.stop();
}

/// What a writer has done.
struct Written {
    mib: u64,
    /// The longest times that a MiB took.
    slowest: Vec<Duration>,
}

/// Writes MiB after MiB past the page cache, until it is told to stop; each has to succeed.
fn write(path: &Path, stop: &AtomicBool) -> Written {
    let mut file = OpenOptions::new().create(true).write(true).custom_flags(libc::O_DIRECT).open(path).expect("a file");
    let length = usize::try_from(MIB).expect("a MiB fits");
    let mut buffer = vec![0; length + 4_096];
    let start = buffer.as_ptr().align_offset(4_096);
    let (mut mib, mut times) = (0, Vec::new());
    while mib < LONGEST && !stop.load(Ordering::Relaxed) {
        let piece = &mut buffer[start..start + length];
        piece.fill(pattern(mib));
        let began = Instant::now();
        file.write_all(piece).unwrap_or_else(|error| panic!("{} at {mib} MiB: {error}", path.display()));
        times.push(began.elapsed());
        mib += 1;
    }
    file.sync_all().expect("what is written reaches the disk");
    times.sort_unstable();
    Written { mib, slowest: times.into_iter().rev().take(3).collect() }
}

pub(crate) fn pattern(mib: u64) -> u8 {
    u8::try_from(mib % 251).expect("a remainder")
}

pub(crate) fn check(path: &Path, mib: u64) {
    let mut file = File::open(path).expect("it was written");
    let mut piece = vec![0; usize::try_from(MIB).expect("a MiB fits")];
    for at in 0..mib {
        file.read_exact(&mut piece).unwrap_or_else(|error| panic!("{} at {at} MiB: {error}", path.display()));
        assert!(piece.iter().all(|byte| *byte == pattern(at)), "{} at {at} MiB", path.display());
    }
}

/// Creates a filesystem and destroys it, again and again; how often.
fn churn(pool: &str, stop: &AtomicBool) -> u64 {
    let client = Client::connect(SYSTEM_BUS);
    let mut created = 0;
    while !stop.load(Ordering::Relaxed) {
        let (_, made) = client.create_filesystems(pool, &[(&format!("x{created}"), Some(SMALL), None)]).done();
        client.destroy_filesystems(pool, &[&made[0].0]).done();
        created += 1;
    }
    created
}

fn list(stop: &AtomicBool) -> u64 {
    let client = Client::connect(SYSTEM_BUS);
    let mut lists = 0;
    while !stop.load(Ordering::Relaxed) {
        assert!(client.objects().len() > WRITERS.len());
        lists += 1;
        thread::sleep(Duration::from_millis(50));
    }
    lists
}

fn kernel() -> String {
    run("dmesg", &[])
}

pub(crate) fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

/// Data blocks of the only thin pool.
fn blocks() -> u64 {
    let (name, _) = dm::tables().into_iter().find(|(name, _)| name.ends_with("thinpool-pool")).expect("the pool runs");
    blocks_of(&name)
}

/// Data blocks of a thin pool.
pub(crate) fn blocks_of(name: &str) -> u64 {
    let status = dm::status(name);
    let data = status.split_ascii_whitespace().nth(5).expect("used/total of the data");
    data.split_once('/').expect("used/total").1.parse().expect("a number")
}

/// The time at the begin of a line, in seconds.
fn time(line: &str) -> f64 {
    let text = line.strip_prefix('[').and_then(|line| line.split(']').next()).expect("the kernel tells the time");
    text.trim().parse().expect("seconds")
}

fn report(guest: &Guest, first: u64, written: &[Written]) {
    let log = kernel();
    let (mut low, mut delays) = (None, Vec::new());
    for line in log.lines() {
        if line.contains(LOW) {
            low = low.or(Some(time(line)));
        } else if line.contains(GROWS)
            && let Some(event) = low.take()
        {
            delays.push((time(line) - event) * 1_000.0);
        }
    }
    let mib: u64 = written.iter().map(|written| written.mib).sum();
    // The kernel forgets its first lines.
    let (grown, steps) = (blocks() - first, count(&guest.log(), GROWN));
    println!(
        "extend: {mib} MiB written, {grown} blocks in {steps} growths, of which the kernel remembers {}",
        delays.len()
    );
    println!("extend: ms from the kernel's event to its growth: {}", figures(delays));
    println!("extend: ms in which the thin pool stood still: {}", figures(told(&guest.log(), "stood_ms=")));
    println!(
        "extend: ms for the next step on record and below: {}",
        figures(told_by(&guest.log(), "the next step", "ms="))
    );
    println!(
        "extend: slowest writes of a MiB: {:?}",
        written.iter().map(|written| &written.slowest).collect::<Vec<_>>()
    );
    let fulls = (count(&log, FULL), count(&guest.log(), TOLD_FULL));
    assert_eq!(fulls, (0, 0), "the thin pool was out of data space");
    assert!(steps >= GROWTHS, "{steps} growths");
}

pub(crate) fn told(log: &str, key: &str) -> Vec<f64> {
    told_by(log, key, key)
}

fn told_by(log: &str, words: &str, key: &str) -> Vec<f64> {
    let lines = log.lines().filter(|line| line.contains(words));
    let value = |line: &str| line.rsplit_once(key)?.1.split([' ', ')']).next()?.parse().ok();
    lines.filter_map(value).collect()
}

/// How they are spread.
pub(crate) fn figures(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    let Some(last) = all.last() else { return "none".to_owned() };
    let at = |part: usize| all[(all.len() * part / 100).min(all.len() - 1)];
    format!("p50 {:.1}, p99 {:.1}, most {last:.1} of {}", at(50), at(99), all.len())
}
