//! How the simulated kernel knows a filesystem: by reading all of it that is never missing.
//!
//! Every header of every group, every root, the root inodes and the log are looked at: each must be
//! whole by its own checksum, and say that it belongs here. So what `format` writes is held against the
//! description of the format, not against itself.
//!
//! Invariant: what is taken for a filesystem could be mounted, unmounted and mounted again.
//!
//! Deliberately absent: what a filesystem holds. Nobody here uses one.

use uuid::Uuid;

use super::medium::Medium;
use crate::units::{SECTOR_BYTES, Sectors};

const BLOCK_SECTORS: u64 = 8;
/// Where a superblock says that other structures carry another UUID than it does.
const META_UUID: u64 = 1 << 2;
/// Bytes of a filesystem's first log record that are not zero at most, if it is not padded.
const RECORD_BYTES: u64 = 1_024;
/// Magic of the five roots, in their order.
const ROOTS: [&[u8; 4]; 5] = [b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"R3FC"];

/// Something that may hold a filesystem.
pub(super) trait Readable {
    /// Bytes of some sectors; nothing where they cannot be read.
    fn read(&self, start: Sectors, count: Sectors) -> Option<Vec<u8>>;
    /// Whether some sectors hold nothing but zeroes.
    fn is_zero(&self, start: Sectors, count: Sectors) -> bool;
}

impl Readable for Medium {
    fn read(&self, start: Sectors, count: Sectors) -> Option<Vec<u8>> {
        Some(Self::read(self, start, count))
    }

    fn is_zero(&self, start: Sectors, count: Sectors) -> bool {
        Self::is_zero(self, start, count)
    }
}

/// What of a superblock is needed to find the rest.
struct Super {
    uuid: Uuid,
    /// What the other structures carry.
    inner: Uuid,
    sector: usize,
    groups: u64,
    group_blocks: u64,
    log_start: u64,
    log_blocks: u64,
    log_unit: u64,
    group_bits: u64,
    root_inode: u64,
}

/// The UUID of the filesystem that a device carries, if it is whole.
pub(super) fn find(device: &impl Readable) -> Option<Uuid> {
    let first = device.read(Sectors::ZERO, Sectors(BLOCK_SECTORS))?;
    let first = superblock(&first)?;
    let groups_are_whole = (0..first.groups).all(|group| is_group(device, &first, group).is_some());
    let root_block = first.root_inode >> 3;
    let chunk = device.read(Sectors(root_block * BLOCK_SECTORS), Sectors(8 * BLOCK_SECTORS))?;
    let inodes_are_whole = chunk.chunks(512).all(|inode| inode.starts_with(b"IN") && is_sealed(inode, 100));
    (groups_are_whole && inodes_are_whole && is_log(device, &first)?).then_some(first.uuid)
}

/// What of a device the filesystem on it lies on, as it was made.
pub(super) fn size(device: &impl Readable) -> Option<Sectors> {
    let first = device.read(Sectors::ZERO, Sectors(BLOCK_SECTORS))?;
    superblock(&first).map(|_whole| Sectors(number(&first, 8, 8) * BLOCK_SECTORS))
}

/// Reads a superblock that is whole.
fn superblock(bytes: &[u8]) -> Option<Super> {
    let sector = usize::try_from(number(bytes, 102, 2)).ok()?;
    if !bytes.starts_with(b"XFSB") || ![512, 4096].contains(&sector) || !is_sealed(&bytes[..sector], 224) {
        return None;
    }
    let uuid = uuid(bytes, 32);
    let other = number(bytes, 216, 4) & META_UUID != 0;
    Some(Super {
        uuid,
        inner: if other { self::uuid(bytes, 248) } else { uuid },
        sector,
        groups: number(bytes, 88, 4),
        group_blocks: number(bytes, 84, 4),
        log_start: number(bytes, 48, 8),
        log_blocks: number(bytes, 96, 4),
        log_unit: number(bytes, 196, 4),
        group_bits: number(bytes, 124, 1),
        root_inode: number(bytes, 56, 8),
    })
}

/// Something if the headers and roots of a group are whole.
fn is_group(device: &impl Readable, first: &Super, group: u64) -> Option<()> {
    let headers = first.sector * 4;
    let roots = headers.next_multiple_of(4096);
    let sectors = Sectors((roots + ROOTS.len() * 4096) as u64 / SECTOR_BYTES);
    let bytes = device.read(Sectors(group * first.group_blocks * BLOCK_SECTORS), sectors)?;
    let own = superblock(&bytes)?;
    if (own.uuid, own.inner) != (first.uuid, first.inner) {
        return None;
    }
    let structures = [(b"XAGF", 216, 64), (b"XAGI", 312, 296), (b"XAFL", 32, 8)];
    for (at, (magic, checksum, owner)) in (first.sector..).step_by(first.sector).zip(structures) {
        belongs(&bytes[at..at + first.sector], magic, checksum, owner, first.inner)?;
    }
    for (at, magic) in (roots..).step_by(4096).zip(ROOTS) {
        belongs(&bytes[at..at + 4096], magic, 52, 32, first.inner)?;
    }
    Some(())
}

/// Whether the log holds its first record and, behind what that is padded to, nothing.
fn is_log(device: &impl Readable, first: &Super) -> Option<bool> {
    let (group, block) = (first.log_start >> first.group_bits, first.log_start & ((1 << first.group_bits) - 1));
    let start = Sectors((group * first.group_blocks + block) * BLOCK_SECTORS);
    let written = Sectors(first.log_unit.max(RECORD_BYTES) / SECTOR_BYTES);
    let record = device.read(start, written)?;
    let header = number(&record, 0, 4) == 0xfeed_babe && uuid(&record, 304) == first.uuid;
    let stamped = record.chunks(512).skip(1).all(|sector| number(sector, 0, 4) == 1);
    let behind = Sectors(first.log_blocks * BLOCK_SECTORS - written.0);
    Some(header && stamped && device.is_zero(start + written, behind))
}

/// Something if a structure has its magic, checksum and UUID.
fn belongs(bytes: &[u8], magic: &[u8; 4], checksum: usize, owner: usize, of: Uuid) -> Option<()> {
    (bytes.starts_with(magic) && is_sealed(bytes, checksum) && uuid(bytes, owner) == of).then_some(())
}

/// Whether the checksum that stands there is that of the rest.
fn is_sealed(bytes: &[u8], checksum: usize) -> bool {
    let (before, rest) = bytes.split_at(checksum);
    let (own, behind) = rest.split_at(4);
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), behind);
    own == sum.to_le_bytes()
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn uuid(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_slice(&bytes[at..at + 16]).expect("sixteen bytes")
}
