//! The wrapper around every task: catches its panic, times its turns, keeps its stage.
//!
//! Invariant: nothing a task does unwinds into the executor, not in a poll and not in a destructor.
//! The result of a task, or its panic, reaches whoever holds its `Join`.
//!
//! Deliberately absent: cancellation. Tasks end by themselves, on a flag of their own, so that each
//! says where it may stop; dropping a `Join` only detaches.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use thiserror::Error;

use crate::account::Account;
use crate::rt;

/// A task panicked: a bug of ours.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("task {task} panicked: {message}")]
pub struct Panicked {
    /// The name the task was spawned with.
    pub task: &'static str,
    /// The text of the panic.
    pub message: String,
}

/// What is left of a panic: its text.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "a value that is no text".to_owned(),
    }
}

/// Drops `value`; a panic of its destructor is logged and goes no further.
pub(crate) fn drop_caught<T>(task: &str, value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        log::error!("a destructor of task {task} panicked: {}", panic_text(payload.as_ref()));
        // A payload may panic in its own destructor; there is nothing left to protect it with.
        std::mem::forget(payload);
    }
}

/// Where the result of a task waits for its `Join`.
struct Outcome<T> {
    result: Option<Result<T, Panicked>>,
    waker: Option<Waker>,
}

/// The result of a task, to be awaited. Dropping it detaches the task, which goes on.
#[must_use = "await the task, or say detach()"]
pub struct Join<T> {
    outcome: Rc<RefCell<Outcome<T>>>,
}

impl<T> Join<T> {
    /// Lets the task go on without anyone waiting for its result.
    pub fn detach(self) {}

    /// True once the task has ended and its result waits here.
    pub fn is_finished(&self) -> bool {
        self.outcome.borrow().result.is_some()
    }
}

impl<T> Future for Join<T> {
    type Output = Result<T, Panicked>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut outcome = self.outcome.borrow_mut();
        match outcome.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                outcome.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The task that runs now, and its stage.
#[derive(Clone, Copy)]
struct Running {
    task: &'static str,
    stage: &'static str,
}

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(Running { task: "", stage: "" }) };
    /// Where the running task books its time.
    static ACCOUNT: RefCell<Option<Rc<Account>>> = const { RefCell::new(None) };
}

/// Where the running task books its time, if anybody asked for it.
pub(crate) fn account() -> Option<Rc<Account>> {
    ACCOUNT.with_borrow(Clone::clone)
}

/// The running task books its time here from now on.
pub(crate) fn set_account(account: Rc<Account>) {
    ACCOUNT.set(Some(account));
}

/// Sets the stage of the running task.
pub(crate) fn set_stage(stage: &'static str) {
    RUNNING.set(Running { stage, ..RUNNING.get() });
}

/// The name and the stage of the running task; empty outside of tasks.
pub(crate) fn running() -> (&'static str, &'static str) {
    let Running { task, stage } = RUNNING.get();
    (task, stage)
}

/// A future as the runtimes run it.
pub(crate) struct Watched<F: Future> {
    task: &'static str,
    stage: &'static str,
    singleton: bool,
    /// Taken over from the task that spawned it.
    account: Option<Rc<Account>>,
    /// None once the future has ended.
    body: Option<Pin<Box<F>>>,
    outcome: Rc<RefCell<Outcome<F::Output>>>,
}

impl<F: Future> Watched<F> {
    /// Wraps `body`; the result goes to the `Join`.
    pub(crate) fn new(task: &'static str, singleton: bool, body: F) -> (Watched<F>, Join<F::Output>) {
        let outcome = Rc::new(RefCell::new(Outcome { result: None, waker: None }));
        let join = Join { outcome: outcome.clone() };
        let body = Some(Box::pin(body));
        (Watched { task, stage: "", singleton, account: account(), body, outcome }, join)
    }

    /// One poll with its panic caught. None: the future waits and is kept for the next turn.
    fn turn(&mut self, context: &mut Context<'_>) -> Option<Result<F::Output, Panicked>> {
        let mut body = self.body.take().expect("a task is not polled after its end");
        let polled = catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(context)));
        let result = match polled {
            Ok(Poll::Pending) => {
                self.body = Some(body);
                return None;
            }
            Ok(Poll::Ready(value)) => Ok(value),
            Err(payload) => {
                let message = panic_text(payload.as_ref());
                drop_caught(self.task, payload);
                Err(Panicked { task: self.task, message })
            }
        };
        drop_caught(self.task, body);
        Some(result)
    }

    fn end(&self, result: Result<F::Output, Panicked>) {
        if let Err(panicked) = &result {
            log::error!("{panicked} (stage={:?})", self.stage);
            if self.singleton {
                rt::current().singleton_panicked(panicked.clone());
            }
        }
        if Rc::strong_count(&self.outcome) == 1 {
            // Detached: the result ends here, and its destructor is a part of the task.
            drop_caught(self.task, result);
            return;
        }
        let waker = {
            let mut outcome = self.outcome.borrow_mut();
            outcome.result = Some(result);
            outcome.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let runtime = rt::current();
        let outer = RUNNING.replace(Running { task: this.task, stage: this.stage });
        let outer_account = ACCOUNT.replace(this.account.take());
        let began = runtime.now();
        let result = this.turn(context);
        this.stage = RUNNING.replace(outer).stage;
        this.account = ACCOUNT.replace(outer_account);
        // Before the clock is read: handing the turn's operations to the kernel is part of the turn.
        runtime.turn_ended();
        let ended = runtime.now();
        runtime.turns().record(this.task, this.stage, began, ended);
        runtime.turn_counted(ended);
        match result {
            None => Poll::Pending,
            Some(result) => {
                this.end(result);
                Poll::Ready(())
            }
        }
    }
}

impl<F: Future> Drop for Watched<F> {
    fn drop(&mut self) {
        drop_caught(self.task, self.body.take());
    }
}
