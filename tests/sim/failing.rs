//! Every action of every deed of the small universe fails once, and once together with the one that follows it.
//!
//! Whatever a request says then: what clients see is what a restart shows; what was made for it is taken back or real;
//! nothing is claimed, open or active for nobody; what failed and changed nothing can be asked for again; and a pool
//! that starts without one of its filesystems has it back after the next start.
//!
//! Deliberately absent: two faults at different places. Random histories have those.

use std::collections::{BTreeMap, BTreeSet};

use cores::rt;
use stratisd::engine::grow::Pace;
use stratisd::error::Failure;
use stratisd::message::{Answer, Wish};
use stratisd::model::ids::PoolUuid;
use stratisd::sys::sim::Machine;

use crate::always::watch;
use crate::crash::REST;
use crate::deeds::{DEEDS, Deed, STARTS, make, prepared, side_by_side};
use crate::memory::{agrees, is_again, shown_again};
use crate::sound::{always_sound, made_good, sound, volumes};
use crate::world::{Driver, Seen, live, look};

/// What of the state has no random id in it: two runs make other ids.
pub(crate) type Shape = (BTreeMap<PoolUuid, (String, BTreeSet<String>)>, BTreeSet<PoolUuid>);

/// One run of a deed.
pub(crate) struct Tried {
    pub(crate) actions: u64,
    wish: Option<Wish>,
    pub(crate) outcome: Option<Result<Answer, Failure>>,
    before: Seen,
    seen: Seen,
}

pub(crate) fn shape(seen: &Seen) -> Shape {
    let named = |(pool, (name, all)): (&PoolUuid, &(String, BTreeMap<_, String>))| {
        (*pool, (name.clone(), all.values().cloned().collect()))
    };
    (seen.running.iter().map(named).collect(), seen.stopped.keys().copied().collect())
}

/// A pool that says that it is not well need not be as on disk; then a restart decides.
fn is_well(seen: &Seen) -> bool {
    !seen.settings.iter().any(|line| line.contains(" no_"))
}

/// Runs a deed; from its action `point` on so many fail.
pub(crate) fn attempt(machine: &Machine, deed: Deed, fails: Option<(u64, u64)>, at: &str) -> Tried {
    let (own, at) = (machine.clone(), at.to_owned());
    live(5, machine, move |driver| async move {
        rt::sleep(REST).await;
        let (before, from) = (driver.seen(), own.actions());
        for fail in fails.into_iter().flat_map(|(point, count)| point..point + count) {
            own.fail_at(from + fail, libc::EIO);
        }
        let wish = deed(&before);
        let mut outcome = None;
        if let Some(wish) = wish.clone() {
            outcome = Some(driver.call(wish).await);
        }
        rt::sleep(REST).await;
        let (actions, seen) = (own.actions() - from, driver.seen());
        if let Some(Wish::StartPool { pool, .. }) = wish
            && fails.is_some()
        {
            work(&driver, &own, pool, &at).await;
        }
        assert_eq!(own.bugs(), Vec::<String>::new(), "data would be lost: {at}");
        // What a second fault keeps from being taken back the next start takes back.
        let once = fails.is_none_or(|(_, count)| count == 1);
        if is_well(&seen) && !left_out(wish.as_ref()) && once && !rest_waits(wish.as_ref(), outcome.as_ref()) {
            always_sound(&own, &seen, &at);
            taken_back(&own, &seen, outcome.as_ref(), &at);
            agrees(&driver, &own, &at).await;
        }
        Tried { actions, wish, outcome, before, seen }
    })
    .finished()
}

/// A request that failed has left no volume: there was no second fault.
fn taken_back(machine: &Machine, seen: &Seen, outcome: Option<&Result<Answer, Failure>>, at: &str) {
    for pool in seen.running.keys().filter(|_| matches!(outcome, Some(Err(_)))) {
        assert_eq!(volumes(machine, *pool).1, [], "a volume is left of what failed: {at}");
    }
}

/// What is left out keeps its name, its volume and its record, whatever is made beside it.
async fn work(driver: &Driver, machine: &Machine, pool: PoolUuid, at: &str) {
    let odd = watch(machine);
    let _refused_or_not = driver.call(make(pool, "fresh").expect("a wish")).await;
    machine.watch(None);
    assert_eq!(*odd.borrow(), None, "{at}");
}

