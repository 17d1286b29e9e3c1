//! Reading what a device says of itself: its signature, its metadata area.
//!
//! Invariant: looking at a device never changes it; a damaged copy is not repaired here but by the
//! next write that is made for its own reasons. Used where devices are found (event core) and where
//! they are set up (shards). Deliberately absent: any judgement of what was read.

use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::header::{self, BLOCK_BYTES, Choice, Decoded, StaticHeader, Unreadable, Which};
use crate::format::mda::{self, Geometry, REGIONS, Region};
use crate::model::device::{Candidate, DeviceNumber};
use crate::sys::{Sys, Target};
use crate::units::Sectors;

/// Reads the signature of an open device, each copy by its own I/O so that one bad sector does not
/// hide the other. `None`: the device is not a Stratis device.
pub async fn signature<S: Sys>(sys: &S, candidate: &Candidate) -> Result<Option<StaticHeader>, Failure> {
    let first = block(sys, candidate.number, Which::First).await;
    let second = block(sys, candidate.number, Which::Second).await;
    match header::choose(first, second, candidate.size) {
        Choice::NotStratis => Ok(None),
        Choice::Refused(_) => Err(Refusal::DeviceDamaged { path: candidate.path.clone() }.into()),
        Choice::Use { header, repair: _ } => Ok(Some(header)),
    }
}

async fn block<S: Sys>(sys: &S, number: DeviceNumber, which: Which) -> Result<Decoded, Unreadable> {
    let sector = sys.read(Target::Device(number), which.block_start(), Sectors(1)).await.map_err(|_| Unreadable)?;
    let block: [u8; BLOCK_BYTES] = sector.as_slice().try_into().map_err(|_| Unreadable)?;
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
