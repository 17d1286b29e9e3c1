//! What a method call comes down to: the whole routing from object, interface and member.
//!
//! Pure: it looks at the call and at the tree and says what to do, nothing else. So a panic in
//! here or in a function of the table (our bug) leaves nothing half done; the caller catches it
//! and fails that one call.

use dbus::Message;
use dbus::arg::ArgType;

use crate::bus::errors::*;
use crate::bus::facts::{ObjectPath, TOP};
use crate::bus::incoming::Incoming;
use crate::bus::table::{
    self, Args, Ask, BLOCKDEV, Call, CallFault, Decoded, FILESYSTEM, Family, LATEST, MANAGER, Method, POOL, Property,
    REPORT, Replying, Write,
};
use crate::bus::tree::{Object, Tree};
use crate::bus::value::Value;
use crate::bus::xml;
use crate::error::Refusal;
use crate::message::{Answer, Wish};
use crate::model::ids::PoolUuid;

const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PEER: &str = "org.freedesktop.DBus.Peer";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What is done with a call.
#[derive(Debug)]
pub enum Decision {
    /// Reply with these values.
    Values(Vec<Value>),
    /// Reply with every object.
    Objects,
    /// Ask the home of the pool, then reply.
    Wish(Box<Wish>, Shape),
    /// Have every device looked at, then reply.
    Refresh,
    /// Reply that it was so already, or what else is known.
    Known(Answer, Shape),
    /// Reply that it cannot be.
    Refused(Refusal, Shape),
    /// Reply with a D-Bus error: name and text.
    Error(&'static str, String),
}

/// The form of a reply.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A value, a return code and a text.
    Call(fn(&Replying<'_>) -> Value),
    /// A return code and a text.
    Code,
    /// Nothing, or a D-Bus error.
    Set,
}

/// What may be looked at to decide about a call.
pub struct Context<'a> {
    /// All objects.
    pub tree: &'a Tree,
    /// Descriptors that came with the message.
    pub descriptors: usize,
    /// Sixteen random bytes each time.
    pub random: &'a dyn Fn() -> [u8; 16],
    /// Whether calls about a pool are on their way.
    pub busy: &'a dyn Fn(PoolUuid) -> bool,
    /// What `Peer.GetMachineId` answers.
    pub machine_id: Option<&'a str>,
}

/// Decides about one method call.
pub fn decide(context: &Context<'_>, call: Incoming) -> Decision {
    let message = &call.message;
    let (Some(path), Some(member)) = (message.path(), message.member()) else {
        return Decision::Error(INVALID_ARGS, "a call has a path and a member".to_owned());
    };
    let (path, member) = (path.to_string(), member.to_string());
    let interface = message.interface().map(|name| name.to_string());
    if interface.as_deref().unwrap_or_else(|| standard(&member)) == PEER {
        return peer(context, &member, &call.signature);
    }
    let routed = Routed { context, member, interface, call };
    if path == TOP {
        let children = || xml::top(context.tree.paths().map(|path| path.0));
        return routed.on(context.tree.manager(), &[&MANAGER, &REPORT], &children);
    }
    match ObjectPath::parse(&path).and_then(|path| context.tree.object(path)) {
        Some(Object::Pool(node)) => routed.on(&node.facts, &[&POOL], &xml::pool),
        Some(Object::Filesystem(node)) => routed.on(&node.facts, &[&FILESYSTEM], &xml::filesystem),
        Some(Object::Device(node)) => routed.on(&node.facts, &[&BLOCKDEV], &xml::blockdev),
        None => match xml::parent(&path) {
            Some(xml) => routed.on(context.tree.manager(), &[], &|| xml.clone()),
            None => Decision::Error(UNKNOWN_OBJECT, format!("there is no object {path}")),
        },
    }
}

/// The standard interface that a member belongs to when the caller does not say; empty for others.
fn standard(member: &str) -> &'static str {
    match member {
        "Introspect" => INTROSPECTABLE,
        "Get" | "GetAll" | "Set" => PROPERTIES,
        "GetManagedObjects" => OBJECT_MANAGER,
        "Ping" | "GetMachineId" => PEER,
        _ => "",
    }
}

