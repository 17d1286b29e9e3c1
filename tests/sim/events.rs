//! Devices come, change and go, thin pools fall ill: what a daemon that runs makes of it.
//!
//! The machine reports a disk again when a descriptor open for writing is closed, as udev does, so each of
//! these stories is also one in which a setup that fails must not be the reason for the next.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cores::rt;
use fastrand::Rng;
use stratisd::error::{Failure, Refusal};
use stratisd::message::{Answer, Wish};
use stratisd::model::device::DeviceNumber;
use stratisd::model::dm::ThinPoolMode;
use stratisd::model::ids::PoolUuid;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::machine;
use crate::world::{Seen, create_filesystem, create_pool, live, look, name, pool};

/// Virtual time in which everything that would happen by itself has happened.
const AGES: Duration = Duration::from_secs(3_600);
/// Orders of events that are tried.
const SEEDS: u64 = 20;
/// A signature area without one.
const WIPED: [u8; 8192] = [0; 8192];

fn start() -> Wish {
    Wish::StartPool { pool: pool(), unlock: false, remove_cache: false }
}

fn runs(seen: &Seen) -> bool {
    seen.running.contains_key(&pool())
}

/// Of how many devices the pool is listed as stopped.
fn stopped_with(seen: &Seen) -> Option<usize> {
    seen.stopped.get(&pool()).map(|(_, devices)| *devices)
}

fn degraded(seen: &Seen) -> bool {
    seen.settings.contains(&format!("{} no_pool_changes", pool()))
}

/// Two disks with a pool, which is left running or stopped; the daemon then died.
fn with_pool(stopped: bool) -> (Machine, Vec<DeviceNumber>) {
    let machine = machine();
    let numbers = ["/dev/a", "/dev/b"].map(|disk| machine.number(disk));
    live(0, &machine, move |driver| async move {
        driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("it is created");
        driver.call(create_filesystem("one")).await.expect("it is created");
        if stopped {
            driver.call(Wish::StopPool(pool())).await.expect("it is stopped");
        }
    })
    .finished();
    machine.crash(0);
    (machine, numbers.into())
}

