//! The ring alone: a bounded queue with one producer and one consumer, lockless and wait-free on both sides.
//!
//! Two indices run freely and wrap with `usize`; the slot of an index is its low bits. Each side owns one index and
//! keeps a copy of the other's, which it refreshes only when the copy says full or empty: while the ring is neither,
//! the cache line of the other side is not touched.
//!
//! Invariant: slots from `head` to `tail` hold messages, all others hold nothing; `tail - head <= capacity`. Only the
//! producer writes `tail` and the slots outside, only the consumer writes `head` and empties the slots inside.
//!
//! Promised: order, each message once, no allocation after creation; what is inside when both sides are gone is
//! dropped. Not promised: a wake-up (see the mesh), or that the other side still exists.
//!
//! Deliberately absent: blocking, resizing, looking at messages in place.

use std::collections::VecDeque;
use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::primitive::{Arc, AtomicBool, AtomicUsize, Ordering, Private, UnsafeCell, fence};

/// Makes a ring of `capacity` slots, a power of two, and gives its two ends.
///
/// # Panics
/// When `capacity` is not a power of two.
pub fn pair<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let ring = Arc::new(Ring::new(capacity));
    (Producer { ring: Arc::clone(&ring) }, Consumer { ring })
}

/// The end that puts messages in.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Arc<Ring<T>>,
}

impl<T> Producer<T> {
    /// Puts one message in.
    ///
    /// # Errors
    /// The ring is full; the message comes back.
    #[inline]
    pub fn push(&mut self, message: T) -> Result<(), T> {
        // SAFETY: `pair` made one producer for this ring, it cannot be cloned, and `&mut self` orders its calls.
        unsafe { self.ring.pusher() }.push(message)
    }

    /// Moves as many messages from the front of `queue` as there is room for, and publishes them together.
    /// Gives how many.
    pub fn push_batch(&mut self, queue: &mut VecDeque<T>) -> usize {
        // SAFETY: as in `push`.
        unsafe { self.ring.pusher() }.push_batch(queue)
    }
}

/// The end that takes messages out.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Arc<Ring<T>>,
}

impl<T> Consumer<T> {
    /// Takes the oldest message out.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        // SAFETY: `pair` made one consumer for this ring, it cannot be cloned, and `&mut self` orders its calls.
        unsafe { self.ring.popper() }.pop()
    }

    /// Takes up to `max` messages out and appends them to `into`, oldest first. Gives how many.
    pub fn pop_batch(&mut self, into: &mut Vec<T>, max: usize) -> usize {
        // SAFETY: as in `pop`.
        unsafe { self.ring.popper() }.pop_batch(max, |message| into.push(message)).taken
    }
}

/// What both sides share. Each index stands on cache lines of its own, beside what only its owner uses.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    producer: CachePadded<Side>,
    consumer: CachePadded<Side>,
    /// The producer has more than fits and wants to be told about room. Written by swaps only, as `armed` is (see
    /// `doorbell`).
    blocked: CachePadded<AtomicBool>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

#[derive(Debug, Default)]
struct Side {
    /// `tail` of the producer, `head` of the consumer.
    index: AtomicUsize,
    /// What this side last saw of the other side's index.
    other: Private,
}

// SAFETY: the slots are the only part that is not `Sync` by itself. A slot is accessed by one side at a time: the
// producer outside head..tail, the consumer inside, and a slot changes sides with a Release store of an index that the
// other side loads with Acquire. That there is one producer and one consumer is demanded by `pusher` and `popper`.
// A message only moves from one thread to another, never is seen by two, so `T: Send` is enough.
unsafe impl<T: Send> Sync for Ring<T> {}

impl<T> Ring<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "a ring has a power of two of slots, not {capacity}");
        Self {
            producer: CachePadded::default(),
            consumer: CachePadded::default(),
            blocked: CachePadded::default(),
            slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        }
    }

    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }

    /// How many messages are inside, as far as the calling thread can see.
    pub(crate) fn len(&self) -> usize {
        let head = self.consumer.index.load(Ordering::Acquire);
        let tail = self.producer.index.load(Ordering::Acquire);
        // Between the two loads both may have moved.
        tail.wrapping_sub(head).min(self.slots.len())
    }

    /// The producing side.
    ///
    /// # Safety
    /// At most one thread at a time uses pushers of this ring, and its uses happen before those of the next thread.
    #[inline]
    pub(crate) unsafe fn pusher(&self) -> Pusher<'_, T> {
        Pusher { ring: self }
    }

    /// The consuming side.
    ///
    /// # Safety
    /// At most one thread at a time uses poppers of this ring, and its uses happen before those of the next thread.
    #[inline]
    pub(crate) unsafe fn popper(&self) -> Popper<'_, T> {
        Popper { ring: self }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no other thread uses the ring any more, and their uses happened before.
        unsafe { self.popper() }.pop_batch(usize::MAX, drop);
    }
}

/// The producing side for one call.
pub(crate) struct Pusher<'ring, T> {
    ring: &'ring Ring<T>,
}

