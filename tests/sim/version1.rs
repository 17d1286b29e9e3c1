//! Pools of metadata version 1, as they are found on disks: every operation on them is whole or not at all, and leaves
//! them what they are.
//!
//! A pool is made as any other, and while nobody looks it is written anew in the older layout: nothing that holds data
//! moves, only what says where it is. Deliberately absent: encrypted ones, which no daemon here unlocks.

use serde_json::Value as Json;
use stratisd::error::{Failure, Refusal};
use stratisd::format::header::{self, BLOCK_BYTES, Decoded, StaticHeader, Which};
use stratisd::format::mda::{self, Geometry, REGIONS, Region};
use stratisd::format::record::{self, PoolRecord, Segment};
use stratisd::message::{Answer, Wish};
use stratisd::model::dm::{Below, Dm, Role, Table};
use stratisd::model::pool::MetadataVersion;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::devices::{add_cache, add_data, init_cache, start_without_cache, uuid};
use crate::encryption::tokens;
use crate::world::{Driver, Seen, create_filesystem, create_pool, filesystem, live, look, name, pool, snapshot};
use crate::{Before, DISK, SEED, attempt, every_crash_point_of, machine, one_fault};

const DISKS: [&str; 2] = ["/dev/a", "/dev/b"];
/// Room for an encryption header, which version 2 has at the start of its cap device.
const ROOM: Sectors = Sectors(34_816);

/// Two disks with a running pool of version 1 and the filesystems `one` and `two`, and two disks more.
pub(crate) fn old_machine() -> Machine {
    let machine = machine();
    for disk in ["/dev/c", "/dev/d"] {
        machine.add_disk(disk, DISK);
    }
    // Of another seed, so that nothing that is made later gets the UUID of something that is there.
    live(SEED + 1_000, &machine, |driver| async move {
        for step in [create_pool(&DISKS), create_filesystem("one"), create_filesystem("two")] {
            driver.call(step).await.expect("what stands before is made");
        }
    })
    .finished();
    machine.crash(0);
    DISKS.iter().for_each(|disk| make_old(&machine, disk));
    machine
}

/// Writes what a disk says of its pool anew, in the layout of version 1.
fn make_old(machine: &Machine, disk: &str) {
    let (header, regions) = look_at(machine, disk);
    let geometry = Geometry::of(&header);
    let header = StaticHeader { version: MetadataVersion::V1, ..header };
    for which in [Which::First, Which::Second] {
        machine.scribble(disk, which.group_start(), &header.group());
    }
    for (place, region) in regions.into_iter().enumerate() {
        let Region::Record { time, json } = region else { continue };
        let mut record = record::decode(&json).expect("a daemon has written it");
        to_old(&mut record);
        let mut bytes = mda::encode(&record::encode(&record), time).expect("it is shorter than before");
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        machine.scribble(disk, geometry.start(place), &bytes);
    }
}

/// The same sectors under addresses that begin at 0, and nothing kept free.
fn to_old(record: &mut PoolRecord) {
    let first = &mut record.backstore.data_tier.blockdev.allocs[0][0];
    (first.start, first.length) = (first.start + ROOM, first.length - ROOM);
    record.backstore.data_tier.integrity_spec = None;
    record.backstore.data_tier.blockdev.devs.iter_mut().for_each(|device| device.integrity_meta_allocs.clear());
    let flex = &mut record.flex_devs;
    let lists = [&mut flex.meta_dev, &mut flex.thin_meta_dev, &mut flex.thin_data_dev, &mut flex.thin_meta_dev_spare];
    let mut length = Sectors::ZERO;
    for segment in lists.into_iter().flatten() {
        segment.start = segment.start - ROOM;
        length += segment.length;
    }
    record.backstore.cap.allocs = vec![Segment { start: Sectors::ZERO, length }];
    record.backstore.cap.crypt_meta_allocs.clear();
}

