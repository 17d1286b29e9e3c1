//! What it costs that a thin pool zeroes its new blocks, against one with `skip_block_zeroing`: the figures
//! behind what new pools do (see README).
//!
//! Plain device-mapper, no daemon: pools with blocks of 1 MiB on a disk full of random bytes, in turns, each as fresh
//! as the other. Once the data lie on the disk as it is, which zeroes a block by itself when it is asked to, and once
//! below a layer that cannot, so that the kernel writes the zeroes out. A write of a whole block needs no zeroes; all
//! others do, the first time. `mkfs.xfs` makes 1 TiB.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`), on sparse files of the host: read it as ratios.
//! `POINTS` is the number of rounds. Deliberately absent: a failure because of a figure.

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use guest::{Guest, dm, run, udev, used};
use host::{SPEC, Spec};

/// Rounds, unless `POINTS` says otherwise.
const ROUNDS: usize = 5;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Sectors of a pool's block: 1 MiB.
const BLOCK: u64 = 2048;
/// What is written in order, by the size of a write. The smaller ones make zeroes necessary.
const IN_ORDER: [(usize, usize); 2] = [(MIB, 256 * MIB), (64 * KIB, 128 * MIB)];
/// Blocks of which 4 KiB are written, and how many there are in that volume.
const SCATTERED: usize = 256;
const SCATTERED_AMONG: u64 = 64 << 10;
const VOLUME: &str = "/dev/mapper/volume";

/// Samples by what was measured, in order, of pools that do not zero and of pools that do.
type Samples = Vec<(String, [Vec<f64>; 2])>;

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    host::print("bench::zeroing", &Spec { disks: &["64M", "2G"], limit_s: 900, ..SPEC });
}

fn measure(guest: &mut Guest) {
    let disks = guest.disks();
    let (meta, data) = (&disks[0], &disks[1]);
    let rounds = env::var("POINTS").map_or(ROUNDS, |text| text.parse().expect("POINTS is a number"));
    used::fill(data, 0);
    let sectors = run("blockdev", &["--getsz", data]).trim().to_owned();
    // What comes first warms up nothing for the other: each goes first in turn.
    let mut random = fastrand::Rng::with_seed(1);
    let layers = [("linear", "0"), ("delay", "0 0")].map(|(target, rest)| {
        run("dmsetup", &["create", "data", "--table", &format!("0 {sectors} {target} {data} {rest}")]);
        let mut samples = Samples::new();
        for round in 0..rounds {
            for turn in 0..2 {
                let zeroing = (round + turn) % 2;
                let pool = Pool::new(meta, &sectors, zeroing == 1);
                pool.measure(&mut random, |what, values| note(&mut samples, what, zeroing, values));
                pool.remove();
            }
        }
        let limit = fs::read_to_string(queue_folder().join("write_zeroes_max_bytes")).expect("every device says it");
        run("dmsetup", &["remove", "--retry", "data"]);
        (limit.trim() != "0", samples)
    });
    println!("\nfirst writes into a thin pool with blocks of 1 MiB, {rounds} rounds: median (min, max)");
    for (by_itself, samples) in &layers {
        println!("\ndata device that {} by itself:", if *by_itself { "zeroes" } else { "does not zero" });
        print_table(samples);
    }
}

/// What has been written to the data device so far, zeroes that it was asked for included.
fn zeroed_and_written_mib() -> f64 {
    let stat = queue_folder().with_file_name("stat");
    let stat = fs::read_to_string(stat).expect("every device counts");
    // After reads, merged reads, sectors read and the time of that: the same of writes, in sectors.
    let sectors = stat.split_whitespace().nth(6).and_then(|sectors| sectors.parse::<f64>().ok());
    sectors.expect("a count is a number") / 2048.0
}

/// What the kernel says of the data device's queue.
fn queue_folder() -> PathBuf {
    let node = fs::canonicalize("/dev/mapper/data").expect("udev makes a link");
    Path::new("/sys/block").join(node.file_name().expect("a node has a name")).join("queue")
}

fn note(samples: &mut Samples, what: String, zeroing: usize, values: Vec<f64>) {
    let place = samples.iter().position(|(other, _)| *other == what).unwrap_or_else(|| {
        samples.push((what, Default::default()));
        samples.len() - 1
    });
    samples[place].1[zeroing].extend(values);
}

/// A fresh thin pool.
struct Pool;

impl Pool {
    fn new(meta: &str, sectors: &str, zeroing: bool) -> Self {
        run("dd", &["if=/dev/zero", &format!("of={meta}"), "bs=4096", "count=1", "conv=fsync"]);
        let features = if zeroing { "1 no_discard_passdown" } else { "2 no_discard_passdown skip_block_zeroing" };
        let table = format!("0 {sectors} thin-pool {meta} /dev/mapper/data {BLOCK} 0 {features}");
        run("dmsetup", &["create", "pool", "--table", &table]);
        Self
    }

