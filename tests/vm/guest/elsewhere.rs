//! A filesystem that is mounted where nobody else sees it: by a process in a mount namespace of its own.
//!
//! Deliberately absent: more than one at a time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::files::text;

/// Where it is mounted there.
const FOLDER: &str = "/mnt/theirs";

/// The process.
pub(crate) struct Elsewhere(Child);

impl Elsewhere {
    /// Mounts a device.
    pub(crate) fn mount(device: &Path) -> Self {
        fs::create_dir_all(FOLDER).expect("the guest's root is writable");
        let script = format!("mount -t xfs {} {FOLDER} && echo mounted && read -r _; umount {FOLDER}", text(device));
        let mut other = Command::new("unshare");
        other.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is installed");
        let mut said = String::new();
        let output = other.stdout.as_mut().expect("it has one");
        BufReader::new(output).read_line(&mut said).expect("it says something");
        assert_eq!(said, "mounted\n");
        assert!(!fs::read_to_string("/proc/self/mountinfo").expect("there is one").contains(FOLDER), "not seen here");
        Self(other)
    }

    /// The folder, as this process reaches it.
    pub(crate) fn folder(&self) -> PathBuf {
        Path::new("/proc").join(self.0.id().to_string()).join("root").join(FOLDER.trim_start_matches('/'))
    }

    /// Unmounts it.
    pub(crate) fn unmount(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("a child can be waited for").success(), "it has unmounted");
    }
}
