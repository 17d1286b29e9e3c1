//! Filesystems of which only a part could be written: in pools that zero new blocks, and in those of
//! stratisd 3.9.2, which do not.
//!
//! Deliberately absent: faults and crashes anywhere else; `main` tries each in turn.

use std::rc::Rc;
use std::time::Duration;

use cores::rt;
use stratisd::error::{Failure, Refusal};
use stratisd::format::{mda, record};
use stratisd::message::{Answer, Wish};
use stratisd::model::dm::{Dm, ThinFeature};
use stratisd::sys::Folder;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::world::{Driver, create_filesystem, create_pool, live, look, pool};
use crate::{Before, DISK, SEED, every_crash_point_of};

const DISKS: [&str; 2] = ["/dev/a", "/dev/b"];
/// Where metadata areas begin, and the length of a region.
const REGIONS_START: Sectors = Sectors(16);
const REGION: Sectors = Sectors(508);

/// A machine on which a pool runs as soon as a daemon does.
fn with_pool(size: Sectors) -> Machine {
    let machine = Machine::new(SEED);
    for disk in DISKS {
        machine.add_disk(disk, size);
    }
    // Another seed, so that a new filesystem does not get the UUID of a device.
    live(SEED + 1, &machine, |driver| async move { driver.call(create_pool(&DISKS)).await })
        .finished()
        .expect("it is made");
    machine.crash(0);
    machine
}

fn zeroing() -> Machine {
    with_pool(DISK)
}

fn skipping() -> Machine {
    let machine = with_pool(DISK);
    make_skipping(&machine);
    machine
}

/// Writes into the record of a stopped machine's pool what 3.9.2 writes: new blocks are handed out as they are.
fn make_skipping(machine: &Machine) {
    for disk in DISKS {
        let start = |region: usize| REGIONS_START + Sectors(REGION.0 * region as u64);
        let regions = std::array::from_fn(|region| mda::decode(&machine.bytes(disk, start(region), REGION)));
        let (_, time, json) = mda::newest(&regions).expect("a pool has a record");
        let mut record = record::decode(json).expect("ours");
        record.set_thin_features(&[ThinFeature::NoDiscardPassdown, ThinFeature::SkipBlockZeroing]);
        let time = mda::WallStamp { seconds: time.seconds + 1, ..time };
        let bytes = mda::encode(&record::encode(&record), time).expect("it is short");
        let older = mda::older(&regions);
        [older, older + mda::PRIMARIES].iter().for_each(|region| machine.scribble(disk, start(*region), &bytes));
    }
}

/// Which actions are those that put bytes on a thin volume, or make them durable.
fn on_volumes(machine: &Machine) -> Vec<u64> {
    let number = |line: String| {
        let (number, what) = line.split_once(": ")?;
        let ours = what.contains("-thin-fs-") && (what.starts_with("write ") || what.starts_with("flush "));
        ours.then(|| number.parse().expect("actions are numbered"))
    };
    machine.trace().into_iter().filter_map(number).collect()
}

/// That nothing is there of a filesystem that was not made, and why it was not.
#[track_caller]
fn expect_nothing(machine: &Machine, driver: &Driver, failed: Result<Answer, Failure>, errno: i32, others: usize) {
    let said = match failed {
        Err(Failure::Refused(Refusal::PoolFull { name })) if errno == libc::ENOSPC => name.as_str().to_owned(),
        Err(Failure::Faulted(fault)) if errno != libc::ENOSPC => {
            let said = fault.to_string();
            assert!(
                said.starts_with("cannot write stratis-1-") || said.starts_with("cannot flush stratis-1-"),
                "{said}"
            );
            assert!(said.contains("-thin-fs-") && said.contains(&format!("(os error {errno})")), "{said}");
            said
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(driver.seen().running[&pool()].1.len(), others, "{said}");
    assert_eq!(machine.volumes(pool()).expect("the pool runs").len(), others, "{said}");
    assert_eq!(machine.tables().keys().filter(|device| matches!(device, Dm::Thin(..))).count(), others, "{said}");
    assert_eq!(machine.files(pool(), Folder::Intents), Some(Vec::new()), "{said}");
    assert_eq!(machine.files(pool(), Folder::Filesystems).map(|files| files.len()), Some(others), "{said}");
}

#[test]
fn a_format_that_fails_at_any_write_or_its_flush_leaves_nothing() {
    for (machine, writes) in [(zeroing as fn() -> Machine, 5), (skipping, 7)] {
        let whole = machine();
        live(SEED, &whole, |driver| async move { driver.call(create_filesystem("one")).await })
            .finished()
            .expect("it is made");
        let points = on_volumes(&whole);
        assert_eq!(points.len(), writes + 1, "and one flush: {:#?}", whole.trace());
        for errno in [libc::EIO, libc::ENOSPC, libc::ENODEV] {
            for point in &points {
                let machine = machine();
                machine.fail_at(*point, errno);
                let own = machine.clone();
                live(SEED, &machine, move |driver| async move {
                    let failed = driver.call(create_filesystem("one")).await;
                    expect_nothing(&own, &driver, failed, errno, 0);
                    driver.call(create_filesystem("one")).await.expect("the name is free");
                })
                .finished();
                machine.crash(*point);
                assert_eq!(look(SEED, &machine).running[&pool()].1.len(), 1);
                assert!(machine.volumes(pool()).expect("it runs").values().all(Option::is_some), "it is whole");
            }
        }
    }
}

#[test]
fn a_disk_that_goes_while_a_filesystem_is_made_takes_it_along() {
    for (round, machine) in [zeroing(), skipping()].into_iter().enumerate() {
        let own = machine.clone();
        live(SEED, &machine, move |driver| async move {
            // Time enough to pull a disk: the batch of writes is under way, and then fails.
            own.set_write_time(Duration::from_secs(1));
            let asks = Rc::clone(&driver);
            let asked = rt::spawn("client", async move { asks.call(create_filesystem("one")).await });
            rt::sleep(Duration::from_millis(500)).await;
            own.fail_writes(DISKS[round], Some(libc::ENODEV));
            let failed = asked.await.expect("no panic");
            expect_nothing(&own, &driver, failed, libc::ENODEV, 0);
            own.fail_writes(DISKS[round], None);
            driver.call(create_filesystem("one")).await.expect("the name is free");
        })
        .finished();
    }
}

#[test]
fn a_full_pool_takes_no_filesystem_until_one_goes() {
    let machine = with_pool(Sectors(2_097_152));
    make_skipping(&machine);
    let own = machine.clone();
    let seen = live(SEED, &machine, move |driver| async move {
        let mut made = Vec::new();
        let failed = loop {
            match driver.call(create_filesystem(&format!("fs{}", made.len()))).await {
                Ok(Answer::FilesystemsCreated(new)) => made.push(new[0].0),
                other => break other,
            }
        };
        // Each takes 70 blocks of 1 MiB.
        assert!((2..20).contains(&made.len()), "{}", made.len());
        expect_nothing(&own, &driver, failed, libc::ENOSPC, made.len());
        driver.call(Wish::DestroyFilesystems(pool(), vec![made[0]])).await.expect("it is not in use");
        driver.call(create_filesystem("after")).await.expect("there is room again");
        driver.seen()
    })
    .finished();
    machine.crash(3);
    assert_eq!(look(SEED, &machine).running, seen.running);
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn creating_a_filesystem_in_a_pool_that_does_not_zero_its_blocks_is_all_or_nothing() {
    every_crash_point_of(skipping, Before::Nothing, |_| create_filesystem("one"));
}
