//! The bus role without its socket: messages, views and replies in, bytes and requests out.
//!
//! `handle_*` tells it what happened, `poll_*` asks what to do; the caller polls until it gets
//! `None` after each `handle_*`. No I/O, no clock, no waiting: it runs the same in a test.
//!
//! Invariants: signals that show an effect are queued before the reply that reports it. Whatever is
//! queued leaves in its order, except for listings (`GetManagedObjects`): one is made when it is its
//! turn to leave, so it shows every signal sent before it, and messages may pass it while it waits.
//! Nothing leaves that is longer than the bus takes: it would cut the connection.
//!
//! A panic in decoding or reading (our bug) fails that call: `decide` is pure, so the state is whole.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{debug, error, warn};

use crate::bus::announce::signals;
use crate::bus::calls::{Caller, Calls, Pending};
use crate::bus::daemon::{self, Daemon, Event};
use crate::bus::decide::{Context, Decision, Shape, decide, subject};
use crate::bus::encode::Outgoing;
use crate::bus::errors::{FAILED, LIMITS_EXCEEDED, SET_FAILED};
use crate::bus::incoming::{self, Incoming, Kind, Unreadable};
use crate::bus::listing::Listing;
use crate::bus::queue::{Out, Queue};
use crate::bus::table::Replying;
use crate::bus::tree::{Notice, Tree};
use crate::bus::value::Value;
use crate::descriptors::Descriptors;
use crate::error::{Failure, Refusal};
use crate::limits::{BUS_MESSAGE_BYTES_DEFAULT, LISTINGS_WAITING_MAX, SENDER_BYTES_MAX};
use crate::message::{Answer, CallId, Reply, Request, View, Wish};
use crate::model::ids::PoolUuid;

/// Interfaces through which properties are read.
const READERS: [&str; 2] = ["org.freedesktop.DBus.Properties", "org.freedesktop.DBus.ObjectManager"];

/// How much of what `limits` bounds is in use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Calls in flight.
    pub calls: usize,
    /// Those of the client that has most.
    pub calls_of_one: usize,
    /// Bytes of messages that wait to leave.
    pub bytes: usize,
    /// Bytes of messages and listings that wait for the client that has most.
    pub bytes_of_one: usize,
    /// Callers that wait for a listing.
    pub listings: usize,
}

/// The role's whole state.
pub struct Bus {
    tree: Tree,
    calls: Calls,
    daemon: Daemon,
    random: Box<dyn Fn() -> [u8; 16]>,
    machine_id: Option<String>,
    /// Longest message that the bus takes.
    message_max: usize,
    stopping: bool,
    /// Properties were read since `take_read` was last asked.
    read: bool,
    serial: u32,
    requests: VecDeque<Box<Request>>,
    /// Calls that want every device to be looked at and have not been passed on yet.
    refreshes: VecDeque<CallId>,
    /// All of these that are not answered.
    refreshing: BTreeSet<CallId>,
    events: VecDeque<Event>,
    out: Queue,
    /// The bus tells us which names go.
    watching: bool,
    /// The well-known name was not asked for yet, so nobody listens to us.
    unknown: bool,
}

impl Bus {
    /// Knows nothing yet. `random` gives sixteen random bytes each time, for the ids of new pools.
    pub fn new(version: &str, machine_id: Option<String>, random: impl Fn() -> [u8; 16] + 'static) -> Self {
        Self {
            tree: Tree::new(version),
            calls: Calls::default(),
            daemon: Daemon::default(),
            random: Box::new(random),
            machine_id,
            message_max: BUS_MESSAGE_BYTES_DEFAULT,
            stopping: false,
            read: false,
            serial: 0,
            requests: VecDeque::new(),
            refreshes: VecDeque::new(),
            refreshing: BTreeSet::new(),
            events: VecDeque::new(),
            out: Queue::default(),
            watching: false,
            unknown: false,
        }
    }

