//! Tables as the kernel has them: with numbers where ours have names, made into its text and read
//! from it.
//!
//! Invariant: reading gives back what was made. What we would never make (another target, an
//! external origin) is nothing that we know, and never like anything that we want.
//!
//! Deliberately absent: the kernel. Numbers come as an argument.

use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::{Below, Dm, LinearLine, Role, Table, ThinFeature};
use crate::model::ids::ThinId;
use crate::units::Sectors;

/// Lines as device-mapper takes and gives them: start, length, target, parameters.
pub(super) type Lines = Vec<(u64, u64, String, String)>;

const LINEAR: &str = "linear";
const CACHE: &str = "cache";
/// What a cache is told: one feature, and a policy without arguments.
const WRITETHROUGH: &str = "writethrough";
const POLICY: &str = "default";
const THIN_POOL: &str = "thin-pool";
const THIN: &str = "thin";

const FEATURES: [ThinFeature; 3] =
    [ThinFeature::ErrorIfNoSpace, ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];

/// A line of a linear table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Line {
    length: Sectors,
    below: DeviceNumber,
    start: Sectors,
}

/// A whole table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Numbered {
    /// Lines that follow each other from 0.
    Linear(Vec<Line>),
    /// A cache that writes through, with the devices of its metadata and its data, and what it caches.
    Cache { length: Sectors, meta: DeviceNumber, data: DeviceNumber, origin: DeviceNumber, block: Sectors },
    /// A thin pool with its metadata and data device.
    ThinPool {
        length: Sectors,
        meta: DeviceNumber,
        data: DeviceNumber,
        block: Sectors,
        low_water: u64,
        features: Vec<ThinFeature>,
    },
    /// A volume of the thin pool of this number.
    Thin { length: Sectors, pool: DeviceNumber, id: ThinId },
}

/// What an active table is to the one that is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Likeness {
    /// The same, as far as it matters.
    Same,
    /// Its beginning: the device has to grow. Or a thin pool that does not treat new blocks as it should.
    Beginning,
    /// Something else.
    Other,
}

impl Numbered {
    /// The table with the numbers of what lies below.
    pub(super) fn new(
        device: Dm,
        table: &Table,
        number: impl Fn(Dm) -> Result<DeviceNumber, Why>,
    ) -> Result<Self, Why> {
        let private = |role| number(Dm::Private(device.pool(), role));
        let line = |line: &LinearLine| {
            let below = match line.below {
                Below::Device(number) => number,
                Below::Dm(below) => number(below)?,
            };
            Ok(Line { length: line.length, below, start: line.start })
        };
        Ok(match table {
            Table::Linear(lines) => Self::Linear(lines.iter().map(line).collect::<Result<_, Why>>()?),
            Table::Cache { length, block } => Self::Cache {
                length: *length,
                meta: private(Role::MetaSub)?,
                data: private(Role::CacheSub)?,
                origin: private(Role::OriginSub)?,
                block: *block,
            },
            Table::ThinPool { length, block, low_water, features } => Self::ThinPool {
                length: *length,
                meta: private(Role::ThinMeta)?,
                data: private(Role::ThinData)?,
                block: *block,
                low_water: *low_water,
                features: features.clone(),
            },
            Table::Thin { length, id } => Self::Thin { length: *length, pool: private(Role::ThinPool)?, id: *id },
        })
    }

    /// As device-mapper takes it.
    pub(super) fn lines(&self) -> Lines {
        match self {
            Self::Linear(lines) => {
                let mut start = Sectors::ZERO;
                let line = |line: &Line| {
                    let begins = start;
                    start += line.length;
                    (begins.0, line.length.0, LINEAR.to_owned(), format!("{} {}", text(line.below), line.start.0))
                };
                lines.iter().map(line).collect()
            }
            Self::Cache { length, meta, data, origin, block } => {
                let devices = [meta, data, origin].map(|number| text(*number)).join(" ");
                let parameters = format!("{devices} {} 1 {WRITETHROUGH} {POLICY} 0", block.0);
                vec![(0, length.0, CACHE.to_owned(), parameters)]
            }
            Self::ThinPool { length, meta, data, block, low_water, features } => {
                let mut parameters =
                    format!("{} {} {} {low_water} {}", text(*meta), text(*data), block.0, features.len());
                for feature in features {
                    parameters.push(' ');
                    parameters.push_str(feature.as_str());
                }
                vec![(0, length.0, THIN_POOL.to_owned(), parameters)]
            }
            Self::Thin { length, pool, id } => {
                vec![(0, length.0, THIN.to_owned(), format!("{} {id}", text(*pool)))]
            }
        }
    }

