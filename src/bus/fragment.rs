//! What an object says about itself, marshalled once: its path and the properties of its ten interfaces.
//!
//! `GetManagedObjects` sends these very bytes, `InterfacesAdded` copies them. Revisions that say the
//! same share one run of entries: a filesystem has three runs, not ten.
//!
//! ```text
//! in memory   path length  r0 length run  r1 length  r2 length  r3 length run'  r4 length …
//! sent        path length  r0 length run  r1 length  run  r2 length  run  r3 length run'  r4 length  run' …
//! parts       ---------------------------------------|----|----------|----|------------------------|-----
//! ```
//!
//! Invariant: the parts, one after the other, are an entry of `a{oa{sa{sv}}}`. Each begins and ends
//! at a multiple of 8, so entries follow each other as they are; only the last of all ends before
//! its padding, which D-Bus allows between entries and not behind them.

use std::ops::Range;
use std::rc::Rc;

use cores::side::Excerpt;

use crate::bus::encode::{Buffer, size};
use crate::bus::facts::ObjectPath;
use crate::bus::table::{Family, LATEST};

/// Parts of one object: a name and a run for each revision, the path goes with the first.
pub const PARTS_MAX: usize = 2 * (LATEST as usize + 1);

/// What most objects fit into, so that they are not moved while they are written.
const OBJECT_BYTES: usize = 4 << 10;

/// The number of each revision, as the name of an interface has it.
pub const REVISIONS: [&str; LATEST as usize + 1] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// One object, marshalled.
#[derive(Debug)]
pub struct Fragment {
    bytes: Rc<[u8]>,
    /// Where they are in `bytes`, in the order in which they are sent.
    parts: Rc<[Range<u32>]>,
    /// Bytes at the end of the last part that only an entry behind it needs.
    padding: u32,
}

impl Fragment {
    /// Reads every property of an object.
    pub fn new<V>(path: ObjectPath, family: &Family<V>, facts: &V) -> Self {
        let turns = |rev| rev == 0 || family.properties.iter().any(|row| row.revs.turns_at(rev));
        let mut interfaces = Buffer::with_room(OBJECT_BYTES);
        let mut parts = Vec::new();
        let (mut run, mut length) = (0..0, 0);
        for rev in 0..=LATEST {
            let fresh = turns(rev).then(|| entries(family, rev, facts));
            length = fresh.as_ref().map_or(length, |entries| size(entries.len()));
            let start = interfaces.position();
            interfaces.string_of(&[family.interface, ".r", REVISIONS[usize::from(rev)]]);
            interfaces.u32(length);
            interfaces.align(8);
            let end = interfaces.position();
            if let Some(entries) = fresh {
                interfaces.fragment(&entries);
                interfaces.align(8);
                run = end..interfaces.position();
            }
            push(&mut parts, start..end);
            push(&mut parts, run.clone());
        }
        let padding = run.end - run.start - length;
        let interfaces_length = parts.iter().map(|part| part.end - part.start).sum::<u32>() - padding;
        let mut bytes = Buffer::with_room(OBJECT_BYTES);
        bytes.string(&path.to_string());
        bytes.u32(interfaces_length);
        bytes.align(8);
        let head = bytes.position();
        bytes.fragment(interfaces.as_bytes());
        let mut parts: Vec<_> = parts.iter().map(|part| part.start + head..part.end + head).collect();
        parts[0].start = 0;
        Self { bytes: bytes.into_bytes().into(), parts: parts.into(), padding }
    }

    /// Bytes of all parts together.
    pub fn size(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// How many of them an entry does not have when it is the last.
    pub const fn padding(&self) -> usize {
        self.padding as usize
    }

    /// The parts in their order; those of the `last` entry end with what it says.
    pub fn excerpt(&self, last: bool) -> Excerpt {
        Excerpt::new(&self.bytes, &self.parts, if last { self.padding } else { 0 })
    }

    /// Appends `oa{sa{sv}}`: the object alone.
    pub fn write(&self, out: &mut Buffer) {
        self.excerpt(true).slices().for_each(|slice| out.fragment(slice));
    }
}

/// Neighbours in memory that are sent one after the other are one part.
fn push(parts: &mut Vec<Range<u32>>, part: Range<u32>) {
    match parts.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        Some(_) | None => parts.push(part),
    }
}

/// The entries of `a{sv}` at a revision.
fn entries<V>(family: &Family<V>, rev: u8, facts: &V) -> Vec<u8> {
    let mut out = Buffer::with_room(OBJECT_BYTES);
    for row in family.properties_at(rev) {
        out.align(8);
        out.string(row.name);
        out.variant(&(row.read)(facts));
    }
    out.into_bytes()
}
