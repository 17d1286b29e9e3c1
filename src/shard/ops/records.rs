//! Filesystem records in the metadata volume: saving, removing, reading all.
//!
//! Saving: write `<uuid>.temp`, make it durable, rename it over `<uuid>.json`, make the folder
//! durable. The rename being durable is the commit point; before it the old record counts, and a
//! leftover `.temp` is removed at the next setup.

use std::collections::BTreeMap;

use crate::engine::filesystem::adopted;
use crate::engine::revert;
use crate::error::Fault;
use crate::format::filesystem;
use crate::format::intent::Intent;
use crate::limits::{RECORD_BYTES_MAX, RECORDS_MAX};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, PoolUuid};
use crate::shard::ops::headers::wrong;
use crate::sys::{Folder, Sys};
use crate::zoo::{Bug, planted};

const HERE: Folder = Folder::Filesystems;
const TEMPORARY: &str = ".temp";

/// Saves a record. Durable at the end.
pub async fn save<S: Sys>(sys: &S, pool: PoolUuid, record: &FilesystemRecord) -> Result<(), Fault> {
    let temporary = format!("{}{TEMPORARY}", record.uuid.simple());
    sys.mdv_write(pool, HERE, &temporary, &filesystem::encode(record)).await?;
    if !planted(Bug::ContentNotSynced) {
        sys.mdv_sync(pool, HERE, &temporary).await?;
    }
    sys.mdv_rename(pool, HERE, &temporary, &filesystem::file_name(record.uuid)).await?;
    if planted(Bug::FolderNotSynced) {
        return Ok(());
    }
    sys.mdv_sync_folder(pool, HERE).await
}

/// Removes records, all with one sync of the folder. Durable at the end.
pub async fn remove<S: Sys>(sys: &S, pool: PoolUuid, filesystems: &[FsUuid]) -> Result<(), Fault> {
    for uuid in filesystems {
        sys.mdv_remove(pool, HERE, &filesystem::file_name(*uuid)).await?;
    }
    sys.mdv_sync_folder(pool, HERE).await
}

/// All records of a pool.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Records {
    /// Those that could be read.
    pub good: Vec<FilesystemRecord>,
    /// How many could not. While there are any, nobody knows which volumes have no record.
    pub unreadable: usize,
}

/// Reads every record; removes what a cut-off save left behind. A record that cannot be read is
/// logged and left where it is: its filesystem is missing until somebody has looked.
pub async fn read_all<S: Sys>(sys: &S, pool: PoolUuid) -> Result<Records, Fault> {
    let files = sys.mdv_list(pool, HERE).await?;
    if files.len() > RECORDS_MAX {
        return Err(wrong(
            "read the records of",
            format!("pool {pool}"),
            "there are more than a metadata volume holds",
        ));
    }
    let mut records = Records::default();
    let mut leave_out = |file: &str, what: String| {
        records.unreadable += 1;
        log::error!("a filesystem is left out: {what} (pool={pool} file={file})");
    };
    let mut found: Vec<(String, FilesystemRecord)> = Vec::with_capacity(files.len());
    let is_cut_off = |file: &String| file.ends_with(TEMPORARY) && !planted(Bug::TempFileUpsets);
    let (cut_off, files): (Vec<String>, Vec<String>) = files.into_iter().partition(is_cut_off);
    for file in cut_off {
        log::info!("a save that was cut off is removed (pool={pool} file={file})");
        sys.mdv_remove(pool, HERE, &file).await?;
    }
    let contents = sys.mdv_read_each(pool, HERE, &files).await?;
    for (file, bytes) in files.into_iter().zip(contents) {
        match read(&file, &bytes) {
            Ok(record) => found.push((file, record)),
            Err(what) => leave_out(&file, what),
        }
    }
    let reverted = revert::left_over(found.iter().map(|(_, record)| record));
    found.retain(|(_, record)| !reverted.iter().any(|gone| gone.uuid == record.uuid));
    let (mut names, mut volumes) = (BTreeMap::new(), BTreeMap::new());
    let mut good = Vec::with_capacity(found.len());
    for (file, record) in found {
        match names.get(&record.name).or_else(|| volumes.get(&record.thin_id)) {
            Some(other) => leave_out(&file, format!("its name or thin id is that of {other}")),
            None => {
                names.insert(record.name.clone(), record.uuid);
                volumes.insert(record.thin_id, record.uuid);
                good.push(record);
            }
        }
    }
    records.good = good;
    finish_reverts(sys, pool, &reverted, &mut records).await?;
    Ok(records)
}

/// Another daemon has not come to the end of a revert: the snapshot is gone.
async fn finish_reverts<S: Sys>(
    sys: &S,
    pool: PoolUuid,
    reverted: &[Intent],
    records: &mut Records,
) -> Result<(), Fault> {
    if reverted.is_empty() {
        return Ok(());
    }
    log::warn!("{} reverts of another daemon are finished, the old volumes stay (pool={pool})", reverted.len());
    adopt(sys, pool, reverted, records).await?;
    let gone: Vec<FsUuid> = reverted.iter().map(|intent| intent.uuid).collect();
    remove(sys, pool, &gone).await
}

/// Gives the snapshots of what is gone their new origins.
pub async fn adopt<S: Sys>(sys: &S, pool: PoolUuid, gone: &[Intent], records: &mut Records) -> Result<(), Fault> {
    for record in adopted(records.good.iter(), gone) {
        log::info!("the origin of a snapshot is gone (pool={pool} filesystem={})", record.uuid);
        save(sys, pool, &record).await?;
        let before = records.good.iter_mut().find(|before| before.uuid == record.uuid);
        *before.expect("it is made of one of them") = record;
    }
    Ok(())
}

fn read(file: &str, bytes: &[u8]) -> Result<FilesystemRecord, String> {
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(format!("its record has {} bytes, {RECORD_BYTES_MAX} are allowed", bytes.len()));
    }
    let record = filesystem::decode(bytes).map_err(|fault| fault.to_string())?;
    if filesystem::file_name(record.uuid) != file {
        return Err(format!("its record is of {}", record.uuid));
    }
    Ok(record)
}
