//! What an object says about itself, marshalled once: the properties of each of its ten interfaces.
//!
//! `GetManagedObjects` and `InterfacesAdded` are concatenations of these bytes. Revisions that say
//! the same share one run of bytes; a filesystem has three runs, not ten.
//!
//! Invariant: the bytes of a run are what `Buffer::fragment` may append: written from offset 0.

use crate::bus::encode::Buffer;
use crate::bus::table::{Family, LATEST};

/// The entries of `a{sv}`, for each revision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// The interfaces' name up to the revision.
    interface: &'static str,
    /// First revision and bytes of each run, ascending; the first is revision 0.
    runs: Box<[(u8, Box<[u8]>)]>,
}

impl Fragment {
    /// Reads every property of an object.
    pub fn new<V>(family: &Family<V>, facts: &V) -> Self {
        let turns = |rev| rev == 0 || family.properties.iter().any(|row| row.revs.turns_at(rev));
        let runs = (0..=LATEST).filter(|rev| turns(*rev)).map(|rev| (rev, entries(family, rev, facts)));
        Self { interface: family.interface, runs: runs.collect() }
    }

    /// Bytes that this object adds to `GetManagedObjects`, at most.
    pub fn size(&self) -> usize {
        let interfaces = (0..=LATEST).map(|rev| self.interface.len() + self.at(rev).len() + INTERFACE_ROOM);
        OBJECT_ROOM + interfaces.sum::<usize>()
    }

    /// Appends `a{sa{sv}}`: every interface with its properties.
    pub fn write(&self, out: &mut Buffer) {
        out.array(8, |out| {
            for rev in 0..=LATEST {
                out.align(8);
                out.string_of(&[self.interface, ".r", REVISIONS[usize::from(rev)]]);
                let bytes = self.at(rev);
                out.array(8, |out| out.fragment(bytes));
            }
        });
    }

    fn at(&self, rev: u8) -> &[u8] {
        let after = self.runs.partition_point(|(first, _)| *first <= rev);
        &self.runs[after - 1].1
    }
}

/// Padding (three times 7 at most), two lengths, the revision and a NUL.
const INTERFACE_ROOM: usize = 33;

/// The path (45 bytes with the largest number), two lengths, padding, a NUL.
const OBJECT_ROOM: usize = 72;

const REVISIONS: [&str; LATEST as usize + 1] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

fn entries<V>(family: &Family<V>, rev: u8, facts: &V) -> Box<[u8]> {
    let mut out = Buffer::default();
    for row in family.properties_at(rev) {
        out.align(8);
        out.string(row.name);
        out.variant(&(row.read)(facts));
    }
    out.into_bytes().into_boxed_slice()
}
