//! Everything that crosses a core, as owned values: requests, replies, events, claims, views.
//!
//! Invariant: a shard sends the views that show an effect before the reply that reports it, on the
//! same lane, so whoever reads the reply has applied the views.
//!
//! Deliberately absent: references, reference counts, callbacks. What is shared is copied.

use crate::descriptors::Descriptors;
use crate::error::{Failure, Refusal};
use crate::model::device::{Candidate, DeviceNumber, DevicePath, DeviceView, Tier};
use crate::model::filesystem::{FilesystemSpec, FilesystemView};
use crate::model::ids::{DevUuid, FsUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::{IntegritySpec, PoolView, StoppedPoolView};
use crate::model::token::{KeyChange, KeyDescription, TokenChange, Tokens};
use crate::units::Sectors;

/// Names one call from its request to its reply.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CallId(pub u64);

/// What travels on a ring.
#[derive(Debug)]
pub enum Message {
    /// Bus to shard.
    Request(Box<Request>),
    /// Shard to bus: the last message of a call.
    Reply(Box<Reply>),
    /// Shard to bus: changes that belong together, in the order in which they are announced.
    Views(Vec<View>),
    /// Event core to shard.
    Event(Box<Event>),
    /// Shard to directory.
    Claim(Box<Claim>),
    /// Directory to shard: the answer to a `Claim::Take` or `Claim::TakeMore`.
    Claimed(Box<Claimed>),
    /// Anybody to anybody: accept nothing new, finish, then say `Stopped`.
    Stop,
    /// Bus to shard: somebody reads sizes in use; look again at what they are.
    Look,
    /// Bus to event core: look at every device again, and let the shards say `Refreshed`.
    Refresh(CallId),
    /// Shard to bus: what that has shown is taken in here.
    Refreshed(CallId),
    /// Shard to bus and event core: nothing is running here any more.
    Stopped,
    /// Shard to bus: every pool found at the start is running or listed as stopped.
    Settled,
}

/// Please change something.
#[derive(Debug)]
pub struct Request {
    /// Comes back in the reply.
    pub call: CallId,
    /// What is asked for.
    pub wish: Wish,
    /// The descriptors that came with it.
    pub descriptors: Descriptors,
}

/// What can be asked for, always in its newest meaning.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wish {
    /// Make a pool of devices. Sent to the home of `pool`.
    CreatePool {
        /// The id the pool will have.
        pool: PoolUuid,
        /// Its name.
        name: Name,
        /// Its data devices.
        devices: Vec<DevicePath>,
        /// Room to keep for an integrity layer.
        integrity: IntegritySpec,
        /// What is to unlock it, if it is to be encrypted.
        encryption: Option<Tokens>,
    },
    /// Take a pool apart and wipe its devices.
    DestroyPool(PoolUuid),
    /// Set a stopped pool up.
    StartPool {
        /// Which.
        pool: PoolUuid,
        /// Whether an unlock method or a passphrase came with the request.
        unlock: bool,
        /// Leave the cache tier out, and drop it.
        remove_cache: bool,
    },
    /// Take a running pool down, keep what is on its devices.
    StopPool(PoolUuid),
    /// Make filesystems in a running pool. One, or none.
    CreateFilesystems(PoolUuid, Vec<FilesystemSpec>),
    /// Destroy filesystems of a running pool.
    DestroyFilesystems(PoolUuid, Vec<FsUuid>),
    /// Give a running pool more devices for its data.
    AddDataDevices(PoolUuid, Vec<DevicePath>),
    /// Give a running pool with a cache more devices for that.
    AddCacheDevices(PoolUuid, Vec<DevicePath>),
    /// Give a running pool a cache.
    InitCache(PoolUuid, Vec<DevicePath>),
    /// Take into use what a device has grown by.
    GrowDevice(PoolUuid, DevUuid),
    /// Make a filesystem that is what this one is now, and has this name.
    SnapshotFilesystem(PoolUuid, FsUuid, Name),
    /// Give a filesystem another name.
    SetFilesystemName(PoolUuid, FsUuid, Name),
    /// Give a running pool another name.
    SetPoolName(PoolUuid, Name),
    /// Change how far a filesystem may grow.
    SetSizeLimit(PoolUuid, FsUuid, Option<Sectors>),
    /// Schedule a snapshot to take its origin's place, or cancel that.
    SetMerge(PoolUuid, FsUuid, bool),
    /// Change the user's tag on a device.
    SetUserInfo(PoolUuid, DevUuid, Option<Name>),
    /// Allow or forbid that the sum of filesystem sizes passes the data space.
    SetOverprovisioning(PoolUuid, bool),
    /// Allow more filesystems.
    SetFsLimit(PoolUuid, u64),
    /// Say what a running pool's record is; true: as it would be written now, false: as it was last written.
    Metadata(PoolUuid, bool),
    /// Say what the records of a running pool's filesystems are: of all, or of the one with this name.
    FilesystemMetadata(PoolUuid, Option<String>),
    /// Change what unlocks an encrypted pool.
    ChangeTokens(PoolUuid, TokenChange),
    /// Encrypt a pool that is not.
    EncryptPool(PoolUuid, Tokens),
    /// Give an encrypted pool another volume key.
    ReencryptPool(PoolUuid),
    /// Make an encrypted pool a plain one.
    DecryptPool(PoolUuid),
    /// Do something with the key ring. Sent to one home, whatever the key.
    Keys(KeyWish),
}

