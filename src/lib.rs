//! stratisd, thread-per-core: pools that are interchangeable with stratisd 3.9.2, one owner core each.
//!
//! The modules form a staircase; each uses only what stands above it (`tests/tidy.rs` checks):
//!
//! ```text
//! limits, units, zoo   numbers and their types; mistakes that tests plant
//! model                plain values
//! error, message       what crosses a core
//! format               bytes <-> values of the Stratis metadata, pure
//! xfs                  bytes of an XFS filesystem, pure
//! engine               decides, pure
//! sys                  does: kernel, files or simulation behind one trait
//! probe                reads what devices say of themselves
//! shard                owns pools; shard/ops carries decisions to sys and back
//! directory            claims of names and devices
//! event                what happens outside
//! bus                  the D-Bus connection, the object tree
//! ```

pub mod limits;
pub mod units;
pub mod zoo;

pub mod model;

pub mod descriptors;
pub mod error;
pub mod message;

pub mod format;

pub mod xfs;

pub mod engine;

pub mod sys;

pub mod probe;

pub mod bus;
pub mod directory;
pub mod event;
pub mod shard;

pub mod args;
pub mod lock;
