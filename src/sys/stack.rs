//! Device-mapper as far as the kernel would enforce it: what a device needs below it, what may not
//! be removed from under another, what may not lie on the same sectors twice.
//!
//! Invariant: what an active table refers to is active too, and no two devices share a sector.
//!
//! A mistake that the kernel would let pass, and that would destroy data, is a `Bug` here: the
//! caller panics with it.
//!
//! Deliberately absent: what the devices hold. Who keeps that looks at a table after it was checked.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::{Below, Dm, LinearLine, Role, Table, ThinFeature, ThinPoolMode, ThinPoolState};
use crate::model::ids::{PoolUuid, ThinId};
use crate::sys::linear::{Piece, overlap, resolve};
use crate::units::Sectors;

/// A block of thin-pool metadata, 4 KiB.
pub(super) const META_BLOCK: Sectors = Sectors(8);

/// What a cache lies on.
const CACHED: [Role; 3] = [Role::OriginSub, Role::MetaSub, Role::CacheSub];

/// The active devices.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    tables: BTreeMap<Dm, Table>,
}

/// What is active in the place of a device that is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Likeness {
    /// Nothing.
    Nothing,
    /// The device with its table.
    Same,
    /// The device with the beginning of its table.
    Beginning,
}

/// Why a device is not activated.
#[derive(Debug)]
pub(super) enum Blocked {
    /// The kernel would say so.
    Why(Why),
    /// The kernel would do it, and data would be lost.
    Bug(String),
}

impl From<Why> for Blocked {
    fn from(why: Why) -> Self {
        Self::Why(why)
    }
}

impl Stack {
    /// Nothing is active.
    pub(super) const fn new() -> Self {
        Self { tables: BTreeMap::new() }
    }

    /// The table of an active device.
    pub(super) fn table(&self, device: Dm) -> Option<&Table> {
        self.tables.get(&device)
    }

    /// Every active device with its table.
    pub(super) const fn tables(&self) -> &BTreeMap<Dm, Table> {
        &self.tables
    }

    /// The active devices of a pool.
    pub(super) fn of(&self, pool: PoolUuid) -> Vec<Dm> {
        self.tables.keys().filter(|device| device.pool() == pool).copied().collect()
    }

    /// Where a range of a device really is.
    pub(super) fn resolve(&self, device: Dm, start: Sectors, count: Sectors) -> Result<Vec<Piece>, Why> {
        resolve(&|dm| self.tables.get(&dm), device, start, count)
    }

    /// What is active in the place of a device with this table. One that was made before its pool had a cache is a
    /// beginning; a thin pool that is shorter is the same, because it gets more by itself.
    pub(super) fn likeness(&self, device: Dm, table: &Table) -> Result<Likeness, Why> {
        let Some(present) = self.tables.get(&device) else { return Ok(Likeness::Nothing) };
        let before_the_cache = || like(present, &table.without_cache(device.pool())?).map(|_| Likeness::Beginning);
        like(present, table).or_else(before_the_cache).ok_or(Why::OtherTable)
    }

    /// Whether an active device is to be given this table, `ENXIO` where it is not active.
    pub(super) fn is_swapped(&self, device: Dm, table: &Table) -> Result<bool, Why> {
        let present = self.tables.get(&device).ok_or(Why::Errno(libc::ENXIO))?;
        match (present, table) {
            (Table::ThinPool { length, block, .. }, Table::ThinPool { length: wanted, block: other, .. })
                if block == other && length <= wanted =>
            {
                Ok(true)
            }
            (Table::ThinPool { .. }, _) => Err(Why::OtherTable),
            (Table::Linear(_) | Table::Cache { .. } | Table::Thin { .. }, _) => {
                Ok(self.likeness(device, table)? != Likeness::Same)
            }
        }
    }

    /// Whether a thin volume is active, under whatever name.
    pub(super) fn is_thin_active(&self, pool: PoolUuid, volume: ThinId) -> bool {
        self.tables
            .iter()
            .any(|(device, table)| device.pool() == pool && matches!(table, Table::Thin { id, .. } if *id == volume))
    }

    /// Which volume an active thin device is, and how long.
    pub(super) fn thin_volume(&self, device: Dm) -> Result<(ThinId, Sectors), Why> {
        match self.tables.get(&device) {
            Some(Table::Thin { length, id }) => Ok((*id, *length)),
            Some(Table::Linear(_) | Table::Cache { .. } | Table::ThinPool { .. }) => Err(Why::Errno(libc::EINVAL)),
            None => Err(Why::Errno(libc::ENXIO)),
        }
    }

