//! One test's world: a bus, a run folder, disks, and the way the daemon is started on them.
//!
//! Invariant: two rigs share nothing. A daemon started again on the same rig finds what the one
//! before it left, as after a reboot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::bus::PrivateBus;
use super::client::Client;
use super::daemon::{BINARY, Daemon};
use super::disk;

/// Which machine the daemon is given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `--sim`: memory.
    Sim,
    /// `--files`: regular files.
    Files,
}

/// One test's world.
pub(crate) struct Rig {
    /// Its bus.
    pub(crate) bus: PrivateBus,
    kind: Kind,
    folder: TempDir,
}

impl Rig {
    /// A world with a simulated machine.
    pub(crate) fn sim() -> Self {
        Self::new(Kind::Sim)
    }

    /// A world with files for devices.
    pub(crate) fn files() -> Self {
        Self::new(Kind::Files)
    }

    /// A world of either kind.
    pub(crate) fn new(kind: Kind) -> Self {
        // Below target/, not /tmp: that may be memory, and the files want a filesystem with holes.
        Self::beside(kind, Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// A world in this folder.
    pub(crate) fn beside(kind: Kind, parent: &Path) -> Self {
        fs::create_dir_all(parent).expect("target/tmp can be made");
        let folder = TempDir::with_prefix_in("rig-", parent).expect("a folder for the disks can be made");
        for part in ["files", "disks", "run"] {
            fs::create_dir(folder.path().join(part)).expect("a fresh folder is writable");
        }
        Self { bus: PrivateBus::start(), kind, folder }
    }

    /// The same world on another bus.
    pub(crate) fn with_bus(self, bus: PrivateBus) -> Self {
        Self { bus, ..self }
    }

    /// What machine the daemon gets.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The folder given to `--files`.
    pub(crate) fn files_folder(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// The folder of the disks.
    pub(crate) fn disks_folder(&self) -> PathBuf {
        self.folder.path().join("disks")
    }

    /// The folder given to `--run-dir`.
    pub(crate) fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The daemon's command line for this world.
    pub(crate) fn command(&self) -> Command {
        let mut command = self.bare_command();
        match self.kind {
            Kind::Sim => command.arg("--sim"),
            Kind::Files => command.arg("--files").arg(self.files_folder()),
        };
        command.arg("--run-dir").arg(self.run_folder()).args(["--log-level", "info"]);
        command
    }

    /// The binary with this world's bus and no options.
    pub(crate) fn bare_command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).env_remove("RUST_LOG");
        command
    }

    /// Starts the daemon and waits until it owns its name and its pools are up.
    pub(crate) fn start(&self) -> Daemon {
        Daemon::spawn(&mut self.command()).wait_ready(self.bus.address()).wait_settled()
    }

    /// A new client on the bus.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.bus.address())
    }

    /// The path of a disk: with files it is made (sparse) if it does not exist, in the simulation
    /// a name is enough.
    pub(crate) fn disk(&self, name: &str, size: u64) -> String {
        let path = self.disks_folder().join(name);
        if self.kind == Kind::Files && !path.exists() {
            disk::make(&path, size);
        }
        text(&path)
    }
}

/// A path as D-Bus carries it.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}
