//! How a simulated thin pool fills, says that it runs low, is out of space, and grows.
//!
//! As the kernel's does: it says that it runs low once, with the first block that it gives out at low water, and
//! again only after it was resumed. When a write needs a block and there is none, the pool is out of space, says
//! so, and lets the write wait or fail as its table says, until it is resumed. When a write has waited for long, it
//! and all others fail, until it is resumed. When it is resumed it notices that its devices have grown; how many data
//! blocks it has stands in its superblock, as the kernel writes it.
//!
//! Deliberately absent: discards, and metadata that run out.

use super::Machine;
use super::state::{Place, State};
use crate::error::Why;
use crate::model::dm::{Dm, Role, Table, ThinFeature};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::sys::stack::{Blocked, Likeness};
use crate::units::Sectors;

/// What a write gets that finds no block and is to wait for one.
pub(super) const WAITS: Why = Why::Errno(libc::EAGAIN);

/// Where the superblock of thin metadata has its magic number and its data blocks, in the first sector.
const MAGIC: (usize, u64) = (32, 27_022_010);
const DATA_BLOCKS: usize = 64;

/// How an active thin pool fills.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fill {
    /// It has said that it runs low.
    told: bool,
    /// It is out of space.
    pub(super) out: bool,
    /// How often it has been.
    pub(super) outs: u64,
    /// A write has waited for space for as long as writes wait.
    gave_up: bool,
}

/// What became of a user's write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// It is done.
    Done,
    /// It waits for space; ask again.
    Waits,
    /// There is no space, or its pool does not take it.
    Fails,
}

impl Machine {
    /// A user of a filesystem writes to these sectors of its volume, to be found by nobody: only space is taken.
    pub fn write(&self, pool: PoolUuid, filesystem: FsUuid, start: Sectors, count: Sectors) -> Written {
        let mut state = self.state();
        let taken = state.thin_id(Dm::Thin(pool, filesystem));
        match taken.and_then(|id| state.take_blocks(pool, id, (start, count))) {
            Ok(()) => Written::Done,
            Err(WAITS) => Written::Waits,
            Err(_) => Written::Fails,
        }
    }

    /// How often a thin pool has been out of space since it was brought up.
    pub fn outs(&self, pool: PoolUuid) -> u64 {
        self.state().fills.get(&pool).map_or(0, |fill| fill.outs)
    }
}

impl State {
    /// Gives a device that is active another table.
    pub(super) fn swap(&mut self, device: Dm, table: &Table) -> Result<(), Why> {
        if !self.stack.is_swapped(device, table)? {
            return Ok(());
        }
        match self.stack.check(device, table, |number| self.disks.get(&number).map(|disk| disk.size)) {
            Ok(()) => {}
            Err(Blocked::Why(why)) => return Err(why),
            Err(Blocked::Bug(what)) => self.bug(what),
        }
        let pool = device.pool();
        if let Table::ThinPool { length, block, .. } = table {
            self.open_thin_pool(pool, length.0 / block.0)?;
        } else if self.stack.likeness(device, table)? != Likeness::Beginning {
            return Err(Why::OtherTable);
        }
        self.stack.insert(device, table.clone());
        if let Table::ThinPool { .. } = table {
            self.resumed(pool);
        }
        Ok(())
    }

    /// An active thin pool is resumed with the table that it has.
    pub(super) fn resume_thin_pool(&mut self, pool: PoolUuid) -> Result<(), Why> {
        let Some(Table::ThinPool { length, block, .. }) = self.stack.table(Dm::Private(pool, Role::ThinPool)) else {
            return Err(Why::Errno(libc::ENXIO));
        };
        let (now, blocks) = (self.thin_store(pool)?.meta, length.0 / block.0);
        let grown = self.stack.table(Dm::Private(pool, Role::ThinMeta)).is_some_and(|meta| meta.length() > now);
        if grown {
            self.open_thin_pool(pool, blocks)?;
            self.resumed(pool);
        }
        Ok(())
    }

    fn resumed(&mut self, pool: PoolUuid) {
        let fill = self.fills.entry(pool).or_default();
        (fill.told, fill.out, fill.gave_up) = (false, false, false);
    }

    /// Writes have waited for space for long enough.
    pub(super) fn give_up_space(&mut self, pool: PoolUuid) {
        self.fills.entry(pool).or_default().gave_up = true;
    }

