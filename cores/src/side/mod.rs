//! The side ring: an io_uring of our own beside those of the executor, for every descriptor.
//!
//! Operations that a turn and the one after it queue go to the kernel in one system call; if nothing is
//! left to run, in the one in which the core sleeps. What the kernel answers at once is taken right after
//! that call; for the rest a busy core looks at the ring after each turn, and one that has nothing to do
//! sleeps in the ring. There it also waits for its bell, which other threads ring, and for its alarm.
//! What a socket takes at once is sent past the ring: the answer to a call leaves before the core asks
//! for the next.
//!
//! Invariant: buffer and descriptor of an operation belong to its slot, never to the future. A
//! dropped future cancels its operation, and the slot is freed when the kernel says that it is done;
//! whether a cancelled write took place, and what a cancelled receive had read, is not known.
//!
//! Deliberately absent: linked entries (they make writes run one after the other, 7 times slower)
//! and fixed files or buffers (nothing here is hot enough to gain from them).

mod alarm;
mod message;
mod operation;
mod slices;
mod slots;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};

use self::alarm::Alarm;
use self::message::Message;
use self::operation::{Kind, Operation, count};
use self::slices::Slices;
use self::slots::{Completed, Found, Key, Left, Slots};
use crate::clock::Instant;
use crate::limits::{SIDE_COMPLETIONS, SIDE_OPERATIONS_MAX, SIDE_SUBMISSIONS};
use crate::rt::{self, Panicked};
use crate::scheduler::Bell;

pub use self::slices::Excerpt;
pub use crate::buffer::Buffer;

/// A descriptor that operations in flight keep open.
pub type Fd = Rc<OwnedFd>;

/// Marks the completion of a cancel, which nobody waits for. No key looks like this: it would name
/// slot 2^32 - 1.
const CANCEL: u64 = u64::MAX;

/// Marks the completion of the alarm, which no key looks like for the same reason.
const ALARM: u64 = u64::MAX - 1;

/// Marks the bell, likewise.
const BELL: u64 = u64::MAX - 2;

/// The side ring of one core; `rt::side()` gives it.
pub struct Side {
    ring: RefCell<IoUring>,
    slots: RefCell<Slots>,
    /// Tasks that wait for a slot.
    waiters: RefCell<Vec<Waker>>,
    /// Entries were queued since the last submit.
    queued: Cell<bool>,
    /// A turn has ended since then.
    held: Cell<bool>,
    alarm: Alarm,
    bell: Arc<Bell>,
    /// The ring has an operation that waits for the bell.
    listening: Cell<bool>,
}

impl Side {
    /// Sets up the ring of the core with this bell.
    pub(crate) fn new(bell: Arc<Bell>) -> io::Result<Rc<Side>> {
        Ok(Rc::new(Side {
            ring: RefCell::new(ring()?),
            slots: RefCell::new(Slots::new(SIDE_OPERATIONS_MAX)),
            waiters: RefCell::default(),
            queued: Cell::new(false),
            held: Cell::new(false),
            alarm: Alarm::new()?,
            bell,
            listening: Cell::new(false),
        }))
    }

    /// Reads up to `buffer.len()` bytes at `offset`; 0 is the end of the file.
    pub async fn read(self: &Rc<Self>, fd: &Fd, offset: u64, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        let (result, operation) = self.run(fd, Kind::Read { offset, buffer }).await;
        (count(result), operation.into_buffer())
    }

    /// Writes `buffer` at `offset`. Fewer bytes than asked for are for the caller to judge.
    pub async fn write(self: &Rc<Self>, fd: &Fd, offset: u64, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        let (result, operation) = self.run(fd, Kind::Write { offset, buffer }).await;
        (count(result), operation.into_buffer())
    }

    /// Writes all of `writes` at once, in no order, and gives the result of each in theirs. A short
    /// write is the caller's to judge. None of them is durable before an `fsync`.
    pub async fn write_batch(self: &Rc<Self>, writes: Vec<(Fd, u64, Buffer)>) -> Vec<io::Result<usize>> {
        let operation = |(fd, offset, buffer)| Operation { fd, kind: Kind::Write { offset, buffer } };
        self.batch(writes.into_iter().map(operation), |result, _| count(result)).await
    }

    /// Reads all of `reads` at once, in no order, and gives the result and the buffer of each in theirs.
    pub async fn read_batch(self: &Rc<Self>, reads: Vec<(Fd, u64, Buffer)>) -> Vec<(io::Result<usize>, Buffer)> {
        let operation = |(fd, offset, buffer)| Operation { fd, kind: Kind::Read { offset, buffer } };
        self.batch(reads.into_iter().map(operation), |result, operation| (count(result), operation.into_buffer())).await
    }

