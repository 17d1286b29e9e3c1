//! What clients ask for: any member of any revision, with arguments drawn from what there is, and from what there is
//! not.
//!
//! The members are those of the reference's introspection, so none can be forgotten. What an argument is for follows
//! from its name.
//!
//! Deliberately absent: `SetKey`, whose passphrase comes through a descriptor, and nobody's seed decides when.

use std::collections::BTreeMap;

use dbus::Message;
use dbus::arg::IterAppend;
use dbus::strings::Signature;

use crate::support::client::{Properties, method, null};
use crate::support::introspection::golden;
use crate::support::picture::Picture;
use crate::support::{PROPERTIES, TOP, interface};

/// How often a member is drawn, where that is not twice.
#[rustfmt::skip]
const OFTEN: &[(&str, usize)] = &[
    ("CreatePool", 16), ("StartPool", 14), ("CreateFilesystems", 40), ("SnapshotFilesystem", 16), ("SetName", 6),
    ("DestroyFilesystems", 8), ("StopPool", 3), ("AddDataDevs", 4), ("InitCache", 3), ("Overprovisioning", 4),
    ("DestroyPool", 1), ("UnlockPool", 1), ("EncryptPool", 4), ("DecryptPool", 3), ("GrowPhysicalDevice", 4), ("SetKey", 0),
];

/// One member in all its shapes.
struct Dish {
    family: &'static str,
    member: String,
    often: usize,
    /// Interface, and arguments as `name:type`; one of a property's value.
    shapes: Vec<(String, Vec<String>)>,
    is_property: bool,
}

/// All that can be asked for.
pub(crate) struct Menu {
    dishes: Vec<Dish>,
}

impl Menu {
    pub(crate) fn new() -> Self {
        let mut dishes: BTreeMap<(&str, String), Dish> = BTreeMap::new();
        for family in ["manager", "pool", "filesystem", "blockdev"] {
            for (interface, offers) in golden(family) {
                let methods = offers.methods.into_iter().map(|(name, method)| (name, method.takes, false));
                let set = offers.properties.into_iter().filter(|(_, property)| property.access != "read");
                let set = set.map(|(name, property)| (name.clone(), vec![format!("{name}:{}", property.kind)], true));
                for (member, takes, is_property) in methods.chain(set) {
                    let often = OFTEN.iter().find(|(name, _)| *name == member).map_or(2, |(_, often)| *often);
                    let new = || Dish { family, member: member.clone(), often, shapes: Vec::new(), is_property };
                    let dish = dishes.entry((family, member.clone())).or_insert_with(new);
                    dish.shapes.push((interface.clone(), takes));
                }
            }
        }
        Self { dishes: dishes.into_values().collect() }
    }

    /// A member by chance, as its place in the list.
    pub(crate) fn draw(&self, dice: &mut fastrand::Rng) -> usize {
        let all: usize = self.dishes.iter().map(|dish| dish.often).sum();
        let mut left = dice.usize(..all);
        let drawn = self.dishes.iter().position(|dish| left.checked_sub(dish.often).map(|less| left = less).is_none());
        drawn.expect("less than the sum was drawn")
    }

    /// A call of a member on something that there is; `None` where there is nothing of the kind. With it comes what it
    /// is in words, and whether it brings a descriptor.
    pub(crate) fn order(&self, member: usize, draw: &mut Draw<'_>) -> Option<(String, Message, bool)> {
        let dish = &self.dishes[member];
        let (interface, takes) = draw.dice.choice(&dish.shapes).expect("a member has a shape");
        let path = match dish.family {
            "manager" => TOP.to_owned(),
            family => draw.one(family)?,
        };
        draw.pool = path.clone();
        draw.words = format!("{} of {interface} on {path}:", dish.member);
        let mut message = match dish.is_property {
            false => method(&path, interface, &dish.member),
            true => method(&path, PROPERTIES, "Set").append2(interface, &dish.member),
        };
        let mut iter = IterAppend::new(&mut message);
        for argument in takes {
            let (name, kind) = argument.split_once(':').expect("arguments are name:type");
            match dish.is_property {
                false => draw.append(&mut iter, name, kind),
                true => iter.append_variant(&Signature::from(kind.to_owned()), |inner| draw.append(inner, name, kind)),
            }
        }
        let descriptor = takes.iter().any(|argument| argument.contains('h') && argument.contains("_fd"));
        Some((draw.words.clone(), message, descriptor))
    }
}

/// What arguments are drawn from.
pub(crate) struct Draw<'a> {
    pub(crate) dice: &'a mut fastrand::Rng,
    pub(crate) picture: &'a Picture,
    pub(crate) disks: &'a [&'a str],
    pub(crate) pool: String,
    pub(crate) words: String,
}

