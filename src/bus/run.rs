//! The role as it runs on its core: connection, mesh and core machine, put together.
//!
//! ```text
//! Settling --every shard Settled, or a second is over--> Naming --the name is ours--> Serving
//!     Naming --somebody else has it--> Waiting --a moment is over--> Naming, for a second in all
//!     any of these --stop--> Stopping --every shard Stopped--> Leaving --name given back--> end
//! ```
//!
//! The name is asked for when every pool that was found at the start is in the tree, so a client that finds us finds
//! them; but pools that take longer than a second keep nobody waiting, and appear when they have come up. A daemon that
//! was killed a moment ago may still have the name, because the bus has not noticed yet.
//!
//! Invariants: what comes after the name was asked for is announced, and nothing before that; the connection is closed
//! only after every call that was accepted has been answered, because the answer to `ReleaseName` comes after all else
//! was read.
//!
//! A lost connection, a message that cannot be read, or a panic in one of the two tasks ends the
//! role with an error; the daemon is of no use without its bus.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use cores::clock::Instant;
use cores::rt::{self, Join, Panicked};
use cores::side::{Buffer, Fd, Side};
use log::{error, info, warn};
use nix::sys::socket::{Shutdown, shutdown};
use ring::{Endpoint, Lane};
use thiserror::Error;

use crate::bus::address::{self, AddressFault};
use crate::bus::auth::{Auth, AuthFault};
use crate::bus::core::Bus;
use crate::bus::daemon::{Event, NAME, NameFault};
use crate::bus::incoming::Unreadable;
use crate::bus::queue::Out;
use crate::bus::read::read;
use crate::bus::write::write;
use crate::descriptors::Descriptors;
use crate::error::{Failure, Refusal};
use crate::limits::{
    BUS_SEND_BYTES, LOOK_AGAIN_AFTER_S, MESH_RECEIVE_MAX, NAME_AGAIN_AFTER_MS, NAME_REFUSED_MAX, OUTBOX_MAX,
    SETTLE_WAIT_MS,
};
use crate::message::{Answer, CallId, Claim, Claimed, Message, Reply, Request};
use crate::model::ids::PoolUuid;

/// What the role must know.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// Where the bus is: `address::system_bus()`.
    pub address: String,
    /// How many shards there are.
    pub shards: usize,
    /// The endpoint of the first; the others follow.
    pub first_shard: usize,
    /// The endpoint of the event core.
    pub event: usize,
    /// What the property `Version` says.
    pub version: String,
    /// Longest message that the bus takes.
    pub message_max: usize,
}

