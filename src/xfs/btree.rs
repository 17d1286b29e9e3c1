//! Roots of the trees of a group, `xfs_btree_block` in its short form with a checksum: free space by
//! block and by length, inodes, inodes of which some are free, shared extents.
//!
//! Invariant: every root is a leaf. Of free space there are at most three extents, of inodes one
//! chunk in the first group, of shared extents none.
//!
//! Deliberately absent: the reverse mapping (mkfs.xfs 6.1 makes none by default), deeper trees.

use uuid::Uuid;

use crate::units::SECTOR_BYTES;
use crate::xfs::BLOCK_BYTES;
use crate::xfs::bytes::{Field, seal};
use crate::xfs::geometry::Geometry;
use crate::xfs::inode;
use crate::xfs::space::{Extent, Space};

/// Levels of every tree.
pub(super) const LEVELS: u32 = 1;

const MAGICNUM: Field = Field::first(4);
const LEVEL: Field = MAGICNUM.then(2);
const NUMRECS: Field = LEVEL.then(2);
const LEFTSIB: Field = NUMRECS.then(4);
const RIGHTSIB: Field = LEFTSIB.then(4);
/// `bb_blkno`: where the block itself lies, in sectors of 512 bytes.
const BLKNO: Field = RIGHTSIB.then(8);
const LSN: Field = BLKNO.then(8);
const UUID: Field = LSN.then(16);
const OWNER: Field = UUID.then(4);
const CRC: Field = OWNER.then(4);

/// `xfs_alloc_rec`
const AR_STARTBLOCK: Field = Field::first(4);
const AR_BLOCKCOUNT: Field = AR_STARTBLOCK.then(4);

/// `xfs_inobt_rec`, as it is with sparse inodes.
const IR_STARTINO: Field = Field::first(4);
const IR_HOLEMASK: Field = IR_STARTINO.then(2);
const IR_COUNT: Field = IR_HOLEMASK.then(1);
const IR_FREECOUNT: Field = IR_COUNT.then(1);
const IR_FREE: Field = IR_FREECOUNT.then(8);

/// A tree of a group, in the order in which the roots lie behind the headers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tree {
    /// `bnobt`
    FreeByBlock,
    /// `cntbt`
    FreeByLength,
    /// `inobt`
    Inodes,
    /// `finobt`
    FreeInodes,
    /// `refcountbt`
    Shared,
}

impl Tree {
    pub(super) const ALL: [Self; 5] =
        [Self::FreeByBlock, Self::FreeByLength, Self::Inodes, Self::FreeInodes, Self::Shared];

    const fn magic(self) -> &'static [u8; 4] {
        match self {
            Self::FreeByBlock => b"AB3B",
            Self::FreeByLength => b"AB3C",
            Self::Inodes => b"IAB3",
            Self::FreeInodes => b"FIB3",
            Self::Shared => b"R3FC",
        }
    }

    const fn place(self) -> u64 {
        match self {
            Self::FreeByBlock => 0,
            Self::FreeByLength => 1,
            Self::Inodes => 2,
            Self::FreeInodes => 3,
            Self::Shared => 4,
        }
    }
}

/// The block in its group that holds the root of a tree.
pub(super) const fn root_of(geometry: &Geometry, tree: Tree) -> u64 {
    geometry.header_blocks() + tree.place()
}

/// The root of a tree of a group.
pub(super) fn encode(geometry: &Geometry, uuid: Uuid, group: u64, tree: Tree, space: &Space, block: &mut [u8]) {
    let records: Vec<Vec<u8>> = match tree {
        Tree::FreeByBlock => space.free.iter().map(free_record).collect(),
        Tree::FreeByLength => {
            let mut by_length = space.free.clone();
            by_length.sort_by_key(|extent| (extent.blocks, extent.start));
            by_length.iter().map(free_record).collect()
        }
        Tree::Inodes | Tree::FreeInodes if group == 0 => vec![inode_record(geometry)],
        Tree::Inodes | Tree::FreeInodes | Tree::Shared => Vec::new(),
    };
    MAGICNUM.put_bytes(block, tree.magic());
    NUMRECS.put(block, u64::try_from(records.len()).expect("a few records"));
    LEFTSIB.put_none(block);
    RIGHTSIB.put_none(block);
    BLKNO.put(block, geometry.offset(group, root_of(geometry, tree)) / SECTOR_BYTES);
    UUID.put_bytes(block, uuid.as_bytes());
    OWNER.put(block, group);
    let records = records.concat();
    block[CRC.end()..CRC.end() + records.len()].copy_from_slice(&records);
    let whole = usize::try_from(BLOCK_BYTES).expect("a block fits memory");
    seal(&mut block[..whole], CRC);
}

fn free_record(extent: &Extent) -> Vec<u8> {
    let mut record = vec![0; AR_BLOCKCOUNT.end()];
    AR_STARTBLOCK.put(&mut record, extent.start);
    AR_BLOCKCOUNT.put(&mut record, extent.blocks);
    record
}

/// The chunk that begins with the root inode.
fn inode_record(geometry: &Geometry) -> Vec<u8> {
    let mut record = vec![0; IR_FREE.end()];
    IR_STARTINO.put(&mut record, geometry.root_inode());
    IR_COUNT.put(&mut record, inode::IN_CHUNK);
    IR_FREECOUNT.put(&mut record, inode::IN_CHUNK - inode::USED);
    // A bit for each inode, set where it is free.
    IR_FREE.put(&mut record, u64::MAX << inode::USED);
    record
}
