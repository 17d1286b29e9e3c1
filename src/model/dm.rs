//! Device-mapper devices as values: names, tables, states.
//!
//! A table refers to what lies below by what it *is* (a device of the pool, another dm device);
//! `sys` turns that into `major:minor`. So a table computed here equals the recorded one of any
//! other boot, and an adopted device can be compared with it.
//!
//! Every device carries a dm UUID equal to its name.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::model::device::DeviceNumber;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::units::Sectors;

/// The role of a private dm device in the stack of its pool, bottom first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Linear over the segments of the data devices.
    OriginSub,
    /// Linear over the metadata of a cache.
    MetaSub,
    /// Linear over the data of a cache.
    CacheSub,
    /// The dm-cache, or in version 2 its linear placeholder.
    Cache,
    /// Thin-pool metadata.
    ThinMeta,
    /// What damaged thin-pool metadata is repaired into, while that goes on.
    ThinMetaSpare,
    /// Thin-pool data.
    ThinData,
    /// The metadata volume.
    Mdv,
    /// The thin pool itself.
    ThinPool,
}

impl Role {
    /// All there are, bottom first.
    pub const ALL: [Self; 9] = [
        Self::OriginSub,
        Self::MetaSub,
        Self::CacheSub,
        Self::Cache,
        Self::ThinMeta,
        Self::ThinMetaSpare,
        Self::ThinData,
        Self::Mdv,
        Self::ThinPool,
    ];

    /// The end of the device's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::OriginSub => "physical-originsub",
            Self::MetaSub => "physical-metasub",
            Self::CacheSub => "physical-cachesub",
            Self::Cache => "physical-cache",
            Self::ThinMeta => "flex-thinmeta",
            Self::ThinMetaSpare => "flex-thinmetaspare",
            Self::ThinData => "flex-thindata",
            Self::Mdv => "flex-mdv",
            Self::ThinPool => "thinpool-pool",
        }
    }
}

/// Which dm device. `Display` is its dm name and dm UUID.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Dm {
    /// A device of the pool's private stack.
    Private(PoolUuid, Role),
    /// A filesystem's thin volume.
    Thin(PoolUuid, FsUuid),
}

/// How the names of all devices of pools begin.
pub const OURS: &str = "stratis-1-";
/// How those of private devices do.
pub const PRIVATE: &str = "stratis-1-private-";

impl Dm {
    /// The pool it belongs to.
    pub const fn pool(self) -> PoolUuid {
        match self {
            Self::Private(pool, _) | Self::Thin(pool, _) => pool,
        }
    }

    /// The pool whose thin pool it is.
    pub const fn thin_pool_of(self) -> Option<PoolUuid> {
        match self {
            Self::Private(pool, Role::ThinPool) => Some(pool),
            Self::Private(..) | Self::Thin(..) => None,
        }
    }
}

impl fmt::Display for Dm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private(pool, role) => {
                write!(out, "{PRIVATE}{}-{}", pool.simple(), role.suffix())
            }
            Self::Thin(pool, fs) => {
                write!(out, "{OURS}{}-thin-fs-{}", pool.simple(), fs.simple())
            }
        }
    }
}

/// A dm name that none of our devices has.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("that is not the name of a dm device of a pool")]
pub struct NotOurs;

impl FromStr for Dm {
    type Err = NotOurs;

    /// Accepts exactly what `Display` writes.
    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let found = match text.strip_prefix(PRIVATE) {
            Some(parts) => {
                let (pool, suffix) = parts.split_once('-').ok_or(NotOurs)?;
                let role = Role::ALL.into_iter().find(|role| role.suffix() == suffix).ok_or(NotOurs)?;
                Self::Private(pool.parse().map_err(|_| NotOurs)?, role)
            }
            None => {
                let parts = text.strip_prefix(OURS).ok_or(NotOurs)?;
                let (pool, filesystem) = parts.split_once("-thin-fs-").ok_or(NotOurs)?;
                Self::Thin(pool.parse().map_err(|_| NotOurs)?, filesystem.parse().map_err(|_| NotOurs)?)
            }
        };
        // UUIDs have several spellings, device names have one.
        if found.to_string() == text { Ok(found) } else { Err(NotOurs) }
    }
}

