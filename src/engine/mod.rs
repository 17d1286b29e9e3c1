//! Decides: which sectors, which tables, which records. Plain state and pure functions.
//!
//! No I/O, no clock, no randomness, no async: time, ids and order are arguments, so every decision
//! can be made again in a test.

pub mod alloc;
pub mod cap;
pub mod check;
pub mod devices;
pub mod encryption;
pub mod filesystem;
pub mod fill;
pub mod gather;
pub mod grow;
pub mod layout;
pub mod limit;
pub mod mark;
pub mod pool;
pub mod revert;
pub mod size;
pub mod space;
pub mod stack;
pub mod tier;
pub mod token;
pub mod volume;
pub mod watch;
