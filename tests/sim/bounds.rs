//! What is bounded stays within its bounds: looked at after every turn of a universe.
//!
//! A ring cannot hold more than it has slots, so of the mesh what waits for one is looked at.
//!
//! Deliberately absent: lanes of blocking threads. A simulated machine has none (`cores/tests/lane.rs`).

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use cores::deterministic::Universe;
use stratisd::limits::{
    BUS_OUT_BYTES_MAX, CALLS_MAX, CALLS_PER_SENDER_MAX, LISTINGS_WAITING_MAX, OUTBOX_MAX, SENDER_BYTES_MAX,
};

use crate::always::Odd;
use crate::world::Driver;

/// What a pool does by itself, beside what clients ask for: setups, looks at sizes, a step, growth of filesystems.
const OWN: usize = 64;
/// The longest answers of these worlds. Those of calls in flight come on top of what waits for a client.
const ANSWER_BYTES: usize = 64 << 10;

/// Whom the watcher of a universe looks at, once it has come up.
#[derive(Clone, Default)]
pub(crate) struct Watched(Rc<RefCell<Weak<Driver>>>);

impl Watched {
    /// From now on this daemon is looked at.
    pub(crate) fn is(&self, driver: &Rc<Driver>) {
        *self.0.borrow_mut() = Rc::downgrade(driver);
    }
}

/// Has a universe watched; what is found wrong first is kept.
pub(crate) fn watch(universe: &Universe, odd: &Odd) -> Watched {
    let watched = Watched::default();
    let (looked_at, into) = (watched.clone(), Rc::clone(odd));
    universe.watch(move |_| {
        let driver = looked_at.0.borrow().upgrade();
        if let Some(over) = driver.and_then(|driver| over(&driver)) {
            into.borrow_mut().get_or_insert(over);
        }
    });
    watched
}

/// A bound that is passed.
fn over(driver: &Driver) -> Option<String> {
    let (bus, shards) = (driver.office_load(), driver.loads());
    let queued = shards.iter().map(|shard| shard.queued).max().unwrap_or(0);
    let waiting = shards.iter().map(|shard| shard.waiting).chain([driver.waiting()]).max().unwrap_or(0);
    let gates = shards.iter().map(|shard| shard.gates).max().unwrap_or(0);
    let answers = CALLS_PER_SENDER_MAX * ANSWER_BYTES;
    let all = [
        ("calls in flight", bus.calls, CALLS_MAX),
        ("calls of one client", bus.calls_of_one, CALLS_PER_SENDER_MAX),
        ("listings that wait", bus.listings, LISTINGS_WAITING_MAX),
        ("bytes that wait for one client", bus.bytes_of_one, SENDER_BYTES_MAX + answers),
        ("bytes that wait", bus.bytes, BUS_OUT_BYTES_MAX + answers),
        ("operations of one pool", queued, bus.calls + OWN),
        ("pools with operations", gates, bus.calls + OWN),
        ("messages that wait for a ring", waiting, OUTBOX_MAX.min(2 * CALLS_MAX + OWN)),
    ];
    let (what, count, max) = all.into_iter().find(|(_, count, max)| count > max)?;
    Some(format!("more than there may be: {count} {what}, at most {max}"))
}
