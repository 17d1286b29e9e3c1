//! What a set of devices with one pool's signature amounts to.
//!
//! Input is what was read of each device; output says what to do. Nothing is repaired here, and
//! nothing is refused for a copy that is damaged as long as another one is good.
//!
//! Invariants: only marked devices without a record are given up to be wiped: those of a creation, in a set
//! without any record, and those that joined or left a pool whose newest record does not list them. Any other
//! device that the newest record does not list and that holds no record is ignored.

use std::collections::BTreeMap;

use crate::engine::check;
use crate::engine::pool::Member;
use crate::error::Refusal;
use crate::format::header::{FLAG_CREATING, FLAG_JOINING, StaticHeader};
use crate::format::mda::{self, REGIONS, Region, WallStamp};
use crate::format::record::{self, PoolRecord};
use crate::model::device::{Candidate, DeviceNumber};
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::{MetadataVersion, StoppedDevice, StoppedPoolView};
use crate::units::Sectors;
use crate::zoo::{Bug, planted};

/// The devices found so far with one pool's signature.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Gathered {
    /// Each device once.
    pub candidates: Vec<Candidate>,
}

impl Gathered {
    /// Adds a device, or replaces what was known of it. False: it is known, and as it was.
    pub fn add(&mut self, candidate: Candidate) -> bool {
        let same = |known: &Candidate| {
            (&known.path, known.number, known.size, known.blocks)
                == (&candidate.path, candidate.number, candidate.size, candidate.blocks)
        };
        if self.candidates.iter().any(same) {
            return false;
        }
        self.remove(candidate.number);
        self.candidates.push(candidate);
        true
    }

    /// Takes a device out. False: it was not there.
    pub fn remove(&mut self, number: DeviceNumber) -> bool {
        let before = self.candidates.len();
        self.candidates.retain(|known| known.number != number);
        self.candidates.len() < before
    }
}

/// What was read of one device.
#[derive(Clone, Debug)]
pub struct Read {
    /// The device.
    pub candidate: Candidate,
    /// Its signature.
    pub header: StaticHeader,
    /// One of the signature's two copies is damaged, or behind the other.
    pub worn: bool,
    /// Its metadata area.
    pub regions: [Region; REGIONS],
}

impl Read {
    /// Whether it holds a record of its pool. Devices of a cache never do.
    pub fn has_record(&self) -> bool {
        mda::newest(&self.regions).is_some()
    }
}

/// What the set amounts to.
#[derive(Debug)]
pub enum Verdict {
    /// The remains of a creation that was cut off: wipe them.
    HalfMade,
    /// The remains of a destruction that was cut off: go on with it.
    Destroying,
    /// A pool that can be set up.
    Ready(Box<Ready>),
    /// A pool that cannot be set up, and why not.
    Unfit(Refusal),
}

/// A pool that can be set up.
#[derive(Debug)]
pub struct Ready {
    /// Its name.
    pub name: Name,
    /// Its newest record.
    pub record: PoolRecord,
    /// When that was written.
    pub time: WallStamp,
    /// Its devices, in the order of the record.
    pub members: Vec<Member>,
    /// Devices with the pool's signature that the record does not know.
    pub strangers: Vec<Candidate>,
    /// Those of them that were joining or leaving the pool when that was cut off: they are wiped.
    pub left_over: Vec<Candidate>,
    /// The devices, as far as they are there, of a cache that the record has no more, as was asked for.
    pub dropped: Option<Vec<Member>>,
    /// What of its copies is to be made good.
    pub worn: Worn,
}

/// Copies that are damaged or behind. Nothing is refused for them; they are made good when the pool is up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Worn {
    /// Devices with a copy of their signature that is not as it should be.
    pub signatures: Vec<DevUuid>,
    /// Saves that make the records good: one, where a device has an older record than others; two, where one of its
    /// regions is damaged, because a save leaves the newest pair of them alone.
    pub saves: u8,
}

/// Judges a set.
pub fn judge(pool: PoolUuid, devices: &[Read]) -> Verdict {
    judge_as(pool, devices, false)
}

