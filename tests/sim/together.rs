//! Several clients at once, each with a short sequence of deeds of the small universe: they end as if all had been done
//! one after the other, in one order that keeps the order of each client, and in which nothing that had ended before
//! something else began comes after it.
//!
//! What comes of them must be what comes of one of these orders, by what each client was answered, by what it read on
//! its way, and by what all see in the end; and the daemon at rest is as it must be. Ids are random, so names are
//! compared.
//!
//! A deed after a client's first one acts on what that client sees by then. What it finds is a step of its own:
//! somebody else may come between finding and asking, as in life.
//!
//! Deliberately absent: where it is cut off. One deed at a time is (`deeds`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use cores::clock::Instant;
use cores::deterministic::Universe;
use cores::rt;
use stratisd::engine::grow::Pace;
use stratisd::error::{Failure, Refusal};
use stratisd::message::{Answer, Wish};
use stratisd::shard::wait::all;
use stratisd::sys::sim::Machine;

use crate::always::watch;
use crate::bounds;
use crate::crash::REST;
use crate::deeds::{DEEDS, STARTS, prepared, side_by_side};
use crate::longer::{Sight, sight};
use crate::memory::{agrees, shown_again};
use crate::sound::sound;
use crate::world::{Driver, Seen, boot, live, look};

/// How many clients there are, how many deeds each has, and whether each reads after its deeds.
const FORMS: &[(&[usize], bool)] =
    &[(&[1, 1], false), (&[1, 1, 1], false), (&[1, 1], true), (&[2, 1], false), (&[2, 2], false), (&[1, 1, 1], true)];
/// Clients begin within so many microseconds of each other: while the first deed of most is under way.
const APART_US: u64 = 20_000;

/// What a client does next.
#[derive(Clone, Debug)]
enum Step {
    /// Looks for what a deed acts on.
    Find(usize),
    /// Asks for what was found.
    Ask,
    /// Reads all that there is.
    Read,
}

/// What came of a step.
#[derive(Debug, Eq, PartialEq)]
enum Came {
    Found(bool),
    /// It was not asked for, because there was nothing to ask it of.
    Left,
    /// It was done, or it is so already.
    Done {
        changed: bool,
    },
    /// With its reason.
    Refused(String),
    /// Refused because of a name that another request is just giving or taking away: as if it had not been asked for.
    Busy,
    /// Refused because of a device that somebody holds: a pool, or a request that is just making it one of a pool.
    Held,
    /// Not taken.
    Skipped,
    Saw(Box<Sight>),
}

impl Came {
    fn of(outcome: Result<Answer, Failure>) -> Self {
        match outcome {
            Ok(Answer::Identity) => Self::Done { changed: false },
            Ok(_) => Self::Done { changed: true },
            Err(Failure::Refused(Refusal::PoolNameBusy { .. } | Refusal::FilesystemBusy { .. })) => Self::Busy,
            Err(Failure::Refused(Refusal::DeviceOwned { .. } | Refusal::DeviceTaken { .. })) => Self::Held,
            Err(Failure::Refused(refusal)) => Self::Refused(refusal.to_string()),
            Err(Failure::Faulted(fault)) => panic!("a fault without a reason: {fault}"),
        }
    }

    /// Whether this, of clients at once, is that, of one step after the other. Why something is refused may depend on
    /// how far something else is.
    fn is(&self, other: &Self) -> bool {
        let refused = |came: &Self| matches!(came, Self::Refused(_) | Self::Held);
        let skipped = *other == Self::Skipped && matches!(self, Self::Busy | Self::Held);
        self == other || skipped || refused(self) && refused(other)
    }
}

/// A client, and what has come of its steps so far.
struct Client {
    steps: Vec<Step>,
    found: RefCell<Option<Wish>>,
    came: RefCell<Vec<Came>>,
    /// Steps that are not taken, because among others they came to nothing.
    skips: Vec<usize>,
    /// When each step began and ended.
    times: RefCell<Vec<(Instant, Instant)>>,
}

impl Client {
    /// One with these deeds; what the first acts on it knows from the start.
    fn new(deeds: &[usize], reads: bool, seen: &Seen) -> Self {
        let mut steps: Vec<Step> = deeds.iter().flat_map(|deed| [Step::Find(*deed), Step::Ask]).collect();
        steps.remove(0);
        steps.extend(reads.then_some(Step::Read));
        let found = RefCell::new(DEEDS[deeds[0]].1(seen));
        Self { steps, found, came: RefCell::default(), skips: Vec::new(), times: RefCell::default() }
    }

