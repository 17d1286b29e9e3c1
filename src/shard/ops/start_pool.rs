//! Starting a pool: on request, and at the start of the daemon.
//!
//! Commit point: a record that says `started` is durable. Until then a start after a power failure
//! finds a stopped pool; taking the stack up again and again changes nothing. A pool that is started without its
//! cache has none from the moment on at which that is durable, which is before its stack is taken up.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::{Filesystem, Filesystems};
use crate::engine::gather::{Read, Ready, Verdict, Worn, judge, judge_without_cache};
use crate::engine::pool::{Member, Pool};
use crate::engine::stack as tables;
use crate::engine::tier::Tiers;
use crate::error::{Failure, Fault, Refusal, Why};
use crate::format::header::{FLAG_JOINING, StaticHeader};
use crate::format::record::PoolRecord;
use crate::message::{Answer, Claim, View};
use crate::model::device::{Candidate, DeviceNumber, Occupant};
use crate::model::dm::{Dm, Role, Table};
use crate::model::filesystem::FilesystemRecord;
use crate::model::ids::{FsUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::Availability;
use crate::shard::ops::extend::Extension;
use crate::shard::ops::records::Records;
use crate::shard::ops::save::{self, Saver};
use crate::shard::ops::{
    Outcome, add_devices, adopted, backstop, create_pool, encryption, gather, headers, heal, intents, records, revert,
    stack, thin_meta,
};
use crate::shard::wait::all;
use crate::shard::{Running, Shard, news};
use crate::sys::{Kind, Opening, Sys, Target, patience};
use crate::units::{Bytes, Sectors};
use crate::zoo::{Bug, planted};

/// Starts a stopped pool.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, unlock: bool, remove_cache: bool) -> Outcome {
    if let Some(running) = shard.running(pool) {
        let plain = running.pool.borrow().encryption().is_none();
        return if unlock && plain { Err(Refusal::NotEncrypted { pool }.into()) } else { Ok(Answer::Identity) };
    }
    if !shard.gathered.borrow().contains_key(&pool) {
        return Err(Refusal::NoPool(pool).into());
    }
    rt::stage("read metadata");
    // They stay known: a client may try again.
    let devices = gather::read(shard, pool, |_| {}).await?;
    let verdict = if remove_cache { judge_without_cache(pool, &devices) } else { judge(pool, &devices) };
    let outcome = match verdict {
        Verdict::Ready(ready) => fit(pool, ready, unlock).map_err(Failure::from),
        Verdict::Unfit(refusal) => Err(refusal.into()),
        Verdict::HalfMade | Verdict::Destroying => Err(Refusal::NoMetadata { pool, devices: devices.len() }.into()),
    };
    let outcome = match outcome {
        Ok(ready) => start(shard, pool, *ready).await,
        Err(failure) => Err(failure),
    };
    if outcome.is_err() {
        gather::close(shard, &devices).await;
    }
    outcome
}

/// Whether what was asked for fits what the pool is.
fn fit(pool: PoolUuid, ready: Box<Ready>, unlock: bool) -> Result<Box<Ready>, Refusal> {
    match (ready.record.is_encrypted(), unlock) {
        (true, true) | (false, false) => {}
        (true, false) => return Err(Refusal::Locked { pool }),
        (false, true) => return Err(Refusal::NotEncrypted { pool }),
    }
    Ok(ready)
}

/// Claims the name, sets the pool up, makes that durable and shows it.
pub async fn start<S: Sys>(shard: &Rc<Shard<S>>, pool: PoolUuid, ready: Ready) -> Outcome {
    of_our_kind(shard, pool, &ready)?;
    rt::stage("claim");
    claim(shard, pool, &ready).await?;
    match set_up(shard, pool, ready).await {
        Ok((running, adopted)) => Ok(commit(shard, running, adopted).await),
        Err(failure) => {
            rt::stage("unwind");
            if let Err(fault) = stack::all_down(&shard.sys, pool).await {
                log::error!("a start could not be taken back whole (pool={pool}): {fault}");
            }
            shard.claim(Claim::ReleaseName(pool));
            Err(failure)
        }
    }
}

