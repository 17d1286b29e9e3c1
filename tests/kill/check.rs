//! What must be true after a kill: the bus, the records and the model tell one story.
//!
//! Order: pools as they were found, then all stopped ones are started (so that every intent is seen
//! through), then filesystems. Deliberately absent: what is below the records (see `volumes.rs`, and the
//! scenarios on a real kernel).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::model::{Operation, Seen, SeenPool};
use crate::support::client::Client;
use crate::worker::{FILESYSTEM_BYTES, Report, Worker};

/// Compares pools, devices and filesystems with the models, takes what was in doubt into them, and starts
/// every pool. What there is then, and the disks of pools that did not come into being or are gone: they must be
/// as good as new.
pub(crate) fn objects(
    client: &Client,
    workers: &mut [Worker],
    reports: Vec<Report>,
    context: &str,
) -> (Seen, Vec<Vec<String>>) {
    let doubts: Vec<_> = reports.into_iter().map(|report| report.in_flight).collect();
    let freed = pools(client, workers, &doubts, context);
    let seen = start_all(client, workers, context);
    filesystems(&seen, workers, &doubts, context);
    (seen, freed)
}

/// Stops a pool here and there, so that the next round finds something to start.
pub(crate) fn stop_some(client: &Client, workers: &mut [Worker], random: &mut fastrand::Rng, context: &str) {
    for (name, pool) in workers.iter_mut().flat_map(|worker| &mut worker.model.pools) {
        if random.u32(0..4) == 0 {
            let answer = client.stop_pool(name, "name");
            assert_eq!((answer.code, answer.value.0), (0, true), "{name} stops: {}; {context}", answer.text);
            pool.running = false;
        }
    }
}

/// Pools run or are stopped as the model says; those in doubt either way.
fn pools(client: &Client, workers: &mut [Worker], doubts: &[Option<Operation>], context: &str) -> Vec<Vec<String>> {
    let seen = Seen::new(&client.objects());
    let stopped: BTreeMap<String, String> = client
        .stopped_pools(9)
        .into_iter()
        .map(|(uuid, entry)| {
            let name =
                entry.get("name").unwrap_or_else(|| panic!("stopped pool {uuid} has a name: {entry:?}; {context}"));
            (name.text().to_owned(), uuid)
        })
        .collect();
    let (mut expected, mut freed) = (BTreeSet::new(), Vec::new());
    for (worker, doubt) in workers.iter_mut().zip(doubts) {
        freed.extend(settle_pools(worker, doubt.as_ref(), (&seen, &stopped), context));
        expected.extend(worker.model.pools.keys().cloned());
        for (name, pool) in &worker.model.pools {
            let (runs, stops) = (seen.pools.contains_key(name), stopped.contains_key(name));
            assert_eq!((runs, stops), (pool.running, !pool.running), "pool {name} (running, stopped); {context}");
            if let (Some(known), Some(found)) = (&pool.uuid, stopped.get(name)) {
                assert_eq!(known, found, "stopped pool {name} has kept its UUID; {context}");
            }
        }
    }
    let found: BTreeSet<_> = seen.pools.into_keys().chain(stopped.into_keys()).collect();
    let strangers = found.difference(&expected).collect::<Vec<_>>();
    assert!(strangers.is_empty(), "pools that nobody made: {strangers:?}; {context}");
    freed
}

/// What the operation in doubt did to the worker's pools; the disks that are free by it.
fn settle_pools(
    worker: &mut Worker,
    doubt: Option<&Operation>,
    (seen, stopped): (&Seen, &BTreeMap<String, String>),
    context: &str,
) -> Option<Vec<String>> {
    match doubt {
        Some(Operation::CreatePool { name, disks }) => {
            assert!(!stopped.contains_key(name), "a pool that was being created is not half there: {name}; {context}");
            if seen.pools.contains_key(name) {
                worker.model.pool_created(name, disks);
            } else {
                return Some(disks.clone());
            }
        }
        Some(Operation::DestroyPool { pool }) => {
            if !seen.pools.contains_key(pool) {
                assert!(!stopped.contains_key(pool), "a pool that was being destroyed is not half there; {context}");
                let disks = worker.model.pool(pool).disks.clone();
                worker.model.pool_destroyed(pool);
                return Some(disks);
            }
        }
        Some(Operation::StopPool { pool } | Operation::StartPool { pool }) => {
            worker.model.pool(pool).running = seen.pools.contains_key(pool);
        }
        Some(
            Operation::CreateFilesystem { .. }
            | Operation::DestroyFilesystems { .. }
            | Operation::SetLimit { .. }
            | Operation::SetTag { .. },
        )
        | None => {}
    }
    None
}

/// That disks of a pool that does not exist can be used at once.
pub(crate) fn reusable(client: &Client, disks: &[String], context: &str) {
    let answer = client.create_pool("reuse", disks);
    assert_eq!((answer.code, answer.value.0), (0, true), "{disks:?} are free: {}; {context}", answer.text);
    let pool = answer.value.1.0;
    assert!(client.destroy_pool(&pool).value.0, "{context}");
}

