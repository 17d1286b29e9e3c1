//! Every way in which the machine can stop in the middle of an operation, tried on copies of it.
//!
//! One run of the operation leaves a copy of the machine from before each of its actions. Each copy ends in each way
//! there is: the process is gone and the kernel goes on, or the power fails and what was not durable is lost, or kept,
//! or torn. A daemon starts on what that leaves, and must show the state before the operation or the one after it, and
//! the one after it if the operation was answered. Copies that have come to be the same are started on once.
//!
//! Bound: of the ways to lose power at one moment all are tried if there are at most `WAYS_MAX`. Otherwise so many:
//! all is lost, all is kept, and by seed, half of them writes as a whole, half of them each sector for itself.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use cores::rt;
use stratisd::engine::grow::Pace;
use stratisd::error::Failure;
use stratisd::message::{Answer, Wish};
use stratisd::sys::sim::Machine;

use crate::always::{Always, Odd};
use crate::memory::{agrees, shown_again};
use crate::sound::{interchangeable, made_good, sound};
use crate::world::{Driver, Seen, live, live_at, look};

/// Ways to lose power that are tried at one moment.
const WAYS_MAX: u64 = 16;
/// Of so many new images one is worked with, after it was looked at.
const WORKED_WITH: usize = 16;
/// How long what an operation starts in the background is let run.
pub(crate) const REST: Duration = Duration::from_secs(2);

/// How a machine stops.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The process ends, the kernel does not.
    Process,
    /// The power fails in one of all ways.
    Way(u64),
    /// The power fails, and writes are lost as a whole, by seed.
    Writes(u64),
    /// The power fails, and sectors are lost each for itself, by seed.
    Sectors(u64),
}

impl End {
    /// The ways in which a machine can stop now.
    pub(crate) fn all(machine: &Machine) -> Vec<Self> {
        let ways = machine.fork().crash_way(0);
        let mut ends = vec![Self::Process];
        if ways <= WAYS_MAX {
            ends.extend((0..ways).map(Self::Way));
        } else {
            ends.extend([Self::Way(0), Self::Way(u64::MAX)]);
            ends.extend((2..WAYS_MAX).map(|seed| if seed % 2 == 0 { Self::Writes(seed) } else { Self::Sectors(seed) }));
        }
        ends
    }

    /// A copy of the machine that has stopped like this.
    pub(crate) fn of(self, machine: &Machine) -> Machine {
        let machine = machine.fork();
        match self {
            Self::Process => machine.kill(),
            Self::Way(way) => drop(machine.crash_way(way)),
            Self::Writes(seed) => machine.crash_writes(seed),
            Self::Sectors(seed) => machine.crash(seed),
        }
        machine
    }
}

/// A machine before one of its actions, and whether the operation was answered by then.
pub(crate) struct Moment {
    machine: Machine,
    answered: bool,
}

/// One run of an operation.
pub(crate) struct Run {
    before: Machine,
    pub(crate) moments: Vec<Moment>,
    after: Machine,
    /// What clients saw before it and after it.
    shown: [Seen; 2],
    pub(crate) outcome: Option<Result<Answer, Failure>>,
}

/// Runs an operation after what stands before it. There may be none.
pub(crate) fn run<P: Future<Output = ()> + 'static>(
    (pace, seed): (Pace, u64),
    machine: &Machine,
    prepare: impl FnOnce(Rc<Driver>) -> P + 'static,
    wish: impl FnOnce(&Seen) -> Option<Wish> + 'static,
) -> Run {
    let own = machine.clone();
    live_at(pace, seed, machine, move |driver| async move {
        prepare(Rc::clone(&driver)).await;
        rt::sleep(REST).await;
        let (before, shown) = (own.fork(), driver.seen());
        let (moments, answered) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(false)));
        let (into, so_far) = (Rc::clone(&moments), Rc::clone(&answered));
        let (mut always, odd) = (Always::default(), Odd::default());
        let keeps = Rc::clone(&odd);
        own.watch(Some(Box::new(move |machine| {
            always.look(&machine, &keeps);
            into.borrow_mut().push(Moment { machine, answered: so_far.get() });
        })));
        let mut outcome = None;
        if let Some(wish) = wish(&driver.seen()) {
            outcome = Some(driver.call(wish).await);
            answered.set(matches!(outcome, Some(Ok(_))));
        }
        rt::sleep(REST).await;
        own.watch(None);
        assert_eq!(*odd.borrow(), None, "during the operation");
        let after = own.fork();
        let shown = [shown, driver.seen()];
        sound(&own, &shown[1], "after the operation");
        agrees(&driver, &own, "after the operation").await;
        Run { before, moments: moments.take(), after, shown, outcome }
    })
    .finished()
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sequences: usize,
    pub(crate) states: usize,
    pub(crate) images: usize,
    /// Sequences whose last operation changes what clients see.
    pub(crate) changed: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.states += other.states;
        self.images += other.images;
        self.changed += other.changed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequences, states, images, changed } = self;
        write!(
            out,
            "{sequences} sequences ({changed} change something), {states} crash states, {images} of them different"
        )
    }
}

