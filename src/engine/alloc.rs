//! Which sectors of which data device are free, and who gets them next.
//!
//! Devices are asked in the order in which they were added, each from its lowest free address;
//! space for an integrity layer is taken from the highest. A batch is granted whole or not at all.
//!
//! Invariant: every sector of a device behind its metadata is either free, or was given out once.
//! Free runs are sorted, apart, and not empty.
//!
//! Deliberately absent: devices themselves, and the record. An allocator is rebuilt from a record.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::format::header::DATA_START;
use crate::format::record::{DeviceSegment, Devices, Segment};
use crate::model::ids::DevUuid;
use crate::units::Sectors;

/// Free space of a tier.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Allocator {
    devices: Vec<Free>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Free {
    uuid: DevUuid,
    /// All that may be given out, free or not.
    whole: Segment,
    runs: Vec<Segment>,
}

/// A request for more than there is.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{wanted} are wanted and {free} are free")]
pub struct Short {
    /// How much was asked for.
    pub wanted: Sectors,
    /// How much there is.
    pub free: Sectors,
}

/// What cannot be taken: it belongs to no device here, passes its end, or is taken already.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{} sectors from {} on are not free on device {}", .0.length.0, .0.start.0, .0.parent)]
pub struct NotFree(pub DeviceSegment);

impl Allocator {
    /// What is free of a recorded tier, on devices of these sizes. Of a device without a size nothing is given out:
    /// it is on record before it has joined, and what is kept on it for an integrity layer is no matter here.
    ///
    /// # Errors
    /// When the record gives a sector out twice, or one that no device has.
    pub fn rebuild(tier: &Devices, sizes: &BTreeMap<DevUuid, Sectors>) -> Result<Self, NotFree> {
        let mut allocator = Self::default();
        for device in &tier.devs {
            let Some(size) = sizes.get(&device.uuid).copied() else { continue };
            allocator.add(device.uuid, DATA_START, size);
            for Segment { start, length } in device.integrity_meta_allocs.iter().copied() {
                allocator.take(DeviceSegment { parent: device.uuid, start, length })?;
            }
        }
        tier.allocs.iter().flatten().try_for_each(|segment| allocator.take(*segment))?;
        Ok(allocator)
    }

    /// Adds a device that is free from `first` up to its end, behind those that are here.
    pub fn add(&mut self, uuid: DevUuid, first: Sectors, size: Sectors) {
        let whole = Segment { start: first, length: size.saturating_sub(first) };
        let runs = if whole.length == Sectors::ZERO { Vec::new() } else { vec![whole] };
        self.devices.push(Free { uuid, whole, runs });
    }

    /// Sectors that are free on all devices together.
    pub fn free(&self) -> Sectors {
        self.devices.iter().map(Free::total).sum()
    }

    /// Sectors that are free on one device.
    pub fn free_on(&self, uuid: DevUuid) -> Sectors {
        self.devices.iter().filter(|device| device.uuid == uuid).map(Free::total).sum()
    }

    /// Takes exactly these sectors, as when an allocator is rebuilt from a record.
    ///
    /// # Errors
    /// When some of them are not free; nothing is taken then.
    pub fn take(&mut self, segment: DeviceSegment) -> Result<(), NotFree> {
        let device = self.devices.iter_mut().find(|device| device.uuid == segment.parent);
        let taken = device.is_some_and(|device| device.take(segment.segment()));
        taken.then_some(()).ok_or(NotFree(segment))
    }

    /// Grants all requests, one after the other, or none of them.
    ///
    /// # Errors
    /// When more is asked for than is free.
    pub fn allocate(&mut self, wanted: &[Sectors]) -> Result<Vec<Vec<DeviceSegment>>, Short> {
        let total = wanted.iter().try_fold(Sectors::ZERO, |sum, one| sum.checked_add(*one));
        let free = self.free();
        match total {
            Some(total) if total <= free => Ok(wanted.iter().map(|one| self.lowest(*one)).collect()),
            Some(wanted) => Err(Short { wanted, free }),
            None => Err(Short { wanted: Sectors(u64::MAX), free }),
        }
    }

