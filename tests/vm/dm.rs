//! Device-mapper below the daemon: a stack is put up, found again in whatever state, and taken down.
//!
//! These call the machine (`KernelSys`) themselves, so each state that a daemon may leave can be made with
//! `dmsetup` and looked at right after. Deliberately absent: pools.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use cores::executor::{self, CoreSpec};
use cores::rt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{major, minor};
use stratisd::error::{Fault, Why};
use stratisd::model::device::DeviceNumber;
use stratisd::model::dm::{Below, Dm, LinearLine, Role, Table, ThinFeature, ThinPoolMode};
use stratisd::model::ids::{FsUuid, PoolUuid, ThinId};
use stratisd::sys::Sys;
use stratisd::sys::kernel::KernelSys;
use stratisd::units::Sectors;

use crate::guest::{Guest, dm, run, udev};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::{create_pool_arguments, method};
use crate::support::daemon::PATIENCE;
use crate::support::{TOP, interface};

const ID: ThinId = ThinId(7);
const OTHER_ID: ThinId = ThinId(8);
const ONE_DISK: Spec = Spec { disks: &["10G"], ..SPEC };

fn pool() -> PoolUuid {
    PoolUuid::from_random([1; 16])
}

fn private(role: Role) -> Dm {
    Dm::Private(pool(), role)
}

fn volume() -> Dm {
    Dm::Thin(pool(), FsUuid::from_random([2; 16]))
}

/// Another one: what many are asked together is not what one is asked.
fn other_volume() -> Dm {
    Dm::Thin(pool(), FsUuid::from_random([3; 16]))
}

/// Runs something on a core with a machine of its own.
pub(crate) fn on_machine<T: Send + 'static, F: Future<Output = T> + 'static>(
    body: impl FnOnce(KernelSys) -> F + Send + 'static,
) -> T {
    let core = CoreSpec { name: "dm".to_owned(), cpu: None };
    let main = move || async move { body(KernelSys::new(None).expect("device-mapper is there")).await };
    executor::start(core, main).expect("a core starts").join().expect("the scenario does not panic")
}

fn disk(guest: &Guest) -> DeviceNumber {
    let number = fs::metadata(&guest.disks()[0]).expect("the disk is there").rdev();
    DeviceNumber(major(number), minor(number))
}

fn line(length: u64, below: Below, start: u64) -> LinearLine {
    LinearLine { length: Sectors(length), below, start: Sectors(start) }
}

/// The private devices of a pool on one disk, bottom first. Of two lines, so that there are beginnings.
fn stack(disk: DeviceNumber) -> Vec<(Dm, Table)> {
    let linear = |below, start, length| Table::Linear(vec![line(length, below, start)]);
    let origin = Below::Dm(private(Role::OriginSub));
    let cap = Below::Dm(private(Role::Cache));
    let halves = vec![line(900_000, Below::Device(disk), 8_192), line(892_000, Below::Device(disk), 2_000_000)];
    let features = vec![ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];
    let thin_pool = Table::ThinPool { length: Sectors(692_224), block: Sectors(2_048), low_water: 169, features };
    vec![
        (private(Role::OriginSub), Table::Linear(halves)),
        (private(Role::Cache), linear(origin, 0, 1_792_000)),
        (private(Role::ThinMeta), linear(cap, 34_816, 8_192)),
        (private(Role::ThinData), linear(cap, 51_200, 692_224)),
        (private(Role::Mdv), linear(cap, 743_424, 1_048_576)),
        (private(Role::ThinPool), thin_pool),
    ]
}

fn thin() -> Vec<(Dm, Table)> {
    let thin = |device, id| (device, Table::Thin { length: Sectors(1 << 21), id });
    vec![thin(volume(), ID), thin(other_volume(), OTHER_ID)]
}

/// All of them from the top down.
fn downwards() -> Vec<Dm> {
    let roles = [Role::ThinPool, Role::ThinData, Role::ThinMeta, Role::Mdv, Role::Cache, Role::OriginSub];
    [volume(), other_volume()].into_iter().chain(roles.map(private)).collect()
}

