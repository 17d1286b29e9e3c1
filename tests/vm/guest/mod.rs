//! The half of a scenario in the guest: disks, programs, and the daemon on the system bus.
//!
//! Invariant: `start` returns once this very daemon owns its name. What a daemon says goes to `/out/stratisd.log`, one
//! after the other. A program that is run has succeeded, or the scenario has failed with what it said.
//!
//! Deliberately absent: cleaning up. The machine is thrown away.

#![allow(dead_code, reason = "each scenario uses a part of this")]

pub(crate) mod dm;
pub(crate) mod elsewhere;
pub(crate) mod files;
pub(crate) mod lab;
pub(crate) mod peer;
pub(crate) mod state;
pub(crate) mod systemd;
pub(crate) mod takeover;
pub(crate) mod udev;
pub(crate) mod used;
pub(crate) mod writer;

use std::env;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::client::Client;
use crate::support::daemon::{BINARY, PATIENCE, SETTLED};
use crate::support::{NAME, REVISIONS, TOP, interface};

/// Where the system bus listens.
pub(crate) const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// Where the log of all daemons of this guest is.
pub(crate) const LOG: &str = "/out/stratisd.log";

/// What a daemon logs of a device that it does not wait for, and when that has spoken after all.
const LATE: &str = "a device says nothing for now";
const SPOKEN: &str = "a device has spoken";

/// Runs a guest half; on the host it does nothing but say so.
pub(crate) fn play(scenario: impl FnOnce(&mut Guest)) {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !words.contains("rig.vm=") {
        println!("this half runs in the virtual machine that the other half boots");
        return;
    }
    scenario(&mut Guest { daemon: None });
}

/// The machine from inside.
pub(crate) struct Guest {
    daemon: Option<Child>,
}

impl Guest {
    /// The disks, in order.
    pub(crate) fn disks(&self) -> Vec<String> {
        let all = env::var("RIG_DISKS").unwrap_or_default();
        all.split(':').filter(|disk| !disk.is_empty()).map(str::to_owned).collect()
    }

    /// Which boot of the machine this is, from 1.
    pub(crate) fn boot(&self) -> u32 {
        env::var("RIG_BOOT").expect("the host half says it").parse().expect("it is a number")
    }

    /// Starts the daemon and waits until it owns its name and its pools are up.
    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, with more arguments.
    pub(crate) fn start_with(&mut self, arguments: &[&str]) {
        let before = self.log().len();
        self.start_of_some(arguments);
        self.devices_speak(before);
    }

    /// Waits until every device has spoken that a daemon did not wait for, and what it belongs to is up: a machine
    /// that the host gives no time for a second seems to have such devices.
    fn devices_speak(&mut self, before: usize) {
        let count = |guest: &Self, said: &str| guest.log()[before..].matches(said).count();
        if count(self, LATE) == 0 {
            return;
        }
        self.until("every device speaks", |guest| count(guest, LATE) == count(guest, SPOKEN));
        let said = self.client().call(TOP, &interface("Manager", REVISIONS - 1), "RefreshState", ());
        let said: (u16, String) = said.expect("it is answered");
        assert_eq!(said.0, 0, "RefreshState: {said:?}");
    }

    /// Starts the daemon and waits until it owns its name and the pools are up whose devices speak.
    pub(crate) fn start_of_some(&mut self, arguments: &[&str]) {
        let before = self.settled();
        self.spawn(arguments);
        let client = Client::connect(SYSTEM_BUS);
        client.watch_name(NAME);
        let end = Instant::now() + PATIENCE;
        while client.process_of(NAME) != self.daemon_id() {
            let ended = self.child().try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the daemon ended with {ended:?}: {}", self.log());
            assert!(Instant::now() < end, "the daemon did not take its name: {}", self.log());
            // Wakes at the next change of an owner; the bound is there to notice an exit.
            client.wait_message(Duration::from_millis(50));
        }
        self.until("the pools that were found are up", |guest| guest.settled() > before);
    }

    /// How many daemons of this guest have come as far as that the pools that they found are up.
    fn settled(&self) -> usize {
        self.log().matches(SETTLED).count()
    }

    /// Starts the daemon and waits for nothing.
    pub(crate) fn spawn(&mut self, arguments: &[&str]) {
        assert!(self.daemon.is_none(), "one daemon at a time");
        let log = OpenOptions::new().create(true).append(true).open(LOG).expect("/out is writable");
        let mut command = Command::new(BINARY);
        command.args(["--log-level", "debug"]).args(arguments).env("RUST_BACKTRACE", "1");
        let errors = log.try_clone().expect("a descriptor can be doubled");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.daemon = Some(command.spawn().expect("the daemon's binary can be executed"));
    }

    /// The daemon's process id, while there is one.
    pub(crate) fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    fn child(&mut self) -> &mut Child {
        self.daemon.as_mut().expect("the daemon was started")
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.daemon_id().expect("the daemon was started"), signal);
    }

    /// Kills the daemon, and reaps it.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.reap();
    }

    /// Asks the daemon to end; it must do so with success.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGINT);
        let status = self.reap();
        assert!(status.success(), "the daemon ended with {status}: {}", self.log());
    }

    /// Waits for the daemon's end.
    pub(crate) fn reap(&mut self) -> ExitStatus {
        let mut status = None;
        self.until("the daemon ends", |guest| {
            status = guest.child().try_wait().expect("a child can be waited for");
            status.is_some()
        });
        self.daemon = None;
        status.expect("that was waited for")
    }

    /// A new connection to the system bus.
    pub(crate) fn client(&self) -> Client {
        Client::connect(SYSTEM_BUS)
    }

    /// What all daemons of this guest have said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(LOG).unwrap_or_default()
    }

    /// Runs a program that must succeed; what it printed.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        run(program, arguments)
    }

    /// Waits until a condition holds.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "within {PATIENCE:?}: {what}; dm: {:#?}", dm::devices());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        if thread::panicking() {
            println!("dm devices when the scenario failed: {:#?}\n{:#?}", dm::devices(), dm::tables());
        }
        // Best effort: it may have ended already.
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

/// Sends any process a signal.
pub(crate) fn send(process: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(process).expect("process ids are small"));
    kill(process, signal).expect("a process that runs can be signalled");
}

/// Runs a program that must succeed; what it printed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let (status, said) = try_run(program, arguments);
    assert!(status.success(), "{program} {arguments:?}: {status}: {said}");
    said
}

/// Runs a program; how it ended and what it printed, errors last.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&said).into_owned())
}

/// Process ids of the programs with this name.
pub(crate) fn processes(name: &str) -> Vec<u32> {
    processes_called(|found| found == name)
}

/// Those of programs, and of threads of the kernel, that have such a name.
pub(crate) fn processes_called(such: impl Fn(&str) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let named = |id: &u32| fs::read_to_string(Path::new("/proc").join(id.to_string()).join("comm"));
    ids.filter(|id| named(id).is_ok_and(|comm| such(comm.trim_end()))).collect()
}
