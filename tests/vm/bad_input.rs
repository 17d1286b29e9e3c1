//! CreatePool with block devices that must not be taken.
//!
//! After each refusal: it names the device, no device was written to, nothing is there that was not there before,
//! and in the end the good device can still be used. Deliberately absent: what has nothing to do with real
//! devices (`tests/bad_input` tries that on files).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::discovery::flag_as_multipath;
use crate::guest::files::{mount, node};
use crate::guest::udev::{Frozen, settle};
use crate::guest::{Guest, dm, processes, run};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::signatures;
use crate::support::client::{Client, Objects, Properties};
use crate::support::disk::head;
use crate::support::{GIB, MIB};

/// All that a refused request must leave alone.
#[derive(Debug, Eq, PartialEq)]
struct State {
    objects: Objects,
    stopped: BTreeMap<String, Properties>,
    dm: Vec<dm::Device>,
    /// By device: sectors written and discarded since the machine started, and the first 2 MiB.
    devices: Vec<(String, [u64; 2], Vec<u8>)>,
}

/// Takes it in, for these devices and every disk.
fn state(guest: &Guest, client: &Client, more: &[&str]) -> State {
    let disks = guest.disks();
    let paths = disks.iter().map(String::as_str).chain(more.iter().copied());
    let device = |path: &str| {
        let node = fs::canonicalize(path).expect("a device");
        let name = node.file_name().expect("it has a name").to_str().expect("UTF-8").to_owned();
        let counts = fs::read_to_string(format!("/sys/class/block/{name}/stat")).expect("every device counts");
        let counts: Vec<u64> = counts.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        (path.to_owned(), [counts[6], counts[13]], head(Path::new(path), 2 * MIB))
    };
    State {
        objects: client.objects(),
        stopped: client.stopped_pools(9),
        dm: dm::devices(),
        devices: paths.map(device).collect(),
    }
}

#[track_caller]
fn expect_untouched(before: &State, after: &State, what: &str) {
    assert_eq!(after.objects, before.objects, "{what}: objects");
    assert_eq!(after.stopped, before.stopped, "{what}: stopped pools");
    let names = |state: &State| state.dm.iter().map(|device| device.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(after), names(before), "{what}: dm devices");
    for (after, before) in after.devices.iter().zip(&before.devices) {
        assert_eq!((&after.0, after.1), (&before.0, before.1), "{what}: writes");
        assert!(after.2 == before.2, "{what}: the content of {}", after.0);
    }
}

fn no_pool() -> (bool, (String, Vec<String>)) {
    (false, ("/".to_owned(), Vec::new()))
}

/// The device is refused alone and beside a good one, for this reason; nothing changes.
#[track_caller]
fn expect_refused(guest: &Guest, client: &Client, good: &str, bad: &str, why: &str) {
    expect_refused_beside(guest, client, good, bad, why, &[]);
}

#[track_caller]
fn expect_refused_beside(guest: &Guest, client: &Client, good: &str, bad: &str, why: &str, more: &[&str]) {
    let before = state(guest, client, more);
    let error = client.create_pool("p", &[bad]).refused(&no_pool());
    assert!(error.contains(why), "{bad}: {error:?} says {why:?}");
    for devices in [[good, bad], [bad, good]] {
        let error = client.create_pool("p", &devices).refused(&no_pool());
        assert!(error.contains(why), "{bad}: {error:?} says {why:?}");
    }
    expect_untouched(&before, &state(guest, client, more), bad);
}

/// A loop device over a sparse file.
fn looped(name: &str, bytes: u64, block: u32) -> String {
    let file = format!("/var/tmp/{name}");
    fs::File::create(&file).expect("/var/tmp is writable").set_len(bytes).expect("files can be sparse");
    let node = run("losetup", &["--find", "--show", "--sector-size", &block.to_string(), &file]);
    settle();
    // A warning about an empty file may follow.
    node.lines().next().expect("losetup names the device").to_owned()
}

/// Writes a partition table.
fn partition(disk: &str, script: &str) {
    run("sh", &["-c", &format!("printf '{script}' | sfdisk --quiet {disk}")]);
    settle();
}