/// Puts everything up.
async fn up(sys: &KernelSys, disk: DeviceNumber) -> Result<(), Fault> {
    sys.activate(&stack(disk)).await?;
    for id in [ID, OTHER_ID] {
        match sys.thin_create(pool(), id).await {
            Ok(_) | Err(Fault { why: Why::Errno(libc::EEXIST), .. }) => {}
            Err(fault) => return Err(fault),
        }
    }
    sys.activate(&thin()).await?;
    sys.settle(pool()).await;
    Ok(())
}

fn up_now(disk: DeviceNumber) -> Result<(), Fault> {
    on_machine(move |sys| async move { up(&sys, disk).await })
}

fn down_now() {
    on_machine(|sys| async move {
        sys.deactivate(&downwards()).await.expect("nobody uses them");
        sys.settle(pool()).await;
    });
    assert!(dm::devices().is_empty(), "{:?}", dm::devices());
    expect_no_cookies();
}

/// Semaphores of the whole machine.
fn semaphores() -> usize {
    let list = fs::read_to_string("/proc/sysvipc/sem").expect("the kernel has semaphores");
    list.lines().skip(1).count()
}

fn notes() -> usize {
    fs::read_dir("/run/stratisd/cookies").map_or(0, Iterator::count)
}

fn expect_no_cookies() {
    assert_eq!((semaphores(), notes()), (0, 0), "semaphores and notes of cookies are gone");
}

/// Makes a device as a daemon before us would have, with this table.
fn make(guest: &Guest, device: Dm, table: &str) {
    let name = device.to_string();
    guest.run("dmsetup", &["create", &name, "--uuid", &name, "--table", table]);
}

/// The next thin pool is a new one.
fn forget_metadata(guest: &Guest) {
    let node = format!("of=/dev/mapper/{}", private(Role::ThinMeta));
    guest.run("dd", &["if=/dev/zero", &node, "bs=4096", "count=1", "conv=fsync"]);
}

/// A whole stack with `thin` on top, and its tables as the kernel has them.
fn whole(guest: &Guest) -> (DeviceNumber, BTreeMap<String, String>) {
    let disk = disk(guest);
    up_now(disk).expect("a stack goes up");
    dm::expect_settled();
    (disk, dm::tables())
}

scenario!(
    /// A stack goes up, is found, answers, and goes down; with no udevd as well.
    a_stack_goes_up_and_down,
    ONE_DISK,
    |guest: &mut Guest| {
        threads_that_swap_tables_are_steady();
        a_stack_is_adopted_as_it_is(guest);
        a_thin_pool_answers(guest);
        without_udevd_there_are_no_cookies(guest);
    }
);

scenario!(
    /// Whatever a daemon that died left half done is finished.
    half_done_work_is_finished,
    ONE_DISK,
    |guest: &mut Guest| {
        beginnings_of_tables_are_completed(guest);
        a_thin_pool_is_told_of_its_larger_metadata(guest);
        a_thin_pool_learns_to_zero_its_blocks(guest);
        leftovers_are_cleared_up(guest);
    }
);

scenario!(
    /// What is not ours stays as it is, and what fails leaves nothing.
    foreign_devices_stay,
    ONE_DISK,
    foreign_devices_are_not_touched
);

scenario!(
    /// udevd hangs.
    hung_udevd,
    ONE_DISK,
    a_udevd_that_hangs_is_not_waited_for_long
);

scenario!(
    /// A daemon is killed while it waits for udev: the next one takes its semaphores away, and only those.
    cookies_of_the_dead,
    ONE_DISK,
    |guest: &mut Guest| {
        guest.run("ipcmk", &["-S", "1"]);
        guest.start();
        let disks = guest.disks();
        {
            let _frozen = udev::Frozen::now();
            let client = guest.client();
            let mut call = method(TOP, &interface("Manager", 9), "CreatePool");
            call.append_all(create_pool_arguments("p", &disks));
            client.send(call);
            guest.until("a cookie is waited for", |_| notes() > 0 && semaphores() > 1);
            guest.kill9();
        }
        udev::settle();
        assert_ne!((semaphores(), notes()), (1, 0), "the dead daemon left them");
        guest.start();
        assert!(guest.log().contains("semaphores of a daemon that died are removed"), "{}", guest.log());
        // It may be waiting for udev itself, because it takes down what the dead one had begun.
        guest.until("the other's semaphore alone is left", |_| (semaphores(), notes()) == (1, 0));
        dm::expect_settled();
        guest.stop();
    }
);

