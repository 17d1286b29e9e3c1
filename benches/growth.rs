//! For how long a thin pool stands still while it grows, by the number of its active filesystems.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`). The kernel suspends each active volume of a thin pool
//! while the pool gets a longer table, so this is what a growth costs whoever writes. `POINTS` is the number of
//! filesystems in the end. udev stands still. Deliberately absent: a failure because of a figure.

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::{env, thread, time};

use guest::udev::Frozen;
use guest::{Guest, files};
use host::{SPEC, Spec};
use support::{MIB, interface};

/// Filesystems, unless `POINTS` says otherwise.
const FILESYSTEMS: usize = 1_000;
/// Growths for each number of filesystems.
const GROWTHS: usize = 20;
/// As small as they can be: what they hold is not looked at.
const SMALL: &str = "536870912";
/// The one that is written.
const LARGE: &str = "21474836480";
const STEP_MIB: &str = "16";
const LOW_WATER_MIB: &str = "64";
const GROWN: &str = "thin pool changed";

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    host::print("bench::growth", &Spec { disks: &["64G"], limit_s: 900, memory_mib: 2_560, ..SPEC });
}

fn measure(guest: &mut Guest) {
    guest.start_with(&["--grow-step", STEP_MIB, "--low-water", LOW_WATER_MIB]);
    let client = guest.client();
    let most = env::var("POINTS").map_or(FILESYSTEMS, |text| text.parse().expect("POINTS is a number"));
    let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
    client.set(&pool, &interface("pool", 9), "FsLimit", most.max(100) as u64).expect("there is room");
    let (_, made) = client.create_filesystems(&pool, &[("written", Some(LARGE), None)]).done();
    let volume = files::node(&client, &made[0].0);
    let _frozen = Frozen::now();
    let (mut count, mut at) = (1, 0);
    for wanted in [1, most / 10, most] {
        while count < wanted {
            client.create_filesystems(&pool, &[(&format!("f{count}"), Some(SMALL), None)]).done();
            count += 1;
        }
        let before = grown(guest).len();
        while grown(guest).len() < before + GROWTHS {
            write(&volume, at);
            at += MIB;
            // What it is about is one growth at a time.
            thread::sleep(time::Duration::from_millis(10));
        }
        let mut stood = grown(guest).split_off(before);
        stood.sort_by(f64::total_cmp);
        let at = |part: usize| stood[stood.len() * part / 100];
        println!(
            "{count} filesystems: the pool stands still for {:.1} ms, half of {}; {:.1} ms p90",
            at(50),
            stood.len(),
            at(90)
        );
    }
    guest.stop();
}

/// How long the thin pool stood still in each growth that the log tells of, in milliseconds.
fn grown(guest: &Guest) -> Vec<f64> {
    let log = guest.log();
    let stood = |line: &str| line.rsplit_once("stood_ms=")?.1.split([' ', ')']).next()?.parse().ok();
    log.lines().filter(|line| line.contains(GROWN)).filter_map(stood).collect()
}

/// Writes a MiB.
fn write(volume: &Path, at: u64) {
    let mut volume = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(volume).expect("a volume");
    volume.seek(SeekFrom::Start(at)).expect("it is that long");
    volume.write_all(&vec![7; usize::try_from(MIB).expect("a MiB fits")]).expect("there is room");
}
