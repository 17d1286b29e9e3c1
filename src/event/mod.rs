//! The event core: what happens outside becomes messages.
//!
//! At the start it finds every device with a Stratis signature, reads whose it is, and reports it to
//! that pool's home; when all are reported it says so. Then it waits for the signal to stop, passes it
//! on, and ends when every shard has ended.
//!
//! Deliberately absent: any state of pools. Reporting a device twice is harmless.

use std::future::Future;
use std::rc::Rc;

use ring::{Endpoint, Lane};

use crate::error::Failure;
use crate::limits::DISCOVERED_MAX;
use crate::message::{Event, Message};
use crate::model::device::{Candidate, Occupant};
use crate::model::ids::PoolUuid;
use crate::probe;
use crate::sys::{Opening, Sys};

/// Where the other roles are in the mesh.
#[derive(Clone, Debug)]
pub struct Places {
    /// The bus core.
    pub bus: usize,
    /// The shards.
    pub shards: std::ops::Range<usize>,
}

/// Runs the role until the daemon has stopped. `home` gives a pool's place in the mesh; `stop` ends
/// when the daemon is asked to stop.
pub async fn run<S: Sys>(
    sys: &S,
    endpoint: Rc<Endpoint<Message>>,
    places: Places,
    home: impl Fn(PoolUuid) -> usize,
    stop: impl Future<Output = ()>,
) {
    discover(sys, &endpoint, &places, home).await;
    stop.await;
    log::info!("stopping: nothing new is accepted");
    for to in std::iter::once(places.bus).chain(places.shards.clone()) {
        send(&endpoint, to, Lane::Urgent, Message::Stop);
    }
    let mut left = places.shards.len();
    let mut batch = Vec::new();
    while left > 0 || endpoint.depths().queued_out > 0 {
        endpoint.wait().await;
        while endpoint.receive(&mut batch, DISCOVERED_MAX) > 0 {
            left -= batch.drain(..).filter(|(_, message)| matches!(message, Message::Stopped)).count();
        }
    }
}

/// Finds every Stratis device there is and reports it to the home of its pool.
async fn discover<S: Sys>(sys: &S, endpoint: &Endpoint<Message>, places: &Places, home: impl Fn(PoolUuid) -> usize) {
    let found = sys.discover().await.unwrap_or_else(|fault| {
        log::error!("no pools are found: {fault}");
        Vec::new()
    });
    if found.len() > DISCOVERED_MAX {
        log::error!("{} devices are too many: {DISCOVERED_MAX} are looked at", found.len());
    }
    for candidate in found.into_iter().take(DISCOVERED_MAX) {
        match whose(sys, &candidate).await {
            Ok(Some(pool)) => {
                log::info!("device found (pool={pool} device={})", candidate.path);
                let event = Event::Found { pool, candidate };
                send(endpoint, home(pool), Lane::Urgent, Message::Event(Box::new(event)));
            }
            Ok(None) => {}
            Err(failure) => log::warn!("a device is left out (device={}): {failure}", candidate.path),
        }
    }
    for shard in places.shards.clone() {
        // Behind the reports on the same lane, so it arrives after them.
        send(endpoint, shard, Lane::Urgent, Message::Event(Box::new(Event::Enumerated)));
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

fn send(endpoint: &Endpoint<Message>, to: usize, lane: Lane, message: Message) {
    endpoint.send(to, lane, message).map_err(|_| ()).expect("an outbox holds every device that is looked at");
}