    /// Writes down how many data blocks a thin pool has.
    pub(super) fn count_blocks(&mut self, place: Place, blocks: u64) {
        let write = self.tick();
        let medium = &mut self.disks.get_mut(&place.0).expect("a resolved place lies on a disk").medium;
        let mut sector: [u8; 512] = medium.read(place.1, Sectors(1)).try_into().expect("one sector");
        for (at, value) in [MAGIC, (DATA_BLOCKS, blocks)] {
            sector[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        medium.engrave(write, place.1, &sector);
        self.thin.get_mut(&place).expect("its metadata is there").data = blocks;
    }

    /// Gives a volume the blocks for what is written, or says that there are none.
    pub(super) fn take_blocks(
        &mut self,
        pool: PoolUuid,
        id: ThinId,
        (start, count): (Sectors, Sectors),
    ) -> Result<(), Why> {
        let thin_pool = self.stack.table(Dm::Private(pool, Role::ThinPool));
        let Some(Table::ThinPool { length, block, low_water, features }) = thin_pool else {
            return Err(Why::Errno(libc::ENXIO));
        };
        let (blocks, block, low_water) = (length.0 / block.0, *block, *low_water);
        let waits = !features.contains(&ThinFeature::ErrorIfNoSpace);
        let store = self.thin_store_mut(pool)?;
        let free = blocks.saturating_sub(store.used());
        let content = store.content_mut(id).ok_or(Why::Errno(libc::ENODATA))?;
        let lacks = content.lacks(block, start, count);
        if lacks == 0 {
            return Ok(());
        }
        if lacks <= free {
            content.take(block, start, count);
        }
        let fill = self.fills.entry(pool).or_default();
        let is_low = free.saturating_sub(lacks) <= low_water;
        let (low, out) = (is_low && !fill.told, lacks > free && !fill.out);
        (fill.told, fill.out) = (fill.told || is_low, fill.out || lacks > free);
        fill.outs += u64::from(out);
        if low || out {
            self.news.raise(pool);
        }
        match (lacks > free, waits && !fill.gave_up) {
            (false, _) => Ok(()),
            (true, true) => Err(WAITS),
            (true, false) => Err(Why::Errno(libc::ENOSPC)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use cores::deterministic::Universe;

    use super::*;
    use crate::model::dm::{Below, LinearLine, ThinPoolMode};
    use crate::sys::{Opening, Sys};

    const POOL: PoolUuid = PoolUuid(uuid::Uuid::nil());
    const FS: FsUuid = FsUuid(uuid::Uuid::nil());
    const BLOCK: Sectors = Sectors(2_048);

    fn private(role: Role) -> Dm {
        Dm::Private(POOL, role)
    }

    fn thin_pool(blocks: u64, waits: bool) -> (Dm, Table) {
        let features = if waits { vec![] } else { vec![ThinFeature::ErrorIfNoSpace] };
        let length = Sectors(blocks * BLOCK.0);
        (private(Role::ThinPool), Table::ThinPool { length, block: BLOCK, low_water: 2, features })
    }

    /// A thin pool of four blocks, of which eight are there below, with a volume.
    async fn up(machine: &Machine) -> super::super::SimSys {
        let (sys, number) = (machine.sys(), machine.number("/dev/a"));
        let path = crate::model::device::DevicePath::try_from("/dev/a").expect("absolute");
        let candidate = sys.examine(&path).await.expect("a disk");
        sys.open(&candidate, Opening::Member).await.expect("free");
        let linear = |start, length| {
            let line = LinearLine { length: Sectors(length), below: Below::Device(number), start: Sectors(start) };
            Table::Linear(vec![line])
        };
        let below =
            [(private(Role::ThinMeta), linear(8_192, 4_096)), (private(Role::ThinData), linear(16_384, 16_384))];
        sys.activate(&below).await.expect("free");
        sys.activate(&[thin_pool(4, true)]).await.expect("new metadata");
        sys.thin_create(POOL, ThinId(0)).await.expect("new");
        let volume = (Dm::Thin(POOL, FS), Table::Thin { length: Sectors(1 << 20), id: ThinId(0) });
        sys.activate(&[volume]).await.expect("it is there");
        sys
    }

    #[test]
    fn it_says_once_that_it_runs_low_and_waits_or_fails_when_it_is_full() {
        let machine = Machine::new(0);
        machine.add_disk("/dev/a", Sectors(1 << 20));
        let own = machine.clone();
        Universe::new(0).run(async move {
            let sys = up(&own).await;
            let write = |block: u64| own.write(POOL, FS, Sectors(block * BLOCK.0), BLOCK);
            let said = || own.state().news.take_thin_pools(0, Vec::new(), Waker::noop()).is_some();
            let mode = async || sys.thin_pool(POOL).await.expect("active").mode;
            assert_eq!((write(0), said()), (Written::Done, false));
            assert_eq!((write(1), said()), (Written::Done, true), "two blocks are left");
            assert_eq!((write(2), said()), (Written::Done, false), "it said so");
            assert_eq!((write(2), write(3), said()), (Written::Done, Written::Done, false));
            assert_eq!((write(4), said(), own.outs(POOL)), (Written::Waits, true, 1));
            assert_eq!((write(4), said(), own.outs(POOL)), (Written::Waits, false, 1));
            assert_eq!(mode().await, ThinPoolMode::OutOfDataSpace);

            let shorter = sys.swap(&[thin_pool(3, true)]).await.expect_err("it has four");
            assert_eq!(shorter.why, Why::OtherTable);
            sys.swap(&[thin_pool(6, true)]).await.expect("there are eight below");
            assert_eq!(mode().await, ThinPoolMode::ReadWrite);
            assert_eq!((write(4), said()), (Written::Done, true), "resumed, it says it again");
            let longer = sys.swap(&[thin_pool(9, true)]).await.expect_err("there are eight below");
            assert_eq!(longer.why, Why::Errno(libc::EINVAL));
            sys.swap(&[thin_pool(6, false)]).await.expect("the same and hasty");
            assert_eq!((write(5), write(6), own.outs(POOL)), (Written::Done, Written::Fails, 2));
            let absent = sys.swap(&[(private(Role::Mdv), thin_pool(1, true).1)]).await.expect_err("it is not active");
            assert_eq!(absent.why, Why::Errno(libc::ENXIO));
        });
    }
}
