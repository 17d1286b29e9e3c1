//! A daemon that follows one that was killed, seen from outside: how long it takes, and what it does to devices.
//!
//! Invariant: every swap of tables, every resume, removal and announcement makes the kernel send an event, so where
//! the kernel has sent none nothing of that was done.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::thread;
use std::time::{Duration, Instant};

use super::{Guest, LOG, udev};
use crate::support::client::objects_of;
use crate::support::daemon::SETTLED;
use crate::support::value::Value;
use crate::support::{NAME, interface};

/// What the daemon says once it has looked at the paths of what it has taken over.
pub(crate) const PATHS: &str = "filesystems that were active have their paths";

/// What a takeover took.
#[derive(Clone, Debug)]
pub(crate) struct Takeover {
    /// Until it had its name.
    pub(crate) named: Duration,
    /// Until a list of all objects was there, from when it had its name.
    pub(crate) listed: Duration,
    /// How long the next list took: what the bus and the client need for one, whatever the daemon does.
    pub(crate) again: Duration,
    /// Until the pools were up.
    pub(crate) settled: Duration,
    /// Events that the kernel has sent of dm devices meanwhile.
    pub(crate) events: Vec<String>,
}

/// What the daemon has said since its log was so long. All of it may be long to read.
fn said_since(start: u64) -> String {
    let mut said = String::new();
    let mut log = File::open(LOG).expect("it has a log");
    log.seek(SeekFrom::Start(start)).and_then(|_| log.read_to_string(&mut said)).expect("it is text");
    said
}

impl Guest {
    /// Kills the daemon and starts another one over what it has left.
    pub(crate) fn take_over(&mut self) -> Takeover {
        udev::settle();
        self.follow()
    }

    /// The same whatever udev has to do.
    pub(crate) fn follow(&mut self) -> Takeover {
        self.kill9();
        let before = fs::metadata(LOG).expect("it has a log").len();
        let events = udev::Monitor::new();
        let client = self.client();
        client.watch_name(NAME);
        let began = Instant::now();
        self.spawn(&[]);
        // Who asks the bus again and again takes the only CPU from the daemon.
        while client.process_of(NAME) != self.daemon_id() {
            client.wait_message(Duration::from_secs(1));
        }
        let named = began.elapsed();
        let listing = client.listing();
        let listed = began.elapsed() - named;
        while !said_since(before).contains(SETTLED) {
            thread::sleep(Duration::from_millis(5));
        }
        let settled = began.elapsed();
        let asked = Instant::now();
        drop(client.listing());
        let again = asked.elapsed();
        let objects = objects_of(&Value::body(&listing));
        let has_filesystems = objects.values().any(|object| object.contains_key(&interface("filesystem", 9)));
        // Clients do not wait for this; who counts events does.
        while has_filesystems && !said_since(before).contains(PATHS) {
            thread::sleep(Duration::from_millis(5));
        }
        Takeover { named, listed, again, settled, events: events.of_dm() }
    }
}
