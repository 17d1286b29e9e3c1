//! Which CPU carries which role: a pure function of the topology and of what was wished.
//!
//! ```text
//! CPUs   bus           event         shards
//! 1      the only one carries everything
//! 2, 3   one, shared by bus and event; shards on the others first, then (2 only) beside them
//! 4..    one           one           one on each of the rest
//! ```
//!
//! With two or three CPUs, unless they were named, the core of the bus is not pinned: nothing there has a CPU for
//! itself, and a thread that must wait for its own while another one is idle makes the bus daemon and its clients wait,
//! too.
//!
//! CPUs are taken in this order: first one thread of every physical core, then the second threads,
//! and among those node by node, beginning with the node of the lowest CPU. So a physical core gets
//! its second role only when every physical core has one, and what fits into one memory node stays
//! there, because rings and doorbells across nodes cost several times as much.
//!
//! Invariant: every role is placed exactly once, shards are numbered 0, 1, … without a gap, no CPU
//! stands in two places, and none is used that the process may not use.
//!
//! Deliberately absent: pinning itself (the executor does it, and runs unpinned where it is refused),
//! and moving a role later.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::topology::{Cpu, CpuList, Topology};

/// Shards that a machine gets when neither `--shards` nor `--cpus` is given. Pools are few, and a
/// shard with nothing to do still costs an executor: 4 descriptors, 192 KiB of locked memory, its
/// lanes and two rings to every other core. Eight are enough to keep every pool of a large appliance
/// from waiting for another.
pub const SHARDS_DEFAULT_MAX: usize = 8;

/// Shards that can be asked for. The mesh has a ring for every ordered pair of cores and lane, so
/// its memory grows with the square: 64 shards make 66 × 66 × 2 rings, about 10 MB of slots. Their
/// executors lock 12.4 MiB, which fits the `LimitMEMLOCK=64M` of the unit.
pub const SHARDS_MAX: usize = 64;

/// From this many CPUs on, bus and event have one each. With three, sharing leaves two for shards;
/// the event core is idle nearly always, so that is worth more.
const CPUS_FOR_OWN_EVENT: usize = 4;

/// What one core is for. A core may have several roles.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// The D-Bus connection, the object tree, the directory.
    Bus,
    /// What happens outside.
    Event,
    /// The shard with this number.
    Shard(usize),
}

/// What the command line wishes; `None` leaves it to `place`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// How many shards.
    pub shards: Option<usize>,
    /// Which CPUs, and no others. A set: order and repetition mean nothing.
    pub cpus: Option<Vec<usize>>,
}

/// One executor: where it runs and what it carries.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CoreRoles {
    /// The CPU it is pinned to. `None` where the scheduler does better, or CPUs could not be found out.
    pub cpu: Option<usize>,
    /// What it carries, ascending, never empty.
    pub roles: Vec<Role>,
}

/// Every role on its core. The core with `Role::Bus` comes first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Placement {
    /// The executors to start.
    pub cores: Vec<CoreRoles>,
}

impl Placement {
    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.cores.iter().flat_map(|core| &core.roles).filter(|role| matches!(role, Role::Shard(_))).count()
    }

    /// The index in `cores` of the core that carries a role; `None` for a shard that does not exist.
    pub fn core_of(&self, role: Role) -> Option<usize> {
        self.cores.iter().position(|core| core.roles.contains(&role))
    }
}

/// Why a wish cannot be met.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PlacementFault {
    /// Zero shards.
    #[error("at least one shard is needed: it is what owns pools")]
    NoShards,
    /// More than `SHARDS_MAX`.
    #[error("{asked} shards are too many: at most {max} are possible")]
    TooManyShards {
        /// How many were wished.
        asked: usize,
        /// How many there can be.
        max: usize,
    },
    /// An empty list.
    #[error("the list of CPUs is empty: at least one is needed")]
    NoCpus,
    /// CPUs that the process may not use: a cpuset, `taskset`, or they do not exist.
    #[error("cannot run on CPU {wished}: this process may use CPU {allowed}")]
    CpusNotAllowed {
        /// Those of the wish that cannot be had.
        wished: CpuList,
        /// Those that could.
        allowed: CpuList,
    },
}

