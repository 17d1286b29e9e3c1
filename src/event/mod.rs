//! The event core: what happens outside becomes messages.
//!
//! At the start it finds every device with a Stratis signature, reads whose it is, and reports it to
//! that pool's home; when all are reported it says so. From then on it tells what happens to devices
//! and to device-mapper, and looks at every device again when a client asks for that, until the signal to stop,
//! which it passes on; it ends when every shard has.
//!
//! Invariant: devices, device-mapper and the signal are waited for side by side: one that hangs holds
//! up no other. Deliberately absent: any state of pools. Reporting a thing twice is harmless.

mod devices;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cores::rt;
use ring::{Endpoint, Lane};

use crate::limits::MESH_RECEIVE_MAX;
use crate::message::{CallId, Event, Message};
use crate::model::ids::PoolUuid;
use crate::sys::Sys;

/// How long to leave an outbox alone that is full. It holds 65,536 messages to a shard that is far behind.
const PAUSE_WHEN_FULL: Duration = Duration::from_millis(10);

/// Where the other roles are in the mesh.
#[derive(Clone, Debug)]
pub struct Places {
    /// The bus core.
    pub bus: usize,
    /// The shards.
    pub shards: std::ops::Range<usize>,
}

/// What the parts of the role work with.
struct Core<'a, S, H> {
    sys: &'a S,
    endpoint: &'a Endpoint<Message>,
    places: &'a Places,
    home: H,
    asked: Asked,
    late: devices::Looks,
}

/// Calls that want every device to be looked at, and how to wake who does that.
#[derive(Default)]
struct Asked {
    calls: RefCell<VecDeque<CallId>>,
    waker: Cell<Option<Waker>>,
}

/// Runs the role until the daemon has stopped. `home` gives a pool's place in the mesh; `stop` ends
/// when the daemon is asked to stop.
pub async fn run<S: Sys>(
    sys: &S,
    endpoint: Rc<Endpoint<Message>>,
    places: Places,
    home: impl Fn(PoolUuid) -> usize,
    stop: impl Future<Output = ()>,
) {
    let core = Core {
        sys,
        endpoint: &endpoint,
        places: &places,
        home,
        asked: Asked::default(),
        late: devices::Looks::default(),
    };
    core.listen_until(stop).await;
    log::info!("stopping: nothing new is accepted");
    for to in std::iter::once(places.bus).chain(places.shards.clone()) {
        core.send(to, Message::Stop).await;
    }
    let mut left = places.shards.len();
    let mut batch = Vec::new();
    while left > 0 || endpoint.depths().queued_out > 0 {
        endpoint.wait().await;
        while endpoint.receive(&mut batch, MESH_RECEIVE_MAX) > 0 {
            left -= batch.drain(..).filter(|(_, message)| matches!(message, Message::Stopped)).count();
        }
    }
}

impl Asked {
    fn push(&self, call: CallId) {
        self.calls.borrow_mut().push_back(call);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<CallId> {
        if let Some(call) = self.calls.borrow_mut().pop_front() {
            return Poll::Ready(call);
        }
        self.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl<S: Sys, H: Fn(PoolUuid) -> usize> Core<'_, S, H> {
    /// Listens to everything side by side until `stop` ends.
    async fn listen_until(&self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut devices = pin!(devices::run(self));
        let mut dm = pin!(self.thin_pool_events());
        let mut mesh = pin!(self.empty_outboxes());
        poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            // These never end.
            let _listening = (dm.as_mut().poll(cx), devices.as_mut().poll(cx), mesh.as_mut().poll(cx));
            Poll::Pending
        })
        .await;
    }

    /// Events of thin pools go to the home of their pool.
    async fn thin_pool_events(&self) {
        loop {
            for pool in self.sys.thin_pool_events().await {
                self.tell((self.home)(pool), Event::ThinPool(pool)).await;
            }
        }
    }

    /// Moves what waits for room in a ring when there is some.
    async fn empty_outboxes(&self) {
        let mut batch = Vec::new();
        loop {
            self.endpoint.wait().await;
            while self.endpoint.receive(&mut batch, MESH_RECEIVE_MAX) > 0 {
                for (from, message) in batch.drain(..) {
                    match message {
                        Message::Refresh(call) => self.asked.push(call),
                        other => {
                            log::error!("nobody sends this to the event core before it stops (from={from}): {other:?}");
                        }
                    }
                }
            }
        }
    }

    async fn tell(&self, to: usize, event: Event) {
        self.send(to, Message::Event(Box::new(event))).await;
    }

    async fn send(&self, to: usize, message: Message) {
        let mut unsent = message;
        while let Err(full) = self.endpoint.send(to, Lane::Urgent, unsent) {
            unsent = full.message;
            rt::sleep(PAUSE_WHEN_FULL).await;
        }
    }
}
