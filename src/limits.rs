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

/// Longest wait for one device to take a record, or to tell what it holds; then it counts as failed. A disk that
/// works through a full cache takes seconds; D-Bus clients wait for 25 seconds (libdbus) or more.
pub const DEVICE_WAIT_MS: u64 = 20_000;

/// How long all devices wait for one that says nothing when they are looked at. One that works answers in milliseconds;
/// one that has to spin up is told of when it has.
pub const LOOK_WAIT_MS: u64 = 1_000;

/// Threads of a core that look at devices, by calls that a device which hangs never ends.
pub const PROBE_THREADS: usize = 4;

/// Bytes of a record that a client's request leaves to what a pool does by itself: 300 pieces
/// more of data devices at some 110 bytes. Steps that follow each other on one device are one piece.
pub const RECORD_ROOM_BYTES: usize = 32 << 10;

/// Smallest filesystem: 512 MiB, what Stratis clients expect.
pub const FILESYSTEM_SECTORS_MIN: Sectors = Sectors(1_048_576);

/// Largest filesystem: 1 GiB less than 1 PiB, which is `XFS_GROUPS_MADE_MAX` groups of a block of the pool less
/// than 1 TiB.
pub const FILESYSTEM_SECTORS_MAX: Sectors = Sectors(1_024 * ((1 << 31) - 2_048));

/// Ways to unlock one pool. LUKS2 has room for 32, and a change of the volume key needs each twice.
pub const TOKENS_MAX: usize = 15;

/// Longest key description, in bytes: the kernel's bound of 4,095 less our prefix, with room.
pub const KEY_DESCRIPTION_BYTES_MAX: usize = 4_000;

/// Longest Clevis configuration with its pin, in bytes: the header that it goes to has 64 KiB for all.
pub const CLEVIS_BYTES_MAX: usize = 32 << 10;

/// Keys in the simulated key ring. Each takes a page of locked memory.
pub const KEYS_MAX: usize = 1_000;

/// Longest passphrase, in bytes: what clients of Stratis know.
pub const PASSPHRASE_BYTES_MAX: usize = 64;

/// Longest wait for a passphrase. Whoever passes a pipe has written to it, or is about to; D-Bus clients
/// wait for 25 seconds and want to be told why.
pub const PASSPHRASE_WAIT_MS: u64 = 5_000;

/// Threads that wait for a passphrase. Keys are set one by one, by people; whoever wants more at once is refused.
pub const PASSPHRASES_READ_MAX: usize = 16;

/// Thin ids are 24 bits wide in the kernel.
pub const THIN_ID_MAX: u32 = (1 << 24) - 1;

/// Thin ids that one creation tries when the kernel knows ids that no record names. Each try is a few
/// writes; a crash of another daemon leaves one such id.
pub const THIN_IDS_TRIED_MAX: usize = 1_000;

/// Messages in one ring of the mesh. A power of two; bursts beyond it wait in the outbox.
pub const RING_SLOTS: usize = 64;

/// Messages in one outbox. Requests are bounded by `CALLS_MAX`, so a full outbox is our bug.
pub const OUTBOX_MAX: usize = 65_536;

/// Method calls in flight from all clients together. Beyond it a call is answered with
/// `LimitsExceeded`; 8,192 calls of the largest answer we give still fit the outbox.
pub const CALLS_MAX: usize = 8_192;

/// Method calls in flight from one client (unique name), so that one cannot use up `CALLS_MAX`.
pub const CALLS_PER_SENDER_MAX: usize = 512;

/// Bytes queued towards the bus. Beyond it no more calls are read until some have left.
pub const BUS_OUT_BYTES_MAX: usize = 256 << 20;

/// Bytes of answers that wait for one client; beyond it calls of that client are refused. As much as the
/// bus takes in one message, so that a client that asks faster than it reads delays nobody by more.
pub const SENDER_BYTES_MAX: usize = 32 << 20;

/// Callers that wait for a listing, all clients together. Each is a few hundred bytes and 10 ms of the bus.
pub const LISTINGS_WAITING_MAX: usize = 8_192;

/// Longest message that the bus takes from a service, if it is not told otherwise: the default of
/// dbus-daemon (`max_message_size`). It cuts the connection of a service that sends a longer one.
pub const BUS_MESSAGE_BYTES_DEFAULT: usize = 32 << 20;

/// Least that may be said of a bus: the answers of a machine with some hundred filesystems.
pub const BUS_MESSAGE_BYTES_MIN: usize = 1 << 20;

/// Longest message taken from or given to any bus: the D-Bus specification's own bound.
pub const BUS_MESSAGE_BYTES_MAX: usize = 128 << 20;

/// Jobs waiting on one lane of blocking threads; more are refused, their operation fails cleanly.
pub const LANE_QUEUE_MAX: usize = 1_024;

/// Threads for each kind of other blocking calls, per shard. One pool has at most two of them, one of which may wait
/// for the journal while the other looks at a device; where its disks hang, the third is there for the others. Where
/// those of more pools hang there come to be more, see `cores::limits::LANE_THREADS_MORE`.
pub const BLOCKING_THREADS: usize = 3;

