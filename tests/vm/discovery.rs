//! Which devices a daemon finds when it starts, and what udev knows of a pool's devices.
//!
//! Deliberately absent: devices that come and go while it runs.

use std::fs;

use crate::guest::lab::Lab;
use crate::guest::udev::{properties, settle};
use crate::guest::{Guest, dm, run};
use crate::host::{SPEC, Spec};
use crate::scenario;
use crate::support::client::Client;

/// The rule that flags a device.
const MULTIPATH_RULE: &str = "/run/udev/rules.d/56-multipath.rules";

/// Overwrites a few bytes of a device.
fn damage(device: &str, at: u64) {
    let (of, seek) = (format!("of={device}"), format!("seek={at}"));
    run("dd", &["if=/dev/zero", &of, "bs=1", "count=4", &seek, "conv=notrunc,fsync", "status=none"]);
}

/// Makes udev take a device for a path of a multipath device.
pub(crate) fn flag_as_multipath(guest: &mut Guest, device: &str) {
    let name = device.trim_start_matches("/dev/");
    fs::create_dir_all("/run/udev/rules.d").expect("/run is writable");
    let rule = format!("KERNEL==\"{name}\", ENV{{DM_MULTIPATH_DEVICE_PATH}}=\"1\"\n");
    fs::write(MULTIPATH_RULE, rule).expect("/run is writable");
    run("udevadm", &["control", "--reload"]);
    guest.until("udev has the flag", |_| {
        run("udevadm", &["trigger", "--settle", device]);
        properties(device).contains("DM_MULTIPATH_DEVICE_PATH=1")
    });
}

/// How many pools run, and how many are stopped.
fn pools(client: &Client) -> (usize, usize) {
    (client.family("pool").len(), client.stopped_pools(9).len())
}

scenario!(
    /// udev knows a pool's devices as such as soon as the pool is there, and a device is free at once when it is gone.
    udev_knows_the_devices_of_a_pool,
    Spec { disks: &["2G", "2G"], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        guest.start();
        let client = guest.client();
        for round in 0..3 {
            let (_, (pool, _)) = client.create_pool("p", &disks).done();
            settle();
            for disk in &disks {
                let known = properties(disk);
                assert!(known.contains("ID_FS_TYPE=stratis"), "round {round}, {disk}: {known}");
            }
            assert!(client.destroy_pool(&pool).done().0, "no wait for udev before the next round");
        }
        settle();
        for disk in &disks {
            assert!(!properties(disk).contains("ID_FS_TYPE"), "udev has seen that {disk} was wiped");
        }
        assert!(dm::devices().is_empty());
    }
);

scenario!(
    /// One good copy of the signature is enough; a path of a multipath device is left alone; of two equal devices
    /// none is chosen.
    odd_devices_are_found_or_left_alone,
    Spec { disks: &["2G"; 4], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        let [first, second, path, copy] = disks.as_slice() else { panic!("four disks") };
        guest.start();
        let client = guest.client();
        for (name, disk) in [("first", first), ("second", second), ("path", path)] {
            client.create_pool(name, &[disk]).done();
            client.stop_pool(name, "name").done();
        }
        guest.stop();
        damage(first, 512);
        damage(second, 4096 + 512);
        flag_as_multipath(guest, path);
        run("udevadm", &["trigger", "--subsystem-match=block"]);
        settle();
        guest.start();
        let client = guest.client();
        assert_eq!(pools(&client), (0, 2), "those with one good copy: {}", guest.log());
        for name in ["first", "second"] {
            assert!(client.start_pool(name, "name").done().0);
            client.stop_pool(name, "name").done();
        }
        guest.stop();

        fs::remove_file(MULTIPATH_RULE).expect("it is ours");
        run("udevadm", &["control", "--reload"]);
        run("dd", &[&format!("if={path}"), &format!("of={copy}"), "bs=1M", "count=8", "conv=notrunc,fsync", "status=none"]);
        run("udevadm", &["trigger", "--subsystem-match=block"]);
        settle();
        guest.start();
        let client = guest.client();
        assert_eq!(pools(&client), (0, 3), "the third one is there now, twice");
        let error = client.start_pool("path", "name").refused(&(false, ("/".to_owned(), Vec::new(), Vec::new())));
        assert!(error.contains("a device is there twice"), "{error:?}");
        assert!(dm::devices().is_empty(), "nothing was set up of it");
    }
);

scenario!(
    /// A device on which udev has missed a signature, as it does when somebody writes that and closes the device while
    /// udev is busy with it, is found by a daemon that starts; but not one below another device that shows the same.
    what_udev_has_missed_is_found,
    Spec { disks: &["2G", "2G", "2G"], ..SPEC },
    |guest: &mut Guest| {
        let disks = guest.disks();
        guest.start();
        let client = guest.client();
        client.create_pool("p", &disks[..2]).done();
        let lab = Lab::over(&disks[2], "lab-a");
        client.create_pool("q", &[lab.path()]).done();
        settle();
        guest.stop();
        let name = disks[1].trim_start_matches("/dev/");
        let forgotten = ["TYPE", "USAGE", "UUID", "UUID_ENC", "VERSION"].map(|what| format!(", ENV{{ID_FS_{what}}}=\"\""));
        fs::create_dir_all("/run/udev/rules.d").expect("/run is writable");
        fs::write("/run/udev/rules.d/99-missed.rules", format!("KERNEL==\"{name}\"{}\n", forgotten.concat()))
            .expect("/run is writable");
        run("udevadm", &["control", "--reload"]);
        guest.until("udev has missed it", |_| {
            run("udevadm", &["trigger", "--settle", &disks[1]]);
            !properties(&disks[1]).contains("ID_FS_")
        });
        guest.start();
        assert_eq!(pools(&guest.client()), (2, 0), "{}", guest.log());
        assert_eq!(guest.client().family("blockdev").len(), 3);
        guest.stop();
        guest.expect_quiet();
    }
);
