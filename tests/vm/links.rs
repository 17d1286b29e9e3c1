//! Paths under `/dev/stratis`: udev's rule and its helpers, and what the daemon tells them. And what the rest
//! of the machine must not see: metadata volumes.
//!
//! Deliberately absent: how soon a link comes. A reply does not wait for it.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;

use crate::guest::takeover::PATHS;
use crate::guest::{Guest, dm, files, run, udev};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::interface;

const POOL: &str = "11111111111111111111111111111111";
const FILESYSTEM: &str = "22222222-2222-4222-8222-222222222222";

/// A linear device named like a filesystem's volume, with an XFS on it; its node.
fn volume(disk: &str, start: u64) -> PathBuf {
    let name = format!("stratis-1-{POOL}-thin-fs-{}", FILESYSTEM.replace('-', ""));
    run("dmsetup", &["create", &name, "--uuid", &name, "--table", &format!("0 1048576 linear {disk} {start}")]);
    run("mkfs.xfs", &["-q", "-f", "-K", "-m", &format!("uuid={FILESYSTEM}"), &format!("/dev/mapper/{name}")]);
    udev::settle();
    fs::canonicalize(Path::new("/dev/mapper").join(name)).expect("udev made the link that dmsetup waits for")
}

/// Sends an event as the daemon does.
fn tell(node: &Path, uuid: &str, pool: &str, filesystem: &str) {
    let encode = |name: &str| BASE32_NOPAD.encode(name.as_bytes());
    let event = format!("change {uuid} STRATISPOOLNAME={} STRATISFSNAME={}", encode(pool), encode(filesystem));
    let name = node.file_name().expect("a node has a name").to_str().expect("and it is ASCII");
    fs::write(format!("/sys/class/block/{name}/uevent"), event).expect("the kernel takes the event");
    udev::settle();
}

/// Every link below `/dev/stratis`, sorted.
fn links() -> Vec<String> {
    let mut found = Vec::new();
    for pool in fs::read_dir("/dev/stratis").into_iter().flatten().flatten() {
        for link in fs::read_dir(pool.path()).expect("a pool's folder can be read").flatten() {
            found.push(link.path().to_str().expect("names are UTF-8").to_owned());
        }
    }
    found.sort();
    found
}

fn leads_to(link: &str) -> PathBuf {
    fs::canonicalize(link).unwrap_or_else(|error| panic!("{link}: {error}"))
}

scenario!(
    /// Without a daemon: what the rule makes of events.
    the_rule_takes_the_right_names_and_keeps_them,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        let disk = guest.disks().remove(0);
        let node = volume(&disk, 0);
        let tell = |uuid: &str, pool: &str, filesystem: &str| tell(&node, uuid, pool, filesystem);
        assert!(links().is_empty(), "nothing was told yet");

        tell("33333333-3333-4333-8333-333333333333", "p", "other");
        assert!(links().is_empty(), "that UUID is not the volume's");

        tell(FILESYSTEM, "p", "data");
        assert_eq!(links(), ["/dev/stratis/p/data"]);
        assert_eq!(leads_to("/dev/stratis/p/data"), node);

        for action in ["change", "add"] {
            guest.run("udevadm", &["trigger", "--settle", "--action", action, node.to_str().expect("ASCII")]);
            assert_eq!(links(), ["/dev/stratis/p/data"], "an ordinary {action} keeps the link");
        }

        tell("33333333-3333-4333-8333-333333333333", "p", "other");
        assert_eq!(links(), ["/dev/stratis/p/data"], "another UUID changes nothing");

        for name in ["Übung-1", "数据", "a,b+c:d=e@f_g#h.i", "a\u{a0}b"] {
            tell(FILESYSTEM, name, name);
            assert_eq!(links(), [format!("/dev/stratis/{name}/{name}")], "a new name takes the place of the old one");
            assert_eq!(leads_to(&links()[0]), node);
        }

        tell(FILESYSTEM, "..", "passwd");
        assert!(links().iter().all(|link| !link.contains("passwd")), "what is no name makes no link: {:?}", links());

        let name = dm::names().remove(0);
        guest.run("dmsetup", &["remove", &name]);
        udev::settle();
        assert!(links().is_empty(), "the link goes with the volume");
    }
);

