//! Where clients come in: the bus core's own machine (messages, table, tree, queue) without its socket.
//!
//! A message that a client sends goes in as bytes, and what leaves is read as a client would: signals in their order,
//! replies by who is waiting. Reads are answered at once, changes go to the shards.
//!
//! Invariant: what leaves is taken in the order in which it leaves, so a reply is heard after the signals before it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use cores::clock::Instant;
use cores::rt;
use dbus::{Message, MessageType};
use stratisd::bus::core::{Bus, Load};
use stratisd::bus::queue::Out;
use stratisd::descriptors::Descriptors;
use stratisd::error::{Failure, Why};
use stratisd::limits::LOOK_AGAIN_AFTER_S;
use stratisd::message::{Answer, CallId, Reply, View, Wish};

use crate::support::client::{BusError, Objects, Properties, Signal, method, null, objects_of};
use crate::support::picture::Source;
use crate::support::raw::bytes_of;
use crate::support::value::Value;
use crate::support::{OBJECT_MANAGER, PROPERTIES, TOP};
use crate::world::Driver;

/// Who reads.
const READER: &str = ":1.1";

/// The machine of the bus core, and who waits for what.
pub(crate) struct Office {
    bus: RefCell<Bus>,
    serial: Cell<u32>,
    looked: Cell<Option<Instant>>,
    signals: RefCell<Vec<Signal>>,
    /// Replies that nobody has taken, by client and serial.
    replies: RefCell<BTreeMap<(String, u32), Message>>,
    /// Nobody reads what leaves.
    unread: Cell<bool>,
    /// What shards work on.
    pub(crate) flying: RefCell<BTreeMap<CallId, Wish>>,
    /// Requests that ended with a fault of the machine, in words.
    pub(crate) faults: RefCell<Vec<String>>,
    /// Messages that came from clients.
    pub(crate) calls: Cell<u64>,
    /// Requests to pools that said they take none.
    unheeded: RefCell<BTreeSet<CallId>>,
    /// What was done for one of these all the same.
    pub(crate) done: RefCell<Vec<Wish>>,
}

impl Office {
    /// One that has just opened.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            bus: RefCell::new(Bus::new("3.9.2", None, rt::random)),
            serial: Cell::new(0),
            looked: Cell::default(),
            signals: RefCell::default(),
            replies: RefCell::default(),
            unread: Cell::new(false),
            flying: RefCell::default(),
            faults: RefCell::default(),
            calls: Cell::new(0),
            unheeded: RefCell::default(),
            done: RefCell::default(),
        })
    }

    /// A client sends a call; with it comes a descriptor if it announces one. Gives back its serial.
    pub(crate) fn send(&self, driver: Option<&Driver>, client: &str, mut call: Message, descriptor: bool) -> u32 {
        let serial = self.serial.get() + 1;
        self.serial.set(serial);
        self.calls.set(self.calls.get() + 1);
        call.set_serial(serial);
        call.set_sender(Some(client.into()));
        let descriptors: Vec<std::os::fd::OwnedFd> = descriptor.then(|| null().into()).into_iter().collect();
        let mut bytes = bytes_of(&call);
        let known = self.bus.borrow_mut().handle_message(&mut bytes, Descriptors::from(descriptors));
        known.expect("what clients send here is well-formed");
        if let Some(driver) = driver {
            self.hand_on(driver);
        }
        self.take_out();
        serial
    }

    /// The reply to a call, if it has come. It is taken out.
    pub(crate) fn reply(&self, client: &str, serial: u32) -> Option<Message> {
        self.replies.borrow_mut().remove(&(client.to_owned(), serial))
    }

    /// A client goes: whatever waits for it is dropped.
    pub(crate) fn leave(&self, client: &str) {
        let bus = "org.freedesktop.DBus";
        let signal = Message::new_signal("/org/freedesktop/DBus", bus, "NameOwnerChanged").expect("well-formed");
        let mut signal = signal.append3(client, client, "");
        signal.set_serial(1);
        signal.set_sender(Some(bus.into()));
        let told = self.bus.borrow_mut().handle_message(&mut bytes_of(&signal), Descriptors::default());
        told.expect("a signal is well-formed");
        self.replies.borrow_mut().retain(|(waits, _), _| waits != client);
    }

    /// Whether what leaves is read from now on.
    pub(crate) fn reads(&self, reads: bool) {
        self.unread.set(!reads);
        self.take_out();
    }

    /// How much of what it bounds the bus core uses.
    pub(crate) fn load(&self) -> Load {
        self.bus.borrow().load()
    }

    /// Whether nothing is in flight and nothing waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.flying.borrow().is_empty() && self.bus.borrow().is_idle()
    }

    pub(crate) fn handle_views(&self, driver: &Driver, views: Vec<View>) {
        self.bus.borrow_mut().handle_views(views);
        self.hand_on(driver);
        self.take_out();
    }

    pub(crate) fn handle_reply(&self, driver: &Driver, reply: Reply) {
        let wish = self.flying.borrow_mut().remove(&reply.call);
        let asked = self.unheeded.borrow_mut().remove(&reply.call);
        let changed = !matches!(reply.outcome, Err(_) | Ok(Answer::Identity));
        // It may have been stopped and started meanwhile.
        let done = wish.clone().filter(|wish| asked && changed && is_refused(driver, wish));
        self.done.borrow_mut().extend(done);
        if let Err(Failure::Faulted(fault)) = &reply.outcome
            && !wish.as_ref().is_some_and(|wish| has_reason(driver, wish, &fault.why))
        {
            self.faults.borrow_mut().push(format!("{wish:?}: {fault}"));
        }
        self.bus.borrow_mut().handle_reply(reply);
        self.hand_on(driver);
        self.take_out();
    }

    fn hand_on(&self, driver: &Driver) {
        while let Some(request) = self.next_request() {
            if is_refused(driver, &request.wish) {
                self.unheeded.borrow_mut().insert(request.call);
            }
            self.flying.borrow_mut().insert(request.call, request.wish.clone());
            driver.send(request);
        }
        loop {
            let call = self.bus.borrow_mut().poll_refresh();
            let Some(call) = call else { break };
            driver.send_refresh(call);
        }
        let now = rt::now();
        let pause = Duration::from_secs(LOOK_AGAIN_AFTER_S);
        if self.bus.borrow_mut().take_read() && self.looked.get().is_none_or(|last| now.since(last) >= pause) {
            self.looked.set(Some(now));
            driver.send_look();
        }
    }

    fn next_request(&self) -> Option<Box<stratisd::message::Request>> {
        self.bus.borrow_mut().poll_request()
    }

    /// Reads all that leaves.
    fn take_out(&self) {
        while !self.unread.get() {
            let out = self.bus.borrow_mut().poll_out();
            let bytes = match out {
                None => return,
                Some(Out::Bytes(bytes)) => bytes,
                Some(Out::Listing(mut listing)) => {
                    let excerpts: Vec<_> = std::iter::from_fn(|| listing.poll_excerpts()).flatten().collect();
                    excerpts.iter().flat_map(|excerpt| excerpt.slices()).flatten().copied().collect()
                }
            };
            self.hear(Message::demarshal(&bytes).expect("what leaves is well-formed"));
        }
    }

    fn hear(&self, message: Message) {
        let path = message.path().map(|path| path.to_string()).unwrap_or_default();
        if message.msg_type() == MessageType::Signal {
            let member = message.member().expect("a signal has a member").to_string();
            self.signals.borrow_mut().push(Signal { path, member, body: Value::body(&message) });
        } else if let (Some(to), Some(serial)) = (message.destination(), message.get_reply_serial()) {
            let twice =
                self.replies.borrow_mut().insert((to.to_string(), serial), message.duplicate().expect("memory"));
            assert!(twice.is_none(), "a call is answered once: {to} {serial}");
        }
    }

    fn ask(&self, call: Message) -> Result<Message, BusError> {
        let serial = self.send(None, READER, call, false);
        let mut reply = self.reply(READER, serial).expect("reads are answered at once");
        match reply.as_result() {
            Ok(_) => Ok(reply),
            Err(error) => Err(BusError {
                name: error.name().unwrap_or_default().to_owned(),
                text: error.message().unwrap_or_default().to_owned(),
            }),
        }
    }
}

