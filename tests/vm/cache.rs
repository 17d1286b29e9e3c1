//! Caches on a real kernel: made and enlarged below a filesystem that is written, adopted, taken down and set up
//! again, and left behind when their disks are.
//!
//! `SEED` repeats the kills as far as timing allows. Deliberately absent: which device may join a cache (see the bus
//! tests), and every point at which the power may fail (see the simulation).

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use crate::events::{plug_of, pull};
use crate::guest::files::{self, Contents};
use crate::guest::{Guest, dm, run, state, try_run, udev};
use crate::host::{SPEC, Spec};
use crate::kill::{cut_short, seed};
use crate::load::{self, Load};
use crate::scenario;
use crate::support::client::{Client, method};
use crate::support::value::Value;
use crate::support::{GIB, MIB, interface};

/// Rounds of kills, and the longest time after which one comes.
const ROUNDS: u64 = 2;
const DELAY_MICROS_MAX: u64 = 250_000;

scenario!(
    /// A cache comes, grows and goes with its pool, and nobody who writes to a filesystem notices.
    a_cache_lives_with_its_pool,
    Spec { disks: &["4G", "3G", "2G"], limit_s: 180, ..SPEC },
    live
);

scenario!(
    /// The daemon is killed while a cache is made and while it grows: it is there whole, or not at all.
    a_cache_is_made_while_the_daemon_is_killed,
    Spec { disks: &["4G", "3G", "2G"], limit_s: 240, ..SPEC },
    killed
);

scenario!(
    /// A pool whose cache is lost starts without it, and the disk is nobody's concern when it comes back.
    a_cache_that_is_lost_is_left_behind,
    Spec { disks: &["4G"], limit_s: 180, ..SPEC },
    lose
);

scenario!(
    /// A disk that fails when the kernel begins to use it as a cache is given back, and the pool is as it was.
    a_cache_that_does_not_work_is_taken_back,
    Spec { disks: &["4G", "3G"], limit_s: 180, ..SPEC },
    fail_at_once
);

scenario!(
    /// A cache fails while its pool is in use: the pool is stopped, started without it, and has its files.
    a_cache_that_fails_later_is_left_behind,
    Spec { disks: &["4G", "3G"], limit_s: 180, ..SPEC },
    fail_later
);

/// Sectors of a disk of 3 GiB that nobody gets to in these tests.
const LAST: u64 = 6_000_000;

/// The private devices of the only pool.
pub(crate) struct Stack;

impl Stack {
    fn name(role: &str) -> String {
        let all = dm::names();
        all.into_iter().find(|name| name.ends_with(role)).unwrap_or_else(|| panic!("there is no {role}"))
    }

    fn has(role: &str) -> bool {
        dm::names().iter().any(|name| name.ends_with(role))
    }

    /// Sectors of a device, and the words of its first line.
    fn table(role: &str) -> (u64, Vec<String>) {
        let table = dm::tables().remove(&Self::name(role)).expect("it has a table");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let length = table.lines().map(|line| words(line)[1].parse::<u64>().expect("a number")).sum();
        (length, words(table.lines().next().expect("a line")))
    }

    /// Panics unless there is a cache as it should be: on all of its origin, with all of its devices, and well.
    #[track_caller]
    pub(crate) fn expect_cached() {
        let (length, words) = Self::table("physical-cache");
        assert_eq!(words[2], "cache");
        assert_eq!(words[6..], ["2048", "1", "writethrough", "default", "0"]);
        assert_eq!(length, Self::table("physical-originsub").0);
        assert_eq!(Self::table("physical-metasub").0, 1_048_576);
        let status = dm::status(&Self::name("physical-cache"));
        let word: Vec<&str> = status.split_whitespace().collect();
        let blocks = word[6].split('/').nth(1).expect("used/total").parse::<u64>().expect("a number");
        assert_eq!(blocks, Self::table("physical-cachesub").0 / 2_048, "it works with all that it has: {status}");
        assert!(word.contains(&"rw") && !word.contains(&"needs_check"), "{status}");
        dm::expect_settled();
    }

    /// Panics unless there is no trace of a cache.
    #[track_caller]
    fn expect_plain() {
        assert!(!Self::has("physical-cachesub") && !Self::has("physical-metasub"), "{:?}", dm::names());
        assert_eq!(Self::table("physical-cache").1[2], "linear");
        dm::expect_settled();
    }
}

