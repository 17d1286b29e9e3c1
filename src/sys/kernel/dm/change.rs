//! Bringing one dm device to a table, from whatever a daemon before us left there; removing one; and
//! copying a thin volume while it stands still.
//!
//! Everything here blocks; it runs on a lane. Invariant: a device is active with the table that is
//! wanted, or an error came back and it is as it was found; one that had no table is gone then.
//! Between loading a table and swapping it in there is nothing but those two calls, and between
//! suspending a device and resuming it nothing but what it is suspended for.
//!
//! Deliberately absent: the order of devices, trying again, waiting for udev.

use std::time::{Duration, Instant};

use super::control::{Ask, Control, Info, Numbers};
use super::cookie::{self, Cookie, LazyCookie};
use super::ioctl::{Change, Request};
use super::status;
use super::table::{Likeness, Lines, Numbered};
use crate::error::Why;
use crate::model::dm::{Dm, Role, Table};
use crate::model::ids::ThinId;
use crate::sys::kernel;

/// Sectors in a block of a thin pool's metadata.
const META_BLOCK_SECTORS: u64 = 8;
/// Blocks of metadata that a thin pool uses at most: 255 bitmaps of 16,384 blocks each.
const META_BLOCKS_MAX: u64 = 255 << 14;

/// Makes a device active with this table.
pub(super) fn activate(numbers: &Numbers<'_>, device: Dm, table: &Table, cookie: &LazyCookie) -> Result<(), Why> {
    let control = numbers.control;
    let wanted = Numbered::new(device, table, |below| numbers.number(below))?;
    let Some((info, present)) = control.table(device)? else {
        control.create(device)?;
        return first(control, device, &wanted.lines(), cookie);
    };
    if !info.own_uuid {
        return Err(Why::Data("a device of that name has another dm UUID"));
    }
    if !info.active_table {
        first(control, device, &wanted.lines(), cookie)?;
        log::info!("a device that was left without a table is finished (device={device})");
        return Ok(());
    }
    let Some(active) = Numbered::parse(&present) else {
        return Err(Why::OtherTable);
    };
    let wanted = wanted.as_long_as(&active);
    let likeness = match active.to(&wanted) {
        Likeness::Other => without_cache(control, device, table, &active)?,
        likeness => likeness,
    };
    match likeness {
        Likeness::Same => adopt(control, device, info, &present, cookie),
        Likeness::Beginning => {
            swap(control, device, &wanted.lines(), Some(&present), Some(cookie))?;
            log::info!("an active table is completed (device={device})");
            Ok(())
        }
        Likeness::Other => Err(Why::OtherTable),
    }
}

/// Whether a thin volume is active with this table and nothing is left to do.
pub(super) fn is_done(numbers: &Numbers<'_>, volume: Dm, table: &Table) -> Result<bool, Why> {
    let wanted = Numbered::new(volume, table, |below| numbers.number(below))?;
    let Some((info, present)) = numbers.control.table(volume)? else { return Ok(false) };
    let whole = info.own_uuid && info.active_table && !info.inactive_table && !info.suspended;
    Ok(whole && Numbered::parse(&present).is_some_and(|active| active.to(&wanted) == Likeness::Same))
}

/// What an active table is to the wanted one as it was before its pool had a cache: that is completed, too.
fn without_cache(control: &Control, device: Dm, table: &Table, active: &Numbered) -> Result<Likeness, Why> {
    let Some(before) = table.without_cache(device.pool()) else { return Ok(Likeness::Other) };
    let before = Numbered::new(device, &before, |below| control.number(below))?;
    Ok(match active.to(&before) {
        Likeness::Same | Likeness::Beginning => Likeness::Beginning,
        Likeness::Other => Likeness::Other,
    })
}

