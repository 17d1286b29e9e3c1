//! More filesystems than a pool was made for: its thin metadata grows while it is in use, whatever happens to the
//! daemon meanwhile.
//!
//! `POINTS` is the number of kills, `SEED` repeats a run as far as timing allows. Deliberately absent: what a limit is
//! refused for, beyond space; the bus tests have that.

use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::Duration;

use dbus::arg::Variant;

use crate::guest::files::{self, Contents};
use crate::guest::{Guest, SYSTEM_BUS, dm, state};
use crate::host::{SPEC, Spec};
use crate::kill::{cut_short, number, seed};
use crate::load::{self, Load};
use crate::scenario;
use crate::support::client::{Client, method};
use crate::support::{MIB, PROPERTIES, interface};

/// Kills, unless `POINTS` says otherwise; and the longest time after which one comes.
const POINTS: u64 = 5;
const DELAY_MICROS_MAX: u64 = 120_000;

/// A filesystem of 512 MiB, in bytes.
const SIZE: &str = "536870912";

/// The most that a pool of 2 GiB keeps room for.
const HIGHEST: u64 = 846;

scenario!(
    /// A pool of 2 GiB gets as many filesystems as it has room for, and a mounted filesystem notices nothing.
    a_limit_is_raised_while_the_daemon_is_killed,
    Spec { disks: &["2G"], limit_s: 240, ..SPEC },
    play
);

scenario!(
    /// Filesystems beyond the hundredth are like the others.
    filesystems_beyond_the_hundredth,
    Spec { disks: &["2G"], limit_s: 400, ..SPEC },
    go_beyond
);

/// A pool in use.
pub(crate) struct Pool {
    pub(crate) path: String,
    uuid: String,
}

impl Pool {
    pub(crate) fn found(client: &Client) -> Self {
        let (path, _) = client.family("pool").into_iter().next().expect("the pool runs");
        let uuid = client.get(&path, &interface("pool", 9), "Uuid").expect("a property").text().to_owned();
        Self { path, uuid }
    }

    fn limit(&self, client: &Client) -> u64 {
        client.get(&self.path, &interface("pool", 9), "FsLimit").expect("a property").number()
    }

    pub(crate) fn private(&self, role: &str) -> String {
        dm::private(&self.uuid, role)
    }

    /// Blocks of metadata that the thin pool has, and its device.
    pub(crate) fn meta(&self) -> (u64, u64) {
        let status = dm::status(&self.private("thinpool-pool"));
        let words: Vec<&str> = status.split_ascii_whitespace().collect();
        let (_, total) = words[4].split_once('/').expect("used/total of the metadata");
        let table = dm::tables()[&self.private("flex-thinmeta")].clone();
        let length = |line: &str| line.split(' ').nth(1).expect("a length").parse::<u64>().expect("a number");
        (total.parse().expect("a number"), table.lines().map(length).sum::<u64>() / 8)
    }
}

