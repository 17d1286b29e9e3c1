//! What can happen to a machine, as one list: each kind with what must survive it.
//!
//! Invariant: what is drawn from a seed is drawn in one order, and nothing is struck that cannot be healed.

use std::collections::BTreeSet;

use stratisd::engine::size::DATA_BLOCK;
use stratisd::model::dm::{Dm, Table, ThinPoolMode};
use stratisd::model::ids::{FsUuid, PoolUuid};
use stratisd::sys::sim::{Damage, Machine, Written};
use stratisd::units::{Bytes, Sectors};

use crate::sound::Disk;
use crate::world::Seen;

/// How a life of the daemon ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Death {
    /// The process is gone, the kernel goes on.
    Process,
    /// The power fails.
    Power,
}

/// A kind of fault.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// What must be so all the same.
    pub(crate) survives: &'static str,
    pub(crate) often: usize,
    /// Whether requests may fail from now on to the end of this life, and errors be logged.
    pub(crate) hurts: bool,
    strike: fn(&mut Struck<'_>) -> Option<String>,
}

/// Where and by what a fault is drawn.
pub(crate) struct Struck<'a> {
    pub(crate) dice: &'a mut fastrand::Rng,
    pub(crate) machine: &'a Machine,
    pub(crate) seen: &'a Seen,
    pub(crate) wounds: &'a mut Wounds,
    /// Nobody has asked for anything that is not answered.
    pub(crate) idle: bool,
}

/// What goes on until it is healed.
#[derive(Debug, Default)]
pub(crate) struct Wounds {
    pub(crate) death: Option<Death>,
    sick: BTreeSet<String>,
    pulled: usize,
    /// Disks were not to be seen in this life, and some may have come back.
    pub(crate) came_back: bool,
    mounted: BTreeSet<(PoolUuid, FsUuid)>,
    /// Copies of disks of stopped pools, with the pools.
    pub(crate) twins: Vec<(String, PoolUuid)>,
    /// Writes take longer than usual.
    slow: bool,
    /// Pools whose thin pool takes no changes any more, or whose metadata are damaged.
    pub(crate) ailing: BTreeSet<PoolUuid>,
}

/// The path of a copy.
const TWIN: &str = "/dev/twin";
const SURVIVES_ALL: &str = "all that was replied; what was not is all or nothing";

#[rustfmt::skip]
pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "the power fails", survives: SURVIVES_ALL, often: 8, hurts: false, strike: |it| it.dies(Death::Power) },
    Kind { name: "the process is killed", survives: "all that was replied, and everything that runs goes on", often: 6, hurts: false, strike: |it| it.dies(Death::Process) },
    Kind { name: "one action fails", survives: "memory, clients and disks agree", often: 5, hurts: true, strike: |it| it.one_fails() },
    Kind { name: "a disk takes no writes", survives: "what other disks of the pool have; nobody is told yes for nothing", often: 3, hurts: true, strike: |it| it.refuses_writes() },
    Kind { name: "a disk gives nothing to read", survives: "running pools; others stay stopped", often: 1, hurts: true, strike: |it| it.refuses_reads() },
    Kind { name: "a disk hangs", survives: "other pools; each request is answered; no second write to it", often: 2, hurts: true, strike: |it| it.hangs() },
    Kind { name: "a disk of a stopped pool is pulled", survives: "what is listed is there", often: 3, hurts: false, strike: |it| it.pull() },
    Kind { name: "a disk of a stopped pool is copied to another", survives: "the pool: it stays stopped as long as both are there", often: 2, hurts: false, strike: |it| it.copy() },
    Kind { name: "device events are lost", survives: "what is listed is there", often: 2, hurts: false, strike: |it| { it.machine.lose_events(); Some(String::new()) } },
    Kind { name: "udev reports every disk again", survives: "nothing changes", often: 3, hurts: false, strike: |it| it.touch() },
    Kind { name: "a thin pool raises events for nothing", survives: "nothing changes", often: 3, hurts: false, strike: |it| it.raise() },
    Kind { name: "a user mounts a filesystem", survives: "what is mounted is not destroyed or stopped", often: 4, hurts: false, strike: |it| it.mount() },
    Kind { name: "a user writes", survives: "it grows as it may", often: 4, hurts: false, strike: |it| it.write() },
    Kind { name: "users fill a pool", survives: "it says so, until there is room again", often: 2, hurts: false, strike: |it| it.fill() },
    Kind { name: "a disk grows", survives: "nothing changes but what is shown of it", often: 2, hurts: false, strike: |it| it.grow() },
    Kind { name: "a thin pool takes no changes any more", survives: "every promise but that its requests are done", often: 2, hurts: true, strike: |it| it.ail() },
    Kind { name: "thin metadata are damaged", survives: "the pool, repaired by its next start", often: 2, hurts: true, strike: |it| it.damage() },
    Kind { name: "writes are slow", survives: "everything", often: 3, hurts: false, strike: |it| it.slow() },
    Kind { name: "a copy of a signature rots", survives: "everything, and the next start makes it good", often: 3, hurts: false, strike: |it| it.rot_signature() },
    Kind { name: "an older record rots, both copies", survives: "everything, and the next start makes it good", often: 3, hurts: false, strike: |it| it.rot_record() },
];

