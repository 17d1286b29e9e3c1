//! What a client knows that asks for everything once and from then on only listens.
//!
//! Invariant: a value in here was in the first listing, in a signal, or was read because a signal said that it is no
//! longer what it was. Nothing is read for any other reason, so a signal that was forgotten stays a difference.

use std::collections::{BTreeMap, BTreeSet};

use super::client::{BusError, Client, Objects, Properties, Signal};
use super::introspection::golden;
use super::value::Value;
use super::{REVISIONS, TOP, interface};

/// A connection on which one listens and reads.
pub(crate) trait Source {
    /// Asks for all signals of the daemon.
    fn subscribe(&self);
    /// Returns when everything is here that was announced before.
    fn ping(&self);
    /// What was announced. It is taken out.
    fn signals(&self) -> Vec<Signal>;
    /// `GetManagedObjects`.
    fn objects(&self) -> Objects;
    /// `Properties.Get`.
    fn get(&self, path: &str, interface: &str, property: &str) -> Result<Value, BusError>;
    /// `Properties.GetAll`.
    fn get_all(&self, path: &str, interface: &str) -> Result<Properties, BusError>;
}

impl Source for Client {
    fn subscribe(&self) {
        Self::subscribe(self);
    }

    fn ping(&self) {
        Self::ping(self, TOP).expect("the daemon answers a ping");
    }

    fn signals(&self) -> Vec<Signal> {
        Self::signals(self)
    }

    fn objects(&self) -> Objects {
        Self::objects(self)
    }

    fn get(&self, path: &str, interface: &str, property: &str) -> Result<Value, BusError> {
        Self::get(self, path, interface, property)
    }

    fn get_all(&self, path: &str, interface: &str) -> Result<Properties, BusError> {
        Self::get_all(self, path, interface)
    }
}

/// Object, interface and name of a property.
type Place = (String, String, String);

/// What such a client knows.
pub(crate) struct Picture {
    /// Every object below the top one.
    pub(crate) objects: Objects,
    /// The top object's properties by interface.
    pub(crate) manager: BTreeMap<String, Properties>,
    /// How many signals came.
    pub(crate) heard: usize,
    /// What a signal has called out of date.
    stale: BTreeSet<Place>,
    /// Interface and name of what is declared to change without a signal.
    silent: BTreeSet<(String, String)>,
}

impl Picture {
    /// Subscribes, and asks for everything, while nothing goes on.
    pub(crate) fn first(client: &impl Source) -> Self {
        client.subscribe();
        let (objects, manager) = (client.objects(), BTreeMap::new());
        let mut picture = Self { objects, manager, heard: 0, stale: BTreeSet::new(), silent: silent() };
        picture.manager = picture.read_manager(client);
        picture
    }

    /// Takes in all that has been announced, and reads what was called out of date.
    pub(crate) fn listen(&mut self, client: &impl Source) {
        client.ping();
        self.hear(client);
        while let Some((path, interface, name)) = self.stale.pop_first() {
            let value = client.get(&path, &interface, &name);
            self.hear(client);
            if let Some(properties) = self.properties(&path, &interface) {
                properties.insert(name, value.expect("what is there can be read"));
            }
        }
    }

    /// That a fresh listing says the same, on every revision.
    #[track_caller]
    pub(crate) fn assert_current(&mut self, client: &impl Source, context: &str) {
        let objects = loop {
            self.listen(client);
            let objects = client.objects();
            self.hear(client);
            // What is announced before a listing is in it; what is out of date then is read and compared anew.
            if self.stale.is_empty() {
                break objects;
            }
        };
        let known = self.objects.clone();
        self.compare(&known, &objects, context);
        let fresh = self.read_manager(client);
        let one = |all: &BTreeMap<String, Properties>| Objects::from([(TOP.to_owned(), all.clone())]);
        self.compare(&one(&self.manager), &one(&fresh), context);
    }

