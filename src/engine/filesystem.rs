//! Filesystems of a pool: what may be created, changed and destroyed.
//!
//! Life cycle of a creation: 1 `plan` (name and thin id are reserved), 2 the volume is made and
//! formatted, 3 the record is durable, 4 `commit`. A plan that is dropped before 4 gives its
//! reservation back by itself.
//!
//! Invariants: names are unique among filesystems and live reservations; a thin id is never given out
//! twice while the pool runs; only what is durable is in the table.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::engine::fill::{self, Step};
use crate::error::Refusal;
use crate::format::intent::Intent;
use crate::limits::{FILESYSTEM_SECTORS_MAX, FILESYSTEM_SECTORS_MIN, FILESYSTEMS_IN_REQUEST_MAX, THIN_ID_MAX};
use crate::model::filesystem::{FilesystemRecord, FilesystemSpec, Fill};
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::units::{Bytes, Sectors};
use crate::zoo::{Bug, planted};

/// Size of a filesystem for which no size was asked: 1 TiB.
pub const DEFAULT_SECTORS: Sectors = Sectors(2_147_483_648);

/// A filesystem that exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filesystem {
    /// What is recorded.
    pub record: FilesystemRecord,
    /// Space it takes from the pool, when last looked.
    pub used: Option<Bytes>,
    /// Being destroyed: it is still listed, but nobody may start anything with it.
    leaving: bool,
    /// Its XFS was seen to lie on all of its volume.
    whole: bool,
}

/// The filesystems of a running pool.
#[derive(Debug)]
pub struct Filesystems {
    pool: PoolUuid,
    table: BTreeMap<FsUuid, Filesystem>,
    /// On record, but their volumes could not be brought up: they hold their names and nothing more.
    lost: Vec<Name>,
    reserved: Vec<Reserved>,
    /// What growing filesystems get, for as long as somebody holds the other end.
    growing: Vec<(Weak<()>, Sectors)>,
    next_id: u32,
}

/// A name that an operation under way has to itself.
#[derive(Debug)]
struct Reserved {
    /// Whoever holds the other end has the name.
    live: Weak<()>,
    name: Name,
    /// The size of the filesystem that is being made; `None` where there is one that gets the name.
    size: Option<Sectors>,
}

/// A creation, of an empty filesystem or of a snapshot, that has a name and a thin id to itself, for as
/// long as it lives.
#[derive(Debug)]
pub struct Creation {
    /// What will be recorded.
    pub record: FilesystemRecord,
    _reservation: Rc<()>,
}

/// Another name for a filesystem, which is its own for as long as this lives.
#[derive(Debug)]
pub struct Renaming {
    /// What will be recorded.
    pub record: FilesystemRecord,
    _reservation: Rc<()>,
}

/// A filesystem that gets a larger volume. What it grows by counts against the pool's limit for as long as this
/// lives.
#[derive(Debug)]
pub struct Growing {
    /// What was recorded.
    pub before: FilesystemRecord,
    /// What will be.
    pub record: FilesystemRecord,
    _reservation: Rc<()>,
}

/// What is to be done about a filesystem that may be too full.
#[derive(Debug)]
pub enum Grow {
    /// Nothing.
    Nothing,
    /// It does not lie on all of its volume yet.
    Xfs,
    /// Its volume gets larger, and then it.
    Volume(Growing),
}

/// What asking for a filesystem comes to.
#[derive(Debug)]
pub enum Planned {
    /// It exists already, as asked.
    Exists,
    /// It is to be made.
    Create(Creation),
}

/// The pool's rules that a creation must respect.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The pool's name, for messages.
    pub pool: &'a Name,
    /// How many filesystems there may be.
    pub fs_limit: u64,
    /// What the sizes may sum up to; `None` while overprovisioning is allowed.
    pub total_limit: Option<Sectors>,
}

