//! Block devices as values: where one is, what it is, what lives on it.
//!
//! Deliberately absent: descriptors. A device is named by its number; `sys` keeps what is open.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::model::ids::{DevUuid, PoolUuid};
use crate::units::Sectors;

/// An absolute path as a client gave it, duplicate slashes and `.` components removed.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DevicePath(PathBuf);

/// The path is not absolute.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
#[error("{0:?} is not an absolute path")]
pub struct RelativePath(pub String);

impl DevicePath {
    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<&str> for DevicePath {
    type Error = RelativePath;

    fn try_from(text: &str) -> Result<Self, RelativePath> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(RelativePath(text.to_owned()));
        }
        let parts = Path::new(text).components().filter(|part| *part != Component::CurDir);
        Ok(Self(parts.collect()))
    }
}

impl fmt::Display for DevicePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(out)
    }
}

/// What makes a device one and the same under whatever path: the device number of a block
/// device (`minor` and `major` as the kernel has them), or file system and inode of a regular file.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DeviceNumber(pub u64, pub u64);

/// Logical and physical block size, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockSizes {
    /// What one I/O must be a multiple of.
    pub logical: u32,
    /// What the device writes without tearing.
    pub physical: u32,
}

/// What was found on a device before we touch it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Occupant {
    /// Nothing that anybody knows.
    Nobody,
    /// A valid Stratis signature.
    Stratis,
    /// The same inside of an encrypted volume that is unlocked: a device of an encrypted pool of version 1.
    Unlocked,
    /// A partition table, a filesystem, LUKS, a multipath member, …: a few words for the message.
    Other(String),
}

/// A device that somebody asked for or that was discovered, examined but not changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The canonical path: every symbolic link resolved.
    pub path: DevicePath,
    /// What identifies it.
    pub number: DeviceNumber,
    /// Its length.
    pub size: Sectors,
    /// Its block sizes.
    pub blocks: BlockSizes,
    /// Who lives there.
    pub occupant: Occupant,
    /// A hardware identifier such as a WWN, if known.
    pub hardware: Option<String>,
}

impl Candidate {
    /// What identifies it, and what people call it.
    pub fn place(&self) -> (DeviceNumber, DevicePath) {
        (self.number, self.path.clone())
    }
}

/// Which tier a device serves.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Tier {
    /// Holds the pool's data.
    Data,
    /// Caches it.
    Cache,
}

impl Tier {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Cache => "cache",
        }
    }

    /// The one that this is not.
    pub const fn other(self) -> Self {
        match self {
            Self::Data => Self::Cache,
            Self::Cache => Self::Data,
        }
    }
}

/// A device of a running pool as clients see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceView {
    /// The pool it belongs to.
    pub pool: PoolUuid,
    /// Its own id.
    pub uuid: DevUuid,
    /// Where the Stratis metadata is visible.
    pub devnode: String,
    /// The physical device below.
    pub physical_path: String,
    /// When it was given to the pool, Unix seconds.
    pub initialized: u64,
    /// A hardware identifier.
    pub hardware: Option<String>,
    /// The user's tag.
    pub user_info: Option<String>,
    /// Data or cache.
    pub tier: Tier,
    /// What the pool uses of it.
    pub size: Sectors,
    /// What the kernel reports, where that differs.
    pub new_size: Option<Sectors>,
    /// Its block sizes.
    pub blocks: BlockSizes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_are_devices() {
        assert_eq!(DevicePath::try_from("sda"), Err(RelativePath("sda".into())));
        assert_eq!(DevicePath::try_from(""), Err(RelativePath(String::new())));
        let path = DevicePath::try_from("//dev/./sda/").expect("absolute");
        assert_eq!(path.to_string(), "/dev/sda");
    }
}
