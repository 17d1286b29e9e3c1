//! The machine's own rules, under the deterministic executor: what it lets pass, what it loses, and
//! that one seed is one history.
//!
//! Deliberately absent: pools. What the daemon makes of such a machine is tested above.

use std::time::Duration;

use cores::deterministic::{Ended, Universe};
use cores::rt;
use uuid::Uuid;

use super::{Machine, SimSys};
use crate::engine::volume;
use crate::error::{Failure, Fault, Refusal, Why};
use crate::model::device::{BlockSizes, DeviceNumber, DevicePath, Occupant};
use crate::model::dm::{Below, Dm, LinearLine, Role, Table, ThinFeature};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::shard::ops::format;
use crate::sys::{Folder, Opening, Sys, Target, Write, WriteData};
use crate::units::{Bytes, Sectors};
use crate::xfs::Log;

const POOL: PoolUuid = PoolUuid(Uuid::from_u128(1));
const FS: FsUuid = FsUuid(Uuid::from_u128(2));
const XFS: Uuid = Uuid::from_u128(3);
const MDV: Dm = Dm::Private(POOL, Role::Mdv);
const META: Dm = Dm::Private(POOL, Role::ThinMeta);
const THIN_POOL: Dm = Dm::Private(POOL, Role::ThinPool);
const VOLUME: Dm = Dm::Thin(POOL, FS);
const ID: ThinId = ThinId(0);
const LENGTH: Sectors = Sectors(1 << 21);
const DISK: &str = "/dev/a";

fn machine(seed: u64) -> Machine {
    let machine = Machine::new(seed);
    machine.add_disk(DISK, Sectors(1 << 22));
    machine
}

fn run<T: 'static>(machine: &Machine, work: impl AsyncFnOnce(SimSys) -> T + 'static) -> Ended<T> {
    let sys = machine.sys();
    Universe::new(7).run(async move { work(sys).await })
}

async fn open(sys: &SimSys, path: &str) -> DeviceNumber {
    let path = DevicePath::try_from(path).expect("absolute");
    let candidate = sys.examine(&path).await.expect("a disk");
    sys.open(&candidate, Opening::Member).await.expect("free");
    candidate.number
}

fn linear(below: Below, start: u64, length: u64) -> Table {
    Table::Linear(vec![LinearLine { length: Sectors(length), below, start: Sectors(start) }])
}

fn thin_pool_table() -> Table {
    Table::ThinPool { length: Sectors(1 << 20), block: Sectors(2048), low_water: 1, features: Vec::new() }
}

/// As new pools of stratisd 3.9.2 have it.
fn skipping_table() -> Table {
    let features = vec![ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];
    Table::ThinPool { length: Sectors(1 << 20), block: Sectors(2048), low_water: 1, features }
}

fn thin_table() -> Table {
    Table::Thin { length: LENGTH, id: ID }
}

/// Puts a filesystem on the thin volume, which takes five blocks, or 69 more with its log and its end.
async fn format_thin(sys: &SimSys, log: Log) -> Result<(), Fault> {
    let shape = volume::thin(LENGTH, sys.block_sizes(VOLUME).await?).expect("a shape");
    format::make(sys, VOLUME, &shape, log, XFS).await
}

async fn format_mdv(sys: &SimSys) -> Result<(), Fault> {
    let shape = volume::metadata(Sectors(1 << 20), sys.block_sizes(MDV).await?).expect("a shape");
    format::make(sys, MDV, &shape, Log::Zeroed, XFS).await
}

/// Opens the disk and sets up what lies below the thin volumes.
async fn set_up(sys: &SimSys) {
    set_up_with(sys, thin_pool_table()).await;
}

async fn set_up_with(sys: &SimSys, thin_pool: Table) {
    let device = Below::Device(open(sys, DISK).await);
    let layers = [
        (META, linear(device, 8192, 8192)),
        (Dm::Private(POOL, Role::ThinData), linear(device, 16384, 1 << 20)),
        (MDV, linear(device, 2 << 20, 1 << 20)),
        (THIN_POOL, thin_pool),
    ];
    for (dm, table) in layers {
        sys.activate(&[(dm, table)]).await.expect("what it needs is active");
    }
}

fn bytes(target: Target, start: u64, value: u8, sectors: usize) -> Write {
    Write { target, start: Sectors(start), data: WriteData::Bytes(vec![value; sectors * 512]) }
}

fn why<T: std::fmt::Debug>(outcome: Result<T, Fault>) -> Why {
    outcome.expect_err("it must fail").why
}