/// Why the role ended.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the text of each variant is its documentation")]
pub enum BusFault {
    #[error(transparent)]
    Address(#[from] AddressFault),
    #[error(transparent)]
    Auth(#[from] AuthFault),
    #[error(transparent)]
    Name(#[from] NameFault),
    #[error("the bus has closed the connection")]
    Closed,
    #[error("cannot {doing} the bus connection: {error}")]
    Socket { doing: &'static str, error: io::Error },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Runs the role until `stop` resolves and everything is answered, or until it fails.
///
/// `on_claim` is the directory: it is given a shard's endpoint and claim, and gives answers with
/// their endpoints. `home` gives the endpoint of a pool's shard. Whoever resolves `stop` also sends
/// `Message::Stop` to the shards.
///
/// # Errors
/// `BusFault`, whose text names the cure where there is one. The process should exit with 1.
pub async fn run(
    config: BusConfig,
    endpoint: Rc<Endpoint<Message>>,
    on_claim: impl FnMut(usize, Claim) -> Vec<(usize, Claimed)> + 'static,
    home: impl Fn(PoolUuid) -> usize + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), BusFault> {
    let side = rt::side();
    let socket = OwnedFd::from(connect(&side, &config.address).await?);
    let socket: Fd = Rc::new(socket);
    let shards = config.first_shard..config.first_shard + config.shards;
    let ways = Ways { home: Box::new(home), event: config.event, shards };
    let bus = Bus::new(&config.version, machine_id(), rt::random).with_message_max(config.message_max).unknown();
    let shared = Rc::new(Shared::new(bus, endpoint, ways));
    shared.with(Bus::greet);
    let reader = rt::spawn("bus read", read(side.clone(), socket.clone(), shared.clone()));
    let writer = rt::spawn("bus write", write(side, socket.clone(), shared.clone()));
    let heard = Heard::default();
    let patience = Box::pin(rt::sleep(Duration::from_millis(SETTLE_WAIT_MS)));
    let mut role =
        Role { config, shared, on_claim, reader, writer, phase: Phase::Settling, heard, patience, refused: 0 };
    let ended = role.serve(pin!(stop)).await;
    role.shared.leave();
    if ended.is_ok() {
        // What is queued still goes out; then the writer ends by itself.
        (&mut role.writer).await??;
    }
    if let Err(errno) = shutdown(socket.as_raw_fd(), Shutdown::Both) {
        // The other side may have gone first.
        info!("the bus connection was closed already: {errno}");
    }
    ended
}

async fn connect(side: &Rc<Side>, address: &str) -> Result<UnixStream, BusFault> {
    let stream = address::connect(address)?;
    let socket: Fd = Rc::new(stream.try_clone().map_err(|error| BusFault::Socket { doing: "open", error })?.into());
    let mut auth = Auth::new(nix::unistd::getuid().as_raw());
    loop {
        while let Some(bytes) = auth.poll_bytes() {
            let count = bytes.len();
            // A few dozen bytes into an empty socket: taken whole, or not at all.
            let (result, _) = side.send(&socket, Buffer::from(bytes), 0).await;
            match result {
                Ok(sent) if sent == count => {}
                Ok(_) => return Err(BusFault::Closed),
                Err(error) => return Err(BusFault::Socket { doing: "write", error }),
            }
        }
        if auth.is_done() {
            info!("the bus has let us in (address={address} descriptors={})", auth.carries_descriptors());
            return Ok(stream);
        }
        let (result, bytes) = side.receive(&socket, Buffer::aligned(512, 8)).await;
        match result {
            Ok((0, _)) => return Err(BusFault::Closed),
            Ok((count, _)) => auth.handle_bytes(&bytes[..count])?,
            Err(error) => return Err(BusFault::Socket { doing: "read", error }),
        }
    }
}

/// Two small files that never change while the machine runs; read once, before anything is served.
fn machine_id() -> Option<String> {
    let read = |path| std::fs::read_to_string(path).ok();
    let text = read("/etc/machine-id").or_else(|| read("/var/lib/dbus/machine-id"))?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

// ---- what the tasks share ------------------------------------------------------------------------

/// Wakes one task of this core.
#[derive(Default)]
struct Bell(Cell<Option<Waker>>);

impl Bell {
    fn ring(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }

    fn arm(&self, context: &Context<'_>) {
        self.0.set(Some(context.waker().clone()));
    }
}

/// Where messages go.
struct Ways {
    home: Box<dyn Fn(PoolUuid) -> usize>,
    event: usize,
    /// All shards.
    shards: Range<usize>,
}

/// The core machine, and how the tasks of this role tell each other that it has changed.
pub(super) struct Shared {
    bus: RefCell<Bus>,
    endpoint: Rc<Endpoint<Message>>,
    ways: Ways,
    leaving: Cell<bool>,
    /// When the shards were last told to look at sizes in use.
    looked: Cell<Option<Instant>>,
    /// The writer: there is something to send.
    writer: Bell,
    /// The reader: there is room again.
    reader: Bell,
    /// The role: the bus daemon has answered.
    role: Bell,
}

impl Shared {
    fn new(bus: Bus, endpoint: Rc<Endpoint<Message>>, ways: Ways) -> Self {
        let bell = Bell::default;
        let (leaving, looked) = (Cell::new(false), Cell::new(None));
        let bus = RefCell::new(bus);
        Self { bus, endpoint, ways, leaving, looked, writer: bell(), reader: bell(), role: bell() }
    }

    /// Tells the core machine something, and hands on what it says.
    fn with<T>(&self, tell: impl FnOnce(&mut Bus) -> T) -> T {
        let told = tell(&mut self.bus.borrow_mut());
        self.hand_on();
        told
    }

    /// A message came. What it leads to waits for `hand_on`.
    pub(super) fn handle_message(&self, bytes: &mut [u8], descriptors: Descriptors) {
        if let Err(unreadable) = self.bus.borrow_mut().handle_message(bytes, descriptors) {
            // Its bounds were right, so the next one can be read.
            error!("a message is left out: {unreadable}");
        }
    }

    /// Requests go to their shards, bytes and answers to the tasks that wait for them.
    pub(super) fn hand_on(&self) {
        loop {
            let request = self.bus.borrow_mut().poll_request();
            let Some(request) = request else { break };
            self.send(request);
        }
        loop {
            let call = self.bus.borrow_mut().poll_refresh();
            let Some(call) = call else { break };
            if self.endpoint.send(self.ways.event, Lane::Normal, Message::Refresh(call)).is_err() {
                self.full(call, "the way to the event core");
            }
        }
        if self.bus.borrow_mut().take_read() {
            self.look();
        }
        if !self.bus.borrow().is_drained() {
            self.writer.ring();
        }
        if self.bus.borrow().has_event() {
            self.role.ring();
        }
    }

    /// Somebody reads: lets the shards look at sizes in use, unless they just did. What was read is
    /// answered with what is known now; changes are announced, and the next read shows them.
    fn look(&self) {
        let now = rt::now();
        if self.looked.get().is_some_and(|last| now.since(last).as_secs() < LOOK_AGAIN_AFTER_S) {
            return;
        }
        self.looked.set(Some(now));
        for shard in self.ways.shards.clone() {
            if self.endpoint.send(shard, Lane::Normal, Message::Look).is_err() {
                warn!("a shard has too much to do to look at sizes in use (endpoint={shard})");
            }
        }
    }

    /// Pools that have come up know their sizes in use from then, a moment ago. Who lists all objects as soon as the
    /// name is there does not share the machine with a second look at each.
    fn have_looked(&self) {
        if self.bus.borrow().tree().pools().next().is_some() {
            self.looked.set(Some(rt::now()));
        }
    }

    fn send(&self, request: Box<Request>) {
        let (call, to) = (request.call, (self.ways.home)(request.wish.pool()));
        if self.endpoint.send(to, Lane::Normal, Message::Request(request)).is_err() {
            self.full(call, "the way to a shard");
        }
    }

    /// A call cannot be passed on.
    fn full(&self, call: CallId, what: &'static str) {
        let refusal = Refusal::Full { what, max: OUTBOX_MAX };
        self.bus.borrow_mut().handle_reply(Reply { call, outcome: Err(Failure::Refused(refusal)) });
    }

    /// Resolves when more calls may be read.
    pub(super) async fn room(&self) {
        poll_fn(|context| {
            if self.leaving.get() || !self.bus.borrow().is_congested() {
                return Poll::Ready(());
            }
            self.reader.arm(context);
            Poll::Pending
        })
        .await;
    }

    /// Resolves with what to send next; `None` when we leave.
    pub(super) async fn to_send(&self) -> Option<Out> {
        poll_fn(|context| {
            let mut bus = self.bus.borrow_mut();
            if let Some(mut out) = bus.poll_out() {
                if let Out::Bytes(bytes) = &mut out {
                    bus.poll_more(bytes, BUS_SEND_BYTES);
                }
                return Poll::Ready(Some(out));
            }
            if self.leaving.get() {
                return Poll::Ready(None);
            }
            self.writer.arm(context);
            Poll::Pending
        })
        .await
    }

    /// Something was sent, so there may be room.
    pub(super) fn sent(&self) {
        self.reader.ring();
    }

    /// Whether the end of the connection is what we want.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    fn leave(&self) {
        self.leaving.set(true);
        self.writer.ring();
        self.reader.ring();
    }
}

// ---- the role --------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Settling,
    Naming,
    Waiting,
    Serving,
    Stopping,
    Leaving,
    Gone,
}

struct Role<C> {
    config: BusConfig,
    shared: Rc<Shared>,
    on_claim: C,
    reader: Join<Result<(), BusFault>>,
    writer: Join<Result<(), BusFault>>,
    phase: Phase,
    heard: Heard,
    /// Ends when pools that are not settled by then keep nobody waiting any more; later, when the name is asked for
    /// again.
    patience: Pin<Box<dyn Future<Output = ()>>>,
    /// How often the name was somebody else's.
    refused: u32,
}

/// Shards, by endpoint, that have said so. They may say `Stopped` before we are told to stop.
#[derive(Default)]
struct Heard {
    settled: BTreeSet<usize>,
    /// They had their time.
    late: bool,
    stopped: BTreeSet<usize>,
    /// How many have taken in a look at every device.
    refreshed: BTreeMap<CallId, usize>,
}

/// What woke the role.
enum Woken {
    Mesh,
    Bus,
    Stop,
    Late,
    Ended(Result<(), BusFault>),
}

impl<C: FnMut(usize, Claim) -> Vec<(usize, Claimed)>> Role<C> {
    async fn serve(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), BusFault> {
        let mut batch = Vec::new();
        self.advance();
        while self.phase != Phase::Gone {
            let stopping = matches!(self.phase, Phase::Stopping | Phase::Leaving);
            match self.woken(stop.as_mut(), !stopping).await {
                Woken::Mesh => {
                    while self.shared.endpoint.receive(&mut batch, MESH_RECEIVE_MAX) > 0 {
                        rt::count_messages(batch.len());
                        batch.drain(..).for_each(|(from, message)| self.handle(from, message));
                        rt::yield_now().await;
                    }
                }
                Woken::Bus => {}
                Woken::Late if self.phase == Phase::Waiting => self.ask_for_name(),
                Woken::Late => self.heard.late = true,
                Woken::Stop => {
                    self.phase = Phase::Stopping;
                    self.shared.with(Bus::handle_stop);
                }
                Woken::Ended(ended) => return ended.and(Err(BusFault::Closed)),
            }
            self.advance();
            self.handle_events()?;
        }
        Ok(())
    }

    async fn woken(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>, heed_stop: bool) -> Woken {
        let endpoint = self.shared.endpoint.clone();
        let mut mesh = pin!(endpoint.wait());
        poll_fn(|context| {
            for task in [&mut self.reader, &mut self.writer] {
                if let Poll::Ready(ended) = Pin::new(task).poll(context) {
                    return Poll::Ready(Woken::Ended(ended.unwrap_or_else(|panic| Err(panic.into()))));
                }
            }
            if heed_stop && stop.as_mut().poll(context).is_ready() {
                return Poll::Ready(Woken::Stop);
            }
            if self.shared.bus.borrow().has_event() {
                return Poll::Ready(Woken::Bus);
            }
            if matches!(self.phase, Phase::Settling | Phase::Waiting) && self.patience.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Woken::Late);
            }
            self.shared.role.arm(context);
            mesh.as_mut().poll(context).map(|()| Woken::Mesh)
        })
        .await
    }

    fn handle(&mut self, from: usize, message: Message) {
        match message {
            Message::Views(views) => self.shared.with(|bus| bus.handle_views(views)),
            Message::Reply(reply) => self.shared.with(|bus| bus.handle_reply(*reply)),
            Message::Claim(claim) => {
                for (to, claimed) in (self.on_claim)(from, *claim) {
                    let sent = self.shared.endpoint.send(to, Lane::Urgent, Message::Claimed(Box::new(claimed)));
                    assert!(sent.is_ok(), "claims are bounded by calls, so their answers fit the outbox");
                }
            }
            Message::Settled if self.is_shard(from) => self.settled(from),
            Message::Stopped if self.is_shard(from) => drop(self.heard.stopped.insert(from)),
            Message::Refreshed(call) => self.refreshed(call),
            Message::Settled | Message::Stopped => error!("an endpoint that is no shard reports (from={from})"),
            Message::Stop => {}
            Message::Request(_) | Message::Event(_) | Message::Claimed(_) | Message::Look | Message::Refresh(_) => {
                error!("a message for others came to the bus (from={from})");
            }
        }
    }

    /// All pools of one shard more are up, listed or left out.
    fn settled(&mut self, shard: usize) {
        self.heard.settled.insert(shard);
        if self.heard.settled.len() == self.config.shards {
            info!("every pool that was found at the start is settled");
        }
    }

    /// One shard more has taken in a look at every device.
    fn refreshed(&mut self, call: CallId) {
        let count = self.heard.refreshed.entry(call).or_default();
        *count += 1;
        if *count >= self.config.shards {
            self.heard.refreshed.remove(&call);
            self.shared.with(|bus| bus.handle_reply(Reply { call, outcome: Ok(Answer::Set) }));
        }
    }

    fn is_shard(&self, endpoint: usize) -> bool {
        self.shared.ways.shards.contains(&endpoint)
    }

    /// The next step, once every shard was heard.
    fn advance(&mut self) {
        match self.phase {
            Phase::Settling if self.heard.late || self.heard.settled.len() >= self.config.shards => {
                self.shared.have_looked();
                self.ask_for_name();
            }
            Phase::Stopping if self.heard.stopped.len() >= self.config.shards => {
                self.phase = Phase::Leaving;
                self.shared.with(Bus::end_refreshes);
                if !self.shared.bus.borrow().is_idle() {
                    error!("every shard has stopped and calls are not answered: a bug");
                }
                self.shared.with(Bus::release_name);
            }
            Phase::Settling | Phase::Naming | Phase::Waiting | Phase::Serving => {}
            Phase::Stopping | Phase::Leaving | Phase::Gone => {}
        }
    }

    fn ask_for_name(&mut self) {
        self.phase = Phase::Naming;
        self.shared.with(Bus::request_name);
    }

    fn handle_events(&mut self) -> Result<(), BusFault> {
        loop {
            let event = self.shared.bus.borrow_mut().poll_event();
            match event {
                None => return Ok(()),
                Some(Event::Named(Err(NameFault::Taken)))
                    if self.phase == Phase::Naming && self.refused < NAME_REFUSED_MAX =>
                {
                    if self.refused == 0 {
                        info!("{NAME} has an owner, who may have just ended: it is asked for again for a while");
                    }
                    self.refused += 1;
                    self.phase = Phase::Waiting;
                    self.patience = Box::pin(rt::sleep(Duration::from_millis(NAME_AGAIN_AFTER_MS)));
                }
                Some(Event::Named(named)) => {
                    named?;
                    info!("serving {NAME}");
                    if self.phase == Phase::Naming {
                        self.phase = Phase::Serving;
                    }
                }
                Some(Event::Released) => self.phase = Phase::Gone,
            }
        }
    }
}
