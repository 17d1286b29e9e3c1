//! The dm devices of all pools, asked for with one system call.
//!
//! A list of a thousand takes more than 64 KiB, and each event of device-mapper costs two lists. So the room that
//! sufficed the last time is tried first.
//!
//! Invariant: nothing is read but what the kernel has written; what is not understood is an error.
//!
//! Deliberately absent: devices of others.

#![allow(clippy::host_endian_bytes, reason = "the kernel speaks to its own machine, in that one's byte order")]

use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use devicemapper_sys::{DM_LIST_DEVICES_CMD, dm_name_list};

use super::question::{ALIGNMENT, Question, not_understood, numbered, text};
use crate::limits::DM_LIST_BYTES_MIN;
use crate::model::device::DeviceNumber;
use crate::model::dm::Dm;

/// Where the name begins in an entry.
const NAME_AT: usize = offset_of!(dm_name_list, name);

/// A device of a pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::sys::kernel) struct Listed {
    pub(in crate::sys::kernel) device: Dm,
    pub(in crate::sys::kernel) number: DeviceNumber,
    /// How many events it has raised.
    pub(in crate::sys::kernel) event: u32,
}

/// How many bytes a list has taken so far.
#[derive(Debug, Default)]
pub(in crate::sys::kernel) struct Room(AtomicUsize);

/// Lists them, in no order.
pub(in crate::sys::kernel) fn list(control: BorrowedFd<'_>, room: &Room) -> io::Result<Vec<Listed>> {
    let first = room.0.load(Ordering::Relaxed).max(DM_LIST_BYTES_MIN);
    let answer = Question { command: DM_LIST_DEVICES_CMD, flags: 0, device: None }.ask(control, first)?;
    room.0.store(answer.room, Ordering::Relaxed);
    entries(&answer.data).ok_or_else(not_understood)
}

/// The entries of a list.
fn entries(mut list: &[u8]) -> Option<Vec<Listed>> {
    let mut found = Vec::new();
    while !list.is_empty() {
        let number = u64::from_ne_bytes(list.get(..8)?.try_into().ok()?);
        let next = u32::from_ne_bytes(list.get(8..NAME_AT)?.try_into().ok()?) as usize;
        let name = text(list.get(NAME_AT..)?)?;
        let behind = (NAME_AT + name.len() + 1).next_multiple_of(ALIGNMENT);
        let event = u32::from_ne_bytes(list.get(behind..behind + 4)?.try_into().ok()?);
        if let Some(device) = str::from_utf8(name).ok().and_then(|name| name.parse().ok()) {
            found.push(Listed { device, number: numbered(number), event });
        }
        if next == 0 {
            break;
        }
        list = list.get(next..)?;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::dm::Role;
    use crate::model::ids::{FsUuid, PoolUuid};

    /// A list as the kernel writes it, of a name, the number and the events of each.
    fn list(devices: &[(&[u8], u64, u32)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        for (place, (name, number, event)) in devices.iter().enumerate() {
            let behind = (NAME_AT + name.len() + 1).next_multiple_of(ALIGNMENT);
            let next = if place + 1 < devices.len() { behind + ALIGNMENT } else { 0 };
            let start = bytes.len();
            bytes.extend(number.to_ne_bytes());
            bytes.extend(u32::try_from(next).expect("small").to_ne_bytes());
            bytes.extend(*name);
            bytes.resize(start + behind, 0);
            bytes.extend(event.to_ne_bytes());
            bytes.extend([0; 4]);
        }
        bytes
    }

    #[test]
    fn devices_of_pools_are_found_among_others() {
        let pool = PoolUuid::from_random([1; 16]);
        let ours = [Dm::Private(pool, Role::ThinPool), Dm::Thin(pool, FsUuid::from_random([2; 16]))];
        let names = ours.map(|device| device.to_string());
        let others: [&[u8]; 2] = [b"vg-lv", b"\xff\xfe"];
        // Major 254, minors 3 and 1,000.
        let bytes = list(&[
            (others[0], 7, 9),
            (names[0].as_bytes(), 254 << 8 | 3, 5),
            (others[1], 8, 1),
            (names[1].as_bytes(), 254 << 8 | 0xe8 | 3 << 20, 0),
        ]);
        let listed = |device, minor, event| Listed { device, number: DeviceNumber(254, minor), event };
        assert_eq!(entries(&bytes), Some(vec![listed(ours[0], 3, 5), listed(ours[1], 1_000, 0)]));
        assert_eq!(entries(&[]), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(bytes: Vec<u8>, names: Vec<Vec<u8>>, cut: usize) {
            entries(&bytes);
            let devices: Vec<(&[u8], u64, u32)> = names.iter().map(|name| (&name[..], 1, 2)).collect();
            let whole = list(&devices);
            let part = &whole[..cut % (whole.len() + 1)];
            prop_assert!(entries(part).is_none_or(|found| found.is_empty()));
        }
    }
}
