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

use crate::bus::encode::Buffer;
use crate::bus::facts::ObjectPath;
use crate::bus::table::{Family, LATEST};

/// Parts of one object: a name and a run for each revision, the path goes with the first.
pub const PARTS_MAX: usize = 2 * (LATEST as usize + 1);

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

/// Memory in which fragments are put together. It is used again and again, because fresh memory costs more than what is
/// written to it.
#[derive(Debug, Default)]
pub struct Workbench {
    /// The entry of each property, once, whatever the number of revisions that have it.
    entries: Buffer,
    /// Where those of each row are in `entries`.
    rows: Vec<Range<usize>>,
    object: Buffer,
    parts: Vec<Range<u32>>,
}

impl Fragment {
    /// Reads every property of an object.
    pub fn new<V>(bench: &mut Workbench, path: ObjectPath, family: &Family<V>, facts: &V) -> Self {
        bench.read(family, facts);
        let Workbench { entries, rows, object, parts } = bench;
        parts.clear();
        object.clear();
        object.string(&path.to_string());
        let interfaces_length = object.length();
        object.align(8);
        let head = object.position();
        // The path goes with the name of the first interface.
        let mut start = 0;
        let (mut run, mut length) = (0..0, 0);
        for rev in 0..=LATEST {
            object.string_of(&[family.interface, ".r", REVISIONS[usize::from(rev)]]);
            let place = object.length();
            object.align(8);
            let end = object.position();
            if rev == 0 || family.properties.iter().any(|row| row.revs.turns_at(rev)) {
                let of_rev = family.properties.iter().zip(&*rows).filter(|(row, _)| row.revs.contains(rev));
                of_rev.for_each(|(_, own)| object.fragment(&entries.as_bytes()[own.clone()]));
                length = object.position() - end;
                object.align(8);
                run = end..object.position();
            }
            object.set_length(place, length);
            push(parts, start..end);
            push(parts, run.clone());
            start = object.position();
        }
        let padding = run.end - run.start - length;
        let sent: u32 = parts.iter().map(|part| part.end - part.start).sum();
        object.set_length(interfaces_length, sent - head - padding);
        Self { bytes: object.as_bytes().into(), parts: parts.as_slice().into(), padding }
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

impl Workbench {
    /// Reads every property of an object, once.
    fn read<V>(&mut self, family: &Family<V>, facts: &V) {
        self.entries.clear();
        self.rows.clear();
        for row in family.properties {
            self.entries.align(8);
            let start = self.entries.as_bytes().len();
            self.entries.string(row.name);
            self.entries.variant(&(row.read)(facts));
            self.rows.push(start..self.entries.as_bytes().len());
        }
    }
}
