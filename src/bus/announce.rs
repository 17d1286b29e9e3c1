//! From a `Notice` of the tree to the bytes of its signals.
//!
//! One `InterfacesAdded` carries all ten interfaces of an object, one `InterfacesRemoved` names
//! them, one `PropertiesChanged` carries all that changed on one interface.

use crate::bus::changes::Change;
use crate::bus::encode::Outgoing;
use crate::bus::facts::{ObjectPath, TOP};
use crate::bus::fragment::REVISIONS;
use crate::bus::tree::{Notice, Tree};
use crate::bus::value::Value;

const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The signals of one notice, each with a serial of its own.
pub fn signals(tree: &Tree, notice: &Notice, mut serial: impl FnMut() -> u32) -> Vec<Outgoing> {
    match notice {
        Notice::Added(path) => interfaces_added(tree, *path, serial()).into_iter().collect(),
        Notice::Removed(path, interface) => vec![interfaces_removed(*path, interface, serial())],
        Notice::Changed(path, changes) => {
            let path = path.map_or_else(|| TOP.to_owned(), |path| path.to_string());
            changes.iter().map(|change| properties_changed(&path, change, serial())).collect()
        }
    }
}

/// Nothing, where the object has gone again in the same batch.
fn interfaces_added(tree: &Tree, path: ObjectPath, serial: u32) -> Option<Outgoing> {
    let object = tree.object(path)?;
    let mut signal = Outgoing::signal(serial, TOP, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}");
    object.fragment().write(signal.body());
    Some(signal)
}

fn interfaces_removed(path: ObjectPath, interface: &str, serial: u32) -> Outgoing {
    let mut signal = Outgoing::signal(serial, TOP, OBJECT_MANAGER, "InterfacesRemoved", "oas");
    path.value().write(signal.body());
    signal.body().array(4, |out| REVISIONS.iter().for_each(|revision| out.string_of(&[interface, ".r", revision])));
    signal
}

fn properties_changed(path: &str, change: &Change, serial: u32) -> Outgoing {
    let mut signal = Outgoing::signal(serial, path, PROPERTIES, "PropertiesChanged", "sa{sv}as");
    let changed = change.changed.iter().map(|(name, value)| Value::entry(name, value.clone()));
    let invalidated = change.invalidated.iter().map(Value::text);
    signal.body().string(&change.interface);
    Value::Array("{sv}", changed.collect()).write(signal.body());
    Value::Array("s", invalidated.collect()).write(signal.body());
    signal
}
