//! Two kinds of failure: a `Refusal` (you asked for what cannot be; nothing changed) and a `Fault`
//! (the machine failed).
//!
//! Variants are named after what could not be done. Texts say what was tried, on what, why not,
//! with numbers, and are what a client reads. A bug of ours is neither: it panics, and the task
//! wrapper of `cores` catches it. Deliberately absent: a variant that wraps a string, and
//! conversions from library errors.

use thiserror::Error;

use crate::model::device::{DevicePath, RelativePath};
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::name::{Name, NameFault};
use crate::model::pool::Availability;
use crate::model::token::{KeyDescription, TokenFault};
use crate::units::{Bytes, Sectors};

/// You asked for something that cannot be done. Nothing has changed.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[allow(missing_docs, reason = "the text of each variant is its documentation")]
pub enum Refusal {
    #[error(transparent)]
    Name(#[from] NameFault),
    #[error(transparent)]
    Token(#[from] TokenFault),
    #[error("device paths must be absolute: {}", join(.0))]
    Paths(Vec<RelativePath>),
    #[error("{tried:?} is not a UUID")]
    Uuid { tried: String },
    #[error("{tried:?} is not a way to name a pool: use \"uuid\" or \"name\"")]
    IdType { tried: String },
    #[error("{tried:?} is not an unlock method: use any, clevis or keyring")]
    UnlockMethod { tried: String },
    #[error("{tried:?} is not a size in bytes")]
    Size { tried: String },
    #[error("a size of {0} is not a whole number of 512-byte sectors")]
    SizeUnaligned(Bytes),
    #[error("a size of {0} is too small: at least {FILESYSTEM_MIN} bytes are needed")]
    SizeSmall(Bytes),
    #[error("a size of {0} is too large: at most {FILESYSTEM_MAX} bytes are possible")]
    SizeLarge(Bytes),
    #[error("a size limit of {limit} is below the size of {size}")]
    LimitBelowSize { limit: Sectors, size: Sectors },
    #[error("{tried:?} is not an integrity tag size: use 0b, 32b or 512b")]
    TagSpec { tried: String },
    #[error("an integrity journal of {0} bytes is not a multiple of 4096 bytes")]
    Journal(u64),
    #[error(
        "{program} is not installed: it comes with the package thin-provisioning-tools (Debian) or device-mapper-persistent-data (Fedora)"
    )]
    NoProgram { program: &'static str },
    #[error("{what} is not supported yet")]
    Unsupported { what: &'static str },
    #[error("no devices were named for pool {name:?}", name = .0.as_str())]
    NoDevices(Name),
    #[error("{asked} devices in one request are too many: at most {max} are allowed")]
    TooManyDevices { asked: usize, max: usize },
    #[error("{asked} filesystems in one request: they are created one at a time")]
    OneFilesystemAtATime { asked: usize },
    #[error("{0} does not exist")]
    DeviceMissing(DevicePath),
    #[error("{0} is not a {1}")]
    DeviceKind(DevicePath, &'static str),
    #[error("{path} holds {what}: it is not wiped")]
    DeviceOccupied { path: DevicePath, what: String },
    #[error("{path} belongs to pool {pool}: it is not wiped")]
    DeviceOwned { path: DevicePath, pool: PoolUuid },
    #[error("{path} carries a damaged Stratis signature: it is not wiped")]
    DeviceDamaged { path: DevicePath },
    #[error("{path} is in use by another request or pool")]
    DeviceTaken { path: DevicePath },
    #[error("{path} is in use: it is mounted, or part of another device")]
    DeviceInUse { path: DevicePath },
    #[error("{path} is read-only")]
    DeviceReadOnly { path: DevicePath },
    #[error("{path} is a path of a multipath device: use the multipath device itself")]
    DeviceMultipath { path: DevicePath },
    #[error("{path} is a volume of a Stratis pool: it does not become a device of another")]
    DeviceIsVolume { path: DevicePath },
    #[error("{path} is not known to udev yet: try again when \"udevadm settle\" has ended")]
    DeviceUnknown { path: DevicePath },
    #[error("{path} is in the {tier} tier of the pool")]
    DeviceOtherTier { path: DevicePath, tier: &'static str },
    #[error("{path} has {size}, less than the {recorded} that the pool uses")]
    DeviceShrunk { path: DevicePath, size: Sectors, recorded: Sectors },
    #[error("{one} and {other} are the same device")]
    DeviceTwice { one: DevicePath, other: DevicePath },
    #[error("{path} has {size}: at least {min} are needed")]
    DeviceSmall { path: DevicePath, size: Sectors, min: Sectors },
    #[error("{path} is no longer what it was when it was examined")]
    DeviceChanged { path: DevicePath },
    #[error(
        "devices with different block sizes cannot be mixed: {one} has {one_logical}/{one_physical} bytes (logical/physical), {other} has {other_logical}/{other_physical}"
    )]
    BlockSizes {
        one: DevicePath,
        one_logical: u32,
        one_physical: u32,
        other: DevicePath,
        other_logical: u32,
        other_physical: u32,
    },
    #[error("pool {name:?} exists with other devices: only asked for: {asked}; only in the pool: {present}", name = .name.as_str(), asked = list(.asked), present = list(.present))]
    PoolDiffers { name: Name, asked: Vec<DevicePath>, present: Vec<DevicePath> },
    #[error("pool {name:?} has no cache: it is initialised first", name = .name.as_str())]
    NoCache { name: Name },
    #[error("no devices were named for a cache of pool {name:?}", name = .name.as_str())]
    NoCacheDevices { name: Name },
    #[error("pool {name:?} has a cache of other devices: only asked for: {asked}; only in the cache: {present}", name = .name.as_str(), asked = list(.asked), present = list(.present))]
    CacheDiffers { name: Name, asked: Vec<DevicePath>, present: Vec<DevicePath> },
    #[error("the cache of pool {name:?} would hold {wanted}: {max} are possible", name = .name.as_str())]
    CacheTooLarge { name: Name, wanted: Sectors, max: Sectors },
    #[error("pool {name:?} is encrypted: it gets a cache through r5 or a later revision of the interface", name = .name.as_str())]
    CacheOfEncrypted { name: Name },
    #[error("the name {name:?} is taken by pool {pool}", name = .name.as_str())]
    PoolNameTaken { name: Name, pool: PoolUuid },
    #[error("a pool named {name:?} is being created", name = .name.as_str())]
    PoolNameBusy { name: Name },
    #[error("no pool has the name {0:?}")]
    NoPoolNamed(String),
    #[error("several pools have the name {name:?}: use the UUID, one of {}", join(.pools))]
    PoolNameAmbiguous { name: String, pools: Vec<PoolUuid> },
    #[error("no pool has the UUID {0}")]
    NoPool(PoolUuid),
    #[error("{0:?} is not the path of a pool")]
    NoPoolAt(String),
    #[error("pool {name:?} has {count} filesystems: destroy them first", name = .name.as_str())]
    PoolNotEmpty { name: Name, count: usize },
    #[error("pool {pool} is {}: the request would change it", .availability.as_str())]
    PoolUnavailable { pool: PoolUuid, availability: Availability },
    #[error("pool {pool} is not encrypted: it is started without an unlock method or passphrase")]
    NotEncrypted { pool: PoolUuid },
    #[error("pool {name:?} is not encrypted", name = .name.as_str())]
    Unencrypted { name: Name },
    #[error("pool {pool} is encrypted: it is started with an unlock method")]
    Locked { pool: PoolUuid },
    #[error("a passphrase was given for pool {pool} and no unlock method: it is not used without one")]
    PassphraseAlone { pool: PoolUuid },
    #[error("no key {:?} is in the key ring", .0.as_str())]
    NoKey(KeyDescription),
    #[error("a passphrase has at most {max} bytes, and more were given")]
    PassphraseLong { max: usize },
    #[error("no passphrase came through the descriptor within {seconds} seconds")]
    PassphraseLate { seconds: u64 },
    #[error("pool {pool} misses {missing} of its {total} devices")]
    PoolIncomplete { pool: PoolUuid, missing: usize, total: usize },
    #[error("the metadata of pool {pool} cannot be read on any of its {devices} devices")]
    NoMetadata { pool: PoolUuid, devices: usize },
    #[error("the metadata of pool {pool} is not consistent: {what}")]
    Inconsistent { pool: PoolUuid, what: &'static str },
    #[error("pool {pool} was made {made}: this daemon was started {started}")]
    OtherKind { pool: PoolUuid, made: &'static str, started: &'static str },
    #[error(
        "pool {pool} has metadata version 1 and is encrypted (device {path} is an unlocked volume): such a pool is not started"
    )]
    Version1Encrypted { pool: PoolUuid, path: DevicePath },
    #[error("pool {name:?} has metadata version 1: it is encrypted from its creation on or not at all", name = .name.as_str())]
    NotEncryptable { name: Name },
    #[error("parts of pool {name:?} begin or end inside of a block of a cache ({block}): it can have none", name = .name.as_str())]
    CacheUnaligned { name: Name, block: Sectors },
    #[error("pool {name:?} has {limit} filesystems at most, and that many exist", name = .name.as_str())]
    FilesystemLimit { name: Name, limit: u64 },
    #[error("pool {name:?} may have {limit} filesystems: the limit can only be raised, not set to {asked}", name = .name.as_str())]
    FsLimitNotRaised { name: Name, limit: u64, asked: u64 },
    #[error("the metadata volume of pool {name:?} has room for the records of {records} filesystems: a limit of {asked} was asked for", name = .name.as_str())]
    FsLimitRecords { name: Name, records: u64, asked: u64 },
    #[error("a limit of {asked} filesystems takes {wanted} more for the metadata of pool {name:?} and {free} are free: the highest limit that there is room for is {fits}", name = .name.as_str())]
    FsLimitSpace { name: Name, asked: u64, wanted: Sectors, free: Sectors, fits: u64 },
    #[error("filesystem {name:?} exists with a size of {present}; {asked} were asked for", name = .name.as_str())]
    FilesystemDiffers { name: Name, present: Sectors, asked: Sectors },
    #[error("filesystem {name:?} exists, but it could not be brought up; the log says why", name = .name.as_str())]
    FilesystemLost { name: Name },
    #[error("another filesystem of the pool has the name {name:?}", name = .name.as_str())]
    FilesystemNameTaken { name: Name },
    #[error("filesystem {name:?} is being created, destroyed or given this name", name = .name.as_str())]
    FilesystemBusy { name: Name },
    #[error("pool {name:?} is full: add a data device", name = .name.as_str())]
    PoolFull { name: Name },
    #[error("the thin pool of pool {name:?} has no room left for its metadata: add a data device", name = .name.as_str())]
    MetadataFull { name: Name },
    #[error("filesystem {0} does not exist")]
    NoFilesystem(FsUuid),
    #[error("{0:?} is not the path of a filesystem of this pool")]
    NoFilesystemAt(String),
    #[error("device {0} is not in the pool")]
    NoDevice(DevUuid),
    #[error("filesystem {name:?} is to be merged into its origin, or its origin is: cancel that first", name = .name.as_str())]
    MergeScheduled { name: Name },
    #[error("filesystem {name:?} is not a snapshot", name = .name.as_str())]
    NotASnapshot { name: Name },
    #[error("the filesystems of pool {name:?} may have {limit} together while overprovisioning is off: {wanted} were asked for", name = .name.as_str())]
    Overprovisioned { name: Name, limit: Sectors, wanted: Sectors },
    #[error("no thin volume numbers are left in pool {0}")]
    ThinIds(PoolUuid),
    #[error("{wanted} are needed for pool {name:?} and {free} are free", name = .name.as_str())]
    TooFewSectors { name: Name, wanted: Sectors, free: Sectors },
    #[error("the metadata of the pool would take {bytes} bytes: {max} fit a device")]
    RecordTooLarge { bytes: usize, max: usize },
    #[error("filesystem {name:?} is in use: unmount it first", name = .name.as_str())]
    FilesystemInUse { name: Name },
    #[error("there is no report {tried:?}: the one that there is is \"stopped_pools\"")]
    Report { tried: String },
    #[error("the daemon is stopping")]
    Stopping,
    #[error("too much is going on: {what} is full with {max}")]
    Full { what: &'static str, max: usize },
}

const FILESYSTEM_MIN: u64 = crate::limits::FILESYSTEM_SECTORS_MIN.0 * crate::units::SECTOR_BYTES;
const FILESYSTEM_MAX: u64 = crate::limits::FILESYSTEM_SECTORS_MAX.0 * crate::units::SECTOR_BYTES;

/// The machine failed. The pool's availability may have gone down.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[error("cannot {doing} {subject}: {why}")]
pub struct Fault {
    /// What was tried, as a verb: `write`, `flush`, `create`, …
    pub doing: &'static str,
    /// On what.
    pub subject: String,
    /// Why not.
    pub why: Why,
}

/// Why the machine could not.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[allow(missing_docs, reason = "the text of each variant is its documentation")]
pub enum Why {
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    #[error("{done} of {wanted} bytes were transferred")]
    Short { done: usize, wanted: usize },
    #[error("{0}")]
    Data(&'static str),
    #[error("{0}")]
    Xfs(crate::xfs::Refused),
    #[error("an active device has another table")]
    OtherTable,
    #[error("nothing was heard of it for {seconds} seconds")]
    Late { seconds: u64 },
    #[error("the metadata reached none of {total} devices")]
    NoDevice { total: usize },
    #[error("a bug in stratisd, see its log: {0}")]
    Bug(String),
    #[error("{what} is full with {max}")]
    Full { what: &'static str, max: usize },
}

impl Fault {
    /// A failed system call.
    pub fn errno(doing: &'static str, subject: impl ToString, errno: i32) -> Self {
        Self { doing, subject: subject.to_string(), why: Why::Errno(errno) }
    }

    /// A failed library call.
    pub fn io(doing: &'static str, subject: impl ToString, error: &std::io::Error) -> Self {
        Self::errno(doing, subject, error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Any other reason.
    pub fn new(doing: &'static str, subject: impl ToString, why: Why) -> Self {
        Self { doing, subject: subject.to_string(), why }
    }
}

/// Why an operation did not happen.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum Failure {
    /// Nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The machine failed.
    #[error(transparent)]
    Faulted(#[from] Fault),
}

fn join<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn list(paths: &[DevicePath]) -> String {
    if paths.is_empty() { "none".to_owned() } else { join(paths) }
}
