//! Snapshots on real thin volumes: of filesystems that were never mounted, that are written, of snapshots;
//! what they take of the pool; and daemons that are killed while they make one.
//!
//! Deliberately absent: what a client may ask for (see `tests/bus`), and each point of a crash (`tests/sim`).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, dm, run, state, udev};
use crate::host::{SPEC, Spec};
use crate::kill::{number, seed};
use crate::load::Load;
use crate::model::Seen;
use crate::scenario;
use crate::support::MIB;
use crate::support::client::{Client, method};
use crate::support::interface;
use crate::{aftermath, load};

/// What a snapshot may take of the pool: some superblocks, and what a replay of the log writes.
const SNAPSHOT_BYTES_MAX: u64 = 8 * MIB;
/// Daemons that are killed, unless `POINTS` says otherwise.
const KILLS: u64 = 6;

/// Takes a snapshot that must be new; its path.
fn take(client: &Client, pool: &str, origin: &str, name: &str) -> String {
    let (changed, path) = client.snapshot(pool, origin, name).done();
    assert!(changed, "{name} is new");
    path
}

fn property(client: &Client, filesystem: &str, name: &str) -> String {
    client.get(filesystem, &interface("filesystem", 9), name).expect("it can be read").text().to_owned()
}

/// The UUID of the XFS on a device, as libblkid reads it from there.
fn uuid_on(device: &Path) -> String {
    run("blkid", &["--probe", "--output", "value", "--match-tag", "UUID", text(device)]).trim().replace('-', "")
}

/// Panics unless an unmounted filesystem is whole and has the UUID that its object shows.
fn examine(client: &Client, filesystem: &str) -> PathBuf {
    let device = files::node(client, filesystem);
    files::check_xfs(&device);
    assert_eq!(uuid_on(&device), property(client, filesystem, "Uuid"));
    device
}

/// Blocks of a thin pool in use, and bytes of a block.
fn blocks_used(pool: &str) -> (u64, u64) {
    let name = dm::private(pool, "thinpool-pool");
    let word = |text: &str, at: usize| text.split_whitespace().nth(at).expect("a thin pool has it").to_owned();
    // Behind start, length and the target's name: transaction, metadata, data; metadata, data, block.
    let data = word(&run("dmsetup", &["status", &name]), 5);
    let sectors: u64 = word(&run("dmsetup", &["table", &name]), 5).parse().expect("a number of sectors");
    let used = data.split_once('/').expect("used of all").0.parse().expect("a number of blocks");
    (used, sectors * 512)
}

/// Prints what the daemon says of the snapshots that it took.
fn say_how_long(guest: &Guest) {
    let log = guest.log();
    log.lines().filter(|line| line.contains("suspended=")).for_each(|line| println!("{line}"));
}

/// What `change` takes of a pool, in bytes.
fn cost(pool: &str, change: impl FnOnce()) -> u64 {
    let (before, block) = blocks_used(pool);
    change();
    (blocks_used(pool).0 - before) * block
}

