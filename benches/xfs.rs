//! A new filesystem of 1 TiB, by the daemon and by `mkfs.xfs`, in one run: on a sparse file, on tmpfs, and in a
//! throw-away virtual machine (see `tests/vm`) on dm-thin, in a pool that zeroes new blocks and in one that does not;
//! there also a snapshot of it, and a new UUID for that by `xfs_db`.
//!
//! What the daemon takes is the time from call to reply: it makes the volume, formats it, records it durably and waits
//! for udev; `mkfs.xfs` only formats, and what it formats in the machine is the very volume that the daemon made. So
//! the shares that the daemon books are shown as well. Then many filesystems at once and one after the other, and what
//! readers of the pool's properties notice of that; asking the bus itself shows what is due to a busy CPU. At last,
//! whether the number of allocation groups matters to who makes many files at a time.
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
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use dbus::Message;
use guest::files::{self, text};
use guest::{Guest, dm, run, udev, used};
use host::{SPEC, Spec};
use support::client::Client;
use support::rig::{Kind, Rig};
use support::{GIB, interface};

/// Rounds, unless `POINTS` says otherwise.
const ROUNDS: usize = 7;
/// Rounds of many filesystems.
const ROUNDS_OF_MANY: usize = 3;
/// Filesystems at once.
const MANY: usize = 20;
/// Reads of an idle daemon.
const IDLE_READS: usize = 1000;
/// Who makes files at a time, and how many each.
const WRITERS: usize = 8;
const FILES: usize = 500;

/// Samples by what was measured, in order.
#[derive(Default)]
struct Samples(Vec<(String, Vec<f64>)>);

impl Samples {
    fn note(&mut self, what: &str, value: f64) {
        match self.0.iter_mut().find(|(other, _)| other == what) {
            Some((_, values)) => values.push(value),
            None => self.0.push((what.to_owned(), vec![value])),
        }
    }

    fn print(&self, title: &str) {
        println!("\n{title}: median (min, max)");
        for (what, values) in &self.0 {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
            println!("  {what:<52} {:>10.1} ({least:.1}, {most:.1})", sorted[sorted.len() / 2]);
        }
    }
}

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(in_machine);
    }
    for (what, folder) in [("a sparse file", env!("CARGO_TARGET_TMPDIR")), ("tmpfs", "/dev/shm")] {
        on_files(Path::new(folder)).print(&format!("1 TiB on {what}, {} rounds", rounds()));
    }
    host::print("bench::xfs", &Spec { disks: &["4G", "4G"], limit_s: 1200, ..SPEC });
}

fn rounds() -> usize {
    env::var("POINTS").map_or(ROUNDS, |text| text.parse().expect("POINTS is a number"))
}

/// What a job gives, and the milliseconds that it took.
fn timed<T>(job: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let value = job();
    (value, began.elapsed().as_secs_f64() * 1e3)
}

/// Context switches so far of the cores that have a shard.
fn switches(process: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the daemon runs").flatten();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let of_shards = statuses.filter(|status| status.lines().next().is_some_and(|name| name.contains("shard")));
    let count = |status: String| -> f64 {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches:"));
        lines.filter_map(|line| line.split_whitespace().last()?.parse::<f64>().ok()).sum()
    };
    of_shards.map(count).sum()
}

fn create(client: &Client, pool: &str, name: &str) -> String {
    let (_, mut made) = client.create_filesystems(pool, &[(name, None, None)]).done();
    made.remove(0).0
}

fn on_files(parent: &Path) -> Samples {
    let mut samples = Samples::default();
    let rig = Rig::beside(Kind::Files, parent);
    let daemon = rig.start();
    let client = rig.client();
    let (_, (pool, _)) = client.create_pool("p", &[rig.disk("disk", 4 * GIB)]).done();
    let kib = |path: &Path| {
        #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let blocks = fs::metadata(path).expect("it was made").blocks() as f64;
        blocks / 2.0
    };
    for round in 0..rounds() {
        let before = switches(daemon.id());
        let (filesystem, took) = timed(|| create(&client, &pool, &format!("f{round}")));
        samples.note("daemon, call to reply, ms", took);
        samples.note("daemon, context switches of its cores", switches(daemon.id()) - before);
        let node = client.get(&filesystem, &interface("filesystem", 9), "Devnode").expect("it has one");
        samples.note("daemon, KiB of the file", kib(Path::new(node.text())));
        client.destroy_filesystems(&pool, &[filesystem]).done();

        let file = rig.disks_folder().join("mkfs");
        support::disk::make(&file, 1 << 40);
        let (_, took) = timed(|| run("mkfs.xfs", &["-q", "-f", text(&file)]));
        samples.note("mkfs.xfs, ms", took);
        samples.note("mkfs.xfs, KiB of the file", kib(&file));
        fs::remove_file(file).expect("it is ours");
    }
    samples
}

