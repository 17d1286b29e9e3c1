//! What the universe has found and was mended, by name: told again each time, whatever a seed draws by then.
//!
//! Deliberately absent: what has a test where it belongs. A growth whose second signature fails and all else that one
//! fault or two can do to one deed (`failing`), a destroyed cache that is found alone (`devices`).

use std::time::Duration;

use cores::rt;
use stratisd::engine::grow::Pace;
use stratisd::message::{Answer, Wish};
use stratisd::model::ids::PoolUuid;
use stratisd::sys::sim::Machine;

use crate::crash::REST;
use crate::deeds::{DEEDS, Deed, SMALL_STEPS, STARTS, Sequence, prepared, sequence};
use crate::errors;
use crate::failing::attempt;
use crate::memory::agrees;
use crate::sound::{made_good, sound};
use crate::world::{live, live_at, look};

/// What was wrong, from where, after which deeds, and the deed that was cut off.
#[rustfmt::skip]
const CUT_OFF: &[(&str, &str, &[&str], &str)] = &[
    ("listed as stopped by a record that was not durable", "p with x and y", &[], "stop p"),
    ("listed as stopped by a record that was not durable", "p with a cache and nothing else", &[], "stop p"),
    ("dm devices of a cut-off start stay, and nobody takes them down", "p, and q stopped", &[], "start q"),
    ("a revert that a cut-off stop leaves to the next start", "p with x and y", &["merge y"], "stop p"),
    ("a revert of a pool that was unlocked", "p with x and y", &["encrypt p", "merge y"], "stop p"),
];

fn place<T>(all: &[(&str, T)], name: &str) -> usize {
    all.iter().position(|(other, _)| *other == name).unwrap_or_else(|| panic!("there is no {name}"))
}

fn deed(name: &str) -> Deed {
    DEEDS[place(DEEDS, name)].1
}

fn start(name: &str, pace: Pace) -> Machine {
    prepared(STARTS[place(STARTS, name)].1, pace)
}

#[test]
fn what_was_cut_off_once_is_all_or_nothing() {
    for (wrong, start, before, last) in CUT_OFF {
        let (start, last) = (place(STARTS, start), place(DEEDS, last));
        let before = before.iter().map(|name| place(DEEDS, name)).collect();
        for pace in [Pace::default(), SMALL_STEPS] {
            let tally = sequence(pace, &Sequence { start, before: Clone::clone(&before), last });
            assert!(tally.states > 0 && tally.changed == 1, "the story is no more what it was: {wrong}: {tally}");
        }
    }
}

/// The devices were wiped, and dm devices stayed that nobody knew.
#[test]
fn a_creation_that_cannot_be_taken_back_is_by_the_next_start() {
    let (create, bare) = (deed("create p on a and b"), start("bare disks", Pace::default()));
    let whole = attempt(&bare.fork(), create, None, "nothing fails").actions;
    for (point, count) in (0..whole).flat_map(|point| [(point, 4), (point, whole)]) {
        let (machine, at) = (bare.fork(), format!("{count} actions fail from {point} of {whole}"));
        let tried = attempt(&machine, create, Some((point, count)), &at);
        machine.kill();
        let seen = look(6, &machine);
        sound(&machine, &seen, &at);
        made_good(&machine, &seen, &at);
        assert!(tried.outcome.is_some_and(|outcome| outcome.is_err()) || seen.running.len() == 1, "{at}");
    }
}

/// What is kept on a new device for an integrity layer was taken for sectors given out twice, and that was a panic.
#[test]
fn growth_is_looked_at_while_devices_join() {
    for name in ["add b to p", "add c to p", "cache b for p", "grow a"] {
        let machine = start("p with x and y", SMALL_STEPS);
        let own = machine.clone();
        errors::forget();
        let ended = live_at(SMALL_STEPS, 7, &machine, move |driver| async move {
            rt::sleep(REST).await;
            let pool = *driver.seen().running.keys().next().expect("p runs");
            let stirred = own.clone();
            rt::spawn("stir", async move {
                for _ in 0..2_000 {
                    stirred.raise(pool);
                    rt::sleep(Duration::from_micros(100)).await;
                }
            })
            .detach();
            let wish = deed(name)(&driver.seen()).expect("there is what it acts on");
            driver.call(wish).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
            rt::sleep(REST).await;
            sound(&own, &driver.seen(), name);
            agrees(&driver, &own, name).await;
        });
        ended.finished();
        assert_eq!(errors::take(), Vec::<String>::new(), "{name}");
    }
}

/// Devices were read one after the other without an end, and a stop waited behind that for ever.
#[test]
fn a_record_is_read_back_though_a_device_hangs() {
    let machine = start("p, and q stopped", Pace::default());
    let own = machine.clone();
    let said = live(8, &machine, move |driver| async move {
        rt::sleep(REST).await;
        let pool: PoolUuid = *driver.seen().running.keys().next().expect("p runs");
        own.hang("/dev/a", true);
        let said = rt::within(Duration::from_secs(60), driver.call(Wish::Metadata(pool, false))).await;
        own.hang("/dev/a", false);
        said
    });
    assert!(matches!(said.finished(), Some(Ok(Answer::Text(_)))), "the other device has it");
}
