//! Reading and writing the headers and metadata areas of devices.
//!
//! Invariant: a device never carries a signature of ours above a metadata area that was not cleared
//! first, so a new pool cannot be mistaken for what lived on the device before. The two copies of a
//! signature are never in flight together.
//!
//! Other daemons write the signature first and clear the areas behind it; the bytes in the end are
//! the same.

use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::header::{self, BLOCK_BYTES, Choice, Decoded, StaticHeader, Unreadable, Which};
use crate::format::mda::{self, Geometry, REGIONS, Region};
use crate::model::device::{Candidate, DeviceNumber};
use crate::shard::wait::all;
use crate::sys::{Sys, Target, Write, WriteData};
use crate::units::Sectors;

/// Clears the metadata areas of new devices, then gives them their signatures. Durable at the end.
pub async fn initialise<S: Sys>(sys: &S, devices: &[(DeviceNumber, StaticHeader)]) -> Result<(), Fault> {
    let clear = |(number, header): &(DeviceNumber, StaticHeader)| {
        let geometry = Geometry::of(header);
        let target = Target::Device(*number);
        (0..REGIONS).map(move |region| bytes(target, geometry.start(region), mda::empty_sector())).collect::<Vec<_>>()
    };
    put(sys, devices.iter().flat_map(clear).collect()).await?;
    sign(sys, devices).await
}

/// Writes the signatures of devices: the first copies, then the second ones. Durable at the end.
pub async fn sign<S: Sys>(sys: &S, devices: &[(DeviceNumber, StaticHeader)]) -> Result<(), Fault> {
    for which in [Which::First, Which::Second] {
        let copy = |(number, header): &(DeviceNumber, StaticHeader)| {
            bytes(Target::Device(*number), which.group_start(), header.group())
        };
        put(sys, devices.iter().map(copy).collect()).await?;
    }
    Ok(())
}

/// Takes the signatures away: nothing else on the devices is touched. Durable at the end.
/// Every device is tried; the first fault is returned.
pub async fn wipe<S: Sys>(sys: &S, devices: &[DeviceNumber]) -> Result<(), Fault> {
    let blank = |number: &DeviceNumber| Write {
        target: Target::Device(*number),
        start: Sectors::ZERO,
        data: WriteData::Zeroes(header::HEADER_SECTORS),
    };
    let each = devices.iter().map(|number| put(sys, vec![blank(number)]));
    all(each).await.into_iter().collect()
}

/// Writes all of a batch and makes it durable.
pub async fn put<S: Sys>(sys: &S, batch: Vec<Write>) -> Result<(), Fault> {
    let mut targets: Vec<Target> = batch.iter().map(|write| write.target).collect();
    targets.sort_unstable();
    targets.dedup();
    sys.write(batch).await.into_iter().collect::<Result<(), Fault>>()?;
    sys.flush(targets).await.into_iter().collect()
}

/// A write of bytes.
pub fn bytes(target: Target, start: Sectors, data: Vec<u8>) -> Write {
    Write { target, start, data: WriteData::Bytes(data) }
}

/// Reads the signature of an open device, each copy by its own I/O so that one bad sector does not
/// hide the other. `None`: the device is not a Stratis device.
pub async fn signature<S: Sys>(sys: &S, candidate: &Candidate) -> Result<Option<StaticHeader>, Failure> {
    let first = block(sys, candidate.number, Which::First).await;
    let second = block(sys, candidate.number, Which::Second).await;
    match header::choose(first, second, candidate.size) {
        Choice::NotStratis => Ok(None),
        Choice::Refused(_) => Err(Refusal::DeviceDamaged { path: candidate.path.clone() }.into()),
        // A damaged copy is not repaired here: looking at a device never changes it. The next
        // signature that is written for its own reasons repairs it.
        Choice::Use { header, repair: _ } => Ok(Some(header)),
    }
}

async fn block<S: Sys>(sys: &S, number: DeviceNumber, which: Which) -> Result<Decoded, Unreadable> {
    let sector = sys.read(Target::Device(number), which.block_start(), Sectors(1)).await.map_err(|_| Unreadable)?;
    let block: [u8; BLOCK_BYTES] = sector.as_slice().try_into().map_err(|_| Unreadable)?;
    Ok(header::decode(&block))
}

/// Reads the four regions of an open device. One that cannot be read counts as torn.
pub async fn regions<S: Sys>(sys: &S, number: DeviceNumber, header: &StaticHeader) -> [Region; REGIONS] {
    let geometry = Geometry::of(header);
    let reads = (0..REGIONS).map(|region| sys.read(Target::Device(number), geometry.start(region), geometry.length()));
    let mut regions = [const { Region::Torn(mda::Damage::Length) }; REGIONS];
    for (region, content) in regions.iter_mut().zip(all(reads).await) {
        match content {
            Ok(content) => *region = mda::decode(&content),
            Err(fault) => log::warn!("a metadata region is taken as damaged: {fault}"),
        }
    }
    regions
}

/// A fault about data that cannot be right.
pub fn wrong(doing: &'static str, subject: impl ToString, what: &'static str) -> Fault {
    Fault::new(doing, subject, Why::Data(what))
}
