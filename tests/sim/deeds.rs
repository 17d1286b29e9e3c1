//! A small universe: two pools, three disks, three filesystems, and all that clients can do there. All sequences of
//! one and of two deeds from each start, with every crash point of the last one.
//!
//! Invariant: what a deed does follows from what clients see before it, so a sequence has a name that replays it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use cores::rt;
use stratisd::engine::grow::Pace;
use stratisd::message::Wish;
use stratisd::model::device::DevicePath;
use stratisd::model::filesystem::FilesystemSpec;
use stratisd::model::ids::{FsUuid, PoolUuid};
use stratisd::model::pool::IntegritySpec;
use stratisd::model::token::{Slot, TokenChange};
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::crash::{REST, Tally, run, verify};
use crate::encryption::{key, tokens};
use crate::errors;
use crate::world::{Driver, Seen, live, live_at, name};

/// In these steps a pool does not take all that its disks have: what a deed enters into its record nothing else saves.
pub(crate) const SMALL_STEPS: Pace = Pace { step: 256, low_water: 32 };

/// Where it begins, what is done first, what is done then.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) start: usize,
    pub(crate) before: Vec<usize>,
    pub(crate) last: usize,
}

/// What is asked for, or nothing where there is nothing to ask it of.
pub(crate) type Deed = fn(&Seen) -> Option<Wish>;

fn p() -> PoolUuid {
    PoolUuid::from_random([7; 16])
}

/// Of the same shard as `p`, so that the two get in each other's way there, too.
fn q() -> PoolUuid {
    PoolUuid::from_random([11; 16])
}

/// A pool gets an id that none has had.
fn create(seen: &Seen, pool: PoolUuid, called: &str, disks: &[&str], encrypted: bool) -> Option<Wish> {
    let known = seen.running.contains_key(&pool) || seen.stopped.contains_key(&pool);
    let pool = if known { PoolUuid::from_random([10; 16]) } else { pool };
    let (devices, encryption) = (paths(disks), encrypted.then(tokens));
    Some(Wish::CreatePool { pool, name: name(called), devices, integrity: IntegritySpec::default(), encryption })
}

fn paths(disks: &[&str]) -> Vec<DevicePath> {
    disks.iter().map(|disk| DevicePath::try_from(*disk).expect("absolute")).collect()
}

fn start(pool: PoolUuid, unlock: bool, remove_cache: bool) -> Option<Wish> {
    Some(Wish::StartPool { pool, unlock, remove_cache })
}

pub(crate) fn make(pool: PoolUuid, called: &str) -> Option<Wish> {
    let spec = FilesystemSpec { name: name(called), size: Some(Sectors(1_048_576)), size_limit: None };
    Some(Wish::CreateFilesystems(pool, vec![spec]))
}

fn find(seen: &Seen, pool: PoolUuid, called: &str) -> Option<FsUuid> {
    let (_, all) = seen.running.get(&pool)?;
    all.iter().find(|(_, name)| *name == called).map(|(uuid, _)| *uuid)
}

fn device(seen: &Seen, path: &str) -> Option<stratisd::model::ids::DevUuid> {
    let line = seen.settings.iter().find(|line| line.contains(&format!(" at {path} in ")))?;
    line.split(' ').next()?.parse().ok()
}

