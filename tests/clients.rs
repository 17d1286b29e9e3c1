//! stratis-cli as it comes from PyPI, releases 3.9.1 and 3.8.1, unchanged, against the daemon.
//!
//! Invariant: what is checked is what a person reads off the screen (names, sizes, UUIDs) and the exit
//! code. A client must never meet anything it calls unexpected: no stack trace, no "unexpected error".
//!
//! The environments come from `tests/venv.sh`. Where they cannot be made (no registry, no Python) the
//! tests say `SKIPPED clients:` and pass, except with CI=true.

mod support;

#[path = "clients/shapes.rs"]
mod shapes;
#[path = "clients/subcommands.rs"]
mod subcommands;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::GIB;
use support::rig::{Kind, Rig};

/// A release of stratis-cli, and the folder of its environment.
#[derive(Clone, Copy)]
struct Release {
    version: &'static str,
    folder: &'static str,
}

const NEW: Release = Release { version: "3.9.1", folder: ".venv-cli39" };
const OLD: Release = Release { version: "3.8.1", folder: ".venv-cli38" };

/// What a run of the client said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl Said {
    /// The lines of a table below its head, each cut into words.
    fn rows(&self) -> Vec<Vec<String>> {
        self.output.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }
}

/// The client, pointed at one bus.
struct Cli {
    binary: PathBuf,
    address: String,
}

impl Cli {
    /// The client of a release, or `None` where it cannot be had.
    fn new(release: Release, rig: &Rig) -> Option<Self> {
        static MADE: OnceLock<String> = OnceLock::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let binary = root.join(release.folder).join("bin/stratis");
        let said = MADE.get_or_init(|| {
            let made = Command::new("bash").arg(root.join("tests/venv.sh")).output().expect("bash is installed");
            String::from_utf8_lossy(&made.stderr).trim().replace('\n', "; ")
        });
        if !binary.exists() {
            let why = format!("SKIPPED clients: stratis-cli {} is not there: {said}", release.version);
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
            println!("{why}");
            return None;
        }
        Some(Self { binary, address: rig.bus.address().to_owned() })
    }

    fn run(&self, arguments: &[&str]) -> Said {
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .output()
            .expect("the client can be executed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = Said { code: output.status.code(), output: text(&output.stdout), errors: text(&output.stderr) };
        for sign in ["Traceback", "unexpected", "Unexpected"] {
            assert!(!said.errors.contains(sign), "{arguments:?}: {}", said.errors);
        }
        said
    }

    /// A command that must succeed.
    #[track_caller]
    fn done(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.errors);
        said
    }

    /// A command that must fail with an explanation; returns it.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(1), "{arguments:?}: {} {}", said.output, said.errors);
        assert!(!said.errors.trim().is_empty(), "{arguments:?} is explained");
        said.errors
    }
}

/// The UUIDs on the screen are hyphenated.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12])
}

fn both_kinds(release: Release, scenario: fn(&Cli, &Rig)) {
    for kind in [Kind::Sim, Kind::Files] {
        let rig = Rig::new(kind);
        let Some(cli) = Cli::new(release, &rig) else { return };
        let mut daemon = rig.start();
        scenario(&cli, &rig);
        assert!(daemon.interrupt().success(), "{kind:?}: {}", daemon.stderr());
    }
}

/// One life: created, filled, listed, stopped, started, emptied, destroyed.
fn a_pools_life(cli: &Cli, rig: &Rig) {
    let disks = ["one", "two"].map(|name| rig.disk(name, 8 * GIB));
    assert!(cli.done(&["pool", "list"]).rows().is_empty());
    cli.done(&["pool", "create", "alpha", &disks[0], &disks[1]]);
    let pools = cli.done(&["pool", "list"]).rows();
    assert_eq!(pools.len(), 1, "{pools:?}");
    assert_eq!(pools[0][0], "alpha");
    let uuid = pools[0].iter().find(|word| is_uuid(word)).expect("the list shows the UUID").clone();
    if rig.kind() == Kind::Files {
        assert_eq!(pools[0][1..3], ["16", "GiB"], "the size of both devices: {pools:?}");
    }
    let devices = cli.done(&["blockdev", "list"]).output;
    for disk in &disks {
        assert!(devices.contains(disk.as_str()) && devices.contains("DATA"), "{devices}");
    }
    assert_eq!(cli.done(&["blockdev", "list", "alpha"]).rows().len(), 2);
    filesystems(cli);
    let detail = cli.done(&["pool", "list", "--name", "alpha"]).output;
    assert!(detail.contains(&uuid) && detail.contains("Name: alpha"), "{detail}");
    snapshots(cli);
    stop_and_start(cli, &uuid);
    cli.done(&["filesystem", "destroy", "alpha", "sized", "plain"]);
    assert!(cli.done(&["filesystem", "list"]).rows().is_empty());
    cli.done(&["pool", "destroy", "alpha"]);
    assert!(cli.done(&["pool", "list"]).rows().is_empty());
    assert!(cli.done(&["blockdev", "list"]).rows().is_empty());
}

