//! Which devices carry a Stratis signature, and whose: at the start, and whenever devices change.
//!
//! Invariants: a device is only looked at, never changed; what is told of a device comes in the order in
//! which it happened; a device that another pool's home may know is taken from it before it is reported
//! as somebody else's.
//!
//! Deliberately absent: remembering. Whether a report is news is for the shard that gets it.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use cores::rt;

use super::Core;
use crate::error::{Failure, Fault};
use crate::limits::{DEVICES_READ_AT_ONCE, DISCOVERED_MAX};
use crate::message::{CallId, Event, Message, Reply};
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Occupant};
use crate::model::ids::PoolUuid;
use crate::probe;
use crate::sys::{DeviceEvent, Opening, Sys, patience};

/// How long to wait before devices are listed again when that has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Reports every device there is, then what happens to devices. Never ends.
pub(super) async fn run<S: Sys, H: Fn(PoolUuid) -> usize>(core: &Core<'_, S, H>) {
    if let Err(fault) = core.enumerate(None).await {
        log::error!("no pools are found: {fault}");
        // Nobody is served before this, and pools whose devices come later are set up then.
        core.tell_all(|| Event::Enumerated { there: None, call: None }).await;
    }
    // Not given up for a client's wish: what it has heard by then would be lost.
    let mut news = Box::pin(core.sys.device_events());
    loop {
        let next = poll_fn(|cx| match core.asked.poll(cx) {
            Poll::Ready(call) => Poll::Ready(Next::Refresh(call)),
            Poll::Pending => news.as_mut().poll(cx).map(Next::News),
        });
        match next.await {
            Next::Refresh(call) => core.refresh(call).await,
            Next::News(heard) => {
                core.take_in(heard).await;
                news = Box::pin(core.sys.device_events());
            }
        }
    }
}

/// What is done next.
enum Next {
    News(Vec<DeviceEvent>),
    Refresh(CallId),
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
    /// Tells what happened to devices.
    async fn take_in(&self, news: Vec<DeviceEvent>) {
        if news.contains(&DeviceEvent::Lost) {
            log::warn!("device events were lost: every device is looked at");
            while let Err(fault) = self.enumerate(None).await {
                log::error!("devices cannot be listed: {fault}");
                rt::sleep(PAUSE).await;
            }
        }
        for event in latest(news) {
            self.report(event).await;
        }
    }

    /// Looks at every device because a client asks for that.
    async fn refresh(&self, call: CallId) {
        if !self.sys.finds_devices() {
            return self.tell_all(|| Event::Enumerated { there: None, call: Some(call) }).await;
        }
        if let Err(fault) = self.enumerate(Some(call)).await {
            let reply = Reply { call, outcome: Err(Failure::Faulted(fault)) };
            self.send(self.places.bus, Message::Reply(Box::new(reply))).await;
        }
    }

    /// Finds every Stratis device there is, reports each to the home of its pool, and then says to all
    /// that there are no others.
    ///
    /// # Errors
    /// Devices could not be listed, and nothing was said.
    async fn enumerate(&self, call: Option<CallId>) -> Result<(), Fault> {
        let mut found = self.sys.discover().await?;
        if found.len() > DISCOVERED_MAX {
            log::error!("{} devices are too many: {DISCOVERED_MAX} are looked at", found.len());
            found.truncate(DISCOVERED_MAX);
        }
        // One that cannot be read now is there all the same.
        let there: Vec<DeviceNumber> = found.iter().map(|candidate| candidate.number).collect();
        for batch in found.chunks(DEVICES_READ_AT_ONCE) {
            let read = |candidate: &Candidate| {
                let (sys, candidate) = (self.sys.clone(), candidate.clone());
                rt::spawn("look at a device", async move { (whose(&sys, &candidate).await, candidate) })
            };
            let looks: Vec<_> = batch.iter().map(read).collect();
            for look in looks {
                match look.await {
                    Ok((outcome, candidate)) => self.found(candidate, outcome).await,
                    Err(panicked) => log::error!("a device is left out: {}", panicked.message),
                }
            }
        }
        // Behind the reports on the same lane, so it arrives after them.
        self.tell_all(|| Event::Enumerated { there: Some(there.clone()), call }).await;
        Ok(())
    }

    /// Tells what a look at a device has come to.
    async fn found(&self, candidate: Candidate, outcome: Result<Option<PoolUuid>, Failure>) {
        match outcome {
            Ok(Some(pool)) => {
                log::info!("device found (pool={pool} device={})", candidate.path);
                self.give(candidate.number, Some((pool, candidate))).await;
            }
            Ok(None) => self.give(candidate.number, None).await,
            Err(failure) => log::warn!("a device is left out (device={}): {failure}", candidate.path),
        }
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

/// The pool that a device belongs to, from its signature. One that says nothing counts as failed, so that it holds up
/// no other.
async fn whose<S: Sys>(sys: &S, candidate: &Candidate) -> Result<Option<PoolUuid>, Failure> {
    match candidate.occupant {
        Occupant::Stratis | Occupant::Unlocked => {}
        Occupant::Nobody | Occupant::Other(_) => return Ok(None),
    }
    sys.open(candidate, Opening::Look).await?;
    let signature = patience::in_time(probe::signature(sys, candidate)).await;
    sys.close(candidate.number, false).await;
    Ok(signature.unwrap_or_else(|| Err(patience::late("read", &candidate.path).into()))?.map(|header| header.pool))
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