    /// Takes the next step.
    async fn step(&self, driver: &Driver) {
        let step = self.steps[self.came.borrow().len()].clone();
        let began = rt::now();
        if self.skips.contains(&self.came.borrow().len()) {
            self.came.borrow_mut().push(Came::Skipped);
            return;
        }
        let came = match step {
            Step::Find(deed) => {
                *self.found.borrow_mut() = DEEDS[deed].1(&driver.seen());
                Came::Found(self.found.borrow().is_some())
            }
            Step::Ask => {
                let wish = self.found.borrow_mut().take();
                match wish {
                    None => Came::Left,
                    Some(wish) => Came::of(driver.call(wish).await),
                }
            }
            Step::Read => Came::Saw(Box::new(portrait(&driver.seen()))),
        };
        self.came.borrow_mut().push(came);
        self.times.borrow_mut().push((began, rt::now()));
    }
}

/// What came of all, and what is seen in the end.
struct Outcome {
    came: Vec<Vec<Came>>,
    sight: Sight,
}

impl Outcome {
    /// Whether this, of clients at once, is that, of one step after the other.
    fn is(&self, other: &Self) -> bool {
        let mut pairs = self.came.iter().flatten().zip(other.came.iter().flatten());
        self.sight == other.sight && pairs.all(|(one, other)| one.is(other))
    }

    /// What matters of it, for people.
    fn brief(&self) -> String {
        let came = |came: &Came| match came {
            Came::Saw(sight) => format!("saw {}", sight.brief()),
            other => format!("{other:?}"),
        };
        let of = |all: &Vec<Came>| all.iter().map(came).collect::<Vec<_>>().join(", ");
        let all: Vec<_> = self.came.iter().map(of).collect();
        format!("[{}] and in the end {}", all.join("] ["), self.sight.brief())
    }
}

/// What there is to be seen without an id that is drawn, and without sizes that growth in the background changes.
fn portrait(seen: &Seen) -> Sight {
    let mut sight = sight(seen);
    sight.settings.retain(|line| !line.ends_with(" no space") && !line.contains(" bytes, "));
    sight
}

/// What several clients do.
#[derive(Clone, Debug)]
struct Case {
    start: usize,
    deeds: Vec<Vec<usize>>,
    reads: bool,
    /// When each begins.
    begin: Vec<Duration>,
}

impl Case {
    fn draw(dice: &mut fastrand::Rng, (deeds, reads): (&[usize], bool)) -> Self {
        let start = dice.usize(..STARTS.len());
        let begin = |dice: &mut fastrand::Rng| {
            // Half of the time at once.
            let apart = if dice.bool() { dice.u64(..APART_US) } else { 0 };
            Duration::from_micros(apart)
        };
        Self {
            start,
            reads,
            begin: deeds.iter().map(|_| begin(dice)).collect(),
            deeds: deeds.iter().map(|count| (0..*count).map(|_| dice.usize(..DEEDS.len())).collect()).collect(),
        }
    }

    fn words(&self) -> String {
        let deeds = |all: &Vec<usize>| all.iter().map(|deed| DEEDS[*deed].0).collect::<Vec<_>>().join(", then ");
        let clients: Vec<_> = self.deeds.iter().map(deeds).collect();
        format!("from {} at {:?}: {}", STARTS[self.start].0, self.begin, clients.join("; beside: "))
    }

    /// The clients, unless two of them would make one pool: the bus core draws an id for each.
    fn clients(&self, seen: &Seen) -> Option<Vec<Client>> {
        let clients: Vec<_> = self.deeds.iter().map(|deeds| Client::new(deeds, self.reads, seen)).collect();
        let makes = self.deeds.iter().flatten().filter_map(|deed| match DEEDS[*deed].1(seen) {
            Some(Wish::CreatePool { pool, .. }) => Some(pool),
            _ => None,
        });
        let mut makes: Vec<_> = makes.collect();
        let count = makes.len();
        makes.sort_unstable();
        makes.dedup();
        (makes.len() == count).then_some(clients)
    }

    /// All at once.
    fn together(&self, machine: &Machine, clients: Vec<Client>) -> (Outcome, Vec<Vec<(Instant, Instant)>>) {
        let (own, at, begin) = (machine.clone(), self.words(), self.begin.clone());
        let (universe, odd) = (Universe::new(7), watch(machine));
        let watched = bounds::watch(&universe, &odd);
        let ended = universe.run(async move {
            let driver = boot(&own, Pace::default()).await;
            watched.is(&driver);
            rt::sleep(REST).await;
            let beside = clients.iter().zip(begin).map(|(client, begin)| {
                let driver = Rc::clone(&driver);
                async move {
                    rt::sleep(begin).await;
                    for _ in &client.steps {
                        client.step(&driver).await;
                    }
                }
            });
            all(beside).await;
            rt::sleep(REST).await;
            own.watch(None);
            assert_eq!(driver.busy(), 0, "something is still under way: {at}");
            sound(&own, &driver.seen(), &at);
            agrees(&driver, &own, &at).await;
            (clients, driver.seen())
        });
        let (clients, seen) = ended.finished();
        assert_eq!(*odd.borrow(), None, "{}", self.words());
        machine.kill();
        shown_again(&seen, &look(9, machine), false, &self.words());
        let times = clients.iter().map(|client| client.times.take()).collect();
        (Outcome { came: clients.iter().map(|client| client.came.take()).collect(), sight: portrait(&seen) }, times)
    }