impl Draw<'_> {
    /// The path of an object of a family.
    fn one(&mut self, family: &str) -> Option<String> {
        let all = self.all(family);
        self.dice.choice(&all).map(|(path, _)| path.clone())
    }

    fn all(&self, family: &str) -> Vec<(String, Properties)> {
        let interface = interface(family, 9);
        let objects = self.picture.objects.iter();
        objects.filter_map(|(path, all)| Some((path.clone(), all.get(&interface)?.clone()))).collect()
    }

    /// A filesystem of the pool that the call is on, or of any, or none.
    fn filesystem(&mut self) -> String {
        let mut all = self.all("filesystem");
        if all.iter().any(|(_, properties)| properties["Pool"].text() == self.pool) {
            all.retain(|(_, properties)| properties["Pool"].text() == self.pool);
        }
        self.dice.choice(&all).map_or_else(|| "/org/storage/stratis3/none".to_owned(), |(path, _)| path.clone())
    }

    fn text_of(&mut self, family: &str, property: &str) -> Option<String> {
        let all = self.all(family);
        self.dice.choice(&all).map(|(_, properties)| properties[property].text().to_owned())
    }

    fn stopped(&mut self) -> Option<String> {
        let stopped = self.picture.manager[&interface("Manager", 9)]["StoppedPools"].entries();
        self.dice.choice(stopped.into_keys().collect::<Vec<_>>())
    }

    /// Few names, so that many are taken. Some are none.
    fn name(&mut self) -> String {
        let names = ["a", "b", "c", "d", "e", "f", "ü", "g/", "not a name"];
        names[self.dice.usize(..names.len())].to_owned()
    }

    fn text(&mut self, name: &str) -> String {
        let text = match name {
            "id" | "pool_uuid" => {
                let of_pool = if self.dice.u8(..4) == 0 { self.text_of("pool", "Uuid") } else { None };
                of_pool.or_else(|| self.stopped()).or_else(|| self.text_of("pool", "Uuid")).unwrap_or_default()
            }
            "id_type" => if self.dice.u8(..10) == 0 { "name" } else { "uuid" }.to_owned(),
            "unlock_method" => "any".to_owned(),
            "pin" => "tpm2".to_owned(),
            "json" => "{}".to_owned(),
            "dev" => self.text_of("blockdev", "Uuid").unwrap_or_default(),
            "tag_spec" => ["0b", "32b", "512b"][self.dice.usize(..3)].to_owned(),
            "size" | "SizeLimit" => (self.dice.u64(1..6) << 28).to_string(),
            _ => self.name(),
        };
        self.words.push_str(&format!(" {text:?}"));
        text
    }

    fn flag(&mut self, name: &str) -> bool {
        let one_in = match name {
            "key_fd" => return false,
            "key_desc" | "clevis_info" => 10,
            "remove_cache" => 8,
            _ => 2,
        };
        let flag = self.dice.u8(..one_in) == 0;
        self.words.push_str(&format!(" {flag}"));
        flag
    }

    fn append(&mut self, iter: &mut IterAppend<'_>, name: &str, kind: &str) {
        match (kind.as_bytes()[0], name) {
            (b's', _) => iter.append(self.text(name)),
            (b'b', _) => iter.append(self.flag(name)),
            (b'q', _) => iter.append(0_u16),
            (b'u', _) => iter.append(self.dice.u32(..4)),
            (b't', "FsLimit") => iter.append(self.dice.u64(95..140)),
            (b't', _) => iter.append(self.dice.u64(..3) * 4096),
            (b'h', _) => iter.append(null()),
            (b'o', "pool") => iter.append(dbus::Path::from(self.one("pool").unwrap_or_else(|| TOP.to_owned()))),
            (b'o', _) => iter.append(dbus::Path::from(self.filesystem())),
            (b'(', _) => self.append_struct(iter, name, kind),
            (b'a', _) => self.append_array(iter, name, &kind[1..]),
            (other, _) => panic!("no argument of the API has the type {}", char::from(other)),
        }
    }

    fn append_struct(&mut self, iter: &mut IterAppend<'_>, name: &str, kind: &str) {
        let members = crate::support::value::split(&kind[1..kind.len() - 1]);
        iter.append_struct(|inner| {
            for (index, member) in members.into_iter().enumerate() {
                // A filesystem to be created: its name, its size, how far it may grow.
                let name = match (name, index) {
                    ("specs", 0) => "name",
                    ("specs", _) => "size",
                    (name, _) => name,
                };
                self.append(inner, name, member);
            }
        });
    }

    fn append_array(&mut self, iter: &mut IterAppend<'_>, name: &str, element: &str) {
        let count = match name {
            "devices" => self.dice.usize(1..3),
            "specs" => 1,
            "filesystems" => self.dice.usize(..3),
            "key_descs" => 1,
            // Nearly always nothing: pools that are not encrypted.
            _ => usize::from(self.dice.u8(..10) == 0),
        };
        iter.append_array(&Signature::from(element.to_owned()), |inner| {
            for _ in 0..count {
                match name {
                    "devices" => {
                        let disk = self.disks[self.dice.usize(..self.disks.len())];
                        self.words.push_str(&format!(" {disk}"));
                        inner.append(disk);
                    }
                    _ => self.append(inner, name, element),
                }
            }
        });
    }
}
