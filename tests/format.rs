//! Golden: the bytes that stratisd 3.9.2 wrote are read, and written again the same.
//!
//! The pools under tests/golden/pools were made by the released daemon on a real kernel. Of each
//! device the first MiB is compared byte by byte; the tables of the running pool were printed by
//! `dmsetup table`; the filesystem records are found in the blocks of the metadata volume.
//!
//! Deliberately absent: pools made here and read by the released tools. That needs those tools.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Take};

use stratisd::engine::stack::tables;
use stratisd::engine::{check, layout};
use stratisd::format::header::{self, BLOCK_BYTES, Choice, Decoded, StaticHeader, Which};
use stratisd::format::mda::{self, Geometry, HEADER_BYTES, REGIONS, Region};
use stratisd::format::record::{self, PoolRecord};
use stratisd::format::{filesystem, record::DeviceSegment};
use stratisd::model::device::DeviceNumber;
use stratisd::model::dm::{Below, Dm, Role, Table, ThinFeature};
use stratisd::model::ids::{DevUuid, PoolUuid};
use stratisd::model::name::Name;
use stratisd::model::pool::{IntegritySpec, MetadataVersion};
use stratisd::units::Sectors;

const IMAGE_BYTES: usize = 1 << 20;
/// Length of every image, and of the device that it was.
const DEVICE: Sectors = Sectors(8_388_608);

const POOLS: [(&str, MetadataVersion); 2] = [("v1plain", MetadataVersion::V1), ("v2plain", MetadataVersion::V2)];

fn folder() -> String {
    format!("{}/tests/golden/pools", env!("CARGO_MANIFEST_DIR"))
}

fn unpacked(pool: &str) -> zstd::Decoder<'static, std::io::BufReader<File>> {
    let file = File::open(format!("{}/{pool}.tar.zst", folder())).expect("the golden pool is in the repository");
    zstd::Decoder::new(file).expect("a zstd frame")
}

/// The first MiB of each device. The members are sparse files of 4 GiB.
fn images(pool: &str) -> Vec<Vec<u8>> {
    let mut archive = tar::Archive::new(unpacked(pool));
    let entries = archive.entries().expect("an archive");
    let first_mib = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut image = Vec::new();
        let mut start: Take<_> = entry.expect("a member").take(IMAGE_BYTES as u64);
        start.read_to_end(&mut image).expect("a readable member");
        assert_eq!(image.len(), IMAGE_BYTES);
        image
    };
    let images: Vec<_> = entries.map(first_mib).collect();
    assert_eq!(images.len(), 2, "both pools have two devices");
    images
}

fn bytes_at(image: &[u8], start: Sectors, length: usize) -> &[u8] {
    let start = usize::try_from(start.offset()).expect("within the image");
    &image[start..start + length]
}

fn decoded(image: &[u8], which: Which) -> Decoded {
    header::decode(bytes_at(image, which.block_start(), BLOCK_BYTES).try_into().expect("a block"))
}

fn header_of(image: &[u8]) -> StaticHeader {
    match header::choose(Ok(decoded(image, Which::First)), Ok(decoded(image, Which::Second)), DEVICE) {
        Choice::Use { header, repair: None } => header,
        other => panic!("both copies are good and equal, not {other:?}"),
    }
}

fn regions_of(image: &[u8]) -> [Region; REGIONS] {
    let geometry = Geometry::of(&header_of(image));
    let length = usize::try_from(geometry.length().offset()).expect("a region");
    std::array::from_fn(|region| mda::decode(bytes_at(image, geometry.start(region), length)))
}

fn newest_record(image: &[u8]) -> PoolRecord {
    let regions = regions_of(image);
    let (_, _, json) = mda::newest(&regions).expect("a saved pool");
    record::decode(json).expect("a record")
}

fn sizes_of(images: &[Vec<u8>]) -> BTreeMap<DevUuid, Sectors> {
    images.iter().map(|image| header_of(image)).map(|header| (header.device, header.size)).collect()
}

#[test]
fn both_header_copies_are_read_and_written_the_same() {
    for (pool, version) in POOLS {
        for image in images(pool) {
            let header = header_of(&image);
            assert_eq!((header.version, header.size, header.flags), (version, DEVICE, 0));
            assert_eq!(header.data_start(), header::DATA_START);
            for which in [Which::First, Which::Second] {
                assert_eq!(decoded(&image, which), Decoded::Good(header));
                let group = header.group();
                assert_eq!(bytes_at(&image, which.group_start(), group.len()), group, "{pool} {which:?}");
            }
        }
    }
}

