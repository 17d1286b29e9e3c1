//! Filesystems that are larger than their records say.
//!
//! This daemon records a size before anything has it. Another one, which grows first and records afterwards, may be
//! cut off in between; then the record is brought to what is there, before the volume is made too short.
//!
//! Invariant: a record only ever comes to say more. What cannot be read is left as it is.
//!
//! Deliberately absent: an XFS that is smaller than its volume. It follows when it is mounted and needs it.

use std::collections::BTreeMap;

use cores::side::Buffer;

use crate::engine::stack as tables;
use crate::error::Fault;
use crate::model::dm::Dm;
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, PoolUuid};
use crate::shard::ops::format::sectors;
use crate::shard::ops::records;
use crate::sys::Sys;
use crate::units::Sectors;
use crate::xfs;

/// A volume was active and could not be adopted: if that is because it is longer than recorded, it now is recorded.
///
/// # Errors
/// It is another volume, or cannot be adopted all the same.
pub async fn active<S: Sys>(sys: &S, pool: PoolUuid, record: &mut FilesystemRecord, why: Fault) -> Result<(), Fault> {
    let device = Dm::Thin(pool, record.uuid);
    match sys.thin_volume(device).await {
        Ok((id, length)) if id == record.thin_id && length > record.size => enlarge(sys, pool, record, length).await,
        Ok(_) | Err(_) => Err(why),
    }
}

/// What of its volume each filesystem lies on, if it says so on disk. One that was mounted may have grown since it
/// wrote that.
pub async fn sizes<S: Sys>(sys: &S, pool: PoolUuid, filesystems: &[FsUuid]) -> BTreeMap<FsUuid, Sectors> {
    let devices: Vec<Dm> = filesystems.iter().map(|uuid| Dm::Thin(pool, *uuid)).collect();
    // What is read lies at the beginning.
    let heads = sys.read_first(&devices, sectors(xfs::FIRST_READ.at + xfs::FIRST_READ.length)).await;
    // What is no XFS is the user's business, and a volume that cannot be read shows that soon enough.
    let size = |head: Result<Buffer, Fault>| head.ok().and_then(|bytes| xfs::size(&bytes)).map(sectors);
    filesystems.iter().zip(heads).filter_map(|(uuid, head)| Some((*uuid, size(head)?))).collect()
}

/// A volume was brought up, and the XFS on it lies on so much: if that is more, the volume gets as long.
pub async fn started<S: Sys>(
    sys: &S,
    pool: PoolUuid,
    record: &mut FilesystemRecord,
    size: Option<Sectors>,
) -> Result<(), Fault> {
    match size {
        Some(size) if size > record.size => enlarge(sys, pool, record, size).await,
        Some(_) | None => Ok(()),
    }
}

async fn enlarge<S: Sys>(sys: &S, pool: PoolUuid, record: &mut FilesystemRecord, size: Sectors) -> Result<(), Fault> {
    let (uuid, recorded) = (record.uuid, record.size);
    log::warn!("a filesystem is larger than recorded (pool={pool} filesystem={uuid} size={size} recorded={recorded})");
    record.size = size;
    records::save(sys, pool, record).await?;
    sys.activate(&[(Dm::Thin(pool, uuid), tables::thin(record))]).await
}
