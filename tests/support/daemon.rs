//! The daemon as a child process: started, waited for, interrupted, killed, listened to.
//!
//! Invariant: `Daemon::wait_ready` returns once the bus says that this very process owns the name;
//! an earlier owner that is still known to the bus is not mistaken for it.
//! The process ends with the value, and what it said is printed when the test fails.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::NAME;
use super::client::Client;

/// How long anything may take before a test gives up. Generous, because the machine may be busy;
/// no test passes because this is short.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Path of the binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_stratisd");

/// What the daemon logs when the pools that were there at its start are up, or stay as they are.
pub(crate) const SETTLED: &str = "every pool that was found at the start is settled";

/// A running (or ended) daemon.
pub(crate) struct Daemon {
    child: Child,
    errors: Receiver<String>,
    output: Receiver<String>,
    said: RefCell<String>,
}

impl Daemon {
    /// Starts the binary; both its outputs are read by threads, so it can never block on them.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon's binary can be executed");
        let errors = lines(child.stderr.take().expect("stderr is a pipe"));
        let output = lines(child.stdout.take().expect("stdout is a pipe"));
        Self { child, errors, output, said: RefCell::default() }
    }

    /// Waits until this process owns the daemon's name on the bus.
    pub(crate) fn wait_ready(mut self, address: &str) -> Self {
        let client = Client::connect(address);
        client.watch_name(NAME);
        let end = Instant::now() + PATIENCE;
        while client.process_of(NAME) != Some(self.id()) {
            let status = self.child.try_wait().expect("the child can be waited for");
            assert!(status.is_none(), "the daemon ended with {status:?}: {}", self.stderr());
            assert!(Instant::now() < end, "the daemon did not take its name: {}", self.stderr());
            // Wakes at the next NameOwnerChanged; the bound is there to notice an exit.
            client.wait_message(Duration::from_millis(50));
        }
        self
    }

    /// Waits until the pools that it has found are up: that may take longer than to own the name. It must log at
    /// `info` or more.
    pub(crate) fn wait_settled(self) -> Self {
        self.wait_said(SETTLED);
        self
    }

    /// Waits until it has said this on stderr.
    pub(crate) fn wait_said(&self, what: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.stderr().contains(what) {
            assert!(Instant::now() < end, "the daemon did not say {what:?}: {}", self.stderr());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).expect("process ids are small"));
        kill(pid, signal).expect("a child that was not reaped can be signalled");
    }

    /// Kills it as a power cut would, and reaps it.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Asks it to end, and says how it did.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        self.signal(Signal::SIGINT);
        self.wait()
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < end, "the daemon did not end: {}", self.stderr());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has said on stderr so far; after its end: everything.
    pub(crate) fn stderr(&self) -> String {
        let mut said = self.said.borrow_mut();
        while let Some(line) = next(&self.errors, self.child.id()) {
            said.push_str(&line);
        }
        said.clone()
    }

    /// What it has said on stdout; call after its end.
    pub(crate) fn stdout(&self) -> String {
        let mut text = String::new();
        while let Ok(line) = self.output.recv_timeout(PATIENCE) {
            text.push_str(&line);
        }
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() && self.is_alive() {
            eprintln!("---- what its threads do ----\n{}", threads(self.id()));
        }
        // Best effort: it may have ended already, and wait reaps it either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- the daemon said ----\n{}---- end ----", self.stderr());
        }
    }
}

/// Where each thread of a process stands, and what its rings and bells hold: whether a wake-up that did not come was
/// lost by the kernel, by the executor or by us.
fn threads(id: u32) -> String {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let mut said = String::new();
    for task in fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
        let [name, call, stack] = ["comm", "syscall", "stack"].map(|what| text(task.path().join(what)));
        said.push_str(&format!("{}: {}\n{stack}", name.trim_end(), call.trim_end()));
    }
    for descriptor in fs::read_dir(format!("/proc/{id}/fdinfo")).into_iter().flatten().flatten() {
        let info = text(descriptor.path());
        if ["eventfd-count", "SqHead", "clockid"].iter().any(|word| info.contains(word)) {
            let target = fs::read_link(format!("/proc/{id}/fd/{}", descriptor.file_name().display()));
            said.push_str(&format!("{} {target:?}\n{info}", descriptor.file_name().display()));
        }
    }
    said
}

/// The next line that is there, or that is still on its way from a process that has ended.
fn next(lines: &Receiver<String>, id: u32) -> Option<String> {
    if std::path::Path::new(&format!("/proc/{id}")).exists() {
        return lines.try_recv().ok();
    }
    lines.recv_timeout(PATIENCE).ok()
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        loop {
            let mut bytes = Vec::new();
            match reader.read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if sender.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}
