//! Calls whose answer is not known yet: who waits, for what, and how many.
//!
//! Invariant: the count of each sender is the number of calls of that sender in here, and a sender
//! without calls has no entry. A call leaves exactly once, when its answer is formed.
//!
//! A client that disconnects keeps its entries until its calls are answered: what was started runs
//! to its end, so the work it stands for is still being done. Unique names are never reused.

use std::collections::HashMap;
use std::rc::Rc;

use uuid::Uuid;

use crate::bus::decide::Shape;
use crate::limits::{CALLS_MAX, CALLS_PER_SENDER_MAX};
use crate::message::CallId;
use crate::model::ids::PoolUuid;

/// Where an answer goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Its unique name, shared by all that waits for it.
    pub sender: Rc<str>,
    /// The number it gave the call.
    pub serial: u32,
    /// Whether it wants no answer.
    pub no_reply: bool,
}

/// A call that its pool's home works on.
#[derive(Debug)]
pub struct Pending {
    /// Who asked.
    pub caller: Caller,
    /// The form of the answer.
    pub shape: Shape,
    /// Which pool it is about.
    pub pool: PoolUuid,
    /// What it is about.
    pub subject: Uuid,
}

/// A bound that was reached, and its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reached(pub &'static str, pub usize);

/// All calls in flight.
#[derive(Debug, Default)]
pub struct Calls {
    last: u64,
    pending: HashMap<CallId, Pending>,
    per_sender: HashMap<Rc<str>, usize>,
}

impl Calls {
    /// Whether one more call of a sender fits.
    pub fn admit(&self, sender: &str) -> Result<(), Reached> {
        if self.pending.len() >= CALLS_MAX {
            return Err(Reached("calls of all clients", CALLS_MAX));
        }
        if self.per_sender.get(sender).is_some_and(|count| *count >= CALLS_PER_SENDER_MAX) {
            return Err(Reached("calls of one client", CALLS_PER_SENDER_MAX));
        }
        Ok(())
    }

    /// Keeps a call and gives it an id.
    pub fn push(&mut self, pending: Pending) -> CallId {
        *self.per_sender.entry(pending.caller.sender.clone()).or_default() += 1;
        self.last += 1;
        let call = CallId(self.last);
        self.pending.insert(call, pending);
        call
    }

    /// Takes out the call with this id.
    pub fn take(&mut self, call: CallId) -> Option<Pending> {
        let pending = self.pending.remove(&call)?;
        let sender = &pending.caller.sender;
        let count = self.per_sender.get_mut(sender).expect("a call leaves after it entered");
        *count -= 1;
        if *count == 0 {
            self.per_sender.remove(sender);
        }
        Some(pending)
    }

    /// Whether any call is about this pool. Asked for start and stop only, so a scan is enough.
    pub fn about(&self, pool: PoolUuid) -> bool {
        self.pending.values().any(|pending| pending.pool == pool)
    }

    /// How many are in flight, and how many of the client that has most.
    pub fn counts(&self) -> (usize, usize) {
        (self.pending.len(), self.per_sender.values().copied().max().unwrap_or(0))
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}
