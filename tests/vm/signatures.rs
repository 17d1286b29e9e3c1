//! Signatures whose tools are not at hand everywhere: the bytes of an LVM label and of an array's superblock.
//!
//! Deliberately absent: anything that would make them usable; they are there to be recognised.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

fn put(device: &str, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(device).expect("a device of ours");
    file.write_all_at(bytes, at).expect("there is room");
    file.sync_all().expect("it reaches the device");
}

/// The label of a physical volume of LVM, in the second sector.
pub(crate) fn lvm(device: &str) {
    let mut label = [0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8..16].copy_from_slice(&1_u64.to_le_bytes());
    label[20..24].copy_from_slice(&32_u32.to_le_bytes());
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].fill(b'a');
    let sum = crc(&label[20..]);
    label[16..20].copy_from_slice(&sum.to_le_bytes());
    put(device, 512, &label);
}

/// The checksum of a label: CRC-32 with LVM's own start, bits not inverted in the end.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// The superblock of a member of an array, version 1.2: 4 KiB from the start.
pub(crate) fn array(device: &str) {
    let mut block = [0; 512];
    block[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    block[4..8].copy_from_slice(&1_u32.to_le_bytes());
    block[16..32].fill(7);
    block[144..152].copy_from_slice(&8_u64.to_le_bytes());
    let words = block[..256].chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
    let sum: u64 = words.map(u64::from).sum();
    let sum = u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).expect("few words are added");
    block[216..220].copy_from_slice(&sum.to_le_bytes());
    put(device, 4096, &block);
}
