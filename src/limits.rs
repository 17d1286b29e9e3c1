//! Every bound in one place, each with its reason. What has no bound here must not grow.

use crate::units::Sectors;

/// Longest name, in bytes: a name becomes one component of a path.
pub const NAME_BYTES_MAX: usize = 255;

/// Devices named in one request. A pool's record holds at most about 1,000 devices (260,064 bytes).
pub const DEVICES_IN_REQUEST_MAX: usize = 1_000;

/// Filesystems named in one DestroyFilesystems.
pub const FILESYSTEMS_IN_REQUEST_MAX: usize = 10_000;

/// Smallest device that a pool takes: 1 GiB. Below that the fixed parts leave no data space.
pub const DEVICE_SECTORS_MIN: Sectors = Sectors(2_097_152);

/// Largest number of sectors believed when it is read from disk: 64 PiB. A record in the largest region
/// has fewer than 2^17 of them, so no sum over a record passes 64 bits.
pub const SECTORS_MAX: Sectors = Sectors(1 << 47);

/// Largest metadata area believed when it is read from disk: 2 MiB. All known ones have 2032 sectors; a
/// reader holds it in memory, and its quarter bounds the length of a record.
pub const MDA_SECTORS_MAX: Sectors = Sectors(4_096);

/// Smallest filesystem: 512 MiB, what Stratis clients expect.
pub const FILESYSTEM_SECTORS_MIN: Sectors = Sectors(1_048_576);

/// Thin ids are 24 bits wide in the kernel.
pub const THIN_ID_MAX: u32 = (1 << 24) - 1;

/// Messages in one ring of the mesh. A power of two; bursts beyond it wait in the outbox.
pub const RING_SLOTS: usize = 64;

/// Messages in one outbox. Requests are bounded by `CALLS_MAX`, so a full outbox is our bug.
pub const OUTBOX_MAX: usize = 65_536;

/// Method calls in flight from all clients together. Beyond it a call is answered with
/// `LimitsExceeded`; 8,192 calls of the largest answer we give still fit the outbox.
pub const CALLS_MAX: usize = 8_192;

/// Method calls in flight from one client (unique name), so that one cannot use up `CALLS_MAX`.
pub const CALLS_PER_SENDER_MAX: usize = 512;

/// Bytes queued towards the bus. The bus daemon itself disconnects a service past 32 MiB a message.
pub const BUS_OUT_BYTES_MAX: usize = 256 << 20;

/// Largest message taken from or given to the bus: the D-Bus specification's own bound.
pub const BUS_MESSAGE_BYTES_MAX: usize = 128 << 20;

/// Jobs waiting on one lane of blocking threads; more are refused, their operation fails cleanly.
pub const LANE_QUEUE_MAX: usize = 1_024;

/// Threads for other blocking calls on files, per shard: one may wait for the host's journal while
/// another looks at a device.
pub const BLOCKING_THREADS: usize = 2;

/// Threads that run formatters, per shard. Two keep one slow format from holding up the next;
/// the work is in child processes, which the kernel schedules.
pub const FORMAT_THREADS: usize = 2;

/// Filesystem records in one metadata volume that are read at setup (512 MiB / 4 KiB).
pub const RECORDS_MAX: usize = 131_072;

/// Largest filesystem record: names are 255 bytes, the rest is fixed; 4 KiB is one block.
pub const RECORD_BYTES_MAX: usize = 4_096;

/// Devices that discovery takes in one pass.
pub const DISCOVERED_MAX: usize = 65_536;
