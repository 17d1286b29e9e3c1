//! Every crash point of every operation.
//!
//! For each operation: it is run once to count the actions of the machine (writes, flushes, dm
//! calls, formats, files), then once for each action with the machine freezing there, losing or
//! tearing what was not flushed (several seeds), or only the process dying. The next boot must show
//! the state before the operation or the state after it, and after it if it was replied to.

mod always;
mod bounds;
mod crash;
mod deeds;
mod devices;
mod encryption;
mod errors;
mod events;
mod extend;
mod failing;
mod faults;
mod flood;
mod format;
mod found;
mod fsgrow;
mod history;
mod limit;
mod longer;
mod memory;
mod metadata;
mod names;
mod office;
mod requests;
mod reverts;
mod snapshots;
mod sound;
mod strict;
#[path = "../support/mod.rs"]
mod support;
mod together;
mod trouble;
mod version1;
mod world;
#[cfg(feature = "zoo")]
mod zoo;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use cores::deterministic::Ended;
use sound::sound as nothing_left_over;
use stratisd::engine::grow::Pace;
use stratisd::error::{Failure, Refusal};
use stratisd::message::{Answer, Wish};
use stratisd::model::ids::{DevUuid, PoolUuid, ThinId};
use stratisd::shard::wait::all;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;
use world::{Driver, Seen, create_filesystem, create_pool, filesystem, live, look, name, pool, snapshot};

const DISK: Sectors = Sectors(8_388_608);
const SEED: u64 = 1;
/// Ways to lose what was not flushed that are tried at each point; the first is losing nothing.
const CRASHES: u64 = 16;

/// A number of the environment.
fn given(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}

/// The seed of this run: `SEED`, or always the same, so that what fails is what has changed.
fn seed() -> u64 {
    given("SEED").unwrap_or(1)
}

fn machine() -> Machine {
    let machine = Machine::new(SEED);
    machine.add_disk("/dev/a", DISK);
    machine.add_disk("/dev/b", DISK);
    machine
}

/// Two disks of which another daemon destroyed a pool: it wiped the signatures and nothing else.
fn used_machine() -> Machine {
    let machine = machine();
    let mut first = create_pool(&["/dev/a", "/dev/b"]);
    if let Wish::CreatePool { pool, name: own, .. } = &mut first {
        *pool = PoolUuid::from_random([5; 16]);
        *own = name("first");
    }
    live(SEED, &machine, |driver| async move { driver.call(first).await }).finished().expect("it is created");
    machine.crash(0);
    for disk in ["/dev/a", "/dev/b"] {
        machine.scribble(disk, Sectors(0), &[0; 8192]);
    }
    machine
}

/// What stands before the operation under test.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    Pool,
    Filesystem,
    /// The same, and `one` is mounted.
    Mounted,
    /// `one`, a snapshot `s` of it, and a snapshot `t` of that.
    Snapshots,
    /// The pool has a cache on the third disk.
    Cached,
    /// Its second disk has grown.
    Grown,
    Stopped,
    /// The same with a cache on the third disk.
    CachedStopped,
    /// The pool of version 1 that the machine came with; stopped; with a cache on the third disk; both.
    Old,
    OldStopped,
    OldCached,
    OldCachedStopped,
}