/// A start leaves out what it cannot bring up, and goes on.
const fn left_out(wish: Option<&Wish>) -> bool {
    matches!(wish, Some(Wish::StartPool { .. }))
}

/// A pool that is stopped by its record may keep a part of its stack, which its next start adopts.
const fn is_stopped(wish: Option<&Wish>, outcome: Option<&Result<Answer, Failure>>) -> bool {
    matches!((wish, outcome), (Some(Wish::StopPool(_)), Some(Ok(_))))
}

/// A pool whose record says that it is being destroyed is no pool any more. What is left of it the next start takes
/// away.
const fn is_half_gone(wish: Option<&Wish>, outcome: Option<&Result<Answer, Failure>>) -> bool {
    matches!((wish, outcome), (Some(Wish::DestroyPool(_)), Some(Err(_))))
}

/// Something is left for the next start.
const fn rest_waits(wish: Option<&Wish>, outcome: Option<&Result<Answer, Failure>>) -> bool {
    is_stopped(wish, outcome) || is_half_gone(wish, outcome)
}

/// What was there before a start is there after the next one, if that brings the pool up.
fn nothing_lost(before: &Seen, whole: &Seen, now: &Seen, at: &str) {
    for (pool, (_, all)) in &now.running {
        let wanted = whole.running.get(pool).or_else(|| before.running.get(pool));
        let lost = wanted.into_iter().flat_map(|(_, wanted)| wanted.keys()).find(|uuid| !all.contains_key(uuid));
        assert_eq!(lost, None, "a filesystem is lost: {at}\n{now:#?}");
    }
}

/// Tries all faults of one deed. Says how many.
fn faults(machine: &Machine, deed: Deed, at: &str) -> usize {
    let whole = attempt(&machine.fork(), deed, None, at);
    let (after, mut tried) = (shape(&whole.seen), 0);
    for (point, count) in (0..whole.actions).flat_map(|point| [(point, 1), (point, 2)]) {
        let machine = machine.fork();
        let at = format!("{at}, {count} fail from action {point} of {}", whole.actions);
        let failed = attempt(&machine, deed, Some((point, count)), &at);
        tried += 1;
        let (at, once) = (format!("{at}: {:?}", failed.outcome), count == 1 && !left_out(failed.wish.as_ref()));
        let now = shape(&failed.seen);
        let half = now != after && now != shape(&failed.before);
        if once {
            assert!(!half || !is_well(&failed.seen), "half an operation: {at}\n{now:#?}\n{after:#?}");
            let told = failed.outcome.as_ref().is_some_and(Result::is_err) && now == shape(&failed.before);
            assert!(!told || is_again(&failed.before, &failed.seen), "what failed is shown: {at}\n{:#?}", failed.seen);
        }
        let power = is_stopped(failed.wish.as_ref(), failed.outcome.as_ref());
        if power {
            machine.crash_way(u64::MAX);
        } else {
            machine.kill();
        }
        let again = machine.fork();
        let restarted = look(6, &machine);
        sound(&machine, &restarted, &at);
        made_good(&machine, &restarted, &at);
        if once && is_well(&failed.seen) {
            shown_again(&failed.seen, &restarted, power, &at);
        }
        if left_out(failed.wish.as_ref()) {
            nothing_lost(&failed.before, &whole.seen, &restarted, &at);
        }
        // What failed can be asked for again, if it has changed nothing.
        let err = failed.outcome.as_ref().is_some_and(Result::is_err);
        if count == 1 && err && is_again(&failed.before, &restarted) {
            let second = attempt(&again, deed, None, &at);
            let [first, second] = [&whole, &second].map(|tried| tried.outcome.as_ref().is_some_and(Result::is_ok));
            assert_eq!(second, first, "what failed once is not done the next time: {at}");
        }
    }
    tried
}

#[test]
fn every_fault_of_every_deed_is_unwound() {
    let pairs: Vec<(usize, usize)> =
        (0..STARTS.len()).flat_map(|start| (0..DEEDS.len()).map(move |deed| (start, deed))).collect();
    let tried = side_by_side(&pairs, |(start, deed)| {
        let (from, steps) = STARTS[*start];
        let (what, deed) = DEEDS[*deed];
        faults(&prepared(steps, Pace::default()), deed, &format!("from {from}: {what}"))
    });
    println!("{} deeds, {} faults", pairs.len(), tried.iter().sum::<usize>());
}
