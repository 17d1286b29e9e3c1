//! Thin pools that fill and grow: a writer meets a full pool only when nothing is left, whatever else goes on and
//! wherever a growth is cut off.
//!
//! The machine refuses (`bugs`) any table that lies on sectors of another one, so each of these stories also says that
//! no sector is given out twice.

use std::rc::Rc;
use std::time::Duration;

use cores::rt;
use stratisd::engine::check::check;
use stratisd::engine::grow::Pace;
use stratisd::error::{Failure, Refusal};
use stratisd::format::header::{self, Decoded, HEADER_SECTORS};
use stratisd::format::mda::{self, Region};
use stratisd::format::record::{self, PoolRecord};
use stratisd::message::Wish;
use stratisd::model::dm::{Dm, Role, Table, ThinFeature};
use stratisd::model::ids::FsUuid;
use stratisd::model::pool::MetadataVersion;
use stratisd::shard::wait::all;
use stratisd::sys::sim::{Machine, Written};
use stratisd::units::Sectors;

use crate::world::{Driver, create_filesystem, create_pool, filesystem, live_at, pool};
use crate::{DISK, SEED};

/// Steps that each have to be prepared, because no more than one is ahead.
const PACE: Pace = Pace { step: 128, low_water: 8 };
/// Steps so small that a small pool grows hundreds of times.
const SMALL: Pace = Pace { step: 16, low_water: 32 };
const BLOCK: Sectors = Sectors(2_048);
const DISKS: [&str; 2] = ["/dev/a", "/dev/b"];
/// A third disk, which is added when the pool is full.
const MORE: &str = "/dev/c";
/// Virtual time in which everything that would happen by itself has happened.
const AGES: Duration = Duration::from_secs(600);
/// Ways to lose what was not flushed that are tried at each point; the first is that the process ends.
const CRASHES: u64 = 6;

fn machine() -> Machine {
    let machine = Machine::new(SEED);
    for disk in DISKS.iter().chain([&MORE]) {
        machine.add_disk(disk, DISK);
    }
    machine
}

/// The data blocks of the thin pool, by its table, and those of the device below.
fn blocks(machine: &Machine) -> (u64, u64) {
    let tables = machine.tables();
    let length = |role| tables[&Dm::Private(pool(), role)].length().0 / BLOCK.0;
    (length(Role::ThinPool), length(Role::ThinData))
}

fn waits(machine: &Machine) -> bool {
    match &machine.tables()[&Dm::Private(pool(), Role::ThinPool)] {
        Table::ThinPool { features, .. } => !features.contains(&ThinFeature::ErrorIfNoSpace),
        other => panic!("{other:?}"),
    }
}

/// At how many free blocks the thin pool says that it runs low.
fn mark(machine: &Machine) -> u64 {
    match &machine.tables()[&Dm::Private(pool(), Role::ThinPool)] {
        Table::ThinPool { low_water, .. } => *low_water,
        other => panic!("{other:?}"),
    }
}

/// The newest record that survives a power failure now.
fn recorded(machine: &Machine) -> PoolRecord {
    let region = Sectors(508);
    let regions = DISKS.iter().flat_map(|disk| {
        (0..4).map(move |index| machine.durable_bytes(disk, HEADER_SECTORS + Sectors(index * region.0), region))
    });
    let newest = regions.filter_map(|bytes| match mda::decode(&bytes) {
        Region::Record { time, json } => Some((time, json)),
        Region::Empty | Region::Torn(_) => None,
    });
    let (_, json) = newest.max_by_key(|(time, _)| *time).expect("the pool has a record");
    record::decode(&json).expect("it is one")
}

