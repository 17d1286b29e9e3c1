//! Claims of names and devices: what must be unique over all shards.
//!
//! A shard claims before it acts and commits or releases afterwards. Invariants: a name is held by
//! at most one pool; a device is held by at most one pool; a claim is granted whole or not at all.
//! A stopped pool holds its devices but no name, because several stopped pools may share one.
//!
//! Deliberately absent: anything about pools but these two things, and any knowledge of D-Bus.

use std::collections::BTreeMap;

use crate::message::{Claim, Claimable, Claimed, Taken};
use crate::model::device::{DeviceNumber, DevicePath, Tier};
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
    devices: BTreeMap<DeviceNumber, (DevicePath, Tier)>,
    stage: Stage,
    more: Option<More>,
}

/// What a pool that runs has taken beside what it holds, until that is real or given back.
#[derive(Debug)]
struct More {
    /// Replaces the one that the pool has.
    name: Option<Name>,
    devices: Vec<Claimable>,
}

/// All claims. Bounded by the pools and devices that exist.
#[derive(Debug, Default)]
pub struct Directory {
    holdings: BTreeMap<PoolUuid, Holding>,
    names: BTreeMap<Name, PoolUuid>,
    devices: BTreeMap<DeviceNumber, PoolUuid>,
}

impl Directory {
    /// Carries out one claim; only `Take` and `TakeMore` have an answer.
    pub fn handle(&mut self, claim: Claim) -> Option<Claimed> {
        match claim {
            Claim::Take { pool, name, devices } => {
                let outcome = self.take(pool, name, devices);
                return Some(Claimed { pool, outcome });
            }
            Claim::TakeMore { pool, name, devices } => {
                let outcome = self.take_more(pool, name, devices);
                return Some(Claimed { pool, outcome });
            }
            Claim::Commit(pool) => self.commit(pool),
            Claim::GiveBack(pool) => self.give_back(pool),
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

    fn take(&mut self, pool: PoolUuid, name: Option<Name>, devices: Vec<Claimable>) -> Result<(), Taken> {
        self.check(pool, name.as_ref(), &devices)?;
        // Everything is free or ours: what we held before is replaced by what is asked for now.
        self.release(pool);
        self.enter(pool, name.as_ref(), &devices);
        let devices = devices.into_iter().map(held).collect();
        self.holdings.insert(pool, Holding { name, devices, stage: Stage::Claimed, more: None });
        Ok(())
    }

    fn take_more(&mut self, pool: PoolUuid, name: Option<Name>, mut devices: Vec<Claimable>) -> Result<(), Taken> {
        self.check(pool, name.as_ref(), &devices)?;
        let holding = self.holdings.get_mut(&pool).expect("a pool that runs holds its name and devices");
        assert!(holding.more.is_none(), "a pool takes more when what it took before is real or given back");
        // What it holds already must not be given back with the rest.
        let name = name.filter(|name| holding.name.as_ref() != Some(name));
        devices.retain(|(number, ..)| !holding.devices.contains_key(number));
        holding.more = Some(More { name: name.clone(), devices: devices.clone() });
        self.enter(pool, name.as_ref(), &devices);
        Ok(())
    }

    fn commit(&mut self, pool: PoolUuid) {
        let holding = self.holdings.get_mut(&pool).expect("only a granted claim is committed");
        holding.stage = Stage::Committed;
        let Some(More { name, devices }) = holding.more.take() else {
            return;
        };
        holding.devices.extend(devices.into_iter().map(held));
        if let Some(name) = name
            && let Some(before) = holding.name.replace(name)
        {
            self.names.remove(&before);
        }
    }

    fn give_back(&mut self, pool: PoolUuid) {
        let more = self.holdings.get_mut(&pool).and_then(|holding| holding.more.take());
        let Some(More { name, devices }) = more else {
            return;
        };
        if let Some(name) = &name {
            self.names.remove(name);
        }
        for (number, ..) in &devices {
            self.devices.remove(number);
        }
    }

    /// Whether nobody else holds any of these.
    fn check(&self, pool: PoolUuid, name: Option<&Name>, devices: &[Claimable]) -> Result<(), Taken> {
        if let Some(name) = name {
            self.check_name(pool, name)?;
        }
        for (number, path, _) in devices {
            match self.devices.get(number) {
                Some(holder) if *holder != pool => {
                    return Err(Taken::Device { path: path.clone(), holder: *holder });
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn enter(&mut self, pool: PoolUuid, name: Option<&Name>, devices: &[Claimable]) {
        self.devices.extend(devices.iter().map(|(number, ..)| (*number, pool)));
        self.names.extend(name.map(|name| (name.clone(), pool)));
    }

    fn check_name(&self, pool: PoolUuid, name: &Name) -> Result<(), Taken> {
        let Some(holder) = self.names.get(name).copied().filter(|holder| *holder != pool) else {
            return Ok(());
        };
        let holding = self.holdings.get(&holder).expect("a name is held by a holding");
        match holding.stage {
            Stage::Claimed => Err(Taken::NameBusy),
            // It is the name that the pool will have.
            Stage::Committed if holding.name.as_ref() != Some(name) => Err(Taken::NameBusy),
            Stage::Committed => {
                let data = holding.devices.iter().filter(|(_, (_, tier))| *tier == Tier::Data);
                let devices = data.map(|(number, (path, _))| (*number, path.clone())).collect();
                Err(Taken::Name { holder, devices })
            }
        }
    }

    fn release(&mut self, pool: PoolUuid) {
        self.give_back(pool);
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

fn held((number, path, tier): Claimable) -> (DeviceNumber, (DevicePath, Tier)) {
    (number, (path, tier))
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

    fn claimable(n: u64, tier: Tier) -> Claimable {
        let (number, path) = device(n);
        (number, path, tier)
    }

    fn take(directory: &mut Directory, n: u8, name: &str, devices: &[u64]) -> Result<(), Taken> {
        let name = Some(Name::try_from(name).expect("a name"));
        let devices = devices.iter().map(|n| claimable(*n, Tier::Data)).collect();
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

    fn more(directory: &mut Directory, n: u8, name: Option<&str>, devices: &[u64]) -> Result<(), Taken> {
        let name = name.map(|name| Name::try_from(name).expect("a name"));
        // Odd ones are for a cache.
        let tier = |n: &u64| if n.is_multiple_of(2) { Tier::Data } else { Tier::Cache };
        let devices = devices.iter().map(|n| claimable(*n, tier(n))).collect();
        directory.handle(Claim::TakeMore { pool: pool(n), name, devices }).expect("a take is answered").outcome
    }

    /// Pool 1 runs with name `p` and device 1, pool 2 with `q` and 2.
    fn two_running() -> Directory {
        let mut directory = Directory::default();
        for (n, name) in [(1, "p"), (2, "q")] {
            assert_eq!(take(&mut directory, n, name, &[n.into()]), Ok(()));
            directory.handle(Claim::Commit(pool(n)));
        }
        directory
    }

    #[test]
    fn another_name_is_held_beside_the_old_one_until_it_is_real() {
        let mut directory = two_running();
        assert!(matches!(more(&mut directory, 1, Some("q"), &[]), Err(Taken::Name { .. })));
        assert_eq!(more(&mut directory, 1, Some("r"), &[]), Ok(()));
        assert_eq!(take(&mut directory, 3, "r", &[3]), Err(Taken::NameBusy));
        assert!(matches!(take(&mut directory, 3, "p", &[3]), Err(Taken::Name { .. })));
        directory.handle(Claim::GiveBack(pool(1)));
        assert_eq!(more(&mut directory, 2, Some("r"), &[]), Ok(()), "it was given back");
        directory.handle(Claim::Commit(pool(2)));
        assert_eq!(take(&mut directory, 3, "q", &[3]), Ok(()), "nobody has the old name");
        let taken = take(&mut directory, 4, "r", &[4]);
        assert_eq!(taken, Err(Taken::Name { holder: pool(2), devices: vec![device(2)] }));
        assert!(matches!(more(&mut directory, 2, Some("p"), &[]), Err(Taken::Name { .. })), "pool 1 has kept its name");
    }

    #[test]
    fn more_devices_are_the_pools_once_they_are_real() {
        let mut directory = two_running();
        let taken = more(&mut directory, 1, None, &[3, 2]);
        assert_eq!(taken, Err(Taken::Device { path: device(2).1, holder: pool(2) }));
        assert_eq!(more(&mut directory, 1, None, &[1, 3]), Ok(()));
        assert!(more(&mut directory, 2, None, &[3]).is_err());
        directory.handle(Claim::GiveBack(pool(1)));
        assert!(more(&mut directory, 2, None, &[1]).is_err(), "what the pool held before is not given back");
        assert_eq!(more(&mut directory, 1, None, &[3, 4]), Ok(()));
        directory.handle(Claim::Commit(pool(1)));
        directory.handle(Claim::GiveBack(pool(1)));
        let taken = take(&mut directory, 3, "p", &[5]);
        let data = vec![device(1), device(4)];
        assert_eq!(taken, Err(Taken::Name { holder: pool(1), devices: data }), "those of a cache are not compared");
        assert!(take(&mut directory, 3, "r", &[3]).is_err());
        directory.handle(Claim::Release(pool(1)));
        assert_eq!(take(&mut directory, 3, "p", &[1, 3, 4]), Ok(()));
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
