//! The whole D-Bus API as data: one row for each member and shape, with the revisions it belongs to.
//!
//! A row says what introspection shows (names, types, access, change signals) and what to do: a
//! method row has the function that decodes a call and the one that shapes its answer, a property
//! row has the function that reads it from a view and, if it can be set, the one that decodes that.
//! Old revisions exist in these functions and nowhere else. A member whose shape changed is two
//! adjacent rows. Revision 10 would be `LATEST = 10` and new rows.
//!
//! Invariant: at each revision a name belongs to at most one row of a family (tested below).
//!
//! Deliberately absent: the standard interfaces (`standard.rs`), and every rule about what a
//! request may do; decoding checks form, the shard that owns the pool checks the rest.

mod blockdev;
mod decode;
mod encryption;
mod filesystem;
mod manager;
mod pool;
mod reply;
mod report;

pub use blockdev::BLOCKDEV;
pub use decode::{Args, Ask, CallFault, Decoded};
pub use filesystem::FILESYSTEM;
pub use manager::MANAGER;
pub use pool::POOL;
pub use reply::Replying;
pub use report::REPORT;

use crate::bus::value::Value;
use crate::message::Wish;

/// The last revision of every interface. Revisions run from 0 to this.
pub const LATEST: u8 = 9;

/// The run of revisions a row belongs to. A member that left and came back is two rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Revs {
    first: u8,
    last: u8,
}

const ALL: Revs = only(0, LATEST);

const fn since(first: u8) -> Revs {
    only(first, LATEST)
}

const fn until(last: u8) -> Revs {
    only(0, last)
}

const fn only(first: u8, last: u8) -> Revs {
    assert!(first <= last && last <= LATEST);
    Revs { first, last }
}

impl Revs {
    /// Whether the row exists at this revision.
    pub const fn contains(self, rev: u8) -> bool {
        self.first <= rev && rev <= self.last
    }

    /// Whether the row is there at `rev` and not before, or the other way round.
    pub const fn turns_at(self, rev: u8) -> bool {
        self.first == rev || self.last + 1 == rev
    }
}

impl std::fmt::Display for Revs {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            return write!(out, "r{}", self.first);
        }
        write!(out, "r{}-r{}", self.first, self.last)
    }
}

/// What `org.freedesktop.DBus.Property.EmitsChangedSignal` says of a property.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Emits {
    /// A change is announced with the new value. The default of D-Bus.
    True,
    /// A change is announced without the new value.
    Invalidates,
    /// Never changes.
    Const,
    /// May change and is not announced.
    False,
}
use Emits::{Const, False, Invalidates, True};

/// What is done with a call.
pub enum Call<V: 'static> {
    /// Decodes it, and shapes the first value of its reply.
    Served(fn(&Ask<'_, V>) -> Result<Decoded, CallFault>, fn(&Replying<'_>) -> Value),
    /// Has every device looked at again; without a first value.
    Refresh,
}
use Call::{Refresh, Served};

/// Whether and how a property is set.
pub enum Write<V: 'static> {
    /// Read only.
    Never,
    /// Decodes the new value, which has the property's type.
    Decode(fn(&V, &Args) -> Result<Wish, CallFault>),
}
use Write::{Decode, Never};

/// A method of a family, in one of its shapes.
pub struct Method<V: 'static> {
    /// Where it exists.
    pub revs: Revs,
    /// Its name.
    pub name: &'static str,
    /// `name:type`, separated by spaces.
    pub args: &'static str,
    /// Likewise.
    pub returns: &'static str,
    /// What it does.
    pub call: Call<V>,
}

/// A property of a family, in one of its shapes.
pub struct Property<V: 'static> {
    /// Where it exists.
    pub revs: Revs,
    /// Its name.
    pub name: &'static str,
    /// Its type; `v` where the type depends on the value.
    pub signature: &'static str,
    /// How changes are announced.
    pub emits: Emits,
    /// Its value.
    pub read: fn(&V) -> Value,
    /// How it is set.
    pub write: Write<V>,
}

/// Ten interfaces, one for each revision, of one kind of object.
pub struct Family<V: 'static> {
    /// The interfaces' name up to the revision.
    pub interface: &'static str,
    /// Its methods, history reading downwards.
    pub methods: &'static [Method<V>],
    /// Its properties, likewise.
    pub properties: &'static [Property<V>],
}

