//! A reader of its own for what pools have on their disks: signatures, regions and records, against every rule by
//! which stratisd 3.9.2 refuses a pool at its start.
//!
//! Invariant: it shares nothing with the daemon, neither code nor constants, so that both would have to be wrong in
//! the same way. It is stricter than any daemon: of a pool at rest every copy is whole, and all devices agree.
//!
//! Deliberately absent: encryption, and what is inside of the metadata volume.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::support::daemon::PATIENCE;

const MAGIC: &[u8] = b"!Stra0tis\x86\xff\x02^Arh";
const HEAD_BYTES: usize = 1 << 20;
/// Where both copies of the signature are, and how long one is.
const COPIES: [usize; 2] = [512, 4_608];
const COPY_BYTES: usize = 512;
const FIRST_REGION: usize = 8_192;
const REGION_BYTES: usize = 508 * 512;
const REGION_HEADER_BYTES: usize = 32;
/// In sectors: before the data of a device, before that of a pool of version 2, and a block of data.
const RESERVED: u64 = 8_192;
const CRYPT: u64 = 34_816;
const BLOCK: u64 = 2_048;
const MDV: u64 = 1_048_576;
const CACHE_META: u64 = 1_048_576;

type Rule<T = ()> = Result<T, String>;

/// A piece of something: where it begins, and how long it is.
type Piece = (u64, u64);

/// When a record was saved, and the record.
type Saved = ((u64, u32), Vec<u8>);

/// A device, as its signature has it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Device {
    size: u64,
    version: u8,
    pool: String,
    uuid: String,
    /// What was saved last.
    newest: Option<Saved>,
}

