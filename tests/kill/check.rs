//! What must be true after a kill: the bus, the records, the volumes and the model tell one story.
//!
//! Order: pools as they were found, then all stopped ones are started (so that every intent is seen
//! through), then filesystems, then the files below the daemon's folder, then the volumes themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::model::{Operation, Seen};
use crate::support::client::Client;
use crate::support::disk::{head, walk};
use crate::support::rig::Rig;
use crate::worker::{FILESYSTEM_BYTES, Report, Worker};

/// Volumes that are examined by `xfs_repair` after each kill; it takes most of the time.
const SAMPLE: usize = 1;

/// Checks everything and takes what was in doubt into the models.
pub(crate) fn everything(
    rig: &Rig,
    workers: &mut [Worker],
    reports: Vec<Report>,
    random: &mut fastrand::Rng,
    context: &str,
) {
    let client = rig.client();
    let doubts: Vec<_> = reports.into_iter().map(|report| report.in_flight).collect();
    pools(&client, workers, &doubts, context);
    let seen = start_all(&client, workers, context);
    filesystems(&seen, workers, &doubts, context);
    folder(rig, &seen, context);
    let mut sample: Vec<_> = seen.filesystems.values().collect();
    random.shuffle(&mut sample);
    for (index, found) in sample.into_iter().enumerate() {
        let volume =
            fs::canonicalize(&found.devnode).unwrap_or_else(|error| panic!("{}: {error}; {context}", found.devnode));
        volume_holds(&volume, &found.uuid, context);
        if index < SAMPLE {
            examine(&volume, &found.uuid, context);
        }
    }
    stop_some(&client, workers, random, context);
}

/// Stops a pool here and there, so that the next round finds something to start.
fn stop_some(client: &Client, workers: &mut [Worker], random: &mut fastrand::Rng, context: &str) {
    for (name, pool) in workers.iter_mut().flat_map(|worker| &mut worker.model.pools) {
        if random.u32(0..4) == 0 {
            let answer = client.stop_pool(name, "name");
            assert_eq!((answer.code, answer.value.0), (0, true), "{name} stops: {}; {context}", answer.text);
            pool.running = false;
        }
    }
}

/// Pools run or are stopped as the model says; those in doubt either way.
fn pools(client: &Client, workers: &mut [Worker], doubts: &[Option<Operation>], context: &str) {
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
    let mut expected = BTreeSet::new();
    for (worker, doubt) in workers.iter_mut().zip(doubts) {
        settle_pools(client, worker, doubt.as_ref(), (&seen, &stopped), context);
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
}

/// What the operation in doubt did to the worker's pools.
fn settle_pools(
    client: &Client,
    worker: &mut Worker,
    doubt: Option<&Operation>,
    (seen, stopped): (&Seen, &BTreeMap<String, String>),
    context: &str,
) {
    match doubt {
        Some(Operation::CreatePool { name, disks }) => {
            assert!(!stopped.contains_key(name), "a pool that was being created is not half there: {name}; {context}");
            if seen.pools.contains_key(name) {
                worker.model.pool_created(name, disks);
            } else {
                reusable(client, disks, context);
            }
        }
        Some(Operation::DestroyPool { pool }) => {
            if !seen.pools.contains_key(pool) {
                assert!(!stopped.contains_key(pool), "a pool that was being destroyed is not half there; {context}");
                let disks = worker.model.pool(pool).disks.clone();
                worker.model.pool_destroyed(pool);
                reusable(client, &disks, context);
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
}

/// That disks of a pool that does not exist can be used at once.
fn reusable(client: &Client, disks: &[String], context: &str) {
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

/// The daemon's folder holds one folder for each pool, in it one volume for each record, and no rest.
fn folder(rig: &Rig, seen: &Seen, context: &str) {
    let files = rig.files_folder();
    let mut links = BTreeSet::new();
    walk(&files, &mut |path| {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        assert!(!name.contains(".temp"), "{} is left over; {context}", path.display());
        let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
        assert!(parent != "intents", "the intent {} is left over; {context}", path.display());
        assert!(parent != "links", "the link {} was never placed; {context}", path.display());
        if path.is_symlink() && parent != "devices" {
            links.insert(path.display().to_string());
        }
    });
    let wanted: BTreeSet<_> = seen.filesystems.values().map(|one| one.devnode.clone()).collect();
    assert_eq!(links, wanted, "links to volumes; {context}");
    let uuids: BTreeSet<_> = seen.pools.values().map(|pool| pool.uuid.clone()).collect();
    for entry in fs::read_dir(&files).expect("the folder exists") {
        let name = entry.expect("the folder can be listed").file_name().to_string_lossy().into_owned();
        let is_pool = name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(!is_pool || uuids.contains(&name), "folder {name} of no pool; {context}");
    }
    for pool in seen.pools.values() {
        records(&files.join(&pool.uuid), seen, pool, context);
    }
}

/// Records, volumes and objects of one pool are the same filesystems.
fn records(folder: &Path, seen: &Seen, pool: &crate::model::SeenPool, context: &str) {
    let mut volumes = BTreeSet::new();
    let mut recorded = BTreeSet::new();
    for file in list(&folder.join("filesystems")) {
        let text = fs::read_to_string(folder.join("filesystems").join(&file)).expect("a record can be read");
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
    assert_eq!(list(&folder.join("thin")), volumes, "volumes of pool {}; {context}", pool.uuid);
}

fn list(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect()
}

/// The volume is as large as it should be and holds an XFS with this UUID.
fn volume_holds(volume: &Path, uuid: &str, context: &str) {
    assert_eq!(fs::metadata(volume).expect("the volume exists").len(), FILESYSTEM_BYTES, "{context}");
    let superblock = head(volume, 48);
    assert_eq!(&superblock[..4], b"XFSB", "{}; {context}", volume.display());
    let found: String = superblock[32..48].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, uuid, "{}; {context}", volume.display());
}

/// The tools agree: `blkid` sees the UUID, `xfs_repair` finds nothing to repair.
fn examine(volume: &Path, uuid: &str, context: &str) {
    let output = Command::new("blkid").args(["-p", "-o", "value", "-s", "UUID"]).arg(volume).output();
    let found = String::from_utf8_lossy(&output.expect("blkid is installed").stdout).trim().replace('-', "");
    assert_eq!(found, uuid, "{}; {context}", volume.display());
    let output = Command::new("xfs_repair").args(["-n", "-f"]).arg(volume).output().expect("xfs_repair is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}; {context}", volume.display());
}
