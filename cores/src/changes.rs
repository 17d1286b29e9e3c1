//! Waiting inside one core for what another task of it does.
//!
//! Invariant: whoever waits looks first, so a change between looking and waiting is never missed
//! (nothing else runs on the core in between). Who waits is woken at most once for each change, or polls again.
//!
//! Deliberately absent: anything that crosses a core; that is what rings are for.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::rt;

/// Counts changes; tasks of this core wait for the next one.
#[derive(Debug, Default)]
pub struct Signal {
    changes: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Something has changed: everybody who waits looks again.
    pub fn raise(&self) {
        self.changes.set(self.changes.get() + 1);
        // Taken out first: a waker may run code that waits again.
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until `look` has an answer. It is asked at once, and after each change.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(answer) = look() {
                return answer;
            }
            self.changed().await;
        }
    }

    /// Waits until something changes, or until this time has passed.
    pub async fn within(&self, time: Option<Duration>) {
        match time {
            Some(time) => rt::within(time, self.changed()).await.unwrap_or(()),
            None => self.changed().await,
        }
    }

    async fn changed(&self) {
        let seen = self.changes.get();
        poll_fn(|cx| {
            if self.changes.get() != seen {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