#[test]
fn a_device_needs_what_lies_below_it_and_holds_it() {
    let machine = machine(0);
    run(&machine, async |sys| {
        assert_eq!(why(sys.activate(&[(THIN_POOL, thin_pool_table())]).await), Why::Errno(libc::ENODEV));
        set_up(&sys).await;
        assert_eq!(why(sys.activate(&[(VOLUME, thin_table())]).await), Why::Errno(libc::ENODATA));
        sys.thin_create(POOL, ID).await.expect("new");
        sys.activate(&[(VOLUME, thin_table())]).await.expect("it exists");
        assert_eq!(why(sys.thin_delete(POOL, ID).await), Why::Errno(libc::EBUSY));
        assert_eq!(why(sys.deactivate(&[META]).await), Why::Errno(libc::EBUSY));
        assert_eq!(why(sys.deactivate(&[THIN_POOL]).await), Why::Errno(libc::EBUSY));
        for device in [VOLUME, THIN_POOL, META, META] {
            sys.deactivate(&[device]).await.expect("nothing lies on it");
        }
        assert_eq!(sys.active(POOL).await.expect("a list"), [Dm::Private(POOL, Role::ThinData), MDV]);
    })
    .finished();
}

#[test]
fn an_active_device_is_adopted_only_with_its_table() {
    let machine = machine(0);
    run(&machine, async |sys| set_up(&sys).await).finished();
    machine.kill();
    run(&machine, async |sys| {
        set_up(&sys).await;
        let mut other = thin_pool_table();
        if let Table::ThinPool { low_water, features, .. } = &mut other {
            *low_water = 99;
            features.push(ThinFeature::ErrorIfNoSpace);
        }
        sys.activate(&[(THIN_POOL, other)]).await.expect("low water and features may differ");
        let device = Below::Device(open(&sys, DISK).await);
        for (start, length) in [(8192, 8191), (8193, 8192)] {
            assert_eq!(why(sys.activate(&[(META, linear(device, start, length))]).await), Why::OtherTable);
        }
    })
    .finished();
}

#[test]
fn a_thin_pool_uses_a_longer_metadata_device_when_it_is_shown_and_no_shorter_one_again() {
    let machine = machine(0);
    let total = async |sys: &SimSys| sys.thin_pool(POOL).await.expect("it is active").meta_total;
    let set_up = async |sys: &SimSys, meta| {
        let device = Below::Device(open(sys, DISK).await);
        let data = (Dm::Private(POOL, Role::ThinData), linear(device, 16384, 1 << 20));
        sys.activate(&[(META, linear(device, 8192, meta)), data, (THIN_POOL, thin_pool_table())]).await
    };
    run(&machine, async move |sys| {
        set_up(&sys, 4096).await.expect("it is new");
        assert_eq!(total(&sys).await, 512);
        let device = Below::Device(open(&sys, DISK).await);
        sys.activate(&[(META, linear(device, 8192, 8192))]).await.expect("its table begins like this");
        assert_eq!(total(&sys).await, 512, "nobody has told it");
        sys.activate(&[(THIN_POOL, thin_pool_table())]).await.expect("it has this table");
        assert_eq!(total(&sys).await, 1024);
    })
    .finished();
    machine.crash(1);
    run(&machine, async move |sys| {
        assert_eq!(why(set_up(&sys, 4096).await), Why::Errno(libc::EINVAL));
        assert_eq!(set_up(&sys, 8192).await, Ok(()), "its table begins with what is active");
        assert_eq!(total(&sys).await, 1024);
    })
    .finished();
}

#[test]
fn two_devices_on_one_sector_and_raw_writes_below_a_device_are_bugs() {
    let machine = machine(0);
    let ended = run(&machine, async |sys| {
        set_up(&sys).await;
        let device = Below::Device(open(&sys, DISK).await);
        sys.activate(&[(Dm::Private(POOL, Role::Cache), linear(device, 16383, 2))]).await
    });
    assert!(matches!(ended, Ended::Panicked(_)));
    let ended = run(&machine, async |sys| {
        let device = Below::Device(open(&sys, DISK).await);
        sys.activate(&[(META, linear(device, 8192, 8193))]).await
    });
    assert!(matches!(ended, Ended::Panicked(_)), "the data of the thin pool lies there");
    let ended = run(&machine, async |sys| {
        let device = open(&sys, DISK).await;
        sys.write(vec![bytes(Target::Device(device), 8192, 1, 1)]).await
    });
    assert!(matches!(ended, Ended::Panicked(_)));
    assert_eq!(machine.bugs().len(), 3);
}

