//! Devices that join a tier of a pool that exists, or grow in it: which may, and what the pool's record then says.
//!
//! A data device is added whole: room for an integrity layer is kept at its end, the rest is free until the pool
//! needs it. A cache device is handed out whole at once: the first sectors of a new cache are its metadata, all
//! others its data.
//!
//! Invariant: a record that passed `check` passes it with the new devices, or with the new size.
//!
//! Deliberately absent: who else wants a device (the directory's), and what lives on it (`devices`).

use std::collections::BTreeMap;

use crate::engine::alloc::{Allocator, Short, append};
use crate::engine::layout::{self, LayoutFault};
use crate::engine::pool::{self, Member};
use crate::engine::size::{self, CACHE_BLOCK, CACHE_DATA_MAX, CACHE_META};
use crate::engine::{cap, devices};
use crate::error::Refusal;
use crate::format::header::DATA_START;
use crate::format::record::{CacheTier, Device, DeviceSegment, Devices, PoolRecord};
use crate::message::Claimable;
use crate::model::device::{Candidate, Tier};
use crate::model::dm::Role;
use crate::model::ids::DevUuid;
use crate::model::name::Name;
use crate::model::pool::IntegritySpec;
use crate::units::Sectors;

/// The devices of a pool by tier.
#[derive(Clone, Copy, Debug)]
pub struct Tiers<'a> {
    /// The pool's name, for messages.
    pub pool: &'a Name,
    /// Its record.
    pub record: &'a PoolRecord,
    /// Its devices.
    pub members: &'a [Member],
}

