//! What can be seen of a guest's pools, for comparing: objects, tables, disks, and what must not be left over.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{Guest, dm, run, try_run};
use crate::support::client::{Client, Properties};
use crate::support::daemon::PATIENCE;
use crate::support::disk;

/// Properties that hold object paths, or are measured: they may differ between two starts.
const FLEETING: [&str; 3] = ["Pool", "Used", "TotalPhysicalUsed"];

/// Semaphores of udev cookies have keys that begin like this.
const COOKIE_KEY: u32 = 0x0D4D_0000;

/// All objects as they outlive a restart: by their UUID instead of their path.
pub(crate) fn objects(client: &Client) -> BTreeMap<String, BTreeMap<String, Properties>> {
    let lasting = |mut interfaces: BTreeMap<String, Properties>| {
        let uuid = interfaces.values().find_map(|properties| properties.get("Uuid")).map(|uuid| uuid.text().to_owned());
        for properties in interfaces.values_mut() {
            properties.retain(|name, _| !FLEETING.contains(&name.as_str()));
        }
        (uuid.expect("every object has a UUID"), interfaces)
    };
    client.objects().into_values().map(lasting).collect()
}

/// Panics if the kernel has reported an error of a disk or of a filesystem.
#[track_caller]
pub(crate) fn expect_no_io_error() {
    let said = run("dmesg", &[]);
    let bad: Vec<&str> = said.lines().filter(|line| is_io_error(line)).collect();
    assert!(bad.is_empty(), "the kernel reports {bad:#?}");
}

fn is_io_error(line: &str) -> bool {
    ["I/O error", "Corruption", "metadata corruption", "lost async page write"].iter().any(|word| line.contains(word))
}

/// Panics unless all pools are gone from the kernel: dm devices, cookies, the daemon's mounts below.
#[track_caller]
pub(crate) fn expect_nothing_left() {
    assert_eq!(dm::names(), Vec::<String>::new(), "dm devices are left");
    expect_no_cookies("after everything was taken down");
    let left = run("losetup", &["--list", "--noheadings"]);
    assert!(!left.contains("stratis"), "loop devices are left: {left}");
}

/// Panics if a semaphore of a udev cookie stays: a daemon waits for its last ones beside what it does next.
#[track_caller]
pub(crate) fn expect_no_cookies(context: &str) {
    let end = Instant::now() + PATIENCE;
    while !cookies().is_empty() {
        assert!(Instant::now() < end, "semaphores of udev cookies are left: {:?}; {context}", cookies());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Keys of the semaphores that are udev cookies.
pub(crate) fn cookies() -> Vec<String> {
    let table = fs::read_to_string("/proc/sysvipc/sem").expect("the kernel has System V semaphores");
    let key = |line: &str| line.split_whitespace().next()?.parse::<i64>().ok();
    let is_cookie = |key: &i64| u32::try_from(*key).is_ok_and(|key| key & 0xFFFF_0000 == COOKIE_KEY);
    table.lines().skip(1).filter_map(key).filter(is_cookie).map(|key| format!("{key:#x}")).collect()
}

/// Panics unless this disk belongs to nobody: its static header is zero, libblkid finds nothing.
#[track_caller]
pub(crate) fn expect_wiped(path: &str) {
    assert!(disk::head(Path::new(path), 8192).iter().all(|byte| *byte == 0), "{path} has a header");
    let (status, said) = try_run("blkid", &["--probe", path]);
    assert_eq!(status.code(), Some(2), "libblkid finds something on {path}: {said}");
}

impl Guest {
    /// Panics if a daemon of this guest has logged an error.
    #[track_caller]
    pub(crate) fn expect_quiet(&self) {
        let log = self.log();
        let bad: Vec<&str> = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked")).collect();
        assert!(bad.is_empty(), "the daemon has logged {bad:#?}");
    }
}
