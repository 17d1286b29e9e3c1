//! A running pool: what is on record, on which devices, and what clients see of it.
//!
//! Invariants: the state holds only what was committed; a reservation lives outside of it and gives
//! itself back (`filesystem`). Every record is newer than the one before it, also when the clock
//! stands behind. Availability only goes down.
//!
//! Deliberately absent: I/O and time. What a save must write is computed here, who writes it and
//! whether that worked is told.

use std::collections::BTreeMap;

use crate::engine::encryption;
use crate::engine::filesystem::{Filesystem, Filesystems, Rules};
use crate::engine::gather::features;
use crate::engine::grow::{self, Backed, Ground, Need, Pace, Shape};
use crate::engine::limit::{self, Terms};
use crate::engine::mark::Speed;
use crate::engine::size;
use crate::engine::space::Space;
use crate::engine::tier::{self, Tiers};
use crate::engine::token;
use crate::error::Refusal;
use crate::format::header::{MARKS, MDA_SECTORS, RESERVED_SECTORS, StaticHeader};
use crate::format::mda::WallStamp;
use crate::format::record::{self, PoolRecord, Segment};
use crate::model::device::{Candidate, DeviceNumber, DeviceView, Tier};
use crate::model::dm::{Table, ThinFeature, ThinPoolMode, ThinPoolState};
use crate::model::filesystem::FilesystemView;
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::{Availability, MetadataVersion, PoolView, StoppedDevice, StoppedPoolView};
use crate::model::token::{Encryption, TokenChange, Tokens};
use crate::units::{Bytes, Sectors};
use crate::zoo::{Bug, planted};

/// A device of the pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Where it is.
    pub candidate: Candidate,
    /// Its signature.
    pub header: StaticHeader,
    /// The pair of regions that the next save overwrites: 0 or 1.
    pub older: usize,
    /// The last save that it was to get has not reached it whole: others do not wait for it.
    pub bad: bool,
}

impl Member {
    /// A device that becomes one of a pool of this version. `flags` say of what kind of beginning it is a part.
    pub const fn new(
        candidate: Candidate,
        (pool, version): (PoolUuid, MetadataVersion),
        device: DevUuid,
        flags: u64,
        initialized: u64,
    ) -> Self {
        let header = StaticHeader {
            size: candidate.size,
            version,
            pool,
            device,
            mda_size: MDA_SECTORS,
            reserved: RESERVED_SECTORS,
            flags,
            initialized,
        };
        Self { candidate, header, older: 0, bad: false }
    }
}

/// Which device has which number: what tables are made of.
pub fn numbers(members: &[Member]) -> BTreeMap<DevUuid, DeviceNumber> {
    members.iter().map(|member| (member.header.device, member.candidate.number)).collect()
}

/// The version of the metadata of a pool: that of all its devices.
///
/// # Panics
/// Of no devices.
pub fn version(members: &[Member]) -> MetadataVersion {
    members[0].header.version
}

/// How large which device is, as its signature says.
pub fn sizes(members: &[Member]) -> BTreeMap<DevUuid, Sectors> {
    members.iter().map(|member| (member.header.device, member.header.size)).collect()
}

/// A running pool.
#[derive(Debug)]
pub struct Pool {
    uuid: PoolUuid,
    name: Name,
    record: PoolRecord,
    members: Vec<Member>,
    last_save: Option<WallStamp>,
    availability: Availability,
    thin_pool: ThinPoolMode,
    backed: Backed,
    speed: Speed,
    /// What the header of its encryption layer holds: there, exactly if the record says that there is one.
    tokens: Option<Tokens>,
    /// Its filesystems.
    pub filesystems: Filesystems,
}

/// One save: the same bytes for every device of the data tier.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Save {
    /// The record.
    pub json: Vec<u8>,
    /// Its time.
    pub time: WallStamp,
    /// The devices; each says itself which pair of regions is to be overwritten.
    pub places: Vec<Member>,
}

