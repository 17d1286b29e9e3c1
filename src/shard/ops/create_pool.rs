//! Creating a pool.
//!
//! Commit point: the pool's first record is durable on a device. Until then every device carries the
//! mark of a pool that is being created, so a start after a power failure wipes them and nothing
//! is left; a failure on the way is unwound to the same.

use std::rc::Rc;

use cores::rt;

use crate::engine::filesystem::Filesystems;
use crate::engine::grow::Pace;
use crate::engine::layout::{self, LayoutFault};
use crate::engine::pool::{Member, Pool, numbers};
use crate::engine::{devices, encryption, size, stack as tables, volume};
use crate::error::{Failure, Fault, Refusal};
use crate::format::header::{FLAG_CREATING, StaticHeader};
use crate::format::record::{FS_LIMIT_DEFAULT, PoolRecord};
use crate::message::{Answer, Claim, Taken, View};
use crate::model::device::{Candidate, DeviceNumber, DevicePath, Tier};
use crate::model::dm::{Dm, Role, Table};
use crate::model::ids::{DevUuid, PoolUuid};
use crate::model::name::Name;
use crate::model::pool::{IntegritySpec, MetadataVersion};
use crate::model::token::Tokens;
use crate::probe;
use crate::shard::ops::extend::Extension;
use crate::shard::ops::save::{self, Saver};
use crate::shard::ops::{Outcome, backstop, format, headers, stack};
use crate::shard::wait::all;
use crate::shard::{Running, Shard};
use crate::sys::encryption::Encryption;
use crate::sys::{Kind, Opening, Sys, Target, Write, WriteData};
use crate::units::Sectors;
use crate::xfs::Log;
use crate::zoo::{Bug, planted};

/// The superblock of thin-pool metadata.
const THIN_META_HEAD: Sectors = Sectors(8);

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The id the pool will have.
    pub pool: PoolUuid,
    /// Its name.
    pub name: Name,
    /// Its devices.
    pub devices: Vec<DevicePath>,
    /// Room for an integrity layer.
    pub integrity: IntegritySpec,
    /// What is to unlock it, if it is to be encrypted.
    pub encryption: Option<Tokens>,
}

/// What the creation will make, decided before anything is changed.
struct Plan {
    pool: PoolUuid,
    name: Name,
    record: PoolRecord,
    members: Vec<Member>,
    tables: Vec<(Dm, Table)>,
    encryption: Option<Tokens>,
}

/// Creates a pool, or finds that it exists with these devices.
pub async fn run<S: Sys>(shard: &Rc<Shard<S>>, asked: Asked) -> Outcome {
    if asked.encryption.is_some() {
        // Whether it can be done at all, before anything is looked at.
        shard.sys.encryption()?;
    }
    rt::stage("examine");
    let paths = devices::distinct(&asked.name, &asked.devices)?;
    let candidates = examine(shard, &paths).await?;
    rt::stage("claim");
    let wanted = candidates.iter().map(|candidate| (candidate.number, candidate.path.clone(), Tier::Data)).collect();
    let claim = Claim::Take { pool: asked.pool, name: Some(asked.name.clone()), devices: wanted };
    if let Err(taken) = shard.take(claim).await {
        return not_ours(asked.name, &candidates, taken);
    }
    let outcome = create(shard, &asked, candidates).await;
    match &outcome {
        Ok(_) => shard.claim(Claim::Commit(asked.pool)),
        Err(_) if planted(Bug::ClaimStays) => {}
        Err(_) => shard.claim(Claim::Release(asked.pool)),
    }
    outcome
}

/// Looks at the named devices.
pub(super) async fn examine<S: Sys>(shard: &Shard<S>, paths: &[DevicePath]) -> Result<Vec<Candidate>, Failure> {
    let found = all(paths.iter().map(|path| shard.sys.examine(path))).await;
    Ok(devices::merge(found.into_iter().collect::<Result<_, Failure>>()?)?)
}

/// Somebody else holds what we want: that is as asked if it is this pool with these devices.
fn not_ours(name: Name, candidates: &[Candidate], taken: Taken) -> Outcome {
    let Taken::Name { holder, devices: held } = taken else {
        return Err(taken.refusal(&name).into());
    };
    let named: Vec<_> = candidates.iter().map(Candidate::place).collect();
    let (asked, present) = devices::difference(&named, &held);
    if asked.is_empty() && present.is_empty() {
        log::info!("pool exists as asked for (pool={holder} name={:?})", name.as_str());
        return Ok(Answer::Identity);
    }
    Err(Refusal::PoolDiffers { name, asked, present }.into())
}