scenario!(
    /// A snapshot is a filesystem of its own, whether its origin was ever mounted or not, and stays when that goes.
    snapshots_stand_by_themselves,
    SPEC,
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let origin = client.make_filesystem(&pool, "origin");

        let blank = take(&client, &pool, &origin, "blank");
        examine(&client, &blank);
        let folder = files::mount(&files::node(&client, &origin), "origin");
        let file = Contents::write(folder.join("file"), 20 * MIB, 1);
        // Not on the disk yet when the snapshot is taken: the freeze brings it there.
        std::fs::write(folder.join("unsynced"), "as it was").expect("there is room");
        let frozen = take(&client, &pool, &origin, "frozen");
        std::fs::write(folder.join("unsynced"), "as it is").expect("there is room");
        let second = take(&client, &pool, &frozen, "second");
        dm::expect_settled();

        let all = [&origin, &blank, &frozen, &second];
        let mut uuids: Vec<String> = all.iter().map(|path| property(&client, path, "Uuid")).collect();
        uuids.sort();
        uuids.dedup();
        assert_eq!(uuids.len(), 4, "each has its own");
        for path in [&blank, &frozen, &second] {
            examine(&client, path);
        }
        let at_once = [&blank, &frozen, &second].map(|path| {
            let device = files::node(&client, path);
            files::mount(&device, &property(&client, path, "Name"))
        });
        assert!(!at_once[0].join("file").exists(), "it was taken before");
        for folder in &at_once[1..] {
            file.check(folder);
            assert_eq!(std::fs::read_to_string(folder.join("unsynced")).expect("it is there"), "as it was");
        }
        assert_eq!(std::fs::read_to_string(folder.join("unsynced")).expect("it is there"), "as it is");
        at_once.iter().for_each(|folder| files::unmount(folder));

        files::unmount(&folder);
        let (_, gone) = client.destroy_filesystems(&pool, &[&origin, &frozen]).done();
        assert_eq!(gone.len(), 2);
        let device = examine(&client, &second);
        files::drop_caches();
        let folder = files::mount(&device, "second");
        file.check(&folder);
        files::unmount(&folder);
        say_how_long(guest);
        assert_eq!(guest.log().matches("suspended=").count(), 3, "each request says for how long");
        state::expect_no_io_error();
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// Under load a snapshot holds every file that had reached the disk, and the writer goes on.
    of_what_is_written,
    Spec { disks: &["4G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let origin = client.make_filesystem(&pool, "origin");
        let device = files::node(&client, &origin);
        let (folder, journal) = (files::mount(&device, "origin"), PathBuf::from("/out/load.journal"));
        let load = Load::start(folder.clone(), journal.clone());
        for round in 0..3 {
            guest.until("files are written", |_| load::kept(&journal).end > 8 * (round + 1));
            let before = load::kept(&journal);
            let snapshot = take(&client, &pool, &origin, &format!("s{round}"));
            let after = load::kept(&journal);
            assert!(!load.has_failed(), "the writer: see below");
            let device = examine(&client, &snapshot);
            let there = files::mount(&device, "there");
            // What was removed since may be gone from the snapshot, too.
            let whole: Range<u64> = after.start..before.end;
            println!("{} files are whole", load::check_files(&there, whole));
            files::unmount(&there);
        }
        load.stop();
        files::unmount(&folder);
        files::check_xfs(&device);
        state::expect_no_io_error();
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// A snapshot of a filesystem of 1 TiB takes few blocks of the pool.
    of_a_large_filesystem,
    SPEC,
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let uuid = client.get(&pool, &interface("pool", 9), "Uuid").expect("readable").text().to_owned();
        let (_, made) = client.create_filesystems(&pool, &[("large", None, None)]).done();
        let origin = &made[0].0;
        let never = cost(&uuid, || drop(take(&client, &pool, origin, "never")));
        let folder = files::mount(&files::node(&client, origin), "large");
        Contents::write(folder.join("file"), 20 * MIB, 1);
        let mounted = cost(&uuid, || drop(take(&client, &pool, origin, "mounted")));
        files::unmount(&folder);
        let unmounted = cost(&uuid, || drop(take(&client, &pool, origin, "unmounted")));
        println!("bytes taken: never mounted {never}, mounted {mounted}, unmounted {unmounted}");
        say_how_long(guest);
        let last = files::node(&client, &take(&client, &pool, origin, "last"));
        udev::settle();
        let began = Instant::now();
        let other = cost(&uuid, || drop(run("xfs_db", &["-x", "-c", "uuid generate", text(&last)])));
        println!("for comparison, xfs_db: {other} bytes, {:.1?}", began.elapsed());
        for taken in [never, mounted, unmounted] {
            assert!(taken <= SNAPSHOT_BYTES_MAX, "{taken} bytes of the pool are taken");
        }
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// A daemon that dies while it takes a snapshot leaves a snapshot or nothing, and nobody stands still for long.
    killed_while_taking_one,
    Spec { disks: &["4G"], limit_s: 400, ..SPEC },
    |guest: &mut Guest| {
        let (points, seed) = (number("POINTS").unwrap_or(KILLS), seed());
        println!("snapshot: SEED={seed} POINTS={points}");
        let mut random = fastrand::Rng::with_seed(seed);
        guest.start();
        let (_, (pool, _)) = guest.client().create_pool("p", &guest.disks()).done();
        let origin = guest.client().make_filesystem(&pool, "origin");
        let device = files::node(&guest.client(), &origin);
        let (folder, journal) = (files::mount(&device, "origin"), PathBuf::from("/out/load.journal"));
        let load = Load::start(folder.clone(), journal.clone());
        let client = guest.client();
        let began = Instant::now();
        let whole = take(&client, &pool, &origin, "whole");
        // So that kills come in all parts of it, and some after it, however fast the machine is.
        let longest = began.elapsed() * 3 / 2;
        client.destroy_filesystems(&pool, &[&whole]).done();
        let mut made = 0;
        for point in 0..points {
            let delay = longest.mul_f64(random.f64());
            let context = format!("kill {point} after {delay:.0?}, SEED={seed}");
            made += u64::from(kill_once(guest, &mut random, delay, point == 0, &context));
            assert!(!load.has_failed(), "the writer: see below; {context}");
        }
        println!("snapshot: {made} of {points} were made");
        load.stop();
        files::unmount(&folder);
        files::check_xfs(&device);
    }
);

/// Asks for a snapshot of the only filesystem, kills the daemon after a while, and looks at what the next one
/// finds. `between`: as if the origin had been suspended just then. Tells whether there is a snapshot.
fn kill_once(guest: &mut Guest, random: &mut fastrand::Rng, delay: Duration, between: bool, context: &str) -> bool {
    let client = guest.client();
    let (pool, _) = client.family("pool").pop_first().expect("the pool runs");
    let (origin, _) = client.family("filesystem").pop_first().expect("its filesystem is there");
    let device = files::node(&client, &origin);
    let mut call = method(&pool, &interface("pool", 9), "SnapshotFilesystem");
    call.append_all((dbus::Path::from(origin), "s"));
    client.send(call);
    thread::sleep(delay);
    guest.kill9();
    if between {
        run("dmsetup", &["suspend", text(&device)]);
    }
    guest.start();
    let client = guest.client();
    let seen = Seen::new(&client.objects());
    aftermath::kernel(guest, &seen, &["origin"], random, context);
    let snapshot = client.family("filesystem").into_iter().find(|(_, properties)| properties["Name"].text() == "s");
    let Some((path, _)) = snapshot else { return false };
    let device = examine(&client, &path);
    files::unmount(&files::mount(&device, "there"));
    client.destroy_filesystems(&pool_of(&client), &[&path]).done();
    true
}

fn pool_of(client: &Client) -> String {
    client.family("pool").pop_first().expect("the pool runs").0
}