    /// The same, and what comes before the well-known name is asked for is announced to nobody: who finds us then asks
    /// for what there is, and the bus would be told of thousands of objects before it hears of the name.
    pub fn unknown(self) -> Self {
        Self { unknown: true, ..self }
    }

    /// The same, on a bus that takes messages of this length.
    pub fn with_message_max(self, message_max: usize) -> Self {
        Self { message_max, ..self }
    }

    /// All objects.
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    // ---- what happened -------------------------------------------------------------------------

    /// A whole message came from the bus, with its descriptors. Its bytes are used up.
    ///
    /// # Errors
    /// The bytes are no message: whoever sent them cannot be answered.
    pub fn handle_message(&mut self, bytes: &mut [u8], descriptors: Descriptors) -> Result<(), Unreadable> {
        let incoming = incoming::read(bytes)?;
        match incoming.kind {
            Kind::Call => self.handle_call(incoming, descriptors),
            Kind::Answer => self.events.extend(self.daemon.handle(&incoming.message)),
            Kind::Signal => {
                if let Some(gone) = daemon::vanished(&incoming.message) {
                    self.out.forget(gone);
                }
            }
            Kind::Other => {}
        }
        Ok(())
    }

    /// Changes that belong together came from a shard.
    pub fn handle_views(&mut self, views: Vec<View>) {
        let notices = self.tree.apply(views);
        self.announce(&notices);
    }

    fn announce(&mut self, notices: &[Notice]) {
        let heard = if self.unknown { &[] } else { notices };
        for notice in heard {
            let serial = &mut self.serial;
            for signal in signals(&self.tree, notice, || next(serial)) {
                let bytes = signal.finish();
                if bytes.len() > self.message_max {
                    error!("a signal of {} bytes is left out, the bus takes {}", bytes.len(), self.message_max);
                    continue;
                }
                self.out.push(None, bytes);
            }
        }
    }

    /// A call has ended. The views that show its effect came before.
    pub fn handle_reply(&mut self, reply: Reply) {
        self.refreshing.remove(&reply.call);
        let Some(pending) = self.calls.take(reply.call) else {
            return error!("a reply came to a call that is not in flight (call={})", reply.call.0);
        };
        self.conclude(&pending.caller, pending.shape, pending.subject, &reply.outcome);
    }

    /// Nobody is left who would look at devices.
    pub fn end_refreshes(&mut self) {
        self.refreshes.clear();
        for call in std::mem::take(&mut self.refreshing) {
            self.handle_reply(Reply { call, outcome: Err(Refusal::Stopping.into()) });
        }
    }

    /// Accept nothing new that changes anything; go on answering.
    pub const fn handle_stop(&mut self) {
        self.stopping = true;
    }

    /// Say hello to the bus daemon, before anything else.
    pub fn greet(&mut self) {
        let serial = self.next_serial();
        self.out.push(None, self.daemon.hello(serial));
    }

    /// Ask for the well-known name; answered by `Event::Named`.
    pub fn request_name(&mut self) {
        self.unknown = false;
        let serial = self.next_serial();
        self.out.push(None, self.daemon.request_name(serial));
    }

    /// Give the well-known name back; answered by `Event::Released`.
    pub fn release_name(&mut self) {
        let serial = self.next_serial();
        self.out.push(None, self.daemon.release_name(serial));
    }

    // ---- what to do ----------------------------------------------------------------------------

    /// The next request, for the home of `wish.pool()`.
    pub fn poll_request(&mut self) -> Option<Box<Request>> {
        self.requests.pop_front()
    }

    /// The next call for which every device is to be looked at.
    pub fn poll_refresh(&mut self) -> Option<CallId> {
        self.refreshes.pop_front()
    }

    /// The next answer of the bus daemon.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether properties were read since this was last asked.
    pub const fn take_read(&mut self) -> bool {
        std::mem::replace(&mut self.read, false)
    }