    /// Runs a job on a new volume of so many blocks, and deletes it.
    fn on_volume<T>(&self, blocks: u64, job: impl FnOnce() -> T) -> T {
        run("dmsetup", &["message", "pool", "0", "create_thin 1"]);
        let table = format!("0 {} thin /dev/mapper/pool 1", blocks * BLOCK);
        run("dmsetup", &["create", "volume", "--table", &table]);
        // What udev reads in it is not measured.
        udev::settle();
        let value = job();
        udev::settle();
        run("dmsetup", &["remove", "--retry", "volume"]);
        run("dmsetup", &["message", "pool", "0", "delete 1"]);
        value
    }

    /// Everything once.
    fn measure(&self, random: &mut fastrand::Rng, mut note: impl FnMut(String, Vec<f64>)) {
        self.on_volume(1 << 20, || {
            let began = Instant::now();
            run("mkfs.xfs", &["-q", "-f", VOLUME]);
            note("mkfs.xfs of 1 TiB, ms".to_owned(), vec![began.elapsed().as_secs_f64() * 1e3]);
            note("mkfs.xfs of 1 TiB, blocks of the pool".to_owned(), vec![self.used()]);
        });
        for (piece, bytes) in IN_ORDER {
            let blocks = u64::try_from(bytes / MIB).expect("it fits");
            self.on_volume(blocks, || {
                let volume = Direct::new(piece);
                for when in ["first", "again"] {
                    let before = zeroed_and_written_mib();
                    let rate = volume.in_order(bytes);
                    note(format!("{} KiB in order, {when}, MiB/s", piece / KIB), vec![rate]);
                    let written = zeroed_and_written_mib() - before;
                    note(format!("{} KiB in order, {when}, MiB on the data device", piece / KIB), vec![written]);
                }
            });
        }
        self.on_volume(SCATTERED_AMONG, || {
            let volume = Direct::new(4 * KIB);
            let mut blocks = BTreeSet::new();
            while blocks.len() < SCATTERED {
                blocks.insert(random.u64(0..SCATTERED_AMONG));
            }
            let mut blocks: Vec<u64> = blocks.into_iter().collect();
            random.shuffle(&mut blocks);
            for when in ["first", "again"] {
                let times = blocks.iter().map(|block| volume.once(block * 256 + random.u64(0..256))).collect();
                note(format!("4 KiB at random, {when}, µs"), times);
            }
        });
    }

    /// Blocks that are taken.
    fn used(&self) -> f64 {
        let status = dm::status("pool");
        let used = status.split_whitespace().nth(5).and_then(|pair| pair.split('/').next()?.parse().ok());
        used.unwrap_or_else(|| panic!("a thin pool says what it has used: {status}"))
    }

    fn remove(self) {
        run("dmsetup", &["remove", "--retry", "pool"]);
    }
}

/// The volume, past the page cache.
struct Direct {
    file: File,
    bytes: Vec<u8>,
    piece: usize,
}

impl Direct {
    fn new(piece: usize) -> Self {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(VOLUME).expect("it is there");
        Self { file, bytes: vec![0x5a; piece + 4 * KIB], piece }
    }

    /// What is written: it begins at a page.
    fn piece(&self) -> &[u8] {
        let start = self.bytes.as_ptr().align_offset(4 * KIB);
        &self.bytes[start..start + self.piece]
    }

    /// Writes from the beginning on and waits until it is on the disk: MiB in a second.
    fn in_order(&self, bytes: usize) -> f64 {
        let began = Instant::now();
        for at in (0..bytes).step_by(self.piece) {
            self.file.write_all_at(self.piece(), u64::try_from(at).expect("it fits")).expect("there is room");
        }
        self.file.sync_data().expect("it reaches the disk");
        #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
        let size = (bytes / MIB) as f64;
        size / began.elapsed().as_secs_f64()
    }

    /// Writes one piece at this multiple of its size: microseconds.
    fn once(&self, number: u64) -> f64 {
        let at = number * u64::try_from(self.piece).expect("it fits");
        let began = Instant::now();
        self.file.write_all_at(self.piece(), at).expect("there is room");
        began.elapsed().as_secs_f64() * 1e6
    }
}

fn print_table(samples: &Samples) {
    println!("{:<40} {:>26} {:>26} {:>7}", "", "skip_block_zeroing", "zeroing", "ratio");
    for (what, kinds) in samples {
        let sorted = kinds.clone().map(|mut values| {
            values.sort_by(f64::total_cmp);
            values
        });
        let at = |values: &[f64], hundredth: usize| values[(values.len() * hundredth / 100).min(values.len() - 1)];
        for (part, hundredth) in [("", 50), (", p99", 99)] {
            // Few samples have no percentiles.
            if hundredth == 50 || sorted[0].len() >= 100 {
                let cells = sorted.each_ref().map(|values| {
                    let range = format!("({:.0}, {:.0})", values[0], values[values.len() - 1]);
                    (at(values, hundredth), range)
                });
                let shown = cells.each_ref().map(|(value, range)| format!("{value:.0} {range}"));
                let ratio = cells[1].0 / cells[0].0;
                println!("{:<40} {:>26} {:>26} {ratio:>7.2}", format!("{what}{part}"), shown[0], shown[1]);
            }
        }
    }
}
