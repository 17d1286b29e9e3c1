//! A thin pool that grows in small steps, and writers at the full speed of memory that fill it; while eight clients
//! create, list and destroy filesystems in it, and a format on another pool of the same core hangs.
//!
//! The disk keeps what its first part is given, in memory, and forgets the rest, so that nothing but the thin pool
//! itself holds up a write. Writers write to volumes; there are no files. What counts is what the kernel says: that
//! the thin pool never was out of space, that no write failed, and that an event told of each growth. Figures are
//! printed, not judged: what a growth costs a write is how much longer those take that are under way while the thin
//! pool stands still. Deliberately absent: what is written; `extend` looks at that.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cores::steady;

use crate::extend::{self, FULL, GROWN, GROWS, LOW, LOW_WATER, STEP, TOLD_FULL, count, figures, told};
use crate::guest::lab::Lab;
use crate::guest::udev::Frozen;
use crate::guest::writer::write_each;
use crate::guest::{Guest, SYSTEM_BUS, dm, files, processes_called, run, state, try_run};
use crate::halves;
use crate::host::{self, SPEC, Spec};
use crate::support::MIB;
use crate::support::client::Client;

const WRITERS: u64 = 4;
const CLIENTS: u64 = 8;
/// The size of a volume that is written.
const SIZE_MIB: u64 = 20 << 10;
/// The size of a filesystem that comes and goes, in bytes.
const SMALL: &str = "536870912";
/// The first part of the disk, with all metadata; and the whole of it.
const KEPT_MIB: u64 = 1_400;
const DISK_MIB: u64 = 88 << 10;
/// Sectors of a MiB.
const SECTORS: u64 = 2_048;
/// How long a thread sleeps that only sleeps.
const NAP: Duration = Duration::from_millis(5);
/// The worst write that a growth of stratisd 3.9.2 caused.
const PEER_MS: f64 = 135.0;

const MACHINE: Spec = Spec { disks: &[], limit_s: 900, memory_mib: 3_072, ..SPEC };
const HUNDRED: Race = Race { growths: 100, hangs: Duration::from_secs(5), ..THOUSAND };
const THOUSAND: Race = Race { growths: 1_000, hangs: Duration::from_secs(30), frozen: false, workers_first: false };

/// What is run.
#[derive(Clone, Copy)]
struct Race {
    growths: usize,
    /// For how long a format hangs.
    hangs: Duration,
    /// udevd stands still.
    frozen: bool,
    /// The kernel's workers, which do a part of each growth and of each write, get the CPU before all others.
    workers_first: bool,
}

halves!(
    /// A hundred growths.
    of_a_hundred_growths,
    |module| host::run(module, &MACHINE),
    |guest| play(guest, HUNDRED); "minutes: make test-long"
);

halves!(
    /// A thousand.
    of_a_thousand_growths,
    |module| host::run(module, &MACHINE),
    |guest| play(guest, THOUSAND); "minutes: make test-long"
);

halves!(
    /// The same with a udevd that does nothing.
    of_a_thousand_growths_while_udevd_hangs,
    |module| host::run(module, &MACHINE),
    |guest| play(guest, Race { frozen: true, ..THOUSAND }); "minutes: make test-long"
);

halves!(
    /// The same as an administrator can have it on a machine that has too few CPUs.
    of_a_thousand_growths_while_kernel_workers_go_first,
    |module| host::run(module, &MACHINE),
    |guest| play(guest, Race { workers_first: true, ..THOUSAND }); "minutes: make test-long"
);

