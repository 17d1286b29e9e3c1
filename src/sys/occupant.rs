//! Who lives on a device, or on a file that stands in for one. Blocking; for a lane.
//!
//! libblkid says: a superblock of any kind it knows, or a partition table, and it says when two
//! signatures contradict each other.
//!
//! Invariant: nothing is changed, and no doubt ends as `Nobody`.
//!
//! Deliberately absent: reading Stratis metadata. libblkid checks one of the two signature blocks, and
//! what they say is for others.

use std::fs::File;
use std::os::fd::AsRawFd;

use libblkid_rs::{BlkidErr, BlkidProbe, BlkidSafeprobeRet, BlkidSublks, BlkidSublksFlags};

use crate::model::device::Occupant;

/// What libblkid and udev call a Stratis signature.
pub(super) const STRATIS: &str = "stratis";

/// Who lives on an open device.
pub(super) fn occupant(file: &File) -> Occupant {
    probe(file).unwrap_or_else(|error| Occupant::Other(format!("something that cannot be probed ({error})")))
}

fn probe(file: &File) -> Result<Occupant, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    probe.set_device(file.as_raw_fd(), 0, 0)?; // Size 0: all of it.
    probe.enable_superblocks(true)?;
    let wanted = BlkidSublksFlags::new(vec![BlkidSublks::Type, BlkidSublks::Usage]);
    probe.set_superblock_flags(wanted)?;
    probe.enable_partitions(true)?;
    match probe.do_safeprobe()? {
        BlkidSafeprobeRet::None => return Ok(Occupant::Nobody),
        BlkidSafeprobeRet::Ambiguous => return Ok(Occupant::Other("more than one signature".to_owned())),
        BlkidSafeprobeRet::Success => {}
    }
    let value = |name| if probe.has_value(name)? { probe.lookup_value(name).map(Some) } else { Ok(None) };
    Ok(match (value("TYPE")?.as_deref(), value("PTTYPE")?.as_deref()) {
        (Some(STRATIS), None) => Occupant::Stratis,
        (Some(kind), None) => Occupant::Other(words(kind, value("USAGE")?.as_deref())),
        (None, Some(kind)) => Occupant::Other(format!("a partition table ({kind})")),
        (Some(kind), Some(table)) => Occupant::Other(format!("{kind} and a partition table ({table})")),
        (None, None) => Occupant::Other("an unknown signature".to_owned()),
    })
}

/// What a signature is called in a message. `usage` is one of libblkid's: filesystem, raid, crypto, other.
pub(super) fn words(kind: &str, usage: Option<&str>) -> String {
    match usage {
        Some("filesystem") => format!("a filesystem ({kind})"),
        Some("crypto") => format!("an encrypted volume ({kind})"),
        Some("raid") => format!("a member of a volume group or array ({kind})"),
        Some(_) | None => format!("a signature ({kind})"),
    }
}
