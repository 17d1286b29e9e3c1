//! Thin-pool metadata that fill up: where the pool has more for them, and where it has nothing left; what becomes of
//! the pool then, of its neighbour, and what brings it back.
//!
//! They are filled behind the daemon's back by volumes that nobody uses: each takes a block of them, and nothing else.
//! The kernel commits each, so the disks are of memory.
//!
//! Deliberately absent: metadata that are damaged or cannot be written (`trouble`), and sleeping until they are low.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use stratisd::error::Fault;
use stratisd::model::ids::{PoolUuid, ThinId};
use stratisd::sys::Sys;
use uuid::Uuid;

use crate::dm::on_machine;
use crate::extend;
use crate::guest::files::{self, Contents};
use crate::guest::lab::Lab;
use crate::guest::{Guest, dm, run, state};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Client;
use crate::support::value::Value;
use crate::support::{MIB, interface};
use crate::trouble::calm_is_calm;

/// What the kernel says when they run low, and when they are full.
const LOW: &str = "reached low water mark for metadata device";
const FULL: &str = "switching pool to read-only mode";
/// Ids of volumes that no record has, and that no daemon comes to.
const FIRST_ID: u32 = 1 << 20;

/// Disks of which thin data leave nothing, and of which they leave the most. They take memory when they are written.
pub(crate) const SMALL_MIB: u64 = 1 << 10;
const LARGE_MIB: u64 = 32 << 10;
const MACHINE: Spec = Spec { disks: &[], limit_s: 240, memory_mib: 2_048, ..SPEC };

/// The disks, of so many MiB.
pub(crate) fn disks(size_mib: u64) -> [Lab; 3] {
    run("modprobe", &["brd", "rd_nr=3", &format!("rd_size={}", size_mib << 10)]);
    [("/dev/ram0", "lab-a"), ("/dev/ram1", "lab-b"), ("/dev/ram2", "lab-c")].map(|(disk, name)| Lab::over(disk, name))
}

/// Fills the metadata of a thin pool.
struct Filler {
    pool: PoolUuid,
    thin_pool: String,
    next: u32,
}

impl Filler {
    /// Of the pool of this name.
    fn of(client: &Client, pool: &str) -> Self {
        let uuid: Uuid = property(client, pool, "Uuid").text().parse().expect("it is one");
        Self { pool: PoolUuid(uuid), thin_pool: dm::private(&uuid.to_string(), "thinpool-pool"), next: FIRST_ID }
    }

    /// Takes so many blocks; what the kernel says if it refuses.
    fn take(&mut self, count: u32) -> Result<(), Fault> {
        let (pool, first) = (self.pool, self.next);
        let (next, outcome) = on_machine(move |sys| async move {
            for id in first..first + count {
                if let Err(fault) = sys.thin_create(pool, ThinId(id)).await {
                    return (id, Err(fault));
                }
            }
            (first + count, Ok(()))
        });
        self.next = next;
        outcome
    }

    /// Metadata blocks in use, and how many there are.
    fn blocks(&self) -> (u64, u64) {
        let status = dm::status(&self.thin_pool);
        let meta = status.split_ascii_whitespace().nth(4).expect("used/total of the metadata");
        let (used, total) = meta.split_once('/').expect("used/total");
        (used.parse().expect("a number"), total.parse().expect("a number"))
    }

    /// What the kernel lets be done.
    fn mode(&self) -> String {
        dm::status(&self.thin_pool).split_ascii_whitespace().nth(7).expect("a mode").to_owned()
    }

    /// The device below has as much as the kernel works with.
    fn expect_backed(&self) {
        let table = dm::tables().remove(&self.thin_pool.replace("thinpool-pool", "flex-thinmeta"));
        assert_eq!(sectors(&table.expect("the pool is active")) / 8, self.blocks().1);
    }
}

/// How long the lines of a table are together.
fn sectors(table: &str) -> u64 {
    let length = |line: &str| line.split_ascii_whitespace().nth(1).expect("a length").parse::<u64>().expect("a number");
    table.lines().map(length).sum()
}

/// A property of a pool that runs.
pub(crate) fn property(client: &Client, name: &str, property: &str) -> Value {
    let path = path(client, name);
    client.get(&path, &interface("pool", 9), property).expect("properties can be read")
}

/// The path of a pool that runs.
pub(crate) fn path(client: &Client, name: &str) -> String {
    let mut pools = client.family("pool").into_iter();
    pools.find(|(_, pool)| pool["Name"].text() == name).expect("it runs").0
}

fn kernel_said(words: &str) -> usize {
    extend::count(&run("dmesg", &[]), words)
}

scenario!(
    /// They run low again and again under a writer: they and the spare grow in time.
    that_run_low_grow_before_anybody_notices,
    MACHINE,
    |guest: &mut Guest| grow(guest, SMALL_MIB, 4)
);

scenario!(
    /// There are so many that the kernel's own mark comes when they are nearly full.
    that_are_large_grow_before_anybody_notices,
    MACHINE,
    |guest: &mut Guest| grow(guest, LARGE_MIB, 2)
);