fn play(guest: &mut Guest, race: Race) {
    run("modprobe", &["brd", "rd_nr=2", &format!("rd_size={}", KEPT_MIB << 10)]);
    touch("/dev/ram0");
    let disk = Lab::forgetful("/dev/ram0", "forgetful", KEPT_MIB * SECTORS, DISK_MIB * SECTORS);
    let slow = Lab::over("/dev/ram1", "slow");
    guest.start_with(&["--grow-step", &STEP.to_string(), "--low-water", &LOW_WATER.to_string()]);
    let client = guest.client();
    let (_, (other, _)) = client.create_pool("other", &[slow.path()]).done();
    let (_, (pool, _)) = client.create_pool("p", &[disk.path()]).done();
    let sized = (SIZE_MIB * MIB).to_string();
    let volume = |number| {
        let (_, made) = client.create_filesystems(&pool, &[(&format!("w{number}"), Some(&sized), None)]).done();
        files::node(&client, &made[0].0)
    };
    let volumes: Vec<PathBuf> = (0..WRITERS).map(volume).collect();
    let first = blocks_of(&client, &pool);
    let (data, length) = dm::on_disk(&client, &other, "flex-thindata");
    slow.delay_part(data, length, 600_000);
    let frozen = race.frozen.then(Frozen::now);
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let (writes, kernel) = thread::scope(|scope| {
        let _end = End(&stop);
        let kernel = scope.spawn(|| Kernel::listen(&stop));
        let sleeper = scope.spawn(|| naps(&stop));
        if race.workers_first {
            scope.spawn(|| hasten_workers(&stop));
        }
        let writers: Vec<_> = volumes.iter().map(|path| scope.spawn(|| write(path, &stop))).collect();
        let (pool, stop, turns) = (&pool, &stop, &turns);
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || work(number, pool, stop, turns))).collect();
        let hangs = scope.spawn(|| Client::connect(SYSTEM_BUS).make_filesystem(&other, "hangs"));
        let began = Instant::now();
        let grown = || count(&guest.log(), GROWN);
        let mut mended = false;
        while grown() < race.growths || !mended {
            let ended = writers.iter().any(|writer| writer.is_finished());
            assert!(!ended || grown() >= race.growths, "a writer ended after {} growths", grown());
            if !mended && began.elapsed() > race.hangs {
                assert!(!hangs.is_finished(), "the format hangs");
                slow.mend();
                mended = true;
            }
            thread::sleep(Duration::from_millis(500));
        }
        stop.store(true, Ordering::Relaxed);
        hangs.join().expect("in the end it is made");
        let steps = (blocks_of(&client, pool) - first) / STEP;
        println!("race: {} growths of {steps} steps in {:.1?}", grown(), began.elapsed());
        clients.into_iter().for_each(|client| client.join().expect("filesystems can be created and destroyed"));
        let late = sleeper.join().expect("it only sleeps");
        println!("race: ms that a thread of the first ones' priority which only sleeps wakes late: {}", figures(late));
        let writes: Vec<_> =
            writers.into_iter().flat_map(|writer| writer.join().expect("each write succeeds")).collect();
        (writes, kernel.join().expect("it can be heard"))
    });
    drop(frozen);
    println!("race: {} filesystems created, seen and destroyed meanwhile", turns.load(Ordering::Relaxed));
    report(guest, &kernel, &writes);
    dm::expect_settled();
    state::expect_no_io_error();
    guest.expect_quiet();
    guest.stop();
}

/// Tells all to stop, also when an assertion has failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the host give the guest the memory that a disk of it takes, which is slower than any disk.
fn touch(disk: &str) {
    let mut disk = OpenOptions::new().write(true).open(disk).expect("a disk of memory");
    for _ in 0..KEPT_MIB {
        disk.write_all(&vec![0; usize::try_from(MIB).expect("a MiB fits")]).expect("it takes what it has room for");
    }
    disk.sync_all().expect("memory takes it");
}

/// When a write ended, in milliseconds since 1970, and how many it took.
struct Written {
    ended: f64,
    took: f64,
}

/// Milliseconds since 1970.
fn epoch_ms(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).expect("1970 is over").as_secs_f64() * 1_000.0
}

/// Writes to a volume until it is full or who writes is told to stop.
fn write(path: &Path, stop: &AtomicBool) -> Vec<Written> {
    let mut times = Vec::new();
    write_each(path, |at, took| {
        times.push(Written { ended: epoch_ms(SystemTime::now()), took: took.as_secs_f64() * 1_000.0 });
        at + 1 < SIZE_MIB && !stop.load(Ordering::Relaxed)
    });
    times
}

/// How late a thread wakes up that goes before all others, as those that answer events, and has nothing to do but to
/// sleep: what kernel and host take, whatever the daemon does. In milliseconds.
fn naps(stop: &AtomicBool) -> Vec<f64> {
    steady::make_first().expect("root may");
    let mut late = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        thread::sleep(NAP);
        late.push((began.elapsed() - NAP).as_secs_f64() * 1_000.0);
    }
    late
}

