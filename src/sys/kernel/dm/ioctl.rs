//! The device-mapper ioctls that udev is told of, with a cookie of ours: resume and remove; what is needed
//! to take a swap of tables back; and what a snapshot does while its origin is suspended.
//!
//! The devicemapper crate makes a semaphore for each of these calls and waits for udev inside, without
//! a limit of time. Here the caller brings the number for `event_nr` and waits as it likes.
//!
//! Invariant: a request is made whole before it is needed, so that between loading a table and swapping
//! it in, or between suspending and resuming, nothing is left to do but system calls: no memory is asked
//! for, nothing is logged.
//!
//! Deliberately absent: rename, because dm names are made of ids that never change.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use devicemapper_sys::{
    DM_DEV_REMOVE_CMD, DM_DEV_SUSPEND_CMD, DM_IOCTL, DM_NAME_LEN, DM_SUSPEND_FLAG, DM_TABLE_CLEAR_CMD,
    DM_TARGET_MSG_CMD, DM_UEVENT_GENERATED_FLAG, dm_ioctl,
};

use crate::model::dm::Dm;

/// The interface we speak: every kernel that `namespace::prepare` lets pass has it.
const VERSION: [u32; 3] = [4, 37, 0];
/// How much each ioctl begins with.
pub(super) const REQUEST_BYTES: usize = size_of::<dm_ioctl>();
/// Longest message with the NUL behind it: `create_snap` and two numbers of eight digits take thirty.
const MESSAGE_BYTES: usize = 40;

/// Which ioctl.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// Let nothing pass: what was begun ends, a filesystem on it is frozen.
    Suspend,
    /// Swap the loaded table in, if there is one, and let I/O pass.
    Resume,
    /// Tell the target something.
    Message,
    /// Drop the loaded table, if there is one.
    Clear,
    /// Remove the device.
    Remove,
}

/// A request, ready to be sent.
pub(super) struct Request {
    change: Change,
    sent: Sent,
}

/// What the kernel reads, as far as the header's `data_size` says.
#[repr(C)]
struct Sent {
    header: dm_ioctl,
    /// `dm_target_msg`: any sector of the target, then text that ends with a NUL.
    sector: u64,
    message: [u8; MESSAGE_BYTES],
}

impl Request {
    /// A request for this device. `event`: flags and cookie for udev; only for what udev is told of.
    pub(super) fn new(change: Change, device: Dm, event: u32) -> Self {
        let (event_nr, flags) = match change {
            Change::Resume | Change::Remove => (event, 0),
            Change::Suspend => (0, DM_SUSPEND_FLAG),
            Change::Clear | Change::Message => (0, 0),
        };
        let header = dm_ioctl { event_nr, ..header(&device.to_string(), flags) };
        Self { change, sent: Sent { header, sector: 0, message: [0; MESSAGE_BYTES] } }
    }

    /// A message to the target of this device.
    pub(super) fn message(device: Dm, text: &str) -> Self {
        let mut request = Self::new(Change::Message, device, 0);
        assert!(text.len() < MESSAGE_BYTES, "{text:?} and a NUL have no room in {MESSAGE_BYTES} bytes");
        request.sent.message[..text.len()].copy_from_slice(text.as_bytes());
        request.sent.header.data_size = u32::try_from(size_of::<Sent>()).expect("some 400 bytes");
        request
    }

    /// Sends it. Tells whether udev is going to hear of it.
    pub(super) fn send(&mut self, control: BorrowedFd<'_>) -> io::Result<bool> {
        let number = match self.change {
            Change::Suspend | Change::Resume => DM_DEV_SUSPEND_CMD,
            Change::Message => DM_TARGET_MSG_CMD,
            Change::Clear => DM_TABLE_CLEAR_CMD,
            Change::Remove => DM_DEV_REMOVE_CMD,
        };
        let request = nix::request_code_readwrite!(DM_IOCTL, number, REQUEST_BYTES);
        // SAFETY: the descriptor is borrowed, so it is open; the kernel reads and writes `data_size`
        // bytes from the pointer, which is at most the size of what we own there and what lives on.
        let result = unsafe { libc::ioctl(control.as_raw_fd(), request, &raw mut self.sent) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.sent.header.flags & DM_UEVENT_GENERATED_FLAG != 0)
    }
}

/// What each ioctl begins with, of the device of this name; nothing follows yet.
pub(super) fn header(name: &str, flags: u32) -> dm_ioctl {
    let length = u32::try_from(REQUEST_BYTES).expect("the header has some 300 bytes");
    let mut header = dm_ioctl { version: VERSION, data_size: length, data_start: length, flags, ..Default::default() };
    assert!(name.len() < DM_NAME_LEN as usize, "{name} is longer than a dm name");
    for (to, from) in header.name.iter_mut().zip(name.bytes()) {
        *to = c_char::try_from(from).expect("dm names are ASCII");
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dm::Role;
    use crate::model::ids::{FsUuid, PoolUuid};

    #[test]
    fn a_request_names_its_device() {
        let pool = PoolUuid::from_random([1; 16]);
        for device in [Dm::Private(pool, Role::OriginSub), Dm::Thin(pool, FsUuid::from_random([2; 16]))] {
            let request = Request::new(Change::Remove, device, 0x4d_1234);
            let bytes = request.sent.header.name.iter().map(|byte| u8::try_from(*byte).expect("ASCII"));
            let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
            assert_eq!(name, device.to_string().as_bytes());
            assert_eq!((request.sent.header.event_nr, request.sent.header.uuid[0]), (0x4d_1234, 0));
        }
    }

    #[test]
    fn a_message_follows_the_header_and_ends_with_a_nul() {
        let device = Dm::Private(PoolUuid::from_random([1; 16]), Role::ThinPool);
        let longest = format!("create_snap {0} {0}", crate::limits::THIN_ID_MAX);
        let request = Request::message(device, &longest);
        let (start, size) = (request.sent.header.data_start, request.sent.header.data_size);
        assert_eq!((start as usize, size as usize), (std::mem::offset_of!(Sent, sector), size_of::<Sent>()));
        assert_eq!(&request.sent.message[..longest.len()], longest.as_bytes());
        assert_eq!(request.sent.message[longest.len()], 0);
    }
}
