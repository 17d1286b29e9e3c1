//! What the event core reports, taken in: devices found and lost, events of thin pools.
//!
//! Invariants: what is known of the devices of pools that do not run changes here at once, in the order of
//! the reports; what follows for a pool happens in its queue, after what is going on there. A report that
//! says nothing new starts nothing: setting a pool up makes udev report its devices again.
//!
//! Deliberately absent: what becomes of a running pool without a device of its. That shows in I/O.

use std::rc::Rc;

use cores::rt;

use crate::engine::gather::Gathered;
use crate::message::{CallId, Claim, Event, Message, View};
use crate::model::device::{Candidate, DeviceNumber};
use crate::model::ids::PoolUuid;
use crate::shard::conflict::{Gate, Operation};
use crate::shard::turn::{left, milliseconds};
use crate::shard::{Running, Shard, ops, wait};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Takes in a report.
pub(super) fn happen<S: Sys>(shard: &Rc<Shard<S>>, event: Event) {
    match event {
        Event::Found { pool, candidate } => found(shard, pool, candidate),
        Event::Lost { number, owner } => lost(shard, owner, |other| other == number),
        Event::Enumerated { there, call } => {
            if let Some(there) = there {
                lost(shard, None, |known| !there.contains(&known));
            }
            if let Some(call) = call {
                refreshed(shard, call);
            }
            if !shard.enumerated.replace(true) {
                let pools = shard.gathered.borrow().keys().copied().collect();
                settle(shard, pools, true);
            }
        }
        Event::ThinPool(pool) => ops::thin_pool::look(shard, pool),
    }
}

/// Says that what was reported is taken in, once whatever that has started has come to its end.
fn refreshed<S: Sys>(shard: &Rc<Shard<S>>, call: CallId) {
    let gates: Vec<Rc<Gate>> = shard.gates.borrow().values().map(Rc::clone).collect();
    // Setting pools up is alone in their queues, so who comes behind it is admitted after it.
    let tickets: Vec<_> = gates.iter().map(|gate| gate.queue(Operation::Look)).collect();
    shard.busy.set(shard.busy.get() + 1);
    let shard = Rc::clone(shard);
    rt::spawn("refreshed", async move {
        for ticket in tickets {
            ticket.admitted().await;
        }
        shard.send(shard.places.bus, Message::Refreshed(call));
        left(&shard);
    })
    .detach();
}

/// A device carries a pool's signature.
fn found<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, candidate: Candidate) {
    if let Some(running) = shard.running(pool) {
        seen_again(shard, &running, &candidate);
        return;
    }
    if let Some(holder) = shard.holder(candidate.number) {
        // It is open for that pool, and reading it here would close it.
        let path = candidate.path;
        log::warn!("a device of a running pool carries another signature (pool={holder} other={pool} device={path})");
        return;
    }
    let path = candidate.path.clone();
    let news = shard.gathered.borrow_mut().entry(pool).or_default().add(candidate);
    if news && shard.enumerated.get() {
        log::info!("device found (pool={pool} device={path})");
        settle(shard, vec![pool], false);
    }
}

/// A device carries the signature of a pool that runs: of its own devices only the size is news.
fn seen_again<S: Sys>(shard: &Shard<S>, running: &Running, candidate: &Candidate) {
    let mut pool = running.pool.borrow_mut();
    if !pool.numbers().contains(&candidate.number) {
        let path = &candidate.path;
        log::warn!("a device says it is of a pool that runs without it (pool={} device={path})", running.uuid);
        shard.beside.borrow_mut().entry(running.uuid).or_default().add(candidate.clone());
    } else if pool.device_resized(candidate.number, candidate.size) {
        log::info!("device has another size (pool={} device={} size={})", running.uuid, candidate.path, candidate.size);
        shard.show(pool.device_views().into_iter().map(View::Device).collect());
    }
}

