//! Growing a thin pool while everything else goes on.
//!
//! Two parts, which wait for different things. What a thin pool is to be now is one swap of its table on the reserved
//! thread, to what is on record and in the devices below: nothing that a client does is in its way. Then what comes
//! next is entered into the record, saved, and put below; that waits for the devices, and for whoever enters
//! something else.
//!
//! Commit point of a step: the record that lists it is durable.
//!
//! Invariant: a table has only sectors that are durably on record, and a record only sectors that nobody else has.
//! Whatever is cut off, the record lists at least what any table has, and the next start or the next look goes on.
//! What failed is tried again as long as the pool runs.
//!
//! Deliberately absent: when and how much (`engine::grow`); looking at the pool (`thin_pool`).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use cores::clock::Instant;
use cores::rt;

use crate::engine::grow::Need;
use crate::error::{Failure, Why};
use crate::limits::EXTEND_AGAIN_AFTER_MS;
use crate::model::dm::{Dm, Role, Table, ThinFeature, ThinPoolState};
use crate::model::pool::Availability;
use crate::shard::ops::save::checked;
use crate::shard::ops::{stack, thin_pool};
use crate::shard::turn::{left, milliseconds};
use crate::shard::{Running, Shard};
use crate::sys::Sys;
use crate::zoo::{Bug, planted};

/// What of a pool's growth is under way.
#[derive(Debug, Default)]
pub struct Extension {
    /// What comes next is being entered, saved or put below.
    preparing: Cell<bool>,
    /// The last try failed, which was told.
    failing: Cell<bool>,
    /// How often something was heard of the thin pool, or it was looked at for another reason.
    pub(super) heard: Cell<u64>,
    /// Since when there is something to look at.
    pub(super) since: Cell<Option<Instant>>,
    /// When it was last looked at.
    pub(super) looked: Cell<Option<Instant>>,
    /// How often it should have been heard of and was not.
    pub(super) missed: Cell<u64>,
}

/// Makes a thin pool what it is to be, now that it is so; there has been something to look at `since` then. True:
/// something was done, and it is to be looked at again.
pub async fn answer<S: Sys>(
    shard: &Rc<Shard<S>>,
    running: &Rc<Running>,
    state: &ThinPoolState,
    since: Instant,
) -> bool {
    let need = {
        let pool = running.pool.borrow();
        if pool.availability() == Availability::NoPoolChanges || !state.can_change() {
            return false;
        }
        pool.need(state, shard.pace.get())
    };
    match need {
        Need::Nothing => false,
        Need::Swap(table) => swap(shard, running, (state, since), table).await,
        Need::Next => {
            go_ahead(shard, running);
            false
        }
    }
}

/// Whether there is something to do for a thin pool that nobody does.
pub fn is_overlooked<S: Sys>(shard: &Shard<S>, running: &Running, state: &ThinPoolState) -> bool {
    let (pool, extension) = (running.pool.borrow(), &running.extension);
    if shard.looks.borrow().contains_key(&running.uuid) || extension.preparing.get() || extension.failing.get() {
        return false;
    }
    match pool.availability() {
        Availability::NoPoolChanges => false,
        Availability::Full | Availability::NoRequests if state.can_change() => {
            pool.need(state, shard.pace.get()) != Need::Nothing
        }
        Availability::Full | Availability::NoRequests => true,
    }
}

async fn swap<S: Sys>(
    shard: &Rc<Shard<S>>,
    running: &Rc<Running>,
    (state, since): (&ThinPoolState, Instant),
    table: Table,
) -> bool {
    let pool = running.uuid;
    let began = rt::now();
    let change = change(state, &table);
    match shard.sys.swap(&[(Dm::Private(pool, Role::ThinPool), table)]).await {
        Ok(stood) => {
            let stood = stood.as_secs_f64() * 1_000.0;
            let (heard, took) = (milliseconds(since), milliseconds(began));
            log::info!("thin pool changed (pool={pool} {change} heard_ms={heard} ms={took} stood_ms={stood:.1})");
            running.extension.failing.set(false);
            true
        }
        // A pool that is just being stopped has none any more.
        Err(fault) if fault.why == Why::Errno(libc::ENXIO) => {
            log::debug!("{fault}");
            false
        }
        Err(fault) => {
            failed(shard, running, &fault.into());
            false
        }
    }
}

/// What a swap changes, for the log.
fn change(state: &ThinPoolState, table: &Table) -> String {
    let Table::ThinPool { length, block, low_water, features } = table else {
        unreachable!("the table of a thin pool: {table:?}")
    };
    let free = state.data_total.saturating_sub(state.data_used);
    let (before, after) = (state.data_total, length.0 / block.0);
    let waits = !features.contains(&ThinFeature::ErrorIfNoSpace);
    format!("free={free} blocks={before} now={after} low_water={low_water} waits={waits}")
}

/// Has what comes next entered, saved and put below, if nobody does that.
fn go_ahead<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>) {
    if running.extension.preparing.replace(true) {
        return;
    }
    running.pool.borrow_mut().ask_next();
    shard.busy.set(shard.busy.get() + 1);
    let (runs, own) = (Rc::clone(shard), Rc::clone(running));
    let prepared = rt::spawn_urgent("extend", async move { prepare(&runs, &own).await });
    let (shard, running) = (Rc::clone(shard), Rc::clone(running));
    rt::spawn("extended", async move {
        let outcome = prepared.await;
        running.extension.preparing.set(false);
        match outcome {
            Ok(Ok(())) => thin_pool::look(&shard, running.uuid),
            Ok(Err(failure)) => failed(&shard, &running, &failure),
            // The task wrapper has logged it. Memory holds a record that no device may have.
            Err(_panicked) => shard.degrade(&running, Availability::NoPoolChanges),
        }
        left(&shard);
    })
    .detach();
}

async fn prepare<S: Sys>(shard: &Rc<Shard<S>>, running: &Rc<Running>) -> Result<(), Failure> {
    let pool = running.uuid;
    let began = rt::now();
    let _alone = shard.alone(pool).await;
    // It may have been stopped meanwhile. While we are alone it stays.
    if !shard.is_running(running) {
        return Ok(());
    }
    let state = shard.sys.thin_pool(pool).await?;
    let before = running.pool.borrow_mut().enter_next(&state, shard.pace.get());
    if let Some(before) = before {
        if planted(Bug::TableBeforeRecord) {
            stack::stretch_below(shard, running).await?;
        }
        if let Err(failure) = checked(shard, running).await {
            running.pool.borrow_mut().unmake_room(before);
            return Err(failure);
        }
        shard.show_pool(running);
    }
    stack::stretch_below(shard, running).await?;
    running.pool.borrow_mut().set_backed();
    running.extension.failing.set(false);
    log::info!("the next step of a thin pool is there (pool={pool} ms={})", milliseconds(began));
    Ok(())
}

/// Says what failed, once, and has it tried again.
fn failed<S: Sys>(shard: &Rc<Shard<S>>, running: &Running, failure: &Failure) {
    let pool = running.uuid;
    if running.extension.failing.replace(true) {
        log::debug!("a thin pool still cannot be changed (pool={pool}): {failure}");
    } else {
        log::error!("a thin pool cannot be changed, which is tried again and again (pool={pool}): {failure}");
    }
    let shard = Rc::clone(shard);
    rt::spawn("extend later", async move {
        rt::sleep(Duration::from_millis(EXTEND_AGAIN_AFTER_MS)).await;
        thin_pool::look(&shard, pool);
    })
    .detach();
}
