//! Item 10: the process, its lock and its exit codes.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::NAME;
use crate::support::daemon::Daemon;
use crate::support::rig::Rig;

#[test]
fn item_10_a_second_instance_exits_1_and_leaves_the_first_alone() {
    let rig = Rig::sim();
    let mut first = rig.start();
    let mut second = Daemon::spawn(&mut rig.command());
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.stderr().contains(&first.id().to_string()), "{}", second.stderr());
    assert_eq!(rig.client().process_of(NAME), Some(first.id()));
    assert!(first.is_alive());
}

#[test]
fn item_10_signals_end_it_with_0_and_the_name_is_free() {
    let rig = Rig::sim();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut daemon = rig.start();
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
        assert!(!rig.client().has_owner(NAME));
    }
}

#[test]
fn item_10_a_bad_option_exits_2_and_a_missing_bus_1() {
    let rig = Rig::sim();
    for wrong in ["--no-such-option", "argument", "--log-level=loud"] {
        let output = rig.bare_command().arg(wrong).output().expect("the binary can be executed");
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{wrong}");
    }
    let nowhere = rig.run_folder().join("no-bus");
    fs::create_dir_all(&nowhere).expect("the folder is ours");
    let mut command = rig.command();
    command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}/socket", nowhere.display()));
    let mut daemon = Daemon::spawn(&mut command);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(!daemon.stderr().is_empty());
}