impl<T> Pusher<'_, T> {
    /// How many messages fit at `tail`; looks at the consumer's index only when the copy says less than `wanted`.
    #[inline]
    fn room(&self, tail: usize, wanted: usize) -> usize {
        let ring = self.ring;
        let room = ring.slots.len() - tail.wrapping_sub(ring.producer.other.get());
        if room >= wanted {
            return room;
        }
        let head = ring.consumer.index.load(Ordering::Acquire);
        ring.producer.other.set(head);
        ring.slots.len() - tail.wrapping_sub(head)
    }

    #[inline]
    pub(crate) fn push(&mut self, message: T) -> Result<(), T> {
        let tail = self.ring.producer.index.load(Ordering::Relaxed);
        if self.room(tail, 1) == 0 {
            return Err(message);
        }
        // SAFETY: `room` says that the slot of `tail` lies outside head..tail, and its Acquire load of `head` came
        // after the consumer had emptied the slot. The consumer does not touch it before the Release store below.
        self.ring.slot(tail).with_mut(|slot| unsafe { slot.write(MaybeUninit::new(message)) });
        self.ring.producer.index.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    pub(crate) fn push_batch(&mut self, queue: &mut VecDeque<T>) -> usize {
        let tail = self.ring.producer.index.load(Ordering::Relaxed);
        let count = self.room(tail, queue.len()).min(queue.len());
        for (offset, message) in queue.drain(..count).enumerate() {
            // SAFETY: as in `push`, for each of the `count <= room` slots from `tail` on.
            self.ring.slot(tail.wrapping_add(offset)).with_mut(|slot| unsafe { slot.write(MaybeUninit::new(message)) });
        }
        if count != 0 {
            self.ring.producer.index.store(tail.wrapping_add(count), Ordering::Release);
        }
        count
    }

    /// Asks the consumer to tell us when there is room. Try to push once more after this: the consumer may have made
    /// room just before it could see the request. The fence pairs with that in [`Popper::take_blocked`].
    pub(crate) fn set_blocked(&mut self) {
        self.ring.blocked.swap(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the request back. The consumer may have answered it already.
    pub(crate) fn clear_blocked(&mut self) {
        self.ring.blocked.swap(false, Ordering::Relaxed);
    }
}

/// What a batch gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Popped {
    /// How many messages were taken.
    pub(crate) taken: usize,
    /// Whether more were there when the batch began.
    pub(crate) more: bool,
}

/// The consuming side for one call.
pub(crate) struct Popper<'ring, T> {
    ring: &'ring Ring<T>,
}

/// Gives slots back to the producer, also when the receiver of a message panics: a message that was read must not be
/// read again.
struct Advance<'ring> {
    index: &'ring AtomicUsize,
    head: usize,
}

impl Drop for Advance<'_> {
    #[inline]
    fn drop(&mut self) {
        self.index.store(self.head, Ordering::Release);
    }
}

impl<T> Popper<'_, T> {
    /// Reads the message at `head`.
    ///
    /// # Safety
    /// `head` lies inside head..tail as this side has seen `tail` with Acquire, and is not read again: the caller
    /// moves the index past it.
    #[inline]
    unsafe fn read(&mut self, head: usize) -> T {
        // SAFETY: the caller says that the slot is inside head..tail, so the producer wrote it before the Release
        // store of `tail` that we saw, and does not touch it before it sees `head` beyond it.
        self.ring.slot(head).with_mut(|slot| unsafe { slot.read().assume_init() })
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        let ring = self.ring;
        let head = ring.consumer.index.load(Ordering::Relaxed);
        if head == ring.consumer.other.get() {
            let tail = ring.producer.index.load(Ordering::Acquire);
            ring.consumer.other.set(tail);
            if head == tail {
                return None;
            }
        }
        // SAFETY: the copy of `tail` came from an Acquire load and is not `head`, so `head` is inside; the store
        // moves the index past it.
        let message = unsafe { self.read(head) };
        ring.consumer.index.store(head.wrapping_add(1), Ordering::Release);
        Some(message)
    }

    /// Gives up to `max` messages to `each`. Always looks at the producer's index, so that `more` is not stale.
    pub(crate) fn pop_batch(&mut self, max: usize, mut each: impl FnMut(T)) -> Popped {
        let ring = self.ring;
        let head = ring.consumer.index.load(Ordering::Relaxed);
        let tail = ring.producer.index.load(Ordering::Acquire);
        ring.consumer.other.set(tail);
        let inside = tail.wrapping_sub(head);
        let taken = inside.min(max);
        if taken != 0 {
            let mut advance = Advance { index: &ring.consumer.index, head };
            for _ in 0..taken {
                // SAFETY: fewer than `inside` messages were taken, so this one is before the `tail` seen above;
                // `advance` moves past it before anything can fail.
                let message = unsafe { self.read(advance.head) };
                advance.head = advance.head.wrapping_add(1);
                each(message);
            }
        }
        Popped { taken, more: taken < inside }
    }

    /// Whether the producer waits for room; forgets it. Call after messages were taken. The fence pairs with that in
    /// [`Pusher::set_blocked`]: the producer sees the room, or we see its request.
    pub(crate) fn take_blocked(&mut self) -> bool {
        fence(Ordering::SeqCst);
        self.ring.blocked.load(Ordering::Relaxed) && self.ring.blocked.swap(false, Ordering::Relaxed)
    }
}
