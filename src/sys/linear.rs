//! Where a sector of a dm device really is: linear tables followed down to devices.
//!
//! Pure. Shared by the machines that have no kernel to do this for them.
//!
//! Invariant: the pieces of an answer follow each other as the asked range does, cover it exactly,
//! and neighbours on one device are one piece.
//!
//! Deliberately absent: thin volumes and thin pools. They have no fixed place below.

use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::{Below, Dm, LinearLine, Role, Table};
use crate::units::Sectors;

/// Layers of linear devices on each other. The stack has three (originsub, cache, flex); more is a
/// table that goes round in a circle.
const DEPTH_MAX: usize = 8;

/// A run of sectors of one device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    /// On which device.
    pub(super) device: DeviceNumber,
    /// From which of its sectors on.
    pub(super) start: Sectors,
    /// How many.
    pub(super) count: Sectors,
}

/// Finds `count` sectors of a dm device from `start` on. `table` gives the table of an active one.
///
/// # Errors
/// `ENXIO` where a device is not active, `EIO` where the range passes the end of a table (as the
/// kernel answers both), `Data` where something on the way is not linear.
pub(super) fn resolve<'t>(
    table: &impl Fn(Dm) -> Option<&'t Table>,
    device: Dm,
    start: Sectors,
    count: Sectors,
) -> Result<Vec<Piece>, Why> {
    let mut pieces = Vec::new();
    descend(table, device, start, count, DEPTH_MAX, &mut pieces)?;
    Ok(pieces)
}

fn descend<'t>(
    table: &impl Fn(Dm) -> Option<&'t Table>,
    device: Dm,
    start: Sectors,
    count: Sectors,
    depth: usize,
    into: &mut Vec<Piece>,
) -> Result<(), Why> {
    if depth == 0 {
        return Err(Why::Data("its linear tables go round in a circle"));
    }
    let lines = match table(device).ok_or(Why::Errno(libc::ENXIO))? {
        Table::Linear(lines) => lines,
        // It writes through, so all there is is on its origin too.
        Table::Cache { length, .. } if start.checked_add(count).is_some_and(|end| end <= *length) => {
            return descend(table, Dm::Private(device.pool(), Role::OriginSub), start, count, depth - 1, into);
        }
        Table::Cache { .. } => return Err(Why::Errno(libc::EIO)),
        Table::ThinPool { .. } | Table::Thin { .. } => return Err(Why::Data("it is not a linear device")),
    };
    let end = start.checked_add(count).ok_or(Why::Errno(libc::EIO))?;
    if end > lines.iter().map(|line| line.length).sum() {
        return Err(Why::Errno(libc::EIO));
    }
    let mut line_start = Sectors::ZERO;
    for line in lines {
        let line_end = line_start + line.length;
        let (from, to) = (start.max(line_start), end.min(line_end));
        if from < to {
            let below_start = line.start.checked_add(from - line_start).ok_or(Why::Errno(libc::EIO))?;
            match line.below {
                Below::Device(device) => append(into, Piece { device, start: below_start, count: to - from }),
                Below::Dm(below) => descend(table, below, below_start, to - from, depth - 1, into)?,
            }
        }
        line_start = line_end;
    }
    Ok(())
}

fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.device == piece.device && last.start + last.count == piece.start => {
            last.count += piece.count;
        }
        Some(_) | None => pieces.push(piece),
    }
}

