//! Filesystems that the daemon makes by itself, on disks full of old bytes: used, copied in the middle of work,
//! cut off from power, recovered, and looked at by `xfs_repair`.
//!
//! Two pools: one as the daemon makes it, which zeroes new blocks, and one with the features that 3.9.2 gives, which
//! hands them out as they are. In the second the log of a filesystem has to be written out, or it cannot be mounted
//! a second time; that shows only where the disk was in use before.
//!
//! Every file's bytes follow from its number, so what is compared is the bytes, not a sum of them. Deliberately absent:
//! equality with `mkfs.xfs`, see `tests/xfs.rs`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::guest::files::{self, text};
use crate::guest::{Guest, dm, run, state, udev, used};
use crate::halves;
use crate::host::{Machine, SPEC, Spec};
use crate::kill::seed;
use crate::power::until;
use crate::support::client::Client;

/// Names of pools, of their filesystems and of the folders below `/mnt`; and what a new filesystem of 1 TiB may
/// take after its first mount, in MiB.
const KINDS: [(&str, u64); 2] = [("zeroing", 8), ("skipping", 72)];
/// Files that are durable, and those that are written when the copy is taken or the power is cut.
const FILES: u64 = 5_000;
const MORE: u64 = 300;
const FOLDERS: u64 = 50;
const BYTES_MAX: u64 = 16 << 10;
/// The thin volume of a copy: the daemon, which counts from 0, does not come near.
const COPY: u32 = 1_000_000;
/// The power is cut at some moment of this long.
const DELAY_MICROS_MAX: u64 = 500_000;

const MACHINE: Spec = Spec { disks: &["2G", "2G"], limit_s: 300, ..SPEC };

/// In the guest, `/out` comes before it. It tells the host that work goes on.
const WORKING: &str = "working";

halves!(
    /// Unlike other scenarios this one is cut off.
    what_is_made_on_used_disks_is_whole_after_copies_and_cuts,
    host,
    |guest| if guest.boot() == 1 { work(guest) } else { look_after(guest) }
);

fn host(module: &str) {
    let Some(mut machine) = Machine::prepare(module, &MACHINE) else { return };
    let seed = seed();
    let delay = Duration::from_micros(fastrand::Rng::with_seed(seed).u64(0..DELAY_MICROS_MAX));
    println!("xfs: SEED={seed}, the power is cut {delay:?} after work began");
    let working = machine.out.join(WORKING);
    machine.boot(module);
    until(&mut machine, "gets to work", |_| working.exists());
    thread::sleep(delay);
    machine.kill();
    machine.boot(module);
    let status = machine.wait();
    machine.expect_success(status);
    machine.remove_disks();
}

/// The first boot: it ends when the host cuts the power.
fn work(guest: &mut Guest) {
    let client = make(guest);
    let volumes = nodes(&client);
    let folders: Vec<PathBuf> = KINDS.iter().zip(&volumes).map(|(kind, volume)| first_mount(*kind, volume)).collect();
    for (volume, folder) in volumes.iter().zip(&folders) {
        write(folder, 0..FILES);
        settle(folder);
        copy_and_look(volume, folder);
        // An unmount leaves a log that the next mount has to find the end of.
        files::unmount(folder);
        files::check_xfs(volume);
        files::mount(volume, name_of(folder));
        check(folder);
    }
    state::expect_no_io_error();
    guest.expect_quiet();
    thread::scope(|scope| {
        for folder in &folders {
            scope.spawn(|| churn(folder));
        }
        fs::write(Path::new("/out").join(WORKING), "").expect("/out is writable");
    });
    unreachable!("nobody stops writing");
}

/// The second boot: XFS recovers what it can from its log, and nothing that was durable is missing.
fn look_after(guest: &mut Guest) {
    guest.start();
    let client = guest.client();
    for ((name, _), volume) in KINDS.iter().zip(nodes(&client)) {
        let folder = files::mount(&volume, name);
        check(&folder);
        files::unmount(&folder);
        files::check_xfs(&volume);
        // And once more, because the log was recovered and not made.
        files::mount(&volume, name);
        write(&folder, FILES..FILES + MORE);
        files::unmount(&folder);
        files::check_xfs(&volume);
    }
    state::expect_no_io_error();
    guest.stop();
    guest.expect_quiet();
}

/// A daemon with both pools, and a filesystem of 1 TiB in each.
fn make(guest: &mut Guest) -> Client {
    let disks = guest.disks();
    for (disk, number) in disks.iter().zip(0..) {
        used::fill(disk, number);
    }
    guest.start();
    let client = guest.client();
    for ((name, _), disk) in KINDS.iter().zip(&disks) {
        client.create_pool(name, std::slice::from_ref(disk)).done();
    }
    let (skipping, disk) = (KINDS[1].0, &disks[1]);
    client.stop_pool(skipping, "name").done();
    guest.stop();
    used::skip_zeroing(disk);
    guest.start();
    let client = guest.client();
    client.start_pool(skipping, "name").done();
    for (path, properties) in client.family("pool") {
        client.create_filesystems(&path, &[(properties["Name"].text(), None, None)]).done();
    }
    let features: Vec<String> = dm::tables().values().filter_map(|table| dm::thin_features(table)).collect();
    assert_eq!(features.iter().filter(|all| all.contains("skip_block_zeroing")).count(), 1, "{features:?}");
    assert_eq!(features.len(), KINDS.len());
    client
}

