//! `Sys` on a simulated machine: each call is a few moments of the machine with waits between.
//!
//! Invariant: a change is one synchronous call on the state, made at the moment in which the gate
//! counted it. No borrow of the state lives across a wait.
//!
//! Deliberately absent: rules. What may happen and what follows is in `state`.

use std::cell::RefMut;
use std::fmt::{self, Display};
use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use cores::rt;
use cores::side::Buffer;

use super::Machine;
use super::disks::Disk;
use super::fill::WAITS;
use super::gate::Pass;
use super::state::{Spot, State};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::model::blank::ReadsZeroes;
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath};
use crate::model::dm::{Dm, Table, ThinPoolState};
use crate::model::filesystem::Fill;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::sys::{DeviceEvent, Folder, Growth, Kind, Opening, Sys, Target, Write};
use crate::units::{Bytes, Sectors};

/// What an XFS on 512 MiB has room for: all but its log.
const FRESH_MDV: Bytes = Bytes(448 << 20);
/// How long a write waits for space in a thin pool, by the kernel's default; and how often is looked here.
const NO_SPACE_TIMEOUT: Duration = Duration::from_secs(60);
const SPACE_LOOK: Duration = Duration::from_millis(1);
/// Block sizes of a disk that is made up.
const CONJURED_BLOCKS: BlockSizes = BlockSizes { logical: 512, physical: 512 };

/// One process' view of a machine. Its calls end for ever when the process is killed, the power
/// fails or the machine is stopped: their futures stay pending.
#[derive(Clone, Debug)]
pub struct SimSys {
    machine: Machine,
    life: u64,
    /// Which of the machine's views this is: what one opens is not open to another.
    seat: u64,
}

/// A write under way; it ends when this is dropped, because the kernel ends it whoever waits.
struct Inflight<'a> {
    sys: &'a SimSys,
    id: u64,
    spots: Vec<Spot>,
}

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        if !self.sys.over() {
            self.sys.machine.state().end(self.id, &self.spots);
        }
    }
}

impl SimSys {
    pub(super) fn new(machine: Machine) -> Self {
        let (life, seat) = {
            let mut state = machine.state();
            state.seats += 1;
            (state.life, state.seats)
        };
        Self { machine, life, seat }
    }

    /// The state, if this process still lives; else waits for ever.
    pub(super) async fn alive(&self) -> RefMut<'_, State> {
        if self.over() {
            pending::<()>().await;
        }
        self.machine.state()
    }

    /// Whether nothing that this process does happens any more.
    fn over(&self) -> bool {
        let state = self.machine.state();
        state.life != self.life || state.gate.frozen()
    }

    async fn pause(&self) {
        let delay = {
            let state = &mut *self.alive().await;
            state.gate.delay(&mut state.dice)
        };
        wait(delay).await;
    }

    /// An action: a change that is counted and may fail or never happen.
    pub(super) async fn act<T>(
        &self,
        doing: &'static str,
        subject: impl Display,
        effect: impl FnOnce(&mut State) -> Result<T, Why>,
    ) -> Result<T, Fault> {
        self.pause().await;
        drop(self.alive().await);
        self.machine.watched();
        let pass = self.alive().await.gate.pass(|| format!("{doing} {subject}"));
        let outcome = match pass {
            Pass::Go => effect(&mut *self.alive().await),
            Pass::Fail(errno) => Err(Why::Errno(errno)),
            Pass::Stop => pending().await,
        };
        self.pause().await;
        drop(self.alive().await);
        outcome.map_err(|why| Fault::new(doing, subject, why))
    }

    /// Waits as long as a disk tells nobody what has ended.
    async fn heard_of(&self, target: Target) {
        let Target::Device(number) = target else { return };
        poll_fn(|cx| {
            let mut state = self.machine.state();
            if state.hung.contains(&number) {
                state.news.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// A question: changes nothing.
    pub(super) async fn ask<T>(
        &self,
        doing: &'static str,
        subject: impl Display,
        answer: impl FnOnce(&State) -> Result<T, Why>,
    ) -> Result<T, Fault> {
        self.pause().await;
        let mut state = self.alive().await;
        state.questions += 1;
        answer(&state).map_err(|why| Fault::new(doing, subject, why))
    }

    async fn submit(&self, write: &Write) -> Result<Inflight<'_>, Fault> {
        let subject = || subject(write.target, write.start);
        let fault = |why| Fault::new("write", subject(), why);
        drop(self.alive().await);
        self.machine.watched();
        let pass = self.alive().await.gate.pass(|| format!("write {}", subject()));
        let errno = match pass {
            Pass::Go => None,
            Pass::Fail(errno) => Some(errno),
            Pass::Stop => pending().await,
        };
        let (id, spots) = self.when_there_is_space(write, errno.is_some()).await.map_err(fault)?;
        errno.map_or(Ok(Inflight { sys: self, id, spots }), |errno| Err(fault(Why::Errno(errno))))
    }
}

impl SimSys {
    /// Starts a write; one that finds no space in a thin pool that waits for it waits as long as the kernel does.
    async fn when_there_is_space(&self, write: &Write, fails: bool) -> Result<(u64, Vec<Spot>), Why> {
        let began = rt::now();
        loop {
            let outcome = self.alive().await.submit(self.seat, write, fails);
            match outcome {
                Err(WAITS) if rt::now().since(began) < NO_SPACE_TIMEOUT => rt::sleep(SPACE_LOOK).await,
                Err(WAITS) => {
                    if let Target::Dm(device) = write.target {
                        self.alive().await.give_up_space(device.pool());
                    }
                    return Err(Why::Errno(libc::ENOSPC));
                }
                other => return other,
            }
        }
    }
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        rt::sleep(time).await;
    }
}

fn subject(target: Target, start: Sectors) -> impl Display {
    fmt::from_fn(move |out| match target {
        Target::Device(number) => write!(out, "device {:x}:{:x} at sector {}", number.0, number.1, start.0),
        Target::Dm(device) => write!(out, "{device} at sector {}", start.0),
    })
}

fn file_subject(pool: PoolUuid, folder: Folder, file: &str) -> impl Display {
    fmt::from_fn(move |out| write!(out, "{} {file:?} of pool {pool}", folder_words(folder)))
}

const fn folder_words(folder: Folder) -> &'static str {
    match folder {
        Folder::Filesystems => "filesystem record",
        Folder::Intents => "intent",
    }
}

