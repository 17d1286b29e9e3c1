//! Filesystems that a user has mounted: how full they are, and what becomes of them when they grow.
//!
//! Invariant: a filesystem never lies on more than its volume; a daemon that makes a volume shorter than what is on
//! it has made a mistake that loses data, and it is noted as one.
//!
//! Deliberately absent: the structures that the kernel writes when a filesystem grows. How large it is stands beside
//! its bytes, which stay those of the size it was made with.

use super::state::State;
use super::thin::Content;
use super::xfs;
use crate::error::Why;
use crate::model::dm::{Dm, Role, Table};
use crate::model::filesystem::Fill;
use crate::model::ids::ThinId;
use crate::sys::Growth;
use crate::units::{Bytes, Sectors};

impl Content {
    /// What of its volume the filesystem lies on, if there is one.
    fn size(&self) -> Option<Sectors> {
        xfs::size(&self.medium).map(|made| made.max(self.grown))
    }
}

impl State {
    /// Panics if a volume is to be shorter than the filesystem on it.
    pub(super) fn check_length(&mut self, device: Dm, id: ThinId, length: Sectors) -> Result<(), Why> {
        let content = self.thin_store(device.pool())?.content(id).ok_or(Why::Errno(libc::ENODATA))?;
        match content.size() {
            Some(size) if size > length => {
                self.bug(format!("{device} would have {length}, and the filesystem on it has {size}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// How full a filesystem is that is mounted.
    pub(super) fn fill(&self, device: Dm) -> Result<Option<Fill>, Why> {
        let content =
            self.thin_store(device.pool())?.content(self.thin_id(device)?).ok_or(Why::Errno(libc::ENODATA))?;
        let size = content.size().filter(|_| self.in_use.contains(&device));
        Ok(size.map(|size| Fill { size: size.bytes(), total: size.bytes(), used: content.filled }))
    }

    /// A user writes until so much of a filesystem is used; what is there already is written again.
    pub(super) fn write_until(&mut self, device: Dm, used: Bytes) -> Result<(), Why> {
        let id = self.thin_id(device)?;
        let pool = self.stack.table(Dm::Private(device.pool(), Role::ThinPool));
        let Some(Table::ThinPool { block, .. }) = pool else { return Err(Why::Errno(libc::ENXIO)) };
        let (block, count) = (*block, used.sectors().ok_or(Why::Errno(libc::EINVAL))?);
        let content = self.thin_store_mut(device.pool())?.content_mut(id).ok_or(Why::Errno(libc::ENODATA))?;
        if content.size().is_none_or(|size| size < count) {
            return Err(Why::Errno(libc::ENOSPC));
        }
        content.filled = used;
        content.take(block, Sectors::ZERO, count);
        Ok(())
    }

    /// Writes to a volume what lasts.
    pub(super) fn scribble_volume(&mut self, device: Dm, start: Sectors, bytes: &[u8]) {
        let (id, write) = (self.thin_id(device).expect("the volume is active"), self.tick());
        let store = self.thin_store_mut(device.pool()).expect("and so its thin pool");
        let content = store.content_mut(id).expect("an active volume is there");
        let (units, rest) = bytes.as_chunks();
        assert!(rest.is_empty(), "whole sectors are written");
        for (at, unit) in (start.0..).zip(units) {
            content.medium.engrave(write, Sectors(at), unit);
        }
    }

    /// Makes a filesystem that is mounted as large as its volume.
    pub(super) fn grow_xfs(&mut self, device: Dm) -> Result<Growth, Why> {
        let length = self.stack.table(device).ok_or(Why::Errno(libc::ENXIO))?.length();
        let id = self.thin_id(device)?;
        let mounted = self.in_use.contains(&device);
        let content = self.thin_store_mut(device.pool())?.content_mut(id).ok_or(Why::Errno(libc::ENODATA))?;
        let size = content.size().ok_or(Why::Errno(libc::ENOTTY))?;
        if !mounted {
            return Ok(Growth::NotMounted);
        }
        content.grown = size.max(length);
        Ok(Growth::Mounted(content.grown.bytes()))
    }
}
