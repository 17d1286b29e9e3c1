//! Every bound of this crate in one place, each with its reason. What has no bound here must not
//! grow.

use std::time::Duration;

/// A turn longer than this is recorded. A low-water event must be answered within 5 ms, so one
/// turn of this length already breaks a promise of the daemon.
pub const SLOW_TURN: Duration = Duration::from_millis(5);

/// Slow turns kept for inspection per core; the oldest is dropped. A page of them is more than a
/// person reads.
pub const SLOW_TURNS_MAX: usize = 256;

/// Distinct (task, stage) pairs that are logged as slow. Both are literals in the source, so more
/// than this many slow places means that everything is slow and the log need not say so again.
pub const SLOW_PLACES_MAX: usize = 256;

/// Kinds of work that an account of an operation tells apart. They are literals in the source, and a
/// line in the log with more figures than this is not read.
pub const KINDS_MAX: usize = 16;

/// Turns of urgent tasks in a row while others are runnable. Urgent tasks take and hand on, so they
/// never get there unless one of them is broken; then the others still go on.
pub const URGENT_IN_ROW_MAX: usize = 64;

/// When glommio is to preempt a core: never, as far as anyone can tell (see `scheduler`).
pub const PREEMPT_NEVER: Duration = Duration::from_secs(3_600);

/// Longest sleep: a century. The kernel takes seconds as a signed number.
pub const SLEEP_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Memory that glommio registers for its own file I/O. We do ours on the side ring, and glommio
/// pins three times this much for each executor; 64 KiB is its floor.
pub const IO_MEMORY_BYTES: usize = 64 << 10;

/// Exit code of the process when a singleton task panicked: the code Rust itself uses for a panic.
pub const SINGLETON_PANIC_EXIT: i32 = 101;

/// Polls in one run of a deterministic universe. A run of the whole daemon takes some 100,000; a
/// run that gets here is a loop that never sleeps.
pub const TURNS_IN_RUN_MAX: u64 = 10_000_000;

/// Operations of one core that the kernel may hold at a time; more wait for a slot. Forty devices
/// with four writes each, every socket and poll of a core, and room to spare.
pub const SIDE_OPERATIONS_MAX: usize = 1024;

/// Entries of the side ring's submission queue. When it is full it is submitted, so this only sets
/// how many operations one system call takes.
pub const SIDE_SUBMISSIONS: u32 = 256;

/// Entries of its completion queue: each operation may have one completion and one of its cancel.
#[allow(clippy::cast_possible_truncation, reason = "2,048 fits any integer")]
pub const SIDE_COMPLETIONS: u32 = 2 * SIDE_OPERATIONS_MAX as u32;

/// Bytes in one buffer. The kernel moves at most 2 GiB - 4 KiB at once, and the largest thing we
/// move is a D-Bus message of 128 MiB.
pub const BUFFER_BYTES_MAX: usize = 1 << 30;

/// Slices that are sent with one call: the kernel takes no more (UIO_MAXIOV).
pub const SLICES_MAX: usize = 1_024;

/// Descriptors taken with one message from a socket: the default of the D-Bus daemon.
pub const DESCRIPTORS_MAX: usize = 16;

/// Stack that a steady thread has in memory. An ioctl with what leads to it takes a few KiB; a thread has
/// 2 MiB, and the usual limit of locked memory is 8 MiB.
pub const STEADY_STACK_BYTES: usize = 64 << 10;

/// Threads that a lane gets beyond its usual ones, one for each time that all others hang: enough for 16 pools of one
/// core whose disks all hang, at two each. What has hung has cost a thread a few pages of memory.
pub const LANE_THREADS_MORE: usize = 32;

/// If no job begins for that long while one may, all threads of a lane hang. Calls that block take milliseconds; on a
/// machine with far more to do than it can, a thread too many does no harm.
pub const LANE_HANGS_MS: u64 = 200;

/// Small files that are opened and read at once, each with two entries of a ring: enough for a disk to have them side
/// by side, and few enough that their memory is used again and again.
pub const BULK_FILES_AT_ONCE: usize = 128;