#[rustfmt::skip]
pub(crate) const DEEDS: &[(&str, Deed)] = &[
    ("create p on b", |seen| create(seen, p(), "p", &["/dev/b"], false)),
    ("create p on a and b", |seen| create(seen, p(), "p", &["/dev/a", "/dev/b"], false)),
    ("create p encrypted", |seen| create(seen, p(), "p", &["/dev/a"], true)),
    ("create q on c", |seen| create(seen, q(), "q", &["/dev/c"], false)),
    ("create q on b and c", |seen| create(seen, q(), "q", &["/dev/b", "/dev/c"], false)),
    ("create q as p", |seen| create(seen, q(), "p", &["/dev/c"], false)),
    ("destroy p", |_| Some(Wish::DestroyPool(p()))),
    ("destroy q", |_| Some(Wish::DestroyPool(q()))),
    ("stop p", |_| Some(Wish::StopPool(p()))),
    ("stop q", |_| Some(Wish::StopPool(q()))),
    ("start p", |_| start(p(), false, false)),
    ("start p unlocked", |_| start(p(), true, false)),
    ("start p without cache", |_| start(p(), false, true)),
    ("start q", |_| start(q(), false, false)),
    ("make x in p", |_| make(p(), "x")),
    ("make z in p", |_| make(p(), "z")),
    ("make x in q", |_| make(q(), "x")),
    ("destroy x", |seen| Some(Wish::DestroyFilesystems(p(), vec![find(seen, p(), "x")?]))),
    ("destroy y", |seen| Some(Wish::DestroyFilesystems(p(), vec![find(seen, p(), "y")?]))),
    ("snapshot x as y", |seen| Some(Wish::SnapshotFilesystem(p(), find(seen, p(), "x")?, name("y")))),
    ("snapshot x as z", |seen| Some(Wish::SnapshotFilesystem(p(), find(seen, p(), "x")?, name("z")))),
    ("snapshot y as z", |seen| Some(Wish::SnapshotFilesystem(p(), find(seen, p(), "y")?, name("z")))),
    ("rename x to y", |seen| Some(Wish::SetFilesystemName(p(), find(seen, p(), "x")?, name("y")))),
    ("rename y to z", |seen| Some(Wish::SetFilesystemName(p(), find(seen, p(), "y")?, name("z")))),
    ("rename p to q", |_| Some(Wish::SetPoolName(p(), name("q")))),
    ("rename p to r", |_| Some(Wish::SetPoolName(p(), name("r")))),
    ("rename q to p", |_| Some(Wish::SetPoolName(q(), name("p")))),
    ("add b to p", |_| Some(Wish::AddDataDevices(p(), paths(&["/dev/b"])))),
    ("add c to p", |_| Some(Wish::AddDataDevices(p(), paths(&["/dev/c"])))),
    ("cache b for p", |_| Some(Wish::InitCache(p(), paths(&["/dev/b"])))),
    ("cache c for p", |_| Some(Wish::InitCache(p(), paths(&["/dev/c"])))),
    ("more cache c for p", |_| Some(Wish::AddCacheDevices(p(), paths(&["/dev/c"])))),
    ("grow a", |seen| Some(Wish::GrowDevice(p(), device(seen, "/dev/a")?))),
    ("limit x", |seen| Some(Wish::SetSizeLimit(p(), find(seen, p(), "x")?, Some(Sectors(4_194_304))))),
    ("merge y", |seen| Some(Wish::SetMerge(p(), find(seen, p(), "y")?, true))),
    ("tag a", |seen| Some(Wish::SetUserInfo(p(), device(seen, "/dev/a")?, Some(name("mine"))))),
    ("no overprovisioning in p", |_| Some(Wish::SetOverprovisioning(p(), false))),
    ("more filesystems in p", |_| Some(Wish::SetFsLimit(p(), 200))),
    ("encrypt p", |_| Some(Wish::EncryptPool(p(), tokens()))),
    ("encrypt p anew", |_| Some(Wish::ReencryptPool(p()))),
    ("decrypt p", |_| Some(Wish::DecryptPool(p()))),
    ("bind p", |_| Some(Wish::ChangeTokens(p(), TokenChange::Bind(key("two"), Slot::Free)))),
];

/// What stands before the first deed, on disks that others have used before.
pub(crate) const STARTS: &[(&str, &[Deed])] = &[
    ("bare disks", &[]),
    (
        "p with x and y",
        &[
            |seen| create(seen, p(), "p", &["/dev/a"], false),
            |_| make(p(), "x"),
            |seen| Some(Wish::SnapshotFilesystem(p(), find(seen, p(), "x")?, name("y"))),
        ],
    ),
    (
        "p, and q stopped",
        &[
            |seen| create(seen, q(), "q", &["/dev/c"], false),
            |_| make(q(), "x"),
            |_| Some(Wish::StopPool(q())),
            |seen| create(seen, p(), "p", &["/dev/a", "/dev/b"], false),
            |_| make(p(), "x"),
        ],
    ),
    (
        "p with a cache and nothing else",
        &[
            |seen| create(seen, p(), "p", &["/dev/a", "/dev/b"], false),
            |_| Some(Wish::InitCache(p(), paths(&["/dev/c"]))),
        ],
    ),
];

/// A machine with what stands before the first deed. `/dev/a` has grown since.
pub(crate) fn prepared(steps: &'static [Deed], pace: Pace) -> Machine {
    let machine = Machine::new(1);
    for disk in ["/dev/a", "/dev/b", "/dev/c"] {
        machine.add_disk(disk, Sectors(8_388_608));
    }
    let before =
        create(&Seen::default(), PoolUuid::from_random([5; 16]), "before", &["/dev/a", "/dev/b", "/dev/c"], false);
    let before = before.expect("a wish");
    live(1, &machine, |driver| async move { driver.call(before).await }).finished().expect("it is created");
    machine.crash_way(0);
    for disk in ["/dev/a", "/dev/b", "/dev/c"] {
        machine.scribble(disk, Sectors(0), &[0; 8192]);
    }
    live_at(pace, 1, &machine, move |driver| async move {
        for step in steps {
            let wish = step(&driver.seen()).expect("there is what a start acts on");
            driver.call(wish).await.expect("what stands before is made");
        }
    })
    .finished();
    machine.crash_way(0);
    machine.resize_disk("/dev/a", Sectors(16_777_216));
    machine
}

