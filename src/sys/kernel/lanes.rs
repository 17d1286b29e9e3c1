//! The threads of one core for calls that block, by what they may wait for.
//!
//! Invariants: a job waits only behind jobs of its own kind; one that may wait for a pool's disks is that pool's, and
//! no pool has all threads. Deliberately absent: what each pool has for itself, see `dm::reserve`.

use cores::lane::{Lane, Use};
use cores::steady;

use crate::limits::{BLOCKING_THREADS, LANE_QUEUE_MAX, PROBE_THREADS};
use crate::model::ids::PoolUuid;

pub(super) use crate::sys::jobs::{blocking, on};

/// A lane as this pool uses it.
pub(super) fn of(lane: &Lane, pool: PoolUuid) -> Use<'_> {
    lane.of(pool.0.as_u128())
}

/// The lanes of one core.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Listing which dm devices raised events: one thread, which waits for no device.
    pub(super) events: Lane,
    /// Device-mapper ioctls that answer no event.
    pub(super) dm: Lane,
    /// Mounts and unmounts.
    pub(super) mount: Lane,
    /// Filesystems that users have mounted: one that they have frozen keeps whoever asks for more waiting.
    pub(super) mounted: Lane,
    /// Looking at block devices: one that hangs keeps its thread.
    pub(super) probe: Lane,
    /// Files of metadata volumes, volumes of our own, writes to sysfs.
    pub(super) files: Lane,
    /// Programs that check or repair metadata, each for a limited time.
    pub(super) programs: Lane,
    /// Waiting for udev, each wait bounded.
    pub(super) udev: Lane,
}

impl Lanes {
    /// Starts no thread: the event core changes no device, and the others do not listen for events.
    pub(super) fn new(cpu: Option<usize>) -> Self {
        let lane = |name, threads| Lane::new(name, threads, LANE_QUEUE_MAX, cpu);
        let steady = |name, threads, prepare| Lane::prepared_late(name, threads, LANE_QUEUE_MAX, cpu, prepare);
        // Pools that stand still may wait for these two.
        Self {
            events: steady("events", 1, steady::make_first),
            // What clients ask for may be much.
            dm: steady("dm", BLOCKING_THREADS, steady::make),
            mount: lane("mount", BLOCKING_THREADS),
            mounted: lane("mounted", BLOCKING_THREADS),
            probe: lane("probe", PROBE_THREADS),
            files: lane("files", BLOCKING_THREADS),
            programs: lane("programs", BLOCKING_THREADS),
            udev: lane("udev", BLOCKING_THREADS),
        }
    }
}
