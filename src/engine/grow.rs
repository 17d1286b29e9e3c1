//! When a thin pool grows, and by how much.
//!
//! What it gets next is on record ahead of need: the record lists a step more of thin data than the thin pool has,
//! and the linear devices below have it too. When the pool runs low, all that is left to do is to give it a longer
//! table; after that the next step is entered, saved and put below. It gets so many steps at once that as much is
//! left beyond its mark (`mark`) as was written until the answer. Metadata and its spare grow with it, as the backing
//! space and the limit of filesystems want it, and double when they run low. Of large ones the kernel does not say
//! that in time (`ThinPoolState::meta_mark`): they double when half of them is in use, and are looked at for that.
//!
//! A part of the backing space is kept for metadata (`size::room`); data gets that last, when there is nothing else.
//! Only when the pool runs low and nothing at all is left does it stop to wait for space: from then on a write that
//! finds none fails at once instead of hanging. Each of these is judged anew from what is seen, so whatever makes
//! room takes it back.
//!
//! Invariants: a thin pool is never longer than what is durably on record with its tables below; it never becomes
//! shorter, because dm-thin cannot. A record that passed `check` passes it with a step.
//!
//! Deliberately absent: doing any of it; pools on regular files, whose space is the host's.

use std::collections::BTreeMap;

use crate::engine::alloc::Allocator;
use crate::engine::mark::{Mark, Speed};
use crate::engine::size::{self, DATA_BLOCK, DATA_CHUNK, LOW_WATER_BLOCKS};
use crate::engine::space::{self, Flex, Space};
use crate::format::header::DATA_START;
use crate::format::record::{Device, DeviceSegment, PoolRecord};
use crate::model::dm::{Table, ThinFeature, ThinPoolMode, ThinPoolState};
use crate::model::ids::DevUuid;
use crate::units::Sectors;
use crate::zoo::{Bug, planted};

/// Sectors of a block of thin metadata, in which the kernel counts them.
const META_BLOCK: u64 = 8;
/// A pool that can still get more asks for it when at most one part in so many is free; so it does not ask at once.
const LOW_PART: u64 = 2;
/// What is kept ahead is so many times what is free then, if that is more than a step, and 50 GiB at most.
const AHEAD_LOW_WATERS: u64 = 16;
/// Or so many times a mark that was raised: half of that is there at least, and lets it double.
const AHEAD_RAISED: u64 = 4;
/// One that has all there is says so when at most one part in so many is free.
const LAST_PART: u64 = 16;
/// Blocks of metadata a second that a thin pool at rest is believed to begin to take: each is that of the map of a
/// snapshot, and comes with a write that copies a data block of 1 MiB.
const META_BLOCKS_PER_S: u64 = 100;

/// In which steps thin pools grow, in data blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// By how much at once.
    pub step: u64,
    /// At how many free ones.
    pub low_water: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { step: DATA_CHUNK.0 / DATA_BLOCK.0, low_water: LOW_WATER_BLOCKS }
    }
}

impl Pace {
    /// The most that a new pool gets for data: it must not be low at once.
    pub fn first(&self) -> Sectors {
        sectors(self.step.max(self.low_water.saturating_mul(LOW_PART))).min(DATA_CHUNK)
    }

    /// How much is kept ahead of a pool with this mark. One that grows in steps that are small against it gets them
    /// often, and what makes each of them possible waits for the disks; so many are entered together.
    pub fn ahead(&self, mark: u64) -> u64 {
        let usual = self.low_water.saturating_mul(AHEAD_LOW_WATERS);
        let raised = if mark > self.low_water { mark.saturating_mul(AHEAD_RAISED) } else { 0 };
        self.step.max(usual.max(raised).min(DATA_CHUNK.0 / DATA_BLOCK.0))
    }
}

/// What a thin pool is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Its data blocks.
    pub blocks: u64,
    /// At how many free ones it says so.
    pub low_water: u64,
    /// Whether a write that finds no space waits for it.
    pub waits: bool,
}

