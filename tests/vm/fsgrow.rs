//! Filesystems that grow by themselves while they are written, on a real kernel.
//!
//! Deliberately absent: how often who is looked at (the simulation counts that), and each point of a crash.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use crate::guest::elsewhere::Elsewhere;
use crate::guest::files::{self, Contents, text};
use crate::guest::{Guest, dm, run, state};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Client;
use crate::support::{MIB, interface};

const GIB: u64 = 1024 * MIB;
/// How much is written at a time, and the pause before the next: 16 MiB a second at most.
const FILE_BYTES: u64 = 4 * MIB;
const PAUSE: Duration = Duration::from_millis(250);

scenario!(
    /// One of 512 MiB, mounted where the daemon does not see it, grows twice under a writer that never meets a
    /// full filesystem, while the daemon is killed.
    a_small_filesystem_grows_under_its_writer,
    Spec { disks: &["10G"], limit_s: 600, ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let (_, (pool, _)) = guest.client().create_pool("p", &guest.disks()).done();
        let filesystem = guest.client().make_filesystem(&pool, "f");
        let device = files::node(&guest.client(), &filesystem);
        let user = Elsewhere::mount(&device);
        let writer = Writer::start(user.folder());
        for grown in [GIB, 2 * GIB] {
            until_size(guest, &writer, "f", grown);
            if grown < 2 * GIB {
                guest.kill9();
                guest.start();
            }
        }
        guest.until("the XFS has followed", |_| said_size(&user.folder()) > 3 * GIB / 2);
        let written = writer.stop();
        println!("{} files of {FILE_BYTES} bytes", written.len());
        assert_eq!(guest.log().matches("gets a larger volume").count(), 2, "{}", guest.log());
        files::drop_caches();
        written.iter().for_each(|one| one.check(&user.folder()));
        user.unmount();
        files::check_xfs(&device);
        dm::expect_settled();
        state::expect_no_io_error();
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// One that has a size limit grows as far as that, also when the limit is no power of two; then it is full.
    a_size_limit_is_honoured,
    Spec { disks: &["10G"], limit_s: 300, ..SPEC },
    |guest: &mut Guest| {
        let limit = 600 * MIB;
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let spec = ("f", Some("536870912"), Some("629145600"));
        let (_, made) = client.create_filesystems(&pool, &[spec]).done();
        let device = files::node(&client, &made[0].0);
        let folder = files::mount(&device, "f");
        let writer = Writer::start(folder.clone());
        until_size(guest, &writer, "f", limit);
        let room = limit - 80 * MIB;
        guest.until("the XFS has followed", |_| said_size(&folder) > room);
        drop(writer.stop());
        let full = fill(&folder);
        assert_eq!(full, ErrorKind::StorageFull);
        assert_eq!(size(&client, "f"), limit);
        files::unmount(&folder);
        files::check_xfs(&device);
        guest.stop();
        guest.expect_quiet();
    }
);

scenario!(
    /// Another daemon has made a filesystem larger and was cut off before it wrote that down.
    what_is_larger_than_recorded_is_recorded,
    Spec { disks: &["4G"], ..SPEC },
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("p", &guest.disks()).done();
        let device = files::node(&client, &client.make_filesystem(&pool, "f"));
        let folder = files::mount(&device, "f");
        let file = Contents::write(folder.join("file"), 20 * MIB, 1);
        guest.kill9();
        let name = device.file_name().and_then(|name| name.to_str()).expect("a dm name").to_owned();
        let table = run("dmsetup", &["table", &name]);
        let [_, _, target, below, id] = table.split_whitespace().collect::<Vec<_>>().try_into().expect("five words");
        run("dmsetup", &["reload", &name, "--table", &format!("0 {} {target} {below} {id}", GIB / 512)]);
        run("dmsetup", &["resume", &name]);
        run("xfs_growfs", &["-d", text(&folder)]);
        guest.start();
        let client = guest.client();
        assert_eq!(size(&client, "f"), GIB);
        files::unmount(&folder);
        assert!(client.stop_pool("p", "name").done().0);
        client.start_pool("p", "name").done();
        assert_eq!(size(&client, "f"), GIB);
        crate::guest::udev::settle();
        let folder = files::mount(&device, "f");
        file.check(&folder);
        files::unmount(&folder);
        files::check_xfs(&device);
        guest.stop();
    }
);

/// The size of a filesystem as clients see it.
fn size(client: &Client, name: &str) -> u64 {
    let all = client.family("filesystem").into_values();
    let mut named = all.filter(|properties| properties["Name"].text() == name);
    named.next().expect("it is there")["Size"].text().parse().expect("a number of bytes")
}

/// What a user is told that a filesystem has.
fn said_size(folder: &Path) -> u64 {
    let said = statvfs(folder).expect("it is mounted");
    said.blocks() * said.fragment_size()
}

/// Waits until clients see a size, for as long as the writer takes.
fn until_size(guest: &Guest, writer: &Writer, name: &str, wanted: u64) {
    let client = guest.client();
    loop {
        // Asked once: it may grow between two answers.
        let now = size(&client, name);
        if now == wanted {
            break;
        }
        assert!(!writer.has_failed(), "the writer: see below; {}", guest.log());
        assert!(now < wanted, "it grows step by step");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        client.get(&path(&client, name), &interface("filesystem", 9), "Size").expect("readable").text(),
        wanted.to_string()
    );
}

fn path(client: &Client, name: &str) -> String {
    let all = client.family("filesystem").into_iter();
    all.filter(|(_, properties)| properties["Name"].text() == name).map(|(path, _)| path).next().expect("it is there")
}

/// Writes to a filesystem until it is full; how that is said.
fn fill(folder: &Path) -> ErrorKind {
    for number in 0.. {
        if let Err(error) = fs::write(folder.join(format!("last-{number}")), vec![1; 1 << 20]) {
            return error.kind();
        }
    }
    unreachable!("no filesystem is endless")
}

/// A thread that writes one file after the other, each to the disk.
struct Writer {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Contents>>,
}

impl Writer {
    fn start(folder: PathBuf) -> Self {
        let (stop, stopped) = channel();
        Self { stop, thread: thread::spawn(move || write(&folder, &stopped)) }
    }

    fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    fn stop(self) -> Vec<Contents> {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn write(folder: &Path, stopped: &Receiver<()>) -> Vec<Contents> {
    let mut written = Vec::new();
    while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        let seed = written.len() as u64;
        written.push(Contents::write(folder.join(seed.to_string()), FILE_BYTES, seed));
    }
    written
}
