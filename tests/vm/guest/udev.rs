//! The guest's udevd: waited for, stopped in its tracks, and let go again.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{processes, run, send};

/// Waits until udevd has nothing left to do.
#[track_caller]
pub(crate) fn settle() {
    settle_within(60);
}

/// The same where there is much to do.
#[track_caller]
pub(crate) fn settle_within(seconds: u32) {
    run("udevadm", &["settle", &format!("--timeout={seconds}")]);
}

/// What udevd knows of a device: its properties, one a line.
#[track_caller]
pub(crate) fn properties(device: &str) -> String {
    run("udevadm", &["info", "--query=property", device])
}

/// Events as the kernel sends them, from when this was made.
pub(crate) struct Monitor {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// A device that nobody here has events of but who asks for one.
const MARK: &str = "/devices/virtual/mem/null";

impl Monitor {
    /// Begins to listen.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "udevadm", "monitor", "--kernel"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("udevadm starts");
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let mut monitor = Self { child, lines };
        // It says that it listens before it does.
        let heard = monitor.until(|line| line.is_empty());
        assert!(!heard.is_empty(), "it says what it does");
        monitor
    }

    fn until(&mut self, end: impl Fn(&str) -> bool) -> Vec<String> {
        let line = || self.lines.next().expect("it goes on").expect("it is text");
        std::iter::repeat_with(line).take_while(|line| !end(line)).collect()
    }

    /// Ends, and tells the events of dm devices that were heard.
    #[track_caller]
    pub(crate) fn of_dm(mut self) -> Vec<String> {
        std::fs::write(format!("/sys{MARK}/uevent"), "change").expect("root may ask for an event");
        let heard = self.until(|line| line.contains(MARK));
        heard.into_iter().filter(|line| line.contains("/block/dm-")).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stops udevd and all its workers with SIGSTOP; they run again when the value is dropped.
pub(crate) struct Frozen(Vec<u32>);

impl Frozen {
    /// Stops them.
    pub(crate) fn now() -> Self {
        let all = [processes("systemd-udevd"), processes("udevd"), processes("(udev-worker)")].concat();
        assert!(!all.is_empty(), "udevd runs");
        for process in &all {
            send(*process, Signal::SIGSTOP);
        }
        Self(all)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for process in &self.0 {
            send(*process, Signal::SIGCONT);
        }
    }
}

/// Does some work while udevd stands still, which goes on after 3 s: that is as long as a start takes and longer, and
/// shorter than a daemon waits for udev.
#[track_caller]
pub(crate) fn late(work: impl FnOnce()) {
    let late = Frozen::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_secs(3));
            drop(late);
        });
        work();
    });
}

/// Panics unless a link that is there stays until udevd has nothing left to do.
#[track_caller]
pub(crate) fn expect_stays(link: &Path) {
    let settling = thread::spawn(settle);
    while !settling.is_finished() {
        assert!(link.exists(), "the link has gone again");
    }
    settling.join().expect("udev has nothing left to do in the end");
}