impl Sys for SimSys {
    type Encryption = Self;

    fn encryption(&self) -> Result<&Self, Refusal> {
        Ok(self)
    }

    fn kind(&self) -> Kind {
        Kind::Sim
    }

    fn devnode(&self, pool: &Name, filesystem: &Name) -> String {
        format!("/somepath/{pool}/{filesystem}")
    }

    async fn examine(&self, path: &DevicePath) -> Result<Candidate, Failure> {
        self.pause().await;
        let mut state = self.alive().await;
        if state.find_disk(path).is_none()
            && let Some(size) = state.conjures
        {
            state.add_disk(path, size, CONJURED_BLOCKS);
        }
        match state.find_disk(path) {
            None => Err(Refusal::DeviceMissing(path.clone()).into()),
            Some(disk) => match disk.reads_fail {
                Some(errno) => Err(Fault::errno("examine", path, errno).into()),
                None => Ok(disk.candidate()),
            },
        }
    }

    async fn discover(&self) -> Result<Vec<Candidate>, Fault> {
        self.alive().await.news.listen();
        self.ask("discover", "devices", |state| {
            let readable = state.disks.values().filter(|disk| disk.reads_fail.is_none());
            Ok(readable.filter(|disk| disk.has_signature()).map(Disk::candidate).collect())
        })
        .await
    }

    fn finds_devices(&self) -> bool {
        self.machine.state().conjures.is_none()
    }