async fn prepare(driver: &Driver, machine: &Machine, before: Before) {
    let steps = match before {
        Before::Nothing | Before::Old => vec![],
        Before::OldStopped => vec![Wish::StopPool(pool())],
        Before::OldCached => vec![devices::init_cache(&["/dev/c"])],
        Before::OldCachedStopped => vec![devices::init_cache(&["/dev/c"]), Wish::StopPool(pool())],
        Before::Pool | Before::Grown => vec![create_pool(&["/dev/a", "/dev/b"])],
        Before::Cached => vec![create_pool(&["/dev/a", "/dev/b"]), devices::init_cache(&["/dev/c"])],
        Before::Filesystem | Before::Mounted => {
            vec![create_pool(&["/dev/a", "/dev/b"]), create_filesystem("one"), create_filesystem("two")]
        }
        Before::Snapshots => vec![create_pool(&["/dev/a", "/dev/b"]), create_filesystem("one")],
        Before::Stopped => {
            vec![create_pool(&["/dev/a", "/dev/b"]), create_filesystem("one"), Wish::StopPool(pool())]
        }
        Before::CachedStopped => {
            let create = create_pool(&["/dev/a", "/dev/b"]);
            vec![create, create_filesystem("one"), devices::init_cache(&["/dev/c"]), Wish::StopPool(pool())]
        }
    };
    for step in steps {
        driver.call(step).await.expect("what stands before is made");
    }
    if before == Before::Grown {
        machine.resize_disk("/dev/b", Sectors(2 * DISK.0));
    }
    if before == Before::Mounted {
        machine.set_in_use(pool(), filesystem(&driver.seen(), "one"), true);
    }
    if before == Before::Snapshots {
        for (origin, name) in [("one", "s"), ("s", "t")] {
            driver.call(snapshot(&driver.seen(), origin, name)).await.expect("what stands before is made");
        }
    }
}

/// Boots, prepares, and asks for the operation; `stop_after` actions of the operation the machine
/// freezes. Gives back how many actions were made before and by the operation, and the answer.
fn attempt(
    machine: &Machine,
    before: Before,
    wish: fn(&Seen) -> Wish,
    stop_after: Option<u64>,
) -> (u64, Ended<Result<Answer, Failure>>) {
    let start = Rc::new(Cell::new(0));
    let (counted, counting) = (Rc::clone(&start), machine.clone());
    let ended = live(SEED, machine, move |driver| async move {
        prepare(&driver, &counting, before).await;
        counted.set(counting.actions());
        if let Some(after) = stop_after {
            counting.stop_at(counting.actions() + after);
        }
        let wish = wish(&driver.seen());
        driver.call(wish).await
    });
    (machine.actions() - start.get(), ended)
}

fn every_crash_point(before: Before, wish: fn(&Seen) -> Wish) {
    every_crash_point_of(machine, before, wish);
}

fn every_crash_point_of(machine: fn() -> Machine, before: Before, wish: fn(&Seen) -> Wish) {
    let machine = machine();
    let own = machine.clone();
    let prepare = move |driver: Rc<Driver>| async move { prepare(&driver, &own, before).await };
    let run = crash::run((Pace::default(), SEED), &machine, prepare, move |seen| Some(wish(seen)));
    assert!(matches!(run.outcome, Some(Ok(_))), "the operation succeeds when nothing fails: {:?}", run.outcome);
    let tally = crash::verify(&run, usable, &format!("{before:?}"));
    assert!(tally.changed == 1, "the operation changes what clients see");
}

/// What came up can be worked with.
fn usable(machine: &Machine, seen: &Seen, at: &str) {
    let next = match (seen.running.is_empty(), seen.stopped.is_empty()) {
        (true, true) => create_pool(&["/dev/a", "/dev/b"]),
        (false, _) => create_filesystem("next"),
        (true, false) => Wish::StartPool { pool: pool(), unlock: false, remove_cache: false },
    };
    machine.kill();
    // Another seed, so that a new filesystem does not get the UUID of one that is there.
    let outcome = live(SEED + 1, machine, move |driver| async move { driver.call(next).await }).finished();
    assert!(outcome.is_ok(), "not usable: {at} {outcome:?}");
}

#[test]
fn create_pool_is_all_or_nothing() {
    every_crash_point(Before::Nothing, |_| create_pool(&["/dev/a", "/dev/b"]));
}

#[test]
fn what_a_destroyed_pool_left_behind_is_never_taken_for_new() {
    every_crash_point_of(used_machine, Before::Nothing, |_| create_pool(&["/dev/a", "/dev/b"]));
}

#[test]
fn create_filesystem_is_all_or_nothing() {
    every_crash_point(Before::Pool, |_| create_filesystem("one"));
}

