//! One SENDMSG of bytes that others hold too: the slices, and the list of them that the kernel reads.
//!
//! Invariant: the header points at the list and the list at the slices; all three stay in place and
//! unchanged until the kernel is done with them. The bytes are shared, so nobody ever writes to them.
//!
//! Deliberately absent: sending descriptors, and more slices than one call takes.

use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::limits::SLICES_MAX;

/// A part of some bytes that are shared and never change.
#[derive(Clone, Debug)]
pub struct Slice {
    bytes: Rc<[u8]>,
    start: u32,
    end: u32,
}

impl Slice {
    /// The bytes of `bytes` in `range`.
    ///
    /// # Panics
    /// If the range is not inside the bytes: a bug of the caller.
    pub fn new(bytes: &Rc<[u8]>, range: Range<u32>) -> Slice {
        let (start, end) = (range.start, range.end);
        assert!(start <= end && end as usize <= bytes.len(), "a slice lies inside its bytes");
        Slice { bytes: bytes.clone(), start, end }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start as usize..self.end as usize]
    }
}

/// All that the kernel reads for one SENDMSG.
struct Parts {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    slices: Vec<Slice>,
}

/// A send in the making. Owns its parts through a raw pointer, because the kernel holds pointers
/// into them while the `Slices` moves.
pub(super) struct Slices {
    parts: NonNull<Parts>,
}

impl Slices {
    /// A send of all bytes of `slices` from position `from` on.
    ///
    /// # Panics
    /// If there are more than `SLICES_MAX`: a bug of the caller.
    pub(super) fn new(slices: Vec<Slice>, from: usize) -> Slices {
        assert!(slices.len() <= SLICES_MAX, "{} slices: {SLICES_MAX} are allowed", slices.len());
        let mut skip = from;
        let vectors = slices.iter().filter_map(|slice| {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let rest = &slice[skipped..];
            // The kernel does not write to what it is to send; the type is that of receiving, too.
            let base = rest.as_ptr().cast_mut().cast();
            (!rest.is_empty()).then_some(libc::iovec { iov_base: base, iov_len: rest.len() })
        });
        let vectors = vectors.collect();
        // SAFETY: a msghdr is numbers and nullable pointers; zero is a value of each.
        let header = unsafe { std::mem::zeroed() };
        Slices { parts: NonNull::from(Box::leak(Box::new(Parts { header, vectors, slices }))) }
    }

    /// The header for the kernel; valid until the send is dropped.
    pub(super) fn as_kernel_pointer(&mut self) -> *const libc::msghdr {
        let parts = self.parts.as_ptr();
        // SAFETY: `parts` is a live allocation that only this Slices refers to, so its fields may be
        // written; the pointer stored in the header is to the vector's own memory, which stays where
        // it is because nobody adds to the vector.
        unsafe {
            let vectors = &mut (*parts).vectors;
            (*parts).header.msg_iovlen = vectors.len();
            (*parts).header.msg_iov = vectors.as_mut_ptr();
            &raw const (*parts).header
        }
    }

    /// Gives back the slices.
    pub(super) fn into_slices(mut self) -> Vec<Slice> {
        // SAFETY: the kernel is done with the parts and this Slices, which is consumed, alone refers
        // to them.
        std::mem::take(unsafe { &mut self.parts.as_mut().slices })
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        // SAFETY: `parts` came from a leaked Box, and is given back exactly once, here.
        drop(unsafe { Box::from_raw(self.parts.as_ptr()) });
    }
}
