//! Claims of names and devices: what must be unique over all shards.
//!
//! A shard claims before it acts and commits or releases afterwards. Invariants: a name is held by
//! at most one pool; a device is held by at most one pool; a claim is granted whole or not at all.
//! A stopped pool holds its devices but no name, because several stopped pools may share one.
//!
//! Deliberately absent: anything about pools but these two things, and any knowledge of D-Bus.

use std::collections::BTreeMap;

use crate::message::{Claim, Claimed, Taken};
use crate::model::device::{DeviceNumber, DevicePath};
use crate::model::ids::PoolUuid;
use crate::model::name::Name;

/// How far a holder has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Being created, started or stopped.
    Claimed,
    /// Real.
    Committed,
}

#[derive(Debug)]
struct Holding {
    name: Option<Name>,
    devices: BTreeMap<DeviceNumber, DevicePath>,
    stage: Stage,
}

/// All claims. Bounded by the pools and devices that exist.
#[derive(Debug, Default)]
pub struct Directory {
    holdings: BTreeMap<PoolUuid, Holding>,
    names: BTreeMap<Name, PoolUuid>,
    devices: BTreeMap<DeviceNumber, PoolUuid>,
}

impl Directory {
    /// Carries out one claim; only `Take` has an answer.
    pub fn handle(&mut self, claim: Claim) -> Option<Claimed> {
        match claim {
            Claim::Take { pool, name, devices } => {
                let outcome = self.take(pool, name, devices);
                return Some(Claimed { pool, outcome });
            }
            Claim::Commit(pool) => {
                let holding = self.holdings.get_mut(&pool).expect("only a granted claim is committed");
                holding.stage = Stage::Committed;
            }
            Claim::ReleaseName(pool) => {
                if let Some(name) = self.holdings.get_mut(&pool).and_then(|holding| holding.name.take()) {
                    self.names.remove(&name);
                }
            }
            Claim::ReleaseDevice(pool, device) => {
                let held = self.holdings.get_mut(&pool).and_then(|holding| holding.devices.remove(&device));
                if held.is_some() {
                    self.devices.remove(&device);
                }
            }
            Claim::Release(pool) => self.release(pool),
        }
        None
    }

    fn take(
        &mut self,
        pool: PoolUuid,
        name: Option<Name>,
        devices: Vec<(DeviceNumber, DevicePath)>,
    ) -> Result<(), Taken> {
        if let Some(name) = &name {
            self.check_name(pool, name)?;
        }
        for (number, path) in &devices {
            match self.devices.get(number) {
                Some(holder) if *holder != pool => {
                    return Err(Taken::Device { path: path.clone(), holder: *holder });
                }
                Some(_) | None => {}
            }
        }
        // Everything is free or ours: what we held before is replaced by what is asked for now.
        self.release(pool);
        self.devices.extend(devices.iter().map(|(number, _)| (*number, pool)));
        self.names.extend(name.iter().map(|name| (name.clone(), pool)));
        let devices = devices.into_iter().collect();
        self.holdings.insert(pool, Holding { name, devices, stage: Stage::Claimed });
        Ok(())
    }

    fn check_name(&self, pool: PoolUuid, name: &Name) -> Result<(), Taken> {
        let Some(holder) = self.names.get(name).copied().filter(|holder| *holder != pool) else {
            return Ok(());
        };
        let holding = self.holdings.get(&holder).expect("a name is held by a holding");
        match holding.stage {
            Stage::Claimed => Err(Taken::NameBusy),
            Stage::Committed => {
                let devices = holding.devices.iter().map(|(number, path)| (*number, path.clone())).collect();
                Err(Taken::Name { holder, devices })
            }
        }
    }

    fn release(&mut self, pool: PoolUuid) {
        let Some(holding) = self.holdings.remove(&pool) else {
            return;
        };
        if let Some(name) = holding.name {
            self.names.remove(&name);
        }
        for number in holding.devices.keys() {
            self.devices.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(n: u8) -> PoolUuid {
        PoolUuid::from_random([n; 16])
    }

    fn device(n: u64) -> (DeviceNumber, DevicePath) {
        (DeviceNumber(n, 0), DevicePath::try_from(&*format!("/dev/{n}")).expect("absolute"))
    }

    fn take(directory: &mut Directory, n: u8, name: &str, devices: &[u64]) -> Result<(), Taken> {
        let name = Some(Name::try_from(name).expect("a name"));
        let devices = devices.iter().map(|n| device(*n)).collect();
        directory.handle(Claim::Take { pool: pool(n), name, devices }).expect("a take is answered").outcome
    }

    #[test]
    fn one_of_two_creations_with_one_name_wins() {
        let mut directory = Directory::default();
        assert_eq!(take(&mut directory, 1, "p", &[1]), Ok(()));
        assert_eq!(take(&mut directory, 2, "p", &[2]), Err(Taken::NameBusy));
        directory.handle(Claim::Commit(pool(1)));
        let taken = take(&mut directory, 2, "p", &[2]);
        assert_eq!(taken, Err(Taken::Name { holder: pool(1), devices: vec![device(1)] }));
    }

    #[test]
    fn a_refused_claim_takes_nothing() {
        let mut directory = Directory::default();
        assert_eq!(take(&mut directory, 1, "p", &[1]), Ok(()));
        let taken = take(&mut directory, 2, "q", &[2, 1]);
        assert_eq!(taken, Err(Taken::Device { path: device(1).1, holder: pool(1) }));
        assert_eq!(take(&mut directory, 3, "q", &[2]), Ok(()));
    }

    #[test]
    fn a_stopped_pool_keeps_its_devices_and_gives_back_its_name() {
        let mut directory = Directory::default();
        assert_eq!(take(&mut directory, 1, "p", &[1]), Ok(()));
        directory.handle(Claim::Commit(pool(1)));
        directory.handle(Claim::ReleaseName(pool(1)));
        assert_eq!(take(&mut directory, 2, "p", &[2]), Ok(()));
        assert!(take(&mut directory, 3, "r", &[1]).is_err());
        assert_eq!(take(&mut directory, 1, "s", &[1, 4]), Ok(()), "a pool may take again what it holds");
        directory.handle(Claim::ReleaseDevice(pool(3), device(4).0));
        assert!(take(&mut directory, 3, "r", &[4]).is_err(), "nobody gives back what another pool holds");
        directory.handle(Claim::ReleaseDevice(pool(1), device(4).0));
        assert_eq!(take(&mut directory, 4, "t", &[4]), Ok(()));
        directory.handle(Claim::Release(pool(1)));
        assert_eq!(take(&mut directory, 3, "r", &[1]), Ok(()));
    }
}