#[test]
fn all_four_regions_are_read_and_written_the_same() {
    for (pool, _) in POOLS {
        for image in images(pool) {
            let geometry = Geometry::of(&header_of(&image));
            let regions = regions_of(&image);
            assert!(!mda::damaged(&regions));
            assert_eq!((&regions[0], &regions[1]), (&regions[2], &regions[3]));
            let times = regions.each_ref().map(|region| match region {
                Region::Record { time, .. } => *time,
                Region::Empty | Region::Torn(_) => panic!("{pool}: all regions were written: {region:?}"),
            });
            assert_ne!(times[0], times[1]);
            assert_eq!(mda::older(&regions), usize::from(times[0] > times[1]));
            for (number, region) in regions.iter().enumerate() {
                let Region::Record { time, json } = region else { panic!("a record") };
                let ours = mda::encode(json, *time).expect("it fits");
                let used = HEADER_BYTES + json.len();
                assert_eq!(bytes_at(&image, geometry.start(number), used), &ours[..used], "{pool} {number}");
                let pieces = mda::pieces(&ours, geometry.start(number), 512);
                assert_eq!(bytes_at(&image, pieces.first.0, 512), pieces.first.1);
            }
        }
    }
}

#[test]
fn every_record_comes_back_byte_by_byte() {
    for (pool, _) in POOLS {
        for region in images(pool).iter().flat_map(|image| regions_of(image)) {
            let Region::Record { json, .. } = region else { panic!("a record") };
            let record = record::decode(&json).expect("a record");
            assert_eq!(record.name, pool);
            let ours = record::encode(&record);
            assert_eq!(String::from_utf8(ours), String::from_utf8(json));
        }
    }
}

#[test]
fn the_devices_of_a_pool_agree_and_pass_the_check() {
    for (pool, version) in POOLS {
        let images = images(pool);
        let record = newest_record(&images[0]);
        assert_eq!(record, newest_record(&images[1]));
        assert!(!record.started(), "the pool was stopped when it was copied");
        assert_eq!(check::check(&record, version, &sizes_of(&images)), Ok(()));
    }
}

#[test]
fn our_layout_of_the_same_devices_is_theirs_but_for_room_to_grow() {
    let images = images("v2plain");
    let recorded = newest_record(&images[0]);
    let sizes = sizes_of(&images);
    let order = recorded.devices().map(|device| (device.uuid, sizes[&device.uuid]));
    let integrity = IntegritySpec::default();
    let layout = layout::first(&order.collect::<Vec<_>>(), &integrity, 100).expect("large enough");
    let mut ours = layout.record(&Name::try_from("v2plain").expect("a name"), &integrity, 100);
    // Since its creation the pool has run out of space to allocate, and was stopped; and ours zero new blocks.
    assert_eq!(ours.thin_features(), [ThinFeature::NoDiscardPassdown]);
    ours.thinpool_dev.feature_args.clone_from(&recorded.thinpool_dev.feature_args);
    ours.started = Some(false);
    // What ours leaves to metadata that grows is data in theirs, and what lies behind it is moved.
    let theirs = recorded.flex_devs.thin_data_dev[0].length;
    let room = theirs - ours.flex_devs.thin_data_dev[0].length;
    assert!(room > Sectors::ZERO && room.0 * 32 <= theirs.0, "{room} of {theirs}");
    ours.flex_devs.thin_data_dev[0].length += room;
    ours.flex_devs.meta_dev[0].start += room;
    ours.backstore.cap.allocs[2].length += room;
    ours.backstore.cap.allocs[3].start += room;
    ours.backstore.data_tier.blockdev.allocs[0].last_mut().expect("it has devices").length += room;
    assert_eq!(ours, recorded);
}

/// The recorded tables of the pool's private devices, by name; each line of a table is one text.
fn recorded_tables(pool: &str) -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(format!("{}/{pool}/dmtable.txt", folder())).expect("recorded tables");
    let mut tables = BTreeMap::<String, Vec<String>>::new();
    for (name, line) in text.lines().filter_map(|line| line.split_once(": ")) {
        if name.starts_with("stratis-1-private-") {
            tables.entry(name.to_owned()).or_default().push(line.trim_end().to_owned());
        }
    }
    tables
}

/// Device numbers differ from boot to boot, so in the texts each stands for what is behind it. They
/// are found from the order in which the daemon made the devices: the dm minors count up from 0.
struct Numbers {
    dm: BTreeMap<String, Role>,
    devices: BTreeMap<String, DeviceNumber>,
}

impl Numbers {
    fn new(roles: &[Role], theirs: &[String], ours: &[DeviceSegment], known: &BTreeMap<DevUuid, DeviceNumber>) -> Self {
        let dm = roles.iter().enumerate().map(|(minor, role)| (format!("254:{minor}"), *role)).collect();
        let number = |line: &String| line.split(' ').nth(3).expect("a linear line").to_owned();
        let devices = theirs.iter().map(number).zip(ours.iter().map(|segment| known[&segment.parent])).collect();
        Self { dm, devices }
    }