fn look_at(machine: &Machine, disk: &str) -> (StaticHeader, Vec<Region>) {
    let block = machine.bytes(disk, Which::First.block_start(), Sectors(1));
    let Decoded::Good(header) = header::decode(&block.try_into().expect("a block")) else { panic!("{disk} is signed") };
    let geometry = Geometry::of(&header);
    let region = |place| mda::decode(&machine.bytes(disk, geometry.start(place), geometry.length()));
    (header, (0..REGIONS).map(region).collect())
}

/// What the rules of 3.9.2 for pools of version 1 want of the newest record of a disk, looked up in the bytes.
fn expect_old(machine: &Machine, disk: &str) -> Json {
    assert_eq!(machine.bytes(disk, Sectors(1), Sectors(1))[28], 1, "the version of {disk}");
    let (_, regions) = look_at(machine, disk);
    let newest = mda::newest(&regions.try_into().expect("four regions")).map(|(_, _, json)| json.to_vec());
    let json: Json = serde_json::from_slice(&newest.expect("it has a record")).expect("it is JSON");
    assert!(json.get("features").is_none(), "{json}");
    let (backstore, flex) = (&json["backstore"], &json["flex_devs"]);
    assert!(backstore["data_tier"].get("integrity_spec").is_none(), "{json}");
    assert!(backstore["cap"].get("crypt_meta_allocs").is_none(), "{json}");
    let devices = backstore["data_tier"]["blockdev"]["devs"].as_array().expect("a list");
    assert!(devices.iter().all(|device| device.get("integrity_meta_allocs").is_none()), "{json}");
    let number = |value: &Json| value.as_u64().expect("a number");
    let lists = ["meta_dev", "thin_meta_dev", "thin_data_dev", "thin_meta_dev_spare"].map(|list| &flex[list]);
    let segments: Vec<(u64, u64)> = lists
        .into_iter()
        .flat_map(|list| list.as_array().expect("a list"))
        .map(|pair| (number(&pair[0]), number(&pair[1])))
        .collect();
    let end = segments.iter().map(|(start, length)| start + length).max().expect("there are some");
    assert_eq!(segments.iter().map(|(_, length)| length).sum::<u64>(), end, "nothing is left out: {json}");
    assert_eq!(backstore["cap"]["allocs"], serde_json::json!([[0, end]]), "one piece: {json}");
    let data = backstore["data_tier"]["blockdev"]["allocs"][0].as_array().expect("a list");
    assert!(data.iter().map(|segment| number(&segment["length"])).sum::<u64>() >= end, "{json}");
    json
}

/// What the flex devices lie on.
fn cap(machine: &Machine) -> Vec<Role> {
    let below = |role| match &machine.tables()[&Dm::Private(pool(), role)] {
        Table::Linear(lines) => match lines[0].below {
            Below::Dm(Dm::Private(_, below)) => below,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    [Role::ThinMeta, Role::ThinData, Role::Mdv].map(below).to_vec()
}

fn start() -> Wish {
    Wish::StartPool { pool: pool(), unlock: false, remove_cache: false }
}

#[test]
fn filesystems_come_and_go_whole_or_not_at_all() {
    every_crash_point_of(old_machine, Before::Old, |_| create_filesystem("three"));
    every_crash_point_of(old_machine, Before::Old, |seen| snapshot(seen, "one", "s"));
    every_crash_point_of(old_machine, Before::Old, |seen| {
        Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "one")])
    });
    every_crash_point_of(old_machine, Before::Old, |seen| {
        Wish::SetFilesystemName(pool(), filesystem(seen, "one"), name("uno"))
    });
}

#[test]
fn a_pool_stops_starts_and_changes_whole_or_not_at_all() {
    every_crash_point_of(old_machine, Before::Old, |_| Wish::StopPool(pool()));
    every_crash_point_of(old_machine, Before::OldStopped, |_| start());
    every_crash_point_of(old_machine, Before::Old, |_| Wish::SetPoolName(pool(), name("q")));
    every_crash_point_of(old_machine, Before::Old, |_| Wish::SetFsLimit(pool(), 500));
    every_crash_point_of(old_machine, Before::Old, |_| add_data(&["/dev/c"]));
}

