//! The runtime facade: tasks, time and randomness, for code that runs under either runtime.
//!
//! Each thread that runs tasks has a current runtime: glommio (`executor`) in the daemon, the
//! deterministic one (`deterministic`) in tests. The functions here pass to it.
//!
//! Invariant: outside of a runtime every function here panics; that is a bug of the caller.
//!
//! Wakers of tasks may be cloned, kept and woken on any thread.
//!
//! Deliberately absent: blocking (`lane`) and descriptors (`side`).

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::account::Open;
use crate::clock::{Instant, WallTime};
use crate::side::Side;
use crate::task::{self, Watched};
use crate::turns::{Counters, Turns};

pub use crate::account::Spent;
pub use crate::task::{Join, Panicked};

/// A future on the heap that stays on its core.
pub(crate) type Boxed = Pin<Box<dyn Future<Output = ()>>>;

/// Which task queue of a core a task belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Queue {
    Normal,
    Urgent,
}

/// What the two runtimes provide.
pub(crate) trait Runtime {
    fn start(&self, queue: Queue, task: Boxed);
    fn now(&self) -> Instant;
    fn wall(&self) -> WallTime;
    fn random(&self) -> [u8; 16];
    fn sleep(&self, duration: Duration) -> Boxed;
    fn yield_now(&self) -> Boxed;
    /// The running task named its stage.
    fn staged(&self, stage: &'static str);
    /// A turn of one of our tasks is over; its operations may go to the kernel now.
    fn turn_ended(&self);
    /// Now the kernel has them, and the turn is in the books.
    fn turn_counted(&self, ended: Instant);
    fn singleton_panicked(&self, panicked: Panicked);
    fn turns(&self) -> &Turns;
    fn wake_ups(&self) -> u64;
    /// The side ring, where there is one.
    fn side(&self) -> Option<Rc<Side>>;
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Runtime>>> = const { RefCell::new(None) };
}

/// Makes a runtime the current one of this thread until it is dropped.
pub(crate) struct Entered {
    outer: Option<Rc<dyn Runtime>>,
}

impl Entered {
    /// Makes `runtime` the current one of this thread for ever.
    pub(crate) fn for_good(runtime: Rc<dyn Runtime>) {
        CURRENT.set(Some(runtime));
    }

    pub(crate) fn new(runtime: Rc<dyn Runtime>) -> Entered {
        Entered { outer: CURRENT.replace(Some(runtime)) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.outer.take());
    }
}

/// The current runtime.
pub(crate) fn current() -> Rc<dyn Runtime> {
    CURRENT.with_borrow(|current| current.clone()).expect("this code runs inside a task of a runtime")
}

/// Starts a task. `task` names it in logs and records. Its panic is caught and becomes the result.
pub fn spawn<T: 'static>(task: &'static str, body: impl Future<Output = T> + 'static) -> Join<T> {
    start(Queue::Normal, task, false, body)
}

/// As `spawn`, in the queue that preempts the others: for tasks that take messages from rings or
/// results from the kernel, and hand them on.
pub fn spawn_urgent<T: 'static>(task: &'static str, body: impl Future<Output = T> + 'static) -> Join<T> {
    start(Queue::Urgent, task, false, body)
}

/// Starts a task that the process cannot do without: its panic ends the process with
/// `SINGLETON_PANIC_EXIT`, or the run of a universe with `Ended::Panicked`.
pub fn spawn_singleton(task: &'static str, body: impl Future<Output = ()> + 'static) {
    start(Queue::Normal, task, true, body).detach();
}

/// The side ring of this core.
///
/// # Panics
/// In a universe, which has none: code that runs there reaches the machine through `Sys` only.
pub fn side() -> Rc<Side> {
    current().side().expect("this code runs on a core, which has a side ring")
}

fn start<T: 'static>(
    queue: Queue,
    task: &'static str,
    singleton: bool,
    body: impl Future<Output = T> + 'static,
) -> Join<T> {
    let (watched, join) = Watched::new(task, singleton, body);
    current().start(queue, Box::pin(watched));
    join
}

/// Labels the running task; the label sticks to the task until it is changed. Slow turns are
/// recorded with it.
pub fn stage(name: &'static str) {
    task::set_stage(name);
    current().staged(name);
}

/// The name and the stage of the running task; both empty outside of tasks.
pub fn running() -> (&'static str, &'static str) {
    task::running()
}

/// Opens an account for the running task and for the tasks that it spawns from now on.
pub fn account() {
    task::set_account(Rc::default());
}

/// What the account of the running task says now; nothing if it has none.
pub fn spent() -> Spent {
    task::account().map(|account| account.spent(now())).unwrap_or_default()
}

/// Books the time until `work` ends, or is dropped, to the account of the running task, if it has one.
pub async fn timed<T>(kind: &'static str, work: impl Future<Output = T>) -> T {
    let _booking = task::account().map(|account| Booking(account.open(kind, now())));
    work.await
}

/// Books time that was measured where there is no account: on a lane.
pub fn book(kind: &'static str, spent: Duration) {
    if let Some(account) = task::account() {
        account.add(kind, spent, now());
    }
}

/// Ends with the work that it times.
struct Booking(Open);

impl Drop for Booking {
    fn drop(&mut self) {
        self.0.close(now());
    }
}

/// The monotonic clock.
pub fn now() -> Instant {
    current().now()
}

/// The time of day.
pub fn wall() -> WallTime {
    current().wall()
}

/// 16 random bytes: from the kernel, or from the seed of the universe.
pub fn random() -> [u8; 16] {
    current().random()
}

/// Waits for at least `duration`.
pub async fn sleep(duration: Duration) {
    current().sleep(duration).await;
}

/// What `work` comes to, unless this time is over first; then it is dropped.
pub async fn within<F: Future>(time: Duration, work: F) -> Option<F::Output> {
    let (mut work, mut end) = (pin!(work), pin!(sleep(time)));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Gives way: other tasks that can run get turns (in a universe, the seed decides how many).
pub async fn yield_now() {
    current().yield_now().await;
}

/// Counts messages taken from rings, for `counters`.
pub fn count_messages(count: usize) {
    current().turns().count_messages(count);
}

/// Sets the gauge of messages waiting towards this core, for `counters`.
pub fn set_ring_depth(depth: usize) {
    current().turns().set_ring_depth(depth);
}

/// A copy of this core's counters.
pub fn counters() -> Counters {
    let runtime = current();
    runtime.turns().counters(runtime.now(), runtime.wake_ups())
}

/// The slow turns of this core that are kept, oldest first.
pub fn slow_turns() -> Vec<crate::turns::SlowTurn> {
    current().turns().slow_turns()
}