fn has_cache(client: &Client) -> bool {
    let (pool, _) = client.family("pool").pop_first().expect("the pool runs");
    client.get(&pool, &interface("pool", 9), "HasCache").expect("a property").is_true()
}

/// The tier of each device, in the order of their paths.
fn tiers(client: &Client) -> Vec<(String, Value)> {
    let devices = client.family("blockdev").into_values();
    let mut all: Vec<_> = devices.map(|device| (device["Devnode"].text().to_owned(), device["Tier"].clone())).collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

fn live(guest: &mut Guest) {
    let disks = guest.disks();
    let [data, fast, more] = disks.as_slice() else { panic!("three disks") };
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &[data]).done();
    let filesystem = client.make_filesystem(&pool, load::NAME);
    let device = files::node(&client, &filesystem);
    let folder = files::mount(&device, load::NAME);
    let before = Contents::write(folder.join("before"), 40 * MIB, 1);
    let journal = Path::new("/out/load.journal");
    let load = Load::start(folder.clone(), journal.to_owned());
    Stack::expect_plain();
    let above = ["flex-thinmeta", "flex-thindata", "flex-mdv", "thinpool-pool"].map(Stack::table);

    assert!(client.give_devices(&pool, ("InitCache", 9), &[fast]).done().0);
    Stack::expect_cached();
    assert!(has_cache(&client));
    let small = Stack::table("physical-cachesub").0;
    assert!(client.give_devices(&pool, ("AddCacheDevs", 9), &[more]).done().0);
    Stack::expect_cached();
    assert_eq!(Stack::table("physical-cachesub").0, small + 2 * GIB / 512 - 8_192);
    let now = ["flex-thinmeta", "flex-thindata", "flex-mdv", "thinpool-pool"].map(Stack::table);
    assert_eq!(now, above, "what lies above has not moved");
    assert_eq!(
        tiers(&client).into_iter().map(|(_, tier)| tier).collect::<Vec<_>>(),
        [0, 1, 1].map(|tier| Value::Unsigned('q', tier))
    );
    assert!(!load.has_failed());
    let after = Contents::write(folder.join("after"), 40 * MIB, 2);

    for kill in [true, false] {
        let before = (state::objects(&client), dm::tables());
        if kill {
            guest.kill9()
        } else {
            guest.stop()
        }
        guest.start();
        assert_eq!((state::objects(&guest.client()), dm::tables()), before, "killed: {kill}");
        Stack::expect_cached();
    }
    load.stop();
    files::drop_caches();
    println!("cache: {} files whole", load::check(&folder, journal));
    println!("{}", dm::status(&Stack::name("physical-cache")));
    files::unmount(&folder);
    files::check_xfs(&device);

    let client = guest.client();
    let objects = state::objects(&client);
    assert!(client.stop_pool("p", "name").done().0);
    state::expect_nothing_left();
    client.start_pool("p", "name").done();
    Stack::expect_cached();
    assert_eq!(state::objects(&client), objects);
    check_all(&client, &[&before, &after]);
    destroy(&client);
    disks.iter().for_each(|disk| state::expect_wiped(disk));
    state::expect_no_io_error();
    guest.stop();
    guest.expect_quiet();
}

/// Mounts the only filesystem and looks at files.
fn check_all(client: &Client, contents: &[&Contents]) {
    let (path, _) = client.family("filesystem").pop_first().expect("it came with the pool");
    let device = files::node(client, &path);
    files::check_xfs(&device);
    let folder = files::mount(&device, "check");
    files::drop_caches();
    contents.iter().for_each(|one| one.check(&folder));
    files::unmount(&folder);
}

fn destroy(client: &Client) {
    let (pool, _) = client.family("pool").pop_first().expect("the pool runs");
    let filesystems: Vec<String> = client.family("filesystem").into_keys().collect();
    client.destroy_filesystems(&pool, &filesystems).done();
    assert!(client.destroy_pool(&pool).done().0);
    state::expect_nothing_left();
}