#[test]
fn a_pool_starts_by_itself_when_its_last_device_arrives() {
    for seed in 0..SEEDS {
        let (machine, _) = with_pool(false);
        machine.unplug("/dev/b");
        let plugs = machine.clone();
        let seen = live(seed, &machine, move |driver| async move {
            assert_eq!(stopped_with(&driver.seen()), Some(1), "it is listed while it is not whole");
            plugs.plug();
            driver.until(runs).await
        });
        let seen = seen.finished();
        assert!(seen.stopped.is_empty() && seen.running[&pool()].1.len() == 1, "{seen:?}");
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

#[test]
fn a_stopped_pool_stays_stopped_whatever_is_reported() {
    for seed in 0..SEEDS {
        let (machine, _) = with_pool(true);
        let touches = machine.clone();
        let seen = live(seed, &machine, move |driver| async move {
            let before = touches.actions();
            for disk in ["/dev/a", "/dev/b", "/dev/a"] {
                touches.touch(disk);
            }
            touches.unplug("/dev/b");
            driver.until(|seen| stopped_with(seen) == Some(1)).await;
            touches.plug();
            driver.until(|seen| stopped_with(seen) == Some(2)).await;
            rt::sleep(AGES).await;
            // What is listed is made durable before it is.
            let since = |line: &&String| {
                let number = line.split_once(": ").and_then(|(number, _)| number.parse::<u64>().ok());
                number >= Some(before)
            };
            let trace = touches.trace();
            let other = trace.iter().filter(since).find(|line| !line.contains(": flush device "));
            assert_eq!(other, None, "nothing was done: {trace:#?}");
            driver.call(start()).await.expect("it can be started");
            driver.seen()
        });
        assert!(runs(&seen.finished()));
    }
}

#[test]
fn a_pool_whose_devices_are_wiped_is_forgotten_and_they_are_free() {
    for seed in 0..SEEDS {
        let (machine, numbers) = with_pool(true);
        let wipes = machine.clone();
        live(seed, &machine, move |driver| async move {
            assert!(!driver.unclaimed(&numbers));
            wipes.scribble("/dev/b", Sectors(0), &WIPED);
            driver.until(|seen| stopped_with(seen) == Some(1)).await;
            assert!(driver.unclaimed(&numbers[1..]) && !driver.unclaimed(&numbers[..1]));
            wipes.scribble("/dev/a", Sectors(0), &WIPED);
            let seen = driver.until(|seen| stopped_with(seen).is_none()).await;
            assert!(!runs(&seen));
            assert!(driver.unclaimed(&numbers), "no claim is left");
            let refused = driver.call(start()).await;
            assert!(matches!(refused, Err(Failure::Refused(Refusal::NoPool(_)))), "{refused:?}");
            driver.call(create_pool(&["/dev/a", "/dev/b"])).await.expect("the devices are free");
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

#[test]
fn a_device_that_now_is_another_pools_changes_hands() {
    for seed in 0..SEEDS {
        // What the other pool's disk looks like, made on a machine of its own.
        let other = machine();
        let mut create = create_pool(&["/dev/a"]);
        let uuid = PoolUuid::from_random([u8::try_from(100 + seed).expect("few"); 16]);
        if let Wish::CreatePool { pool, name: own, .. } = &mut create {
            (*pool, *own) = (uuid, name("other"));
        }
        live(0, &other, move |driver| async move {
            driver.call(create).await.expect("it is created");
            driver.call(Wish::StopPool(uuid)).await.expect("it is stopped");
        })
        .finished();
        let image = other.bytes("/dev/a", Sectors(0), Sectors(8192));

        let (machine, numbers) = with_pool(true);
        let writes = machine.clone();
        live(seed, &machine, move |driver| async move {
            writes.scribble("/dev/b", Sectors(0), &image);
            let seen = driver.until(|seen| seen.stopped.contains_key(&uuid)).await;
            assert_eq!(seen.stopped[&uuid].0.as_deref(), Some("other"));
            driver.until(|seen| stopped_with(seen) == Some(1)).await;
            rt::sleep(AGES).await;
            writes.scribble("/dev/a", Sectors(0), &WIPED);
            driver.until(|seen| stopped_with(seen).is_none()).await;
            assert!(driver.unclaimed(&numbers[..1]) && !driver.unclaimed(&numbers[1..]), "each has its own");
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

#[test]
fn a_setup_that_fails_is_not_tried_again_by_its_own_reports() {
    let mut failed = 0;
    for point in 0..40 {
        let (machine, _) = with_pool(false);
        machine.fail_at(machine.actions() + point, libc::EIO);
        let watches = machine.clone();
        let stopped = live(point, &machine, move |driver| async move {
            rt::sleep(AGES).await;
            let quiet = watches.actions();
            rt::sleep(AGES).await;
            assert_eq!(watches.actions(), quiet, "it goes on and on: {:#?}", watches.trace());
            let stopped = !runs(&driver.seen());
            if stopped {
                assert_eq!(stopped_with(&driver.seen()), Some(2));
                driver.call(start()).await.expect("on request it is tried again");
            }
            stopped
        })
        .finished();
        failed += u32::from(stopped);
    }
    assert!(failed > 3, "{failed} setups failed: the story is about them");
}

#[test]
fn lost_events_are_made_good() {
    for seed in 0..SEEDS {
        let (machine, numbers) = with_pool(true);
        let loses = machine.clone();
        live(seed, &machine, move |driver| async move {
            loses.unplug("/dev/a");
            loses.lose_events();
            driver.until(|seen| stopped_with(seen) == Some(1)).await;
            loses.unplug("/dev/b");
            loses.lose_events();
            driver.until(|seen| stopped_with(seen).is_none()).await;
            assert!(driver.unclaimed(&numbers));
            loses.plug();
            loses.plug();
            loses.lose_events();
            driver.until(|seen| stopped_with(seen) == Some(2)).await;
            driver.call(start()).await.expect("it is whole again");
        })
        .finished();
    }
}

#[test]
fn a_running_pool_is_not_disturbed() {
    for seed in 0..SEEDS {
        let (machine, _) = with_pool(false);
        let touches = machine.clone();
        live(seed, &machine, move |driver| async move {
            assert!(runs(&driver.seen()));
            rt::sleep(AGES).await;
            let before = touches.actions();
            touches.touch("/dev/a");
            touches.lose_events();
            touches.raise(pool());
            rt::sleep(AGES).await;
            assert_eq!(touches.actions(), before, "{:#?}", touches.trace());
            assert!(runs(&driver.seen()) && !degraded(&driver.seen()));
            driver.call(create_filesystem("two")).await.expect("it works as ever");
            driver.call(Wish::StopPool(pool())).await.expect("it is stopped");
            rt::sleep(AGES).await;
            assert_eq!(stopped_with(&driver.seen()), Some(2), "its devices were reported when they were closed");
        })
        .finished();
    }
}

#[test]
fn what_happened_to_devices_of_a_running_pool_shows_when_it_stops() {
    for seed in 0..SEEDS {
        let (machine, _) = with_pool(false);
        let pulls = machine.clone();
        live(seed, &machine, move |driver| async move {
            pulls.unplug("/dev/b");
            rt::sleep(AGES).await;
            assert!(runs(&driver.seen()), "a running pool is not stopped by what is reported");
            driver.call(Wish::StopPool(pool())).await.expect("one device takes the record");
            driver.until(|seen| stopped_with(seen) == Some(1)).await;
            pulls.plug();
            driver.until(|seen| stopped_with(seen) == Some(2)).await;
            driver.call(start()).await.expect("it is whole again");
            // Found again under another number while the pool runs, as disks do.
            let image = pulls.bytes("/dev/b", Sectors(0), Sectors(8192));
            pulls.unplug("/dev/b");
            pulls.add_disk("/dev/c", crate::DISK);
            pulls.scribble("/dev/c", Sectors(0), &image);
            rt::sleep(AGES).await;
            driver.call(Wish::StopPool(pool())).await.expect("one device takes the record");
            driver.until(|seen| stopped_with(seen) == Some(2)).await;
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

#[test]
fn a_device_that_has_grown_is_told_and_used_as_before() {
    let (machine, _) = with_pool(false);
    let grows = machine.clone();
    live(0, &machine, move |driver| async move {
        assert!(!driver.seen().settings.iter().any(|setting| setting.contains("grown")));
        grows.resize_disk("/dev/b", Sectors(crate::DISK.0 * 2));
        grows.touch("/dev/b");
        driver.until(|seen| seen.settings.iter().any(|setting| setting.contains("grown"))).await;
        driver.call(create_filesystem("two")).await.expect("it works as ever");
        driver.call(Wish::StopPool(pool())).await.expect("it is stopped");
        driver.call(start()).await.expect("and started");
        assert!(driver.seen().settings.iter().any(|setting| setting.contains("grown")));
    })
    .finished();
}

#[test]
fn a_running_pools_device_with_another_signature_stays_its_device() {
    let other = machine();
    let (machine, _) = with_pool(false);
    let mut create = create_pool(&["/dev/a"]);
    if let Wish::CreatePool { pool, .. } = &mut create {
        *pool = PoolUuid::from_random([99; 16]);
    }
    live(0, &other, |driver| async move { driver.call(create).await }).finished().expect("it is created");
    let image = other.bytes("/dev/a", Sectors(0), Sectors(16));
    let writes = machine.clone();
    live(0, &machine, move |driver| async move {
        writes.scribble("/dev/b", Sectors(0), &image);
        rt::sleep(AGES).await;
        assert!(runs(&driver.seen()) && driver.seen().stopped.is_empty());
        driver.call(create_filesystem("two")).await.expect("it works as ever");
        driver.call(Wish::SetOverprovisioning(pool(), false)).await.expect("its record is saved on both");
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn a_thin_pool_that_takes_no_changes_degrades_its_pool_at_once() {
    for seed in 0..SEEDS {
        for (mode, needs_check, bad) in [
            (ThinPoolMode::ReadOnly, false, true),
            (ThinPoolMode::Failed, false, true),
            (ThinPoolMode::ReadWrite, true, true),
            (ThinPoolMode::OutOfDataSpace, false, false),
        ] {
            let (machine, _) = with_pool(false);
            let ails = machine.clone();
            live(seed, &machine, move |driver| async move {
                // The event comes while one operation formats and another one waits for its turn.
                ails.set_write_time(Duration::from_secs(1));
                let (made, done) = (Rc::clone(&driver), Rc::new(RefCell::new(false)));
                let ended = Rc::clone(&done);
                rt::spawn("client", async move {
                    made.call(create_filesystem("two")).await.expect("a format is not in its way");
                    *ended.borrow_mut() = true;
                })
                .detach();
                rt::sleep(Duration::from_millis(100)).await;
                ails.ail(pool(), mode, needs_check);
                if bad {
                    driver.until(degraded).await;
                    assert!(!*done.borrow(), "it did not wait for the format");
                    let refused = driver.call(create_filesystem("three")).await;
                    assert!(matches!(refused, Err(Failure::Refused(Refusal::PoolUnavailable { .. }))), "{refused:?}");
                }
                rt::sleep(AGES).await;
                assert_eq!(degraded(&driver.seen()), bad);
            })
            .finished();
        }
    }
}

#[test]
fn a_thin_pool_whose_metadata_is_full_gets_more_and_its_pool_is_not_degraded() {
    for seed in 0..SEEDS {
        let (machine, _) = with_pool(false);
        let own = machine.clone();
        live(seed, &machine, move |driver| async move {
            own.ail(pool(), ThinPoolMode::OutOfMetadataSpace, false);
            rt::sleep(AGES).await;
            assert!(!degraded(&driver.seen()));
            driver.call(create_filesystem("two")).await.expect("the kernel takes changes again");
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new());
    }
}

#[test]
fn what_happened_to_a_thin_pool_before_its_pool_ran_is_seen() {
    let machine = machine();
    let create = create_pool(&["/dev/a", "/dev/b"]);
    live(0, &machine, |driver| async move { driver.call(create).await }).finished().expect("it is created");
    // The thin pool stays active, so nobody checks it.
    machine.kill();
    machine.ail(pool(), ThinPoolMode::ReadOnly, true);
    let seen = live(0, &machine, |driver| async move { driver.until(degraded).await });
    assert!(runs(&seen.finished()));
}

/// Anything may happen, in any order, while clients start and stop; in the end the daemon knows what one
/// that boots then finds.
#[test]
fn no_report_is_lost_in_a_storm() {
    for seed in 0..300 {
        let (machine, _) = with_pool(seed % 2 == 0);
        let storms = machine.clone();
        let told = live(seed, &machine, move |driver| async move {
            let mut dice = Rng::with_seed(seed);
            let mut out = 0;
            for _ in 0..30 {
                match dice.u8(..8) {
                    0 if out == 0 => {
                        storms.unplug(if dice.bool() { "/dev/a" } else { "/dev/b" });
                        out = 1;
                    }
                    0..=2 if out == 1 => {
                        storms.plug();
                        out = 0;
                    }
                    3 if out == 0 => storms.touch(if dice.bool() { "/dev/a" } else { "/dev/b" }),
                    4 => storms.lose_events(),
                    // Refused or not, it must be answered.
                    5 => drop(driver.call(Wish::StopPool(pool())).await),
                    6 => drop(driver.call(start()).await),
                    _ => rt::sleep(Duration::from_micros(dice.u64(..20_000))).await,
                }
            }
            if out == 1 {
                storms.plug();
            }
            rt::sleep(AGES).await;
            driver.seen()
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new(), "seed {seed}");
        machine.kill();
        let fresh = look(seed, &machine);
        let known = |seen: &Seen| runs(seen) || stopped_with(seen) == Some(2);
        assert!(known(&told) && known(&fresh), "seed {seed}: {told:?} {fresh:?}");
        assert!(!runs(&told) || runs(&fresh), "seed {seed}: what runs is found running: {told:?} {fresh:?}");
    }
}

#[test]
fn a_look_at_every_device_shows_what_nobody_told() {
    for seed in 0..SEEDS {
        let (machine, _) = with_pool(false);
        let own = machine.clone();
        live(seed, &machine, move |driver| async move {
            driver.call(Wish::StopPool(pool())).await.expect("nobody uses it");
            let before = driver.seen();
            assert_eq!(driver.refresh().await, Ok(Answer::Set));
            assert_eq!(driver.seen(), before, "nothing has happened");

            // One disk is gone, and the machine's word about it is lost.
            own.unplug("/dev/b");
            own.lose_events();
            assert_eq!(driver.refresh().await, Ok(Answer::Set));
            assert_eq!(stopped_with(&driver.seen()), Some(1), "it is seen before the reply");
            own.plug();
            own.resize_disk("/dev/b", Sectors(1 << 24));
            assert_eq!(driver.refresh().await, Ok(Answer::Set));
            assert_eq!(stopped_with(&driver.seen()), Some(2));
            driver.call(start()).await.expect("it is whole");
            assert!(driver.seen().settings.iter().any(|setting| setting.contains("grown")));
        })
        .finished();
    }
}
