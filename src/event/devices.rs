//! Which devices carry a Stratis signature, and whose: at the start, and whenever devices change.
//!
//! Invariants: a device is only looked at, never changed; what is told of a device comes in the order in
//! which it happened; a device that another pool's home may know is taken from it before it is reported
//! as somebody else's. A device that says nothing holds up the others for a second; it is told when it has spoken.
//!
//! Deliberately absent: remembering. Whether a report is news is for the shard that gets it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use cores::clock::Instant;
use cores::rt::{self, Join, Panicked};

use super::Core;
use crate::error::{Failure, Fault};
use crate::limits::{DEVICES_READ_AT_ONCE, DISCOVERED_MAX, LOOK_WAIT_MS};
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
        let next = poll_fn(|cx| match (core.asked.poll(cx), core.late.poll(cx)) {
            (Poll::Ready(call), _) => Poll::Ready(Next::Refresh(call)),
            (Poll::Pending, Poll::Ready(late)) => Poll::Ready(Next::Late(late)),
            (Poll::Pending, Poll::Pending) => news.as_mut().poll(cx).map(Next::News),
        });
        match next.await {
            Next::Refresh(call) => core.refresh(call).await,
            Next::Late(late) => {
                log::info!("a device has spoken (device={})", late.look.path);
                core.looked(late).await;
            }
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
    Late(Late),
}

/// What a look at a device comes to: the pool that it is of, and what it is.
type Outcome = Result<Option<(PoolUuid, Candidate)>, Failure>;

/// A look at a device.
struct Look {
    path: DevicePath,
    number: DeviceNumber,
    outcome: Join<Outcome>,
    /// What has happened to the device meanwhile: then what the look comes to is of no interest.
    then: Option<DeviceEvent>,
}

/// A look that has taken long.
struct Late {
    look: Look,
    outcome: Result<Outcome, Panicked>,
}

/// Looks at devices that say nothing for now. At most one at each device, and each ends.
#[derive(Default)]
pub(super) struct Looks(RefCell<Vec<Look>>);

impl Looks {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Late> {
        let mut looks = self.0.borrow_mut();
        for place in 0..looks.len() {
            if let Poll::Ready(outcome) = Pin::new(&mut looks[place].outcome).poll(cx) {
                return Poll::Ready(Late { look: looks.swap_remove(place), outcome });
            }
        }
        Poll::Pending
    }

    /// Whether a look at this device is under way; what has happened to the device is kept until that has ended.
    fn postpone(&self, number: DeviceNumber, event: &DeviceEvent) -> bool {
        let mut looks = self.0.borrow_mut();
        let look = looks.iter_mut().find(|look| look.number == number);
        look.map(|look| look.then = Some(event.clone())).is_some()
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
        let known = |candidate: &Candidate| self.late.0.borrow().iter().any(|look| look.number == candidate.number);
        found.retain(|candidate| !known(candidate));
        for batch in found.chunks(DEVICES_READ_AT_ONCE) {
            let looks: Vec<Look> = batch.iter().map(|found| self.look(found.path.clone(), found.number)).collect();
            let end = rt::now() + Duration::from_millis(LOOK_WAIT_MS);
            for look in looks {
                self.tell_by(end, look).await;
            }
        }
        // Behind the reports on the same lane, so it arrives after them.
        self.tell_all(|| Event::Enumerated { there: Some(there.clone()), call }).await;
        Ok(())
    }

    /// Tells what happened to a device.
    async fn report(&self, event: DeviceEvent) {
        match event {
            DeviceEvent::Changed { number, .. } if self.late.postpone(number, &event) => {}
            DeviceEvent::Changed { path, number } => {
                let end = rt::now() + Duration::from_millis(LOOK_WAIT_MS);
                self.tell_by(end, self.look(path, number)).await;
            }
            DeviceEvent::Removed { ref path, number } => {
                log::debug!("no Stratis device any more (device={path})");
                self.late.postpone(number, &event);
                self.give(number, None).await;
            }
            DeviceEvent::Lost => {}
        }
    }

    /// Begins to look at a device.
    fn look(&self, path: DevicePath, number: DeviceNumber) -> Look {
        let (sys, own) = (self.sys.clone(), path.clone());
        let outcome = rt::spawn("look at a device", async move { look_at(&sys, &own).await });
        Look { path, number, outcome, then: None }
    }

    /// Tells what a look comes to until then. Nobody waits for one that takes longer.
    async fn tell_by(&self, end: Instant, mut look: Look) {
        match rt::within(end.since(rt::now()), &mut look.outcome).await {
            Some(outcome) => self.looked(Late { look, outcome }).await,
            None => {
                log::warn!("a device says nothing for now, others do not wait for it (device={})", look.path);
                self.late.0.borrow_mut().push(look);
            }
        }
    }

    /// Tells what a look has come to.
    async fn looked(&self, Late { look: Look { path, number, then, .. }, outcome }: Late) {
        match (then, outcome) {
            (Some(event @ DeviceEvent::Changed { .. }), _) => Box::pin(self.report(event)).await,
            // It is known that it is gone.
            (Some(DeviceEvent::Removed { .. } | DeviceEvent::Lost), _) => {}
            (None, Ok(Ok(Some((pool, candidate))))) => {
                if candidate.number != number {
                    self.give(number, None).await;
                }
                log::debug!("a device has a signature (pool={pool} device={path})");
                self.give(candidate.number, Some((pool, candidate))).await;
            }
            (None, Ok(Ok(None))) => self.give(number, None).await,
            (None, Ok(Err(Failure::Refused(refusal)))) => {
                log::info!("a device is left out (device={path}): {refusal}");
                self.give(number, None).await;
            }
            // It may be all right again later; until then nothing new is known of it.
            (None, Ok(Err(Failure::Faulted(fault)))) => {
                log::warn!("a device cannot be looked at (device={path}): {fault}");
            }
            (None, Err(panicked)) => log::error!("a device is left out (device={path}): {}", panicked.message),
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

    async fn tell_all(&self, event: impl Fn() -> Event) {
        for shard in self.places.shards.clone() {
            self.tell(shard, event()).await;
        }
    }
}

/// What a look at a device comes to. One that says nothing counts as failed in the end.
async fn look_at<S: Sys>(sys: &S, path: &DevicePath) -> Outcome {
    let late = || patience::late("read", path);
    let candidate = patience::in_time(sys.examine(path)).await.unwrap_or_else(|| Err(late().into()))?;
    match candidate.occupant {
        Occupant::Stratis | Occupant::Unlocked => {}
        Occupant::Nobody | Occupant::Other(_) => return Ok(None),
    }
    sys.open(&candidate, Opening::Look).await?;
    let signature = patience::in_time(probe::signature(sys, &candidate)).await;
    sys.close(candidate.number, false).await;
    let header = signature.unwrap_or_else(|| Err(late().into()))?;
    Ok(header.map(|header| (header.pool, candidate)))
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