impl Kind {
    /// A kind by chance.
    pub(crate) fn draw(dice: &mut fastrand::Rng) -> &'static Self {
        let all: usize = KINDS.iter().map(|kind| kind.often).sum();
        let mut left = dice.usize(..all);
        let drawn = KINDS.iter().find(|kind| left.checked_sub(kind.often).map(|less| left = less).is_none());
        drawn.expect("less than the sum was drawn")
    }

    /// Lets it happen; nothing if there is nothing that it could happen to.
    pub(crate) fn strike(&self, mut it: Struck<'_>) -> Option<String> {
        (self.strike)(&mut it).map(|detail| format!("{}{detail}", self.name))
    }
}

impl Wounds {
    /// Everything works again.
    pub(crate) fn heal(&mut self, machine: &Machine) {
        // A disk may be sick and pulled.
        for _ in 0..std::mem::take(&mut self.pulled) {
            machine.plug();
        }
        for disk in std::mem::take(&mut self.sick) {
            machine.fail_writes(&disk, None);
            machine.fail_reads(&disk, None);
            machine.hang(&disk, false);
        }
        for (copy, _) in std::mem::take(&mut self.twins) {
            machine.remove_disk(&copy);
        }
        machine.set_write_time(std::time::Duration::ZERO);
        self.slow = false;
    }

    /// Whether something goes on for which even a pool's own writes wait.
    pub(crate) fn slow_down(&self) -> bool {
        self.slow || !self.sick.is_empty()
    }

    /// What goes with the life of the daemon, or with the power.
    pub(crate) fn end(&mut self, machine: &Machine, death: Death) {
        self.heal(machine);
        self.death = None;
        self.came_back = false;
        if death == Death::Power {
            self.mounted.clear();
            self.ailing.clear();
        }
    }
}

