//! One SENDMSG of bytes that others hold too: the slices, and the list of them that the kernel reads.
//!
//! Invariant: the header points at the list and the list into the excerpts' bytes; all three stay in place and
//! unchanged until the kernel is done with them. The bytes are shared, so nobody ever writes to them.
//!
//! Deliberately absent: sending descriptors, and more slices than one call takes.

use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::limits::SLICES_MAX;

/// Parts of some bytes that are shared and never change, one after the other.
#[derive(Clone, Debug)]
pub struct Excerpt {
    bytes: Rc<[u8]>,
    parts: Rc<[Range<u32>]>,
    /// Bytes at the end of the last part that are left out.
    cut: u32,
}

impl Excerpt {
    /// These parts of `bytes`, without the last `cut` bytes of the last part. A part that is not inside the bytes, or
    /// shorter than what is cut off, is a bug of the caller: who asks for the slices panics.
    pub fn new(bytes: &Rc<[u8]>, parts: &Rc<[Range<u32>]>, cut: u32) -> Excerpt {
        Excerpt { bytes: bytes.clone(), parts: parts.clone(), cut }
    }

    /// Its slices, in their order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let count = self.parts.len();
        self.parts.iter().enumerate().map(move |(index, part)| {
            let cut = if index + 1 == count { self.cut } else { 0 };
            &self.bytes[part.start as usize..(part.end - cut) as usize]
        })
    }

    /// How many slices there are.
    pub fn count(&self) -> usize {
        self.parts.len()
    }
}

/// All that the kernel reads for one SENDMSG.
struct Parts {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    excerpts: Vec<Excerpt>,
}

/// A send in the making. Owns its parts through a raw pointer, because the kernel holds pointers
/// into them while the `Slices` moves.
pub(super) struct Slices {
    parts: NonNull<Parts>,
}

impl Slices {
    /// A send of all bytes of `excerpts` from position `from` on.
    ///
    /// # Panics
    /// If they have more than `SLICES_MAX` slices, or one is not inside its bytes: a bug of the caller.
    pub(super) fn new(excerpts: Vec<Excerpt>, from: usize) -> Slices {
        let count: usize = excerpts.iter().map(Excerpt::count).sum();
        assert!(count <= SLICES_MAX, "{count} slices: {SLICES_MAX} are allowed");
        let mut skip = from;
        let mut vectors = Vec::with_capacity(count);
        vectors.extend(excerpts.iter().flat_map(Excerpt::slices).filter_map(|slice| {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let rest = &slice[skipped..];
            // The kernel does not write to what it is to send; the type is that of receiving, too.
            let base = rest.as_ptr().cast_mut().cast();
            (!rest.is_empty()).then_some(libc::iovec { iov_base: base, iov_len: rest.len() })
        }));
        // SAFETY: a msghdr is numbers and nullable pointers; zero is a value of each.
        let header = unsafe { std::mem::zeroed() };
        Slices { parts: NonNull::from(Box::leak(Box::new(Parts { header, vectors, excerpts }))) }
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

    /// Gives back the excerpts.
    pub(super) fn into_excerpts(mut self) -> Vec<Excerpt> {
        // SAFETY: the kernel is done with the parts and this Slices, which is consumed, alone refers
        // to them.
        std::mem::take(unsafe { &mut self.parts.as_mut().excerpts })
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        // SAFETY: `parts` came from a leaked Box, and is given back exactly once, here.
        drop(unsafe { Box::from_raw(self.parts.as_ptr()) });
    }
}
