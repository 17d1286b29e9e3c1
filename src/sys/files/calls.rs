//! `Sys` on a machine made of files.
//!
//! Invariant: no borrow of a cell lives across a wait, and a change of what is kept in memory is made
//! when the host has done its part.
//!
//! Deliberately absent: the host's calls themselves; they stand in the modules that are named here.

use std::convert::Infallible;
use std::fs::File;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cores::rt;
use cores::side::{Buffer, Fd};

use super::root::Locked;
use super::{FilesSys, Open, devices, examine, fault, links, mdv, thin};
use crate::error::{Failure, Fault, Refusal, Why};
use crate::limits::{OPEN_AGAIN_AFTER_MS, OPEN_LOOKS_MAX};
use crate::model::blank::ReadsZeroes;
use crate::model::device::{BlockSizes, Candidate, DeviceNumber, DevicePath};
use crate::model::dm::{Dm, Role, Table, ThinPoolState};
use crate::model::filesystem::Fill;
use crate::model::ids::{FsUuid, PoolUuid, ThinId};
use crate::model::name::Name;
use crate::sys::stack::{Blocked, Likeness};
use crate::sys::volume;
use crate::sys::{DeviceEvent, Folder, Growth, Kind, Opening, Sys, Target, Write};
use crate::units::{Bytes, Sectors};

/// Why a volume is not copied.
const MOUNTED: &str = "it is mounted or locked, and a file cannot be frozen as a device can: unmount it first";
/// Why a log is not replayed: that takes a loop device, and root.
const DIRTY: &str = "nothing is mounted with --files: mount the origin and unmount it, then its log is clean";

impl FilesSys {
    /// Opens and locks a file. What a killed process has asked the kernel for keeps its locks until it is done, some
    /// moments after the process is gone.
    async fn open_and_lock(&self, candidate: &Candidate) -> Result<(File, Locked), Failure> {
        let mut looks = 1;
        loop {
            let own = candidate.clone();
            let opened = self.lane(move || devices::open(&own)).await.map_err(fault("open", &candidate.path))?;
            match opened {
                Err(Failure::Refused(Refusal::DeviceTaken { .. })) if looks < OPEN_LOOKS_MAX => looks += 1,
                opened => return opened,
            }
            rt::sleep(Duration::from_millis(OPEN_AGAIN_AFTER_MS)).await;
        }
    }

    /// Checks a table; what it needs on the host comes after.
    fn check(&self, device: Dm, table: &Table) -> Result<(), Why> {
        let size = |number| self.inner.open.borrow().get(&number).map(|device| device.size);
        match self.inner.stack.borrow().check(device, table, size) {
            Ok(()) => Ok(()),
            Err(Blocked::Why(why)) => Err(why),
            Err(Blocked::Bug(what)) => panic!("{what}"),
        }
    }

    /// What a table needs on the host.
    async fn prepare(&self, device: Dm, table: &Table) -> Result<(), Why> {
        let root = &self.inner.root;
        let pool = device.pool();
        match table {
            Table::Linear(_) => Ok(()),
            Table::Cache { .. } => Err(Why::Data("files have no cache")),
            Table::ThinPool { .. } => {
                let folders = [root.path().to_owned(), root.pool(pool), root.thin(pool)];
                self.blocking(move || thin::make(folders.each_ref().map(PathBuf::as_path))).await
            }
            Table::Thin { length, id } => {
                let (volume, length) = (root.volume(pool, *id), *length);
                self.blocking(move || thin::lengthen(&volume, length)).await
            }
        }
    }

    async fn activate_checked(&self, device: Dm, table: &Table) -> Result<(), Why> {
        if self.inner.stack.borrow().likeness(device, table)? == Likeness::Same {
            return Ok(());
        }
        self.check(device, table)?;
        self.prepare(device, table).await?;
        self.check(device, table)?; // The stack may have changed while the host worked.
        self.inner.stack.borrow_mut().insert(device, table.clone());
        Ok(())
    }

