//! Which operations of one pool may overlap: one table, and the gate that applies it.
//!
//! Each operation uses resources of its pool, shared or exclusively; two operations conflict if they
//! use the same resource and one of them does so exclusively. The gate admits operations in the
//! order of their arrival, except that one may pass others that it does not conflict with.
//!
//! Invariant: no two operations that conflict are ever admitted at the same time, and none waits
//! behind one that arrived later and conflicts with it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cores::changes::Signal;

use crate::message::Wish;
use crate::model::ids::FsUuid;

/// What operations of one pool can get in each other's way about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Resource {
    /// Whether the pool runs. Every operation needs it to stay as it is; those that change it are
    /// alone.
    LifeCycle,
    /// Records of existing filesystems in the metadata volume.
    Records,
    /// The pool's own record on its devices.
    Settings,
    /// The pool's name, which is in the paths of its filesystems.
    Name,
    /// Which sectors the pool's record gives to whom, from when that is entered until it is durable and in tables.
    Sectors,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Use {
    Shared,
    Exclusive,
}

/// A kind of operation on a pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Create, start, stop, destroy, set up.
    LifeCycle,
    /// Creating filesystems: formats overlap, and writes only records that do not exist yet.
    CreateFilesystems,
    /// Destroying filesystems, or changing their records.
    ChangeFilesystems,
    /// Making a snapshot of this filesystem, whose record must stay: the snapshot's refers to it.
    Snapshot(FsUuid),
    /// Giving this filesystem a larger volume, and a record that says so.
    Grow(FsUuid),
    /// Changing what the pool's own record holds.
    ChangePool,
    /// Giving the pool another name, and its filesystems their paths.
    RenamePool,
    /// Telling which paths filesystems have, by the names that they have.
    Announce,
    /// Entering sectors into the pool's record: the next step of its thin pool, or a part of an operation that does
    /// so, too. It is the only one that is queued while another of the same operation is held, and waits for nothing
    /// but devices: so growth waits for no client.
    Allocate,
    /// Looking at sizes in use, or at what is recorded, and what has to do with no pool: only the life cycle must stand
    /// still.
    Look,
}

impl Operation {
    /// The operation that carries out a wish.
    pub const fn of(wish: &Wish) -> Self {
        match wish {
            Wish::CreatePool { .. } | Wish::DestroyPool(_) | Wish::StartPool { .. } | Wish::StopPool(_) => {
                Self::LifeCycle
            }
            Wish::CreateFilesystems(..) => Self::CreateFilesystems,
            Wish::DestroyFilesystems(..)
            | Wish::SetFilesystemName(..)
            | Wish::SetSizeLimit(..)
            | Wish::SetMerge(..) => Self::ChangeFilesystems,
            Wish::SnapshotFilesystem(_, origin, _) => Self::Snapshot(*origin),
            Wish::SetPoolName(..) => Self::RenamePool,
            Wish::AddDataDevices(..) | Wish::AddCacheDevices(..) | Wish::InitCache(..) | Wish::GrowDevice(..) => {
                Self::ChangePool
            }
            Wish::SetUserInfo(..) | Wish::SetOverprovisioning(..) | Wish::SetFsLimit(..) => Self::ChangePool,
            Wish::Metadata(..) | Wish::FilesystemMetadata(..) => Self::Look,
            Wish::ChangeTokens(..) | Wish::EncryptPool(..) | Wish::ReencryptPool(_) | Wish::DecryptPool(_) => {
                Self::ChangePool
            }
            // Each changes the key ring in one moment. A passphrase may be long in coming, and others do not wait.
            Wish::Keys(_) => Self::Look,
        }
    }