/// Two lines that lie, even partly, on the same sectors of the same thing.
pub(super) fn overlap(one: &LinearLine, other: &LinearLine) -> bool {
    one.below == other.below && one.start < other.start + other.length && other.start < one.start + one.length
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::ids::PoolUuid;

    const POOL: PoolUuid = PoolUuid(uuid::Uuid::nil());
    const LOWER: Dm = Dm::Private(POOL, Role::OriginSub);
    const UPPER: Dm = Dm::Private(POOL, Role::Cache);

    type Tables = BTreeMap<Dm, Table>;

    fn find(tables: &Tables, device: Dm, start: u64, count: u64) -> Result<Vec<Piece>, Why> {
        resolve(&|dm| tables.get(&dm), device, Sectors(start), Sectors(count))
    }

    /// The sector below one sector, found the slow way.
    fn sector_below(tables: &Tables, device: Dm, sector: u64) -> (DeviceNumber, u64) {
        let Some(Table::Linear(lines)) = tables.get(&device) else { panic!("a linear table") };
        let mut left = sector;
        for line in lines {
            if left < line.length.0 {
                return match line.below {
                    Below::Device(device) => (device, line.start.0 + left),
                    Below::Dm(below) => sector_below(tables, below, line.start.0 + left),
                };
            }
            left -= line.length.0;
        }
        panic!("the sector lies inside the table")
    }

    prop_compose! {
        fn stacks()(
            lower in prop::collection::vec((1_u64..40, 0_u64..3, 0_u64..200), 1..8),
            cuts in prop::collection::vec((0_u64..1000, 1_u64..1000), 1..8),
        ) -> Tables {
            let lower: Vec<LinearLine> = lower.into_iter().map(|(length, device, start)| LinearLine {
                length: Sectors(length),
                below: Below::Device(DeviceNumber(0, device)),
                start: Sectors(start),
            }).collect();
            let size: u64 = lower.iter().map(|line| line.length.0).sum();
            let upper = cuts.into_iter().map(|(start, length)| {
                let start = start % size;
                LinearLine {
                    length: Sectors(1 + length % (size - start)),
                    below: Below::Dm(LOWER),
                    start: Sectors(start),
                }
            }).collect();
            Tables::from([(LOWER, Table::Linear(lower)), (UPPER, Table::Linear(upper))])
        }
    }

    proptest! {
        #[test]
        fn every_sector_is_where_the_slow_way_finds_it(tables in stacks(), from in 0.0..1.0, part in 0.0..1.0) {
            let size = tables[&UPPER].length().0;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let (start, count) = {
                let start = (from * size as f64) as u64;
                (start, (part * (size - start) as f64) as u64)
            };
            let pieces = find(&tables, UPPER, start, count).expect("inside the table");
            let found: Vec<(DeviceNumber, u64)> = pieces
                .iter()
                .flat_map(|piece| (0..piece.count.0).map(|at| (piece.device, piece.start.0 + at)))
                .collect();
            let slow: Vec<_> = (start..start + count).map(|at| sector_below(&tables, UPPER, at)).collect();
            prop_assert_eq!(found, slow);
            prop_assert!(pieces.windows(2).all(|two| {
                two[0].device != two[1].device || two[0].start + two[0].count != two[1].start
            }), "neighbours are one piece");
        }
    }

    #[test]
    fn what_is_not_active_not_linear_or_too_far_is_an_error() {
        let line = |below| LinearLine { length: Sectors(8), below, start: Sectors(0) };
        let mut tables = Tables::from([(UPPER, Table::Linear(vec![line(Below::Dm(LOWER))]))]);
        assert_eq!(find(&tables, UPPER, 0, 1), Err(Why::Errno(libc::ENXIO)));
        tables.insert(LOWER, Table::Linear(vec![line(Below::Device(DeviceNumber(0, 0)))]));
        assert_eq!(find(&tables, UPPER, 7, 2), Err(Why::Errno(libc::EIO)));
        assert_eq!(find(&tables, UPPER, u64::MAX, 2), Err(Why::Errno(libc::EIO)));
        tables.insert(LOWER, Table::Linear(vec![line(Below::Dm(UPPER))]));
        assert!(matches!(find(&tables, UPPER, 0, 1), Err(Why::Data(_))));
    }

    #[test]
    fn only_common_sectors_of_one_device_overlap() {
        let line = |device, start, length| LinearLine {
            length: Sectors(length),
            below: Below::Device(DeviceNumber(0, device)),
            start: Sectors(start),
        };
        assert!(overlap(&line(1, 0, 8), &line(1, 7, 1)));
        assert!(!overlap(&line(1, 0, 8), &line(1, 8, 8)));
        assert!(!overlap(&line(1, 0, 8), &line(2, 0, 8)));
    }
}