/// The filesystems' volumes, in the order of `KINDS`.
fn nodes(client: &Client) -> Vec<PathBuf> {
    let all = client.family("filesystem");
    let named = |name| all.iter().find(|(_, properties)| properties["Name"].text() == name).expect("it was made").0;
    KINDS.iter().map(|(name, _)| files::node(client, named(*name))).collect()
}

/// Mounts it for the first time, and looks at the space that it takes.
fn first_mount((name, mib_max): (&str, u64), volume: &Path) -> PathBuf {
    let before = mapped_mib(volume);
    let folder = files::mount(volume, name);
    settle(&folder);
    let after = mapped_mib(volume);
    println!("{name}: a filesystem of 1 TiB takes {before} MiB, after its first mount {after} MiB");
    assert!(after <= mib_max, "{name}: {after} MiB after the first mount: at most {mib_max}");
    folder
}

/// What a thin volume takes of its pool.
fn mapped_mib(volume: &Path) -> u64 {
    let status = dm::status(text(volume));
    let sectors = status.split_whitespace().nth(3).and_then(|sectors| sectors.parse::<u64>().ok());
    sectors.unwrap_or_else(|| panic!("a thin volume says what is mapped: {status}")) / 2048
}

fn name_of(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).expect("we gave the name")
}

/// Takes a copy of a filesystem that is being written, as a crash would leave it, and looks at that.
fn copy_and_look(volume: &Path, folder: &Path) {
    write(folder, FILES..FILES + MORE);
    let (name, length, pool, origin) = thin(volume);
    let pool_message = |message: &str| run("dmsetup", &["message", &pool, "0", message]);
    // Nothing is written out for the copy: the origin's filesystem is not frozen, its pages stay where they are.
    run("dmsetup", &["suspend", "--nolockfs", "--noflush", &name]);
    pool_message(&format!("create_snap {COPY} {origin}"));
    run("dmsetup", &["resume", &name]);
    run("dmsetup", &["create", "copy", "--table", &format!("0 {length} thin {pool} {COPY}")]);
    let node = Path::new("/dev/mapper/copy");
    let there = Path::new("/mnt/copy");
    fs::create_dir_all(there).expect("the guest's root is writable");
    // Its UUID is that of the origin, which is mounted.
    run("mount", &["-t", "xfs", "-o", "nouuid", text(node), text(there)]);
    check(there);
    files::unmount(there);
    files::check_xfs(node);
    udev::settle();
    run("dmsetup", &["remove", "--retry", "copy"]);
    pool_message(&format!("delete {COPY}"));
    check(folder);
}

/// Name, length, pool and id of a thin volume.
fn thin(volume: &Path) -> (String, String, String, String) {
    let table = run("dmsetup", &["table", text(volume)]);
    let [_, length, _, pool, id] = table.split_whitespace().collect::<Vec<_>>().try_into().expect("five words");
    let name = volume.file_name().expect("a node has a name").to_str().expect("it is text");
    let minor = pool.split_once(':').expect("a number").1;
    let pool = fs::read_to_string(format!("/sys/block/dm-{minor}/dm/name")).expect("it is a dm device");
    (name.to_owned(), length.to_owned(), format!("/dev/mapper/{}", pool.trim()), id.to_owned())
}

/// Writes until the power is cut: files come, change their names and go, in folders that come and go.
fn churn(folder: &Path) {
    for round in 0_u64.. {
        let there = folder.join(format!("churn-{}", round % 3));
        fs::create_dir_all(&there).expect("there is room");
        (0..MORE).for_each(|number| fs::write(there.join(number.to_string()), bytes(round ^ number)).expect("room"));
        fs::rename(there.join("0"), there.join("renamed")).expect("it was written");
        if round % 2 == 0 {
            settle(folder);
        } else {
            fs::remove_dir_all(&there).expect("it was made");
        }
    }
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join((number % FOLDERS).to_string()).join(number.to_string())
}

fn bytes(number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number);
    let length = random.u64(0..BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(length).expect("it is short")];
    random.fill(&mut bytes);
    bytes
}

/// Writes these files, and waits for nothing.
fn write(folder: &Path, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let path = path(folder, number);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("there is room");
        fs::write(path, bytes(number)).expect("there is room");
    }
}

/// Waits until the filesystem is on the disk.
fn settle(folder: &Path) {
    nix::unistd::syncfs(File::open(folder).expect("it is mounted")).expect("it reaches the disk");
}

/// Every file that was durable is what was written; the page cache is not asked.
fn check(folder: &Path) {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
    for number in 0..FILES {
        let path = path(folder, number);
        let read = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(read == bytes(number), "{} is not what was written", path.display());
    }
}
