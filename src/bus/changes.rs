//! What `PropertiesChanged` must say when one view becomes another: found by comparing, not by
//! remembering to announce.
//!
//! A property that a revision lacks, or that it calls constant or silent, is not announced on that
//! revision. One `Change` is one signal.

use crate::bus::table::{Emits, Family, LATEST, Property};
use crate::bus::value::Value;
use crate::zoo::{Bug, planted};

/// What changed on the interface of one revision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Which interface.
    pub interface: String,
    /// Name and new value.
    pub changed: Vec<(&'static str, Value)>,
    /// Names whose new value is not said.
    pub invalidated: Vec<&'static str>,
}

/// All that changed, revisions ascending.
pub fn changes<V>(family: &Family<V>, old: &V, new: &V) -> Vec<Change> {
    let differs = |row: &&Property<V>| (row.read)(old) != (row.read)(new);
    let rows: Vec<_> = family.properties.iter().filter(differs).collect();
    (0..=LATEST)
        .filter(|rev| *rev != 4 || !planted(Bug::SilentRevision))
        .filter_map(|rev| change(family, rev, &rows, new))
        .collect()
}

fn change<V>(family: &Family<V>, rev: u8, rows: &[&'static Property<V>], new: &V) -> Option<Change> {
    let mut change = Change { interface: String::new(), changed: Vec::new(), invalidated: Vec::new() };
    for row in rows.iter().filter(|row| row.revs.contains(rev)) {
        match row.emits {
            Emits::True => change.changed.push((row.name, (row.read)(new))),
            Emits::Invalidates => change.invalidated.push(row.name),
            Emits::Const | Emits::False => {}
        }
    }
    let silent = change.changed.is_empty() && change.invalidated.is_empty();
    (!silent).then(|| Change { interface: family.interface_at(rev), ..change })
}
