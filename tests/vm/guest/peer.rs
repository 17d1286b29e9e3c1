//! stratisd 3.9.2 itself, on the same system bus: started, waited for, ended.
//!
//! Invariant: it is a program that is run, as `xfs_repair` is; nothing here knows more of it than its command line and
//! the API that it shares with ours. `make test-peer` has it built; who uses it asks before whether it is there.

use std::env;
use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{SYSTEM_BUS, send};
use crate::support::client::{Client, method};
use crate::support::daemon::PATIENCE;
use crate::support::{NAME, OBJECT_MANAGER, TOP};

/// Where the log of all its processes is.
pub(crate) const LOG: &str = "/out/peer.log";

/// One process of it.
pub(crate) struct Peer(Child);

impl Peer {
    /// Starts it, and waits until it owns its name and lists its objects.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let log = OpenOptions::new().create(true).append(true).open(LOG).expect("/out is writable");
        let mut command = Command::new(binary());
        let errors = log.try_clone().expect("a descriptor can be doubled");
        command.args(["--log-level", "debug"]).env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let mut peer = Self(command.spawn().expect("the peer's binary can be executed"));
        let client = Client::connect(SYSTEM_BUS);
        let end = Instant::now() + PATIENCE;
        // It takes its name before it has objects, and calls that come in between may never be answered.
        client.patience.set(Duration::from_secs(1));
        let lists = || {
            let serial = client.send(method(TOP, OBJECT_MANAGER, "GetManagedObjects"));
            client.reply_to(serial).is_some_and(|reply| reply.is_ok())
        };
        while client.process_of(NAME) != Some(peer.0.id()) || !lists() {
            let ended = peer.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the peer ended with {ended:?}: {}", said());
            assert!(Instant::now() < end, "the peer does not answer: {}", said());
            thread::sleep(Duration::from_millis(20));
        }
        peer
    }

    /// Asks it to end; it must do so with success.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        let status = self.end(Signal::SIGINT);
        assert!(status.success(), "the peer ended with {status}: {}", said());
    }

    /// Kills it, and reaps it.
    pub(crate) fn kill9(mut self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        send(self.0.id(), signal);
        self.0.wait().expect("a child can be waited for")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What all its processes have said.
pub(crate) fn said() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

fn binary() -> PathBuf {
    PathBuf::from(env::var_os("RIG_CACHE").expect("boot.sh says it")).join("peer/bin/stratisd")
}
