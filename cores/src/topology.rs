//! Which CPUs this process may use, and how they lie: physical cores, packages, memory nodes.
//!
//! The CPUs come from the kernel's answer for this process (`sched_getaffinity`, so that cgroup
//! cpusets and `taskset` are respected); how they lie comes from sysfs.
//!
//! Invariant: every CPU of a `Topology` is one that the process was allowed to use when it was
//! read, each is listed once, in ascending order.
//!
//! How CPUs lie only makes things faster or slower, so whatever cannot be read in sysfs is no
//! failure: the topology is then flat (each CPU a core of its own) and says why. Deliberately
//! absent: CPU hotplug, caches, clusters, and the question who runs where (`placement`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use thiserror::Error;

/// Where sysfs is mounted on a running system.
pub const SYSFS: &str = "/sys";

/// Highest CPU number we take: the largest `NR_CPUS` that Linux can be built with, less one.
/// It bounds what a list such as `0-99999999999` can make us allocate.
pub const CPU_MAX: usize = 8_191;

/// One CPU that this process may use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cpu {
    /// Its number in the kernel.
    pub cpu: usize,
    /// Its physical core's number, unique within the package only (`core_id`).
    pub core: usize,
    /// The package (socket) it is in (`physical_package_id`).
    pub package: usize,
    /// The other CPUs of the same physical core, allowed or not, ascending.
    pub siblings: Vec<usize>,
    /// The memory node it is nearest to; 0 where the kernel knows no nodes.
    pub node: usize,
}

impl Cpu {
    /// A number that CPUs share if and only if they are of the same physical core: that of the
    /// core's lowest CPU. (`core` repeats from package to package.)
    pub fn physical(&self) -> usize {
        self.siblings.first().copied().map_or(self.cpu, |first| first.min(self.cpu))
    }

    fn alone(cpu: usize) -> Self {
        Self { cpu, core: cpu, package: 0, siblings: Vec::new(), node: 0 }
    }
}

/// The CPUs that this process may use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topology {
    cpus: Vec<Cpu>,
    flat: Option<Flat>,
}

/// Why a topology is flat.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Flat {
    /// A file could not be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        why: io::ErrorKind,
    },
    /// A file holds something else than expected.
    #[error("{} holds {text:?}", path.display())]
    Garbled {
        /// Which.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The CPUs this process may use could not be found out, so there are none to describe.
    #[error("the CPUs of this process are unknown: {0}")]
    NoAffinity(Errno),
}

impl Topology {
    /// The CPUs of this process on this machine. Empty, and flat, where the kernel does not tell.
    pub fn of_this_process() -> Self {
        match allowed() {
            Ok(cpus) => Self::read(Path::new(SYSFS), &cpus),
            Err(errno) => Self { cpus: Vec::new(), flat: Some(Flat::NoAffinity(errno)) },
        }
    }

    /// How the allowed CPUs lie, according to the sysfs below `root`.
    pub fn read(root: &Path, allowed: &BTreeSet<usize>) -> Self {
        match read_all(root, allowed) {
            Ok(cpus) => Self { cpus, flat: None },
            Err(flat) => Self { cpus: allowed.iter().map(|&cpu| Cpu::alone(cpu)).collect(), flat: Some(flat) },
        }
    }

    /// The CPUs, ascending.
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// Why each CPU is listed as a core of its own, if that is not what sysfs says.
    pub fn flat(&self) -> Option<&Flat> {
        self.flat.as_ref()
    }
}

/// The CPUs that this process may use, as the kernel says.
///
/// # Errors
/// The kernel's, for instance EINVAL on a machine with more CPUs than the C library's `cpu_set_t`
/// has room for (1,024).
pub fn allowed() -> Result<BTreeSet<usize>, Errno> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

