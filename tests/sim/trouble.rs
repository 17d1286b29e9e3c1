//! Devices that fail or hang while records are saved, copies that are damaged or behind, records that are nearly too
//! long, and thin-pool metadata that has gone bad.

use std::time::Duration;

use cores::rt;
use stratisd::error::{Failure, Fault, Refusal, Why};
use stratisd::format::header::{self, Decoded, HEADER_SECTORS, Which};
use stratisd::format::mda::{self, REGIONS, Region, WallStamp};
use stratisd::limits::DEVICE_WAIT_MS;
use stratisd::message::{Answer, Wish};
use stratisd::model::dm::{Dm, Role, ThinPoolMode};
use stratisd::sys::sim::{Damage, Machine};
use stratisd::units::Sectors;

use crate::world::{Driver, Seen, create_filesystem, create_pool, live, look, pool};
use crate::{DISK, SEED, machine, strict};

const DISKS: [&str; 2] = ["/dev/a", "/dev/b"];
const REGION: Sectors = Sectors(508);
/// Longer than anybody waits for a device.
const LONG: Duration = Duration::from_secs(3_600);

fn no_overprovisioning() -> Wish {
    Wish::SetOverprovisioning(pool(), false)
}

fn start() -> Wish {
    Wish::StartPool { pool: pool(), unlock: false, remove_cache: false }
}

fn degraded(seen: &Seen) -> bool {
    seen.settings.contains(&format!("{} no_ipc_requests", pool()))
}

fn runs(seen: &Seen) -> bool {
    seen.running.contains_key(&pool())
}

fn start_of(region: usize) -> Sectors {
    HEADER_SECTORS + Sectors(REGION.0 * region as u64)
}

fn regions(machine: &Machine, disk: &str) -> [Region; REGIONS] {
    std::array::from_fn(|region| mda::decode(&machine.bytes(disk, start_of(region), REGION)))
}

/// When the newest record on a disk was written.
fn newest(machine: &Machine, disk: &str) -> WallStamp {
    mda::newest(&regions(machine, disk)).expect("the disk has a record").1
}

/// Whether both signatures of a disk are good.
fn signed(machine: &Machine, disk: &str) -> bool {
    [Which::First, Which::Second].into_iter().all(|which| {
        let block = machine.bytes(disk, which.block_start(), Sectors(1));
        matches!(header::decode(block.as_slice().try_into().expect("a sector")), Decoded::Good(_))
    })
}

/// Nothing on the disk is damaged or behind `time`, and others take it.
fn is_good(machine: &Machine, disk: &str, time: WallStamp) -> bool {
    signed(machine, disk)
        && !mda::damaged(&regions(machine, disk))
        && newest(machine, disk) == time
        && strict::accepts(machine, disk).is_ok()
}

/// How many writes to a disk the machine has in its trace.
fn writes(machine: &Machine, disk: &str) -> usize {
    let number = machine.number(disk);
    let subject = format!("write device {:x}:{:x} ", number.0, number.1);
    machine.trace().iter().filter(|line| line.contains(&subject)).count()
}

async fn with_filesystem(driver: &Driver, disks: &[&str]) {
    driver.call(create_pool(disks)).await.expect("it is created");
    driver.call(create_filesystem("one")).await.expect("it is created");
}

#[test]
fn a_device_that_hangs_counts_as_failed_and_gets_no_further_write() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, |driver| async move {
        with_filesystem(&driver, &DISKS).await;
        own.hang("/dev/b", true);
        let began = rt::now();
        assert_eq!(driver.call(no_overprovisioning()).await, Ok(Answer::Set), "one device has it");
        assert!(rt::now().since(began) >= Duration::from_millis(DEVICE_WAIT_MS));
        assert!(degraded(&driver.seen()) && runs(&driver.seen()));
        let refused = driver.call(create_filesystem("two")).await;
        assert!(matches!(refused, Err(Failure::Refused(Refusal::PoolUnavailable { .. }))), "{refused:?}");
        // Nobody waits for it any more, and nothing more is written to it.
        let (before, began) = (writes(&own, "/dev/b"), rt::now());
        driver.call(Wish::StopPool(pool())).await.expect("one device has it");
        assert!(rt::now().since(began) < Duration::from_secs(1), "a stop does not wait for it");
        assert_eq!(writes(&own, "/dev/b"), before);
        assert!(newest(&own, "/dev/a") > newest(&own, "/dev/b"));
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
    // What hung is on the disk by now, and older than what the other one has.
    machine.kill();
    machine.hang("/dev/b", false);
    let seen = look(SEED, &machine);
    assert_eq!((seen.stopped[&pool()].1, strict::accepts(&machine, "/dev/b")), (2, Ok(())));
}