/// A pool on regular files and one on real devices must not be taken for each other.
fn of_our_kind<S: Sys>(shard: &Shard<S>, pool: PoolUuid, ready: &Ready) -> Result<(), Refusal> {
    match (shard.sys.kind(), ready.record.files) {
        (Kind::Files, true) | (Kind::Kernel | Kind::Sim, false) => {}
        (Kind::Files, false) => {
            return Err(Refusal::OtherKind { pool, made: "on block devices", started: "with --files" });
        }
        (Kind::Kernel | Kind::Sim, true) => {
            return Err(Refusal::OtherKind { pool, made: "with --files", started: "without it" });
        }
    }
    if ready.record.is_encrypted() {
        shard.sys.encryption()?;
    }
    if ready.record.backstore.cache_tier.is_some() {
        add_devices::caches_work(shard.sys.kind())?;
    }
    // A plain device of an unlocked volume looks like that of a plain pool, and is not ours to lock again.
    match ready.members.iter().find(|member| member.candidate.occupant == Occupant::Unlocked) {
        Some(member) => Err(Refusal::Version1Encrypted { pool, path: member.candidate.path.clone() }),
        None => Ok(()),
    }
}

/// Whether a pool that is found comes up by itself: as its record says, unless it is encrypted and nobody has
/// unlocked it. A daemon before this one may have; then its stack is up.
pub async fn comes_up<S: Sys>(shard: &Shard<S>, pool: PoolUuid, record: &PoolRecord) -> Result<bool, Fault> {
    let unlocked = !record.is_encrypted() || shard.sys.active(pool).await?.contains(&Dm::Private(pool, Role::ThinPool));
    Ok(record.started() && (unlocked || planted(Bug::LockedComesUp)))
}

async fn claim<S: Sys>(shard: &Shard<S>, pool: PoolUuid, ready: &Ready) -> Result<(), Refusal> {
    let tiers = Tiers { pool: &ready.name, record: &ready.record, members: &ready.members };
    let devices = tiers.places();
    let claim = Claim::Take { pool, name: Some(ready.name.clone()), devices };
    shard.take(claim).await.map_err(|taken| taken.refusal(&ready.name))
}

/// Gives the pool, and the filesystems of it that a daemon before this one has left active.
async fn set_up<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    ready: Ready,
) -> Result<(Running, BTreeSet<FsUuid>), Failure> {
    let Ready { name, record, time, members, strangers, left_over, dropped, worn } = ready;
    for member in &members {
        shard.sys.open(&member.candidate, Opening::Member).await?;
    }
    for stranger in &strangers {
        log::warn!(
            "a device with the pool's signature is not one of its devices (pool={pool} device={})",
            stranger.path
        );
    }
    let none = Filesystems::new(pool, Vec::new(), Vec::new(), []);
    let engine = Pool::new(pool, name.clone(), record, members, Some(time), none);
    let (saver, extension) = (Saver::default(), Extension::default());
    let running = Running { uuid: pool, pool: engine.into(), saver, extension };
    let numbers = running.pool.borrow().numbers();
    flush(shard, pool, numbers).await?;
    if let Some(dropped) = &dropped {
        leave_cache(shard, &running, dropped).await?;
    }
    rt::stage("stack");
    let before = shard.sys.active(pool).await?;
    thin_meta::up(shard, &running, before.contains(&Dm::Private(pool, Role::ThinPool))).await?;
    let tokens = encryption::header(shard, &running).await?;
    rt::stage("metadata volume");
    shard.sys.mdv_mount(pool).await?;
    let mut found = records::read_all(&shard.sys, pool).await?;
    let (adopted, strays) = volumes_of(&before, &found);
    clear_volumes(shard, pool, &strays).await;
    let mut seen = intents::recover(&shard.sys, pool, &mut found).await?;
    seen.extend(found.good.iter().map(|record| record.thin_id));
    let copied = revert::run(shard, pool, &mut found, &mut seen, &adopted).await?;
    if copied || !strays.is_empty() {
        // What comes up next gets the numbers of volumes that have gone, and a udev that is late takes the one for the
        // other: it gives the new one its links, and takes them away again when it hears that the old one has gone.
        shard.sys.settle(pool).await;
    }
    rt::stage("filesystems");
    let (filesystems, lost) = volumes_up(shard, (pool, &name), found.good, &adopted).await;
    let changed = {
        let mut engine = running.pool.borrow_mut();
        engine.filesystems = Filesystems::new(pool, filesystems, lost, seen);
        // A change of the header may have been cut off before the record told of it.
        let told_anew = tokens.is_some_and(|tokens| engine.set_tokens(tokens));
        engine.set_started(true) || told_anew
    };
    if changed && !planted(Bug::StartNotSaved) {
        save::durable(shard, &running).await?;
    }
    make_good(shard, &running, &worn).await;
    create_pool::clear_marks(shard, &running).await;
    let dropped = dropped.into_iter().flatten().map(|member| member.candidate);
    let leaving: Vec<Candidate> = left_over.into_iter().chain(dropped).collect();
    wipe_left_over(shard, pool, &leaving).await;
    // Nobody waits for udev's first look at so many volumes; who takes them down does.
    limit_if_uneven(&running);
    Ok((running, adopted))
}

