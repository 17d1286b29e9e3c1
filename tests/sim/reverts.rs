//! Reverts: a snapshot takes its origin's place at the next start of its pool, at every crash point and with every
//! fault, and what is about it that is not to be changed stays.

use stratisd::model::dm::Dm;
use stratisd::model::ids::FsUuid;
use stratisd::sys::Folder;

use super::*;

/// A place inside of every filesystem where nothing lies.
const MARK: Sectors = Sectors(1_000_000);
const LIMIT: Sectors = Sectors(4_194_304);

fn start() -> Wish {
    Wish::StartPool { pool: pool(), unlock: false, remove_cache: false }
}

fn mark(machine: &Machine, filesystem: FsUuid, byte: u8) {
    machine.scribble_volume(pool(), filesystem, MARK, &[byte; 512]);
}

fn marked(machine: &Machine, filesystem: FsUuid) -> u8 {
    machine.dm_bytes(Dm::Thin(pool(), filesystem), MARK, Sectors(1))[0]
}

/// `one` was 1 when its snapshot `s` was taken, and is 2; `t` and `u` are snapshots of `s` and `one`. `s` is
/// scheduled, and the pool is stopped.
async fn schedule(driver: &Driver, machine: &Machine) -> Seen {
    for wish in [create_pool(&["/dev/a", "/dev/b"]), create_filesystem("one")] {
        driver.call(wish).await.expect("it is made");
    }
    let one = filesystem(&driver.seen(), "one");
    mark(machine, one, 1);
    driver.call(snapshot(&driver.seen(), "one", "s")).await.expect("it is made");
    mark(machine, one, 2);
    for (origin, name) in [("s", "t"), ("one", "u")] {
        driver.call(snapshot(&driver.seen(), origin, name)).await.expect("it is made");
    }
    let s = filesystem(&driver.seen(), "s");
    for wish in [Wish::SetSizeLimit(pool(), s, Some(LIMIT)), Wish::SetMerge(pool(), s, true)] {
        driver.call(wish).await.expect("it may be");
    }
    let seen = driver.seen();
    driver.call(Wish::StopPool(pool())).await.expect("it is not in use");
    seen
}

/// Panics unless `seen` is what `before` becomes, all of it.
fn expect_reverted(machine: &Machine, before: &Seen, seen: &Seen, at: &str) {
    let of = |seen: &Seen, name| filesystem(seen, name);
    let (one, s) = (of(before, "one"), of(before, "s"));
    assert_eq!(of(seen, "one"), one, "{at}");
    let names: Vec<_> = seen.running[&pool()].1.values().collect();
    assert_eq!(names.len(), 3, "the snapshot is gone: {names:?} {at}");
    let has = |what: String| assert!(seen.settings.contains(&what), "{what}: {seen:#?} {at}");
    has(format!("{one} limit {LIMIT}"));
    has(format!("{} of {one}", of(seen, "t")));
    has(format!("{} of {one}", of(seen, "u")));
    assert!(!seen.settings.iter().any(|setting| setting.contains(" is to be merged")), "{seen:#?} {at}");
    assert_eq!(marked(machine, one), 1, "{at}");
    assert_eq!((marked(machine, of(seen, "t")), marked(machine, of(seen, "u"))), (1, 2), "{at}");
    assert!(!machine.tables().keys().any(|device| *device == Dm::Thin(pool(), s)), "{at}");
    assert_eq!(machine.files(pool(), Folder::Filesystems).expect("it is mounted").len(), 3, "{at}");
    nothing_left_over(machine, seen, at);
}

/// A machine on which `schedule` was done, and what clients saw before the stop.
fn scheduled() -> (Machine, Seen) {
    let machine = machine();
    let own = machine.clone();
    let before = live(SEED, &machine, move |driver| async move { schedule(&driver, &own).await }).finished();
    (machine, before)
}

/// Starts the pool, and again if that was cut off before.
fn start_and_look(seed: u64, machine: &Machine) -> Seen {
    live(seed, machine, |driver| async move {
        driver.call(start()).await.expect("it can be started");
        driver.seen()
    })
    .finished()
}