fn killed(guest: &mut Guest) {
    let disks = guest.disks();
    let seed = seed();
    println!("cache: SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &disks[..1]).done();
    client.make_filesystem(&pool, load::NAME);
    let journal = Path::new("/out/load.journal");
    for round in 1..=ROUNDS {
        let (path, _) = guest.client().family("filesystem").pop_first().expect("it is there");
        let folder = files::mount(&files::node(&guest.client(), &path), load::NAME);
        let load = Load::start(folder.clone(), journal.to_owned());
        for (what, disk) in [("InitCache", &disks[1]), ("AddCacheDevs", &disks[2])] {
            // Early and late: the first half of what is done is on the disks, the second in the kernel.
            let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX * round / ROUNDS));
            let (pool, _) = guest.client().family("pool").pop_first().expect("the pool runs");
            let call = method(&pool, &interface("pool", 9), what).append1(vec![disk]);
            let replied = cut_short(guest, call, delay);
            let client = guest.client();
            let joined = tiers(&client).iter().any(|(path, _)| path == disk);
            println!("cache: round {round}: {what}, killed after {delay:?}: replied {replied}, joined {joined}");
            assert!(joined || !replied, "round {round}: {what} after {delay:?}");
            assert!(!load.has_failed(), "the mounted filesystem; round {round}: {what} after {delay:?}");
            if has_cache(&client) {
                Stack::expect_cached()
            } else {
                Stack::expect_plain()
            }
            if !joined {
                state::expect_wiped(disk);
                let (pool, _) = client.family("pool").pop_first().expect("the pool runs");
                assert!(client.give_devices(&pool, (what, 9), &[disk]).done().0);
            }
            Stack::expect_cached();
        }
        load.stop();
        files::drop_caches();
        println!("cache: round {round}: {} files whole", load::check(&folder, journal));
        files::unmount(&folder);
        let client = guest.client();
        assert!(client.stop_pool("p", "name").done().0);
        state::expect_nothing_left();
        let (_, (_, devices, _)) = client.start_without_cache("p").done();
        assert_eq!(devices.len(), 1);
        Stack::expect_plain();
        disks[1..].iter().for_each(|disk| state::expect_wiped(disk));
    }
    destroy(&guest.client());
    state::expect_no_io_error();
    guest.stop();
}

/// A dm device on all of a disk that fails at these sectors; its node.
fn ailing(disk: &str, fails: Range<u64>) -> String {
    let all: u64 = run("blockdev", &["--getsz", disk]).trim().parse().expect("a number");
    let Range { start, end } = fails;
    let mut lines = vec![format!("0 {start} linear {disk} 0"), format!("{start} {} error", end.min(all) - start)];
    lines.extend((end < all).then(|| format!("{end} {} linear {disk} {end}", all - end)));
    let table = lines.join("\n");
    if dm::names().contains(&"ailing".to_owned()) {
        run("dmsetup", &["load", "ailing", "--table", &table]);
        run("dmsetup", &["suspend", "--noflush", "ailing"]);
        run("dmsetup", &["resume", "ailing"]);
    } else {
        run("dmsetup", &["create", "ailing", "--uuid", "ailing", "--table", &table]);
    }
    udev::settle();
    std::fs::canonicalize("/dev/mapper/ailing").expect("udev has made it").display().to_string()
}

/// What the daemon has of its own, without the disk that fails.
fn own_devices() -> Vec<dm::Device> {
    dm::devices().into_iter().filter(|device| device.name != "ailing").collect()
}

fn fail_at_once(guest: &mut Guest) {
    let disks = guest.disks();
    // Its own metadata can be written, and the first block of the cache's, which is cleared. The rest cannot.
    let bad = ailing(&disks[1], 8_200..16_384);
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &disks[..1]).done();
    let filesystem = client.make_filesystem(&pool, "f");
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    let contents = Contents::write(folder.join("file"), 20 * MIB, 1);
    let before = (state::objects(&client), own_devices(), dm::tables());
    let refused = client.give_devices(&pool, ("InitCache", 9), &[&bad]);
    assert_eq!(refused.code, 1, "{refused:?}");
    println!("cache: {}", refused.text);
    assert_eq!((state::objects(&client), own_devices(), dm::tables()), before);
    state::expect_wiped(&bad);
    files::drop_caches();
    contents.check(&folder);

    // The same disk, repaired where it matters.
    let good = ailing(&disks[1], LAST..LAST + 8);
    assert_eq!(good, bad);
    assert!(client.give_devices(&pool, ("InitCache", 9), &[&good]).done().0);
    assert_eq!(Stack::table("physical-cache").1[2], "cache");
    let more = Contents::write(folder.join("more"), 20 * MIB, 2);
    files::unmount(&folder);
    guest.kill9();
    guest.start();
    check_all(&guest.client(), &[&contents, &more]);
    guest.stop();
}