#[test]
fn a_cache_comes_and_goes_whole_or_not_at_all() {
    every_crash_point_of(old_machine, Before::Old, |_| init_cache(&["/dev/c", "/dev/d"]));
    every_crash_point_of(old_machine, Before::OldCached, |_| add_cache(&["/dev/d"]));
    every_crash_point_of(old_machine, Before::OldCachedStopped, |_| start_without_cache());
    every_crash_point_of(old_machine, Before::OldCachedStopped, |_| start());
}

/// Everything that changes a pool's record, one after the other, on a pool that stays of version 1.
async fn work(driver: &Driver) {
    let steps: [fn(&Seen) -> Wish; 11] = [
        |_| create_filesystem("three"),
        |seen| snapshot(seen, "one", "s"),
        |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "two")]),
        |seen| Wish::SetFilesystemName(pool(), filesystem(seen, "three"), name("drei")),
        |_| Wish::SetFsLimit(pool(), 300),
        |_| add_data(&["/dev/d"]),
        |seen| Wish::SetUserInfo(pool(), uuid(seen, "/dev/d"), Some(name("new"))),
        |_| init_cache(&["/dev/c"]),
        |_| Wish::SetFsLimit(pool(), 500),
        |_| Wish::SetOverprovisioning(pool(), false),
        |_| Wish::SetPoolName(pool(), name("q")),
    ];
    for step in steps {
        let said = driver.call(step(&driver.seen())).await;
        assert!(said.is_ok(), "{said:?}");
    }
}

#[test]
fn what_was_worked_on_is_left_in_its_own_layout() {
    let machine = old_machine();
    expect_old(&machine, "/dev/a");
    let seen = live(SEED, &machine, |driver| async move {
        work(&driver).await;
        driver.seen()
    })
    .finished();
    assert_eq!(cap(&machine), [Role::Cache; 3]);
    for disk in ["/dev/a", "/dev/b", "/dev/d"] {
        let json = expect_old(&machine, disk);
        assert_eq!(json["thinpool_dev"]["fs_limit"], 500);
    }
    assert_eq!(machine.bytes("/dev/c", Sectors(1), Sectors(1))[28], 1, "the devices of a cache are of one version too");
    machine.crash(3);
    assert_eq!(look(SEED + 1, &machine), seen);
    let stopped =
        live(SEED + 2, &machine, |driver| async move { driver.call(Wish::StopPool(pool())).await }).finished();
    stopped.expect("nothing is in use");
    assert_eq!(machine.tables().len(), 0);
    assert_eq!(expect_old(&machine, "/dev/b")["started"], false);
    machine.kill();
    let without = live(SEED + 3, &machine, |driver| async move { driver.call(start_without_cache()).await }).finished();
    assert!(matches!(&without, Ok(Answer::PoolStarted(_, devices, _)) if devices.len() == 3), "{without:?}");
    assert_eq!(cap(&machine), [Role::OriginSub; 3]);
    assert!(expect_old(&machine, "/dev/a")["backstore"].get("cache_tier").is_none());
    assert_eq!(machine.bugs(), Vec::<String>::new());
}

#[test]
fn every_fault_is_unwound() {
    for (before, wish) in [
        (Before::Old, (|_| create_filesystem("three")) as fn(&Seen) -> Wish),
        (Before::Old, |seen| Wish::DestroyFilesystems(pool(), vec![filesystem(seen, "one")])),
        (Before::Old, |seen| snapshot(seen, "one", "s")),
        (Before::Old, |_| Wish::StopPool(pool())),
        (Before::Old, |_| Wish::SetFsLimit(pool(), 500)),
        (Before::OldStopped, |_| start()),
    ] {
        let (actions, _) = attempt(&old_machine(), before, wish, None);
        for point in 1..=actions {
            one_fault(old_machine, before, wish, point);
        }
    }
}

#[test]
fn it_is_not_encrypted_later() {
    let machine = old_machine();
    let before = look(SEED, &machine);
    let (said, after) = live(SEED, &machine, |driver| async move {
        (driver.call(Wish::EncryptPool(pool(), tokens())).await, driver.seen())
    })
    .finished();
    assert!(matches!(said, Err(Failure::Refused(Refusal::NotEncryptable { .. }))), "{said:?}");
    assert_eq!(after, before);
}
