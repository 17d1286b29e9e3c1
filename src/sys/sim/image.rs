//! Copies of a machine, and what becomes of each: for whoever tries every way in which it can end.
//!
//! A copy shares with its original what neither has changed, so there may be one for each action of a run.
//!
//! Invariant: two machines with the same image are the same to every process that starts on them.
//!
//! Deliberately absent: which copies are made, and what is expected of them.

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use super::Machine;
use super::dice::Dice;
use super::state::State;
use crate::model::device::DevicePath;

/// Who is told of each action before it happens.
pub(super) type Watcher = Rc<RefCell<Option<Box<dyn FnMut(Machine)>>>>;

impl Machine {
    /// Another machine that is what this one is now.
    pub fn fork(&self) -> Self {
        let mut state = self.state().clone();
        // Whoever waits here does not wait there.
        state.news.waiting.clear();
        Self::of(state)
    }

    /// Before each action from now on `watcher` is given a copy of the machine; with `None` no more.
    pub fn watch(&self, watcher: Option<Box<dyn FnMut(Self)>>) {
        *self.watcher.borrow_mut() = watcher;
    }

    /// An action is about to happen.
    pub(super) fn watched(&self) {
        // Taken out, so that a watcher may do what it likes.
        let watcher = self.watcher.borrow_mut().take();
        if let Some(mut watcher) = watcher {
            watcher(self.fork());
            self.watcher.borrow_mut().get_or_insert(watcher);
        }
    }

    /// The power fails in one of all ways in which it can; 0: all is lost that can be; the largest number: nothing.
    /// Says how many there are.
    pub fn crash_way(&self, way: u64) -> u64 {
        self.state().crash(Dice::way(way)).ways()
    }

    /// The power fails, and of most writes all is lost, or nothing.
    pub fn crash_writes(&self, seed: u64) {
        self.state().crash(Dice::of_writes(seed));
    }

    /// A hash over all that a process could find out about the machine, for one on which nothing is under way.
    pub fn image(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.state.borrow().hash(&mut hasher);
        hasher.finish()
    }

    /// Which disks a process has open.
    pub fn open_disks(&self) -> Vec<DevicePath> {
        let state = self.state.borrow();
        let mut open: Vec<_> = state.open.keys().filter_map(|(_, number)| state.disks.get(number)).collect();
        open.dedup_by_key(|disk| disk.number);
        open.into_iter().map(|disk| disk.path.clone()).collect()
    }

    /// All disks that are plugged in.
    pub fn disks(&self) -> Vec<DevicePath> {
        self.state.borrow().disks.values().map(|disk| disk.path.clone()).collect()
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for disk in self.disks.values() {
            (disk.number, disk.size.0, disk.blocks.physical, &disk.resident).hash(hasher);
            (disk.reads_fail, disk.writes_fail, &disk.medium).hash(hasher);
        }
        for (place, store) in &self.thin {
            (place, store).hash(hasher);
        }
        for ((place, maker), store) in &self.mdv {
            let seen = self.disks.get(&place.0).is_some_and(|disk| disk.medium.writer(place.1) == *maker);
            (place, seen, store).hash(hasher);
        }
        for (place, header) in &self.headers {
            (place, format!("{header:?}")).hash(hasher);
        }
        for (device, table) in self.stack.tables() {
            (device, table).hash(hasher);
        }
        (&self.caches, &self.passed_by, &self.in_use, &self.news.ailing, &self.hung).hash(hasher);
        for (filesystem, told) in &self.announced {
            (filesystem, told.1.as_str(), told.2.as_str(), told.3).hash(hasher);
        }
        self.keys.keys().for_each(|key| key.as_str().hash(hasher));
    }
}