scenario!(
    /// Without a daemon: what the rule makes of notes.
    a_note_names_a_volume_that_nobody_has_named,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        let disk = guest.disks().remove(0);
        let node = volume(&disk, 0);
        let note = |uuid: &str, name: &str| {
            fs::create_dir_all("/run/stratisd/names").expect("made");
            let path = format!("/run/stratisd/names/{}.{uuid}", dm::names().remove(0));
            let noted = format!("STRATIS_POOL_NAME=\"{name}\"\nSTRATIS_FS_NAME=\"{name}\"\n");
            fs::write(path, noted).expect("written");
            guest.run("udevadm", &["trigger", "--settle", files::text(&node)]);
        };
        note("33333333-3333-4333-8333-333333333333", "other");
        assert!(links().is_empty(), "that UUID is not the volume's");
        note(FILESYSTEM, "a,b\u{a0}数据");
        assert_eq!(links(), ["/dev/stratis/a,b\u{a0}数据/a,b\u{a0}数据"]);
        assert_eq!(leads_to(&links()[0]), node);
        tell(&node, FILESYSTEM, "p", "data");
        assert_eq!(links(), ["/dev/stratis/p/data"], "what is told counts");
        note(FILESYSTEM, "late");
        assert_eq!(links(), ["/dev/stratis/p/data"], "a note is of the past then");
    }
);

/// The UUID of the XFS on a device.
fn xfs_uuid(node: &Path) -> String {
    run("blkid", &["-p", "-s", "UUID", "-o", "value", files::text(node)]).trim().to_owned()
}

scenario!(
    /// With a daemon: links come with filesystems, are what `Devnode` says, and go with them.
    links_come_and_go_with_filesystems,
    SPEC,
    |guest: &mut Guest| {
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("Pool,1", &guest.disks()).done();
        let names = ["data", "Übung-1", "数据+a:b=c@d_e#f,g"];
        let made: Vec<String> = names.iter().map(|name| client.make_filesystem(&pool, name)).collect();
        udev::settle();
        let get = |path: &str, name: &str| {
            client.get(path, &interface("filesystem", 9), name).expect("properties can be read").text().to_owned()
        };
        for (name, path) in names.iter().zip(&made) {
            let link = format!("/dev/stratis/Pool,1/{name}");
            assert_eq!(get(path, "Devnode"), link);
            let node = fs::canonicalize(files::node(&client, path)).expect("the volume is there");
            assert_eq!(leads_to(&link), node);
            assert_eq!(xfs_uuid(&node).replace('-', ""), get(path, "Uuid"));
        }
        let all = links();
        assert_eq!(all.len(), 3);
        guest.run("udevadm", &["trigger", "--settle", "--subsystem-match=block", "--action=change"]);
        assert_eq!(links(), all, "ordinary events keep them");

        client.destroy_filesystems(&pool, &[&made[0]]).done();
        udev::settle();
        assert_eq!(links().len(), 2, "{:?}", links());
        client.stop_pool("Pool,1", "name").done();
        udev::settle();
        assert!(links().is_empty(), "{:?}", links());
        let events = udev::Monitor::new();
        client.start_pool("Pool,1", "name").done();
        udev::settle();
        assert_eq!(links().len(), 2, "{:?}", links());
        // udev looks at a device for each of these.
        let events = events.of_dm();
        let changes = events.iter().filter(|event| event.contains(" change "));
        assert_eq!(changes.count(), dm::names().len(), "{events:#?}");
        let started = client.family("filesystem");
        for properties in started.values() {
            let (uuid, link) = (properties["Uuid"].text(), properties["Devnode"].text());
            assert_eq!(xfs_uuid(&leads_to(link)).replace('-', ""), uuid);
        }
        let path = started.keys().next().expect("there are two");
        let renamed = client.ask::<(bool, String)>(path, &interface("filesystem", 9), "SetName", ("a-new-name",));
        assert!(renamed.done().0);
        udev::settle();
        let all = links();
        assert_eq!((all.len(), all[0].as_str()), (2, "/dev/stratis/Pool,1/a-new-name"));
        guest.run("udevadm", &["trigger", "--settle", "--subsystem-match=block", "--action=change"]);
        assert_eq!(links(), all, "what was noted when it started is of the past");
        let notes = fs::read_dir("/run/stratisd/names").expect("there").count();
        assert_eq!(notes, 1, "that of the other one; for udev may forget what it was told");

        // Whoever lost them (udev's database is gone) has them again from the next daemon.
        guest.kill9();
        for link in links() {
            fs::remove_file(link).expect("root may");
        }
        guest.start();
        guest.until("links are looked at", |guest| guest.log().contains(PATHS));
        udev::settle();
        assert_eq!(links().len(), 2, "{:?}", links());
        assert!(!guest.log().contains("cannot announce"), "{}", guest.log());
    }
);
