//! Encrypted pools: every crash point and every fault of what makes, changes and removes encryption.
//!
//! A pool that the power failure left encrypted is locked, so it is started before it is looked at. Then it is
//! the pool before the operation or the one after it, its header and its record agree, and it can be worked
//! with.

use std::cell::Cell;
use std::rc::Rc;

use cores::deterministic::Ended;
use cores::rt;
use stratisd::error::{Failure, Refusal};
use stratisd::message::{Answer, KeyWish, Wish};
use stratisd::model::token::{Clevis, KeyDescription, Kind, Mechanism, Slot, TokenChange, Tokens};
use stratisd::sys::sim::Machine;

use crate::crash::REST;
use crate::world::{Driver, Seen, create_filesystem, create_pool, live, look, pool};
use crate::{SEED, machine, nothing_left_over};

const CRASHES: u64 = 8;

fn description(text: &str) -> KeyDescription {
    KeyDescription::try_from(text).expect("a description")
}

pub(crate) fn key(text: &str) -> Mechanism {
    Mechanism::Key(description(text))
}

fn clevis() -> Mechanism {
    Mechanism::Clevis(Clevis::new("tang", "{\"url\":\"x\"}").expect("JSON"))
}

pub(crate) fn tokens() -> Tokens {
    Tokens::assign(vec![(Some(1), key("one")), (Some(4), clevis())]).expect("they fit")
}

fn create_encrypted() -> Wish {
    let mut wish = create_pool(&["/dev/a", "/dev/b"]);
    if let Wish::CreatePool { encryption, .. } = &mut wish {
        *encryption = Some(tokens());
    }
    wish
}

fn start() -> Wish {
    Wish::StartPool { pool: pool(), unlock: true, remove_cache: false }
}

fn change(change: TokenChange) -> Wish {
    Wish::ChangeTokens(pool(), change)
}

/// What stands before an operation.
type Steps = fn() -> Vec<Wish>;

fn plain() -> Vec<Wish> {
    vec![create_pool(&["/dev/a", "/dev/b"]), create_filesystem("f")]
}

fn encrypted() -> Vec<Wish> {
    vec![create_encrypted(), create_filesystem("f")]
}

fn stopped() -> Vec<Wish> {
    vec![create_encrypted(), create_filesystem("f"), Wish::StopPool(pool())]
}

fn nothing() -> Vec<Wish> {
    Vec::new()
}

/// Every operation, with what it is tried on.
fn operations() -> Vec<(Steps, Wish)> {
    let on = |before: Steps, wish: Wish| (before, wish);
    let bind = |mechanism, slot| change(TokenChange::Bind(mechanism, slot));
    vec![
        on(nothing, create_encrypted()),
        on(plain, Wish::EncryptPool(pool(), tokens())),
        on(encrypted, bind(key("two"), Slot::Free)),
        on(encrypted, bind(clevis(), Slot::At(7))),
        on(encrypted, change(TokenChange::RebindKey(description("two"), None))),
        on(encrypted, change(TokenChange::Unbind(Kind::Key, Some(1)))),
        on(encrypted, change(TokenChange::Unbind(Kind::Clevis, None))),
        on(encrypted, Wish::ReencryptPool(pool())),
        on(encrypted, Wish::DecryptPool(pool())),
        on(encrypted, Wish::StopPool(pool())),
        on(stopped, start()),
    ]
}

async fn prepare(driver: &Driver, before: Steps) {
    for step in before() {
        driver.call(step).await.expect("what stands before is made");
    }
}

/// As in `main`: how many actions the operation made, and its answer.
fn attempt(
    machine: &Machine,
    before: Steps,
    wish: &Wish,
    stop_after: Option<u64>,
) -> (u64, Ended<Result<Answer, Failure>>) {
    let start = Rc::new(Cell::new(0));
    let (counted, counting, wish) = (Rc::clone(&start), machine.clone(), wish.clone());
    let ended = live(SEED, machine, move |driver| async move {
        prepare(&driver, before).await;
        counted.set(counting.actions());
        if let Some(after) = stop_after {
            counting.stop_at(counting.actions() + after);
        }
        driver.call(wish).await
    });
    (machine.actions() - start.get(), ended)
}

/// How many actions an operation makes when nothing fails, and what there is after it and without it.
fn ends(before: Steps, wish: &Wish) -> (u64, Seen, Seen) {
    let whole = machine();
    let (actions, ended) = attempt(&whole, before, wish, None);
    ended.finished().expect("the operation succeeds when nothing fails");
    whole.crash(0);
    let untouched = machine();
    live(SEED, &untouched, move |driver| async move { prepare(&driver, before).await }).finished();
    untouched.crash(0);
    (actions, opened(SEED, &whole).0, opened(SEED, &untouched).0)
}

/// What clients see once the pool is started, if there is one; and whether it had to be.
fn opened(seed: u64, machine: &Machine) -> (Seen, bool) {
    live(seed, machine, |driver| async move {
        let locked = driver.seen().stopped.contains_key(&pool());
        if locked {
            driver.call(start()).await.expect("any method unlocks it");
        }
        rt::sleep(REST).await;
        (driver.seen(), locked)
    })
    .finished()
}

