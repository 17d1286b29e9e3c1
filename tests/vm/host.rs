//! The half of a scenario on the host: boots a machine that runs the other half, and says how that went.
//!
//! Invariant: a machine ends with its value or at its time limit, and its disks are gone after a scenario that
//! passed. What it left to read stays until the scenario runs again.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::support::daemon::BINARY;

/// Which machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// User Mode Linux: one CPU, as fast as this one.
    Uml,
    /// QEMU, which emulates two CPUs: slow.
    Qemu,
    /// What `VM_MACHINE` says, User Mode Linux by default.
    Any,
}

/// What a scenario needs of its machine.
pub(crate) struct Spec {
    /// Only where it matters: for several CPUs.
    pub(crate) kind: Kind,
    /// Sizes of fresh disks, as `truncate` understands them.
    pub(crate) disks: &'static [&'static str],
    /// Makes raw images in the folder it is given; they are disks before the fresh ones.
    pub(crate) images: fn(&Path) -> Vec<PathBuf>,
    /// How often it is booted, with the same disks and the same `/out`; `Guest::boot` tells the guest half.
    pub(crate) boots: u32,
    /// After this time the machine is killed, and the scenario has failed.
    pub(crate) limit_s: u32,
    /// Its memory; what is written to the guest's root is in there as well.
    pub(crate) memory_mib: u32,
}

/// Two disks, and two minutes.
pub(crate) const SPEC: Spec =
    Spec { kind: Kind::Any, disks: &["10G", "10G"], images: |_| Vec::new(), boots: 1, limit_s: 120, memory_mib: 1536 };

/// How often a scenario is tried in which a mistake of the kernel shows, see `Machine::kernel_fell`.
const KERNEL_TRIES: u32 = 4;

/// Lines of output, log and console that are shown of a scenario that failed.
const TAIL_LINES: usize = 60;

/// Boots a machine for a scenario, waits for its end, and panics unless the guest half passed.
pub(crate) fn run(module: &str, spec: &Spec) {
    for left in (0..KERNEL_TRIES).rev() {
        let Some(mut machine) = Machine::prepare(module, spec) else { return };
        let failed = (0..spec.boots).find_map(|_| {
            machine.boot(module);
            Some(machine.wait()).filter(|status| !status.success())
        });
        match failed {
            Some(_) if left > 0 && machine.kernel_fell() => {
                println!(
                    "the kernel fell over the end of a process that made a cache: {}, once more",
                    scenario(module)
                );
            }
            Some(status) => machine.expect_success(status),
            None => return machine.remove_disks(),
        }
    }
}

/// The host half of a measurement: boots a machine once and prints what its guest half has printed.
#[allow(dead_code, reason = "for benches, which have one guest half each and are not looked up by its name")]
pub(crate) fn print(module: &str, spec: &Spec) {
    let Some(mut machine) = Machine::prepare(module, spec) else { return };
    machine.boot(module);
    let status = machine.wait();
    machine.expect_success(status);
    machine.remove_disks();
    print!("{}", fs::read_to_string(machine.out.join("output")).expect("the guest has printed a table"));
}

/// A machine that can be booted, with its disks.
pub(crate) struct Machine {
    /// What is `/out` in the guest.
    pub(crate) out: PathBuf,
    /// The images of its disks.
    pub(crate) disks: Vec<PathBuf>,
    kind: &'static str,
    boots: u32,
    limit_s: u32,
    memory_mib: u32,
    running: Option<Child>,
    _permit: Permit,
}

impl Machine {
    /// A machine with fresh disks and an empty `/out`. `None`: there cannot be one here, and that was said.
    pub(crate) fn prepare(module: &str, spec: &Spec) -> Option<Self> {
        let kind = spec.kind.name();
        if let Err(missing) = ready(kind) {
            assert!(env::var("VM").as_deref() != Ok("required"), "VM=required, but: {missing}");
            println!("SKIPPED vm ({kind}): {missing}");
            return None;
        }
        let permit = Permit::take();
        let out = cache().join("logs").join(scenario(module).replace("::", "-"));
        // Nothing of an earlier run is mistaken for one of this; there may have been none.
        let _absent = fs::remove_dir_all(&out);
        let folder = out.join("disks");
        fs::create_dir_all(&folder).expect("target/vm is writable");
        let mut disks = (spec.images)(&folder);
        for (number, size) in spec.disks.iter().enumerate() {
            let path = folder.join(format!("{number}.img"));
            let made = Command::new("truncate").args(["-s", size]).arg(&path).status().expect("truncate starts");
            assert!(made.success(), "a sparse disk of {size} can be made");
            disks.push(path);
        }
        let (limit_s, memory_mib) = (spec.limit_s, spec.memory_mib);
        Some(Self { out, disks, kind, boots: 0, limit_s, memory_mib, running: None, _permit: permit })
    }