/// The kernel does not start I/O when they want memory, and a part of their stacks is locked.
fn threads_that_swap_tables_are_steady() {
    on_machine(|sys| async move {
        // Each comes with its first job: one with the first look for events, the other with this question.
        let hears = sys.clone();
        let _hears = rt::spawn("events", async move { hears.thin_pool_events().await });
        assert_eq!(sys.active(pool()).await, Ok(vec![]));
        for name in ["(events)", "(dm)"] {
            let end = Instant::now() + PATIENCE;
            while !is_steady(name) {
                assert!(Instant::now() < end, "{name} is not steady: {:#?}", stats());
                rt::sleep(Duration::from_millis(10)).await;
            }
        }
        let status = fs::read_to_string("/proc/self/status").expect("a process knows itself");
        let locked = status.lines().find(|line| line.starts_with("VmLck"));
        assert_ne!(locked.map(|line| line.ends_with(" 0 kB")), Some(true), "{locked:?}");
    });
}

/// What the kernel says of each thread of this process.
fn stats() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("a process knows its threads").flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok()).collect()
}

/// Whether a thread of this name makes the kernel start no I/O for memory.
fn is_steady(name: &str) -> bool {
    /// `PF_MEMALLOC_NOIO`.
    const NO_IO: u64 = 0x8_0000;
    let flags = |stat: &String| stat.split_once(name)?.1.split_ascii_whitespace().nth(6)?.parse::<u64>().ok();
    stats().iter().filter_map(flags).any(|flags| flags & NO_IO != 0)
}

/// Up, found as it is, and down again; udev knows what it is to know, and nothing is left.
fn a_stack_is_adopted_as_it_is(guest: &mut Guest) {
    let (disk, tables) = whole(guest);
    assert_eq!(tables.len(), 8);
    let devices = dm::devices();
    // Links are there without settling: udev was waited for.
    for device in &devices {
        let link = fs::canonicalize(format!("/dev/mapper/{}", device.name)).expect("udev made the link");
        assert_eq!(link.to_string_lossy(), format!("/dev/dm-{}", device.minor));
        let properties = udev::properties(&format!("/dev/dm-{}", device.minor));
        let private = properties.contains("DM_UDEV_DISABLE_OTHER_RULES_FLAG=1");
        assert_eq!(private, device.name.contains("private"), "{properties}");
        assert!(properties.contains("DM_UDEV_PRIMARY_SOURCE_FLAG=1"), "{properties}");
    }
    expect_no_cookies();
    up_now(disk).expect("adopted");
    assert_eq!((dm::tables(), dm::devices()), (tables, devices));
    down_now();
}

/// Numbers, states and messages.
fn a_thin_pool_answers(guest: &mut Guest) {
    let (_, _) = whole(guest);
    let minor_of = |device: Dm| dm::devices().iter().find(|found| found.name == device.to_string()).map(|d| d.minor);
    assert!(minor_of(volume()).is_some());
    on_machine(|sys| async move {
        assert_eq!(sys.active(pool()).await.expect("listed").len(), 8);
        assert_eq!(sys.active(PoolUuid::from_random([9; 16])).await, Ok(vec![]));
        let errno = |outcome: Result<(), Fault>| match outcome {
            Err(Fault { why: Why::Errno(errno), .. }) => errno,
            other => panic!("no error of the kernel: {other:?}"),
        };
        assert_eq!(errno(sys.thin_create(pool(), ID).await.map(drop)), libc::EEXIST);
        assert_eq!(errno(sys.thin_delete(pool(), ThinId(9)).await), libc::ENODATA);
        let state = sys.thin_pool(pool()).await.expect("a state");
        assert_eq!((state.mode, state.needs_check), (ThinPoolMode::ReadWrite, false));
        assert_eq!((state.meta_total, state.data_total, state.data_used), (1_024, 338, 0));
        sys.thin_commit(pool()).await.expect("committed");
        assert_eq!(sys.thin_used(pool(), FsUuid::from_random([2; 16])).await.expect("a size").0, 0);
        // What lies below another cannot go; what does not exist is fine, and each is tried.
        let below = sys.deactivate(&[private(Role::ThinMeta), volume(), volume(), other_volume()]).await;
        assert_eq!(errno(below), libc::EBUSY);
        assert_eq!(sys.active(pool()).await.expect("listed").len(), 6);
    });
    down_now();
}