const fn method<V>(r: Revs, name: &'static str, args: &'static str, returns: &'static str, call: Call<V>) -> Method<V> {
    Method { revs: r, name, args, returns, call }
}

const fn property<V>(r: Revs, name: &'static str, sig: &'static str, e: Emits, read: fn(&V) -> Value) -> Property<V> {
    Property { revs: r, name, signature: sig, emits: e, read, write: Never }
}

const fn property_rw<V>(
    revs: Revs,
    name: &'static str,
    signature: &'static str,
    emits: Emits,
    read: fn(&V) -> Value,
    write: Write<V>,
) -> Property<V> {
    Property { revs, name, signature, emits, read, write }
}

impl<V> Write<V> {
    /// Whether clients see the property as writable.
    pub const fn is_declared(&self) -> bool {
        !matches!(self, Self::Never)
    }
}

impl<V> Family<V> {
    /// The method called `name` at `rev`.
    pub fn method(&self, rev: u8, name: &str) -> Option<&'static Method<V>> {
        self.methods.iter().find(|row| row.revs.contains(rev) && row.name == name)
    }

    /// The property called `name` at `rev`.
    pub fn property(&self, rev: u8, name: &str) -> Option<&'static Property<V>> {
        self.properties.iter().find(|row| row.revs.contains(rev) && row.name == name)
    }

    /// The methods at `rev`, in table order.
    pub fn methods_at(&self, rev: u8) -> impl Iterator<Item = &'static Method<V>> {
        self.methods.iter().filter(move |row| row.revs.contains(rev))
    }

    /// The properties at `rev`, in table order.
    pub fn properties_at(&self, rev: u8) -> impl Iterator<Item = &'static Property<V>> {
        self.properties.iter().filter(move |row| row.revs.contains(rev))
    }

    /// The revision in an interface name of this family.
    pub fn revision(&self, interface: &str) -> Option<u8> {
        let digit = interface.strip_prefix(self.interface)?.strip_prefix(".r")?;
        (0..=LATEST).find(|rev| digit.len() == 1 && digit.as_bytes()[0] == b'0' + rev)
    }

    /// The interface's name at `rev`.
    pub fn interface_at(&self, rev: u8) -> String {
        format!("{}.r{rev}", self.interface)
    }
}

/// Name and type of each in a list of `name:type`.
pub fn arguments(list: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    list.split_whitespace().map(|arg| arg.split_once(':').expect("an argument is written name:type"))
}

/// Whether a list of `name:type` has this signature.
pub fn matches(args: &'static str, signature: &str) -> bool {
    let mut rest = signature;
    for (_, kind) in arguments(args) {
        match rest.strip_prefix(kind) {
            Some(left) => rest = left,
            None => return false,
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<V>(family: &Family<V>) {
        for rev in 0..=LATEST {
            let methods = family.methods_at(rev).map(|row| row.name);
            let mut names: Vec<_> = methods.chain(family.properties_at(rev).map(|row| row.name)).collect();
            let rows = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), rows, "{} has a name twice at r{rev}", family.interface);
            assert_eq!(family.revision(&family.interface_at(rev)), Some(rev));
        }
    }

    #[test]
    fn a_name_has_one_row_at_each_revision() {
        check(&MANAGER);
        check(&REPORT);
        check(&POOL);
        check(&FILESYSTEM);
        check(&BLOCKDEV);
    }

    #[test]
    fn only_revisions_that_exist_are_parsed() {
        for interface in ["r10", "r", "r-1", "r01", "r9x", "9", "ra"] {
            assert_eq!(POOL.revision(&format!("org.storage.stratis3.pool.{interface}")), None);
        }
        assert_eq!(POOL.revision("org.storage.stratis3.Pool.r1"), None);
    }

    #[test]
    fn a_signature_matches_as_a_whole() {
        assert!(matches("", ""));
        assert!(matches("name:s spec:(b(bu))", "s(b(bu))"));
        assert!(!matches("name:s spec:(b(bu))", "s(b(bu))s"));
        assert!(!matches("name:s spec:(b(bu))", "s"));
        assert!(!matches("", "s"));
        assert!(!matches("name:s", ""));
    }
}