impl Tiers<'_> {
    /// The tier of a device of the pool.
    pub fn of(&self, device: DevUuid) -> Tier {
        let data = self.record.backstore.data_tier.blockdev.devs.iter().any(|data| data.uuid == device);
        if data { Tier::Data } else { Tier::Cache }
    }

    /// The devices of a tier.
    pub fn members(&self, tier: Tier) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| self.of(member.header.device) == tier)
    }

    /// A device of a tier.
    pub fn member(&self, tier: Tier, device: DevUuid) -> Option<&Member> {
        self.members(tier).find(|member| member.header.device == device)
    }

    /// Every device with its tier.
    pub fn places(&self) -> Vec<Claimable> {
        let place =
            |member: &Member| (member.candidate.number, member.candidate.path.clone(), self.of(member.header.device));
        self.members.iter().map(place).collect()
    }

    /// Whether there is a cache.
    pub fn has_cache(&self) -> bool {
        self.members(Tier::Cache).next().is_some()
    }

    /// Which of the named devices a tier does not have yet. One that the other tier has is refused.
    pub fn newcomers(&self, tier: Tier, named: Vec<Candidate>) -> Result<Vec<Candidate>, Refusal> {
        let mut new = Vec::with_capacity(named.len());
        for candidate in named {
            match self.members.iter().find(|member| member.candidate.number == candidate.number) {
                None => new.push(candidate),
                Some(member) if self.of(member.header.device) == tier => {}
                Some(_) => return Err(Refusal::DeviceOtherTier { path: candidate.path, tier: tier.other().as_str() }),
            }
        }
        Ok(new)
    }

    /// Whether the named devices are those of the cache.
    pub fn is_cache_of(&self, named: &[Candidate]) -> Result<(), Refusal> {
        let cache: Vec<_> = self.members(Tier::Cache).map(|member| member.candidate.place()).collect();
        let named: Vec<_> = named.iter().map(Candidate::place).collect();
        let (asked, present) = devices::difference(&named, &cache);
        if asked.is_empty() && present.is_empty() {
            return Ok(());
        }
        Err(Refusal::CacheDiffers { name: self.pool.clone(), asked, present })
    }

    /// Whether devices that were examined may join a tier: nobody lives there, and their blocks are those of the
    /// devices beside them. The first devices of a cache need only take what the data tier takes.
    pub fn admit(&self, tier: Tier, new: &[Candidate]) -> Result<(), Refusal> {
        devices::admit(new)?;
        let first_of_cache = tier == Tier::Cache && !self.has_cache();
        let beside = self.coarsest(if first_of_cache { Tier::Data } else { tier });
        let differs = |candidate: &&Candidate| {
            let (one, other) = (candidate.blocks, beside.blocks);
            if first_of_cache { one.logical != other.logical } else { one != other }
        };
        new.iter().find(differs).map_or(Ok(()), |other| Err(devices::mixed(beside, other)))
    }

    /// The device with the largest blocks among those in use of a tier, or among all if none is.
    fn coarsest(&self, tier: Tier) -> &Candidate {
        let blocks = |member: &&Member| (member.candidate.blocks.logical, member.candidate.blocks.physical);
        let used = self.members(tier).filter(|member| self.in_use(tier, member)).max_by_key(blocks);
        let found = used.or_else(|| self.members(tier).max_by_key(blocks));
        &found.expect("a tier that is asked has devices").candidate
    }

    /// Whether something lies on a device of a tier.
    fn in_use(&self, tier: Tier, member: &Member) -> bool {
        let mut segments = self.blockdev(tier).into_iter().flat_map(|blockdev| blockdev.allocs.iter().flatten());
        segments.any(|segment| segment.parent == member.header.device)
    }

    /// A device that nothing lies on yet and that has larger blocks than those in use beside it: what goes on there
    /// next would change the blocks of the pool under its filesystems.
    pub fn too_coarse(&self) -> Option<&Candidate> {
        let in_tier = |tier| {
            let (used, rest): (Vec<&Member>, Vec<&Member>) =
                self.members(tier).partition(|member| self.in_use(tier, member));
            let largest = |of: fn(&Candidate) -> u32| used.iter().map(|member| of(&member.candidate)).max();
            let (logical, physical) = (largest(|of| of.blocks.logical)?, largest(|of| of.blocks.physical)?);
            let mut rest = rest.into_iter().map(|member| &member.candidate);
            rest.find(|other| other.blocks.logical > logical || other.blocks.physical > physical)
        };
        [Tier::Data, Tier::Cache].into_iter().find_map(in_tier)
    }

    /// Whether a cache may come below what lies on the backstore of a pool that runs. Version 2 has a placeholder,
    /// which is swapped as a whole. Without one the flex devices move to the cache one after the other, and until
    /// the last has, the origin is written to beside the cache. So none of them may share a block with another.
    fn cacheable(&self) -> Result<(), Refusal> {
        let whole = |length: Sectors| length.0.is_multiple_of(CACHE_BLOCK.0);
        let flex = &self.record.flex_devs;
        let mut moved = [&flex.thin_meta_dev, &flex.thin_data_dev, &flex.meta_dev].into_iter().flatten();
        let moves = cap::role(self.record, pool::version(self.members)) != Role::Cache;
        if moves && !moved.all(|segment| whole(segment.start) && whole(segment.length)) {
            return Err(Refusal::CacheUnaligned { name: self.pool.clone(), block: CACHE_BLOCK });
        }
        Ok(())
    }

    const fn blockdev(&self, tier: Tier) -> Option<&Devices> {
        match (tier, &self.record.backstore.cache_tier) {
            (Tier::Data, _) => Some(&self.record.backstore.data_tier.blockdev),
            (Tier::Cache, Some(cache)) => Some(&cache.blockdev),
            (Tier::Cache, None) => None,
        }
    }

    /// The record with these devices in a tier.
    pub fn join(&self, tier: Tier, new: &[Member]) -> Result<PoolRecord, Refusal> {
        let mut record = self.record.clone();
        match tier {
            Tier::Data => self.join_data(&mut record, new)?,
            Tier::Cache => {
                self.cacheable()?;
                self.join_cache(&mut record, new)?;
            }
        }
        Ok(record)
    }

    fn join_data(&self, record: &mut PoolRecord, new: &[Member]) -> Result<(), Refusal> {
        let tier = &mut record.backstore.data_tier;
        for member in new {
            let (uuid, size) = (member.header.device, member.header.size);
            let room = match tier.integrity_spec {
                Some(spec) => layout::room(uuid, size, &IntegritySpec::from(spec)).map_err(|fault| match fault {
                    LayoutFault::Device { size: free, wanted, .. } | LayoutFault::Pool { wanted, free } => {
                        Refusal::TooFewSectors { name: self.pool.clone(), wanted, free }
                    }
                })?,
                None => Vec::new(),
            };
            tier.blockdev.devs.push(Device { integrity_meta_allocs: room, ..listed(member) });
        }
        Ok(())
    }

    fn join_cache(&self, record: &mut PoolRecord, new: &[Member]) -> Result<(), Refusal> {
        let mut allocator = Allocator::default();
        for member in new {
            allocator.add(member.header.device, DATA_START, member.header.size);
        }
        let free = allocator.free();
        let first = record.backstore.cache_tier.is_none();
        let meta = if first { CACHE_META } else { Sectors::ZERO };
        if first && free < CACHE_META + CACHE_BLOCK {
            return Err(Refusal::TooFewSectors { name: self.pool.clone(), wanted: CACHE_META + CACHE_BLOCK, free });
        }
        let granted = allocator.allocate(&[meta, free - meta]).expect("no more is asked for than is free");
        let tier = record.backstore.cache_tier.get_or_insert_with(|| CacheTier {
            blockdev: Devices { allocs: vec![Vec::new(), Vec::new()], devs: Vec::new() },
        });
        // The record has data first, the devices have metadata first.
        let [of_data, of_meta] = &mut tier.blockdev.allocs[..] else { panic!("the record has passed its check") };
        append(of_meta, &granted[0]);
        append(of_data, &granted[1]);
        let wanted: Sectors = of_data.iter().sum();
        if wanted > CACHE_DATA_MAX {
            return Err(Refusal::CacheTooLarge { name: self.pool.clone(), wanted, max: CACHE_DATA_MAX });
        }
        tier.blockdev.devs.extend(new.iter().map(listed));
        Ok(())
    }

    /// The record for a data device with a larger size: more room for an integrity layer, at its new end.
    pub fn grow(&self, device: DevUuid, size: Sectors) -> Result<PoolRecord, Refusal> {
        let mut record = self.record.clone();
        let tier = &mut record.backstore.data_tier;
        let Some(spec) = tier.integrity_spec else {
            return Ok(record);
        };
        let sizes: BTreeMap<DevUuid, Sectors> =
            self.members.iter().map(|member| (member.header.device, member.header.size)).collect();
        let mut allocator = Allocator::rebuild(&tier.blockdev, &sizes).expect("the record has passed its check");
        allocator.grow(device, size);
        let listed = tier.blockdev.devs.iter_mut().find(|listed| listed.uuid == device);
        let room = &mut listed.expect("a data device is on record").integrity_meta_allocs;
        let kept: Sectors = room.iter().sum();
        let wanted = size::integrity(size, &spec.into()).saturating_sub(kept);
        let more = allocator.reserve_high(device, wanted);
        room.extend(more.map_err(|Short { wanted, free }| Refusal::TooFewSectors {
            name: self.pool.clone(),
            wanted,
            free,
        })?);
        Ok(record)
    }
}

