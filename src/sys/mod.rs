//! The machine, on one screen: everything stratisd does to the world outside goes through `Sys`.
//!
//! Implementations: `kernel` (block devices, device-mapper, udev), `files` (devices are regular files,
//! thin volumes sparse files; real I/O) and `sim` (memory, seeded faults). All of them promise:
//!
//! * a write is durable only after a `flush` of its target that was started after the write ended;
//! * an operation whose future is dropped has either not started or runs to its end unseen;
//! * nothing here decides: no retries of what failed for good, no repair, no knowledge of pools
//!   beyond names.
//!
//! Deliberately absent: time and randomness (they come from `cores::rt`), and anything of D-Bus.

pub mod encryption;
pub mod files;
mod jobs;
pub mod kernel;
mod linear;
mod occupant;
pub mod passphrase;
pub mod patience;
pub mod sim;
mod stack;
mod transfer;
mod volume;

use std::time::Duration;

use cores::side::Buffer;

use crate::error::{Failure, Fault, Refusal};
use crate::model::blank::ReadsZeroes;
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath};
use crate::model::dm::{Dm, Table, ThinPoolState};
use crate::model::filesystem::Fill;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::sys::encryption::Encryption;
use crate::units::{Bytes, Sectors};

/// What can be read and written in sectors.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// A device, open since `open`.
    Device(DeviceNumber),
    /// An active dm device.
    Dm(Dm),
}

/// One write: whole sectors.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// Where to.
    pub target: Target,
    /// From which sector on.
    pub start: Sectors,
    /// What; a multiple of 512 bytes.
    pub data: WriteData,
}

/// What a write writes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WriteData {
    /// These bytes.
    Bytes(Vec<u8>),
    /// This many zero sectors.
    Zeroes(Sectors),
}

/// A folder in a pool's metadata volume.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Folder {
    /// `filesystems`: one record for each filesystem. Other daemons read it.
    Filesystems,
    /// `intents`: what an operation is about to make or destroy. Ours alone.
    Intents,
}

/// What the daemon's devices are, for the pool record's mark and for messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Block devices and device-mapper.
    Kernel,
    /// Regular files stand in for devices: records carry `"files":true`.
    Files,
    /// Memory.
    Sim,
}

/// What a device is opened for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opening {
    /// To read what it says of itself, and nothing else: leaves no trace.
    Look,
    /// To be used as a device of a pool that exists. Found again after a restart. One that was new is not held
    /// any more, and one that has grown is open in its new size.
    Member,
    /// To become a device of a new pool: nobody else may use it, from now until the first table
    /// that refers to it. Found again after a restart.
    New,
}

/// What became of a filesystem that was to grow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Growth {
    /// It is mounted, and so large now.
    Mounted(Bytes),
    /// It is mounted nowhere and stays as it is: XFS grows only while it is mounted.
    NotMounted,
}

/// Something happened to block devices of the machine. What exactly is for whoever looks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DeviceEvent {
    /// A device is there that may carry a Stratis signature: it is new or has changed.
    Changed {
        /// Where it is.
        path: DevicePath,
        /// What identifies it.
        number: DeviceNumber,
    },
    /// A device is gone, or carries no Stratis signature any more.
    Removed {
        /// Where it was.
        path: DevicePath,
        /// What identified it.
        number: DeviceNumber,
    },
    /// Events were lost: everything must be looked at again.
    Lost,
}

