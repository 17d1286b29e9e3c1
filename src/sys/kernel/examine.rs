//! A block device, looked at. Blocking; runs on a lane.
//!
//! Two are asked: udev's database, which knows paths of multipath devices, whole disks with partitions
//! and hardware identifiers; and libblkid, which reads the device now. What only one of them finds
//! counts, with one exception: a Stratis signature that only udev knows has just been wiped.
//!
//! Invariant: nothing is changed (not even by closing: the device is opened for reading, so udev sees
//! no write), nothing waits for udev, and no doubt ends as `Nobody`.
//!
//! Deliberately absent: whether somebody uses the device. Opening a new member finds that out.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use udev::{Device, DeviceType};

use super::block::{Shape, shape};
use crate::error::{Failure, Fault, Refusal};
use crate::limits::{DEVICE_SECTORS_MIN, DISCOVERED_MAX};
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Occupant};
use crate::sys::occupant::{STRATIS, occupant, words};
use crate::units::Sectors;

/// Where a running udevd listens.
const UDEV_CONTROL: &str = "/run/udev/control";
/// Every block device that the kernel has.
const BLOCK_DEVICES: &str = "/sys/class/block";
/// Nodes of devices.
const NODES: &str = "/dev";
/// What udev calls a LUKS header.
const LUKS: &str = "crypto_LUKS";

/// What udev's database says of a device, as far as it matters here.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Known {
    multipath_path: bool,
    kind: Option<String>,
    usage: Option<String>,
    partition_table: Option<String>,
    is_partition: bool,
    hardware: Option<String>,
}

/// Whether there is a udevd to ask. One that hangs is one: its database is read, it is not waited for.
pub(super) fn udev_runs() -> bool {
    Path::new(UDEV_CONTROL).exists()
}

/// Looks at the device under a path.
pub(super) fn examine(path: &DevicePath) -> Result<Candidate, Failure> {
    look(path, occupant)
}

/// The same without reading anything of the device, which may hang: as if it carried a Stratis signature.
pub(super) fn unread(path: &DevicePath) -> Result<Candidate, Failure> {
    look(path, |_file| Occupant::Stratis)
}

fn look(path: &DevicePath, occupant: impl FnOnce(&File) -> Occupant) -> Result<Candidate, Failure> {
    let fault = |error: &io::Error| Failure::from(Fault::io("examine", path, error));
    let canonical = canonical(path)?;
    let (file, device) = open(&canonical).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTBLK) => Refusal::DeviceKind(path.clone(), "block device").into(),
        _ => fault(&error),
    })?;
    let dm_uuid = dm_uuid(device.number);
    if is_volume(&dm_uuid) {
        return Err(Refusal::DeviceIsVolume { path: canonical }.into());
    }
    let known = match known(device.number) {
        Some(known) => known,
        None if udev_runs() => return Err(Refusal::DeviceUnknown { path: canonical }.into()),
        None => Known::default(),
    };
    if known.multipath_path {
        return Err(Refusal::DeviceMultipath { path: canonical }.into());
    }
    let found = if device.size == Sectors::ZERO { Occupant::Nobody } else { occupant(&file) };
    let occupant = match together(&known, found) {
        Occupant::Stratis if is_unlocked(&dm_uuid) => Occupant::Unlocked,
        occupant => occupant,
    };
    let Shape { number, size, blocks, read_only: _ } = device;
    Ok(Candidate { path: canonical, number, size, blocks, occupant, hardware: known.hardware })
}

/// The path without symbolic links.
fn canonical(path: &DevicePath) -> Result<DevicePath, Failure> {
    let canonical = match path.as_path().canonicalize() {
        Ok(canonical) => canonical,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Err(Refusal::DeviceMissing(path.clone()).into());
        }
        Err(error) => return Err(Fault::io("examine", path, &error).into()),
    };
    let text = canonical.to_str().and_then(|text| DevicePath::try_from(text).ok());
    text.ok_or_else(|| Refusal::DeviceKind(path.clone(), "device with a UTF-8 path").into())
}

/// Opens a device for a look. ENOTBLK for anything that is no block device.
fn open(path: &DevicePath) -> io::Result<(File, Shape)> {
    // The kind is looked at before the file is opened: opening a pipe waits.
    if !path.as_path().metadata()?.file_type().is_block_device() {
        return Err(io::Error::from_raw_os_error(libc::ENOTBLK));
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path.as_path())?;
    let shape = shape(&file)?;
    Ok((file, shape))
}

/// The dm UUID of a device; empty for one that has none.
fn dm_uuid(number: DeviceNumber) -> String {
    // Only dm devices have this file.
    fs::read_to_string(format!("/sys/dev/block/{}:{}/dm/uuid", number.0, number.1)).unwrap_or_default()
}

