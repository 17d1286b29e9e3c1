//! Where a log ends: a search that says what to read next, and gives the record at the end.
//!
//! A log is a ring. From its beginning to its end, all sectors have one cycle number; from there to
//! the beginning of the ring's next turn, the number before. So the end is found by narrowing, a few
//! reads at a time, and then the 2 MiB before it are looked at: as far as writes that were in flight
//! together can lie apart.
//!
//! Invariant: a record is given only for a log whose end is beyond doubt. Anything else is a fault,
//! and the kernel has to look at the log.
//!
//! Deliberately absent: repair, and a choice between ends.

use thiserror::Error;
use uuid::Uuid;

use crate::units::SECTOR_BYTES;
use crate::xfs::{Span, Write, log};

/// Sectors that are read at a time while narrowing: three rounds for the log of 1 TiB, four for the largest.
const PROBES: u64 = 64;
/// What is looked at before the end: eight buffers of 256 KiB, all that can be in flight.
const WINDOW_BYTES: u64 = 2 << 20;

/// Why a log is left to the kernel.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum LogFault {
    /// Nothing was ever written to it.
    #[error("its log was never written")]
    Empty,
    /// Its sectors do not follow each other as in a log that was written to its end.
    #[error("its log has cycle {found} where {expected} was expected, {at} bytes from its beginning")]
    Cycles {
        /// What a sector says.
        found: u64,
        /// What was expected.
        expected: u64,
        /// Which sector.
        at: u64,
    },
    /// No record ends where the log ends, or one of unknown form.
    #[error("its log does not end with a record that is understood")]
    Record,
    /// The last record is damaged.
    #[error("the checksum of its log's last record is wrong")]
    Checksum,
    /// The last record is of another filesystem.
    #[error("its log's last record has the UUID {0}")]
    OtherUuid(Uuid),
    /// It is mounted, or was not unmounted.
    #[error("its log is not clean: it was not unmounted")]
    Dirty,
}

impl LogFault {
    /// Whether the kernel can be expected to make the log clean by mounting the filesystem. One that was
    /// never written is not for it: some kernels mount it, and wait for ever when it is unmounted.
    pub(super) const fn is_for_kernel(self) -> bool {
        match self {
            Self::Cycles { .. } | Self::Record | Self::Checksum | Self::Dirty => true,
            Self::Empty | Self::OtherUuid(_) => false,
        }
    }
}

/// The search, between two reads.
#[derive(Clone, Debug)]
pub(super) struct Search {
    log: Span,
    /// Bytes of a sector of the log.
    sector: u64,
    /// The cycle of the first sector.
    cycle: u64,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// The first and the last sector are being read.
    Ends,
    /// The sectors `probes` are being read; the end lies behind `low` and at or before `high`.
    Narrow { low: u64, high: u64, probes: Vec<u64> },
    /// What lies before the end is being read.
    Window { end: u64 },
}

/// What a search wants.
pub(super) enum Found {
    /// These places have to be read.
    Read(Search, Vec<Span>),
    /// The last record begins at this offset from the beginning of the log; its bytes.
    Last(Search, u64, Vec<u8>),
}

impl Search {
    /// Begins: what to read first.
    pub(super) fn begin(log: Span, sector: u64) -> (Self, Vec<Span>) {
        let search = Self { log, sector, cycle: 0, state: State::Ends };
        let reads = vec![search.sector_at(0), search.sector_at(search.sectors() - 1)];
        (search, reads)
    }

    /// Goes on with what was read, in the order in which it was wanted.
    pub(super) fn go_on(mut self, read: &[Vec<u8>]) -> Result<Found, LogFault> {
        match std::mem::replace(&mut self.state, State::Ends) {
            State::Ends => self.ends(read),
            State::Narrow { low, high, probes } => self.narrowed(low, high, &probes, read),
            State::Window { end } => self.window(end, read),
        }
    }

    /// The write that puts the beginning of the last record back: whole sectors.
    pub(super) fn write_back(&self, offset: u64, record: &[u8]) -> Result<Write, LogFault> {
        let sector = usize::try_from(self.sector).expect("a sector fits memory");
        let whole = record.get(..sector).filter(|_| offset.is_multiple_of(self.sector));
        let bytes = whole.ok_or(LogFault::Record)?.to_vec();
        Ok(Write { at: self.log.at + offset, bytes })
    }

