//! Cores and what runs on them: the runtime facade with its two implementations (glommio on a
//! pinned thread, and a deterministic one for tests), the side ring, lanes of blocking threads.
//!
//! Invariant: nothing outside this crate names glommio, io_uring or a thread. What the rooms of the
//! daemon see is `rt` (tasks, time, randomness), `side` (descriptors) and `lane` (what blocks).
//!
//! Deliberately absent: messages between cores (crate `ring`), and any knowledge of pools.

mod account;
pub mod buffer;
pub mod bulk;
pub mod changes;
pub mod clock;
pub mod deterministic;
pub mod executor;
pub mod lane;
pub mod limits;
pub mod memory;
pub mod placement;
pub mod preflight;
pub mod rt;
mod scheduler;
pub mod side;
pub mod signals;
pub mod steady;
mod task;
pub mod topology;
pub mod turns;
mod wait;