fn read_all(root: &Path, allowed: &BTreeSet<usize>) -> Result<Vec<Cpu>, Flat> {
    let nodes = read_nodes(root)?;
    allowed
        .iter()
        .map(|&cpu| {
            let folder = root.join(format!("devices/system/cpu/cpu{cpu}/topology"));
            let mut siblings = read_list(&folder.join("thread_siblings_list"))?;
            siblings.remove(&cpu);
            Ok(Cpu {
                cpu,
                core: read_number(&folder.join("core_id"))?,
                package: read_number(&folder.join("physical_package_id"))?,
                siblings: siblings.into_iter().collect(),
                node: nodes.get(&cpu).copied().unwrap_or(0),
            })
        })
        .collect()
}

/// Which node each CPU is on. A kernel without NUMA has no folder of nodes: nothing is missing then.
fn read_nodes(root: &Path) -> Result<BTreeMap<usize, usize>, Flat> {
    let folder = root.join("devices/system/node");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(Flat::Unreadable { path: folder, why: error.kind() }),
    };
    let mut nodes = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(|error| Flat::Unreadable { path: folder.clone(), why: error.kind() })?;
        let name = entry.file_name();
        // The folder also holds `online`, `possible` and the like.
        let node = name.to_str().and_then(|name| name.strip_prefix("node")).and_then(|digits| digits.parse().ok());
        if let Some(node) = node {
            let cpus = read_list(&entry.path().join("cpulist"))?;
            nodes.extend(cpus.into_iter().map(|cpu| (cpu, node)));
        }
    }
    Ok(nodes)
}

fn read_text(path: &Path) -> Result<String, Flat> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(Flat::Unreadable { path: path.to_owned(), why: error.kind() }),
    }
}

fn read_number(path: &Path) -> Result<usize, Flat> {
    let text = read_text(path)?;
    text.parse().map_err(|_| Flat::Garbled { path: path.to_owned(), text })
}

fn read_list(path: &Path) -> Result<BTreeSet<usize>, Flat> {
    let text = read_text(path)?;
    // A node that has memory only lists no CPUs.
    if text.is_empty() {
        return Ok(BTreeSet::new());
    }
    parse_cpus(&text).map_err(|_| Flat::Garbled { path: path.to_owned(), text })
}

/// Why a text is not a list of CPUs.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum CpuListFault {
    /// A part is neither a number nor a range.
    #[error("{0:?} is neither a CPU number nor a range such as 0-3")]
    Part(String),
    /// A range ends before it begins.
    #[error("the range {0}-{1} runs backwards")]
    Backwards(usize, usize),
    /// No machine has this CPU.
    #[error("CPU {0} does not exist on any machine: the last number is {CPU_MAX}")]
    Beyond(usize),
}