/// Takes over a device that has its table: `present`, with the low water and features that it was given
/// while it ran. What is done is told afterwards: the log may be on a device that waits for it.
fn adopt(control: &Control, device: Dm, info: Info, present: &Lines, cookie: &LazyCookie) -> Result<(), Why> {
    if info.inactive_table {
        send(control, Change::Clear, device, None)?;
    }
    if info.suspended {
        send(control, Change::Resume, device, Some(cookie))?;
        log::info!("a device that was left suspended is resumed (device={device})");
    }
    if info.inactive_table {
        log::info!("a table that was never swapped in is dropped (device={device})");
    }
    if is_behind(control, device, present)? {
        swap(control, device, present, Some(present), Some(cookie))?;
        log::info!("a device was shown that one below it has grown (device={device})");
    }
    Ok(())
}

/// Gives a device that is active another table, and tells for how long it stood still for that.
pub(super) fn swap_active(control: &Control, device: Dm, table: &Table) -> Result<Duration, Why> {
    let wanted = Numbered::new(device, table, |below| control.number(below))?;
    let present = control.lines(device, Ask::Table)?;
    let active = Numbered::parse(&present).ok_or(Why::OtherTable)?;
    let is_pool = matches!(table, Table::ThinPool { .. });
    match active.to(&wanted) {
        Likeness::Other => return Err(Why::OtherTable),
        Likeness::Same if !is_pool => return Ok(Duration::ZERO),
        Likeness::Same | Likeness::Beginning => {}
    }
    swap(control, device, &wanted.lines(), Some(&present), None)
}

/// Removes a device; one that is not there is fine.
pub(super) fn remove(control: &Control, device: Dm, cookie: &LazyCookie) -> Result<(), Why> {
    match send(control, Change::Remove, device, Some(cookie)) {
        Ok(()) | Err(Why::Errno(libc::ENXIO)) => Ok(()),
        Err(why) => Err(why),
    }
}

/// Gives a device its first table, or removes it.
fn first(control: &Control, device: Dm, lines: &Lines, cookie: &LazyCookie) -> Result<(), Why> {
    let outcome = swap(control, device, lines, None, Some(cookie)).map(|_nothing_passed_before| ());
    if outcome.is_err()
        && let Err(why) = remove(control, device, cookie)
    {
        log::warn!("a device without a table stays (device={device}): {why}");
    }
    outcome
}

/// Loads a table and swaps it in; tells how long that took, which is how long nothing passed. What cannot be
/// swapped in is dropped, and the device goes on with the table that it had: `before`, if it had one.
fn swap(
    control: &Control,
    device: Dm,
    lines: &Lines,
    before: Option<&Lines>,
    cookie: Option<&LazyCookie>,
) -> Result<Duration, Why> {
    // All that may be needed is made now: once the kernel has suspended the device there is no time.
    let cookie = expected(cookie);
    let event = |cookie| match (before, cookie) {
        (Some(_), None) => cookie::swapped(device),
        (Some(_) | None, cookie) => cookie::event(device, cookie),
    };
    let request = |change, cookie| Request::new(change, device, event(cookie));
    let mut resume = request(Change::Resume, cookie);
    let mut undo = [request(Change::Clear, None), request(Change::Resume, None)];
    let mut stood = Duration::ZERO;
    let outcome = control.load(device, lines).and_then(|()| {
        let began = Instant::now();
        let outcome = resume.send(control.descriptor());
        stood = began.elapsed();
        if outcome.is_err() {
            for request in &mut undo {
                // A device that had no table has none to go on with. The first error is what counts.
                let _ = request.send(control.descriptor());
            }
            // A target that fails only when it is to begin was swapped in, and nothing passes it.
            if let Some(before) = before
                && control.look(device).is_ok_and(|now| now.is_some_and(|now| now.suspended))
                && control.load(device, before).is_ok()
            {
                // Nothing is left to try.
                let _ = request(Change::Resume, None).send(control.descriptor());
            }
        }
        outcome.map_err(|error| kernel::why(&error))
    });
    settle(outcome, cookie).map(|()| stood)
}

