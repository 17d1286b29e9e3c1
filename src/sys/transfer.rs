//! What every machine with a side ring needs to move sectors.
//!
//! Invariant: a result says success only when every byte was transferred. Deliberately absent: where
//! the sectors are.

use std::io;
use std::rc::Rc;

use cores::side::{Buffer, Fd, Side};

use crate::error::Why;
use crate::sys::WriteData;
use crate::sys::jobs::why;
use crate::units::{SECTOR_BYTES, Sectors};

/// To what buffers for direct I/O are aligned: no device and no host asks for more than a page.
pub(super) const ALIGNMENT: usize = 4_096;

/// Zeroes are written in pieces of this many bytes where nobody makes them for us.
const ZEROES_BYTES: u64 = 1 << 20;

/// The length of a write.
pub(super) fn length(data: &WriteData) -> Result<Sectors, Why> {
    match data {
        WriteData::Zeroes(count) => Ok(*count),
        WriteData::Bytes(bytes) => {
            let bytes = bytes.len() as u64;
            let whole = bytes.is_multiple_of(SECTOR_BYTES);
            if whole { Ok(Sectors(bytes / SECTOR_BYTES)) } else { Err(Why::Errno(libc::EINVAL)) }
        }
    }
}

/// The first failure of a write is its result.
pub(super) fn note(result: &mut Result<(), Why>, outcome: Result<(), Why>) {
    if result.is_ok() {
        *result = outcome;
    }
}

/// A transfer that moved less than all is no success.
pub(super) fn whole(result: io::Result<usize>, wanted: usize) -> Result<(), Why> {
    match result {
        Ok(done) if done == wanted => Ok(()),
        Ok(done) => Err(Why::Short { done, wanted }),
        Err(error) => Err(why(&error)),
    }
}

/// Writes zeroes from byte `start` up to `end`, piece by piece.
pub(super) async fn zeroes(side: &Rc<Side>, fd: &Fd, start: u64, end: u64) -> Result<(), Why> {
    let mut at = start;
    let mut zeroes = Buffer::aligned(0, ALIGNMENT);
    while at < end {
        let wanted = usize::try_from((end - at).min(ZEROES_BYTES)).expect("at most 1 MiB");
        if zeroes.len() != wanted {
            zeroes = Buffer::aligned(wanted, ALIGNMENT);
        }
        let (result, buffer) = side.write(fd, at, zeroes).await;
        whole(result, wanted)?;
        zeroes = buffer;
        at += wanted as u64;
    }
    Ok(())
}