/// Whether this is a dm device of a pool's own stack or a filesystem of one.
fn is_volume(uuid: &str) -> bool {
    uuid.starts_with("stratis-1-private-") || (uuid.starts_with("stratis-1-") && uuid.contains("-thin-fs-"))
}

/// Whether this is what cryptsetup has made of a device of an encrypted pool of version 1.
fn is_unlocked(uuid: &str) -> bool {
    uuid.starts_with("CRYPT-") && uuid.contains("-stratis-1-private-")
}

/// What udev's database has of a device; `None` while it has nothing.
fn known(number: DeviceNumber) -> Option<Known> {
    let found = Device::from_devnum(DeviceType::Block, nix::sys::stat::makedev(number.0, number.1)).ok()?;
    Known::of(&found)
}

impl Known {
    fn of(found: &Device) -> Option<Self> {
        let value = |name| found.property_value(name).map(|value| value.to_string_lossy().into_owned());
        found.is_initialized().then(|| Self {
            multipath_path: value("DM_MULTIPATH_DEVICE_PATH").as_deref() == Some("1"),
            kind: value("ID_FS_TYPE"),
            usage: value("ID_FS_USAGE"),
            partition_table: value("ID_PART_TABLE_TYPE"),
            is_partition: value("ID_PART_ENTRY_DISK").is_some(),
            hardware: value("ID_WWN"),
        })
    }

    /// The kind of its own partition table. A partition has the table of its disk in its properties.
    fn divided(&self) -> Option<&str> {
        self.partition_table.as_deref().filter(|_| !self.is_partition)
    }
}

/// Who lives on a device of which udev knows this and on which libblkid found that.
fn together(known: &Known, found: Occupant) -> Occupant {
    let kind = known.kind.as_deref();
    let told = match (kind, known.divided(), &known.usage) {
        // One of us has wiped it and udev has not looked again, or udev has not looked yet.
        (Some(STRATIS), ..) => None,
        (Some(LUKS), ..) => Some(words(LUKS, Some("crypto"))),
        (_, Some(table), _) => Some(format!("a partition table ({table})")),
        (_, _, Some(usage)) => Some(words(kind.unwrap_or("of an unknown type"), Some(usage))),
        (_, _, None) => None,
    };
    match (found, told) {
        (Occupant::Other(what), _) => Occupant::Other(what),
        // What was wiped a moment ago may still be in the database.
        (Occupant::Nobody | Occupant::Stratis | Occupant::Unlocked, Some(what)) => {
            Occupant::Other(format!("{what}, as udev has it"))
        }
        (found, None) => found,
    }
}

/// The paths of all devices that may carry a Stratis signature but for the dm devices whose minors are in `own`: what
/// udev says, or all there are.
pub(super) fn list(own: &BTreeSet<u64>) -> io::Result<Vec<DevicePath>> {
    let mut names = names()?;
    // There may be thousands of them.
    names.retain(|name| !minor(name).is_some_and(|minor| own.contains(&minor)) && !holds_nothing(name));
    let mut paths: Vec<DevicePath> = if udev_runs() {
        names.iter().filter_map(|name| may_be_ours(name)).collect()
    } else {
        log::warn!("udevd does not run: every block device is looked at");
        names.iter().filter_map(|name| node(name)).collect()
    };
    if paths.len() > DISCOVERED_MAX {
        log::error!("{} devices are too many: {DISCOVERED_MAX} are looked at", paths.len());
        paths.truncate(DISCOVERED_MAX);
    }
    Ok(paths)
}

/// What the kernel calls every block device that it has.
fn names() -> io::Result<Vec<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    fs::read_dir(BLOCK_DEVICES)?.map(name).collect()
}

/// The minor number of a dm device, which is what its name is made of.
fn minor(name: &str) -> Option<u64> {
    name.strip_prefix("dm-")?.parse().ok()
}

/// The node that the kernel makes for a device.
fn node(name: &str) -> Option<DevicePath> {
    // The kernel writes a slash in a device's name like this.
    DevicePath::try_from(format!("{NODES}/{}", name.replace('!', "/")).as_str()).ok()
}

/// Where sysfs has a device.
fn in_sysfs(name: &str) -> PathBuf {
    Path::new(BLOCK_DEVICES).join(name)
}

/// Whether a device has no sectors: a loop device without a file, a drive without a medium.
fn holds_nothing(name: &str) -> bool {
    fs::read_to_string(in_sysfs(name).join("size")).is_ok_and(|size| size.trim() == "0")
}

