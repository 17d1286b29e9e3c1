//! Inodes, `xfs_dinode` of version 3: the chunk of 64 that a filesystem begins with. Three are used:
//! the root folder, and the bitmap and the summary of a realtime section that does not exist.
//!
//! Deliberately absent: reading, and folders with anything in them.

use uuid::Uuid;

use crate::xfs::bytes::{Field, seal};
use crate::xfs::format::Time;
use crate::xfs::geometry::Geometry;

/// Inodes in a chunk.
pub(super) const IN_CHUNK: u32 = 64;
/// Inodes that a new filesystem uses.
pub(super) const USED: u32 = 3;
/// Bytes of an inode, `sb_inodesize`.
pub(super) const BYTES: usize = 512;

const MAGIC: &[u8; 2] = b"IN";
const VERSION_3: u32 = 3;
const FOLDER: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
/// `XFS_DINODE_FMT_LOCAL`: the content lies in the inode.
const FORMAT_LOCAL: u32 = 1;
/// `XFS_DINODE_FMT_EXTENTS`: the inode lists extents.
const FORMAT_EXTENTS: u32 = 2;
/// `XFS_DIFLAG_NEWRTBM`: the bitmap's inode is of the newer kind.
const FLAG_NEW_BITMAP: u32 = 1 << 2;
/// `XFS_DIFLAG2_BIGTIME`: times are counted in nanoseconds.
const FLAG2_BIG_TIME: u32 = 1 << 3;
/// What mkfs.xfs counts by the time the inode is complete.
const CHANGES: u32 = 2;

const MAGICNUM: Field = Field::first(2);
const MODE: Field = MAGICNUM.then(2);
const VERSION: Field = MODE.then(1);
const FORMAT: Field = VERSION.then(1);
const ONLINK: Field = FORMAT.then(2);
const UID: Field = ONLINK.then(4);
const GID: Field = UID.then(4);
const NLINK: Field = GID.then(4);
const PROJID_LO: Field = NLINK.then(2);
const PROJID_HI: Field = PROJID_LO.then(2);
/// `di_v3_pad`; wide counts of extents with nrext64.
const V3_PAD: Field = PROJID_HI.then(8);
const ATIME: Field = V3_PAD.then(8);
const MTIME: Field = ATIME.then(8);
const CTIME: Field = MTIME.then(8);
const SIZE: Field = CTIME.then(8);
const NBLOCKS: Field = SIZE.then(8);
const EXTSIZE: Field = NBLOCKS.then(4);
const NEXTENTS: Field = EXTSIZE.then(4);
const ANEXTENTS: Field = NEXTENTS.then(2);
const FORKOFF: Field = ANEXTENTS.then(1);
const AFORMAT: Field = FORKOFF.then(1);
const DMEVMASK: Field = AFORMAT.then(4);
const DMSTATE: Field = DMEVMASK.then(2);
const FLAGS: Field = DMSTATE.then(2);
const GEN: Field = FLAGS.then(4);
const NEXT_UNLINKED: Field = GEN.then(4);
const CRC: Field = NEXT_UNLINKED.then(4);
const CHANGECOUNT: Field = CRC.then(8);
const LSN: Field = CHANGECOUNT.then(8);
const FLAGS2: Field = LSN.then(8);
const COWEXTSIZE: Field = FLAGS2.then(4);
const PAD2: Field = COWEXTSIZE.then(12);
const CRTIME: Field = PAD2.then(8);
const INO: Field = CRTIME.then(8);
const UUID: Field = INO.then(16);
/// `xfs_dir2_sf_hdr`: a folder that lies in its inode begins with two counts of entries, by the width
/// of their inode numbers, and the inode of the folder above. The root lies in itself.
const SF_COUNT: Field = UUID.then(1);
const SF_I8COUNT: Field = SF_COUNT.then(1);
const SF_PARENT: Field = SF_I8COUNT.then(4);

/// The chunk.
pub(super) fn chunk(geometry: &Geometry, uuid: Uuid, time: Time) -> Vec<u8> {
    let mut inodes = Vec::new();
    for number in 0..IN_CHUNK {
        let mut inode = [0; BYTES];
        MAGICNUM.put_bytes(&mut inode, MAGIC);
        VERSION.put(&mut inode, VERSION_3);
        NEXT_UNLINKED.put_none(&mut inode);
        INO.put(&mut inode, geometry.root_inode() + u64::from(number));
        UUID.put_bytes(&mut inode, uuid.as_bytes());
        match number {
            0 => root(geometry, &mut inode),
            1 => realtime(FLAG_NEW_BITMAP, &mut inode),
            2 => realtime(0, &mut inode),
            _ => {}
        }
        if number < USED {
            used(time, &mut inode);
        }
        seal(&mut inode, CRC);
        inodes.extend_from_slice(&inode);
    }
    inodes
}

/// What all inodes in use have.
fn used(time: Time, inode: &mut [u8]) {
    ATIME.put(inode, Time::EPOCH.on_disk());
    for field in [MTIME, CTIME, CRTIME] {
        field.put(inode, time.on_disk());
    }
    AFORMAT.put(inode, FORMAT_EXTENTS);
    CHANGECOUNT.put(inode, CHANGES);
    FLAGS2.put(inode, FLAG2_BIG_TIME);
}

/// The root folder, which is empty.
fn root(geometry: &Geometry, inode: &mut [u8]) {
    let length = SF_PARENT.end() - SF_COUNT.at();
    MODE.put(inode, FOLDER);
    FORMAT.put(inode, FORMAT_LOCAL);
    NLINK.put(inode, 2_u32);
    SIZE.put(inode, u64::try_from(length).expect("a few bytes"));
    SF_PARENT.put(inode, geometry.root_inode());
}

/// An inode of the realtime section.
fn realtime(flags: u32, inode: &mut [u8]) {
    MODE.put(inode, REGULAR);
    FORMAT.put(inode, FORMAT_EXTENTS);
    NLINK.put(inode, 1_u32);
    FLAGS.put(inode, flags);
}
