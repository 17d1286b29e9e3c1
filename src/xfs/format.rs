//! A new filesystem: everything that has to be written for it, as a plain value.
//!
//! Invariant: the writes do not overlap, neither each other nor what is to be zeroed, so they may be
//! carried out in any order and all at once. The filesystem is there when all of it is durable.
//!
//! What `mkfs.xfs` also does and this does not, because it changes nothing: discards, and zeroes over
//! the log or the device's end where they are known to read as zeroes.
//!
//! Deliberately absent: carrying it out.

use uuid::Uuid;

use crate::xfs::btree::{self, Tree};
use crate::xfs::geometry::{Geometry, HEADER_SECTORS, LogLength, Shape, Unfit};
use crate::xfs::space::Space;
use crate::xfs::{BLOCK_BYTES, ReadsZeroes, Span, Write, agf, agfl, agi, inode, log, superblock};

/// What is overwritten at both ends of a device, whatever lies there: where others leave signatures.
const WIPED_BYTES: u64 = 128 << 10;
/// Two writes with less than this between them are made one, with zeroes: a request costs more.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Time {
    /// Whole seconds.
    pub seconds: u32,
    /// The rest; below a second.
    pub nanoseconds: u32,
}

impl Time {
    /// The beginning of 1970.
    pub(super) const EPOCH: Self = Self { seconds: 0, nanoseconds: 0 };

    /// Big times count nanoseconds from 2^31 seconds before 1970, `XFS_BIGTIME_EPOCH_OFFSET`.
    pub(super) fn on_disk(self) -> u64 {
        (u64::from(self.seconds) + (1 << 31)) * 1_000_000_000 + u64::from(self.nanoseconds)
    }
}

/// What makes a filesystem this one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Its UUID.
    pub uuid: Uuid,
    /// When it was made.
    pub time: Time,
}

/// What becomes of the log.
#[derive(Debug)]
pub enum Log {
    /// Nothing but its first record is written: the volume reads as zeroes.
    RecordOnly(ReadsZeroes, LogLength),
    /// It is zeroed, and therefore as small as it may be. So is the end of the device.
    Zeroed,
}

/// All that has to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Format {
    /// Where everything lies.
    pub geometry: Geometry,
    /// What to write, in the order of the device.
    pub writes: Vec<Write>,
    /// The log. Its beginning, with its first record, is among the writes.
    pub log: Span,
    /// What to zero: the log behind its first record, unless it reads as zeroes.
    pub zero: Option<Span>,
}

/// Makes the bytes of a new filesystem.
///
/// # Errors
/// When there can be no such filesystem, or mkfs.xfs would make none.
pub fn format(shape: &Shape, log: Log, identity: Identity) -> Result<Format, Unfit> {
    let (length, zeroed) = match log {
        // The permission is used up here.
        Log::RecordOnly(ReadsZeroes { .. }, length) => (length, false),
        Log::Zeroed => (LogLength::Smallest, true),
    };
    let geometry = Geometry::of(shape, length)?;
    let log = geometry.log();
    let record = Write { at: log.at, bytes: log::first_record(&geometry, identity.uuid) };
    let behind = Span { at: record_end(&record), length: log.end() - record_end(&record) };
    let mut writes: Vec<Write> =
        (0..geometry.groups).flat_map(|group| group_writes(&geometry, identity, group, &record)).collect();
    if zeroed {
        writes.push(zeroes(geometry.device - WIPED_BYTES, WIPED_BYTES));
    }
    Ok(Format { geometry, writes, log, zero: zeroed.then_some(behind) })
}

/// What lies in one group, in as few writes as is sensible.
fn group_writes(geometry: &Geometry, identity: Identity, group: u64, record: &Write) -> Vec<Write> {
    let mut writes = vec![Write { at: geometry.offset(group, 0), bytes: headers(geometry, identity.uuid, group) }];
    if group == 0 {
        let chunk = inode::chunk(geometry, identity.uuid, identity.time);
        writes[0].bytes.resize(bytes_of(WIPED_BYTES), 0);
        writes.push(Write { at: geometry.root_inodes().at, bytes: chunk });
    }
    if group == geometry.log_group {
        writes.push(record.clone());
    }
    joined(writes)
}

