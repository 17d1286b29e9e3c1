//! What must be so at every moment, whatever is under way: looked at before each action of the machine.
//!
//! That no two tables lie on one sector, that nothing mounted is written to and that no two writes to one place are
//! under way at once the machine sees to itself (`Machine::bugs`).
//!
//! Deliberately absent: what is so only when nothing is under way (`sound`).

use std::collections::{BTreeMap, BTreeSet};

use stratisd::format::{filesystem, intent};
use stratisd::model::dm::{Below, Dm, Table};
use stratisd::model::ids::PoolUuid;
use stratisd::sys::Folder;
use stratisd::sys::sim::Machine;
use stratisd::units::Sectors;

use crate::sound::{Disk, durable};

/// Looks at a machine again and again.
#[derive(Default)]
pub(crate) struct Always {
    /// The tables that were looked at last.
    tables: BTreeMap<Dm, Table>,
}

impl Always {
    /// What is wrong now.
    pub(crate) fn broken(&mut self, machine: &Machine) -> Option<String> {
        let tables = machine.tables();
        let pools: BTreeSet<PoolUuid> = tables.keys().map(|device| device.pool()).collect();
        let ids = pools.iter().find_map(|pool| one_volume_for_two(machine, *pool));
        if tables == self.tables {
            return ids;
        }
        let ahead = ahead_of_record(machine, &tables);
        self.tables = tables;
        ids.or(ahead)
    }
}

/// An intent names a volume that is on record for another filesystem. While a revert goes on it does so: which of the
/// two it is for is decided by the record of the copy.
fn one_volume_for_two(machine: &Machine, pool: PoolUuid) -> Option<String> {
    let files = machine.files(pool, Folder::Intents)?;
    let content = |folder, file: &str| machine.file(pool, folder, file);
    let intents: Vec<_> = files.iter().filter_map(|file| intent::decode(&content(Folder::Intents, file)?)).collect();
    if intents.is_empty() || intents.iter().any(|intent| intent.replaces.is_some()) {
        return None;
    }
    let files = machine.files(pool, Folder::Filesystems)?;
    let records: Vec<_> =
        files.iter().filter_map(|file| filesystem::decode(&content(Folder::Filesystems, file)?).ok()).collect();
    intents.iter().find_map(|intent| {
        let other = records.iter().find(|record| record.thin_id == intent.thin_id && record.uuid != intent.uuid)?;
        Some(format!("thin volume {} is noted for {} and on record for {}", intent.thin_id, intent.uuid, other.uuid))
    })
}

/// A table has sectors of a disk that the newest durable record of its pool does not list. A pool that is being made
/// has no record yet.
fn ahead_of_record(machine: &Machine, tables: &BTreeMap<Dm, Table>) -> Option<String> {
    let disks = Disk::all(machine);
    for (device, table) in tables {
        let Table::Linear(lines) = table else { continue };
        let Some(listed) = durable(machine, &disks, device.pool()) else { continue };
        for line in lines {
            let Below::Device(number) = line.below else { continue };
            let own = listed.iter().filter(|(of, ..)| *of == number).map(|(_, start, length)| (*start, *length));
            if !covered(own.collect(), line.start, line.length) {
                return Some(format!("{device} has sectors that are not durably on record, from {}", line.start));
            }
        }
    }
    None
}

/// Whether these pieces, which may touch, make up all of it.
fn covered(mut pieces: Vec<(Sectors, Sectors)>, start: Sectors, length: Sectors) -> bool {
    pieces.sort_unstable();
    let (mut at, end) = (start, start + length);
    for (piece, length) in pieces {
        if piece <= at {
            at = at.max(piece + length);
        }
    }
    at >= end
}