fn filesystems(cli: &Cli) {
    cli.done(&["filesystem", "create", "alpha", "plain"]);
    cli.done(&["filesystem", "create", "alpha", "sized", "--size", "10GiB"]);
    let listed = cli.done(&["filesystem", "list", "alpha"]);
    let rows = listed.rows();
    assert_eq!(rows.len(), 2, "{}", listed.output);
    let row = |name: &str| rows.iter().find(|row| row.contains(&name.to_owned())).expect("the filesystem is listed");
    for (name, size) in [("plain", ["1", "TiB"]), ("sized", ["10", "GiB"])] {
        let row = row(name);
        assert_eq!(row[0], "alpha", "{row:?}");
        assert!(row.windows(2).any(|pair| pair == size), "{name} has {size:?}: {row:?}");
        assert!(row.iter().any(|word| is_uuid(word)), "{row:?}");
        assert!(row.iter().any(|word| word.ends_with(&format!("/alpha/{name}"))), "{row:?} shows the path");
    }
    assert_eq!(cli.done(&["filesystem", "list"]).rows().len(), 2);
    let detail = cli.done(&["filesystem", "list", "alpha", "--name", "sized"]).output;
    assert!(detail.contains("10 GiB"), "{detail}");
}

fn snapshots(cli: &Cli) {
    let uuid = |name: &str| {
        let detail = cli.done(&["filesystem", "list", "alpha", "--name", name]).output;
        let found = detail.split_whitespace().find(|word| is_uuid(word)).map(str::to_owned);
        (found.expect("the detail shows the UUID"), detail)
    };
    cli.done(&["filesystem", "snapshot", "alpha", "sized", "copy"]);
    cli.fails(&["filesystem", "snapshot", "alpha", "sized", "copy"]);
    cli.fails(&["filesystem", "snapshot", "alpha", "nobody", "other"]);
    let ((origin, _), (own, detail)) = (uuid("sized"), uuid("copy"));
    assert_ne!(origin, own);
    assert!(detail.contains(&format!("Snapshot origin: {origin}")), "{detail}");
    cli.done(&["filesystem", "destroy", "alpha", "copy"]);
}

fn stop_and_start(cli: &Cli, uuid: &str) {
    cli.done(&["pool", "stop", "--name", "alpha"]);
    assert!(cli.done(&["pool", "list"]).rows().is_empty());
    let stopped = cli.done(&["pool", "list", "--stopped"]);
    assert!(stopped.output.contains("alpha") && stopped.output.contains(uuid), "{}", stopped.output);
    cli.fails(&["pool", "stop", "--name", "alpha"]);
    cli.done(&["pool", "start", "--uuid", uuid]);
    cli.fails(&["pool", "start", "--uuid", uuid]);
    cli.fails(&["pool", "start", "--name", "alpha"]);
    cli.done(&["pool", "stop", "--uuid", uuid]);
    cli.done(&["pool", "start", "--name", "alpha"]);
    assert!(cli.done(&["pool", "list", "--stopped"]).rows().is_empty());
    assert_eq!(cli.done(&["filesystem", "list", "alpha"]).rows().len(), 2, "filesystems came back");
}

