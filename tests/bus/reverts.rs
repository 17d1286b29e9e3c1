//! A snapshot that is scheduled takes its origin's place when its pool is stopped and started; and sizes that a record
//! does not know.
//!
//! Deliberately absent: each point of a crash (`tests/sim`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value as Json;

use crate::support::client::{Client, present};
use crate::support::rig::{Kind, Rig};
use crate::support::value::Value;
use crate::support::{GIB, disk, interface};
use crate::{KINDS, hyphenated, make_pool, text_of};

/// A place inside of every filesystem where nothing lies.
const MARK: u64 = 500_000_000;

/// The path of the filesystem of this name.
#[track_caller]
fn find(client: &Client, name: &str) -> String {
    let all = client.family("filesystem").into_iter();
    let mut named = all.filter(|(_, properties)| properties["Name"].text() == name).map(|(path, _)| path);
    named.next().expect("it is there")
}

#[track_caller]
fn set(client: &Client, filesystem: &str, property: &str, value: impl dbus::arg::Arg + dbus::arg::Append) {
    client.set(filesystem, &interface("filesystem", 9), property, value).expect("it may be set");
}

/// The file of a filesystem's volume.
fn volume(client: &Client, filesystem: &str) -> PathBuf {
    fs::canonicalize(text_of(client, filesystem, "filesystem", "Devnode")).expect("the path leads to the volume")
}

#[test]
fn a_scheduled_snapshot_takes_its_origins_place_at_the_next_start() {
    for kind in KINDS {
        let rig = Rig::new(kind);
        let _daemon = rig.start();
        let client = rig.client();
        let pool = make_pool(&rig, &client, "p");
        let origin = client.make_filesystem(&pool, "f");
        let uuid = text_of(&client, &origin, "filesystem", "Uuid");
        let snapshot = client.snapshot(&pool, &origin, "s").done().1;
        client.snapshot(&pool, &snapshot, "t").done();
        set(&client, &snapshot, "SizeLimit", (true, "2147483648".to_owned()));
        set(&client, &snapshot, "MergeScheduled", true);
        if kind == Kind::Files {
            let file = fs::File::options().write(true).open(volume(&client, &snapshot)).expect("it is there");
            file.write_all_at(b"as it was", MARK).expect("there is room");
        }
        client.stop_pool("p", "name").done();
        let (_, (_, _, filesystems)) = client.start_pool("p", "name").done();
        assert_eq!(filesystems.len(), 2, "the snapshot is gone");
        let (origin, other) = (find(&client, "f"), find(&client, "t"));
        assert_eq!(text_of(&client, &origin, "filesystem", "Uuid"), uuid);
        let get = |path: &str, name| client.get(path, &interface("filesystem", 9), name).expect("it can be read");
        assert_eq!(get(&origin, "SizeLimit"), present("2147483648"));
        assert_eq!(get(&origin, "MergeScheduled"), Value::Bool(false));
        assert_eq!(get(&other, "Origin"), present(&uuid), "what was the snapshot's is the origin's");
        if kind == Kind::Files {
            check_file(&client, &origin, &uuid);
        }
    }
}

/// The volume of what was reverted is whole, has the snapshot's bytes and the origin's UUID.
fn check_file(client: &Client, origin: &str, uuid: &str) {
    let file = volume(client, origin);
    let head = disk::head(&file, 512);
    let own: String = head[32..48].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hyphenated(&own), hyphenated(uuid));
    let mut read = [0; 9];
    fs::File::open(&file).and_then(|file| file.read_exact_at(&mut read, MARK)).expect("it can be read");
    assert_eq!(&read, b"as it was");
    let volumes = fs::read_dir(file.parent().expect("it is in a folder")).expect("it can be listed").count();
    assert_eq!(volumes, 2, "the volumes of the old origin and of the snapshot are gone");
    let checked = Command::new("xfs_repair").arg("-n").arg("-f").arg(&file).output();
    assert!(checked.expect("xfs_repair is installed").status.success(), "it is whole");
}

/// Changes the record of a filesystem while no daemon has it; what stood there.
#[track_caller]
fn change_record(rig: &Rig, uuid: &str, mut change: impl FnMut(&mut Json)) -> Json {
    let mut found = Vec::new();
    disk::walk(&rig.files_folder(), &mut |path| {
        if path.ends_with(format!("filesystems/{uuid}.json")) {
            let before: Json = serde_json::from_slice(&fs::read(path).expect("it is there")).expect("JSON");
            let mut record = before.clone();
            change(&mut record);
            fs::write(path, record.to_string()).expect("it can be written");
            found.push(before);
        }
    });
    assert_eq!(found.len(), 1, "it has one record");
    found.remove(0)
}

#[test]
fn a_filesystem_that_is_larger_than_recorded_is_recorded_and_not_cut_off() {
    let rig = Rig::files();
    let daemon = rig.start();
    let client = rig.client();
    let pool = make_pool(&rig, &client, "p");
    client.create_filesystems(&pool, &[("f", Some("1073741824"), None)]).done();
    let own = text_of(&client, &find(&client, "f"), "filesystem", "Uuid");
    client.stop_pool("p", "name").done();
    drop(daemon);
    // As another daemon leaves it that is cut off between growing it and writing that down.
    change_record(&rig, &own, |record| record["size"] = (GIB / 2 / 512).into());
    for _start in 0..2 {
        let _daemon = rig.start();
        let client = rig.client();
        client.start_pool("p", "name").done();
        assert_eq!(text_of(&client, &find(&client, "f"), "filesystem", "Size"), "1073741824");
        client.stop_pool("p", "name").done();
    }
}