impl Shape {
    /// What it is.
    pub const fn of(state: &ThinPoolState) -> Self {
        Self { blocks: state.data_total, low_water: state.low_water, waits: state.waits }
    }

    /// The table that makes it so.
    pub fn table(&self, record: &PoolRecord) -> Table {
        let features = features(record, self.waits);
        Table::ThinPool { length: sectors(self.blocks), block: DATA_BLOCK, low_water: self.low_water, features }
    }
}

/// What of the record a thin pool can use: durable, and in the tables of the devices below.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backed {
    /// Data.
    pub data: Sectors,
    /// Metadata.
    pub meta: Sectors,
}

impl Backed {
    /// All that the record lists.
    pub fn all(record: &PoolRecord) -> Self {
        let flex = &record.flex_devs;
        Self { data: flex.thin_data_dev.iter().sum(), meta: flex.thin_meta_dev.iter().sum() }
    }
}

/// What is to be entered into the record next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Next {
    /// Metadata; as much for the spare.
    pub meta: Sectors,
    /// Data.
    pub data: Sectors,
    /// Whether the thin pool waits for space.
    pub waits: bool,
}

/// What a thin pool needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Need {
    /// It is as it should be, and what comes next is there.
    Nothing,
    /// This table, now.
    Swap(Table),
    /// What comes next is to be entered, or has been and is not backed yet.
    Next,
}

/// What growth is judged by.
#[derive(Clone, Debug)]
pub struct Ground<'a> {
    record: &'a PoolRecord,
    free: Allocator,
    usable: Sectors,
    fs_limit: u64,
    total: Sectors,
    pace: Pace,
    speed: Speed,
}

impl<'a> Ground<'a> {
    /// Of a pool whose data devices have these sizes, with so many filesystems as its limit, of so many sectors
    /// together.
    ///
    /// # Panics
    /// When the record has not passed `check` with these sizes.
    pub fn new(
        record: &'a PoolRecord,
        sizes: &BTreeMap<DevUuid, Sectors>,
        (fs_limit, total): (u64, Sectors),
        pace: Pace,
    ) -> Self {
        let tier = &record.backstore.data_tier.blockdev;
        let free = Allocator::rebuild(tier, sizes).expect("the record has passed its check");
        Self { record, free, usable: usable(record, sizes), fs_limit, total, pace, speed: Speed::default() }
    }

    /// The same, for a pool that fills at that speed.
    pub const fn at(mut self, speed: Speed) -> Self {
        self.speed = speed;
        self
    }

    /// What a thin pool is brought up as: with the `blocks` that it has used so far, or, where nobody knows, with
    /// all that is on record.
    pub fn at_start(&self, blocks: Option<u64>) -> Shape {
        let recorded = self.recorded();
        let blocks = blocks.filter(|blocks| (1..=recorded).contains(blocks)).unwrap_or(recorded);
        let waits = !self.record.thin_features().contains(&ThinFeature::ErrorIfNoSpace);
        Shape { blocks, low_water: self.low_water(blocks, 0), waits }
    }

    /// What a thin pool that is so is to be.
    pub fn shape(&self, state: &ThinPoolState, backed: Backed) -> Shape {
        let mut blocks = state.data_total;
        let used = state.data_used;
        let reach = backed.data.0 / DATA_BLOCK.0;
        let usual = (self.low_water(blocks, 0), self.pace.low_water);
        let Mark { raised, late } = Mark::of(state, usual, self.speed.mark, reach);
        while blocks < reach && blocks.saturating_sub(used) <= self.low_water(blocks, raised).saturating_add(late) {
            blocks = reach.min(blocks + self.pace.step);
        }
        let low_water = self.low_water(blocks, raised);
        let short = blocks.saturating_sub(used) <= low_water || planted(Bug::SmallPoolIsFull);
        let left = self.free.free();
        let nothing = (short && self.recorded() <= blocks && left < DATA_BLOCK)
            || (self.is_meta_low(state) && left < DATA_BLOCK + DATA_BLOCK);
        Shape { blocks, low_water, waits: !nothing }
    }

