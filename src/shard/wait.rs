//! Waiting inside one core: a signal that tasks of this core can await, and waiting for several
//! futures at once.
//!
//! Invariant: whoever waits looks first, so a change between looking and waiting is never missed
//! (nothing else runs on the core in between). Who waits is woken at most once for each change, or polls again.
//! Deliberately absent: anything that crosses a core; that is what rings are for.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, Waker};
use std::time::Duration;

use cores::rt;

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
        let mut changed = pin!(self.changed());
        let mut passed = pin!(async {
            match time {
                Some(time) => rt::sleep(time).await,
                None => pending().await,
            }
        });
        poll_fn(|cx| match (changed.as_mut().poll(cx), passed.as_mut().poll(cx)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            (Poll::Ready(()), _) | (_, Poll::Ready(())) => Poll::Ready(()),
        })
        .await;
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

/// Runs all futures side by side; the results come in the order of the futures.
pub async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in running.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(output) = future.as_mut().poll(cx)
            {
                *result = Some(output);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().map(|result| result.expect("the loop above ends when every result is there")).collect()
}
