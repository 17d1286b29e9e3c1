//! A systemd of its own for the services of a machine: the first process of a namespace, with the unit that is shipped.
//!
//! Invariant: what is here is systemd itself, with the daemon and the system bus as its units; udevd stays what the
//! rig has started. Deliberately absent: a stop of systemd. The machine is thrown away.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::{Guest, processes, run, send, try_run};
use crate::support::daemon::BINARY;

/// Where it is, if it is installed.
pub(crate) const SYSTEMD: &str = "/lib/systemd/systemd";
/// The unit.
pub(crate) const UNIT: &str = "stratisd.service";

/// Where the unit says that the daemon is.
const PROGRAM: &str = "/usr/libexec/stratisd";
/// Where the administrator's units are.
const UNITS: &str = "/etc/systemd/system";

/// A systemd that runs.
pub(crate) struct Systemd(Child);

impl Systemd {
    /// Takes the services over: the system bus is started anew.
    pub(crate) fn boot(guest: &mut Guest) -> Self {
        run("mount", &["-t", "cgroup2", "none", "/sys/fs/cgroup"]);
        fs::create_dir_all(Path::new(PROGRAM).parent().expect("a folder")).expect("/usr is writable");
        symlink(BINARY, PROGRAM).expect("no other stratisd is installed");
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(UNIT);
        fs::copy(shipped, Path::new(UNITS).join(UNIT)).expect("/etc is writable");
        fs::write(Path::new(UNITS).join("rig.target"), "[Unit]\nRequires=dbus.service\n").expect("/etc is writable");
        processes("dbus-daemon").into_iter().for_each(|bus| send(bus, Signal::SIGTERM));
        guest.until("the rig's bus ends", |_| processes("dbus-daemon").is_empty());
        // It may have removed that by itself.
        let _gone = fs::remove_file("/run/dbus/system_bus_socket");
        let said = File::create("/out/systemd.log").expect("/out is writable");
        let errors = said.try_clone().expect("a descriptor can be doubled");
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount", "--propagation", "slave", "--mount-proc", "env", "container=rig"]);
        command.args([SYSTEMD, "--unit=rig.target", "--log-target=console", "--show-status=no"]);
        command.stdin(Stdio::null()).stdout(said).stderr(errors);
        let systemd = Self(command.spawn().expect("unshare is installed"));
        guest.until("systemd answers", |_| try_run("systemctl", &["is-active", "dbus.service"]).0.success());
        systemd
    }

    /// What a property of the unit is now.
    pub(crate) fn property(&self, name: &str) -> String {
        control(&["show", "--value", "--property", name, UNIT]).trim_end().to_owned()
    }

    /// The daemon's process, as the machine counts.
    pub(crate) fn daemon(&self) -> u32 {
        let all = processes("stratisd");
        assert_eq!(all.len(), 1, "one daemon runs");
        all[0]
    }

    /// What the daemon has said.
    pub(crate) fn said(&self) -> String {
        run("journalctl", &["--no-pager", "--output", "cat", "--unit", UNIT])
    }

    /// Has systemd do something with the unit, and waits until it is done.
    #[track_caller]
    pub(crate) fn order(&self, what: &[&str]) {
        control(&[what, &[UNIT]].concat());
    }

    /// Gives the unit a setting of the administrator's; it counts from the next start.
    pub(crate) fn set(&self, setting: &str) {
        let folder = Path::new(UNITS).join(format!("{UNIT}.d"));
        fs::create_dir_all(&folder).expect("/etc is writable");
        fs::write(folder.join("rig.conf"), format!("[Service]\n{setting}\n")).expect("/etc is writable");
        control(&["daemon-reload"]);
    }
}

/// Runs `systemctl`; what it printed. While it has much to do, systemd hangs up on one that asks now and then, before
/// it has heard what.
#[track_caller]
fn control(words: &[&str]) -> String {
    loop {
        let (status, said) = try_run("systemctl", words);
        if status.success() {
            return said;
        }
        assert!(said.contains("Transport endpoint is not connected"), "systemctl {words:?}: {status}: {said}");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
