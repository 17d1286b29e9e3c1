//! Sparse files that filesystems are made in, and what is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use stratisd::xfs::{Format, Identity, Span, Time, Write};
use tempfile::TempDir;
use uuid::Uuid;

/// What all images are called by. Any numbers will do.
pub(crate) const UUID: Uuid = Uuid::from_u128(0x5ee0_1c2d_0b5a_4a51_9f0e_7d5c_33aa_2101);
pub(crate) const IDENTITY: Identity = Identity { uuid: UUID, time: Time { seconds: 1_763_700_000, nanoseconds: 7 } };

/// Files on a disk file system may have at most this many bytes (ext4); larger ones lie in memory.
const FILE_BYTES_MAX: u64 = 15 << 40;
/// Bytes that are looked at together.
const PIECE: u64 = 4096;

/// A folder for images of this size.
pub(crate) fn folder(size: u64) -> TempDir {
    let made = if size > FILE_BYTES_MAX { memory() } else { TempDir::new_in(env!("CARGO_TARGET_TMPDIR")) };
    made.expect("a folder for images can be made")
}

/// A folder in memory, where durability costs nothing.
pub(crate) fn memory() -> std::io::Result<TempDir> {
    TempDir::new_in("/dev/shm")
}

/// Makes a sparse file.
pub(crate) fn blank(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    let file = File::create(&path).expect("an image can be made");
    file.set_len(size).expect("a sparse image can be as large as asked");
    path
}

/// Opens an image.
pub(crate) fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("the image is there")
}

/// Carries out writes.
pub(crate) fn write(path: &Path, writes: &[Write]) {
    let file = open(path);
    for write in writes {
        file.write_all_at(&write.bytes, write.at).expect("an image can be written");
    }
}

/// Carries out all of a format.
pub(crate) fn carry_out(path: &Path, format: &Format) {
    write(path, &format.writes().collect::<Vec<_>>());
    for zero in &format.zeroes {
        let file = open(path);
        let zeroes = vec![0; 1 << 20];
        for at in (zero.at..zero.end()).step_by(zeroes.len()) {
            let rest = usize::try_from(zero.end() - at).map_or(zeroes.len(), |rest| rest.min(zeroes.len()));
            file.write_all_at(&zeroes[..rest], at).expect("an image can be written");
        }
    }
}

/// Reads places.
pub(crate) fn read(path: &Path, places: &[Span]) -> Vec<Vec<u8>> {
    let file = open(path);
    let one = |place: &Span| {
        let mut bytes = vec![0; usize::try_from(place.length).expect("reads are short")];
        file.read_exact_at(&mut bytes, place.at).expect("an image can be read");
        bytes
    };
    places.iter().map(one).collect()
}

/// All pieces of an image that are not zero, by their offset. The times of the root inodes and what
/// follows from them are masked.
pub(crate) fn content(path: &Path, root_inodes: Span) -> BTreeMap<u64, Vec<u8>> {
    let file = open(path);
    let size = file.metadata().expect("the image is there").len();
    let mut found = BTreeMap::new();
    let mut at = 0;
    while let Some((from, to)) = next_data(&file, at) {
        let mut piece_at = from / PIECE * PIECE;
        while piece_at < to {
            let mut piece = vec![0; usize::try_from(PIECE.min(size - piece_at)).expect("a piece is short")];
            file.read_exact_at(&mut piece, piece_at).expect("an image can be read");
            if piece_at == root_inodes.at {
                mask_times(&mut piece);
            }
            if piece.iter().any(|byte| *byte != 0) {
                found.insert(piece_at, piece);
            }
            piece_at += PIECE;
        }
        at = to;
    }
    found
}

/// Access, modification, change; creation; the checksum over them.
fn mask_times(inodes: &mut [u8]) {
    for inode in inodes.chunks_exact_mut(512).take(3) {
        for field in [32..56, 144..152, 100..104] {
            inode[field].fill(0);
        }
    }
}

/// Where the file next has data, and where that ends.
fn next_data(file: &File, at: u64) -> Option<(u64, u64)> {
    let seek = |at: u64, whence| lseek(file, i64::try_from(at).expect("an offset"), whence);
    match seek(at, Whence::SeekData) {
        Ok(from) => {
            let from = u64::try_from(from).expect("an offset is not negative");
            let to = seek(from, Whence::SeekHole).expect("there is a hole behind all data");
            Some((from, u64::try_from(to).expect("an offset is not negative")))
        }
        Err(Errno::ENXIO) => None,
        Err(error) => panic!("cannot look for data: {error}"),
    }
}