    fn sectors(&self) -> u64 {
        self.log.length / self.sector
    }

    fn sector_at(&self, number: u64) -> Span {
        Span { at: self.log.at + number * self.sector, length: self.sector }
    }

    /// The log ends within the ring, or exactly where the ring does.
    fn ends(mut self, read: &[Vec<u8>]) -> Result<Found, LogFault> {
        let last = self.sectors() - 1;
        self.cycle = log::cycle_of(&read[0]);
        if self.cycle == 0 {
            return Err(LogFault::Empty);
        }
        let of_last = self.checked(last, &read[1])?;
        if of_last == self.cycle { Ok(self.look(last + 1)) } else { Ok(self.narrow(0, last)) }
    }

    /// The cycle of a sector, which is that of the first one or the one before it.
    fn checked(&self, number: u64, sector: &[u8]) -> Result<u64, LogFault> {
        let found = log::cycle_of(sector);
        let fault = LogFault::Cycles { found, expected: self.cycle, at: number * self.sector };
        if found == self.cycle || found + 1 == self.cycle { Ok(found) } else { Err(fault) }
    }

    /// Wants sectors between `low`, which was written in this cycle, and `high`, which was not.
    fn narrow(mut self, low: u64, high: u64) -> Found {
        let between = high - low - 1;
        if between == 0 {
            return self.look(high);
        }
        let count = between.min(PROBES);
        let probes: Vec<u64> = (1..=count).map(|part| low + (between + 1) * part / (count + 1)).collect();
        let reads = probes.iter().map(|probe| self.sector_at(*probe)).collect();
        self.state = State::Narrow { low, high, probes };
        Found::Read(self, reads)
    }

    fn narrowed(self, mut low: u64, mut high: u64, probes: &[u64], read: &[Vec<u8>]) -> Result<Found, LogFault> {
        for (probe, sector) in probes.iter().zip(read) {
            let found = self.checked(*probe, sector)?;
            if found != self.cycle {
                high = high.min(*probe);
            } else if *probe > high {
                // It was written later than a sector before it: the ring has two ends.
                return Err(LogFault::Cycles { found, expected: self.cycle - 1, at: probe * self.sector });
            } else {
                low = *probe;
            }
        }
        Ok(self.narrow(low, high))
    }

    /// Wants what lies before the end; the ring goes on at its own end.
    fn look(mut self, end: u64) -> Found {
        let end = end * self.sector;
        let length = WINDOW_BYTES.min(self.log.length);
        let before = Span { at: self.log.at + end.saturating_sub(length), length: end.min(length) };
        let rest = length - before.length;
        let wrapped = Span { at: self.log.at + self.log.length - rest, length: rest };
        let reads = if rest == 0 { vec![before] } else { vec![wrapped, before] };
        self.state = State::Window { end };
        Found::Read(self, reads)
    }

    fn window(self, end: u64, read: &[Vec<u8>]) -> Result<Found, LogFault> {
        let (wrapped, before) = match read {
            [wrapped, before] => (wrapped.as_slice(), before.as_slice()),
            [before] => (&[][..], before.as_slice()),
            _ => return Err(LogFault::Record),
        };
        let wrapped_at = self.log.length - length_of(wrapped);
        self.check_cycles(wrapped, wrapped_at, self.cycle - 1)?;
        self.check_cycles(before, end - length_of(before), self.cycle)?;
        let window = [wrapped, before].concat();
        let last = window.chunks_exact(log::SECTOR).rposition(log::begins_record).ok_or(LogFault::Record)?;
        let from = last * log::SECTOR;
        let record = window[from..].to_vec();
        // The end and a ring's length before it are the same place.
        let offset = (end + self.log.length - length_of(&record)) % self.log.length;
        Ok(Found::Last(self, offset, record))
    }

