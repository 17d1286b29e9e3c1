//! Messages between cores: bounded lockless rings, one for each ordered pair of cores and lane.
//!
//! [`mesh`] builds all rings at once and gives out one [`Endpoint`] for each core. An endpoint sends owned
//! values to one, to some or to all endpoints (itself too), receives in batches, and sleeps in
//! [`Endpoint::wait`] when there is nothing to do.
//!
//! Promised:
//! * A sender never blocks and never spins. What finds its ring full waits in an outbox of the sender, which is
//!   bounded; past the bound `send` gives the message back in [`Full`], and nothing has changed.
//! * For each sender, destination and lane, messages arrive in the order in which they were sent, once each,
//!   whether they went through an outbox or not.
//! * No wake-up is lost: `wait` resolves whenever `receive` would find a message or could empty an outbox.
//! * A bell is rung only for a receiver that sleeps, so between busy cores there are no system calls.
//! * Two endpoints that flood each other both go on, as long as both call `receive`.
//! * Dropping the endpoints drops every message that is still inside, once.
//! * Memory follows use: a ring is allocated when its first message is sent.
//!
//! Not promised:
//! * Any order between lanes, between senders, or between destinations.
//! * That the normal lane moves while the urgent lane always has more than `receive` takes.
//! * That `receive` finds something after `wait`: a call may only have moved messages out of an outbox.
//! * Delivery to an endpoint that is gone. What it was sent stays in the ring until the last endpoint is dropped;
//!   what waits in the outbox of an endpoint is dropped with that endpoint.
//!
//! Who may call: an endpoint belongs to one thread at a time (`Send`, not `Sync`, not `Clone`), and one task at a
//! time may be in its `wait`. All methods take `&self`, so the tasks of a core can share it in an `Rc`.
//!
//! [`spsc`] is the ring alone. We keep our own instead of taking `rtrb`: the bench shows no clear difference, and
//! loom checks this ring, the outbox and the doorbell together, which it cannot do with a foreign ring. `primitive`
//! is the only file that knows about loom.

mod board;
mod doorbell;
mod endpoint;
mod outbox;
mod primitive;
pub mod spsc;

use std::fmt;

pub use endpoint::{Depths, Endpoint, mesh};

/// Which of the two rings of an ordered pair a message takes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Lane {
    /// Received before anything in the normal lane. For what must not wait behind requests.
    Urgent,
    /// Everything else.
    Normal,
}

impl Lane {
    /// All lanes, the one that is received first before the others.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Normal];

    const COUNT: usize = Self::ALL.len();

    const fn index(self) -> usize {
        match self {
            Self::Urgent => 0,
            Self::Normal => 1,
        }
    }
}

/// How much a mesh holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sizes {
    /// Messages in one ring. A power of two.
    pub ring_slots: usize,
    /// Messages that wait in one outbox (one for each ordered pair and lane). At least one.
    pub outbox_max: usize,
}

/// The outbox is full: the message comes back, and nothing has changed.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Full<T> {
    /// The destination whose ring and outbox are full.
    pub to: usize,
    /// What was to be sent.
    pub message: T,
}

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Full").field("to", &self.to).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot send to endpoint {}: its ring and its outbox are full", self.to)
    }
}

impl<T> std::error::Error for Full<T> {}