    /// Whether the bus daemon has answered.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// What leaves next. Asked when what was given before has left.
    pub fn poll_out(&mut self) -> Option<Out> {
        if let Some(caller) = self.out.poll_caller() {
            let serial = self.next_serial();
            self.out.push_listing(Listing::new(serial, &caller, &self.tree));
        }
        if self.out.is_empty() && self.watching {
            self.watching = false;
            let serial = self.next_serial();
            self.out.push(None, daemon::unwatch(serial));
        }
        self.out.poll()
    }

    /// Appends messages that are next, as long as they fit into `max` bytes.
    pub fn poll_more(&mut self, bytes: &mut Vec<u8>, max: usize) {
        self.out.poll_more(bytes, max);
    }

    /// Whether nothing waits to be sent.
    pub fn is_drained(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether so much waits to be sent that no more calls should be read.
    pub const fn is_congested(&self) -> bool {
        self.out.is_congested()
    }

    /// Whether every call has been answered, or at least its answer is queued.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// How much of what is bounded is in use.
    pub fn load(&self) -> Load {
        let ((calls, calls_of_one), (bytes, bytes_of_one, listings)) = (self.calls.counts(), self.out.counts());
        Load { calls, calls_of_one, bytes, bytes_of_one, listings }
    }

    // ---- calls -----------------------------------------------------------------------------------

    fn handle_call(&mut self, call: Incoming, descriptors: Descriptors) {
        let message = &call.message;
        let (Some(sender), Some(serial)) = (message.sender(), message.get_serial()) else {
            return warn!("a call without a sender cannot be answered");
        };
        let caller = Caller { sender: (&*sender).into(), serial, no_reply: message.get_no_reply() };
        debug!("{} calls {:?} {:?} on {:?}", sender, message.interface(), message.member(), message.path());
        if self.out.is_over(&caller.sender) {
            return self.reply_limit(&caller, "bytes that wait for one client", SENDER_BYTES_MAX);
        }
        if message.interface().is_some_and(|interface| READERS.contains(&&*interface)) {
            self.read = true;
            let notices = self.tree.catch_up();
            self.announce(&notices);
        }
        let context = Context {
            tree: &self.tree,
            descriptors: descriptors.count(),
            random: &*self.random,
            busy: &|pool| self.calls.about(pool),
            machine_id: self.machine_id.as_deref(),
        };
        // `decide` changes nothing, so nothing is left half changed.
        let decision = catch_unwind(AssertUnwindSafe(|| decide(&context, call)));
        let bug = || Decision::Error(FAILED, "a bug in stratisd, see its log".to_owned());
        self.carry_out(caller, decision.unwrap_or_else(|_panic| bug()), descriptors);
    }

    fn carry_out(&mut self, caller: Caller, decision: Decision, descriptors: Descriptors) {
        match decision {
            Decision::Values(values) => self.reply(&caller, &values),
            Decision::Objects => self.list(caller),
            Decision::Wish(wish, shape) => self.request(caller, *wish, shape, descriptors),
            Decision::Refresh => self.refresh(caller),
            Decision::Known(answer, shape) => self.conclude(&caller, shape, uuid::Uuid::nil(), &Ok(answer)),
            Decision::Refused(refusal, shape) => self.refuse(&caller, shape, refusal),
            Decision::Error(name, text) => self.reply_error(&caller, name, &text),
        }
    }

    fn request(&mut self, caller: Caller, wish: Wish, shape: Shape, descriptors: Descriptors) {
        let pending = Pending { caller, shape, pool: wish.pool(), subject: subject(&wish) };
        if let Some(call) = self.push_call(pending) {
            self.requests.push_back(Box::new(Request { call, wish, descriptors }));
        }
    }

    fn refresh(&mut self, caller: Caller) {
        let (pool, subject) = (PoolUuid(uuid::Uuid::nil()), uuid::Uuid::nil());
        if let Some(call) = self.push_call(Pending { caller, shape: Shape::Code, pool, subject }) {
            self.refreshing.insert(call);
            self.refreshes.push_back(call);
        }
    }

    /// Takes a call in, or answers that it is not taken.
    fn push_call(&mut self, pending: Pending) -> Option<CallId> {
        if self.stopping {
            self.refuse(&pending.caller, pending.shape, Refusal::Stopping);
            return None;
        }
        if let Err(reached) = self.calls.admit(&pending.caller.sender) {
            self.reply_limit(&pending.caller, reached.0, reached.1);
            return None;
        }
        Some(self.calls.push(pending))
    }

    fn refuse(&mut self, caller: &Caller, shape: Shape, refusal: Refusal) {
        self.conclude(caller, shape, uuid::Uuid::nil(), &Err(Failure::Refused(refusal)));
    }

    /// Forms the answer to a call in the shape of the revision that was called.
    fn conclude(&mut self, caller: &Caller, shape: Shape, subject: uuid::Uuid, outcome: &Result<Answer, Failure>) {
        let (answer, code, text) = match outcome {
            Ok(answer) => (answer, 0, "Ok".to_owned()),
            Err(failure) => (&Answer::Identity, 1, failure.to_string()),
        };
        match shape {
            Shape::Call(first) => {
                let first = first(&Replying { tree: &self.tree, subject, answer });
                self.reply(caller, &[first, Value::U16(code), Value::Text(text)]);
            }
            Shape::Code => self.reply(caller, &[Value::U16(code), Value::Text(text)]),
            Shape::Set if code == 0 => self.reply(caller, &[]),
            Shape::Set => self.reply_error(caller, SET_FAILED, &text),
        }
    }

    // ---- replies -----------------------------------------------------------------------------------

    fn reply(&mut self, caller: &Caller, values: &[Value]) {
        if caller.no_reply {
            return;
        }
        let serial = self.next_serial();
        self.push(caller, Outgoing::returns(serial, &caller.sender, caller.serial, values));
    }

    fn reply_error(&mut self, caller: &Caller, name: &str, text: &str) {
        if caller.no_reply {
            return;
        }
        let serial = self.next_serial();
        self.push(caller, Outgoing::error(serial, &caller.sender, caller.serial, name, text));
    }

    fn reply_limit(&mut self, caller: &Caller, what: &'static str, max: usize) {
        self.reply_error(caller, LIMITS_EXCEEDED, &Refusal::Full { what, max }.to_string());
    }

    fn push(&mut self, caller: &Caller, message: Outgoing) {
        let bytes = message.finish();
        if bytes.len() > self.message_max {
            return self.reply_too_long(caller, bytes.len());
        }
        self.out.push(Some(&caller.sender), bytes);
    }

    fn reply_too_long(&mut self, caller: &Caller, bytes: usize) {
        let max = self.message_max;
        let text = format!(
            "the answer takes {bytes} bytes and the message bus {max} in one message: raise max_message_size of the \
             bus, and --bus-message-max of stratisd with it"
        );
        self.reply_error(caller, LIMITS_EXCEEDED, &text);
    }

    /// A listing is made when the socket is free for it; its length is known before.
    fn list(&mut self, caller: Caller) {
        if caller.no_reply {
            return;
        }
        let bytes = Listing::size(&self.tree);
        if bytes > self.message_max {
            return self.reply_too_long(&caller, bytes);
        }
        if let Err(caller) = self.out.push_caller(caller, bytes) {
            return self.reply_limit(&caller, "listings that wait", LISTINGS_WAITING_MAX);
        }
        if !self.watching && self.out.has_waiting_behind() {
            self.watching = true;
            let serial = self.next_serial();
            self.out.push(None, daemon::watch(serial));
        }
    }

    fn next_serial(&mut self) -> u32 {
        next(&mut self.serial)
    }
}

/// Serials count up and are never 0.
const fn next(serial: &mut u32) -> u32 {
    *serial = match serial.checked_add(1) {
        Some(serial) => serial,
        None => 1,
    };
    *serial
}
