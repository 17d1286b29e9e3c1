//! A thousand filesystems in one pool: what they take of it, and how long they take to stop, to start, and to be
//! taken over.
//!
//! Deliberately absent from `make test`: udev looks at each volume, again and again, so this takes minutes.
//! `make test-long` runs it.

use std::time::{Duration, Instant};

use crate::guest::{self, Guest, dm, files, state, udev};
use crate::host::{self, SPEC, Spec};
use crate::kill::number;
use crate::limit;
use crate::support::interface;

/// Filesystems, unless `POINTS` says otherwise.
const COUNT: u64 = 1_000;
/// What udev may take for all of them, and a client waits for a reply: a second or two for each.
const UDEV_S: u32 = 1_800;
/// A quarter of the pool: a filesystem may take 16 MiB with everything that the pool keeps for itself.
const USED_MIB_MAX: u64 = 16 << 10;

#[test]
#[ignore = "`make test-long` runs it: udev needs minutes"]
fn vm() {
    // The disk is a sparse file: the host gives what is written.
    host::run(module_path!(), &Spec { disks: &["64G"], limit_s: 5_400, memory_mib: 2_560, ..SPEC });
}

#[test]
#[ignore = "the half of a scenario that runs in the virtual machine"]
fn guest() {
    guest::play(play);
}

fn play(guest: &mut Guest) {
    let started = Instant::now();
    let count = number("POINTS").unwrap_or(COUNT);
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
    client.set(&pool, &interface("pool", 9), "FsLimit", COUNT).expect("there is room");
    limit::create(&pool, 0..count, None);
    println!("thousand: {count} filesystems of 1 TiB after {:.0?}", started.elapsed());
    udev::settle_within(UDEV_S);
    println!("thousand: udev had dealt with them after {:.0?}", started.elapsed());
    let filesystems = client.family("filesystem");
    assert_eq!(filesystems.len() as u64, count);
    let used = used_mib();
    println!("thousand: {used} MiB of the pool are used");
    assert!(used <= USED_MIB_MAX, "{used} MiB are used");

    let path = filesystems.keys().next_back().expect("there are some");
    let device = files::node(&client, path);
    let folder = files::mount(&device, "last");
    files::Contents::write(folder.join("file"), 1 << 20, 1).check(&folder);
    files::unmount(&folder);
    files::check_xfs(&device);
    come_and_go(guest, count);
    state::expect_no_io_error();
    guest.stop();
}

/// Takes them over, stops and starts them, and takes them over again.
fn come_and_go(guest: &mut Guest, count: u64) {
    take_over(guest, count);
    udev::settle_within(UDEV_S);
    let client = guest.client();
    client.patience.set(Duration::from_secs(UDEV_S.into()));
    let began = Instant::now();
    assert!(client.stop_pool("p", "name").done().0);
    println!("thousand: stopped after {:.1?}", began.elapsed());
    assert_eq!(dm::names(), Vec::<String>::new());
    udev::settle_within(UDEV_S);
    let began = Instant::now();
    assert!(client.start_pool("p", "name").done().0);
    println!("thousand: started after {:.1?}", began.elapsed());
    let booked = guest.log().lines().rfind(|line| line.contains("request done")).unwrap_or_default().to_owned();
    println!("thousand: {booked}");
    assert_eq!(client.family("filesystem").len() as u64, count);
    udev::settle_within(UDEV_S);
    println!("thousand: udev had dealt with them after {:.1?}", began.elapsed());
    take_over(guest, count);
    guest.expect_quiet();
}

/// The daemon is killed, and the next one takes over what is there without touching it.
fn take_over(guest: &mut Guest, count: u64) {
    let tables = dm::tables();
    let takeover = guest.take_over();
    println!("thousand: {takeover:?}");
    assert_eq!(takeover.events, Vec::<String>::new(), "no device was touched");
    assert_eq!(dm::tables(), tables);
    assert_eq!(guest.client().family("filesystem").len() as u64, count);
}

/// What filesystems take of the thin data, and all that the pool took for itself.
fn used_mib() -> u64 {
    let tables = dm::tables();
    let named = |end: &str| tables.keys().find(|name| name.ends_with(end)).expect("the pool is active").clone();
    let status = dm::status(&named("thinpool-pool"));
    let (data, _) = status.split_ascii_whitespace().nth(5).and_then(|word| word.split_once('/')).expect("used/total");
    let length = |line: &str| line.split(' ').nth(1).expect("a length").parse::<u64>().expect("a number");
    let sectors = |end: &str| tables[&named(end)].lines().map(length).sum::<u64>();
    // The thin data apart, all of the cap device; the spare has no device of its own.
    let own = sectors("physical-cache") - sectors("flex-thindata");
    data.parse::<u64>().expect("blocks of a MiB") + own / 2_048
}