/// Maps roles to CPUs.
///
/// Without `wanted.shards` there is one shard for each CPU left beside bus and event, at most
/// `SHARDS_DEFAULT_MAX`, or `SHARDS_MAX` when the CPUs were named one by one. With it there may be
/// more shards than CPUs; they are dealt out in turn.
///
/// # Errors
/// `PlacementFault`, when the wish cannot be met as it stands; nothing is rounded silently.
pub fn place(topology: &Topology, wanted: &Wanted) -> Result<Placement, PlacementFault> {
    let cpus = ordered(choose(topology, wanted.cpus.as_deref())?);
    let layout = layout(cpus.len());
    let free = layout.for_shards.len();
    let default_max = if wanted.cpus.is_some() { SHARDS_MAX } else { SHARDS_DEFAULT_MAX };
    let shards = match wanted.shards {
        None => free.min(default_max),
        Some(0) => return Err(PlacementFault::NoShards),
        Some(asked) if asked > SHARDS_MAX => {
            return Err(PlacementFault::TooManyShards { asked, max: SHARDS_MAX });
        }
        Some(asked) => asked,
    };

    let mut roles = vec![Vec::new(); cpus.len().max(1)];
    roles[0].push(Role::Bus);
    roles[layout.event].push(Role::Event);
    for shard in 0..shards {
        roles[layout.for_shards[shard % free]].push(Role::Shard(shard));
    }
    let roams = wanted.cpus.is_none() && (2..CPUS_FOR_OWN_EVENT).contains(&cpus.len());
    let pinned = cpus.iter().enumerate().map(|(index, cpu)| (index > 0 || !roams).then_some(cpu.cpu));
    let cpus = pinned.chain(cpus.is_empty().then_some(None));
    let cores = cpus.zip(roles).map(|(cpu, roles)| CoreRoles { cpu, roles });
    Ok(Placement { cores: cores.filter(|core| !core.roles.is_empty()).collect() })
}

/// Positions in the ordered CPUs. The bus is always at 0.
struct Layout {
    event: usize,
    /// Where shards go, in the order in which they are dealt out. Never empty.
    for_shards: Vec<usize>,
}

/// The table at the head of this file. No CPUs at all (unknown ones) are laid out like one.
fn layout(cpus: usize) -> Layout {
    match cpus {
        0 | 1 => Layout { event: 0, for_shards: vec![0] },
        2 => Layout { event: 0, for_shards: vec![1, 0] },
        shared if shared < CPUS_FOR_OWN_EVENT => Layout { event: 0, for_shards: (1..cpus).collect() },
        _ => Layout { event: 1, for_shards: (2..cpus).collect() },
    }
}

/// The CPUs that may be used: all, or those wished.
fn choose<'t>(topology: &'t Topology, wished: Option<&[usize]>) -> Result<Vec<&'t Cpu>, PlacementFault> {
    let Some(wished) = wished else {
        return Ok(topology.cpus().iter().collect());
    };
    let wished: BTreeSet<usize> = wished.iter().copied().collect();
    if wished.is_empty() {
        return Err(PlacementFault::NoCpus);
    }
    let allowed: BTreeSet<usize> = topology.cpus().iter().map(|cpu| cpu.cpu).collect();
    let refused: BTreeSet<usize> = wished.difference(&allowed).copied().collect();
    if !refused.is_empty() {
        return Err(PlacementFault::CpusNotAllowed { wished: CpuList(refused), allowed: CpuList(allowed) });
    }
    Ok(topology.cpus().iter().filter(|cpu| wished.contains(&cpu.cpu)).collect())
}

