//! What we ask of the bus daemon itself: a unique name, our well-known name, and to take it back.
//!
//! The name is asked for without queueing and without replacing: two daemons must not believe that
//! they serve the same machine.

use dbus::{Message, MessageType};
use thiserror::Error;

use crate::bus::encode::Outgoing;
use crate::bus::value::Value;

/// The name that clients know.
pub const NAME: &str = "org.storage.stratis3";

/// The name of the bus itself, and of its interface.
const BUS: &str = "org.freedesktop.DBus";

/// Which signals we want while clients wait: names that nobody owns any more.
const VANISHED: &str =
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''";

const DO_NOT_QUEUE: u32 = 4;

const PRIMARY_OWNER: u32 = 1;
const ALREADY_OWNER: u32 = 4;

/// The name could not be had.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum NameFault {
    /// It has another owner.
    #[error("the bus name {NAME} has an owner: another stratisd serves this bus; stop it first")]
    Taken,
    /// The bus daemon does not allow it.
    #[error("the bus does not let this process own {NAME}: {0}; install the policy file stratisd.conf, or run as root")]
    Denied(String),
}

/// What the bus daemon answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Whether we have the name.
    Named(Result<(), NameFault>),
    /// We have given the name back.
    Released,
}

#[derive(Clone, Copy, Debug)]
enum Question {
    Hello,
    RequestName,
    ReleaseName,
}

/// Questions that are not answered yet, with their serials; three at most.
#[derive(Debug, Default)]
pub struct Daemon {
    asked: Vec<(u32, Question)>,
}

impl Daemon {
    /// The first message on any connection.
    pub fn hello(&mut self, serial: u32) -> Vec<u8> {
        self.ask(serial, Question::Hello, "Hello", &[])
    }

    /// Asks for the name.
    pub fn request_name(&mut self, serial: u32) -> Vec<u8> {
        self.ask(serial, Question::RequestName, "RequestName", &[Value::text(NAME), Value::U32(DO_NOT_QUEUE)])
    }

    /// Gives the name back.
    pub fn release_name(&mut self, serial: u32) -> Vec<u8> {
        self.ask(serial, Question::ReleaseName, "ReleaseName", &[Value::text(NAME)])
    }

    fn ask(&mut self, serial: u32, question: Question, member: &str, values: &[Value]) -> Vec<u8> {
        self.asked.push((serial, question));
        Outgoing::call_bus(serial, member, values).finish()
    }

    /// What a reply or an error says; `None` for messages that answer nothing of ours.
    pub fn handle(&mut self, message: &Message) -> Option<Event> {
        let serial = message.get_reply_serial()?;
        let place = self.asked.iter().position(|(asked, _)| *asked == serial)?;
        let (_, question) = self.asked.swap_remove(place);
        let failed = message.msg_type() == MessageType::Error;
        let denied = || Event::Named(Err(NameFault::Denied(text(message))));
        Some(match question {
            Question::Hello if failed => denied(),
            Question::Hello => return None,
            Question::RequestName if failed => denied(),
            Question::RequestName => Event::Named(match message.read1::<u32>() {
                Ok(PRIMARY_OWNER | ALREADY_OWNER) => Ok(()),
                Ok(_) | Err(_) => Err(NameFault::Taken),
            }),
            Question::ReleaseName => Event::Released,
        })
    }
}

/// Asks to be told which names vanish. Not answered.
pub fn watch(serial: u32) -> Vec<u8> {
    Outgoing::tell_bus(serial, "AddMatch", &[Value::text(VANISHED)]).finish()
}

/// Takes `watch` back: a daemon that nobody waits for is not woken by clients of others. Not answered.
pub fn unwatch(serial: u32) -> Vec<u8> {
    Outgoing::tell_bus(serial, "RemoveMatch", &[Value::text(VANISHED)]).finish()
}

/// The name that the bus says has vanished.
pub fn vanished(signal: &Message) -> Option<&str> {
    let is = |field: Option<&str>, text| field == Some(text);
    let from_bus = is(signal.sender().as_deref(), BUS) && is(signal.interface().as_deref(), BUS);
    if !from_bus || !is(signal.member().as_deref(), "NameOwnerChanged") {
        return None;
    }
    let (name, _, owner) = signal.read3::<&str, &str, &str>().ok()?;
    owner.is_empty().then_some(name)
}

fn text(error: &Message) -> String {
    error.read1::<&str>().unwrap_or("no reason was given").to_owned()
}