impl Filesystems {
    /// The filesystems that were found when the pool was set up, and the names of those that are on
    /// record and could not be brought up. Thin ids start above all of `ids_seen`, lost ones included.
    pub fn new(
        pool: PoolUuid,
        found: Vec<Filesystem>,
        lost: Vec<Name>,
        ids_seen: impl IntoIterator<Item = ThinId>,
    ) -> Self {
        let next_id = ids_seen.into_iter().map(|id| id.0 + 1).max().unwrap_or(0);
        let found_ids = found.iter().map(|filesystem| filesystem.record.thin_id.0 + 1).max().unwrap_or(0);
        let next_id = if planted(Bug::LostIdsReused) { found_ids } else { next_id };
        let table = found.into_iter().map(|filesystem| (filesystem.record.uuid, filesystem)).collect();
        Self { pool, table, lost, reserved: Vec::new(), growing: Vec::new(), next_id }
    }

    /// All of them, by UUID.
    pub fn iter(&self) -> impl Iterator<Item = &Filesystem> {
        self.table.values()
    }

    /// How many there are, lost ones included.
    pub fn count(&self) -> usize {
        self.table.len() + self.lost.len()
    }

    /// One of them, unless it is being destroyed.
    pub fn find(&self, uuid: FsUuid) -> Result<&Filesystem, Refusal> {
        match self.table.get(&uuid) {
            Some(filesystem) if filesystem.leaving => {
                Err(Refusal::FilesystemBusy { name: filesystem.record.name.clone() })
            }
            Some(filesystem) => Ok(filesystem),
            None => Err(Refusal::NoFilesystem(uuid)),
        }
    }

    /// Sum of all sizes, with what growing ones will get.
    pub fn total(&self) -> Sectors {
        let growing = self.growing.iter().filter(|(live, _)| live.strong_count() > 0).map(|(_, by)| *by);
        self.table.values().map(|filesystem| filesystem.record.size).chain(growing).sum()
    }

    /// What of the pool's limit nobody has yet; nothing if there is none.
    pub fn left_of(&self, limit: Option<Sectors>) -> Option<Sectors> {
        let live = self.reserved.iter().filter(|reserved| reserved.live.strong_count() > 0);
        let reserved: Sectors = live.filter_map(|reserved| reserved.size).sum();
        limit.map(|limit| limit.saturating_sub(self.total() + reserved))
    }

    /// Reserves a name and a thin id for a new filesystem, or finds that it exists.
    pub fn plan(
        &mut self,
        spec: &FilesystemSpec,
        rules: Rules<'_>,
        uuid: FsUuid,
        created: u64,
    ) -> Result<Planned, Refusal> {
        self.check_count(rules)?;
        let size = spec.size.unwrap_or(DEFAULT_SECTORS);
        check_size(size)?;
        if size > FILESYSTEM_SECTORS_MAX {
            return Err(Refusal::SizeLarge(size.bytes()));
        }
        spec.size_limit.map_or(Ok(()), check_size)?;
        self.check_total(rules, size)?;
        if let Some(present) = self.named(&spec.name)? {
            return compare(present, size);
        }
        if let Some(limit) = spec.size_limit.filter(|limit| *limit < size) {
            return Err(Refusal::LimitBelowSize { limit, size });
        }
        let (name, size_limit) = (spec.name.clone(), spec.size_limit);
        self.reserve(|thin_id| FilesystemRecord {
            name,
            uuid,
            thin_id,
            size,
            created,
            size_limit,
            origin: None,
            merge: false,
        })
    }

    /// Reserves a name and a thin id for a snapshot of a filesystem. A name that is taken, by whatever
    /// filesystem, is taken for the snapshot.
    pub fn plan_snapshot(
        &mut self,
        origin: FsUuid,
        name: &Name,
        rules: Rules<'_>,
        uuid: FsUuid,
        created: u64,
    ) -> Result<Planned, Refusal> {
        let origin = self.find(origin)?.record.clone();
        self.check_count(rules)?;
        self.check_total(rules, origin.size)?;
        if let Some(present) = self.named(name)? {
            return compare(present, present.record.size);
        }
        let name = name.clone();
        self.reserve(|thin_id| FilesystemRecord {
            name,
            uuid,
            thin_id,
            created,
            origin: Some(origin.uuid),
            merge: false,
            ..origin
        })
    }

    /// Whether there may be one more.
    fn check_count(&mut self, rules: Rules<'_>) -> Result<(), Refusal> {
        self.forget_dropped();
        let making = self.reserved.iter().filter(|reserved| reserved.size.is_some());
        let count = (self.count() + making.count()) as u64;
        if count >= rules.fs_limit {
            return Err(Refusal::FilesystemLimit { name: rules.pool.clone(), limit: rules.fs_limit });
        }
        Ok(())
    }

