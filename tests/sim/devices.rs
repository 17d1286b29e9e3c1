//! Devices that join a pool, leave it with its cache, or grow: every crash point, faults, and who gets a device
//! that several want.

use stratisd::model::device::{BlockSizes, DevicePath, Tier};
use stratisd::model::dm::{Dm, Role, Table};

use super::*;

/// The machine, what stands before, and what is asked for then.
type Case = (fn() -> Machine, Before, fn(&Seen) -> Wish);

const NEW: [&str; 2] = ["/dev/c", "/dev/d"];

fn paths(devices: &[&str]) -> Vec<DevicePath> {
    devices.iter().map(|path| DevicePath::try_from(*path).expect("absolute")).collect()
}

pub(crate) fn init_cache(devices: &[&str]) -> Wish {
    Wish::InitCache(pool(), paths(devices))
}

pub(crate) fn add_data(devices: &[&str]) -> Wish {
    Wish::AddDataDevices(pool(), paths(devices))
}

pub(crate) fn add_cache(devices: &[&str]) -> Wish {
    Wish::AddCacheDevices(pool(), paths(devices))
}

pub(crate) fn start_without_cache() -> Wish {
    Wish::StartPool { pool: pool(), unlock: false, remove_cache: true }
}

/// What is seen of a device: `<uuid> at <path> in <tier> with <size>`.
fn device<'a>(seen: &'a Seen, path: &str) -> Option<&'a String> {
    seen.settings.iter().find(|setting| setting.contains(&format!(" at {path} in ")))
}

/// The UUID of a device that clients see.
pub(crate) fn uuid(seen: &Seen, path: &str) -> DevUuid {
    let line = device(seen, path).expect("the device is there");
    line.split(' ').next().expect("it begins with the UUID").parse().expect("a UUID")
}

fn is_in(seen: &Seen, path: &str, tier: Tier) -> bool {
    device(seen, path).is_some_and(|line| line.contains(&format!(" in {} ", tier.as_str())))
}

/// Two disks for the pool, and two more.
fn four() -> Machine {
    let machine = machine();
    for disk in NEW {
        machine.add_disk(disk, DISK);
    }
    machine
}

/// The two more were somebody's, so what nobody clears on them is not zero.
fn four_used() -> Machine {
    let machine = four();
    for disk in NEW {
        for at in [16, 524, 8_192, 1_056_768] {
            machine.scribble(disk, Sectors(at), &[0xa5; 4096]);
        }
    }
    machine
}

/// A device that is not the pool's carries no signature. Of a pool that is stopped only the number is seen.
fn joined_or_clean(machine: &Machine, seen: &Seen, at: &str) {
    if !seen.stopped.is_empty() {
        return;
    }
    for disk in NEW.into_iter().filter(|disk| device(seen, disk).is_none()) {
        let header = machine.bytes(disk, Sectors(0), Sectors(16));
        assert!(header.iter().all(|byte| *byte == 0), "a signature is left on {disk}: {at}");
    }
}

/// At every crash point, what is seen afterwards has left nothing behind on the others.
fn leaves_nothing(machine: fn() -> Machine, before: Before, wish: fn(&Seen) -> Wish) {
    let (actions, ended) = attempt(&machine(), before, wish, None);
    ended.finished().expect("nothing fails");
    for point in 1..=actions {
        for crash in 0..6 {
            let machine = machine();
            attempt(&machine, before, wish, Some(point));
            if crash == 0 {
                machine.kill()
            } else {
                machine.crash(crash)
            }
            let seen = look(SEED + crash, &machine);
            joined_or_clean(&machine, &seen, &format!("{before:?}, action {point} of {actions}, crash {crash}"));
        }
    }
}

#[test]
fn data_devices_join_whole_or_not_at_all() {
    every_crash_point_of(four_used, Before::Pool, |_| add_data(&NEW));
    leaves_nothing(four_used, Before::Pool, |_| add_data(&NEW));
}

#[test]
fn a_cache_comes_whole_or_not_at_all() {
    every_crash_point_of(four_used, Before::Filesystem, |_| init_cache(&NEW));
    leaves_nothing(four_used, Before::Filesystem, |_| init_cache(&NEW));
}

#[test]
fn a_cache_gets_more_whole_or_not_at_all() {
    every_crash_point_of(four, Before::Cached, |_| add_cache(&["/dev/d"]));
    leaves_nothing(four, Before::Cached, |_| add_cache(&["/dev/d"]));
}

#[test]
fn a_cache_goes_whole_or_not_at_all() {
    leaves_nothing(four, Before::CachedStopped, |_| start_without_cache());
    every_crash_point_of(four, Before::CachedStopped, |_| start_without_cache());
}