/// The node of a device of which udev says that it carries a Stratis signature, or on which it has seen nothing at all.
/// The kernel's node is not always what udev calls it.
///
/// What udev has not seen may be there: it does not hear of a device that somebody writes and closes while it is busy
/// with that device. We tell it (see `devices`); stratisd 3.9.2, whom we may follow, does not.
fn may_be_ours(name: &str) -> Option<DevicePath> {
    let device = Device::from_syspath(&in_sysfs(name)).ok()?;
    let known = Known::of(&device)?;
    let ours = known.kind.as_deref().map_or_else(|| is_blank(&device, &known), |kind| kind == STRATIS);
    device.devnode().filter(|_| ours).and_then(|node| DevicePath::try_from(node.to_str()?).ok())
}

/// Whether udev has looked at a device that is large enough for a pool, and found nothing on it.
fn is_blank(device: &Device, known: &Known) -> bool {
    let sectors = device.attribute_value("size").and_then(|size| size.to_str()?.trim().parse().ok());
    let large = sectors.map(Sectors).is_some_and(|size| size >= DEVICE_SECTORS_MIN);
    // Also what it is in doubt about.
    let seen = device.properties().any(|property| property.name().as_encoded_bytes().starts_with(b"ID_FS_"));
    // Of such it is told not to look at them.
    let hidden = device.property_value("DM_UDEV_DISABLE_OTHER_RULES_FLAG").is_some_and(|value| value == "1");
    let others = known.divided().is_some() || known.multipath_path || is_below(device.syspath());
    large && !seen && !hidden && !others
}

/// Whether a device is below one that is not of a pool: then what is on it belongs to that one.
fn is_below(device: &Path) -> bool {
    let holders = fs::read_dir(device.join("holders")).into_iter().flatten().flatten();
    holders.into_iter().any(|holder| {
        // Only dm devices have this file.
        let uuid = fs::read_to_string(holder.path().join("dm/uuid")).unwrap_or_default();
        !is_volume(&uuid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(text: &str) -> Occupant {
        Occupant::Other(text.to_owned())
    }

    fn with(kind: Option<&str>, usage: Option<&str>) -> Known {
        Known { kind: kind.map(str::to_owned), usage: usage.map(str::to_owned), ..Known::default() }
    }

    #[test]
    fn what_either_finds_counts() {
        let ext4 = with(Some("ext4"), Some("filesystem"));
        assert_eq!(together(&ext4, Occupant::Nobody), other("a filesystem (ext4), as udev has it"));
        assert_eq!(together(&ext4, other("a filesystem (xfs)")), other("a filesystem (xfs)"));
        assert_eq!(together(&Known::default(), other("a filesystem (xfs)")), other("a filesystem (xfs)"));
        let luks = with(Some(LUKS), Some("crypto"));
        assert_eq!(together(&luks, Occupant::Nobody), other("an encrypted volume (crypto_LUKS), as udev has it"));
        let unnamed = with(None, Some("raid"));
        assert_eq!(
            together(&unnamed, Occupant::Stratis),
            other("a member of a volume group or array (of an unknown type), as udev has it")
        );
        assert_eq!(together(&Known::default(), Occupant::Nobody), Occupant::Nobody);
    }

    #[test]
    fn of_a_stratis_signature_the_device_itself_knows_best() {
        let stratis = with(Some(STRATIS), Some("raid"));
        assert_eq!(together(&stratis, Occupant::Nobody), Occupant::Nobody, "just wiped");
        assert_eq!(together(&Known::default(), Occupant::Stratis), Occupant::Stratis, "just made");
        assert_eq!(together(&stratis, Occupant::Stratis), Occupant::Stratis);
        assert_eq!(together(&stratis, other("more than one signature")), other("more than one signature"));
    }

    #[test]
    fn a_partition_is_not_taken_for_its_disk() {
        let mut known = Known { partition_table: Some("gpt".to_owned()), ..Known::default() };
        assert_eq!(together(&known, Occupant::Nobody), other("a partition table (gpt), as udev has it"));
        known.is_partition = true;
        assert_eq!(together(&known, Occupant::Nobody), Occupant::Nobody);
        known.usage = Some("filesystem".to_owned());
        assert!(matches!(together(&known, Occupant::Nobody), Occupant::Other(_)));
    }

    #[test]
    fn what_is_no_block_device_is_refused() {
        let look = |path: &str| examine(&DevicePath::try_from(path).expect("absolute"));
        for path in ["/dev/null", "/", "/proc/version"] {
            assert!(matches!(look(path), Err(Failure::Refused(Refusal::DeviceKind(..)))), "{path}");
        }
        assert!(matches!(look("/dev/no such device"), Err(Failure::Refused(Refusal::DeviceMissing(_)))));
    }
}
