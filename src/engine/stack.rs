//! The device-mapper tables of a pool, computed from its record alone.
//!
//! The same record gives the same tables on every boot and in every daemon, so a stack that is
//! active already can be compared with what it should be, and adopted.
//!
//! Invariant: each table refers only to devices before it in the list, so the list is the order of
//! activation and, read backwards, of removal.
//!
//! An encryption layer is the machine's: it lies between the cap device's header room and the rest, and tables
//! name places below it. Deliberately absent: what makes up a cache's own metadata.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::engine::size::{CACHE_BLOCK, DATA_BLOCK};
use crate::engine::{cap, encryption};
use crate::format::record::{DeviceSegment, PoolRecord, Segment};
use crate::model::device::DeviceNumber;
use crate::model::dm::{Below, Dm, LinearLine, Role, Table};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::pool::MetadataVersion;
use crate::units::Sectors;

/// When a thin pool is to raise its event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LowWater {
    /// At once: whoever makes a thin pool of this table puts in what it is to be (`grow`).
    Setup,
    /// At this many free blocks.
    Blocks(u64),
}

/// The record describes what cannot be activated here.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum StackFault {
    /// A device has segments and no number: it is missing.
    #[error("device {0} is missing")]
    Missing(DevUuid),
}

impl StackFault {
    /// The same in fixed words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing(_) => "a device with segments is missing",
        }
    }
}

/// All private devices of the pool with their tables, in the order in which they are activated:
/// `OriginSub`, `MetaSub` and `CacheSub` (with a cache), `Cache` (version 2, or with a cache), `ThinMeta`,
/// `ThinData`, `Mdv`, `ThinPool`.
///
/// # Errors
/// When a device is missing.
pub fn tables(
    record: &PoolRecord,
    version: MetadataVersion,
    pool: PoolUuid,
    numbers: &BTreeMap<DevUuid, DeviceNumber>,
    low_water: LowWater,
) -> Result<Vec<(Dm, Table)>, StackFault> {
    let private = |role| Dm::Private(pool, role);
    let origin = segments(record.backstore.data_tier.blockdev.allocs.iter().flatten(), numbers)?;
    let whole = Segment { start: Sectors::ZERO, length: origin.length() };
    let base = encryption::base(record);
    let mut tables = vec![(private(Role::OriginSub), origin)];
    match (version, &record.backstore.cache_tier) {
        (MetadataVersion::V1 | MetadataVersion::V2, Some(tier)) => {
            // The first list is the cache's data, the second its metadata.
            for (role, place) in [(Role::MetaSub, 1), (Role::CacheSub, 0)] {
                let of_role = tier.blockdev.allocs.get(place).into_iter().flatten();
                tables.push((private(role), segments(of_role, numbers)?));
            }
            tables.push((private(Role::Cache), Table::Cache { length: whole.length, block: CACHE_BLOCK }));
        }
        (MetadataVersion::V1, None) => {}
        // A placeholder: it holds the place of a cache that may come, so that what lies above never has to be moved.
        (MetadataVersion::V2, None) => {
            tables.push((private(Role::Cache), linear(private(Role::OriginSub), &[whole], Sectors::ZERO)));
        }
    }
    let cap = private(cap::role(record, version));
    let flex = &record.flex_devs;
    tables.push((private(Role::ThinMeta), linear(cap, &flex.thin_meta_dev, base)));
    tables.push((private(Role::ThinData), linear(cap, &flex.thin_data_dev, base)));
    tables.push((private(Role::Mdv), linear(cap, &flex.meta_dev, base)));
    tables.push((private(Role::ThinPool), thin_pool(record, low_water)));
    Ok(tables)
}

/// The table of a filesystem's thin volume.
pub fn thin(record: &FilesystemRecord) -> Table {
    Table::Thin { length: record.size, id: record.thin_id }
}

/// The table of the thin pool itself.
pub fn thin_pool(record: &PoolRecord, low_water: LowWater) -> Table {
    let length: Sectors = record.flex_devs.thin_data_dev.iter().sum();
    let low_water = match low_water {
        LowWater::Setup => length.0 / DATA_BLOCK.0,
        LowWater::Blocks(blocks) => blocks,
    };
    Table::ThinPool { length, block: DATA_BLOCK, low_water, features: record.thin_features() }
}