    /// Whether one of this size may come to the others.
    fn check_total(&self, rules: Rules<'_>, size: Sectors) -> Result<(), Refusal> {
        let reserved: Sectors = self.reserved.iter().filter_map(|reserved| reserved.size).sum();
        let wanted = self.total() + reserved + size;
        match rules.total_limit {
            Some(limit) if wanted > limit => Err(Refusal::Overprovisioned { name: rules.pool.clone(), limit, wanted }),
            Some(_) | None => Ok(()),
        }
    }

    /// The filesystem that has this name. One that is reserved or lost cannot be had.
    fn named(&self, wanted: &Name) -> Result<Option<&Filesystem>, Refusal> {
        if self.reserved.iter().any(|reserved| reserved.name == *wanted) {
            return Err(Refusal::FilesystemBusy { name: wanted.clone() });
        }
        if self.lost.contains(wanted) {
            return Err(Refusal::FilesystemLost { name: wanted.clone() });
        }
        Ok(self.table.values().find(|filesystem| filesystem.record.name == *wanted))
    }

    fn reserve(&mut self, record: impl FnOnce(ThinId) -> FilesystemRecord) -> Result<Planned, Refusal> {
        let record = record(self.next_thin_id()?);
        let reservation = self.hold(&record.name, Some(record.size));
        Ok(Planned::Create(Creation { record, _reservation: reservation }))
    }

    /// Keeps a name from others, for as long as what this gives lives.
    fn hold(&mut self, name: &Name, size: Option<Sectors>) -> Rc<()> {
        let reservation = Rc::new(());
        self.reserved.push(Reserved { live: Rc::downgrade(&reservation), name: name.clone(), size });
        reservation
    }

    /// Gives back what nobody holds any more.
    fn forget_dropped(&mut self) {
        self.reserved.retain(|reserved| reserved.live.strong_count() > 0);
    }

    /// The next thin id that was never given out. Public because the kernel may know an id that no
    /// record does; the creation then takes another.
    pub fn next_thin_id(&mut self) -> Result<ThinId, Refusal> {
        if self.next_id > THIN_ID_MAX {
            return Err(Refusal::ThinIds(self.pool));
        }
        self.next_id += 1;
        Ok(ThinId(self.next_id - 1))
    }

    /// Enters a filesystem whose record is durable.
    pub fn commit(&mut self, creation: Creation, used: Option<Bytes>) {
        // What was made for its volume lies on all of it, and a copy on as much as what it was made of.
        let origin = creation.record.origin.and_then(|origin| self.table.get(&origin));
        let whole = origin.is_none_or(|origin| origin.whole);
        let filesystem = Filesystem { whole, ..Filesystem::new(creation.record, used) };
        let before = self.table.insert(filesystem.record.uuid, filesystem);
        assert!(before.is_none(), "a filesystem's UUID is fresh");
    }

    /// Which of the named filesystems are to be destroyed; they are marked as leaving. Names that
    /// mean nothing here are ignored.
    pub fn plan_destroy(&mut self, named: &[FsUuid]) -> Result<Vec<FilesystemRecord>, Refusal> {
        if named.len() > FILESYSTEMS_IN_REQUEST_MAX {
            return Err(Refusal::Full { what: "the list of filesystems", max: FILESYSTEMS_IN_REQUEST_MAX });
        }
        let mut victims: Vec<FilesystemRecord> = Vec::new();
        for uuid in named {
            if self.table.contains_key(uuid) && !victims.iter().any(|victim| victim.uuid == *uuid) {
                victims.push(self.find(*uuid)?.record.clone());
            }
        }
        for victim in &victims {
            let scheduled = self.iter().any(|other| other.record.merge && other.record.origin == Some(victim.uuid));
            if victim.merge || scheduled {
                return Err(Refusal::MergeScheduled { name: victim.name.clone() });
            }
        }
        for victim in &victims {
            self.mark(victim.uuid, true);
        }
        Ok(victims)
    }

    /// A filesystem was not destroyed after all.
    pub fn keep(&mut self, uuid: FsUuid) {
        self.mark(uuid, false);
    }