    fn lowest(&mut self, wanted: Sectors) -> Vec<DeviceSegment> {
        let mut left = wanted;
        let mut granted = Vec::new();
        for device in &mut self.devices {
            while left > Sectors::ZERO && !device.runs.is_empty() {
                let run = &mut device.runs[0];
                let length = run.length.min(left);
                append(&mut granted, &[DeviceSegment { parent: device.uuid, start: run.start, length }]);
                *run = Segment { start: run.start + length, length: run.length - length };
                device.runs.retain(|run| run.length > Sectors::ZERO);
                left = left - length;
            }
        }
        assert!(left == Sectors::ZERO, "the sum was compared with what is free");
        granted
    }

    /// Takes sectors of one device from its highest free addresses, for an integrity layer. The
    /// segments come highest first.
    ///
    /// # Errors
    /// When the device has fewer; nothing is taken then.
    pub fn reserve_high(&mut self, uuid: DevUuid, wanted: Sectors) -> Result<Vec<Segment>, Short> {
        let free = self.free_on(uuid);
        let device = self.devices.iter_mut().find(|device| device.uuid == uuid);
        let Some(device) = device.filter(|_| wanted <= free) else { return Err(Short { wanted, free }) };
        let mut left = wanted;
        let mut reserved = Vec::new();
        while left > Sectors::ZERO {
            let run = device.runs.pop().expect("the device was found to have enough");
            let length = run.length.min(left);
            reserved.push(Segment { start: run.end() - length, length });
            if length < run.length {
                device.runs.push(Segment { start: run.start, length: run.length - length });
            }
            left = left - length;
        }
        Ok(reserved)
    }

    /// Gives back what was granted and not used: the reservation was dropped.
    ///
    /// # Panics
    /// When some of it is free already, or was never here: that would be given out twice.
    pub fn give_back(&mut self, segments: &[DeviceSegment]) {
        for segment in segments.iter().filter(|segment| segment.length > Sectors::ZERO) {
            let device = self.devices.iter_mut().find(|device| device.uuid == segment.parent);
            device.expect("sectors come back to the device that they came from").give_back(segment.segment());
        }
    }

    /// The end of a device has moved up: the new sectors are free.
    ///
    /// # Panics
    /// When the device is not here, or would shrink.
    pub fn grow(&mut self, uuid: DevUuid, size: Sectors) {
        let device = self.devices.iter_mut().find(|device| device.uuid == uuid).expect("the device is in the tier");
        let more = Segment { start: device.whole.end(), length: size - device.whole.end() };
        device.whole.length += more.length;
        if more.length > Sectors::ZERO {
            device.give_back(more);
        }
    }
}

impl Free {
    fn total(&self) -> Sectors {
        self.runs.iter().sum()
    }

    fn take(&mut self, wanted: Segment) -> bool {
        let Some(end) = wanted.start.checked_add(wanted.length).filter(|end| *end > wanted.start) else {
            return false; // Nobody records nothing; and a run must not be cut in two touching ones.
        };
        let Some(at) = self.runs.iter().position(|run| run.start <= wanted.start && end <= run.end()) else {
            return false;
        };
        let run = self.runs[at];
        let before = Segment { start: run.start, length: wanted.start - run.start };
        let after = Segment { start: end, length: run.end() - end };
        self.runs.splice(at..=at, [before, after].into_iter().filter(|part| part.length > Sectors::ZERO));
        true
    }

    fn give_back(&mut self, segment: Segment) {
        assert!(self.whole.start <= segment.start && segment.end() <= self.whole.end(), "sectors of the device");
        let at = self.runs.partition_point(|run| run.start < segment.start);
        assert!(self.runs[..at].last().is_none_or(|run| run.end() <= segment.start), "sectors that were taken");
        assert!(self.runs.get(at).is_none_or(|run| segment.end() <= run.start), "sectors that were taken");
        self.runs.insert(at, segment);
        self.runs.dedup_by(|next, run| {
            let touch = run.end() == next.start;
            if touch {
                run.length += next.length;
            }
            touch
        });
    }
}

