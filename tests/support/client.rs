//! A client of the daemon: one connection, calls that block, signals in the order they came.
//!
//! Invariant: `signals` returns exactly what arrived before the reply of the last call (and after
//! the call before it), so "the signal comes before the reply" is an ordinary assertion.
//!
//! The typed helpers have the shapes of r9; older shapes are spelled out with `call`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::fs::File;
use std::time::{Duration, Instant};

use dbus::arg::{Append, AppendAll, Arg, ReadAll, Variant};
use dbus::channel::Channel;
use dbus::message::{Message, MessageType};

use super::daemon::PATIENCE;
use super::value::Value;
use super::{NAME, OBJECT_MANAGER, PROPERTIES, TOP, interface};

/// An error reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct BusError {
    /// Its D-Bus name.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
}

impl fmt::Display for BusError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.name, self.text)
    }
}

/// A signal of the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Signal {
    /// The emitting object.
    pub(crate) path: String,
    /// Its name.
    pub(crate) member: String,
    /// Its arguments.
    pub(crate) body: Vec<Value>,
}

/// The three results of every Stratis method.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Answer<T> {
    /// What was affected.
    pub(crate) value: T,
    /// 0 or 1.
    pub(crate) code: u16,
    /// `Ok`, or an explanation.
    pub(crate) text: String,
}

impl<T: Debug> Answer<T> {
    /// The value of a call that must have succeeded.
    #[track_caller]
    pub(crate) fn done(self) -> T {
        assert_eq!((self.code, self.text.as_str()), (0, "Ok"), "the call must succeed; value {:?}", self.value);
        self.value
    }
}

impl<T: Debug + PartialEq> Answer<T> {
    /// The text of a call that must have been refused, with this neutral value.
    #[track_caller]
    pub(crate) fn refused(self, neutral: &T) -> String {
        assert_eq!(self.code, 1, "the call must be refused: {self:?}");
        assert_eq!(&self.value, neutral, "a refusal carries the neutral value: {}", self.text);
        assert!(self.text != "Ok" && !self.text.is_empty(), "a refusal says why: {:?}", self.text);
        self.text
    }
}

/// `CreatePool`: changed, (pool, devices).
pub(crate) type Created = (bool, (String, Vec<String>));
/// `StartPool`: changed, (pool, devices, filesystems).
pub(crate) type Started = (bool, (String, Vec<String>, Vec<String>));
/// Arguments of `CreatePool` r8 and r9: name, devices, keys, Clevis, journal, tag, superblock.
pub(crate) type CreatePoolArguments =
    (String, Vec<String>, Vec<(Slot, String)>, Vec<(Slot, String, String)>, (bool, u64), (bool, String), (bool, bool));
/// An optional text on the wire.
pub(crate) type Optional = (bool, String);
/// An optional token slot.
pub(crate) type Slot = (bool, u32);
/// Properties by name.
pub(crate) type Properties = BTreeMap<String, Value>;
/// Properties by interface and object.
pub(crate) type Objects = BTreeMap<String, BTreeMap<String, Properties>>;
/// One filesystem to create: name, size, size limit.
pub(crate) type Spec<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// A connection to the bus.
pub(crate) struct Client {
    channel: Channel,
    signals: RefCell<Vec<Signal>>,
    /// How long a reply may take.
    pub(crate) patience: Cell<Duration>,
}

impl Client {
    /// Connects, and subscribes to nothing.
    pub(crate) fn connect(address: &str) -> Self {
        let mut channel = Channel::open_private(address).expect("the private bus accepts connections");
        channel.register().expect("the private bus says hello");
        Self { channel, signals: RefCell::default(), patience: Cell::new(PATIENCE) }
    }

    /// Asks the bus for all signals of the daemon.
    pub(crate) fn subscribe(&self) {
        self.add_match(&format!("type='signal',sender='{NAME}'"));
    }