    fn mark(&mut self, uuid: FsUuid, leaving: bool) {
        if let Some(filesystem) = self.table.get_mut(&uuid) {
            filesystem.leaving = leaving;
        }
    }

    /// A filesystem is gone.
    pub fn remove(&mut self, uuid: FsUuid) {
        self.table.remove(&uuid);
    }

    /// The records of snapshots that survive the destruction of their origins, see `adopted`.
    pub fn orphans(&self, destroyed: &[Intent]) -> Vec<FilesystemRecord> {
        adopted(self.iter().map(|filesystem| &filesystem.record), destroyed)
    }

    /// Reserves another name for a filesystem; `None` if it has that name.
    pub fn plan_rename(&mut self, uuid: FsUuid, name: &Name) -> Result<Option<Renaming>, Refusal> {
        let record = FilesystemRecord { name: name.clone(), ..self.find(uuid)?.record.clone() };
        if record == self.find(uuid)?.record {
            return Ok(None);
        }
        self.forget_dropped();
        if self.named(name)?.is_some() {
            return Err(Refusal::FilesystemNameTaken { name: name.clone() });
        }
        Ok(Some(Renaming { record, _reservation: self.hold(name, None) }))
    }

    /// What a filesystem's record becomes with another size limit; `None` if that is what it has.
    pub fn plan_size_limit(&self, uuid: FsUuid, limit: Option<Sectors>) -> Result<Option<FilesystemRecord>, Refusal> {
        let record = &self.find(uuid)?.record;
        if record.size_limit == limit {
            return Ok(None);
        }
        if let Some(limit) = limit {
            check_size(limit)?;
            if limit < record.size {
                return Err(Refusal::LimitBelowSize { limit, size: record.size });
            }
        }
        Ok(Some(FilesystemRecord { size_limit: limit, ..record.clone() }))
    }

    /// What a filesystem's record becomes when its merge is scheduled or cancelled.
    pub fn plan_merge(&self, uuid: FsUuid, merge: bool) -> Result<Option<FilesystemRecord>, Refusal> {
        let record = &self.find(uuid)?.record;
        let Some(origin) = record.origin else {
            return Err(Refusal::NotASnapshot { name: record.name.clone() });
        };
        if record.merge == merge {
            return Ok(None);
        }
        let conflict = |other: &&Filesystem| {
            other.record.merge
                && (other.record.uuid == origin
                    || other.record.origin == Some(origin)
                    || other.record.origin == Some(uuid))
        };
        match self.iter().find(conflict) {
            Some(other) if merge => Err(Refusal::MergeScheduled { name: other.record.name.clone() }),
            Some(_) | None => Ok(Some(FilesystemRecord { merge, ..record.clone() })),
        }
    }

    /// Whether something is to be done about a filesystem that is this full.
    pub fn needs_growth(&self, uuid: FsUuid, found: &Fill, limit: Option<Sectors>) -> bool {
        let step = |filesystem: &Filesystem| fill::step(&filesystem.record, found, self.left_of(limit));
        self.find(uuid).is_ok_and(|filesystem| step(filesystem) != Step::Nothing)
    }

    /// What is to be done about a filesystem that is this full. What it is to get is reserved. `limit` is what the
    /// sizes may sum up to.
    pub fn plan_growth(&mut self, uuid: FsUuid, found: &Fill, limit: Option<Sectors>) -> Result<Grow, Refusal> {
        let before = self.find(uuid)?.record.clone();
        let by = match fill::step(&before, found, self.left_of(limit)) {
            Step::Nothing => return Ok(Grow::Nothing),
            Step::Xfs => return Ok(Grow::Xfs),
            Step::Volume(by) => by,
        };
        let reservation = Rc::new(());
        self.growing.retain(|(live, _)| live.strong_count() > 0);
        self.growing.push((Rc::downgrade(&reservation), by));
        let record = FilesystemRecord { size: before.size + by, ..before.clone() };
        Ok(Grow::Volume(Growing { before, record, _reservation: reservation }))
    }

    /// The volume of a filesystem is as large as its durable record says.
    pub fn grown(&mut self, growing: Growing) {
        if let Some(filesystem) = self.table.get_mut(&growing.record.uuid) {
            filesystem.record.size = growing.record.size;
            filesystem.whole = false;
        }
    }