fn in_machine(guest: &mut Guest) {
    let disks = guest.disks();
    used::fill(&disks[0], 0);
    used::fill(&disks[1], 1);
    guest.start();
    for (name, disk) in ["zeroing", "skipping"].iter().zip(&disks) {
        guest.client().create_pool(name, std::slice::from_ref(disk)).done();
    }
    guest.client().stop_pool("skipping", "name").done();
    guest.stop();
    used::skip_zeroing(&disks[1]);
    guest.start();
    let client = guest.client();
    client.start_pool("skipping", "name").done();
    let mut pools: Vec<(String, String)> =
        client.family("pool").into_iter().map(|(path, all)| (all["Name"].text().to_owned(), path)).collect();
    pools.sort();
    pools.reverse();
    for (name, pool) in &pools {
        let mut samples = Samples::default();
        (0..rounds()).for_each(|round| one(guest, &client, pool, &format!("f{round}"), &mut samples));
        samples.print(&format!("1 TiB on dm-thin, pool {name}, {} rounds", rounds()));
    }
    let zeroing = &pools[0].1;
    many(guest, &client, zeroing);
    groups(&client, zeroing);
    guest.stop();
}

/// One filesystem by the daemon, and by mkfs.xfs on the same volume.
fn one(guest: &Guest, client: &Client, pool: &str, name: &str, samples: &mut Samples) {
    udev::settle();
    let process = guest.daemon_id().expect("it runs");
    let (before, said) = (switches(process), guest.log().len());
    let (filesystem, took) = timed(|| create(client, pool, name));
    samples.note("daemon, call to reply, ms", took);
    for (kind, value) in booked(&guest.log()[said..]) {
        samples.note(&format!("daemon, {kind}, ms"), value);
    }
    samples.note("daemon, context switches of its cores", switches(process) - before);
    let node = files::node(client, &filesystem);
    samples.note("daemon, MiB of the pool", mapped_mib(&node));
    let folder = files::mount(&node, name);
    files::unmount(&folder);
    samples.note("daemon, MiB of the pool after the first mount", mapped_mib(&node));
    snapshot(guest, client, pool, &filesystem, samples);
    let (_, took) = timed(|| run("mkfs.xfs", &["-q", "-f", text(&node)]));
    samples.note("mkfs.xfs, ms", took);
    samples.note("mkfs.xfs, MiB of the pool", mapped_mib(&node));
    udev::settle();
    client.destroy_filesystems(pool, &[filesystem]).done();
}

/// A snapshot by the daemon, with a UUID of its own, and another UUID for it by xfs_db.
fn snapshot(guest: &Guest, client: &Client, pool: &str, origin: &str, samples: &mut Samples) {
    udev::settle();
    let (used, said) = (used_mib(client, pool), guest.log().len());
    let ((_, snapshot), took) = timed(|| client.snapshot(pool, origin, "snapshot").done());
    samples.note("snapshot, call to reply, ms", took);
    for (kind, value) in booked(&guest.log()[said..]) {
        samples.note(&format!("snapshot, {kind}, ms"), value);
    }
    samples.note("snapshot, MiB of the pool", used_mib(client, pool) - used);
    let node = files::node(client, &snapshot);
    udev::settle();
    let (_, took) = timed(|| run("xfs_db", &["-x", "-c", "uuid generate", text(&node)]));
    samples.note("xfs_db, ms", took);
    samples.note("snapshot and xfs_db, MiB of the pool", used_mib(client, pool) - used);
    udev::settle();
    client.destroy_filesystems(pool, &[snapshot]).done();
    udev::settle();
}

/// What of a pool is in use.
fn used_mib(client: &Client, pool: &str) -> f64 {
    let status = dm::status(&dm::private_of(client, pool, "thinpool-pool"));
    let used = status.split_whitespace().nth(5).and_then(|pair| pair.split('/').next()?.parse().ok());
    used.unwrap_or_else(|| panic!("a thin pool says what it has used: {status}"))
}

/// What the daemon has booked for the requests that it logged here, by kind, all together.
fn booked(log: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    let lines = log.lines().filter_map(|line| line.split_once("request done (").map(|(_, figures)| figures));
    for figure in lines.flat_map(|figures| figures.trim_end_matches(')').split_whitespace()) {
        let (kind, value) = figure.split_once('=').expect("a figure has a name");
        // The number of the call is none of them, and the whole is measured by the caller.
        if !["call", "ms"].contains(&kind) {
            *sums.entry(kind.to_owned()).or_insert(0.0) += value.parse::<f64>().expect("a figure is a number");
        }
    }
    sums
}