    /// Checks a table against what is active. `size` tells the size of an existing device.
    pub(super) fn check(
        &self,
        device: Dm,
        table: &Table,
        size: impl Fn(DeviceNumber) -> Option<Sectors>,
    ) -> Result<(), Blocked> {
        match table {
            Table::Linear(lines) => {
                self.check_move(device, lines)?;
                self.check_lines(device, lines, size)
            }
            Table::Cache { length, .. } => {
                let needs = |role| self.tables.get(&Dm::Private(device.pool(), role)).ok_or(Why::Errno(libc::ENODEV));
                needs(Role::MetaSub)?;
                needs(Role::CacheSub)?;
                if needs(Role::OriginSub)?.length() < *length {
                    return Err(Why::Errno(libc::EINVAL).into());
                }
                Ok(())
            }
            Table::ThinPool { length, .. } => {
                let needs = |role| self.tables.get(&Dm::Private(device.pool(), role)).ok_or(Why::Errno(libc::ENODEV));
                needs(Role::ThinMeta)?;
                if needs(Role::ThinData)?.length() < *length {
                    return Err(Why::Errno(libc::EINVAL).into());
                }
                Ok(())
            }
            Table::Thin { id, .. } => {
                if !self.tables.contains_key(&Dm::Private(device.pool(), Role::ThinPool)) {
                    return Err(Why::Errno(libc::ENODEV).into());
                }
                let twin = self.tables.iter().find(|(dm, other)| {
                    **dm != device
                        && dm.pool() == device.pool()
                        && matches!(other, Table::Thin { id: taken, .. } if taken == id)
                });
                twin.map_or(Ok(()), |(twin, _)| {
                    Err(Blocked::Bug(format!("{device} and {twin} are the same thin volume {id}")))
                })
            }
        }
    }

    /// What comes to lie on a cache while I/O goes on must not share a block of it with anything else: that would
    /// write to the origin, and the cache would not know.
    fn check_move(&self, device: Dm, lines: &[LinearLine]) -> Result<(), Blocked> {
        let cache = Dm::Private(device.pool(), Role::Cache);
        let (Some(Table::Linear(present)), Some(Table::Cache { block, .. })) =
            (self.tables.get(&device), self.tables.get(&cache))
        else {
            return Ok(());
        };
        let apart = |line: &LinearLine| line.start.0.is_multiple_of(block.0) && line.length.0.is_multiple_of(block.0);
        let moves = present.iter().zip(lines).filter(|(now, then)| now.below != then.below);
        match moves.map(|(_, then)| then).find(|line| !apart(line)) {
            Some(line) => Err(Blocked::Bug(format!("a part of a block of {cache} comes to lie on it: {line:?}"))),
            None => Ok(()),
        }
    }

    fn check_lines(
        &self,
        device: Dm,
        lines: &[LinearLine],
        size: impl Fn(DeviceNumber) -> Option<Sectors>,
    ) -> Result<(), Blocked> {
        if lines.is_empty() || lines.iter().any(|line| line.length == Sectors::ZERO) {
            return Err(Why::Errno(libc::EINVAL).into());
        }
        for (index, line) in lines.iter().enumerate() {
            let room = match line.below {
                Below::Device(number) => size(number),
                Below::Dm(below) => self.tables.get(&below).map(Table::length),
            };
            let room = room.ok_or(Why::Errno(libc::ENODEV))?;
            if line.start.checked_add(line.length).is_none_or(|end| end > room) {
                return Err(Why::Errno(libc::EINVAL).into());
            }
            if lines[..index].iter().any(|earlier| overlap(earlier, line)) {
                return Err(Blocked::Bug(format!("two lines of {device} lie on the same sectors: {line:?}")));
            }
            if let Some(owner) = self.owner_but(Some(device), line.below, line.start, line.length) {
                return Err(Blocked::Bug(format!("{device} would lie on sectors of {owner}: {line:?}")));
            }
        }
        Ok(())
    }

    /// The active device that lies on some of these sectors.
    pub(super) fn owner(&self, below: Below, start: Sectors, length: Sectors) -> Option<Dm> {
        self.owner_but(None, below, start, length)
    }