async fn create<S: Sys>(shard: &Rc<Shard<S>>, asked: &Asked, candidates: Vec<Candidate>) -> Outcome {
    devices::admit(&candidates)?;
    let plan = plan(asked, candidates, shard.sys.kind(), shard.pace.get())?;
    save::fits(&plan.record)?;
    let running = running(&plan);
    if let Err(failure) = make(shard, &plan, &running).await {
        if !planted(Bug::FailedCreationStays) {
            unwind(shard, &plan).await;
        }
        return Err(failure);
    }
    commit(shard, running).await
}

/// Decides everything: ids, headers, layout, tables.
fn plan(asked: &Asked, candidates: Vec<Candidate>, kind: Kind, pace: Pace) -> Result<Plan, Refusal> {
    let initialized = rt::wall().seconds;
    let of = (asked.pool, MetadataVersion::V2);
    let mark = if planted(Bug::NoCreatingMark) { 0 } else { FLAG_CREATING };
    let member = |candidate| Member::new(candidate, of, DevUuid::from_random(rt::random()), mark, initialized);
    let members: Vec<Member> = candidates.into_iter().map(member).collect();
    let sizes: Vec<(DevUuid, Sectors)> =
        members.iter().map(|member| (member.header.device, member.header.size)).collect();
    let first = layout::first_with(&sizes, &asked.integrity, FS_LIMIT_DEFAULT, pace.first());
    let layout = first.map_err(|fault| match fault {
        LayoutFault::Device { size: free, wanted, .. } | LayoutFault::Pool { wanted, free } => {
            Refusal::TooFewSectors { name: asked.name.clone(), wanted, free }
        }
    })?;
    let mut record = layout.record(&asked.name, &asked.integrity, FS_LIMIT_DEFAULT);
    record.files = kind == Kind::Files;
    for (device, member) in record.backstore.data_tier.blockdev.devs.iter_mut().zip(&members) {
        device.hardware_info.clone_from(&member.candidate.hardware);
    }
    if let Some(tokens) = &asked.encryption {
        encryption::enter(&mut record, tokens);
    }
    let numbers = numbers(&members);
    // What the thin pool gets next is on record from the start, and below it.
    let (record, top) = lay_ahead(asked, record, &members, pace);
    let mut tables = tables::tables(&record, MetadataVersion::V2, asked.pool, &numbers)
        .expect("a layout that was just made has its tables");
    tables.last_mut().expect("a stack has a thin pool").1 = top;
    let encryption = asked.encryption.clone();
    Ok(Plan { pool: asked.pool, name: asked.name.clone(), record, members, tables, encryption })
}

/// The record with what the thin pool gets next, and the table that it has before that.
fn lay_ahead(asked: &Asked, record: PoolRecord, members: &[Member], pace: Pace) -> (PoolRecord, Table) {
    let mut pool = empty((asked.pool, &asked.name), record, members.to_vec());
    let table = pool.lay_ahead(pace);
    (pool.record().clone(), table)
}

/// Makes all of it, up to the commit point.
async fn make<S: Sys>(shard: &Shard<S>, plan: &Plan, running: &Running) -> Result<(), Failure> {
    open_new(shard, &plan.members).await?;
    rt::stage("initialise");
    headers::initialise(&shard.sys, &signed(&plan.members)).await?;
    rt::stage("stack");
    build(shard, plan).await?;
    Ok(save::durable(shard, running).await?)
}

/// Opens devices that become new members, and sees that nobody has been faster.
pub(super) async fn open_new<S: Sys>(shard: &Shard<S>, members: &[Member]) -> Result<(), Failure> {
    rt::stage("open");
    for member in members {
        shard.sys.open(&member.candidate, Opening::New).await?;
        // Between the first look and the exclusive open somebody may have been faster.
        let again = shard.sys.examine(&member.candidate.path).await?;
        if again != member.candidate {
            return Err(Refusal::DeviceChanged { path: again.path }.into());
        }
        unsigned(shard, &member.candidate).await?;
    }
    Ok(())
}

/// A signature that is damaged, or that others have not recognised, is still somebody's.
async fn unsigned<S: Sys>(shard: &Shard<S>, candidate: &Candidate) -> Result<(), Failure> {
    match probe::signature(&shard.sys, candidate).await? {
        None => Ok(()),
        Some(header) => Err(Refusal::DeviceOwned { path: candidate.path.clone(), pool: header.pool }.into()),
    }
}

/// What new members get for signatures.
pub(super) fn signed(members: &[Member]) -> Vec<(DeviceNumber, StaticHeader)> {
    members.iter().map(|member| (member.candidate.number, member.header)).collect()
}