/// The boundary to the machine. A clone is the same machine.
#[allow(async_fn_in_trait, reason = "every implementation and every caller stays on its core")]
pub trait Sys: Clone + 'static {
    // ---- devices ---------------------------------------------------------------------------

    /// What kind of machine this is.
    fn kind(&self) -> Kind;

    /// The path under which clients find a filesystem's volume.
    fn devnode(&self, pool: &Name, filesystem: &Name) -> String;

    /// Looks at a device without changing it: resolves links, reads sizes, finds out who lives there.
    async fn examine(&self, path: &DevicePath) -> Result<Candidate, Failure>;

    /// Every device that may carry a Stratis signature now; whether it does, `examine` says. What happens to devices
    /// after this call began is told by `device_events`. Waits for no device.
    async fn discover(&self) -> Result<Vec<Candidate>, Fault>;

    /// Whether `discover` finds what was given to other cores. A machine that each core makes up for itself does
    /// not: there devices neither come nor go.
    fn finds_devices(&self) -> bool {
        true
    }

    /// Waits until something happened to block devices. Never ends where devices come and go only
    /// when clients name them.
    async fn device_events(&self) -> Vec<DeviceEvent>;

    /// Opens a device and keeps it open; one that is open already is open for more, never for less.
    async fn open(&self, candidate: &Candidate, opening: Opening) -> Result<(), Failure>;

    /// Closes a device. Unknown numbers are fine. `forget`: it need not be found after a restart.
    async fn close(&self, number: DeviceNumber, forget: bool);

    // ---- sectors ---------------------------------------------------------------------------

    /// Reads `count` sectors.
    async fn read(&self, target: Target, start: Sectors, count: Sectors) -> Result<Buffer, Fault>;

    /// Reads several places of one target, each from its first sector on for so many, all at once.
    async fn read_each(&self, target: Target, places: &[(Sectors, Sectors)]) -> Result<Vec<Buffer>, Fault> {
        let mut all = Vec::with_capacity(places.len());
        for (start, count) in places {
            all.push(self.read(target, *start, *count).await?);
        }
        Ok(all)
    }

    /// Reads the first sectors of many dm devices, so many of each.
    async fn read_first(&self, devices: &[Dm], count: Sectors) -> Vec<Result<Buffer, Fault>> {
        let mut all = Vec::with_capacity(devices.len());
        for device in devices {
            all.push(self.read(Target::Dm(*device), Sectors::ZERO, count).await);
        }
        all
    }

    /// Writes all of them, in one batch and in any order; the results come in the order given.
    async fn write(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>>;

    /// Makes what was written to the targets durable, all in parallel.
    async fn flush(&self, targets: Vec<Target>) -> Vec<Result<(), Fault>>;

    /// Block sizes of an active dm device.
    async fn block_sizes(&self, device: Dm) -> Result<BlockSizes, Fault>;

    // ---- device-mapper ---------------------------------------------------------------------

    /// Makes dm devices active with these tables, in the order given, up to the first fault. An
    /// active one with the same table is adopted (thin pools: low water and whether they wait for space may
    /// differ, and they may be shorter, and keep their values; one that works with less metadata than its
    /// device has is shown the rest); one whose table is the beginning of the given one is completed; any
    /// other table is a fault.
    async fn activate(&self, tables: &[(Dm, Table)]) -> Result<(), Fault>;

    /// Gives active dm devices these tables, in the order given, up to the first fault, and makes none that is not
    /// active. One that has its table stays as it is, one whose table is the beginning of the given one stands still
    /// while the kernel swaps them, which is told; any other is a fault. A thin pool gets low water and whether it
    /// waits for space, too, and uses all of its metadata device then. Never waits behind anything that is slow.
    async fn swap(&self, tables: &[(Dm, Table)]) -> Result<Duration, Fault>;

    /// Removes dm devices, in the order given; each is tried, and the first fault is returned. One
    /// that does not exist is fine.
    async fn deactivate(&self, devices: &[Dm]) -> Result<(), Fault>;

    /// Waits until the rest of the machine (udev) has taken notice of what was activated and
    /// deactivated of the pool so far. Bounded: when that takes too long, a warning is logged.
    async fn settle(&self, pool: PoolUuid);

    /// Which dm devices of the pool are active.
    async fn active(&self, pool: PoolUuid) -> Result<Vec<Dm>, Fault>;

    /// Makes a thin volume; EEXIST where the id exists. Durable after `thin_commit`. Gives a permission if
    /// the volume reads as zeroes wherever nothing is written.
    async fn thin_create(&self, pool: PoolUuid, id: ThinId) -> Result<Option<ReadsZeroes>, Fault>;

    /// Deletes a thin volume that is not active; ENODATA where there is none. Durable after `thin_commit`.
    async fn thin_delete(&self, pool: PoolUuid, id: ThinId) -> Result<(), Fault>;

    /// Makes the volume `id` of what another one of the pool is now, EEXIST if there is such an id. Only
    /// for this moment the origin stands still, mounted or not; who takes more than one snapshot of it at
    /// a time has to keep them apart. Durable after `thin_commit`.
    async fn thin_snapshot(&self, pool: PoolUuid, origin: (FsUuid, ThinId), id: ThinId) -> Result<(), Fault>;

    /// Makes all changes to thin volumes of the pool durable.
    async fn thin_commit(&self, pool: PoolUuid) -> Result<(), Fault>;

    /// How the pool's thin pool is. Never waits behind anything that is slow, and makes the kernel
    /// write nothing.
    async fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Fault>;

    /// Whether metadata of a thin pool that is not active is whole, on this dm device. Marks that the kernel has
    /// left there after a failure are taken away if it is.
    async fn thin_check(&self, device: Dm) -> Result<bool, Failure>;

    /// Makes whole metadata of what can be read of metadata that is damaged. Durable after a flush of `to`.
    async fn thin_repair(&self, from: Dm, to: Dm) -> Result<(), Failure>;

    /// Waits until thin pools raised events, and tells whose. The first call tells all there are. An
    /// event that comes while nobody waits is told by the next call.
    async fn thin_pool_events(&self) -> Vec<PoolUuid>;

    /// Which volume an active thin device is, and how long.
    async fn thin_volume(&self, device: Dm) -> Result<(ThinId, Sectors), Fault>;

    /// Space that an active thin volume takes.
    async fn thin_used(&self, pool: PoolUuid, filesystem: FsUuid) -> Result<Bytes, Fault>;

    /// The same of many, as far as it can be told.
    async fn thin_used_each(&self, pool: PoolUuid, filesystems: &[FsUuid]) -> Vec<Option<Bytes>> {
        let mut all = Vec::with_capacity(filesystems.len());
        for filesystem in filesystems {
            all.push(self.thin_used(pool, *filesystem).await.ok());
        }
        all
    }

    // ---- filesystems -----------------------------------------------------------------------

    /// How full an XFS is that is mounted, by whomever; nothing if it is mounted nowhere.
    async fn fill(&self, device: Dm) -> Result<Option<Fill>, Fault>;

    /// How much of what was written to filesystems of the machine is still in memory.
    async fn dirty(&self) -> Result<Bytes, Fault>;

    /// Makes an XFS that is mounted, by whomever, as large as its device. One that is larger already,
    /// or as large but for less than an allocation group needs, stays as it is.
    async fn grow_xfs(&self, device: Dm) -> Result<Growth, Fault>;

    /// Has the kernel replay the log of an XFS that nobody has mounted. Its log is clean afterwards.
    async fn replay_log(&self, device: Dm) -> Result<(), Fault>;

    /// Whether the volume is in use (mounted, or held open by somebody).
    async fn busy(&self, device: Dm) -> Result<bool, Fault>;

    /// Makes the path of `devnode` lead to the volume; removes any other path to it. Best effort:
    /// a failure is logged and changes nothing else.
    async fn announce(&self, pool: (PoolUuid, &Name), filesystem: (FsUuid, &Name, ThinId));

    /// The same for many.
    async fn announce_each(&self, pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name, ThinId)]) {
        for filesystem in filesystems {
            self.announce(pool, *filesystem).await;
        }
    }

    /// Before volumes are activated: makes known what their filesystems are called, and tells for which that suffices.
    /// The others are to be announced when they are active.
    async fn announce_ahead(&self, _pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) -> Vec<bool> {
        vec![false; filesystems.len()]
    }

    /// Of filesystems whose volumes have been active for long, which need not be announced: their paths lead to them,
    /// and nothing is under way that could change that.
    async fn have_paths(&self, _pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) -> Vec<bool> {
        vec![false; filesystems.len()]
    }

    // ---- metadata volume -------------------------------------------------------------------

    /// Mounts the metadata volume; makes the folders that are missing, durably.
    async fn mdv_mount(&self, pool: PoolUuid) -> Result<(), Fault>;

    /// Unmounts it. One that is not mounted is fine.
    async fn mdv_unmount(&self, pool: PoolUuid) -> Result<(), Fault>;

    /// How large the file system is that holds the files of a mounted metadata volume.
    async fn mdv_size(&self, pool: PoolUuid) -> Result<Bytes, Fault>;

    /// Names of the files in a folder, sorted.
    async fn mdv_list(&self, pool: PoolUuid, folder: Folder) -> Result<Vec<String>, Fault>;

    /// The content of a file.
    async fn mdv_read(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<Vec<u8>, Fault>;

    /// The contents of many.
    async fn mdv_read_each(&self, pool: PoolUuid, folder: Folder, files: &[String]) -> Result<Vec<Vec<u8>>, Fault> {
        let mut all = Vec::with_capacity(files.len());
        for file in files {
            all.push(self.mdv_read(pool, folder, file).await?);
        }
        Ok(all)
    }

    /// Creates or truncates a file and writes the bytes. Not durable yet.
    async fn mdv_write(&self, pool: PoolUuid, folder: Folder, file: &str, bytes: &[u8]) -> Result<(), Fault>;

    /// Makes the content of a file durable.
    async fn mdv_sync(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault>;

    /// Renames a file over another. Not durable yet.
    async fn mdv_rename(&self, pool: PoolUuid, folder: Folder, from: &str, to: &str) -> Result<(), Fault>;

    /// Removes a file; one that does not exist is fine. Not durable yet.
    async fn mdv_remove(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault>;

    /// Makes creations, renames and removals in a folder durable.
    async fn mdv_sync_folder(&self, pool: PoolUuid, folder: Folder) -> Result<(), Fault>;

    // ---- encryption ------------------------------------------------------------------------

    /// What encrypts on this machine.
    type Encryption: Encryption;

    /// What encrypts on this machine, or that nothing does.
    fn encryption(&self) -> Result<&Self::Encryption, Refusal>;

    /// Forgets the metadata volume and every thin volume of a pool that is gone. On a real machine
    /// they went with the devices and this does nothing.
    async fn scrap(&self, pool: PoolUuid) -> Result<(), Fault>;
}
