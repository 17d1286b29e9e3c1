//! Making an empty filesystem on a device of a pool.
//!
//! Everything goes out at once, then one flush. Nothing here is a commit point: a filesystem counts
//! once somebody records it, and until then its device is taken away whole.
//!
//! Invariants: success means that all of it is durable. A large filesystem is made in pieces, so that
//! neither the core nor its memory is taken up by it.
//!
//! Deliberately absent: what a filesystem looks like, and the record of it.

use cores::rt;
use uuid::Uuid;

use crate::error::Fault;
use crate::limits::{FORMAT_WRITES_AT_ONCE, FORMAT_WRITES_IN_TURN};
use crate::model::dm::Dm;
use crate::sys::{Sys, Target, Write, WriteData};
use crate::units::{SECTOR_BYTES, Sectors};
use crate::xfs::{self, Format, Identity, Log, Shape, Span, Time};

/// Puts an XFS of this shape and UUID on a device. Durable at the end.
pub async fn make<S: Sys>(sys: &S, device: Dm, shape: &Shape, log: Log, uuid: Uuid) -> Result<(), Fault> {
    let made = rt::wall();
    // Seconds since 1970 pass 32 bits in 2106; a time that is too early does no harm.
    let seconds = u32::try_from(made.seconds).unwrap_or(u32::MAX);
    let identity = Identity { uuid, time: Time { seconds, nanoseconds: made.nanoseconds } };
    let format = xfs::format(shape, log, identity).expect("every shape that the engine chooses can be made");
    rt::timed("format", write(sys, Target::Dm(device), &format)).await
}

async fn write<S: Sys>(sys: &S, target: Target, format: &Format) -> Result<(), Fault> {
    let mut batch: Vec<Write> = format.zeroes.iter().map(|span| zeroes(target, *span)).collect();
    for (count, write) in (1..).zip(format.writes()) {
        batch.push(Write { target, start: sectors(write.at), data: WriteData::Bytes(write.bytes) });
        if batch.len() >= FORMAT_WRITES_AT_ONCE {
            put(sys, std::mem::take(&mut batch)).await?;
        } else if count % FORMAT_WRITES_IN_TURN == 0 {
            rt::yield_now().await;
        }
    }
    put(sys, batch).await?;
    sys.flush(vec![target]).await.into_iter().collect()
}

async fn put<S: Sys>(sys: &S, batch: Vec<Write>) -> Result<(), Fault> {
    sys.write(batch).await.into_iter().collect()
}

fn zeroes(target: Target, span: Span) -> Write {
    Write { target, start: sectors(span.at), data: WriteData::Zeroes(sectors(span.length)) }
}

/// Bytes of a device, in sectors.
pub(super) fn sectors(bytes: u64) -> Sectors {
    Sectors(bytes / SECTOR_BYTES)
}
