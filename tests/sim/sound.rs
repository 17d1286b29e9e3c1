//! What must be so of a machine on which a daemon has come up, or has come to rest.
//!
//! Invariant: each rule holds for whatever was cut off before, as long as no fault goes on.

use std::collections::{BTreeMap, BTreeSet};

use stratisd::engine::{check, stack};
use stratisd::format::filesystem;
use stratisd::format::header::{self, BLOCK_BYTES, Decoded, HEADER_SECTORS, StaticHeader};
use stratisd::format::mda::{self, Geometry, REGIONS, Region, WallStamp};
use stratisd::format::record::{self, PoolRecord};
use stratisd::model::device::{DeviceNumber, DevicePath};
use stratisd::model::dm::{Dm, Role, Table};
use stratisd::model::ids::{DevUuid, PoolUuid, ThinId};
use stratisd::model::pool::MetadataVersion;
use stratisd::sys::Folder;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;
use uuid::Uuid;

use crate::strict;
use crate::world::Seen;

/// A disk, where on it, how much.
pub(crate) type Piece = (DeviceNumber, Sectors, Sectors);

/// What a disk says of itself: both copies of its signature, and its newest record.
pub(crate) struct Disk {
    pub(crate) path: DevicePath,
    copies: [Decoded; 2],
    /// Which pair of regions holds it, its time, itself.
    newest: Option<(usize, WallStamp, Vec<u8>)>,
}

impl Disk {
    fn read(machine: &Machine, path: DevicePath) -> Self {
        let text = path.to_string();
        let block = |at| header::decode(&machine.bytes(&text, Sectors(at), Sectors(1)).try_into().expect("a sector"));
        let copies: [Decoded; 2] = [1, 9].map(block);
        let newest = copies.iter().find_map(signature).and_then(|header| {
            let geometry = Geometry::of(&header);
            let region = |index| mda::decode(&machine.bytes(&text, geometry.start(index), geometry.length()));
            let regions: [_; REGIONS] = std::array::from_fn(region);
            newest(&regions).map(|(pair, time, json)| (pair, time, json.to_vec()))
        });
        debug_assert_eq!(BLOCK_BYTES, 512, "one sector was read");
        Self { path, copies, newest }
    }

    /// All disks of a machine.
    pub(crate) fn all(machine: &Machine) -> Vec<Self> {
        machine.disks().into_iter().map(|path| Self::read(machine, path)).collect()
    }

    /// Whether both copies of its signature are good, and the same.
    pub(crate) fn is_whole(&self) -> bool {
        self.copies[0] == self.copies[1] && self.header().is_some()
    }

    /// Where the regions begin that do not hold the newest record.
    pub(crate) fn older(&self) -> Option<[Sectors; 2]> {
        let (pair, ..) = self.newest.as_ref()?;
        let geometry = Geometry::of(&self.header()?);
        Some([1 - pair, 1 - pair + mda::PRIMARIES].map(|region| geometry.start(region)))
    }

    /// Its signature, if it has one.
    pub(crate) fn header(&self) -> Option<StaticHeader> {
        self.copies.iter().find_map(signature)
    }
}

fn signature(copy: &Decoded) -> Option<StaticHeader> {
    match copy {
        Decoded::Good(header) => Some(*header),
        Decoded::Bad(_) | Decoded::NoMagic => None,
    }
}

/// The newest whole record in the regions of a disk, with its pair and its time. The daemon's own choice is what is
/// checked here, so it is not asked.
fn newest(regions: &[Region; REGIONS]) -> Option<(usize, WallStamp, &[u8])> {
    let whole = regions.iter().enumerate().filter_map(|(index, region)| match region {
        Region::Record { time, json } => Some((index % mda::PRIMARIES, *time, &**json)),
        Region::Empty | Region::Torn(_) => None,
    });
    whole.max_by_key(|(pair, time, _)| (*time, *pair))
}

/// The newest record of a pool on its disks.
pub(crate) fn recorded(disks: &[Disk], pool: PoolUuid) -> Option<PoolRecord> {
    let own = disks.iter().filter(|disk| disk.header().is_some_and(|header| header.pool == pool));
    let newest = own.filter_map(|disk| disk.newest.as_ref()).max_by_key(|(_, time, _)| *time)?;
    record::decode(&newest.2).ok()
}