    /// Asks the bus to say when the owner of a name changes.
    pub(crate) fn watch_name(&self, name: &str) {
        self.add_match(&format!("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{name}'"));
    }

    fn add_match(&self, rule: &str) {
        let message = bus_call("AddMatch").append1(rule);
        self.exchange(message).expect("the bus takes the match rule");
    }

    /// The process that owns a name, if any.
    pub(crate) fn process_of(&self, name: &str) -> Option<u32> {
        let message = bus_call("GetConnectionUnixProcessID").append1(name);
        self.exchange(message).ok().map(|reply| reply.read1().expect("a process id"))
    }

    /// Whether somebody owns the name.
    pub(crate) fn has_owner(&self, name: &str) -> bool {
        let message = bus_call("NameHasOwner").append1(name);
        self.exchange(message).expect("the bus answers").read1().expect("a truth value")
    }

    /// Takes a name that is free, until this connection ends.
    pub(crate) fn own_name(&self, name: &str) {
        let reply = self.exchange(bus_call("RequestName").append2(name, 0_u32)).expect("the bus answers");
        assert_eq!(reply.read1::<u32>().ok(), Some(1), "{name} is free");
    }

    /// Waits for one message of any kind; signals of the daemon are kept.
    pub(crate) fn wait_message(&self, limit: Duration) {
        if let Ok(Some(message)) = self.channel.blocking_pop_message(limit) {
            self.keep(&message);
        }
    }

    /// Signals that came before the last reply. They are taken out.
    pub(crate) fn signals(&self) -> Vec<Signal> {
        self.signals.take()
    }

    /// Signals that come after the last reply: all that were sent before the reply to a ping now.
    pub(crate) fn late_signals(&self) -> Vec<Signal> {
        self.signals.take();
        self.ping(TOP).expect("the daemon answers a ping");
        self.signals.take()
    }

    /// Sends a message without waiting.
    pub(crate) fn send(&self, message: Message) -> u32 {
        let serial = self.channel.send(message).expect("the connection is open");
        self.channel.flush();
        serial
    }

    /// Waits for the reply to a message that was sent. `None`: the connection is lost or time is up.
    pub(crate) fn reply_to(&self, serial: u32) -> Option<Result<Message, BusError>> {
        let end = Instant::now() + self.patience.get();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(mut message) = self.channel.blocking_pop_message(left).ok()? else {
                // Nothing yet, or one part of a large message.
                if left.is_zero() {
                    return None;
                }
                continue;
            };
            if message.get_reply_serial() == Some(serial) {
                return Some(match message.as_result() {
                    Ok(_) => Ok(message),
                    Err(error) => Err(BusError {
                        name: error.name().unwrap_or_default().to_owned(),
                        text: error.message().unwrap_or_default().to_owned(),
                    }),
                });
            }
            self.keep(&message);
        }
    }

    /// Sends a message and waits for its reply; forgets the signals before it.
    pub(crate) fn exchange(&self, message: Message) -> Result<Message, BusError> {
        self.signals.take();
        let serial = self.send(message);
        self.reply_to(serial).expect("a call is answered")
    }

    /// Calls a method of the daemon and decodes the reply.
    #[track_caller]
    pub(crate) fn call<R: ReadAll>(
        &self,
        path: &str,
        interface: &str,
        member: &str,
        arguments: impl AppendAll,
    ) -> Result<R, BusError> {
        let mut message = method(path, interface, member);
        message.append_all(arguments);
        let reply = self.exchange(message)?;
        Ok(reply.read_all().unwrap_or_else(|error| panic!("{member} answered {:?}: {error}", Value::body(&reply))))
    }

    /// Calls a Stratis method that returns (value, code, text).
    #[track_caller]
    pub(crate) fn ask<T>(&self, path: &str, interface: &str, member: &str, arguments: impl AppendAll) -> Answer<T>
    where
        T: Arg + for<'a> dbus::arg::Get<'a>,
    {
        let reply: Result<(T, u16, String), BusError> = self.call(path, interface, member, arguments);
        let (value, code, text) = reply.unwrap_or_else(|error| panic!("{member} must be answered: {error}"));
        Answer { value, code, text }
    }

    fn keep(&self, message: &Message) {
        let path = message.path().map(|path| path.to_string()).unwrap_or_default();
        // The bus's own signals (name acquired, …) come from another path.
        if message.msg_type() == MessageType::Signal && path.starts_with(TOP) {
            let member = message.member().expect("a signal has a member").to_string();
            self.signals.borrow_mut().push(Signal { path, member, body: Value::body(message) });
        }
    }
}