/// The pool of a thin pool's name. As cheap as it can be: it is asked of every dm device there is.
pub fn thin_pool_of(name: &str) -> Option<PoolUuid> {
    let found = name.ends_with(Role::ThinPool.suffix()).then(|| name.parse::<Dm>())?;
    found.ok()?.thin_pool_of()
}

/// What a linear line lies on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Below {
    /// A device of the pool.
    Device(DeviceNumber),
    /// Another dm device.
    Dm(Dm),
}

/// A feature argument of the thin-pool target, in the order of their names.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ThinFeature {
    /// `error_if_no_space`
    ErrorIfNoSpace,
    /// `no_discard_passdown`
    NoDiscardPassdown,
    /// `skip_block_zeroing`
    SkipBlockZeroing,
}

impl ThinFeature {
    /// As the table and the pool's record write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ErrorIfNoSpace => "error_if_no_space",
            Self::NoDiscardPassdown => "no_discard_passdown",
            Self::SkipBlockZeroing => "skip_block_zeroing",
        }
    }
}

/// One line of a linear table: `length` sectors, starting at `start` of what is below.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LinearLine {
    /// Sectors of this line. Lines follow each other without gaps from 0.
    pub length: Sectors,
    /// What they lie on.
    pub below: Below,
    /// Where on it they start.
    pub start: Sectors,
}

/// A whole table.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Table {
    /// `linear`, one or more lines.
    Linear(Vec<LinearLine>),
    /// `cache`, writing through; origin, data and metadata devices are those of the same pool.
    Cache {
        /// Length of the origin.
        length: Sectors,
        /// Cache block size.
        block: Sectors,
    },
    /// `thin-pool`; metadata and data devices are those of the same pool.
    ThinPool {
        /// Length of the pool = length of the data device.
        length: Sectors,
        /// Data block size.
        block: Sectors,
        /// Low-water mark, in data blocks.
        low_water: u64,
        /// Sorted, no duplicates.
        features: Vec<ThinFeature>,
    },
    /// `thin`, a volume of the pool's thin pool.
    Thin {
        /// Length of the volume.
        length: Sectors,
        /// Its number inside the thin pool.
        id: ThinId,
    },
}

impl Table {
    /// The length of the device.
    pub fn length(&self) -> Sectors {
        match self {
            Self::Linear(lines) => lines.iter().map(|line| line.length).sum(),
            Self::Cache { length, .. } | Self::ThinPool { length, .. } | Self::Thin { length, .. } => *length,
        }
    }
}

impl Table {
    /// What this table of a device of a pool with a cache was before there was one: the cache was its origin's
    /// placeholder, or what lies on the cache lay on the origin. `None` where a cache makes no difference.
    pub fn without_cache(&self, pool: PoolUuid) -> Option<Self> {
        let (origin, cache) = (Dm::Private(pool, Role::OriginSub), Below::Dm(Dm::Private(pool, Role::Cache)));
        match self {
            Self::Linear(lines) if lines.iter().any(|line| line.below == cache) => {
                let below = |below| if below == cache { Below::Dm(origin) } else { below };
                Some(Self::Linear(lines.iter().map(|line| LinearLine { below: below(line.below), ..*line }).collect()))
            }
            Self::Cache { length, .. } => {
                Some(Self::Linear(vec![LinearLine { length: *length, below: Below::Dm(origin), start: Sectors::ZERO }]))
            }
            Self::Linear(_) | Self::ThinPool { .. } | Self::Thin { .. } => None,
        }
    }
}

/// What a thin pool still does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ThinPoolMode {
    /// Everything.
    ReadWrite,
    /// Its data device is full: writes to new places wait or fail.
    OutOfDataSpace,
    /// Its metadata is full: it only reads, until it gets more.
    OutOfMetadataSpace,
    /// Reads; its metadata could not be written or was damaged.
    ReadOnly,
    /// Nothing.
    Failed,
}

