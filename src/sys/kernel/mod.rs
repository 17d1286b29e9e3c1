//! The machine itself: block devices, device-mapper, udev, XFS.
//!
//! Invariants: nothing here blocks a core (I/O goes through the side ring, every call that can wait
//! through a lane); a udevd that hangs costs a warning and a bounded wait; what a process that died
//! left half done is finished or taken away by the next one that looks.
//!
//! Deliberately absent: decisions. Which tables, which devices, what to keep is for the engine.

mod announce;
mod block;
mod busy;
mod calls;
mod devices;
mod dm;
mod examine;
mod extents;
mod lanes;
mod mdv;
mod monitor;
mod mounted;
pub mod namespace;
mod program;
mod replay;
mod sectors;
mod thin_meta;
mod writes;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::rc::Rc;

use cores::rt;
use cores::side::Side;
use cores::steady;

use self::devices::Open;
use self::dm::Mapper;
use self::extents::Busy;
use self::lanes::Lanes;
use self::monitor::Ears;
use crate::error::{Fault, Why};
use crate::model::device::DeviceNumber;

// The errno of a failed call.
use crate::sys::jobs::why;

struct Inner {
    side: Rc<Side>,
    lanes: Rc<Lanes>,
    mapper: Mapper,
    open: RefCell<BTreeMap<DeviceNumber, Open>>,
    ears: Ears,
    /// What is being written, so that no two writes change one block at a time.
    writing: Busy,
}

/// The machine as one core sees it. Clones are the same.
#[derive(Clone)]
pub struct KernelSys {
    inner: Rc<Inner>,
}

impl fmt::Debug for KernelSys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("KernelSys")
    }
}

impl KernelSys {
    /// The machine for the core that this is called on; its blocking calls run on `cpu`.
    ///
    /// # Errors
    /// No thread is to be had, or device-mapper cannot be reached.
    ///
    /// # Panics
    /// Outside of a core: there is no side ring.
    pub fn new(cpu: Option<usize>) -> io::Result<Self> {
        if let Err(error) = steady::hasten() {
            log::warn!("events may wait for whatever keeps the machine busy: {error}");
        }
        let lanes = Rc::new(Lanes::new(cpu));
        let mapper = Mapper::new(Rc::clone(&lanes), cpu)?;
        let inner = Inner {
            side: rt::side(),
            lanes,
            mapper,
            open: RefCell::default(),
            ears: Ears::default(),
            writing: Busy::default(),
        };
        Ok(Self { inner: Rc::new(inner) })
    }
}

fn fault(doing: &'static str, subject: impl ToString) -> impl FnOnce(Why) -> Fault {
    move |why| Fault::new(doing, subject, why)
}
