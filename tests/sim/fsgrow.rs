//! Filesystems that are mounted and written grow, at every crash point and with every fault; and nobody looks at
//! what cannot fill.

use std::time::Duration;

use cores::rt;
use stratisd::limits::{GROW_AGAIN_AFTER_MS, WATCH_IDLE_MS_MIN, WATCH_MS_MAX};
use stratisd::model::dm::{Dm, Table};
use stratisd::model::filesystem::FilesystemSpec;
use stratisd::model::ids::FsUuid;
use stratisd::units::Bytes;

use super::*;

const MIB: u128 = 1 << 20;
const GIB: u128 = 1 << 30;
/// What filesystems of these stories are made with.
const MADE: Sectors = Sectors(2_097_152);

/// Waits until clients see this size of a filesystem.
async fn until_size(driver: &Driver, filesystem: FsUuid, size: Sectors) {
    let wanted = format!("{filesystem} has {size}");
    driver.until(|seen| seen.settings.contains(&wanted)).await;
}

fn size(seen: &Seen, filesystem: FsUuid) -> Sectors {
    let about = format!("{filesystem} has ");
    let said = seen.settings.iter().find_map(|setting| setting.strip_prefix(&about)).expect("it is there");
    Sectors(said.split(' ').next().and_then(|number| number.parse().ok()).expect("a number of sectors"))
}

/// The length of the volume of a filesystem.
fn length(machine: &Machine, filesystem: FsUuid) -> Sectors {
    machine.tables()[&Dm::Thin(pool(), filesystem)].length()
}

/// A pool with `one` and `two`, of which `one` is mounted.
async fn mounted(driver: &Driver, machine: &Machine) -> FsUuid {
    prepare(driver, machine, Before::Mounted).await;
    filesystem(&driver.seen(), "one")
}