    fn text(&self, below: Below) -> &str {
        let found = match below {
            Below::Device(number) => self.devices.iter().find(|(_, other)| **other == number).map(|(text, _)| text),
            Below::Dm(Dm::Private(_, role)) => self.dm.iter().find(|(_, other)| **other == role).map(|(text, _)| text),
            Below::Dm(Dm::Thin(..)) => None,
        };
        found.expect("a device of this pool")
    }

    /// The table as `dmsetup` prints it, with these numbers.
    fn lines(&self, pool: PoolUuid, table: &Table) -> Vec<String> {
        let mut start = Sectors::ZERO;
        match table {
            Table::Linear(lines) => lines
                .iter()
                .map(|line| {
                    let text =
                        format!("{} {} linear {} {}", start.0, line.length.0, self.text(line.below), line.start.0);
                    start += line.length;
                    text
                })
                .collect(),
            Table::ThinPool { length, block, features, .. } => {
                let [meta, data] =
                    [Role::ThinMeta, Role::ThinData].map(|role| self.text(Below::Dm(Dm::Private(pool, role))));
                let names: Vec<_> = features.iter().map(|feature| feature.as_str()).collect();
                let count = features.len();
                let length = length.0;
                // Theirs were recorded when the pool had been extended once; ours is given its low water later.
                vec![format!("0 {length} thin-pool {meta} {data} {} 15360 {count} {}", block.0, names.join(" "))]
            }
            Table::Cache { .. } | Table::Thin { .. } => panic!("not a private device of a pool without a cache"),
        }
    }
}

/// The order of features means nothing, and theirs is random: sorts what stands behind their count.
fn features_sorted(lines: &[String]) -> Vec<String> {
    let sorted = |line: &String| match line.split_once(" thin-pool ") {
        Some((head, tail)) => {
            let mut words: Vec<_> = tail.split(' ').collect();
            words[5..].sort_unstable();
            format!("{head} thin-pool {}", words.join(" "))
        }
        None => line.clone(),
    };
    lines.iter().map(sorted).collect()
}

#[test]
fn the_tables_are_those_of_the_running_pool() {
    for (pool, version) in POOLS {
        let images = images(pool);
        let record = newest_record(&images[0]);
        let uuid = header_of(&images[0]).pool;
        let theirs = recorded_tables(pool);
        let known = record.devices().zip(0..).map(|(device, minor)| (device.uuid, DeviceNumber(minor, 98))).collect();
        let ours = tables(&record, version, uuid, &known).expect("a plain pool");

        let origin = &theirs[&Dm::Private(uuid, Role::OriginSub).to_string()];
        let made: &[Role] = match version {
            MetadataVersion::V1 => &[Role::OriginSub, Role::ThinMeta, Role::ThinData, Role::Mdv],
            MetadataVersion::V2 => &[Role::OriginSub, Role::Cache, Role::ThinMeta, Role::ThinData, Role::Mdv],
        };
        let numbers = Numbers::new(made, origin, &record.backstore.data_tier.blockdev.allocs[0], &known);
        let ours: BTreeMap<_, _> =
            ours.iter().map(|(dm, table)| (dm.to_string(), numbers.lines(uuid, table))).collect();
        let theirs: BTreeMap<_, _> = theirs.into_iter().map(|(name, lines)| (name, features_sorted(&lines))).collect();
        assert_eq!(ours, theirs);
    }
}

/// Everything in the archive that looks like a filesystem's record: the blocks of the metadata volume
/// are in it as they were on disk.
fn filesystem_records(pool: &str) -> Vec<String> {
    let mut bytes = Vec::new();
    unpacked(pool).read_to_end(&mut bytes).expect("a readable archive");
    let record = |part: &[u8]| {
        let part = &part[..part.len().min(1_000)];
        let end = part.iter().position(|byte| *byte == b'}')?;
        let text = str::from_utf8(&part[..=end]).ok()?; // Other blocks are not text.
        (text.starts_with("\"name\":\"") && text.contains("\"thin_id\":")).then(|| format!("{{{text}"))
    };
    let mut records: Vec<_> = bytes.split(|byte| *byte == b'{').filter_map(record).collect();
    records.sort_unstable();
    records.dedup();
    records
}

#[test]
fn every_filesystem_record_comes_back_byte_by_byte() {
    for (pool, _) in POOLS {
        let records = filesystem_records(pool);
        let mut names = Vec::new();
        for json in &records {
            let record = filesystem::decode(json.as_bytes()).expect("a record");
            assert_eq!(String::from_utf8(filesystem::encode(&record)).as_ref(), Ok(json));
            assert_eq!(record.origin.is_some(), record.name.as_str() == "data-snap");
            assert_eq!(record.size_limit.is_some(), record.name.as_str() == "docs");
            names.push(record.name.as_str().to_owned());
        }
        assert_eq!(names, ["data", "data-snap", "docs"]);
    }
}
