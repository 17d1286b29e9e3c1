//! The loop of a shard: messages in, operations started, replies out.
//!
//! Every request becomes one task. Its place in the pool's queue is taken here, synchronously, so
//! operations of one pool that conflict run in the order in which their requests arrived. The loop
//! itself never waits for an operation.
//!
//! A panic inside an operation on a pool means that memory and kernel may disagree: the pool gets no
//! more changes until it is set up again from disk.

use std::rc::Rc;

use cores::clock::Instant;
use cores::rt::{self, Spent};

use crate::error::{Failure, Refusal};
use crate::message::{Message, Reply, Request};
use crate::model::ids::PoolUuid;
use crate::model::pool::Availability;
use crate::shard::conflict::Operation;
use crate::shard::{Shard, bug, news, ops};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Messages taken from the rings in one turn, so that operations get their turns too.
const BATCH: usize = 64;

/// Runs a shard until it was told to stop and nothing runs here any more.
pub async fn run<S: Sys>(shard: Rc<Shard<S>>) {
    rt::spawn("watches", ops::watch::run(Rc::clone(&shard))).detach();
    while !shard.stopping.get() {
        pass(&shard).await;
    }
    finish(&shard).await;
}

/// One turn: sleeps until there is a message, then takes in what there is.
async fn pass<S: Sys>(shard: &Rc<Shard<S>>) {
    let mut batch = Vec::with_capacity(BATCH);
    shard.endpoint.wait().await;
    while shard.endpoint.receive(&mut batch, BATCH) > 0 {
        for (_, message) in batch.drain(..) {
            handle(shard, message);
        }
        rt::yield_now().await;
    }
}

fn handle<S: Sys>(shard: &Rc<Shard<S>>, message: Message) {
    match message {
        Message::Request(request) => accept(shard, *request),
        Message::Claimed(claimed) => {
            shard.claims.borrow_mut().push_back(*claimed);
            shard.claimed.raise();
        }
        Message::Event(event) => news::happen(shard, *event),
        Message::Look => look(shard),
        Message::Stop => shard.stopping.set(true),
        Message::Reply(_) | Message::Views(_) | Message::Claim(_) | Message::Stopped | Message::Settled => {
            unreachable!("nobody sends this to a shard")
        }
        Message::Refresh(_) | Message::Refreshed(_) => unreachable!("nobody sends this to a shard"),
    }
}

/// Starts the operation that a request asks for.
fn accept<S: Sys>(shard: &Rc<Shard<S>>, request: Request) {
    let Request { call, wish, descriptors } = request;
    if shard.stopping.get() {
        shard.send(shard.places.bus, Message::Reply(Box::new(Reply { call, outcome: Err(Refusal::Stopping.into()) })));
        return;
    }
    log::info!("request accepted (call={} {})", call.0, ops::words(&wish));
    let pool = wish.pool();
    let ticket = shard.gate(pool).queue(Operation::of(&wish));
    let (runs, answers) = (Rc::clone(shard), Rc::clone(shard));
    shard.busy.set(shard.busy.get() + 1);
    let accepted = rt::now();
    let operation = rt::spawn(ops::task(&wish), async move {
        rt::account();
        rt::timed("queue", ticket.admitted()).await;
        let ticket = Some(ticket).filter(|_| !planted(Bug::TicketDropped));
        let outcome = ops::carry(&runs, wish, descriptors).await;
        // The ticket goes with the task, also when it panics.
        drop(ticket);
        (outcome, rt::spent())
    });
    rt::spawn("reply", async move {
        let (outcome, spent) = match operation.await {
            Ok(ended) => ended,
            Err(panicked) => {
                if let Some(running) = answers.running(pool) {
                    answers.degrade(&running, Availability::NoPoolChanges);
                }
                (Err(bug("finish the request on", pool, panicked.message)), Spent::default())
            }
        };
        let figures = format!("call={} ms={}{spent}", call.0, milliseconds(accepted));
        match &outcome {
            Ok(_) => log::info!("request done ({figures})"),
            Err(failure) => log::info!("request not done ({figures}): {failure}"),
        }
        if let (Err(Failure::Faulted(_)), Some(running)) = (&outcome, answers.running(pool)) {
            // Its availability may have gone down.
            answers.show_pool(&running);
        }
        if !planted(Bug::ReplyLost) || !matches!(outcome, Err(Failure::Faulted(_))) {
            answers.send(answers.places.bus, Message::Reply(Box::new(Reply { call, outcome })));
        }
        left(&answers);
    })
    .detach();
}

/// Time that has passed, for the log.
pub(super) fn milliseconds(since: Instant) -> String {
    format!("{:.1}", rt::now().since(since).as_secs_f64() * 1000.0)
}

/// Looks at sizes in use, each pool by itself.
fn look<S: Sys>(shard: &Rc<Shard<S>>) {
    if shard.stopping.get() {
        return;
    }
    let pools: Vec<PoolUuid> = shard.running.borrow().keys().copied().collect();
    for pool in pools {
        let ticket = shard.gate(pool).queue(Operation::Look);
        let (looks, waits) = (Rc::clone(shard), Rc::clone(shard));
        shard.busy.set(shard.busy.get() + 1);
        let looked = rt::spawn("look", async move {
            ticket.admitted().await;
            ops::look::run(&looks, pool).await;
            drop(ticket);
        });
        rt::spawn("looked", async move {
            // A panic is logged by the task wrapper; nothing was changed, so nothing is degraded.
            let _logged = looked.await;
            left(&waits);
        })
        .detach();
    }
}

/// One thing less runs here.
pub(super) fn left<S: Sys>(shard: &Shard<S>) {
    shard.busy.set(shard.busy.get() - 1);
    if shard.stopping.get() && shard.busy.get() == 0 {
        // The loop below sleeps on its rings; a message to ourselves wakes it.
        shard.send(shard.endpoint.id(), Message::Stop);
    }
}

/// Lets what runs come to its end, then reports and empties the outbox.
async fn finish<S: Sys>(shard: &Rc<Shard<S>>) {
    // Operations that still run may wait for the directory, so messages are handled to the end.
    while shard.busy.get() > 0 {
        pass(shard).await;
    }
    for to in [shard.places.bus, shard.places.event] {
        shard.send(to, Message::Stopped);
    }
    while shard.endpoint.depths().queued_out > 0 {
        pass(shard).await;
    }
    log::info!("shard stopped (endpoint={})", shard.endpoint.id());
}
