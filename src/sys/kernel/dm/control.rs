//! What is asked of device-mapper, with our names and errors: changes by the devicemapper crate, questions by our own.
//!
//! Everything here blocks; it runs on a lane. Invariant: a device that is not there is ENXIO, whatever
//! was asked of it.
//!
//! Deliberately absent: what udev is told of (`ioctl`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use devicemapper::errors::Error;
use devicemapper::{DM, DevId, DmError, DmName, DmOptions, DmUuid};
use devicemapper_sys::{
    DM_ACTIVE_PRESENT_FLAG, DM_DEV_STATUS_CMD, DM_INACTIVE_PRESENT_FLAG, DM_NOFLUSH_FLAG, DM_STATUS_TABLE_FLAG,
    DM_SUSPEND_FLAG, DM_TABLE_STATUS_CMD, dm_ioctl,
};

use super::ioctl::REQUEST_BYTES;
use super::list::{Listed, Room, list};
use super::question::{Question, has_uuid, numbered};
use super::table::Lines;
use crate::error::Why;
use crate::limits::DM_STATUS_BYTES_MIN;
use crate::model::device::DeviceNumber;
use crate::model::dm::{Dm, OURS};
use crate::model::ids::PoolUuid;

/// An open control device.
pub(super) struct Control {
    dm: DM,
    room: Room,
}

/// What the kernel says of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Info {
    pub(super) number: DeviceNumber,
    pub(super) open_count: u32,
    /// Its dm UUID is what it should be.
    pub(super) own_uuid: bool,
    pub(super) active_table: bool,
    pub(super) inactive_table: bool,
    pub(super) suspended: bool,
}

/// Which table, or how it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ask {
    /// The active table.
    Table,
    /// The status, and nothing is written for it.
    Status,
    /// The status; a thin pool commits its metadata first.
    StatusAfterCommit,
}

impl Control {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        DM::new().map(|dm| Self { dm, room: Room::default() }).map_err(|error| io::Error::other(error.to_string()))
    }

    /// For ioctls of our own.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.dm.file().as_fd()
    }

    /// What the device is; nothing if it is not there.
    pub(super) fn look(&self, device: Dm) -> Result<Option<Info>, Why> {
        there(self.info(device))
    }

    /// What the device is.
    pub(super) fn info(&self, device: Dm) -> Result<Info, Why> {
        let question = Question { command: DM_DEV_STATUS_CMD, flags: 0, name: &device.to_string() };
        let answer = question.ask(self.descriptor(), REQUEST_BYTES).map_err(|error| unanswered(&error))?;
        Ok(said(&answer.header, device))
    }

    /// Its number.
    pub(super) fn number(&self, device: Dm) -> Result<DeviceNumber, Why> {
        self.info(device).map(|info| info.number)
    }

    /// Makes a device without a table.
    pub(super) fn create(&self, device: Dm) -> Result<(), Why> {
        let name = device.to_string();
        let created = self.dm.device_create(dm_name(&name), Some(dm_uuid(&name)), DmOptions::default());
        created.map(|_info| ()).map_err(why)
    }

    /// Loads a table to be swapped in. One that was loaded before is replaced.
    pub(super) fn load(&self, device: Dm, lines: &Lines) -> Result<(), Why> {
        let name = device.to_string();
        let loaded = self.dm.table_load(&DevId::Name(dm_name(&name)), lines, DmOptions::default());
        loaded.map(|_info| ()).map_err(why)
    }

    /// The lines of a table or of its status.
    pub(super) fn lines(&self, device: Dm, ask: Ask) -> Result<Lines, Why> {
        self.ask(device, ask).map(|(_info, lines)| lines)
    }

    /// What the device is and the lines of its active table, which are none if it has none; nothing if it is not
    /// there.
    pub(super) fn table(&self, device: Dm) -> Result<Option<(Info, Lines)>, Why> {
        there(self.ask(device, Ask::Table))
    }

    fn ask(&self, device: Dm, ask: Ask) -> Result<(Info, Lines), Why> {
        let flags = match ask {
            Ask::Table => DM_STATUS_TABLE_FLAG | DM_NOFLUSH_FLAG,
            Ask::Status => DM_NOFLUSH_FLAG,
            Ask::StatusAfterCommit => 0,
        };
        let question = Question { command: DM_TABLE_STATUS_CMD, flags, name: &device.to_string() };
        let answer = question.ask(self.descriptor(), DM_STATUS_BYTES_MIN).map_err(|error| unanswered(&error))?;
        let lines = answer.lines().map_err(|error| unanswered(&error))?;
        Ok((said(&answer.header, device), lines))
    }

    /// Tells a target something.
    pub(super) fn message(&self, device: Dm, message: &str) -> Result<(), Why> {
        let name = device.to_string();
        self.dm.target_msg(&DevId::Name(dm_name(&name)), None, message).map(|_answer| ()).map_err(why)
    }

    /// The devices of a pool that are there, whatever their state.
    pub(super) fn of_pool(&self, pool: PoolUuid) -> Result<Vec<Dm>, Why> {
        let ours = self.ours()?.into_iter();
        let mut found: Vec<Dm> = ours.map(|(device, _)| device).filter(|device| device.pool() == pool).collect();
        found.sort();
        Ok(found)
    }

    /// The devices of all pools, with their numbers.
    pub(super) fn ours(&self) -> Result<Vec<(Dm, DeviceNumber)>, Why> {
        let ours = |listed: Listed<'_>| Some((listed.name.parse().ok()?, listed.number));
        list(self.descriptor(), &self.room, OURS, ours).map_err(|error| unanswered(&error))
    }
}