#[test]
fn destroy_filesystem_is_all_or_nothing() {
    every_crash_point(Before::Filesystem, |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "one")]));
}

#[test]
fn destroy_pool_is_all_or_nothing() {
    every_crash_point(Before::Pool, |_| Wish::DestroyPool(pool()));
}

#[test]
fn stop_pool_is_all_or_nothing() {
    every_crash_point(Before::Filesystem, |_| Wish::StopPool(pool()));
}

#[test]
fn start_pool_is_all_or_nothing() {
    every_crash_point(Before::Stopped, |_| Wish::StartPool { pool: pool(), unlock: false, remove_cache: false });
}

#[test]
fn a_setting_is_all_or_nothing() {
    every_crash_point(Before::Pool, |_| Wish::SetOverprovisioning(pool(), false));
    every_crash_point(Before::Filesystem, |seen| {
        Wish::SetSizeLimit(pool(), filesystem(seen, "one"), Some(Sectors(4_194_304)))
    });
}

#[test]
fn every_fault_is_unwound() {
    for (before, wish) in [
        (Before::Nothing, (|_| create_pool(&["/dev/a", "/dev/b"])) as fn(&Seen) -> Wish),
        (Before::Pool, |_| create_filesystem("one")),
        (Before::Filesystem, |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "one")])),
        (Before::Filesystem, |seen| snapshot(seen, "one", "s")),
        (Before::Mounted, |seen| snapshot(seen, "one", "s")),
        (Before::Snapshots, |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "s")])),
        (Before::Filesystem, |_| Wish::StopPool(pool())),
        (Before::Filesystem, |_| Wish::SetFsLimit(pool(), 500)),
        (Before::Grown, |seen| Wish::GrowDevice(pool(), devices::uuid(seen, "/dev/b"))),
        (Before::Filesystem, |_| Wish::SetPoolName(pool(), name("q"))),
        (Before::Filesystem, |seen| Wish::SetFilesystemName(pool(), filesystem(seen, "one"), name("uno"))),
        (Before::Filesystem, |seen| Wish::SetSizeLimit(pool(), filesystem(seen, "one"), Some(Sectors(4_194_304)))),
        (Before::Snapshots, |seen| Wish::SetMerge(pool(), filesystem(seen, "s"), true)),
        (Before::Stopped, |_| Wish::StartPool { pool: pool(), unlock: false, remove_cache: false }),
    ] {
        let (actions, _) = attempt(&machine(), before, wish, None);
        for point in 1..=actions {
            one_fault(machine, before, wish, point);
        }
    }
}

/// One action fails with EIO: whatever the operation then says, what clients see and what the next
/// boot shows is one and the same, and it is the state before or after.
fn one_fault(machine: fn() -> Machine, before: Before, wish: fn(&Seen) -> Wish, point: u64) {
    let machine = machine();
    let failing = machine.clone();
    let (said, told) = live(SEED, &machine, move |driver| async move {
        prepare(&driver, &failing, before).await;
        failing.fail_at(failing.actions() + point, libc::EIO);
        let said = driver.call(wish(&driver.seen())).await;
        (said, driver.seen())
    })
    .finished();
    let at = format!("{before:?}, fault at action {point}: {said:?}");
    assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
    machine.kill();
    let seen = look(SEED, &machine);
    if before == Before::Stopped || before == Before::OldStopped {
        // A filesystem whose volume cannot be brought up is left out; the pool starts all the same.
        assert_eq!(seen.running.keys().collect::<Vec<_>>(), told.running.keys().collect::<Vec<_>>(), "{at}");
    } else {
        assert_eq!(seen.running, told.running, "{at}\n{:#?}", machine.trace());
        assert_eq!(of_filesystems(&seen), of_filesystems(&told), "{at}\n{:#?}", machine.trace());
    }
    assert_eq!(
        seen.stopped.keys().collect::<Vec<_>>(),
        told.stopped.keys().collect::<Vec<_>>(),
        "{at}\n{:#?}",
        machine.trace()
    );
    if let Some((_, filesystems)) = seen.running.get(&pool()) {
        let volumes = machine.volumes(pool()).expect("a running pool has a thin pool");
        assert_eq!(volumes.len(), filesystems.len(), "{at}");
    }
}