/// A daemon that died while something grew left beginnings of tables: they are completed.
fn beginnings_of_tables_are_completed(guest: &mut Guest) {
    let (disk, tables) = whole(guest);
    down_now();
    let DeviceNumber(major, minor) = disk;
    make(guest, private(Role::OriginSub), &format!("0 900000 linear {major}:{minor} 8192"));
    on_machine(move |sys| async move {
        sys.activate(&stack(disk)[..4]).await.expect("the first is completed, the others made");
        sys.settle(pool()).await;
    });
    let minors = |role| {
        let name = private(role).to_string();
        dm::devices().iter().find(|device| device.name == name).expect("it is there").minor
    };
    // A new pool of half the data, and a volume of half the size.
    forget_metadata(guest);
    let major = tables[&private(Role::Cache).to_string()].split([' ', ':']).nth(3).expect("a number").to_owned();
    let pair = format!("{major}:{} {major}:{}", minors(Role::ThinMeta), minors(Role::ThinData));
    make(guest, private(Role::ThinPool), &format!("0 346112 thin-pool {pair} 2048 10 1 skip_block_zeroing"));
    let name = private(Role::ThinPool).to_string();
    guest.run("dmsetup", &["message", &name, "0", &format!("create_thin {ID}")]);
    make(guest, volume(), &format!("0 1048576 thin {major}:{} {ID}", minors(Role::ThinPool)));
    up_now(disk).expect("completed");
    dm::expect_settled();
    assert!(dm::status(&name).contains("/169 "), "a thin pool keeps its length: {}", dm::status(&name));
    on_machine(move |sys| async move {
        let top = stack(disk).into_iter().filter(|(device, _)| *device == private(Role::ThinPool));
        let stood = sys.swap(&top.collect::<Vec<_>>()).await.expect("it is active");
        assert!(stood > Duration::ZERO);
    });
    dm::expect_settled();
    assert_eq!(sizes(&dm::tables()), sizes(&tables));
    assert!(dm::status(&name).contains("/338 "), "the pool sees all of its data device: {}", dm::status(&name));
    assert!(dm::tables()[&name].contains(" 169 "), "and has its low water: {}", dm::tables()[&name]);
    down_now();
    let refused = on_machine(move |sys| async move { sys.swap(&stack(disk)).await });
    assert!(refused.is_err_and(|fault| fault.why == Why::Errno(libc::ENXIO)), "what is not active is not made");
    assert!(dm::devices().is_empty());
}

/// Lengths of the devices, by name.
fn sizes(tables: &BTreeMap<String, String>) -> Vec<(String, Vec<String>)> {
    let length = |line: &str| line.split(' ').nth(1).expect("a length").to_owned();
    tables.iter().map(|(name, table)| (name.clone(), table.lines().map(length).collect())).collect()
}

