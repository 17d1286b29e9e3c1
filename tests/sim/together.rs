//! Two deeds of the small universe at once: they end as if one had come after the other.
//!
//! What comes of them must be what comes of one of the two orders, answers included, by what clients see; and the
//! daemon at rest is as it must be. Ids are random, so names are compared.
//!
//! Deliberately absent: where it is cut off. One deed at a time is (`deeds`).

use cores::rt;
use stratisd::engine::grow::Pace;
use stratisd::message::Wish;
use stratisd::shard::wait::all;
use stratisd::sys::sim::Machine;

use crate::always::watch;
use crate::crash::REST;
use crate::deeds::{DEEDS, STARTS, prepared, side_by_side};
use crate::longer::{Sight, sight};
use crate::memory::{agrees, shown_again};
use crate::sound::sound;
use crate::world::{Seen, live, look};

/// Which of the two were done, and what clients see of it.
type Outcome = ([bool; 2], Sight);

/// What there is to be seen without an id that is drawn, and without sizes that growth in the background changes.
fn portrait(seen: &Seen) -> Sight {
    let mut sight = sight(seen);
    sight.settings.retain(|line| !line.ends_with(" no space") && !line.contains(" bytes, "));
    sight
}

/// Asks for both at once, or for one after the other: `order` says which comes first.
fn ask(machine: &Machine, wishes: [Wish; 2], order: Option<[usize; 2]>, at: &str) -> Outcome {
    let (own, at) = (machine.clone(), at.to_owned());
    let (outcome, seen) = live(if order.is_none() { 7 } else { 8 }, machine, move |driver| async move {
        rt::sleep(REST).await;
        let mut done = [false; 2];
        if let Some(order) = order {
            for which in order {
                done[which] = driver.call(wishes[which].clone()).await.is_ok();
                rt::sleep(REST).await;
            }
        } else {
            let odd = watch(&own);
            for (which, outcome) in all(wishes.map(|wish| driver.call(wish))).await.into_iter().enumerate() {
                done[which] = outcome.is_ok();
            }
            rt::sleep(REST).await;
            own.watch(None);
            assert_eq!(*odd.borrow(), None, "{at}");
            sound(&own, &driver.seen(), &at);
            agrees(&driver, &own, &at).await;
        }
        (done, driver.seen())
    })
    .finished();
    if order.is_none() {
        machine.kill();
        shown_again(&seen, &look(9, machine), false, "after two at once");
    }
    (outcome, portrait(&seen))
}

/// Tries two deeds from one start.
fn pair(start: usize, deeds: [usize; 2]) {
    let (from, steps) = STARTS[start];
    let at = format!("from {from}: {} and {}", DEEDS[deeds[0]].0, DEEDS[deeds[1]].0);
    let machine = prepared(steps, Pace::default());
    let seen = look(4, &machine.fork());
    let [Some(one), Some(other)] = deeds.map(|deed| DEEDS[deed].1(&seen)) else { return };
    let makes = |wish: &Wish| matches!(wish, Wish::CreatePool { .. });
    if makes(&one) && makes(&other) && one.pool() == other.pool() {
        return; // The bus core draws an id for each.
    }
    let wishes = || [one.clone(), other.clone()];
    let together = ask(&machine.fork(), wishes(), None, &at);
    let orders = [[0, 1], [1, 0]].map(|order| ask(&machine.fork(), wishes(), Some(order), &at));
    // Who asks for what somebody else is just making is refused, where later it is there already.
    let one_of = |order: &Outcome| {
        let refused = (0..2).all(|which| order.0[which] || !together.0[which]);
        refused && order.1 == together.1
    };
    assert!(orders.iter().any(one_of), "not one after the other: {at}\n{together:#?}\nbut\n{orders:#?}");
}

#[test]
fn two_deeds_at_once_are_two_deeds_in_some_order() {
    let seed = crate::seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    let count = crate::given("PAIRS").unwrap_or(1_000);
    println!("SEED={seed}: {count} pairs");
    let mut deed = || dice.usize(..DEEDS.len());
    let pairs: Vec<[usize; 2]> = (0..count).map(|_| [deed(), deed()]).collect();
    let all: Vec<_> = pairs.into_iter().map(|pair| (dice.usize(..STARTS.len()), pair)).collect();
    side_by_side(&all, |(start, deeds)| pair(*start, *deeds));
}