/// What is shown before and after, by whether the power has failed.
struct Allowed {
    undone: [Seen; 2],
    done: [Seen; 2],
}

impl Allowed {
    fn of(run: &Run, at: &str) -> Self {
        let both = |machine: &Machine, shown: &Seen| {
            [(End::Process, false), (End::Way(0), true)].map(|(end, power)| {
                let seen = look(1, &end.of(machine));
                shown_again(shown, &seen, power, at);
                seen
            })
        };
        Self { undone: both(&run.before, &run.shown[0]), done: both(&run.after, &run.shown[1]) }
    }
}

/// What is shown when all pools were taken down and come up, without a lock that had to be opened again: the layer of
/// the encryption may still have been there when the process ended, and reverts are made by any start.
fn up_again(machine: &Machine) -> Seen {
    live(1, &machine.fork(), |driver| async move {
        for pool in driver.seen().running.into_keys() {
            // One that cannot be stopped was not taken down.
            if driver.call(Wish::StopPool(pool)).await.is_ok() {
                let up = driver.call(Wish::StartPool { pool, unlock: true, remove_cache: false }).await;
                assert!(up.is_ok(), "a pool that was stopped does not start: {up:?}");
            }
        }
        rt::sleep(REST).await;
        driver.seen()
    })
    .finished()
}

/// What a daemon shows after the end of another process is durable, though that one may have left it in the caches of
/// disks only.
fn outlasts_power(machine: &Machine, seen: &Seen, at: &str) {
    let machine = machine.fork();
    machine.crash_way(0);
    shown_again(seen, &look(3, &machine), true, &format!("{at}, and then the power fails"));
}

/// Tries every end of every moment. `usable` asks for something that then can be done.
pub(crate) fn verify(run: &Run, usable: impl Fn(&Machine, &Seen, &str), at: &str) -> Tally {
    let mut tally = Tally { sequences: 1, ..Tally::default() };
    if run.moments.is_empty() {
        return tally;
    }
    let allowed = Allowed::of(run, at);
    tally.changed = usize::from(allowed.undone != allowed.done);
    let whole = Moment { machine: run.after.fork(), answered: matches!(run.outcome, Some(Ok(_))) };
    // What was started on once, and whether it shows the operation.
    let mut known: HashMap<u64, bool> = HashMap::new();
    for (number, moment) in run.moments.iter().chain([&whole]).enumerate() {
        for end in End::all(&moment.machine) {
            let machine = end.of(&moment.machine);
            let at = format!("{at}, {end:?} before action {number} of {}", run.moments.len());
            let power = usize::from(!matches!(end, End::Process));
            let count = known.len();
            let done = *known.entry(machine.image()).or_insert_with(|| {
                interchangeable(&machine, &at);
                let seen = look(2, &machine);
                let (undone, done) = (&allowed.undone[power], &allowed.done[power]);
                let up = || seen == up_again(&run.before);
                let half = || format!("half an operation: {at}\n{seen:#?}\n{undone:#?}\n{done:#?}");
                // What was taken down before the process ended is set up as after a power failure.
                let down = seen == allowed.undone[1] || seen == allowed.done[1];
                assert!(seen == *undone || seen == *done || down || (power == 0 && up()), "{}", half());
                sound(&machine, &seen, &at);
                made_good(&machine, &seen, &at);
                if power == 0 {
                    outlasts_power(&machine, &seen, &at);
                }
                if count.is_multiple_of(WORKED_WITH) {
                    usable(&machine, &seen, &at);
                }
                seen == *done || seen == allowed.done[1]
            });
            assert!(done || !moment.answered, "a replied operation is lost: {at}");
            tally.states += 1;
        }
    }
    tally.images = known.len();
    tally
}
