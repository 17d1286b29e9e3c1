//! The D-Bus role: the connection, the object tree, and the API of ten revisions as one table.
//!
//! ```text
//! socket -> read -> incoming -> core -> decide -> table -> Request -> home of the pool
//! socket <- write <- queue <- encode <- core <- Views, Reply <---------'
//! ```
//!
//! `table` says what exists; `xml`, `fragment`, `changes` and `decide` only follow it. `tree` holds
//! copies of what shards show, so reads never leave this core. `core` is all of that as one machine
//! without I/O; `address`, `auth`, `read`, `write` and `run` connect it to a bus.
//!
//! Invariant: an effect is announced before the call that caused it is answered.
//!
//! Deliberately absent: rules about pools. They live in `engine`; here is only the form of calls.

pub mod address;
pub mod announce;
pub mod auth;
pub mod calls;
pub mod changes;
pub mod core;
pub mod daemon;
pub mod decide;
pub mod encode;
pub mod errors;
pub mod facts;
pub mod fragment;
pub mod incoming;
pub mod listing;
pub mod queue;
pub mod read;
pub mod report;
pub mod run;
pub mod table;
pub mod tree;
pub mod value;
pub mod write;
pub mod xml;

pub use run::{BusConfig, BusFault, run};

#[cfg(test)]
mod tests;
