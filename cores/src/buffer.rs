//! Bytes on the heap that the kernel may be given: owned, aligned as asked, never moving.
//!
//! Invariant: the bytes stay where they are while the `Buffer` itself moves, and nobody but the
//! holder of the `Buffer` (or of the slot it was moved into) touches them.
//!
//! Deliberately absent: sharing, growing, and an arena: metadata is a few buffers per save, and the
//! allocator answers for those faster than the kernel does for the write.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::slice;

use crate::limits::BUFFER_BYTES_MAX;

/// An owned run of bytes, for reads and writes.
pub struct Buffer {
    /// Aligned as `layout` says; dangling if the layout has no size.
    bytes: NonNull<u8>,
    /// The bytes in use, within the size of `layout`; all of them are initialised.
    used: Range<usize>,
    layout: Layout,
}

// SAFETY: a Buffer owns its bytes like a Vec does; nothing about them belongs to a thread.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` zero bytes that start at a multiple of `align`, which must be a power of two.
    ///
    /// # Panics
    /// If `len` is above `BUFFER_BYTES_MAX` or `align` is no power of two: bugs of the caller.
    pub fn aligned(len: usize, align: usize) -> Buffer {
        assert!(len <= BUFFER_BYTES_MAX, "a buffer of {len} bytes: {BUFFER_BYTES_MAX} are allowed");
        let layout = Layout::from_size_align(len, align).expect("the alignment is a power of two");
        if len == 0 {
            return Buffer { bytes: layout.dangling_ptr(), used: 0..len, layout };
        }
        // SAFETY: the layout's size is not zero.
        let bytes = unsafe { alloc_zeroed(layout) };
        let Some(bytes) = NonNull::new(bytes) else { handle_alloc_error(layout) };
        Buffer { bytes, used: 0..len, layout }
    }

    /// Forgets all bytes but some. Nothing is copied, so where they begin is aligned no more.
    ///
    /// # Panics
    /// If it has no such bytes: a bug of the caller.
    #[must_use]
    pub fn part(mut self, part: Range<usize>) -> Buffer {
        assert!(part.start <= part.end && part.end <= self.used.len(), "bytes {part:?} of {}", self.used.len());
        self.used = self.used.start + part.start..self.used.start + part.end;
        self
    }

    /// Where the bytes are, for the kernel.
    pub(crate) fn as_kernel_pointer(&mut self) -> *mut u8 {
        // SAFETY: `used` lies within the allocation.
        unsafe { self.bytes.as_ptr().add(self.used.start) }
    }

    /// The length as the kernel takes it.
    pub(crate) fn kernel_len(&self) -> u32 {
        u32::try_from(self.used.len()).expect("BUFFER_BYTES_MAX is below 4 GiB")
    }
}

impl From<Vec<u8>> for Buffer {
    /// Takes the vector's own memory; nothing is copied.
    fn from(bytes: Vec<u8>) -> Buffer {
        assert!(bytes.len() <= BUFFER_BYTES_MAX, "a buffer of {} bytes", bytes.len());
        let mut bytes = ManuallyDrop::new(bytes);
        let layout = Layout::array::<u8>(bytes.capacity()).expect("the vector was allocated with this layout");
        let start = NonNull::new(bytes.as_mut_ptr()).expect("a vector's pointer is never null");
        Buffer { bytes: start, used: 0..bytes.len(), layout }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes `used` from `bytes` on are allocated and initialised (zeroed, or a vector's
        // elements), they are ours alone, and no `&mut` to them lives while `self` is borrowed.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().add(self.used.start), self.used.len()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.bytes.as_ptr().add(self.used.start), self.used.len()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: `bytes` came from the global allocator with this very layout: from
            // `alloc_zeroed`, or from a vector whose capacity the layout describes.
            unsafe { dealloc(self.bytes.as_ptr(), self.layout) };
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Buffer({} bytes, aligned to {})", self.used.len(), self.layout.align())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_buffer_is_aligned_zero_and_keeps_what_is_written(len in 0usize..20_000, power in 0u32..14) {
            let align = 1usize << power;
            let mut buffer = Buffer::aligned(len, align);
            prop_assert_eq!(buffer.as_ptr().addr() % align, 0);
            prop_assert_eq!(buffer.len(), len);
            prop_assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(0xa5);
            let moved = buffer;
            prop_assert!(moved.iter().all(|byte| *byte == 0xa5));
        }

        #[test]
        fn a_vector_becomes_a_buffer_without_moving(bytes: Vec<u8>, spare in 0usize..100) {
            let mut vector = bytes.clone();
            vector.reserve(spare);
            let start = vector.as_ptr();
            let buffer = Buffer::from(vector);
            prop_assert_eq!(buffer.as_ptr(), start);
            prop_assert_eq!(&buffer[..], &bytes[..]);
        }
    }

    #[test]
    fn a_part_of_a_part_is_where_it_was() {
        let buffer = Buffer::from(vec![0, 1, 2, 3, 4, 5]);
        let start = buffer.as_ptr();
        let part = buffer.part(1..5).part(1..3);
        assert_eq!((&part[..], part.as_ptr()), (&[2, 3][..], start.wrapping_add(2)));
        assert_eq!(part.kernel_len(), 2);
    }

    #[test]
    #[should_panic = "bytes 1..3 of 2"]
    fn a_part_is_not_longer_than_the_whole() {
        drop(Buffer::from(vec![0, 1, 2]).part(0..2).part(1..3));
    }
}