    /// The space of thin volumes is the host's, so a thin pool that grows is kept in mind and no more.
    fn swap_checked(&self, device: Dm, table: &Table) -> Result<(), Why> {
        if self.inner.stack.borrow().is_swapped(device, table)? {
            self.check(device, table)?;
            self.inner.stack.borrow_mut().insert(device, table.clone());
        }
        Ok(())
    }

    async fn deactivate_checked(&self, device: Dm) -> Result<(), Why> {
        if self.inner.stack.borrow().table(device).is_none() {
            return Ok(());
        }
        if self.in_use(device).await? {
            return Err(Why::Errno(libc::EBUSY));
        }
        self.inner.stack.borrow_mut().remove(device)?;
        let link = self.inner.links.borrow_mut().remove(&device);
        if let Some((link, target)) = link {
            self.blocking(move || links::remove(&target, &link)).await?;
        }
        Ok(())
    }

    async fn in_use(&self, device: Dm) -> Result<bool, Why> {
        match device {
            Dm::Private(pool, Role::Mdv) => Ok(self.inner.mounted.borrow().contains(&pool)),
            Dm::Private(..) => Ok(false),
            Dm::Thin(..) => {
                let volume = self.volume(device)?;
                self.blocking(move || thin::busy(&volume)).await
            }
        }
    }

    async fn create_thin(&self, pool: PoolUuid, id: ThinId) -> Result<ReadsZeroes, Why> {
        // A volume is only reached through its thin pool.
        self.inner.stack.borrow().thin_pool(pool)?;
        let (folder, volume) = (self.inner.root.thin(pool), self.inner.root.volume(pool, id));
        self.blocking(move || thin::create(&folder, &volume)).await?;
        Ok(ReadsZeroes::of_new_file(pool, id))
    }

    /// Only what nobody writes to can be copied: there is no device that could be suspended.
    async fn copy_thin(&self, pool: PoolUuid, origin: ThinId, id: ThinId) -> Result<(), Why> {
        self.inner.stack.borrow().thin_pool(pool)?;
        let root = &self.inner.root;
        let (folder, from, to) = (root.thin(pool), root.volume(pool, origin), root.volume(pool, id));
        let job = move || if thin::busy(&from)? { Ok(false) } else { thin::copy(&folder, &from, &to).map(|()| true) };
        if self.blocking(job).await? { Ok(()) } else { Err(Why::Data(MOUNTED)) }
    }

    async fn delete_thin(&self, pool: PoolUuid, id: ThinId) -> Result<(), Why> {
        self.inner.stack.borrow().thin_pool(pool)?;
        if self.inner.stack.borrow().is_thin_active(pool, id) {
            return Err(Why::Errno(libc::EBUSY));
        }
        let (folder, volume) = (self.inner.root.thin(pool), self.inner.root.volume(pool, id));
        self.blocking(move || thin::delete(&folder, &volume)).await
    }

    async fn place_link(&self, device: Dm, id: ThinId, link: PathBuf) -> Result<(), Why> {
        let target = Path::new("../..").join(device.pool().simple()).join("thin").join(id.to_string());
        let making = self.inner.root.link_in_making(&device.to_string());
        let entry = (link.clone(), target.clone());
        let old = self.inner.links.borrow_mut().insert(device, entry.clone());
        self.blocking(move || links::place(&target, &making, &link)).await?;
        if let Some((old_link, old_target)) = old.filter(|old| *old != entry) {
            self.blocking(move || links::remove(&old_target, &old_link)).await?;
        }
        Ok(())
    }