/// Device-mapper, and the numbers of devices that tables refer to: those of one batch refer to the same few.
pub(super) struct Numbers<'a> {
    /// Device-mapper.
    pub(super) control: &'a Control,
    known: RefCell<BTreeMap<Dm, DeviceNumber>>,
}

impl<'a> Numbers<'a> {
    /// None is known yet.
    pub(super) fn of(control: &'a Control) -> Self {
        Self { control, known: RefCell::default() }
    }

    /// The number of a device, which stays the same as long as the batch does not end.
    pub(super) fn number(&self, device: Dm) -> Result<DeviceNumber, Why> {
        if let Some(number) = self.known.borrow().get(&device) {
            return Ok(*number);
        }
        let number = self.control.number(device)?;
        self.known.borrow_mut().insert(device, number);
        Ok(number)
    }
}

/// What is not there is no error.
fn there<T>(asked: Result<T, Why>) -> Result<Option<T>, Why> {
    match asked {
        Ok(told) => Ok(Some(told)),
        Err(Why::Errno(libc::ENXIO)) => Ok(None),
        Err(why) => Err(why),
    }
}

/// What an answer says of a device.
fn said(header: &dm_ioctl, device: Dm) -> Info {
    let has = |flag| header.flags & flag != 0;
    Info {
        number: numbered(header.dev),
        open_count: u32::try_from(header.open_count).unwrap_or_default(),
        own_uuid: has_uuid(header, &device.to_string()),
        active_table: has(DM_ACTIVE_PRESENT_FLAG),
        inactive_table: has(DM_INACTIVE_PRESENT_FLAG),
        suspended: has(DM_SUSPEND_FLAG),
    }
}

fn dm_name(name: &str) -> &DmName {
    DmName::new(name).expect("names of pools' devices are short ASCII")
}

fn dm_uuid(name: &str) -> &DmUuid {
    DmUuid::new(name).expect("names of pools' devices are short ASCII")
}

/// Why a question has no answer.
fn unanswered(error: &io::Error) -> Why {
    error.raw_os_error().map_or(Why::Data("device-mapper's answer is too long, or not understood"), Why::Errno)
}

fn why(error: DmError) -> Why {
    match error {
        DmError::Core(Error::Ioctl(_, _, _, errno)) => Why::Errno(*errno as i32),
        DmError::Core(_) | DmError::Dm(..) => {
            log::error!("device-mapper's library fails: {error}");
            Why::Data("device-mapper's library failed; the log says how")
        }
    }
}
