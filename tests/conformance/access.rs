//! Item 9: what somebody who is not root may call, under the policy as it is installed.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::furnish;
use crate::support::bus::PrivateBus;
use crate::support::rig::Rig;
use crate::support::{NAME, REVISIONS, TOP, interface};

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// Whether the bus lets somebody who is not root make a call. Whatever the daemon answers is fine.
fn may(rig: &Rig, path: &str, member: &str, arguments: &[&str]) -> bool {
    let output = Command::new("dbus-send")
        .args([&format!("--bus={}", rig.bus.address()), "--print-reply", &format!("--dest={NAME}"), path, member])
        .args(arguments)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .expect("dbus-send can be executed (Debian: package dbus-bin)");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let denied = errors.contains("org.freedesktop.DBus.Error.AccessDenied");
    let answered = output.status.success();
    assert!(denied || answered, "{member} is answered: {errors}");
    !denied
}

#[test]
fn item_9_others_than_root_may_look_and_change_nothing() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED conformance: item 9 has to become another user, which only root can");
        return;
    }
    let mut rig = Rig::sim();
    rig.bus = PrivateBus::as_installed();
    let _daemon = rig.start();
    let client = rig.client();
    let pool = furnish(&rig, &client, "p").pool;
    let properties = |member: &str| format!("org.freedesktop.DBus.Properties.{member}");
    let manager = interface("Manager", 9);
    let (on_manager, on_pool) = (format!("string:{manager}"), format!("string:{}", interface("pool", 9)));
    assert!(may(&rig, TOP, "org.freedesktop.DBus.ObjectManager.GetManagedObjects", &[]));
    assert!(may(&rig, TOP, "org.freedesktop.DBus.Introspectable.Introspect", &[]));
    assert!(may(&rig, TOP, &properties("Get"), &[&on_manager, "string:Version"]));
    assert!(may(&rig, &pool, &properties("GetAll"), &[&on_pool]));
    for revision in 0..REVISIONS {
        let report = format!("{}.GetReport", interface("Report", revision));
        assert!(may(&rig, TOP, &report, &["string:stopped_pools"]), "{report}");
        for member in ["EngineStateReport", "ListKeys"] {
            let member = format!("{}.{member}", interface("Manager", revision));
            assert!(may(&rig, TOP, &member, &[]), "{member}");
        }
    }
    let before = client.objects();
    let set = [&*on_pool, "string:Overprovisioning", "variant:boolean:false"];
    assert!(!may(&rig, &pool, &properties("Set"), &set));
    assert!(!may(&rig, TOP, "org.freedesktop.DBus.Peer.Ping", &[]));
    assert!(!may(&rig, TOP, &format!("{manager}.RefreshState"), &[]));
    assert!(!may(&rig, TOP, &format!("{manager}.StopPool"), &["string:p", "string:name"]));
    assert!(!may(&rig, TOP, &format!("{manager}.UnsetKey"), &["string:k"]));
    assert!(!may(&rig, &pool, &format!("{}.Metadata", interface("pool", 9)), &["boolean:true"]));
    assert!(!may(&rig, &pool, &format!("{}.SetName", interface("pool", 9)), &["string:q"]));
    assert_eq!(client.objects(), before);
}