#[test]
fn what_was_flushed_survives_and_what_was_not_may_be_lost() {
    let mut survivors = [false; 2];
    for seed in 0..32 {
        let machine = machine(seed);
        run(&machine, async |sys| {
            let target = Target::Device(open(&sys, DISK).await);
            assert_eq!(sys.write(vec![bytes(target, 0, 1, 8)]).await, [Ok(())]);
            assert_eq!(sys.flush(vec![target]).await, [Ok(())]);
            assert_eq!(sys.write(vec![bytes(target, 8, 2, 1)]).await, [Ok(())]);
            assert_eq!(sys.read(target, Sectors(8), Sectors(1)).await.as_deref(), Ok(&[2; 512][..]));
        })
        .finished();
        machine.crash(seed);
        assert_eq!(machine.bytes(DISK, Sectors(0), Sectors(8)), vec![1; 8 * 512]);
        survivors[usize::from(machine.bytes(DISK, Sectors(8), Sectors(1))[0] == 2)] = true;
    }
    assert_eq!(survivors, [true; 2]);
}

#[test]
fn a_flush_does_not_wait_for_writes_under_way() {
    let unsaved = (0..32).any(|seed| {
        let machine = machine(seed);
        run(&machine, async |sys| {
            let target = Target::Device(open(&sys, DISK).await);
            let writer = sys.clone();
            let write = rt::spawn("write", async move { writer.write(vec![bytes(target, 0, 1, 1)]).await });
            assert_eq!(sys.flush(vec![target]).await, [Ok(())]);
            write.await.expect("no panic");
        })
        .finished();
        machine.durable_bytes(DISK, Sectors(0), Sectors(1))[0] == 0
    });
    assert!(unsaved, "some seed starts the flush before the write has ended");
}

#[test]
fn a_stopped_machine_does_nothing_and_the_next_process_goes_on() {
    let machine = machine(0);
    machine.stop_at(1);
    let ended = run(&machine, async |sys| {
        let target = Target::Device(open(&sys, DISK).await);
        for value in 1..=2 {
            assert_eq!(sys.write(vec![bytes(target, u64::from(value), value, 1)]).await, [Ok(())]);
        }
    });
    assert_eq!(ended, Ended::Stalled);
    assert!(machine.stopped());
    assert_eq!(machine.actions(), 1);
    assert_eq!(machine.bytes(DISK, Sectors(2), Sectors(1)), vec![0; 512]);
    machine.kill();
    let old = machine.clone();
    run(&machine, async |sys| {
        let target = Target::Device(open(&sys, DISK).await);
        let read = sys.read(target, Sectors(1), Sectors(1)).await;
        assert_eq!(read.as_deref(), Ok(&[1; 512][..]), "the kernel ended it");
    })
    .finished();
    assert!(!old.stopped());
}

#[test]
fn the_process_of_before_a_kill_is_dead() {
    let machine = machine(0);
    let dead = machine.sys();
    machine.kill();
    let path = DevicePath::try_from(DISK).expect("absolute");
    assert_eq!(Universe::new(1).run(async move { dead.examine(&path).await.is_ok() }), Ended::Stalled);
}

#[test]
fn an_action_told_to_fail_fails_once() {
    let machine = machine(0);
    machine.fail_at(1, libc::EIO);
    run(&machine, async |sys| {
        let target = Target::Device(open(&sys, DISK).await);
        assert_eq!(sys.write(vec![bytes(target, 0, 1, 1)]).await, [Ok(())]);
        assert_eq!(why(sys.flush(vec![target]).await.remove(0)), Why::Errno(libc::EIO));
        assert_eq!(sys.flush(vec![target]).await, [Ok(())]);
    })
    .finished();
    assert!(machine.trace()[1].contains("fails with errno 5"), "{:?}", machine.trace());
}

#[test]
fn a_dead_disk_fails_its_own_writes_only() {
    let machine = machine(0);
    machine.add_disk("/dev/b", Sectors(1 << 22));
    machine.fail_writes("/dev/b", Some(libc::EIO));
    run(&machine, async |sys| {
        let (good, dead) = (open(&sys, DISK).await, open(&sys, "/dev/b").await);
        let batch = [dead, good].map(|number| bytes(Target::Device(number), 0, 1, 1)).to_vec();
        let results = sys.write(batch).await;
        assert!(results[0].is_err() && results[1].is_ok());
        let results = sys.flush([dead, good].map(Target::Device).to_vec()).await;
        assert!(results[0].is_err() && results[1].is_ok());
    })
    .finished();
}