/// Judges a set whose pool is to have no cache from now on: what the cache holds the other devices hold too, and
/// so its devices may be missing.
pub fn judge_without_cache(pool: PoolUuid, devices: &[Read]) -> Verdict {
    judge_as(pool, devices, true)
}

fn judge_as(pool: PoolUuid, devices: &[Read], drop_cache: bool) -> Verdict {
    let (record, time) = match newest(devices) {
        Newest::Good(record, time) => (record, time),
        Newest::Strange => {
            let what = "its newest record is whole, but not one that can be understood";
            return Verdict::Unfit(Refusal::Inconsistent { pool, what });
        }
        Newest::None => {
            let marked = |device: &Read| device.header.flags & FLAG_CREATING != 0;
            let half_made = !devices.is_empty() && devices.iter().all(marked);
            let unread = Refusal::NoMetadata { pool, devices: devices.len() };
            return if half_made { Verdict::HalfMade } else { Verdict::Unfit(unread) };
        }
    };
    if record.destroying {
        return Verdict::Destroying;
    }
    match assemble(pool, devices, *record, time, drop_cache) {
        Ok(ready) => Verdict::Ready(Box::new(ready)),
        Err(refusal) => Verdict::Unfit(refusal),
    }
}

/// The newest record of a set.
enum Newest {
    /// No device has one whose checksums hold.
    None,
    /// Its checksums hold and it makes no sense. An older one would not do: its tables would lie over
    /// newer allocations.
    Strange,
    /// It counts.
    Good(Box<PoolRecord>, WallStamp),
}

fn newest(devices: &[Read]) -> Newest {
    let records = devices.iter().filter_map(|device| mda::newest(&device.regions));
    let Some((_, time, json)) = records.max_by_key(|(_, time, _)| *time) else {
        return Newest::None;
    };
    match record::decode(json) {
        Ok(record) => Newest::Good(Box::new(record), time),
        Err(fault) => {
            log::error!("a pool's newest record cannot be understood: {fault}");
            Newest::Strange
        }
    }
}

fn assemble(
    pool: PoolUuid,
    devices: &[Read],
    mut record: PoolRecord,
    time: WallStamp,
    drop_cache: bool,
) -> Result<Ready, Refusal> {
    let version =
        version(devices).ok_or(Refusal::Inconsistent { pool, what: "its devices have both metadata versions" })?;
    let name = Name::try_from(record.name.as_str())?;
    let cache = if drop_cache { record.backstore.cache_tier.take() } else { None };
    let cached: Vec<DevUuid> = cache.iter().flat_map(|tier| &tier.blockdev.devs).map(|device| device.uuid).collect();
    let is_dropped = |read: &&Read| cached.contains(&read.header.device);
    let (dropped, devices): (Vec<&Read>, Vec<&Read>) = devices.iter().partition(is_dropped);
    let mut members = Vec::new();
    for device in record.devices() {
        let mut found = devices.iter().copied().filter(|read| read.header.device == device.uuid);
        members.extend(found.next().map(member));
        if found.next().is_some() && !planted(Bug::TwinIsTaken) {
            return Err(Refusal::Inconsistent { pool, what: "a device is there twice" });
        }
    }
    let total = record.devices().count();
    if members.len() < total {
        return Err(Refusal::PoolIncomplete { pool, missing: total - members.len(), total });
    }
    let strangers: Vec<&Read> = devices
        .iter()
        .copied()
        .filter(|read| !record.devices().any(|device| device.uuid == read.header.device))
        .collect();
    if strangers.iter().any(|read| read.has_record() || planted(Bug::StrangerRefuses)) {
        return Err(Refusal::Inconsistent { pool, what: "a device that the newest record does not list has a record" });
    }
    if members.iter().any(|member| member.header.size > member.candidate.size) {
        return Err(Refusal::Inconsistent { pool, what: "a device is smaller than recorded" });
    }
    let sizes: BTreeMap<DevUuid, Sectors> =
        members.iter().map(|member| (member.header.device, member.header.size)).collect();
    check::check(&record, version, &sizes).map_err(|fault| Refusal::Inconsistent { pool, what: fault.as_str() })?;
    let (left_over, strangers): (Vec<&Read>, Vec<&Read>) =
        strangers.into_iter().partition(|read| read.header.flags & FLAG_JOINING != 0);
    let candidates = |reads: Vec<&Read>| reads.into_iter().map(|read| read.candidate.clone()).collect();
    let (strangers, left_over) = (candidates(strangers), candidates(left_over));
    let dropped = cache.map(|_| dropped.into_iter().map(member).collect());
    let worn = worn(&record, &devices, time);
    Ok(Ready { name, record, time, members, strangers, left_over, dropped, worn })
}