/// Starts what is stopped, and compares pools and their devices.
fn start_all(client: &Client, workers: &mut [Worker], context: &str) -> Seen {
    for worker in &mut *workers {
        for (name, pool) in worker.model.pools.iter_mut().filter(|(_, pool)| !pool.running) {
            let answer = client.start_pool(name, "name");
            assert_eq!((answer.code, answer.value.0), (0, true), "{name} starts: {}; {context}", answer.text);
            pool.running = true;
        }
    }
    let seen = Seen::new(&client.objects());
    for worker in workers {
        worker.model.learn(&seen);
        for (name, pool) in &worker.model.pools {
            let found = &seen.pools[name];
            assert_eq!(found.availability, "fully_operational", "{name}; {context}");
            let devices: BTreeMap<_, _> =
                found.devices.iter().map(|(disk, device)| (disk.clone(), device.uuid.clone())).collect();
            assert_eq!(devices, pool.devices, "{name} has kept its devices; {context}");
            assert!(
                pool.disks.iter().eq(pool.devices.keys()) || sorted(&pool.disks).iter().eq(devices.keys()),
                "{context}"
            );
        }
    }
    seen
}

fn sorted(texts: &[String]) -> Vec<String> {
    let mut texts = texts.to_vec();
    texts.sort();
    texts
}

/// Filesystems, limits and tags are as the model says; those in doubt before or after.
fn filesystems(seen: &Seen, workers: &mut [Worker], doubts: &[Option<Operation>], context: &str) {
    let mut expected = BTreeSet::new();
    for (worker, doubt) in workers.iter_mut().zip(doubts) {
        if let Some(doubt) = doubt {
            settle_filesystems(seen, worker, doubt, context);
        }
        worker.model.learn(seen);
        for (name, filesystem) in &worker.model.filesystems {
            let found = seen.filesystems.get(name);
            let found = found.unwrap_or_else(|| panic!("filesystem {name} of {} is lost; {context}", filesystem.pool));
            assert_eq!(found.pool, filesystem.pool, "{name}; {context}");
            assert_eq!(found.size, FILESYSTEM_BYTES.to_string(), "{name}; {context}");
            assert_eq!(found.limit, filesystem.limit, "limit of {name}; {context}");
            expected.insert(name.clone());
        }
        for (name, pool) in &worker.model.pools {
            let tag = &seen.pools[name].devices[&pool.disks[0]].tag;
            assert_eq!(tag, &pool.tag, "tag on the first device of {name}; {context}");
        }
    }
    let found: BTreeSet<_> = seen.filesystems.keys().cloned().collect();
    assert_eq!(found, expected, "filesystems that nobody made; {context}");
}

/// What the operation in doubt did to filesystems and tags: nothing, or all it should.
fn settle_filesystems(seen: &Seen, worker: &mut Worker, doubt: &Operation, context: &str) {
    match doubt {
        Operation::CreateFilesystem { pool, name, limit } => {
            if seen.filesystems.contains_key(name) {
                worker.model.filesystem_created(name, pool, limit.as_deref());
            }
        }
        Operation::DestroyFilesystems { filesystems } => {
            // Each one by itself is there or not.
            worker
                .model
                .filesystems
                .retain(|name, _| !filesystems.contains(name) || seen.filesystems.contains_key(name));
        }
        Operation::SetLimit { filesystem, limit } => {
            let found = seen.filesystems.get(filesystem).unwrap_or_else(|| panic!("{filesystem} is lost; {context}"));
            if found.limit == *limit {
                worker.model.filesystem(filesystem).limit.clone_from(limit);
            }
        }
        Operation::SetTag { pool, tag } => {
            let known = worker.model.pool(pool);
            if seen.pools[pool].devices[&known.disks[0]].tag == *tag {
                known.tag.clone_from(tag);
            }
        }
        Operation::CreatePool { .. }
        | Operation::DestroyPool { .. }
        | Operation::StopPool { .. }
        | Operation::StartPool { .. } => {}
    }
}

/// Records in a pool's folder and its objects are the same filesystems; the thin ids that the records name.
pub(crate) fn records(folder: &Path, seen: &Seen, pool: &SeenPool, context: &str) -> BTreeSet<String> {
    let mut volumes = BTreeSet::new();
    let mut recorded = BTreeSet::new();
    for file in list(folder) {
        let text = fs::read_to_string(folder.join(&file)).expect("a record can be read");
        let record: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}: {text:?}; {context}"));
        let uuid = record["uuid"].as_str().expect("a record has a UUID").replace('-', "");
        assert_eq!(file, format!("{uuid}.json"), "{context}");
        let name = record["name"].as_str().expect("a record has a name");
        let found = seen.filesystems.get(name).unwrap_or_else(|| panic!("record {name} has no object; {context}"));
        assert_eq!(found.uuid, uuid, "{name}; {context}");
        assert_eq!(record["size"].as_u64(), Some(FILESYSTEM_BYTES / 512), "{name}; {context}");
        let thin_id = record["thin_id"].as_u64().expect("a record has a thin id");
        assert!(volumes.insert(thin_id.to_string()), "thin id {thin_id} is used once; {context}");
        recorded.insert(uuid);
    }
    let of_pool = seen.filesystems.values().filter(|one| seen.pools[&one.pool].uuid == pool.uuid);
    assert_eq!(recorded, of_pool.map(|one| one.uuid.clone()).collect(), "records of pool {}; {context}", pool.uuid);
    volumes
}

/// Names in a folder; none if there is no such folder.
pub(crate) fn list(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect()
}
