//! The slots of the side ring: every operation the kernel holds, and who waits for it.
//!
//! Invariant: a slot is freed only at the completion of its own operation. A future that is dropped
//! leaves its operation here as an orphan; memory and descriptor live until the kernel is done.
//!
//! Deliberately absent: the ring itself, so that this part is tested without a kernel.

use std::task::Waker;

use super::operation::Operation;

/// Names an operation to the kernel: slot in the low half, generation in the high half, so that a
/// late cancel never meets the next operation in the same slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Key(u64);

impl Key {
    fn new(index: usize, generation: u32) -> Key {
        let index = u32::try_from(index).expect("there are far fewer than 2^32 slots");
        Key(u64::from(generation) << 32 | u64::from(index))
    }

    pub(super) fn from_user_data(user_data: u64) -> Key {
        Key(user_data)
    }

    pub(super) fn user_data(self) -> u64 {
        self.0
    }

    fn index(self) -> usize {
        usize::try_from(self.0 & u64::from(u32::MAX)).expect("usize has at least 32 bits")
    }

    fn generation(self) -> u64 {
        self.0 >> 32
    }
}

/// What a slot holds.
enum State {
    Free,
    /// The kernel has the operation, a future waits for it.
    Held(Operation, Option<Waker>),
    /// The kernel has the operation, nobody waits for it.
    Orphan(Operation),
    /// The kernel is done, the future has not looked yet.
    Done(Operation, i32),
}

struct Slot {
    generation: u32,
    state: State,
}

/// What became of a completion.
pub(super) enum Completed {
    /// A future waits for it; wake it.
    Wake(Waker),
    /// A future will find it when it is polled.
    Kept,
    /// Nobody waits; the operation and its result are to be abandoned.
    Orphaned(Operation, i32),
}

/// How a future finds its operation.
pub(super) enum Found {
    Pending,
    Done(Operation, i32),
}

/// What was left of an operation whose future was dropped.
pub(super) enum Left {
    /// It is still with the kernel: cancel it.
    Pending,
    /// It was done already.
    Done(Operation, i32),
}

/// A bounded slab of operations.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
    max: usize,
}

impl Slots {
    /// No operations, and room for `max`.
    pub(super) fn new(max: usize) -> Slots {
        Slots { slots: Vec::new(), free: Vec::new(), max }
    }

    /// Slots in use.
    pub(super) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for `operation`, or gives it back if there is none.
    #[allow(clippy::result_large_err, reason = "the operation comes back to be tried again; it lives in a future")]
    pub(super) fn insert(&mut self, operation: Operation, waker: Waker) -> Result<Key, Operation> {
        if self.used() == self.max {
            return Err(operation);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, state: State::Free });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Held(operation, Some(waker));
        Ok(Key::new(index, slot.generation))
    }

    /// The operation in a slot that was just taken.
    pub(super) fn operation(&mut self, key: Key) -> &mut Operation {
        match &mut self.slot(key).state {
            State::Held(operation, _) => operation,
            State::Free | State::Orphan(_) | State::Done(..) => unreachable!("the slot was just taken"),
        }
    }

    /// Takes note that the kernel is done with an operation.
    pub(super) fn complete(&mut self, key: Key, result: i32) -> Completed {
        match std::mem::replace(&mut self.slot(key).state, State::Free) {
            State::Held(operation, waker) => {
                self.slot(key).state = State::Done(operation, result);
                waker.map_or(Completed::Kept, Completed::Wake)
            }
            State::Orphan(operation) => {
                self.free.push(key.index());
                Completed::Orphaned(operation, result)
            }
            State::Free | State::Done(..) => unreachable!("each operation completes once"),
        }
    }

    /// Looks for the result of an operation; while there is none, `waker` is woken when it comes.
    pub(super) fn poll(&mut self, key: Key, waker: &Waker) -> Found {
        match std::mem::replace(&mut self.slot(key).state, State::Free) {
            State::Held(operation, mut kept) => {
                if !kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
                    kept = Some(waker.clone());
                }
                self.slot(key).state = State::Held(operation, kept);
                Found::Pending
            }
            State::Done(operation, result) => {
                self.free.push(key.index());
                Found::Done(operation, result)
            }
            State::Free | State::Orphan(_) => unreachable!("the future that asks has not been dropped"),
        }
    }

    /// The future that waited is gone.
    pub(super) fn leave(&mut self, key: Key) -> Left {
        match std::mem::replace(&mut self.slot(key).state, State::Free) {
            State::Held(operation, _) => {
                self.slot(key).state = State::Orphan(operation);
                Left::Pending
            }
            State::Done(operation, result) => {
                self.free.push(key.index());
                Left::Done(operation, result)
            }
            State::Free | State::Orphan(_) => unreachable!("a future is dropped once"),
        }
    }

    /// Forgets, without freeing, what the kernel still holds: it may go on writing there.
    pub(super) fn forget(&mut self) {
        for slot in self.slots.drain(..) {
            std::mem::forget(slot);
        }
    }

    fn slot(&mut self, key: Key) -> &mut Slot {
        let slot = &mut self.slots[key.index()];
        assert_eq!(u64::from(slot.generation), key.generation(), "a key outlives its operation");
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::rc::Rc;

    use super::super::operation::Kind;
    use super::*;

    fn operation() -> Operation {
        let file = File::open("/dev/null").expect("every Linux has it");
        Operation { fd: Rc::new(file.into()), kind: Kind::Readable }
    }

    fn insert(slots: &mut Slots) -> Key {
        slots.insert(operation(), Waker::noop().clone()).unwrap_or_else(|_| panic!("there is a free slot"))
    }

    #[test]
    fn a_full_slab_gives_the_operation_back() {
        let mut slots = Slots::new(2);
        let first = insert(&mut slots);
        insert(&mut slots);
        assert!(slots.insert(operation(), Waker::noop().clone()).is_err());
        assert!(matches!(slots.complete(first, 0), Completed::Wake(_)));
        assert!(slots.insert(operation(), Waker::noop().clone()).is_err(), "the result has not been fetched");
        assert!(matches!(slots.poll(first, Waker::noop()), Found::Done(_, 0)));
        insert(&mut slots);
        assert_eq!(slots.used(), 2);
    }

    #[test]
    fn an_orphan_keeps_its_slot_and_descriptor_until_it_completes() {
        let mut slots = Slots::new(1);
        let held = operation();
        let fd = held.fd.clone();
        let key = slots.insert(held, Waker::noop().clone()).unwrap_or_else(|_| panic!("there is a free slot"));
        assert!(matches!(slots.leave(key), Left::Pending));
        assert_eq!((slots.used(), Rc::strong_count(&fd)), (1, 2));
        let Completed::Orphaned(operation, result) = slots.complete(key, -libc::ECANCELED) else {
            panic!("nobody waits for it")
        };
        assert_eq!(result, -libc::ECANCELED);
        drop(operation);
        assert_eq!((slots.used(), Rc::strong_count(&fd)), (0, 1));
    }

    #[test]
    fn the_next_operation_in_a_slot_has_another_key() {
        let mut slots = Slots::new(1);
        let first = insert(&mut slots);
        assert!(matches!(slots.complete(first, 7), Completed::Wake(_)));
        assert!(matches!(slots.leave(first), Left::Done(_, 7)));
        let second = insert(&mut slots);
        assert_eq!(first.index(), second.index());
        assert_ne!(first.user_data(), second.user_data());
        assert_eq!(Key::from_user_data(second.user_data()), second);
    }
}
