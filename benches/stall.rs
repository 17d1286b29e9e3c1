//! What a growth of a pool costs whoever writes, ours beside stratisd 3.9.2: under the same load, in turns, in one
//! machine.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`). A writer fills a pool as fast as memory goes until the
//! daemon has given it 50 GiB more, and another one writes beside it. A write that begins or ends within seconds of the
//! growth counts as one that met it, since neither daemon is done with one system call. Deliberately absent: clients
//! (filesystems that are made meanwhile need a disk that remembers), a failure because of a figure, and anything where
//! the peer is not at hand (`make test-peer` builds it).

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest::peer::Peer;
use guest::writer::write_each;
use guest::{Guest, dm, files, run, udev};
use host::{SPEC, Spec};
use support::client::Client;

/// How often each daemon has its turn.
const TURNS: usize = 3;
/// The volume that is filled, and the one that is written beside it, in bytes.
const LARGE: &str = "107374182400";
/// Memory for what a disk keeps: metadata, the metadata volume, and the first data, which are those of `mkfs.xfs`.
const KEPT_KIB: u64 = 2 << 20;
/// Sectors of the first data.
const FIRST: u64 = 2 << 20;
/// How long after the growth the writers go on, and how far from it a write counts as one that met it.
const AFTER: Duration = Duration::from_secs(2);
/// How often the second writer writes a MiB.
const PAUSE: Duration = Duration::from_millis(2);

fn main() {
    if std::env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    let spec = Spec { disks: &["128G"], limit_s: 3_000, memory_mib: 4_096, ..SPEC };
    match host::peer() {
        Ok(()) => host::print("bench::stall", &spec),
        Err(missing) => println!("SKIPPED beside stratisd 3.9.2: {missing}"),
    }
}

/// Milliseconds of the slowest write of each turn.
#[derive(Default)]
struct Figures {
    met: Vec<f64>,
    others: Vec<f64>,
}

fn measure(guest: &mut Guest) {
    run("modprobe", &["dm-zero"]);
    run("modprobe", &["brd", "rd_nr=1", &format!("rd_size={KEPT_KIB}")]);
    let (mut ours, mut peers) = (Figures::default(), Figures::default());
    for _ in 0..TURNS {
        guest.start();
        take_turn(guest, &mut ours);
        guest.stop();
        let peer = Peer::start();
        take_turn(guest, &mut peers);
        peer.stop();
    }
    println!("\nms for a MiB of the second writer, the slowest of each turn: that met the growth; that did not");
    for (whose, Figures { met, others }) in [("ours", ours), ("3.9.2", peers)] {
        println!("{whose}: {met:.1?}; {others:.1?}");
    }
}

/// One turn of the daemon that runs.
fn take_turn(guest: &Guest, figures: &mut Figures) {
    let client = guest.client();
    client.patience.set(Duration::from_secs(300));
    let disk = forgetful(guest, &client);
    let (_, (pool, _)) = client.create_pool("p", &[disk]).done();
    let volume = |name| {
        let (_, made) = client.create_filesystems(&pool, &[(name, Some(LARGE), None)]).done();
        files::node(&client, &made[0].0)
    };
    let [first, second] = ["first", "second"].map(volume);
    udev::settle();
    let thin_pool = dm::private_of(&client, &pool, "thinpool-pool");
    // Blocks of data in use, and of data.
    let total = || {
        dm::status(&thin_pool).split_ascii_whitespace().nth(5).expect("used/total").split('/').nth(1).map(str::to_owned)
    };
    let before = total();
    let stop = AtomicBool::new(false);
    let (written, grown) = thread::scope(|scope| {
        let filler = scope.spawn(|| write(&first, Duration::ZERO, &stop));
        let writer = scope.spawn(|| write(&second, PAUSE, &stop));
        while total() == before {
            assert!(!filler.is_finished() && !writer.is_finished(), "it grows before all is written");
            thread::sleep(Duration::from_millis(100));
        }
        let grown = Instant::now();
        thread::sleep(AFTER);
        stop.store(true, Ordering::Relaxed);
        filler.join().expect("each write succeeds");
        (writer.join().expect("each write succeeds"), grown)
    });
    let window = grown - AFTER..grown + AFTER;
    let meets = |write: &&Written| write.ended > window.start && write.ended - write.took < window.end;
    let (met, others): (Vec<&Written>, Vec<&Written>) = written.iter().partition(meets);
    let slowest = |part: &[&Written]| part.iter().map(|write| write.took).max().unwrap_or_default().as_secs_f64() * 1e3;
    figures.met.push(slowest(&met));
    figures.others.push(slowest(&others));
    println!("turn: {:.1} {:.1}", slowest(&met), slowest(&others));
    udev::settle();
    let made: Vec<String> = client.family("filesystem").into_keys().collect();
    client.destroy_filesystems(&pool, &made).done();
    client.destroy_pool(&pool).done();
    udev::settle();
    run("dmsetup", &["remove", "--retry", "forgetful"]);
}

/// A disk that keeps what this daemon writes to its metadata and forgets all data: it is as fast as memory, and takes
/// none. Where metadata are is seen by a pool on a disk of the same size.
fn forgetful(guest: &Guest, client: &Client) -> String {
    let disks = guest.disks();
    let sectors: u64 = run("blockdev", &["--getsz", &disks[0]]).trim().parse().expect("a number");
    let (_, (pool, _)) = client.create_pool("p", &disks).done();
    let first = dm::on_disk(client, &pool, "flex-thindata").0 + FIRST;
    let (volume, length) = dm::on_disk(client, &pool, "flex-mdv");
    let kept = volume..volume + length;
    udev::settle();
    client.destroy_pool(&pool).done();
    udev::settle();
    assert!(first < kept.start, "the metadata volume follows the data: {first} {kept:?}");
    let table = format!(
        "0 {first} linear /dev/ram0 0\\n{first} {} zero\\n{} {} linear /dev/ram0 {first}\\n{} {} zero\\n",
        kept.start - first,
        kept.start,
        kept.end - kept.start,
        kept.end,
        sectors - kept.end
    );
    run("sh", &["-c", &format!("printf '{table}' | dmsetup create forgetful")]);
    udev::settle();
    "/dev/mapper/forgetful".to_owned()
}

/// A write that has ended.
struct Written {
    ended: Instant,
    took: Duration,
}

/// Writes to a volume until it is told to stop.
fn write(path: &Path, pause: Duration, stop: &AtomicBool) -> Vec<Written> {
    let mut written = Vec::new();
    write_each(path, |_at, took| {
        written.push(Written { ended: Instant::now(), took });
        thread::sleep(pause);
        !stop.load(Ordering::Relaxed)
    });
    written
}
