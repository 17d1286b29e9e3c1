//! When a filesystem is too full, and by how much it grows then.
//!
//! One that is more than half full gets twice the room: its volume doubles, as far as its size limit, the pool's
//! limit and what XFS can do allow.
//!
//! Invariant: a volume never gets shorter, and only whole blocks of XFS more.
//!
//! Deliberately absent: who is asked how full it is, and how often (`watch`).

use crate::limits::FILESYSTEM_SECTORS_MAX;
use crate::model::filesystem::{FilesystemRecord, Fill};
use crate::units::{Bytes, Sectors};

/// A block of XFS.
const BLOCK: Sectors = Sectors(8);
/// At the end of its device XFS leaves alone what is too little for an allocation group: less than this.
const TAIL: Bytes = Bytes(1 << 20);

/// What is next for a filesystem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// It has room enough, or can have no more.
    Nothing,
    /// It does not lie on all of its volume: a daemon was stopped, or the kernel refused, before it had grown.
    Xfs,
    /// Its volume gets so much more.
    Volume(Sectors),
}

/// What is next for a filesystem that is this full. `left`: what of the pool's limit nobody has yet.
pub fn step(record: &FilesystemRecord, fill: &Fill, left: Option<Sectors>) -> Step {
    if !is_whole(record, fill.size) {
        return Step::Xfs;
    }
    match more(record, left) {
        by if is_full(fill) && by > Sectors::ZERO => Step::Volume(by),
        _enough => Step::Nothing,
    }
}

/// Whether an XFS of this size lies on all of its volume.
pub const fn is_whole(record: &FilesystemRecord, size: Bytes) -> bool {
    size.0 + TAIL.0 > record.size.bytes().0
}

/// Whether more than half of it is used.
const fn is_full(fill: &Fill) -> bool {
    2 * fill.used.0 > fill.total.0
}

/// What a volume would get if its filesystem were full; zero if it has all that it may have.
pub fn more(record: &FilesystemRecord, left: Option<Sectors>) -> Sectors {
    let size = record.size;
    let to = |end: Sectors| end.saturating_sub(size);
    let limits = [record.size_limit.map(to), left, Some(to(FILESYSTEM_SECTORS_MAX))];
    limits.into_iter().flatten().fold(size, Sectors::min).floor_to(BLOCK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::{FsUuid, ThinId};
    use crate::model::name::Name;

    const MIB: u64 = 2_048;
    const SIZE: Sectors = Sectors(512 * MIB);

    fn record(size: Sectors, size_limit: Option<Sectors>) -> FilesystemRecord {
        FilesystemRecord {
            name: Name::try_from("f").expect("a name"),
            uuid: FsUuid::from_random([1; 16]),
            thin_id: ThinId(0),
            size,
            created: 0,
            size_limit,
            origin: None,
            merge: false,
        }
    }

    /// As large as its volume, with a log of 64 MiB, and so many MiB used.
    fn fill(size: Sectors, used: u64) -> Fill {
        let total = Bytes(size.bytes().0 - (64 << 20));
        Fill { size: size.bytes(), total, used: Sectors(used * MIB).bytes() }
    }

    #[test]
    fn more_than_half_used_is_doubled() {
        let step = |used| step(&record(SIZE, None), &fill(SIZE, used), None);
        assert_eq!(step(0), Step::Nothing);
        assert_eq!(step(224), Step::Nothing, "it is half used, not more");
        assert_eq!(step(225), Step::Volume(SIZE));
        assert_eq!(step(448), Step::Volume(SIZE));
    }

    #[test]
    fn what_has_not_followed_its_volume_does_that_first() {
        let lags = |by: u64| step(&record(SIZE, None), &fill(Sectors(SIZE.0 - by), 400), None);
        assert_eq!(lags(MIB), Step::Xfs);
        assert_eq!(lags(MIB - 8), Step::Volume(SIZE), "that is left alone for ever");
        let empty = fill(Sectors(SIZE.0 / 2), 0);
        assert_eq!(step(&record(SIZE, Some(SIZE)), &empty, Some(Sectors(0))), Step::Xfs, "it has that already");
    }

    #[test]
    fn the_nearest_limit_counts() {
        let more = |limit: Option<u64>, left: Option<u64>| {
            more(&record(SIZE, limit.map(|mib| Sectors(mib * MIB))), left.map(|mib| Sectors(mib * MIB))).0 / MIB
        };
        assert_eq!(more(None, None), 512);
        assert_eq!(more(Some(2_000), None), 512);
        assert_eq!(more(Some(600), None), 88);
        assert_eq!(more(Some(512), Some(1)), 0);
        assert_eq!(more(Some(600), Some(10)), 10);
        assert_eq!(more(Some(600), Some(1_000)), 88);
        assert_eq!(more(None, Some(0)), 0);
        let almost = Sectors(FILESYSTEM_SECTORS_MAX.0 - MIB);
        assert_eq!(super::more(&record(almost, None), None), Sectors(MIB));
    }

    proptest! {
        #[test]
        fn limits_are_reached_and_never_passed(
            size in 1_048_576_u64..1 << 40,
            room in 0_u64..1 << 41,
            left in 0_u64..1 << 41,
        ) {
            let limit = Sectors(size + room);
            let record = record(Sectors(size), Some(limit));
            let by = more(&record, Some(Sectors(left)));
            prop_assert!(by <= record.size && record.size + by <= limit && by <= Sectors(left));
            prop_assert!(by.0 + BLOCK.0 > size.min(room).min(left), "less than a block is left");
        }
    }
}
