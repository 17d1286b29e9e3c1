//! The threads of one core for calls that block, by what they may wait for.
//!
//! Invariant: a job waits only behind jobs of its own kind. The urgent lane never waits for udev, a
//! mount, LUKS or a child process, so an event is answered whatever else goes on.

use std::io;

use cores::lane::{Lane, LaneFault};

use crate::error::Why;
use crate::limits::{BLOCKING_THREADS, LANE_QUEUE_MAX};

/// The lanes of one core.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Ioctls that answer events: reading a status, swapping a table. One reserved thread.
    pub(super) urgent: Lane,
    /// All other device-mapper ioctls.
    pub(super) dm: Lane,
    /// Mounts, unmounts, growfs.
    pub(super) mount: Lane,
    /// Files of metadata volumes, probing devices, writes to sysfs.
    pub(super) files: Lane,
    /// Waiting for udev, each wait bounded.
    pub(super) udev: Lane,
}

impl Lanes {
    /// Starts the threads.
    pub(super) fn new(cpu: Option<usize>) -> io::Result<Self> {
        let lane = |name, threads| Lane::new(name, threads, LANE_QUEUE_MAX, cpu);
        Ok(Self {
            urgent: lane("urgent", 1)?,
            dm: lane("dm", BLOCKING_THREADS)?,
            mount: lane("mount", BLOCKING_THREADS)?,
            files: lane("files", BLOCKING_THREADS)?,
            udev: lane("udev", BLOCKING_THREADS)?,
        })
    }
}

/// Runs a job on a lane.
pub(super) async fn on<T: Send + 'static>(lane: &Lane, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Why> {
    lane.run(job).await.map_err(|fault| match fault {
        LaneFault::Full { queue_max, .. } => Why::Full { what: "a lane of blocking calls", max: queue_max },
        LaneFault::Panicked(message) => Why::Bug(message),
    })
}

/// As `on`, for a job that ends with a system call's result.
pub(super) async fn blocking<T: Send + 'static>(
    lane: &Lane,
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Why> {
    on(lane, job).await?.map_err(|error| super::why(&error))
}
