//! Reading what a device says of itself: its signature, its metadata area.
//!
//! Invariant: looking at a device never changes it; a damaged copy is told, and repaired by the start of the pool
//! that the device is of. Used where devices are found (event core) and where
//! they are set up (shards). Deliberately absent: any judgement of what was read.

use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::header::{
    self, BLOCK_BYTES, Choice, Decoded, HEADER_SECTORS, MDA_SECTORS, StaticHeader, Unreadable, Which,
};
use crate::format::mda::{self, Geometry, REGIONS, Region};
use crate::model::device::{Candidate, DeviceNumber};
use crate::sys::{Sys, Target};
use crate::units::Sectors;

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its signature.
    pub header: StaticHeader,
    /// One of the signature's two copies is damaged, or behind the other.
    pub worn: bool,
    /// Its metadata area.
    pub regions: [Region; REGIONS],
}

/// Reads all that an open device says of itself, with one read; where that fails, piece by piece, so that one bad
/// sector does not hide the rest. `None`: the device is not a Stratis device.
///
/// # Errors
/// The device is gone, or carries a signature that cannot be trusted.
pub async fn said<S: Sys>(sys: &S, candidate: &Candidate) -> Result<Option<Said>, Failure> {
    let number = candidate.number;
    let head = match sys.read(Target::Device(number), Sectors::ZERO, HEADER_SECTORS + MDA_SECTORS).await {
        Ok(head) => Some(head),
        Err(fault) if is_gone(&fault) => return Err(fault.into()),
        Err(fault) => {
            log::warn!("a device is read piece by piece: {fault}");
            None
        }
    };
    let [first, second] = match &head {
        Some(head) => [Which::First, Which::Second].map(|which| decoded(part(head, which.block_start(), Sectors(1)))),
        None => [block(sys, number, Which::First).await, block(sys, number, Which::Second).await],
    };
    let Some((header, repair)) = chosen(first, second, candidate)? else { return Ok(None) };
    let geometry = Geometry::of(&header);
    let regions = match &head {
        Some(head) if header.mda_size == MDA_SECTORS => {
            std::array::from_fn(|region| mda::decode(part(head, geometry.start(region), geometry.length())))
        }
        Some(_) | None => regions(sys, number, &header).await?,
    };
    Ok(Some(Said { header, worn: repair.is_some(), regions }))
}

/// Some sectors of what was read from the first one on.
fn part(head: &[u8], start: Sectors, count: Sectors) -> &[u8] {
    let at = |sectors: Sectors| usize::try_from(sectors.offset()).expect("a position in a buffer");
    &head[at(start)..at(start + count)]
}

/// Reads the signature of an open device, each copy by its own I/O so that one bad sector does not
/// hide the other. `None`: the device is not a Stratis device.
pub async fn signature<S: Sys>(sys: &S, candidate: &Candidate) -> Result<Option<StaticHeader>, Failure> {
    let first = block(sys, candidate.number, Which::First).await;
    let second = block(sys, candidate.number, Which::Second).await;
    Ok(chosen(first, second, candidate)?.map(|(header, _repair)| header))
}

fn chosen(
    first: Result<Decoded, Unreadable>,
    second: Result<Decoded, Unreadable>,
    candidate: &Candidate,
) -> Result<Option<(StaticHeader, Option<Which>)>, Refusal> {
    match header::choose(first, second, candidate.size) {
        Choice::NotStratis => Ok(None),
        Choice::Refused(_) => Err(Refusal::DeviceDamaged { path: candidate.path.clone() }),
        Choice::Use { header, repair } => Ok(Some((header, repair))),
    }
}

async fn block<S: Sys>(sys: &S, number: DeviceNumber, which: Which) -> Result<Decoded, Unreadable> {
    decoded(&sys.read(Target::Device(number), which.block_start(), Sectors(1)).await.map_err(|_| Unreadable)?)
}

fn decoded(sector: &[u8]) -> Result<Decoded, Unreadable> {
    let block: [u8; BLOCK_BYTES] = sector.try_into().map_err(|_| Unreadable)?;
    Ok(header::decode(&block))
}

/// Reads the four regions of an open device. One that cannot be read counts as torn.
///
/// # Errors
/// The device is gone. Its regions are not damaged then, and an older record elsewhere must not count instead.
pub async fn regions<S: Sys>(sys: &S, number: DeviceNumber, header: &StaticHeader) -> Result<[Region; REGIONS], Fault> {
    let geometry = Geometry::of(header);
    let mut regions = [const { Region::Torn(mda::Damage::Length) }; REGIONS];
    for (index, region) in regions.iter_mut().enumerate() {
        match sys.read(Target::Device(number), geometry.start(index), geometry.length()).await {
            Ok(content) => *region = mda::decode(&content),
            Err(fault) if is_gone(&fault) => return Err(fault),
            Err(fault) => log::warn!("a metadata region is taken as damaged: {fault}"),
        }
    }
    Ok(regions)
}

/// Whether there is no device any more under the descriptor that was read from.
pub const fn is_gone(fault: &Fault) -> bool {
    matches!(fault.why, Why::Errno(libc::EBADF | libc::ENODEV | libc::ENXIO))
}