/// Makes the thin volume `id` of what an origin is now, and tells how long the origin was suspended for
/// that. A filesystem that is mounted on it is frozen meanwhile, so that all of what was written before
/// is in the snapshot. An origin that somebody else has suspended goes on, too.
pub(super) fn snapshot(
    control: &Control,
    (origin, number): (Dm, ThinId),
    id: ThinId,
    cookie: &LazyCookie,
) -> Result<Duration, Why> {
    let pool = Dm::Private(origin.pool(), Role::ThinPool);
    // All that may be needed is made now: once the origin is suspended there is no time.
    let cookie = expected(Some(cookie));
    let mut suspend = Request::new(Change::Suspend, origin, 0);
    let mut copy = Request::message(pool, &format!("create_snap {id} {number}"));
    let mut resume = Request::new(Change::Resume, origin, cookie::event(origin, cookie));
    let began = Instant::now();
    let (copied, resumed) = match suspend.send(control.descriptor()) {
        Ok(_) => {
            let copied = copy.send(control.descriptor());
            (copied, resume.send(control.descriptor()))
        }
        // Nobody writes to what is not active.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => (copy.send(control.descriptor()), Ok(false)),
        Err(error) => (Err(error), Ok(false)),
    };
    let suspended = began.elapsed();
    if let Err(error) = &resumed {
        log::error!("a device stays suspended (device={origin}): {error}");
    }
    settle(resumed.map_err(|error| kernel::why(&error)), cookie)?;
    copied.map(|_told| suspended).map_err(|error| kernel::why(&error))
}

fn send(control: &Control, change: Change, device: Dm, cookie: Option<&LazyCookie>) -> Result<(), Why> {
    let cookie = expected(cookie);
    let outcome = Request::new(change, device, cookie::event(device, cookie)).send(control.descriptor());
    settle(outcome.map_err(|error| kernel::why(&error)), cookie)
}

/// One more event is expected: the cookie that it is sent with. Somebody may have removed the semaphore
/// (`dmsetup udevcomplete_all`); then nobody waits for this event.
fn expected(cookie: Option<&LazyCookie>) -> Option<&Cookie> {
    let made = cookie.and_then(LazyCookie::made);
    made.filter(|cookie| cookie.up().inspect_err(|error| log::warn!("udev is not waited for: {error}")).is_ok())
}

/// Takes back an expectation that the kernel does not fulfil.
fn settle(outcome: Result<bool, Why>, cookie: Option<&Cookie>) -> Result<(), Why> {
    if outcome != Ok(true)
        && let Some(cookie) = cookie
        && let Err(error) = cookie.down()
    {
        log::warn!("udev is not waited for: {error}");
    }
    outcome.map(|_told| ())
}

/// Whether a thin pool works with less metadata, or a cache with less data, than its device has: that has just
/// been made larger, or a daemon died between making it larger and showing it.
fn is_behind(control: &Control, device: Dm, present: &Lines) -> Result<bool, Why> {
    let below = |pool, role| -> Result<u64, Why> {
        let lines = control.lines(Dm::Private(pool, role), Ask::Table)?;
        Ok(lines.iter().map(|(_, length, ..)| *length).sum())
    };
    let status = || control.lines(device, Ask::Status);
    match (device, Numbered::parse(present)) {
        (Dm::Private(pool, Role::ThinPool), _) => {
            let (sectors, state) = (below(pool, Role::ThinMeta)?, status::thin_pool(&status()?)?);
            Ok(state.meta_total != 0 && state.meta_total < (sectors / META_BLOCK_SECTORS).min(META_BLOCKS_MAX))
        }
        (Dm::Private(pool, Role::Cache), Some(Numbered::Cache { block, .. })) => {
            let there = below(pool, Role::CacheSub)? / block.0;
            Ok(status::cache(&status()?)?.is_some_and(|blocks| blocks < there))
        }
        (Dm::Private(..) | Dm::Thin(..), _) => Ok(false),
    }
}
