//! A higher limit of filesystems, and the sectors that its metadata takes.
//!
//! Thin metadata and its spare grow alike, to what `size::thin_meta` gives for the pool's size and the new
//! limit. Their sectors are entered into the record at once, so nobody else is given them. An entry that
//! cannot be saved is taken back; one that was saved and never came to be used is no loss, because the
//! next higher limit finds it there.
//!
//! Invariant: a record that passed `check` passes it with the entry.
//!
//! Deliberately absent: the limit itself, which is recorded once the larger device is in use. Encryption is no
//! matter here, because addresses on the cap device begin behind its header, and neither is a cache, which is below.

use std::collections::BTreeMap;

use crate::engine::alloc::{Allocator, Short};
use crate::engine::size::{self, DATA_BLOCK};
use crate::engine::space::{self, Flex, Space};
use crate::error::Refusal;
use crate::format::record::PoolRecord;
use crate::limits::{RECORD_BYTES_MAX, RECORDS_MAX};
use crate::model::ids::DevUuid;
use crate::model::name::Name;
use crate::units::{Bytes, Sectors};

/// What a limit is judged by.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// The pool's name, for messages.
    pub pool: &'a Name,
    /// The sizes of its data devices, as their headers say.
    pub sizes: BTreeMap<DevUuid, Sectors>,
    /// Sectors of these that can be handed out at all.
    pub usable: Sectors,
    /// How many filesystems there may be now.
    pub limit: u64,
    /// The sum of their sizes.
    pub total: Sectors,
    /// How many records the metadata volume has room for.
    pub records: u64,
}

/// How many records there is room for on a metadata volume of this size: each takes a block.
pub fn records(mdv: Bytes) -> u64 {
    let blocks = mdv.0 / RECORD_BYTES_MAX as u128;
    usize::try_from(blocks).unwrap_or(usize::MAX).min(RECORDS_MAX) as u64
}