fn play(guest: &mut Guest) {
    let (points, seed) = (number("POINTS").unwrap_or(POINTS), seed());
    println!("limit: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    guest.start();
    let client = guest.client();
    let (_, (path, _)) = client.create_pool("p", &guest.disks()).done();
    let filesystem = client.make_filesystem(&path, load::NAME);
    let device = files::node(&client, &filesystem);
    let folder = files::mount(&device, load::NAME);
    let journal = Path::new("/out/load.journal");
    let load = Load::start(folder.clone(), journal.to_owned());
    let pool = Pool::found(&client);
    let thin_pool = dm::tables()[&pool.private("thinpool-pool")].clone();
    assert_eq!((pool.limit(&client), pool.meta()), (100, (1_024, 1_024)));

    for point in 1..=points {
        let wanted = 100 + (HIGHEST - 100) * point / (points + 1);
        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        killed(guest, wanted, delay);
        assert!(!load.has_failed(), "the mounted filesystem; {delay:?} after {wanted} was asked for");
    }
    let client = guest.client();
    let pool = Pool::found(&client);
    let full = client.set(&pool.path, &interface("pool", 9), "FsLimit", HIGHEST + 1).expect_err("there is no room");
    assert!(full.text.ends_with(&format!("is {HIGHEST}")), "{full}");
    client.set(&pool.path, &interface("pool", 9), "FsLimit", HIGHEST).expect("there is room");
    assert_eq!(pool.limit(&client), HIGHEST);
    assert_eq!(pool.meta(), (55_296 / 8, 55_296 / 8), "all of the room is used, and no kill lost any of it");
    let now = dm::tables()[&pool.private("thinpool-pool")].clone();
    assert_eq!(now, thin_pool, "neither features nor low water have changed");
    dm::expect_settled();

    load.stop();
    files::drop_caches();
    println!("limit: {} files whole", load::check(&folder, journal));
    files::unmount(&folder);
    files::check_xfs(&device);
    assert!(client.stop_pool("p", "name").done().0);
    client.start_pool("p", "name").done();
    let pool = Pool::found(&client);
    assert_eq!((pool.limit(&client), pool.meta().0), (HIGHEST, 55_296 / 8));
    state::expect_no_io_error();
    guest.stop();
}

fn go_beyond(guest: &mut Guest) {
    const COUNT: u64 = 130;
    guest.start();
    let client = guest.client();
    let (_, (path, _)) = client.create_pool("p", &guest.disks()).done();
    create(&path, 0..100, Some(SIZE));
    let refused = client.create_filesystems(&path, &[("one-more", Some(SIZE), None)]).refused(&(false, Vec::new()));
    assert!(refused.contains("100"), "{refused}");
    client.set(&path, &interface("pool", 9), "FsLimit", COUNT).expect("there is room");
    create(&path, 100..COUNT, Some(SIZE));
    let refused = client.create_filesystems(&path, &[("one-more", Some(SIZE), None)]).refused(&(false, Vec::new()));
    assert!(refused.contains("130"), "{refused}");

    // The names of thin volumes are in the order of random UUIDs: these are any of them, old and new.
    let filesystems = client.family("filesystem");
    assert_eq!(filesystems.len() as u64, COUNT);
    for (number, path) in (1..).zip(filesystems.keys().step_by(10)) {
        let device = files::node(&client, path);
        let folder = files::mount(&device, "some");
        let contents = Contents::write(folder.join("file"), MIB, number);
        files::drop_caches();
        contents.check(&folder);
        files::unmount(&folder);
        files::check_xfs(&device);
    }
    assert!(client.stop_pool("p", "name").done().0);
    client.start_pool("p", "name").done();
    assert_eq!(client.family("filesystem").len() as u64, COUNT);
    state::expect_no_io_error();
    guest.stop();
}

/// Creates filesystems, four at a time.
pub(crate) fn create(pool: &str, numbers: Range<u64>, size: Option<&str>) {
    thread::scope(|scope| {
        for first in numbers.start..numbers.start + 4 {
            let own = (first..numbers.end).step_by(4);
            scope.spawn(move || {
                let client = Client::connect(SYSTEM_BUS);
                for number in own {
                    client.create_filesystems(pool, &[(&format!("f{number}"), size, None)]).done();
                }
            });
        }
    });
}

/// Asks for a limit, kills the daemon soon after, and looks at what the next one finds.
fn killed(guest: &mut Guest, wanted: u64, delay: Duration) {
    let client = guest.client();
    let pool = Pool::found(&client);
    let before = pool.limit(&client);
    let call = method(&pool.path, PROPERTIES, "Set");
    let replied = cut_short(guest, call.append3(interface("pool", 9), "FsLimit", Variant(wanted)), delay);
    let client = guest.client();
    let pool = Pool::found(&client);
    let (limit, (total, device)) = (pool.limit(&client), pool.meta());
    let context = format!("{delay:?} after {wanted} was asked for: {limit}, {device} blocks, replied: {replied}");
    println!("limit: {context}");
    assert!(limit == wanted || limit == before && !replied, "whole, or not at all: {context}");
    assert_eq!(total, device, "the thin pool uses all of its metadata device: {context}");
    dm::expect_settled();
    if limit != wanted {
        client.set(&pool.path, &interface("pool", 9), "FsLimit", wanted).expect("there is room");
    }
}
