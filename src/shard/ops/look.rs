//! Looking at sizes in use, because somebody reads them.
//!
//! Invariant: nothing is changed, neither in the pool nor on the machine; what is shown is what was
//! seen. Deliberately absent: a timer. Who reads makes us look, so an idle daemon stays idle.

use std::rc::Rc;

use cores::rt;

use crate::message::View;
use crate::model::ids::{FsUuid, PoolUuid};
use crate::shard::{Running, Shard};
use crate::sys::Sys;

/// Looks at every filesystem of a pool, and shows those that have changed.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid) {
    let Some(running) = shard.running(pool) else {
        // It was stopped while we waited for our turn.
        return;
    };
    rt::stage("look");
    let all: Vec<FsUuid> = running.pool.borrow().filesystems.iter().map(|found| found.record.uuid).collect();
    refresh(shard, &running, &all).await;
}

/// Looks at some filesystems of a pool, and shows those that have changed.
pub async fn refresh<S: Sys>(shard: &Shard<S>, running: &Running, filesystems: &[FsUuid]) {
    let mut changed = Vec::new();
    let used = shard.sys.thin_used_each(running.uuid, filesystems).await;
    for (uuid, used) in filesystems.iter().zip(used) {
        if running.pool.borrow_mut().filesystems.set_used(*uuid, used) {
            changed.push(*uuid);
        }
    }
    show(shard, running, &changed);
}

/// Shows what has changed and is still there: a filesystem may have been destroyed while we looked at
/// the others, and must not come back.
fn show<S: Sys>(shard: &Shard<S>, running: &Running, changed: &[FsUuid]) {
    let engine = running.pool.borrow();
    let still = changed.iter().filter_map(|uuid| engine.filesystems.find(*uuid).ok());
    let mut views: Vec<View> = still.map(|found| shard.filesystem_view(&engine, found)).collect();
    if !views.is_empty() {
        views.push(View::Pool(engine.view()));
        shard.show(views);
    }
}
