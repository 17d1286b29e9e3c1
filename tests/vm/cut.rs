//! Growth that is cut off: the daemon is killed, and separately the power fails, at random moments while a pool grows
//! under a writer. The next daemon goes on, and what was written is there.
//!
//! Each round writes more than a step of the pool, so that it grows, and ends at a random moment of that. `POINTS` is
//! the number of rounds, `SEED` repeats a run as far as timing allows. Deliberately absent: operations of clients, see
//! `kill` and `power`; and every point at which this can happen, which the simulation tries.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::extend::blocks_of;
use crate::extend::{check, pattern};
use crate::guest::{Guest, dm, files, run, state};
use crate::host::{Machine, SPEC, Spec};
use crate::kill::{number, seed};
use crate::power::until;
use crate::support::MIB;
use crate::support::daemon::PATIENCE;
use crate::{halves, scenario};

/// Rounds, unless `POINTS` says otherwise; `make test-long` has more.
const KILLS: u64 = 3;
const CUTS: u64 = 2;
/// By how much the pool grows at once, and at how many free ones: what it gets next is entered at each eighth growth.
const GROWTH: [&str; 4] = ["--grow-step", "16", "--low-water", "8"];
/// What a round writes, in MiB, and the longest time until its end.
const BURST: u64 = 24;
const DELAY_MICROS_MAX: u64 = 250_000;
/// A filesystem that all rounds together do not fill, in bytes.
const SIZE: &str = "8589934592";
const MACHINE: Spec = Spec { disks: &["10G"], limit_s: 1_200, ..SPEC };

/// In the guest, `/out` comes before these: how many MiB are durable; and that this is the last boot.
const DURABLE: &str = "durable";
const LAST: &str = "last";

scenario!(
    /// A daemon that is killed is followed by one that goes on where it was.
    a_killed_daemon_s_growth_goes_on,
    MACHINE,
    kill
);

halves!(
    /// Unlike other scenarios this one boots often.
    a_machine_that_loses_power_goes_on_growing,
    host,
    cut
);