    /// The table.
    const fn uses(self) -> &'static [(Resource, Use)] {
        match self {
            Self::LifeCycle => &[(Resource::LifeCycle, Use::Exclusive)],
            Self::CreateFilesystems => &[(Resource::LifeCycle, Use::Shared), (Resource::Name, Use::Shared)],
            Self::ChangeFilesystems => &[
                (Resource::LifeCycle, Use::Shared),
                (Resource::Records, Use::Exclusive),
                (Resource::Name, Use::Shared),
            ],
            Self::Snapshot(_) | Self::Announce => {
                &[(Resource::LifeCycle, Use::Shared), (Resource::Records, Use::Shared), (Resource::Name, Use::Shared)]
            }
            Self::Grow(_) => &[(Resource::LifeCycle, Use::Shared), (Resource::Records, Use::Shared)],
            Self::ChangePool => &[(Resource::LifeCycle, Use::Shared), (Resource::Settings, Use::Exclusive)],
            Self::RenamePool => &[
                (Resource::LifeCycle, Use::Shared),
                (Resource::Settings, Use::Exclusive),
                (Resource::Name, Use::Exclusive),
            ],
            Self::Allocate => &[(Resource::Sectors, Use::Exclusive)],
            Self::Look => &[(Resource::LifeCycle, Use::Shared)],
        }
    }

    fn conflicts(self, other: Self) -> bool {
        if let (Self::Snapshot(one) | Self::Grow(one), Self::Snapshot(two) | Self::Grow(two)) = (self, other) {
            // The volume is suspended for a moment, and one would resume it while the other copies or swaps.
            return one == two;
        }
        self.uses().iter().any(|(mine, how)| {
            other
                .uses()
                .iter()
                .any(|(theirs, their_how)| mine == theirs && (*how == Use::Exclusive || *their_how == Use::Exclusive))
        })
    }
}

/// The operations of one pool that run or wait, in the order of arrival.
#[derive(Debug, Default)]
pub struct Gate {
    queue: RefCell<Vec<(u64, Operation)>>,
    next: Cell<u64>,
    left: Signal,
}

/// A place in the queue; given up when dropped.
#[derive(Debug)]
pub struct Ticket {
    gate: Rc<Gate>,
    number: u64,
}

impl Gate {
    /// Takes the next place. The order of these calls is the order of the operations.
    pub fn queue(self: &Rc<Self>, operation: Operation) -> Ticket {
        let number = self.next.get();
        self.next.set(number + 1);
        self.queue.borrow_mut().push((number, operation));
        Ticket { gate: Rc::clone(self), number }
    }