#[test]
fn one_seed_is_one_history_and_seeds_differ_in_order() {
    let history = |seed| {
        let machine = machine(seed);
        run(&machine, async |sys| {
            let target = Target::Device(open(&sys, DISK).await);
            sys.write((0..8).map(|at| bytes(target, at, 1, 1)).collect()).await;
        })
        .finished();
        machine.trace()
    };
    assert_eq!(history(5), history(5));
    assert!((0..8).any(|seed| history(seed) != history(5)));
}

/// Sets up, makes a volume and a filesystem on it. With `zeroed`, the permission to leave the log unwritten
/// is not used.
async fn make_filesystem(sys: &SimSys, thin_pool: Table, zeroed: bool) -> Result<(), Fault> {
    set_up_with(sys, thin_pool).await;
    let blank = sys.thin_create(POOL, ID).await?;
    sys.thin_commit(POOL).await?;
    sys.activate(&[(VOLUME, thin_table())]).await?;
    let log = match blank {
        Some(blank) if !zeroed => volume::log(&[], Some(blank)),
        Some(_) | None => Log::Zeroed,
    };
    format_thin(sys, log).await
}

#[test]
fn a_formatted_volume_survives_a_power_failure() {
    for (thin_pool, zeroed, blocks) in
        [(thin_pool_table as fn() -> Table, false, 5), (thin_pool_table, true, 70), (skipping_table, true, 70)]
    {
        let machine = machine(0);
        run(&machine, async move |sys| {
            make_filesystem(&sys, thin_pool(), zeroed).await.expect("nothing fails");
            assert_eq!(why(sys.thin_create(POOL, ID).await), Why::Errno(libc::EEXIST));
            assert_eq!(sys.thin_used(POOL, FS).await, Ok(Bytes(blocks << 20)));
            assert_eq!(sys.thin_pool(POOL).await.expect("active").data_used, u64::try_from(blocks).expect("few"));
        })
        .finished();
        machine.crash(1);
        assert_eq!(machine.tables().len(), 0);
        run(&machine, async |sys| set_up(&sys).await).finished();
        assert_eq!(machine.volumes(POOL).expect("active")[&ID], Some(XFS));
    }
}

#[test]
fn a_pool_that_does_not_zero_its_blocks_gives_no_permission_and_shows_why() {
    let machine = machine(0);
    run(&machine, async |sys| {
        set_up_with(&sys, skipping_table()).await;
        assert!(sys.thin_create(POOL, ID).await.expect("new").is_none());
        sys.activate(&[(VOLUME, thin_table())]).await.expect("it exists");
        // A permission that is another volume's, to see what it would do here.
        let stolen = crate::model::blank::ReadsZeroes::of_new_file(POOL, ThinId(9));
        format_thin(&sys, volume::log(&[], Some(stolen))).await.expect("nothing fails");
    })
    .finished();
    assert_eq!(machine.volumes(POOL).expect("active")[&ID], None, "old bytes are in its log");
}

#[test]
fn a_power_failure_in_the_middle_of_a_format_leaves_no_filesystem_unless_all_of_it_came_through() {
    for thin_pool in [thin_pool_table, skipping_table] {
        let whole = machine(0);
        run(&whole, async move |sys| make_filesystem(&sys, thin_pool(), false).await).finished().expect("it works");
        let mut seen = [0; 2];
        // 4 activations, create, commit, activate: the format begins with action 7.
        for stop in 8..whole.actions() {
            for seed in 0..16 {
                let machine = machine(seed);
                machine.stop_at(stop);
                let ended = run(&machine, async move |sys| make_filesystem(&sys, thin_pool(), false).await);
                assert_eq!(ended, Ended::Stalled);
                machine.crash(seed);
                run(&machine, async |sys| set_up(&sys).await).finished();
                let volume = *machine.volumes(POOL).expect("active").get(&ID).expect("it was committed");
                assert!(volume.is_none_or(|uuid| uuid == XFS));
                seen[usize::from(volume.is_some())] += 1;
            }
        }
        assert!(seen[0] > 50, "hundreds of sectors are hardly ever all kept: {seen:?}");
    }
}

