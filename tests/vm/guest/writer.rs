//! Who writes to a volume as fast as it takes that, a MiB at a time and past the cache.
//!
//! Invariant: a write that fails is a panic. Deliberately absent: what is written.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::MIB;

/// To what memory is aligned that goes past the cache.
const ALIGNMENT: usize = 4_096;

/// Writes MiB after MiB from the beginning on; goes on as long as `after` says so, which is told how many there were
/// before and how long this one took.
#[track_caller]
pub(crate) fn write_each(path: &Path, mut after: impl FnMut(u64, Duration) -> bool) {
    let mut volume = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).expect("a volume");
    let length = usize::try_from(MIB).expect("a MiB fits");
    let buffer = vec![7; length + ALIGNMENT];
    let piece = &buffer[buffer.as_ptr().align_offset(ALIGNMENT)..][..length];
    for at in 0.. {
        let began = Instant::now();
        volume.write_all(piece).unwrap_or_else(|error| panic!("{} at {at} MiB: {error}", path.display()));
        if !after(at, began.elapsed()) {
            break;
        }
    }
}