/// What of the pool's copies is to be made good. Only devices of the data tier have records.
fn worn(record: &PoolRecord, devices: &[&Read], time: WallStamp) -> Worn {
    let of_pool = |read: &&&Read| record.devices().any(|device| device.uuid == read.header.device);
    let signatures = devices.iter().filter(of_pool).filter(|read| read.worn).map(|read| read.header.device).collect();
    let data =
        |read: &&&Read| record.backstore.data_tier.blockdev.devs.iter().any(|dev| dev.uuid == read.header.device);
    let saves = |read: &&Read| match mda::newest(&read.regions) {
        Some(_) | None if mda::damaged(&read.regions) => 2,
        Some((_, newest, _)) if newest == time => 0,
        Some(_) | None => 1,
    };
    Worn { signatures, saves: devices.iter().filter(data).map(saves).max().unwrap_or(0) }
}

fn member(read: &Read) -> Member {
    Member { candidate: read.candidate.clone(), header: read.header, older: mda::older(&read.regions), bad: false }
}

fn version(devices: &[Read]) -> Option<MetadataVersion> {
    let first = devices.first()?.header.version;
    devices.iter().all(|device| device.header.version == first).then_some(first)
}

/// The set as clients see it while it is not running.
pub fn stopped_view(pool: PoolUuid, devices: &[Read]) -> StoppedPoolView {
    let record = match newest(devices) {
        Newest::Good(record, _) => Some(record),
        Newest::None | Newest::Strange => None,
    };
    let device = |read: &Read| StoppedDevice {
        uuid: read.header.device,
        devnode: read.candidate.path.to_string(),
        number: read.candidate.number,
    };
    StoppedPoolView {
        uuid: pool,
        name: record.as_ref().and_then(|record| Name::try_from(record.name.as_str()).ok()),
        devices: devices.iter().map(device).collect(),
        version: version(devices),
        features: record.as_deref().map(features),
        tokens: None,
    }
}