fn mapped_mib(node: &Path) -> f64 {
    let status = dm::status(text(node));
    let sectors = status.split_whitespace().nth(3).and_then(|sectors| sectors.parse::<f64>().ok());
    sectors.unwrap_or_else(|| panic!("a thin volume says what is mapped: {status}")) / 2048.0
}

/// Many filesystems one after the other and at once, with somebody who reads.
fn many(guest: &Guest, client: &Client, pool: &str) {
    let mut samples = Samples::default();
    let enough = AtomicBool::new(false);
    note_reads(&mut samples, "idle", &read(guest, pool, |reads| reads >= IDLE_READS));
    for _round in 0..ROUNDS_OF_MANY {
        for (what, at_once) in [("in turn", 1), ("at once", MANY)] {
            udev::settle();
            let said = guest.log().len();
            enough.store(false, Ordering::Relaxed);
            let (took, reads) = thread::scope(|scope| {
                let reader = scope.spawn(|| read(guest, pool, |_| enough.load(Ordering::Relaxed)));
                let (_, took) = timed(|| {
                    thread::scope(|scope| {
                        for first in 0..at_once {
                            scope.spawn(move || {
                                let client = guest.client();
                                (first..MANY).step_by(at_once).for_each(|number| {
                                    create(&client, pool, &format!("m{number}"));
                                });
                            });
                        }
                    });
                });
                enough.store(true, Ordering::Relaxed);
                (took, reader.join().expect("the reader does not panic"))
            });
            samples.note(&format!("{MANY} filesystems {what}, ms"), took);
            note_reads(&mut samples, &format!("{MANY} {what}"), &reads);
            for (kind, value) in booked(&guest.log()[said..]) {
                samples.note(&format!("{MANY} {what}, {kind} of all requests together, ms"), value);
            }
            // It opens what is new for moments.
            udev::settle();
            let all: Vec<String> = client.family("filesystem").into_keys().collect();
            client.destroy_filesystems(pool, &all).done();
        }
    }
    samples.print(&format!("{MANY} filesystems of 1 TiB in one pool, {ROUNDS_OF_MANY} rounds"));
}

/// Reads a property, and asks the bus, in turns: microseconds of both.
fn read(guest: &Guest, pool: &str, enough: impl Fn(usize) -> bool) -> [Vec<f64>; 2] {
    let client = guest.client();
    let mut times = [Vec::new(), Vec::new()];
    while !enough(times[0].len()) {
        let (_, took) = timed(|| client.get(pool, &interface("pool", 9), "Name").expect("it can be read"));
        times[0].push(took * 1e3);
        let name = "org.freedesktop.DBus";
        let ask = || Message::new_method_call(name, "/org/freedesktop/DBus", name, "GetId").expect("a valid call");
        let (_, took) = timed(|| client.exchange(ask()).expect("the bus answers"));
        times[1].push(took * 1e3);
    }
    times
}

fn note_reads(samples: &mut Samples, when: &str, reads: &[Vec<f64>; 2]) {
    for (what, times) in ["property of the pool", "question to the bus"].iter().zip(reads) {
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        for hundredth in [50, 99] {
            let at = (sorted.len() * hundredth / 100).min(sorted.len() - 1);
            samples.note(&format!("{when}: {what}, p{hundredth}, µs"), sorted[at]);
        }
    }
}

/// Files made by many at a time, each in a folder of its own.
fn groups(client: &Client, pool: &str) {
    let mut samples = Samples::default();
    let filesystem = create(client, pool, "groups");
    let node = files::node(client, &filesystem);
    udev::settle();
    for _round in 0..rounds() {
        for count in ["4", "32"] {
            run("mkfs.xfs", &["-q", "-f", "-d", &format!("agcount={count},su=1m,sw=1"), text(&node)]);
            let folder = files::mount(&node, "groups");
            let (_, took) = timed(|| make_files(&folder));
            samples.note(&format!("{count} groups, ms"), took);
            files::unmount(&folder);
        }
    }
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    samples.print(&format!("{WRITERS} make {FILES} files of 4 KiB each, {cpus} CPUs, {} rounds", rounds()));
}

fn make_files(folder: &Path) {
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let own: PathBuf = folder.join(writer.to_string());
            scope.spawn(move || {
                fs::create_dir(&own).expect("there is room");
                (0..FILES).for_each(|file| fs::write(own.join(file.to_string()), [7; 4096]).expect("there is room"));
            });
        }
    });
    nix::unistd::syncfs(File::open(folder).expect("it is mounted")).expect("it reaches the disk");
}
