//! Sequences of three deeds of the small universe, up to symmetry, with every crash point of the last one.
//!
//! Of the beginnings after which clients see the same, ids apart that are drawn, one is gone on with; so what changes
//! nothing, and what comes to the same in another order, is not tried again.
//!
//! Deliberately absent: what differs below what clients see, as where on the disks something lies.

use std::collections::{BTreeMap, BTreeSet};

use stratisd::engine::grow::Pace;
use stratisd::model::ids::PoolUuid;

use crate::deeds::{DEEDS, STARTS, Sequence, done, drawn, every, explore, prepared, side_by_side};
use crate::failing::{Shape, shape};
use crate::world::{Seen, live};

/// What clients see, without an id that is drawn.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Sight {
    shape: Shape,
    stopped: BTreeMap<PoolUuid, (Option<String>, usize)>,
    pub(crate) settings: BTreeSet<String>,
}

impl Sight {
    /// What matters of it, for people.
    pub(crate) fn brief(&self) -> String {
        let usual = [" has ", " fs limit 100", " overprovisioning"];
        let telling = self.settings.iter().filter(|line| !usual.iter().any(|usual| line.contains(usual)));
        format!("{:?}, stopped {:?}, {:?}", self.shape.0.values(), self.stopped.values(), telling.collect::<Vec<_>>())
    }
}

pub(crate) fn sight(seen: &Seen) -> Sight {
    let of_filesystems = seen.running.iter().flat_map(|(pool, (_, all))| {
        all.iter().map(move |(uuid, name)| (uuid.to_string(), format!("{name} in {pool}")))
    });
    let of_devices = seen.settings.iter().filter_map(|line| {
        let (uuid, rest) = line.split_once(" at ")?;
        Some((uuid.to_owned(), rest.split(' ').next()?.to_owned()))
    });
    let names: BTreeMap<String, String> = of_filesystems.chain(of_devices).collect();
    let named = |line: &String| {
        let words = line.split(' ').map(|word| names.get(word).map_or(word, |name| name));
        words.collect::<Vec<_>>().join(" ")
    };
    let settings = seen.settings.iter().map(named).collect();
    Sight { shape: shape(seen), stopped: seen.stopped.clone(), settings }
}

/// Beginnings of so many deeds that none before has led to, from each start.
fn beginnings(length: usize) -> Vec<(usize, Vec<usize>)> {
    let mut all: Vec<(usize, Vec<usize>)> = (0..STARTS.len()).map(|start| (start, vec![])).collect();
    let mut known: BTreeMap<usize, BTreeSet<Sight>> = BTreeMap::new();
    for step in 0..=length {
        let mut seen = side_by_side(&all, |(start, deeds)| {
            let (start, deeds) = (*start, deeds.clone());
            let machine = prepared(STARTS[start].1, Pace::default());
            let own = deeds.clone();
            let seen = live(2, &machine, move |driver| async move {
                done(&driver, &own).await;
                driver.seen()
            });
            (start, deeds, sight(&seen.finished()))
        });
        // Threads end in no order.
        seen.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let fresh = seen.into_iter().filter_map(|(start, deeds, sight)| {
            known.entry(start).or_default().insert(sight).then_some((start, deeds))
        });
        let fresh: Vec<_> = fresh.collect();
        if step == length {
            return fresh;
        }
        let next = |(start, deeds): &(usize, Vec<usize>)| {
            let (start, deeds) = (*start, deeds.clone());
            (0..DEEDS.len()).map(move |deed| (start, [&*deeds, &[deed]].concat()))
        };
        all = fresh.iter().flat_map(next).collect();
    }
    unreachable!("the last step returns")
}

#[test]
#[ignore = "takes a while: make test-long"]
fn sequences_of_three_deeds_are_all_or_nothing() {
    let beginnings = beginnings(2);
    let space: Vec<Sequence> = beginnings.iter().flat_map(|(start, before)| every(*start, before)).collect();
    println!("{} sequences: {} beginnings of two deeds, {} deeds", space.len(), beginnings.len(), DEEDS.len());
    match crate::given("SEQUENCES") {
        Some(count) => explore(&drawn(&space, count), Pace::default(), "a slice of three"),
        None => explore(&space, Pace::default(), "all of three"),
    }
}
