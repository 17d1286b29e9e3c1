//! The guest's udevd: waited for, stopped in its tracks, and let go again.

use nix::sys::signal::Signal;

use super::{processes, run, send};

/// Waits until udevd has nothing left to do.
#[track_caller]
pub(crate) fn settle() {
    run("udevadm", &["settle", "--timeout=60"]);
}

/// What udevd knows of a device: its properties, one a line.
#[track_caller]
pub(crate) fn properties(device: &str) -> String {
    run("udevadm", &["info", "--query=property", device])
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
