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
    /// What is free of a recorded tier, on devices of these sizes. A device without a size counts as
    /// one that has no sectors.
    ///
    /// # Errors
    /// When the record gives a sector out twice, or one that no device has.
    pub fn rebuild(tier: &Devices, sizes: &BTreeMap<DevUuid, Sectors>) -> Result<Self, NotFree> {
        let mut allocator = Self::default();
        for device in &tier.devs {
            let size = sizes.get(&device.uuid).copied().unwrap_or(Sectors::ZERO);
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
        self.runs.iter().map(|run| run.length).sum()
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
