//! The device-mapper ioctls that udev is told of, with a cookie of ours: resume and remove; and what is
//! needed to take a swap of tables back.
//!
//! The devicemapper crate makes a semaphore for each of these calls and waits for udev inside, without
//! a limit of time. Here the caller brings the number for `event_nr` and waits as it likes.
//!
//! Invariant: a request is made whole before it is needed, so that between loading a table and swapping
//! it in nothing is left to do but one system call: no memory is asked for, nothing is logged.
//!
//! Deliberately absent: suspend, which nothing needs by itself (resuming with a loaded table suspends,
//! swaps and resumes inside the kernel), and rename, because dm names are made of ids that never change.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use devicemapper_sys::{
    DM_DEV_REMOVE_CMD, DM_DEV_SUSPEND_CMD, DM_IOCTL, DM_NAME_LEN, DM_TABLE_CLEAR_CMD, DM_UEVENT_GENERATED_FLAG,
    dm_ioctl,
};

use crate::model::dm::Dm;

/// The interface we speak: every kernel that `namespace::prepare` lets pass has it.
const VERSION: [u32; 3] = [4, 37, 0];
const REQUEST_BYTES: usize = size_of::<dm_ioctl>();

/// Which ioctl.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// Swap the loaded table in, if there is one, and let I/O pass.
    Resume,
    /// Drop the loaded table, if there is one.
    Clear,
    /// Remove the device.
    Remove,
}

/// A request, ready to be sent.
pub(super) struct Request {
    change: Change,
    header: dm_ioctl,
}

impl Request {
    /// A request for this device. `event`: flags and cookie for udev; only for what udev is told of.
    pub(super) fn new(change: Change, device: Dm, event: u32) -> Self {
        let mut header = dm_ioctl {
            version: VERSION,
            event_nr: if change == Change::Clear { 0 } else { event },
            ..Default::default()
        };
        header.data_size = u32::try_from(REQUEST_BYTES).expect("the header has some 300 bytes");
        header.data_start = header.data_size;
        let name = device.to_string();
        assert!(name.len() < DM_NAME_LEN as usize, "{name} is longer than a dm name");
        for (to, from) in header.name.iter_mut().zip(name.bytes()) {
            *to = c_char::try_from(from).expect("dm names are ASCII");
        }
        Self { change, header }
    }

    /// Sends it. Tells whether udev is going to hear of it.
    pub(super) fn send(&mut self, control: BorrowedFd<'_>) -> io::Result<bool> {
        let number = match self.change {
            Change::Resume => DM_DEV_SUSPEND_CMD,
            Change::Clear => DM_TABLE_CLEAR_CMD,
            Change::Remove => DM_DEV_REMOVE_CMD,
        };
        let request = nix::request_code_readwrite!(DM_IOCTL, number, REQUEST_BYTES);
        // SAFETY: the descriptor is borrowed, so it is open; the kernel reads and writes `data_size`
        // bytes from the pointer, which is the size of the header that we own and that lives on.
        let result = unsafe { libc::ioctl(control.as_raw_fd(), request, &raw mut self.header) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.header.flags & DM_UEVENT_GENERATED_FLAG != 0)
    }
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
            let bytes = request.header.name.iter().map(|byte| u8::try_from(*byte).expect("ASCII"));
            let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
            assert_eq!(name, device.to_string().as_bytes());
            assert_eq!((request.header.event_nr, request.header.uuid[0]), (0x4d_1234, 0));
        }
    }
}