/// The record of the one pool that these disks are. Panics with the rule that it breaks, if it goes on to do so: a
/// save may be under way.
#[track_caller]
pub(crate) fn record(disks: &[String], context: &str) -> Json {
    let end = Instant::now() + PATIENCE;
    loop {
        match read(disks) {
            Ok(record) => return record,
            Err(broken) => assert!(Instant::now() < end, "{broken}: {disks:?}; {context}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn read(disks: &[String]) -> Rule<Json> {
    let devices: Vec<Device> = disks.iter().map(|disk| device(disk)).collect::<Rule<_>>()?;
    let first = devices.first().ok_or("a pool has a disk")?;
    rule(devices.iter().all(|one| (&one.pool, one.version) == (&first.pool, first.version)), || {
        "devices of two pools or versions".to_owned()
    })?;
    let newest = devices.iter().filter_map(|one| one.newest.clone()).max().ok_or("no device has a record")?;
    let record: Json = serde_json::from_slice(&newest.1).map_err(|error| format!("no JSON: {error}"))?;
    let data = &record["backstore"]["data_tier"]["blockdev"];
    let cache = &record["backstore"]["cache_tier"]["blockdev"];
    let by_uuid: BTreeMap<&str, &Device> = devices.iter().map(|one| (one.uuid.as_str(), one)).collect();
    rule(by_uuid.len() == devices.len(), || "a device is there twice".to_owned())?;
    let listed: Vec<String> = [data, cache].into_iter().flat_map(uuids).collect();
    let is_listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
    rule(is_listed.len() == listed.len() && is_listed.iter().eq(by_uuid.keys()), || {
        format!("{listed:?} are listed, {:?} are there", by_uuid.keys())
    })?;
    for uuid in uuids(data) {
        rule(by_uuid[uuid.as_str()].newest.as_ref() == Some(&newest), || format!("{uuid} has another record"))?;
    }
    tier(data, &by_uuid, &record["backstore"]["data_tier"]["integrity_spec"])?;
    cap(&record, first.version)?;
    cache_tier(cache, &by_uuid)?;
    settings(&record, first.version)?;
    Ok(record)
}

fn rule(holds: bool, what: impl FnOnce() -> String) -> Rule {
    if holds { Ok(()) } else { Err(what()) }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn sealed(bytes: &[u8]) -> bool {
    word(bytes, 0) == crc32c::crc32c(&bytes[4..])
}

/// Reads one disk: both signatures and all regions.
fn device(disk: &str) -> Rule<Device> {
    let cannot = |error| format!("{disk} cannot be read: {error}");
    let mut file = File::open(disk).map_err(cannot)?;
    let actual = file.seek(SeekFrom::End(0)).map_err(cannot)? / 512;
    file.rewind().map_err(cannot)?;
    let mut head = vec![0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(cannot)?;
    let [one, two] = COPIES.map(|at| &head[at..at + COPY_BYTES]);
    rule(one == two && &one[4..20] == MAGIC && sealed(one), || format!("{disk}: a signature is damaged"))?;
    let text = |at: usize| String::from_utf8_lossy(&one[at..at + 32]).into_owned();
    let (size, version) = (long(one, 20), one[28]);
    rule((1..=2).contains(&version) && one[29..32] == [0; 3], || format!("{disk}: version {version}"))?;
    rule(size <= actual, || format!("{disk}: {size} sectors are recorded, {actual} are there"))?;
    rule((long(one, 96), long(one, 104)) == (2_032, 6_144), || format!("{disk}: other areas"))?;
    rule(long(one, 112) == 0, || format!("{disk}: it is marked as half made"))?;
    let newest = newest(disk, &head)?;
    Ok(Device { size, version, pool: text(32), uuid: text(64), newest })
}

/// The newer record; both pairs of regions are whole.
fn newest(disk: &str, head: &[u8]) -> Rule<Option<Saved>> {
    let region = |number: usize| &head[FIRST_REGION + number * REGION_BYTES..][..REGION_BYTES];
    let mut found = Vec::new();
    for pair in 0..2 {
        let [one, two] = [region(pair), region(pair + 2)];
        let header = &one[..REGION_HEADER_BYTES];
        let used = usize::try_from(long(header, 8)).map_err(|_| format!("{disk}: a record of no length"))?;
        rule(sealed(header) && header[28..] == [1, 1, 0, 0], || format!("{disk}: the header of region {pair}"))?;
        rule(used <= REGION_BYTES - REGION_HEADER_BYTES, || format!("{disk}: a record of {used} bytes"))?;
        let end = REGION_HEADER_BYTES + used;
        let json = &one[REGION_HEADER_BYTES..end];
        rule(used == 0 || crc32c::crc32c(json) == word(header, 4), || format!("{disk}: the record in {pair}"))?;
        rule(one[..end] == two[..end], || format!("{disk}: the copy of region {pair} is another"))?;
        if used > 0 {
            found.push(((long(header, 16), word(header, 24)), json.to_vec()));
        }
    }
    rule(found.len() < 2 || found[0].0 != found[1].0, || format!("{disk}: two records of one time"))?;
    Ok(found.into_iter().max())
}

fn number(value: &Json) -> Rule<u64> {
    value.as_u64().ok_or_else(|| format!("{value} is no number"))
}

fn list(value: &Json) -> &[Json] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// UUIDs of the devices of a tier, without hyphens.
fn uuids(tier: &Json) -> Vec<String> {
    list(&tier["devs"]).iter().map(|one| simple(&one["uuid"])).collect()
}

fn simple(uuid: &Json) -> String {
    uuid.as_str().unwrap_or_default().replace('-', "")
}

/// Pairs of start and length.
fn pieces(value: &Json) -> Rule<Vec<Piece>> {
    list(value).iter().map(|pair| Ok((number(&pair[0])?, number(&pair[1])?))).collect()
}

/// Segments of a tier, by device.
fn segments(tier: &Json) -> Rule<Vec<(String, Piece)>> {
    let all = list(&tier["allocs"]).iter().flat_map(list);
    all.map(|one| Ok((simple(&one["parent"]), (number(&one["start"])?, number(&one["length"])?)))).collect()
}

/// Nothing is empty and nothing lies on anything else; gives back what is there in all.
fn apart(what: &str, pieces: &[Piece]) -> Rule<u64> {
    let mut pieces = pieces.to_vec();
    pieces.sort_unstable();
    rule(pieces.iter().all(|(_, length)| *length > 0), || format!("{what}: an empty piece in {pieces:?}"))?;
    let clash = pieces.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0);
    rule(!clash, || format!("{what}: pieces overlap in {pieces:?}"))?;
    Ok(pieces.iter().map(|(_, length)| length).sum())
}

/// Each device of a tier: what is used of it lies inside, behind what is reserved, and nothing twice.
fn tier(tier: &Json, devices: &BTreeMap<&str, &Device>, integrity: &Json) -> Rule {
    let segments = segments(tier)?;
    for entry in list(&tier["devs"]) {
        let uuid = simple(&entry["uuid"]);
        let device = devices.get(uuid.as_str()).ok_or_else(|| format!("{uuid} is missing"))?;
        let reserved = pieces(&entry["integrity_meta_allocs"])?;
        let (kept, wanted) =
            (reserved.iter().map(|(_, length)| length).sum::<u64>(), for_integrity(integrity, device.size)?);
        rule(kept == wanted, || format!("{uuid}: {kept} sectors are kept for integrity, {wanted} are needed"))?;
        let of_device = segments.iter().filter(|(parent, _)| *parent == uuid).map(|(_, piece)| *piece);
        let used: Vec<Piece> = of_device.chain(reserved).collect();
        apart(&uuid, &used)?;
        let inside = used.iter().all(|(start, length)| *start >= RESERVED && start + length <= device.size);
        rule(inside, || format!("{uuid}: {used:?} of {} sectors", device.size))?;
    }
    let known = |parent: &String| uuids(tier).contains(parent);
    rule(segments.iter().all(|(parent, _)| known(parent)), || "a segment of a stranger".to_owned())
}

/// What a device of so many sectors keeps free for an integrity layer.
fn for_integrity(spec: &Json, sectors: u64) -> Rule<u64> {
    if spec.is_null() {
        return Ok(0);
    }
    let tag_bytes = match spec["tag_spec"].as_str() {
        Some("0b") => 0,
        Some("32b") => 4,
        Some("512b") => 64,
        _ => return Err(format!("tags {}", spec["tag_spec"])),
    };
    let superblock = if spec["allocate_superblock"] == true { 8 } else { 0 };
    let tags = (sectors * 512 / 4_096 * tag_bytes).next_multiple_of(4_096) / 512;
    Ok(superblock + number(&spec["journal_size"])? + tags)
}

/// What lies on the cap device, and that the data tier has room for it.
fn cap(record: &Json, version: u8) -> Rule {
    let (backstore, flex) = (&record["backstore"], &record["flex_devs"]);
    let lengths = |pieces: &[Piece]| pieces.iter().map(|(_, length)| length).sum::<u64>();
    let [meta, spare, data, mdv] =
        ["thin_meta_dev", "thin_meta_dev_spare", "thin_data_dev", "meta_dev"].map(|name| pieces(&flex[name]));
    let [meta, spare, data, mdv] = [meta?, spare?, data?, mdv?];
    let of_flex: Vec<Piece> = [&meta, &spare, &data, &mdv].into_iter().flatten().copied().collect();
    let flex_total = apart("the flex devices", &of_flex)?;
    let given = pieces(&backstore["cap"]["allocs"])?;
    let given_total = apart("the cap device", &given)?;
    let backed: u64 = segments(&backstore["data_tier"]["blockdev"])?.iter().map(|(_, (_, length))| length).sum();
    rule(flex_total == given_total, || format!("{flex_total} sectors in flex devices, {given_total} were given"))?;
    rule(lengths(&meta) == lengths(&spare) && lengths(&mdv) == MDV, || format!("{meta:?} {spare:?} {mdv:?}"))?;
    rule(lengths(&data).is_multiple_of(BLOCK), || format!("{data:?} are no whole blocks"))?;
    let end = of_flex.iter().map(|(start, length)| start + length).max().unwrap_or_default();
    let crypt = pieces(&backstore["cap"]["crypt_meta_allocs"])?;
    if version == 1 {
        rule(given == [(0, end)] && crypt.is_empty(), || format!("version 1: {given:?} {crypt:?}"))?;
        return rule(flex_total == end && end <= backed, || format!("{end} sectors lie on {backed}"));
    }
    rule(crypt == [(0, CRYPT)], || format!("room for encryption: {crypt:?}"))?;
    let mut all = given;
    all.extend(crypt);
    let total = apart("the cap device with room for encryption", &all)?;
    rule(of_flex.iter().all(|(start, _)| *start >= CRYPT), || "something lies where encryption would".to_owned())?;
    rule(end <= backed && total <= backed, || format!("{total} sectors up to {end} lie on {backed}"))
}

/// Of a cache's devices every sector is used: first what its metadata takes, then its data.
fn cache_tier(cache: &Json, devices: &BTreeMap<&str, &Device>) -> Rule {
    if cache.is_null() {
        return Ok(());
    }
    tier(cache, devices, &Json::Null)?;
    let segments = segments(cache)?;
    for uuid in uuids(cache) {
        let of_device = segments.iter().filter(|(parent, _)| *parent == uuid);
        let used: u64 = of_device.map(|(_, (_, length))| length).sum();
        let size = devices[uuid.as_str()].size;
        rule(used + RESERVED == size, || format!("{used} of {size} sectors of cache device {uuid} are used"))?;
        rule(devices[uuid.as_str()].newest.is_none(), || format!("cache device {uuid} has a record"))?;
    }
    let meta: u64 = list(&cache["allocs"][1]).iter().filter_map(|one| one["length"].as_u64()).sum();
    rule(list(&cache["allocs"]).len() == 2 && meta == CACHE_META, || format!("{meta} sectors of cache metadata"))
}

/// What else a record has to say.
fn settings(record: &Json, version: u8) -> Rule {
    let thin = &record["thinpool_dev"];
    rule(number(&thin["data_block_size"])? == BLOCK && thin["enable_overprov"].is_boolean(), || thin.to_string())?;
    let features: Vec<&str> = list(&thin["feature_args"]).iter().filter_map(Json::as_str).collect();
    let known = ["error_if_no_space", "no_discard_passdown", "skip_block_zeroing"];
    rule(features.is_sorted() && features.iter().all(|one| known.contains(one)), || format!("{features:?}"))?;
    rule(number(&thin["fs_limit"])? > 0 && record["started"].is_boolean(), || thin.to_string())?;
    let name = record["name"].as_str().unwrap_or_default();
    rule(!name.is_empty() && name.len() <= 255, || format!("the name {name:?}"))?;
    let integrity = &record["backstore"]["data_tier"]["integrity_spec"];
    rule(integrity.is_object() == (version == 2), || format!("version {version} with {integrity}"))?;
    rule(record["features"].is_null(), || format!("a plain pool with {}", record["features"]))
}