    /// Every revision of what the top object says.
    fn read_manager(&mut self, client: &impl Source) -> BTreeMap<String, Properties> {
        let mut all = BTreeMap::new();
        for revision in 0..REVISIONS {
            let name = interface("Manager", revision);
            let properties = client.get_all(TOP, &name).expect("the top object is always there");
            all.insert(name, properties);
            self.hear(client);
        }
        all
    }

    #[track_caller]
    fn compare(&self, known: &Objects, fresh: &Objects, context: &str) {
        let (known, fresh) = (places(known), places(fresh));
        let differs = |place: &&&Place| known.get(*place) != fresh.get(*place) && !self.is_silent(place);
        let all: BTreeSet<&Place> = known.keys().chain(fresh.keys()).collect();
        let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
        let said = |place: &&Place| {
            let (path, interface, name) = *place;
            format!("{path} {interface}.{name}: heard {}, is {}", shown(known.get(*place)), shown(fresh.get(*place)))
        };
        let differences: Vec<_> = all.iter().filter(differs).map(said).collect();
        assert!(differences.is_empty(), "{context}: signals were forgotten:\n{}", differences.join("\n"));
    }

    fn is_silent(&self, (_, interface, name): &Place) -> bool {
        self.silent.contains(&(interface.clone(), name.clone()))
    }

    fn properties(&mut self, path: &str, interface: &str) -> Option<&mut Properties> {
        if path == TOP { self.manager.get_mut(interface) } else { self.objects.get_mut(path)?.get_mut(interface) }
    }

    /// Takes in what has been announced so far.
    pub(crate) fn hear(&mut self, client: &impl Source) {
        for Signal { path, member, body } in client.signals() {
            self.heard += 1;
            match member.as_str() {
                "InterfacesAdded" => {
                    let object = self.objects.entry(body[0].text().to_owned()).or_default();
                    for (interface, properties) in body[1].entries() {
                        let before = object.insert(interface.clone(), properties.entries());
                        assert!(before.is_none(), "{} {interface} is announced once", body[0]);
                    }
                }
                "InterfacesRemoved" => self.forget(body[0].text(), body[1].members()),
                "PropertiesChanged" => self.change(&path, &body),
                other => panic!("the daemon has no signal {other}"),
            }
        }
    }

    fn forget(&mut self, path: &str, interfaces: &[Value]) {
        let object = self.objects.get_mut(path).unwrap_or_else(|| panic!("{path} goes and was never there"));
        for interface in interfaces {
            assert!(object.remove(interface.text()).is_some(), "{path} {interface} goes once");
        }
        if object.is_empty() {
            self.objects.remove(path);
        }
    }

    fn change(&mut self, path: &str, body: &[Value]) {
        let interface = body[0].text();
        let properties = self.properties(path, interface);
        let properties = properties.unwrap_or_else(|| panic!("{path} {interface} changes and was never there"));
        for (name, value) in body[1].entries() {
            let before = properties.insert(name.clone(), value);
            assert!(before.is_some(), "{path} {interface}.{name} changes and was never there");
        }
        let invalidated = body[2].members().iter().map(|name| name.text());
        self.stale.extend(invalidated.map(|name| (path.to_owned(), interface.to_owned(), name.to_owned())));
    }
}

fn places(objects: &Objects) -> BTreeMap<Place, Value> {
    let mut all = BTreeMap::new();
    for (path, interfaces) in objects {
        for (interface, properties) in interfaces {
            let place = |name: &String| (path.clone(), interface.clone(), name.clone());
            all.extend(properties.iter().map(|(name, value)| (place(name), value.clone())));
        }
    }
    all
}

/// Declared silent, or declared constant by a released daemon in which it changes nevertheless.
fn silent() -> BTreeSet<(String, String)> {
    let mut found: BTreeSet<_> = (0..9).map(|revision| (interface("pool", revision), "Encrypted".to_owned())).collect();
    for kind in ["pool", "filesystem", "blockdev"] {
        for (interface, declared) in golden(kind) {
            let silent = declared.properties.into_iter().filter(|(_, property)| property.emits == "false");
            found.extend(silent.map(|(name, _)| (interface.clone(), name)));
        }
    }
    found
}
