//! Watching how full the filesystems of this shard's pools are.
//!
//! One task for all pools sleeps until the next look is due. A look reads the state of the thin pool; if that or the
//! memory on its way to devices has changed, it asks the volumes that could fill how much they have mapped; and only
//! who may be more than half full by that is asked itself. Whoever is gets a larger volume.
//!
//! Invariants: a pool in which no filesystem could fill with what its thin pool has free is not looked at, until
//! something changes that clients see; where one could, the pause between two looks follows from its room and from
//! what is written. Nothing here holds up an operation: what a user's filesystem makes us wait for is waited for
//! without a place in the pool's queue.
//!
//! Deliberately absent: an event. The kernel tells of a thin pool that fills, not of a filesystem.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use cores::changes::Signal;
use cores::clock::Instant;
use cores::rt;

use crate::engine::watch::Sight;
use crate::limits::{GROW_AGAIN_AFTER_MS, WATCH_IDLE_MS_MIN, WATCH_MS_MAX};
use crate::message::View;
use crate::model::dm::Dm;
use crate::model::filesystem::{FilesystemView, Fill};
use crate::model::ids::{FsUuid, PoolUuid};
use crate::model::pool::{Availability, PoolView};
use crate::shard::conflict::Operation;
use crate::shard::ops::{grow_filesystem, look};
use crate::shard::{Running, Shard};
use crate::sys::{Kind, Sys};

/// What is known of the pools that are watched.
#[derive(Debug, Default)]
pub struct Watches {
    pools: RefCell<BTreeMap<PoolUuid, Watch>>,
    /// A look is due earlier than it was.
    changed: Signal,
}

/// What is known of one.
#[derive(Debug, Default)]
struct Watch {
    /// When it is looked at again.
    due: Option<Instant>,
    /// What was seen last, and when.
    seen: Option<(Instant, Sight)>,
    /// Filesystems that are being made to grow.
    growing: BTreeSet<FsUuid>,
    /// Filesystems that could not be, and when that was tried.
    failed: BTreeMap<FsUuid, Instant>,
}

const fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Watches {
    /// Clients are about to see this: pools in which something has changed are looked at soon.
    pub fn notice(&self, kind: Kind, views: &[View]) {
        match kind {
            // Files are mounted through loop devices, which keep their size.
            Kind::Files => return,
            Kind::Kernel | Kind::Sim => {}
        }
        // One look at the clock for all: a thousand come together.
        let due = rt::now() + milliseconds(WATCH_IDLE_MS_MIN);
        for view in views {
            match view {
                View::Pool(PoolView { uuid: pool, .. }) | View::Filesystem(FilesystemView { pool, .. }) => {
                    self.look_by(*pool, due);
                }
                View::PoolGone(pool) => drop(self.pools.borrow_mut().remove(pool)),
                // What else there is comes with a view of its pool, or changes nothing that is watched.
                View::Device(_)
                | View::Stopped(_)
                | View::FilesystemGone(..)
                | View::DeviceGone(..)
                | View::StoppedGone(_)
                | View::Keys(_) => {}
            }
        }
    }

    /// Looks at a pool after this time, if that is not to be done earlier.
    fn look_at(&self, pool: PoolUuid, after: Duration) {
        self.look_by(pool, rt::now() + after);
    }

    /// Looks at a pool then, if that is not to be done earlier.
    fn look_by(&self, pool: PoolUuid, due: Instant) {
        let mut pools = self.pools.borrow_mut();
        let watch = pools.entry(pool).or_default();
        if watch.due.is_none_or(|before| due < before) {
            watch.due = Some(due);
            self.changed.raise();
        }
    }

    /// Changes what is known of a pool, if it still is watched.
    fn with<T>(&self, pool: PoolUuid, change: impl FnOnce(&mut Watch) -> T) -> Option<T> {
        self.pools.borrow_mut().get_mut(&pool).map(change)
    }

    /// Waits until looks are due, and says at which pools.
    async fn due(&self) -> Vec<PoolUuid> {
        let next = self.pools.borrow().values().filter_map(|watch| watch.due).min();
        self.changed.within(next.map(|due| due.since(rt::now()))).await;
        let now = rt::now();
        let mut pools = self.pools.borrow_mut();
        let due = pools.iter_mut().filter(|(_, watch)| watch.due.is_some_and(|due| due <= now));
        due.map(|(pool, watch)| {
            watch.due = None;
            *pool
        })
        .collect()
    }

    /// A filesystem has grown, or could not.
    pub(super) fn tried(&self, pool: PoolUuid, filesystem: FsUuid, grown: bool) {
        self.with(pool, |watch| {
            watch.growing.remove(&filesystem);
            if grown {
                watch.failed.remove(&filesystem);
            } else {
                watch.failed.insert(filesystem, rt::now());
            }
        });
    }

    /// Whether a filesystem is to be asked now.
    fn may_ask(&self, pool: PoolUuid, filesystem: FsUuid) -> bool {
        let patience = milliseconds(GROW_AGAIN_AFTER_MS);
        let may = |watch: &mut Watch| {
            let failed = watch.failed.get(&filesystem).is_some_and(|at| rt::now().since(*at) < patience);
            !failed && !watch.growing.contains(&filesystem)
        };
        self.with(pool, may).unwrap_or_default()
    }
}

