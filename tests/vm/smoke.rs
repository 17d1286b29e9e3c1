//! That the machine is one: services run, the daemon can be started, called, killed and stopped.
//!
//! Deliberately absent: pools. When one of these fails, the rig is broken and not the daemon.

use std::path::Path;

use crate::guest::{Guest, dm};
use crate::host::{Kind, SPEC, Spec};
use crate::scenario;
use crate::support::{TOP, interface};

scenario!(
    /// Kernel, udevd, system bus, and a daemon that needs none of the machine.
    the_machine_has_what_a_daemon_needs,
    Spec { kind: Kind::Uml, disks: &["1G", "2G"], ..SPEC },
    |guest: &mut Guest| {
        assert!(Path::new("/run/udev/control").exists(), "udevd runs");
        assert!(Path::new("/run/dbus/system_bus_socket").exists(), "the system bus runs");
        let version = guest.run("dmsetup", &["version"]);
        assert!(version.contains("Driver version"), "device-mapper is there: {version}");
        assert!(dm::devices().is_empty(), "and nothing is made of it yet");
        let sizes: Vec<String> = guest.disks().iter().map(|disk| guest.run("blockdev", &["--getsize64", disk])).collect();
        assert_eq!(sizes, ["1073741824\n", "2147483648\n"], "the disks are those that were asked for");

        guest.start_with(&["--sim"]);
        let version = guest.client().get(TOP, &interface("Manager", 9), "Version").expect("the daemon answers");
        assert_eq!(version.text(), "3.9.2");
        guest.kill9();
        guest.start_with(&["--sim"]);
        guest.stop();
        assert!(guest.log().contains("stopped"), "its log is kept: {}", guest.log());
    }
);
