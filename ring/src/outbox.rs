//! What a sender keeps of the messages that found their ring full.
//!
//! Invariant: while messages wait here, none overtakes them, and either the ring is marked blocked, so that the
//! consumer will post a credit when it makes room, or that credit is on its way to us. So an outbox is never
//! forgotten.
//!
//! Deliberately absent: who is told about messages in the ring (see `endpoint`), and any notion of time.

use std::collections::VecDeque;

use crate::spsc::Pusher;

#[derive(Debug)]
pub(crate) struct Outbox<T> {
    waiting: VecDeque<T>,
}

impl<T> Outbox<T> {
    pub(crate) const fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Sends `message`, through the ring if it has room and nothing waits, else here, at most `max`. Gives how many
    /// messages went into the ring.
    ///
    /// # Errors
    /// Ring and outbox are full; the message comes back and nothing has moved.
    #[inline]
    pub(crate) fn send(&mut self, ring: &mut Pusher<'_, T>, max: usize, message: T) -> Result<usize, T> {
        if self.waiting.is_empty() {
            match ring.push(message) {
                Ok(()) => Ok(1),
                Err(message) => self.keep(ring, message),
            }
        } else {
            self.queue(ring, max, message)
        }
    }

    /// The first message that does not fit.
    #[cold]
    fn keep(&mut self, ring: &mut Pusher<'_, T>, message: T) -> Result<usize, T> {
        self.waiting.push_back(message);
        Ok(self.flush(ring))
    }

    /// A message behind others.
    #[cold]
    fn queue(&mut self, ring: &mut Pusher<'_, T>, max: usize, message: T) -> Result<usize, T> {
        let mut moved = 0;
        if self.waiting.len() >= max {
            // The credit may be on its way while the owner has not come to `receive`.
            moved = self.flush(ring);
            if self.waiting.len() >= max {
                return Err(message);
            }
        }
        let alone = self.waiting.is_empty();
        self.waiting.push_back(message);
        if alone {
            moved += self.flush(ring);
        }
        Ok(moved)
    }

    /// Moves what fits into the ring; asks for a credit when something stays. Gives how many were moved.
    pub(crate) fn flush(&mut self, ring: &mut Pusher<'_, T>) -> usize {
        let mut moved = ring.push_batch(&mut self.waiting);
        if !self.waiting.is_empty() {
            ring.set_blocked();
            moved += ring.push_batch(&mut self.waiting);
            if self.waiting.is_empty() {
                ring.clear_blocked();
            }
        }
        if moved != 0 && self.waiting.is_empty() {
            // A burst must not keep its memory for ever.
            self.waiting = VecDeque::new();
        }
        moved
    }
}
