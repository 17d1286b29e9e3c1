//! Giving a filesystem on a thin volume another UUID: what `xfs::NewUuid` wants is read, what it says is
//! written and made durable.
//!
//! A log that is not clean, as that of a filesystem that was mounted when its snapshot was taken, is
//! replayed by the kernel first. The log itself says which it is.
//!
//! Invariant: nothing is written unless all was understood. Deliberately absent: taking back what was
//! half written; the volume is to be thrown away then.

use cores::rt;

use crate::error::{Fault, Why};
use crate::limits::READS_AT_ONCE_MAX;
use crate::model::dm::Dm;
use crate::model::ids::FsUuid;
use crate::shard::ops::format::sectors;
use crate::sys::{Sys, Target, Write, WriteData};
use crate::units::Sectors;
use crate::xfs::{self, FIRST_READ, NewUuid, Span, Step};

/// Gives the filesystem on this device, which nobody has mounted, this UUID. Durable at the end.
pub async fn give<S: Sys>(sys: &S, device: Dm, size: Sectors, uuid: FsUuid) -> Result<(), Fault> {
    rt::stage("uuid");
    match change(sys, device, size, uuid).await {
        Err(Fault { why: Why::Xfs(refused), .. }) if refused.is_for_kernel() => {
            log::info!("a log is replayed: {refused} (device={device})");
            rt::stage("replay log");
            sys.replay_log(device).await?;
            rt::stage("uuid");
            change(sys, device, size, uuid).await
        }
        outcome => outcome,
    }
}

async fn change<S: Sys>(sys: &S, device: Dm, size: Sectors, uuid: FsUuid) -> Result<(), Fault> {
    let refused = |why| Fault::new("change the UUID of the filesystem on", device, Why::Xfs(why));
    let first = read(sys, device, &[FIRST_READ]).await?.concat();
    let mut step = NewUuid::begin(&first, size, uuid.0).map_err(refused)?;
    let writes = loop {
        step = match step {
            Step::Read(change) => {
                let bytes = read(sys, device, change.wanted()).await?;
                change.go_on(&bytes).map_err(refused)?
            }
            Step::Write(writes) => break writes,
        };
    };
    let target = Target::Dm(device);
    let write = |write: xfs::Write| Write { target, start: sectors(write.at), data: WriteData::Bytes(write.bytes) };
    sys.write(writes.into_iter().map(write).collect()).await.into_iter().collect::<Result<(), Fault>>()?;
    sys.flush(vec![target]).await.into_iter().collect()
}

/// Reads the places, many at a time.
async fn read<S: Sys>(sys: &S, device: Dm, places: &[Span]) -> Result<Vec<Vec<u8>>, Fault> {
    let mut bytes = Vec::with_capacity(places.len());
    for part in places.chunks(READS_AT_ONCE_MAX) {
        let part: Vec<_> = part.iter().map(|place| (sectors(place.at), sectors(place.length))).collect();
        let read = sys.read_each(Target::Dm(device), &part).await?;
        bytes.extend(read.iter().map(|read| read.to_vec()));
    }
    Ok(bytes)
}