/// Has the kernel's workers, also those that it starts meanwhile, go before all ordinary threads.
fn hasten_workers(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let workers = processes_called(|name| name.starts_with("kworker/"));
        let workers: Vec<String> = workers.iter().map(u32::to_string).collect();
        // One may be gone before its turn.
        try_run("renice", &[&["-n", "-20"][..], &workers.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        thread::sleep(Duration::from_millis(500));
    }
}

/// Creates a filesystem, lists all objects and destroys it, again and again.
fn work(number: u64, pool: &str, stop: &AtomicBool, turns: &AtomicU64) {
    let client = Client::connect(SYSTEM_BUS);
    while !stop.load(Ordering::Relaxed) {
        let (_, made) = client.create_filesystems(pool, &[(&format!("c{number}"), Some(SMALL), None)]).done();
        assert!(client.objects().contains_key(&made[0].0), "what was answered is listed");
        // udev may be looking into it.
        while client.destroy_filesystems(pool, &[&made[0].0]).code != 0 {}
        turns.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the kernel said meanwhile.
#[derive(Default)]
struct Kernel {
    /// Milliseconds from an event to the growth that follows it.
    delays: Vec<f64>,
    fulls: u64,
}

impl Kernel {
    /// Reads its log from now on until told to stop.
    fn listen(stop: &AtomicBool) -> Self {
        // It has room for some hundred growths.
        steady::hasten().expect("root may");
        let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").expect("its log");
        let (mut heard, mut low, mut record) = (Self::default(), None, vec![0; 8_192]);
        loop {
            match log.read(&mut record) {
                Ok(length) => heard.take_in(&String::from_utf8_lossy(&record[..length]), &mut low),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stop.load(Ordering::Relaxed) {
                        return heard;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                Err(error) => panic!("a part of the kernel's log is lost: {error}"),
            }
        }
    }

    /// A record: `priority,number,microseconds,flags;text`.
    fn take_in(&mut self, record: &str, low: &mut Option<f64>) {
        let at =
            || record.split(',').nth(2).and_then(|text| text.parse::<f64>().ok()).expect("it has a time") / 1_000.0;
        if record.contains(FULL) {
            self.fulls += 1;
        } else if record.contains(LOW) {
            *low = low.or_else(|| Some(at()));
        } else if record.contains(GROWS)
            && let Some(event) = low.take()
        {
            self.delays.push(at() - event);
        }
    }
}

fn report(guest: &Guest, kernel: &Kernel, writes: &[Written]) {
    let log = guest.log();
    println!("race: ms from the kernel's event to its growth: {}", figures(kernel.delays.clone()));
    let grown: Vec<&str> = log.lines().filter(|line| line.contains(GROWN)).collect();
    let told = |key| told(&grown.join("\n"), key);
    let [heard, took, stood] = ["heard_ms=", " ms=", "stood_ms="].map(told);
    let less = |all: &[f64], part: &[f64]| all.iter().zip(part).map(|(all, part)| all - part).collect();
    println!("race: ms from the shard's hearing of it to the end of the growth: {}", figures(heard.clone()));
    println!("race: of these, until it was looked at: {}", figures(less(&heard, &took)));
    println!(
        "race: of those that came while no other growth went on: {}",
        figures(alone(&grown, &less(&heard, &took)))
    );
    println!("race: and until the table was loaded: {}", figures(less(&took, &stood)));
    println!("race: and the thin pool stood still: {}", figures(stood));
    report_writes(&grown, writes);
    println!("race: free blocks when it was looked at: {}", figures(told(" free=")));
    println!("race: marks: {}", figures(told("low_water=")));
    assert_eq!((kernel.fulls, count(&log, TOLD_FULL)), (0, 0), "the thin pool was out of data space");
    assert_eq!(count(&log, "missed="), 0, "an event told of each growth");
}

/// From when to when growths lasted that took what this key says.
fn windows(grown: &[&str], key: &str) -> Vec<(f64, f64)> {
    let window = |line: &&str| {
        let ended = epoch_ms(humantime::parse_rfc3339(line.strip_prefix('[')?.split_once(' ')?.0).ok()?);
        Some((ended - told(line, key).first()?, ended))
    };
    let windows: Vec<(f64, f64)> = grown.iter().filter_map(window).collect();
    assert_eq!(windows.len(), grown.len(), "each growth has a time");
    windows
}

/// These times of the growths of which was heard after the end of the one before.
fn alone(grown: &[&str], times: &[f64]) -> Vec<f64> {
    let windows = windows(grown, "heard_ms=");
    let begin_after = |place: usize| place == 0 || windows[place].0 > windows[place - 1].1;
    times.iter().enumerate().filter(|(place, _)| begin_after(*place)).map(|(_, time)| *time).collect()
}

/// Tells the writes that were under way while the thin pool stood still from all others. A line is logged by a thread
/// that has to wait for the CPU, so an end may be told late, never early.
fn report_writes(grown: &[&str], writes: &[Written]) {
    let windows = windows(grown, " ms=");
    let meets = |write: &Written| {
        let next = windows.partition_point(|(_, end)| *end < write.ended - write.took);
        windows.get(next).is_some_and(|(start, _)| *start < write.ended)
    };
    let (met, others): (Vec<&Written>, Vec<&Written>) = writes.iter().partition(|write| meets(write));
    let [met, others] = [met, others].map(|part| part.iter().map(|write| write.took).collect::<Vec<f64>>());
    let worst = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    let more = worst(&met) - worst(&others);
    println!("race: ms for a write of a MiB while no growth goes on: {}", figures(others));
    println!("race: ms for one that meets a growth: {}", figures(met));
    println!(
        "race: the slowest of these takes {more:.1} ms more: {:.2} of what a growth of the peer costs",
        more / PEER_MS
    );
}

/// Data blocks of the thin pool of a pool.
fn blocks_of(client: &Client, pool: &str) -> u64 {
    extend::blocks_of(&dm::private_of(client, pool, "thinpool-pool"))
}