    /// Every sector of a stretch was written in the same cycle.
    fn check_cycles(&self, stretch: &[u8], at: u64, expected: u64) -> Result<(), LogFault> {
        for (number, sector) in (0..).zip(stretch.chunks_exact(log::SECTOR)) {
            let found = log::cycle_of(sector);
            if found != expected {
                return Err(LogFault::Cycles { found, expected, at: at + number * SECTOR_BYTES });
            }
        }
        Ok(())
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("memory has fewer bytes than a log may have")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Sectors;
    use crate::xfs::{Geometry, Groups, LogLength, Sector, Shape, Stripe};

    const OLD: Uuid = Uuid::from_bytes([1; 16]);
    const NEW: Uuid = Uuid::from_bytes([2; 16]);
    /// Where the log begins on its device.
    const AT: u64 = 1 << 30;

    /// The unmount record of a log with this stripe unit, of this cycle.
    fn record(unit: u64, cycle: u8) -> Vec<u8> {
        let unit = Sectors(unit / SECTOR_BYTES);
        let stripe = (unit.0 > 0).then_some(Stripe { unit, width: unit });
        let shape = Shape { size: Sectors(1 << 30), sector: Sector::Bytes512, stripe, groups: Groups::Default };
        let geometry = Geometry::of(&shape, LogLength::Default).expect("a geometry");
        let mut record = log::first_record(&geometry, OLD);
        // Without a unit, what follows in the block is not the record's.
        record.truncate(if unit.0 == 0 { 1024 } else { record.len() });
        for (number, sector) in record.chunks_exact_mut(512).enumerate() {
            // The cycle of a header stands behind its magic number; further headers have none.
            let at = if number == 0 { 7 } else { 3 };
            sector[at] = cycle;
        }
        record
    }

    /// A ring of so many sectors of which those before `end` have this cycle, with the record at the end.
    fn ring(sectors: usize, end: usize, cycle: u8, mut record: Vec<u8>) -> Vec<u8> {
        let mut ring = vec![0; sectors * 512];
        for (number, sector) in ring.chunks_exact_mut(512).enumerate() {
            sector[3] = if number < end { cycle } else { cycle - 1 };
        }
        // What of the record lies behind the ring's end belongs to the next cycle.
        let count = record.len() / 512;
        for (number, sector) in record.chunks_exact_mut(512).enumerate() {
            let place = (end + sectors - count + number) % sectors;
            let of_place = if place < end { cycle } else { cycle - 1 };
            sector[if number == 0 { 7 } else { 3 }] = of_place;
            ring[place * 512..(place + 1) * 512].copy_from_slice(sector);
        }
        ring
    }

    /// Follows the search; the record's place and bytes, with the new UUID, and the write of it.
    fn follow(ring: &[u8], sector: u64) -> Result<(u64, Write), LogFault> {
        let log = Span { at: AT, length: length_of(ring) };
        let (mut search, mut wanted) = Search::begin(log, sector);
        for _ in 0..9 {
            let read: Vec<Vec<u8>> = wanted
                .iter()
                .map(|span| {
                    let from = usize::try_from(span.at - AT).expect("in the ring");
                    ring[from..from + usize::try_from(span.length).expect("in the ring")].to_vec()
                })
                .collect();
            match search.go_on(&read)? {
                Found::Read(next, more) => (search, wanted) = (next, more),
                Found::Last(search, offset, mut record) => {
                    log::change_uuid(&mut record, OLD, NEW)?;
                    return Ok((offset, search.write_back(offset, &record)?));
                }
            }
        }
        panic!("the search goes on for ever");
    }

    const SECTORS: usize = 16_384;

    #[test]
    fn the_end_is_found_wherever_it_lies_and_however_the_record_lies_around_it() {
        for end in [2, 3, 64, 4_095, 4_096, 4_097, SECTORS - 1, SECTORS] {
            let (at, write) = follow(&ring(SECTORS, end, 7, record(0, 7)), 512).expect("a clean log");
            assert_eq!((at, write.at), ((end as u64 - 2) * 512, AT + (end as u64 - 2) * 512));
            assert_eq!(write.bytes.len(), 512);
        }
        // The header is the ring's last sector, the data its first.
        let (at, write) = follow(&ring(SECTORS, 1, 7, record(0, 7)), 512).expect("a clean log");
        assert_eq!((at, write.at), ((SECTORS as u64 - 1) * 512, AT + (SECTORS as u64 - 1) * 512));
    }

    #[test]
    fn a_log_that_never_went_round_ends_before_zeroes() {
        let (at, _) = follow(&ring(SECTORS, 1_000, 1, record(0, 1)), 512).expect("a clean log");
        assert_eq!(at, 998 * 512);
        assert_eq!(follow(&vec![0; SECTORS * 512], 512).expect_err("never written"), LogFault::Empty);
    }

    #[test]
    fn a_record_of_many_sectors_is_whole_also_around_the_ends_of_the_ring() {
        let long = record(192 << 10, 7);
        let count = long.len() / 512;
        assert_eq!(count, 384);
        for end in [384, 5_000, SECTORS, 100, 8] {
            let (at, _) = follow(&ring(SECTORS, end, 7, long.clone()), 512).expect("a clean log");
            assert_eq!(at, ((end + SECTORS - count) % SECTORS) as u64 * 512, "{end}");
        }
    }

    #[test]
    fn sectors_of_4096_bytes_are_written_back_whole() {
        let (at, write) = follow(&ring(SECTORS, 4_096 + 64, 7, record(32 << 10, 7)), 4_096).expect("a clean log");
        assert_eq!((at, write.bytes.len()), (4_096 * 512, 4_096));
        // No record begins within a sector of such a log.
        let fault = follow(&ring(SECTORS, 4_096, 7, record(0, 7)), 4_096).expect_err("refused");
        assert_eq!(fault, LogFault::Record);
    }

    #[test]
    fn what_is_not_clean_beyond_doubt_is_refused() {
        let clean = ring(SECTORS, 5_000, 7, record(0, 7));
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut ring = clean.clone();
            change(&mut ring);
            follow(&ring, 512).expect_err("refused")
        };
        let byte = |sector: usize, at: usize| sector * 512 + at;
        let gap = with(&|ring| ring[byte(4_000, 3)] = 6);
        assert_eq!(gap, LogFault::Cycles { found: 6, expected: 7, at: 4_000 * 512 });
        assert!(matches!(with(&|ring| ring[byte(0, 3)] = 9), LogFault::Cycles { .. }));
        // A log of another turn of the ring between.
        assert!(matches!(
            with(&|ring| ring[byte(15_000, 3)..].chunks_mut(512).for_each(|s| s[0] = 7)),
            LogFault::Cycles { .. }
        ));
        assert_eq!(with(&|ring| ring[byte(4_999, 9)] = 0), LogFault::Dirty);
        assert_eq!(with(&|ring| ring[byte(4_998, 43)] = 2), LogFault::Dirty);
        assert_eq!(with(&|ring| ring[byte(4_998, 15)] = 9), LogFault::Record);
        assert_eq!(with(&|ring| ring[byte(4_998, 11)] = 1), LogFault::Record);
        assert_eq!(with(&|ring| ring[byte(4_998, 303)] = 2), LogFault::Record);
        assert_eq!(with(&|ring| ring[byte(4_998, 32)] = 2), LogFault::Checksum);
        assert!(matches!(with(&|ring| ring[byte(4_998, 310)] = 9), LogFault::OtherUuid(_)));
        assert_eq!(with(&|ring| ring[byte(4_998, 0)..][..4].copy_from_slice(&[0, 0, 0, 7])), LogFault::Record);
    }

    proptest! {
        #[test]
        fn any_end_is_found(sectors in 4_096_usize..40_000, end: prop::sample::Index, cycle in 2_u8..200) {
            let sectors = sectors / 8 * 8;
            let end = end.index(sectors) + 1;
            let (at, _) = follow(&ring(sectors, end, cycle, record(0, cycle)), 512).expect("a clean log");
            prop_assert_eq!(at, ((end + sectors - 2) % sectors) as u64 * 512);
        }

        #[test]
        fn no_bytes_at_all_make_it_panic(seed: u64, sectors in 1_usize..64, cycles: [bool; 64]) {
            let mut bytes = vec![0; sectors * 4_096];
            fastrand::Rng::with_seed(seed).fill(&mut bytes);
            for (sector, magic) in bytes.chunks_exact_mut(512).zip(cycles.iter().cycle()) {
                let first = if *magic { [0xfe, 0xed, 0xba, 0xbe] } else { [0, 0, 0, 1] };
                sector[..8].copy_from_slice(&[first, [0, 0, 0, 1]].concat());
            }
            prop_assert!(follow(&bytes, 512).is_err());
        }
    }
}