/// The sectors of disks that the newest record of a pool lists which no power failure takes away.
pub(crate) fn durable(machine: &Machine, disks: &[Disk], pool: PoolUuid) -> Option<Vec<Piece>> {
    let own = || disks.iter().filter_map(|disk| Some((disk, disk.header().filter(|header| header.pool == pool)?)));
    let region = |disk: &Disk, geometry: &Geometry, index| {
        mda::decode(&machine.durable_bytes(&disk.path.to_string(), geometry.start(index), geometry.length()))
    };
    let records = own().filter_map(|(disk, header)| {
        let geometry = Geometry::of(&header);
        let regions: [_; REGIONS] = std::array::from_fn(|index| region(disk, &geometry, index));
        newest(&regions).map(|(_, time, json)| (time, json.to_vec()))
    });
    let (_, json) = records.max_by_key(|(time, _)| *time)?;
    let record = record::decode(&json).ok()?;
    // Of a disk that was copied there are two: what is listed of it are sectors of either.
    let numbers: Vec<(DevUuid, DeviceNumber)> =
        own().map(|(disk, header)| (header.device, machine.number(&disk.path.to_string()))).collect();
    let backstore = &record.backstore;
    let caches = backstore.cache_tier.iter().flat_map(|tier| &tier.blockdev.allocs);
    let segments = backstore.data_tier.blockdev.allocs.iter().chain(caches).flatten();
    let pieces = segments.flat_map(|it| {
        let disks = numbers.iter().filter(|(device, _)| *device == it.parent);
        disks.map(|(_, number)| (*number, it.start, it.length))
    });
    Some(pieces.collect())
}

/// Before anybody repairs anything, devices of pools that were there can be read by others.
pub(crate) fn interchangeable(machine: &Machine, at: &str) {
    for disk in Disk::all(machine).iter().filter(|disk| disk.newest.is_some()) {
        let path = disk.path.to_string();
        assert_eq!(strict::accepts(machine, &path), Ok(()), "another daemon refuses {path}: {at}");
    }
}

/// All that must be so.
pub(crate) fn sound(machine: &Machine, seen: &Seen, at: &str) {
    for (pool, (_, filesystems)) in &seen.running {
        assert_eq!(machine.files(*pool, Folder::Intents), Some(vec![]), "an intent stays: {at}");
        let files: BTreeSet<String> = machine.files(*pool, Folder::Filesystems).into_iter().flatten().collect();
        let wanted = filesystems.keys().map(|uuid| format!("{}.json", uuid.simple())).collect();
        assert_eq!(files, wanted, "records are not those of the filesystems: {at}");
        assert_eq!(volumes(machine, *pool).1, [], "a volume without a filesystem: {at}");
    }
    let wanted = seen.running.values().flat_map(|(pool, all)| all.values().map(move |name| format!("{pool}/{name}")));
    let paths: BTreeSet<String> = machine.announced().into_keys().collect();
    assert_eq!(paths, wanted.collect(), "paths are not those of the filesystems: {at}");
    always_sound(machine, seen, at);
}

/// What must be so while something may wait for the next start of its pool, because an action failed.
pub(crate) fn always_sound(machine: &Machine, seen: &Seen, at: &str) {
    assert_eq!(machine.bugs(), Vec::<String>::new(), "data would be lost: {at}");
    let disks = Disk::all(machine);
    for name in seen.running.values().flat_map(|(pool, all)| all.values().chain([pool])) {
        assert!(is_path_component(name), "{name:?} is no name: {at}");
    }
    for (pool, (_, filesystems)) in &seen.running {
        let (own, others) = volumes(machine, *pool);
        let wanted = filesystems.keys().map(|uuid| uuid.0).collect();
        assert_eq!(own, wanted, "a filesystem without its XFS: {at}");
        let noted = machine.files(*pool, Folder::Intents).expect("a running pool has its metadata volume");
        let lost = others.iter().find(|id| !noted.contains(&id.to_string()));
        assert_eq!(lost, None, "a volume that nobody will delete: {at}");
        let cache = machine.tables().get(&Dm::Private(*pool, Role::CacheSub)).map(Table::length);
        assert_eq!(machine.cache_data(*pool), cache, "a cache works with all that it has: {at}");
        let (free, low) = machine.thin_room(*pool).expect("a running pool has a thin pool");
        let full = seen.settings.contains(&format!("{pool} no space"));
        assert!(!full || free <= low, "a pool with {free} free blocks says that it is full: {at}");
        as_recorded(machine, &disks, *pool, at);
    }
    for device in machine.tables().keys() {
        assert!(seen.running.contains_key(&device.pool()), "{device} of a pool that does not run: {at}");
    }
    owned(machine, &disks, seen, at);
}

