//! What wakes a core that sleeps.
//!
//! The sleeper looks for work, arms the bell, looks again, and only then sleeps. The other side leaves work where
//! the sleeper looks, and then rings; a bell that is not armed costs one load.
//!
//! Invariant: between "leave work" and "is it armed" of the one side, and between "arm" and "look again" of the
//! other, stands a sequentially consistent fence. Of two such fences one is first, so at least one side sees what
//! the other did: the work is found, or the bell is heard.
//!
//! Deliberately absent: the work itself (see `board`), and more than one sleeper.

use std::task::Waker;

use crate::primitive::{AtomicBool, Ordering, SharedWaker, fence};

#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    /// Whether somebody sleeps, or is about to. Every write is a swap: swaps form one chain, in which loom can see
    /// that arming again comes after the ring before; plain stores beside swaps it would order any way.
    armed: AtomicBool,
    waker: SharedWaker,
}

impl Doorbell {
    /// Says that the task of `waker` is about to sleep. It must look for work once more after this.
    pub(crate) fn arm(&self, waker: &Waker) {
        self.waker.register(waker);
        self.armed.swap(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The task found work after all. A ring that is under way may still wake it, which does no harm.
    pub(crate) fn disarm(&self) {
        self.armed.swap(false, Ordering::Relaxed);
    }

    /// Wakes the sleeper if there is one; says whether it did. Call after the work is in place.
    pub(crate) fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // The load keeps the line shared while nobody sleeps; the swap lets only one of many callers wake.
        let ours = self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Acquire);
        if ours {
            self.waker.wake();
        }
        ours
    }

    /// Forgets the sleeper, so that its waker is dropped on the sleeper's own thread.
    pub(crate) fn clear(&self) {
        self.disarm();
        self.waker.clear();
    }
}
