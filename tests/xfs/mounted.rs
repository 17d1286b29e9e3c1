//! Filesystems made natively, mounted and used; then another UUID.
//!
//! What the kernel wrote is what is read here: logs that went round, records of several headers,
//! records around the end of the log, and logs that must be left to the kernel.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use stratisd::xfs::{Log, LogFault, Refused, Sector};
use uuid::Uuid;

use crate::image::{IDENTITY, open};
use crate::mount::{Image, MIB, SIZE, record_only, shape};
use crate::tools::{arg, must, repair_is_content};

/// The lives of a filesystem: used, renamed, used, renamed again and back.
fn check_life(sector: Sector, unit: u64, options: &str) {
    let Some(image) = Image::new() else { return };
    let what = format!("{sector:?}, stripe {unit}, {options}");
    image.format(&shape(sector, unit), record_only());
    // Never mounted.
    image.check_change(image.uuid(1), &what);
    let mount = image.mount(options);
    mount.use_it("a", 60);
    mount.unmount();
    image.check_change(image.uuid(2), &what);
    let mount = image.mount(options);
    mount.check_use("a", 60);
    mount.use_it("b", 60);
    mount.shut_down();
    mount.unmount();
    let dirty = image.change(image.uuid(3));
    assert!(matches!(dirty, Err(Refused::Log(_))), "{what}: {dirty:?}");
    image.mount(options).unmount();
    // Back to the first one: META_UUID goes.
    image.check_change(image.first, &what);
    let mount = image.mount(options);
    mount.check_use("a", 60);
    mount.check_use("b", 60);
    mount.use_it("c", 20);
    mount.unmount();
    // xfs_db writes the whole log anew, with a gap behind the first record unless that is a long one. A
    // log with a gap is left to the kernel.
    must("xfs_db", &["-x", "-f", "-c", &format!("uuid {}", image.uuid(4)), arg(&image.path)]);
    match image.change(image.uuid(6)) {
        Ok(_) => repair_is_content(&image.path, &what),
        Err(refused) => assert!(matches!(refused, Refused::Log(LogFault::Cycles { .. })), "{what}: {refused}"),
    }
    image.mount(options).unmount();
    image.check_change(image.uuid(5), &what);
    image.mount(options).check_use("c", 20);
}

#[test]
fn a_used_filesystem_gets_another_uuid_and_keeps_its_files() {
    // Mounting is waiting, for the most part: side by side.
    std::thread::scope(|scope| {
        scope.spawn(|| check_life(Sector::Bytes512, 0, "logbsize=32k"));
        scope.spawn(|| check_life(Sector::Bytes512, MIB, "logbsize=64k"));
        scope.spawn(|| check_life(Sector::Bytes4096, 0, "logbsize=256k"));
        scope.spawn(|| check_life(Sector::Bytes512, 256 << 10, "logbsize=256k"));
    });
}

#[test]
fn a_log_that_went_round_is_followed() {
    let Some(image) = Image::new() else { return };
    image.format(&shape(Sector::Bytes512, MIB), record_only());
    // Every file is a record of 32 KiB: 2,048 of them fill the log.
    for (round, count) in [(1, 1500), (2, 800), (3, 2100)] {
        let mount = image.mount("noatime");
        mount.use_it(&format!("round{round}-"), count);
        mount.unmount();
        image.check_change(image.uuid(round), &format!("round {round}"));
        image.mount("noatime").check_use(&format!("round{round}-"), count);
    }
}

#[test]
fn a_filesystem_on_old_data_survives_because_its_log_is_zeroed() {
    let Some(image) = Image::new() else { return };
    let file = open(&image.path);
    let mut old = vec![0; 1 << 20];
    fastrand::Rng::with_seed(4).fill(&mut old);
    for at in (0..SIZE).step_by(old.len()) {
        file.write_all_at(&old, at).expect("an image can be written");
    }
    image.format(&shape(Sector::Bytes512, MIB), Log::Zeroed);
    repair_is_content(&image.path, "old data");
    let mount = image.mount("noatime");
    mount.use_it("a", 300);
    mount.unmount();
    let mount = image.mount("noatime");
    mount.check_use("a", 300);
    mount.use_it("b", 100);
    mount.shut_down();
    mount.unmount();
    image.mount("noatime").check_use("b", 100);
    repair_is_content(&image.path, "old data, used");
}

#[test]
fn what_is_mounted_or_damaged_keeps_its_uuid() {
    let Some(image) = Image::new() else { return };
    let format = image.format(&shape(Sector::Bytes512, 0), record_only());
    assert_eq!(image.change(Uuid::nil()), Err(Refused::Nil));
    let mount = image.mount("noatime");
    mount.use_it("a", 10);
    assert!(matches!(image.change(image.uuid(1)), Err(Refused::Log(_))), "mounted");
    mount.unmount();
    let file = open(&image.path);
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("an image can be read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("an image can be written");
    };
    let group = format.geometry.group_blocks() * 4096;
    for at in [0, 100, 300, group + 130, 2 * group + 500, format.log.at + 2] {
        flip(at);
        assert!(image.change(image.uuid(1)).is_err(), "byte {at}");
        flip(at);
    }
    let log = format.log;
    file.write_all_at(&vec![0; usize::try_from(log.length).expect("64 MiB")], log.at).expect("an image");
    assert_eq!(image.change(image.uuid(1)), Err(Refused::Log(LogFault::Empty)));
}