    /// Another than this one: what a device lies on already is its own.
    fn owner_but(&self, own: Option<Dm>, below: Below, start: Sectors, length: Sectors) -> Option<Dm> {
        let asked = LinearLine { length, below, start };
        let on = |device: &Dm, table: &Table| match table {
            Table::Linear(lines) => lines.iter().any(|line| overlap(line, &asked)),
            Table::Cache { .. } => CACHED.iter().any(|role| below == Below::Dm(Dm::Private(device.pool(), *role))),
            Table::ThinPool { .. } | Table::Thin { .. } => false,
        };
        // Private devices come first, and volumes lie on no sectors: they are not looked at, there may be thousands.
        let mut private = self.tables.iter().take_while(|(device, _)| matches!(device, Dm::Private(..)));
        private.find(|(device, table)| own != Some(**device) && on(device, table)).map(|(device, _)| *device)
    }

    /// Makes a checked device active, or gives it a longer table.
    pub(super) fn insert(&mut self, device: Dm, table: Table) {
        self.tables.insert(device, table);
    }

    /// Removes a device that nothing lies on.
    pub(super) fn remove(&mut self, device: Dm) -> Result<(), Why> {
        let holds = |holder: &Dm, table: &Table| match (table, device) {
            (Table::Linear(lines), _) => lines.iter().any(|line| line.below == Below::Dm(device)),
            (Table::Cache { .. }, Dm::Private(pool, Role::OriginSub | Role::MetaSub | Role::CacheSub))
            | (Table::ThinPool { .. }, Dm::Private(pool, Role::ThinMeta | Role::ThinData))
            | (Table::Thin { .. }, Dm::Private(pool, Role::ThinPool)) => holder.pool() == pool,
            (Table::Cache { .. } | Table::ThinPool { .. } | Table::Thin { .. }, _) => false,
        };
        // Nothing lies on a volume.
        let is_private = matches!(device, Dm::Private(..));
        if is_private && self.tables.iter().any(|(holder, table)| holds(holder, table)) {
            return Err(Why::Errno(libc::EBUSY));
        }
        self.tables.remove(&device);
        Ok(())
    }

    /// The state of an active thin pool. Where thin volumes do not lie on the pool's devices, nothing
    /// of these is ever in use.
    pub(super) fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Why> {
        let table = |role| self.tables.get(&Dm::Private(pool, role)).ok_or(Why::Errno(libc::ENXIO));
        let Table::ThinPool { length, block, low_water, features } = table(Role::ThinPool)? else {
            return Err(Why::Errno(libc::EINVAL));
        };
        Ok(ThinPoolState {
            meta_used: 0,
            meta_total: table(Role::ThinMeta)?.length().0 / META_BLOCK.0,
            meta_low_water: 0,
            data_used: 0,
            data_total: length.0 / block.0,
            low_water: *low_water,
            waits: !features.contains(&ThinFeature::ErrorIfNoSpace),
            mode: ThinPoolMode::ReadWrite,
            needs_check: false,
        })
    }

    /// The machine restarts.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
    }
}

/// What a table is to one that is wanted; nothing if they are different. Low water and features of a thin pool do
/// not count.
fn like(present: &Table, table: &Table) -> Option<Likeness> {
    let begins = match (present, table) {
        (Table::Linear(present), Table::Linear(wanted)) => begins(present, wanted),
        (Table::Cache { block, .. }, Table::Cache { block: wanted, .. }) => block == wanted,
        (Table::ThinPool { block, .. }, Table::ThinPool { block: wanted, .. }) => block == wanted,
        (Table::Thin { id, .. }, Table::Thin { id: wanted, .. }) => id == wanted,
        (Table::Linear(_) | Table::Cache { .. } | Table::ThinPool { .. } | Table::Thin { .. }, _) => false,
    };
    match present.length().cmp(&table.length()) {
        Ordering::Equal if begins => Some(Likeness::Same),
        Ordering::Less if begins && matches!(table, Table::ThinPool { .. }) => Some(Likeness::Same),
        Ordering::Less if begins => Some(Likeness::Beginning),
        Ordering::Equal | Ordering::Less | Ordering::Greater => None,
    }
}

/// Whether lines begin with these.
fn begins(present: &[LinearLine], wanted: &[LinearLine]) -> bool {
    let Some((last, whole)) = present.split_last() else { return false };
    let goes_on =
        |line: &LinearLine| (line.below, line.start) == (last.below, last.start) && last.length <= line.length;
    wanted.starts_with(whole) && wanted.get(whole.len()).is_some_and(goes_on)
}
