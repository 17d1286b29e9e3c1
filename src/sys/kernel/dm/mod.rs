//! Device-mapper: SKELETON, owned by helper dm.

use std::io;
use std::rc::Rc;

use crate::error::Why;
use crate::model::device::DeviceNumber;
use crate::model::dm::{Dm, Table, ThinMessage, ThinPoolState};
use crate::model::ids::PoolUuid;
use crate::sys::kernel::lanes::Lanes;
use crate::units::Sectors;

/// Device-mapper as one core uses it.
pub(super) struct Mapper {
    _lanes: Rc<Lanes>,
}

const TODO: Why = Why::Errno(libc::ENOSYS);

impl Mapper {
    /// Opens device-mapper.
    pub(super) fn new(lanes: Rc<Lanes>) -> io::Result<Self> {
        Ok(Self { _lanes: lanes })
    }

    /// As `Sys::activate`; says which device it failed at.
    pub(super) async fn activate(&self, tables: &[(Dm, Table)]) -> Result<(), (Dm, Why)> {
        let _ = tables;
        Err((tables[0].0, TODO))
    }

    /// As `Sys::deactivate`.
    pub(super) async fn deactivate(&self, devices: &[Dm]) -> Result<(), (Dm, Why)> {
        Err((devices[0], TODO))
    }

    /// As `Sys::settle`.
    pub(super) async fn settle(&self, _pool: PoolUuid) {}

    /// As `Sys::active`.
    pub(super) async fn active(&self, _pool: PoolUuid) -> Result<Vec<Dm>, Why> {
        Err(TODO)
    }

    /// As `Sys::thin_message`.
    pub(super) async fn thin_message(&self, _pool: PoolUuid, _message: ThinMessage) -> Result<(), Why> {
        Err(TODO)
    }

    /// As `Sys::thin_commit`.
    pub(super) async fn thin_commit(&self, _pool: PoolUuid) -> Result<(), Why> {
        Err(TODO)
    }

    /// As `Sys::thin_pool`, on the urgent lane.
    pub(super) async fn thin_pool(&self, _pool: PoolUuid) -> Result<ThinPoolState, Why> {
        Err(TODO)
    }

    /// Sectors that an active thin volume takes of its pool.
    pub(super) async fn thin_used(&self, _device: Dm) -> Result<Sectors, Why> {
        Err(TODO)
    }

    /// The number of an active device; its node is `/dev/dm-<minor>`. ENXIO when it is not active.
    pub(super) async fn number(&self, _device: Dm) -> Result<DeviceNumber, Why> {
        Err(TODO)
    }

    /// How many have the device open, the daemon and mounts included. ENXIO when it is not active.
    pub(super) async fn open_count(&self, _device: Dm) -> Result<u32, Why> {
        Err(TODO)
    }
}

/// The node of a dm device.
pub(super) fn node(number: DeviceNumber) -> std::path::PathBuf {
    format!("/dev/dm-{}", number.1).into()
}