    /// The path of a file in a mounted metadata volume.
    fn file(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<PathBuf, Why> {
        Ok(self.folder(pool, folder)?.join(volume::checked(file)?))
    }

    fn folder(&self, pool: PoolUuid, folder: Folder) -> Result<PathBuf, Why> {
        let mounted = self.inner.mounted.borrow().contains(&pool);
        if mounted { Ok(self.inner.root.mdv(pool, folder)) } else { Err(Why::Errno(libc::ENOENT)) }
    }

    /// Runs a job on a file of a mounted metadata volume.
    async fn on_file<T: Send + 'static>(
        &self,
        doing: &'static str,
        pool: PoolUuid,
        folder: Folder,
        file: &str,
        job: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let outcome = match self.file(pool, folder, file) {
            Ok(path) => self.blocking(move || job(&path)).await,
            Err(why) => Err(why),
        };
        outcome.map_err(fault(doing, format!("{file:?} in {}", self.inner.root.mdv(pool, folder).display())))
    }

    /// Runs a job on a folder of a mounted metadata volume.
    async fn on_folder<T: Send + 'static>(
        &self,
        doing: &'static str,
        pool: PoolUuid,
        folder: Folder,
        job: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let outcome = match self.folder(pool, folder) {
            Ok(path) => self.blocking(move || job(&path)).await,
            Err(why) => Err(why),
        };
        outcome.map_err(fault(doing, self.inner.root.mdv(pool, folder).display()))
    }
}

impl Sys for FilesSys {
    type Encryption = Infallible;

    fn encryption(&self) -> Result<&Infallible, Refusal> {
        Err(Refusal::Unsupported { what: "encryption" })
    }

    fn kind(&self) -> Kind {
        Kind::Files
    }

    fn devnode(&self, pool: &Name, filesystem: &Name) -> String {
        self.inner.root.devnode(pool, filesystem).to_string_lossy().into_owned()
    }

    async fn examine(&self, path: &DevicePath) -> Result<Candidate, Failure> {
        let own = path.clone();
        self.lane(move || examine::examine(&own)).await.map_err(fault("examine", path))?
    }

    async fn discover(&self) -> Result<Vec<Candidate>, Fault> {
        let devices = self.inner.root.devices();
        let subject = devices.display().to_string();
        self.blocking(move || devices::discover(&devices)).await.map_err(fault("discover devices in", subject))
    }

    async fn device_events(&self) -> Vec<DeviceEvent> {
        pending().await
    }

    async fn open(&self, candidate: &Candidate, opening: Opening) -> Result<(), Failure> {
        if !self.inner.open.borrow().contains_key(&candidate.number) {
            let (file, lock) = self.open_and_lock(candidate).await?;
            let (path, size) = (candidate.path.clone(), candidate.size);
            let open = Open { path, fd: Fd::new(file.into()), size, _lock: lock };
            self.inner.open.borrow_mut().insert(candidate.number, open);
        }
        if opening != Opening::Look {
            if let Some(open) = self.inner.open.borrow_mut().get_mut(&candidate.number) {
                // It may have grown since it was opened.
                open.size = candidate.size;
            }
            let own = candidate.clone();
            let devices = self.inner.root.devices();
            let making = self.inner.root.link_in_making(&format!("device-{}-{}", own.number.0, own.number.1));
            let outcome = self.blocking(move || devices::remember(&devices, &making, &own)).await;
            if let Err(why) = outcome {
                self.inner.open.borrow_mut().remove(&candidate.number);
                return Err(Fault::new("remember", &candidate.path, why).into());
            }
        }
        Ok(())
    }

    async fn close(&self, number: DeviceNumber, forget: bool) {
        let open = self.inner.open.borrow_mut().remove(&number);
        if forget {
            let devices = self.inner.root.devices();
            let path = open.map(|open| open.path);
            let subject = format!("device {}-{}", number.0, number.1);
            let job = move || devices::forget(&devices, number, path.as_ref().map(DevicePath::as_path));
            if let Err(fault) = self.blocking(job).await.map_err(fault("forget", subject)) {
                log::warn!("{fault}");
            }
        }
    }

    async fn read(&self, target: Target, start: Sectors, count: Sectors) -> Result<Buffer, Fault> {
        let outcome = self.read_sectors(target, start, count).await;
        outcome.map_err(|why| Fault::new("read", self.subject(target, start), why))
    }