/// Methods of the daemon.
impl Client {
    /// `Peer.Ping`.
    pub(crate) fn ping(&self, path: &str) -> Result<(), BusError> {
        self.call(path, "org.freedesktop.DBus.Peer", "Ping", ())
    }

    /// `CreatePool`, unencrypted, without room for integrity, as stratis-cli sends it.
    #[track_caller]
    pub(crate) fn create_pool<D: AsRef<str>>(&self, name: &str, devices: &[D]) -> Answer<Created> {
        let answer = self.ask(TOP, &interface("Manager", 9), "CreatePool", create_pool_arguments(name, devices));
        answer.map(created)
    }

    /// `DestroyPool`.
    #[track_caller]
    pub(crate) fn destroy_pool(&self, pool: &str) -> Answer<(bool, String)> {
        self.ask(TOP, &interface("Manager", 9), "DestroyPool", (dbus::Path::from(pool),))
    }

    /// `StartPool` without unlocking; `kind` is `uuid` or `name`.
    #[track_caller]
    pub(crate) fn start_pool(&self, id: &str, kind: &str) -> Answer<Started> {
        self.ask(TOP, &interface("Manager", 9), "StartPool", start_pool_arguments(id, kind)).map(started)
    }

    /// `StopPool`; `kind` is `uuid` or `name`.
    #[track_caller]
    pub(crate) fn stop_pool(&self, id: &str, kind: &str) -> Answer<(bool, String)> {
        self.ask(TOP, &interface("Manager", 9), "StopPool", (id, kind))
    }