scenario!(
    /// Filesystems, swap, partition tables, encrypted volumes, members of volume groups and arrays.
    an_occupied_device_is_refused_and_not_wiped,
    Spec { disks: &["2G"; 9], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let [good, ext4, xfs, swap, gpt, dos, luks, lvm, array] = disks.as_slice() else { panic!("nine disks") };
        run("mkfs.ext4", &["-q", ext4]);
        run("mkfs.xfs", &["-q", xfs]);
        run("mkswap", &[swap]);
        partition(gpt, "label: gpt\\n,\\n");
        partition(dos, "label: dos\\n,\\n");
        let format = "printf secret | cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 ";
        run("sh", &["-c", &format!("{format}{luks} -")]);
        signatures::lvm(lvm);
        signatures::array(array);
        run("sync", &[]);
        run("udevadm", &["trigger", "--subsystem-match=block"]);
        settle();
        guest.start();
        let client = guest.client();
        for (disk, what) in [
            (ext4, "a filesystem (ext4)"),
            (xfs, "a filesystem (xfs)"),
            (swap, "a signature (swap)"),
            (gpt, "a partition table (gpt)"),
            (dos, "a partition table (dos)"),
            (luks, "an encrypted volume (crypto_LUKS)"),
            (lvm, "a member of a volume group or array (LVM2_member)"),
            (array, "a member of a volume group or array (linux_raid_member)"),
        ] {
            expect_refused(guest, &client, good, disk, &format!("{disk} holds {what}: it is not wiped"));
        }
        // udev's database has a trace of a filesystem that libblkid no longer sees, and is believed.
        run("udevadm", &["control", "--stop-exec-queue"]);
        run("wipefs", &["--all", "--quiet", ext4]);
        expect_refused(guest, &client, good, ext4, "a filesystem (ext4), as udev has it");
        run("udevadm", &["control", "--start-exec-queue"]);
        settle();
        assert!(client.create_pool("p", &[good, ext4]).done().0, "the good one, and one that was wiped, can be used");
    }
);

scenario!(
    /// Whatever has a path and is no block device.
    what_is_no_block_device_is_refused,
    Spec { disks: &["2G"], ..SPEC },
    |guest: &mut Guest| {
        let good = guest.disks().remove(0);
        let at = |name: &str| format!("/tmp/bad/{name}");
        fs::create_dir_all(at("folder")).expect("/tmp is writable");
        fs::File::create(at("file")).expect("/tmp is writable").set_len(2 * GIB).expect("files can be sparse");
        for (target, name) in [("nowhere", "dangling"), ("loop", "loop"), ("folder", "to-folder"), ("file", "to-file")] {
            symlink(target, at(name)).expect("/tmp is writable");
        }
        nix::unistd::mkfifo(Path::new(&at("fifo")), Mode::S_IRWXU).expect("/tmp is writable");
        mknod(Path::new(&at("no-disk")), SFlag::S_IFBLK, Mode::S_IRWXU, makedev(240, 77)).expect("root makes nodes");
        guest.start();
        let client = guest.client();
        for name in ["folder", "file", "to-folder", "to-file", "fifo"] {
            let path = at(name);
            expect_refused(guest, &client, &good, &path, &format!("{path} is not a block device"));
        }
        for path in ["/dev/null", "/", "/proc/version"] {
            expect_refused(guest, &client, &good, path, &format!("{path} is not a block device"));
        }
        for path in [at("missing"), at("dangling"), format!("{good}/below")] {
            expect_refused(guest, &client, &good, &path, &format!("{path} does not exist"));
        }
        for path in [at("loop"), at("no-disk")] {
            expect_refused(guest, &client, &good, &path, &path);
        }
        for relative in ["ubda", "./ubda", ""] {
            client.create_pool("p", &[relative]).refused(&no_pool());
        }
        assert!(client.create_pool("p", &[&good]).done().0);
    }
);