/// What was read may be in the caches of disks only, as a daemon that died left it. No table is made of that, and no
/// client is shown it.
pub async fn flush<S: Sys>(shard: &Shard<S>, pool: PoolUuid, numbers: Vec<DeviceNumber>) -> Result<(), Fault> {
    let total = numbers.len();
    // One that hangs holds up no other.
    let flush = |number| patience::in_time(shard.sys.flush(vec![Target::Device(number)]));
    let flushed = all(numbers.into_iter().map(flush)).await;
    if flushed.into_iter().flatten().flatten().any(|outcome| outcome.is_ok()) {
        return Ok(());
    }
    let why = Why::NoDevice { total };
    Err(Fault::new("flush the record of", format!("pool {pool}"), why))
}

/// A pool whose next sectors are on a device with larger blocks gets no changes.
fn limit_if_uneven(running: &Running) {
    let coarse = running.pool.borrow().tiers().too_coarse().cloned();
    if let Some(Candidate { path, blocks, .. }) = coarse {
        let (logical, physical) = (blocks.logical, blocks.physical);
        log::error!(
            "a pool gets no changes: nothing lies on one of its devices yet, and that has larger blocks than the \
             others (pool={} device={path} logical={logical} physical={physical})",
            running.uuid
        );
        running.pool.borrow_mut().degrade(Availability::NoPoolChanges);
    }
}

/// Makes good what is damaged or behind of the copies that devices hold. It is no reason to refuse the pool that
/// this fails, because it was no reason before.
async fn make_good<S: Sys>(shard: &Shard<S>, running: &Running, worn: &Worn) {
    if *worn == Worn::default() || planted(Bug::BadCopyStays) {
        return;
    }
    rt::stage("repair copies");
    log::warn!("damaged or old copies of metadata are made good (pool={} {worn:?})", running.uuid);
    // One that hangs is left alone.
    let signed = |member: &&Member| !member.bad && worn.signatures.contains(&member.header.device);
    let headers: Vec<_> = {
        let pool = running.pool.borrow();
        pool.members().iter().filter(signed).map(|member| (member.candidate.number, member.header)).collect()
    };
    if let Err(fault) = headers::sign(&shard.sys, &headers).await {
        log::warn!("a damaged signature stays (pool={}): {fault}", running.uuid);
    }
    for _ in 0..worn.saves {
        if let Err(fault) = save::durable(shard, running).await {
            log::warn!("old copies of the record stay (pool={}): {fault}", running.uuid);
        }
    }
}

/// Leaves the cache behind, before anything is written that it would not hear of: a record that still had it would have
/// it used again as it is.
async fn leave_cache<S: Sys>(shard: &Shard<S>, running: &Running, dropped: &[Member]) -> Result<(), Fault> {
    rt::stage("leave cache");
    // What a stop that failed half-way has left lies on the cache.
    stack::all_down(&shard.sys, running.uuid).await?;
    for member in dropped {
        mark_leaving(shard, member).await;
    }
    save::durable(shard, running).await
}

