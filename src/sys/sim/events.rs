//! What a simulated machine tells of itself: devices that come, change and go, and events of thin pools.
//!
//! As a real one, it reports a disk again when a descriptor is closed that was open for writing. Invariant:
//! nothing is told of what happened before somebody began to listen.
//!
//! Deliberately absent: delays. Who asks gets the news at once, and finds the machine as it is by then.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Waker;

use super::state::State;
use crate::model::device::DeviceNumber;
use crate::model::dm::ThinPoolMode;
use crate::model::ids::PoolUuid;
use crate::sys::DeviceEvent;

/// News that nobody has heard yet.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// `None` until somebody listens.
    devices: Option<Vec<DeviceEvent>>,
    thin_pools: BTreeSet<PoolUuid>,
    /// Events of thin pools are lost.
    pub(super) deaf: bool,
    /// Who was told of all thin pools.
    introduced: BTreeSet<u64>,
    pub(super) waiting: Vec<Waker>,
    /// Thin pools that are not well: mode, and whether they need a check.
    pub(super) ailing: BTreeMap<PoolUuid, (ThinPoolMode, bool)>,
    /// Thin pools that have raised an event since somebody asked how they are: the number of the first one.
    pub(super) unanswered: BTreeMap<PoolUuid, u64>,
    /// Events of thin pools so far.
    raised: u64,
}

impl News {
    /// Nothing has happened and nobody listens.
    pub(super) const fn new() -> Self {
        Self {
            devices: None,
            thin_pools: BTreeSet::new(),
            deaf: false,
            introduced: BTreeSet::new(),
            waiting: Vec::new(),
            ailing: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            raised: 0,
        }
    }

    /// From now on what happens to devices is kept.
    pub(super) fn listen(&mut self) {
        self.devices.get_or_insert_default();
    }

    /// Something happened to a device.
    pub(super) fn add(&mut self, event: DeviceEvent) {
        if let Some(devices) = &mut self.devices {
            match event {
                // What had been waiting is lost with it.
                DeviceEvent::Lost => *devices = vec![event],
                DeviceEvent::Changed { .. } | DeviceEvent::Removed { .. } => devices.push(event),
            }
        }
        self.wake();
    }

    /// A pool's thin pool has raised an event.
    pub(super) fn raise(&mut self, pool: PoolUuid) {
        if !self.deaf {
            self.raised += 1;
            self.unanswered.entry(pool).or_insert(self.raised);
            self.thin_pools.insert(pool);
            self.wake();
        }
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// What happened to devices; with nothing, `waker` is woken by the next news.
    pub(super) fn take_devices(&mut self, waker: &Waker) -> Option<Vec<DeviceEvent>> {
        let news = self.devices.as_mut().map(std::mem::take).filter(|news| !news.is_empty());
        if news.is_none() {
            self.waiting.push(waker.clone());
        }
        news
    }

    /// Whose thin pools raised events; the first time `all` there are.
    pub(super) fn take_thin_pools(&mut self, who: u64, all: Vec<PoolUuid>, waker: &Waker) -> Option<Vec<PoolUuid>> {
        if self.introduced.insert(who) && !all.is_empty() {
            self.thin_pools.clear();
            return Some(all);
        }
        let news: Vec<PoolUuid> = std::mem::take(&mut self.thin_pools).into_iter().collect();
        if news.is_empty() {
            self.waiting.push(waker.clone());
            return None;
        }
        Some(news)
    }
}

impl State {
    /// A disk has come or changed.
    pub(super) fn touched(&mut self, number: DeviceNumber) {
        let Some(disk) = self.disks.get(&number) else {
            // It was pulled, which was told then.
            return;
        };
        let path = disk.path.clone();
        let ours = disk.resident.is_none() && disk.has_signature();
        self.news.add(if ours { DeviceEvent::Changed { path, number } } else { DeviceEvent::Removed { path, number } });
    }

    /// A pool's thin pool changes its mode, and says so.
    pub(super) fn ail(&mut self, pool: PoolUuid, mode: ThinPoolMode, needs_check: bool) {
        self.news.ailing.insert(pool, (mode, needs_check));
        self.news.raise(pool);
    }
}