#[test]
fn a_write_that_hung_and_its_pool_s_next_life_do_not_meet() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, |driver| async move {
        with_filesystem(&driver, &DISKS).await;
        own.hang("/dev/b", true);
        driver.call(no_overprovisioning()).await.expect("one device has it");
        driver.call(Wish::StopPool(pool())).await.expect("one device has it");
        let incomplete = driver.call(start()).await;
        assert!(matches!(incomplete, Err(Failure::Refused(Refusal::PoolIncomplete { .. }))), "{incomplete:?}");
        own.hang("/dev/b", false);
        driver.call(start()).await.expect("it tells what it holds again");
        let time = newest(&own, "/dev/a");
        assert!(DISKS.iter().all(|disk| is_good(&own, disk, time)), "the start has made good what it missed");
        assert!(!degraded(&driver.seen()));
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn a_device_that_works_again_gets_the_next_record() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, |driver| async move {
        with_filesystem(&driver, &DISKS).await;
        own.fail_writes("/dev/b", Some(libc::EIO));
        driver.call(no_overprovisioning()).await.expect("one device has it");
        assert!(degraded(&driver.seen()) && newest(&own, "/dev/a") > newest(&own, "/dev/b"));
        own.fail_writes("/dev/b", None);
        driver.call(Wish::StopPool(pool())).await.expect("one device has it");
        rt::sleep(LONG).await;
        assert_eq!(newest(&own, "/dev/a"), newest(&own, "/dev/b"));
    })
    .finished();
}

#[test]
fn the_only_device_of_a_pool_may_fail_for_a_while() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, |driver| async move {
        with_filesystem(&driver, &["/dev/a"]).await;
        own.fail_writes("/dev/a", Some(libc::EIO));
        let failed = driver.call(no_overprovisioning()).await;
        let why = Why::NoDevice { total: 1 };
        assert!(matches!(&failed, Err(Failure::Faulted(Fault { why: found, .. })) if *found == why), "{failed:?}");
        assert!(degraded(&driver.seen()));
        assert!(driver.seen().settings.contains(&format!("{} overprovisioning", pool())), "it is taken back");
        own.fail_writes("/dev/a", None);
        driver.call(Wish::StopPool(pool())).await.expect("the device works again");
        driver.call(start()).await.expect("it is whole");
        assert!(!degraded(&driver.seen()));
        driver.call(no_overprovisioning()).await.expect("all is well");
    })
    .finished();
}

#[test]
fn what_failed_devices_miss_the_next_start_makes_good() {
    for hangs in [false, true] {
        let machine = machine();
        let own = machine.clone();
        live(SEED, &machine, move |driver| async move {
            with_filesystem(&driver, &DISKS).await;
            if hangs {
                own.hang("/dev/b", true);
            } else {
                own.fail_writes("/dev/b", Some(libc::EIO));
            }
            driver.call(no_overprovisioning()).await.expect("one device has it");
        })
        .finished();
        machine.hang("/dev/b", false);
        machine.fail_writes("/dev/b", None);
        machine.crash(3);
        assert!(newest(&machine, "/dev/a") > newest(&machine, "/dev/b"));
        let seen = look(SEED, &machine);
        assert!(runs(&seen) && !degraded(&seen));
        let time = newest(&machine, "/dev/a");
        assert!(DISKS.iter().all(|disk| is_good(&machine, disk, time)));
    }
}

/// Some sectors of a disk.
type Place = (Sectors, u64);