    /// Boots it, to run the guest half of the scenario in this module.
    pub(crate) fn boot(&mut self, module: &str) {
        // That of an earlier boot must not be killed.
        let _absent = fs::remove_file(self.out.join("machine.pid"));
        assert!(self.running.is_none(), "a machine is booted once at a time");
        self.boots += 1;
        let output =
            File::options().create(true).append(true).open(self.out.join("output")).expect("target/vm is writable");
        let errors = output.try_clone().expect("a descriptor can be doubled");
        let this = env::current_exe().expect("a process knows its file");
        let guest = format!(
            "exec '{}' --exact '{}::guest' --ignored --nocapture --test-threads=1",
            this.display(),
            scenario(module)
        );
        let mut command = Command::new(rig("boot.sh"));
        command.arg("--vm").arg(self.kind).arg("-o").arg(&self.out);
        command.args(["-t", &self.limit_s.to_string(), "-m", &self.memory_mib.to_string()]);
        for disk in &self.disks {
            command.arg("-d").arg(disk);
        }
        for (from, to) in installed() {
            command.arg("-p").arg(format!("{}:{to}", from.display()));
        }
        command.arg("-e").arg(format!("RIG_BOOT={}", self.boots));
        for name in ["SEED", "POINTS", "RUST_BACKTRACE"] {
            if let Ok(value) = env::var(name) {
                command.arg("-e").arg(format!("{name}={value}"));
            }
        }
        command.arg(guest).stdin(Stdio::null()).stdout(output).stderr(errors);
        // A process group of its own, so that a keystroke ends the test and the machine is ended by us.
        self.running = Some(command.process_group(0).spawn().expect("boot.sh can be executed"));
    }

    /// Waits until the guest half has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("the machine was booted");
        running.wait().expect("a child can be waited for")
    }

    /// Whether the guest half still runs.
    #[allow(dead_code, reason = "for tests that boot by themselves")]
    pub(crate) fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|child| child.try_wait().expect("a child can be waited for").is_none())
    }

    /// Cuts its power: every process of the machine is killed at once.
    pub(crate) fn kill(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let pid = |text: String| text.trim().parse().ok().map(Pid::from_raw);
        // Best effort: if it has ended there is nothing to kill; User Mode Linux is a process group of its
        // own, QEMU is one process; boot.sh notices and ends, unless it is too early for a machine.
        match fs::read_to_string(self.out.join("machine.pid")).ok().and_then(pid) {
            Some(machine) => {
                let _ = killpg(machine, Signal::SIGKILL);
                let _ = kill(machine, Signal::SIGKILL);
            }
            None => {
                let _ =
                    killpg(Pid::from_raw(i32::try_from(running.id()).expect("process ids are small")), Signal::SIGKILL);
            }
        }
        let _ = running.wait();
    }

    /// Whether the guest's kernel made a mistake that Linux 6.1 has: a process that is killed while it loads the table
    /// of a cache cannot start a kernel thread, and `dm-cache` then destroys the copier that it has not got.
    fn kernel_fell(&self) -> bool {
        let said = fs::read(self.out.join("console")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        ["Kernel panic", "cache_ctr", "__destroy"].iter().all(|words| said.contains(words))
    }

    /// Panics with what there is to read, unless it ended well.
    #[track_caller]
    pub(crate) fn expect_success(&self, status: ExitStatus) {
        if status.success() {
            return;
        }
        for name in ["stratisd.log", "console", "output"] {
            println!("---- the end of {} ----", self.out.join(name).display());
            println!("{}", tail(&self.out.join(name)));
        }
        panic!("the guest half failed ({status}): see {}", self.out.display());
    }

    /// Gives the room of the disks back.
    pub(crate) fn remove_disks(&self) {
        fs::remove_dir_all(self.out.join("disks")).expect("our own files can be removed");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `life::one_disk` of `vm::life::one_disk`: how the test binary calls it.
fn scenario(module: &str) -> &str {
    module.split_once("::").expect("a scenario is a module in a crate").1
}

impl Kind {
    /// As boot.sh and build.sh call it.
    fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::Any => match env::var("VM_MACHINE").as_deref() {
                Err(_) | Ok("" | "uml") => "uml",
                Ok("qemu") => "qemu",
                Ok(other) => panic!("VM_MACHINE={other}: uml or qemu"),
            },
        }
    }
}