/// What is done with the key ring.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyWish {
    /// Tell the descriptions of all keys.
    List,
    /// Keep the passphrase that comes through this one of the request's descriptors.
    Set(KeyDescription, usize),
    /// Forget a key.
    Unset(KeyDescription),
}

impl Wish {
    /// The pool the wish is about; its home gets the request.
    pub const fn pool(&self) -> PoolUuid {
        match self {
            Self::CreatePool { pool, .. }
            | Self::StartPool { pool, .. }
            | Self::DestroyPool(pool)
            | Self::StopPool(pool)
            | Self::CreateFilesystems(pool, _)
            | Self::DestroyFilesystems(pool, _)
            | Self::AddDataDevices(pool, _)
            | Self::AddCacheDevices(pool, _)
            | Self::InitCache(pool, _)
            | Self::GrowDevice(pool, _)
            | Self::SnapshotFilesystem(pool, _, _)
            | Self::SetFilesystemName(pool, _, _)
            | Self::SetPoolName(pool, _)
            | Self::SetSizeLimit(pool, _, _)
            | Self::SetMerge(pool, _, _)
            | Self::SetUserInfo(pool, _, _)
            | Self::SetOverprovisioning(pool, _)
            | Self::SetFsLimit(pool, _)
            | Self::Metadata(pool, _)
            | Self::FilesystemMetadata(pool, _)
            | Self::ChangeTokens(pool, _)
            | Self::EncryptPool(pool, _)
            | Self::ReencryptPool(pool)
            | Self::DecryptPool(pool) => *pool,
            // No pool has this id. It stands for the key ring, so that this has one home and one queue.
            Self::Keys(_) => PoolUuid(uuid::Uuid::nil()),
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub struct Reply {
    /// Which call.
    pub call: CallId,
    /// What happened.
    pub outcome: Result<Answer, Failure>,
}

/// What changed. `Identity`: nothing had to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The request was satisfied already.
    Identity,
    /// A pool was created, with these devices.
    PoolCreated(PoolUuid, Vec<DevUuid>),
    /// A pool was destroyed.
    PoolDestroyed(PoolUuid),
    /// A pool was started, with these devices and filesystems.
    PoolStarted(PoolUuid, Vec<DevUuid>, Vec<FsUuid>),
    /// A pool was stopped.
    PoolStopped(PoolUuid),
    /// Filesystems were created.
    FilesystemsCreated(Vec<(FsUuid, Name)>),
    /// Filesystems were destroyed.
    FilesystemsDestroyed(Vec<FsUuid>),
    /// Devices were added.
    DevicesAdded(Vec<DevUuid>),
    /// A snapshot was made: this one.
    FilesystemSnapshotted(FsUuid),
    /// A name or a property has its new value, or whatever else was asked for is so now.
    Set,
    /// Nothing changed; this is what was asked for.
    Text(String),
    /// A key is in the key ring.
    KeySet(KeyChange),
    /// The descriptions of all keys.
    Keys(Vec<KeyDescription>),
}

/// A copy of something public has changed or gone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum View {
    /// A running pool is new or has changed.
    Pool(PoolView),
    /// A filesystem is new or has changed.
    Filesystem(FilesystemView),
    /// A device is new or has changed.
    Device(DeviceView),
    /// A stopped pool is new or has changed.
    Stopped(StoppedPoolView),
    /// A pool no longer runs.
    PoolGone(PoolUuid),
    /// A filesystem is no longer there.
    FilesystemGone(PoolUuid, FsUuid),
    /// A device is no longer there.
    DeviceGone(PoolUuid, DevUuid),
    /// A pool is no longer listed as stopped.
    StoppedGone(PoolUuid),
    /// The descriptions of all keys that clients have set.
    Keys(Vec<KeyDescription>),
}

/// What happened outside.
#[derive(Debug)]
pub enum Event {
    /// A device with a Stratis signature of this pool was found.
    Found {
        /// Whose it is, from its signature.
        pool: PoolUuid,
        /// The device.
        candidate: Candidate,
    },
    /// A device is gone, or belongs to nobody but `owner`.
    Lost {
        /// What identified it.
        number: DeviceNumber,
        /// Whose signature it carries now, if any.
        owner: Option<PoolUuid>,
    },
    /// Every device with a signature has been reported; there are none but these. Sent at the start, when
    /// events were lost, and when a client asks for it.
    Enumerated {
        /// All there are; `None` where that cannot be found out.
        there: Option<Vec<DeviceNumber>>,
        /// Who asked for it, and waits until it is taken in.
        call: Option<CallId>,
    },
    /// The thin pool of a pool raised an event.
    ThinPool(PoolUuid),
}

/// A device that a pool wants for a tier.
pub type Claimable = (DeviceNumber, DevicePath, Tier);

/// What a shard wants of the directory. Claims are by pool: one pool, one claim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claim {
    /// Take a name and devices for a pool, all or none. Answered by `Claimed`.
    Take {
        /// For whom.
        pool: PoolUuid,
        /// The name, which no other pool may hold; `None` for a stopped pool, which holds only its
        /// devices.
        name: Option<Name>,
        /// The devices, which no other pool may hold.
        devices: Vec<Claimable>,
    },
    /// Take a name that will replace the pool's, and devices, all or none, beside what a pool holds that runs.
    /// Answered by `Claimed`. One at a time for each pool: it ends with `Commit` or `GiveBack`.
    TakeMore {
        /// For whom.
        pool: PoolUuid,
        /// Another name.
        name: Option<Name>,
        /// More devices.
        devices: Vec<Claimable>,
    },
    /// What was taken is now real: the pool runs, has its other name, has more devices.
    Commit(PoolUuid),
    /// Give back what was taken beside what the pool holds.
    GiveBack(PoolUuid),
    /// Give back the name, keep the devices: the pool has stopped, or did not start.
    ReleaseName(PoolUuid),
    /// Give back one device: it is gone, or it is somebody else's now.
    ReleaseDevice(PoolUuid, DeviceNumber),
    /// Give back everything.
    Release(PoolUuid),
}

/// The directory's answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claimed {
    /// Whose claim.
    pub pool: PoolUuid,
    /// Whether it was granted.
    pub outcome: Result<(), Taken>,
}

/// Why a claim was not granted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Taken {
    /// A pool that runs holds the name, with these devices.
    Name {
        /// The holder.
        holder: PoolUuid,
        /// The holder's data devices.
        devices: Vec<(DeviceNumber, DevicePath)>,
    },
    /// A pool that is being created or started holds the name.
    NameBusy,
    /// Another pool holds a device.
    Device {
        /// The device.
        path: DevicePath,
        /// The holder.
        holder: PoolUuid,
    },
}

impl Taken {
    /// What somebody is told who wanted this name, or these devices for a pool of this name.
    pub fn refusal(self, name: &Name) -> Refusal {
        let name = name.clone();
        match self {
            Self::Name { holder, .. } => Refusal::PoolNameTaken { name, pool: holder },
            Self::NameBusy => Refusal::PoolNameBusy { name },
            Self::Device { path, holder } => Refusal::DeviceOwned { path, pool: holder },
        }
    }
}