    /// Takes in how much the XFS of a filesystem lies on.
    pub fn set_whole(&mut self, uuid: FsUuid, size: Bytes) {
        if let Some(filesystem) = self.table.get_mut(&uuid) {
            filesystem.whole = fill::is_whole(&filesystem.record, size);
        }
    }

    /// Takes in how much space a filesystem takes now; true if that is news.
    pub fn set_used(&mut self, uuid: FsUuid, used: Option<Bytes>) -> bool {
        let Some(filesystem) = self.table.get_mut(&uuid) else {
            return false;
        };
        std::mem::replace(&mut filesystem.used, used) != used
    }

    /// Replaces a record by one that is durable.
    pub fn replace(&mut self, record: FilesystemRecord) {
        if let Some(filesystem) = self.table.get_mut(&record.uuid) {
            filesystem.record = record;
        }
    }
}

impl Filesystem {
    /// A filesystem with this durable record.
    pub const fn new(record: FilesystemRecord, used: Option<Bytes>) -> Self {
        Self { record, used, leaving: false, whole: false }
    }

    /// The same, whose XFS lies on so much of its volume.
    pub fn on(self, size: Option<Sectors>) -> Self {
        let whole = size.is_some_and(|size| fill::is_whole(&self.record, size.bytes()));
        Self { whole, ..self }
    }

    /// Whether its XFS may lie on less than its volume has.
    pub const fn may_follow(&self) -> bool {
        !self.leaving && !self.whole
    }

    /// Whether its volume may still become larger; `left` is what of the pool's limit nobody has yet.
    pub fn may_grow(&self, left: Option<Sectors>) -> bool {
        !self.leaving && fill::more(&self.record, left) > Sectors::ZERO
    }
}

/// The records of snapshots whose origin was destroyed, with the origin that they have from now on: the
/// destroyed one's own, or what became of that. What was destroyed itself is left out.
pub fn adopted<'a>(records: impl Iterator<Item = &'a FilesystemRecord>, destroyed: &[Intent]) -> Vec<FilesystemRecord> {
    let gone: BTreeMap<FsUuid, Option<FsUuid>> = destroyed.iter().map(|gone| (gone.uuid, gone.origin)).collect();
    let heir = |record: &FilesystemRecord| {
        let mut origin = *gone.get(&record.origin?)?;
        // Each step passes one of them; records that lead in a circle must not keep us.
        let mut left = gone.len();
        while left > 0
            && let Some(next) = origin.and_then(|uuid| gone.get(&uuid))
        {
            origin = *next;
            left -= 1;
        }
        Some(FilesystemRecord { origin, ..record.clone() })
    };
    records.filter(|record| !gone.contains_key(&record.uuid)).filter_map(heir).collect()
}

fn compare(present: &Filesystem, asked: Sectors) -> Result<Planned, Refusal> {
    let name = present.record.name.clone();
    if present.leaving {
        return Err(Refusal::FilesystemBusy { name });
    }
    if present.record.size != asked {
        return Err(Refusal::FilesystemDiffers { name, present: present.record.size, asked });
    }
    Ok(Planned::Exists)
}

