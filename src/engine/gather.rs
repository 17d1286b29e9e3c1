//! What a set of devices with one pool's signature amounts to.
//!
//! Input is what was read of each device; output says what to do. Nothing is repaired here, and
//! nothing is refused for a copy that is damaged as long as another one is good.
//!
//! Invariants: only devices marked as half-made, in a set without any record, are given up to be
//! wiped; a device that the newest record does not list and that holds no record is ignored.

use std::collections::BTreeMap;

use crate::engine::check;
use crate::engine::pool::Member;
use crate::error::Refusal;
use crate::format::header::{FLAG_CREATING, StaticHeader};
use crate::format::mda::{self, REGIONS, Region, WallStamp};
use crate::format::record::{self, PoolRecord};
use crate::model::device::Candidate;
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::{MetadataVersion, StoppedDevice, StoppedPoolView};
use crate::units::Sectors;

/// The devices found so far with one pool's signature.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Gathered {
    /// Each device once.
    pub candidates: Vec<Candidate>,
}

impl Gathered {
    /// Adds a device, or replaces what was known of it.
    pub fn add(&mut self, candidate: Candidate) {
        self.candidates.retain(|known| known.number != candidate.number);
        self.candidates.push(candidate);
    }
}

/// What was read of one device.
#[derive(Clone, Debug)]
pub struct Read {
    /// The device.
    pub candidate: Candidate,
    /// Its signature.
    pub header: StaticHeader,
    /// Its metadata area.
    pub regions: [Region; REGIONS],
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
}

/// Judges a set.
pub fn judge(pool: PoolUuid, devices: &[Read]) -> Verdict {
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
    match assemble(pool, devices, *record, time) {
        Ok(ready) => Verdict::Ready(Box::new(ready)),
        Err(refusal) => Verdict::Unfit(refusal),
    }
}

fn without_record(device: &Read) -> bool {
    mda::newest(&device.regions).is_none()
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

fn assemble(pool: PoolUuid, devices: &[Read], record: PoolRecord, time: WallStamp) -> Result<Ready, Refusal> {
    let version =
        version(devices).ok_or(Refusal::Inconsistent { pool, what: "its devices have both metadata versions" })?;
    let name = Name::try_from(record.name.as_str())?;
    let mut members = Vec::new();
    for device in record.devices() {
        let mut found = devices.iter().filter(|read| read.header.device == device.uuid);
        members.extend(found.next().map(member));
        if found.next().is_some() {
            return Err(Refusal::Inconsistent { pool, what: "a device is there twice" });
        }
    }
    let total = record.devices().count();
    if members.len() < total {
        return Err(Refusal::PoolIncomplete { pool, missing: total - members.len(), total });
    }
    let strangers: Vec<&Read> =
        devices.iter().filter(|read| !record.devices().any(|device| device.uuid == read.header.device)).collect();
    if strangers.iter().any(|read| !without_record(read)) {
        return Err(Refusal::Inconsistent { pool, what: "a device that the newest record does not list has a record" });
    }
    if members.iter().any(|member| member.header.size > member.candidate.size) {
        return Err(Refusal::Inconsistent { pool, what: "a device is smaller than recorded" });
    }
    let sizes: BTreeMap<DevUuid, Sectors> =
        members.iter().map(|member| (member.header.device, member.header.size)).collect();
    check::check(&record, version, &sizes).map_err(|fault| Refusal::Inconsistent { pool, what: fault.as_str() })?;
    let strangers = strangers.into_iter().map(|read| read.candidate.clone()).collect();
    Ok(Ready { name, record, time, members, strangers })
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
    let device = |read: &Read| StoppedDevice { uuid: read.header.device, devnode: read.candidate.path.to_string() };
    StoppedPoolView {
        uuid: pool,
        name: record.as_ref().and_then(|record| Name::try_from(record.name.as_str()).ok()),
        devices: devices.iter().map(device).collect(),
        version: version(devices),
        features: record.as_deref().map(features),
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