fn peer(context: &Context<'_>, member: &str, signature: &str) -> Decision {
    match (member, context.machine_id) {
        ("Ping" | "GetMachineId", _) if !signature.is_empty() => arguments_differ(member, "", signature),
        ("Ping", _) => Decision::Values(Vec::new()),
        ("GetMachineId", Some(id)) => Decision::Values(vec![Value::text(id)]),
        ("GetMachineId", None) => Decision::Error(FAILED, "this machine has no id".to_owned()),
        _ => unknown_method(PEER, member),
    }
}

/// A call on its way to an object that exists.
struct Routed<'a> {
    context: &'a Context<'a>,
    member: String,
    interface: Option<String>,
    call: Incoming,
}

impl Routed<'_> {
    /// The call, on an object that shows these facts through these families.
    fn on<V>(self, facts: &V, families: &[&'static Family<V>], xml: &dyn Fn() -> String) -> Decision {
        let given = self.interface.clone();
        let interface = given.as_deref().unwrap_or_else(|| standard(&self.member));
        let is_top = families.len() > 1;
        match (interface, &*self.member) {
            (INTROSPECTABLE, "Introspect") => self.no_arguments(|| Decision::Values(vec![Value::Text(xml())])),
            (OBJECT_MANAGER, "GetManagedObjects") if is_top => self.no_arguments(|| Decision::Objects),
            (PROPERTIES, "Get") => self.get(facts, families),
            (PROPERTIES, "GetAll") => self.get_all(facts, families),
            (PROPERTIES, "Set") => self.set(facts, families),
            (INTROSPECTABLE | PROPERTIES, member) => unknown_method(interface, member),
            (OBJECT_MANAGER, member) if is_top => unknown_method(interface, member),
            ("", member) => match families.iter().find_map(|family| family.method(LATEST, member)) {
                Some(row) => self.method(facts, row),
                None => unknown_method("any interface", member),
            },
            (name, member) => match find(families, name) {
                Some((family, rev)) => match family.method(rev, member) {
                    Some(row) => self.method(facts, row),
                    None => unknown_method(name, member),
                },
                None => unknown_interface(name),
            },
        }
    }

    fn no_arguments(&self, decision: impl FnOnce() -> Decision) -> Decision {
        if self.call.signature.is_empty() {
            return decision();
        }
        arguments_differ(&self.member, "", &self.call.signature)
    }

    fn method<V>(self, facts: &V, row: &'static Method<V>) -> Decision {
        if !table::matches(row.args, &self.call.signature) {
            let expected: String = table::arguments(row.args).map(|(_, kind)| kind).collect();
            return arguments_differ(row.name, &expected, &self.call.signature);
        }
        let (decode, shape) = match row.call {
            Call::Served(decode, shape) => (decode, shape),
            Call::Refresh => return Decision::Refresh,
        };
        let args = Args::new(self.call.message, self.context.descriptors);
        let Context { tree, random, busy, .. } = *self.context;
        let shape = Shape::Call(shape);
        match decode(&Ask { on: facts, tree, args: &args, random, busy }) {
            Ok(Decoded::Wish(wish)) => Decision::Wish(Box::new(wish), shape),
            Ok(Decoded::Known(answer)) => Decision::Known(answer, shape),
            Err(fault) => faulted(fault, shape),
        }
    }

    fn get<V>(&self, facts: &V, families: &[&'static Family<V>]) -> Decision {
        if self.call.signature != "ss" {
            return arguments_differ("Get", "ss", &self.call.signature);
        }
        let Ok((interface, name)) = self.call.message.read2::<&str, &str>() else {
            return arguments_differ("Get", "ss", &self.call.signature);
        };
        match property(families, interface, name) {
            Ok(row) => Decision::Values(vec![Value::Variant(Box::new((row.read)(facts)))]),
            Err(error) => error,
        }
    }

    fn get_all<V>(&self, facts: &V, families: &[&'static Family<V>]) -> Decision {
        if self.call.signature != "s" {
            return arguments_differ("GetAll", "s", &self.call.signature);
        }
        let Ok(interface) = self.call.message.read1::<&str>() else {
            return arguments_differ("GetAll", "s", &self.call.signature);
        };
        let Some((family, rev)) = find(families, interface) else {
            return unknown_interface(interface);
        };
        let all = family.properties_at(rev).map(|row| Value::entry(row.name, (row.read)(facts)));
        Decision::Values(vec![Value::Array("{sv}", all.collect())])
    }

    fn set<V>(self, facts: &V, families: &[&'static Family<V>]) -> Decision {
        let (true, Ok((interface, name))) = (self.call.signature == "ssv", self.call.message.read2::<String, String>())
        else {
            return arguments_differ("Set", "ssv", &self.call.signature);
        };
        let row = match property(families, &interface, &name) {
            Ok(row) => row,
            Err(error) => return error,
        };
        let Write::Decode(decode) = row.write else {
            return Decision::Error(UNKNOWN_PROPERTY, format!("{name} of {interface} cannot be set"));
        };
        let given = value_signature(&self.call.message);
        if given != row.signature {
            return arguments_differ(&name, row.signature, &given);
        }
        match decode(facts, &Args::new(self.call.message, self.context.descriptors)) {
            Ok(wish) => Decision::Wish(Box::new(wish), Shape::Set),
            Err(fault) => faulted(fault, Shape::Set),
        }
    }
}

/// The signature of what the variant in a call of `Set` holds.
fn value_signature(message: &Message) -> String {
    let mut arguments = message.iter_init();
    arguments.next();
    arguments.next();
    let value = arguments.recurse(ArgType::Variant);
    value.map(|mut value| value.signature().to_string()).unwrap_or_default()
}

fn find<V>(families: &[&'static Family<V>], interface: &str) -> Option<(&'static Family<V>, u8)> {
    families.iter().find_map(|family| Some((*family, family.revision(interface)?)))
}

fn property<V>(families: &[&'static Family<V>], interface: &str, name: &str) -> Result<&'static Property<V>, Decision> {
    let (family, rev) = find(families, interface).ok_or_else(|| unknown_interface(interface))?;
    let unknown = || Decision::Error(UNKNOWN_PROPERTY, format!("{interface} has no property {name}"));
    family.property(rev, name).ok_or_else(unknown)
}

fn faulted(fault: CallFault, shape: Shape) -> Decision {
    match fault {
        CallFault::Refused(refusal) => Decision::Refused(refusal, shape),
        CallFault::Malformed(why) => Decision::Error(INVALID_ARGS, why.to_owned()),
    }
}

fn unknown_method(interface: &str, member: &str) -> Decision {
    Decision::Error(UNKNOWN_METHOD, format!("{interface} has no method {member} here"))
}

/// A name without a dot is no interface name at all.
fn unknown_interface(name: &str) -> Decision {
    let error = if name.contains('.') { UNKNOWN_INTERFACE } else { INVALID_ARGS };
    Decision::Error(error, format!("there is no interface {name:?} here"))
}

fn arguments_differ(member: &str, expected: &str, given: &str) -> Decision {
    Decision::Error(INVALID_ARGS, format!("{member} takes ({expected}), not ({given})"))
}

/// The object of a wish: a device or filesystem where the answer needs it, else the pool.
pub fn subject(wish: &Wish) -> uuid::Uuid {
    match wish {
        Wish::SetUserInfo(_, device, _) => device.0,
        Wish::SetFilesystemName(_, filesystem, _) => filesystem.0,
        Wish::CreatePool { .. }
        | Wish::DestroyPool(_)
        | Wish::StartPool { .. }
        | Wish::StopPool(_)
        | Wish::CreateFilesystems(..)
        | Wish::DestroyFilesystems(..)
        | Wish::AddDataDevices(..)
        | Wish::AddCacheDevices(..)
        | Wish::InitCache(..)
        | Wish::GrowDevice(..)
        | Wish::SnapshotFilesystem(..)
        | Wish::SetPoolName(..)
        | Wish::SetSizeLimit(..)
        | Wish::SetMerge(..)
        | Wish::SetOverprovisioning(..)
        | Wish::SetFsLimit(..)
        | Wish::Metadata(..)
        | Wish::FilesystemMetadata(..)
        | Wish::ChangeTokens(..)
        | Wish::EncryptPool(..)
        | Wish::ReencryptPool(_)
        | Wish::DecryptPool(_)
        | Wish::Keys(_) => wish.pool().0,
    }
}