fn check_size(size: Sectors) -> Result<(), Refusal> {
    if size < FILESYSTEM_SECTORS_MIN { Err(Refusal::SizeSmall(size.bytes())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text).expect("a name")
    }

    fn spec(text: &str) -> FilesystemSpec {
        FilesystemSpec { name: name(text), size: Some(FILESYSTEM_SECTORS_MIN), size_limit: None }
    }

    fn uuid(n: u8) -> FsUuid {
        FsUuid::from_random([n; 16])
    }

    struct Fixture(Filesystems, Name);

    impl Fixture {
        fn new() -> Self {
            Self(Filesystems::new(PoolUuid::from_random([0; 16]), Vec::new(), vec![name("lost")], []), name("p"))
        }

        fn plan(&mut self, spec: &FilesystemSpec, n: u8) -> Result<Planned, Refusal> {
            let rules = Rules { pool: &self.1, fs_limit: 4, total_limit: None };
            self.0.plan(spec, rules, uuid(n), 7)
        }

        fn plan_snapshot(&mut self, text: &str, n: u8, origin: u8) -> Result<Planned, Refusal> {
            let rules = Rules { pool: &self.1, fs_limit: 4, total_limit: None };
            self.0.plan_snapshot(uuid(origin), &name(text), rules, uuid(n), 8)
        }

        fn create(&mut self, text: &str, n: u8) {
            match self.plan(&spec(text), n) {
                Ok(Planned::Create(creation)) => self.0.commit(creation, None),
                other => panic!("{other:?}"),
            }
        }

        fn snapshot(&mut self, text: &str, n: u8, origin: u8) {
            let rules = Rules { pool: &self.1, fs_limit: 9, total_limit: None };
            match self.0.plan_snapshot(uuid(origin), &name(text), rules, uuid(n), 8) {
                Ok(Planned::Create(creation)) => self.0.commit(creation, None),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_name_is_given_to_one_and_kept_from_others_until_then() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        pool.create("b", 2);
        let rename = |pool: &mut Fixture, n: u8, text: &str| pool.0.plan_rename(uuid(n), &name(text));
        assert!(matches!(rename(&mut pool, 1, "a"), Ok(None)));
        assert!(matches!(rename(&mut pool, 1, "b"), Err(Refusal::FilesystemNameTaken { .. })));
        assert!(matches!(rename(&mut pool, 1, "lost"), Err(Refusal::FilesystemLost { .. })));
        assert!(matches!(rename(&mut pool, 9, "c"), Err(Refusal::NoFilesystem(_))));
        let renaming = rename(&mut pool, 1, "c").expect("free").expect("another name");
        assert!(matches!(pool.plan(&spec("c"), 3), Err(Refusal::FilesystemBusy { .. })));
        assert!(matches!(rename(&mut pool, 2, "c"), Err(Refusal::FilesystemBusy { .. })));
        let last = pool.plan(&spec("d"), 3).expect("a filesystem that gets another name is not one more");
        drop((last, renaming));
        let Renaming { record, .. } = rename(&mut pool, 2, "c").expect("given back").expect("another name");
        let before = &pool.0.find(uuid(2)).expect("it is there").record;
        assert_eq!((before.name.as_str(), record.name.as_str()), ("b", "c"));
        assert_eq!(&FilesystemRecord { name: before.name.clone(), ..record }, before, "nothing else changes");
    }

    #[test]
    fn a_dropped_plan_gives_its_name_back_but_not_its_thin_id() {
        let mut pool = Fixture::new();
        let plan = pool.plan(&spec("a"), 1).expect("planned");
        assert!(matches!(pool.plan(&spec("a"), 2), Err(Refusal::FilesystemBusy { .. })));
        drop(plan);
        match pool.plan(&spec("a"), 2).expect("planned") {
            Planned::Create(creation) => assert_eq!(creation.record.thin_id, ThinId(1)),
            Planned::Exists => panic!("it was never committed"),
        }
    }

    #[test]
    fn a_lost_filesystem_keeps_its_name_and_its_thin_id() {
        let lost = Fixture::new().plan(&spec("lost"), 1).expect_err("the name is on record");
        assert_eq!(lost, Refusal::FilesystemLost { name: name("lost") });
        let pool = PoolUuid::from_random([1; 16]);
        let mut filesystems = Filesystems::new(pool, Vec::new(), vec![name("lost")], [ThinId(7)]);
        assert_eq!(filesystems.next_thin_id(), Ok(ThinId(8)));
    }

    #[test]
    fn an_existing_filesystem_is_compared_by_size_and_counts_against_the_limit() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        assert!(matches!(pool.plan(&spec("a"), 2), Ok(Planned::Exists)));
        let larger = FilesystemSpec { size: Some(Sectors(FILESYSTEM_SECTORS_MIN.0 * 2)), ..spec("a") };
        assert!(matches!(pool.plan(&larger, 2), Err(Refusal::FilesystemDiffers { .. })));
        pool.create("b", 2);
        pool.create("c", 3);
        assert!(matches!(pool.plan(&spec("a"), 4), Err(Refusal::FilesystemLimit { limit: 4, .. })));
    }

    #[test]
    fn sizes_and_limits_are_checked() {
        let mut pool = Fixture::new();
        let small = FilesystemSpec { size: Some(Sectors(8)), ..spec("a") };
        assert_eq!(pool.plan(&small, 1).expect_err("small"), Refusal::SizeSmall(Bytes(4096)));
        let large = Sectors(FILESYSTEM_SECTORS_MAX.0 + 1);
        let asked = FilesystemSpec { size: Some(large), ..spec("a") };
        assert_eq!(pool.plan(&asked, 1).expect_err("large"), Refusal::SizeLarge(large.bytes()));
        let limited =
            FilesystemSpec { size: Some(Sectors(4_000_000)), size_limit: Some(Sectors(3_000_000)), ..spec("a") };
        assert!(matches!(pool.plan(&limited, 1), Err(Refusal::LimitBelowSize { .. })));
    }

    #[test]
    fn a_snapshot_has_the_sizes_of_its_origin_and_counts_as_one_more() {
        let mut pool = Fixture::new();
        let limited = FilesystemSpec { size_limit: Some(Sectors(4_000_000)), ..spec("a") };
        match pool.plan(&limited, 1).expect("planned") {
            Planned::Create(creation) => pool.0.commit(creation, None),
            Planned::Exists => panic!("it is new"),
        }
        let merging = FilesystemRecord { merge: true, ..pool.0.find(uuid(1)).expect("just made").record.clone() };
        pool.0.replace(merging.clone());
        let Ok(Planned::Create(creation)) = pool.plan_snapshot("s", 2, 1) else { panic!("it can be made") };
        let expected = FilesystemRecord {
            name: name("s"),
            uuid: uuid(2),
            thin_id: ThinId(1),
            created: 8,
            origin: Some(uuid(1)),
            merge: false,
            ..merging
        };
        assert_eq!(creation.record, expected);
        assert!(matches!(pool.plan_snapshot("s", 3, 1), Err(Refusal::FilesystemBusy { .. })));
        pool.0.commit(creation, None);
        pool.create("c", 3);
        assert!(matches!(pool.plan_snapshot("t", 4, 2), Err(Refusal::FilesystemLimit { limit: 4, .. })));
    }

    #[test]
    fn a_name_that_is_taken_is_the_snapshots_whatever_has_it() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        let larger = FilesystemSpec { size: Some(Sectors(4_000_000)), ..spec("b") };
        match pool.plan(&larger, 2).expect("planned") {
            Planned::Create(creation) => pool.0.commit(creation, None),
            Planned::Exists => panic!("it is new"),
        }
        for taken in ["a", "b"] {
            assert!(matches!(pool.plan_snapshot(taken, 3, 1), Ok(Planned::Exists)));
        }
        assert!(matches!(pool.plan_snapshot("lost", 3, 1), Err(Refusal::FilesystemLost { .. })));
        assert!(matches!(pool.plan_snapshot("s", 3, 9), Err(Refusal::NoFilesystem(_))));
        pool.0.plan_destroy(&[uuid(1)]).expect("planned");
        for (taken, origin) in [("s", 1), ("a", 2)] {
            assert!(matches!(pool.plan_snapshot(taken, 3, origin), Err(Refusal::FilesystemBusy { .. })), "it leaves");
        }
    }

    #[test]
    fn a_snapshot_counts_with_its_whole_size_while_overprovisioning_is_off() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        let (all, of_pool) = (FILESYSTEM_SECTORS_MIN.0 * 2, name("p"));
        let rules = |limit| Rules { pool: &of_pool, fs_limit: 9, total_limit: Some(Sectors(limit)) };
        let refused = pool.0.plan_snapshot(uuid(1), &name("s"), rules(all - 1), uuid(2), 8);
        assert!(matches!(refused, Err(Refusal::Overprovisioned { .. })));
        let _kept = pool.0.plan_snapshot(uuid(1), &name("s"), rules(all), uuid(2), 8).expect("it fits");
        let refused = pool.0.plan_snapshot(uuid(1), &name("t"), rules(all), uuid(3), 8);
        assert!(matches!(refused, Err(Refusal::Overprovisioned { .. })), "what is reserved counts");
    }

    #[test]
    fn survivors_get_the_next_origin_that_is_left() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        pool.snapshot("b", 2, 1);
        pool.snapshot("c", 3, 2);
        pool.snapshot("d", 4, 3);
        let origins = |pool: &Fixture, gone: &[u8]| -> Vec<(FsUuid, Option<FsUuid>)> {
            let record = |n: &u8| Intent::of(&pool.0.table[&uuid(*n)].record);
            let gone: Vec<Intent> = gone.iter().map(record).collect();
            pool.0.orphans(&gone).into_iter().map(|record| (record.uuid, record.origin)).collect()
        };
        assert_eq!(origins(&pool, &[1]), [(uuid(2), None)]);
        assert_eq!(origins(&pool, &[2]), [(uuid(3), Some(uuid(1)))]);
        assert_eq!(origins(&pool, &[3, 2]), [(uuid(4), Some(uuid(1)))], "in whatever order, and only what survives");
        assert_eq!(origins(&pool, &[1, 2, 3]), [(uuid(4), None)]);
        assert_eq!(origins(&pool, &[4]), []);
        // No daemon writes such records.
        let circle = FilesystemRecord { origin: Some(uuid(3)), ..pool.0.table[&uuid(2)].record.clone() };
        pool.0.replace(circle);
        assert_eq!(origins(&pool, &[2, 3]).len(), 1);
    }

    #[test]
    fn what_a_growing_filesystem_gets_is_nobody_elses() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        pool.create("b", 2);
        let (size, of_pool) = (FILESYSTEM_SECTORS_MIN, name("p"));
        let limit = Sectors(size.0 * 3 + size.0 / 2);
        let full = Fill { size: size.bytes(), total: size.bytes(), used: size.bytes() };
        let Ok(Grow::Volume(growing)) = pool.0.plan_growth(uuid(1), &full, Some(limit)) else { panic!("it is full") };
        assert_eq!((growing.before.size, growing.record.size), (size, Sectors(size.0 * 2)));
        let rules = Rules { pool: &of_pool, fs_limit: 9, total_limit: Some(limit) };
        let refused = pool.0.plan(&spec("c"), rules, uuid(3), 7);
        assert!(matches!(refused, Err(Refusal::Overprovisioned { .. })), "{refused:?}");
        let Ok(Grow::Volume(rest)) = pool.0.plan_growth(uuid(2), &full, Some(limit)) else { panic!("some is left") };
        assert_eq!(rest.record.size, Sectors(size.0 + size.0 / 2));
        drop(rest);
        pool.0.grown(growing);
        assert_eq!(pool.0.total(), Sectors(size.0 * 3), "it has it, and what was dropped is free");
        let behind = pool.0.plan_growth(uuid(1), &full, Some(limit));
        assert!(matches!(behind, Ok(Grow::Xfs)), "its XFS has the old size: {behind:?}");
        pool.0.plan_destroy(&[uuid(2)]).expect("planned");
        assert!(pool.0.plan_growth(uuid(2), &full, None).is_err(), "it leaves");
    }

    #[test]
    fn destroying_marks_and_keeping_unmarks() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        let victims = pool.0.plan_destroy(&[uuid(1), uuid(1), uuid(9)]).expect("planned");
        assert_eq!(victims.len(), 1);
        assert!(matches!(pool.0.plan_destroy(&[uuid(1)]), Err(Refusal::FilesystemBusy { .. })));
        assert!(matches!(pool.plan(&spec("a"), 2), Err(Refusal::FilesystemBusy { .. })));
        pool.0.keep(uuid(1));
        assert!(pool.0.find(uuid(1)).is_ok());
    }

    #[test]
    fn a_scheduled_merge_protects_both_sides() {
        let mut pool = Fixture::new();
        pool.create("a", 1);
        pool.snapshot("s", 2, 1);
        pool.snapshot("t", 3, 1);
        assert!(matches!(pool.0.plan_merge(uuid(1), true), Err(Refusal::NotASnapshot { .. })));
        assert!(matches!(pool.0.plan_merge(uuid(1), false), Err(Refusal::NotASnapshot { .. })));
        let merged = pool.0.plan_merge(uuid(2), true).expect("allowed").expect("a change");
        pool.0.replace(merged);
        assert!(matches!(pool.0.plan_merge(uuid(3), true), Err(Refusal::MergeScheduled { .. })));
        assert!(matches!(pool.0.plan_destroy(&[uuid(1)]), Err(Refusal::MergeScheduled { .. })));
        assert!(matches!(pool.0.plan_destroy(&[uuid(2)]), Err(Refusal::MergeScheduled { .. })));
        assert!(pool.0.plan_destroy(&[uuid(3)]).is_ok());
    }
}