impl Struck<'_> {
    fn dies(&mut self, death: Death) -> Option<String> {
        let after = self.dice.u64(..70);
        self.wounds.death = Some(death);
        self.machine.stop_at(self.machine.actions() + after);
        Some(format!(" after {after} actions"))
    }

    fn disk(&mut self) -> String {
        let disks = self.machine.disks();
        self.dice.choice(&disks).expect("a machine has disks").to_string()
    }

    fn pool(&mut self) -> Option<PoolUuid> {
        let pools: Vec<PoolUuid> = self.seen.running.keys().copied().collect();
        self.dice.choice(&pools).copied()
    }

    fn filesystem(&mut self) -> Option<(PoolUuid, FsUuid)> {
        let of = |(pool, (_, all)): (&PoolUuid, &(String, std::collections::BTreeMap<FsUuid, String>))| {
            all.keys().map(|filesystem| (*pool, *filesystem)).collect::<Vec<_>>()
        };
        let all: Vec<_> = self.seen.running.iter().flat_map(of).collect();
        self.dice.choice(&all).copied()
    }

    fn one_fails(&mut self) -> Option<String> {
        let (after, errno) = (self.dice.u64(..40), if self.dice.bool() { libc::EIO } else { libc::ENOSPC });
        self.machine.fail_at(self.machine.actions() + after, errno);
        Some(format!(" after {after} others with errno {errno}"))
    }

    fn refuses_writes(&mut self) -> Option<String> {
        let disk = self.disk();
        self.machine.fail_writes(&disk, Some(libc::EIO));
        self.wounds.sick.insert(disk.clone());
        Some(format!(": {disk}"))
    }

    fn refuses_reads(&mut self) -> Option<String> {
        let disk = self.disk();
        self.machine.fail_reads(&disk, Some(libc::EIO));
        // Whoever cannot be read is not listed.
        self.wounds.came_back = true;
        self.wounds.sick.insert(disk.clone());
        Some(format!(": {disk}"))
    }

    fn hangs(&mut self) -> Option<String> {
        let disk = self.disk();
        self.machine.hang(&disk, true);
        self.wounds.sick.insert(disk.clone());
        Some(format!(": {disk}"))
    }

    fn pull(&mut self) -> Option<String> {
        let stopped = |disk: &Disk| disk.header().is_some_and(|header| self.seen.stopped.contains_key(&header.pool));
        let disks: Vec<_> = Disk::all(self.machine).into_iter().filter(stopped).collect();
        let path = self.dice.choice(&disks)?.path.to_string();
        self.machine.unplug(&path);
        self.wounds.pulled += 1;
        self.wounds.came_back = true;
        Some(format!(": {path}"))
    }

    fn copy(&mut self) -> Option<String> {
        let stopped = |disk: &Disk| disk.header().is_some_and(|header| self.seen.stopped.contains_key(&header.pool));
        let disks: Vec<_> = Disk::all(self.machine).into_iter().filter(stopped).filter(|_| self.idle).collect();
        let disk = self.dice.choice(&disks)?;
        let (path, pool) = (disk.path.to_string(), disk.header()?.pool);
        if !self.wounds.twins.is_empty() || path == TWIN {
            return None;
        }
        self.machine.copy_disk(&path, TWIN);
        self.wounds.twins.push((TWIN.to_owned(), pool));
        Some(format!(": {path} of {pool}"))
    }

    fn touch(&mut self) -> Option<String> {
        self.machine.disks().iter().for_each(|disk| self.machine.touch(&disk.to_string()));
        Some(String::new())
    }

    fn raise(&mut self) -> Option<String> {
        let pool = self.pool()?;
        self.machine.raise(pool);
        Some(format!(": {pool}"))
    }

    fn mount(&mut self) -> Option<String> {
        let (pool, filesystem) = self.filesystem()?;
        let mounts = !self.wounds.mounted.remove(&(pool, filesystem));
        if mounts {
            self.wounds.mounted.insert((pool, filesystem));
        }
        self.machine.set_in_use(pool, filesystem, mounts);
        Some(format!(" ({mounts}): {filesystem}"))
    }

    fn write(&mut self) -> Option<String> {
        let all: Vec<_> = self.wounds.mounted.iter().copied().collect();
        let (pool, filesystem) = *self.dice.choice(&all)?;
        let there = self.seen.running.get(&pool)?.1.contains_key(&filesystem);
        let used = Bytes(u128::from(self.dice.u64(1..4)) << 27);
        let sectors = used.sectors().expect("whole mebibytes");
        let room = there.then(|| self.machine.write(pool, filesystem, Sectors::ZERO, sectors))?;
        let written = (room == Written::Done).then(|| self.machine.write_until(pool, filesystem, used));
        Some(format!(" {used} of {filesystem}: {written:?}"))
    }

    /// As far as the thin pool has space now; it may grow.
    fn fill(&mut self) -> Option<String> {
        let pool = self.pool()?;
        let (_, filesystems) = &self.seen.running[&pool];
        let size = |filesystem| self.machine.tables().get(&Dm::Thin(pool, filesystem)).map(Table::length);
        let mut taken = 0;
        for filesystem in filesystems.keys() {
            let blocks = size(*filesystem)?.0 / DATA_BLOCK.0;
            let room = |block| self.machine.write(pool, *filesystem, Sectors(block * DATA_BLOCK.0), DATA_BLOCK);
            taken += (0..blocks).take_while(|block| room(*block) == Written::Done).count();
        }
        Some(format!(": {pool}, {taken} blocks"))
    }

    fn grow(&mut self) -> Option<String> {
        let disk = self.disk();
        let size = Sectors(8_388_608 + 1_048_576 * self.dice.u64(..8));
        // None gets smaller.
        (self.machine.size(&disk) < size).then(|| self.machine.resize_disk(&disk, size))?;
        self.machine.touch(&disk);
        Some(format!(": {disk} to {size}"))
    }

    fn ail(&mut self) -> Option<String> {
        let pool = self.pool()?;
        self.machine.ail(pool, ThinPoolMode::ReadOnly, true);
        self.wounds.ailing.insert(pool);
        Some(format!(": {pool}"))
    }

    fn damage(&mut self) -> Option<String> {
        let pool = self.pool().filter(|pool| self.machine.volumes(*pool).is_some())?;
        self.machine.damage(pool, Damage::Repairable);
        self.wounds.ailing.insert(pool);
        Some(format!(": {pool}"))
    }

    fn slow(&mut self) -> Option<String> {
        let time = std::time::Duration::from_millis(self.dice.u64(1..2_000));
        self.machine.set_write_time(time);
        self.wounds.slow = true;
        Some(format!(": {time:?} for each batch"))
    }

    fn rot_signature(&mut self) -> Option<String> {
        let disk = self.signed()?;
        let at = if self.dice.bool() { 1 } else { 9 };
        let mut block = self.machine.bytes(&disk, Sectors(at), Sectors(1));
        block[40] ^= 0xff;
        self.machine.scribble(&disk, Sectors(at), &block);
        Some(format!(": sector {at} of {disk}"))
    }

    fn rot_record(&mut self) -> Option<String> {
        let disk = self.signed()?;
        let read = Disk::all(self.machine).into_iter().find(|read| read.path.to_string() == disk)?;
        for start in read.older()? {
            self.machine.scribble(&disk, start, &[0x5a; 512]);
        }
        Some(format!(": {disk}"))
    }

    /// A disk with whole copies of a signature, on which nothing rots yet.
    fn signed(&mut self) -> Option<String> {
        let disks: Vec<_> = Disk::all(self.machine).into_iter().filter(Disk::is_whole).collect();
        self.dice.choice(&disks).map(|disk| disk.path.to_string())
    }
}
