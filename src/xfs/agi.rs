//! AGI, `xfs_agi`: the inodes of a group, and the roots of the trees that list them.
//!
//! Deliberately absent: reading.

use uuid::Uuid;

use crate::xfs::btree::{self, Tree};
use crate::xfs::bytes::{Field, seal};
use crate::xfs::geometry::Geometry;
use crate::xfs::inode;

const MAGIC: &[u8; 4] = b"XAGI";
const VERSION: u32 = 1;
/// Buckets of inodes that were unlinked and are still open.
const UNLINKED_BUCKETS: usize = 64;

const MAGICNUM: Field = Field::first(4);
const VERSIONNUM: Field = MAGICNUM.then(4);
const SEQNO: Field = VERSIONNUM.then(4);
const LENGTH: Field = SEQNO.then(4);
const COUNT: Field = LENGTH.then(4);
const ROOT: Field = COUNT.then(4);
const LEVEL: Field = ROOT.then(4);
const FREECOUNT: Field = LEVEL.then(4);
const NEWINO: Field = FREECOUNT.then(4);
const DIRINO: Field = NEWINO.then(4);
const UNLINKED: Field = DIRINO.then(UNLINKED_BUCKETS * 4);
const UUID: Field = UNLINKED.then(16);
const CRC: Field = UUID.then(4);
const PAD32: Field = CRC.then(4);
const LSN: Field = PAD32.then(8);
const FREE_ROOT: Field = LSN.then(4);
const FREE_LEVEL: Field = FREE_ROOT.then(4);
const IBLOCKS: Field = FREE_LEVEL.then(4);
const FBLOCKS: Field = IBLOCKS.then(4);

/// The sector of a group. Only the first has inodes: one chunk of them, which begins with the root.
pub(super) fn encode(geometry: &Geometry, uuid: Uuid, group: u64, sector: &mut [u8]) {
    MAGICNUM.put_bytes(sector, MAGIC);
    VERSIONNUM.put(sector, VERSION);
    SEQNO.put(sector, group);
    LENGTH.put(sector, geometry.length_of(group));
    ROOT.put(sector, btree::root_of(geometry, Tree::Inodes));
    LEVEL.put(sector, btree::LEVELS);
    if group == 0 {
        COUNT.put(sector, inode::IN_CHUNK);
        FREECOUNT.put(sector, inode::IN_CHUNK - inode::USED);
        NEWINO.put(sector, geometry.root_inode());
    } else {
        NEWINO.put_none(sector);
    }
    DIRINO.put_none(sector);
    UNLINKED.put_none(sector);
    UUID.put_bytes(sector, uuid.as_bytes());
    FREE_ROOT.put(sector, btree::root_of(geometry, Tree::FreeInodes));
    FREE_LEVEL.put(sector, btree::LEVELS);
    IBLOCKS.put(sector, 1_u32);
    FBLOCKS.put(sector, 1_u32);
    seal(sector, CRC);
}