scenario!(
    /// Sizes and block sizes: too small, mixed, and a pool whose devices have blocks of 4,096 bytes.
    small_and_mixed_devices_are_refused,
    Spec { disks: &["2G", "1G"], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let small = [0, 1 << 20, GIB - 512].map(|size| looped(&format!("small{size}"), size, 512));
        let large = ["a", "b"].map(|name| looped(name, 2 * GIB, 4096));
        guest.start();
        let client = guest.client();
        for disk in &small {
            expect_refused(guest, &client, &disks[0], disk, &format!("{disk} has "));
        }
        let before = state(guest, &client, &[&large[0]]);
        let error = client.create_pool("p", &[&disks[0], &large[0]]).refused(&no_pool());
        assert!(error.contains("512/512") && error.contains("4096/4096"), "{error:?} tells the sizes");
        expect_untouched(&before, &state(guest, &client, &[&large[0]]), "mixed blocks");

        assert!(client.create_pool("least", &[&disks[1]]).done().0, "1 GiB is enough");
        let (_, (pool, _)) = client.create_pool("large", &[&large[0], &large[1]]).done();
        client.make_filesystem(&pool, "fs");
        guest.kill9();
        guest.start();
        let client = guest.client();
        client.stop_pool("large", "name").done();
        assert!(client.start_pool("large", "name").done().0);
        dm::expect_settled();
        let (filesystem, _) = client.family("filesystem").pop_first().expect("it has come back");
        let folder = mount(&node(&client, &filesystem), "fs");
        fs::write(folder.join("file"), "text").expect("it can be written");
    }
);

scenario!(
    /// Devices that somebody uses or that cannot be written: mounted, swapped to, below a dm device, read-only,
    /// paths of a multipath device, and devices that udev does not know yet.
    a_device_in_use_is_refused,
    Spec { disks: &["2G", "2G", "2G", "3G", "2G", "2G"], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let [good, mounted, swap, below, read_only, path] = disks.as_slice() else { panic!("six disks") };
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", mounted]);
        fs::create_dir_all("/mnt/m").expect("the guest's root is writable");
        run("mount", &["-o", "ro", mounted, "/mnt/m"]);
        run("mkswap", &[swap]);
        run("swapon", &[swap]);
        run("dmsetup", &["create", "other", "--table", &format!("0 2097152 linear {below} 2048")]);
        run("blockdev", &["--setro", read_only]);
        flag_as_multipath(guest, path);
        guest.start();
        let client = guest.client();
        expect_refused(guest, &client, good, mounted, "a filesystem (ext4)");
        expect_refused(guest, &client, good, swap, "a signature (swap)");
        expect_refused(guest, &client, good, below, &format!("{below} is in use"));
        expect_refused(guest, &client, good, read_only, &format!("{read_only} is read-only"));
        expect_refused(guest, &client, good, path, &format!("{path} is a path of a multipath device"));

        let frozen = Frozen::now();
        run("dmsetup", &["create", "new", "--noudevsync", "--table", &format!("0 2097152 linear {below} 2099200")]);
        let new = dm::devices().into_iter().find(|device| device.name == "new").expect("it was made");
        let new = format!("/dev/dm-{}", new.minor);
        expect_refused(guest, &client, good, &new, &format!("{new} is not known to udev yet"));
        drop(frozen);
        settle();
        assert!(client.create_pool("on-dm", &[&new]).done().0, "once udev knows it, it can be used");
        assert!(client.create_pool("good", &[good]).done().0);
    }
);

scenario!(
    /// A disk with partitions is not taken, a partition of it is; and not the disk around a pool's partition.
    partitions_are_devices_and_their_disks_are_not,
    Spec { disks: &["2G", "6G"], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let (good, disk) = (&disks[0], &disks[1]);
        partition(disk, "label: gpt\\n,2G\\n,2G\\n");
        let [empty, ext4] = [1, 2].map(|part| format!("{disk}{part}"));
        run("mkfs.ext4", &["-q", &ext4]);
        run("sync", &[]);
        settle();
        guest.start();
        let client = guest.client();
        expect_refused_beside(guest, &client, good, disk, "a partition table (gpt)", &[&empty]);
        expect_refused_beside(guest, &client, good, &ext4, "a filesystem (ext4)", &[&empty, &ext4]);
        client.create_pool("part", &[&empty]).done();
        expect_refused_beside(guest, &client, good, disk, "a partition table (gpt)", &[&ext4]);
        expect_refused_beside(guest, &client, good, &empty, &format!("{empty} belongs to pool"), &[&ext4]);
        client.stop_pool("part", "name").done();
        expect_refused_beside(guest, &client, good, disk, "a partition table (gpt)", &[&empty, &ext4]);
        client.start_pool("part", "name").done();
        let (pool, _) = client.family("pool").pop_first().expect("one runs");
        assert!(client.destroy_pool(&pool).done().0);
        assert!(client.create_pool("again", &[&empty]).done().0, "what was destroyed is free at once");
    }
);