/// Looks at the pools of a shard whenever that is due. Ends with its core, or after the next look.
pub async fn run<S: Sys>(shard: Rc<Shard<S>>) {
    loop {
        let due = shard.watches.due().await;
        if shard.stopping.get() {
            break;
        }
        for pool in due {
            let looks = Rc::clone(&shard);
            rt::spawn("watch", async move {
                let again = match looks.running(pool) {
                    Some(running) => look(&looks, &running).await,
                    None => None,
                };
                if let Some(after) = again {
                    looks.watches.look_at(pool, after);
                }
            })
            .detach();
        }
    }
}

/// Looks at a pool. Gives the time until the next look, if one is needed before something changes.
async fn look<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>) -> Option<Duration> {
    let pool = running.uuid;
    let sight = sight(shard, running).await?;
    let Some(mut sight) = sight else { return Some(milliseconds(WATCH_MS_MAX)) };
    let near = {
        let engine = running.pool.borrow();
        sight.near(&engine.filesystems, engine.rules().2)
    };
    for uuid in near {
        if !shard.watches.may_ask(pool, uuid) {
            continue;
        }
        match shard.sys.fill(Dm::Thin(pool, uuid)).await {
            Ok(Some(fill)) => take_in(shard, running, (uuid, fill), &mut sight),
            Ok(None) => {}
            Err(fault) => {
                log::warn!("{fault}");
                shard.watches.tried(pool, uuid, false);
            }
        }
    }
    let now = rt::now();
    let before = shard.watches.with(pool, |watch| watch.seen.replace((now, sight.clone())))?;
    let engine = running.pool.borrow();
    let (written, elapsed) = match &before {
        Some((at, before)) => (sight.since(before), now.since(*at).as_millis()),
        None => Default::default(),
    };
    let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
    sight.pause(&engine.filesystems, engine.rules().2, written, elapsed).map(milliseconds)
}

/// What is seen of a pool before any filesystem is asked; what volumes have mapped is brought up to date. `None`: it
/// runs no more or takes no changes; `Some(None)`: this cannot be seen now.
#[allow(clippy::option_option, reason = "both say why there is nothing")]
async fn sight<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>) -> Option<Option<Sight>> {
    let pool = running.uuid;
    let ticket = shard.gate(pool).queue(Operation::Look);
    ticket.admitted().await;
    if !shard.is_running(running) || running.pool.borrow().availability() == Availability::NoPoolChanges {
        return None;
    }
    let (state, dirty) = match (shard.sys.thin_pool(pool).await, shard.sys.dirty().await) {
        (Ok(state), Ok(dirty)) if state.can_map() => (state, dirty),
        (Ok(_), Ok(_)) => return Some(None),
        (Err(fault), _) | (_, Err(fault)) => {
            log::warn!("{fault}");
            return Some(None);
        }
    };
    let sight = Sight::new(&state, dirty);
    let before = shard.watches.with(pool, |watch| watch.seen.as_ref().map(|(_, seen)| seen.used)).flatten();
    if before != Some(sight.used) {
        let reach = {
            let engine = running.pool.borrow();
            sight.in_reach(&engine.filesystems, engine.rules().2)
        };
        look::refresh(shard, running, &reach).await;
    }
    Some(Some(sight))
}

/// A filesystem has said how full it is. Growing goes on by itself.
fn take_in<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>, (uuid, fill): (FsUuid, Fill), sight: &mut Sight) {
    sight.fills.insert(uuid, fill);
    running.pool.borrow_mut().filesystems.set_whole(uuid, fill.size);
    if grow_filesystem::is_needed(&running.pool.borrow(), uuid, &fill) {
        shard.watches.with(running.uuid, |watch| watch.growing.insert(uuid));
        grow_filesystem::begin(shard, running, uuid, fill);
    }
}