/// Puts segments behind those that are there, merging a segment with the one before it where they
/// are neighbours on one device, as the record wants it.
pub fn append(list: &mut Vec<DeviceSegment>, more: &[DeviceSegment]) {
    for next in more {
        match list.last_mut() {
            Some(last) if last.parent == next.parent && last.end() == next.start => last.length += next.length,
            Some(_) | None => list.push(*next),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> DevUuid {
        DevUuid::from_random([number; 16])
    }

    fn on(device: u8, start: u64, length: u64) -> DeviceSegment {
        DeviceSegment { parent: id(device), start: Sectors(start), length: Sectors(length) }
    }

    fn two() -> Allocator {
        let mut allocator = Allocator::default();
        allocator.add(id(1), DATA_START, Sectors(10_000));
        allocator.add(id(2), DATA_START, Sectors(20_000));
        allocator
    }

    #[test]
    fn devices_are_filled_in_order_from_their_lowest_sectors() {
        let mut allocator = two();
        let granted = allocator.allocate(&[Sectors(1_000), Sectors(1_000), Sectors(0)]).expect("enough");
        let expected = vec![vec![on(1, 8192, 1000)], vec![on(1, 9192, 808), on(2, 8192, 192)], vec![]];
        assert_eq!(granted, expected);
        let mut list = Vec::new();
        granted.iter().for_each(|segments| append(&mut list, segments));
        assert_eq!(list, [on(1, 8192, 1808), on(2, 8192, 192)]);
    }

    #[test]
    fn a_batch_is_granted_whole_or_not_at_all() {
        let mut allocator = two();
        let free = allocator.free();
        assert_eq!(free, Sectors(1_808 + 11_808));
        let refused = allocator.allocate(&[Sectors(1), free]);
        assert_eq!(refused, Err(Short { wanted: free + Sectors(1), free }));
        assert!(allocator.allocate(&[Sectors(u64::MAX), Sectors(u64::MAX)]).is_err());
        assert_eq!(allocator, two());
        assert!(allocator.allocate(&[free]).is_ok());
        assert_eq!(allocator.free(), Sectors::ZERO);
    }

    #[test]
    fn integrity_gets_the_highest_sectors_also_across_a_hole() {
        let mut allocator = two();
        allocator.take(on(1, 9_990, 5)).expect("free");
        let reserved = allocator.reserve_high(id(1), Sectors(8)).expect("enough");
        let segment = |start, length| Segment { start: Sectors(start), length: Sectors(length) };
        assert_eq!(reserved, [segment(9_995, 5), segment(9_987, 3)]);
        let free = allocator.free_on(id(1));
        assert_eq!(free, Sectors(1_808 - 13));
        let wanted = free + Sectors(1);
        assert_eq!(allocator.reserve_high(id(1), wanted), Err(Short { wanted, free }));
        assert_eq!(allocator.reserve_high(id(3), wanted), Err(Short { wanted, free: Sectors::ZERO }));
    }

    #[test]
    fn only_what_is_free_can_be_taken() {
        let mut allocator = two();
        allocator.take(on(1, 8_500, 100)).expect("free");
        let after = allocator.clone();
        let one_too_early = on(1, 8_191, 10);
        let one_too_late = on(1, 9_999, 2);
        for taken in [on(1, 8_500, 1), on(1, 8_400, 101), one_too_early, one_too_late, on(3, 9_000, 1), on(1, 9_000, 0)]
        {
            assert_eq!(allocator.take(taken), Err(NotFree(taken)));
        }
        assert_eq!(allocator.take(on(1, u64::MAX, 2)), Err(NotFree(on(1, u64::MAX, 2))));
        assert_eq!(allocator, after);
    }

    #[test]
    fn a_device_smaller_than_its_metadata_offers_nothing() {
        let mut allocator = Allocator::default();
        allocator.add(id(1), DATA_START, Sectors(8_191));
        allocator.add(id(2), DATA_START, DATA_START);
        assert_eq!(allocator.free(), Sectors::ZERO);
        assert_eq!(allocator.allocate(&[Sectors(1)]), Err(Short { wanted: Sectors(1), free: Sectors::ZERO }));
    }

    #[test]
    fn a_grown_device_offers_its_new_sectors() {
        let mut allocator = two();
        allocator.allocate(&[Sectors(1_808)]).expect("enough");
        allocator.grow(id(1), Sectors(10_100));
        assert_eq!(allocator.free_on(id(1)), Sectors(100));
        assert_eq!(allocator.allocate(&[Sectors(10)]).expect("enough"), [[on(1, 10_000, 10)]]);
    }

    #[test]
    #[should_panic(expected = "sectors that were taken")]
    fn what_is_free_cannot_be_given_back() {
        two().give_back(&[on(1, 8_192, 1)]);
    }

    /// What a test does to an allocator.
    #[derive(Clone, Debug)]
    enum Step {
        Allocate(Vec<u64>),
        Reserve(u8, u64),
        GiveBack(usize),
        Grow(u8, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            prop::collection::vec(0..3_000u64, 1..5).prop_map(Step::Allocate),
            (1..4u8, 0..2_000u64).prop_map(|(device, length)| Step::Reserve(device, length)),
            any::<usize>().prop_map(Step::GiveBack),
            (1..4u8, 0..500u64).prop_map(|(device, more)| Step::Grow(device, more)),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        #[test]
        fn no_sector_is_lost_or_given_out_twice_or_made_up(
            steps in steps(), ends in prop::array::uniform3(8_000..20_000u64),
        ) {
            let mut ends = ends.map(Sectors);
            let mut allocator = Allocator::default();
            for (device, end) in (1..).zip(ends) {
                allocator.add(id(device), DATA_START, end);
            }
            let mut held: Vec<DeviceSegment> = Vec::new();
            for step in steps {
                let before = allocator.free();
                match step {
                    Step::Allocate(wanted) => {
                        let wanted: Vec<Sectors> = wanted.into_iter().map(Sectors).collect();
                        let sum: Sectors = wanted.iter().copied().sum();
                        let granted = allocator.allocate(&wanted);
                        prop_assert_eq!(granted.is_ok(), sum <= before);
                        let Ok(granted) = granted else { continue };
                        for (wanted, segments) in wanted.iter().zip(&granted) {
                            prop_assert_eq!(segments.iter().sum::<Sectors>(), *wanted);
                        }
                        held.extend(granted.into_iter().flatten());
                    }
                    Step::Reserve(device, length) => {
                        let parent = id(device);
                        let Ok(reserved) = allocator.reserve_high(parent, Sectors(length)) else { continue };
                        let of_device = |Segment { start, length }| DeviceSegment { parent, start, length };
                        held.extend(reserved.into_iter().map(of_device));
                    }
                    Step::GiveBack(which) if !held.is_empty() => {
                        let segment = held.swap_remove(which % held.len());
                        allocator.give_back(&[segment]);
                    }
                    Step::GiveBack(_) => {}
                    Step::Grow(device, more) => {
                        let end = &mut ends[usize::from(device) - 1];
                        *end = (*end).max(DATA_START) + Sectors(more);
                        allocator.grow(id(device), *end);
                    }
                }
                verify(&allocator, &held, ends);
            }
            let sizes = (1..).map(id).zip(ends).collect();
            let device = |device| crate::format::record::Device {
                uuid: id(device), integrity_meta_allocs: vec![], user_info: None, hardware_info: None,
            };
            let tier = Devices { allocs: vec![held], devs: (1..4).map(device).collect() };
            prop_assert_eq!(Allocator::rebuild(&tier, &sizes), Ok(allocator));
        }
    }

    /// Held and free sectors together are each device behind its metadata, exactly.
    fn verify(allocator: &Allocator, held: &[DeviceSegment], ends: [Sectors; 3]) {
        for (device, end) in allocator.devices.iter().zip(ends) {
            assert!(device.runs.windows(2).all(|two| two[0].end() < two[1].start), "runs are sorted and apart");
            let held = held.iter().filter(|segment| segment.parent == device.uuid).map(DeviceSegment::segment);
            let mut all: Vec<Segment> = held.chain(device.runs.iter().copied()).collect();
            all.sort_unstable();
            let mut next = DATA_START;
            for segment in all {
                assert_eq!(segment.start, next, "no gap and no overlap");
                next = segment.end();
            }
            assert_eq!(next, end.max(DATA_START), "nothing beyond the end");
        }
    }
}