/// Reads a list of CPUs as the kernel and `taskset` write it: `0-3,6`.
///
/// # Errors
/// When a part is not a number or a range, or is out of bounds. An empty text has one empty part.
pub fn parse_cpus(text: &str) -> Result<BTreeSet<usize>, CpuListFault> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |digits: &str| {
            // `parse` alone would take a leading plus sign.
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let parsed = plain.then(|| digits.parse::<usize>().ok()).flatten();
            parsed.ok_or_else(|| CpuListFault::Part(part.to_owned()))
        };
        let (first, last) = (number(first)?, number(last)?);
        if last > CPU_MAX {
            return Err(CpuListFault::Beyond(last));
        }
        if first > last {
            return Err(CpuListFault::Backwards(first, last));
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

/// Shows CPUs the way `parse_cpus` reads them. No CPUs are shown as `none`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CpuList(pub BTreeSet<usize>);

impl fmt::Display for CpuList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for &cpu in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                Some(_) | None => runs.push((cpu, cpu)),
            }
        }
        let parts = runs.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        match runs.is_empty() {
            true => out.write_str("none"),
            false => out.write_str(&parts.collect::<Vec<_>>().join(",")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// A machine, in few words: CPUs are numbered as Linux on x86 does it, first one thread of each
    /// core of each package, then the second threads in the same order. One node for each package.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Machine {
        pub(crate) packages: usize,
        pub(crate) cores: usize,
        pub(crate) threads: usize,
    }

    impl Machine {
        pub(crate) fn cpus(self) -> usize {
            self.packages * self.cores * self.threads
        }

        pub(crate) fn all(self) -> BTreeSet<usize> {
            (0..self.cpus()).collect()
        }

        /// The CPU's place, by the numbering that `Machine` stands for.
        fn cpu(self, cpu: usize) -> Cpu {
            let physical = self.packages * self.cores;
            let package = cpu % physical / self.cores;
            let mut siblings: Vec<_> = (0..self.threads).map(|thread| cpu % physical + thread * physical).collect();
            siblings.retain(|&sibling| sibling != cpu);
            Cpu { cpu, core: cpu % self.cores, package, siblings, node: package }
        }

        /// What reading its sysfs must give.
        pub(crate) fn topology(self) -> Topology {
            Topology { cpus: (0..self.cpus()).map(|cpu| self.cpu(cpu)).collect(), flat: None }
        }

        /// Its sysfs, as far as we read it.
        fn sysfs(self) -> TempDir {
            let root = tempfile::tempdir().expect("a temporary folder can be made");
            let mut nodes: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for cpu in self.topology().cpus {
                let folder = root.path().join(format!("devices/system/cpu/cpu{}/topology", cpu.cpu));
                let core = cpu.siblings.iter().copied().chain([cpu.cpu]).collect();
                write(&folder, "core_id", &cpu.core.to_string());
                write(&folder, "physical_package_id", &cpu.package.to_string());
                write(&folder, "thread_siblings_list", &CpuList(core).to_string());
                nodes.entry(cpu.node).or_default().insert(cpu.cpu);
            }
            for (node, cpus) in nodes {
                let folder = root.path().join(format!("devices/system/node/node{node}"));
                write(&folder, "cpulist", &CpuList(cpus).to_string());
            }
            write(&root.path().join("devices/system/node"), "online", "0");
            root
        }
    }

    fn write(folder: &Path, name: &str, text: &str) {
        fs::create_dir_all(folder).expect("a folder of the fixture can be made");
        fs::write(folder.join(name), format!("{text}\n")).expect("a file of the fixture can be written");
    }

    const ONE: Machine = Machine { packages: 1, cores: 1, threads: 1 };
    const TWO: Machine = Machine { packages: 1, cores: 2, threads: 1 };
    const LAPTOP: Machine = Machine { packages: 1, cores: 4, threads: 2 };
    const SERVER: Machine = Machine { packages: 2, cores: 32, threads: 2 };

    #[test]
    fn machines_of_1_2_8_and_128_cpus_are_read_whole() {
        for (machine, cpus, nodes) in [(ONE, 1, 1), (TWO, 2, 1), (LAPTOP, 8, 1), (SERVER, 128, 2)] {
            let topology = Topology::read(machine.sysfs().path(), &machine.all());
            assert_eq!(topology, machine.topology());
            assert_eq!(topology.cpus().len(), cpus);
            let physical: BTreeSet<_> = topology.cpus().iter().map(Cpu::physical).collect();
            assert_eq!(physical.len(), machine.packages * machine.cores);
            assert_eq!(topology.cpus().iter().map(|cpu| cpu.node).collect::<BTreeSet<_>>().len(), nodes);
        }
    }

    #[test]
    fn a_second_thread_of_the_second_package_knows_where_it_lies() {
        let topology = Topology::read(SERVER.sysfs().path(), &BTreeSet::from([64 + 32 + 5]));
        let cpu = Cpu { cpu: 101, core: 5, package: 1, siblings: vec![37], node: 1 };
        assert_eq!(topology.cpus(), std::slice::from_ref(&cpu));
        assert_eq!(cpu.physical(), 37);
    }

    #[test]
    fn only_allowed_cpus_are_listed_but_a_forbidden_sibling_is_still_known() {
        let sysfs = LAPTOP.sysfs();
        let topology = Topology::read(sysfs.path(), &BTreeSet::from([2, 5]));
        assert_eq!(topology.cpus().iter().map(|cpu| cpu.cpu).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(topology.cpus()[1].siblings, [1]);
    }

    #[test]
    fn a_missing_file_flattens_the_topology_and_is_named() {
        let sysfs = LAPTOP.sysfs();
        let path = sysfs.path().join("devices/system/cpu/cpu3/topology/core_id");
        fs::remove_file(&path).expect("the fixture has the file");
        let topology = Topology::read(sysfs.path(), &LAPTOP.all());
        assert_eq!(topology.flat(), Some(&Flat::Unreadable { path, why: io::ErrorKind::NotFound }));
        assert_eq!(topology.cpus().len(), 8);
        assert!(topology.cpus().iter().all(|cpu| cpu.siblings.is_empty() && cpu.physical() == cpu.cpu));
    }

    #[test]
    fn a_garbled_file_flattens_the_topology_and_is_shown() {
        let sysfs = TWO.sysfs();
        let path = sysfs.path().join("devices/system/cpu/cpu1/topology/physical_package_id");
        // Some virtual machines and some ARM boards say -1.
        fs::write(&path, "-1\n").expect("the fixture can be changed");
        let topology = Topology::read(sysfs.path(), &TWO.all());
        assert_eq!(topology.flat(), Some(&Flat::Garbled { path, text: "-1".into() }));
    }

    #[test]
    fn a_kernel_without_nodes_puts_every_cpu_on_node_0() {
        let sysfs = SERVER.sysfs();
        fs::remove_dir_all(sysfs.path().join("devices/system/node")).expect("the fixture has nodes");
        let topology = Topology::read(sysfs.path(), &SERVER.all());
        assert_eq!(topology.flat(), None);
        assert!(topology.cpus().iter().all(|cpu| cpu.node == 0));
    }

    #[test]
    fn a_node_of_memory_without_cpus_is_no_fault() {
        let sysfs = TWO.sysfs();
        write(&sysfs.path().join("devices/system/node/node7"), "cpulist", "");
        assert_eq!(Topology::read(sysfs.path(), &TWO.all()).flat(), None);
    }

    #[test]
    fn this_process_may_use_at_least_one_cpu() {
        let topology = Topology::of_this_process();
        let allowed = allowed().expect("the kernel tells our CPUs");
        assert!(!allowed.is_empty());
        assert_eq!(topology.cpus().iter().map(|cpu| cpu.cpu).collect::<BTreeSet<_>>(), allowed);
    }

    #[test]
    fn lists_of_cpus_are_read_like_the_kernel_writes_them() {
        assert_eq!(parse_cpus("0-3,6"), Ok(BTreeSet::from([0, 1, 2, 3, 6])));
        assert_eq!(parse_cpus("6,2,6"), Ok(BTreeSet::from([2, 6])));
        assert_eq!(parse_cpus("3-1"), Err(CpuListFault::Backwards(3, 1)));
        assert_eq!(parse_cpus("0-8192"), Err(CpuListFault::Beyond(8192)));
        for text in ["", ",", "1,", "a", "-1", "1-", "1-2-3", "+1", " 1", "99999999999999999999"] {
            assert!(matches!(parse_cpus(text), Err(CpuListFault::Part(_))), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_list_that_is_shown_and_read_again_is_the_same(cpus in prop::collection::btree_set(0..=CPU_MAX, 1..40)) {
            prop_assert_eq!(parse_cpus(&CpuList(cpus.clone()).to_string()), Ok(cpus));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9,\\- +a]{0,20}") {
            if let Ok(cpus) = parse_cpus(&text) {
                prop_assert!(cpus.iter().all(|&cpu| cpu <= CPU_MAX));
            }
        }
    }
}