/// A device that leaves the pool says so before the record does: whatever is cut off then, the next start wipes
/// those that the record does not list. One that cannot be written to stays as it is: the pool is started without
/// it because it has failed.
async fn mark_leaving<S: Sys>(shard: &Shard<S>, member: &Member) {
    let header = StaticHeader { flags: member.header.flags | FLAG_JOINING, ..member.header };
    let marked: Result<(), Failure> = async {
        shard.sys.open(&member.candidate, Opening::Member).await?;
        Ok(headers::sign(&shard.sys, &[(member.candidate.number, header)]).await?)
    }
    .await;
    if let Err(failure) = marked {
        log::warn!("a device of a cache leaves its pool without a word (device={}): {failure}", member.candidate.path);
    }
}

/// Wipes devices that were joining or leaving the pool when that was cut off. One that stays as it is is tried
/// again by the next start.
async fn wipe_left_over<S: Sys>(shard: &Shard<S>, pool: PoolUuid, devices: &[Candidate]) {
    for device in devices.iter().filter(|_| !planted(Bug::LeftOverStays)) {
        log::warn!("a device is wiped that was joining or leaving the pool (pool={pool} device={})", device.path);
        let wiped: Result<(), Failure> = async {
            shard.sys.open(device, Opening::Member).await?;
            Ok(headers::wipe(&shard.sys, &[device.number]).await?)
        }
        .await;
        if let Err(failure) = &wiped {
            log::error!("a device that was to be wiped is not (pool={pool} device={}): {failure}", device.path);
        }
        shard.sys.close(device.number, wiped.is_ok()).await;
    }
}

/// Of the devices that a daemon before this one has left active: the volumes of filesystems, and those that no record
/// names.
fn volumes_of(before: &[Dm], found: &Records) -> (BTreeSet<FsUuid>, BTreeSet<FsUuid>) {
    let recorded: BTreeSet<FsUuid> = found.good.iter().map(|record| record.uuid).collect();
    let volume = |device: &Dm| match device {
        Dm::Thin(_, uuid) => Some(*uuid),
        Dm::Private(..) => None,
    };
    before.iter().filter_map(volume).partition(|uuid| recorded.contains(uuid))
}

/// Takes down active volumes that no record names: what a daemon that died was making or destroying. One that somebody
/// uses stays.
async fn clear_volumes<S: Sys>(shard: &Shard<S>, pool: PoolUuid, strays: &BTreeSet<FsUuid>) {
    for uuid in strays {
        if let Err(fault) = shard.sys.deactivate(&[Dm::Thin(pool, *uuid)]).await {
            log::warn!("a volume without a record stays (pool={pool} filesystem={uuid}): {fault}");
        }
    }
}

/// Activates the volume of each filesystem, those that a daemon before this one has left active among them. One that
/// cannot be is logged and left out; its record stays, and so its name is taken.
async fn volumes_up<S: Sys>(
    shard: &Shard<S>,
    (pool, of_pool): (PoolUuid, &Name),
    found: Vec<FilesystemRecord>,
    adopted: &BTreeSet<FsUuid>,
) -> (Vec<Filesystem>, Vec<Name>) {
    let volumes: Vec<(Dm, Table)> =
        found.iter().map(|record| (Dm::Thin(pool, record.uuid), tables::thin(record))).collect();
    let told = tell_ahead(shard, (pool, of_pool), &found, adopted).await;
    // All in one batch; only when that fails is each one looked at by itself.
    let together = shard.sys.activate(&volumes).await.is_ok();
    let (mut up, mut lost) = (Vec::with_capacity(found.len()), Vec::new());
    let leave_out = |record: &FilesystemRecord, fault: Fault| {
        log::error!("a filesystem is left out (pool={pool} filesystem={}): {fault}", record.uuid);
        record.name.clone()
    };
    for (mut record, volume) in found.into_iter().zip(volumes) {
        let outcome = match together {
            true => Ok(()),
            false => volume_up(shard, pool, &mut record, volume).await,
        };
        match outcome {
            Ok(()) => up.push(record),
            Err(fault) => lost.push(leave_out(&record, fault)),
        }
    }
    // A volume that was active has its recorded length, and nothing on it can be longer.
    let fresh: Vec<FsUuid> = up.iter().map(|record| record.uuid).filter(|uuid| !adopted.contains(uuid)).collect();
    let sizes: BTreeMap<FsUuid, Sectors> = heal::sizes(&shard.sys, pool, &fresh).await;
    let mut whole = Vec::with_capacity(up.len());
    for mut record in up {
        let size = sizes.get(&record.uuid).copied();
        match heal::started(&shard.sys, pool, &mut record, size).await {
            Ok(()) => whole.push(record),
            Err(fault) => lost.push(leave_out(&record, fault)),
        }
    }
    let untold = whole.iter().filter(|record| !adopted.contains(&record.uuid) && !told.contains(&record.uuid));
    let untold: Vec<_> = untold.map(|record| (record.uuid, &record.name, record.thin_id)).collect();
    shard.sys.announce_each((pool, of_pool), &untold).await;
    let uuids: Vec<FsUuid> = whole.iter().map(|record| record.uuid).collect();
    let used = shard.sys.thin_used_each(pool, &uuids).await;
    let filesystem = |(record, used): (FilesystemRecord, Option<Bytes>)| {
        let size = sizes.get(&record.uuid).copied();
        Filesystem::new(record, used).on(size)
    };
    (whole.into_iter().zip(used).map(filesystem).collect(), lost)
}