#[test]
fn a_snapshot_takes_its_origins_place_at_every_crash_point() {
    let (whole, before) = scheduled();
    whole.crash(0);
    let first = whole.actions();
    let seen = start_and_look(SEED, &whole);
    let actions = whole.actions() - first;
    expect_reverted(&whole, &before, &seen, "nothing fails");
    for point in 1..=actions {
        for crash in 0..CRASHES {
            let (machine, before) = scheduled();
            machine.crash(0);
            machine.stop_at(machine.actions() + point);
            live(SEED, &machine, |driver| async move { driver.call(start()).await });
            let at = format!("action {point} of {actions}, crash {crash}");
            if crash == 0 {
                machine.kill();
            } else {
                machine.crash(crash);
            }
            // Another seed, so that what is made anew has no name of what was left.
            let seen = start_and_look(SEED + 1 + crash, &machine);
            expect_reverted(&machine, &before, &seen, &at);
            machine.kill();
            usable(&machine, &seen, &at);
        }
    }
}

#[test]
fn a_fault_leaves_both_or_reverts_and_the_next_start_does() {
    let (whole, _) = scheduled();
    whole.crash(0);
    let first = whole.actions();
    start_and_look(SEED, &whole);
    for point in 0..whole.actions() - first {
        let (machine, before) = scheduled();
        machine.crash(0);
        let (fails, at) = (machine.clone(), format!("fault at action {point}"));
        let stopped = live(SEED, &machine, move |driver| async move {
            fails.fail_at(fails.actions() + point, libc::EIO);
            let started = driver.call(start()).await;
            let seen = driver.seen();
            if started.is_ok() && filesystem_named(&seen, "one").is_some() {
                let names = seen.running[&pool()].1.len();
                let reverted = filesystem_named(&seen, "s").is_none();
                assert_eq!(marked(&fails, filesystem(&seen, "one")), if reverted { 1 } else { 2 }, "{names} {seen:#?}");
            }
            driver.call(Wish::StopPool(pool())).await
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new(), "{at} {stopped:?}");
        machine.crash(0);
        let seen = start_and_look(SEED + 2, &machine);
        expect_reverted(&machine, &before, &seen, &at);
    }
}

fn filesystem_named(seen: &Seen, name: &str) -> Option<FsUuid> {
    let all = seen.running.values().flat_map(|(_, filesystems)| filesystems);
    all.clone().find(|(_, own)| *own == name).map(|(uuid, _)| *uuid)
}

#[test]
fn what_a_daemon_left_active_is_reverted_at_the_next_start_of_the_pool() {
    let machine = machine();
    let own = machine.clone();
    let before = live(SEED, &machine, move |driver| async move {
        let before = schedule(&driver, &own).await;
        // It was cancelled by starting the pool, so it is made anew under the same names.
        driver.call(start()).await.expect("it can be started");
        before
    })
    .finished();
    let one = filesystem(&before, "one");
    let own = machine.clone();
    live(SEED + 1, &machine, move |driver| async move {
        driver.call(snapshot(&driver.seen(), "one", "s")).await.expect("the name is free");
        mark(&own, one, 3);
        let s = filesystem(&driver.seen(), "s");
        driver.call(Wish::SetMerge(pool(), s, true)).await.expect("it may be");
    })
    .finished();
    machine.kill();
    let own = machine.clone();
    live(SEED + 2, &machine, move |driver| async move {
        let seen = driver.seen();
        assert!(filesystem_named(&seen, "s").is_some(), "both are up, whoever uses them: {seen:#?}");
        assert_eq!(marked(&own, one), 3);
        driver.call(Wish::StopPool(pool())).await.expect("it is not in use");
        driver.call(start()).await.expect("it can be started");
        assert!(filesystem_named(&driver.seen(), "s").is_none());
        assert_eq!(marked(&own, one), 1);
    })
    .finished();
}

#[test]
fn what_cannot_be_copied_now_comes_up_as_it_was() {
    use stratisd::model::dm::ThinPoolMode;
    let (machine, before) = scheduled();
    machine.ail(pool(), ThinPoolMode::OutOfDataSpace, false);
    let full = start_and_look(SEED + 1, &machine);
    assert_eq!(full.running, before.running);
    assert_eq!(marked(&machine, filesystem(&full, "one")), 2);
    machine.crash(1);
    let seen = look(SEED + 2, &machine);
    expect_reverted(&machine, &before, &seen, "there is space again");
}