    /// Runs all operations at once; what `end` makes of each comes in their order.
    async fn batch<T>(
        self: &Rc<Self>,
        operations: impl Iterator<Item = Operation>,
        end: impl Fn(i32, Operation) -> T,
    ) -> Vec<T> {
        let mut pending: Vec<_> = operations.map(|operation| self.operate(operation)).collect();
        let mut results: Vec<Option<T>> = pending.iter().map(|_| None).collect();
        let mut left = pending.len();
        poll_fn(|context| {
            for (flight, result) in pending.iter_mut().zip(&mut results).filter(|(_, result)| result.is_none()) {
                if let Poll::Ready((done, operation)) = Pin::new(flight).poll(context) {
                    *result = Some(end(done, operation));
                    left -= 1;
                }
            }
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        results.into_iter().map(|result| result.expect("each operation was awaited")).collect()
    }

    /// Makes what was written durable; with `data_only`, without times and the like.
    pub async fn fsync(self: &Rc<Self>, fd: &Fd, data_only: bool) -> io::Result<()> {
        count(self.run(fd, Kind::Fsync { data_only }).await.0).map(drop)
    }

    /// fallocate(2): `mode` is a set of FALLOC_FL flags.
    pub async fn fallocate(self: &Rc<Self>, fd: &Fd, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        count(self.run(fd, Kind::Fallocate { mode, offset, len }).await.0).map(drop)
    }

    /// Waits until `fd` can be read, or reading it would report an error or an end.
    pub async fn readable(self: &Rc<Self>, fd: &Fd) -> io::Result<()> {
        count(self.run(fd, Kind::Readable).await.0).map(drop)
    }

    /// Receives bytes and at most `DESCRIPTORS_MAX` descriptors from a Unix socket; 0 bytes are the
    /// end. The descriptors are closed on exec.
    ///
    /// # Errors
    /// Those of recvmsg(2), and `InvalidData` for more descriptors, all of which are closed.
    pub async fn receive(self: &Rc<Self>, socket: &Fd, buffer: Buffer) -> (io::Result<(usize, Vec<OwnedFd>)>, Buffer) {
        let (result, operation) = self.run(socket, Kind::Receive(Message::new(buffer))).await;
        operation.received(count(result))
    }

    /// Sends the bytes of `bytes` from position `from` on; possibly fewer than that. A closed peer is
    /// an error (EPIPE), never a signal.
    pub async fn send(self: &Rc<Self>, socket: &Fd, bytes: Buffer, from: usize) -> (io::Result<usize>, Buffer) {
        let rest = &bytes[from.min(bytes.len())..];
        match socket::send(socket.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            now => return (now.map_err(io::Error::from), bytes),
        }
        let (result, operation) = self.run(socket, Kind::Send { buffer: bytes, from }).await;
        (count(result), operation.into_buffer())
    }

    /// Sends the bytes of excerpts, of `SLICES_MAX` slices at most, one after the other, from position `from` on;
    /// possibly fewer than all. Kernels since 5.19 come back only when all has left, older ones as
    /// soon as the socket is full. A closed peer is an error (EPIPE), never a signal.
    pub async fn send_slices(
        self: &Rc<Self>,
        socket: &Fd,
        excerpts: Vec<Excerpt>,
        from: usize,
    ) -> (io::Result<usize>, Vec<Excerpt>) {
        let (result, operation) = self.run(socket, Kind::SendSlices(Slices::new(excerpts, from))).await;
        (count(result), operation.into_excerpts())
    }

    /// Operations that the kernel holds or whose result nobody has fetched, orphans included.
    pub fn in_flight(&self) -> usize {
        self.slots.borrow().used()
    }

    /// Ends the next sleep at `deadline`, which lies after `now`, or earlier.
    pub(crate) fn set_alarm(&self, deadline: Instant, now: Instant) {
        if let Some(entry) = self.alarm.set(deadline, now) {
            self.push(&entry.user_data(ALARM));
        }
    }

    /// Lets the next sleep end when the bell rings.
    pub(crate) fn listen(&self) {
        if !self.listening.replace(true) {
            self.push(&self.bell.entry().user_data(BELL));
        }
    }

    /// Blocks this thread until an operation completes, the alarm goes off or the bell rings.
    pub(crate) fn sleep(&self) {
        self.queued.set(false);
        self.held.set(false);
        self.enter(1);
        self.drain();
    }

    fn run(self: &Rc<Self>, fd: &Fd, kind: Kind) -> Flight {
        self.operate(Operation { fd: fd.clone(), kind })
    }

    fn operate(self: &Rc<Self>, operation: Operation) -> Flight {
        Flight { side: self.clone(), state: Progress::Waiting(operation) }
    }

    /// Puts an entry into the submission queue; it goes to the kernel after the next turn at the latest.
    fn push(&self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry points at belongs to an operation in a slot, which is freed only
            // at its completion; a cancel, the alarm and the bell point at nothing.
            if unsafe { self.ring.borrow_mut().submission().push(entry) }.is_ok() {
                break;
            }
            // The queue is full: hand it over, and make room for what the kernel answers.
            self.submit();
            self.drain();
        }
        self.queued.set(true);
    }

    /// A turn has ended: what it has queued waits for one turn more, what the one before it has queued does not.
    pub(crate) fn turn_ended(&self) {
        if self.queued.get() && self.held.replace(true) {
            self.flush();
        }
    }

    /// Hands over what was queued, and takes what was answered at once.
    fn flush(&self) {
        if self.queued.replace(false) {
            self.held.set(false);
            self.submit();
            self.drain();
        }
    }

    fn submit(&self) {
        while !self.ring.borrow_mut().submission().is_empty() {
            if !self.enter(0) {
                return;
            }
        }
    }

    /// Hands over entries and waits for so many completions. False if the kernel takes no more now: it has
    /// no memory, or completions are waiting. The core comes again, because it looks before it sleeps, and
    /// to sleep it must come here.
    fn enter(&self, wait: usize) -> bool {
        let Err(error) = self.ring.borrow_mut().submit_and_wait(wait) else {
            return true;
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => true,
            Some(libc::EAGAIN | libc::EBUSY) => {
                self.queued.set(true);
                false
            }
            _ => {
                let message = format!("the kernel does not take its entries: {error}");
                rt::current().singleton_panicked(Panicked { task: "side ring", message });
                false
            }
        }
    }

    /// Takes every completion there is, also those that the kernel leaves undone until it is asked.
    pub(crate) fn look(&self) {
        let undone = self.ring.borrow_mut().submission().taskrun();
        if undone {
            self.enter(0);
        }
        if !self.ring.borrow_mut().completion().is_empty() {
            self.drain();
        }
    }

    fn drain(&self) {
        let mut wakers = Vec::new();
        let mut orphans = Vec::new();
        {
            let mut ring = self.ring.borrow_mut();
            let mut slots = self.slots.borrow_mut();
            for entry in ring.completion() {
                match entry.user_data() {
                    CANCEL => {}
                    ALARM => self.alarm.has_rung(),
                    BELL => {
                        self.listening.set(false);
                        self.bell.heard();
                    }
                    key => match slots.complete(Key::from_user_data(key), entry.result()) {
                        Completed::Wake(waker) => wakers.push(waker),
                        Completed::Kept => {}
                        Completed::Orphaned(operation, result) => orphans.push((operation, result)),
                    },
                }
            }
        }
        if !orphans.is_empty() {
            wakers.append(&mut self.waiters.borrow_mut());
        }
        for (operation, result) in orphans {
            operation.abandon(result);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A slot is free again.
    fn freed(&self) {
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Waker::wake);
    }

    fn wait_for_slot(&self, waker: &Waker) {
        let mut waiters = self.waiters.borrow_mut();
        // A batch asks once for each of its writes; one waker of it is enough.
        if !waiters.last().is_some_and(|last| last.will_wake(waker)) {
            waiters.push(waker.clone());
        }
    }
}

/// A ring whose work the kernel does when this thread asks for it (Linux 6.1), not by interrupting it; on an older
/// kernel a plain one.
fn ring() -> io::Result<IoUring> {
    let plain = || IoUring::builder().setup_cqsize(SIDE_COMPLETIONS).clone();
    let deferring = plain().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(SIDE_SUBMISSIONS);
    match deferring {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain().build(SIDE_SUBMISSIONS),
        built => built,
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Futures hold the side ring, so only orphans can be left here. The kernel may write into
        // their memory until it has cancelled them, some time after the ring is closed.
        self.slots.get_mut().forget();
    }
}

/// How far an operation is.
enum Progress {
    /// It has no slot yet.
    Waiting(Operation),
    Queued(Key),
    Ended,
}

/// The future of one operation.
struct Flight {
    side: Rc<Side>,
    state: Progress,
}

impl Future for Flight {
    type Output = (i32, Operation);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match std::mem::replace(&mut this.state, Progress::Ended) {
            Progress::Waiting(operation) => {
                let inserted = this.side.slots.borrow_mut().insert(operation, context.waker().clone());
                match inserted {
                    Ok(key) => {
                        let entry = this.side.slots.borrow_mut().operation(key).entry().user_data(key.user_data());
                        this.side.push(&entry);
                        this.state = Progress::Queued(key);
                    }
                    Err(operation) => {
                        this.side.wait_for_slot(context.waker());
                        this.state = Progress::Waiting(operation);
                    }
                }
                Poll::Pending
            }
            Progress::Queued(key) => {
                let found = this.side.slots.borrow_mut().poll(key, context.waker());
                match found {
                    Found::Pending => {
                        this.state = Progress::Queued(key);
                        Poll::Pending
                    }
                    Found::Done(operation, result) => {
                        this.side.freed();
                        Poll::Ready((result, operation))
                    }
                }
            }
            Progress::Ended => panic!("an operation is not polled after its end"),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let Progress::Queued(key) = self.state else { return };
        let left = self.side.slots.borrow_mut().leave(key);
        match left {
            Left::Pending => {
                self.side.push(&opcode::AsyncCancel::new(key.user_data()).build().user_data(CANCEL));
                // At once: the drop may come from outside of a turn.
                self.side.flush();
            }
            Left::Done(operation, result) => {
                operation.abandon(result);
                self.side.freed();
            }
        }
    }
}
