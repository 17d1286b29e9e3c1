//! Looking at a thin pool, because device-mapper says that something happened to it, because its pool
//! has just come up, or because something may have made room for it; and having it changed as what is seen wants it.
//!
//! Invariants: it waits in no queue behind operations, and on nothing but the pool itself; an event that
//! comes while one is looked at is looked at afterwards, and any number of them only once. A pool that was changed
//! is looked at again, because it says that it runs low only once until it is resumed.
//!
//! Deliberately absent: making room, which is `extend`'s.

use std::rc::Rc;

use cores::rt;

use crate::error::Why;
use crate::model::ids::PoolUuid;
use crate::model::pool::Availability;
use crate::shard::conflict::Operation;
use crate::shard::ops::extend;
use crate::shard::turn::left;
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// Looks at the thin pool of a running pool, soon.
pub fn look<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) {
    let Some(running) = shard.running(pool).filter(|_| !shard.stopping.get()) else { return };
    running.extension.heard.set(running.extension.heard.get() + 1);
    running.extension.since.set(running.extension.since.get().or(Some(rt::now())));
    if let Some(again) = shard.looks.borrow_mut().get_mut(&pool) {
        *again = !planted(Bug::EventForgotten);
        return;
    }
    shard.looks.borrow_mut().insert(pool, false);
    shard.busy.set(shard.busy.get() + 1);
    let (looks, waits) = (Rc::clone(shard), Rc::clone(shard));
    let waits_for = planted(Bug::EventsWait).then(|| shard.gate(pool).queue(Operation::LifeCycle));
    let looked = rt::spawn_urgent("thin pool", async move {
        if let Some(ticket) = &waits_for {
            ticket.admitted().await;
        }
        loop {
            while let Some(running) = looks.running(pool)
                && run(&looks, &running).await
            {}
            // Asked and taken out in one step, so that an event is either seen here or starts a new look.
            let again = looks.looks.borrow_mut().remove(&pool).unwrap_or_default();
            if !again {
                break;
            }
            looks.looks.borrow_mut().insert(pool, false);
        }
    });
    rt::spawn("thin pool looked at", async move {
        // A panic is logged by the task wrapper; nothing was changed, so nothing is degraded.
        if looked.await.is_err() {
            waits.looks.borrow_mut().remove(&pool);
        }
        left(&waits);
    })
    .detach();
}

/// Looks once. True: it was changed, and is to be looked at again.
async fn run<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>) -> bool {
    let pool = running.uuid;
    let since = running.extension.since.take().unwrap_or_else(rt::now);
    let seen = shard.sys.thin_pool(pool).await;
    // It may have been stopped meanwhile, or stopped and started: then this is about another one.
    if !shard.is_running(running) {
        return false;
    }
    let state = match seen {
        Ok(state) => state,
        Err(fault) => {
            // A pool that is just being stopped has none any more.
            let level = if fault.why == Why::Errno(libc::ENXIO) { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "{fault}");
            return false;
        }
    };
    let now = rt::now();
    let before = running.extension.looked.replace(Some(now));
    // The first one says nothing of how fast it fills.
    let elapsed = before.map_or(u64::MAX, |before| u64::try_from(now.since(before).as_micros()).unwrap_or(u64::MAX));
    let change = running.pool.borrow_mut().thin_pool_seen(state, elapsed);
    if let Some((before, now)) = change {
        log::warn!("thin pool is in another mode (pool={pool} before={} now={})", before.as_str(), now.as_str());
    }
    log::debug!("thin pool looked at (pool={pool} {state:?})");
    if !state.can_change() && running.pool.borrow().availability() < Availability::NoPoolChanges {
        log::error!("a thin pool takes no changes any more (pool={pool} {state:?})");
        shard.degrade(running, Availability::NoPoolChanges);
    }
    extend::answer(shard, running, &state, since).await
}