fn segments<'a>(
    segments: impl Iterator<Item = &'a DeviceSegment>,
    numbers: &BTreeMap<DevUuid, DeviceNumber>,
) -> Result<Table, StackFault> {
    let lines = segments.map(|segment| {
        let number = numbers.get(&segment.parent).ok_or(StackFault::Missing(segment.parent))?;
        Ok(LinearLine { length: segment.length, below: Below::Device(*number), start: segment.start })
    });
    Ok(Table::Linear(lines.collect::<Result<_, _>>()?))
}

/// Segments of a device whose addresses begin at `base` of the one below.
fn linear(below: Dm, segments: &[Segment], base: Sectors) -> Table {
    let below = Below::Dm(below);
    let line = |segment: &Segment| LinearLine { length: segment.length, below, start: base + segment.start };
    Table::Linear(segments.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::layout;
    use crate::format::record::{CacheTier, Devices};
    use crate::model::dm::ThinFeature;
    use crate::model::ids::{FsUuid, ThinId};
    use crate::model::name::Name;
    use crate::model::pool::IntegritySpec;

    fn pool() -> PoolUuid {
        PoolUuid::from_random([1; 16])
    }

    fn device() -> DevUuid {
        DevUuid::from_random([2; 16])
    }

    fn name() -> Name {
        Name::try_from("p1").expect("a name")
    }

    fn record() -> PoolRecord {
        let integrity = IntegritySpec::default();
        let layout = layout::first(&[(device(), Sectors(2_097_152))], &integrity, 100).expect("a gibibyte is enough");
        layout.record(&name(), &integrity, 100)
    }

    fn numbers() -> BTreeMap<DevUuid, DeviceNumber> {
        BTreeMap::from([(device(), DeviceNumber(8, 16))])
    }

    fn line(length: u64, below: Below, start: u64) -> Table {
        Table::Linear(vec![LinearLine { length: Sectors(length), below, start: Sectors(start) }])
    }

    #[test]
    fn a_pool_of_one_gibibyte_has_these_tables() {
        let tables = tables(&record(), MetadataVersion::V2, pool(), &numbers(), LowWater::Blocks(164)).expect("plain");
        let dm = |role| Dm::Private(pool(), role);
        let cap = Below::Dm(dm(Role::Cache));
        let thin_pool = Table::ThinPool {
            length: Sectors(671_744),
            block: Sectors(2_048),
            low_water: 164,
            features: vec![ThinFeature::NoDiscardPassdown],
        };
        let expected = [
            (dm(Role::OriginSub), line(1_771_520, Below::Device(DeviceNumber(8, 16)), 8_192)),
            (dm(Role::Cache), line(1_771_520, Below::Dm(dm(Role::OriginSub)), 0)),
            (dm(Role::ThinMeta), line(8_192, cap, 34_816)),
            (dm(Role::ThinData), line(671_744, cap, 51_200)),
            (dm(Role::Mdv), line(1_048_576, cap, 722_944)),
            (dm(Role::ThinPool), thin_pool),
        ];
        assert_eq!(tables, expected);
    }

    #[test]
    fn a_pool_keeps_the_features_on_its_record() {
        let mut record = record();
        let theirs = [ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];
        record.set_thin_features(&theirs);
        let Table::ThinPool { features, .. } = thin_pool(&record, LowWater::Setup) else { panic!("a thin pool") };
        assert_eq!(features, theirs);
    }

    #[test]
    fn low_water_is_what_the_moment_wants() {
        for (asked, expected) in [(LowWater::Setup, 328), (LowWater::Blocks(7), 7)] {
            let Table::ThinPool { low_water, .. } = thin_pool(&record(), asked) else { panic!("a thin pool") };
            assert_eq!(low_water, expected);
        }
    }

    #[test]
    fn what_cannot_be_activated_is_refused() {
        let tables = |record: &PoolRecord, numbers: &BTreeMap<_, _>| {
            tables(record, MetadataVersion::V2, pool(), numbers, LowWater::Setup).map(|tables| tables.len())
        };
        assert_eq!(tables(&record(), &numbers()), Ok(6));
        assert_eq!(tables(&record(), &BTreeMap::new()), Err(StackFault::Missing(device())));
    }

    #[test]
    fn a_cache_lies_between_the_data_tier_and_the_rest() {
        let mut record = record();
        let fast = DevUuid::from_random([4; 16]);
        let on = |start, length| DeviceSegment { parent: fast, start: Sectors(start), length: Sectors(length) };
        let blockdev =
            Devices { allocs: vec![vec![on(1_056_768, 1_040_384)], vec![on(8_192, 1_048_576)]], devs: Vec::new() };
        let plain = tables(&record, MetadataVersion::V2, pool(), &numbers(), LowWater::Setup).expect("plain");
        record.backstore.cache_tier = Some(CacheTier { blockdev });
        let all = |numbers: &BTreeMap<_, _>| tables(&record, MetadataVersion::V2, pool(), numbers, LowWater::Setup);
        assert_eq!(all(&numbers()), Err(StackFault::Missing(fast)));
        let mut numbers = numbers();
        numbers.insert(fast, DeviceNumber(8, 32));
        let cached = all(&numbers).expect("all devices are there");
        let dm = |role| Dm::Private(pool(), role);
        let below = Below::Device(DeviceNumber(8, 32));
        assert_eq!(cached[0], plain[0]);
        assert_eq!(cached[1], (dm(Role::MetaSub), line(1_048_576, below, 8_192)));
        assert_eq!(cached[2], (dm(Role::CacheSub), line(1_040_384, below, 1_056_768)));
        let cache = Table::Cache { length: plain[0].1.length(), block: Sectors(2_048) };
        assert_eq!(cached[3], (dm(Role::Cache), cache));
        assert_eq!(cached[4..], plain[2..], "what lies above does not move");
    }

    #[test]
    fn version_1_lies_on_the_backstore_until_there_is_a_cache() {
        let mut record = record();
        let all = |record: &PoolRecord| {
            let mut numbers = numbers();
            numbers.insert(DevUuid::from_random([4; 16]), DeviceNumber(8, 32));
            tables(record, MetadataVersion::V1, pool(), &numbers, LowWater::Setup).expect("all devices are there")
        };
        let plain = all(&record);
        let roles = |tables: &[(Dm, Table)]| {
            let role = |device: &Dm| match device {
                Dm::Private(_, role) => *role,
                Dm::Thin(..) => panic!("no volume was asked for"),
            };
            tables.iter().map(|(device, _)| role(device)).collect::<Vec<_>>()
        };
        let upper = [Role::ThinMeta, Role::ThinData, Role::Mdv, Role::ThinPool];
        assert_eq!(roles(&plain), [&[Role::OriginSub][..], &upper].concat());
        let fast = DeviceSegment { parent: DevUuid::from_random([4; 16]), start: Sectors(8_192), length: Sectors(8) };
        let blockdev = Devices { allocs: vec![vec![fast], vec![fast]], devs: Vec::new() };
        record.backstore.cache_tier = Some(CacheTier { blockdev });
        let cached = all(&record);
        let lower = [Role::OriginSub, Role::MetaSub, Role::CacheSub, Role::Cache];
        assert_eq!(roles(&cached), [&lower[..], &upper].concat());
        for (now, then) in plain[1..4].iter().zip(&cached[4..7]) {
            assert_ne!(now, then);
            assert_eq!(then.1.without_cache(pool()).as_ref(), Some(&now.1), "the same sectors, through the cache");
        }
        assert_eq!((&plain[4], cached[7].1.without_cache(pool())), (&cached[7], None));
        let origin = Table::Linear(vec![LinearLine {
            length: plain[0].1.length(),
            below: Below::Dm(Dm::Private(pool(), Role::OriginSub)),
            start: Sectors::ZERO,
        }]);
        assert_eq!(cached[3].1.without_cache(pool()), Some(origin), "the placeholder of version 2");
    }

    #[test]
    fn a_filesystem_is_a_thin_volume_of_its_size() {
        let filesystem = FilesystemRecord {
            name: name(),
            uuid: FsUuid::from_random([3; 16]),
            thin_id: ThinId(5),
            size: Sectors(1_048_576),
            created: 0,
            size_limit: None,
            origin: None,
            merge: false,
        };
        assert_eq!(thin(&filesystem), Table::Thin { length: Sectors(1_048_576), id: ThinId(5) });
    }
}