/// The features of a pool as the property of stopped pools spells them.
pub fn features(record: &PoolRecord) -> BTreeMap<String, bool> {
    let spelled = |recorded: &str| match recorded {
        "Encryption" => Some("encryption"),
        "KeyDescriptionEnabled" => Some("key_description_present"),
        "ClevisEnabled" => Some("clevis_present"),
        "Integrity" => Some("integrity"),
        "Raid" => Some("raid"),
        _ => None,
    };
    record.features.iter().filter_map(|recorded| spelled(recorded)).map(|name| (name.to_owned(), true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::layout;
    use crate::format::header::{MDA_SECTORS, RESERVED_SECTORS};
    use crate::format::record::{CacheTier, Device, DeviceSegment, Devices};
    use crate::model::device::{BlockSizes, DevicePath, Occupant};
    use crate::model::pool::IntegritySpec;

    const SIZE: Sectors = Sectors(8_388_608);

    fn pool() -> PoolUuid {
        PoolUuid::from_random([7; 16])
    }

    fn device(n: u8) -> DevUuid {
        DevUuid::from_random([n; 16])
    }

    fn record(devices: &[u8]) -> PoolRecord {
        let sizes: Vec<_> = devices.iter().map(|n| (device(*n), SIZE)).collect();
        let integrity = IntegritySpec::default();
        let layout = layout::first(&sizes, &integrity, 100).expect("large enough");
        layout.record(&Name::try_from("p").expect("a name"), &integrity, 100)
    }

    fn read(n: u8, flags: u64, found: &[(u64, &PoolRecord)]) -> Read {
        let header = StaticHeader {
            size: SIZE,
            version: MetadataVersion::V2,
            pool: pool(),
            device: device(n),
            mda_size: MDA_SECTORS,
            reserved: RESERVED_SECTORS,
            flags,
            initialized: 1,
        };
        let mut regions = [const { Region::Empty }; REGIONS];
        for (pair, (seconds, record)) in found.iter().enumerate() {
            let time = WallStamp { seconds: *seconds, nanoseconds: 0 };
            regions[pair] = Region::Record { time, json: record::encode(record) };
        }
        let candidate = Candidate {
            path: DevicePath::try_from(&*format!("/dev/{n}")).expect("absolute"),
            number: DeviceNumber(u64::from(n), 0),
            size: SIZE,
            blocks: BlockSizes { logical: 512, physical: 512 },
            occupant: Occupant::Stratis,
            hardware: None,
        };
        Read { candidate, header, worn: false, regions }
    }

    fn unfit(devices: &[Read]) -> Refusal {
        match judge(pool(), devices) {
            Verdict::Unfit(refusal) => refusal,
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn only_what_differs_from_what_is_known_is_news() {
        let mut set = Gathered::default();
        let found = read(1, 0, &[]).candidate;
        assert!(set.add(found.clone()));
        let unused = Candidate { occupant: Occupant::Nobody, hardware: Some("w".into()), ..found.clone() };
        assert!(!set.add(unused), "what was known before it had its signature is the same device");
        assert!(set.add(Candidate { size: Sectors(SIZE.0 * 2), ..found.clone() }));
        assert_eq!(set.candidates.len(), 1);
        assert!(set.remove(found.number) && !set.remove(found.number));
        assert!(set.add(found));
    }

    #[test]
    fn the_newest_record_of_any_device_counts() {
        let (old, mut new) = (record(&[1, 2]), record(&[1, 2]));
        new.started = Some(false);
        match judge(pool(), &[read(1, 0, &[(5, &old)]), read(2, 0, &[(5, &old), (6, &new)])]) {
            Verdict::Ready(ready) => {
                assert!(!ready.record.started());
                assert_eq!(ready.members.iter().map(|member| member.older).collect::<Vec<_>>(), [1, 0]);
            }
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn only_marked_devices_without_any_record_are_half_made() {
        let half = [read(1, FLAG_CREATING, &[]), read(2, FLAG_CREATING, &[])];
        assert!(matches!(judge(pool(), &half), Verdict::HalfMade));
        assert!(matches!(unfit(&[read(1, FLAG_CREATING, &[]), read(2, 0, &[])]), Refusal::NoMetadata { .. }));
        assert!(matches!(unfit(&[]), Refusal::NoMetadata { .. }));
        let whole = record(&[1, 2]);
        let marked = [read(1, FLAG_CREATING, &[(5, &whole)]), read(2, FLAG_CREATING, &[])];
        assert!(matches!(judge(pool(), &marked), Verdict::Ready(_)));
    }

    #[test]
    fn a_destruction_is_gone_on_with_whatever_is_left() {
        let mut marked = record(&[1, 2]);
        marked.destroying = true;
        assert!(matches!(judge(pool(), &[read(2, 0, &[(5, &marked)])]), Verdict::Destroying));
    }

    #[test]
    fn a_missing_device_keeps_the_pool_stopped() {
        let whole = record(&[1, 2]);
        assert!(matches!(unfit(&[read(1, 0, &[(5, &whole)])]), Refusal::PoolIncomplete { missing: 1, total: 2, .. }));
        let view = stopped_view(pool(), &[read(1, 0, &[(5, &whole)])]);
        assert_eq!((view.devices.len(), view.version), (1, Some(MetadataVersion::V2)));
        assert_eq!(view.name.expect("it is on record").as_str(), "p");
    }

    #[test]
    fn a_stranger_is_ignored_unless_it_has_a_record() {
        let one = record(&[1]);
        match judge(pool(), &[read(1, 0, &[(5, &one)]), read(9, 0, &[])]) {
            Verdict::Ready(ready) => assert_eq!(ready.strangers.len(), 1),
            verdict => panic!("{verdict:?}"),
        }
        let refusal = unfit(&[read(1, 0, &[(5, &one)]), read(9, 0, &[(4, &one)])]);
        assert!(matches!(refusal, Refusal::Inconsistent { .. }));
    }

    #[test]
    fn a_device_that_was_joining_is_wiped_only_if_the_newest_record_does_not_list_it() {
        let (one, both) = (record(&[1]), record(&[1, 2]));
        let ready = |devices: &[Read]| match judge(pool(), devices) {
            Verdict::Ready(ready) => (ready.members.len(), ready.strangers.len(), ready.left_over.len()),
            verdict => panic!("{verdict:?}"),
        };
        assert_eq!(ready(&[read(1, 0, &[(5, &one)]), read(2, FLAG_JOINING, &[])]), (1, 0, 1));
        assert_eq!(ready(&[read(1, 0, &[(5, &one), (6, &both)]), read(2, FLAG_JOINING, &[])]), (2, 0, 0));
        // Alone it is nobody's to wipe: the pool that it joined may come later.
        assert!(matches!(unfit(&[read(2, FLAG_JOINING, &[])]), Refusal::NoMetadata { .. }));
        let recorded = [read(1, 0, &[(5, &one)]), read(2, FLAG_JOINING, &[(4, &both)])];
        assert!(matches!(unfit(&recorded), Refusal::Inconsistent { .. }));
    }

    #[test]
    fn a_cache_is_left_out_with_its_devices_there_or_not() {
        let mut cached = record(&[1]);
        let segment =
            |start, length| DeviceSegment { parent: device(2), start: Sectors(start), length: Sectors(length) };
        let allocs = vec![vec![segment(1_056_768, SIZE.0 - 1_056_768)], vec![segment(8_192, 1_048_576)]];
        let listed =
            |n| Device { uuid: device(n), integrity_meta_allocs: vec![], user_info: None, hardware_info: None };
        let blockdev = Devices { allocs, devs: vec![listed(2)] };
        cached.backstore.cache_tier = Some(CacheTier { blockdev });
        let both = [read(1, 0, &[(5, &cached)]), read(2, 0, &[])];
        let ready = |verdict| match verdict {
            Verdict::Ready(ready) => (ready.members.len(), ready.dropped.map(|dropped| dropped.len())),
            verdict => panic!("{verdict:?}"),
        };
        assert_eq!(ready(judge(pool(), &both)), (2, None));
        assert_eq!(ready(judge_without_cache(pool(), &both)), (1, Some(1)));
        assert!(matches!(unfit(&both[..1]), Refusal::PoolIncomplete { missing: 1, .. }));
        assert_eq!(ready(judge_without_cache(pool(), &both[..1])), (1, Some(0)));
        assert!(matches!(judge_without_cache(pool(), &both[1..]), Verdict::Unfit(_)), "the data is not there");
    }

    #[test]
    fn a_whole_record_that_makes_no_sense_is_not_passed_over() {
        let good = record(&[1]);
        let mut device = read(1, 0, &[(5, &good)]);
        let time = WallStamp { seconds: 6, nanoseconds: 0 };
        device.regions[1] = Region::Record { time, json: b"{}".to_vec() };
        assert!(matches!(unfit(&[device]), Refusal::Inconsistent { .. }));
    }

    #[test]
    fn one_device_twice_or_of_two_versions_is_refused() {
        let one = record(&[1]);
        let clone = read(1, 0, &[(5, &one)]);
        assert!(matches!(unfit(&[clone.clone(), clone.clone()]), Refusal::Inconsistent { .. }));
        let mut other = read(2, 0, &[]);
        other.header.version = MetadataVersion::V1;
        assert!(matches!(unfit(&[clone, other]), Refusal::Inconsistent { .. }));
    }
}