    /// `CreateFilesystems` of the pool at this path.
    #[track_caller]
    pub(crate) fn create_filesystems(&self, pool: &str, specs: &[Spec<'_>]) -> Answer<(bool, Vec<(String, String)>)> {
        let interface = interface("pool", 9);
        let answer = self.ask(pool, &interface, "CreateFilesystems", (specs_argument(specs),));
        answer.map(|(changed, made): (bool, Vec<(dbus::Path<'_>, String)>)| {
            (changed, made.into_iter().map(|(path, name)| (path.to_string(), name)).collect())
        })
    }

    /// `CreateFilesystems` for one of 512 MiB; returns its path.
    #[track_caller]
    pub(crate) fn make_filesystem(&self, pool: &str, name: &str) -> String {
        let (changed, mut made) = self.create_filesystems(pool, &[(name, Some("536870912"), None)]).done();
        assert!(changed, "filesystem {name:?} is new");
        assert_eq!(made.len(), 1, "one filesystem was asked for");
        made.remove(0).0
    }

    /// `DestroyFilesystems` of the pool at this path.
    #[track_caller]
    pub(crate) fn destroy_filesystems<P: AsRef<str>>(&self, pool: &str, paths: &[P]) -> Answer<(bool, Vec<String>)> {
        let paths: Vec<_> = paths.iter().map(|path| dbus::Path::from(path.as_ref().to_owned())).collect();
        self.ask(pool, &interface("pool", 9), "DestroyFilesystems", (paths,))
    }

    /// `SnapshotFilesystem` of the pool at this path: changed, and the path of the snapshot.
    #[track_caller]
    pub(crate) fn snapshot(&self, pool: &str, origin: &str, name: &str) -> Answer<(bool, String)> {
        let arguments = (dbus::Path::from(origin.to_owned()), name);
        let answer = self.ask(pool, &interface("pool", 9), "SnapshotFilesystem", arguments);
        answer.map(|(changed, made): (bool, dbus::Path<'_>)| (changed, made.to_string()))
    }

    /// `AddDataDevs`, `InitCache` or `AddCacheDevs` of the pool at this path, on a revision.
    #[track_caller]
    pub(crate) fn give_devices<D: AsRef<str>>(
        &self,
        pool: &str,
        (method, revision): (&str, u8),
        devices: &[D],
    ) -> Answer<(bool, Vec<String>)> {
        let devices: Vec<String> = devices.iter().map(|device| device.as_ref().to_owned()).collect();
        let answer = self.ask(pool, &interface("pool", revision), method, (devices,));
        answer.map(|(changed, made): (bool, Vec<dbus::Path<'_>>)| (changed, texts(&made)))
    }

    /// `StartPool` by name, without its cache.
    #[track_caller]
    pub(crate) fn start_without_cache(&self, name: &str) -> Answer<Started> {
        let dummy = std::fs::File::open("/dev/null").expect("/dev/null can be opened");
        let arguments = (name, "name", (false, (false, 0_u32)), (false, dummy), true);
        self.ask(TOP, &interface("Manager", 9), "StartPool", arguments).map(started)
    }
}

/// Properties and objects.
impl Client {
    /// `Properties.Get`: the value inside the variant.
    pub(crate) fn get(&self, path: &str, interface: &str, property: &str) -> Result<Value, BusError> {
        let reply = self.exchange(method(path, PROPERTIES, "Get").append2(interface, property))?;
        let mut body = Value::body(&reply);
        assert_eq!(body.len(), 1, "Get returns one variant");
        assert_eq!(body[0].signature(), "v", "Get returns a variant");
        Ok(body.remove(0).bare())
    }

    /// `Properties.GetAll`.
    pub(crate) fn get_all(&self, path: &str, interface: &str) -> Result<Properties, BusError> {
        let reply = self.exchange(method(path, PROPERTIES, "GetAll").append1(interface))?;
        let body = Value::body(&reply);
        assert_eq!(body.len(), 1, "GetAll returns one dictionary");
        assert_eq!(body[0].signature(), "a{sv}", "GetAll returns a dictionary of variants");
        Ok(body[0].entries())
    }

    /// `Properties.Set`.
    pub(crate) fn set(
        &self,
        path: &str,
        interface: &str,
        name: &str,
        value: impl Arg + Append,
    ) -> Result<(), BusError> {
        self.exchange(method(path, PROPERTIES, "Set").append3(interface, name, Variant(value))).map(|_| ())
    }

    /// `GetManagedObjects`.
    pub(crate) fn objects(&self) -> Objects {
        objects_of(&Value::body(&self.listing()))
    }

    /// The reply to `GetManagedObjects`. To read it takes longer than to get it where objects are many.
    pub(crate) fn listing(&self) -> Message {
        self.exchange(method(TOP, OBJECT_MANAGER, "GetManagedObjects")).expect("objects can be listed")
    }

    /// `Introspect`.
    pub(crate) fn introspect(&self, path: &str) -> Result<String, BusError> {
        let reply: Result<(String,), BusError> =
            self.call(path, "org.freedesktop.DBus.Introspectable", "Introspect", ());
        reply.map(|(xml,)| xml)
    }

    /// `StoppedPools` on a revision of the manager: entries by pool UUID.
    pub(crate) fn stopped_pools(&self, revision: u8) -> BTreeMap<String, Properties> {
        let value = self.get(TOP, &interface("Manager", revision), "StoppedPools").expect("it can always be read");
        assert_eq!(value.signature(), "a{sa{sv}}", "the type of StoppedPools");
        value.entries().into_iter().map(|(uuid, entry)| (uuid, entry.entries())).collect()
    }

    /// The r9 properties of the objects of a family: `pool`, `filesystem` or `blockdev`.
    pub(crate) fn family(&self, family: &str) -> BTreeMap<String, Properties> {
        let interface = interface(family, 9);
        self.objects()
            .into_iter()
            .filter_map(|(path, mut interfaces)| interfaces.remove(&interface).map(|properties| (path, properties)))
            .collect()
    }
}

impl<T> Answer<T> {
    /// The same answer with another form of the value.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { value: change(self.value), code: self.code, text: self.text }
    }
}

/// The objects in the reply of `GetManagedObjects`.
pub(crate) fn objects_of(body: &[Value]) -> Objects {
    assert_eq!(body[0].signature(), "a{oa{sa{sv}}}", "the type of the object list");
    let interfaces = |object: Value| object.entries().into_iter().map(|(name, all)| (name, all.entries())).collect();
    body[0].entries().into_iter().map(|(path, object)| (path, interfaces(object))).collect()
}

/// A method call to the daemon.
pub(crate) fn method(path: &str, interface: &str, member: &str) -> Message {
    Message::new_method_call(NAME, path, interface, member).expect("test paths and names are well-formed")
}

/// Arguments of `CreatePool` r9 as stratis-cli sends them for a plain pool.
pub(crate) fn create_pool_arguments(name: &str, devices: &[impl AsRef<str>]) -> CreatePoolArguments {
    let devices: Vec<String> = devices.iter().map(|device| device.as_ref().to_owned()).collect();
    (name.to_owned(), devices, Vec::new(), Vec::new(), (true, 0), (true, "0b".to_owned()), (true, false))
}

/// Arguments of `StartPool` r9 without unlocking.
pub(crate) fn start_pool_arguments(id: &str, kind: &str) -> impl AppendAll + use<> {
    (id.to_owned(), kind.to_owned(), (false, (false, 0_u32)), (false, null()), false)
}

/// Arguments of `StartPool` r9 by UUID with an unlock method, or a passphrase of no bytes, or both.
pub(crate) fn start_pool_with(id: &str, unlock: (bool, Slot), passphrase: bool) -> impl AppendAll + use<> {
    (id.to_owned(), "uuid".to_owned(), unlock, (passphrase, null()), false)
}

/// A descriptor that is not looked at, as stratis-cli sends one, or that gives no bytes.
pub(crate) fn null() -> File {
    File::open("/dev/null").expect("/dev/null can be opened")
}

/// The argument of `CreateFilesystems` r6 to r9.
pub(crate) fn specs_argument(specs: &[Spec<'_>]) -> Vec<(String, Optional, Optional)> {
    let optional = |text: Option<&str>| (text.is_some(), text.unwrap_or_default().to_owned());
    specs.iter().map(|(name, size, limit)| ((*name).to_owned(), optional(*size), optional(*limit))).collect()
}

/// The value of `CreatePool` with paths as text.
pub(crate) fn created(value: (bool, (dbus::Path<'_>, Vec<dbus::Path<'_>>))) -> Created {
    let (changed, (pool, devices)) = value;
    (changed, (pool.to_string(), texts(&devices)))
}

/// The value of `StartPool` with paths as text.
pub(crate) fn started(value: (bool, (dbus::Path<'_>, Vec<dbus::Path<'_>>, Vec<dbus::Path<'_>>))) -> Started {
    let (changed, (pool, devices, filesystems)) = value;
    (changed, (pool.to_string(), texts(&devices), texts(&filesystems)))
}

fn texts(paths: &[dbus::Path<'_>]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

fn bus_call(member: &str) -> Message {
    Message::new_method_call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", member)
        .expect("constant names are well-formed")
}

/// The value of an absent optional text in a reply.
pub(crate) fn absent() -> Value {
    Value::Struct(vec![Value::Bool(false), Value::Text(String::new())])
}

/// The value of a present optional text in a reply.
pub(crate) fn present(text: &str) -> Value {
    Value::Struct(vec![Value::Bool(true), Value::Text(text.to_owned())])
}