/// Devices are gone, or carry the signature of nobody but `owner`.
fn lost<S: Sys>(shard: &Rc<Shard<S>>, owner: Option<PoolUuid>, is_lost: impl Fn(DeviceNumber) -> bool) {
    for running in shard.running.borrow().values().filter(|running| Some(running.uuid) != owner) {
        for member in running.pool.borrow().members().iter().filter(|member| is_lost(member.candidate.number)) {
            log::warn!("a device of a running pool is gone (pool={} device={})", running.uuid, member.candidate.path);
            shard.beside.borrow_mut().entry(running.uuid).or_default();
        }
    }
    for (_, beside) in shard.beside.borrow_mut().iter_mut().filter(|(pool, _)| Some(**pool) != owner) {
        beside.candidates.retain(|known| !is_lost(known.number));
    }
    let mut changed = Vec::new();
    for (pool, gathered) in shard.gathered.borrow_mut().iter_mut().filter(|(pool, _)| Some(**pool) != owner) {
        let is_lost = |number| is_lost(number) && !planted(Bug::GoneDeviceStays);
        let gone: Vec<Candidate> = gathered.candidates.iter().filter(|known| is_lost(known.number)).cloned().collect();
        for candidate in &gone {
            gathered.remove(candidate.number);
            log::info!("device lost (pool={pool} device={})", candidate.path);
        }
        if !gone.is_empty() {
            changed.push((*pool, gone));
        }
    }
    if !shard.enumerated.get() {
        return;
    }
    for (pool, gone) in &changed {
        // Somebody else may want it now. An operation on the pool that goes on keeps its claim.
        if shard.gate(*pool).is_idle() {
            for candidate in gone {
                shard.claim(Claim::ReleaseDevice(*pool, candidate.number));
            }
        }
    }
    settle(shard, changed.into_iter().map(|(pool, _)| pool).collect(), false);
}

/// A pool has begun to run. Devices with its signature that are not its own are kept for when it stops.
pub(super) fn runs<S: Sys>(shard: &Shard<S>, running: &Running) {
    let gathered = shard.gathered.borrow_mut().remove(&running.uuid).unwrap_or_default();
    let members = running.pool.borrow().numbers();
    for other in gathered.candidates.into_iter().filter(|known| !members.contains(&known.number)) {
        shard.beside.borrow_mut().entry(running.uuid).or_default().add(other);
    }
}

/// A pool has ceased to run and leaves these devices behind. When there were reports about its devices while
/// it ran, what is really there is looked at.
pub(super) fn runs_no_more<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, members: Vec<Candidate>) {
    let beside = shard.beside.borrow_mut().remove(&pool);
    let reported = beside.is_some();
    let candidates: Vec<Candidate> = members.into_iter().chain(beside.unwrap_or_default().candidates).collect();
    if !candidates.is_empty() {
        shard.gathered.borrow_mut().insert(pool, Gathered { candidates });
        if reported {
            settle(shard, vec![pool], false);
        }
    }
}

/// Sets up, lists, forgets or cleans up what was found, each pool in its queue; the first time, then says so.
fn settle<S: Sys>(shard: &Rc<Shard<S>>, pools: Vec<PoolUuid>, first: bool) {
    if !first && (pools.is_empty() || shard.stopping.get()) {
        return;
    }
    // A pool that waits for its turn reads what is known by then: a burst of reports is one setup.
    let pools = pools.into_iter().filter(|pool| shard.unsettled.borrow_mut().insert(*pool));
    let tickets: Vec<_> = pools.map(|pool| (pool, shard.gate(pool).queue(Operation::LifeCycle))).collect();
    shard.busy.set(shard.busy.get() + 1);
    let shard = Rc::clone(shard);
    rt::spawn("settle", async move {
        let setups = tickets.into_iter().map(|(pool, ticket)| {
            let shard = Rc::clone(&shard);
            rt::spawn("settle pool", async move {
                let began = rt::now();
                rt::account();
                rt::timed("queue", ticket.admitted()).await;
                shard.unsettled.borrow_mut().remove(&pool);
                ops::gather::settle(&shard, pool).await;
                drop(ticket);
                log::info!("pool settled (pool={pool} ms={}{})", milliseconds(began), rt::spent());
            })
        });
        // A panic in one setup is logged by the task wrapper; that pool stays out, the others come up.
        for ended in wait::all(setups).await {
            if let Err(panicked) = ended {
                log::error!("a pool is left out: {}", panicked.message);
            }
        }
        if first {
            shard.send(shard.places.bus, Message::Settled);
        }
        left(&shard);
    })
    .detach();
}
