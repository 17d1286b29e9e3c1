//! The mesh: every ordered pair of endpoints (an endpoint and itself too) has one ring for each lane.
//!
//! Invariant: there is one [`Endpoint`] for each id, it is not `Sync` and cannot be cloned. Endpoint `a` alone
//! produces into the rings from `a`, endpoint `b` alone consumes from the rings to `b`. All `unsafe` here rests on
//! that.
//!
//! Deliberately absent: joining and leaving. A mesh is made once, for the cores of the process, and its endpoints go
//! when the process ends.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::Poll;

use crossbeam_utils::CachePadded;

use crate::board::{Board, Reason, Todo};
use crate::outbox::Outbox;
use crate::primitive::{Arc, OnceLock};
use crate::spsc::Ring;
use crate::{Full, Lane, Sizes};

/// Makes the rings between `endpoints` endpoints; gives the endpoints in the order of their ids.
///
/// # Panics
/// When `sizes.ring_slots` is not a power of two or `sizes.outbox_max` is zero.
pub fn mesh<T: Send>(endpoints: usize, sizes: Sizes) -> Vec<Endpoint<T>> {
    let slots = sizes.ring_slots;
    assert!(slots.is_power_of_two(), "a ring has a power of two of slots, not {slots}");
    assert!(sizes.outbox_max > 0, "an outbox holds at least one message");
    let shared = Arc::new(Mesh {
        endpoints,
        sizes,
        boards: (0..endpoints).map(|_| CachePadded::new(Board::new(endpoints))).collect(),
        rings: (0..endpoints * endpoints * Lane::COUNT).map(|_| OnceLock::new()).collect(),
    });
    (0..endpoints).map(|id| Endpoint::new(id, Arc::clone(&shared))).collect()
}

/// What all endpoints share.
struct Mesh<T> {
    endpoints: usize,
    sizes: Sizes,
    boards: Box<[CachePadded<Board>]>,
    /// By sender, then receiver, then lane. A ring is made by its sender with the first message.
    rings: Box<[OnceLock<Box<Ring<T>>>]>,
}

impl<T> Mesh<T> {
    fn ring(&self, from: usize, to: usize, lane: Lane) -> &OnceLock<Box<Ring<T>>> {
        &self.rings[(from * self.endpoints + to) * Lane::COUNT + lane.index()]
    }
}

/// One core's end of the mesh. Belongs to one thread at a time; see the crate's documentation.
///
/// ```compile_fail
/// fn shared_by_threads<T: Sync>() {}
/// shared_by_threads::<ring::Endpoint<u8>>();
/// ```
pub struct Endpoint<T> {
    id: usize,
    mesh: Arc<Mesh<T>>,
    /// By destination, then lane.
    outboxes: Vec<RefCell<Outbox<T>>>,
    /// By lane: senders that had something when we last looked.
    inboxes: [Todo; Lane::COUNT],
    /// By lane: destinations that made room.
    credits: [Todo; Lane::COUNT],
    /// By lane: the sender that comes first in the next `receive`.
    turns: [Cell<usize>; Lane::COUNT],
    received: Cell<u64>,
    bells_rung: Cell<u64>,
}

/// Counters of one endpoint, for the stall detector and for reports.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Depths {
    /// Messages in the rings to this endpoint, now.
    pub queued_in: usize,
    /// Messages in the outboxes of this endpoint, now.
    pub queued_out: usize,
    /// Messages this endpoint has received, ever.
    pub received: u64,
    /// Bells of others (or its own) that this endpoint has rung, ever: each woke a core that slept.
    pub bells_rung: u64,
}

impl<T> Endpoint<T> {
    fn new(id: usize, mesh: Arc<Mesh<T>>) -> Self {
        let peers = mesh.endpoints;
        let todos = || [Todo::new(peers), Todo::new(peers)];
        Self {
            id,
            outboxes: (0..peers * Lane::COUNT).map(|_| RefCell::new(Outbox::new())).collect(),
            inboxes: todos(),
            credits: todos(),
            turns: Default::default(),
            received: Cell::new(0),
            bells_rung: Cell::new(0),
            mesh,
        }
    }

    /// Which endpoint this is: its place in what [`mesh`] gave.
    pub fn id(&self) -> usize {
        self.id
    }

    /// How many endpoints the mesh has, this one included.
    pub fn endpoints(&self) -> usize {
        self.mesh.endpoints
    }

    fn outbox(&self, to: usize, lane: Lane) -> &RefCell<Outbox<T>> {
        &self.outboxes[to * Lane::COUNT + lane.index()]
    }

    fn post(&self, to: usize, reason: Reason) {
        if self.mesh.boards[to].post(reason, self.id) {
            self.bells_rung.set(self.bells_rung.get() + 1);
        }
    }
}