/// The metadata device grew, and the daemon died before the pool was told.
fn a_thin_pool_is_told_of_its_larger_metadata(guest: &mut Guest) {
    let (disk, tables) = whole(guest);
    down_now();
    let small = |disk| {
        let mut small = stack(disk);
        small[2].1 = Table::Linear(vec![line(4_096, Below::Dm(private(Role::Cache)), 34_816)]);
        small
    };
    on_machine(move |sys| async move {
        sys.activate(&small(disk)[..3]).await.expect("up");
        sys.settle(pool()).await;
    });
    forget_metadata(guest);
    let meta = private(Role::ThinMeta).to_string();
    on_machine(move |sys| async move {
        sys.activate(&small(disk)).await.expect("up");
        sys.settle(pool()).await;
    });
    let name = private(Role::ThinPool).to_string();
    assert!(dm::status(&name).contains("/512 "), "{}", dm::status(&name));
    guest.run("dmsetup", &["reload", &meta, "--table", tables[&meta].trim()]);
    guest.run("dmsetup", &["resume", &meta]);
    assert!(dm::status(&name).contains("/512 "), "{}", dm::status(&name));
    up_now(disk).expect("adopted");
    assert!(dm::status(&name).contains("/1024 "), "{}", dm::status(&name));
    dm::expect_settled();
    down_now();
}

/// Somebody made it such that it does not: what its record says counts, because new logs rely on it.
fn a_thin_pool_learns_to_zero_its_blocks(guest: &mut Guest) {
    let disk = disk(guest);
    up_now(disk).expect("a stack goes up");
    let name = private(Role::ThinPool).to_string();
    assert!(dm::tables()[&name].contains("skip_block_zeroing"), "this stack does not zero");
    on_machine(move |sys| async move {
        let mut zeroing = stack(disk);
        let Some((_, Table::ThinPool { features, .. })) = zeroing.last_mut() else { panic!("it is on top") };
        features.retain(|feature| *feature != ThinFeature::SkipBlockZeroing);
        sys.activate(&zeroing).await.expect("it learns");
        sys.settle(pool()).await;
    });
    assert!(!dm::tables()[&name].contains("skip_block_zeroing"), "{:?}", dm::tables());
    dm::expect_settled();
    down_now();
}

/// Tables that were loaded and not swapped in, suspended devices, devices without any table.
fn leftovers_are_cleared_up(guest: &mut Guest) {
    let (disk, tables) = whole(guest);
    let names = tables.keys().cloned().collect::<Vec<_>>();
    for name in &names {
        guest.run("dmsetup", &["reload", name, "--table", "0 8 error"]);
    }
    // From the top down: suspending writes what is on the way.
    for device in downwards() {
        guest.run("dmsetup", &["suspend", &device.to_string()]);
    }
    assert!(dm::devices().iter().all(|device| device.suspended && device.inactive));
    up_now(disk).expect("adopted");
    dm::expect_settled();
    assert_eq!(dm::tables(), tables);
    // One of two has something left to do.
    guest.run("dmsetup", &["suspend", &volume().to_string()]);
    up_now(disk).expect("adopted");
    dm::expect_settled();
    guest.run("dmsetup", &["reload", &other_volume().to_string(), "--table", "0 8 error"]);
    up_now(disk).expect("adopted");
    dm::expect_settled();
    assert_eq!(dm::tables(), tables);
    guest.run("dd", &["if=/dev/zero", &format!("of=/dev/mapper/{}", volume()), "bs=1M", "count=8", "conv=fsync"]);
    down_now();

    for (device, reload) in [(private(Role::OriginSub), false), (private(Role::Cache), true)] {
        let name = device.to_string();
        guest.run("dmsetup", &["create", &name, "--uuid", &name, "--notable"]);
        if reload {
            guest.run("dmsetup", &["reload", &name, "--table", "0 8 error"]);
        }
    }
    up_now(disk).expect("finished");
    dm::expect_settled();
    assert_eq!(sizes(&dm::tables()), sizes(&tables));
    down_now();
}