#[test]
fn a_full_pool_a_dead_disk_and_a_mounted_volume_take_no_filesystem() {
    let full = || Table::ThinPool { length: Sectors(4 * 2048), block: Sectors(2048), low_water: 1, features: vec![] };
    let ended = run(&machine(0), async move |sys| make_filesystem(&sys, full(), false).await);
    let fault = ended.finished().expect_err("four blocks are not enough");
    assert_eq!(fault.why, Why::Errno(libc::ENOSPC));
    assert!(fault.to_string().contains(&VOLUME.to_string()), "{fault}");
    let machine = machine(0);
    let failing = machine.clone();
    run(&machine, async move |sys| {
        make_filesystem(&sys, thin_pool_table(), true).await.expect("nothing fails");
        failing.fail_writes(DISK, Some(libc::EIO));
        assert_eq!(why(format_thin(&sys, Log::Zeroed).await), Why::Errno(libc::EIO));
        failing.fail_writes(DISK, None);
        failing.set_in_use(POOL, FS, true);
    })
    .finished();
    let ended = run(&machine, async |sys| format_thin(&sys, Log::Zeroed).await);
    assert!(matches!(ended, Ended::Panicked(_)), "{ended:?}");
    assert_eq!(machine.bugs().len(), 1);
}

#[test]
fn a_dm_device_has_the_coarsest_blocks_below() {
    let machine = Machine::new(0);
    machine.add_disk_with(DISK, Sectors(1 << 22), BlockSizes { logical: 512, physical: 4096 });
    run(&machine, async |sys| {
        make_filesystem(&sys, thin_pool_table(), false).await.expect("nothing fails");
        format_mdv(&sys).await.expect("active");
        for device in [VOLUME, MDV] {
            assert_eq!(sys.block_sizes(device).await, Ok(BlockSizes { logical: 512, physical: 4096 }));
        }
        sys.mdv_mount(POOL).await.expect("formatted");
    })
    .finished();
    assert_eq!(machine.volumes(POOL).expect("active")[&ID], Some(XFS));
}

#[test]
fn a_thin_pool_does_not_start_on_metadata_that_is_not_its_own() {
    let machine = machine(0);
    machine.scribble(DISK, Sectors(8192), &[9; 512]);
    let outcome = Universe::new(0).run({
        let sys = machine.sys();
        async move {
            let device = Below::Device(open(&sys, DISK).await);
            sys.activate(&[(META, linear(device, 8192, 8192))]).await.expect("free");
            let data = Dm::Private(POOL, Role::ThinData);
            sys.activate(&[(data, linear(device, 16384, 1 << 20))]).await.expect("free");
            sys.activate(&[(THIN_POOL, thin_pool_table())]).await
        }
    });
    assert_eq!(why(outcome.finished()), Why::Errno(libc::EILSEQ));
}

#[test]
fn the_metadata_volume_lives_on_its_sectors() {
    let machine = machine(0);
    run(&machine, async |sys| {
        set_up(&sys).await;
        assert_eq!(why(sys.mdv_mount(POOL).await), Why::Errno(libc::EINVAL), "there is no XFS yet");
        format_mdv(&sys).await.expect("active");
        sys.mdv_mount(POOL).await.expect("formatted");
        assert_eq!(why(sys.deactivate(&[MDV]).await), Why::Errno(libc::EBUSY));
        sys.mdv_write(POOL, Folder::Filesystems, "a", b"record").await.expect("mounted");
        sys.mdv_sync(POOL, Folder::Filesystems, "a").await.expect("there");
        sys.mdv_sync_folder(POOL, Folder::Filesystems).await.expect("mounted");
        assert_eq!(why(sys.mdv_read(POOL, Folder::Intents, "a").await), Why::Errno(libc::ENOENT));
    })
    .finished();
    assert_eq!(machine.mdv_uuid(POOL), Some(XFS));
    machine.crash(3);
    run(&machine, async |sys| {
        set_up(&sys).await;
        sys.mdv_mount(POOL).await.expect("it survived");
        assert_eq!(sys.mdv_list(POOL, Folder::Filesystems).await.expect("mounted"), ["a"]);
        assert_eq!(sys.mdv_read(POOL, Folder::Filesystems, "a").await.expect("there"), b"record");
        sys.mdv_unmount(POOL).await.expect("mounted");
        let zero = Write { target: Target::Dm(MDV), start: Sectors(0), data: WriteData::Zeroes(Sectors(1)) };
        assert_eq!(sys.write(vec![zero]).await, [Ok(())]);
        assert!(sys.mdv_mount(POOL).await.is_err(), "it was overwritten");
    })
    .finished();
}

