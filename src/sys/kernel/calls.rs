//! `Sys` on the machine itself.
//!
//! Every call books its time to the account of the running task, by kind of work.
//!
//! Invariant: no borrow of a cell lives across a wait. Deliberately absent: how each thing is done;
//! that stands in the modules of its subject.

use std::convert::Infallible;
use std::time::Duration;

use cores::rt::{book, timed};
use cores::side::Buffer;

use super::mounted::MEMORY;
use super::{KernelSys, fault};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::model::blank::ReadsZeroes;
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath};
use crate::model::dm::{Below, Dm, Table, ThinPoolState};
use crate::model::filesystem::Fill;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::sys::{DeviceEvent, Folder, Growth, Kind, Opening, Sys, Target, Write};
use crate::units::{Bytes, Sectors};

/// The devices that tables refer to.
fn devices_below(tables: &[(Dm, Table)]) -> Vec<DeviceNumber> {
    let lines = tables.iter().flat_map(|(_, table)| match table {
        Table::Linear(lines) => lines.as_slice(),
        Table::Cache { .. } | Table::ThinPool { .. } | Table::Thin { .. } => &[],
    });
    let device = |below| match below {
        Below::Device(number) => Some(number),
        Below::Dm(_) => None,
    };
    lines.filter_map(|line| device(line.below)).collect()
}

fn at((device, why): (Dm, Why), doing: &'static str) -> Fault {
    Fault::new(doing, device, why)
}

impl Sys for KernelSys {
    type Encryption = Infallible;

    fn encryption(&self) -> Result<&Infallible, Refusal> {
        Err(Refusal::Unsupported { what: "encryption" })
    }

    fn kind(&self) -> Kind {
        Kind::Kernel
    }

    fn devnode(&self, pool: &Name, filesystem: &Name) -> String {
        format!("/dev/stratis/{}/{}", pool.as_str(), filesystem.as_str())
    }

    async fn examine(&self, path: &DevicePath) -> Result<Candidate, Failure> {
        timed("probe", self.examine_device(path)).await
    }

    async fn discover(&self) -> Result<Vec<Candidate>, Fault> {
        self.listen();
        timed("probe", self.discover_devices()).await
    }

    async fn device_events(&self) -> Vec<DeviceEvent> {
        self.next_device_events().await
    }

    async fn open(&self, candidate: &Candidate, opening: Opening) -> Result<(), Failure> {
        timed("probe", self.open_device(candidate, opening)).await
    }

    async fn close(&self, number: DeviceNumber, forget: bool) {
        self.close_device(number, forget).await;
    }

    async fn read(&self, target: Target, start: Sectors, count: Sectors) -> Result<Buffer, Fault> {
        let outcome = timed("read", self.read_sectors(target, start, count)).await;
        outcome.map_err(|why| Fault::new("read", self.subject(target, start), why))
    }

    async fn read_each(&self, target: Target, places: &[(Sectors, Sectors)]) -> Result<Vec<Buffer>, Fault> {
        let outcome = timed("read", self.read_places(target, places)).await;
        outcome.map_err(|(start, why)| Fault::new("read", self.subject(target, start), why))
    }

    async fn read_first(&self, devices: &[Dm], count: Sectors) -> Vec<Result<Buffer, Fault>> {
        let read = timed("read", self.read_heads(devices, count)).await;
        let subject = |device: &Dm| self.subject(Target::Dm(*device), Sectors::ZERO);
        read.into_iter().zip(devices).map(|(read, device)| read.map_err(fault("read", subject(device)))).collect()
    }

    async fn write(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        timed("write", self.write_sectors(batch)).await
    }

    async fn flush(&self, targets: Vec<Target>) -> Vec<Result<(), Fault>> {
        timed("write", self.flush_targets(&targets)).await
    }

    async fn block_sizes(&self, device: Dm) -> Result<BlockSizes, Fault> {
        timed("probe", self.blocks_of(device)).await.map_err(fault("read the block sizes of", device))
    }