/// Whether a request may meet this with nothing wrong: a user may be faster and mount what was found unused, and a pool
/// that says that it is full has no room for what is to be written.
fn has_reason(driver: &Driver, wish: &Wish, why: &Why) -> bool {
    let full = || driver.says(&format!("{} no space", wish.pool()));
    match why {
        Why::Errno(libc::EBUSY) => true,
        Why::Errno(libc::ENOSPC) => full(),
        _ => false,
    }
}

/// Whether a pool takes no such request, by what it says.
fn is_refused(driver: &Driver, wish: &Wish) -> bool {
    let says = |what: &str| driver.says(&format!("{} {what}", wish.pool()));
    match wish {
        Wish::CreateFilesystems(..)
        | Wish::DestroyFilesystems(..)
        | Wish::AddDataDevices(..)
        | Wish::AddCacheDevices(..)
        | Wish::InitCache(..)
        | Wish::GrowDevice(..)
        | Wish::SnapshotFilesystem(..)
        | Wish::SetFilesystemName(..)
        | Wish::SetSizeLimit(..)
        | Wish::SetMerge(..)
        | Wish::SetUserInfo(..)
        | Wish::ChangeTokens(..)
        | Wish::EncryptPool(..)
        | Wish::ReencryptPool(_)
        | Wish::DecryptPool(_) => says("no_ipc_requests") || says("no_pool_changes"),
        // These do not touch what the pool has, and are taken until nothing of it may change.
        Wish::SetPoolName(..) | Wish::SetOverprovisioning(..) | Wish::SetFsLimit(..) => says("no_pool_changes"),
        Wish::CreatePool { .. }
        | Wish::DestroyPool(_)
        | Wish::StartPool { .. }
        | Wish::StopPool(_)
        | Wish::Metadata(..)
        | Wish::FilesystemMetadata(..)
        | Wish::Keys(_) => false,
    }
}

impl Source for Office {
    /// From now on; what was announced before is nobody's.
    fn subscribe(&self) {
        self.signals.take();
    }

    fn ping(&self) {}

    fn signals(&self) -> Vec<Signal> {
        self.signals.take()
    }

    fn objects(&self) -> Objects {
        objects_of(&Value::body(&self.ask(method(TOP, OBJECT_MANAGER, "GetManagedObjects")).expect("it is listed")))
    }

    fn get(&self, path: &str, interface: &str, property: &str) -> Result<Value, BusError> {
        let reply = self.ask(method(path, PROPERTIES, "Get").append2(interface, property))?;
        Ok(Value::body(&reply).remove(0).bare())
    }

    fn get_all(&self, path: &str, interface: &str) -> Result<Properties, BusError> {
        Ok(Value::body(&self.ask(method(path, PROPERTIES, "GetAll").append1(interface))?)[0].entries())
    }
}
