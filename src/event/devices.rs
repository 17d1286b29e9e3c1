//! Which devices carry a Stratis signature, and whose: at the start, and whenever devices change.
//!
//! Invariants: a device is only looked at, never changed; what is told of a device comes in the order in
//! which it happened; a device that another pool's home may know is taken from it before it is reported
//! as somebody else's.
//!
//! Deliberately absent: remembering. Whether a report is news is for the shard that gets it.

use std::collections::BTreeMap;
use std::time::Duration;

use cores::rt;

use super::Core;
use crate::error::Failure;
use crate::limits::DISCOVERED_MAX;
use crate::message::Event;
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Occupant};
use crate::model::ids::PoolUuid;
use crate::probe;
use crate::sys::{DeviceEvent, Opening, Sys};

/// How long to wait before devices are listed again when that has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Reports every device there is, then what happens to devices. Never ends.
pub(super) async fn run<S: Sys, H: Fn(PoolUuid) -> usize>(core: &Core<'_, S, H>) {
    if !core.enumerate().await {
        // Nobody is served before this, and pools whose devices come later are set up then.
        core.tell_all(|| Event::Enumerated(Vec::new())).await;
    }
    loop {
        let news = core.sys.device_events().await;
        if news.contains(&DeviceEvent::Lost) {
            log::warn!("device events were lost: every device is looked at");
            while !core.enumerate().await {
                rt::sleep(PAUSE).await;
            }
        }
        for event in latest(news) {
            core.report(event).await;
        }
    }
}

/// The last event of each device; the ones before it are history.
fn latest(news: Vec<DeviceEvent>) -> Vec<DeviceEvent> {
    let mut last = BTreeMap::new();
    for (place, event) in news.iter().enumerate() {
        match event {
            DeviceEvent::Changed { number, .. } | DeviceEvent::Removed { number, .. } => {
                last.insert(*number, place);
            }
            DeviceEvent::Lost => {}
        }
    }
    let kept = |place| last.values().any(|kept| *kept == place);
    news.into_iter().enumerate().filter(|(place, _)| kept(*place)).map(|(_, event)| event).collect()
}

impl<S: Sys, H: Fn(PoolUuid) -> usize> Core<'_, S, H> {
    /// Finds every Stratis device there is, reports each to the home of its pool, and then says to all
    /// that there are no others. False: devices could not be listed, and nothing was said.
    async fn enumerate(&self) -> bool {
        let mut found = match self.sys.discover().await {
            Ok(found) => found,
            Err(fault) => {
                log::error!("no pools are found: {fault}");
                return false;
            }
        };
        if found.len() > DISCOVERED_MAX {
            log::error!("{} devices are too many: {DISCOVERED_MAX} are looked at", found.len());
            found.truncate(DISCOVERED_MAX);
        }
        // One that cannot be read now is there all the same.
        let there: Vec<DeviceNumber> = found.iter().map(|candidate| candidate.number).collect();
        for candidate in found {
            match whose(self.sys, &candidate).await {
                Ok(Some(pool)) => {
                    log::info!("device found (pool={pool} device={})", candidate.path);
                    self.give(candidate.number, Some((pool, candidate))).await;
                }
                Ok(None) => self.give(candidate.number, None).await,
                Err(failure) => log::warn!("a device is left out (device={}): {failure}", candidate.path),
            }
        }
        // Behind the reports on the same lane, so it arrives after them.
        self.tell_all(|| Event::Enumerated(there.clone())).await;
        true
    }

    /// Looks at a device that something happened to.
    async fn report(&self, event: DeviceEvent) {
        match event {
            DeviceEvent::Changed { path, number } => match self.look(&path).await {
                Ok(Some((pool, candidate))) => {
                    if candidate.number != number {
                        self.give(number, None).await;
                    }
                    log::debug!("device changed (pool={pool} device={path})");
                    self.give(candidate.number, Some((pool, candidate))).await;
                }
                Ok(None) | Err(Failure::Refused(_)) => self.give(number, None).await,
                // It may be all right again later; until then nothing new is known of it.
                Err(Failure::Faulted(fault)) => log::warn!("a device cannot be looked at (device={path}): {fault}"),
            },
            DeviceEvent::Removed { path, number } => {
                log::debug!("no Stratis device any more (device={path})");
                self.give(number, None).await;
            }
            DeviceEvent::Lost => {}
        }
    }

    /// Takes a device from whoever has it and gives it to the pool that it belongs to, if any.
    async fn give(&self, number: DeviceNumber, found: Option<(PoolUuid, Candidate)>) {
        let owner = found.as_ref().map(|(pool, _)| *pool);
        self.tell_all(|| Event::Lost { number, owner }).await;
        if let Some((pool, candidate)) = found {
            self.tell((self.home)(pool), Event::Found { pool, candidate }).await;
        }
    }

    async fn look(&self, path: &DevicePath) -> Result<Option<(PoolUuid, Candidate)>, Failure> {
        let candidate = self.sys.examine(path).await?;
        Ok(whose(self.sys, &candidate).await?.map(|pool| (pool, candidate)))
    }

    async fn tell_all(&self, event: impl Fn() -> Event) {
        for shard in self.places.shards.clone() {
            self.tell(shard, event()).await;
        }
    }
}

/// The pool that a device belongs to, from its signature.
async fn whose<S: Sys>(sys: &S, candidate: &Candidate) -> Result<Option<PoolUuid>, Failure> {
    match candidate.occupant {
        Occupant::Stratis => {}
        Occupant::Nobody | Occupant::Other(_) => return Ok(None),
    }
    sys.open(candidate, Opening::Look).await?;
    let signature = probe::signature(sys, candidate).await;
    sys.close(candidate.number, false).await;
    Ok(signature?.map(|header| header.pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_events_of_a_device_the_last_one_counts() {
        let (a, b) = (DeviceNumber(8, 0), DeviceNumber(8, 16));
        let path = DevicePath::try_from("/dev/d").expect("absolute");
        let changed = |number| DeviceEvent::Changed { path: path.clone(), number };
        let removed = |number| DeviceEvent::Removed { path: path.clone(), number };
        let news = vec![changed(a), removed(b), DeviceEvent::Lost, removed(a), changed(b), changed(a)];
        assert_eq!(latest(news), [changed(b), changed(a)]);
    }
}
