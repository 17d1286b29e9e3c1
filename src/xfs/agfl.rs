//! AGFL, `xfs_agfl`: the blocks that a group keeps in reserve for its own free space trees.
//!
//! Deliberately absent: reading.

use uuid::Uuid;

use crate::xfs::bytes::{Field, seal};
use crate::xfs::geometry::FREE_LIST;
use crate::xfs::space::Space;

const MAGIC: &[u8; 4] = b"XAFL";

const MAGICNUM: Field = Field::first(4);
const SEQNO: Field = MAGICNUM.then(4);
const UUID: Field = SEQNO.then(16);
const LSN: Field = UUID.then(8);
const CRC: Field = LSN.then(4);
/// `agfl_bno[0]`; the slots fill the sector.
const BNO: Field = CRC.then(4);

/// The slot that the first block of the list lies in: a new list begins behind the slot where an
/// empty one ends.
pub(super) const FIRST_SLOT: u64 = 1;

/// The sector of a group.
pub(super) fn encode(uuid: Uuid, group: u64, space: &Space, sector: &mut [u8]) {
    MAGICNUM.put_bytes(sector, MAGIC);
    SEQNO.put(sector, group);
    UUID.put_bytes(sector, uuid.as_bytes());
    sector[BNO.at()..].fill(0xff);
    let mut slot = BNO;
    for _ in 0..FIRST_SLOT {
        slot = slot.then(4);
    }
    for block in 0..FREE_LIST {
        slot.put(sector, space.list + block);
        slot = slot.then(4);
    }
    seal(sector, CRC);
}