/// A pool comes up whatever of its first disk's metadata, or of both disks', is damaged there, and makes that good.
fn damaged(places: &[Place], disks: &[&str]) {
    let machine = machine();
    live(SEED, &machine, |driver| async move {
        with_filesystem(&driver, &DISKS).await;
        driver.call(no_overprovisioning()).await.expect("it is set");
        driver.call(Wish::SetFsLimit(pool(), 200)).await.expect("there is room");
    })
    .finished();
    machine.crash(0);
    for disk in disks {
        for (start, count) in places {
            machine.scribble(disk, *start, &vec![0x5a; 512 * usize::try_from(*count).expect("few")]);
        }
    }
    let at = format!("{places:?} on {disks:?}");
    let seen = look(SEED, &machine);
    assert!(runs(&seen) && seen.running[&pool()].1.len() == 1, "{at}: {seen:?}");
    assert!(seen.settings.contains(&format!("{} fs limit 200", pool())), "{at}: the newest record counts");
    let time = newest(&machine, "/dev/b");
    for disk in DISKS {
        assert!(is_good(&machine, disk, time), "{disk} is not made good: {at} {:?}", regions(&machine, disk));
    }
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn no_good_copy_is_refused_and_damaged_ones_are_made_good() {
    let signature = |which: Which| (which.block_start(), 1);
    let header = |region| (start_of(region), 1);
    let record = |region| (start_of(region) + Sectors(1), 1);
    for disks in [&DISKS[..1], &DISKS] {
        damaged(&[signature(Which::First)], disks);
        damaged(&[signature(Which::Second)], disks);
        for region in 0..REGIONS {
            damaged(&[header(region)], disks);
            damaged(&[record(region)], disks);
        }
    }
    // Both copies of one pair on one disk: the other pair is whole, and the other disk has the newest.
    for pair in [0, 1] {
        damaged(&[header(pair), header(pair + 2)], &DISKS[..1]);
        damaged(&[record(pair), header(pair + 2)], &DISKS[..1]);
    }
}

#[test]
fn where_the_newest_record_is_lost_everywhere_the_one_before_counts() {
    // One of the pairs holds the newest record of both disks, the other one the record before.
    let lost = [0, 1].map(|pair| {
        let machine = machine();
        live(SEED, &machine, |driver| async move {
            with_filesystem(&driver, &DISKS).await;
            driver.call(no_overprovisioning()).await.expect("it is set");
        })
        .finished();
        machine.crash(0);
        for disk in DISKS {
            for region in [pair, pair + 2] {
                machine.scribble(disk, start_of(region), &[0x5a; 512]);
            }
        }
        let seen = look(SEED, &machine);
        assert!(runs(&seen), "the other pair is whole: {seen:?}");
        let time = newest(&machine, "/dev/a");
        assert!(DISKS.iter().all(|disk| is_good(&machine, disk, time)), "pair {pair}");
        seen.settings.contains(&format!("{} overprovisioning", pool()))
    });
    assert_ne!(lost[0], lost[1], "once the newest was lost, once the one before");
}

#[test]
fn a_device_that_says_nothing_holds_up_no_other_pool() {
    let machine = machine();
    live(SEED, &machine, |driver| async move { with_filesystem(&driver, &DISKS).await }).finished();
    machine.crash(0);
    machine.hang("/dev/b", true);
    let own = machine.clone();
    live(SEED, &machine, |driver| async move {
        let seen = driver.seen();
        assert!(!runs(&seen), "one device is not heard of: {seen:?}");
        own.hang("/dev/b", false);
        own.touch("/dev/b");
        driver.until(runs).await;
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

/// Disks for a large pool.
fn many(count: usize, hardware: Option<&str>) -> (Machine, Vec<String>) {
    let machine = Machine::new(SEED);
    let paths: Vec<String> = (0..count).map(|number| format!("/dev/d{number}")).collect();
    for path in &paths {
        machine.add_disk(path, DISK);
        if let Some(id) = hardware {
            machine.set_hardware(path, id);
        }
    }
    (machine, paths)
}

fn create_of(paths: &[String]) -> Wish {
    create_pool(&paths.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn of_a_hundred_devices_one_is_enough() {
    let (machine, paths) = many(100, None);
    let (own, create, failing) = (machine.clone(), create_of(&paths), paths.clone());
    live(SEED, &machine, |driver| async move {
        driver.call(create).await.expect("it is created");
        for path in &failing[..99] {
            own.fail_writes(path, Some(libc::EIO));
        }
        driver.call(no_overprovisioning()).await.expect("one device has it");
        assert!(degraded(&driver.seen()));
    })
    .finished();
    for path in &paths[..99] {
        machine.fail_writes(path, None);
    }
    machine.crash(1);
    let seen = look(SEED, &machine);
    assert!(runs(&seen) && !seen.settings.contains(&format!("{} overprovisioning", pool())), "{seen:?}");
    let time = newest(&machine, &paths[99]);
    assert!(paths.iter().all(|path| is_good(&machine, path, time)));
}

#[test]
fn a_record_leaves_room_for_what_its_pool_does_by_itself() {
    let long = "w".repeat(255);
    let (machine, paths) = many(700, Some(&long));
    let (few, all) = (create_of(&paths[..590]), create_of(&paths));
    let signature = machine.bytes(&paths[0], Sectors(0), Sectors(8192));
    let own = machine.clone();
    live(SEED, &machine, |driver| async move {
        let too_large = |outcome| matches!(outcome, Err(Failure::Refused(Refusal::RecordTooLarge { .. })));
        assert!(too_large(driver.call(all).await));
        assert_eq!(own.bytes(&paths[0], Sectors(0), Sectors(8192)), signature, "nothing was changed");
        driver.call(few).await.expect("there is room");
        let more: Vec<&str> = paths[590..].iter().map(String::as_str).collect();
        let more = more.iter().map(|path| stratisd::model::device::DevicePath::try_from(*path).expect("absolute"));
        assert!(too_large(driver.call(Wish::AddDataDevices(pool(), more.collect())).await));
        driver.call(Wish::StopPool(pool())).await.expect("that always fits");
        driver.call(start()).await.expect("it is whole");
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

// ---- metadata of thin pools ----------------------------------------------------------------------

/// A pool with a filesystem whose thin-pool metadata has gone bad; the power has failed.
fn with_damage(damage: Damage) -> Machine {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, move |driver| async move {
        with_filesystem(&driver, &DISKS).await;
        own.damage(pool(), damage);
    })
    .finished();
    machine.crash(0);
    machine
}

fn meta(machine: &Machine) -> Option<stratisd::model::dm::Table> {
    machine.tables().get(&Dm::Private(pool(), Role::ThinMeta)).cloned()
}

fn is_whole(machine: &Machine, at: &str) {
    assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
    let seen = look(SEED, machine);
    assert!(runs(&seen) && seen.running[&pool()].1.len() == 1, "{at}: {seen:?}");
    let volumes = machine.volumes(pool()).expect("a running pool has a thin pool");
    assert!(volumes.len() == 1 && volumes.values().all(Option::is_some), "{at}: {volumes:?}");
    assert!(!machine.tables().contains_key(&Dm::Private(pool(), Role::ThinMetaSpare)), "{at}");
}

#[test]
fn damaged_thin_metadata_is_repaired_into_the_spare_and_that_is_kept() {
    let untouched = with_damage(Damage::Repairable);
    let machine = with_damage(Damage::Repairable);
    is_whole(&machine, "the first start");
    let repaired = meta(&machine);
    let same = |machine: &Machine| meta(machine) == repaired;
    machine.kill();
    is_whole(&machine, "taken over");
    assert!(same(&machine));
    machine.crash(0);
    is_whole(&machine, "after a reboot");
    assert!(same(&machine), "the record says where it is");
    assert_ne!(repaired, {
        let sound = crate::machine();
        live(SEED, &sound, |driver| async move { with_filesystem(&driver, &DISKS).await }).finished();
        meta(&sound)
    });
    drop(untouched);
}

#[test]
fn a_repair_may_be_cut_off_anywhere() {
    for crash in 0..6 {
        let mut point = 0;
        loop {
            let machine = with_damage(Damage::Repairable);
            let before = machine.actions();
            machine.stop_at(before + point);
            live(SEED, &machine, |driver| async move { driver.seen() });
            let stopped = machine.stopped();
            if crash == 0 {
                machine.kill()
            } else {
                machine.crash(crash)
            }
            is_whole(&machine, &format!("action {point}, crash {crash}"));
            if !stopped {
                assert!(point > 20, "{point} actions are a start with a repair");
                break;
            }
            point += 1;
        }
    }
}

#[test]
fn a_repair_that_fails_changes_nothing_and_can_be_tried_again() {
    let mut point = 0;
    let mut failed = 0;
    loop {
        let machine = with_damage(Damage::Repairable);
        let first = machine.actions();
        machine.fail_at(first + point, libc::EIO);
        let seen = look(SEED, &machine);
        let past = machine.actions() - first <= point;
        failed += u32::from(!runs(&seen));
        machine.kill();
        is_whole(&machine, &format!("fault at action {point}: {seen:?}"));
        if past {
            break;
        }
        point += 1;
    }
    assert!(failed > 10, "{failed} starts failed: the story is about them");
}

#[test]
fn what_cannot_be_repaired_is_left_as_it_is() {
    let machine = with_damage(Damage::Hopeless);
    let head = |disk: &str| machine.bytes(disk, Sectors(0), Sectors(8192));
    let before = DISKS.map(head);
    let seen = look(SEED, &machine);
    assert!(!runs(&seen) && seen.stopped[&pool()].1 == 2, "{seen:?}");
    assert_eq!(DISKS.map(head), before);
    assert!(machine.tables().is_empty(), "nothing is left active: {:?}", machine.tables());
}

#[test]
fn a_thin_pool_that_is_active_is_not_checked_and_one_that_asks_for_it_is_well_again() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, move |driver| async move {
        with_filesystem(&driver, &DISKS).await;
        own.ail(pool(), ThinPoolMode::ReadOnly, true);
        rt::sleep(LONG).await;
    })
    .finished();
    machine.kill();
    let checks = |machine: &Machine| machine.trace().iter().filter(|line| line.contains("check the metadata")).count();
    let own = machine.clone();
    live(SEED, &machine, move |driver| async move {
        assert_eq!(checks(&own), 0);
        driver.until(|seen| seen.settings.contains(&format!("{} no_pool_changes", pool()))).await;
        driver.call(Wish::StopPool(pool())).await.expect("that is always possible");
        driver.call(start()).await.expect("its metadata is whole");
        assert_eq!(checks(&own), 1);
        driver.call(create_filesystem("two")).await.expect("it is well again");
    })
    .finished();
}
