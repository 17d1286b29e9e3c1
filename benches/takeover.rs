//! How long a daemon that follows one that was killed takes until it has its name, with many filesystems.
//!
//! It runs in a throw-away virtual machine (see `tests/vm`). `POINTS` is the number of filesystems. udev takes most of
//! a second for each in there, so it stands still; the links that it would have made are made here. Deliberately
//! absent: a failure because of a figure.

#![allow(dead_code, reason = "the machine is that of the tests, and can more than is needed here")]

#[path = "../tests/vm/guest/mod.rs"]
mod guest;
#[path = "../tests/vm/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::time::Instant;
use std::{env, fs};

use guest::takeover::Takeover;
use guest::udev::Frozen;
use guest::{Guest, dm};
use host::{SPEC, Spec};
use support::client::Client;
use support::interface;

/// Filesystems, unless `POINTS` says otherwise.
const FILESYSTEMS: usize = 1_000;
/// How often a killed daemon is followed by another one.
const TAKEOVERS: usize = 12;
/// As small as they can be: what they hold is not looked at.
const SIZE: &str = "536870912";

fn main() {
    if env::args().any(|argument| argument == "--ignored") {
        return guest::play(measure);
    }
    host::print("bench::takeover", &Spec { disks: &["64G"], limit_s: 900, memory_mib: 2_560, ..SPEC });
}

fn measure(guest: &mut Guest) {
    guest.start();
    let client = guest.client();
    let count = env::var("POINTS").map_or(FILESYSTEMS, |text| text.parse().expect("POINTS is a number"));
    let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
    client.set(&pool, &interface("pool", 9), "FsLimit", count.max(100) as u64).expect("there is room");
    let _frozen = Frozen::now();
    let began = Instant::now();
    for number in 0..count {
        client.create_filesystems(&pool, &[(&format!("f{number}"), Some(SIZE), None)]).done();
    }
    println!("\n{count} filesystems, made in {:.0?}", began.elapsed());
    link(&client, count);
    // A daemon that dies meanwhile leaves a semaphore for each wait, which takes time of the next one's.
    guest.until("nobody waits for udevd any more", |_| notes() == 0);
    // There while udevd has something to do; then links are not to be trusted.
    fs::remove_file("/run/udev/queue").expect("it has much to do");
    let tables = dm::tables();
    let mut all = Vec::new();
    for _ in 0..TAKEOVERS {
        let Takeover { named, listed, again, settled, events } = guest.follow();
        all.push([named, listed, again, named + listed, settled].map(|took| took.as_secs_f64() * 1000.0));
        assert_eq!((events, dm::tables()), (Vec::new(), tables.clone()), "no device is touched");
    }
    for (part, what) in
        ["the name", "a list after that", "the next list after that", "name and list", "all pools"].iter().enumerate()
    {
        let mut of_part: Vec<f64> = all.iter().map(|took| took[part]).collect();
        of_part.sort_by(f64::total_cmp);
        let [best, median, worst] = [0, TAKEOVERS / 2, TAKEOVERS - 1].map(|place| of_part[place]);
        println!("ms for {what}: best {best:.0}, median {median:.0}, worst {worst:.0}");
    }
    guest.stop();
}

/// How many waits for udevd the daemon has noted.
fn notes() -> usize {
    fs::read_dir("/run/stratisd/cookies").expect("it has waited").count()
}

/// Makes the links of all filesystems.
fn link(client: &Client, count: usize) {
    fs::create_dir_all("/dev/stratis/p").expect("/dev is writable");
    let minors: BTreeMap<String, u32> = dm::devices().into_iter().map(|device| (device.name, device.minor)).collect();
    let filesystems = client.family("filesystem");
    assert_eq!(filesystems.len(), count);
    for properties in filesystems.into_values() {
        let text = |name: &str| properties[name].text().to_owned();
        let volume = format!("-thin-fs-{}", text("Uuid").replace('-', ""));
        let (_, minor) = minors.iter().find(|(name, _)| name.ends_with(&volume)).expect("its volume is active");
        symlink(format!("/dev/dm-{minor}"), format!("/dev/stratis/p/{}", text("Name"))).expect("nobody else makes it");
    }
}