/// What can be set on filesystems, and their origins.
fn of_filesystems(seen: &Seen) -> Vec<&String> {
    let all: Vec<String> = seen.running.values().flat_map(|(_, all)| all.keys()).map(ToString::to_string).collect();
    seen.settings.iter().filter(|setting| all.iter().any(|uuid| setting.starts_with(uuid))).collect()
}

#[test]
fn of_two_creations_with_one_name_or_one_device_one_wins() {
    for seed in 0..40 {
        for devices in [["/dev/a", "/dev/b"], ["/dev/a", "/dev/a"]] {
            let machine = machine();
            let mut other = create_pool(&[devices[1]]);
            if let Wish::CreatePool { pool, name: own, .. } = &mut other {
                *pool = PoolUuid::from_random([9; 16]);
                if devices[0] == devices[1] {
                    *own = name("q");
                }
            }
            let one = create_pool(&[devices[0]]);
            let (first, second, seen) = live(seed, &machine, move |driver| async move {
                let calls = vec![driver.call(one), driver.call(other)];
                let mut outcomes = all(calls).await;
                let second = outcomes.pop().expect("two calls");
                (outcomes.pop().expect("two calls"), second, driver.seen())
            })
            .finished();
            assert!(first.is_ok() != second.is_ok(), "exactly one wins: {first:?} {second:?}");
            assert_eq!(seen.running.len(), 1);
            let clean = |disk: &str| machine.bytes(disk, Sectors(0), Sectors(8192)).iter().all(|byte| *byte == 0);
            if devices[0] != devices[1] {
                assert_eq!(clean("/dev/a"), first.is_err());
                assert_eq!(clean("/dev/b"), second.is_err());
            }
        }
    }
}