/// The filesystems on the volumes that records name, and the volumes that none names.
pub(crate) fn volumes(machine: &Machine, pool: PoolUuid) -> (BTreeSet<Uuid>, Vec<ThinId>) {
    let files = machine.files(pool, Folder::Filesystems).expect("a running pool has its metadata volume");
    let content = |file: &String| filesystem::decode(&machine.file(pool, Folder::Filesystems, file)?).ok();
    let ids: BTreeSet<ThinId> = files.iter().filter_map(content).map(|record| record.thin_id).collect();
    let all = machine.volumes(pool).expect("a running pool has a thin pool");
    let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(id, _)| ids.contains(id));
    (own.into_iter().filter_map(|(_, xfs)| xfs).collect(), others.into_iter().map(|(id, _)| id).collect())
}

/// Names become folders and links, by helpers of udev that take no others.
fn is_path_component(name: &str) -> bool {
    let fits = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "#+,-.:=@_".contains(c);
    !["", ".", ".."].contains(&name) && name.chars().all(fits)
}

/// A start has made good what copies of signatures there are.
pub(crate) fn made_good(machine: &Machine, seen: &Seen, at: &str) {
    let runs = |disk: &&Disk| disk.header().is_some_and(|header| seen.running.contains_key(&header.pool));
    for disk in Disk::all(machine).iter().filter(runs) {
        assert!(disk.is_whole(), "the copies of the signature on {} differ: {at}", disk.path);
    }
}

/// Whose the disks are, and which are open.
fn owned(machine: &Machine, disks: &[Disk], seen: &Seen, at: &str) {
    let open = machine.open_disks();
    for disk in disks {
        let path = &disk.path;
        let Some(header) = disk.header() else {
            let head = machine.bytes(&path.to_string(), Sectors(0), HEADER_SECTORS);
            assert!(head.iter().all(|byte| *byte == 0), "what is left of a signature on {path}: {at}");
            assert!(!open.contains(path), "{path} is nobody's and open: {at}");
            continue;
        };
        let runs = seen.running.contains_key(&header.pool);
        assert!(runs || seen.stopped.contains_key(&header.pool), "a signature is left on {path}: {at}");
        assert_eq!(open.contains(path), runs, "{path} is open exactly while its pool runs: {at}");
        if runs {
            let listed = seen.settings.iter().any(|line| line.starts_with(&format!("{} at {path} ", header.device)));
            assert!(listed, "{path} is not among the devices of its pool: {at}");
        }
    }
    for (pool, (_, count)) in &seen.stopped {
        let own = disks.iter().filter(|disk| disk.header().is_some_and(|header| header.pool == *pool)).count();
        assert_eq!(*count, own, "a stopped pool is listed with its devices: {at}");
    }
}

/// The record gives no sector out twice, and active tables are those of the record, or their beginning.
fn as_recorded(machine: &Machine, disks: &[Disk], pool: PoolUuid, at: &str) {
    let own: Vec<(StaticHeader, &Disk)> =
        disks.iter().filter_map(|disk| disk.header().map(|header| (header, disk))).collect();
    let own: Vec<_> = own.into_iter().filter(|(header, _)| header.pool == pool).collect();
    let record = recorded(disks, pool).unwrap_or_else(|| panic!("a running pool has no record: {at}"));
    let version = own.first().map_or(MetadataVersion::V2, |(header, _)| header.version);
    let sizes: BTreeMap<DevUuid, Sectors> = own.iter().map(|(header, _)| (header.device, header.size)).collect();
    assert_eq!(check::check(&record, version, &sizes), Ok(()), "a record that cannot be: {at}");
    let numbers = own.iter().map(|(header, disk)| (header.device, machine.number(&disk.path.to_string()))).collect();
    let wanted = stack::tables(&record, version, pool, &numbers);
    let wanted: BTreeMap<Dm, Table> =
        wanted.unwrap_or_else(|fault| panic!("no tables: {fault:?}: {at}")).into_iter().collect();
    for (device, table) in machine.tables().iter().filter(|(device, _)| device.pool() == pool) {
        match (device, table, wanted.get(device)) {
            (Dm::Thin(..), ..) => {}
            (Dm::Private(..), Table::ThinPool { length, .. }, Some(wanted)) => {
                assert!(*length <= wanted.length(), "{device} is longer than its record says: {at}");
            }
            (Dm::Private(..), table, Some(wanted)) => {
                assert!(table.length() <= wanted.length(), "{device} is longer than its record says: {at}");
                assert!(table.length() < wanted.length() || table == wanted, "{device} is not as recorded: {at}");
            }
            // Metadata that were repaired have the place of the spare.
            (Dm::Private(_, Role::ThinMetaSpare), _, None) => {}
            (Dm::Private(..), _, None) => panic!("{device} is not on record: {at}"),
        }
    }
    assert!(record.started(), "the record of a running pool says so: {at}");
    let header = machine.tokens(pool).is_some();
    assert_eq!(header, record.is_encrypted(), "a pool has a header exactly if its record says so: {at}");
}
