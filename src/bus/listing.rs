//! The reply to `GetManagedObjects` on its way out: a header of its own, and what all objects say,
//! shared with the tree.
//!
//! Invariant: it shows the tree as it was when the listing was made. An object that changes while
//! the listing leaves gets another fragment; this one keeps the old.
//!
//! Deliberately absent: copying. What a listing takes is a pointer for each object.

use std::rc::Rc;
use std::vec::IntoIter;

use cores::limits::SLICES_MAX;
use cores::side::Excerpt;

use crate::bus::calls::Caller;
use crate::bus::encode::{Outgoing, size};
use crate::bus::fragment::{Fragment, PARTS_MAX};
use crate::bus::tree::Tree;

/// Header fields, and the length of the array; a unique name has at most 255 bytes.
const HEAD_BYTES_MAX: usize = 512;

/// A listing of which nothing has left yet, or a part.
#[derive(Debug)]
pub struct Listing {
    /// Header and length of the array; then nothing.
    head: Option<Rc<[u8]>>,
    objects: IntoIter<Rc<Fragment>>,
}

impl Listing {
    /// How long the message would be now, at most.
    pub const fn size(tree: &Tree) -> usize {
        HEAD_BYTES_MAX + tree.size()
    }

    /// All objects, for this caller.
    pub fn new(serial: u32, caller: &Caller, tree: &Tree) -> Self {
        let objects: Vec<_> = tree.fragments().cloned().collect();
        let length = tree.size() - objects.last().map_or(0, |last| last.padding());
        let mut message = Outgoing::returns_raw(serial, &caller.sender, caller.serial, "a{oa{sa{sv}}}");
        message.body().u32(size(length));
        message.body().align(8);
        Self { head: Some(message.finish_before(length).into()), objects: objects.into_iter() }
    }

    /// What to send next, at most `SLICES_MAX` slices; `None` at the end.
    pub fn poll_excerpts(&mut self) -> Option<Vec<Excerpt>> {
        let mut excerpts = Vec::new();
        if let Some(head) = self.head.take() {
            excerpts.push(Excerpt::new(&head, &std::iter::once(0..size(head.len())).collect(), 0));
        }
        let mut count = excerpts.len();
        while count + PARTS_MAX <= SLICES_MAX
            && let Some(object) = self.objects.next()
        {
            let excerpt = object.excerpt(self.objects.len() == 0);
            count += excerpt.count();
            excerpts.push(excerpt);
        }
        (!excerpts.is_empty()).then_some(excerpts)
    }
}