/// Takes devices out of a record that nothing but a cache lies on.
pub fn part(record: &mut PoolRecord, devices: &[DevUuid]) {
    let backstore = &mut record.backstore;
    backstore.data_tier.blockdev.devs.retain(|listed| !devices.contains(&listed.uuid));
    if let Some(CacheTier { blockdev }) = &mut backstore.cache_tier {
        blockdev.devs.retain(|listed| !devices.contains(&listed.uuid));
        blockdev.allocs.iter_mut().for_each(|list| list.retain(|segment| !devices.contains(&segment.parent)));
        if blockdev.devs.is_empty() {
            backstore.cache_tier = None;
        }
    }
}

/// What a record says of a new device.
fn listed(member: &Member) -> Device {
    Device {
        uuid: member.header.device,
        integrity_meta_allocs: Vec::new(),
        user_info: None,
        hardware_info: member.candidate.hardware.clone(),
    }
}

/// Where the metadata of a recorded cache begins: a new one must read as zeroes there.
pub fn cache_meta_start(record: &PoolRecord) -> Option<DeviceSegment> {
    record.backstore.cache_tier.as_ref()?.blockdev.allocs.get(1)?.first().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::check::check;
    use crate::model::device::{BlockSizes, DeviceNumber, DevicePath, Occupant};
    use crate::model::ids::PoolUuid;
    use crate::model::pool::MetadataVersion;

    const GIB: u64 = 2_097_152;

    fn id(number: u8) -> DevUuid {
        DevUuid::from_random([number; 16])
    }

    fn member(number: u8, size: u64, blocks: u32) -> Member {
        let candidate = Candidate {
            path: DevicePath::try_from(&*format!("/dev/{number}")).expect("absolute"),
            number: DeviceNumber(number.into(), 0),
            size: Sectors(size),
            blocks: BlockSizes { logical: blocks, physical: blocks },
            occupant: Occupant::Nobody,
            hardware: Some(format!("wwn-{number}")),
        };
        Member::new(candidate, (PoolUuid::from_random([0; 16]), MetadataVersion::V2), id(number), 0, 1)
    }

    struct Pool {
        name: Name,
        record: PoolRecord,
        members: Vec<Member>,
    }

    impl Pool {
        fn new(members: Vec<Member>) -> Self {
            let (integrity, name) = (IntegritySpec::default(), Name::try_from("p").expect("a name"));
            let sizes: Vec<_> = members.iter().map(|member| (member.header.device, member.header.size)).collect();
            let layout = layout::first(&sizes, &integrity, 100).expect("large enough");
            Self { record: layout.record(&name, &integrity, 100), name, members }
        }

        fn tiers(&self) -> Tiers<'_> {
            Tiers { pool: &self.name, record: &self.record, members: &self.members }
        }

        fn join(&mut self, tier: Tier, new: Vec<Member>) -> Result<(), Refusal> {
            self.record = self.tiers().join(tier, &new)?;
            self.members.extend(new);
            self.checked();
            Ok(())
        }

        fn grow(&mut self, number: u8, size: u64) -> Result<(), Refusal> {
            self.record = self.tiers().grow(id(number), Sectors(size))?;
            let member = self.members.iter_mut().find(|member| member.header.device == id(number));
            member.expect("it is there").header.size = Sectors(size);
            self.checked();
            Ok(())
        }

        fn checked(&self) {
            let sizes = self.members.iter().map(|member| (member.header.device, member.header.size)).collect();
            assert_eq!(check(&self.record, MetadataVersion::V2, &sizes), Ok(()));
        }
    }

    fn on(device: u8, start: u64, length: u64) -> DeviceSegment {
        DeviceSegment { parent: id(device), start: Sectors(start), length: Sectors(length) }
    }

    #[test]
    fn a_data_device_is_free_but_for_its_room_for_integrity() {
        let mut pool = Pool::new(vec![member(1, GIB, 512)]);
        let before = pool.record.clone();
        pool.join(Tier::Data, vec![member(2, GIB, 512)]).expect("there is room");
        let devs = &pool.record.backstore.data_tier.blockdev.devs;
        assert_eq!(devs[1].integrity_meta_allocs, devs[0].integrity_meta_allocs, "they have one size");
        assert_eq!(devs[1].hardware_info.as_deref(), Some("wwn-2"));
        let mut same = pool.record.clone();
        same.backstore.data_tier.blockdev.devs.pop();
        assert_eq!(same, before, "nothing else is on record");
    }

    #[test]
    fn a_cache_is_handed_out_whole_with_its_metadata_first() {
        let mut pool = Pool::new(vec![member(1, GIB, 512)]);
        pool.join(Tier::Cache, vec![member(2, GIB, 512), member(3, GIB, 512)]).expect("there is room");
        let json = String::from_utf8(crate::format::record::encode(&pool.record)).expect("UTF-8");
        let (data, meta) = (id(2), id(3));
        let segment =
            |device, start, length| format!("{{\"parent\":\"{device}\",\"start\":{start},\"length\":{length}}}");
        let expected = format!(
            "\"cache_tier\":{{\"blockdev\":{{\"allocs\":[[{},{}],[{}]],\"devs\":[{{\"uuid\":\"{data}\",\"hardware_info\":\"wwn-2\"}},{{\"uuid\":\"{meta}\",\"hardware_info\":\"wwn-3\"}}]}}}}",
            segment(data, 1_056_768, 1_040_384),
            segment(meta, 8_192, 2_088_960),
            segment(data, 8_192, 1_048_576),
        );
        assert!(json.contains(&expected), "{json}");
        pool.join(Tier::Cache, vec![member(4, GIB, 512)]).expect("there is room");
        let allocs = &pool.record.backstore.cache_tier.as_ref().expect("a cache").blockdev.allocs;
        assert_eq!(allocs[0][2], on(4, 8_192, 2_088_960), "more of it is all data");
        assert_eq!(allocs[1], [on(2, 8_192, 1_048_576)]);
        assert_eq!(cache_meta_start(&pool.record), Some(allocs[1][0]));
    }

    #[test]
    fn a_cache_has_an_end() {
        let mut pool = Pool::new(vec![member(1, GIB, 512)]);
        let largest = CACHE_DATA_MAX + CACHE_META + DATA_START;
        pool.join(Tier::Cache, vec![member(2, largest.0, 512)]).expect("exactly 32 TiB");
        let refused = pool.join(Tier::Cache, vec![member(3, GIB, 512)]);
        assert!(matches!(refused, Err(Refusal::CacheTooLarge { .. })), "{refused:?}");
        pool.checked();
    }

    #[test]
    fn a_tier_ignores_its_own_devices_and_refuses_the_others() {
        let mut pool = Pool::new(vec![member(1, GIB, 512)]);
        pool.join(Tier::Cache, vec![member(2, GIB, 512)]).expect("there is room");
        let named: Vec<Candidate> = [1, 2, 3].map(|number| member(number, GIB, 512).candidate).to_vec();
        let new = |tier, places: &[usize]| {
            let named = places.iter().map(|place| named[*place].clone()).collect();
            pool.tiers().newcomers(tier, named).map(|new| new.len())
        };
        assert_eq!((new(Tier::Data, &[0, 2]), new(Tier::Cache, &[1, 2])), (Ok(1), Ok(1)));
        assert!(matches!(new(Tier::Data, &[1, 2]), Err(Refusal::DeviceOtherTier { .. })));
        assert!(matches!(new(Tier::Cache, &[0]), Err(Refusal::DeviceOtherTier { .. })));
        assert_eq!(pool.tiers().is_cache_of(&named[1..2]), Ok(()));
        for others in [&named[..0], &named[1..3], &named[2..3]] {
            assert!(matches!(pool.tiers().is_cache_of(others), Err(Refusal::CacheDiffers { .. })), "{others:?}");
        }
    }

    #[test]
    fn blocks_are_those_of_the_devices_in_use() {
        let mut pool = Pool::new(vec![member(1, GIB, 512)]);
        let admitted = |pool: &Pool, tier, blocks| pool.tiers().admit(tier, &[member(9, GIB, blocks).candidate]);
        for tier in [Tier::Data, Tier::Cache] {
            assert_eq!(admitted(&pool, tier, 512), Ok(()));
            assert!(matches!(admitted(&pool, tier, 4096), Err(Refusal::BlockSizes { .. })));
        }
        // A cache may have larger physical blocks than the data tier; then those that are added have them too.
        let mut coarse = member(2, GIB, 512);
        coarse.candidate.blocks.physical = 4096;
        assert_eq!(pool.tiers().admit(Tier::Cache, &[coarse.candidate.clone()]), Ok(()));
        assert!(pool.tiers().admit(Tier::Data, &[coarse.candidate.clone()]).is_err());
        pool.join(Tier::Cache, vec![coarse]).expect("there is room");
        assert!(matches!(admitted(&pool, Tier::Cache, 512), Err(Refusal::BlockSizes { .. })));
    }

    #[test]
    fn what_is_not_used_yet_has_no_larger_blocks_than_what_is() {
        let coarse = |pool: &Pool| pool.tiers().too_coarse().map(|other| other.path.to_string());
        let mut pool = Pool::new(vec![member(1, GIB, 512)]);
        pool.join(Tier::Data, vec![member(2, GIB, 512)]).expect("there is room");
        pool.join(Tier::Cache, vec![member(3, GIB, 4096)]).expect("there is room");
        assert_eq!(coarse(&pool), None, "a cache is used whole");
        let mut physical = member(4, GIB, 512);
        physical.candidate.blocks.physical = 4096;
        pool.join(Tier::Data, vec![physical]).expect("there is room");
        assert_eq!(coarse(&pool).as_deref(), Some("/dev/4"));
        pool.members[0].candidate.blocks.physical = 4096;
        assert_eq!(coarse(&pool), None, "what is used has the same");
        pool.members[3].candidate.blocks.logical = 4096;
        assert_eq!(coarse(&pool).as_deref(), Some("/dev/4"));
    }

    #[test]
    fn without_a_placeholder_only_whole_blocks_come_to_lie_on_a_cache() {
        let mut pool = Pool::new(vec![member(1, 3 * GIB, 512)]);
        let cache = [member(2, GIB, 512)];
        for version in [MetadataVersion::V2, MetadataVersion::V1] {
            pool.members[0].header.version = version;
            assert!(pool.tiers().join(Tier::Cache, &cache).is_ok(), "{version:?}");
        }
        pool.record.flex_devs.meta_dev[0].length += Sectors(8);
        let refused = pool.tiers().join(Tier::Cache, &cache);
        assert!(matches!(refused, Err(Refusal::CacheUnaligned { .. })), "{refused:?}");
        pool.members[0].header.version = MetadataVersion::V2;
        assert!(pool.tiers().join(Tier::Cache, &cache).is_ok());
    }

    #[test]
    fn devices_that_part_leave_nothing_on_record() {
        let mut pool = Pool::new(vec![member(1, 3 * GIB, 512)]);
        for (tier, number) in [(Tier::Data, 2), (Tier::Cache, 4), (Tier::Cache, 6)] {
            let before = pool.record.clone();
            let mut after = pool.tiers().join(tier, &[member(number, GIB, 512), member(number + 1, GIB, 512)]);
            let after = after.as_mut().expect("there is room");
            part(after, &[id(number), id(number + 1)]);
            assert_eq!(*after, before);
            pool.join(tier, vec![member(number, GIB, 512), member(number + 1, GIB, 512)]).expect("there is room");
        }
    }

    #[test]
    fn a_grown_device_keeps_more_room_at_its_new_end() {
        let mut pool = Pool::new(vec![member(1, GIB, 512), member(2, GIB, 512)]);
        pool.grow(1, 4 * GIB).expect("there is room");
        let devs = &pool.record.backstore.data_tier.blockdev.devs;
        let kept: Sectors = devs[0].integrity_meta_allocs.iter().sum();
        assert_eq!(kept, size::integrity(Sectors(4 * GIB), &IntegritySpec::default()));
        assert_eq!(devs[0].integrity_meta_allocs[1].end(), Sectors(4 * GIB));
    }

    proptest! {
        #[test]
        fn whatever_joins_or_grows_the_record_stays_consistent(
            steps in prop::collection::vec((0..3u8, GIB..20 * GIB), 1..8),
        ) {
            let mut pool = Pool::new(vec![member(1, 3 * GIB, 512)]);
            for (place, (what, size)) in steps.into_iter().enumerate() {
                let number = u8::try_from(place).expect("a few") + 2;
                match what {
                    0 => pool.join(Tier::Data, vec![member(number, size, 512)]).expect("a gibibyte is enough"),
                    1 => pool.join(Tier::Cache, vec![member(number, size, 512)]).expect("a gibibyte is enough"),
                    _ => {
                        let (device, old) = {
                            let tiers = pool.tiers();
                            let data: Vec<&Member> = tiers.members(Tier::Data).collect();
                            let some = data[place % data.len()];
                            (some.header.device, some.header.size)
                        };
                        let number = (1..=9).find(|number| id(*number) == device).expect("one of ours");
                        pool.grow(number, old.0 + size % 100_000).or_else(|refusal| match refusal {
                            // A few sectors may be too few for the room that they want.
                            Refusal::TooFewSectors { .. } => Ok(()),
                            other => Err(other),
                        }).expect("nothing else stands in the way");
                    }
                }
            }
        }
    }
}
