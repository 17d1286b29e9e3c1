//! Raising the limit of filesystems: the thin pool's metadata grows first, and wherever that is cut off, what
//! was taken is used by the next try.

use stratisd::error::{Failure, Refusal};
use stratisd::message::{Answer, Wish};
use stratisd::model::dm::{Dm, Role};
use stratisd::shard::wait::all;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::world::{Driver, Seen, create_filesystem, create_pool, live, look, pool};
use crate::{Before, SEED, attempt, every_crash_point, machine};

const LIMIT: u64 = 500;
const DISKS: [&str; 2] = ["/dev/a", "/dev/b"];

fn raise() -> Wish {
    Wish::SetFsLimit(pool(), LIMIT)
}

fn is_raised(seen: &Seen) -> bool {
    seen.settings.contains(&format!("{} fs limit {LIMIT}", pool()))
}

/// Sectors of the metadata device, and those that the thin pool uses.
fn meta(machine: &Machine) -> (Sectors, Sectors) {
    let device = machine.tables()[&Dm::Private(pool(), Role::ThinMeta)].length();
    (device, machine.thin_meta(pool()).expect("a running pool has a thin pool"))
}

async fn make_pool(driver: &Driver) {
    driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("there is room");
}

/// What the operation comes to when nothing fails: its actions, and the metadata before and after.
fn undisturbed() -> (u64, Sectors, Sectors) {
    let untouched = machine();
    live(SEED, &untouched, |driver| async move { make_pool(&driver).await }).finished();
    let whole = machine();
    let (actions, ended) = attempt(&whole, Before::Pool, |_| raise(), None);
    ended.finished().expect("there is room");
    let ((small, used_before), (large, used)) = (meta(&untouched), meta(&whole));
    assert!(large > small && used == large && used_before == small);
    (actions, small, large)
}

#[test]
fn a_limit_is_raised_whole_or_not_at_all() {
    every_crash_point(Before::Filesystem, |_| raise());
}

#[test]
fn what_a_crash_left_on_record_is_used_by_the_next_try() {
    let (actions, _, wanted) = undisturbed();
    for point in 0..=actions {
        for crash in 0..8 {
            let machine = machine();
            attempt(&machine, Before::Pool, |_| raise(), Some(point));
            if crash == 0 {
                machine.kill()
            } else {
                machine.crash(crash)
            }
            let (before, outcome) = live(SEED + crash, &machine, |driver| async move {
                let before = driver.seen();
                (is_raised(&before), driver.call(raise()).await)
            })
            .finished();
            let at = format!("action {point} of {actions}, crash {crash}");
            match outcome {
                Ok(answer) => assert_eq!((answer, before), (Answer::Set, false), "{at}"),
                Err(Failure::Refused(Refusal::FsLimitNotRaised { .. })) => assert!(before, "{at}"),
                Err(other) => panic!("{other}: {at}"),
            }
            assert_eq!(meta(&machine), (wanted, wanted), "nothing is taken twice: {at}");
            assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
        }
    }
}

#[test]
fn a_fault_leaves_the_old_limit_and_the_next_try_goes_on() {
    let (actions, small, wanted) = undisturbed();
    let mut failed = 0;
    for point in 0..actions {
        let machine = machine();
        let (failing, looked) = (machine.clone(), machine.clone());
        let (outcome, told, again) = live(SEED, &machine, move |driver| async move {
            make_pool(&driver).await;
            failing.fail_at(failing.actions() + point, libc::EIO);
            let outcome = driver.call(raise()).await;
            let told = driver.seen();
            let again = driver.call(raise()).await;
            (outcome, told, again)
        })
        .finished();
        let at = format!("fault at action {point} of {actions}: {outcome:?}");
        assert_eq!(is_raised(&told), outcome.is_ok(), "{at}");
        if let Err(failure) = outcome {
            failed += 1;
            let text = failure.to_string();
            assert!(text.contains("limit of pool \"p\", which stays 100") && text.contains("os error 5"), "{text}");
            assert_eq!(again, Ok(Answer::Set), "{at}");
        }
        assert_eq!(meta(&looked), (wanted, wanted), "{at}");
        machine.kill();
        assert!(is_raised(&look(SEED, &machine)), "{at}");
        assert_ne!(small, wanted);
        assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
    }
    assert!(failed >= 4, "tables of four devices are touched, {failed} faults were told");
}

#[test]
fn what_cannot_be_recorded_is_not_used() {
    let (_, small, wanted) = undisturbed();
    let machine = machine();
    let failing = machine.clone();
    let outcome = live(SEED, &machine, move |driver| async move {
        make_pool(&driver).await;
        DISKS.iter().for_each(|disk| failing.fail_writes(disk, Some(libc::EIO)));
        driver.call(raise()).await
    });
    assert!(matches!(outcome.finished(), Err(Failure::Faulted(_))));
    assert_eq!(meta(&machine), (small, small));
    machine.kill();
    DISKS.iter().for_each(|disk| machine.fail_writes(disk, None));
    let outcome = live(SEED, &machine, |driver| async move { driver.call(raise()).await });
    assert_eq!(outcome.finished(), Ok(Answer::Set));
    assert_eq!(meta(&machine), (wanted, wanted));
}

#[test]
fn more_filesystems_than_before_can_be_created() {
    let machine = machine();
    DISKS.iter().for_each(|disk| machine.resize_disk(disk, Sectors(1 << 26)));
    let seen = live(SEED, &machine, |driver| async move {
        make_pool(&driver).await;
        for number in 0..100 {
            driver.call(create_filesystem(&format!("f{number}"))).await.expect("there may be 100");
        }
        let full = driver.call(create_filesystem("one-more")).await;
        assert!(matches!(full, Err(Failure::Refused(Refusal::FilesystemLimit { limit: 100, .. }))), "{full:?}");
        driver.call(Wish::SetFsLimit(pool(), 103)).await.expect("there is room");
        let more = (0..3).map(|number| driver.call(create_filesystem(&format!("more{number}"))));
        all(more.collect::<Vec<_>>()).await.into_iter().for_each(|outcome| drop(outcome.expect("there may be 103")));
        let full = driver.call(create_filesystem("one-more")).await;
        assert!(matches!(full, Err(Failure::Refused(Refusal::FilesystemLimit { limit: 103, .. }))), "{full:?}");
        driver.seen()
    })
    .finished();
    assert_eq!(seen.running[&pool()].1.len(), 103);
}

#[test]
fn filesystems_are_created_meanwhile() {
    for seed in 0..20 {
        let machine = machine();
        let seen = live(seed, &machine, |driver| async move {
            make_pool(&driver).await;
            let mut wishes = vec![raise()];
            wishes.extend(["one", "two", "three"].map(create_filesystem));
            let outcomes = all(wishes.into_iter().map(|wish| driver.call(wish)).collect::<Vec<_>>()).await;
            outcomes.into_iter().for_each(|outcome| drop(outcome.expect("nothing stands in the way")));
            driver.seen()
        })
        .finished();
        assert!(is_raised(&seen) && seen.running[&pool()].1.len() == 3, "{seed}");
        machine.crash(seed);
        assert_eq!(look(seed, &machine), seen, "{seed}");
    }
}