    /// What device-mapper gave; nothing for a table that we would never make.
    pub(super) fn parse(lines: &Lines) -> Option<Self> {
        let (_, length, target, parameters) = lines.first()?;
        let words: Vec<&str> = parameters.split_ascii_whitespace().collect();
        match (target.as_str(), words.as_slice()) {
            (LINEAR, _) => parse_linear(lines),
            // The policy's name is an alias of one that the kernel may give instead.
            (CACHE, [meta, data, origin, block, "1", WRITETHROUGH, _policy, "0"]) if lines.len() == 1 => {
                Some(Self::Cache {
                    length: Sectors(*length),
                    meta: parse_number(meta)?,
                    data: parse_number(data)?,
                    origin: parse_number(origin)?,
                    block: Sectors(block.parse().ok()?),
                })
            }
            (THIN_POOL, [meta, data, block, low_water, _count, features @ ..]) if lines.len() == 1 => {
                let known = |feature: &ThinFeature| features.contains(&feature.as_str());
                Some(Self::ThinPool {
                    length: Sectors(*length),
                    meta: parse_number(meta)?,
                    data: parse_number(data)?,
                    block: Sectors(block.parse().ok()?),
                    low_water: low_water.parse().ok()?,
                    features: FEATURES.into_iter().filter(known).collect(),
                })
            }
            (THIN, [pool, id]) if lines.len() == 1 => {
                Some(Self::Thin { length: Sectors(*length), pool: parse_number(pool)?, id: ThinId(id.parse().ok()?) })
            }
            // Another target, or parameters that ours never have.
            _ => None,
        }
    }

    /// This table for a thin pool that is active and shorter: it keeps its length, and gets more by itself.
    pub(super) fn as_long_as(&self, active: &Self) -> Self {
        match (self.clone(), active) {
            (Self::ThinPool { length, meta, data, block, low_water, features }, Self::ThinPool { length: now, .. }) => {
                Self::ThinPool { length: length.min(*now), meta, data, block, low_water, features }
            }
            (other, _) => other,
        }
    }

    /// What this active table is to the `wanted` one. Low water of a thin pool and whether it waits for
    /// space change while it runs, so they do not count. Whether it zeroes new blocks does: logs of
    /// new filesystems are left unwritten because of that.
    pub(super) fn to(&self, wanted: &Self) -> Likeness {
        match (self, wanted) {
            (Self::Linear(active), Self::Linear(wanted)) => linear_to(active, wanted),
            (
                Self::ThinPool { length, meta, data, block, features, .. },
                Self::ThinPool {
                    length: wanted,
                    meta: other_meta,
                    data: other_data,
                    block: other_block,
                    features: other_features,
                    ..
                },
            ) if (meta, data, block) == (other_meta, other_data, other_block) => {
                let skips = |features: &[ThinFeature]| features.contains(&ThinFeature::SkipBlockZeroing);
                match grown(*length, *wanted) {
                    Likeness::Same if skips(features) != skips(other_features) => Likeness::Beginning,
                    likeness => likeness,
                }
            }
            (Self::Thin { length, pool, id }, Self::Thin { length: wanted, pool: other_pool, id: other_id })
                if (pool, id) == (other_pool, other_id) =>
            {
                grown(*length, *wanted)
            }
            (
                Self::Cache { length, meta, data, origin, block },
                Self::Cache { length: wanted, meta: on, data: with, origin: of, block: each },
            ) if (meta, data, origin, block) == (on, with, of, each) => grown(*length, *wanted),
            (Self::Linear(_) | Self::Cache { .. } | Self::ThinPool { .. } | Self::Thin { .. }, _) => Likeness::Other,
        }
    }
}