/// What tables have is on record, durably, and the record makes sense.
fn is_backed(machine: &Machine, at: &str) {
    let record = recorded(machine);
    let sum = |role| -> Sectors {
        let flex = &record.flex_devs;
        let list = if role == Role::ThinMeta { &flex.thin_meta_dev } else { &flex.thin_data_dev };
        list.iter().sum()
    };
    for (device, table) in machine.tables() {
        let Dm::Private(_, role) = device else { continue };
        match role {
            Role::ThinMeta | Role::ThinData | Role::ThinPool => assert!(table.length() <= sum(role), "{role:?}, {at}"),
            Role::OriginSub => {
                let allocs = &record.backstore.data_tier.blockdev.allocs[0];
                let all: Sectors = allocs.iter().sum();
                assert!(table.length() <= all, "{role:?}, {at}");
            }
            Role::MetaSub | Role::CacheSub | Role::Cache | Role::Mdv => {}
            Role::ThinMetaSpare => panic!("nobody repairs anything, {at}"),
        }
    }
    let size = |disk: &&str| {
        let block = machine.durable_bytes(disk, Sectors(1), Sectors(1)).try_into().expect("a sector");
        let Decoded::Good(header) = header::decode(&block) else { panic!("{disk} has no signature: {at}") };
        (header.device, header.size)
    };
    assert_eq!(check(&record, MetadataVersion::V2, &DISKS.iter().map(size).collect()), Ok(()), "{at}");
}

/// Writes to a filesystem from one block on; a writer that waits for space waits. True: all is written.
async fn fill(machine: &Machine, filesystem: FsUuid, blocks: std::ops::Range<u64>, pause: Duration) -> bool {
    for block in blocks {
        loop {
            match machine.write(pool(), filesystem, Sectors(block * BLOCK.0), BLOCK) {
                Written::Done => break,
                Written::Waits => rt::sleep(Duration::from_millis(1)).await,
                Written::Fails => return false,
            }
        }
        rt::sleep(pause).await;
    }
    true
}

async fn make(driver: &Driver, filesystems: &[&str]) -> Vec<FsUuid> {
    driver.call(create_pool(&DISKS)).await.expect("there is room");
    for name in filesystems {
        driver.call(create_filesystem(name)).await.expect("there is room");
    }
    filesystems.iter().map(|name| filesystem(&driver.seen(), name)).collect()
}

#[test]
fn writers_never_meet_a_full_pool_while_clients_work_in_it() {
    for seed in 0..6 {
        let machine = machine();
        let own = machine.clone();
        live_at(SMALL, seed, &machine, move |driver| async move {
            let volumes = make(&driver, &["a", "b", "c", "d"]).await;
            let first = blocks(&own).0;
            let writers = volumes.iter().map(|volume| fill(&own, *volume, 10..1_000, Duration::from_millis(6)));
            let churning = Rc::clone(&driver);
            let client = rt::spawn("client", async move {
                for round in 0..20 {
                    let name = format!("x{round}");
                    churning.call(create_filesystem(&name)).await.expect("there is room");
                    let one = filesystem(&churning.seen(), &name);
                    churning.call(Wish::DestroyFilesystems(pool(), vec![one])).await.expect("it is not in use");
                    churning.call(Wish::SetOverprovisioning(pool(), round % 2 == 0)).await.expect("they are small");
                }
                churning.call(Wish::SetFsLimit(pool(), 300)).await.expect("there is room");
            });
            assert!(all(writers).await.into_iter().all(|written| written));
            client.await.expect("it has not panicked");
            assert_eq!(own.outs(pool()), 0, "seed {seed}");
            let (now, below) = blocks(&own);
            assert!(now >= first + 200 * SMALL.step && below >= now, "{now} of {first} at first");
            is_backed(&own, &format!("seed {seed}"));
        })
        .finished();
        assert_eq!(machine.bugs(), Vec::<String>::new(), "seed {seed}");
        machine.crash(seed);
        live_at(PACE, seed, &machine, |driver| async move {
            assert_eq!(driver.seen().running[&pool()].1.len(), 4);
        })
        .finished();
    }
}