fn fail_later(guest: &mut Guest) {
    let disks = guest.disks();
    let fast = ailing(&disks[1], LAST..LAST + 8);
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &disks[..1]).done();
    let filesystem = client.make_filesystem(&pool, "f");
    assert!(client.give_devices(&pool, ("InitCache", 9), &[&fast]).done().0);
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    let contents = Contents::write(folder.join("file"), 60 * MIB, 3);
    for _ in 0..3 {
        // Often enough that some of it is in the cache.
        files::drop_caches();
        contents.check(&folder);
    }
    files::unmount(&folder);
    println!("{}", dm::status(&Stack::name("physical-cache")));

    ailing(&disks[1], 8..u64::MAX);
    // How it is noticed is the kernel's business: a read of something that is cached fails, or a write.
    let (_, said) = try_run(
        "mount",
        &["-t", "xfs", "-o", "ro,norecovery", files::text(&files::node(&client, &filesystem)), "/mnt/f"],
    );
    println!("cache: {said}");
    let (_, said) = try_run("umount", &["/mnt/f"]);
    println!("cache: {said}");
    let stopped = client.stop_pool("p", "name");
    println!("cache: {stopped:?}");
    if stopped.code != 0 {
        // What could not be taken down in good order is, once the daemon looks at the pool anew.
        guest.kill9();
        guest.start();
    }
    let client = guest.client();
    println!("{}", run("dmesg", &[]));
    let (changed, (_, devices, filesystems)) = client.start_without_cache("p").done();
    assert_eq!((changed, devices.len(), filesystems.len()), (true, 1, 1));
    Stack::expect_plain();
    check_all(&client, &[&contents]);
    run("dmsetup", &["remove", "--retry", "ailing"]);
    destroy(&client);
    guest.stop();
}

fn lose(guest: &mut Guest) {
    let data = guest.disks().remove(0);
    let fast = plug_of("fast", 2 * GIB);
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &[&data]).done();
    let filesystem = client.make_filesystem(&pool, "f");
    client.give_devices(&pool, ("InitCache", 9), &[&fast]).done();
    let folder = files::mount(&files::node(&client, &filesystem), "f");
    let contents = Contents::write(folder.join("file"), 60 * MIB, 3);
    files::drop_caches();
    contents.check(&folder);
    files::unmount(&folder);
    assert!(client.stop_pool("p", "name").done().0);
    pull(&fast);
    guest.until("one disk is left", |_| {
        client.stopped_pools(9).values().next().is_some_and(|pool| pool["devs"].members().len() == 1)
    });

    let refused = client.start_pool("p", "name");
    assert_eq!(refused.code, 1, "{refused:?}");
    state::expect_nothing_left();
    let (changed, (_, devices, filesystems)) = client.start_without_cache("p").done();
    assert_eq!((changed, devices.len(), filesystems.len()), (true, 1, 1));
    Stack::expect_plain();
    assert!(!has_cache(&client));
    check_all(&client, &[&contents]);

    // It still says that it is the pool's, and has no record of its own: it is passed over, again and again.
    let again = plug_of("fast", 2 * GIB);
    for kill in [true, false] {
        if kill {
            guest.kill9()
        } else {
            guest.stop()
        }
        guest.start();
        let client = guest.client();
        assert_eq!((client.family("pool").len(), client.family("blockdev").len()), (1, 1));
        assert!(client.stop_pool("p", "name").done().0);
        client.start_pool("p", "name").done();
        Stack::expect_plain();
    }
    let client = guest.client();
    check_all(&client, &[&contents]);
    let (pool, _) = client.family("pool").pop_first().expect("the pool runs");
    let occupied = client.give_devices(&pool, ("InitCache", 9), &[&again]);
    assert_eq!(occupied.code, 1, "nobody takes what somebody's signature is on: {occupied:?}");
    guest.run("wipefs", &["--all", &again]);
    assert!(client.give_devices(&pool, ("InitCache", 9), &[&again]).done().0);
    Stack::expect_cached();
    check_all(&client, &[&contents]);
    destroy(&client);
    state::expect_no_io_error();
    guest.stop();
}