scenario!(
    /// Devices and volumes of pools: running, stopped, damaged, copied, and one device under several names.
    what_belongs_to_a_pool_is_refused,
    Spec { disks: &["2G"; 5], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let [good, running, stopped, damaged, twice] = disks.as_slice() else { panic!("five disks") };
        // Both signature blocks have their magic and a wrong checksum.
        guest.start();
        let client = guest.client();
        client.create_pool("damaged", &[damaged]).done();
        client.stop_pool("damaged", "name").done();
        guest.stop();
        for sector in [1, 9] {
            let seek = format!("seek={}", sector * 512);
            let of = format!("of={damaged}");
            run("dd", &["if=/dev/zero", &of, "bs=1", "count=4", &seek, "conv=notrunc,fsync", "status=none"]);
        }
        settle();
        guest.start();
        let client = guest.client();
        let (_, (pool, _)) = client.create_pool("running", &[running]).done();
        client.make_filesystem(&pool, "fs");
        client.create_pool("stopped", &[stopped]).done();
        client.stop_pool("stopped", "name").done();
        settle();
        for disk in [running, stopped] {
            expect_refused(guest, &client, good, disk, &format!("{disk} belongs to pool"));
        }
        expect_refused(guest, &client, good, damaged, &format!("{damaged} carries a damaged Stratis signature"));
        for device in dm::devices() {
            let node = format!("/dev/dm-{}", device.minor);
            expect_refused(guest, &client, good, &node, &format!("{node} is a volume of a Stratis pool"));
        }

        symlink(twice, "/dev/link").expect("/dev is writable");
        let number = fs::metadata(twice).map(|metadata| std::os::unix::fs::MetadataExt::rdev(&metadata)).expect("a disk");
        mknod(Path::new("/dev/node"), SFlag::S_IFBLK, Mode::S_IRWXU, number).expect("root makes nodes");
        let before = state(guest, &client, &[]);
        let error = client.create_pool("p", &[twice, "/dev/node"]).refused(&no_pool());
        assert!(error.contains(twice) && error.contains("/dev/node"), "{error:?} names both");
        expect_untouched(&before, &state(guest, &client, &[]), "two nodes of one device");
        let (changed, (_, devices)) = client.create_pool("p", &["/dev/link", twice, "/dev/link"]).done();
        assert_eq!((changed, devices.len()), (true, 1), "links lead to one device");
        assert_eq!(client.create_pool("p", &["/dev/link"]).done(), no_pool(), "and to the same pool");
        for other in ["/dev/node", "/dev/link", twice] {
            client.create_pool("q", &[other]).refused(&no_pool());
        }
        assert!(client.create_pool("good", &[good]).done().0);
    }
);

scenario!(
    /// Without udevd libblkid is asked alone, and a warning says so.
    without_udevd_devices_are_still_looked_at,
    Spec { disks: &["2G", "2G"], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        run("mkfs.ext4", &["-q", &disks[1]]);
        run("udevadm", &["control", "--exit"]);
        guest.until("udevd ends", |_| processes("systemd-udevd").is_empty());
        // A machine that never had one: an udevd leaves its socket and its database behind.
        fs::remove_dir_all("/run/udev").expect("root removes what it likes");
        guest.start();
        let client = guest.client();
        assert!(guest.log().contains("udevd does not run"), "the log says so: {}", guest.log());
        expect_refused(guest, &client, &disks[0], &disks[1], "a filesystem (ext4)");
        client.create_pool("p", &[&disks[0]]).done();
        guest.kill9();
        guest.start();
        assert_eq!(guest.client().stopped_pools(9).len(), 0, "it is found again, and runs");
    }
);
