//! Log records, `xlog_rec_header` and what follows: the unmount record that a new log holds, and the
//! one that the kernel left at the end of a clean log.
//!
//! A record is one header sector for each 32 KiB that the writer's buffer had, then data. Every sector
//! of a log says in which cycle it was written, in its first four bytes; of data sectors, the header
//! keeps what stood there.
//!
//! Invariant: an all-zero log is never left behind. Some kernels mount it, and then wait for ever when
//! it is unmounted.
//!
//! Deliberately absent: any record but the unmount record. A log that ends with another is dirty, and
//! replaying it is the kernel's work.

use uuid::Uuid;

use crate::units::SECTOR_BYTES;
use crate::xfs::BLOCK_BYTES;
use crate::xfs::bytes::Field;
use crate::xfs::geometry::Geometry;
use crate::xfs::log_head::LogFault;

const MAGIC: u32 = 0xfeed_babe;
const VERSION_2: u32 = 2;
/// `XLOG_FMT_LINUX_LE`: little-endian operations, as all our machines write them.
const FORMAT: u32 = 1;
/// What one header sector describes, `XLOG_HEADER_CYCLE_SIZE`.
const DESCRIBED_BYTES: u64 = 32 << 10;
/// Largest buffer of a writer, `XLOG_MAX_RECORD_BSIZE`.
const RECORD_BYTES_MAX: u64 = 256 << 10;

const MAGICNO: Field = Field::first(4);
const CYCLE: Field = MAGICNO.then(4);
const VERSION: Field = CYCLE.then(4);
const LEN: Field = VERSION.then(4);
const LSN: Field = LEN.then(8);
const TAIL_LSN: Field = LSN.then(8);
const CRC: Field = TAIL_LSN.then(4);
const PREV_BLOCK: Field = CRC.then(4);
const NUM_LOGOPS: Field = PREV_BLOCK.then(4);
/// `h_cycle_data[0]`, the first of 64.
const CYCLE_DATA: Field = NUM_LOGOPS.then(4);
const CYCLE_DATA_REST: Field = CYCLE_DATA.then(63 * 4);
const FMT: Field = CYCLE_DATA_REST.then(4);
const FS_UUID: Field = FMT.then(16);
const SIZE: Field = FS_UUID.then(4);
/// The compiler's, to a multiple of eight bytes; the checksum counts it.
const PAD: Field = SIZE.then(4);

/// `xlog_rec_ext_header`: a cycle and what stood in 64 more sectors.
const EXTENDED_BYTES: usize = 4 + 64 * 4;

/// The first four bytes of any sector of a log but a record's header.
const SECTOR_CYCLE: Field = Field::first(4);

/// `xlog_op_header`, at the beginning of the data; its first field is overlaid by the cycle.
const OP_TID: Field = Field::first(4);
const OP_LEN: Field = OP_TID.then(4);
const OP_CLIENTID: Field = OP_LEN.then(1);
const OP_FLAGS: Field = OP_CLIENTID.then(1);
const OP_RES2: Field = OP_FLAGS.then(2);
/// `xfs_unmount_log_format`: a magic number in the machine's order, padding.
const UNMOUNT_MAGIC: Field = OP_RES2.then(2);
const UNMOUNT_BYTES: u32 = 8;
const UNMOUNT: u16 = 0x556e;
/// `XFS_LOG`: the log itself speaks.
const CLIENT_LOG: u32 = 0xaa;
/// `XLOG_UNMOUNT_TRANS`
const FLAG_UNMOUNT: u64 = 0x20;
/// The transaction that mkfs.xfs writes the record in.
const TID: u32 = 0xb0c0_d0d0;
/// A log begins with cycle 1: 0 is what sectors have that were never written.
const FIRST_CYCLE: u32 = 1;

/// Bytes of what has a cycle of its own, whatever the sectors of the device have.
#[allow(clippy::cast_possible_truncation, reason = "512")]
pub(super) const SECTOR: usize = SECTOR_BYTES as usize;

