//! The daemon on a real kernel: device-mapper, udev and the system bus of a throw-away virtual machine.
//!
//! A scenario has two halves in one place. The host half boots a machine (User Mode Linux, 3 s) with fresh
//! disks and runs this very test binary in it; the guest half, marked as ignored so that it never runs on the
//! host, is what is tried. The guest sees the host's root read-only below an overlay in memory, so everything
//! that is built is just there; it is root in it, with a udevd and a system bus of its own.
//!
//! To add a scenario, put this into the file of its subject (a new file: one `mod` line below):
//!
//! ```ignore
//! scenario!(
//!     /// What it proves.
//!     a_pool_of_two_disks_comes_back,
//!     Spec { disks: &["10G", "10G"], ..SPEC },
//!     |guest: &mut Guest| {
//!         guest.start();                                       // the daemon, on the system bus
//!         let (_, (pool, _)) = guest.client().create_pool("p", &guest.disks()).done();
//!         assert_eq!(dm::names().len(), 6);
//!     }
//! );
//! ```
//!
//! `cargo test --test vm pool_of_two` runs it. What it printed (`output`), the daemon's log (`stratisd.log`),
//! the console and whatever the guest half put into `/out` stay in `target/vm/logs/<module>-<scenario>/`.
//! `VM_MACHINE=qemu` emulates a machine of two CPUs instead (slow); `VM=required` makes a failure of what is
//! skipped otherwise. A test that needs more than one boot (a power cut, say) uses `host::Machine` by itself.
//!
//! Invariant: nothing of the host is written but below `target/vm`; at most one machine for each CPU runs at a time,
//! each for a limited time. Deliberately absent: thresholds of time, and what tests on files or in the simulation
//! prove.

#[path = "../support/mod.rs"]
mod support;

#[path = "../kill/check.rs"]
mod check;
#[path = "../kill/journal.rs"]
mod journal;
#[path = "../kill/model.rs"]
mod model;
#[path = "../kill/worker.rs"]
mod worker;

mod aftermath;
mod guest;
mod host;
mod load;
mod reader;
mod signatures;

mod events;
mod kill;
mod power;
mod race;
mod udev;

mod bad_input;
mod cache;
mod cut;
mod data;
mod devices;
mod discovery;
mod dm;
mod extend;
mod format;
mod fsgrow;
mod golden;
mod grow;
mod life;
mod limit;
mod links;
mod metadata;
mod peer;
mod restart;
mod revert;
mod sectors;
mod service;
mod smoke;
mod snapshot;
mod thousand;
mod trouble;
mod volume;
mod wander;
mod xfs;