/// Builds what a machine needs, once for each kind; or says what is missing.
fn ready(kind: &'static str) -> Result<(), String> {
    static READY: Mutex<BTreeMap<&str, Result<(), String>>> = Mutex::new(BTreeMap::new());
    let build = || {
        let output = Command::new(rig("build.sh")).arg(kind).output().map_err(|error| format!("build.sh: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(said.lines().last().unwrap_or("build.sh failed").to_owned())
    };
    READY.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_insert_with(build).clone()
}

/// Whether stratisd 3.9.2 is there for the guest; or what is missing.
#[allow(dead_code, reason = "for tests that run it beside ours")]
pub(crate) fn peer() -> Result<(), String> {
    let missing = "it is not there (`make test-peer` builds it from crates.io)";
    if cache().join("peer/bin/stratisd").exists() {
        return Ok(());
    }
    assert!(env::var("PEER").as_deref() != Ok("required"), "PEER=required, but {missing}");
    Err(missing.to_owned())
}

/// What `make install` would lay out and the guest's services need: files of ours, and where they belong.
fn installed() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = Path::new(BINARY).parent().expect("a program is in a folder");
    let helper = |name: &str| (programs.join(name), format!("/usr/lib/udev/{name}"));
    let mut all = vec![
        (root.join("dist/stratisd.conf"), "/etc/dbus-1/system.d/stratisd.conf".to_owned()),
        (root.join("dist/61-stratisd.rules"), "/etc/udev/rules.d/61-stratisd.rules".to_owned()),
    ];
    all.extend(["stratis-base32-decode", "stratis-str-cmp"].map(helper));
    all.retain(|(from, _)| from.exists());
    all
}

fn rig(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/rig").join(program)
}

fn cache() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm");
    env::var_os("VM_CACHE").map_or_else(own, PathBuf::from)
}

fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The right to run one machine.
struct Permit;

static MACHINES: Mutex<usize> = Mutex::new(0);
static LESS: Condvar = Condvar::new();

/// Machines at once at most: each has 1.5 GiB of memory.
const MACHINES_MAX: usize = 8;

/// Machines at once, whatever the number of threads of the test: one for each CPU, which `boot.sh` gives it alone.
fn machines_max() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MACHINES_MAX)
}

impl Permit {
    fn take() -> Self {
        let count = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
        let most = machines_max();
        let full = |count: &mut usize| *count >= most;
        *LESS.wait_while(count, full).unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *MACHINES.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LESS.notify_one();
    }
}

/// Both halves of a scenario, see the head of `main.rs`. The module is named like it.
#[macro_export]
macro_rules! scenario {
    ($(#[$doc:meta])* $name:ident, $spec:expr, $play:expr $(,)?) => {
        $crate::halves!($(#[$doc])* $name, |module| $crate::host::run(module, &$spec), $play);
    };
}

/// The same with a host half of its own, which is given the module; last, why only who asks for it has it run.
#[macro_export]
macro_rules! halves {
    ($(#[$doc:meta])* $name:ident, $host:expr, $play:expr $(; $by_hand:literal)?) => {
        $(#[$doc])*
        mod $name {
            #[allow(unused_imports, reason = "a short scenario uses few of them")]
            use super::*;

            #[test]
            $(#[ignore = $by_hand])?
            fn vm() {
                let host: fn(&str) = $host;
                host(module_path!());
            }

            #[test]
            #[ignore = "the half of a scenario that runs in the virtual machine"]
            fn guest() {
                $crate::guest::play($play);
            }
        }
    };
}