#[test]
fn a_pool_with_a_cache_stops_starts_and_goes_whole() {
    every_crash_point_of(four, Before::Cached, |_| Wish::StopPool(pool()));
    every_crash_point_of(four, Before::CachedStopped, |_| Wish::StartPool {
        pool: pool(),
        unlock: false,
        remove_cache: false,
    });
    every_crash_point_of(four, Before::Cached, |_| Wish::DestroyPool(pool()));
    leaves_nothing(four, Before::Cached, |_| Wish::DestroyPool(pool()));
}

#[test]
fn a_device_grows_whole_or_not_at_all() {
    every_crash_point(Before::Grown, |seen| Wish::GrowDevice(pool(), uuid(seen, "/dev/b")));
}

/// One action fails: the devices have joined, or nothing is left on them, and it stays so.
#[test]
fn a_fault_is_taken_back_or_the_devices_have_joined() {
    let cases: [Case; 5] = [
        (four, Before::Pool, |_| add_data(&NEW)),
        (four, Before::Pool, |_| init_cache(&NEW)),
        (four, Before::Cached, |_| add_cache(&["/dev/d"])),
        (version1::old_machine, Before::Old, |_| init_cache(&NEW)),
        (version1::old_machine, Before::OldCached, |_| add_cache(&["/dev/d"])),
    ];
    for (machine, before, wish) in cases {
        let (actions, _) = attempt(&machine(), before, wish, None);
        for point in 0..actions {
            let machine = machine();
            let failing = machine.clone();
            let (said, told, again) = live(SEED, &machine, move |driver| async move {
                prepare(&driver, &failing, before).await;
                failing.fail_at(failing.actions() + point, libc::EIO);
                let said = driver.call(wish(&driver.seen())).await;
                let told = driver.seen();
                // What was given back can be asked for again, unless the pool takes no changes any more.
                let again = driver.call(wish(&told)).await;
                (said, told, again)
            })
            .finished();
            let at = format!("{before:?}, fault at action {point} of {actions}: {said:?}");
            let last = device(&told, "/dev/d").is_some();
            assert_eq!(said.is_ok(), last, "{at}");
            assert!(last || matches!(again, Ok(Answer::DevicesAdded(_))), "{at}: {again:?}");
            assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
            machine.kill();
            let seen = look(SEED, &machine);
            assert!(device(&seen, "/dev/d").is_some(), "{at}");
        }
    }
}

#[test]
fn a_tier_has_each_device_once() {
    let machine = four();
    machine.add_link("/dev/disk/by-id/c", "/dev/c");
    let seen = live(SEED, &machine, |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("free");
        let no_cache = driver.call(add_cache(&[])).await;
        assert!(matches!(no_cache, Err(Failure::Refused(Refusal::NoCache { .. }))), "{no_cache:?}");
        let nothing = driver.call(init_cache(&[])).await;
        assert!(matches!(nothing, Err(Failure::Refused(Refusal::NoCacheDevices { .. }))), "{nothing:?}");
        let data = driver.call(init_cache(&["/dev/a"])).await;
        assert!(matches!(data, Err(Failure::Refused(Refusal::DeviceOtherTier { .. }))), "{data:?}");
        assert_eq!(driver.call(add_data(&[])).await, Ok(Answer::Identity));
        assert_eq!(driver.call(add_data(&["/dev/b", "/dev/a"])).await, Ok(Answer::Identity));

        let made = driver.call(init_cache(&["/dev/disk/by-id/c"])).await;
        assert!(matches!(&made, Ok(Answer::DevicesAdded(devices)) if devices.len() == 1), "{made:?}");
        assert_eq!(driver.call(init_cache(&["/dev/c"])).await, Ok(Answer::Identity));
        for others in [vec![], vec!["/dev/d"], vec!["/dev/c", "/dev/d"]] {
            let differs = driver.call(init_cache(&others)).await;
            assert!(matches!(differs, Err(Failure::Refused(Refusal::CacheDiffers { .. }))), "{differs:?}");
        }
        assert_eq!(driver.call(add_cache(&[])).await, Ok(Answer::Identity));
        assert_eq!(driver.call(add_cache(&["/dev/c"])).await, Ok(Answer::Identity));
        let data = driver.call(add_cache(&["/dev/a"])).await;
        assert!(matches!(data, Err(Failure::Refused(Refusal::DeviceOtherTier { .. }))), "{data:?}");
        let cache = driver.call(add_data(&["/dev/d", "/dev/c"])).await;
        assert!(matches!(cache, Err(Failure::Refused(Refusal::DeviceOtherTier { .. }))), "{cache:?}");

        let added = driver.call(add_data(&["/dev/a", "/dev/d"])).await;
        assert!(
            matches!(&added, Ok(Answer::DevicesAdded(devices)) if devices.len() == 1),
            "only what is new: {added:?}"
        );
        // The devices of the cache are not compared.
        let mut same = create_pool(&["/dev/a", "/dev/b", "/dev/d"]);
        if let Wish::CreatePool { pool, .. } = &mut same {
            *pool = PoolUuid::from_random([9; 16]);
        }
        assert_eq!(driver.call(same).await, Ok(Answer::Identity));
        driver.seen()
    })
    .finished();
    assert!(is_in(&seen, "/dev/d", Tier::Data) && is_in(&seen, "/dev/c", Tier::Cache), "{seen:#?}");
    let tables = machine.tables();
    let cache = &tables[&Dm::Private(pool(), Role::Cache)];
    assert!(matches!(cache, Table::Cache { .. }), "{cache:?}");
    assert_eq!(cache.length(), tables[&Dm::Private(pool(), Role::OriginSub)].length());
    machine.crash(1);
    assert_eq!(look(SEED, &machine), seen);
}

