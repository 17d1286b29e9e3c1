//! Switches the whole machine off at random points of random operations, boots it again, and looks at what the
//! daemon and the filesystems remember.
//!
//! Clients and the writer of files keep journals in `/out`, which is a folder of the host: a line is synced
//! before a request leaves, and after its answer has come. After each boot every operation with an answer in the
//! journal must be there, every one without must be there entirely or not at all, every file in the journal must be
//! whole, and `xfs_repair -n` must find nothing to repair.
//!
//! What is lost: everything in the guest's memory, that is dirty pages, the log of XFS, metadata of the thin pool
//! that was not committed, and requests that the driver had not handed to the host yet. What is not lost: what the
//! host's page cache has, since only the machine's processes are killed. So a disk here never forgets a write that
//! it has completed, flush or no flush. Disks that do are simulated, see `tests/sim`.
//!
//! `POINTS` is the number of cuts, `SEED` repeats a run as far as timing allows.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::{Guest, files};
use crate::halves;
use crate::host::{Machine, SPEC, Spec};
use crate::kill::{number, seed};
use crate::load::{self, Load};
use crate::model::Seen;
use crate::support::daemon::PATIENCE;
use crate::worker::{Report, Worker};
use crate::{aftermath, check};

/// Cuts, unless `POINTS` says otherwise.
const POINTS: u64 = 20;
/// Clients at once, and the disks of each.
const WORKERS: usize = 2;
const DISKS: usize = 2;
/// The power is cut after so many answers at most, and this long after the last of them.
const ANSWERS_MAX: usize = 8;
const DELAY_MICROS_MAX: u64 = 600_000;

const MACHINE: Spec = Spec { disks: &["4G", "4G", "3G", "4G", "3G"], limit_s: 240, ..SPEC };

/// In the guest, `/out` comes before these. The first tells the host that work goes on.
const WORKING: &str = "working";
/// Tells the guest that it is the last boot: to look, and to end.
const LAST: &str = "last";

halves!(
    /// Unlike other scenarios this one boots often.
    a_machine_that_loses_power_forgets_nothing_it_answered,
    host,
    play
);

fn host(module: &str) {
    let Some(mut machine) = Machine::prepare(module, &MACHINE) else { return };
    let (points, seed) = (number("POINTS").unwrap_or(POINTS), seed());
    println!("power: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    let working = machine.out.join(WORKING);
    for point in 0..points {
        machine.boot(module);
        await_work(&mut machine, &working);
        let answers = random.usize(0..=ANSWERS_MAX);
        await_answers(&mut machine, answers);
        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        println!("power: cut {point}, {delay:?} after {answers} answers");
        thread::sleep(delay);
        machine.kill();
        fs::remove_file(&working).expect("the guest has made it");
        fs::rename(machine.out.join("output"), machine.out.join(format!("output-{point}"))).expect("each boot has one");
    }
    fs::write(machine.out.join(LAST), "").expect("our own folder is writable");
    machine.boot(module);
    let status = machine.wait();
    machine.expect_success(status);
    machine.remove_disks();
}

/// Waits until the guest has looked at everything and works.
fn await_work(machine: &mut Machine, working: &Path) {
    until(machine, "gets to work", |_| working.exists());
}

/// Waits until the workers have had so many more answers.
fn await_answers(machine: &mut Machine, answers: usize) {
    // Two lines for each operation: before it is sent, and when it is answered.
    let lines = |machine: &Machine| -> usize {
        let journals = (0..WORKERS).map(|index| machine.out.join(format!("{index}.journal")));
        journals.map(|path| fs::read_to_string(path).unwrap_or_default().lines().count()).sum()
    };
    let enough = lines(machine) + 2 * answers;
    until(machine, "gets its answers", |machine| lines(machine) >= enough);
}

/// Waits for something that a guest does which works well.
pub(crate) fn until(machine: &mut Machine, what: &str, holds: impl Fn(&Machine) -> bool) {
    let end = Instant::now() + 2 * PATIENCE;
    while !holds(machine) {
        if !machine.is_running() {
            let status = machine.wait();
            machine.expect_success(status);
            panic!("the guest ended before its time: see {}", machine.out.display());
        }
        assert!(Instant::now() < end, "the guest never {what}: see {}", machine.out.display());
        thread::sleep(Duration::from_millis(5));
    }
}

fn journal(name: &str) -> PathBuf {
    Path::new("/out").join(format!("{name}.journal"))
}

fn play(guest: &mut Guest) {
    guest.start();
    let mut random = fastrand::Rng::new();
    let (mut workers, reports) = remember(guest, &mut random);
    let in_flight: Vec<_> = reports.iter().filter_map(|report| report.in_flight.as_ref()).collect();
    let context = format!("after a cut; in flight: {in_flight:?}");
    println!("{context}");
    let (seen, freed) = check::objects(&guest.client(), &mut workers, reports, &context);
    aftermath::free(&guest.client(), &freed, &mut random, &context);
    let folder = examine(guest, &seen, &mut random, &context);
    if Path::new("/out").join(LAST).exists() {
        files::unmount(&folder);
        guest.kill9();
        aftermath::metadata_volumes(&seen);
        return;
    }
    check::stop_some(&guest.client(), &mut workers[1..], &mut random, &context);
    // What was in doubt is certain now.
    workers.iter_mut().for_each(|worker| worker.note(None));
    let load = Load::start(folder, journal("load"));
    fs::write(Path::new("/out").join(WORKING), "").expect("/out is writable");
    thread::scope(|scope| {
        for worker in &mut workers[1..] {
            let client = guest.client();
            scope.spawn(move || worker.work(&client));
        }
    });
    load.stop();
    panic!("the daemon ended by itself: {}", guest.log());
}

/// The owner of the filesystem that is written, and the workers, as their journals say.
fn remember(guest: &Guest, random: &mut fastrand::Rng) -> (Vec<Worker>, Vec<Report>) {
    let mut disks = guest.disks();
    let own = vec![disks.remove(0)];
    let known = journal("keeper").exists();
    let mut keeper = Worker::new(WORKERS, own.clone(), random.fork());
    let mut reports = vec![keeper.keep(&journal("keeper"))];
    if !known {
        load::furnish(&guest.client(), &mut keeper, &own);
        keeper.note(None);
    }
    let mut workers = vec![keeper];
    for (index, own) in disks.chunks(DISKS).take(WORKERS).enumerate() {
        let mut worker = Worker::new(index, own.to_vec(), random.fork());
        reports.push(worker.keep(&journal(&index.to_string())));
        if !known {
            worker.found(&guest.client());
        }
        workers.push(worker);
    }
    (workers, reports)
}

/// Looks at the kernel and at every filesystem; leaves the one that is written mounted.
fn examine(guest: &mut Guest, seen: &Seen, random: &mut fastrand::Rng, context: &str) -> PathBuf {
    aftermath::kernel(guest, seen, &[load::NAME], random, context);
    let device = |name: &str| {
        let found = &seen.filesystems[name];
        aftermath::thin(&seen.pools[&found.pool].uuid, &found.uuid)
    };
    // Mounted once, for XFS to recover what its log has.
    let folder = files::mount(&device(load::NAME), load::NAME);
    let whole = load::check(&folder, &journal("load"));
    files::unmount(&folder);
    seen.filesystems.keys().for_each(|name| files::check_xfs(&device(name)));
    println!("{} filesystems and {whole} files are whole", seen.filesystems.len());
    files::mount(&device(load::NAME), load::NAME)
}
