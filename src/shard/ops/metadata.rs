//! Saying what is recorded of a running pool and of its filesystems, for people who look for a fault.
//!
//! Invariant: nothing is changed. What is said is the record itself, by the encoder that writes it or as it was
//! read back. Deliberately absent: refusing a pool that takes no more changes; that is one to look at.

use std::rc::Rc;

use cores::rt;

use crate::engine::pool::Pool;
use crate::error::{Fault, Refusal};
use crate::format::header::StaticHeader;
use crate::format::mda::{self, WallStamp};
use crate::format::{filesystem, record};
use crate::message::Answer;
use crate::model::device::DeviceNumber;
use crate::model::ids::PoolUuid;
use crate::probe;
use crate::shard::ops::Outcome;
use crate::shard::ops::headers::wrong;
use crate::shard::wait::all;
use crate::shard::{Running, Shard};
use crate::sys::{Sys, patience};

/// The pool's record: as it would be written now, or as it was last written.
pub async fn pool<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, current: bool) -> Outcome {
    let running = shard.running(pool).ok_or(Refusal::NoPool(pool))?;
    let json = if current { record::encode(running.pool.borrow().record()) } else { written(shard, &running).await? };
    Ok(Answer::Text(text(&json)))
}

/// The newest record that its devices hold. While one is being written, that is the one before.
async fn written<S: Sys>(shard: &Shard<S>, running: &Running) -> Result<Vec<u8>, Fault> {
    rt::stage("read metadata");
    let devices: Vec<(DeviceNumber, StaticHeader)> =
        running.pool.borrow().members().iter().map(|member| (member.candidate.number, member.header)).collect();
    // A device that is gone or hangs has nothing to say; the others have.
    let read = |(number, header): &(DeviceNumber, StaticHeader)| {
        let (sys, number, header) = (shard.sys.clone(), *number, *header);
        async move { patience::in_time(probe::regions(&sys, number, &header)).await }
    };
    let mut newest: Option<(WallStamp, Vec<u8>)> = None;
    for regions in all(devices.iter().map(read)).await.into_iter().flatten().flatten() {
        if let Some((_, time, json)) = mda::newest(&regions)
            && newest.as_ref().is_none_or(|(before, _)| *before < time)
        {
            newest = Some((time, json.to_vec()));
        }
    }
    let (_, json) = newest.ok_or_else(|| unread(running.uuid, "no device has a whole one"))?;
    // What is no JSON may not even be a text that the bus takes.
    record::decode(&json).map_err(|_| unread(running.uuid, "the newest one cannot be understood"))?;
    Ok(json)
}

fn unread(pool: PoolUuid, why: &'static str) -> Fault {
    wrong("read the record of", format!("pool {pool}"), why)
}

/// The records of a pool's filesystems by their UUIDs, of all or of the one with this name; nothing, if there is none.
/// A record in memory is the one in the metadata volume: it is changed when that is durable.
pub fn filesystems<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, name: Option<&str>) -> Outcome {
    let running = shard.running(pool).ok_or(Refusal::NoPool(pool))?;
    let records = records(&running.pool.borrow(), name);
    Ok(Answer::Text(format!("{{{}}}", records.join(","))))
}

fn records(pool: &Pool, name: Option<&str>) -> Vec<String> {
    let all = pool.filesystems.iter().map(|found| &found.record);
    let asked = all.filter(|record| name.is_none_or(|name| record.name.as_str() == name));
    asked.map(|record| format!("\"{}\":{}", record.uuid, text(&filesystem::encode(record)))).collect()
}

fn text(json: &[u8]) -> String {
    String::from_utf8_lossy(json).into_owned()
}
