//! What waits to leave: messages in their order, and the listings that take turns behind them.
//!
//! Invariants: messages leave in the order in which they were pushed. A listing waits as a caller,
//! not as bytes, until its turn comes; while it waits `LISTING_PASSED_MAX` messages may pass it and
//! no more. Callers of listings take turns by client, each client's in their order. What each client
//! has waiting is counted; a client without any has no entry.
//!
//! Deliberately absent: what a listing shows. Whoever owns the tree makes it when its turn has come.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::bus::calls::Caller;
use crate::bus::listing::Listing;
use crate::limits::{BUS_OUT_BYTES_MAX, LISTING_PASSED_MAX, LISTINGS_WAITING_MAX, SENDER_BYTES_MAX};

/// What leaves next.
#[derive(Debug)]
pub enum Out {
    /// One message or several, whole.
    Bytes(Vec<u8>),
    /// Every object.
    Listing(Listing),
}

/// A message in its place, and whom it is for if that is one client.
#[derive(Debug)]
struct Queued {
    to: Option<Rc<str>>,
    out: Out,
}

/// The callers of one client that wait for a listing.
#[derive(Debug)]
struct Turn {
    sender: Rc<str>,
    /// Each with the bytes that it was counted with.
    callers: VecDeque<(Caller, usize)>,
}

/// All that waits.
#[derive(Debug, Default)]
pub struct Queue {
    out: VecDeque<Queued>,
    /// Bytes of the messages in `out`.
    bytes: usize,
    /// The client whose turn it is comes first.
    turns: VecDeque<Turn>,
    /// Messages that left since a listing last had its turn, or since the first began to wait.
    passed: usize,
    /// Bytes of messages and listings that wait for each client.
    shares: HashMap<Rc<str>, usize>,
}

impl Queue {
    /// Whether so much waits for a client that it must not ask for more.
    pub fn is_over(&self, sender: &str) -> bool {
        self.share(sender) >= SENDER_BYTES_MAX
    }

    /// Whether so much waits that no more calls should be read.
    pub const fn is_congested(&self) -> bool {
        self.bytes > BUS_OUT_BYTES_MAX
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty() && self.turns.is_empty()
    }

    /// Whether one client waits for the listing of another, or for its own.
    pub fn has_waiting_behind(&self) -> bool {
        self.turns.len() > 1 || self.turns.front().is_some_and(|turn| turn.callers.len() > 1)
    }

    /// Puts a message at the end.
    pub fn push(&mut self, to: Option<&Rc<str>>, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        if let Some(sender) = to {
            self.count(sender, bytes.len());
        }
        self.out.push_back(Queued { to: to.cloned(), out: Out::Bytes(bytes) });
    }

    /// Lets a caller wait for a listing of about so many bytes.
    ///
    /// # Errors
    /// The caller comes back if too much waits already, for it or for all.
    pub fn push_caller(&mut self, caller: Caller, bytes: usize) -> Result<(), Caller> {
        let share = self.share(&caller.sender);
        // A listing that is larger than a client's share can still be had, one at a time.
        let fits = share == 0 || share + bytes <= SENDER_BYTES_MAX;
        if !fits || self.counts().2 >= LISTINGS_WAITING_MAX {
            return Err(caller);
        }
        if self.turns.is_empty() {
            self.passed = 0;
        }
        self.count(&caller.sender, bytes);
        match self.turns.iter_mut().find(|turn| turn.sender == caller.sender) {
            Some(turn) => turn.callers.push_back((caller, bytes)),
            None => self.turns.push_back(Turn { sender: caller.sender.clone(), callers: [(caller, bytes)].into() }),
        }
        Ok(())
    }

    /// The caller whose listing is to be made now, and pushed before anything else.
    pub fn poll_caller(&mut self) -> Option<Caller> {
        if !self.out.is_empty() && self.passed < LISTING_PASSED_MAX {
            return None;
        }
        let mut turn = self.turns.pop_front()?;
        let (caller, bytes) = turn.callers.pop_front().expect("a client has a turn only while it waits");
        if !turn.callers.is_empty() {
            self.turns.push_back(turn);
        }
        self.discount(&caller.sender, bytes);
        self.passed = 0;
        Some(caller)
    }

    /// Puts a listing at the end: behind what is there, which it shows.
    pub fn push_listing(&mut self, listing: Listing) {
        self.out.push_back(Queued { to: None, out: Out::Listing(listing) });
    }

    /// Takes out what leaves next.
    pub fn poll(&mut self) -> Option<Out> {
        let Queued { to, out } = self.out.pop_front()?;
        if let Out::Bytes(bytes) = &out {
            self.bytes -= bytes.len();
            if let Some(sender) = &to {
                self.discount(sender, bytes.len());
            }
        }
        self.passed += 1;
        Some(out)
    }

    /// Appends the messages that are next, as long as they fit into `max` bytes.
    pub fn poll_more(&mut self, all: &mut Vec<u8>, max: usize) {
        let fits = |queued: &Queued, all: &Vec<u8>| match &queued.out {
            Out::Bytes(bytes) => all.len() + bytes.len() <= max,
            Out::Listing(_) => false,
        };
        while self.out.front().is_some_and(|next| fits(next, all)) {
            if let Some(Out::Bytes(bytes)) = self.poll() {
                all.extend_from_slice(&bytes);
            }
        }
    }

    /// Forgets what waits for a client that has gone. Its name is never given again.
    pub fn forget(&mut self, sender: &str) {
        self.turns.retain(|turn| *turn.sender != *sender);
        if self.shares.remove(sender).is_some() {
            self.out.retain(|queued| queued.to.as_deref() != Some(sender));
            let lengths = self.out.iter().map(|queued| match &queued.out {
                Out::Bytes(bytes) => bytes.len(),
                Out::Listing(_) => 0,
            });
            self.bytes = lengths.sum();
        }
    }

    /// How many bytes wait, how many for the client that has most, and how many callers for a listing.
    pub fn counts(&self) -> (usize, usize, usize) {
        let most = self.shares.values().copied().max().unwrap_or(0);
        (self.bytes, most, self.turns.iter().map(|turn| turn.callers.len()).sum())
    }

    fn share(&self, sender: &str) -> usize {
        self.shares.get(sender).copied().unwrap_or(0)
    }

    fn count(&mut self, sender: &Rc<str>, bytes: usize) {
        *self.shares.entry(sender.clone()).or_default() += bytes;
    }

    fn discount(&mut self, sender: &str, bytes: usize) {
        let share = self.shares.get_mut(sender).expect("what waits for a client was counted");
        *share -= bytes;
        if *share == 0 {
            self.shares.remove(sender);
        }
    }
}