/// Header and view agree, and filesystems can be made.
fn sound(machine: &Machine, seen: &Seen, at: &str) {
    nothing_left_over(machine, seen, at);
    let shown = seen.settings.iter().filter(|setting| setting.contains(" slot ")).count();
    assert_eq!(machine.tokens(pool()).map_or(0, |tokens| tokens.count()), shown, "header and view differ: {at}");
    if seen.running.contains_key(&pool()) {
        machine.kill();
        let next = live(SEED + 1, machine, |driver| async move { driver.call(create_filesystem("next")).await });
        assert!(next.finished().is_ok(), "not usable: {at}");
    }
}

#[test]
fn every_operation_on_encryption_is_all_or_nothing() {
    for (before, wish) in operations() {
        let (actions, done, undone) = ends(before, &wish);
        let stops = matches!(wish, Wish::StopPool(_) | Wish::StartPool { .. });
        assert_eq!(done == undone, stops, "{wish:?}: started again, a stopped pool is as it was");
        for point in 1..=actions {
            for crash in 0..CRASHES {
                let machine = machine();
                let (_, ended) = attempt(&machine, before, &wish, Some(point));
                let replied = matches!(ended, Ended::Finished(Ok(_)));
                if crash == 0 {
                    machine.kill()
                } else {
                    machine.crash(crash)
                }
                let at = format!("{wish:?}, action {point} of {actions}, crash {crash}");
                let (seen, _) = opened(SEED + crash, &machine);
                assert!(seen == undone || seen == done, "half an operation: {at}\n{seen:#?}\n{:#?}", machine.trace());
                assert!(!replied || seen == done, "a replied operation is lost: {at}");
                sound(&machine, &seen, &at);
            }
        }
    }
}

#[test]
fn after_a_fault_disk_and_memory_agree() {
    for (before, wish) in operations() {
        let (actions, _) = attempt(&machine(), before, &wish, None);
        for point in 0..actions {
            let machine = machine();
            let (failing, asked) = (machine.clone(), wish.clone());
            let (said, told) = live(SEED, &machine, move |driver| async move {
                prepare(&driver, before).await;
                failing.fail_at(failing.actions() + point, libc::EIO);
                let said = driver.call(asked).await;
                if driver.seen().stopped.contains_key(&pool()) {
                    driver.call(start()).await.expect("any method unlocks it");
                }
                (said, driver.seen())
            })
            .finished();
            let at = format!("{wish:?}, fault at action {point}: {said:?}");
            machine.kill();
            let (seen, _) = opened(SEED, &machine);
            // What it may do, a pool is told anew when it is set up.
            let lasting = |seen: &Seen| {
                let mut seen = seen.clone();
                seen.settings.retain(|setting| !setting.contains("no_"));
                seen
            };
            assert_eq!(lasting(&seen), lasting(&told), "{at}\n{:#?}", machine.trace());
            sound(&machine, &seen, &at);
        }
    }
}

#[test]
fn a_record_that_reaches_no_device_is_whole_or_not_there() {
    for (before, wish) in operations().into_iter().filter(|(before, _)| !before().is_empty()) {
        let (actions, done, undone) = ends(before, &wish);
        for point in 0..=actions {
            let machine = machine();
            let (failing, asked) = (machine.clone(), wish.clone());
            let said = live(SEED, &machine, move |driver| async move {
                prepare(&driver, before).await;
                failing.fail_writes("/dev/b", Some(libc::EIO));
                failing.fail_at(failing.actions() + point, libc::EIO);
                driver.call(asked).await
            })
            .finished();
            machine.fail_writes("/dev/b", None);
            machine.crash(point);
            let at = format!("{wish:?}, fault at action {point} of {actions}: {said:?}");
            let (seen, _) = opened(SEED, &machine);
            assert!(seen == undone || seen == done, "half an operation: {at}\n{seen:#?}\n{:#?}", machine.trace());
            assert!(said.is_err() || seen == done, "a replied operation is lost: {at}");
            sound(&machine, &seen, &at);
        }
    }
}

#[test]
fn a_locked_pool_waits_and_an_unlocked_one_is_taken_over() {
    let made = |end: fn(&Machine)| {
        let machine = machine();
        live(SEED, &machine, |driver| async move { prepare(&driver, encrypted).await }).finished();
        end(&machine);
        let seen = look(SEED, &machine);
        (machine, seen)
    };
    let (_, seen) = made(Machine::kill);
    assert!(seen.stopped.is_empty() && seen.running.contains_key(&pool()), "its stack is up: {seen:?}");

    let (machine, seen) = made(|machine| machine.crash(0));
    assert!(seen.running.is_empty() && seen.stopped.contains_key(&pool()), "nobody has unlocked it: {seen:?}");
    let without = Wish::StartPool { pool: pool(), unlock: false, remove_cache: false };
    let refused = live(SEED, &machine, |driver| async move { driver.call(without).await }).finished();
    assert!(matches!(refused, Err(Failure::Refused(Refusal::Locked { .. }))), "{refused:?}");
    let (seen, was_locked) = opened(SEED, &machine);
    assert!(was_locked && seen.running[&pool()].1.len() == 1);
}

#[test]
fn keys_are_listed_and_forgotten() {
    let machine = machine();
    let outcomes = live(SEED, &machine, |driver| async move {
        let unset = || Wish::Keys(KeyWish::Unset(description("k")));
        (driver.call(Wish::Keys(KeyWish::List)).await, driver.call(unset()).await)
    });
    assert_eq!(outcomes.finished(), (Ok(Answer::Keys(Vec::new())), Ok(Answer::Identity)));
}