/// Activates the stack. What lies below the thin pool gets what it needs before the pool goes on top.
async fn build<S: Sys>(shard: &Shard<S>, plan: &Plan) -> Result<(), Failure> {
    let (top, below) = plan.tables.split_last().expect("a stack has a thin pool");
    shard.sys.activate(below).await?;
    rt::stage("clear");
    let zeroes = |role, sectors| Write {
        target: Target::Dm(Dm::Private(plan.pool, role)),
        start: Sectors::ZERO,
        data: WriteData::Zeroes(sectors),
    };
    // A stale encryption header would be found when the pool is next set up. The kernel takes metadata that
    // begins with zeroes for a new thin pool.
    let clear = vec![zeroes(Role::Cache, size::CRYPT_RESERVE), zeroes(Role::ThinMeta, THIN_META_HEAD)];
    headers::put(&shard.sys, clear).await?;
    if let Some(tokens) = &plan.encryption {
        rt::stage("encrypt");
        shard.sys.encryption()?.set_tokens(plan.pool, tokens).await?;
    }
    rt::stage("metadata volume");
    make_metadata_volume(shard, plan).await?;
    rt::stage("thin pool");
    Ok(shard.sys.activate(std::slice::from_ref(top)).await?)
}

async fn make_metadata_volume<S: Sys>(shard: &Shard<S>, plan: &Plan) -> Result<(), Failure> {
    let device = Dm::Private(plan.pool, Role::Mdv);
    let (_, table) = plan.tables.iter().find(|(other, _)| *other == device).expect("a stack has a metadata volume");
    let shape = volume::metadata(table.length(), shard.sys.block_sizes(device).await?)?;
    format::make(&shard.sys, device, &shape, Log::Zeroed, plan.pool.0).await?;
    Ok(shard.sys.mdv_mount(plan.pool).await?)
}

fn running(plan: &Plan) -> Running {
    let mut pool = empty((plan.pool, &plan.name), plan.record.clone(), plan.members.clone());
    if let Some(tokens) = plan.encryption.clone() {
        pool.set_tokens(tokens);
    }
    Running { uuid: plan.pool, pool: pool.into(), saver: Saver::default(), extension: Extension::default() }
}

fn empty((uuid, name): (PoolUuid, &Name), record: PoolRecord, members: Vec<Member>) -> Pool {
    Pool::new(uuid, name.clone(), record, members, None, Filesystems::new(uuid, Vec::new(), Vec::new(), []))
}

/// The pool is real: takes the marks off its devices and shows it.
async fn commit<S: Sys>(shard: &Rc<Shard<S>>, running: Running) -> Outcome {
    clear_marks(shard, &running).await;
    rt::stage("settle");
    shard.sys.settle(running.uuid).await;
    let (pool, view, devices) = {
        let pool = running.pool.borrow();
        (running.uuid, pool.view(), pool.device_views())
    };
    let ids = devices.iter().map(|device| device.uuid).collect();
    log::info!("pool created (pool={pool} name={:?} devices={})", view.name.as_str(), devices.len());
    shard.running.borrow_mut().insert(pool, Rc::new(running));
    shard.show(std::iter::once(View::Pool(view)).chain(devices.into_iter().map(View::Device)).collect());
    backstop::begin(shard, pool);
    Ok(Answer::PoolCreated(pool, ids))
}

/// Takes the marks of a beginning off all devices that carry one. A failure is no failure of what was begun: a
/// marked device of a pool that has a record is a device like any other, and the next start tries again.
pub async fn clear_marks<S: Sys>(shard: &Shard<S>, running: &Running) {
    rt::stage("clear marks");
    let marked = running.pool.borrow_mut().clear_marks();
    if let Err(fault) = headers::sign(&shard.sys, &marked).await {
        log::warn!("a device keeps the mark of a beginning (pool={}): {fault}", running.uuid);
    }
}

/// Takes back whatever was done. What cannot be taken back is logged: such a device keeps its mark, and
/// the next start wipes it. So none is wiped that is still in a table, which nobody would know to whom it belongs.
async fn unwind<S: Sys>(shard: &Shard<S>, plan: &Plan) {
    rt::stage("unwind");
    let numbers: Vec<DeviceNumber> = plan.members.iter().map(|member| member.candidate.number).collect();
    let undone: Result<(), Fault> = async {
        stack::all_down(&shard.sys, plan.pool).await?;
        shard.sys.scrap(plan.pool).await?;
        wipe_signed(shard, &plan.members).await
    }
    .await;
    if let Err(fault) = undone {
        log::error!("a creation could not be taken back whole (pool={}): {fault}", plan.pool);
    }
    for number in numbers {
        shard.sys.close(number, true).await;
    }
}

/// Wipes the devices that got the signatures that we made for them; one that never got it is left as it was.
pub(super) async fn wipe_signed<S: Sys>(shard: &Shard<S>, members: &[Member]) -> Result<(), Fault> {
    for member in members {
        let ours = matches!(
            probe::signature(&shard.sys, &member.candidate).await,
            Ok(Some(header)) if header.device == member.header.device
        );
        if ours {
            headers::wipe(&shard.sys, &[member.candidate.number]).await?;
        }
    }
    Ok(())
}