    /// How many run or wait.
    pub fn places(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    fn admits(&self, number: u64) -> bool {
        let queue = self.queue.borrow();
        let place = queue.iter().position(|(other, _)| *other == number).expect("a ticket has its place");
        let operation = queue[place].1;
        !queue[..place].iter().any(|(_, earlier)| operation.conflicts(*earlier))
    }
}

impl Ticket {
    /// Waits until nothing that conflicts is before us.
    pub async fn admitted(&self) {
        self.gate.left.until(|| self.gate.admits(self.number).then_some(())).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gate.queue.borrow_mut().retain(|(number, _)| *number != self.number);
        self.gate.left.raise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creations_overlap_and_a_stop_waits_for_them() {
        let gate = Rc::new(Gate::default());
        let one = gate.queue(Operation::CreateFilesystems);
        let stop = gate.queue(Operation::LifeCycle);
        let two = gate.queue(Operation::CreateFilesystems);
        assert!(gate.admits(one.number));
        assert!(!gate.admits(stop.number));
        assert!(!gate.admits(two.number), "a creation does not pass a stop that came first");
        drop(one);
        assert!(gate.admits(stop.number));
        drop(stop);
        assert!(gate.admits(two.number));
    }

    #[test]
    fn what_does_not_conflict_passes() {
        let gate = Rc::new(Gate::default());
        let destroy = gate.queue(Operation::ChangeFilesystems);
        let second = gate.queue(Operation::ChangeFilesystems);
        let settings = gate.queue(Operation::ChangePool);
        assert!(gate.admits(destroy.number) && !gate.admits(second.number) && gate.admits(settings.number));
    }

    #[test]
    fn snapshots_overlap_but_not_those_of_one_origin() {
        let (a, b) = (FsUuid::from_random([1; 16]), FsUuid::from_random([2; 16]));
        let gate = Rc::new(Gate::default());
        let first = gate.queue(Operation::Snapshot(a));
        let second = gate.queue(Operation::Snapshot(a));
        let other = gate.queue(Operation::Snapshot(b));
        let create = gate.queue(Operation::CreateFilesystems);
        let destroy = gate.queue(Operation::ChangeFilesystems);
        let third = gate.queue(Operation::Snapshot(b));
        assert!(gate.admits(first.number) && gate.admits(other.number) && gate.admits(create.number));
        assert!(!gate.admits(second.number), "the origin is suspended once at a time");
        drop((first, other));
        assert!(gate.admits(second.number));
        assert!(!gate.admits(destroy.number), "the origin is not destroyed meanwhile");
        assert!(!gate.admits(third.number), "nor is a snapshot begun of what is about to be destroyed");
        drop((second, create));
        assert!(gate.admits(destroy.number));
    }

    #[test]
    fn a_filesystem_grows_beside_whatever_does_not_touch_it() {
        let (a, b) = (FsUuid::from_random([1; 16]), FsUuid::from_random([2; 16]));
        let gate = Rc::new(Gate::default());
        let snapshot = gate.queue(Operation::Snapshot(a));
        let others = [Operation::CreateFilesystems, Operation::ChangePool, Operation::RenamePool, Operation::Look];
        let others = others.map(|operation| gate.queue(operation));
        let (grow, beside) = (gate.queue(Operation::Grow(a)), gate.queue(Operation::Grow(b)));
        let again = gate.queue(Operation::Grow(b));
        assert!(gate.admits(beside.number) && !gate.admits(again.number) && !gate.admits(grow.number));
        drop((snapshot, beside));
        let rename = gate.queue(Operation::ChangeFilesystems);
        assert!(gate.admits(grow.number) && gate.admits(again.number) && !gate.admits(rename.number));
        drop(others);
    }

    #[test]
    fn paths_are_made_while_the_pool_keeps_its_name() {
        let gate = Rc::new(Gate::default());
        let create = gate.queue(Operation::CreateFilesystems);
        let look = gate.queue(Operation::Look);
        let rename = gate.queue(Operation::RenamePool);
        let destroy = gate.queue(Operation::ChangeFilesystems);
        assert!(gate.admits(create.number) && gate.admits(look.number));
        assert!(!gate.admits(rename.number), "the creation would make a path with the old name");
        assert!(!gate.admits(destroy.number));
        drop(create);
        assert!(gate.admits(rename.number) && !gate.admits(destroy.number));
    }

    #[test]
    fn growth_waits_for_growth_alone() {
        let gate = Rc::new(Gate::default());
        let others = [Operation::LifeCycle, Operation::ChangeFilesystems, Operation::ChangePool, Operation::RenamePool];
        let _held = others.map(|operation| gate.queue(operation));
        let grows = gate.queue(Operation::Allocate);
        let next = gate.queue(Operation::Allocate);
        assert!(gate.admits(grows.number) && !gate.admits(next.number));
        drop(grows);
        assert!(gate.admits(next.number));
    }

    #[test]
    fn conflicts_are_symmetric() {
        let all = [
            Operation::LifeCycle,
            Operation::CreateFilesystems,
            Operation::ChangeFilesystems,
            Operation::Snapshot(FsUuid::from_random([1; 16])),
            Operation::Snapshot(FsUuid::from_random([2; 16])),
            Operation::Grow(FsUuid::from_random([1; 16])),
            Operation::Grow(FsUuid::from_random([2; 16])),
            Operation::ChangePool,
            Operation::RenamePool,
            Operation::Allocate,
            Operation::Look,
        ];
        for one in all {
            for other in all {
                assert_eq!(one.conflicts(other), other.conflicts(one), "{one:?} {other:?}");
            }
        }
    }
}