    /// Whether the thin pool works with less metadata than its device has.
    pub const fn is_behind(state: &ThinPoolState, backed: Backed) -> bool {
        state.meta_total != 0 && state.meta_total * META_BLOCK < backed.meta.0
    }

    /// What is to be entered next, for a thin pool that is so and is to be `shape`; nothing if all is there.
    pub fn next(&self, state: &ThinPoolState, shape: Shape) -> Option<Next> {
        if self.record.files {
            return None;
        }
        let left = self.free.free();
        let each = self.more_meta(state, left);
        let (left, meta) = (left - each - each, self.meta() + each);
        let kept = size::room(self.usable, meta);
        let ahead = self.recorded().saturating_sub(shape.blocks);
        // More is entered when half of it is used, so not with each small step.
        let whole = self.pace.ahead(shape.low_water).max(self.speed.ahead);
        let wanted = sectors(if ahead <= whole / 2 { whole - ahead } else { 0 });
        let mut data = wanted.min(left.saturating_sub(kept).floor_to(DATA_BLOCK));
        let short = shape.blocks.saturating_sub(state.data_used) <= shape.low_water;
        if data == Sectors::ZERO && ahead == 0 && short {
            data = wanted.min(left.floor_to(DATA_BLOCK));
        }
        // As long as there is enough metadata it grows along with the data, and not for itself.
        let meta = if data > Sectors::ZERO || self.is_meta_wanted(state) { each } else { Sectors::ZERO };
        let next = Next { meta, data, waits: shape.waits };
        let same = self.record.thin_features() == features(self.record, next.waits);
        (next.meta > Sectors::ZERO || next.data > Sectors::ZERO || !same).then_some(next)
    }

    /// How much more metadata is wanted and can be had.
    fn more_meta(&self, state: &ThinPoolState, left: Sectors) -> Sectors {
        let (now, most) = (self.meta(), size::thin_meta(self.usable, u64::MAX));
        let usual = size::thin_meta(self.usable, self.fs_limit).saturating_sub(now);
        let each = if self.is_meta_wanted(state) {
            let half = Sectors(left.0 / 2).floor_to(DATA_BLOCK);
            usual.max((now + now).min(most).saturating_sub(now)).min(half)
        } else if usual + usual <= left {
            usual
        } else {
            Sectors::ZERO
        };
        let data = size::for_data(self.usable, now + each);
        // What filesystems were promised is not taken from them.
        if !self.record.overprovisioning() && self.total > data { Sectors::ZERO } else { each }
    }

    /// Whether its metadata run low by the kernel's mark, and it has all that is on record.
    fn is_meta_low(&self, state: &ThinPoolState) -> bool {
        self.has_meta_left(state, state.meta_low_water)
    }

    /// Whether it is to get more metadata, and has all that is on record.
    fn is_meta_wanted(&self, state: &ThinPoolState) -> bool {
        self.has_meta_left(state, state.meta_mark())
    }

    /// Whether so many blocks of all that is on record are left to its metadata, or less.
    fn has_meta_left(&self, state: &ThinPoolState, blocks: u64) -> bool {
        let left = state.meta_total.saturating_sub(state.meta_used);
        state.meta_total != 0 && left <= blocks && self.meta().0 <= state.meta_total * META_BLOCK
    }

    /// At how many free blocks a thin pool of so many says so, if its mark was raised to this.
    fn low_water(&self, blocks: u64, raised: u64) -> u64 {
        let kept = size::room(self.usable, self.meta());
        let gets_more = blocks < self.recorded() || self.free.free().saturating_sub(kept) >= DATA_BLOCK;
        let of = |part| self.pace.low_water.min(blocks / part);
        if gets_more { of(LOW_PART).max(raised) } else { of(LAST_PART) }
    }

    fn meta(&self) -> Sectors {
        self.record.flex_devs.thin_meta_dev.iter().sum()
    }