#[test]
fn a_pool_that_fills_faster_and_faster_keeps_ahead_of_its_writer() {
    for seed in 0..6 {
        let machine = machine();
        let own = machine.clone();
        live_at(SMALL, seed, &machine, move |driver| async move {
            let volumes = make(&driver, &["a", "b", "c"]).await;
            let mut pause = Duration::from_micros(300);
            for volume in volumes {
                for block in 10..1_010 {
                    assert!(fill(&own, volume, block..block + 1, pause).await, "seed {seed}");
                    pause = pause * 9_991 / 10_000;
                }
            }
            assert_eq!(own.outs(pool()), 0, "seed {seed}");
            assert!(mark(&own) > SMALL.low_water, "a mark of {} does not last: seed {seed}", mark(&own));
            // Who takes it over finds the mark where it is, and changes nothing.
            rt::sleep(AGES).await;
        })
        .finished();
        let tables = machine.tables();
        machine.kill();
        live_at(SMALL, seed, &machine, |_| async { rt::sleep(AGES).await }).finished();
        assert_eq!((machine.tables(), machine.bugs()), (tables, Vec::new()), "seed {seed}");
    }
}

#[test]
fn a_pool_is_full_when_nothing_is_left_and_no_longer_when_there_is_more() {
    let machine = machine();
    let own = machine.clone();
    live_at(PACE, SEED, &machine, move |driver| async move {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let volumes = make(&driver, &names).await;
        let (mut full, mut written) = (None, 0);
        for (number, volume) in volumes.iter().enumerate() {
            if !fill(&own, *volume, 10..1_020, Duration::from_millis(2)).await {
                full = Some(number);
                break;
            }
            written += 1_010;
        }
        let full = full.expect("eight filesystems of 1 GiB have no room on 8 GiB");
        assert!(written > 5_000 && !waits(&own), "nobody waits for what does not come");
        assert!(driver.seen().settings.contains(&format!("{} no space", pool())));
        let (now, below) = blocks(&own);
        assert_eq!(now, below, "nothing is kept back");
        is_backed(&own, "full");
        let (listed, refused) = (driver.seen().running, driver.call(create_filesystem("i")).await);
        assert!(matches!(refused, Err(Failure::Refused(Refusal::PoolFull { .. }))), "{refused:?}");
        assert_eq!(driver.seen().running, listed, "nothing is half made");

        // A filesystem goes: nothing is allocated, but there is room.
        driver.call(Wish::DestroyFilesystems(pool(), vec![volumes[0]])).await.expect("it is not in use");
        let says = format!("{} no space", pool());
        let known = rt::within(AGES, driver.until(|seen| !seen.settings.contains(&says))).await;
        assert!(known.is_some(), "a pool that has room again says that it is full");
        rt::sleep(AGES).await;
        assert!(waits(&own));
        assert!(fill(&own, volumes[full], 10..1_020, Duration::from_millis(2)).await);

        let paths = vec![stratisd::model::device::DevicePath::try_from(MORE).expect("absolute")];
        driver.call(Wish::AddDataDevices(pool(), paths)).await.expect("nobody has it");
        rt::sleep(AGES).await;
        let outs = own.outs(pool());
        for volume in &volumes[full + 1..] {
            assert!(fill(&own, *volume, 10..1_020, Duration::from_millis(2)).await);
        }
        assert!(waits(&own) && own.outs(pool()) == outs, "it grows as before");
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

/// Makes a pool and writes until it has been extended once and is quiet; freezes or fails after some actions.
/// Gives back how many there were.
fn extended(machine: &Machine, disturb: impl FnOnce(&Machine) + 'static) -> u64 {
    let start = Rc::new(std::cell::Cell::new(0));
    let (own, counted) = (machine.clone(), Rc::clone(&start));
    live_at(PACE, SEED, machine, move |driver| async move {
        let volume = make(&driver, &["a"]).await[0];
        rt::sleep(AGES).await;
        counted.set(own.actions());
        disturb(&own);
        fill(&own, volume, 100..219, Duration::from_millis(1)).await;
        rt::sleep(AGES).await;
    });
    machine.actions() - start.get()
}

#[test]
fn an_extension_that_is_cut_off_anywhere_goes_on() {
    let whole = machine();
    let actions = extended(&whole, |_| {});
    assert!(actions > 12, "a swap, a save on two disks, tables below: {actions}");
    assert_eq!(whole.bugs(), Vec::<String>::new());
    for point in 0..=actions {
        for crash in 0..CRASHES {
            let at = format!("action {point} of {actions}, crash {crash}");
            let machine = machine();
            extended(&machine, move |machine| machine.stop_at(machine.actions() + point));
            is_backed(&machine, &at);
            let before = blocks(&machine).0;
            if crash == 0 {
                machine.kill();
            } else {
                machine.crash(crash);
            }
            let own = machine.clone();
            let context = at.clone();
            live_at(PACE, SEED + crash, &machine, move |driver| async move {
                rt::sleep(AGES).await;
                let (now, below) = blocks(&own);
                assert!(
                    now <= before + 2 * PACE.step,
                    "a start takes no more than is needed: {before} {now}, {context}"
                );
                assert!(below >= now + PACE.step, "a step is ahead: {now} {below}, {context}");
                is_backed(&own, &context);
                let volume = filesystem(&driver.seen(), "a");
                assert!(fill(&own, volume, 300..500, Duration::from_millis(3)).await, "{context}");
                assert_eq!(own.outs(pool()), 0, "{context}");
            })
            .finished();
            assert_eq!(machine.bugs(), Vec::<String>::new(), "{at}");
        }
    }
}

#[test]
fn an_extension_that_fails_is_tried_again() {
    let actions = extended(&machine(), |_| {});
    for point in 0..actions {
        let machine = machine();
        let at = format!("fault at action {point} of {actions}");
        extended(&machine, move |machine| machine.fail_at(machine.actions() + point, libc::EIO));
        let (now, below) = blocks(&machine);
        assert!(below >= now + PACE.step, "{now} {below}: {at}\n{:#?}", machine.trace());
        assert_eq!((machine.outs(pool()), machine.bugs()), (0, Vec::new()), "{at}");
        is_backed(&machine, &at);
    }
}

#[test]
fn a_pool_of_which_nothing_is_heard_grows_all_the_same() {
    let machine = machine();
    let own = machine.clone();
    live_at(PACE, SEED, &machine, move |driver| async move {
        let volume = make(&driver, &["a"]).await[0];
        rt::sleep(AGES).await;
        own.lose_thin_pool_events();
        let first = blocks(&own).0;
        assert!(fill(&own, volume, 100..1_000, Duration::from_secs(1)).await);
        assert!(blocks(&own).0 >= first + 6 * PACE.step && own.outs(pool()) == 0, "{:?}", blocks(&own));
        is_backed(&own, "nothing was heard");
    })
    .finished();
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn a_pool_that_is_quiet_does_nothing() {
    let machine = machine();
    let own = machine.clone();
    live_at(PACE, SEED, &machine, move |driver| async move {
        let volume = make(&driver, &["a"]).await[0];
        fill(&own, volume, 0..300, Duration::from_millis(2)).await;
        rt::sleep(AGES).await;
        let (quiet, tables) = (own.actions(), own.tables());
        rt::sleep(AGES).await;
        assert_eq!(own.actions(), quiet, "{:#?}", own.trace());
        own.raise(pool());
        rt::sleep(AGES).await;
        assert_eq!((own.actions(), own.tables()), (quiet, tables), "an event that says nothing new");
    })
    .finished();
    machine.kill();
    let (actions, tables) = (machine.actions(), machine.tables());
    live_at(PACE, SEED, &machine, |_| async { rt::sleep(AGES).await }).finished();
    let swaps = machine.trace().iter().filter(|line| line.contains("swap")).count();
    assert_eq!(machine.tables(), tables, "a daemon that takes it over changes nothing");
    assert!(machine.actions() > actions && swaps > 0);
}