fn kill(guest: &mut Guest) {
    let (points, seed) = (number("POINTS").unwrap_or(KILLS), seed());
    println!("cut: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    guest.start_with(&GROWTH);
    let (device, folder) = furnish(guest);
    let (bursts, written) = writer(folder.join("file"));
    let mut before = lengths();
    for point in 0..points {
        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        bursts.send(()).expect("the writer has met no error");
        thread::sleep(delay);
        guest.kill9();
        let found = lengths();
        guest.start_with(&GROWTH);
        written.recv_timeout(PATIENCE).expect("each write succeeds, if need be when the next daemon is there");
        let context = format!("kill {point}, SEED={seed}, after {delay:?}");
        let now = lengths();
        println!("{context}: {before:?} {found:?} {now:?}");
        assert!(before.0 <= found.0 && found.0 <= now.0, "a thin pool never becomes shorter: {context}");
        assert!(now.0 <= now.1, "it has only what is below it: {context}");
        before = now;
    }
    drop(bursts);
    files::drop_caches();
    check(&folder.join("file"), points * BURST);
    files::unmount(&folder);
    files::check_xfs(&device);
    guest.until("what comes next is there", |_| lengths().1 >= lengths().0 + 64);
    dm::expect_settled();
    state::expect_no_cookies("in the end");
    let (client, blocks) = (guest.client(), lengths().0);
    assert!(client.stop_pool("p", "name").done().0);
    client.start_pool("p", "name").done();
    assert_eq!(lengths().0, blocks, "a start takes nothing");
    state::expect_no_io_error();
    guest.expect_quiet();
    guest.stop();
}

/// Makes the pool and the filesystem, and mounts it.
fn furnish(guest: &Guest) -> (PathBuf, PathBuf) {
    let client = guest.client();
    let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
    client.create_filesystems(&pool, &[("f", Some(SIZE), None)]).done();
    mount(guest)
}

fn mount(guest: &Guest) -> (PathBuf, PathBuf) {
    let client = guest.client();
    let (path, _) = client.family("filesystem").into_iter().next().expect("it is there");
    let device = files::node(&client, &path);
    let folder = files::mount(&device, "f");
    (device, folder)
}

/// Data blocks of the thin pool, and of the device below it.
fn lengths() -> (u64, u64) {
    let tables = dm::tables();
    let named = |end: &str| tables.keys().find(|name| name.ends_with(end)).expect("the pool is active").clone();
    let length = |line: &str| line.split(' ').nth(1).expect("a length").parse::<u64>().expect("a number");
    (blocks_of(&named("thinpool-pool")), tables[&named("flex-thindata")].lines().map(length).sum::<u64>() / 2_048)
}

/// A thread that writes a burst when it is told to, and says when that is durable.
fn writer(path: PathBuf) -> (Sender<()>, Receiver<()>) {
    let ((bursts, asked), (done, written)) = (channel(), channel());
    thread::spawn(move || {
        let mut at = 0;
        while asked.recv().is_ok() {
            write(&path, at, BURST);
            at += BURST;
            if done.send(()).is_err() {
                break;
            }
        }
    });
    (bursts, written)
}

/// Writes so many MiB past the page cache, and waits until they are on the disk.
fn write(path: &Path, at: u64, count: u64) {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .expect("a file");
    file.seek(SeekFrom::Start(at * MIB)).expect("a place in a file");
    let length = usize::try_from(MIB).expect("a MiB fits");
    let mut buffer = vec![0; length + 4_096];
    let start = buffer.as_ptr().align_offset(4_096);
    for mib in at..at + count {
        buffer[start..start + length].fill(pattern(mib));
        file.write_all(&buffer[start..start + length]).unwrap_or_else(|error| panic!("{mib} MiB: {error}"));
    }
    file.sync_all().expect("what is written reaches the disk");
}

fn host(module: &str) {
    let Some(mut machine) = Machine::prepare(module, &MACHINE) else { return };
    let (points, seed) = (number("POINTS").unwrap_or(CUTS), seed());
    println!("cut: SEED={seed} POINTS={points}");
    let mut random = fastrand::Rng::with_seed(seed);
    let durable = |machine: &Machine| durable(&machine.out);
    for point in 0..points {
        let enough = durable(&machine) + random.u64(1..=2);
        machine.boot(module);
        until(&mut machine, "writes", |machine| durable(machine) >= enough);
        let delay = Duration::from_micros(random.u64(0..=DELAY_MICROS_MAX));
        thread::sleep(delay);
        machine.kill();
        println!("cut: {point}, {delay:?} after {enough} bursts");
    }
    fs::write(machine.out.join(LAST), "").expect("our own folder is writable");
    machine.boot(module);
    let status = machine.wait();
    machine.expect_success(status);
    machine.remove_disks();
}

/// Bursts that were durable when the power failed.
fn durable(out: &Path) -> u64 {
    let text = fs::read_to_string(out.join(DURABLE)).unwrap_or_default();
    text.lines().count() as u64
}

fn cut(guest: &mut Guest) {
    let out = Path::new("/out");
    guest.start_with(&GROWTH);
    let known = out.join(DURABLE).exists();
    let (device, folder) = if known { mount(guest) } else { furnish(guest) };
    let mut bursts = durable(out);
    if bursts > 0 {
        check(&folder.join("file"), bursts * BURST);
    }
    let (blocks, below) = lengths();
    println!("{bursts} bursts are there, on {blocks} blocks of {below}");
    assert!(blocks <= below, "it has only what is below it");
    dm::expect_settled();
    if out.join(LAST).exists() {
        files::unmount(&folder);
        files::check_xfs(&device);
        state::expect_no_io_error();
        guest.expect_quiet();
        guest.stop();
        return;
    }
    let mut journal = OpenOptions::new().create(true).append(true).open(out.join(DURABLE)).expect("/out is writable");
    // Also the directory that the file is in.
    run("sync", &[]);
    loop {
        write(&folder.join("file"), bursts * BURST, BURST);
        bursts += 1;
        writeln!(journal, "{bursts}").and_then(|()| journal.sync_all()).expect("/out is writable");
    }
}
