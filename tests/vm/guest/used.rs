//! Disks and pools as others have left them: full of old bytes, and with the thin pool's features that 3.9.2 gives.
//!
//! Invariant: a record that was changed here is one that 3.9.2 could have written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use stratisd::format::header::{self, Decoded, StaticHeader, Which};
use stratisd::format::mda::{self, Geometry, REGIONS, Region};
use stratisd::format::record;
use stratisd::model::dm::ThinFeature;

use super::run;
use crate::support::{MIB, disk};

/// Random bytes all over a disk, so that nothing reads as zeroes by chance; every block of the host's file is there.
pub(crate) fn fill(disk: &str, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut piece = vec![0; usize::try_from(MIB).expect("a MiB fits")];
    let bytes: u64 = run("blockdev", &["--getsize64", disk]).trim().parse().expect("a size is a number");
    let file = open(disk);
    for at in (0..bytes).step_by(piece.len()) {
        random.fill(&mut piece);
        let length = usize::try_from(MIB.min(bytes - at)).expect("a MiB fits");
        file.write_all_at(&piece[..length], at).expect("the disk takes it");
    }
    file.sync_all().expect("it reaches the disk");
    // It carries nothing that could be taken for a signature.
    run("dd", &["if=/dev/zero", &format!("of={disk}"), "bs=1M", "count=2", "conv=fsync"]);
}

/// Makes the record of a stopped pool say what 3.9.2 writes: that new blocks are handed out as they are. No daemon
/// may run.
pub(crate) fn skip_zeroing(disk: &str) {
    let head = disk::head(Path::new(disk), 2 * MIB);
    let geometry = Geometry::of(&header_of(&head));
    let file = open(disk);
    for region in 0..REGIONS {
        let start = usize::try_from(geometry.start(region).offset()).expect("it is within the first MiB");
        let Region::Record { time, json } = mda::decode(&head[start..]) else { continue };
        let mut record = record::decode(&json).expect("the daemon has written it");
        record.set_thin_features(&[ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing]);
        let region = mda::encode(&record::encode(&record), time).expect("it is hardly longer");
        file.write_all_at(&region, start.try_into().expect("it fits")).expect("the disk takes it");
    }
    file.sync_all().expect("it reaches the disk");
}

fn header_of(head: &[u8]) -> StaticHeader {
    let start = usize::try_from(Which::First.block_start().offset()).expect("it is within the first MiB");
    let block = head[start..start + header::BLOCK_BYTES].try_into().expect("a block");
    let Decoded::Good(header) = header::decode(block) else { panic!("the disk is of a pool") };
    header
}

fn open(disk: &str) -> File {
    OpenOptions::new().write(true).open(disk).expect("the disk is there")
}
