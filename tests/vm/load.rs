//! A filesystem that is written all the time: files come and go, and none may ever change by itself.
//!
//! Invariant: the journal names only files that are durable, and a file is taken out of it before it is
//! removed. So every file that the journal names is whole, whenever the machine is switched off.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guest::files::Contents;
use crate::journal::Journal;
use crate::model::Seen;
use crate::support::MIB;
use crate::support::client::Client;
use crate::worker::Worker;

/// The name of the pool, of the filesystem, and of the folder below `/mnt`.
pub(crate) const NAME: &str = "load";

/// Files that are kept, and their size: a small part of the smallest filesystem.
const FILES_MAX: u64 = 32;
const BYTES_MAX: u64 = MIB;

/// Between two files, so that others get to run on a machine of one CPU.
const PAUSE: Duration = Duration::from_millis(50);

/// The files that are durable: their numbers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct Kept {
    first: u64,
    end: u64,
}

/// A thread that writes.
pub(crate) struct Load {
    stop: Sender<()>,
    writer: JoinHandle<()>,
}

impl Load {
    /// Writes into this folder, and notes it in this journal; goes on where the journal ends.
    pub(crate) fn start(folder: PathBuf, journal: PathBuf) -> Self {
        let (stop, stopped) = channel();
        let writer = thread::spawn(move || write(&folder, &journal, &stopped));
        Self { stop, writer }
    }

    /// Whether it has met with an error; `stop` says which.
    pub(crate) fn has_failed(&self) -> bool {
        self.writer.is_finished()
    }

    /// Ends it; an error that it met with is one of the caller now.
    pub(crate) fn stop(self) {
        drop(self.stop);
        if let Err(panic) = self.writer.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Makes the pool and the filesystem that is written; both are the keeper's, who never touches them.
pub(crate) fn furnish(client: &Client, keeper: &mut Worker, disks: &[String]) {
    let (_, (pool, _)) = client.create_pool(NAME, disks).done();
    client.make_filesystem(&pool, NAME);
    keeper.model.pool_created(NAME, disks);
    keeper.model.filesystem_created(NAME, NAME, None);
    keeper.model.learn(&Seen::new(&client.objects()));
}

/// Panics unless every file that the journal names is whole; returns how many there are.
pub(crate) fn check(folder: &Path, journal: &Path) -> u64 {
    check_files(folder, kept(journal))
}

/// The numbers of the files that the journal names now.
pub(crate) fn kept(journal: &Path) -> Range<u64> {
    let Kept { first, end } = Journal::last(journal).unwrap_or_default();
    first..end
}

/// Panics unless these files are whole; returns how many there are.
pub(crate) fn check_files(folder: &Path, files: Range<u64>) -> u64 {
    files.clone().for_each(|number| contents(folder, number).check(folder));
    files.end - files.start
}

fn write(folder: &Path, journal: &Path, stopped: &Receiver<()>) {
    let mut kept: Kept = Journal::last(journal).unwrap_or_default();
    let mut journal = Journal::open(journal);
    let mut random = fastrand::Rng::with_seed(kept.end);
    while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        if kept.end - kept.first == FILES_MAX {
            kept.first += 1;
            journal.note(&kept);
            fs::remove_file(folder.join(name(kept.first - 1))).expect("a file that was written can be removed");
        }
        contents(folder, kept.end).write_again();
        File::open(folder).and_then(|open| open.sync_all()).expect("a folder reaches the disk");
        kept.end += 1;
        journal.note(&kept);
        contents(folder, random.u64(kept.first..kept.end)).check(folder);
    }
}

fn name(number: u64) -> String {
    format!("file-{number}")
}

fn contents(folder: &Path, number: u64) -> Contents {
    let bytes = fastrand::Rng::with_seed(number).u64(1..=BYTES_MAX);
    Contents::known(folder.join(name(number)), bytes, number)
}
