//! Another UUID for a filesystem that is not mounted and whose log is clean: what to read, and then
//! what to write.
//!
//! Every superblock gets the new UUID. What all other structures carry stays, and from then on stands
//! in the superblocks of its own (META_UUID). The last record of the log gets the new UUID too, since
//! the kernel compares that one when it mounts; records before it are never looked at again.
//!
//! Invariant: whatever is read, the writes given are those of a filesystem that is understood whole:
//! superblocks that belong together, one unmount record at the log's end. Everything else is refused,
//! and nothing is to be written. A filesystem whose log is not clean needs the kernel first: mounting
//! and unmounting it cleans the log.
//!
//! Deliberately absent: I/O. `Step` says what is next; reads of one step may be made all at once, and
//! so may the writes, which need one flush after them. A crash in between leaves a filesystem that is
//! to be made anew.

use thiserror::Error;
use uuid::Uuid;

use crate::limits::SECTORS_MAX;
use crate::units::Sectors;
use crate::xfs::log_head::{Found, LogFault, Search};
use crate::xfs::superblock::{self, Superblock, SuperblockFault};
use crate::xfs::{BLOCK_BYTES, Span, Write, log};

/// What is read first, whatever the size of sectors is.
pub const FIRST_READ: Span = Span { at: 0, length: BLOCK_BYTES };

/// Why the UUID is not changed natively.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Refused {
    /// The first superblock.
    #[error(transparent)]
    Superblock(#[from] SuperblockFault),
    /// A superblock of another group.
    #[error("superblock of group {0}: {1}")]
    Secondary(u64, SuperblockFault),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogFault),
    /// The kernel mounts no filesystem with this UUID.
    #[error("a filesystem cannot have the UUID that is all zero")]
    Nil,
    /// What was handed over is not what was wanted.
    #[error("read {0} bytes where {1} were wanted")]
    Short(u64, u64),
}

impl Refused {
    /// Whether it may be otherwise once the kernel has mounted and unmounted the filesystem.
    pub const fn is_for_kernel(self) -> bool {
        match self {
            Self::Log(fault) => fault.is_for_kernel(),
            Self::Superblock(_) | Self::Secondary(..) | Self::Nil | Self::Short(..) => false,
        }
    }
}

/// A change, between two reads.
#[derive(Clone, Debug)]
pub struct NewUuid {
    first: Superblock,
    new: Uuid,
    search: Search,
    /// What is being read.
    wanted: Vec<Span>,
    /// The superblocks as they will be; empty until they were read.
    changed: Vec<Write>,
}

/// What is next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Read what is `wanted`, and hand the bytes to `go_on`.
    Read(Box<NewUuid>),
    /// Write these, and it is done.
    Write(Vec<Write>),
}

impl NewUuid {
    /// Begins with what was read at `FIRST_READ` from a device of this size.
    ///
    /// # Errors
    /// When that is no XFS filesystem, or not one that is understood.
    pub fn begin(read: &[u8], size: Sectors, new: Uuid) -> Result<Step, Refused> {
        check_read(&[FIRST_READ], &[read])?;
        if new.is_nil() {
            return Err(Refused::Nil);
        }
        let first = superblock::decode(read, size.min(SECTORS_MAX).offset())?;
        let (search, mut wanted) = Search::begin(first.log, first.log_sector);
        let length = first.group_blocks * BLOCK_BYTES;
        wanted.extend((0..first.groups).map(|group| Span { at: group * length, length: first.sector }));
        Ok(Step::Read(Box::new(Self { first, new, search, wanted, changed: Vec::new() })))
    }

    /// The places to read, all of each.
    pub fn wanted(&self) -> &[Span] {
        &self.wanted
    }

    /// Goes on with what was read, in the order in which it was wanted.
    ///
    /// # Errors
    /// When the log is not clean or anything else is not understood.
    pub fn go_on(mut self, read: &[Vec<u8>]) -> Result<Step, Refused> {
        let slices: Vec<&[u8]> = read.iter().map(Vec::as_slice).collect();
        check_read(&self.wanted, &slices)?;
        let mut of_log = read;
        if self.changed.is_empty() {
            // The superblocks were read together with the first two sectors of the log.
            let superblocks;
            (of_log, superblocks) = read.split_at(read.len() - self.superblocks());
            self.change_superblocks(superblocks)?;
        }
        match self.search.clone().go_on(of_log)? {
            Found::Read(search, wanted) => Ok(Step::Read(Box::new(Self { search, wanted, ..self }))),
            Found::Last(search, offset, mut record) => {
                log::change_uuid(&mut record, self.first.uuid, self.new)?;
                self.changed.push(search.write_back(offset, &record)?);
                Ok(Step::Write(self.changed))
            }
        }
    }

    fn superblocks(&self) -> usize {
        usize::try_from(self.first.groups).expect("the count of groups is bounded")
    }

    fn change_superblocks(&mut self, sectors: &[Vec<u8>]) -> Result<(), Refused> {
        let places = &self.wanted[self.wanted.len() - sectors.len()..];
        for (group, (place, sector)) in (0..).zip(places.iter().zip(sectors)) {
            let mut bytes = sector.clone();
            superblock::change_uuid(&mut bytes, &self.first, self.new)
                .map_err(|fault| if group == 0 { fault.into() } else { Refused::Secondary(group, fault) })?;
            self.changed.push(Write { at: place.at, bytes });
        }
        Ok(())
    }
}

/// Whether each place was read whole.
fn check_read(wanted: &[Span], read: &[&[u8]]) -> Result<(), Refused> {
    let count = |bytes: usize| u64::try_from(bytes).expect("memory is smaller");
    let total = |lengths: &mut dyn Iterator<Item = u64>| lengths.sum::<u64>();
    let same =
        wanted.len() == read.len() && wanted.iter().zip(read).all(|(place, bytes)| place.length == count(bytes.len()));
    let fault = Refused::Short(
        total(&mut read.iter().map(|bytes| count(bytes.len()))),
        total(&mut wanted.iter().map(|place| place.length)),
    );
    if same { Ok(()) } else { Err(fault) }
}