#[test]
fn the_root_folder_is_as_old_as_it_was_said_to_be() {
    let Some(image) = Image::new() else { return };
    image.format(&shape(Sector::Bytes512, 0), record_only());
    let mount = image.mount("noatime");
    let root = fs::metadata(&mount.point).expect("the root folder");
    let age = (root.mtime(), root.ctime(), root.mtime_nsec(), root.atime());
    let (seconds, rest) = (i64::from(IDENTITY.time.seconds), i64::from(IDENTITY.time.nanoseconds));
    assert_eq!(age, (seconds, seconds, rest, 0));
    assert_eq!(root.mode() & 0o777, 0o755);
}

#[test]
fn a_frozen_filesystem_is_left_to_the_kernel() {
    let Some(image) = Image::new() else { return };
    image.format(&shape(Sector::Bytes512, MIB), record_only());
    let mount = image.mount("noatime");
    mount.use_it("a", 30);
    must("fsfreeze", &["-f", arg(&mount.point)]);
    // What device-mapper does to the origin of a snapshot.
    let frozen = image.change(image.uuid(1));
    must("fsfreeze", &["-u", arg(&mount.point)]);
    assert_eq!(frozen, Err(Refused::Log(LogFault::Dirty)));
}

#[test]
fn a_grown_filesystem_gets_another_uuid_and_grows_on() {
    let Some(image) = Image::new() else { return };
    image.format(&shape(Sector::Bytes512, 0), record_only());
    for (round, size) in [(1, 2 * SIZE), (2, 5 * SIZE)] {
        open(&image.path).set_len(size).expect("an image can be made longer");
        let mount = image.mount("noatime");
        must("xfs_growfs", &["-d", arg(&mount.point)]);
        mount.use_it(&format!("round{round}-"), 10);
        mount.unmount();
        image.check_change(image.uuid(round), &format!("grown, round {round}"));
    }
    let mount = image.mount("noatime");
    mount.check_use("round1-", 10);
    mount.check_use("round2-", 10);
}

#[test]
fn a_filesystem_of_other_options_gets_another_uuid() {
    for options in [&["-m", "rmapbt=1", "-i", "nrext64=1"][..], &["-m", "bigtime=0,reflink=0", "-l", "size=70m"]] {
        let Some(image) = Image::new() else { return };
        must("mkfs.xfs", &[&["-q", "-f"], options, &[arg(&image.path)]].concat());
        image.check_change(image.uuid(1), "fresh");
        let mount = image.mount("noatime");
        mount.use_it("a", 50);
        mount.unmount();
        image.check_change(image.uuid(2), "used");
        image.mount("noatime").check_use("a", 50);
    }
}

/// Makes the log of a new filesystem look as if it had been written up to this sector.
fn move_record(image: &Image, log_at: u64, to: u64) {
    let file = open(&image.path);
    let mut record = vec![0; 1024];
    file.read_exact_at(&mut record, log_at).expect("an image can be read");
    // The low half of `h_lsn` and of `h_tail_lsn`.
    for field in [20, 28] {
        record[field..field + 4].copy_from_slice(&u32::try_from(to).expect("a sector").to_be_bytes());
    }
    let mut stamped = vec![0; 512 * usize::try_from(to).expect("a sector")];
    stamped.chunks_exact_mut(512).for_each(|sector| sector[3] = 1);
    stamped.extend(record);
    file.write_all_at(&stamped, log_at).expect("an image can be written");
}

/// Has the kernel go on from a record at `start`; in which sector the header of its last one lies.
fn last_header(start: u64) -> Option<u64> {
    let image = Image::new()?;
    let log = image.format(&shape(Sector::Bytes512, 0), record_only()).log;
    move_record(&image, log.at, start);
    repair_is_content(&image.path, "moved");
    let mount = image.mount("noatime");
    mount.use_it("a", 3);
    mount.unmount();
    let (writes, _) = image.plan(image.uuid(1)).expect("a clean log");
    let header = (writes.last().expect("the record").at - log.at) / 512;
    image.check_change(image.uuid(1), &format!("header in sector {header}"));
    image.mount("noatime").check_use("a", 3);
    Some(header)
}

#[test]
fn a_record_around_the_end_of_the_log_is_found() {
    const SECTORS: u64 = 64 * MIB / 512;
    // How far one mount takes the log is seen first; then it is made to end around the log's end.
    let Some(first) = last_header(1_000) else { return };
    let start = SECTORS - (first - 1_000);
    let headers: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|before| scope.spawn(move || last_header(start - before))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("it holds for each")).collect()
    });
    println!("around the end: headers in sectors {headers:?} of {SECTORS}");
    assert!(headers.contains(&(SECTORS - 1)), "no record was split");
}