    async fn activate(&self, tables: &[(Dm, Table)]) -> Result<(), Fault> {
        self.release_exclusive(&devices_below(tables)).await;
        timed("dm", self.inner.mapper.activate(tables)).await.map_err(|failed| at(failed, "activate"))
    }

    async fn swap(&self, tables: &[(Dm, Table)]) -> Result<Duration, Fault> {
        self.release_exclusive(&devices_below(tables)).await;
        timed("dm", self.inner.mapper.swap(tables)).await.map_err(|failed| at(failed, "swap the table of"))
    }

    async fn deactivate(&self, devices: &[Dm]) -> Result<(), Fault> {
        let outcome = timed("dm", self.inner.mapper.deactivate(devices)).await;
        self.remove_notes(devices).await;
        outcome.map_err(|failed| at(failed, "deactivate"))
    }

    async fn settle(&self, pool: PoolUuid) {
        timed("udev", self.inner.mapper.settle(pool)).await;
    }

    async fn active(&self, pool: PoolUuid) -> Result<Vec<Dm>, Fault> {
        timed("dm", self.inner.mapper.active(pool)).await.map_err(fault("list dm devices of pool", pool))
    }

    async fn thin_create(&self, pool: PoolUuid, id: ThinId) -> Result<Option<ReadsZeroes>, Fault> {
        let outcome = timed("dm", self.inner.mapper.thin_create(pool, id)).await;
        outcome.map_err(fault("create thin volume", format!("{id} of pool {pool}")))
    }

    async fn thin_delete(&self, pool: PoolUuid, id: ThinId) -> Result<(), Fault> {
        let outcome = timed("dm", self.inner.mapper.thin_delete(pool, id)).await;
        outcome.map_err(fault("delete thin volume", format!("{id} of pool {pool}")))
    }

    async fn thin_snapshot(&self, pool: PoolUuid, origin: (FsUuid, ThinId), id: ThinId) -> Result<(), Fault> {
        let device = Dm::Thin(pool, origin.0);
        let made = timed("dm", self.inner.mapper.thin_snapshot((device, origin.1), id)).await;
        book("suspended", made.map_err(fault("make a snapshot of", device))?);
        Ok(())
    }

    async fn thin_commit(&self, pool: PoolUuid) -> Result<(), Fault> {
        timed("dm", self.inner.mapper.thin_commit(pool)).await.map_err(fault("commit thin volumes of pool", pool))
    }

    async fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Fault> {
        timed("dm", self.inner.mapper.thin_pool(pool)).await.map_err(fault("read the state of the thin pool of", pool))
    }

    async fn thin_check(&self, device: Dm) -> Result<bool, Failure> {
        timed("check", self.check_metadata(device)).await
    }

    async fn thin_repair(&self, from: Dm, to: Dm) -> Result<(), Failure> {
        timed("check", self.repair_metadata(from, to)).await
    }

    async fn thin_pool_events(&self) -> Vec<PoolUuid> {
        self.next_thin_pool_events().await
    }

    async fn thin_volume(&self, device: Dm) -> Result<(ThinId, Sectors), Fault> {
        timed("dm", self.inner.mapper.thin_volume(device)).await.map_err(fault("look at the table of", device))
    }

    async fn thin_used(&self, pool: PoolUuid, filesystem: FsUuid) -> Result<Bytes, Fault> {
        let device = Dm::Thin(pool, filesystem);
        timed("dm", self.inner.mapper.thin_used(device)).await.map(Sectors::bytes).map_err(fault("measure", device))
    }

    async fn thin_used_each(&self, pool: PoolUuid, filesystems: &[FsUuid]) -> Vec<Option<Bytes>> {
        let devices: Vec<Dm> = filesystems.iter().map(|uuid| Dm::Thin(pool, *uuid)).collect();
        let used = timed("dm", self.inner.mapper.thin_used_each(&devices)).await;
        used.into_iter().map(|used| used.ok().map(Sectors::bytes)).collect()
    }

