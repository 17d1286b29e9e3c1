//! Kills the daemon at random points of random operations on real devices, and looks at what the next one makes
//! of it, while a filesystem of one pool is written.
//!
//! Each round: two clients send operations, each one after the other, both at once; after some answers and a
//! random time the daemon is killed and started again. Then every operation that was answered must be there,
//! every one that was not must be there entirely or not at all, and the kernel must hold the pools and nothing
//! else.
//!
//! `POINTS` is the number of rounds, `SEED` repeats a run as far as timing allows. Deliberately absent: the
//! loss of power, see `power.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dbus::Message;

use crate::guest::{Guest, dm, files};
use crate::host::{SPEC, Spec};
use crate::load::{self, Load};
use crate::model::Seen;
use crate::scenario;
use crate::support::daemon::PATIENCE;
use crate::worker::{Counts, Report, Worker};
use crate::{aftermath, check};

/// Rounds, unless `POINTS` says otherwise; `make test-long` has more.
const POINTS: u64 = 20;
/// With so many rounds every kind of operation happens.
const POINTS_OF_ALL_KINDS: u64 = 100;
/// Clients at once, and the disks of each.
const WORKERS: usize = 2;
const DISKS: usize = 2;
/// A round ends after so many answers at most, and this long after the last of them: however fast the machine is,
/// some kills come within the first operation, and some after several.
const ANSWERS_MAX: u64 = 3;
const DELAY_MICROS_MAX: u64 = 400_000;

scenario!(
    /// What was answered is there, what was not is whole or absent, and a mounted filesystem notices nothing.
    a_killed_daemon_is_followed_by_one_that_adopts,
    Spec { disks: &["4G", "4G", "3G", "4G", "3G"], limit_s: limit_s(POINTS), ..SPEC },
    play
);

/// A number from the environment.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// A time limit for so many points, or for as many as `POINTS` says: half a minute for each, and five minutes.
pub(crate) fn limit_s(points: u64) -> u32 {
    u32::try_from(300 + 30 * number("POINTS").unwrap_or(points)).expect("some thousand points")
}

/// The seed that was given, or a new one.
pub(crate) fn seed() -> u64 {
    number("SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
        now.as_secs()
    })
}

/// Sends a call, kills the daemon after a while, starts the next one and waits for the only pool; whether the call was
/// replied to.
pub(crate) fn cut_short(guest: &mut Guest, call: Message, delay: Duration) -> bool {
    let client = guest.client();
    let serial = client.send(call);
    thread::sleep(delay);
    guest.kill9();
    let replied = client.reply_to(serial).is_some_and(|reply| reply.is_ok());
    guest.start();
    // udev looks at a device once it was closed, which may be after the next daemon has asked what there is: then a
    // pool that has just got the device starts moments later.
    let client = guest.client();
    guest.until("the pool runs", |_| !client.family("pool").is_empty());
    replied
}

fn play(guest: &mut Guest) {
    let (points, seed) = (number("POINTS").unwrap_or(POINTS), seed());
    println!("kill: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    guest.start();
    let mut disks = guest.disks();
    let own = vec![disks.remove(0)];
    let mut workers = vec![Worker::new(WORKERS, own.clone(), random.fork())];
    load::furnish(&guest.client(), &mut workers[0], &own);
    for (index, own) in disks.chunks(DISKS).take(WORKERS).enumerate() {
        let mut worker = Worker::new(index, own.to_vec(), random.fork());
        worker.found(&guest.client());
        workers.push(worker);
    }
    let journal = Path::new("/out/load.journal");
    let device = load_device(&workers[0]);
    let folder = files::mount(&device, load::NAME);
    let load = Load::start(folder.clone(), journal.to_owned());
    let tables = tables_of_load(&workers[0]);
    let (mut counts, started) = (Counts::default(), Instant::now());
    for point in 0..points {
        let (answers, delay) = (random.u64(0..=ANSWERS_MAX), random.u64(0..=DELAY_MICROS_MAX));
        let delay = Duration::from_micros(delay);
        let mut reports = vec![Report::default()];
        reports.extend(round(guest, &mut workers[1..], answers, delay));
        counts.add(&reports);
        let in_flight: Vec<_> = reports.iter().filter_map(|report| report.in_flight.as_ref()).collect();
        let context = format!("kill {point}, SEED={seed}, {delay:?} after {answers} answers: {in_flight:?}");
        println!("{context}");
        guest.start();
        let client = guest.client();
        let (seen, freed) = check::objects(&client, &mut workers, reports, &context);
        aftermath::free(&client, &freed, &mut random, &context);
        aftermath::kernel(guest, &seen, &[load::NAME], &mut random, &context);
        assert_eq!(tables_of_load(&workers[0]), tables, "tables of a pool that runs; {context}");
        assert!(!load.has_failed(), "the mounted filesystem: see below; {context}");
        check::stop_some(&client, &mut workers[1..], &mut random, &context);
    }
    load.stop();
    files::drop_caches();
    let whole = load::check(&folder, journal);
    println!("kill: {points} kills in {:.0?}, {whole} files whole; {counts:?}", started.elapsed());
    files::unmount(&folder);
    files::check_xfs(&device);
    let seen = Seen::new(&guest.client().objects());
    guest.kill9();
    aftermath::metadata_volumes(&seen);
    if points >= POINTS_OF_ALL_KINDS {
        counts.expect_all_kinds();
    }
}

fn load_device(keeper: &Worker) -> PathBuf {
    let known = |uuid: &Option<String>| uuid.clone().expect("it was seen");
    aftermath::thin(&known(&keeper.model.pools[load::NAME].uuid), &known(&keeper.model.filesystems[load::NAME].uuid))
}

/// Tables below the filesystem that is written. They may not change under it.
fn tables_of_load(keeper: &Worker) -> BTreeMap<String, String> {
    let pool = keeper.model.pools[load::NAME].uuid.clone().expect("it was seen");
    let mut tables = dm::tables();
    tables.retain(|name, _| name.starts_with(&dm::private(&pool, "")));
    tables
}

/// Lets the workers loose, kills the daemon, and gathers what the workers know.
fn round(guest: &mut Guest, workers: &mut [Worker], answers: u64, delay: Duration) -> Vec<Report> {
    let (answered, count) = channel();
    workers.iter_mut().for_each(|worker| worker.answers = Some(answered.clone()));
    let barrier = Barrier::new(workers.len() + 1);
    thread::scope(|scope| {
        let barrier = &barrier;
        let work = |worker: &'_ mut Worker, client| {
            barrier.wait();
            worker.work(&client)
        };
        let running: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let client = guest.client();
                scope.spawn(move || work(worker, client))
            })
            .collect();
        barrier.wait();
        for _ in 0..answers {
            count.recv_timeout(PATIENCE).expect("the daemon answers");
        }
        thread::sleep(delay);
        guest.kill9();
        running.into_iter().map(|one| one.join().expect("a worker found a wrong answer, see above")).collect()
    })
}
