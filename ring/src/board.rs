//! Where the others tell an endpoint what there is to do: one bit for each peer and reason, and a doorbell.
//!
//! With it an endpoint looks at a few words instead of at every ring, and what it must look at before it sleeps is
//! all in one place.
//!
//! Invariant: whoever puts something into a ring posts the bit of that ring after it, and whoever takes a bit looks
//! into the ring after it, each with a sequentially consistent fence between. So either the poster finds the bit
//! gone and sets it again, or the taker finds the message. Only one peer sets a given bit.
//!
//! Deliberately absent: counts. A bit says that there may be something; the ring says how much.

use std::cell::Cell;
use std::ops::Range;
use std::task::Waker;

use crossbeam_utils::CachePadded;

use crate::Lane;
use crate::doorbell::Doorbell;
use crate::primitive::{AtomicU64, Ordering, fence};

/// Why a peer posts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// The peer put messages into its ring to us.
    Message(Lane),
    /// The peer made room in our ring to it, and our outbox waits for that.
    Credit(Lane),
}

impl Reason {
    const COUNT: usize = 2 * Lane::COUNT;

    const fn index(self) -> usize {
        match self {
            Self::Message(lane) => lane.index(),
            Self::Credit(lane) => Lane::COUNT + lane.index(),
        }
    }
}

/// Bits in one word of a board.
const WORD_BITS: usize = u64::BITS as usize;

const fn words_for(peers: usize) -> usize {
    peers.div_ceil(WORD_BITS)
}

const fn bit(peer: usize) -> u64 {
    1 << (peer % WORD_BITS)
}

/// The board of one endpoint. Any thread may `post`; the rest is for the thread of the endpoint.
#[derive(Debug)]
pub(crate) struct Board {
    bell: Doorbell,
    /// For each reason, the words that hold one bit for each peer.
    words: Box<[CachePadded<AtomicU64>]>,
}

impl Board {
    pub(crate) fn new(peers: usize) -> Self {
        let words = (0..Reason::COUNT * words_for(peers)).map(|_| CachePadded::new(AtomicU64::new(0))).collect();
        Self { bell: Doorbell::default(), words }
    }

    fn row(&self, reason: Reason) -> &[CachePadded<AtomicU64>] {
        let width = self.words.len() / Reason::COUNT;
        &self.words[reason.index() * width..][..width]
    }

    /// `peer` has something for the owner; call after it is in place. Says whether the bell was rung.
    pub(crate) fn post(&self, reason: Reason, peer: usize) -> bool {
        fence(Ordering::SeqCst);
        let word = &self.row(reason)[peer / WORD_BITS];
        if word.load(Ordering::Relaxed) & bit(peer) != 0 {
            // The owner has not taken our last post yet. It rang then, if it had to.
            return false;
        }
        // The fence above publishes what was posted; Release says it once more, and costs nothing.
        word.fetch_or(bit(peer), Ordering::Release);
        self.bell.ring()
    }

    /// Moves everything posted for `reason` into `todo`.
    pub(crate) fn take(&self, reason: Reason, todo: &Todo) {
        let mut found = false;
        for (word, todo) in self.row(reason).iter().zip(&todo.words) {
            if word.load(Ordering::Relaxed) != 0 {
                todo.set(todo.get() | word.swap(0, Ordering::Acquire));
                found = true;
            }
        }
        if found {
            fence(Ordering::SeqCst);
        }
    }

    /// Whether anything is posted.
    pub(crate) fn is_posted(&self) -> bool {
        self.words.iter().any(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Arms the bell and looks again. True: do not sleep, there is something.
    pub(crate) fn arm(&self, waker: &Waker) -> bool {
        self.bell.arm(waker);
        let posted = self.is_posted();
        if posted {
            self.bell.disarm();
        }
        posted
    }

    /// The owner is going: nobody is to be woken any more.
    pub(crate) fn retire(&self) {
        self.bell.clear();
    }
}

/// The owner's own list of peers that still have something: what it took from the board and has not finished.
#[derive(Debug)]
pub(crate) struct Todo {
    words: Vec<Cell<u64>>,
}

impl Todo {
    pub(crate) fn new(peers: usize) -> Self {
        Self { words: vec![Cell::new(0); words_for(peers)] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| word.get() == 0)
    }

    /// This peer has nothing left.
    pub(crate) fn remove(&self, peer: usize) {
        let word = &self.words[peer / WORD_BITS];
        word.set(word.get() & !bit(peer));
    }

    /// The lowest listed peer in `peers`.
    pub(crate) fn first_in(&self, peers: Range<usize>) -> Option<usize> {
        let mut peer = peers.start;
        while peer < peers.end {
            let rest = self.words[peer / WORD_BITS].get() >> (peer % WORD_BITS);
            if rest != 0 {
                let found = peer + rest.trailing_zeros() as usize;
                return (found < peers.end).then_some(found);
            }
            peer = (peer / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_todo_lists_peers_across_words_in_order() {
        let board = Board::new(200);
        let todo = Todo::new(200);
        for peer in [199, 0, 64, 63, 128] {
            board.post(Reason::Message(Lane::Normal), peer);
        }
        board.take(Reason::Message(Lane::Urgent), &todo);
        assert!(todo.is_empty());
        board.take(Reason::Message(Lane::Normal), &todo);
        let mut seen = Vec::new();
        while let Some(peer) = todo.first_in(0..200) {
            seen.push(peer);
            todo.remove(peer);
        }
        assert_eq!(seen, [0, 63, 64, 128, 199]);
        assert!(todo.is_empty() && !board.is_posted());
    }

    #[test]
    fn a_range_ends_where_it_says() {
        let board = Board::new(130);
        let todo = Todo::new(130);
        board.post(Reason::Credit(Lane::Urgent), 70);
        board.take(Reason::Credit(Lane::Urgent), &todo);
        assert_eq!(todo.first_in(0..70), None);
        assert_eq!(todo.first_in(0..71), Some(70));
        assert_eq!(todo.first_in(70..130), Some(70));
        assert_eq!(todo.first_in(71..130), None);
    }
}