    /// Data blocks on record.
    fn recorded(&self) -> u64 {
        Backed::all(self.record).data.0 / DATA_BLOCK.0
    }

    /// The sectors that it gets, granted.
    pub fn grant(mut self, next: Next) -> Granted {
        let wanted = [next.meta, next.meta, next.data];
        let segments = self.free.allocate(&wanted).expect("no more was planned than is free");
        Granted { next, segments }
    }
}

/// What comes next, with its sectors.
#[derive(Clone, Debug)]
pub struct Granted {
    next: Next,
    segments: Vec<Vec<DeviceSegment>>,
}

impl Granted {
    /// Enters it into the record that it was planned for. Gives back what was there before.
    pub fn enter(self, record: &mut PoolRecord) -> Space {
        let Next { meta, data, waits } = self.next;
        let before = Space::of(record);
        space::enter(record, &[(Flex::Meta, meta), (Flex::Spare, meta), (Flex::Data, data)], &self.segments);
        let features = features(record, waits);
        if features != record.thin_features() {
            record.set_thin_features(&features);
        }
        before
    }
}

/// Milliseconds until a thin pool is to be looked at by what was seen in two looks, so many apart; nothing if it need
/// not be.
pub fn until_look(before: &ThinPoolState, now: &ThinPoolState, elapsed_ms: u64) -> Option<u64> {
    let both = [until_low(before, now, elapsed_ms), until_meta(before, now, elapsed_ms)];
    both.into_iter().flatten().min()
}

/// Milliseconds until half of the metadata that are free is gone where the kernel does not say that they run low;
/// nothing where it does, or where there are no more to be had.
fn until_meta(before: &ThinPoolState, now: &ThinPoolState, elapsed_ms: u64) -> Option<u64> {
    let free = now.meta_total.saturating_sub(now.meta_used);
    let written = now.meta_used.saturating_sub(before.meta_used);
    let speed = META_BLOCKS_PER_S.max(2 * written * 1_000 / elapsed_ms.max(1));
    (!now.is_meta_told() && free > now.meta_mark()).then(|| free / 2 * 1_000 / speed)
}

/// Milliseconds until a thin pool runs low that fills at twice the speed seen between two looks, so many apart;
/// nothing if it was not written meanwhile.
fn until_low(before: &ThinPoolState, now: &ThinPoolState, elapsed_ms: u64) -> Option<u64> {
    let written = now.data_used.saturating_sub(before.data_used);
    let left = now.data_total.saturating_sub(now.data_used).saturating_sub(now.low_water);
    left.saturating_mul(elapsed_ms).checked_div(2 * written)
}

/// What a thin pool of this shape says, with all metadata that is on record, before anything is in it.
pub fn unused(record: &PoolRecord, shape: Shape) -> ThinPoolState {
    let Shape { blocks, low_water, waits } = shape;
    ThinPoolState {
        meta_used: 0,
        meta_total: Backed::all(record).meta.0 / META_BLOCK,
        meta_low_water: 0,
        data_used: 0,
        data_total: blocks,
        low_water,
        waits,
        mode: ThinPoolMode::ReadWrite,
        needs_check: false,
    }
}

/// The table with which a thin pool is brought up that has used so many `blocks` so far, as far as anybody knows.
pub fn at_start(record: &PoolRecord, sizes: &BTreeMap<DevUuid, Sectors>, blocks: Option<u64>, pace: Pace) -> Table {
    // Neither the limit of filesystems nor their sizes matter to that.
    Ground::new(record, sizes, (0, Sectors::ZERO), pace).at_start(blocks).table(record)
}

/// Sectors of the data tier that can be handed out at all.
pub fn usable(record: &PoolRecord, sizes: &BTreeMap<DevUuid, Sectors>) -> Sectors {
    let of = |device: &Device| {
        let size = sizes.get(&device.uuid).copied().unwrap_or(Sectors::ZERO);
        size.saturating_sub(DATA_START).saturating_sub(device.integrity_meta_allocs.iter().sum())
    };
    let all: Sectors = record.backstore.data_tier.blockdev.devs.iter().map(of).sum();
    all.saturating_sub(record.backstore.cap.crypt_meta_allocs.iter().sum())
}

