//! The bytes of an XFS filesystem, pure: what to write for a new one, and what to read and write to
//! give another UUID to one that is there.
//!
//! Invariant: for the same options, `format` gives what `mkfs.xfs` 6.1 writes with `nrext64=0`, byte
//! by byte: blocks of 4 KiB, inodes of 512 bytes, checksums, free inode tree, sparse inodes, shared
//! extents, big times; no reverse mapping. What is refused has a reason, and is left to `mkfs.xfs`.
//!
//! One file for each on-disk structure, with the structure's and its fields' own names; every offset
//! follows from the one before. Numbers are big-endian, checksums are CRC32C and little-endian.
//!
//! Deliberately absent: I/O, clock and randomness (time and UUID are arguments), mounting, growth
//! (the kernel's work), and repair. Trees of more than one block: all trees of an empty filesystem
//! are roots with at most a few records.

mod agf;
mod agfl;
mod agi;
mod btree;
mod bytes;
mod format;
mod geometry;
mod inode;
mod log;
mod log_head;
mod new_uuid;
mod space;
mod superblock;

pub use format::{Format, Identity, Log, Time, format};
pub use geometry::{Geometry, Groups, LogLength, Sector, Shape, Stripe, Unfit};
pub use log_head::LogFault;
pub use new_uuid::{FIRST_READ, NewUuid, Refused, Step};
pub use superblock::{SuperblockFault, size};

/// Bytes of a filesystem block, `sb_blocksize`: the only size that is supported.
pub const BLOCK_BYTES: u64 = 4096;

/// Bytes to write at a place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// Offset in bytes from the beginning of the device; a multiple of the sector size.
    pub at: u64,
    /// What to write there; whole sectors.
    pub bytes: Vec<u8>,
}

/// Bytes of the device, as an offset and a length; whole sectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Offset in bytes from the beginning of the device.
    pub at: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Span {
    /// The first byte behind it.
    pub const fn end(self) -> u64 {
        self.at + self.length
    }
}