fn grown(active: Sectors, wanted: Sectors) -> Likeness {
    match active.cmp(&wanted) {
        std::cmp::Ordering::Equal => Likeness::Same,
        std::cmp::Ordering::Less => Likeness::Beginning,
        std::cmp::Ordering::Greater => Likeness::Other,
    }
}

fn linear_to(active: &[Line], wanted: &[Line]) -> Likeness {
    let Some((last, whole)) = active.split_last() else { return Likeness::Other };
    if !wanted.starts_with(whole) {
        return Likeness::Other;
    }
    let Some(line) = wanted.get(whole.len()) else { return Likeness::Other };
    if (last.below, last.start) != (line.below, line.start) || last.length > line.length {
        return Likeness::Other;
    }
    if active == wanted { Likeness::Same } else { Likeness::Beginning }
}

fn parse_linear(lines: &Lines) -> Option<Numbered> {
    let mut end = 0;
    let mut parsed = Vec::with_capacity(lines.len());
    for (start, length, target, parameters) in lines {
        let (below, offset) = parameters.trim().split_once(' ')?;
        if target != LINEAR || *start != end {
            return None;
        }
        end = start.checked_add(*length)?;
        let start = Sectors(offset.parse().ok()?);
        parsed.push(Line { length: Sectors(*length), below: parse_number(below)?, start });
    }
    Some(Numbered::Linear(parsed))
}

fn text(number: DeviceNumber) -> String {
    format!("{}:{}", number.0, number.1)
}