impl<T: Send> Endpoint<T> {
    /// Sends `message` to the endpoint `to`, which may be this one. Never blocks.
    ///
    /// # Errors
    /// The ring and the outbox are full; nothing has changed. `wait` resolves when there is room again.
    ///
    /// # Panics
    /// When there is no endpoint `to`.
    pub fn send(&self, to: usize, lane: Lane, message: T) -> Result<(), Full<T>> {
        assert!(to < self.mesh.endpoints, "endpoint {to} is one of {}", self.mesh.endpoints);
        let sizes = self.mesh.sizes;
        let ring = self.mesh.ring(self.id, to, lane).get_or_init(|| Box::new(Ring::new(sizes.ring_slots)));
        // SAFETY: this is the one endpoint with our id, and it is on one thread at a time: nobody else produces here.
        let mut pusher = unsafe { ring.pusher() };
        let moved = self.outbox(to, lane).borrow_mut().send(&mut pusher, sizes.outbox_max, message);
        // The outbox is no longer borrowed: a waker is foreign code.
        match moved {
            Ok(0) => Ok(()),
            Ok(_) => {
                self.post(to, Reason::Message(lane));
                Ok(())
            }
            Err(message) => Err(Full { to, message }),
        }
    }

    /// Asks `message` for every endpoint, in the order of their ids and this one included, and sends to each for
    /// which it gives something.
    ///
    /// # Errors
    /// One outbox is full: endpoints before it have their message, those after it were not asked for.
    pub fn send_each(&self, lane: Lane, mut message: impl FnMut(usize) -> Option<T>) -> Result<(), Full<T>> {
        for to in 0..self.mesh.endpoints {
            if let Some(message) = message(to) {
                self.send(to, lane, message)?;
            }
        }
        Ok(())
    }

    /// Moves waiting messages out of outboxes that have got room, then appends up to `max` received messages to
    /// `into`, each with its sender: first all of the urgent lane, then the normal lane. Gives how many. Never blocks.
    ///
    /// Within a lane senders take turns: who was served last in one call comes last in the next.
    pub fn receive(&self, into: &mut Vec<(usize, T)>, max: usize) -> usize {
        let mut taken = 0;
        for lane in Lane::ALL {
            self.flush(lane);
        }
        for lane in Lane::ALL {
            taken += self.receive_lane(lane, into, max - taken);
        }
        self.received.set(self.received.get() + taken as u64);
        taken
    }

    /// Resolves when `receive` may find something or can move something out of an outbox. One task at a time may
    /// wait; a second one takes the place of the first, which then is not woken.
    pub async fn wait(&self) {
        let board = &self.mesh.boards[self.id];
        poll_fn(|context| {
            let ready = self.inboxes.iter().any(|todo| !todo.is_empty()) || board.is_posted();
            if ready || board.arm(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Counters. Looks at all rings to this endpoint, so it is for now and then.
    pub fn depths(&self) -> Depths {
        let peers = 0..self.mesh.endpoints;
        let rings = peers.flat_map(|from| Lane::ALL.map(|lane| self.mesh.ring(from, self.id, lane)));
        Depths {
            queued_in: rings.filter_map(OnceLock::get).map(|ring| ring.len()).sum(),
            queued_out: self.outboxes.iter().map(|outbox| outbox.borrow().len()).sum(),
            received: self.received.get(),
            bells_rung: self.bells_rung.get(),
        }
    }

    /// Moves messages from the outboxes of destinations that made room.
    fn flush(&self, lane: Lane) {
        let credits = &self.credits[lane.index()];
        self.mesh.boards[self.id].take(Reason::Credit(lane), credits);
        while let Some(to) = credits.first_in(0..self.mesh.endpoints) {
            credits.remove(to);
            let ring = self.mesh.ring(self.id, to, lane).get().expect("a credit is for a ring that was full");
            // SAFETY: as in `send`.
            let moved = self.outbox(to, lane).borrow_mut().flush(&mut unsafe { ring.pusher() });
            if moved != 0 {
                self.post(to, Reason::Message(lane));
            }
        }
    }

    fn receive_lane(&self, lane: Lane, into: &mut Vec<(usize, T)>, max: usize) -> usize {
        let inbox = &self.inboxes[lane.index()];
        self.mesh.boards[self.id].take(Reason::Message(lane), inbox);
        let turn = &self.turns[lane.index()];
        let first = turn.get();
        let mut taken = 0;
        for peers in [first..self.mesh.endpoints, 0..first] {
            let mut start = peers.start;
            while taken < max
                && let Some(from) = inbox.first_in(start..peers.end)
            {
                taken += self.receive_from(from, lane, into, max - taken);
                start = from + 1;
                turn.set(start % self.mesh.endpoints);
            }
        }
        taken
    }

    fn receive_from(&self, from: usize, lane: Lane, into: &mut Vec<(usize, T)>, max: usize) -> usize {
        let ring = self.mesh.ring(from, self.id, lane).get().expect("a post is for a ring that was used");
        // SAFETY: this is the one endpoint with our id, and it is on one thread at a time: nobody else consumes here.
        let mut popper = unsafe { ring.popper() };
        let popped = popper.pop_batch(max, |message| into.push((from, message)));
        if !popped.more {
            // The batch looked after the post was taken, so what it did not see will be posted again.
            self.inboxes[lane.index()].remove(from);
        }
        if popped.taken != 0 && popper.take_blocked() {
            self.post(from, Reason::Credit(lane));
        }
        popped.taken
    }
}

impl<T> Drop for Endpoint<T> {
    fn drop(&mut self) {
        // The waker belongs to a task of this thread; the others keep the board alive.
        self.mesh.boards[self.id].retire();
    }
}

impl<T> std::fmt::Debug for Endpoint<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id)
            .field("endpoints", &self.mesh.endpoints)
            .finish_non_exhaustive()
    }
}