impl ThinPoolMode {
    /// As a status line has it, but for metadata that is full: the line has `ro` for that, too.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::OutOfDataSpace => "out_of_data_space",
            Self::OutOfMetadataSpace => "out_of_metadata_space",
            Self::ReadOnly => "ro",
            Self::Failed => "Fail",
        }
    }
}

/// The state of a thin pool, from its status line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ThinPoolState {
    /// Metadata blocks of 4 KiB in use.
    pub meta_used: u64,
    /// Metadata blocks of 4 KiB there are.
    pub meta_total: u64,
    /// At how many free ones of these it wants more.
    pub meta_low_water: u64,
    /// Data blocks in use.
    pub data_used: u64,
    /// Data blocks there are.
    pub data_total: u64,
    /// At how many free ones of these it says so, as its table has it.
    pub low_water: u64,
    /// Whether a write that finds no data block waits for one; else it fails.
    pub waits: bool,
    /// What it still does.
    pub mode: ThinPoolMode,
    /// The kernel wants the metadata to be checked before the pool is used again.
    pub needs_check: bool,
}

impl ThinPoolState {
    /// Whether it is as the kernel raises an event for.
    pub const fn is_told(&self) -> bool {
        let runs_low = self.data_total.saturating_sub(self.data_used) <= self.low_water;
        runs_low || self.meta_total.saturating_sub(self.meta_used) <= self.meta_low_water || !self.can_change()
    }

    /// At how many free blocks of metadata more are wanted. The kernel says so at its own mark, but it keeps a tenth
    /// of them to itself, 16 MiB at most, which count as used here: where there are many it says nothing before they
    /// are full. Of these half is kept free, for whoever looks.
    pub const fn meta_mark(&self) -> u64 {
        if self.is_meta_told() { self.meta_low_water } else { self.meta_total / 2 }
    }

    /// Whether the kernel says in time that metadata run low.
    pub const fn is_meta_told(&self) -> bool {
        self.meta_low_water == 0 || self.meta_low_water > 2 * (self.meta_total / 10)
    }

    /// Whether a write may map another block. To a full one, a write waits a minute and fails.
    pub const fn can_map(&self) -> bool {
        matches!(self.mode, ThinPoolMode::ReadWrite) && !self.needs_check
    }

    /// Whether its metadata can still be changed, once there is room.
    pub const fn can_change(&self) -> bool {
        match self.mode {
            ThinPoolMode::ReadWrite | ThinPoolMode::OutOfDataSpace | ThinPoolMode::OutOfMetadataSpace => {
                !self.needs_check
            }
            ThinPoolMode::ReadOnly | ThinPoolMode::Failed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_device_are_one_to_one() {
        let pool = PoolUuid::from_random([7; 16]);
        let mut all: Vec<Dm> = Role::ALL.into_iter().map(|role| Dm::Private(pool, role)).collect();
        all.push(Dm::Thin(pool, FsUuid::from_random([9; 16])));
        for device in all {
            let name = device.to_string();
            assert_eq!(name.parse(), Ok(device));
            let is_thin_pool = device == Dm::Private(pool, Role::ThinPool);
            assert_eq!(thin_pool_of(&name), is_thin_pool.then_some(pool), "{name}");
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        let pool = PoolUuid::from_random([0xab; 16]);
        let hyphenated = format!("stratis-1-private-{pool}-flex-mdv");
        let shouted = format!("stratis-1-private-{}-flex-mdv", pool.simple().to_uppercase());
        let unknown = format!("stratis-1-private-{}-flex-other", pool.simple());
        let others = format!("vg-{}", Role::ThinPool.suffix());
        for name in ["", "vg-lv", "stratis-1-", "stratis-1-private-", &hyphenated, &shouted, &unknown, &others] {
            assert_eq!(name.parse::<Dm>(), Err(NotOurs), "{name}");
            assert_eq!(thin_pool_of(name), None, "{name}");
        }
    }
}