/// What must fail, and change nothing.
fn failures(cli: &Cli, rig: &Rig) {
    let [one, two] = ["one", "two"].map(|name| rig.disk(name, 8 * GIB));
    cli.done(&["pool", "create", "alpha", &one]);
    cli.done(&["filesystem", "create", "alpha", "f", "--size", "1GiB"]);
    let before = [cli.done(&["pool", "list"]).output, cli.done(&["blockdev", "list"]).output];
    cli.fails(&["pool", "create", "alpha", &one]);
    cli.fails(&["pool", "create", "alpha", &two]);
    cli.fails(&["pool", "create", "beta", &one]);
    cli.fails(&["pool", "create", "a b", &two]);
    cli.fails(&["pool", "destroy", "alpha"]);
    cli.fails(&["pool", "destroy", "nobody"]);
    cli.fails(&["pool", "start", "--name", "nobody"]);
    cli.fails(&["pool", "start", "--name", "alpha", "--unlock-method", "any"]);
    cli.fails(&["pool", "stop", "--name", "nobody"]);
    cli.fails(&["filesystem", "create", "alpha", "f"]);
    cli.fails(&["filesystem", "create", "alpha", "g", "h"]);
    cli.fails(&["filesystem", "create", "alpha", "g", "--size", "511MiB"]);
    cli.fails(&["filesystem", "create", "alpha", "g", "--size", "536870913B"]);
    cli.fails(&["filesystem", "create", "alpha", "g", "--size", "1GiB", "--size-limit", "513MiB"]);
    cli.fails(&["filesystem", "create", "nobody", "g"]);
    cli.fails(&["filesystem", "destroy", "alpha", "g"]);
    cli.fails(&["filesystem", "destroy", "nobody", "f"]);
    cli.fails(&["filesystem", "list", "alpha", "--name", "g"]);
    if rig.kind() == Kind::Files {
        let missing = rig.disks_folder().join("missing");
        let explained = cli.fails(&["pool", "create", "beta", missing.to_str().expect("test paths are UTF-8")]);
        assert!(explained.contains("missing"), "{explained}");
    }
    assert_eq!([cli.done(&["pool", "list"]).output, cli.done(&["blockdev", "list"]).output], before);
    cli.done(&["pool", "create", "beta", &two]);
}

/// Settings that the client makes through properties.
fn settings(cli: &Cli, rig: &Rig) {
    cli.done(&["pool", "create", "--no-overprovision", "alpha", &rig.disk("one", 8 * GIB)]);
    let detail = cli.done(&["pool", "list", "--name", "alpha"]).output;
    assert!(detail.contains("Allows Overprovisioning: No"), "{detail}");
    cli.done(&["pool", "overprovision", "alpha", "yes"]);
    cli.fails(&["pool", "overprovision", "alpha", "yes"]);
    cli.done(&["pool", "set-fs-limit", "alpha", "150"]);
    cli.fails(&["pool", "set-fs-limit", "alpha", "150"]);
    cli.fails(&["pool", "set-fs-limit", "alpha", "100"]);
    assert!(cli.fails(&["pool", "set-fs-limit", "alpha", "200000"]).contains("200000 was asked for"));
    let detail = cli.done(&["pool", "list", "--name", "alpha"]).output;
    assert!(detail.contains("Limit: 150"), "{detail}");
    cli.done(&["filesystem", "create", "alpha", "f", "--size", "1GiB", "--size-limit", "2GiB"]);
    cli.done(&["filesystem", "set-size-limit", "alpha", "f", "4GiB"]);
    cli.fails(&["filesystem", "set-size-limit", "alpha", "f", "512MiB"]);
    let detail = cli.done(&["filesystem", "list", "alpha", "--name", "f"]).output;
    assert!(detail.contains("4 GiB"), "{detail}");
    cli.done(&["filesystem", "unset-size-limit", "alpha", "f"]);
    cli.fails(&["filesystem", "cancel-revert", "alpha", "f"]);
    let version = cli.done(&["daemon", "version"]).output;
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn release_3_9_1_leads_a_pool_through_its_life() {
    both_kinds(NEW, a_pools_life);
}

#[test]
fn release_3_8_1_leads_a_pool_through_its_life() {
    both_kinds(OLD, a_pools_life);
}

#[test]
fn release_3_9_1_explains_failures() {
    both_kinds(NEW, failures);
}

#[test]
fn release_3_8_1_explains_failures() {
    both_kinds(OLD, failures);
}

#[test]
fn release_3_9_1_changes_settings() {
    both_kinds(NEW, settings);
}

#[test]
fn release_3_8_1_changes_settings() {
    both_kinds(OLD, settings);
}

#[test]
fn a_client_without_a_daemon_says_so() {
    for release in [NEW, OLD] {
        let rig = Rig::sim();
        let Some(cli) = Cli::new(release, &rig) else { return };
        cli.fails(&["pool", "list"]);
    }
}
