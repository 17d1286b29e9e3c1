//! Introspection XML as sets that can be compared: what an object offers on its Stratis interfaces.
//!
//! Invariant: two objects that offer the same are equal, whatever the order, the white space or the
//! standard interfaces of their XML. An absent annotation is the D-Bus default `true`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// A method: its arguments as `name:type` in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Method {
    /// What it takes.
    pub(crate) takes: Vec<String>,
    /// What it returns.
    pub(crate) returns: Vec<String>,
}

impl Method {
    /// The signature of the arguments it takes.
    pub(crate) fn signature(&self) -> String {
        self.takes.iter().map(|one| one.split_once(':').expect("arguments are name:type").1).collect()
    }
}

/// A property.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Property {
    /// Its signature.
    pub(crate) kind: String,
    /// `read` or `readwrite`.
    pub(crate) access: String,
    /// `EmitsChangedSignal`.
    pub(crate) emits: String,
}

/// An interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Interface {
    /// By name.
    pub(crate) methods: BTreeMap<String, Method>,
    /// By name.
    pub(crate) properties: BTreeMap<String, Property>,
}

/// The Stratis interfaces of an object, by name.
pub(crate) type Interfaces = BTreeMap<String, Interface>;

/// What the reference offers on `manager`, `pool`, `filesystem` or `blockdev` objects.
pub(crate) fn golden(kind: &str) -> Interfaces {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/introspection/{kind}.xml"));
    let xml = fs::read_to_string(&file).expect("the golden file is in the repository");
    parse(&xml).1
}

/// All interface names, and the Stratis interfaces, of the outermost node.
pub(crate) fn parse(xml: &str) -> (Vec<String>, Interfaces) {
    let mut reader = Reader::from_str(xml);
    let mut walk = Walk::default();
    loop {
        match reader.read_event().expect("introspection is well-formed XML") {
            Event::Eof => break,
            Event::Start(element) => walk.enter(&element, true),
            Event::Empty(element) => walk.enter(&element, false),
            Event::End(element) => walk.leave(&String::from_utf8_lossy(element.name().as_ref())),
            Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
    let stratis = walk.interfaces.iter().filter(|(name, _)| name.starts_with("org.storage.stratis3."));
    let stratis = stratis.map(|(name, interface)| (name.clone(), interface.clone())).collect();
    (walk.interfaces.into_keys().collect(), stratis)
}

#[derive(Default)]
struct Walk {
    interfaces: BTreeMap<String, Interface>,
    nodes: usize,
    interface: String,
    method: Option<String>,
    property: Option<String>,
}

impl Walk {
    fn enter(&mut self, element: &BytesStart<'_>, has_content: bool) {
        let tag = String::from_utf8_lossy(element.name().as_ref()).into_owned();
        let name = attribute(element, "name");
        if tag == "node" {
            self.nodes += usize::from(has_content);
        }
        // Only the outermost node's own interfaces count; children may embed theirs.
        if self.nodes != 1 {
            return;
        }
        match tag.as_str() {
            "interface" => {
                self.interface.clone_from(&name);
                self.interfaces.insert(name, Interface::default());
            }
            "method" => {
                self.current().methods.insert(name.clone(), Method::default());
                self.method = has_content.then_some(name);
            }
            "property" => {
                let [kind, access] = ["type", "access"].map(|which| attribute(element, which));
                self.current().properties.insert(name.clone(), Property { kind, access, emits: "true".to_owned() });
                self.property = has_content.then_some(name);
            }
            "arg" => self.argument(&name, element),
            "annotation" => self.annotation(&name, element),
            _ => {}
        }
    }

    fn leave(&mut self, tag: &str) {
        match tag {
            "node" => self.nodes -= 1,
            "method" => self.method = None,
            "property" => self.property = None,
            _ => {}
        }
    }

    fn current(&mut self) -> &mut Interface {
        self.interfaces.get_mut(&self.interface).expect("members stand inside an interface")
    }

    fn argument(&mut self, name: &str, element: &BytesStart<'_>) {
        // Arguments of signals have no method around them.
        let Some(method) = self.method.clone() else { return };
        let text = format!("{name}:{}", attribute(element, "type"));
        let out = attribute(element, "direction") == "out";
        let method = self.current().methods.get_mut(&method).expect("the method was entered");
        if out { &mut method.returns } else { &mut method.takes }.push(text);
    }

    fn annotation(&mut self, name: &str, element: &BytesStart<'_>) {
        let Some(property) = self.property.clone() else { return };
        if name == "org.freedesktop.DBus.Property.EmitsChangedSignal" {
            let emits = attribute(element, "value");
            self.current().properties.get_mut(&property).expect("the property was entered").emits = emits;
        }
    }
}

fn attribute(element: &BytesStart<'_>, which: &str) -> String {
    let found = element.try_get_attribute(which).expect("attributes are well-formed");
    found.map(|one| String::from_utf8_lossy(&one.value).into_owned()).unwrap_or_default()
}
