//! What each pool has for itself, so that none waits for another: asking a thin pool how it is waits for its disks,
//! and those may hang.
//!
//! Invariant: a pool has its threads from the first question about its thin pool until that is gone; what they do then
//! they do to its end. Deliberately absent: what is done on them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use cores::lane::Lane;
use cores::steady;

use super::swaps::Swaps;
use crate::error::Why;
use crate::limits::LANE_QUEUE_MAX;
use crate::model::ids::PoolUuid;
use crate::sys::kernel::why;

/// The reserves of the pools of one core.
pub(super) struct Reserves {
    cpu: Option<usize>,
    pools: RefCell<BTreeMap<PoolUuid, Rc<Reserve>>>,
}

/// That of one pool.
pub(super) struct Reserve {
    /// Reading the state of the thin pool and swapping its table, which answers events: one thread.
    pub(super) urgent: Lane,
    /// Making what lies below it longer, ahead of need: one thread.
    pub(super) below: Lane,
    /// Swaps of its table that are under way.
    pub(super) swaps: Swaps,
}

impl Reserves {
    /// None yet; their threads are to run on this CPU.
    pub(super) fn new(cpu: Option<usize>) -> Self {
        Self { cpu, pools: RefCell::default() }
    }

    /// That of a pool, which is made if it has none.
    pub(super) fn of(&self, pool: PoolUuid) -> Result<Rc<Reserve>, Why> {
        if let Some(reserve) = self.pools.borrow().get(&pool) {
            return Ok(Rc::clone(reserve));
        }
        let reserve = Rc::new(Reserve::new(self.cpu).map_err(|error| why(&error))?);
        self.pools.borrow_mut().insert(pool, Rc::clone(&reserve));
        Ok(reserve)
    }

    /// The pool has no thin pool any more.
    pub(super) fn release(&self, pool: PoolUuid) {
        self.pools.borrow_mut().remove(&pool);
    }
}

impl Reserve {
    fn new(cpu: Option<usize>) -> io::Result<Self> {
        // They suspend devices, if only for the moment in which the kernel swaps tables.
        let lane = |name| Lane::prepared(name, 1, LANE_QUEUE_MAX, cpu, steady::make_first);
        Ok(Self { urgent: lane("urgent")?, below: lane("below")?, swaps: Swaps::default() })
    }
}