    async fn write(&self, batch: Vec<Write>) -> Vec<Result<(), Fault>> {
        self.write_sectors(batch).await
    }

    async fn flush(&self, targets: Vec<Target>) -> Vec<Result<(), Fault>> {
        self.flush_targets(&targets).await
    }

    async fn block_sizes(&self, device: Dm) -> Result<BlockSizes, Fault> {
        self.blocks_of(device).map_err(fault("read the block sizes of", device))
    }

    async fn activate(&self, tables: &[(Dm, Table)]) -> Result<(), Fault> {
        for (device, table) in tables {
            self.activate_checked(*device, table).await.map_err(fault("activate", device))?;
        }
        Ok(())
    }

    async fn swap(&self, tables: &[(Dm, Table)]) -> Result<Duration, Fault> {
        for (device, table) in tables {
            self.swap_checked(*device, table).map_err(fault("swap the table of", device))?;
        }
        Ok(Duration::ZERO)
    }

    async fn deactivate(&self, devices: &[Dm]) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for device in devices {
            outcome = outcome.and(self.deactivate_checked(*device).await.map_err(fault("deactivate", device)));
        }
        outcome
    }

    async fn settle(&self, _pool: PoolUuid) {}

    async fn active(&self, pool: PoolUuid) -> Result<Vec<Dm>, Fault> {
        Ok(self.inner.stack.borrow().of(pool))
    }

    async fn thin_create(&self, pool: PoolUuid, id: ThinId) -> Result<Option<ReadsZeroes>, Fault> {
        let outcome = self.create_thin(pool, id).await;
        outcome.map(Some).map_err(fault("create thin volume", format!("{id} of pool {pool}")))
    }

    async fn thin_delete(&self, pool: PoolUuid, id: ThinId) -> Result<(), Fault> {
        self.delete_thin(pool, id).await.map_err(fault("delete thin volume", format!("{id} of pool {pool}")))
    }

    async fn thin_snapshot(&self, pool: PoolUuid, origin: (FsUuid, ThinId), id: ThinId) -> Result<(), Fault> {
        let outcome = self.copy_thin(pool, origin.1, id).await;
        outcome.map_err(fault("make a snapshot of", Dm::Thin(pool, origin.0)))
    }

    async fn thin_commit(&self, pool: PoolUuid) -> Result<(), Fault> {
        let target = Target::Dm(Dm::Private(pool, Role::ThinPool));
        self.flush_targets(&[target]).await.remove(0)
    }

    async fn thin_pool(&self, pool: PoolUuid) -> Result<ThinPoolState, Fault> {
        let state = self.inner.stack.borrow().thin_pool(pool);
        state.map_err(fault("read the state of the thin pool of", pool))
    }

    /// The host's file system keeps what a thin pool's metadata would.
    async fn thin_check(&self, _device: Dm) -> Result<bool, Failure> {
        Ok(true)
    }

    async fn thin_repair(&self, _from: Dm, _to: Dm) -> Result<(), Failure> {
        unreachable!("nothing that is whole is repaired")
    }

    async fn thin_pool_events(&self) -> Vec<PoolUuid> {
        pending().await
    }

    async fn thin_volume(&self, device: Dm) -> Result<(ThinId, Sectors), Fault> {
        self.inner.stack.borrow().thin_volume(device).map_err(fault("look at the table of", device))
    }

    async fn thin_used(&self, pool: PoolUuid, filesystem: FsUuid) -> Result<Bytes, Fault> {
        let device = Dm::Thin(pool, filesystem);
        let fault = fault("measure", device);
        match self.volume(device) {
            Ok(volume) => self.blocking(move || thin::used(&volume)).await.map_err(fault),
            Err(why) => Err(fault(why)),
        }
    }

    /// Whoever has it mounted has it on a loop device, and here nobody knows which.
    async fn fill(&self, _device: Dm) -> Result<Option<Fill>, Fault> {
        Ok(None)
    }

    async fn dirty(&self) -> Result<Bytes, Fault> {
        Ok(Bytes(0))
    }

    /// A file is mounted through a loop device, which is its owner's and keeps its size.
    async fn grow_xfs(&self, _device: Dm) -> Result<Growth, Fault> {
        Ok(Growth::NotMounted)
    }

    async fn replay_log(&self, device: Dm) -> Result<(), Fault> {
        Err(Fault::new("have the log replayed of", device, Why::Data(DIRTY)))
    }

    async fn busy(&self, device: Dm) -> Result<bool, Fault> {
        self.in_use(device).await.map_err(fault("look at users of", device))
    }

    async fn announce(&self, pool: (PoolUuid, &Name), filesystem: (FsUuid, &Name, ThinId)) {
        let link = self.inner.root.devnode(pool.1, filesystem.1);
        let subject = link.display().to_string();
        let outcome = self.place_link(Dm::Thin(pool.0, filesystem.0), filesystem.2, link).await;
        if let Err(fault) = outcome.map_err(fault("make link", subject)) {
            log::warn!("{fault}");
        }
    }

    async fn mdv_mount(&self, pool: PoolUuid) -> Result<(), Fault> {
        let volume = mdv::Volume::of(&self.inner.root, pool);
        let active = self.inner.stack.borrow().table(Dm::Private(pool, Role::Mdv)).is_some();
        let outcome = match active {
            true => self.blocking(move || volume.mount()).await,
            false => Err(Why::Errno(libc::ENXIO)),
        };
        outcome.map_err(fault("mount metadata volume of pool", pool))?;
        self.inner.mounted.borrow_mut().insert(pool);
        Ok(())
    }

    async fn mdv_unmount(&self, pool: PoolUuid) -> Result<(), Fault> {
        self.inner.mounted.borrow_mut().remove(&pool);
        Ok(())
    }

    async fn mdv_size(&self, pool: PoolUuid) -> Result<Bytes, Fault> {
        self.on_folder("measure", pool, Folder::Filesystems, volume::size).await
    }

    async fn mdv_list(&self, pool: PoolUuid, folder: Folder) -> Result<Vec<String>, Fault> {
        self.on_folder("list", pool, folder, volume::list).await
    }

    async fn mdv_read(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<Vec<u8>, Fault> {
        self.on_file("read", pool, folder, file, volume::read).await
    }

    async fn mdv_write(&self, pool: PoolUuid, folder: Folder, file: &str, bytes: &[u8]) -> Result<(), Fault> {
        let bytes = bytes.to_vec();
        self.on_file("write", pool, folder, file, move |path| volume::write(path, &bytes)).await
    }

    async fn mdv_sync(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        self.on_file("flush", pool, folder, file, volume::sync).await
    }

    async fn mdv_rename(&self, pool: PoolUuid, folder: Folder, from: &str, to: &str) -> Result<(), Fault> {
        let to = self.file(pool, folder, to).map_err(fault("rename to", format!("{to:?}")))?;
        self.on_file("rename", pool, folder, from, move |path| std::fs::rename(path, &to)).await
    }

    async fn mdv_remove(&self, pool: PoolUuid, folder: Folder, file: &str) -> Result<(), Fault> {
        self.on_file("remove", pool, folder, file, volume::remove).await
    }

    async fn mdv_sync_folder(&self, pool: PoolUuid, folder: Folder) -> Result<(), Fault> {
        self.on_folder("flush", pool, folder, volume::sync_folder).await
    }

    async fn scrap(&self, pool: PoolUuid) -> Result<(), Fault> {
        let links: Vec<_> = self.inner.links.borrow_mut().extract_if(.., |device, _| device.pool() == pool).collect();
        let (root, folder) = (self.inner.root.path().to_owned(), self.inner.root.pool(pool));
        let job = move || {
            for (_, (link, target)) in links {
                links::remove(&target, &link)?;
            }
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
            volume::sync_folder(&root)
        };
        self.blocking(job).await.map_err(fault("remove what is left of pool", pool))
    }
}