#[test]
fn unfit_devices_are_refused_and_nothing_is_changed() {
    let machine = four();
    machine.add_disk("/dev/small", Sectors(2_097_151));
    machine.occupy("/dev/d", "an ext4 file system");
    let before = machine.bytes("/dev/c", Sectors(0), Sectors(8192));
    let other = PoolUuid::from_random([9; 16]);
    machine.add_disk("/dev/e", DISK);
    live(SEED, &machine, move |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("free");
        let mut second = create_pool(&["/dev/e"]);
        if let Wish::CreatePool { pool, name: own, .. } = &mut second {
            (*pool, *own) = (other, name("q"));
        }
        driver.call(second).await.expect("free");
        let seen = driver.seen();
        for wrong in ["/dev/small", "/dev/d", "/dev/e", "/dev/none"] {
            for wish in [add_data(&["/dev/c", wrong]), init_cache(&["/dev/c", wrong])] {
                let refused = driver.call(wish).await;
                assert!(matches!(refused, Err(Failure::Refused(_))), "{wrong}: {refused:?}");
            }
        }
        assert_eq!(driver.seen(), seen);
        driver.call(add_data(&["/dev/c"])).await.expect("it was given back");
    })
    .finished();
    assert_ne!(machine.bytes("/dev/c", Sectors(0), Sectors(8192)), before);
}