/// What is not ours stays as it is, and what fails leaves nothing.
fn foreign_devices_are_not_touched(guest: &mut Guest) {
    let disk = disk(guest);
    let DeviceNumber(major, minor) = disk;
    let origin = private(Role::OriginSub);
    for table in [
        format!("0 900000 linear {major}:{minor} 8193"),
        format!("0 900000 linear {major}:{minor} 8192\n900000 892001 linear {major}:{minor} 2000000"),
        "0 900000 error".to_owned(),
    ] {
        make(guest, origin, &table);
        guest.run("dmsetup", &["reload", &origin.to_string(), "--table", "0 8 error"]);
        let before = (dm::devices(), dm::tables());
        let fault = up_now(disk).expect_err("another table");
        assert_eq!((&fault.why, &fault.subject), (&Why::OtherTable, &origin.to_string()));
        assert_eq!((dm::devices(), dm::tables()), before);
        guest.run("dmsetup", &["remove", "--retry", &origin.to_string()]);
    }
    guest.run("dmsetup", &["create", &origin.to_string(), "--uuid", "mine", "--table", "0 8 error"]);
    assert!(matches!(up_now(disk).expect_err("another uuid").why, Why::Data(_)));
    guest.run("dmsetup", &["remove", "--retry", &origin.to_string()]);

    // Somebody holds the disk, and lets go of it when a first try was taken back: that is when
    // device-mapper has news.
    let held = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&guest.disks()[0]).expect("it is free");
    let news = fs::File::open("/dev/mapper/control").expect("device-mapper is there");
    let holder = thread::spawn(move || {
        let mut wanted = [PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut wanted, PollTimeout::NONE), Ok(1));
        drop(held);
    });
    let one = vec![stack(disk)[0].clone()];
    on_machine(move |sys| async move { sys.activate(&one).await.expect("free in the end") });
    holder.join().expect("it does not panic");
    down_now();

    // Beyond the end of the disk: the kernel does not take it.
    let far = vec![(origin, Table::Linear(vec![line(8, Below::Device(disk), 1 << 40)]))];
    let fault = on_machine(move |sys| async move { sys.activate(&far).await.expect_err("too far") });
    assert_eq!(fault.why, Why::Errno(libc::EINVAL));
    // The second does not lie on anything.
    let two = vec![stack(disk)[0].clone(), stack(disk)[2].clone()];
    let fault = on_machine(move |sys| async move { sys.activate(&two).await.expect_err("nothing below") });
    assert_eq!((fault.why, fault.subject), (Why::Errno(libc::ENXIO), private(Role::ThinMeta).to_string()));
    assert_eq!(dm::names(), [origin.to_string()]);
    down_now();
}

/// udevd hangs: everything goes on, waits are bounded, nothing leaks; and later it is well again.
fn a_udevd_that_hangs_is_not_waited_for_long(guest: &mut Guest) {
    let disk = disk(guest);
    {
        let _frozen = udev::Frozen::now();
        on_machine(move |sys| async move {
            sys.activate(&stack(disk)).await.expect("up");
            assert_ne!((semaphores(), notes()), (0, 0), "a cookie is waited for");
            // Waiting holds up nobody.
            assert_eq!(sys.thin_pool(pool()).await.expect("a state").mode, ThinPoolMode::ReadWrite);
            sys.settle(PoolUuid::from_random([9; 16])).await;
            sys.settle(pool()).await;
            sys.deactivate(&downwards()).await.expect("down");
            sys.settle(pool()).await;
            sys.settle(pool()).await;
            // Somebody helps himself and removes every cookie there is: nobody waits any more.
            sys.activate(&stack(disk)).await.expect("up");
            run("dmsetup", &["udevcomplete_all", "-y"]);
            sys.settle(pool()).await;
            sys.deactivate(&downwards()).await.expect("down");
            sys.settle(pool()).await;
        });
        assert!(dm::devices().is_empty());
        expect_no_cookies();
    }
    udev::settle();
    let (_, _) = whole(guest);
    down_now();
}

/// No udevd at all: nobody is waited for.
fn without_udevd_there_are_no_cookies(guest: &mut Guest) {
    let disk = disk(guest);
    let hidden = "/run/udev/hidden";
    fs::rename("/run/udev/control", hidden).expect("renamed");
    on_machine(move |sys| async move {
        sys.activate(&stack(disk)).await.expect("up");
        assert_eq!((semaphores(), notes()), (0, 0));
        sys.settle(pool()).await;
    });
    fs::rename(hidden, "/run/udev/control").expect("renamed");
    udev::settle();
    down_now();
}