fn parse_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::{FsUuid, PoolUuid};

    fn pool() -> PoolUuid {
        PoolUuid::from_random([1; 16])
    }

    fn line(length: u64, minor: u64, start: u64) -> Line {
        Line { length: Sectors(length), below: DeviceNumber(8, minor), start: Sectors(start) }
    }

    fn thin_pool(length: u64, low_water: u64, features: &[ThinFeature]) -> Numbered {
        Numbered::ThinPool {
            length: Sectors(length),
            meta: DeviceNumber(253, 2),
            data: DeviceNumber(253, 3),
            block: Sectors(2_048),
            low_water,
            features: features.to_vec(),
        }
    }

    fn thin(length: u64, id: u32) -> Numbered {
        Numbered::Thin { length: Sectors(length), pool: DeviceNumber(253, 5), id: ThinId(id) }
    }

    #[test]
    fn the_published_example_has_this_text() {
        let number = |device| match device {
            Dm::Private(_, Role::OriginSub) => Ok(DeviceNumber(253, 0)),
            Dm::Private(_, Role::MetaSub) => Ok(DeviceNumber(253, 7)),
            Dm::Private(_, Role::CacheSub) => Ok(DeviceNumber(253, 8)),
            Dm::Private(_, Role::ThinMeta) => Ok(DeviceNumber(253, 2)),
            Dm::Private(_, Role::ThinData) => Ok(DeviceNumber(253, 3)),
            Dm::Private(_, Role::ThinPool) => Ok(DeviceNumber(253, 5)),
            Dm::Private(_, Role::Cache | Role::ThinMetaSpare | Role::Mdv) | Dm::Thin(..) => {
                Err(Why::Errno(libc::ENXIO))
            }
        };
        let private = |role| Dm::Private(pool(), role);
        let linear =
            |below, start| Table::Linear(vec![LinearLine { length: Sectors(1_792_000), below, start: Sectors(start) }]);
        let features = vec![ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];
        let stack = [
            (
                private(Role::OriginSub),
                linear(Below::Device(DeviceNumber(8, 16)), 8_192),
                (1_792_000, "linear", "8:16 8192"),
            ),
            (private(Role::Cache), linear(Below::Dm(private(Role::OriginSub)), 0), (1_792_000, "linear", "253:0 0")),
            (
                private(Role::Cache),
                Table::Cache { length: Sectors(1_792_000), block: Sectors(2_048) },
                (1_792_000, "cache", "253:7 253:8 253:0 2048 1 writethrough default 0"),
            ),
            (
                private(Role::ThinPool),
                Table::ThinPool { length: Sectors(692_224), block: Sectors(2_048), low_water: 169, features },
                (692_224, "thin-pool", "253:2 253:3 2048 169 2 no_discard_passdown skip_block_zeroing"),
            ),
            (
                Dm::Thin(pool(), FsUuid::from_random([2; 16])),
                Table::Thin { length: Sectors(1 << 31), id: ThinId(7) },
                (1 << 31, "thin", "253:5 7"),
            ),
        ];
        for (device, table, (length, target, parameters)) in stack {
            let lines = Numbered::new(device, &table, number).expect("all below is there").lines();
            assert_eq!(lines, [(0, length, target.to_owned(), parameters.to_owned())]);
        }
        let nowhere = linear(Below::Dm(private(Role::Mdv)), 0);
        assert_eq!(Numbered::new(private(Role::Cache), &nowhere, number), Err(Why::Errno(libc::ENXIO)));
    }

    #[test]
    fn a_beginning_is_completed_and_nothing_else() {
        let wanted = Numbered::Linear(vec![line(8, 16, 0), line(8, 32, 100)]);
        let to = |lines: &[Line]| Numbered::Linear(lines.to_vec()).to(&wanted);
        assert_eq!(to(&[line(8, 16, 0), line(8, 32, 100)]), Likeness::Same);
        for beginning in [vec![line(7, 16, 0)], vec![line(8, 16, 0)], vec![line(8, 16, 0), line(1, 32, 100)]] {
            assert_eq!(to(&beginning), Likeness::Beginning, "{beginning:?}");
        }
        for other in [
            vec![],
            vec![line(9, 16, 0)],
            vec![line(7, 16, 0), line(8, 32, 100)],
            vec![line(8, 16, 1)],
            vec![line(8, 17, 0)],
            vec![line(8, 16, 0), line(8, 32, 99)],
            vec![line(8, 16, 0), line(8, 32, 100), line(8, 48, 0)],
        ] {
            assert_eq!(to(&other), Likeness::Other, "{other:?}");
        }
    }

    #[test]
    fn a_thin_pool_is_the_same_whatever_its_low_water_but_not_if_it_skips_zeroing() {
        use ThinFeature::{ErrorIfNoSpace, NoDiscardPassdown, SkipBlockZeroing};
        let wanted = thin_pool(4_096, 169, &FEATURES);
        assert_eq!(thin_pool(4_096, 1, &[SkipBlockZeroing]).to(&wanted), Likeness::Same);
        let zeroing = thin_pool(4_096, 169, &[NoDiscardPassdown]);
        assert_eq!(thin_pool(4_096, 169, &[ErrorIfNoSpace]).to(&zeroing), Likeness::Same);
        assert_eq!(wanted.to(&zeroing), Likeness::Beginning);
        assert_eq!(zeroing.to(&wanted), Likeness::Beginning);
        assert_eq!(thin_pool(6_144, 169, &[]).to(&wanted), Likeness::Other);
        let shorter = thin_pool(2_048, 169, &FEATURES);
        assert_eq!(shorter.to(&wanted), Likeness::Beginning);
        assert_eq!(shorter.to(&wanted.as_long_as(&shorter)), Likeness::Same, "it is adopted as it is");
        assert_eq!(thin_pool(6_144, 1, &FEATURES).to(&wanted.as_long_as(&thin_pool(6_144, 1, &[]))), Likeness::Other);
        assert_eq!(thin_pool(6_144, 169, &FEATURES).to(&wanted), Likeness::Other);
        assert_eq!(thin(4_096, 1).to(&wanted), Likeness::Other);
    }

    #[test]
    fn a_cache_is_its_devices_and_its_blocks() {
        let cache = |length, origin| Numbered::Cache {
            length: Sectors(length),
            meta: DeviceNumber(253, 1),
            data: DeviceNumber(253, 2),
            origin: DeviceNumber(253, origin),
            block: Sectors(2_048),
        };
        let wanted = cache(4_096, 0);
        assert_eq!(cache(4_096, 0).to(&wanted), Likeness::Same);
        assert_eq!(cache(2_048, 0).to(&wanted), Likeness::Beginning);
        assert_eq!(cache(6_144, 0).to(&wanted), Likeness::Other);
        assert_eq!(cache(4_096, 9).to(&wanted), Likeness::Other);
        let placeholder = Numbered::Linear(vec![line(4_096, 0, 0)]);
        assert_eq!(placeholder.to(&wanted), Likeness::Other, "what it was before stands elsewhere");
        let parse = |parameters: &str| Numbered::parse(&vec![(0, 4_096, CACHE.to_owned(), parameters.to_owned())]);
        assert_eq!(parse("253:1 253:2 253:0 2048 1 writethrough smq 0 "), Some(wanted.clone()));
        for other in [
            "253:1 253:2 253:0 2048 1 writeback default 0",
            "253:1 253:2 253:0 2048 2 metadata2 writethrough default 0",
            "253:1 253:2 253:0 2048 1 writethrough default 2 migration_threshold 8",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_thin_volume_is_its_id() {
        assert_eq!(thin(8, 1).to(&thin(8, 1)), Likeness::Same);
        assert_eq!(thin(8, 1).to(&thin(16, 1)), Likeness::Beginning);
        assert_eq!(thin(16, 1).to(&thin(8, 1)), Likeness::Other);
        assert_eq!(thin(8, 1).to(&thin(8, 2)), Likeness::Other);
    }

    #[test]
    fn what_we_would_never_make_is_nothing_we_know() {
        let one = |target: &str, parameters: &str| vec![(0, 8, target.to_owned(), parameters.to_owned())];
        for lines in [
            vec![],
            one("crypt", "aes 0 0 8:16 0"),
            one("thin", "253:5 7 8:16"),
            one("thin", "253:5 minus"),
            one("linear", "8:16"),
            one("linear", "/dev/sda 0"),
            one("thin-pool", "253:2 253:3 2048"),
            one("cache", "253:2 253:3 2048 1 writethrough default 0"),
            vec![(1, 8, "linear".to_owned(), "8:16 0".to_owned())],
            vec![
                (0, u64::MAX, "linear".to_owned(), "8:16 0".to_owned()),
                (u64::MAX, 9, "linear".into(), "8:1 0".into()),
            ],
        ] {
            let parsed = Numbered::parse(&lines);
            assert!(parsed.is_none() || lines.len() == 2, "{lines:?} is {parsed:?}");
        }
    }

    #[test]
    fn the_kernel_may_order_features_as_it_likes() {
        let line = "253:2 253:3 2048 169 2 skip_block_zeroing no_discard_passdown ";
        let parsed = Numbered::parse(&vec![(0, 4_096, "thin-pool".to_owned(), line.to_owned())]);
        let features = [ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing];
        assert_eq!(parsed, Some(thin_pool(4_096, 169, &features)));
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_back(
            lines in prop::collection::vec((1_u64..1 << 40, 0_u64..1 << 20, 0_u64..1 << 40), 1..20),
            id in 0_u32..1 << 24,
            length in 1_u64..1 << 40,
        ) {
            let lines = lines.into_iter().map(|(length, minor, start)| line(length, minor, start)).collect();
            let (meta, data, origin) = (DeviceNumber(253, 0), DeviceNumber(253, id.into()), DeviceNumber(8, 1));
            let cache = Numbered::Cache { length: Sectors(length), meta, data, origin, block: Sectors(2_048) };
            let thin_pool = thin_pool(length, u64::from(id), &FEATURES[1..]);
            for table in [Numbered::Linear(lines), thin(length, id), thin_pool, cache] {
                prop_assert_eq!(Numbered::parse(&table.lines()), Some(table.clone()));
                prop_assert_eq!(table.to(&table), Likeness::Same);
            }
        }
    }
}