/// What comes of the first deeds is no matter here.
pub(crate) async fn done(driver: &Driver, deeds: &[usize]) {
    for deed in deeds {
        if let Some(wish) = DEEDS[*deed].1(&driver.seen()) {
            let _refused_or_not = driver.call(wish).await;
        }
        rt::sleep(REST).await;
    }
}

/// What came up can be worked with.
fn usable(machine: &Machine, seen: &Seen, at: &str) {
    let next = match (seen.running.keys().next(), seen.stopped.keys().next()) {
        (Some(pool), _) => make(*pool, "fresh"),
        // Only those that are locked say no to being started without being unlocked.
        (None, Some(_)) => return,
        (None, None) => create(seen, p(), "fresh", &["/dev/a", "/dev/b"], false),
    };
    machine.kill();
    let next = next.expect("a wish");
    let outcome = live(3, machine, move |driver| async move { driver.call(next).await }).finished();
    assert!(outcome.is_ok(), "not usable: {at} {outcome:?}");
}

/// One sequence: nothing or some deeds, and then one with all its crash points.
pub(crate) fn sequence(pace: Pace, sequence: &Sequence) -> Tally {
    let Sequence { start, before, last } = sequence;
    let (from, steps) = STARTS[*start];
    let machine = prepared(steps, pace);
    let names: Vec<&str> = before.iter().map(|deed| DEEDS[*deed].0).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(" and ") };
    let at = format!("from {from}, after {names}: {}", DEEDS[*last].0);
    let before = before.clone();
    let run = run((pace, 2), &machine, move |driver| async move { done(&driver, &before).await }, DEEDS[*last].1);
    verify(&run, usable, &at)
}

/// All sequences of at most two.
fn all() -> Vec<Sequence> {
    let firsts = || std::iter::once(vec![]).chain((0..DEEDS.len()).map(|first| vec![first]));
    (0..STARTS.len()).flat_map(|start| firsts().flat_map(move |before| every(start, &before))).collect()
}

/// Every deed after these.
pub(crate) fn every(start: usize, before: &[usize]) -> Vec<Sequence> {
    (0..DEEDS.len()).map(|last| Sequence { start, before: before.to_vec(), last }).collect()
}

/// Some of them, by seed.
pub(crate) fn drawn(space: &[Sequence], count: u64) -> Vec<Sequence> {
    let seed = crate::seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    println!("SEED={seed}: {count} of {} sequences", space.len());
    (0..count).map(|_| space[dice.usize(..space.len())].clone()).collect()
}

/// Does something with each of these on two threads, until it panics.
pub(crate) fn side_by_side<T: Sync, R: Send>(all: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let (mut done, mut broken) = (Vec::new(), Vec::new());
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match catch_unwind(AssertUnwindSafe(|| each(one))) {
                Ok(result) => done.push(result),
                Err(panic) => {
                    broken.push(errors::text(&*panic));
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        (done, broken)
    };
    let (mut done, mut broken) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        for worker in [scope.spawn(work), scope.spawn(work)] {
            let (of_one, failed) = worker.join().expect("panics are caught");
            done.extend(of_one);
            broken.extend(failed);
        }
    });
    broken.sort();
    assert!(broken.is_empty(), "{}", broken[0]);
    done
}

/// Tries sequences, and says how many states that were, and how fast.
pub(crate) fn explore(sequences: &[Sequence], pace: Pace, what: &str) {
    let began = Instant::now();
    let mut tally = Tally::default();
    let tried = side_by_side(sequences, |one| sequence(pace, one));
    tried.into_iter().for_each(|tried| tally.add(tried));
    let seconds = began.elapsed().as_secs_f64();
    println!("{what}: {tally}, {:.0} states/min", tally.states as f64 * 60.0 / seconds);
}

#[test]
fn sequences_of_two_deeds_are_all_or_nothing() {
    let slice = drawn(&all(), crate::given("SEQUENCES").unwrap_or(240));
    explore(&slice, Pace::default(), "a slice");
}

#[test]
fn single_deeds_are_all_or_nothing() {
    let space: Vec<_> = all().into_iter().filter(|one| one.before.is_empty()).collect();
    println!("{} sequences", space.len());
    explore(&space, Pace::default(), "single deeds");
    explore(&space, SMALL_STEPS, "in pools that have what they need for long");
}

#[test]
#[ignore = "takes minutes: make test-long"]
fn all_sequences_of_two_deeds_are_all_or_nothing() {
    let space = all();
    println!(
        "{} sequences: {} starts, {} deeds and nothing, {} deeds",
        space.len(),
        STARTS.len(),
        DEEDS.len(),
        DEEDS.len()
    );
    explore(&space, Pace::default(), "all");
}
