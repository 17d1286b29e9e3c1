//! What a record says of backing space, and entering more of it.
//!
//! A piece is entered behind all others of the cap device: into the list of the flex device that gets it, into
//! the list of what the cap device gave out, and with the sectors that were granted for it. So the record and the
//! sectors that nobody has never disagree. `Space` is what stood there before, to be put back when the record
//! could not be saved.
//!
//! Invariant: a record that passed `check` passes it with what was entered. Whoever enters has to be alone with the
//! record until that is saved or put back.
//!
//! Deliberately absent: how much, and who may have it.

use crate::engine::alloc::append;
use crate::engine::cap;
use crate::format::record::{DeviceSegment, FlexDevices, PoolRecord, Segment};
use crate::units::Sectors;

/// What a record said of the backing space before something was entered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Space {
    data_allocs: Vec<Vec<DeviceSegment>>,
    cap_allocs: Vec<Segment>,
    flex: FlexDevices,
    features: Option<Vec<String>>,
}

impl Space {
    /// What it says now.
    pub fn of(record: &PoolRecord) -> Self {
        Self {
            data_allocs: record.backstore.data_tier.blockdev.allocs.clone(),
            cap_allocs: record.backstore.cap.allocs.clone(),
            flex: record.flex_devs.clone(),
            features: record.thinpool_dev.feature_args.clone(),
        }
    }

    /// Puts it back: what was entered since could not be saved.
    pub fn restore(self, record: &mut PoolRecord) {
        record.backstore.data_tier.blockdev.allocs = self.data_allocs;
        record.backstore.cap.allocs = self.cap_allocs;
        record.flex_devs = self.flex;
        record.thinpool_dev.feature_args = self.features;
    }
}

/// A flex device that grows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flex {
    /// The thin pool's metadata.
    Meta,
    /// The room to repair them into.
    Spare,
    /// The thin pool's data.
    Data,
}

/// Enters pieces, each with the sectors that were granted for it.
pub fn enter(record: &mut PoolRecord, pieces: &[(Flex, Sectors)], granted: &[Vec<DeviceSegment>]) {
    let data_allocs = &mut record.backstore.data_tier.blockdev.allocs[0];
    granted.iter().for_each(|segments| append(data_allocs, segments));
    let flex = &mut record.flex_devs;
    for (of, length) in pieces.iter().copied().filter(|(_, length)| *length > Sectors::ZERO) {
        let piece = cap::append(&mut record.backstore.cap, length);
        let list = match of {
            Flex::Meta => &mut flex.thin_meta_dev,
            Flex::Spare => &mut flex.thin_meta_dev_spare,
            Flex::Data => &mut flex.thin_data_dev,
        };
        match list.last_mut() {
            Some(last) if last.end() == piece.start => last.length += length,
            Some(_) | None => list.push(piece),
        }
    }
}
