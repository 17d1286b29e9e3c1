//! File descriptors on their way from a client's message to whoever reads them.
//!
//! Invariant: each is owned in one place and closed when that is dropped, so a request that is refused,
//! fails, or is lost in a panic leaves none open.
//!
//! Deliberately absent: copies, and any use of them here.

use std::os::fd::OwnedFd;

/// The descriptors of one message, in its order.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// How many there are.
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// One of them; the others are closed.
    pub fn pick(self, index: usize) -> Option<OwnedFd> {
        self.0.into_iter().nth(index)
    }
}

impl From<Vec<OwnedFd>> for Descriptors {
    fn from(all: Vec<OwnedFd>) -> Self {
        Self(all)
    }
}