/// Filesystem records in one metadata volume that are read at setup (512 MiB / 4 KiB).
pub const RECORDS_MAX: usize = 131_072;

/// Largest filesystem record: names are 255 bytes, the rest is fixed; 4 KiB is one block.
pub const RECORD_BYTES_MAX: usize = 4_096;

/// Devices of a pool that are read at a time, at 1 MiB each.
pub const DEVICES_READ_AT_ONCE: usize = 16;

/// Devices that discovery takes in one pass.
pub const DISCOVERED_MAX: usize = 65_536;

/// Device events that are taken from udev in one turn: at 50 µs each they stay near 10 ms.
pub const DEVICE_EVENTS_MAX: usize = 256;

/// Room for udev's messages that nobody has read yet. One takes about 1 KiB, so a burst of some 8,000 is
/// not lost; what is lost costs a look at every device. Memory is used only while messages wait.
pub const MONITOR_BYTES: usize = 8 << 20;

/// Messages that may pass a waiting listing. At 20,000 calls a second they delay it by 3 ms.
pub const LISTING_PASSED_MAX: usize = 64;

/// Bytes asked of the bus socket at a time: a few hundred calls.
pub const BUS_READ_BYTES: usize = 64 << 10;

/// Calls decoded in one turn of the bus core: at 20 µs each they stay below 1 ms.
pub const BUS_READ_CALLS: usize = 32;

/// Small messages are sent together up to this many bytes; one system call for each costs more.
pub const BUS_SEND_BYTES: usize = 64 << 10;

/// Messages taken from the mesh in one turn of the bus core.
pub const MESH_RECEIVE_MAX: usize = 64;

/// Seconds between two looks at the sizes in use while clients read them. Nobody looks while nobody reads:
/// an idle daemon does nothing. Ten seconds is what clients know from stratisd 3.9.2.
pub const LOOK_AGAIN_AFTER_S: u64 = 10;

/// The most that the data space of a pool grows by at once, or is kept free of, in MiB: 1 TiB.
pub const GROW_MIB_MAX: u64 = 1 << 20;

/// Milliseconds between two tries to make a thin pool larger while that fails. Its writers wait for it.
pub const EXTEND_AGAIN_AFTER_MS: u64 = 1_000;

/// Longest time for which nobody looks at a thin pool of which nothing is heard. Events are what growth follows;
/// this costs an idle machine one question a minute for each pool.
pub const BACKSTOP_MS_MAX: u64 = 60_000;

/// Least time between two such looks while it fills: events come far earlier.
pub const BACKSTOP_MS_MIN: u64 = 1_000;

/// After this time an event that has not come is missed. The kernel wakes us at once; a machine that is overloaded
/// may run nobody for a second.
pub const EVENT_LATE_MS: u64 = 5_000;

/// Bytes a second at which a filesystem that is at rest is believed to begin to fill: what copying many files to
/// one disk comes to. The next look comes before half of its room is gone at this speed, or at twice the speed seen.
pub const FILL_BYTES_PER_S: u128 = 32 << 20;

/// Least pause between two looks at how full the filesystems of a pool are while they are written. A look asks
/// the kernel once for each that could fill up, at some 20 µs.
pub const WATCH_MS_MIN: u64 = 500;

/// Least pause between two such looks while nothing is written, and until something that has changed in a pool is
/// looked at. The smallest filesystem, half full, has room for five seconds at 45 MB/s.
pub const WATCH_IDLE_MS_MIN: u64 = 5_000;

/// Longest pause between two such looks where a filesystem could fill up: at 1 GB/s, 60 GB. Where none could with
/// all that its thin pool has free, nobody looks until something changes.
pub const WATCH_MS_MAX: u64 = 60_000;

/// Until a filesystem that could not be made to grow is tried again. What is in the way (mounted read-only, shut
/// down by an error) does not go in seconds, and each try is two lines in the log.
pub const GROW_AGAIN_AFTER_MS: u64 = 60_000;

/// Files that must be allowed to be open: each device of each running pool keeps one, a core a dozen.
/// 1,000 devices of a few large pools, with room; systems allow root 4,096 or more.
pub const FILES_OPEN_MIN: u64 = 4_096;

/// Largest physical block that a device is believed to have. Disks have 512 or 4,096 bytes; arrays that
/// state a stripe here would have every save read and write all of it.
pub const PHYSICAL_BLOCK_BYTES_MAX: u32 = 64 << 10;

/// Dm devices that one job of a lane works on. At some 2 ms each nobody waits long behind it, and it is
/// far below what a semaphore counts to (32,767).
pub const DM_BATCH_MAX: usize = 64;

/// Dm devices that one job of a lane asks something of. At some 15 us each nobody waits long behind it.
pub const DM_QUESTIONS_MAX: usize = 512;

/// Room for a list of dm devices that is tried first: some 150 of them.
pub const DM_LIST_BYTES_MIN: usize = 16 << 10;

