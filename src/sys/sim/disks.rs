//! Which disks a simulated machine has, under which paths, and who lives on them.
//!
//! Invariant: a disk's number is made from its path, so that machines on several cores that make up
//! the same disk agree about it.
//!
//! Deliberately absent: folders, and anything at a path that is not a disk.

use super::Machine;
use super::medium::{Medium, UNIT_BYTES};
use super::state::State;
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath, Occupant};
use crate::units::{SECTOR_BYTES, Sectors};

/// First half of every disk's number here; any value that a real file system is unlikely to have.
const NUMBER_SIM: u64 = 0x73_69_6d;
/// Where a Stratis signature block may stand.
const SIGNATURE_SECTORS: [Sectors; 2] = [Sectors(1), Sectors(9)];
/// What it carries behind its checksum.
const SIGNATURE_MAGIC: &[u8; 16] = b"!Stra0tis\x86\xff\x02^\x41rh";
/// Symbolic links that are followed before giving up, as the kernel does.
const LINKS_MAX: usize = 40;

/// One disk.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) path: DevicePath,
    pub(super) number: DeviceNumber,
    pub(super) size: Sectors,
    pub(super) blocks: BlockSizes,
    pub(super) hardware: Option<String>,
    /// Somebody else who lives here, in words.
    pub(super) resident: Option<String>,
    /// With which error reads fail now.
    pub(super) reads_fail: Option<i32>,
    /// With which error writes and flushes fail now.
    pub(super) writes_fail: Option<i32>,
    pub(super) medium: Medium,
}

impl Machine {
    /// Somebody has copied a disk to another one, which he plugs in.
    ///
    /// # Panics
    /// When there is no such disk, or the new path is not absolute.
    pub fn copy_disk(&self, path: &str, copy: &str) {
        let path_of_copy = DevicePath::try_from(copy).expect("an absolute path");
        let mut state = self.state();
        let (medium, size, blocks) = {
            let disk = state.disk(path);
            (disk.medium.clone(), disk.size, disk.blocks)
        };
        let number = state.add_disk(&path_of_copy, size, blocks);
        state.disk_mut(copy).medium = medium;
        state.touched(number);
    }

    /// Takes a disk out for good.
    ///
    /// # Panics
    /// When there is no such disk.
    pub fn remove_disk(&self, path: &str) {
        self.unplug(path);
        self.state().pulled.pop();
    }
}

impl State {
    /// Adds an empty disk.
    pub(super) fn add_disk(&mut self, path: &DevicePath, size: Sectors, blocks: BlockSizes) -> DeviceNumber {
        let mut number = DeviceNumber(NUMBER_SIM, hash(path));
        while self.disks.contains_key(&number) {
            number.1 = number.1.wrapping_add(1);
        }
        self.disks.insert(number, Disk::new(path.clone(), number, size, blocks));
        number
    }

    /// The disk that a path leads to.
    pub(super) fn find_disk(&self, path: &DevicePath) -> Option<&Disk> {
        let mut path = path;
        for _ in 0..LINKS_MAX {
            match self.links.get(path) {
                Some(target) => path = target,
                None => return self.disks.values().find(|disk| disk.path == *path),
            }
        }
        None
    }

    /// The disk that a path leads to, to change it.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    pub(super) fn disk_mut(&mut self, path: &str) -> &mut Disk {
        let number = self.disk(path).number;
        self.disks.get_mut(&number).expect("just found")
    }

    /// The disk that a path leads to.
    ///
    /// # Panics
    /// When there is none: the test is wrong.
    pub(super) fn disk(&self, path: &str) -> &Disk {
        let path = DevicePath::try_from(path).expect("an absolute path");
        self.find_disk(&path).expect("a disk of this machine")
    }
}

/// The errno for a range that a device of this size does not take, if it does not.
pub(super) fn refuse(size: Sectors, blocks: BlockSizes, start: Sectors, count: Sectors) -> Option<i32> {
    let block = u64::from(blocks.logical) / SECTOR_BYTES;
    if !start.0.is_multiple_of(block) || !count.0.is_multiple_of(block) {
        return Some(libc::EINVAL);
    }
    let inside = start.checked_add(count).is_some_and(|end| end <= size);
    (!inside).then_some(libc::EIO)
}

impl Disk {
    /// An empty disk.
    pub(super) fn new(path: DevicePath, number: DeviceNumber, size: Sectors, blocks: BlockSizes) -> Self {
        Self {
            path,
            number,
            size,
            blocks,
            hardware: None,
            resident: None,
            reads_fail: None,
            writes_fail: None,
            medium: Medium::default(),
        }
    }

    /// The errno for a range that the disk does not take, if it does not.
    pub(super) fn refuse(&self, start: Sectors, count: Sectors) -> Option<i32> {
        refuse(self.size, self.blocks, start, count)
    }

    /// What an examination finds.
    pub(super) fn candidate(&self) -> Candidate {
        let occupant = match &self.resident {
            Some(words) => Occupant::Other(words.clone()),
            None if self.has_signature() => Occupant::Stratis,
            None => Occupant::Nobody,
        };
        Candidate {
            path: self.path.clone(),
            number: self.number,
            size: self.size,
            blocks: self.blocks,
            occupant,
            hardware: self.hardware.clone(),
        }
    }

    /// Whether libblkid would say `stratis`: one of the two signature blocks is whole.
    pub(super) fn has_signature(&self) -> bool {
        SIGNATURE_SECTORS.into_iter().filter(|at| *at < self.size).any(|at| {
            let block = self.medium.read(at, Sectors(1));
            debug_assert_eq!(block.len(), UNIT_BYTES, "one sector was asked for");
            block[4..20] == *SIGNATURE_MAGIC && block[..4] == crc32c::crc32c(&block[4..]).to_le_bytes()
        })
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv): the same on every core and in every run.
fn hash(path: &DevicePath) -> u64 {
    path.to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::WriteData;

    #[test]
    fn only_whole_blocks_inside_the_disk_are_taken() {
        let path = DevicePath::try_from("/disk").expect("absolute");
        let blocks = BlockSizes { logical: 4096, physical: 4096 };
        let disk = Disk::new(path, DeviceNumber(0, 0), Sectors(1 << 35), blocks);
        assert_eq!(disk.refuse(Sectors(8), Sectors(8)), None);
        assert_eq!(disk.refuse(Sectors(8), Sectors(1)), Some(libc::EINVAL));
        assert_eq!(disk.refuse(Sectors(1 << 35), Sectors(8)), Some(libc::EIO));
    }

    #[test]
    fn one_whole_signature_block_makes_a_stratis_device() {
        let path = DevicePath::try_from("/disk").expect("absolute");
        let mut disk = Disk::new(path, DeviceNumber(0, 0), Sectors(64), BlockSizes { logical: 512, physical: 512 });
        assert!(!disk.has_signature());
        let mut block = vec![0; UNIT_BYTES];
        block[4..20].copy_from_slice(&[
            0x21, 0x53, 0x74, 0x72, 0x61, 0x30, 0x74, 0x69, 0x73, 0x86, 0xff, 0x02, 0x5e, 0x41, 0x72, 0x68,
        ]);
        disk.medium.submit(1, Sectors(9), &WriteData::Bytes(block.clone()), || true);
        assert!(!disk.has_signature(), "the checksum is wrong");
        let checksum = crc32c::crc32c(&block[4..]).to_le_bytes();
        block[..4].copy_from_slice(&checksum);
        disk.medium.submit(2, Sectors(9), &WriteData::Bytes(block), || true);
        assert_eq!(disk.candidate().occupant, Occupant::Stratis);
    }
}