    async fn device_events(&self) -> Vec<DeviceEvent> {
        poll_fn(|cx| {
            let news = if self.over() { None } else { self.machine.state().news.take_devices(cx.waker()) };
            news.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    async fn open(&self, candidate: &Candidate, opening: Opening) -> Result<(), Failure> {
        self.pause().await;
        let mut state = self.alive().await;
        let same = state.disks.get(&candidate.number).is_some_and(|disk| disk.size == candidate.size);
        if !same {
            return Err(Refusal::DeviceChanged { path: candidate.path.clone() }.into());
        }
        *state.open.entry((self.seat, candidate.number)).or_default() |= opening != Opening::Look;
        Ok(())
    }

    async fn close(&self, number: DeviceNumber, _forget: bool) {
        self.pause().await;
        let mut state = self.alive().await;
        if state.open.remove(&(self.seat, number)) == Some(true) {
            state.touched(number);
        }
    }

    async fn read(&self, target: Target, start: Sectors, count: Sectors) -> Result<Buffer, Fault> {
        let read = self.ask("read", subject(target, start), |state| state.read(self.seat, target, start, count)).await;
        self.heard_of(target).await;
        read.map(Buffer::from)
    }

    async fn write(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        let slow = self.alive().await.write_time;
        wait(slow).await;
        // The order in which the writes of a batch begin and end is the machine's choice.
        let mut moments = Vec::new();
        for index in 0..batch.len() {
            let state = &mut *self.alive().await;
            let begin = state.gate.delay(&mut state.dice);
            let end = begin + state.gate.delay(&mut state.dice);
            moments.push((begin, true, index));
            moments.push((end, false, index));
        }
        moments.sort_by_key(|(at, begins, index)| (*at, !*begins, *index));
        let mut inflight: Vec<Option<Inflight<'_>>> = batch.iter().map(|_| None).collect();
        let mut results: Vec<Result<(), Fault>> = batch.iter().map(|_| Ok(())).collect();
        let mut now = Duration::ZERO;
        for (at, begins, index) in moments {
            wait(at - now).await;
            now = at;
            if begins {
                match self.submit(&batch[index]).await {
                    Ok(write) => inflight[index] = Some(write),
                    Err(fault) => results[index] = Err(fault),
                }
            } else {
                self.heard_of(batch[index].target).await;
                drop(self.alive().await);
                drop(inflight[index].take());
            }
        }
        results
    }

    async fn flush(&self, targets: Vec<Target>) -> Vec<Result<(), Fault>> {
        let mut started = Vec::new();
        for target in &targets {
            let subject = subject(*target, Sectors::ZERO);
            started.push(self.act("flush", &subject, |state| state.flush_start(*target)).await);
        }
        for target in &targets {
            self.heard_of(*target).await;
        }
        self.pause().await;
        let mut state = self.alive().await;
        let end = |(target, started): (&Target, Result<_, Fault>)| {
            let (numbers, until) = started?;
            let fault = |why| Fault::new("flush", subject(*target, Sectors::ZERO), why);
            state.flush_end(*target, &numbers, until).map_err(fault)
        };
        targets.iter().zip(started).map(end).collect()
    }

    async fn block_sizes(&self, device: Dm) -> Result<BlockSizes, Fault> {
        self.ask("read the block sizes of", device, |state| state.block_sizes(device)).await
    }

    async fn activate(&self, tables: &[(Dm, Table)]) -> Result<(), Fault> {
        for (device, table) in tables {
            self.act("activate", device, |state| state.activate(*device, table)).await?;
        }
        Ok(())
    }

    async fn swap(&self, tables: &[(Dm, Table)]) -> Result<Duration, Fault> {
        for (device, table) in tables {
            self.act("swap the table of", device, |state| state.swap(*device, table)).await?;
        }
        Ok(Duration::ZERO)
    }

    async fn deactivate(&self, devices: &[Dm]) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for device in devices {
            outcome = outcome.and(self.act("deactivate", device, |state| state.deactivate(*device)).await);
        }
        outcome
    }

    async fn settle(&self, _pool: PoolUuid) {}

    async fn active(&self, pool: PoolUuid) -> Result<Vec<Dm>, Fault> {
        self.ask("list dm devices of pool", pool, |state| Ok(state.stack.of(pool))).await
    }

    async fn thin_create(&self, pool: PoolUuid, id: ThinId) -> Result<Option<ReadsZeroes>, Fault> {
        self.act("create thin volume", format!("{id} of pool {pool}"), |state| state.thin_create(pool, id)).await
    }

    async fn thin_delete(&self, pool: PoolUuid, id: ThinId) -> Result<(), Fault> {
        self.act("delete thin volume", format!("{id} of pool {pool}"), |state| state.thin_delete(pool, id)).await
    }

    async fn thin_snapshot(&self, pool: PoolUuid, origin: (FsUuid, ThinId), id: ThinId) -> Result<(), Fault> {
        let subject = format!("{id} of {} of pool {pool}", origin.1);
        self.act("make snapshot", subject, |state| state.thin_snapshot(pool, origin, id)).await
    }

    async fn thin_commit(&self, pool: PoolUuid) -> Result<(), Fault> {
        self.act("commit thin volumes of pool", pool, |state| {
            state.thin_store_mut(pool)?.commit();
            Ok(())
        })
        .await
    }

    async fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Fault> {
        let seen = self.ask("read the state of the thin pool of", pool, |state| state.thin_pool(pool)).await;
        self.alive().await.news.unanswered.remove(&pool);
        // Whoever hears of it hears of what was so.
        self.pause().await;
        seen
    }

    async fn thin_check(&self, device: Dm) -> Result<bool, Failure> {
        Ok(self.act("check the metadata on", device, |state| state.thin_check(device)).await?)
    }

    async fn thin_repair(&self, from: Dm, to: Dm) -> Result<(), Failure> {
        Ok(self.act("repair metadata into", to, |state| state.thin_repair(from, to)).await?)
    }

    async fn thin_pool_events(&self) -> Vec<PoolUuid> {
        poll_fn(|cx| {
            if self.over() {
                return Poll::Pending;
            }
            let state = &mut *self.machine.state();
            let all = state.stack.tables().keys().filter_map(|device| device.thin_pool_of()).collect();
            state.news.take_thin_pools(self.seat, all, cx.waker()).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    async fn thin_volume(&self, device: Dm) -> Result<(ThinId, Sectors), Fault> {
        self.ask("look at the table of", device, |state| state.stack.thin_volume(device)).await
    }

    async fn thin_used(&self, pool: PoolUuid, filesystem: FsUuid) -> Result<Bytes, Fault> {
        let device = Dm::Thin(pool, filesystem);
        self.ask("measure", device, |state| state.thin_used(device)).await
    }

    async fn fill(&self, device: Dm) -> Result<Option<Fill>, Fault> {
        self.ask("look how full the filesystem is on", device, |state| state.fill(device)).await
    }

    /// What is written here is written.
    async fn dirty(&self) -> Result<Bytes, Fault> {
        Ok(Bytes(0))
    }

    async fn grow_xfs(&self, device: Dm) -> Result<Growth, Fault> {
        self.act("grow the filesystem on", device, |state| state.grow_xfs(device)).await
    }

    async fn replay_log(&self, device: Dm) -> Result<(), Fault> {
        self.act("replay log of", device, |state| state.replay_log(device)).await
    }

    async fn busy(&self, device: Dm) -> Result<bool, Fault> {
        self.ask("look at users of", device, |state| Ok(state.is_mounted(device))).await
    }

    async fn announce(&self, pool: (PoolUuid, &Name), filesystem: (FsUuid, &Name, ThinId)) {
        let entry = (pool.0, pool.1.clone(), filesystem.1.clone(), filesystem.2);
        let outcome = self
            .act("announce", filesystem.0, |state| {
                state.announced.insert(filesystem.0, entry);
                Ok(())
            })
            .await;
        if let Err(fault) = outcome {
            log::warn!("{fault}");
        }
    }

    async fn mdv_mount(&self, pool: PoolUuid) -> Result<(), Fault> {
        self.act("mount metadata volume of pool", pool, |state| state.mdv_mount(pool)).await
    }

    async fn mdv_unmount(&self, pool: PoolUuid) -> Result<(), Fault> {
        self.act("unmount metadata volume of pool", pool, |state| {
            state.mdv_unmount(pool);
            Ok(())
        })
        .await
    }

    async fn mdv_size(&self, pool: PoolUuid) -> Result<Bytes, Fault> {
        self.ask("measure", format!("the metadata volume of pool {pool}"), |state| {
            state.mdv_store(pool).map(|_mounted| FRESH_MDV)
        })
        .await
    }

    async fn mdv_list(&self, pool: PoolUuid, folder: Folder) -> Result<Vec<String>, Fault> {
        self.ask("list", file_subject(pool, folder, "*"), |state| Ok(state.mdv_store(pool)?.list(folder))).await
    }

    async fn mdv_read(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<Vec<u8>, Fault> {
        let subject = file_subject(pool, folder, file);
        self.ask("read", subject, |state| state.mdv_store(pool)?.read(folder, file).map_err(Why::Errno)).await
    }

    async fn mdv_write(&self, pool: PoolUuid, folder: Folder, file: &str, bytes: &[u8]) -> Result<(), Fault> {
        self.act("write", file_subject(pool, folder, file), |state| {
            state.mdv_store_mut(pool)?.write(folder, file, bytes);
            Ok(())
        })
        .await
    }

    async fn mdv_sync(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        self.act("flush", file_subject(pool, folder, file), |state| {
            state.mdv_store_mut(pool)?.sync(folder, file).map_err(Why::Errno)
        })
        .await
    }

    async fn mdv_rename(&self, pool: PoolUuid, folder: Folder, from: &str, to: &str) -> Result<(), Fault> {
        self.act("rename", file_subject(pool, folder, from), |state| {
            state.mdv_store_mut(pool)?.rename(folder, from, to).map_err(Why::Errno)
        })
        .await
    }

    async fn mdv_remove(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        self.act("remove", file_subject(pool, folder, file), |state| {
            state.mdv_store_mut(pool)?.remove(folder, file);
            Ok(())
        })
        .await
    }

    async fn mdv_sync_folder(&self, pool: PoolUuid, folder: Folder) -> Result<(), Fault> {
        self.act("flush folder of", file_subject(pool, folder, "*"), |state| {
            state.mdv_store_mut(pool)?.sync_folder(folder);
            Ok(())
        })
        .await
    }

    async fn scrap(&self, _pool: PoolUuid) -> Result<(), Fault> {
        Ok(()) // They went with the devices.
    }
}
