//! Plain values that every other module speaks in: no I/O, no decisions, no bytes on disk.
//!
//! A value here is checked when it is made and not again. Deliberately absent: anything that knows
//! D-Bus, a file descriptor, or how a value is written to disk.

pub mod blank;
pub mod device;
pub mod dm;
pub mod filesystem;
pub mod ids;
pub mod name;
pub mod pool;
pub mod token;