impl Pool {
    /// A pool with everything that a new or found one has.
    pub fn new(
        uuid: PoolUuid,
        name: Name,
        record: PoolRecord,
        members: Vec<Member>,
        last_save: Option<WallStamp>,
        filesystems: Filesystems,
    ) -> Self {
        let (availability, thin_pool) = (Availability::Full, ThinPoolMode::ReadWrite);
        let backed = Backed::all(&record);
        let (speed, tokens) = (Speed::default(), None);
        Self { uuid, name, record, members, last_save, availability, thin_pool, backed, speed, tokens, filesystems }
    }

    /// Its name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// What is, or is about to be, on record.
    pub const fn record(&self) -> &PoolRecord {
        &self.record
    }

    /// Its devices, in the order of the record.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The version of its metadata: that of all its devices.
    pub fn version(&self) -> MetadataVersion {
        version(&self.members)
    }

    /// Its devices by tier, and the rules for more.
    pub fn tiers(&self) -> Tiers<'_> {
        Tiers { pool: &self.name, record: &self.record, members: &self.members }
    }

    /// What may be done with it.
    pub const fn availability(&self) -> Availability {
        self.availability
    }

    /// Whether the pool's own record may change at all.
    pub const fn check_changes(&self) -> Result<(), Refusal> {
        match self.availability {
            Availability::Full | Availability::NoRequests => Ok(()),
            Availability::NoPoolChanges => {
                Err(Refusal::PoolUnavailable { pool: self.uuid, availability: self.availability })
            }
        }
    }

    /// Whether its thin pool, as far as was heard, takes another volume.
    pub fn check_metadata_space(&self) -> Result<(), Refusal> {
        match self.thin_pool {
            ThinPoolMode::OutOfMetadataSpace => Err(Refusal::MetadataFull { name: self.name.clone() }),
            ThinPoolMode::ReadWrite | ThinPoolMode::OutOfDataSpace | ThinPoolMode::ReadOnly | ThinPoolMode::Failed => {
                Ok(())
            }
        }
    }

    /// Lowers the availability, and shows the pool as it then is.
    pub fn degrade(&mut self, to: Availability) -> PoolView {
        if planted(Bug::AvailabilityNotKept) {
            return PoolView { availability: to, ..self.view() };
        }
        self.availability = self.availability.max(to);
        self.view()
    }

    /// Takes in what its thin pool does now, so many microseconds after the time before. Gives the modes before and
    /// now, if that is a change.
    pub fn thin_pool_seen(&mut self, state: ThinPoolState, elapsed_us: u64) -> Option<(ThinPoolMode, ThinPoolMode)> {
        self.speed.seen(state.data_used, elapsed_us);
        let before = std::mem::replace(&mut self.thin_pool, state.mode);
        (before != state.mode).then_some((before, state.mode))
    }

    /// What a filesystem creation must respect.
    pub fn rules(&self) -> (Name, u64, Option<Sectors>) {
        let limit = self.fs_limit();
        let total = (!self.record.overprovisioning()).then(|| self.data_limit());
        (self.name.clone(), limit, total)
    }

    /// How many filesystems there may be.
    pub fn fs_limit(&self) -> u64 {
        self.record.fs_limit(self.filesystems.count() as u64)
    }

    /// What filesystems may have together while overprovisioning is off.
    fn data_limit(&self) -> Sectors {
        let metadata: Sectors = self.record.flex_devs.thin_meta_dev.iter().sum();
        size::for_data(self.usable(), metadata)
    }

    /// Sectors of the data tier that can be handed out at all.
    fn usable(&self) -> Sectors {
        grow::usable(&self.record, &sizes(&self.members))
    }

    fn data_members(&self) -> impl Iterator<Item = &Member> {
        let data = &self.record.backstore.data_tier.blockdev.devs;
        self.members.iter().filter(|member| data.iter().any(|device| device.uuid == member.header.device))
    }

    /// Sectors that are in no hands yet.
    fn free(&self) -> Sectors {
        let handed: Sectors = self.record.backstore.cap.allocs.iter().sum();
        self.usable().saturating_sub(handed)
    }

    // ---- growth ---------------------------------------------------------------------------------

    fn ground(&self, pace: Pace) -> Ground<'_> {
        let terms = (self.fs_limit(), self.filesystems.total());
        Ground::new(&self.record, &sizes(&self.members), terms, pace).at(self.speed)
    }

    /// For a pool that was just laid out: enters what it gets next, and tells the first table of its thin pool,
    /// which does not have that yet.
    pub fn lay_ahead(&mut self, pace: Pace) -> Table {
        let fresh = self.ground(pace).at_start(None);
        // What was there before is for nobody: this record was never saved.
        let _nothing = self.enter_next(&grow::unused(&self.record, fresh), pace);
        self.set_backed();
        self.ground(pace).at_start(Some(fresh.blocks)).table(&self.record)
    }

    /// What its thin pool needs, which is so.
    pub fn need(&self, state: &ThinPoolState, pace: Pace) -> Need {
        let ground = self.ground(pace);
        let shape = ground.shape(state, self.backed);
        if shape != Shape::of(state) || Ground::is_behind(state, self.backed) {
            Need::Swap(shape.table(&self.record))
        } else if self.backed != Backed::all(&self.record) || ground.next(state, shape).is_some() {
            Need::Next
        } else {
            Need::Nothing
        }
    }

    /// What it gets next is wanted, and is on its way.
    pub fn ask_next(&mut self) {
        self.speed.ask();
    }

    /// Enters what it gets next. Gives back what was on record before, or `None` if all is there.
    pub fn enter_next(&mut self, state: &ThinPoolState, pace: Pace) -> Option<Space> {
        let granted = {
            let ground = self.ground(pace);
            let next = ground.next(state, ground.shape(state, self.backed))?;
            ground.grant(next)
        };
        Some(granted.enter(&mut self.record))
    }

    /// What is on record is durable, and in the tables below the thin pool.
    pub fn set_backed(&mut self) {
        self.backed = Backed::all(&self.record);
        self.speed.arrived();
    }

    // ---- changes --------------------------------------------------------------------------------

    /// Whether the pool's record says that it is to be set up when found; true if that was a change.
    pub fn set_started(&mut self, started: bool) -> bool {
        let before = self.record.started.replace(started);
        before != Some(started)
    }

    /// Marks the record as that of a pool that is being destroyed. A daemon that does not know the
    /// mark sees a stopped pool, and takes the mark away when it starts it. Gives back `started` as it
    /// was.
    pub const fn set_destroying(&mut self) -> Option<bool> {
        self.record.destroying = true;
        self.record.started.replace(false)
    }

    /// Takes the mark away again, because no device got it.
    pub const fn unset_destroying(&mut self, started: Option<bool>) {
        self.record.destroying = false;
        self.record.started = started;
    }

    /// Enters another name into the record. Gives back what was on record before.
    pub fn record_name(&mut self, name: &Name) -> String {
        std::mem::replace(&mut self.record.name, name.as_str().to_owned())
    }

    /// Puts back what was on record before, because the name could not be saved.
    pub fn unrecord_name(&mut self, before: String) {
        self.record.name = before;
    }

    /// The name on record is durable: from now on it is the pool's.
    pub fn set_name(&mut self, name: Name) {
        self.name = name;
    }

    /// The signature of a device with another size is durable: from now on the pool has that much of it.
    pub fn grow_device(&mut self, device: DevUuid, size: Sectors) {
        let found = self.members.iter_mut().find(|member| member.header.device == device);
        let member = found.expect("a device that grows is the pool's");
        (member.header.size, member.candidate.size) = (size, size);
    }

    /// Enters devices into the record. Nothing is given out of them before they `join`.
    pub fn enter(&mut self, tier: Tier, members: &[Member]) -> Result<(), Refusal> {
        self.record = self.tiers().join(tier, members)?;
        Ok(())
    }

    /// The record that lists these devices is durable: from now on they are the pool's.
    pub fn join(&mut self, members: Vec<Member>) {
        self.members.extend(members);
    }

    /// Takes devices out again, of the record and of the pool. Nothing was given out of them.
    pub fn part(&mut self, members: &[Member]) {
        let parting: Vec<DevUuid> = members.iter().map(|member| member.header.device).collect();
        self.members.retain(|member| !parting.contains(&member.header.device));
        tier::part(&mut self.record, &parting);
    }

    /// Enters more room for an integrity layer at the end of a device that has grown. Gives back what was kept before.
    pub fn keep_room(&mut self, device: DevUuid) -> Result<Vec<Segment>, Refusal> {
        let size = self.members.iter().find(|member| member.header.device == device).map(|member| member.header.size);
        let grown = self.tiers().grow(device, size.expect("a device that grows is the pool's"))?;
        let before = std::mem::replace(&mut self.record, grown);
        let devices = before.backstore.data_tier.blockdev.devs.into_iter();
        let of_device = devices.filter(|listed| listed.uuid == device);
        Ok(of_device.flat_map(|listed| listed.integrity_meta_allocs).collect())
    }

    /// Puts back what was kept before, because the room could not be saved.
    pub fn unkeep_room(&mut self, device: DevUuid, before: Vec<Segment>) {
        let devices = &mut self.record.backstore.data_tier.blockdev.devs;
        let listed = devices.iter_mut().find(|listed| listed.uuid == device);
        listed.expect("a data device is on record").integrity_meta_allocs = before;
    }

    /// What the thin pool's metadata was repaired into is its metadata, and what it was repaired from is the spare.
    pub const fn swap_thin_meta(&mut self) {
        let flex = &mut self.record.flex_devs;
        std::mem::swap(&mut flex.thin_meta_dev, &mut flex.thin_meta_dev_spare);
    }

    /// The kernel reports a size of a device; true if it is another one than before. What the pool uses of
    /// the device stays as it is.
    pub fn device_resized(&mut self, device: DeviceNumber, size: Sectors) -> bool {
        let found = self.members.iter_mut().find(|member| member.candidate.number == device);
        found.is_some_and(|member| std::mem::replace(&mut member.candidate.size, size) != size)
    }

    // ---- encryption -------------------------------------------------------------------------------

    /// Its encryption, if it has any.
    pub fn encryption(&self) -> Option<Encryption> {
        let tokens = self.tokens.clone()?;
        Some(Encryption { tokens, reencrypted: self.record.last_reencrypt })
    }

    /// Whether there is room for an encryption header below it.
    pub fn encryptable(&self) -> Result<(), Refusal> {
        match self.version() {
            MetadataVersion::V1 => Err(Refusal::NotEncryptable { name: self.name.clone() }),
            MetadataVersion::V2 => Ok(()),
        }
    }

    /// What a change of its unlock mechanisms comes to; `None` where nothing changes.
    pub fn plan_tokens(&self, change: &TokenChange) -> Result<Option<Tokens>, Refusal> {
        let name = self.name.clone();
        let tokens = self.tokens.as_ref().ok_or(Refusal::Unencrypted { name })?;
        Ok(token::apply(tokens, change)?)
    }

    /// The header holds these now. True if the record says something else than before.
    pub fn set_tokens(&mut self, tokens: Tokens) -> bool {
        let changed = encryption::enter(&mut self.record, &tokens);
        self.tokens = Some(tokens);
        changed
    }

    /// The pool is a plain one from now on.
    pub fn decrypt(&mut self) {
        encryption::leave(&mut self.record);
        self.tokens = None;
    }

    /// Undoes `decrypt`.
    pub fn undecrypt(&mut self, before: Encryption) {
        self.set_tokens(before.tokens);
        self.record.last_reencrypt = before.reencrypted;
    }

    /// The pool got a new volume key. Gives back when that was the last time.
    pub const fn set_reencrypted(&mut self, seconds: Option<u64>) -> Option<u64> {
        std::mem::replace(&mut self.record.last_reencrypt, seconds)
    }

    /// Allows or forbids overprovisioning. Gives back what was on record before, or `None` if nothing
    /// changed.
    pub fn set_overprovisioning(&mut self, allowed: bool) -> Result<Option<Option<bool>>, Refusal> {
        if self.record.overprovisioning() == allowed {
            return Ok(None);
        }
        let (limit, wanted) = (self.data_limit(), self.filesystems.total());
        if !allowed && wanted > limit {
            return Err(Refusal::Overprovisioned { name: self.name.clone(), limit, wanted });
        }
        Ok(Some(self.record.thinpool_dev.enable_overprov.replace(allowed)))
    }

    /// Puts back what was on record before, because the change could not be saved.
    pub const fn unset_overprovisioning(&mut self, before: Option<bool>) {
        self.record.thinpool_dev.enable_overprov = before;
    }

    /// Enters the metadata that a higher limit of filesystems needs; `mdv` is the size of the metadata
    /// volume. Gives back what was on record before, or `None` if there is enough already.
    pub fn make_room(&mut self, limit: u64, mdv: Bytes) -> Result<Option<Space>, Refusal> {
        let terms = Terms {
            pool: &self.name,
            sizes: sizes(&self.members),
            usable: self.usable(),
            limit: self.fs_limit(),
            total: self.filesystems.total(),
            records: limit::records(mdv),
        };
        limit::make_room(&mut self.record, limit, &terms)
    }

    /// Puts back what was on record before, because what was entered could not be saved.
    pub fn unmake_room(&mut self, before: Space) {
        before.restore(&mut self.record);
    }

    /// Changes how many filesystems there may be. Gives back what was on record before.
    pub const fn set_fs_limit(&mut self, limit: u64) -> Option<u64> {
        self.record.thinpool_dev.fs_limit.replace(limit)
    }

    /// Puts back what was on record before, because the change could not be saved.
    pub const fn unset_fs_limit(&mut self, before: Option<u64>) {
        self.record.thinpool_dev.fs_limit = before;
    }

    /// Changes the user's tag on a device. Gives back the tag before, or `None` if nothing changed.
    pub fn set_user_info(&mut self, device: DevUuid, info: Option<&str>) -> Option<Option<String>> {
        let tier = &mut self.record.backstore;
        let cache = tier.cache_tier.iter_mut().flat_map(|tier| &mut tier.blockdev.devs);
        let mut devices = tier.data_tier.blockdev.devs.iter_mut().chain(cache);
        let found = devices.find(|found| found.uuid == device)?;
        if found.user_info.as_deref() == info {
            return None;
        }
        Some(std::mem::replace(&mut found.user_info, info.map(str::to_owned)))
    }

    /// Whether the pool has this device.
    pub fn has_device(&self, device: DevUuid) -> bool {
        self.record.devices().any(|found| found.uuid == device)
    }

    // ---- saving ---------------------------------------------------------------------------------

    /// The next save. Its time is taken even if the save then fails, so no two records share one.
    pub fn next_save(&mut self, now: WallStamp) -> Save {
        let time = WallStamp::next(now, self.last_save);
        self.last_save = Some(time);
        let places = self.data_members().cloned().collect();
        Save { json: record::encode(&self.record), time, places }
    }

    /// Takes the marks of a beginning off the devices that carry one, and says which those are.
    pub fn clear_marks(&mut self) -> Vec<(DeviceNumber, StaticHeader)> {
        let marked = self.members.iter_mut().filter(|member| member.header.flags & MARKS != 0);
        let clear = |member: &mut Member| {
            member.header.flags &= !MARKS;
            (member.candidate.number, member.header)
        };
        marked.map(clear).collect()
    }

    /// Takes in how a save ended on one device: whether a region holds it, and whether all went well. True if the
    /// one before had ended otherwise.
    pub fn saved(&mut self, device: DevUuid, durable: bool, well: bool) -> bool {
        let found = self.members.iter_mut().find(|member| member.header.device == device);
        let member = found.expect("a save goes to members only");
        if durable {
            member.older = 1 - member.older;
        }
        std::mem::replace(&mut member.bad, !well) == well
    }

    // ---- what clients see -----------------------------------------------------------------------

    /// The pool as clients see it.
    pub fn view(&self) -> PoolView {
        let total: Sectors = self.data_members().map(|member| member.header.size).sum();
        PoolView {
            uuid: self.uuid,
            name: self.name.clone(),
            availability: self.availability,
            version: self.version(),
            has_cache: self.tiers().has_cache(),
            physical_size: total.bytes(),
            physical_used: self.physical_used(total),
            allocated: (total - self.free().min(total)).bytes(),
            no_alloc_space: self.record.thin_features().contains(&ThinFeature::ErrorIfNoSpace),
            fs_limit: self.fs_limit(),
            overprovisioning: self.record.overprovisioning(),
            encryption: self.encryption(),
        }
    }

    /// Everything that is allocated, less what of the thin pool's data is not in use. Unknown as long
    /// as one filesystem's share is.
    fn physical_used(&self, total: Sectors) -> Option<Bytes> {
        let data: Sectors = self.record.flex_devs.thin_data_dev.iter().sum();
        let fixed = (total - self.free().min(total)).saturating_sub(data).bytes();
        let used = self.filesystems.iter().map(|filesystem| filesystem.used.map(|bytes| bytes.0));
        let used: u128 = used.sum::<Option<u128>>()?;
        Some(Bytes(fixed.0 + used))
    }

    /// A filesystem as clients see it; `devnode` says where it is found.
    pub fn filesystem_view(&self, filesystem: &Filesystem, devnode: String) -> FilesystemView {
        FilesystemView { pool: self.uuid, record: filesystem.record.clone(), devnode, used: filesystem.used }
    }

    /// Every device as clients see it, data tier first.
    pub fn device_views(&self) -> Vec<DeviceView> {
        let views = self.record.devices().filter_map(|device| {
            let member = self.members.iter().find(|member| member.header.device == device.uuid)?;
            let path = member.candidate.path.to_string();
            let actual = member.candidate.size;
            Some(DeviceView {
                pool: self.uuid,
                uuid: device.uuid,
                devnode: path.clone(),
                physical_path: path,
                initialized: member.header.initialized,
                hardware: device.hardware_info.clone(),
                user_info: device.user_info.clone(),
                tier: self.tiers().of(device.uuid),
                size: member.header.size,
                new_size: (actual != member.header.size).then_some(actual),
                blocks: member.candidate.blocks,
            })
        });
        views.collect()
    }

    /// The pool as clients see it once it is stopped.
    pub fn stopped_view(&self) -> StoppedPoolView {
        let device = |member: &Member| StoppedDevice {
            uuid: member.header.device,
            devnode: member.candidate.path.to_string(),
            number: member.candidate.number,
        };
        StoppedPoolView {
            uuid: self.uuid,
            name: Some(self.name.clone()),
            devices: self.members.iter().map(device).collect(),
            version: Some(self.version()),
            features: Some(features(&self.record)),
            tokens: self.tokens.clone(),
        }
    }

    /// The numbers of all devices.
    pub fn numbers(&self) -> Vec<DeviceNumber> {
        self.members.iter().map(|member| member.candidate.number).collect()
    }
}

/// Ties `Pool::rules` to the shape that `Filesystems::plan` takes.
pub fn rules(parts: &(Name, u64, Option<Sectors>)) -> Rules<'_> {
    Rules { pool: &parts.0, fs_limit: parts.1, total_limit: parts.2 }
}