/// The headers of a group and the roots behind them.
fn headers(geometry: &Geometry, uuid: Uuid, group: u64) -> Vec<u8> {
    let space = Space::of(geometry, group).expect("a geometry has room in every group");
    let mut bytes = vec![0; bytes_of(geometry.first_free() * BLOCK_BYTES)];
    let mut sectors = bytes.chunks_exact_mut(bytes_of(geometry.sector.bytes())).take(bytes_of(HEADER_SECTORS));
    let mut next = || sectors.next().expect("four sectors lie before the roots");
    superblock::encode(geometry, uuid, group, next());
    agf::encode(geometry, uuid, group, &space, next());
    agi::encode(geometry, uuid, group, next());
    agfl::encode(uuid, group, &space, next());
    for tree in Tree::ALL {
        let block = bytes_of(btree::root_of(geometry, tree) * BLOCK_BYTES);
        btree::encode(geometry, uuid, group, tree, &space, &mut bytes[block..]);
    }
    bytes
}

/// Joins writes that lie near each other. A later one may lie inside of an earlier one.
fn joined(writes: Vec<Write>) -> Vec<Write> {
    let mut joined: Vec<Write> = Vec::with_capacity(writes.len());
    for write in writes {
        match joined.last_mut() {
            Some(before) if write.at <= record_end(before) + GAP_BYTES_MAX => {
                let from = bytes_of(write.at - before.at);
                let end = from + write.bytes.len();
                let length = before.bytes.len().max(end);
                before.bytes.resize(length, 0);
                before.bytes[from..end].copy_from_slice(&write.bytes);
            }
            Some(_) | None => joined.push(write),
        }
    }
    joined
}

fn zeroes(at: u64, length: u64) -> Write {
    Write { at, bytes: vec![0; bytes_of(length)] }
}

fn record_end(write: &Write) -> u64 {
    write.at + u64::try_from(write.bytes.len()).expect("a write is short")
}

fn bytes_of(length: u64) -> usize {
    usize::try_from(length).expect("what is written at once fits memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sectors;
    use crate::xfs::{Groups, Sector, Stripe};

    const IDENTITY: Identity =
        Identity { uuid: Uuid::from_bytes([7; 16]), time: Time { seconds: 1_700_000_000, nanoseconds: 5 } };

    fn shape(size: u64) -> Shape {
        Shape { size: Sectors(size >> 9), sector: Sector::Bytes512, stripe: None, groups: Groups::Default }
    }

    fn blank() -> Log {
        Log::RecordOnly(ReadsZeroes::of_new_file(), LogLength::Default)
    }

    /// What is written and zeroed, in order, must not overlap.
    fn check_apart(format: &Format) {
        let mut places: Vec<(u64, u64)> = format.writes.iter().map(|write| (write.at, record_end(write))).collect();
        places.extend(format.zero.map(|span| (span.at, span.end())));
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:?}");
    }

    #[test]
    fn a_tebibyte_takes_four_writes_and_only_the_permission_spares_the_zeroes() {
        let format = format(&shape(1 << 40), blank(), IDENTITY).expect("a filesystem");
        assert_eq!(format.writes.iter().map(|write| write.bytes.len()).sum::<usize>(), 208_896);
        assert_eq!((format.writes.len(), format.zero), (4, None));
        assert_eq!(format.log.length, 512 << 20);
        check_apart(&format);
    }

    #[test]
    fn without_permission_the_log_is_small_and_zeroed_behind_its_record() {
        let format = format(&shape(1 << 40), Log::Zeroed, IDENTITY).expect("a filesystem");
        let zero = format.zero.expect("the log is zeroed");
        assert_eq!((format.log.length, zero.end()), (64 << 20, format.log.end()));
        assert_eq!(zero.at, format.log.at + BLOCK_BYTES);
        assert_eq!(format.writes.last().map(record_end), Some(1 << 40));
        check_apart(&format);
    }

    #[test]
    fn writes_and_zeroes_lie_apart_whatever_the_stripe() {
        for unit in [8, 64, 128, 384, 512, 2048, 16_384, 65_536] {
            for sector in [Sector::Bytes512, Sector::Bytes4096] {
                for log in [blank(), Log::Zeroed] {
                    let stripe = Some(Stripe { unit: Sectors(unit), width: Sectors(unit) });
                    let made = format(&Shape { stripe, sector, ..shape(100 << 30) }, log, IDENTITY);
                    check_apart(&made.expect("a filesystem"));
                }
            }
        }
    }

    #[test]
    fn times_count_from_before_1970() {
        assert_eq!(Time::EPOCH.on_disk(), 0x1dcd_6500_0000_0000);
        assert_eq!(Time { seconds: 1, nanoseconds: 2 }.on_disk(), 0x1dcd_6500_0000_0000 + 1_000_000_002);
    }
}