#[test]
fn who_writes_no_faster_than_believed_never_meets_a_full_filesystem() {
    for seed in 0..20 {
        let machine = machine();
        let own = machine.clone();
        live(seed, &machine, move |driver| async move {
            let one = mounted(&driver, &own).await;
            for mib in 1..3_000 {
                own.write_until(pool(), one, Bytes(mib * MIB)).expect("it has grown in time");
                // 32 MiB/s.
                rt::sleep(Duration::from_micros(31_250)).await;
            }
            assert_eq!(size(&driver.seen(), one), Sectors(8 * MADE.0), "of 4 GiB more than half is used");
            assert_eq!(length(&own, one), Sectors(8 * MADE.0));
            let two = filesystem(&driver.seen(), "two");
            assert_eq!(size(&driver.seen(), two), MADE, "nobody uses it");
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

#[test]
fn growth_is_all_or_nothing_at_every_crash_point() {
    let story = |machine: &Machine, stop_after: Option<u64>| {
        let (own, begins) = (machine.clone(), Rc::new(Cell::new(0)));
        let began = Rc::clone(&begins);
        let ended = live(SEED, machine, move |driver| async move {
            let one = mounted(&driver, &own).await;
            began.set(own.actions());
            if let Some(after) = stop_after {
                own.stop_at(own.actions() + after);
            }
            own.write_until(pool(), one, Bytes(600 * MIB)).expect("there is room");
            until_size(&driver, one, Sectors(2 * MADE.0)).await;
            rt::sleep(Duration::from_secs(1)).await;
            one
        });
        (machine.actions() - begins.get(), ended)
    };
    let whole = machine();
    let (actions, ended) = story(&whole, None);
    let one = ended.finished();
    assert_eq!(length(&whole, one), Sectors(2 * MADE.0));
    for point in 0..=actions {
        for crash in 0..CRASHES {
            let machine = machine();
            let (_, ended) = story(&machine, Some(point));
            let shown = matches!(ended, Ended::Finished(_));
            let at = format!("action {point} of {actions}, crash {crash}");
            // Who dies without the machine leaves the filesystem mounted.
            if crash == 0 {
                machine.kill()
            } else {
                machine.crash(crash)
            }
            let seen = look(SEED + crash, &machine);
            assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
            let now = size(&seen, one);
            assert!(now == Sectors(2 * MADE.0) || (now == MADE && !shown), "{now}: {at}");
            assert_eq!(length(&machine, one), now, "{at}");
            assert_eq!(seen.running[&pool()].1.len(), 2, "{at}");
            machine.kill();
            follows(&machine, one, &at);
        }
    }
}

/// Mounted again, it is as large as it should be, and works.
fn follows(machine: &Machine, one: FsUuid, at: &str) {
    machine.set_in_use(pool(), one, true);
    let (own, at) = (machine.clone(), at.to_owned());
    live(SEED, machine, move |driver| async move {
        rt::sleep(Duration::from_millis(3 * WATCH_MS_MAX)).await;
        assert_eq!(size(&driver.seen(), one), Sectors(2 * MADE.0), "{at}");
        own.write_until(pool(), one, Bytes(2 * GIB)).unwrap_or_else(|errno| panic!("errno {errno}: {at}"));
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn a_fault_leaves_what_was_and_is_tried_again() {
    let mut tried = 0;
    for point in 0.. {
        let machine = machine();
        let own = machine.clone();
        let met = live(SEED, &machine, move |driver| async move {
            let one = mounted(&driver, &own).await;
            own.write_until(pool(), one, Bytes(600 * MIB)).expect("there is room");
            let fails = own.actions() + point;
            own.fail_at(fails, libc::EIO);
            rt::sleep(Duration::from_millis(2 * WATCH_MS_MAX + GROW_AGAIN_AFTER_MS)).await;
            let at = format!("fault at action {point}: {:#?}", own.trace());
            assert_eq!(size(&driver.seen(), one), Sectors(2 * MADE.0), "{at}");
            own.write_until(pool(), one, Bytes(2 * GIB)).unwrap_or_else(|errno| panic!("errno {errno}: {at}"));
            own.actions() > fails
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
        if !met {
            break;
        }
        tried += 1;
    }
    assert!(tried > 5, "record, volume and filesystem: {tried}");
}

#[test]
fn a_size_limit_is_reached_and_not_passed() {
    let machine = machine();
    let own = machine.clone();
    let limit = Sectors(MADE.0 + MADE.0 / 4);
    live(SEED, &machine, move |driver| async move {
        let one = mounted(&driver, &own).await;
        driver.call(Wish::SetSizeLimit(pool(), one, Some(limit))).await.expect("it is above the size");
        own.write_until(pool(), one, Bytes(GIB)).expect("there is room");
        until_size(&driver, one, limit).await;
        rt::sleep(Duration::from_millis(WATCH_IDLE_MS_MIN)).await;
        own.write_until(pool(), one, limit.bytes()).expect("that much there is");
        assert_eq!(own.write_until(pool(), one, Bytes(2 * GIB)), Err(libc::ENOSPC));
        rt::sleep(Duration::from_millis(10 * WATCH_MS_MAX)).await;
        assert_eq!(size(&driver.seen(), one), limit);
        driver.call(Wish::SetSizeLimit(pool(), one, None)).await.expect("it may be");
        until_size(&driver, one, Sectors(2 * limit.0)).await;
    })
    .finished();
}

#[test]
fn without_overprovisioning_filesystems_grow_as_far_as_the_pool_has_room() {
    for seed in 0..20 {
        let machine = machine();
        let own = machine.clone();
        live(seed, &machine, move |driver| async move {
            let one = mounted(&driver, &own).await;
            let two = filesystem(&driver.seen(), "two");
            own.set_in_use(pool(), two, true);
            driver.call(Wish::SetOverprovisioning(pool(), false)).await.expect("they fit");
            for gib in [1, 2, 4] {
                // As far as each has come.
                for both in [one, two] {
                    let room = size(&driver.seen(), both).bytes().0.min(gib * GIB);
                    own.write_until(pool(), both, Bytes(room)).expect("so much there is");
                }
                rt::sleep(Duration::from_millis(2 * WATCH_MS_MAX)).await;
            }
            let seen = driver.seen();
            let sizes = [one, two].map(|both| size(&seen, both));
            // No more fits, and a new one does not either.
            let refused = driver.call(Wish::CreateFilesystems(
                pool(),
                vec![FilesystemSpec { name: name("three"), size: Some(Sectors(1_048_576)), size_limit: None }],
            ));
            assert!(matches!(refused.await, Err(Failure::Refused(Refusal::Overprovisioned { .. }))), "{sizes:?}");
            let total: Sectors = sizes.into_iter().sum();
            assert!(total > Sectors(5 * MADE.0) && total < Sectors(2 * DISK.0), "{sizes:?}");
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

/// Growth beside whatever clients do with the same filesystem.
#[test]
fn growth_and_clients_do_not_lose_each_others_changes() {
    for seed in 0..60 {
        let machine = machine();
        let own = machine.clone();
        live(seed, &machine, move |driver| async move {
            let one = mounted(&driver, &own).await;
            rt::sleep(Duration::from_millis(2 * WATCH_IDLE_MS_MIN)).await;
            own.write_until(pool(), one, Bytes(600 * MIB)).expect("there is room");
            // Into the middle of the growth, sooner or later.
            let grows = own.actions();
            while own.actions() == grows {
                rt::sleep(Duration::from_micros(100)).await;
            }
            rt::sleep(Duration::from_micros(seed * 200)).await;
            let wishes = vec![
                Wish::SetFilesystemName(pool(), one, name("uno")),
                Wish::SnapshotFilesystem(pool(), one, name("s")),
                Wish::SetSizeLimit(pool(), one, Some(Sectors(8 * MADE.0))),
            ];
            for outcome in all(wishes.into_iter().map(|wish| driver.call(wish))).await {
                outcome.expect("it can be done");
            }
            until_size(&driver, one, Sectors(2 * MADE.0)).await;
            let seen = driver.seen();
            let expected = (filesystem(&seen, "uno"), format!("{one} limit {}", Sectors(8 * MADE.0)));
            assert!(expected.0 == one && seen.settings.contains(&expected.1), "{seen:#?}");
            let snapshot = filesystem(&seen, "s");
            assert_eq!(length(&own, snapshot), size(&seen, snapshot));
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new(), "seed {seed}");
        machine.kill();
        let seen = look(seed, &machine);
        assert_eq!(seen.running[&pool()].1.len(), 3, "seed {seed}: {seen:#?}");
    }
}

#[test]
fn nobody_looks_at_what_cannot_fill() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, move |driver| async move {
        prepare(&driver, &own, Before::Pool).await;
        let spec = FilesystemSpec { name: name("large"), size: None, size_limit: None };
        driver.call(Wish::CreateFilesystems(pool(), vec![spec])).await.expect("it may be larger than the pool");
        own.set_in_use(pool(), filesystem(&driver.seen(), "large"), true);
        rt::sleep(Duration::from_millis(10 * WATCH_IDLE_MS_MIN)).await;
        let asked = own.questions();
        rt::sleep(Duration::from_secs(86_400)).await;
        let looks = own.questions() - asked;
        assert!((1_439..=1_441).contains(&looks), "a day without anybody: once a minute how the thin pool is, {looks}");
        // One that can fill is looked at again and again, at rest as often as its room allows.
        driver.call(create_filesystem("small")).await.expect("there is room");
        rt::sleep(Duration::from_millis(10 * WATCH_IDLE_MS_MIN)).await;
        let asked = own.questions();
        rt::sleep(Duration::from_secs(1_000)).await;
        let looks = own.questions() - asked;
        let expected = 1_000 / 16 + 1_000 / 60;
        assert!((expected - 3..=expected + 3).contains(&looks), "1 GiB: each 16 s one question more, {looks}");
        driver.call(Wish::StopPool(pool())).await.expect_err("the large one is mounted");
        own.set_in_use(pool(), filesystem(&driver.seen(), "large"), false);
        driver.call(Wish::StopPool(pool())).await.expect("nothing is");
        rt::sleep(Duration::from_millis(10 * WATCH_MS_MAX)).await;
        let asked = own.questions();
        rt::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(own.questions(), asked, "a stopped pool is not looked at");
    })
    .finished();
}

#[test]
fn a_volume_that_is_longer_than_recorded_is_adopted_and_recorded() {
    let machine = machine();
    let own = machine.clone();
    let one = live(SEED, &machine, move |driver| async move { mounted(&driver, &own).await }).finished();
    machine.kill();
    // Another daemon has made it longer and was cut off.
    let longer = machine.tables()[&Dm::Thin(pool(), one)].clone();
    let Table::Thin { id, .. } = longer else { panic!("{longer:?}") };
    machine.reload(Dm::Thin(pool(), one), Table::Thin { length: Sectors(3 * MADE.0), id });
    let seen = look(SEED, &machine);
    assert_eq!(size(&seen, one), Sectors(3 * MADE.0));
    machine.crash(3);
    let seen = look(SEED, &machine);
    assert_eq!(size(&seen, one), Sectors(3 * MADE.0), "durably");
    assert_eq!(length(&machine, one), Sectors(3 * MADE.0));
}
