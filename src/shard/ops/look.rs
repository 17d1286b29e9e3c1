//! Looking at sizes in use, because somebody reads them.
//!
//! Invariant: nothing is changed, neither in the pool nor on the machine; what is shown is what was
//! seen. Deliberately absent: a timer. Who reads makes us look, so an idle daemon stays idle.

use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::Filesystem;
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
    let mut changed = Vec::new();
    for uuid in all {
        // Without the figure the filesystem is as good; clients see that it is not known.
        let used = shard.sys.thin_used(pool, uuid).await.ok();
        if running.pool.borrow_mut().filesystems.set_used(uuid, used) {
            changed.push(uuid);
        }
    }
    show(shard, &running, &changed);
}

/// Shows what has changed and is still there: a filesystem may have been destroyed while we looked at
/// the others, and must not come back.
fn show<S: Sys>(shard: &Shard<S>, running: &Running, changed: &[FsUuid]) {
    let engine = running.pool.borrow();
    let still = changed.iter().filter_map(|uuid| engine.filesystems.find(*uuid).ok());
    let view = |found: &Filesystem| {
        View::Filesystem(engine.filesystem_view(found, shard.sys.devnode(engine.name(), &found.record.name)))
    };
    let mut views: Vec<View> = still.map(view).collect();
    if !views.is_empty() {
        views.push(View::Pool(engine.view()));
        shard.show(views);
    }
}
