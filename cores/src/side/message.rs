//! One RECVMSG: the header that the kernel reads and fills, and the descriptors it brings.
//!
//! Invariant: the header points into its own allocation, which stays in place until the kernel is
//! done with it; descriptors that nobody takes are closed.
//!
//! Deliberately absent: credentials and every other kind of control message, which are ignored.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use crate::buffer::Buffer;
use crate::limits::DESCRIPTORS_MAX;

/// Bytes of one descriptor in a control message.
const DESCRIPTOR_BYTES: usize = size_of::<RawFd>();

/// Room for one control message with `DESCRIPTORS_MAX` descriptors.
#[allow(clippy::cast_possible_truncation, reason = "64 fits any integer")]
// SAFETY: CMSG_SPACE only computes with its argument.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * DESCRIPTOR_BYTES) as u32) } as usize;

/// Memory for control messages, aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// All that the kernel reads and writes for one RECVMSG.
struct Parts {
    header: libc::msghdr,
    vector: libc::iovec,
    control: Control,
    buffer: Buffer,
}

/// A receive in the making. Owns its parts through a raw pointer, because the kernel holds pointers
/// into them while the `Message` moves.
pub(super) struct Message {
    parts: NonNull<Parts>,
}

impl Message {
    /// A receive of at most `buffer.len()` bytes into `buffer`.
    pub(super) fn new(buffer: Buffer) -> Message {
        let parts = Parts {
            // SAFETY: a msghdr is numbers and nullable pointers; zero is a value of each.
            header: unsafe { std::mem::zeroed() },
            vector: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            control: Control([0; CONTROL_BYTES]),
            buffer,
        };
        Message { parts: NonNull::from(Box::leak(Box::new(parts))) }
    }

    /// The header for the kernel; valid until the message is dropped.
    pub(super) fn as_kernel_pointer(&mut self) -> *mut libc::msghdr {
        let parts = self.parts.as_ptr();
        // SAFETY: `parts` is a live allocation that only this Message refers to, so its fields may be
        // written; the pointers stored in the header are derived from the allocation itself and stay
        // valid as long as it does.
        unsafe {
            let buffer = &mut (*parts).buffer;
            (*parts).vector = libc::iovec { iov_len: buffer.len(), iov_base: buffer.as_kernel_pointer().cast() };
            (*parts).header.msg_iov = &raw mut (*parts).vector;
            (*parts).header.msg_iovlen = 1;
            (*parts).header.msg_control = (&raw mut (*parts).control).cast();
            (*parts).header.msg_controllen = CONTROL_BYTES;
            &raw mut (*parts).header
        }
    }

    /// Takes the descriptors of a message that the kernel has completed with success.
    ///
    /// # Errors
    /// `InvalidData` if control messages were cut off; the descriptors that did arrive are closed.
    pub(super) fn take_descriptors(&mut self) -> io::Result<Vec<OwnedFd>> {
        let mut descriptors = Vec::new();
        // SAFETY: the kernel is done with the parts, and this Message alone refers to them. The
        // kernel has set `msg_controllen` to the bytes it filled, so the CMSG functions walk over
        // whole control messages inside `control`, which is aligned for them; each SCM_RIGHTS
        // message holds (cmsg_len - header) / 4 descriptors that are new and owned by nobody else.
        // Setting `msg_controllen` to zero makes sure that they are taken once.
        let truncated = unsafe {
            let header = &raw mut (*self.parts.as_ptr()).header;
            let mut control = libc::CMSG_FIRSTHDR(header);
            while !control.is_null() {
                if (*control).cmsg_level == libc::SOL_SOCKET && (*control).cmsg_type == libc::SCM_RIGHTS {
                    let bytes = (*control).cmsg_len - libc::CMSG_LEN(0) as usize;
                    let first = libc::CMSG_DATA(control).cast::<RawFd>();
                    for index in 0..bytes / DESCRIPTOR_BYTES {
                        descriptors.push(OwnedFd::from_raw_fd(first.add(index).read_unaligned()));
                    }
                }
                control = libc::CMSG_NXTHDR(header, control);
            }
            (*header).msg_controllen = 0;
            (*header).msg_flags & libc::MSG_CTRUNC != 0
        };
        if truncated {
            let text = format!("a message carries more than {DESCRIPTORS_MAX} descriptors");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(descriptors)
    }

    /// Gives back the buffer.
    pub(super) fn into_buffer(mut self) -> Buffer {
        // SAFETY: the kernel is done with the parts and this Message, which is consumed, alone refers
        // to them.
        std::mem::replace(unsafe { &mut self.parts.as_mut().buffer }, Buffer::aligned(0, 1))
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: `parts` came from a leaked Box, and is given back exactly once, here.
        drop(unsafe { Box::from_raw(self.parts.as_ptr()) });
    }
}