    /// One step after the other, by whose turn it is.
    fn in_turn(&self, machine: &Machine, clients: Vec<Client>, order: &[usize]) -> Outcome {
        let order = order.to_vec();
        let ended = live(8, machine, move |driver| async move {
            rt::sleep(REST).await;
            for client in order {
                clients[client].step(&driver).await;
                rt::sleep(REST).await;
            }
            (clients, driver.seen())
        });
        let (clients, seen) = ended.finished();
        Outcome { came: clients.iter().map(|client| client.came.take()).collect(), sight: portrait(&seen) }
    }

    /// Tries it. Says how many orders there were to compare with, at most.
    fn holds(&self) -> usize {
        let machine = at_start(self.start);
        let seen = look(4, &machine.fork());
        let Some(clients) = self.clients(&seen) else { return 0 };
        let (together, times) = self.together(&machine.fork(), clients);
        let orders = orders(&times);
        let mut others = Vec::new();
        // Who holds a device may be a request that has not come to its end.
        let held = together.came.iter().flatten().any(|came| *came == Came::Held);
        for skipped in [&[Came::Busy][..], &[Came::Busy, Came::Held]].into_iter().take(1 + usize::from(held)) {
            for order in &orders {
                let mut clients = self.clients(&seen).expect("as before");
                for (client, came) in clients.iter_mut().zip(&together.came) {
                    client.skips = (0..came.len()).filter(|step| skipped.contains(&came[*step])).collect();
                }
                let one = self.in_turn(&machine.fork(), clients, order);
                if together.is(&one) {
                    return orders.len();
                }
                others.push(format!("{order:?}: {}", one.brief()));
            }
        }
        panic!("not one after the other: {}\n{}\nbut\n{}", self.words(), together.brief(), others.join("\n"));
    }
}

/// A copy of the machine with what stands before.
fn at_start(start: usize) -> Machine {
    thread_local! {
        static MADE: RefCell<BTreeMap<usize, Machine>> = RefCell::default();
    }
    MADE.with_borrow_mut(|made| made.entry(start).or_insert_with(|| prepared(STARTS[start].1, Pace::default())).fork())
}

/// All orders in which the steps of clients can have happened, by whose turn it is: those of one client in their order,
/// and none before one that had ended when it began. First the one in which they ended.
fn orders(times: &[Vec<(Instant, Instant)>]) -> Vec<Vec<usize>> {
    let (mut found, mut taken) = (Vec::new(), vec![0; times.len()]);
    extend(times, &mut taken, &mut Vec::new(), &mut found);
    found
}

fn extend(times: &[Vec<(Instant, Instant)>], taken: &mut [usize], order: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
    let left =
        |taken: &[usize]| -> Vec<usize> { (0..times.len()).filter(|one| taken[*one] < times[*one].len()).collect() };
    let mut next = left(taken);
    if next.is_empty() {
        found.push(order.clone());
        return;
    }
    next.sort_by_key(|one| times[*one][taken[*one]].1);
    for one in next.clone() {
        let (began, _) = times[one][taken[one]];
        if next.iter().any(|other| *other != one && times[*other][taken[*other]].1 < began) {
            continue;
        }
        taken[one] += 1;
        order.push(one);
        extend(times, taken, order, found);
        order.pop();
        taken[one] -= 1;
    }
}

/// Tries so many, drawn by seed.
fn try_many(count: u64) {
    let seed = crate::seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    println!("SEED={seed}: {count} times several clients at once");
    let cases: Vec<Case> = FORMS
        .iter()
        .cycle()
        .take(usize::try_from(count).expect("not so many"))
        .map(|form| Case::draw(&mut dice, *form))
        .collect();
    let tried = side_by_side(&cases, Case::holds);
    println!(
        "{} were comparable, {} orders at most",
        tried.iter().filter(|orders| **orders > 0).count(),
        tried.iter().sum::<usize>()
    );
}

#[test]
fn clients_at_once_are_clients_in_some_order() {
    try_many(crate::given("CASES").unwrap_or(900));
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn many_clients_at_once_are_clients_in_some_order() {
    try_many(crate::given("CASES").unwrap_or(60_000));
}

#[test]
fn orders_keep_what_clients_and_time_say() {
    let at = |ms: u64| Instant::START + Duration::from_millis(ms);
    let beside = (at(0), at(9));
    assert_eq!(orders(&[vec![beside; 1], vec![beside; 1], vec![beside; 1]]).len(), 6);
    assert_eq!(orders(&[vec![beside; 2], vec![beside; 2]]).len(), 6);
    assert_eq!(orders(&[vec![(at(0), at(1))], vec![(at(2), at(3))]]), [[0, 1]]);
}