/// The order in which CPUs are given roles, as the head of this file says.
fn ordered(mut cpus: Vec<&Cpu>) -> Vec<&Cpu> {
    // The lowest chosen CPU's node comes first, so that a choice like 32-35 does not start elsewhere.
    let first_node = cpus.first().map_or(0, |cpu| cpu.node);
    let chosen: Vec<(usize, usize)> = cpus.iter().map(|cpu| (cpu.physical(), cpu.cpu)).collect();
    cpus.sort_by_key(|cpu| {
        // Only chosen siblings count: when the first thread of a core is forbidden, the second is its first.
        let before_it = chosen.iter().filter(|(core, other)| *core == cpu.physical() && *other < cpu.cpu).count();
        (before_it, cpu.node != first_node, cpu.node, cpu.cpu)
    });
    cpus
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::Role::{Bus, Event, Shard};
    use super::*;
    use crate::topology::tests::Machine;

    fn flat(cpus: usize) -> Topology {
        Topology::read(Path::new("/nonexistent"), &(0..cpus).collect())
    }

    fn placed(topology: &Topology, shards: Option<usize>, cpus: Option<Vec<usize>>) -> Vec<(Option<usize>, Vec<Role>)> {
        let placement = place(topology, &Wanted { shards, cpus }).expect("the wish can be met");
        placement.cores.into_iter().map(|core| (core.cpu, core.roles)).collect()
    }

    #[test]
    fn one_cpu_carries_everything() {
        assert_eq!(placed(&flat(1), None, None), [(Some(0), vec![Bus, Event, Shard(0)])]);
        assert_eq!(placed(&flat(1), Some(2), None), [(Some(0), vec![Bus, Event, Shard(0), Shard(1)])]);
    }

    #[test]
    fn two_cpus_both_have_a_shard_and_a_single_shard_is_not_beside_the_bus() {
        let both = |bus| [(bus, vec![Bus, Event, Shard(1)]), (Some(1), vec![Shard(0)])];
        assert_eq!(placed(&flat(2), None, None), both(None));
        assert_eq!(placed(&flat(2), None, Some(vec![0, 1])), both(Some(0)), "named CPUs are kept to");
        assert_eq!(placed(&flat(2), Some(1), None), [(None, vec![Bus, Event]), (Some(1), vec![Shard(0)])]);
    }

    #[test]
    fn three_cpus_keep_two_for_shards() {
        let three = [(None, vec![Bus, Event]), (Some(1), vec![Shard(0)]), (Some(2), vec![Shard(1)])];
        assert_eq!(placed(&flat(3), None, None), three);
    }

    #[test]
    fn four_cpus_have_one_each_for_bus_and_event() {
        let four = [(Some(0), vec![Bus]), (Some(1), vec![Event]), (Some(2), vec![Shard(0)]), (Some(3), vec![Shard(1)])];
        assert_eq!(placed(&flat(4), None, None), four);
    }

    #[test]
    fn physical_cores_come_before_second_threads() {
        // Four cores with two threads each: 0-3, then their siblings 4-7.
        let laptop = Machine { packages: 1, cores: 4, threads: 2 }.topology();
        let cpus: Vec<_> = placed(&laptop, None, None).into_iter().map(|(cpu, _)| cpu).collect();
        assert_eq!(cpus, [0, 1, 2, 3, 4, 5, 6, 7].map(Some));
        // Named in any order, and with a sibling pair (1, 5): the pair's second thread comes last.
        let chosen = placed(&laptop, None, Some(vec![7, 5, 1, 2]));
        assert_eq!(chosen.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>(), [1, 2, 7, 5].map(Some));
    }

    #[test]
    fn a_large_machine_gets_a_bounded_number_of_shards_on_one_node() {
        let server = Machine { packages: 2, cores: 32, threads: 2 };
        let cores = placed(&server.topology(), None, None);
        assert_eq!(cores.len(), 2 + SHARDS_DEFAULT_MAX);
        assert!(cores.iter().all(|(cpu, _)| cpu.is_some_and(|cpu| cpu < 32)), "{cores:?}");
        // CPUs named one by one are all used, as far as shards go; the node of the lowest leads.
        let named = placed(&server.topology(), None, Some((16..48).collect()));
        assert_eq!(named.len(), 32);
        let everything = placed(&server.topology(), None, Some((0..128).collect()));
        assert_eq!(everything.len(), 2 + SHARDS_MAX);
        let second = placed(&server.topology(), Some(4), Some((30..40).rev().collect()));
        assert_eq!(second.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>(), [30, 31, 32, 33, 34, 35].map(Some));
    }

    #[test]
    fn unknown_cpus_give_one_executor_that_is_not_pinned() {
        assert_eq!(placed(&flat(0), None, None), [(None, vec![Bus, Event, Shard(0)])]);
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let fault = |shards, cpus| place(&flat(4), &Wanted { shards, cpus }).expect_err("the wish cannot be met");
        assert_eq!(fault(Some(0), None), PlacementFault::NoShards);
        assert_eq!(fault(Some(65), None).to_string(), "65 shards are too many: at most 64 are possible");
        assert_eq!(fault(None, Some(vec![])), PlacementFault::NoCpus);
        let text = fault(None, Some(vec![1, 4, 9])).to_string();
        assert_eq!(text, "cannot run on CPU 4,9: this process may use CPU 0-3");
    }

    fn machines() -> impl Strategy<Value = Machine> {
        (1..3usize, 1..9usize, 1..3usize).prop_map(|(packages, cores, threads)| Machine { packages, cores, threads })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_role_stands_exactly_once_on_cpus_of_the_wish(
            machine in machines(),
            shards in prop::option::of(0..70usize),
            picks in prop::option::of(prop::collection::vec(any::<prop::sample::Index>(), 1..20)),
        ) {
            let topology = machine.topology();
            let cpus: Option<Vec<usize>> =
                picks.map(|picks| picks.iter().map(|pick| pick.index(machine.cpus())).collect());
            let wanted = Wanted { shards, cpus };
            let Ok(placement) = place(&topology, &wanted) else {
                prop_assert!(shards.is_some_and(|shards| shards == 0 || shards > SHARDS_MAX));
                return Ok(());
            };

            let roles: Vec<Role> = placement.cores.iter().flat_map(|core| core.roles.clone()).collect();
            let once: BTreeSet<Role> = roles.iter().copied().collect();
            let mut expected = BTreeSet::from([Bus, Event]);
            expected.extend((0..placement.shards()).map(Shard));
            prop_assert_eq!(roles.len(), once.len());
            prop_assert_eq!(once, expected);
            prop_assert!(placement.shards() >= 1);
            prop_assert!(shards.is_none_or(|shards| shards == placement.shards()));

            let used: Vec<usize> = placement.cores.iter().filter_map(|core| core.cpu).collect();
            let roams = wanted.cpus.is_none() && matches!(machine.cpus(), 2 | 3);
            prop_assert_eq!(used.len() + usize::from(roams), placement.cores.len());
            prop_assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), used.len());
            let mine = wanted.cpus.unwrap_or_else(|| (0..machine.cpus()).collect());
            prop_assert!(used.iter().all(|cpu| mine.contains(cpu)));

            prop_assert!(placement.cores.iter().all(|core| !core.roles.is_empty() && core.roles.is_sorted()));
            prop_assert_eq!(placement.core_of(Bus), Some(0));
            prop_assert_eq!(placement.core_of(Shard(placement.shards())), None);
        }
    }
}
