//! Questions to device-mapper: which devices there are, what a device is, its table and its status.
//!
//! The devicemapper crate asks them with room for 16 KiB, which the kernel copies each time, and begins there again
//! however much an answer takes. A start asks two of these of each filesystem, and lists all devices several times.
//!
//! Invariant: nothing is read but what the kernel has written; what is not understood is an error.
//!
//! Deliberately absent: everything else, which is rare enough for the crate.

#![allow(clippy::host_endian_bytes, reason = "the kernel speaks to its own machine, in that one's byte order")]

use std::ffi::c_char;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use cores::side::Buffer;
use devicemapper_sys::{DM_BUFFER_FULL_FLAG, DM_IOCTL, dm_ioctl, dm_target_spec};
use nix::sys::stat::{major, minor};

use super::ioctl::{REQUEST_BYTES, header};
use super::table::Lines;
use crate::limits::DM_ANSWER_BYTES_MAX;
use crate::model::device::DeviceNumber;

/// What follows something of any length begins at a multiple of this.
pub(super) const ALIGNMENT: usize = align_of::<u64>();
/// Where a line's parameters begin.
const PARAMETERS_AT: usize = size_of::<dm_target_spec>();

/// What room grows by where it does not suffice. The kernel copies all of it each time, and goes through all devices to
/// find that it is too little: what a thousand take is found by the second try.
const ROOM_FACTOR: usize = 8;

/// What is asked.
pub(super) struct Question<'a> {
    /// A command of device-mapper.
    pub(super) command: u32,
    /// Its flags.
    pub(super) flags: u32,
    /// What the device is called that it is about; of a list, how the names of devices begin.
    pub(super) name: &'a str,
}

/// What the kernel says.
pub(super) struct Answer {
    pub(super) header: dm_ioctl,
    pub(super) data: Buffer,
    /// How many bytes it took.
    pub(super) taken: usize,
}

impl Question<'_> {
    /// Asks with so much room first, and with eight times as much as long as that does not suffice.
    pub(super) fn ask(&self, control: BorrowedFd<'_>, first: usize) -> io::Result<Answer> {
        let mut room = first.max(REQUEST_BYTES);
        loop {
            if let Some(answer) = self.ask_once(control, room)? {
                return Ok(answer);
            }
            if room >= DM_ANSWER_BYTES_MAX {
                let why = format!("an answer of device-mapper takes more than {DM_ANSWER_BYTES_MAX} bytes");
                return Err(io::Error::other(why));
            }
            room = (room * ROOM_FACTOR).min(DM_ANSWER_BYTES_MAX);
        }
    }

    fn ask_once(&self, control: BorrowedFd<'_>, room: usize) -> io::Result<Option<Answer>> {
        let size = u32::try_from(room).map_err(io::Error::other)?;
        let header = dm_ioctl { data_size: size, ..header(self.name, self.flags) };
        let mut buffer = Buffer::aligned(room, ALIGNMENT);
        let start = buffer.as_mut_ptr().cast::<dm_ioctl>();
        let request = nix::request_code_readwrite!(DM_IOCTL, self.command, REQUEST_BYTES);
        // SAFETY: the buffer is ours alone, aligned for a header and no shorter than one, and lives on; the descriptor
        // is borrowed, so it is open; the kernel reads and writes `data_size` bytes from the pointer on, which are all
        // of the buffer.
        let (result, header) = unsafe {
            start.write(header);
            (libc::ioctl(control.as_raw_fd(), request, start), start.read())
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        if header.flags & DM_BUFFER_FULL_FLAG != 0 {
            return Ok(None);
        }
        // Where there is nothing to say the kernel leaves the size of the header alone.
        let end = (header.data_size as usize).max(REQUEST_BYTES);
        let start = (header.data_start as usize).min(end);
        if end > room {
            Err(not_understood())
        } else {
            Ok(Some(Answer { header, data: buffer.part(start..end), taken: end }))
        }
    }
}

impl Answer {
    /// The lines of a table or of a status.
    pub(super) fn lines(&self) -> io::Result<Lines> {
        lines(&self.data, self.header.target_count).ok_or_else(not_understood)
    }
}

/// The lines that some bytes hold, of which each says where the next one begins.
fn lines(data: &[u8], count: u32) -> Option<Lines> {
    let mut found = Lines::new();
    let mut at = 0;
    for _ in 0..count {
        let line = data.get(at..)?;
        let number = |at: usize| Some(u64::from_ne_bytes(line.get(at..at + 8)?.try_into().ok()?));
        let (start, length) =
            (number(offset_of!(dm_target_spec, sector_start))?, number(offset_of!(dm_target_spec, length))?);
        let next = line.get(offset_of!(dm_target_spec, next)..)?.first_chunk()?;
        let target = text(line.get(offset_of!(dm_target_spec, target_type)..PARAMETERS_AT)?)?;
        let parameters = text(line.get(PARAMETERS_AT..)?)?;
        let word = |bytes: &[u8]| Some(str::from_utf8(bytes).ok()?.to_owned());
        found.push((start, length, word(target)?, word(parameters)?));
        // Counted from the first line on.
        at = u32::from_ne_bytes(*next) as usize;
    }
    Some(found)
}

/// What stands in front of the first NUL.
pub(super) fn text(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

/// Whether a header's UUID is this text.
pub(super) fn has_uuid(header: &dm_ioctl, text: &str) -> bool {
    let uuid = header.uuid.iter().take_while(|letter| **letter != 0);
    uuid.copied().map(c_char::cast_unsigned).eq(text.bytes())
}

/// A number of a device as the kernel writes it.
pub(super) fn numbered(number: u64) -> DeviceNumber {
    DeviceNumber(major(number), minor(number))
}

pub(super) fn not_understood() -> io::Error {
    io::Error::other("an answer of device-mapper is not understood")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines as the kernel writes them.
    fn written(lines: &Lines) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        for (start, length, target, parameters) in lines {
            let at = bytes.len();
            let next = (at + PARAMETERS_AT + parameters.len() + 1).next_multiple_of(ALIGNMENT);
            bytes.extend(start.to_ne_bytes());
            bytes.extend(length.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(u32::try_from(next).expect("small").to_ne_bytes());
            bytes.extend(target.bytes());
            bytes.resize(at + PARAMETERS_AT, 0);
            bytes.extend(parameters.bytes());
            bytes.resize(next, 0);
        }
        bytes
    }

    proptest! {
        #[test]
        fn lines_are_read_as_they_were_written(
            lines in prop::collection::vec((any::<u64>(), any::<u64>(), "[a-z-]{1,15}", "[ -~]{0,90}"), 0..6),
            cut: usize,
        ) {
            let bytes = written(&lines);
            let count = u32::try_from(lines.len()).expect("few");
            prop_assert_eq!(super::lines(&bytes, count), Some(lines));
            prop_assert_eq!(super::lines(&bytes, count + 1), None, "there are no more");
            let cut = cut % bytes.len().max(1);
            super::lines(&bytes[..cut], count);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, count in 0..9_u32) {
            super::lines(&bytes, count);
        }
    }

    #[test]
    fn a_uuid_is_the_whole_of_it() {
        let mut header = dm_ioctl::default();
        assert!(has_uuid(&header, ""));
        for (to, from) in header.uuid.iter_mut().zip(b"stratis-1") {
            *to = c_char::try_from(*from).expect("ASCII");
        }
        assert!(has_uuid(&header, "stratis-1") && !has_uuid(&header, "stratis-") && !has_uuid(&header, "stratis-10"));
    }
}
