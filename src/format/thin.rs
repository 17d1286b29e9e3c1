//! The superblock of a thin pool's metadata, as far as it is read here: how many data blocks the pool has.
//!
//! The kernel writes it anew whenever a thin pool has got more. Deliberately absent: its checksum. The kernel looks
//! at that before it brings the pool up, and it is asked for nothing that a wrong number would harm: a pool never
//! gets fewer blocks than it says, nor more than are on record.

/// Where it says what it is.
const MAGIC_AT: usize = 32;
const MAGIC: u64 = 27_022_010;
/// Where the space map of the data begins: with the number of blocks.
const DATA_BLOCKS_AT: usize = 64;

/// How many data blocks the thin pool has; nothing if that is no superblock.
pub fn data_blocks(superblock: &[u8]) -> Option<u64> {
    let long = |at: usize| superblock.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    (long(MAGIC_AT) == Some(MAGIC)).then(|| long(DATA_BLOCKS_AT))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel lays it out, for a thin pool of 338 blocks.
    fn superblock() -> Vec<u8> {
        let mut bytes = vec![0; 4_096];
        bytes[32..40].copy_from_slice(&[0xba, 0x52, 0x9c, 0x01, 0, 0, 0, 0]);
        bytes[64..72].copy_from_slice(&[0x52, 0x01, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn the_blocks_are_counted_in_a_superblock_and_nowhere_else() {
        assert_eq!(data_blocks(&superblock()), Some(338));
        assert_eq!(data_blocks(&superblock()[..71]), None);
        assert_eq!(data_blocks(&[0; 4_096]), None);
    }
}
