//! The dm devices that there are, asked for with one system call.
//!
//! A list of a thousand takes more than 64 KiB, and each event of device-mapper costs two lists. So the kernel is told
//! how the names begin that are of interest, and room for as much as the last one took is tried first.
//!
//! Invariant: nothing is read but what the kernel has written; what is not understood is an error.
//!
//! Deliberately absent: what is wanted of them. Who asks picks that out, because a list may be of thousands.

#![allow(clippy::host_endian_bytes, reason = "the kernel speaks to its own machine, in that one's byte order")]

use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use devicemapper_sys::{DM_LIST_DEVICES_CMD, dm_name_list};

use super::question::{ALIGNMENT, Question, not_understood, numbered, text};
use crate::limits::DM_LIST_BYTES_MIN;
use crate::model::device::DeviceNumber;

/// Where the name begins in an entry.
const NAME_AT: usize = offset_of!(dm_name_list, name);

/// A device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::sys::kernel) struct Listed<'a> {
    pub(in crate::sys::kernel) name: &'a str,
    pub(in crate::sys::kernel) number: DeviceNumber,
    /// How many events it has raised.
    pub(in crate::sys::kernel) event: u32,
}

/// How many bytes the last list took, and some.
#[derive(Debug, Default)]
pub(in crate::sys::kernel) struct Room(AtomicUsize);

/// Lists what is picked of them, in no order. From Linux 5.13 on the kernel leaves those away whose names do not begin
/// like that; before, it tells all.
pub(in crate::sys::kernel) fn list<T>(
    control: BorrowedFd<'_>,
    room: &Room,
    prefix: &str,
    pick: impl Fn(Listed<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let first = room.0.load(Ordering::Relaxed).max(DM_LIST_BYTES_MIN);
    let answer = Question { command: DM_LIST_DEVICES_CMD, flags: 0, name: prefix }.ask(control, first)?;
    room.0.store(answer.taken.next_power_of_two(), Ordering::Relaxed);
    entries(&answer.data, pick).ok_or_else(not_understood)
}

/// What is picked of the entries of a list.
fn entries<T>(mut list: &[u8], pick: impl Fn(Listed<'_>) -> Option<T>) -> Option<Vec<T>> {
    let mut found = Vec::new();
    if list.is_empty() {
        return Some(found);
    }
    loop {
        let number = u64::from_ne_bytes(list.get(..8)?.try_into().ok()?);
        let next = u32::from_ne_bytes(list.get(8..NAME_AT)?.try_into().ok()?) as usize;
        let name = text(list.get(NAME_AT..)?)?;
        let behind = (NAME_AT + name.len() + 1).next_multiple_of(ALIGNMENT);
        let event = u32::from_ne_bytes(list.get(behind..behind + 4)?.try_into().ok()?);
        // A name that is no text is nobody's here.
        let listed = str::from_utf8(name).map(|name| Listed { name, number: numbered(number), event });
        found.extend(listed.ok().and_then(&pick));
        if next == 0 {
            return Some(found);
        }
        list = list.get(next..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    fn what_is_picked_is_found_among_others() {
        let others: [&[u8]; 2] = [b"vg-lv", b"\xff\xfe"];
        // Major 254, minors 3 and 1,000.
        let bytes = list(&[
            (others[0], 7, 9),
            (b"one", 254 << 8 | 3, 5),
            (others[1], 8, 1),
            (b"another", 254 << 8 | 0xe8 | 3 << 20, 0),
        ]);
        let of = |listed: Listed<'_>| {
            (listed.name != "vg-lv").then(|| (listed.name.to_owned(), listed.number, listed.event))
        };
        let listed = |name: &str, minor, event| (name.to_owned(), DeviceNumber(254, minor), event);
        assert_eq!(entries(&bytes, of), Some(vec![listed("one", 3, 5), listed("another", 1_000, 0)]));
        assert_eq!(entries(&[], of), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_go_on_for_ever(
            bytes: Vec<u8>,
            names in prop::collection::vec(prop::collection::vec(1_u8.., 0..40), 0..9),
            cut: usize,
        ) {
            entries(&bytes, |listed| Some(listed.event));
            let devices: Vec<(&[u8], u64, u32)> = names.iter().map(|name| (&name[..], 1, 2)).collect();
            let whole = list(&devices);
            let part = &whole[..cut % (whole.len() + 1)];
            let found = entries(part, |listed| Some(listed.event));
            // Behind the last number there is nothing but padding.
            let ends = part.is_empty() || part.len() + 4 >= whole.len();
            prop_assert!(found.is_none() || ends, "there is more of it");
        }
    }
}