#[test]
fn a_killed_process_leaves_its_tables_and_loses_its_mount_without_loss() {
    let machine = machine(0);
    run(&machine, async |sys| {
        set_up(&sys).await;
        format_mdv(&sys).await.expect("active");
        sys.mdv_mount(POOL).await.expect("formatted");
        sys.mdv_write(POOL, Folder::Intents, "i", b"half").await.expect("mounted");
    })
    .finished();
    machine.kill();
    assert_eq!(machine.tables().len(), 4);
    assert_eq!(machine.mdv_uuid(POOL), None);
    run(&machine, async |sys| {
        let target = Target::Device(DeviceNumber(0, 0));
        assert_eq!(why(sys.read(target, Sectors(0), Sectors(1)).await), Why::Errno(libc::EBADF));
        set_up(&sys).await;
        sys.mdv_mount(POOL).await.expect("formatted");
        assert_eq!(sys.mdv_read(POOL, Folder::Intents, "i").await.expect("kept"), b"half");
    })
    .finished();
}

#[test]
fn examination_finds_size_links_and_residents() {
    let machine = machine(0);
    machine.add_link("/dev/disk/by-id/x", DISK);
    machine.add_disk("/dev/b", Sectors(1 << 22));
    machine.occupy("/dev/b", "an ext4 filesystem");
    run(&machine, async |sys| {
        let examine = async |path| sys.examine(&DevicePath::try_from(path).expect("absolute")).await;
        let linked = examine("/dev/disk/by-id/x").await.expect("a disk");
        assert_eq!(linked.path.to_string(), DISK);
        assert_eq!(linked.occupant, Occupant::Nobody);
        let other = examine("/dev/b").await.expect("a disk");
        assert_eq!(other.occupant, Occupant::Other("an ext4 filesystem".into()));
        assert!(matches!(examine("/dev/c").await, Err(Failure::Refused(Refusal::DeviceMissing(_)))));
        assert_eq!(sys.discover().await.expect("a list"), []);
    })
    .finished();
}

#[test]
fn a_daemon_s_machine_makes_disks_up_and_takes_no_time() {
    let machine = Machine::daemon();
    run(&machine, async |sys| {
        let before = rt::now();
        let number = open(&sys, "/whatever").await;
        assert_eq!(number, open(&Machine::daemon().sys(), "/whatever").await, "machines agree");
        assert_eq!(sys.write(vec![bytes(Target::Device(number), 0, 1, 1)]).await, [Ok(())]);
        assert_eq!(rt::now().since(before), Duration::ZERO);
    })
    .finished();
    assert_eq!(machine.bytes("/whatever", Sectors(0), Sectors(1)), vec![1; 512]);
}

/// Writes a region whose first unit says how many more there are, in this order of groups, with a
/// flush after each; returns what a reader finds after a power failure at every action and seed.
fn region_after_failures(groups: &'static [&'static [u64]]) -> Vec<Vec<u8>> {
    const UNITS: usize = 4;
    let mut seen = Vec::new();
    for stop in 0.. {
        for seed in 0..16 {
            let machine = machine(seed);
            machine.scribble(DISK, Sectors(0), &[1; UNITS * 512]);
            machine.stop_at(stop);
            let ended = run(&machine, async move |sys| {
                let target = Target::Device(open(&sys, DISK).await);
                for group in groups {
                    let batch = group.iter().map(|at| bytes(target, *at, 2, 1)).collect();
                    assert!(sys.write(batch).await.iter().all(Result::is_ok));
                    assert_eq!(sys.flush(vec![target]).await, [Ok(())]);
                }
            });
            machine.crash(seed);
            let units = machine.bytes(DISK, Sectors(0), Sectors(UNITS as u64));
            seen.push(units.iter().copied().step_by(512).collect());
            if ended != Ended::Stalled && seed == 15 {
                assert_eq!(seen.pop().expect("just pushed"), [2; UNITS], "all was flushed");
                seen.sort();
                seen.dedup();
                return seen;
            }
        }
    }
    unreachable!("some stop is behind the last action")
}

#[test]
fn power_failures_find_the_careless_order_and_spare_the_careful_one() {
    let header_only = |after: &Vec<u8>| after[0] == 2 && after[1..].contains(&1);
    let careful = region_after_failures(&[&[1, 2, 3], &[0]]);
    assert!(!careful.iter().any(header_only), "{careful:?}");
    assert!(careful.len() > 4, "the rest may be torn in many ways: {careful:?}");
    let careless = region_after_failures(&[&[0, 1, 2, 3]]);
    assert!(careless.iter().any(header_only), "{careless:?}");
}
