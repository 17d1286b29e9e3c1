//! A filesystem: its record in the metadata volume, and what clients see of it.

use std::fmt;

use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::units::{Bytes, Sectors};

/// What is recorded of a filesystem; the one truth about it on disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilesystemRecord {
    /// Unique inside the pool.
    pub name: Name,
    /// Also the UUID of the XFS inside.
    pub uuid: FsUuid,
    /// The thin volume it lives on.
    pub thin_id: ThinId,
    /// Size of the thin volume.
    pub size: Sectors,
    /// Unix seconds.
    pub created: u64,
    /// The size it may grow to.
    pub size_limit: Option<Sectors>,
    /// The filesystem it is a snapshot of.
    pub origin: Option<FsUuid>,
    /// Takes its origin's place when the pool is next set up.
    pub merge: bool,
}

/// A filesystem of a running pool as clients see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilesystemView {
    /// The pool it lives in.
    pub pool: PoolUuid,
    /// What is recorded.
    pub record: FilesystemRecord,
    /// The path to mount.
    pub devnode: String,
    /// Space taken from the pool, if that could be found out.
    pub used: Option<Bytes>,
}

/// What a client asks for when it creates a filesystem.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilesystemSpec {
    /// Its name.
    pub name: Name,
    /// Its size; `None` is the default size.
    pub size: Option<Sectors>,
    /// The size it may grow to; `None` is no limit.
    pub size_limit: Option<Sectors>,
}

/// How full an XFS is that is mounted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fill {
    /// What of its device it lies on.
    pub size: Bytes,
    /// What of that files can have.
    pub total: Bytes,
    /// What of that they have.
    pub used: Bytes,
}

impl fmt::Display for FilesystemRecord {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "filesystem {:?}", self.name.as_str())
    }
}
