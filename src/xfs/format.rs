//! A new filesystem: everything that has to be written for it, as a plain value.
//!
//! Invariant: the writes do not overlap, neither each other nor what is to be zeroed, so they may be
//! carried out in any order and all at once. The filesystem is there when all of it is durable.
//! A write is made when it is asked for, so that a large filesystem is no large work in one go.
//!
//! What `mkfs.xfs` also does and this does not, because it changes nothing: discards, and zeroes over
//! the log or the device's end where they are known to read as zeroes.
//!
//! Deliberately absent: carrying it out.

use uuid::Uuid;

use crate::model::blank::ReadsZeroes;
use crate::xfs::btree::{self, Tree};
use crate::xfs::geometry::{Geometry, HEADER_SECTORS, LogLength, Shape, Unfit};
use crate::xfs::space::Space;
use crate::xfs::{BLOCK_BYTES, Span, Write, agf, agfl, agi, inode, log, superblock};

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
    /// The log. Its beginning, with its first record, is among the writes.
    pub log: Span,
    /// What to zero: nothing where that reads as zeroes, else the log behind its first record and the end
    /// of the device.
    pub zeroes: Vec<Span>,
    identity: Identity,
}

/// Decides what a new filesystem consists of.
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
    let mut zeroes = Vec::new();
    if zeroed {
        let record = end(&first_record(&geometry, identity));
        zeroes.push(Span { at: record, length: log.end() - record });
        zeroes.push(Span { at: geometry.device - WIPED_BYTES, length: WIPED_BYTES });
    }
    Ok(Format { geometry, log, zeroes, identity })
}

impl Format {
    /// What to write, in the order of the device.
    pub fn writes(&self) -> impl Iterator<Item = Write> {
        (0..self.geometry.groups).flat_map(|group| group_writes(&self.geometry, self.identity, group))
    }
}

/// What lies in one group, in as few writes as is sensible.
fn group_writes(geometry: &Geometry, identity: Identity, group: u64) -> Vec<Write> {
    // What is joined to the first headers would move them otherwise.
    let room = if group == 0 { bytes_of(WIPED_BYTES + GAP_BYTES_MAX) } else { 0 };
    let mut writes =
        vec![Write { at: geometry.offset(group, 0), bytes: headers(geometry, identity.uuid, group, room) }];
    if group == 0 {
        let chunk = inode::chunk(geometry, identity.uuid, identity.time);
        writes[0].bytes.resize(bytes_of(WIPED_BYTES), 0);
        writes.push(Write { at: geometry.root_inodes().at, bytes: chunk });
    }
    if group == geometry.log_group {
        writes.push(first_record(geometry, identity));
    }
    joined(writes)
}

/// The headers of a group and the roots behind them, in memory with room for at least so many bytes.
fn headers(geometry: &Geometry, uuid: Uuid, group: u64, room: usize) -> Vec<u8> {
    let space = Space::of(geometry, group).expect("a geometry has room in every group");
    let mut bytes = Vec::with_capacity(room);
    bytes.resize(bytes_of(geometry.first_free() * BLOCK_BYTES), 0);
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
            Some(before) if write.at <= end(before) + GAP_BYTES_MAX => {
                let from = bytes_of(write.at - before.at);
                let to = from + write.bytes.len();
                let length = before.bytes.len().max(to);
                before.bytes.resize(length, 0);
                before.bytes[from..to].copy_from_slice(&write.bytes);
            }
            Some(_) | None => joined.push(write),
        }
    }
    joined
}

fn first_record(geometry: &Geometry, identity: Identity) -> Write {
    Write { at: geometry.log().at, bytes: log::first_record(geometry, identity.uuid) }
}

fn end(write: &Write) -> u64 {
    write.at + u64::try_from(write.bytes.len()).expect("a write is short")
}

fn bytes_of(length: u64) -> usize {
    usize::try_from(length).expect("what is written at once fits memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{PoolUuid, ThinId};
    use crate::units::Sectors;
    use crate::xfs::{Groups, Sector, Stripe};

    const IDENTITY: Identity =
        Identity { uuid: Uuid::from_bytes([7; 16]), time: Time { seconds: 1_700_000_000, nanoseconds: 5 } };

    fn shape(size: u64) -> Shape {
        Shape { size: Sectors(size >> 9), sector: Sector::Bytes512, stripe: None, groups: Groups::Default }
    }

    fn blank() -> Log {
        Log::RecordOnly(ReadsZeroes::of_new_file(PoolUuid(Uuid::nil()), ThinId(0)), LogLength::Default)
    }

    /// What is written and zeroed, in order, must not overlap.
    fn check_apart(format: &Format) {
        let mut places: Vec<(u64, u64)> = format.writes().map(|write| (write.at, end(&write))).collect();
        places.extend(format.zeroes.iter().map(|span| (span.at, span.end())));
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:?}");
    }

    #[test]
    fn a_tebibyte_takes_four_writes_and_only_the_permission_spares_the_zeroes() {
        let format = format(&shape(1 << 40), blank(), IDENTITY).expect("a filesystem");
        assert_eq!(format.writes().map(|write| write.bytes.len()).sum::<usize>(), 208_896);
        assert_eq!((format.writes().count(), format.zeroes.len()), (4, 0));
        assert_eq!(format.log.length, 512 << 20);
        check_apart(&format);
    }

    #[test]
    fn without_permission_the_log_is_small_and_zeroed_behind_its_record() {
        let format = format(&shape(1 << 40), Log::Zeroed, IDENTITY).expect("a filesystem");
        let [log, last] = format.zeroes[..] else { panic!("{:?}", format.zeroes) };
        assert_eq!((format.log.length, log.end()), (64 << 20, format.log.end()));
        assert_eq!(log.at, format.log.at + BLOCK_BYTES);
        assert_eq!(last.end(), 1 << 40);
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
