//! A pool: what its record on disk holds, and what clients see of it, running or stopped.

use std::collections::BTreeMap;

use crate::model::device::DeviceNumber;
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::token::{Encryption, Tokens};
use crate::units::{Bytes, Sectors};

/// Which metadata format a pool has. Not an API revision.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum MetadataVersion {
    /// Encryption per device; written by old daemons.
    V1,
    /// Encryption above the backstore; what is created.
    V2,
}

impl MetadataVersion {
    /// 1 or 2.
    pub const fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// What may still be done with a pool. Only gets worse while the pool runs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Availability {
    /// Everything.
    Full,
    /// No changes on request.
    NoRequests,
    /// No changes at all.
    NoPoolChanges,
}

impl Availability {
    /// As the D-Bus property spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "fully_operational",
            Self::NoRequests => "no_ipc_requests",
            Self::NoPoolChanges => "no_pool_changes",
        }
    }
}

/// How much room a data device keeps for a future integrity layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntegritySpec {
    /// Tag bytes per 4096-byte block.
    pub tag: TagSpec,
    /// Journal, in sectors; a multiple of 8.
    pub journal: Sectors,
    /// Whether room for a superblock is kept.
    pub superblock: bool,
}

/// The size of an integrity tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TagSpec {
    /// None.
    B0,
    /// 32 bits.
    B32,
    /// 512 bits.
    B512,
}

impl TagSpec {
    /// As records and the D-Bus argument spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::B0 => "0b",
            Self::B32 => "32b",
            Self::B512 => "512b",
        }
    }
}

impl Default for IntegritySpec {
    fn default() -> Self {
        Self { tag: TagSpec::B512, journal: Sectors(262_144), superblock: true }
    }
}

/// A running pool as clients see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PoolView {
    /// Its id.
    pub uuid: PoolUuid,
    /// Its name.
    pub name: Name,
    /// What may be done with it.
    pub availability: Availability,
    /// Its metadata format.
    pub version: MetadataVersion,
    /// Whether it has a cache tier.
    pub has_cache: bool,
    /// Sum of the data devices' sizes.
    pub physical_size: Bytes,
    /// What of that is really in use, if known.
    pub physical_used: Option<Bytes>,
    /// What of it is handed to internal devices.
    pub allocated: Bytes,
    /// Nothing is left to hand out.
    pub no_alloc_space: bool,
    /// How many filesystems it may have.
    pub fs_limit: u64,
    /// Whether the sum of filesystem sizes may pass the data space.
    pub overprovisioning: bool,
    /// Its encryption, if it has any.
    pub encryption: Option<Encryption>,
}

/// A device of a stopped pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoppedDevice {
    /// Its id.
    pub uuid: DevUuid,
    /// Where it is.
    pub devnode: String,
    /// What identifies it.
    pub number: DeviceNumber,
}

/// A pool that is known but not running.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoppedPoolView {
    /// Its id.
    pub uuid: PoolUuid,
    /// Its name, if its metadata could be read.
    pub name: Option<Name>,
    /// The devices that were found.
    pub devices: Vec<StoppedDevice>,
    /// Its metadata format; `None` where devices disagree.
    pub version: Option<MetadataVersion>,
    /// What it uses, from its record (keys as the D-Bus property spells them); `None` where that
    /// could not be read.
    pub features: Option<BTreeMap<String, bool>>,
    /// What unlocks it, where that is known: it is inside an encrypted pool, so only of one that ran here.
    pub tokens: Option<Tokens>,
}