/// Room for the table or the status of a dm device that is tried first: those of most have one line.
pub const DM_STATUS_BYTES_MIN: usize = 1 << 10;

/// Room for any answer of device-mapper: a list of 150,000 devices, and as many lines of a table.
pub const DM_ANSWER_BYTES_MAX: usize = 16 << 20;

/// Tries to remove a dm device that is in use, or to put one on what is in use, and the pause between them:
/// udev's look into a new device is over after some 100 ms, a forked child has run its program by then.
pub const DM_BUSY_TRIES: u32 = 5;
/// See `DM_BUSY_TRIES`.
pub const DM_BUSY_PAUSE_MS: u64 = 200;

/// How long clients are kept waiting, at the start of the daemon, for pools that are being set up. Most are up by
/// then; one with a damaged disk may take minutes.
pub const SETTLE_WAIT_MS: u64 = 1_000;

/// How long after a takeover the paths of filesystems are looked at that were active before. Most often they are all
/// right, and clients who find us then list all objects first; of 1,000 filesystems the look is 50 ms of a slow CPU.
pub const PATHS_AFTER_MS: u64 = 1_000;

/// How often the name on the bus may be somebody else's before we give up, and the pause between two tries. A daemon
/// that was killed has it until the bus gets to notice, on a loaded machine for some hundred milliseconds.
pub const NAME_REFUSED_MAX: u32 = 20;
/// See `NAME_REFUSED_MAX`.
pub const NAME_AGAIN_AFTER_MS: u64 = 50;

/// Longest time that a program may take to check or to repair the metadata of a thin pool. Most take far less than
/// a second; GiBs of metadata on slow disks take minutes.
pub const THIN_PROGRAM_WAIT_MS: u64 = 600_000;

/// Bytes kept of what such a program says, for messages.
pub const PROGRAM_WORDS_BYTES: usize = 1_024;

/// Longest wait for the end of a program that was killed. One that waits for a device that hangs does not end.
pub const PROGRAM_KILLED_WAIT_MS: u64 = 1_000;

/// Longest wait for udev. On a loaded machine it takes a second or two; D-Bus clients wait for 25 seconds
/// (libdbus) or more, and are to be answered even if udevd hangs.
pub const UDEV_WAIT_MS: u64 = 15_000;

/// Longest wait for udev after one that was in vain, until udevd completes something.
pub const UDEV_HUNG_WAIT_MS: u64 = 1_000;

/// How long a wait for udev holds a thread before others get their turn.
pub const UDEV_WAIT_SLICE_MS: u64 = 50;

/// Mounts that are taken away from the folder of metadata volumes at start: a daemon leaves one, and
/// only in the namespace that the next one starts in. More than a few are somebody else's doing.
pub const STALE_MOUNTS_MAX: usize = 8;

/// How often unmounting a metadata volume is tried. Whoever walks through all mounts holds one for
/// moments; what holds it longer would not let go in a second either.
pub const UNMOUNT_TRIES_MAX: usize = 3;

/// Milliseconds between two tries to unmount.
pub const UNMOUNT_AGAIN_AFTER_MS: u64 = 100;

/// How often a volume that is open and not mounted is looked at before it counts as in use, and a file that is locked.
/// udev's probe takes a fraction of a second on a loaded machine, and so does the rest of a killed daemon.
pub const OPEN_LOOKS_MAX: u32 = 6;

/// Milliseconds between two of these looks.
pub const OPEN_AGAIN_AFTER_MS: u64 = 100;

/// Allocation groups of an XFS filesystem that is made here. Each is a write and, in a thin pool, a block;
/// the kernel reads the headers of all of them when it mounts. Groups are at most 1 TiB long.
pub const XFS_GROUPS_MADE_MAX: u32 = 1_024;

/// Writes of a new filesystem that are under way together: up to 63 TiB, all there are. At 24 KiB each
/// they take 1.5 MiB of memory, and as much again while they are written.
pub const FORMAT_WRITES_AT_ONCE: usize = 64;

/// Writes of a new filesystem that are made in one turn: at 20 µs each, fresh memory included, a turn
/// stays below half a millisecond.
pub const FORMAT_WRITES_IN_TURN: u64 = 16;

/// Places of a volume that are read at a time where the volume says how many there are: few enough for a
/// core's memory with places of 2 MiB, and in practice all.
pub const READS_AT_ONCE_MAX: usize = 64;

/// Allocation groups of an XFS filesystem that gets another UUID here: each is a sector to read and to
/// write, all at once, so 8 MiB (64 MiB with sectors of 4 KiB). Growth makes many: 512 MiB grown to
/// 2 TiB have this many.
pub const XFS_GROUPS_CHANGED_MAX: u32 = 16_384;

/// Small files that one job of a lane reads: half a MiB of memory, and with what a ring costs still far below what so
/// many calls do.
pub const BULK_FILES_MAX: usize = 512;

/// Bytes of each of them that there is room for: most records take 300, and longer ones are read by themselves.
pub const BULK_FILE_BYTES: usize = 1_024;