#[test]
fn many_creations_at_once_get_each_their_own_volume() {
    for seed in 0..20 {
        let machine = machine();
        let own = machine.clone();
        let seen = live(seed, &machine, move |driver| async move {
            prepare(&driver, &own, Before::Pool).await;
            let names: Vec<String> = (0..10).map(|n| format!("fs{n}")).collect();
            let calls = names.iter().map(|name| driver.call(create_filesystem(name)));
            for outcome in all(calls).await {
                outcome.expect("each is created");
            }
            driver.seen()
        })
        .finished();
        assert_eq!(seen.running[&pool()].1.len(), 10);
        let volumes = machine.volumes(pool()).expect("a thin pool");
        assert_eq!(volumes.keys().copied().collect::<Vec<_>>(), (0..10).map(ThinId).collect::<Vec<_>>());
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let machine = machine();
    machine.add_disk("/dev/small", Sectors(2_097_151));
    machine.add_disk("/dev/taken", DISK);
    machine.occupy("/dev/taken", "an ext4 file system");
    let refusals = live(SEED, &machine, |driver| async move {
        let mut refusals = Vec::new();
        for devices in [vec![], vec!["/dev/small"], vec!["/dev/taken"], vec!["/dev/a", "/dev/none"]] {
            refusals.push(driver.call(create_pool(&devices)).await.expect_err("refused"));
        }
        refusals.push(driver.call(Wish::StopPool(pool())).await.expect_err("no pool"));
        let device = DevUuid::from_random([1; 16]);
        refusals.push(driver.call(Wish::SetUserInfo(pool(), device, None)).await.expect_err("no pool"));
        refusals
    })
    .finished();
    for refusal in &refusals {
        assert!(matches!(refusal, Failure::Refused(_)), "{refusal:?}");
    }
    assert!(matches!(refusals[1], Failure::Refused(Refusal::DeviceSmall { .. })));
    for disk in ["/dev/a", "/dev/b", "/dev/small"] {
        assert!(machine.bytes(disk, Sectors(0), Sectors(8192)).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_same_seed_is_the_same_story() {
    let story = |seed| {
        let machine = machine();
        let own = machine.clone();
        let seen = live(seed, &machine, move |driver| async move {
            prepare(&driver, &own, Before::Filesystem).await;
            driver.seen()
        });
        (seen.finished(), machine.trace())
    };
    assert_eq!(story(3), story(3));
    assert_ne!(story(3).1, story(4).1, "another seed is another order");
}

/// How far a client has come with one filesystem.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Asked,
    Created,
    DestroyAsked,
    Destroyed,
}

type Model = Rc<RefCell<BTreeMap<String, Known>>>;

/// One client: creates filesystems and destroys every second one, and notes what it was told.
async fn client(driver: Rc<Driver>, number: u32, model: Model) {
    for round in 0..4 {
        let own = format!("client{number}-{round}");
        model.borrow_mut().insert(own.clone(), Known::Asked);
        let created = driver.call(create_filesystem(&own)).await.expect("there is room");
        model.borrow_mut().insert(own.clone(), Known::Created);
        if (round + number).is_multiple_of(2) {
            let Answer::FilesystemsCreated(made) = created else { panic!("{created:?}") };
            model.borrow_mut().insert(own.clone(), Known::DestroyAsked);
            driver.call(Wish::DestroyFilesystems(pool(), vec![made[0].0])).await.expect("it is not in use");
            model.borrow_mut().insert(own, Known::Destroyed);
        }
    }
}

#[test]
fn a_crash_in_the_middle_of_many_clients_keeps_what_was_replied() {
    for seed in 0..300 {
        let machine = machine();
        let model = Model::default();
        let (told, stopping) = (Rc::clone(&model), machine.clone());
        live(seed, &machine, move |driver| async move {
            prepare(&driver, &stopping, Before::Pool).await;
            stopping.stop_at(stopping.actions() + 1 + seed * 7 % 331);
            all((0..4).map(|number| client(Rc::clone(&driver), number, Rc::clone(&told)))).await;
        });
        if seed % 4 == 0 {
            machine.kill()
        } else {
            machine.crash(seed)
        }
        let seen = look(seed, &machine);
        let at = format!("seed {seed}: {:#?}", model.borrow());
        let there: Vec<&String> = seen.running[&pool()].1.values().collect();
        for (own, known) in model.borrow().iter() {
            match known {
                Known::Created => assert!(there.contains(&own), "{own} is lost, {at}"),
                Known::Destroyed => assert!(!there.contains(&own), "{own} is back, {at}"),
                Known::Asked | Known::DestroyAsked => {}
            }
        }
        assert!(there.iter().all(|own| model.borrow().contains_key(*own)), "nobody asked for it, {at}");
        nothing_left_over(&machine, &seen, &at);
        usable(&machine, &seen, &at);
    }
}

#[test]
fn a_damaged_signature_is_still_somebodys() {
    let machine = machine();
    // The magic of a signature block at its place, and nothing else of it.
    let magic = *b"!Stra0tis\x86\xff\x02^Arh";
    let mut block = [0; 512];
    block[4..20].copy_from_slice(&magic);
    machine.scribble("/dev/a", Sectors(9), &block);
    let before = machine.bytes("/dev/a", Sectors(0), Sectors(8192));
    let create = create_pool(&["/dev/b", "/dev/a"]);
    let refused = live(SEED, &machine, |driver| async move { driver.call(create).await }).finished();
    assert!(matches!(refused, Err(Failure::Refused(Refusal::DeviceDamaged { .. }))), "{refused:?}");
    assert_eq!(machine.bytes("/dev/a", Sectors(0), Sectors(8192)), before);
    assert!(machine.bytes("/dev/b", Sectors(0), Sectors(8192)).iter().all(|byte| *byte == 0));
}
