//! The calls of Cockpit and blivet, made by `shapes.py` in the environment of stratis-cli, which has dbus-python.
//!
//! What no library lets a client write (blivet's handle -1 without a descriptor) stands in `tests/bus/legacy.rs`.

use std::process::Command;

use crate::support::rig::Rig;
use crate::{Cli, NEW, OLD};

#[test]
fn cockpit_and_blivet_get_the_types_that_they_expect() {
    for release in [NEW, OLD] {
        let rig = Rig::sim();
        let Some(cli) = Cli::new(release, &rig) else { return };
        let mut daemon = rig.start();
        let output = Command::new(cli.binary.with_file_name("python"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/shapes.py"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", rig.bus.address())
            .output()
            .expect("the environment has a python");
        let [said, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{said}{errors}");
        assert_eq!(said.lines().last(), Some("blivet"), "{said}");
        assert!(daemon.interrupt().success(), "{}", daemon.stderr());
    }
}