/// Makes the names of filesystems known whose volumes are not active yet; gives those that need no more than that.
async fn tell_ahead<S: Sys>(
    shard: &Shard<S>,
    of_pool: (PoolUuid, &Name),
    found: &[FilesystemRecord],
    adopted: &BTreeSet<FsUuid>,
) -> BTreeSet<FsUuid> {
    let fresh = found.iter().filter(|record| !adopted.contains(&record.uuid));
    let fresh: Vec<(FsUuid, &Name)> = fresh.map(|record| (record.uuid, &record.name)).collect();
    if fresh.is_empty() {
        return BTreeSet::new();
    }
    let suffices = shard.sys.announce_ahead(of_pool, &fresh).await;
    fresh.into_iter().zip(suffices).filter(|(_, suffices)| *suffices).map(|((uuid, _), _)| uuid).collect()
}

/// Activates one volume.
async fn volume_up<S: Sys>(
    shard: &Shard<S>,
    pool: PoolUuid,
    record: &mut FilesystemRecord,
    volume: (Dm, Table),
) -> Result<(), Fault> {
    match shard.sys.activate(&[volume]).await {
        Ok(()) => Ok(()),
        Err(fault) => heal::active(&shard.sys, pool, record, fault).await,
    }
}

async fn commit<S: Sys>(shard: &Rc<Shard<S>>, running: Running, adopted: BTreeSet<FsUuid>) -> Answer {
    let pool = running.uuid;
    shard.claim(Claim::Commit(pool));
    let (views, devices, filesystems) = {
        let engine = running.pool.borrow();
        let devices = engine.device_views();
        let uuids: Vec<_> = devices.iter().map(|device| device.uuid).collect();
        let filesystems: Vec<_> = engine.filesystems.iter().map(|found| found.record.uuid).collect();
        let mut views = vec![View::Pool(engine.view())];
        views.extend(engine.filesystems.iter().map(|found| shard.filesystem_view(&engine, found)));
        views.extend(devices.into_iter().map(View::Device));
        views.push(View::StoppedGone(pool));
        (views, uuids, filesystems)
    };
    log::info!("pool started (pool={pool} devices={} filesystems={})", devices.len(), filesystems.len());
    news::runs(shard, &running);
    let running = Rc::new(running);
    shard.running.borrow_mut().insert(pool, Rc::clone(&running));
    shard.show(views);
    if !adopted.is_empty() {
        adopted::look(shard, running, adopted);
    }
    backstop::begin(shard, pool);
    Answer::PoolStarted(pool, devices, filesystems)
}

/// The numbers of devices that were read.
pub fn numbers(devices: &[Read]) -> Vec<DeviceNumber> {
    devices.iter().map(|device| device.candidate.number).collect()
}
