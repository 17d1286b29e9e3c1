//! AGF, `xfs_agf`: the free space of a group, and the roots of the trees that list it.
//!
//! Deliberately absent: reading.

use uuid::Uuid;

use crate::xfs::agfl;
use crate::xfs::btree::{self, Tree};
use crate::xfs::bytes::{Field, seal};
use crate::xfs::geometry::{FREE_LIST, Geometry};
use crate::xfs::space::Space;

const MAGIC: &[u8; 4] = b"XAGF";
const VERSION: u32 = 1;

const MAGICNUM: Field = Field::first(4);
const VERSIONNUM: Field = MAGICNUM.then(4);
const SEQNO: Field = VERSIONNUM.then(4);
const LENGTH: Field = SEQNO.then(4);
/// `agf_roots`: free space by block, by length, and reverse mapping.
const BNO_ROOT: Field = LENGTH.then(4);
const CNT_ROOT: Field = BNO_ROOT.then(4);
const RMAP_ROOT: Field = CNT_ROOT.then(4);
/// `agf_levels`
const BNO_LEVEL: Field = RMAP_ROOT.then(4);
const CNT_LEVEL: Field = BNO_LEVEL.then(4);
const RMAP_LEVEL: Field = CNT_LEVEL.then(4);
const FLFIRST: Field = RMAP_LEVEL.then(4);
const FLLAST: Field = FLFIRST.then(4);
const FLCOUNT: Field = FLLAST.then(4);
const FREEBLKS: Field = FLCOUNT.then(4);
const LONGEST: Field = FREEBLKS.then(4);
const BTREEBLKS: Field = LONGEST.then(4);
const UUID: Field = BTREEBLKS.then(16);
const RMAP_BLOCKS: Field = UUID.then(4);
const REFCOUNT_BLOCKS: Field = RMAP_BLOCKS.then(4);
const REFCOUNT_ROOT: Field = REFCOUNT_BLOCKS.then(4);
const REFCOUNT_LEVEL: Field = REFCOUNT_ROOT.then(4);
const SPARE64: Field = REFCOUNT_LEVEL.then(14 * 8);
const LSN: Field = SPARE64.then(8);
const CRC: Field = LSN.then(4);

/// The sector of a group.
pub(super) fn encode(geometry: &Geometry, uuid: Uuid, group: u64, space: &Space, sector: &mut [u8]) {
    MAGICNUM.put_bytes(sector, MAGIC);
    VERSIONNUM.put(sector, VERSION);
    SEQNO.put(sector, group);
    LENGTH.put(sector, geometry.length_of(group));
    BNO_ROOT.put(sector, btree::root_of(geometry, Tree::FreeByBlock));
    CNT_ROOT.put(sector, btree::root_of(geometry, Tree::FreeByLength));
    BNO_LEVEL.put(sector, btree::LEVELS);
    CNT_LEVEL.put(sector, btree::LEVELS);
    FLFIRST.put(sector, agfl::FIRST_SLOT);
    FLLAST.put(sector, agfl::FIRST_SLOT + FREE_LIST - 1);
    FLCOUNT.put(sector, FREE_LIST);
    FREEBLKS.put(sector, space.blocks());
    LONGEST.put(sector, space.longest());
    UUID.put_bytes(sector, uuid.as_bytes());
    REFCOUNT_BLOCKS.put(sector, 1_u32);
    REFCOUNT_ROOT.put(sector, btree::root_of(geometry, Tree::Shared));
    REFCOUNT_LEVEL.put(sector, btree::LEVELS);
    seal(sector, CRC);
}