    async fn fill(&self, device: Dm) -> Result<Option<Fill>, Fault> {
        timed("mount", self.fill_of(device)).await.map_err(fault("look how full the filesystem is on", device))
    }

    async fn dirty(&self) -> Result<Bytes, Fault> {
        timed("files", self.dirty_memory()).await.map_err(fault("read", MEMORY))
    }

    async fn grow_xfs(&self, device: Dm) -> Result<Growth, Fault> {
        timed("mount", self.grow_volume(device)).await.map_err(fault("grow the filesystem on", device))
    }

    async fn replay_log(&self, device: Dm) -> Result<(), Fault> {
        timed("mount", self.mount_once(device)).await.map_err(fault("have the log replayed of", device))
    }

    async fn busy(&self, device: Dm) -> Result<bool, Fault> {
        timed("probe", self.in_use(device)).await.map_err(fault("look whether anybody uses", device))
    }

    async fn announce(&self, pool: (PoolUuid, &Name), filesystem: (FsUuid, &Name, ThinId)) {
        self.announce_each(pool, &[filesystem]).await;
    }

    async fn announce_each(&self, pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name, ThinId)]) {
        let named: Vec<(FsUuid, &Name)> = filesystems.iter().map(|(uuid, name, _)| (*uuid, *name)).collect();
        timed("udev", self.tell_udev(pool, &named)).await;
    }

    async fn announce_ahead(&self, pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) -> Vec<bool> {
        timed("udev", self.note_names(pool, filesystems)).await
    }

    async fn have_paths(&self, pool: (PoolUuid, &Name), filesystems: &[(FsUuid, &Name)]) -> Vec<bool> {
        let path = |(uuid, name): &(FsUuid, &Name)| (*uuid, self.devnode(pool.1, name).into());
        timed("udev", self.paths_of(pool.0, filesystems.iter().map(path).collect())).await
    }

    async fn mdv_mount(&self, pool: PoolUuid) -> Result<(), Fault> {
        timed("mount", self.mount_volume(pool)).await.map_err(fault("mount the metadata volume of pool", pool))
    }

    async fn mdv_unmount(&self, pool: PoolUuid) -> Result<(), Fault> {
        timed("mount", self.unmount_volume(pool)).await.map_err(fault("unmount the metadata volume of pool", pool))
    }

    async fn mdv_size(&self, pool: PoolUuid) -> Result<Bytes, Fault> {
        timed("files", self.volume_size(pool)).await
    }

    async fn mdv_list(&self, pool: PoolUuid, folder: Folder) -> Result<Vec<String>, Fault> {
        timed("files", self.volume_list(pool, folder)).await
    }

    async fn mdv_read(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<Vec<u8>, Fault> {
        timed("files", self.volume_read(pool, folder, file)).await
    }

    async fn mdv_read_each(&self, pool: PoolUuid, folder: Folder, files: &[String]) -> Result<Vec<Vec<u8>>, Fault> {
        timed("files", self.volume_read_each(pool, folder, files)).await
    }

    async fn mdv_write(&self, pool: PoolUuid, folder: Folder, file: &str, bytes: &[u8]) -> Result<(), Fault> {
        timed("files", self.volume_write(pool, folder, file, bytes)).await
    }

    async fn mdv_sync(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        timed("files", self.volume_sync(pool, folder, file)).await
    }

    async fn mdv_rename(&self, pool: PoolUuid, folder: Folder, from: &str, to: &str) -> Result<(), Fault> {
        timed("files", self.volume_rename(pool, folder, from, to)).await
    }

    async fn mdv_remove(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        timed("files", self.volume_remove(pool, folder, file)).await
    }

    async fn mdv_sync_folder(&self, pool: PoolUuid, folder: Folder) -> Result<(), Fault> {
        timed("files", self.volume_sync_folder(pool, folder)).await
    }

    async fn scrap(&self, _pool: PoolUuid) -> Result<(), Fault> {
        Ok(())
    }
}