/// The record of a new log, whole blocks. What follows the record in its last block is zero.
pub(super) fn first_record(geometry: &Geometry, uuid: Uuid) -> Vec<u8> {
    let unit = geometry.log_unit * BLOCK_BYTES;
    let headers = unit.div_ceil(DESCRIBED_BYTES).max(1);
    let sectors = (unit / SECTOR_BYTES).max(headers + 1);
    let length = usize::try_from((sectors * SECTOR_BYTES).next_multiple_of(BLOCK_BYTES)).expect("at most 256 KiB");
    let mut record = vec![0; length];
    // The sectors behind the first header: further headers begin with the cycle just like data.
    let written = usize::try_from(sectors * SECTOR_BYTES).expect("at most 256 KiB");
    for sector in record[..written].chunks_exact_mut(SECTOR).skip(1) {
        SECTOR_CYCLE.put(sector, FIRST_CYCLE);
    }
    let start = u64::from(FIRST_CYCLE) << 32;
    MAGICNO.put(&mut record, MAGIC);
    CYCLE.put(&mut record, FIRST_CYCLE);
    VERSION.put(&mut record, VERSION_2);
    LEN.put(&mut record, (sectors - headers) * SECTOR_BYTES);
    LSN.put(&mut record, start);
    TAIL_LSN.put(&mut record, start);
    PREV_BLOCK.put_none(&mut record);
    NUM_LOGOPS.put(&mut record, 1_u32);
    CYCLE_DATA.put(&mut record, TID);
    FMT.put(&mut record, FORMAT);
    FS_UUID.put_bytes(&mut record, uuid.as_bytes());
    SIZE.put(&mut record, unit.max(DESCRIBED_BYTES));
    let data = &mut record[usize::try_from(headers).expect("at most 8") * SECTOR..];
    OP_LEN.put(data, UNMOUNT_BYTES);
    OP_CLIENTID.put(data, CLIENT_LOG);
    OP_FLAGS.put(data, FLAG_UNMOUNT);
    UNMOUNT_MAGIC.put_bytes(data, &UNMOUNT.to_le_bytes());
    record
}

/// Whether a sector is the first of a record.
pub(super) fn begins_record(sector: &[u8]) -> bool {
    MAGICNO.get(sector) == u64::from(MAGIC)
}

/// The cycle in which a sector of a log was written; 0: never.
pub(super) fn cycle_of(sector: &[u8]) -> u64 {
    if begins_record(sector) { CYCLE.get(sector) } else { SECTOR_CYCLE.get(sector) }
}

/// Gives the record another UUID, in place: its header changes, its data does not. `record` is all of
/// it, in the order of the log.
///
/// # Errors
/// When it is no whole unmount record of the filesystem `old`.
pub(super) fn change_uuid(record: &mut [u8], old: Uuid, new: Uuid) -> Result<(), LogFault> {
    let headers = header_bytes(record)?;
    let data = record.get(headers..).filter(|data| data.len() >= SECTOR).ok_or(LogFault::Record)?;
    let whole = LEN.get(record) == u64::try_from(data.len()).expect("a record is short");
    if VERSION.get(record) != u64::from(VERSION_2) || FMT.get(record) != u64::from(FORMAT) || !whole {
        return Err(LogFault::Record);
    }
    if FS_UUID.get_uuid(record) != old {
        return Err(LogFault::OtherUuid(FS_UUID.get_uuid(record)));
    }
    let sum = CRC.of(record).to_vec();
    // What mkfs.xfs and xfs_db write has no checksum, and keeps having none.
    let summed = sum != [0; 4];
    if summed && sum != checksum(record, headers) {
        return Err(LogFault::Checksum);
    }
    if NUM_LOGOPS.get(record) != 1 || OP_FLAGS.get(data) & FLAG_UNMOUNT == 0 {
        return Err(LogFault::Dirty);
    }
    FS_UUID.put_bytes(record, new.as_bytes());
    if summed {
        let sum = checksum(record, headers);
        CRC.put_bytes(record, &sum);
    }
    Ok(())
}

/// Bytes of a record's headers.
fn header_bytes(record: &[u8]) -> Result<usize, LogFault> {
    let size = SIZE.get(record);
    if size == 0 || size > RECORD_BYTES_MAX || LEN.get(record) > size {
        return Err(LogFault::Record);
    }
    Ok(usize::try_from(size.div_ceil(DESCRIBED_BYTES)).expect("at most 8 headers") * SECTOR)
}

/// The checksum of a record: of its first header without the checksum, of those further headers that
/// its data needs, and of the data.
fn checksum(record: &[u8], headers: usize) -> [u8; 4] {
    let needed = LEN.get(record).div_ceil(DESCRIBED_BYTES).max(1);
    let before = crc32c::crc32c(&record[..CRC.at()]);
    let field_too = crc32c::crc32c_append(before, &[0; 4]);
    let mut sum = crc32c::crc32c_append(field_too, &record[CRC.end()..PAD.end()]);
    let further = record[..headers].chunks_exact(SECTOR).skip(1);
    for header in further.take(usize::try_from(needed - 1).expect("at most 8")) {
        sum = crc32c::crc32c_append(sum, &header[..EXTENDED_BYTES]);
    }
    crc32c::crc32c_append(sum, &record[headers..]).to_le_bytes()
}
