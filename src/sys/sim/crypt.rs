//! Encryption on a simulated machine: a key ring that lasts until the power fails, and headers on disks.
//!
//! A header is kept beside the disks and belongs to a place: a mark on the first sector of the pool's backstore
//! says which it is. Overwrite that sector, and the header is gone. What lies behind it is not encrypted.
//!
//! Deliberately absent: unlocking. Any method opens any pool.

use std::rc::Rc;

use super::calls::SimSys;
use super::medium::UNIT_BYTES;
use super::state::{KERNEL, State};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::limits::KEYS_MAX;
use crate::model::dm::{Dm, Role};
use crate::model::ids::PoolUuid;
use crate::model::token::{KeyChange, KeyDescription, Tokens};
use crate::sys::Target;
use crate::sys::encryption::Encryption;
use crate::sys::passphrase::Passphrase;
use crate::units::Sectors;

/// First bytes of a header here; a number follows.
const HEADER_MARK: &[u8; 8] = b"sim-luks";

/// One header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    mark: u64,
    tokens: Tokens,
}

impl State {
    /// The header of a pool whose backstore is active, if there is one.
    fn header(&self, pool: PoolUuid) -> Result<Option<&Header>, Why> {
        let device = Dm::Private(pool, Role::Cache);
        let place = self.place(device)?;
        let sector = self.read(KERNEL, Target::Dm(device), Sectors::ZERO, Sectors(1))?;
        let mark = u64::from_le_bytes(sector[8..16].try_into().expect("eight bytes"));
        let marked = sector.starts_with(HEADER_MARK);
        Ok(self.headers.get(&place).filter(|header| marked && header.mark == mark))
    }

    /// What it holds.
    pub(super) fn tokens(&self, pool: PoolUuid) -> Result<Option<Tokens>, Why> {
        Ok(self.header(pool)?.map(|header| header.tokens.clone()))
    }

    /// Writes the sector that a header begins with, durably. A pool's backstore may be on a disk that is gone.
    fn engrave_header(&mut self, pool: PoolUuid, unit: &[u8; UNIT_BYTES]) -> Result<(), Why> {
        let (number, start) = self.place(Dm::Private(pool, Role::Cache))?;
        let write = self.tick();
        let disk = self.disks.get_mut(&number).ok_or(Why::Errno(libc::ENODEV))?;
        if let Some(errno) = disk.writes_fail {
            return Err(Why::Errno(errno));
        }
        disk.medium.engrave(write, start, unit);
        Ok(())
    }

    fn set_tokens(&mut self, pool: PoolUuid, tokens: Tokens) -> Result<(), Why> {
        let place = self.place(Dm::Private(pool, Role::Cache))?;
        let mark = self.tick();
        let mut unit = [0; UNIT_BYTES];
        unit[..8].copy_from_slice(HEADER_MARK);
        unit[8..16].copy_from_slice(&mark.to_le_bytes());
        self.engrave_header(pool, &unit)?;
        self.headers.insert(place, Header { mark, tokens });
        Ok(())
    }

    fn set_key(&mut self, key: &KeyDescription, passphrase: Passphrase) -> KeyChange {
        match self.keys.insert(key.clone(), Rc::new(passphrase)) {
            None => KeyChange::New,
            Some(before) if self.keys.get(key) == Some(&before) => KeyChange::Same,
            Some(_) => KeyChange::Replaced,
        }
    }
}

impl Encryption for SimSys {
    async fn set_key(&self, key: &KeyDescription, passphrase: Passphrase) -> Result<KeyChange, Failure> {
        let full = {
            let keys = &self.alive().await.keys;
            keys.len() >= KEYS_MAX && !keys.contains_key(key)
        };
        if full {
            return Err(Refusal::Full { what: "the key ring", max: KEYS_MAX }.into());
        }
        Ok(self.act("set key", key.as_str(), |state| Ok(state.set_key(key, passphrase))).await?)
    }

    async fn unset_key(&self, key: &KeyDescription) -> Result<bool, Fault> {
        self.act("unset key", key.as_str(), |state| Ok(state.keys.remove(key).is_some())).await
    }

    async fn keys(&self) -> Result<Vec<KeyDescription>, Fault> {
        self.ask("list", "keys", |state| Ok(state.keys.keys().cloned().collect())).await
    }

    async fn tokens(&self, pool: PoolUuid) -> Result<Option<Tokens>, Fault> {
        self.ask("read the encryption header of pool", pool, |state| state.tokens(pool)).await
    }

    async fn set_tokens(&self, pool: PoolUuid, tokens: &Tokens) -> Result<(), Fault> {
        self.act("write the encryption header of pool", pool, |state| state.set_tokens(pool, tokens.clone())).await
    }

    async fn reencrypt(&self, pool: PoolUuid) -> Result<(), Fault> {
        // There is no volume key, but a pool without a header could not get another one.
        let effect = |state: &mut State| state.header(pool)?.map(|_| ()).ok_or(Why::Errno(libc::EINVAL));
        self.act("replace the volume key of pool", pool, effect).await
    }

    async fn erase(&self, pool: PoolUuid) -> Result<(), Fault> {
        let effect = |state: &mut State| state.engrave_header(pool, &[0; UNIT_BYTES]);
        self.act("erase the encryption header of pool", pool, effect).await
    }
}
