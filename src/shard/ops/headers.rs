//! Writing the headers and metadata areas of devices.
//!
//! Invariant: a device never carries a signature of ours above a metadata area that was not cleared
//! first, so a new pool cannot be mistaken for what lived on the device before. The two copies of a
//! signature are never in flight together.
//!
//! Other daemons write the signature first and clear the areas behind it; the bytes in the end are
//! the same.

use crate::error::{Fault, Why};
use crate::format::header::{self, StaticHeader, Which};
use crate::format::mda::{self, Geometry, REGIONS};
use crate::model::device::DeviceNumber;
use crate::shard::wait::all;
use crate::sys::{Sys, Target, Write, WriteData};
use crate::units::Sectors;
use crate::zoo::{Bug, planted};

/// Clears the metadata areas of new devices, then gives them their signatures. Durable at the end.
pub async fn initialise<S: Sys>(sys: &S, devices: &[(DeviceNumber, StaticHeader)]) -> Result<(), Fault> {
    let clear = |(number, header): &(DeviceNumber, StaticHeader)| {
        let geometry = Geometry::of(header);
        let target = Target::Device(*number);
        (0..REGIONS).map(move |region| bytes(target, geometry.start(region), mda::empty_sector())).collect::<Vec<_>>()
    };
    if !planted(Bug::AreasNotCleared) {
        put(sys, devices.iter().flat_map(clear).collect()).await?;
    }
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
    if planted(Bug::FlushForgotten) {
        return Ok(());
    }
    sys.flush(targets).await.into_iter().collect()
}

/// A write of bytes.
pub fn bytes(target: Target, start: Sectors, data: Vec<u8>) -> Write {
    Write { target, start, data: WriteData::Bytes(data) }
}

/// A fault about data that cannot be right.
pub fn wrong(doing: &'static str, subject: impl ToString, what: &'static str) -> Fault {
    Fault::new(doing, subject, Why::Data(what))
}