/// Fills the metadata of a pool on disks of that size until there are so many times as many.
fn grow(guest: &mut Guest, size_mib: u64, times: u64) {
    let disks = disks(size_mib).map(|disk| disk.path());
    guest.start();
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &disks).done();
    let volume = files::node(&client, &client.make_filesystem(&pool, "f"));
    let folder = files::mount(&volume, "f");
    let mut filler = Filler::of(&client, "p");
    let before = filler.blocks().1;
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| write(&folder, &stop));
        while filler.blocks().1 < times * before {
            filler.take(64).expect("there is room for metadata");
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("it can write")
    });
    println!("metadata: {:?} blocks, {before} before, {} files written", filler.blocks(), written.len());
    filler.expect_backed();
    assert_eq!((kernel_said(LOW) > 0, kernel_said(FULL)), (true, 0));
    assert!(!property(&client, "p", "NoAllocSpace").is_true());
    dm::expect_settled();
    files::drop_caches();
    written.iter().rev().take(2).for_each(|contents| contents.check(&folder));
    files::unmount(&folder);
    files::check_xfs(&volume);
    state::expect_no_io_error();
    guest.expect_quiet();
    let blocks = filler.blocks();
    assert!(client.stop_pool("p", "name").done().0);
    client.start_pool("p", "name").done();
    assert_eq!(filler.blocks(), blocks, "the check of the metadata finds nothing wrong");
    guest.stop();
}

scenario!(
    /// They fill up where nothing is left: the pool says so when they are low, once they are full it takes nothing new
    /// and what is there can be read; with another device everything goes on.
    that_have_no_room_left_wait_for_a_device,
    MACHINE,
    |guest: &mut Guest| {
        let [own, calm, more] = disks(SMALL_MIB).map(|disk| disk.path());
        guest.start();
        let client = guest.client();
        client.create_pool("calm", &[calm]).done();
        let (_, (pool, _)) = client.create_pool("p", &[own]).done();
        let volume = files::node(&client, &client.make_filesystem(&pool, "f"));
        let folder = files::mount(&volume, "f");
        let file = Contents::write(folder.join("file"), 20 * MIB, 20);
        files::unmount(&folder);
        let mut filler = Filler::of(&client, "p");

        // Low, and nothing left: the first step. All is still possible.
        let watch = guest.client();
        watch.subscribe();
        while !property(&client, "p", "NoAllocSpace").is_true() {
            filler.take(16).expect("they are not full yet");
        }
        let low = filler.blocks();
        assert!(low.0 < low.1, "{low:?}");
        expect_told(&watch, &pool, "NoAllocSpace");
        let made = client.make_filesystem(&pool, "g");
        client.destroy_filesystems(&pool, &[&made]).done();

        // Full: the second one.
        let refused = (0..).find_map(|_| filler.take(64).err()).expect("there is an end");
        println!("metadata: {low:?} when nothing was left, {:?} at last: {refused}", filler.blocks());
        assert_eq!((filler.mode().as_str(), kernel_said(FULL) > 0), ("ro", true));
        guest.until("the daemon has heard of it", |guest| guest.log().contains("now=out_of_metadata_space"));
        assert_eq!(property(&client, "p", "AvailableActions").text(), "fully_operational");
        let refused = client.create_filesystems(&pool, &[("h", None, None)]).refused(&(false, Vec::new()));
        assert!(refused.contains("metadata") && refused.contains("device"), "{refused}");
        assert_eq!(client.family("filesystem").len(), 1, "nothing is half made");
        run("mount", &["-t", "xfs", "-o", "ro,norecovery", files::text(&volume), files::text(&folder)]);
        file.check(&folder);
        files::unmount(&folder);
        calm_is_calm(&client);

        let (client, pool) = another_daemon_gets_a_device(guest, &more, || filler.mode() == "rw");
        filler.expect_backed();
        filler.take(200).expect("there is room again");
        let made = client.make_filesystem(&pool, "h");
        let other = files::mount(&files::node(&client, &made), "h");
        Contents::write(other.join("file"), MIB, 1).check(&other);
        files::unmount(&other);
        assert!(client.stop_pool("p", "name").done().0);
        client.start_pool("p", "name").done();
        let folder = files::mount(files::linked(Path::new("/dev/stratis/p/f")).as_path(), "f");
        file.check(&folder);
        files::unmount(&folder);
        files::check_xfs(&fs::canonicalize("/dev/stratis/p/f").expect("it is a link"));
        dm::expect_settled();
        assert!(!guest.log().contains("panicked"), "{}", guest.log());
        guest.stop();
    }
);

/// Kills the daemon over a pool without room, and gives it a device when another one runs: that sees the pool as it is,
/// and tells when there is room again and the kernel has it. The other pool notices nothing.
pub(crate) fn another_daemon_gets_a_device(
    guest: &mut Guest,
    device: &str,
    has_room: impl Fn() -> bool,
) -> (Client, String) {
    guest.kill9();
    guest.start();
    let (client, watch) = (guest.client(), guest.client());
    let pool = path(&client, "p");
    let is_full = || property(&client, "p", "NoAllocSpace").is_true();
    assert!(is_full());
    calm_is_calm(&client);
    watch.subscribe();
    assert!(client.give_devices(&pool, ("AddDataDevs", 9), &[device]).done().0);
    guest.until("there is room", |_| !is_full() && has_room());
    expect_told(&watch, &pool, "NoAllocSpace");
    assert_eq!(property(&client, "p", "AvailableActions").text(), "fully_operational");
    (client, pool)
}

/// Writes two files in turn, each anew and down to the disk, until it is told to stop; each has to succeed.
fn write(folder: &Path, stop: &AtomicBool) -> Vec<Contents> {
    let mut written = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = written.len() as u64;
        written.push(Contents::write(folder.join((number % 2).to_string()), 8 * MIB, number));
    }
    written
}

/// A signal has told that this property of the pool has changed.
#[track_caller]
pub(crate) fn expect_told(watch: &Client, pool: &str, name: &str) {
    let _answer = watch.get(pool, &interface("pool", 9), name);
    let signals = watch.signals();
    let tells = |body: &[Value]| format!("{body:?}").contains(name);
    let told =
        signals.iter().any(|signal| signal.path == pool && signal.member == "PropertiesChanged" && tells(&signal.body));
    assert!(told, "{signals:#?}");
}