/// Enters the sectors that a limit needs. Gives back what was there before, or `None` where there is enough.
///
/// # Panics
/// When the record has not passed `check` with these sizes.
pub fn make_room(record: &mut PoolRecord, asked: u64, terms: &Terms<'_>) -> Result<Option<Space>, Refusal> {
    let &Terms { usable, limit, records, total, .. } = terms;
    let name = || terms.pool.clone();
    if asked <= limit {
        return Err(Refusal::FsLimitNotRaised { name: name(), limit, asked });
    }
    if asked > records {
        return Err(Refusal::FsLimitRecords { name: name(), records, asked });
    }
    let meta: Sectors = record.flex_devs.thin_meta_dev.iter().sum();
    let each = size::thin_meta(usable, asked).saturating_sub(meta);
    if each == Sectors::ZERO {
        return Ok(None);
    }
    let data = size::for_data(usable, meta + each);
    if !record.overprovisioning() && total > data {
        return Err(Refusal::Overprovisioned { name: name(), limit: data, wanted: total });
    }
    let tier = &record.backstore.data_tier.blockdev;
    let mut allocator = Allocator::rebuild(tier, &terms.sizes).expect("the record has passed its check");
    let granted = allocator.allocate(&[each, each]).map_err(|Short { wanted, free }| {
        let half = Sectors(free.0 / 2).floor_to(DATA_BLOCK);
        let fits = size::fs_limit_within(usable, meta + half).min(records).max(limit);
        Refusal::FsLimitSpace { name: name(), asked, wanted, free, fits }
    })?;
    let before = Space::of(record);
    space::enter(record, &[(Flex::Meta, each), (Flex::Spare, each)], &granted);
    Ok(Some(before))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::check::check;
    use crate::engine::{encryption, layout};
    use crate::format::record::{DeviceSegment, Segment};
    use crate::model::pool::{IntegritySpec, MetadataVersion};
    use crate::model::token::{KeyDescription, Mechanism, Tokens};

    const GIB: u64 = 2_097_152;
    /// What an MDV of 512 MiB has room for.
    const RECORDS: u64 = 114_688;

    fn id(number: u8) -> DevUuid {
        DevUuid::from_random([number; 16])
    }

    struct Pool {
        record: PoolRecord,
        name: Name,
        sizes: BTreeMap<DevUuid, Sectors>,
        total: Sectors,
    }

    impl Pool {
        fn new(sizes: &[u64]) -> Self {
            let (integrity, name) = (IntegritySpec::default(), Name::try_from("p").expect("a name"));
            let devices: Vec<_> = (1..).map(id).zip(sizes.iter().copied().map(Sectors)).collect();
            let layout = layout::first(&devices, &integrity, 100).expect("large enough");
            let record = layout.record(&name, &integrity, 100);
            Self { record, name, sizes: devices.into_iter().collect(), total: Sectors::ZERO }
        }

        fn usable(&self) -> Sectors {
            let integrity = IntegritySpec::default();
            let of = |size: &Sectors| *size - Sectors(8_192) - size::integrity(*size, &integrity);
            self.sizes.values().map(of).sum::<Sectors>() - size::CRYPT_RESERVE
        }

        fn ask(&mut self, asked: u64) -> Result<Option<Space>, Refusal> {
            let (usable, sizes) = (self.usable(), self.sizes.clone());
            let (limit, total) = (self.record.fs_limit(0), self.total);
            make_room(
                &mut self.record,
                asked,
                &Terms { pool: &self.name, sizes, usable, limit, total, records: RECORDS },
            )
        }

        fn raise(&mut self, asked: u64) -> Result<bool, Refusal> {
            let entered = self.ask(asked)?.is_some();
            self.record.thinpool_dev.fs_limit = Some(asked);
            assert_eq!(check(&self.record, MetadataVersion::V2, &self.sizes), Ok(()));
            assert_eq!(self.meta().1, self.meta().0, "the spare is as large");
            assert!(self.meta().0 >= size::thin_meta(self.usable(), asked));
            Ok(entered)
        }

        fn meta(&self) -> (Sectors, Sectors) {
            let sum = |list: &[Segment]| list.iter().sum();
            (sum(&self.record.flex_devs.thin_meta_dev), sum(&self.record.flex_devs.thin_meta_dev_spare))
        }

        /// The highest limit, as a refusal names it.
        fn highest(&mut self) -> u64 {
            match self.ask(RECORDS) {
                Err(Refusal::FsLimitSpace { fits, .. }) => fits,
                Ok(_) => RECORDS,
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn an_encrypted_pool_has_the_room_that_it_would_have_without() {
        let mut plain = Pool::new(&[10 * GIB]);
        let mut pool = Pool::new(&[10 * GIB]);
        let key = Mechanism::Key(KeyDescription::try_from("k").expect("a description"));
        encryption::enter(&mut pool.record, &Tokens::assign(vec![(None, key)]).expect("they fit"));
        assert_eq!((pool.highest(), pool.raise(1_000)), (plain.highest(), plain.raise(1_000)));
        let behind = |pool: &Pool| pool.record.flex_devs.thin_meta_dev.last().expect("it has metadata").end();
        assert_eq!(behind(&pool) + size::CRYPT_RESERVE, behind(&plain), "its addresses begin behind the header");
    }

    #[test]
    fn new_pools_have_room_for_these_limits() {
        for (sizes, highest) in [
            (vec![GIB], 280),
            (vec![2 * GIB], 784),
            (vec![10 * GIB], 1_008),
            (vec![4 * GIB, 6 * GIB], 1_009),
            // From here on there is room behind the first 50 GiB of data.
            (vec![100 * GIB], RECORDS),
            (vec![1_024 * GIB], RECORDS),
        ] {
            let mut pool = Pool::new(&sizes);
            assert_eq!(pool.highest(), highest, "{sizes:?}");
            let mut pool = Pool::new(&sizes);
            assert_eq!(pool.raise(highest), Ok(true), "{sizes:?}");
        }
    }

    #[test]
    fn pieces_lie_behind_all_others_and_the_spare_behind_the_metadata() {
        let mut pool = Pool::new(&[GIB]);
        assert_eq!(pool.raise(150), Ok(true));
        let segment = |start, length| Segment { start: Sectors(start), length: Sectors(length) };
        let flex = &pool.record.flex_devs;
        assert_eq!(flex.thin_meta_dev, [segment(34_816, 8_192), segment(1_771_520, 2_048)]);
        assert_eq!(flex.thin_meta_dev_spare, [segment(43_008, 8_192), segment(1_773_568, 2_048)]);
        assert_eq!(pool.record.backstore.cap.allocs[4..], [segment(1_771_520, 2_048), segment(1_773_568, 2_048)]);
        let whole = DeviceSegment { parent: id(1), start: Sectors(8_192), length: Sectors(1_775_616) };
        assert_eq!(pool.record.backstore.data_tier.blockdev.allocs, [vec![whole]], "neighbours are one");
    }

    #[test]
    fn what_is_there_is_used_before_more_is_taken() {
        let mut pool = Pool::new(&[GIB]);
        assert_eq!(pool.raise(120), Ok(false), "metadata comes in whole mebibytes");
        assert!(pool.ask(200).expect("there is room").is_some());
        // The limit was not raised, because what was entered could not be activated. Next try:
        assert_eq!(pool.raise(200), Ok(false));
    }

    #[test]
    fn what_could_not_be_saved_is_taken_back() {
        let mut pool = Pool::new(&[GIB, GIB]);
        let before = pool.record.clone();
        let space = pool.ask(300).expect("there is room").expect("more is needed");
        assert_ne!(pool.record, before);
        space.restore(&mut pool.record);
        assert_eq!(pool.record, before);
    }

    #[test]
    fn what_cannot_be_is_refused_with_numbers() {
        let mut pool = Pool::new(&[GIB]);
        let before = pool.record.clone();
        let said = |outcome: Result<Option<Space>, Refusal>| outcome.expect_err("refused").to_string();
        for asked in [0, 99, 100] {
            let expected =
                format!("pool \"p\" may have 100 filesystems: the limit can only be raised, not set to {asked}");
            assert_eq!(said(pool.ask(asked)), expected);
        }
        assert_eq!(
            said(pool.ask(RECORDS + 1)),
            "the metadata volume of pool \"p\" has room for the records of 114688 filesystems: a limit of 114689 was asked for"
        );
        assert_eq!(
            said(pool.ask(281)),
            "a limit of 281 filesystems takes 24576 sectors more for the metadata of pool \"p\" and 22520 sectors are free: \
             the highest limit that there is room for is 280"
        );
        // Metadata is not taken from data that filesystems were promised.
        pool.record.thinpool_dev.enable_overprov = Some(false);
        pool.total = Sectors(694_264 - 4_096);
        assert!(pool.ask(150).is_ok());
        before.clone_into(&mut pool.record);
        pool.record.thinpool_dev.enable_overprov = Some(false);
        pool.total += Sectors(1);
        let refused = Refusal::Overprovisioned {
            name: pool.name.clone(),
            limit: Sectors(694_264 - 4_096),
            wanted: Sectors(694_264 - 4_095),
        };
        assert_eq!(pool.ask(150), Err(refused));
        pool.record.thinpool_dev.enable_overprov = Some(true);
        assert_eq!(pool.record, before, "a refusal changes nothing");
    }

    #[test]
    fn numbers_without_sense_are_refused() {
        let mut pool = Pool::new(&[GIB]);
        assert!(matches!(pool.ask(u64::MAX), Err(Refusal::FsLimitRecords { .. })));
    }

    proptest! {
        #[test]
        fn the_limit_that_a_refusal_names_is_the_highest(
            sizes in prop::collection::vec(GIB..30 * GIB, 1..4), steps in prop::collection::vec(1..400u64, 0..6),
        ) {
            let mut pool = Pool::new(&sizes);
            let mut limit = 100;
            for step in steps {
                limit += step;
                let before = pool.record.clone();
                if pool.raise(limit).is_err() {
                    prop_assert_eq!(&pool.record, &before);
                }
            }
            let highest = pool.highest();
            if highest < RECORDS {
                prop_assert!(pool.ask(highest + 1).is_err());
                prop_assert!(highest == pool.record.fs_limit(0) || pool.raise(highest).is_ok());
            }
        }
    }
}