/// The features of a thin pool that waits for space, or does not.
fn features(record: &PoolRecord, waits: bool) -> Vec<ThinFeature> {
    let mut features = record.thin_features();
    features.retain(|feature| *feature != ThinFeature::ErrorIfNoSpace);
    if !waits {
        features.push(ThinFeature::ErrorIfNoSpace);
        features.sort_unstable();
    }
    features
}

const fn sectors(blocks: u64) -> Sectors {
    Sectors(blocks.saturating_mul(DATA_BLOCK.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::check::check;
    use crate::engine::layout;
    use crate::format::record;
    use crate::model::name::Name;
    use crate::model::pool::{IntegritySpec, MetadataVersion};

    const GIB: u64 = 2_097_152;
    const SMALL: Pace = Pace { step: 16, low_water: 32 };

    fn id(number: u8) -> DevUuid {
        DevUuid::from_random([number; 16])
    }

    /// A pool with its thin pool, as a shard plays them.
    struct Pool {
        record: PoolRecord,
        sizes: BTreeMap<DevUuid, Sectors>,
        backed: Backed,
        state: ThinPoolState,
        pace: Pace,
        total: Sectors,
    }

    impl Pool {
        fn new(sizes: &[u64], pace: Pace) -> Self {
            let (integrity, name) = (IntegritySpec::default(), Name::try_from("p").expect("a name"));
            let devices: Vec<_> = (1..).map(id).zip(sizes.iter().copied().map(Sectors)).collect();
            let layout = layout::first_with(&devices, &integrity, 100, pace.first()).expect("large enough");
            let record = layout.record(&name, &integrity, 100);
            let backed = Backed::all(&record);
            let sizes = devices.into_iter().collect();
            let shape = Ground::new(&record, &sizes, (100, Sectors::ZERO), pace).at_start(None);
            let state = unused(&record, shape);
            Self { record, sizes, backed, state, pace, total: Sectors::ZERO }
        }

        fn ground(&self) -> Ground<'_> {
            Ground::new(&self.record, &self.sizes, (self.record.fs_limit(0), self.total), self.pace)
        }

        /// Does all that there is to do now; tells whether that was anything.
        fn settle(&mut self) -> bool {
            let mut did = false;
            loop {
                let shape = self.ground().shape(&self.state, self.backed);
                if shape != Shape::of(&self.state) || Ground::is_behind(&self.state, self.backed) {
                    assert!(shape.blocks >= self.state.data_total, "a thin pool never shrinks");
                    assert!(sectors(shape.blocks) <= self.backed.data, "it has only what is backed");
                    let meta_total = self.backed.meta.0 / META_BLOCK;
                    let Shape { blocks, low_water, waits } = shape;
                    self.state = ThinPoolState { data_total: blocks, low_water, waits, meta_total, ..self.state };
                } else if let Some(next) = self.ground().next(&self.state, shape) {
                    self.enter(next);
                } else {
                    return did;
                }
                did = true;
            }
        }

        fn enter(&mut self, next: Next) {
            let granted = self.ground().grant(next);
            let before = self.record.clone();
            let space = granted.clone().enter(&mut self.record);
            assert_ne!(self.record, before, "what changes nothing is no step");
            assert_eq!(check(&self.record, MetadataVersion::V2, &self.sizes), Ok(()));
            space.restore(&mut self.record);
            assert_eq!(self.record, before, "what cannot be saved is taken back");
            granted.enter(&mut self.record);
            self.backed = Backed::all(&self.record);
        }

        fn free_blocks(&self) -> u64 {
            self.state.data_total - self.state.data_used
        }

        fn add(&mut self, number: u8, size: u64) {
            let (uuid, size) = (id(number), Sectors(size));
            let integrity_meta_allocs = layout::room(uuid, size, &IntegritySpec::default()).expect("large enough");
            let device = Device { uuid, integrity_meta_allocs, user_info: None, hardware_info: None };
            self.record.backstore.data_tier.blockdev.devs.push(device);
            self.sizes.insert(uuid, size);
        }
    }

    #[test]
    fn a_large_pool_has_its_next_step_before_it_needs_it() {
        let mut pool = Pool::new(&[1_024 * GIB], Pace::default());
        assert!(pool.settle());
        assert_eq!(pool.state.data_total, 51_200, "nothing is needed yet");
        assert_eq!(pool.backed.data, sectors(102_400));
        assert!(!pool.settle(), "and that is all");
        pool.state.data_used = 51_200 - 15_361;
        assert!(!pool.settle(), "it is not low yet");
        pool.state.data_used += 1;
        assert!(pool.settle());
        assert_eq!((pool.state.data_total, pool.backed.data), (102_400, sectors(153_600)));
        assert_eq!((pool.state.low_water, pool.state.waits), (15_360, true));
    }

    #[test]
    fn a_record_does_not_grow_with_the_steps() {
        let mut pool = Pool::new(&[1_024 * GIB], SMALL);
        pool.settle();
        let length = |pool: &Pool| record::encode(&pool.record).len();
        let (before, blocks) = (length(&pool), pool.state.data_total);
        while pool.state.data_total < blocks + 1_000 * pool.pace.step {
            pool.state.data_used = pool.state.data_total - pool.state.low_water;
            assert!(pool.settle());
        }
        assert!(length(&pool) < before + 64, "{} bytes, and {before} before", length(&pool));
    }

    #[test]
    fn a_small_pool_without_filesystems_is_not_out_of_space() {
        for size in [1, 2, 10, 40] {
            let mut pool = Pool::new(&[size * GIB], Pace::default());
            let before = pool.record.clone();
            assert!(!pool.settle(), "{size} GiB: all it can have it has from the start");
            assert_eq!(pool.record, before);
            assert!(pool.state.waits);
        }
    }

    #[test]
    fn what_is_kept_for_metadata_goes_to_data_last_and_then_nothing_waits() {
        let mut pool = Pool::new(&[GIB], Pace::default());
        let blocks = pool.state.data_total;
        pool.state.data_used = blocks - blocks / LAST_PART - 1;
        assert!(!pool.settle(), "there is room in it");
        pool.state.data_used += 1;
        assert!(pool.settle());
        assert_eq!(pool.state.data_total, blocks + 10, "the room of 10 MiB");
        assert!(pool.state.waits, "and that is not used up yet");
        pool.state.data_used += 10;
        assert!(pool.settle());
        assert!(pool.ground().free.free() < DATA_BLOCK && !pool.state.waits);
        assert!(pool.record.thin_features().contains(&ThinFeature::ErrorIfNoSpace));
        // A filesystem goes.
        pool.state.data_used = 10;
        assert!(pool.settle());
        assert!(pool.state.waits && !pool.record.thin_features().contains(&ThinFeature::ErrorIfNoSpace));
    }

    #[test]
    fn a_device_that_is_added_ends_being_out_of_space() {
        let mut pool = Pool::new(&[GIB], Pace::default());
        pool.state.data_used = pool.state.data_total;
        assert!(pool.settle());
        pool.state.data_used = pool.state.data_total;
        pool.settle();
        assert!(!pool.state.waits);
        let meta = pool.backed.meta;
        pool.add(2, 200 * GIB);
        assert!(pool.settle());
        assert!(pool.state.waits && pool.free_blocks() > 15_360 && pool.backed.meta > meta);
    }

    #[test]
    fn metadata_that_run_low_double_as_long_as_there_is_room() {
        let mut pool = Pool::new(&[1_024 * GIB], Pace::default());
        pool.settle();
        pool.state.meta_low_water = 1_024;
        let before = pool.backed.meta;
        pool.state.meta_used = pool.state.meta_total - 1_024;
        assert!(pool.settle());
        assert_eq!((pool.backed.meta, pool.state.meta_total), (before + before, before.0 * 2 / META_BLOCK));
        let flex = &pool.record.flex_devs;
        let [meta, spare] = [&flex.thin_meta_dev, &flex.thin_meta_dev_spare].map(|list| list.iter().sum::<Sectors>());
        assert_eq!(meta, spare);
        // Filesystems were promised all that is left.
        pool.record.thinpool_dev.enable_overprov = Some(false);
        pool.total = sectors(1 << 20);
        pool.state.meta_used = pool.state.meta_total - 1_024;
        pool.settle();
        assert_eq!(pool.backed.meta, before + before);
    }

    #[test]
    fn large_metadata_double_before_the_kernel_would_say_anything() {
        let mut pool = Pool::new(&[1_024 * GIB], Pace::default());
        pool.settle();
        pool.state.meta_low_water = 1_024;
        let (before, total) = (pool.backed.meta, pool.state.meta_total);
        pool.state.meta_used = total / 2 - 1;
        assert!(!pool.settle());
        pool.state.meta_used += 1;
        assert!(pool.settle() && pool.backed.meta == before + before && pool.state.waits);
        // Those that the kernel tells of wait for that.
        let mut small = Pool::new(&[10 * GIB], Pace::default());
        small.settle();
        small.state.meta_low_water = small.state.meta_total / 4;
        small.state.meta_used = small.state.meta_total - small.state.meta_low_water - 1;
        assert!(!small.settle());
    }

    #[test]
    fn a_pool_with_nothing_left_waits_until_its_metadata_run_low_by_the_kernels_mark() {
        let mut pool = Pool::new(&[1_024 * GIB], Pace::default());
        pool.settle();
        pool.state.meta_low_water = 1_024;
        // Filesystems were promised all that is left.
        pool.record.thinpool_dev.enable_overprov = Some(false);
        pool.total = sectors(1 << 20);
        pool.state.meta_used = pool.state.meta_total - 1_025;
        assert!(!pool.settle(), "it can get nothing, and is not full yet");
        let mut full = Pool::new(&[GIB], Pace::default());
        full.state.meta_low_water = full.state.meta_total / 4;
        while full.state.waits {
            full.state.meta_used = full.state.meta_total - full.state.meta_low_water;
            assert!(full.settle());
        }
        assert!(full.ground().free.free() < DATA_BLOCK + DATA_BLOCK && full.free_blocks() > 0);
        full.add(2, 10 * GIB);
        assert!(full.settle() && full.state.waits && full.backed.meta.0 / META_BLOCK == full.state.meta_total);
    }

    #[test]
    fn large_metadata_are_looked_at_before_they_are_full() {
        let pool = Pool::new(&[1_024 * GIB], Pace::default()).state;
        let at = |meta_used| ThinPoolState { meta_low_water: 1_024, meta_used, ..pool };
        let free = |state: &ThinPoolState| state.meta_total - state.meta_used;
        assert_eq!(until_look(&at(9_000), &at(9_000), 1_000), Some(free(&at(9_000)) / 2 * 10), "at rest");
        assert_eq!(until_look(&at(8_000), &at(9_000), 1_000), Some(free(&at(9_000)) / 2 / 2), "at twice the speed");
        let last = pool.meta_total / 2;
        assert_eq!(until_look(&at(last), &at(last), 1_000), None, "it gets no more");
        assert_eq!(until_look(&pool, &pool, 1_000), None, "a kernel that keeps nothing to itself");
    }

    #[test]
    fn a_thin_pool_that_is_behind_catches_up_at_once() {
        let mut pool = Pool::new(&[10 * GIB], SMALL);
        pool.settle();
        pool.state.data_used = pool.state.data_total;
        pool.settle();
        assert!(pool.free_blocks() > SMALL.low_water);
        let ahead = pool.ground().recorded() - pool.state.data_total;
        assert!((SMALL.ahead(0) / 2..=SMALL.ahead(0)).contains(&ahead), "{ahead}");
    }

    #[test]
    fn a_pool_that_fills_fast_grows_by_more_at_a_higher_mark() {
        let mut pool = Pool::new(&[1_024 * GIB], SMALL);
        pool.settle();
        let fill_to = |pool: &mut Pool, free: u64| {
            let before = pool.state.data_total;
            pool.state.data_used = before - free;
            pool.settle();
            (pool.state.data_total - before, pool.state.low_water, pool.free_blocks())
        };
        assert_eq!(fill_to(&mut pool, 32), (16, 32, 48), "it was looked at at once");
        assert_eq!(fill_to(&mut pool, 28), (16, 32, 44), "with little delay");
        assert_eq!(fill_to(&mut pool, 1), (160, 128, 161), "31 were written: as many are free beyond the mark");
        assert_eq!(fill_to(&mut pool, 128), (16, 128, 144), "the mark stays");
        let (recorded, wanted) = (pool.ground().recorded(), SMALL.ahead(128));
        assert!(wanted == 512 && recorded - pool.state.data_total > wanted / 2);
        assert_eq!(pool.ground().at_start(Some(pool.state.data_total)).low_water, 32, "until it is started anew");
    }

    #[test]
    fn a_pool_is_brought_up_as_it_was() {
        let mut pool = Pool::new(&[1_024 * GIB], Pace::default());
        pool.settle();
        let ground = pool.ground();
        let blocks = |known| ground.at_start(known).blocks;
        assert_eq!(blocks(Some(51_200)), 51_200);
        // What it says cannot be, or it says nothing: all that is its own anyway.
        for known in [None, Some(0), Some(102_401), Some(u64::MAX)] {
            assert_eq!(blocks(known), 102_400, "{known:?}");
        }
    }

    #[test]
    fn how_it_fills_tells_when_it_runs_low() {
        let before = Pool::new(&[1_024 * GIB], Pace::default()).state;
        assert_eq!(until_low(&before, &before, 1_000), None);
        let now = ThinPoolState { data_used: 100, ..before };
        assert_eq!(until_low(&before, &now, 1_000), Some((51_200 - 100 - 15_360) * 5));
        let low = ThinPoolState { data_used: 40_000, ..before };
        assert_eq!(until_low(&before, &low, 1_000), Some(0));
        assert_eq!(until_low(&low, &now, 1_000), None, "filesystems went");
    }

    #[test]
    fn files_are_the_hosts() {
        let mut pool = Pool::new(&[1_024 * GIB], Pace::default());
        pool.record.files = true;
        let before = pool.record.clone();
        pool.settle();
        assert_eq!(pool.record, before);
    }

    proptest! {
        /// Filled by and by, with devices that come: never full before nothing is left, and every sector in one place.
        #[test]
        fn no_pool_is_full_while_there_is_backing_space(
            sizes in prop::collection::vec(GIB..8 * GIB, 1..4), step in 1..400u64, low_water in 1..400u64,
            writes in prop::collection::vec((1..300u64, 0..40u8), 1..200),
        ) {
            let mut pool = Pool::new(&sizes, Pace { step, low_water });
            pool.settle();
            let mut devices = 10;
            for (blocks, what) in writes {
                if what == 0 {
                    pool.add(devices, GIB + blocks * 4_096);
                    devices += 1;
                } else if what < 4 {
                    pool.state.data_used = pool.state.data_used.saturating_sub(blocks * 8);
                } else {
                    pool.state.data_used += blocks.min(pool.free_blocks());
                }
                pool.settle();
                let all_used = pool.backed.data == sectors(pool.state.data_total);
                let nothing_left = all_used && pool.ground().free.free() < DATA_BLOCK;
                let is_low = pool.free_blocks() <= pool.state.low_water;
                prop_assert!(!is_low || nothing_left);
                prop_assert_eq!(pool.state.waits, !is_low);
                let mark = pool.state.low_water;
                let is_doubled = mark.is_multiple_of(low_water) && (mark / low_water).is_power_of_two();
                prop_assert!(mark <= low_water || is_doubled);
            }
        }
    }
}
