//! Looking at a thin pool of which nothing was heard.
//!
//! Growth follows the kernel's events. How fast a thin pool fills tells when the next one is to come: by then it is
//! looked at in any case, and once a minute at least. Of large metadata the kernel tells nothing in time, so they are
//! looked at before half of what is free of them is gone. What such a look finds to do is done at once, and where an
//! event should have told it and none has come, that is a defect, of the kernel or of ours: it is counted, and logged
//! as an error.
//!
//! Invariant: one look at a time, which changes nothing by itself. Deliberately absent: pools on files, whose space is
//! the host's.

use std::rc::Rc;
use std::time::Duration;

use cores::clock::Instant;
use cores::rt;

use crate::engine::grow::until_look;
use crate::limits::{BACKSTOP_MS_MAX, BACKSTOP_MS_MIN, EVENT_LATE_MS};
use crate::model::dm::ThinPoolState;
use crate::model::ids::PoolUuid;
use crate::shard::ops::{extend, thin_pool};
use crate::shard::{Running, Shard};
use crate::sys::{Kind, Sys};

/// Looks at the thin pool of a pool that has begun to run, for what happened before was told to nobody; and from then
/// on whenever it should have been heard of.
pub fn begin<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) {
    thin_pool::look(shard, pool);
    match (shard.sys.kind(), shard.running(pool)) {
        (Kind::Kernel | Kind::Sim, Some(running)) => {
            let shard = Rc::clone(shard);
            rt::spawn("backstop", async move { watch(&shard, &running).await }).detach();
        }
        (Kind::Files, _) | (_, None) => {}
    }
}

/// Ends some time after the pool has.
async fn watch<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>) {
    let mut seen: Option<(Instant, ThinPoolState)> = None;
    let mut pause = BACKSTOP_MS_MAX;
    loop {
        rt::sleep(Duration::from_millis(pause)).await;
        if shard.stopping.get() || !shard.is_running(running) {
            return;
        }
        let Ok(state) = shard.sys.thin_pool(running.uuid).await else {
            // Whoever asks for it in earnest says why.
            pause = BACKSTOP_MS_MAX;
            continue;
        };
        if extend::is_overlooked(shard, running, &state) {
            answer(shard, running, &state).await;
        }
        let now = rt::now();
        let elapsed = |at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        let next = seen.and_then(|(at, before)| until_look(&before, &state, elapsed(at)));
        pause = next.unwrap_or(BACKSTOP_MS_MAX).clamp(BACKSTOP_MS_MIN, BACKSTOP_MS_MAX);
        seen = Some((now, state));
    }
}

/// Has done what was found, and finds out whether an event tells it, too.
async fn answer<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>, state: &ThinPoolState) {
    let extension = &running.extension;
    thin_pool::look(shard, running.uuid);
    let heard = extension.heard.get();
    if !state.is_told() {
        // Room was made, which the kernel tells nobody.
        return;
    }
    rt::sleep(Duration::from_millis(EVENT_LATE_MS)).await;
    if extension.heard.get() == heard {
        let (pool, missed) = (running.uuid, extension.missed.get() + 1);
        extension.missed.set(missed);
        log::error!("no event told what happened to a thin pool (pool={pool} {state:?} missed={missed})");
    }
}