#[test]
fn of_several_pools_that_want_a_device_one_gets_it() {
    let other = PoolUuid::from_random([9; 16]);
    for seed in 0..40 {
        let machine = four();
        let (outcomes, seen) = live(seed, &machine, move |driver| async move {
            driver.call(create_pool(&["/dev/a"])).await.expect("free");
            let mut second = create_pool(&["/dev/b"]);
            if let Wish::CreatePool { pool, name: own, .. } = &mut second {
                (*pool, *own) = (other, name("q"));
            }
            driver.call(second).await.expect("free");
            let mut third = create_pool(&["/dev/c"]);
            if let Wish::CreatePool { pool, name: own, .. } = &mut third {
                (*pool, *own) = (PoolUuid::from_random([11; 16]), name("r"));
            }
            let wishes = [
                add_data(&["/dev/c"]),
                Wish::AddDataDevices(other, paths(&["/dev/c"])),
                third,
                add_data(&["/dev/c", "/dev/d"]),
                Wish::InitCache(other, paths(&["/dev/d"])),
            ];
            let outcomes = all(wishes.map(|wish| driver.call(wish))).await;
            (outcomes, driver.seen())
        })
        .finished();
        assert_eq!(outcomes[..3].iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        assert_eq!(machine.bugs(), Vec::<String>::new());
        machine.crash(seed);
        assert_eq!(look(seed, &machine), seen, "what was replied stays");
    }
}

#[test]
fn what_was_added_has_room() {
    let machine = four();
    let limit = live(SEED, &machine, |driver| async move {
        driver.call(create_pool(&["/dev/a"])).await.expect("free");
        let asked = Wish::SetFsLimit(pool(), 20_000);
        let Err(Failure::Refused(Refusal::FsLimitSpace { fits, .. })) = driver.call(asked.clone()).await else {
            panic!("there is no room for so many")
        };
        driver.call(add_data(&NEW)).await.expect("free");
        assert!(fits < 20_000);
        driver.call(asked).await
    })
    .finished();
    assert_eq!(limit, Ok(Answer::Set));
    let origin = &machine.tables()[&Dm::Private(pool(), Role::OriginSub)];
    let Table::Linear(lines) = origin else { panic!("{origin:?}") };
    assert!(lines.len() > 1, "it goes on on the new devices: {lines:?}");
    machine.crash(3);
    assert!(look(SEED, &machine).running.contains_key(&pool()));
}

#[test]
fn a_cache_that_is_lost_is_left_behind() {
    let machine = four();
    let own = machine.clone();
    live(SEED, &machine, move |driver| async move { prepare(&driver, &own, Before::CachedStopped).await }).finished();
    machine.kill();
    machine.unplug("/dev/c");
    let (with, without, again) = live(SEED, &machine, |driver| async move {
        let with = driver.call(Wish::StartPool { pool: pool(), unlock: false, remove_cache: false }).await;
        let without = driver.call(start_without_cache()).await;
        (with, without, driver.call(start_without_cache()).await)
    })
    .finished();
    assert!(matches!(with, Err(Failure::Refused(Refusal::PoolIncomplete { missing: 1, .. }))), "{with:?}");
    assert!(matches!(&without, Ok(Answer::PoolStarted(_, devices, _)) if devices.len() == 2), "{without:?}");
    assert_eq!(again, Ok(Answer::Identity));
    // Found again it is a stranger, and nobody waits for it.
    machine.kill();
    machine.plug();
    let seen = look(SEED, &machine);
    assert!(seen.running.contains_key(&pool()) && device(&seen, "/dev/c").is_none(), "{seen:#?}");
}

/// A destruction fails half-way, and the device of the cache, which has no record, is found when those that have one
/// are wiped already. A random history came to that by the order of udev's reports.
#[test]
fn a_destruction_goes_on_whenever_a_device_is_found() {
    let destroy = || Wish::DestroyPool(pool());
    let (actions, _) = attempt(&four(), Before::Cached, |_| Wish::DestroyPool(pool()), None);
    let mut gone = 0;
    for point in 0..actions {
        let machine = four();
        let failing = machine.clone();
        let said = live(SEED, &machine, move |driver| async move {
            prepare(&driver, &failing, Before::Cached).await;
            failing.fail_at(failing.actions() + point, libc::EIO);
            driver.call(destroy()).await
        });
        if said.finished().is_ok() {
            continue;
        }
        machine.kill();
        machine.unplug("/dev/c");
        look(SEED, &machine);
        machine.kill();
        machine.plug();
        let seen = look(SEED, &machine);
        let runs = seen.running.contains_key(&pool());
        assert!(runs || seen == Seen::default(), "of {actions} actions {point} fails: {seen:#?}");
        gone += usize::from(!runs);
    }
    assert!(gone > 0, "some of {actions} faults come after the commit point");
}

/// A disk may come back behind another controller, which gives it larger blocks.
#[test]
fn an_unused_device_with_larger_blocks_keeps_its_pool_from_changes() {
    let coarse = BlockSizes { logical: 512, physical: 4096 };
    for (disk, limited) in [("/dev/a", false), ("/dev/c", true)] {
        let machine = four();
        live(SEED, &machine, |driver| async move {
            for step in [create_pool(&["/dev/a", "/dev/b"]), create_filesystem("one"), add_data(&["/dev/c"])] {
                driver.call(step).await.expect("what stands before is made");
            }
        })
        .finished();
        machine.crash(0);
        machine.set_blocks(disk, coarse);
        let (said, stopped, seen) = live(SEED + 1, &machine, |driver| async move {
            let said = driver.call(create_filesystem("two")).await;
            let seen = driver.seen();
            (said, driver.call(Wish::StopPool(pool())).await, seen)
        })
        .finished();
        let shown = seen.settings.contains(&format!("{} no_pool_changes", pool()));
        assert_eq!((shown, said.is_err()), (limited, limited), "{disk}: {said:?}");
        assert!(stopped.is_ok(), "{disk}: {stopped:?}");
    }
}

#[test]
fn a_device_grows_once_and_never_shrinks() {
    let machine = machine();
    let own = machine.clone();
    live(SEED, &machine, move |driver| async move {
        prepare(&driver, &own, Before::Grown).await;
        let grow = Wish::GrowDevice(pool(), uuid(&driver.seen(), "/dev/b"));
        assert_eq!(driver.call(grow.clone()).await, Ok(Answer::Set));
        assert!(device(&driver.seen(), "/dev/b").expect("there").contains(&format!("with {}", Sectors(2 * DISK.0))));
        assert_eq!(driver.call(grow.clone()).await, Ok(Answer::Identity));
        let unknown = Wish::GrowDevice(pool(), DevUuid::from_random([3; 16]));
        assert_eq!(driver.call(unknown).await, Ok(Answer::Identity));
        own.resize_disk("/dev/b", DISK);
        let shrunk = driver.call(grow).await;
        assert!(matches!(shrunk, Err(Failure::Refused(Refusal::DeviceShrunk { .. }))), "{shrunk:?}");
    })
    .finished();
}
